"""What several adaptive scores share: logits of a batch, mass, which images are sure, a memory of these."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import entr, logit, softmax
from sklearn.tree import DecisionTreeRegressor

from . import Evidence


def looker(
    known: Evidence, words: np.ndarray | None = None
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Rows (b, d) -> the images as scored (b, d), their logits by ID texts and negatives (b, K + M), float64.

    ``words`` (M, d) stand in place of the negatives. Needs ``fixed_text`` and ``negative_text``.
    """
    words = known.negative_text if words is None else words
    texts = np.concatenate([known.class_text, words]).astype(np.float64).T / known.temperature

    def see(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images = known.of(rows).images.astype(np.float64)
        return images, images @ texts

    return see


def log_sum(logits: np.ndarray) -> np.ndarray:
    """Log-sum-exp of rows, (b, s) -> (b,)."""
    top = logits.max(axis=1)
    return top + np.log(np.exp(logits - top[:, None]).sum(axis=1))


def mass(logits: np.ndarray, count: int) -> np.ndarray:
    """NegLabel's share of softmax mass on the first ``count`` texts, (b, K + M) logits -> (b,) in [0, 1]."""
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights[:, :count].sum(axis=1) / weights.sum(axis=1)


def split(values: np.ndarray) -> float:
    """The threshold with the least variance within its two sides (Otsu); NaN where all values are equal."""
    tree = DecisionTreeRegressor(max_depth=1, random_state=0).fit(values[:, None], values).tree_
    return float(tree.threshold[0]) if tree.node_count > 1 else float("nan")


class Sure:
    """Which images of a batch are surely ID or OoD, by a split of the log-odds seen so far.

    The papers ask of the mass S: S > g0 + (1 - g0) g or S < g0 - g0 g, with g0 = 1/2 (AdaNeg) or Otsu's
    split of the masses. That supposes that the mass of ID texts and negatives balances at about 1/2; with
    other models and numbers of words it need not (glyphs: ID images have a median of 0.26). So the split is
    taken of log-odds, and the mass, shifted by it, is compared with (1 + g) / 2 and (1 - g) / 2: scale-free,
    and the same as AdaNeg's where ``centre`` is 0.
    """

    def __init__(self, gap: float, centre: float | None = None, length: int = 20_000) -> None:
        self.margin, self.centre, self.length = float(np.log((1 + gap) / (1 - gap))), centre, length
        self.seen = np.empty(0)

    def __call__(self, mass: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(b,) -> masks (b,) of surely ID and of surely OoD; none are, while there is nothing to split."""
        log_odds = logit(np.clip(mass, 1e-16, 1 - 1e-16))  # of a mass of 1 it would be infinite
        self.seen = np.concatenate([self.seen, log_odds])[-self.length :]
        centre = split(self.seen) if self.centre is None else self.centre
        return log_odds > centre + self.margin, log_odds < centre - self.margin


class Memory:
    """Beside each text up to ``length`` images that were surely its own, those of least entropy."""

    def __init__(self, texts: np.ndarray, length: int) -> None:
        self.texts = texts.astype(np.float32)
        self.images = np.zeros((len(texts), length, texts.shape[1]), np.float32)
        self.entropy = np.full((len(texts), length), np.inf)

    def admit(self, images: np.ndarray, logits: np.ndarray, slots: np.ndarray) -> None:
        """Images (c, d) to the texts ``slots`` (s,) of their largest ``logits`` (c, s)."""
        entropies = entr(softmax(logits, axis=1)).sum(axis=1)
        for image, slot, entropy in zip(images, slots[logits.argmax(axis=1)], entropies, strict=True):
            worst = self.entropy[slot].argmax()  # an empty place is infinitely bad
            if entropy < self.entropy[slot, worst]:
                self.images[slot, worst], self.entropy[slot, worst] = image, entropy

    def cosines(self, images: np.ndarray, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
        """(slots (t,) with images, cosines (b, t) of images and their proxies).

        A proxy is the unit vector along sum_m exp(-sharpness (1 - f.m)) m over the text and its images, so
        it depends on the image f, unless ``sharpness`` is 0.
        """
        held = np.isfinite(self.entropy)
        slots = np.flatnonzero(held.any(axis=1))
        held = np.insert(held[slots], 0, True, axis=1)
        used = held.any(axis=0)
        held = held[:, used]
        rows = np.concatenate([self.texts[slots, None], self.images[slots]], axis=1)[:, used]
        found = np.einsum("bd,tmd->tbm", images.astype(np.float32), rows, optimize=True)
        weights = np.exp(sharpness * (found - 1)) * held[:, None]
        lengths = np.sqrt(((weights @ (rows @ rows.transpose(0, 2, 1))) * weights).sum(axis=2))
        return slots, ((weights * found).sum(axis=2) / lengths).T.astype(np.float64)
