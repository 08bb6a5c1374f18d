"""Image files on disk: folders of classes, image lists. Light: no image is opened, torch is not imported."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..errors import UserError
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


def images_below(folder: Path) -> np.ndarray:
    """(n,) paths of every image file below a folder, sorted; none where there is no folder."""
    return _array(sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()))


def class_folders(folder: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(sorted class folder names, image paths, labels) of an ImageFolder layout; no names without a folder.

    Raises UserError naming a class folder without images.
    """
    names = sorted(p.name for p in folder.glob("*") if p.is_dir())
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
