"""NegLabel, 100 groups: the published grouping, against the one group of CMA and of the core notebooks.

Negatives are cut at random into groups, each gives a softmax share, and the mean is the score: one false
negative that the image matches spoils its own group only. The formula is ``scores.neglabel``'s; there are as
many groups as there are negatives where these are fewer than 100. Jiang et al. 2024 (arXiv 2403.20078).
"""

import numpy as np
from scipy.special import log_expit, logsumexp

from ...methods import Method
from .. import Evidence

GROUPS = 100


def group_odds(evidence: Evidence, groups: int = GROUPS) -> np.ndarray:
    """(n, G) log-odds of the ID texts against each of G = min(``groups``, M) groups, cut as in ``scores``."""
    groups = min(groups, count := len(evidence.negative_text))
    order = np.random.default_rng(0).permutation(count - count % groups) if groups > 1 else np.arange(count)
    return np.concatenate([
        logsumexp(ours, axis=1, keepdims=True) - logsumexp(theirs[:, order].reshape(len(ours), groups, -1), 2)
        for ours, theirs in evidence.blocks()
    ])  # fmt: skip


def pooled(odds: np.ndarray) -> np.ndarray:
    """Log-odds (n, G) of groups -> (n,) those of their mean probability, which itself would saturate."""
    return logsumexp(log_expit(odds), axis=1) - logsumexp(log_expit(-odds), axis=1)


METHOD = Method(
    "NegLabel, 100 groups",
    2024,
    "Jiang et al. 2024 (arXiv 2403.20078), section 3",
    ("class_text", "negative_text"),
    lambda e: pooled(group_odds(e)),
)
