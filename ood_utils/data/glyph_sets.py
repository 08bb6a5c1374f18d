"""Image sets of the glyph world: views of its drawings, and two sets that pretraining never named."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from . import glyph_world
from .study import ImageSet, digest, subset


class GlyphViews(Dataset):
    """Views of drawings (``glyph_world.views``) in [-1, 1]; item KEY -> (image, label of drawing key % n)."""

    def __init__(self, alphas: np.ndarray, labels: np.ndarray, pool: np.ndarray, seed: int) -> None:
        self.alphas, self.labels, self.pool, self.seed = alphas, labels, pool, seed

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int) -> tuple[Tensor, int]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[int]) -> list[tuple[Tensor, int]]:
        rows = np.asarray(keys) % len(self)
        images = (glyph_world.views(self.alphas[rows], self.pool, keys, self.seed) - 0.5) / 0.5
        return list(zip(images, self.labels[rows].tolist(), strict=True))


def drawn(name: str, group: str, drawings: np.ndarray, labels: np.ndarray, seed: int) -> ImageSet:
    """Views of the world's drawings (indices), with a label for each."""
    world = glyph_world.world()
    pairs = zip(world.character[drawings], world.face[drawings], strict=True)
    ids = [f"{world.names[c]} · {glyph_world.FACES[f]}" for c, f in pairs]
    return _views(name, group, world.alphas[drawings], labels.astype(np.int64), ids, seed)


def _views(
    name: str, group: str, alphas: np.ndarray, labels: np.ndarray, ids: list[str], seed: int
) -> ImageSet:
    pool = _neutral_drawings()
    set_seed = (seed << 32) + int(hashlib.sha256(name.encode()).hexdigest()[:7], 16)
    dataset = GlyphViews(alphas, labels, pool, set_seed)
    fingerprint = digest(name, alphas, labels, pool, set_seed, glyph_world.VERSION)
    return ImageSet(name, group, dataset, labels, ids, fingerprint)


@lru_cache(maxsize=1)
def _neutral_drawings() -> np.ndarray:
    """Training-face drawings of characters neither ID nor in an OoD set: clutter that tells nothing."""
    world, known = glyph_world.world(), glyph_world.concepts()
    taken = {c for group in [*known.classes, *known.sets.values(), *known.removed.values()] for c in group}
    free = [c for c in range(len(world.names)) if c not in taken]
    return world.alphas[world.pick(free, glyph_world.TRAIN_FACES)]


def digits(most: int, seed: int) -> ImageSet:
    """scikit-learn's handwritten digits, as tall as a capital letter."""
    from sklearn.datasets import load_digits

    known = load_digits()
    chosen = subset(len(known.images), most, seed)
    small = [Image.fromarray((d * 15.9).astype(np.uint8)).resize((24, 24), 3) for d in known.images[chosen]]
    ink = np.pad(np.stack(small), [(0, 0), (8, 8), (8, 8)])  # to CANVAS
    ids = [f"handwritten digit {known.target[i]} · number {i}" for i in chosen]
    return _views("digits", "unseen", ink, np.full(len(ids), -1), ids, seed)


def photos(most: int, seed: int) -> ImageSet:
    """Patches of scikit-learn's two photographs."""
    from sklearn.datasets import load_sample_images

    known, rng, patches, ids = load_sample_images(), np.random.default_rng([seed, 1]), [], []
    for number in range(most or 800):
        which = number % len(known.images)
        photo, size = known.images[which], int(rng.integers(48, 160))
        y, x = (int(rng.integers(0, length - size)) for length in photo.shape[:2])
        patch = Image.fromarray(photo[y : y + size, x : x + size])
        patches.append(
            np.asarray(patch.resize((glyph_world.SIDE, glyph_world.SIDE), Image.Resampling.BICUBIC))
        )
        ids.append(f"photograph of {Path(known.filenames[which]).stem} · patch {x},{y} of {size} px")
    pixels = torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2).float() / 127.5 - 1
    labels = np.full(len(ids), -1, dtype=np.int64)
    dataset = TensorDataset(pixels, torch.from_numpy(labels))
    return ImageSet("photos", "unseen", dataset, labels, ids, digest(pixels.numpy()))
