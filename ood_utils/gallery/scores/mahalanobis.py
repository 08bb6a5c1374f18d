"""Mahalanobis: the distance to the nearest class mean, in units of the scatter within classes.

S = -min_c (f - m_c)' C^-1 (f - m_c), C the covariance that all classes share. Lee et al. (NeurIPS 2018, arXiv
1807.03888), on the embedding alone, without their input noise and layers. C is shrunk by Ledoit and Wolf's
rule (on the glyph world's validation sets better with 2 to 16 images a class than without); with many images
nothing is left of that.
"""

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.covariance import LedoitWolf

from ...errors import UserError
from ...methods import Method
from .. import Evidence


def fit(evidence: Evidence) -> tuple[np.ndarray, np.ndarray]:
    """The whitening map (d, d) of the scatter within classes, and the class means (K', d) in that space.

    UserError where no class has two images.
    """
    kinds, rows = np.unique(evidence.train_labels), evidence.train.astype(np.float64)
    if len(kinds) == len(rows):
        raise UserError("Mahalanobis needs two training images of a class; here all have one; leave it out")
    means = np.stack([rows[evidence.train_labels == kind].mean(axis=0) for kind in kinds])
    scatter = rows - means[np.searchsorted(kinds, evidence.train_labels)]
    values, axes = np.linalg.eigh(LedoitWolf(assume_centered=True).fit(scatter).precision_)
    white = axes * np.sqrt(np.maximum(values, 0))
    return white, means @ white


def mahalanobis(evidence: Evidence) -> np.ndarray:
    """(n,), at most 0: the negative square of the distance."""
    white, means = evidence.once(fit)
    return -cdist(evidence.images.astype(np.float64) @ white, means, "sqeuclidean").min(axis=1)


METHOD = Method(
    "Mahalanobis", 2018, "Lee et al. 2018 (arXiv 1807.03888)", ("train", "train_labels"), mahalanobis
)
