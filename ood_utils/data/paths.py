"""Image files on disk: folders of classes, image lists. Light: no image is opened here, torch is not
imported.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import UserError
from .study import Need

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")


def folder_need(name: str, path: str, remedy: str) -> Need:
    """Whether a folder that the profile names is there, and how many entries it holds."""
    there = bool(path) and Path(path).expanduser().is_dir()
    if not there:
        return Need(False, f"{name} = '{path}' is no folder", remedy)
    return Need(
        True, f"{name} = '{path}': {sum(1 for _ in Path(path).expanduser().iterdir())} entries", remedy
    )


def images_below(folder: Path, what: str) -> list[Path]:
    """Every image file below a folder, sorted; UserError if the folder is missing."""
    if not folder.is_dir():
        raise UserError(f"{what}: folder {folder} does not exist; set data_root or ood_roots in the profile")
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def class_folders(folder: Path, what: str) -> tuple[list[str], list[Path], np.ndarray]:
    """(sorted class folder names, image paths, labels) of an ImageFolder layout; UserError for an empty
    class.
    """
    if not folder.is_dir():
        raise UserError(f"{what}: folder {folder} does not exist; set data_root in the profile")
    names = sorted(p.name for p in folder.iterdir() if p.is_dir())
    files = [images_below(folder / name, what) for name in names]
    if void := [name for name, found in zip(names, files, strict=True) if not found]:
        raise UserError(f"{what}: class folder {folder / void[0]} holds no image; fill it or move it away")
    labels = np.repeat(np.arange(len(names)), [len(f) for f in files])
    return names, [p for f in files for p in f], labels


def list_rows(list_file: Path, name: str) -> list[tuple[str, int]]:
    """(relative path, label) of every line of an OpenOOD image list; UserError names a line that is not."""
    if not list_file.is_file():
        raise UserError(f"{name}: image list {list_file} does not exist; get OpenOOD's benchmark_imglist.zip")
    rows = []
    for number, line in enumerate(list_file.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            path, label = line.decode().rsplit(maxsplit=1)
            rows.append((path, int(label)))
        except ValueError:  # one word only, a label that is no number, or bytes that are no text
            shown = line[:60].decode(errors="replace")
            raise UserError(
                f"{name}: line {number} of image list {list_file} is {shown!r}, not a path and a "
                "whole number; unpack OpenOOD's benchmark_imglist.zip again"
            ) from None
    return rows


def listed_images(list_file: Path, root: Path, name: str) -> list[Path]:
    """The files of an OpenOOD image list below ``root``; UserError if one of them is missing."""
    paths = [root / path for path, _ in list_rows(list_file, name)]
    if missing := [p for p in paths if not p.is_file()]:
        raise UserError(
            f"{list_file} names {len(missing)} missing files, the first {missing[0]}; complete the download"
        )
    return paths
