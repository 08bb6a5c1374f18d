"""Image files as a data set: decoded in the loading workers, transformed, random views by key."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms.v2.functional import pil_to_tensor

from ..errors import UnreadableImage, UserError
from .paths import IMAGE_SUFFIXES, copies, printable
from .study import ImageSet, digest

FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # of IMAGE_SUFFIXES: EPS would start Ghostscript


def read_image(path: str | Path) -> Tensor:
    """An image file as uint8 RGB (3, H, W): JPEG by torchvision, what that cannot read by PIL.

    Raises UnreadableImage naming the file.
    """
    path = str(path)
    if path.lower().endswith((".jpg", ".jpeg")):
        try:
            return decode_jpeg(read_file(path), mode=ImageReadMode.RGB)
        except (
            RuntimeError,
            UnicodeEncodeError,
        ):  # a PNG of that name, CMYK, damage, Latin-1: PIL reads it or says what is wrong
            pass
    try:
        with Image.open(path, formats=FORMATS) as file:
            return pil_to_tensor(file.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as fault:
        raise UnreadableImage(printable(path), printable(str(fault))) from None


class ImageFiles(Dataset):
    """Images of a list of files; item KEY -> (transformed image, label of file key % n).

    With a ``seed`` the transform's random numbers are a function of (seed, key). Errors as ``read_image``.
    """

    def __init__(
        self, paths: Sequence[Path], labels: np.ndarray, transform: Callable, seed: int | None = None
    ) -> None:
        self.paths, self.labels = [str(p) for p in paths], labels
        self.transform, self.seed = transform, seed

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: int) -> tuple[Tensor, int]:
        row = int(key) % len(self)
        image, label = read_image(self.paths[row]), int(self.labels[row])
        if self.seed is None:
            return self.transform(image), label
        with torch.random.fork_rng(devices=[]):
            # torch's CPU generator reads the low 32 bits alone: the seed must reach them
            torch.manual_seed((self.seed * 2_654_435_761 ^ int(key)) % 2**32)
            return self.transform(image), label


def files_set(
    name: str,
    group: str,
    root: Path,
    paths: Sequence[Path],
    transform: Callable,
    labels: np.ndarray | None = None,
    seed: int | None = None,
) -> ImageSet:
    """An ImageSet of files below ``root``; without labels all are OoD (-1). UserError where there is none."""
    if not len(paths):
        suffixes = ", ".join(IMAGE_SUFFIXES)
        raise UserError(f"image set {name!r} is empty: {root} is missing or has no image ({suffixes})")
    labels = np.full(len(paths), -1) if labels is None else labels.astype(np.int64)
    ids = [printable(p.relative_to(root)) for p in paths]
    sizes = [p.stat().st_size for p in paths]
    fingerprint = digest(name, ids, sizes, labels, repr(transform), seed)
    return ImageSet(name, group, ImageFiles(paths, labels, transform, seed), labels, ids, fingerprint)


def class_set(
    name: str,
    root: Path,
    paths: np.ndarray,
    labels: np.ndarray,
    kept: np.ndarray,
    transform: Callable,
    seed: int | None = None,
) -> ImageSet:
    """The ID images whose class is in ``kept`` (sorted indices); their labels are positions in it."""
    chosen = np.isin(labels, kept)
    positions = np.searchsorted(kept, labels[chosen])
    return files_set(name, "id", root, paths[chosen], transform, positions, seed)


def check_apart(sets: Iterable[ImageSet]) -> None:
    """UserError where the bytes of one image file lie in two of the sets (of ``ImageFiles``)."""
    both = [(one.name, path) for one in sets for path in one.dataset.paths]
    first = copies([path for _, path in both])
    twice = [(both[i], both[k]) for k, i in enumerate(first) if both[i][0] != both[k][0]]
    if twice:
        (one, path), (other, again) = twice[0]
        same = f"{printable(path)} in {one} and {printable(again)} in {other} are the same, byte for byte"
        raise UserError(f"{same} (copies between sets: {len(twice)}); leave each image in one set")
