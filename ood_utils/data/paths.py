"""Image files on disk: folders of classes, image lists. Light: torch is not imported.

Paths are text here: a million Path objects take half a minute.
"""

import json
import os
import re
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from operator import attrgetter
from pathlib import Path

import numpy as np
from PIL import Image

from .. import store
from ..errors import UnreadableImage, UserError
from ..files import atomic_write, file_hash, hash_of
from .study import Need

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # of IMAGE_SUFFIXES: EPS would start Ghostscript
BIG = 20_000  # images from which on the list of a folder is kept
SETTLED = 2e9  # ns: a folder changed later than that could change again and keep its time


def folder_need(name: str, path: str, remedy: str) -> Need:
    """Whether a folder that the profile names is there, and how many entries it holds."""
    folder = Path(path).expanduser()
    there = bool(path) and folder.is_dir()
    looked = "" if not path or folder.is_absolute() else f": looked at {folder.absolute()}"
    found = f": {len(list(folder.iterdir()))} entries" if there else f" is no folder{looked}"
    return Need(there, f"{name} = '{path}'{found}", remedy)


def walk(top: str, strict: bool = False) -> Iterator[tuple[str, list[os.DirEntry]]]:
    """(folder, what lies in it but folders, by name), of ``top`` and all below it; circles are not followed.

    A folder that may not be read is passed over, or with ``strict`` an OSError.
    """
    parents = frozenset(map(str, Path(os.path.realpath(top)).parents))
    waiting = [(top, parents)] if os.path.isdir(top) else []
    while waiting:
        here, above = waiting.pop()
        if (real := os.path.realpath(here)) in above:
            continue
        try:
            with os.scandir(here) as found:
                entries = sorted(found, key=attrgetter("name"))
        except OSError:
            if strict:
                raise
            continue
        waiting += [(entry.path, above | {real}) for entry in entries if _is(entry.is_dir)]
        yield here, [entry for entry in entries if not _is(entry.is_dir)]


def _scan(top: str, strict: bool) -> dict[str, tuple[int, list[str]]]:
    """Folder -> (its time in ns, the sorted names of the images in it), of ``top`` and all below it.

    UserError naming an image that is a broken link, if ``strict``; else it is one of the images.
    """
    found, bad = {}, []
    for folder, entries in walk(top, strict=True):
        images = [e for e in entries if e.name.lower().endswith(IMAGE_SUFFIXES) and e.name[:2] != "._"]
        bad += [entry.path for entry in images if not _is(entry.is_file)]
        found[folder] = os.stat(folder).st_mtime_ns, [entry.name for entry in images]
    if bad and strict:
        fault = "is no file but a link that leads nowhere or in a circle, or a pipe; mend it or take it away"
        raise UserError(f"image {printable(min(bad))} {fault} ({len(bad)} of that kind below {top})")
    return found


