"""OODD: whoever resembles what scored lowest so far is OoD too.

The ``queue`` images of the lowest base score seen so far are kept; a batch is put in first, then

    S(f) = mass(f) - (5th largest cosine of f and the queue),   mass = sum_ID / (sum_ID + sum_neg), NegLabel's

and mass alone while the queue holds fewer than five. Source: OODD (CVPR 2025, arXiv 2503.10468), its form on
NegLabel: a queue of 2,048 in streams of about 60,000 images. Ours: the queue is that share of the stream so
far, one in 30, but at least ``least``: one that holds a whole short stream says nothing about OoD.
"""

import numpy as np
from scipy.special import expit

from .. import Adaptive, Evidence, Step


def start(
    known: Evidence, share: float = 2048 / 60_000, least: int = 32, most: int = 2048, nearest: int = 5
) -> Step:
    """The step of a fresh queue. ``share`` 1 is the paper's queue of ``most`` images from the start."""
    queue, base, seen = np.empty((0, known.class_text.shape[1])), np.empty(0), 0

    def step(rows: np.ndarray) -> np.ndarray:
        nonlocal queue, base, seen
        evidence = known.of(rows)
        mass, seen = expit(evidence.log_odds), seen + len(rows)
        queue, base = np.concatenate([queue, evidence.images]), np.concatenate([base, mass])
        lowest = base.argsort(kind="stable")[: min(most, max(least, int(share * seen)))]
        queue, base = queue[lowest], base[lowest]
        if len(queue) < nearest:
            return mass
        return mass - np.partition(evidence.images @ queue.T, -nearest, axis=1)[:, -nearest]

    return step


ADAPTIVE = Adaptive("OODD", 2025, "CVPR 2025 (arXiv 2503.10468)", ("class_text", "negative_text"), start)
