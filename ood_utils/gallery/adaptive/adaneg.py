"""AdaNeg: beside every text a memory of test images that are surely its own; proxies of both score.

A batch's images whose NegLabel mass S0 is surely ID (surely OoD) go to the memory of their best ID text
(negative), ten a text, the least certain (entropy of the softmax over ID texts, or over negatives) leaving
first. Then each text's proxy for an image f is the unit vector along

    v(f) = sum_m exp(-beta (1 - f.m)) m        over the text and its images,
    S = S_ada + 0.1 S0,                        S_ada: NegLabel's mass with v in place of the texts

Source: Zhang et al. 2024 (arXiv 2410.20149): mass over 0.75 or under 0.25 is sure, beta 5.5, five groups of
negatives. Ours: one group, and sure is what ``online.Sure`` says (``centre`` 0 is the paper's).
"""

from __future__ import annotations

import numpy as np

from .. import Adaptive, Evidence, Step
from ..online import Memory, Sure, looker, mass


def start(
    known: Evidence,
    weight: float = 0.1,
    sharpness: float = 5.5,
    length: int = 10,
    gap: float = 0.5,
    centre: float | None = None,
) -> Step:
    """The step of an empty memory; ``weight`` is S0's, ``gap`` how far from the split an image is sure."""
    texts, see = np.concatenate([known.class_text, known.negative_text]), looker(known)
    memory, sure, count = Memory(texts, length), Sure(gap, centre), len(known.class_text)

    def step(rows: np.ndarray) -> np.ndarray:
        images, logits = see(rows)
        base = mass(logits, count)
        ids, oods = sure(base)
        memory.admit(images[ids], logits[ids, :count], np.arange(count))
        memory.admit(images[oods], logits[oods, count:], np.arange(count, len(texts)))
        slots, cosines = memory.cosines(images, sharpness)
        logits[:, slots] = cosines / known.temperature
        return mass(logits, count) + weight * base

    return step


ADAPTIVE = Adaptive(
    "AdaNeg", 2024, "Zhang et al. 2024 (arXiv 2410.20149)", ("fixed_text", "negative_text"), start
)
