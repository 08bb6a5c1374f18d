"""Image files as a data set: decoded in the loading workers, transformed, random views by key."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms.v2.functional import pil_to_tensor

from ..errors import UserError
from .paths import IMAGE_SUFFIXES, printable, rgb
from .study import ImageSet, digest, of_classes

STATED = 100_000  # files whose sizes are part of a set's fingerprint: asking for a million takes long


def read_image(given: str | Path | Image.Image) -> Tensor:
    """An image file as uint8 RGB (3, H, W): JPEG by torchvision, what that cannot read by PIL, as its images.

    Raises UnreadableImage naming the file.
    """
    if not isinstance(given, Image.Image) and str(given).lower().endswith((".jpg", ".jpeg")):
        try:
            return decode_jpeg(read_file(str(given)), mode=ImageReadMode.RGB)
        except (RuntimeError, UnicodeEncodeError):
            pass  # a PNG of that name, CMYK, damage, Latin-1: PIL reads it or says what is wrong
    return pil_to_tensor(rgb(given))


class ImageFiles(Dataset):
    """Images of a list of files; item KEY -> (transformed image, label of file key % n).

    With a ``seed`` the transform's random numbers are a function of (seed, key). Errors as ``read_image``.
    """

    def __init__(
        self, paths: Sequence[str | Path], labels: np.ndarray, transform: Callable, seed: int | None = None
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
    paths: Sequence[str | Path],
    transform: Callable,
    labels: np.ndarray | None = None,
    seed: int | None = None,
) -> ImageSet:
    """An ImageSet of files below ``root``; without labels all are OoD (-1). UserError where there is none."""
    if not len(paths):
        suffixes = ", ".join(IMAGE_SUFFIXES)
        raise UserError(f"image set {name!r} is empty: {root} is missing or has no image ({suffixes})")
    labels = np.full(len(paths), -1) if labels is None else labels.astype(np.int64)
    start = len(os.path.join(root, ""))
    ids = [printable(str(path)[start:]) for path in paths]
    sizes = [os.stat(path).st_size for path in paths[:STATED]]
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
    paths, positions = of_classes((paths, labels), kept)
    return files_set(name, "id", root, paths, transform, positions, seed)
