"""CoEvo: the stream's sure images change the list of negatives, and a memory of images beside every text.

    S_T: NegLabel's mass on the texts held now;   S_V: the same on proxies, a text's mean with its images
    before: 0.8 S_T + 0.2 S_V chooses the sure images;   after: S = 0.2 S_T + 0.8 S_V is the score

For a surely OoD image the nearest corpus words not yet held become negatives (the boundary tightens), for a
surely ID image the farthest (they cover more). The memory keeps the images of least entropy. Source: CoEvo
(AAAI 2026, arXiv 2601.08476), whose code is not published; a split of smallest variance within its sides.
Our reading: batches, not single images; ``words`` each, of the corpus less words that name an ID class; no
negative leaves the list; memory and margin are AdaNeg's; sure is what ``online.Sure`` says.
"""

from __future__ import annotations

import numpy as np

from .. import Adaptive, Evidence, Step
from ..online import Memory, Sure, looker


def _bank(known: Evidence) -> np.ndarray:
    """(B, d): the mined negatives, then the corpus words that are none of them and name no ID class."""
    mined = {row.tobytes() for row in known.negative_text}
    further = known.corpus_text[known.usable]
    return np.array([*known.negative_text, *(row for row in further if row.tobytes() not in mined)])


def start(
    known: Evidence, words: int = 5, length: int = 10, gap: float = 0.5, text_weight: float = 0.8
) -> Step:
    """The step of an empty memory and the mined list."""
    bank, count = known.once(_bank), len(known.class_text)
    see, sure = looker(known, bank), Sure(gap)
    memory = Memory(np.concatenate([known.class_text, bank]), length)
    held = np.arange(len(bank)) < len(known.negative_text)

    def grow(logits: np.ndarray) -> None:
        """Each row's ``words`` largest among the words not yet held become negatives."""
        free = np.flatnonzero(~held)
        best = np.argsort(-logits[:, count + free], axis=1, kind="stable")[:, :words]
        held[free[np.unique(best)]] = True

    def masses(images: np.ndarray, logits: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        slots, cosines = memory.cosines(images, sharpness=0)
        seen = weights.copy()
        seen[:, slots] = np.exp(cosines / known.temperature - logits.max(axis=1, keepdims=True))
        own = weights[:, :count].sum(axis=1), seen[:, :count].sum(axis=1)
        return tuple(p / (p + w[:, count:] @ held) for p, w in zip(own, (weights, seen), strict=True))

    def step(rows: np.ndarray) -> np.ndarray:
        images, logits = see(rows)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        text, seen = masses(images, logits, weights)
        ids, oods = sure(text_weight * text + (1 - text_weight) * seen)
        grow(logits[oods])
        grow(-logits[ids])
        memory.admit(images[ids], logits[ids, :count], np.arange(count))
        memory.admit(images[oods], logits[oods, count:][:, held], count + np.flatnonzero(held))
        text, seen = masses(images, logits, weights)
        return (1 - text_weight) * text + text_weight * seen

    return step


ADAPTIVE = Adaptive(
    "CoEvo", 2026, "arXiv 2601.08476 (AAAI 2026)", ("fixed_text", "negative_text", "corpus_text"), start
)
