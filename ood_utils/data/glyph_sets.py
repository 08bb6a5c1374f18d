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

PATCH = 48  # pixels: side of a patch of a photograph


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
    clusters = labels if (labels >= 0).all() else world.character[drawings]
    return _views(name, group, world.alphas[drawings], labels.astype(np.int64), ids, clusters, seed)


def _views(
    name: str,
    group: str,
    alphas: np.ndarray,
    labels: np.ndarray,
    ids: list[str],
    clusters: np.ndarray,
    seed: int,
) -> ImageSet:
    pool = _neutral_drawings()
    set_seed = (seed << 32) + int(hashlib.sha256(name.encode()).hexdigest()[:7], 16)
    dataset = GlyphViews(alphas, labels, pool, set_seed)
    fingerprint = digest(name, alphas, labels, pool, set_seed, glyph_world.VERSION)
    return ImageSet(name, group, dataset, labels, ids, fingerprint, clusters.astype(np.int64))


@lru_cache(maxsize=1)
def _neutral_drawings() -> np.ndarray:
    """Training-face drawings of characters neither ID nor in an OoD set: clutter that tells nothing."""
    world, known = glyph_world.world(), glyph_world.concepts()
    taken = {c for group in [*known.classes, *known.twins, *known.sets.values()] for c in group}
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
    return _views("digits", "unseen", ink, np.full(len(ids), -1), ids, known.target[chosen], seed)


def photos(most: int, seed: int) -> ImageSet:
    """Patches of scikit-learn's two photographs."""
    from sklearn.datasets import load_sample_images

    known = load_sample_images()
    named = {Path(path).stem: photo for path, photo in zip(known.filenames, known.images, strict=True)}
    return _patches("photos", "unseen", named, most, seed)


def validation_photos(most: int, seed: int) -> ImageSet:
    """Patches of matplotlib's photograph of Grace Hopper: something unseen to choose by."""
    from matplotlib.cbook import get_sample_data

    with Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)) as photo:
        named = {"grace_hopper": np.asarray(photo.convert("RGB"))}
    return _patches("val_photos", "validation", named, most, seed)


def _patches(name: str, group: str, named: dict[str, np.ndarray], most: int, seed: int) -> ImageSet:
    """Patches that do not overlap, of photographs (H, W, 3) uint8; a block of 2 x 2 is resampled together."""
    found = [
        (stem, y, x)
        for stem, photo in named.items()
        for y in range(0, photo.shape[0] - PATCH + 1, PATCH)
        for x in range(0, photo.shape[1] - PATCH + 1, PATCH)
    ]
    found = [found[i] for i in subset(len(found), most, seed)]
    small = [
        Image.fromarray(named[stem][y : y + PATCH, x : x + PATCH]).resize((glyph_world.SIDE,) * 2, 3)
        for stem, y, x in found
    ]
    pixels = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).float() / 127.5 - 1
    blocks = {place: k for k, place in enumerate(dict.fromkeys(map(_block, found)))}
    ids = [f"photograph of {stem} · patch {x},{y} of {PATCH} px" for stem, y, x in found]
    labels = np.full(len(ids), -1, dtype=np.int64)
    dataset = TensorDataset(pixels, torch.from_numpy(labels))
    clusters = np.array([blocks[_block(place)] for place in found])
    return ImageSet(name, group, dataset, labels, ids, digest(pixels.numpy()), clusters)


def _block(place: tuple[str, int, int]) -> tuple[str, int, int]:
    """The block of 2 x 2 patches that a patch lies in."""
    stem, y, x = place
    return stem, y // (2 * PATCH), x // (2 * PATCH)
