"""LogitGap: how far the best class stands above the next best ones.

OoD images spread their logits over many classes, ID images over few; the classes far down say nothing and are
cut off. S = z_(1) - mean of z_(2), ..., z_(N), cosines in falling order, N = a fifth of the K classes. With
N = K it ranks as MCM at temperature 1. LogitGap (NeurIPS 2025, arXiv 2510.20134), read second-hand; their
other choice of N, on ID images and noised copies of them, is left out.
"""

import numpy as np

from ...methods import Method


def logit_gap(cosines: np.ndarray, share: float = 0.2) -> np.ndarray:
    """``cosines`` (n, K) -> (n,), at least 0: the best against the mean of the next; K of 1 gives 0."""
    count = max(2, round(share * cosines.shape[1]))
    top = -np.partition(-cosines, min(count, cosines.shape[1]) - 1, axis=1)[:, :count]
    best = top.max(axis=1)
    return (best - top.mean(axis=1)) * count / (count - 1)


METHOD = Method(
    "LogitGap", 2025, "LogitGap (arXiv 2510.20134)", ("class_text",), lambda e: logit_gap(e.cosines)
)
