"""Rényi score: NegLabel as a worst case over a Rényi ball, instead of a KL ball, about the negatives' law.

With h the image's cosines to all K + M texts, u = max(h - b, 0) / T and q = r / (r - 1):
S = log sum_ID exp(h / T) - F(b),  F(b) = b / T + eta ||u||_q,  ||u||_q = (mean u^q)^(1/q),
where the inner variable b is to minimise the convex F, for each image alone. "A Closer Look at Negative Label
Guided OOD Detection" (ICML 2026); read from its code: r = 1.05 (q = 21), eta = 1.2, b from -0.1 by 15 small
steps. Those steps hardly move b, so here it is fixed at -0.1, or minimised exactly (bounded, on request).
The norm is taken of u / max u, as u^21 overflows float32. The list is the one all methods get, not theirs.
"""

from functools import partial

import numpy as np
from scipy.special import logsumexp

from ...methods import Method
from .. import Evidence

START = -0.1  # of b, a cosine


def penalty(logits: np.ndarray, b: np.ndarray, q: float = 21.0, eta: float = 1.2) -> np.ndarray:
    """F(b) of ``logits`` (n, K + M) and ``b`` (n,), both divided by the temperature; (n,)."""
    above = np.maximum(logits - b[:, None], 0)
    top = np.maximum(above.max(axis=1), 1e-300)
    with np.errstate(divide="ignore"):
        powers = np.exp(q * np.log(above / top[:, None]))  # five times as fast as a power
    return b + eta * top * powers.mean(axis=1) ** (1 / q)


def minimum(logits: np.ndarray, low: float, steps: int = 30, **options: float) -> np.ndarray:
    """min F of each row, by golden sections of [``low``, its largest logit]; F must be convex (eta >= 0)."""
    low, high, golden = np.full(len(logits), low), logits.max(axis=1), (np.sqrt(5) - 1) / 2
    for _ in range(steps):
        left, right = high - golden * (high - low), low + golden * (high - low)
        lower = penalty(logits, left, **options) < penalty(logits, right, **options)
        low, high = np.where(lower, low, left), np.where(lower, right, high)
    return penalty(logits, (low + high) / 2, **options)


def renyi(evidence: Evidence, exact: bool = False, **options: float) -> np.ndarray:
    """(n,), unbounded, in log units as NegLabel's log-odds. ``exact``: b in [-1, max h] instead of -0.1."""
    found = []
    for both in evidence.blocks():
        logits = np.concatenate(both, axis=1)
        start = np.full(len(logits), START / evidence.temperature)
        inner = partial(minimum, low=-1 / evidence.temperature) if exact else partial(penalty, b=start)
        found.append(logsumexp(both[0], axis=1) - inner(logits, **options))
    return np.concatenate(found)


METHOD = Method(
    "Rényi",
    2026,
    "A Closer Look at Negative Label Guided OOD (ICML 2026)",
    ("class_text", "negative_text"),
    renyi,
)
