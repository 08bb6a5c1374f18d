"""Image files on disk: folders of classes, image lists. Light: no image is opened, torch is not imported."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files import file_hash
from .study import Need

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")


def folder_need(name: str, path: str, remedy: str) -> Need:
    """Whether a folder that the profile names is there, and how many entries it holds."""
    folder = Path(path).expanduser()
    there = bool(path) and folder.is_dir()
    found = f": {len(list(folder.iterdir()))} entries" if there else " is no folder"
    return Need(there, f"{name} = '{path}'{found}", remedy)


def _array(paths: Iterable[Path]) -> np.ndarray:
    """(n,) Path objects, to be indexed as their labels are."""
    return np.array(list(paths), dtype=object)


def walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(folder, its sorted file names), of a folder and all below it; links are followed, circles are not."""
    above = {str(folder): frozenset(map(str, Path(os.path.realpath(folder)).parents))}
    for here, folders, names in os.walk(folder, followlinks=True):
        seen = above.pop(here) | {os.path.realpath(here)}
        folders[:] = sorted(f for f in folders if os.path.realpath(os.path.join(here, f)) not in seen)
        above |= dict.fromkeys((os.path.join(here, f) for f in folders), seen)
        yield here, sorted(names)


def images_below(folder: Path) -> np.ndarray:
    """(n,) paths of every image file below a folder, sorted; none where there is no folder.

    Links are followed, macOS's ``._`` companions left out. UserError naming an image that is a broken link.
    """
    found = []
    for here, names in walk(folder):
        named = (n for n in names if n.lower().endswith(IMAGE_SUFFIXES) and not n.startswith("._"))
        found += [Path(here, name) for name in named]
    if bad := [path for path in found if not path.is_file()]:
        fault = (
            f"image {printable(bad[0])} is no file but a link that leads nowhere or in a circle, or a pipe"
        )
        raise UserError(f"{fault}; mend it or take it away ({len(bad)} of that kind below {folder})")
    return _array(sorted(found))


def copies(paths: Sequence[Path]) -> np.ndarray:
    """(n,) index of the first file with the same bytes, its own where it is the only one.

    Cheap where few files are of one size: only these are read.
    """
    sizes = [os.path.getsize(path) for path in paths]
    several, first = {size for size, count in Counter(sizes).items() if count > 1}, {}
    keys = [
        file_hash(p) if size in several else i for i, (p, size) in enumerate(zip(paths, sizes, strict=True))
    ]
    return np.array([first.setdefault(key, i) for i, key in enumerate(keys)], dtype=int)


def overlaps(data_root: str, ood_roots: Mapping[str, str]) -> Iterator[Need]:
    """OoD sets whose folder is another's too, holds the ID images, or lies among them."""
    known = {os.path.realpath(data_root): "data_root"} if data_root else {}
    split = os.path.isdir(os.path.join(data_root, "train"))  # then what is beside train, val, test is free
    among = [
        Path(os.path.realpath(data_root), *part)
        for part in ((["train"], ["val"], ["test"]) if split else [[]])
    ]
    for name, root in ood_roots.items():
        real = Path(os.path.realpath(root))
        other = known.setdefault(str(real), f"ood_roots {name}")
        if data_root and any(real.is_relative_to(a) or a.is_relative_to(real) for a in among):
            other = "data_root"
        if other != f"ood_roots {name}":
            yield Need(
                False, f"ood_roots {name} = '{root}' shares images with {other}", "give it others", "WRONG"
            )


def printable(path: str | Path) -> str:
    """A path as one line of text: control characters and bytes that are no UTF-8 are escaped (``\\xNN``)."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return text if text.isprintable() else re.sub("[\x00-\x1f\x7f-\x9f]", lambda c: ascii(c[0])[1:-1], text)


def _check_names(folder: Path, names: list[str]) -> None:
    """UserError where a folder's name is no UTF-8, or two would name one class, or one is a link back up."""
    here = Path(os.path.realpath(folder))
    known: dict[str, str] = {}
    for name in names:
        if printable(name) != name:
            fault = "the name is not UTF-8 or has control characters"
            raise UserError(f"class folder {printable(folder / name)}: {fault}; rename it")
        if Path(os.path.realpath(folder / name)) in (here, *here.parents):
            raise UserError(f"class folder {folder / name} is a link back up, in a circle; take it away")
        spoken = " ".join(unicodedata.normalize("NFC", name).casefold().replace("_", " ").split())
        if (other := known.setdefault(spoken, name)) != name:
            both = f"class folders {ascii(other)} and {ascii(name)} of {folder}"
            raise UserError(f"{both} are one name to a model, {spoken!r}; rename one or join them")


def class_folders(folder: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(sorted class folder names, image paths, labels) of an ImageFolder layout; no names without a folder.

    Raises UserError naming a class folder without images, or with a name that is no UTF-8 or another's too.
    """
    names = sorted(p.name for p in folder.glob("*") if p.is_dir())
    _check_names(folder, names)
    files = [images_below(folder / name) for name in names]
    counts = [len(found) for found in files]
    if 0 in counts:
        void = folder / names[counts.index(0)]
        raise UserError(f"class folder {void} holds no image; fill it or move it away")
    return names, _array(p for found in files for p in found), np.repeat(np.arange(len(names)), counts)


def listed(list_file: Path) -> list[str]:
    """The relative paths in an OpenOOD image list; UserError names a missing file or a line that is none."""
    if not list_file.is_file():
        raise UserError(f"image list {list_file} does not exist; get OpenOOD's benchmark_imglist.zip")
    lines, paths = list_file.read_bytes().splitlines(), []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            path, label = line.decode().rsplit(maxsplit=1)
            int(label)
        except ValueError:  # one word only, a label that is no number, or bytes that are no text
            fault = f"is {line[:60].decode(errors='replace')!r}, not a path and a whole number"
            remedy = "unpack OpenOOD's benchmark_imglist.zip again"
            raise UserError(f"line {number} of image list {list_file} {fault}; {remedy}") from None
        paths.append(path)
    return paths


def listed_images(list_file: Path, root: Path) -> np.ndarray:
    """(n,) files of an OpenOOD image list below ``root``; UserError if one of them is missing."""
    paths = [root / path for path in listed(list_file)]
    if missing := [p for p in paths if not p.is_file()]:
        first = f"{len(missing)} missing files, the first {missing[0]}"
        raise UserError(f"{list_file} names {first}; complete the download")
    return _array(paths)
