"""P - beta N: the line from Energy (beta 0) to NegLabel (beta 1), of log-sum-exps."""

import numpy as np

from ..scores import energy
from . import Evidence, Method


def score(evidence: Evidence) -> np.ndarray:
    """(1 - beta) P + beta (P - N): (n,) float64, higher = more ID."""
    free = energy(evidence.cosines, evidence.temperature) / evidence.temperature
    return (1 - evidence.beta) * free + evidence.beta * evidence.log_odds


METHOD = Method("P - beta N", 2026, "ours; beta from validation", ("class_text", "negative_text"), score)
