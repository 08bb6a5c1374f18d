"""Residual: how much of an image is left when its nearest class prototype is taken away.

Residuals to a normal reference hardly depend on the class, so one threshold fits all.
S = -min_c ||f - p_c||, p_c the mean training image of class c at unit length: only an ordering by the largest
cosine to a prototype. The idea of ResAD (NeurIPS 2024, arXiv 2410.20047), which learns a constraint on the
residuals of image patches; nothing is learnt here.
"""

import numpy as np

from ...methods import Method
from ...scores import max_logit
from .. import Evidence


def prototypes(evidence: Evidence) -> np.ndarray:
    """(K', d) float64 unit rows: the mean training image of each class that has one, by label."""
    kinds, rows = np.unique(evidence.train_labels), evidence.train.astype(np.float64)
    means = np.stack([rows[evidence.train_labels == kind].mean(axis=0) for kind in kinds])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def residual(evidence: Evidence) -> np.ndarray:
    """(n,), in [-2, 0]."""
    nearest = max_logit(evidence.images.astype(np.float64) @ evidence.once(prototypes).T)
    return -np.sqrt(np.maximum(2 - 2 * nearest, 0))


METHOD = Method("Residual", 2024, "ResAD's idea (arXiv 2410.20047)", ("train", "train_labels"), residual)
