"""DNM: NegLabel with the share of the negatives that are ID words in disguise subtracted.

With P and N the sums of exp(cosine / T) over K ID texts and Q negatives of a group, and the prior p that a
word is truly negative, S = (1/K) P / (P + N / p - Q (1 - p) / (p K) P), averaged over groups. Written out, it
is sigmoid(log P/N + log(p (1 - r))) / (K (1 - r)) with r = Q (1 - p) / (p K): NegLabel's share, its log-odds
moved by ONE constant. So p = 1 is NegLabel / K and in one group no ranking can change; with r >= 1 the
denominator may cross zero. Debiased Negative Mining (KDD 2026, arXiv 2605.23797), 100 groups, p = 0.5 for
CLIP ViT-B/16. Its other half, the choice of words, is in ``dnm_words``.
"""

import math

import numpy as np

from ...errors import UserError
from ...methods import Method
from .. import Evidence
from .neglabel_100 import GROUPS, group_odds, pooled


def shift(classes: int, words: int, prior: float = 0.5) -> float:
    """What the correction adds to a group's log-odds; 0 for prior 1. UserError where r is 1 or more."""
    share = words * (1 - prior) / (prior * classes)
    if share >= 1:
        fault = f"prior is {prior:g} with {words} negatives a group for {classes} classes"
        raise UserError(f"DNM: {fault}, so its denominator can be zero; take more groups or a larger prior")
    return math.log(prior * (1 - share))


def dnm(evidence: Evidence, prior: float = 0.5, groups: int = GROUPS) -> np.ndarray:
    """(n,) log-odds of K (1 - r) S, which order images as S does and do not saturate."""
    odds = group_odds(evidence, groups)
    words = len(evidence.negative_text) // odds.shape[1]
    return pooled(odds + shift(len(evidence.class_text), words, prior))


METHOD = Method("DNM", 2026, "DNM (arXiv 2605.23797)", ("class_text", "negative_text"), dnm)
