"""What every lane makes: image sets, and the study that they form."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UnreadableImage, UserError

if TYPE_CHECKING:
    from torch.utils.data import Dataset


@dataclass(frozen=True)
class Need:
    """One thing that a profile needs; ``ok`` is None for a plain fact, ``fault`` the word shown for False."""

    ok: bool | None
    what: str
    remedy: str = ""
    fault: str = "MISSING"

    def __str__(self) -> str:
        return f"  { ({True: 'ok', False: self.fault, None: '-'}[self.ok]):8}{self.what}"


def wrong(fault: UserError) -> Need:
    """A fault as a need that is not met: what is wrong and, behind the first semicolon, the remedy."""
    what, _, remedy = str(fault).partition("; ")
    return Need(False, what, remedy, "WRONG")


def refuse(wanting: Iterable[Need], source: str = "", ask: str = "") -> None:
    """UserError saying the first of some needs that are not met, in the words of ``check``, on one line."""
    for need in wanting:
        remedy = need.remedy.replace(":\n", ": ").replace("\n", " && ")
        said = [f"{source}{need.fault.lower()}: {need.what}", remedy, ask]
        raise UserError("; ".join(part for part in said if part))


@dataclass(frozen=True)
class ImageSet:
    """Some images and what is known of them.

    ``dataset``: map-style, item -> (float32 (3, H, W) normalised, label); ``labels`` (n,) int64, -1 for OoD;
    ``ids``: a name per image; ``group``: id, near, far, unseen or validation; ``fingerprint``: hash of all
    that decides the pixels; ``clusters`` (n,) int64: rows that are resampled together, one number per ID
    class, OoD character or name, photo block. None: by label in an ID set, each image alone in an OoD set.
    """

    name: str
    group: str
    dataset: Dataset
    labels: np.ndarray
    ids: list[str]
    fingerprint: str
    clusters: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Study:
    """One ID problem with its OoD sets, and the words from which negative labels are mined.

    ``validation`` sets serve every choice and share no image, class or name with the test sets in ``ood``.
    ``corpus``: (word, part of speech) pairs; it contains OoD names, as WordNet does for ImageNet. ``notes``:
    sentences on how the sets came about, for the reader.
    """

    class_names: list[str]
    synonyms: list[list[str]]
    train: ImageSet
    id_val: ImageSet
    id_test: ImageSet
    ood: dict[str, ImageSet]
    validation: dict[str, ImageSet]
    corpus: list[tuple[str, str]] = field(repr=False)
    notes: list[str] = field(default_factory=list)

    def class_texts(self, template: str) -> list[str]:
        """The ID class names in a prompt, "{}" being where the name goes."""
        return [template.replace("{}", name) for name in self.class_names]

    @property
    def sets(self) -> dict[str, ImageSet]:
        """Every set that is embedded: id_val, id_test, the OoD test sets and the validation OoD sets."""
        return {"id_val": self.id_val, "id_test": self.id_test, **self.ood, **self.validation}


def check_classes(names: Sequence[str], labels: np.ndarray) -> None:
    """UserError naming a class that the test set (its labels (n,), indices of names) has no image of."""
    if len(void := np.setdiff1d(np.arange(len(names)), labels)):
        first = f"class {names[void[0]]!r} has no test image"
        raise UserError(
            f"{first} ({len(void)} of {len(names)} classes have none); give it more or leave it out"
        )


def by_use(sets: Iterable[ImageSet]) -> dict[str, dict[str, ImageSet]]:
    """OoD sets by name: {"ood": those for the test, "validation": those for choices}."""
    found: dict[str, dict[str, ImageSet]] = {"ood": {}, "validation": {}}
    for one in sets:
        found["validation" if one.group == "validation" else "ood"][one.name] = one
    return found


def digest(*parts: object) -> str:
    """Hash (16 hex) of arrays by their bytes and of anything else by its repr."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return hashed.hexdigest()[:16]


def subset(count: int, most: int, seed: int) -> np.ndarray:
    """Sorted indices of at most ``most`` of ``count`` things (0 = all), drawn without replacement."""
    if not 0 < most < count:
        return np.arange(count)
    return np.sort(np.random.default_rng([seed, count]).permutation(count)[:most])


def of_classes(part: tuple[np.ndarray, np.ndarray], kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The (paths, labels) of the classes ``kept`` (sorted), labelled by their place in it."""
    paths, labels = part
    rows = np.isin(labels, kept)
    return paths[rows], np.searchsorted(kept, labels[rows])


def picture(image_set: ImageSet, index: int) -> np.ndarray:
    """One image for looking at: (H, W, 3) float in [0, 1], its normalisation undone by its own range.

    An embedding, which cannot be looked at, is a grey tile: its numbers row by row.
    """
    pixels = image_set.dataset[index][0].numpy()
    if pixels.ndim == 1:
        side = math.ceil(math.sqrt(len(pixels)))
        tile = np.pad(pixels, (0, side * side - len(pixels)), constant_values=pixels.max())
        pixels = np.tile(tile.reshape(1, side, side), (3, 1, 1))
    pixels = pixels.transpose(1, 2, 0)
    low, high = pixels.min(), pixels.max()
    return (pixels - low) / max(high - low, 1e-6)


def examples(image_set: ImageSet, count: int) -> list[np.ndarray]:
    """``count`` readable images spread evenly over a set, as ``picture`` gives them."""
    found = []
    for start in np.linspace(0, len(image_set) - 1, min(count, len(image_set))).astype(int):
        for index in range(start, min(start + 10, len(image_set))):
            with suppress(UnreadableImage):  # counted and listed where the set is embedded
                found.append(picture(image_set, index))
                break
    return found
