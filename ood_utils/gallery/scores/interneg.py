"""InterNeg, static half: negative words that are far from the ID IMAGES, not from the ID texts.

With p_i the mean training image of class i (unit length) and t_i its text, word y stays if y p_i < t_i p_i
for ALL classes: no image prototype takes it for a better name than its own. Kept are those of the largest
sum_i (t_i p_i - y p_i); the score is NegLabel on them. InterNeg (CVPR 2026, arXiv 2603.02618) takes 16
images a class, the best 2,000 of 70,000 words and 5 groups, and at test time turns images into further
words: that half is left out. Here: all given training images, as many words as the list that all methods
get, its groups.
"""

import numpy as np

from ...errors import UserError
from ...methods import Method
from .. import BLOCK, Evidence
from .residual import prototypes


def select(words: np.ndarray, texts: np.ndarray, images: np.ndarray, most: int) -> np.ndarray:
    """Indices (at most ``most``), best first, of ``words`` (C, d) by the rule above.

    ``texts`` (K, d) and ``images`` (K, d): class texts and image prototypes, row by row; all unit rows.
    """
    base = np.einsum("kd,kd->k", texts.astype(np.float64), images.astype(np.float64))
    margins, blocks = [], np.array_split(words, len(words) * len(texts) // BLOCK + 1)
    for block in blocks:
        gaps = base - block.astype(np.float64) @ images.T
        margins.append(np.where((gaps > 0).all(axis=1), gaps.sum(axis=1), -np.inf))
    margin = np.concatenate(margins)
    return np.argsort(-margin, kind="stable")[: min(most, np.isfinite(margin).sum())]


def fit(evidence: Evidence) -> np.ndarray:
    """(M', d) texts of the words kept; UserError where none is."""
    words = evidence.corpus_text[evidence.usable]
    texts = evidence.class_text[np.unique(evidence.train_labels)]
    kept = select(words, texts, evidence.once(prototypes), len(evidence.negative_text))
    if not len(kept):
        fault = f"InterNeg keeps none of {len(words)} words: each beats a class's own name at its images"
        raise UserError(f"{fault}; leave it out")
    return words[kept]


METHOD = Method(
    "InterNeg",
    2026,
    "InterNeg, static half (arXiv 2603.02618)",
    ("fixed_text", "negative_text", "corpus_text", "train", "train_labels"),
    lambda e: e.change(negative_text=e.once(fit)).log_odds,
)