def _is(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a link to itself
        return False


def images_below(folder: Path | str, strict: bool = True) -> np.ndarray:
    """(n,) paths (text) of every image file below a folder, sorted; none where there is no folder.

    Links are followed, macOS's ``._`` companions left out. The list of a big folder is kept in outputs/.scans
    and holds until a folder in it has another time. UserError naming a folder that may not be read and, if
    ``strict``, a broken link.
    """
    top = str(folder)
    kept = store.OUTPUTS / ".scans" / f"{hash_of([os.path.abspath(top), IMAGE_SUFFIXES])[:16]}.json"
    with suppress(OSError, ValueError, TypeError, AttributeError):  # there is none, or it is damaged
        found = json.loads(kept.read_bytes())
        if all(os.stat(at).st_mtime_ns == when for at, (when, _) in found.items()):
            return _paths(found)
    began = time.time_ns()
    try:
        found = _scan(top, strict)
    except OSError as fault:
        raise UserError(f"{fault.filename} cannot be read ({fault.strerror}); give yourself access") from None
    changed = max((when for when, _ in found.values()), default=0)
    if strict and sum(len(names) for _, names in found.values()) >= BIG and began - changed > SETTLED:
        with suppress(UserError):  # a full disk: it is scanned again next time
            atomic_write(kept, json.dumps(found))
    return _paths(found)


def _paths(found: dict[str, tuple[int, list[str]]]) -> np.ndarray:
    paths = [f"{at}{os.sep}{name}" for at in sorted(found) for name in found[at][1]]
    return np.array(paths, dtype=object)  # to be indexed as their labels are


@lru_cache(maxsize=2**17)
def _content(path: str | Path, size: int, time_ns: int) -> str:
    """Hash of a file, read once a process while its size and time stay: a study is listed several times."""
    return file_hash(path)


def copies(paths: Sequence[str | Path]) -> np.ndarray:
    """(n,) index of the first file with the same bytes, its own where it is the only one.

    Cheap where few files are of one size: only these are read.
    """
    stats, first = [os.stat(path) for path in paths], {}
    several = {size for size, count in Counter(one.st_size for one in stats).items() if count > 1}
    keys = [
        _content(path, one.st_size, one.st_mtime_ns) if one.st_size in several else i
        for i, (path, one) in enumerate(zip(paths, stats, strict=True))
    ]
    return np.array([first.setdefault(key, i) for i, key in enumerate(keys)], dtype=int)


def overlaps(data_root: str, ood_roots: Mapping[str, str]) -> Iterator[Need]:
    """OoD sets whose folder is another's too, holds the ID images, or lies among them."""
    known: dict[Path, str] = {}
    split = os.path.isdir(os.path.join(data_root, "train"))  # then what is beside train, val, test is free
    parts = ("train", "val", "test") if split else ("",) * bool(data_root)
    among = [Path(os.path.realpath(data_root), part) for part in parts]
    for name, root in ood_roots.items():
        real, own = Path(os.path.realpath(root)), f"ood_roots {name}"
        inside = any(real.is_relative_to(a) or a.is_relative_to(real) for a in among)
        other = "data_root" if inside else known.setdefault(real, own)
        if other != own:
            yield Need(False, f"{own} = '{root}' shares images with {other}", "give it others", "WRONG")


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


def class_folders(folder: Path | str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(sorted class folder names, image paths, labels) of an ImageFolder layout; no names without a folder.

    Hidden folders are no classes. Raises UserError naming a class folder without images, or with a name that
    is no UTF-8 or another's too.
    """
    top = Path(folder)
    found = top.iterdir() if top.is_dir() else ()  # hidden ones are tools': .git, .ipynb_checkpoints
    names = sorted(p.name for p in found if not p.name.startswith(".") and p.is_dir())
    _check_names(top, names)
    place, paths, start = {name: k for k, name in enumerate(names)}, images_below(top), len(str(top)) + 1
    labels = np.array([place.get(path[start:].partition(os.sep)[0], -1) for path in paths], dtype=np.int64)
    order = np.argsort(labels, kind="stable")[np.sum(labels < 0) :]  # files beside the folders have no class
    if void := sorted({*range(len(names))} - set(labels.tolist())):
        more = f" ({len(void)} such folders)" if len(void) > 1 else ""
        raise UserError(f"class folder {top / names[void[0]]} holds no image{more}; fill it or move it away")
    return names, paths[order], labels[order]


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
    """(n,) files of an OpenOOD image list below ``root``; UserError if it names none, or one is missing."""
    paths = [os.path.join(root, path) for path in listed(list_file)]
    if not paths:
        raise UserError(f"image list {list_file} names no image; unpack benchmark_imglist.zip again")
    if missing := [path for path in paths if not os.path.isfile(path)]:
        there = f"{len(paths) - len(missing):,} of the {len(paths):,} images that {list_file} names"
        raise UserError(f"{there} are there, the first missing one is {missing[0]}; complete the download")
    return np.array(paths, dtype=object)


def rgb(given: str | Path | Image.Image) -> Image.Image:
    """A file's image, or one that Pillow holds, as RGB. Raises UnreadableImage naming the file."""
    try:
        if isinstance(given, Image.Image):
            return given.convert("RGB")
        with Image.open(given, formats=FORMATS) as file:
            return file.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as fault:
        name = getattr(given, "filename", "") if isinstance(given, Image.Image) else given
        raise UnreadableImage(printable(name or "a PIL image"), printable(str(fault))) from None


def unopened(paths: np.ndarray) -> list[str]:
    """What is wrong with the first and the last of some images; nothing where both can be decoded."""
    found = []
    for path in dict.fromkeys((paths[0], paths[-1])):
        try:
            rgb(path)
        except UnreadableImage as fault:
            found.append(f"{fault.path} ({fault.reason.split(' ' + repr(path))[0]})")
    return found
