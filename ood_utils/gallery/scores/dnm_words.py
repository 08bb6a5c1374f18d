"""DNM, dense words: its score on its own list, the words that have the nearest neighbours.

rep(y) = -log of the sum of ||y - y'||^2 over the 100 nearest other words: the largest are kept, for being
representative; ID names decide nothing but are taken out. Since the score itself cannot gain on NegLabel
(``dnm``), whatever DNM gains comes from here. KDD 2026 (arXiv 2605.23797), by the paper's formula on unit
rows (the released code uses lengths of raw rows). Theirs: 23 % of the nouns, 13 % of the adjectives; here as
many words as the list that all methods get, all parts together.
"""

import numpy as np
from sklearn.neighbors import NearestNeighbors

from ...methods import Method
from .. import Evidence
from .dnm import dnm

NEIGHBOURS = 100


def densest(words: np.ndarray, most: int, neighbours: int = NEIGHBOURS) -> np.ndarray:
    """Indices of the ``most`` of ``words`` (C, d) that lie densest, densest first."""
    count = min(neighbours, len(words) - 1)
    near = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(words).kneighbors()[0]  # without itself
    return np.argsort((near.astype(np.float64) ** 2).sum(axis=1), kind="stable")[:most]


def fit(evidence: Evidence) -> np.ndarray:
    """(M', d) texts of the list."""
    words = evidence.corpus_text[evidence.usable]
    return words[densest(words, len(evidence.negative_text))]


METHOD = Method(
    "DNM, dense words",
    2026,
    "DNM (arXiv 2605.23797)",
    ("fixed_text", "negative_text", "corpus_text"),
    lambda e: dnm(e.change(negative_text=e.once(fit))),
)
