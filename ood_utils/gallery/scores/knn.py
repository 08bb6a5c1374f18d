"""kNN: distance to the k-th nearest ID training image; no text is looked at.

S = -||f - f_(k)||, unit rows. Sun et al. (ICML 2022, arXiv 2204.06507). k is 50, as in OpenOOD, or a third
of a class's training images (the median) where that is less, or images of other classes decide; the third
was chosen on the glyph world's validation sets, where k = 1 alone fails.
"""

import numpy as np
from sklearn.neighbors import NearestNeighbors

from ...methods import Method
from .. import Evidence

MOST = 50


def fit(evidence: Evidence) -> NearestNeighbors:
    """The training images, to be searched exactly; k as above."""
    count = np.median(np.unique(evidence.train_labels, return_counts=True)[1])
    k = min(MOST, max(1, int(count / 3)))
    return NearestNeighbors(n_neighbors=k, algorithm="brute").fit(evidence.train)


METHOD = Method(
    "kNN", 2022, "Sun et al. 2022 (arXiv 2204.06507)", ("train", "train_labels"),
    lambda e: -e.once(fit).kneighbors(e.images)[0][:, -1].astype(np.float64),
)  # fmt: skip
