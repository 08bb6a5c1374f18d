"""CLIPN, competing to win: does the predicted class's "no" text beat its own text?

A second text encoder says of each class "this is no {}". p_no(c) = exp(f q_c / T) / (exp(f t_c / T) +
exp(f q_c / T)); S = 1 - p_no of the predicted class. Wang et al. (ICCV 2023, arXiv 2308.12213), section 3.4.
Returned is the exact log-odds of S, which orders images alike and does not saturate at 1.
"""

import numpy as np

from ...methods import Method
from ...scores import cosines
from .. import Evidence


def yes_odds(evidence: Evidence) -> np.ndarray:
    """(n, K) log-odds that class c is in the image against that it is not: (f t_c - f q_c) / T."""
    return (evidence.cosines - cosines(evidence.images, evidence.no_text)) / evidence.temperature


def ctw(evidence: Evidence) -> np.ndarray:
    """(n,) the predicted class's log-odds."""
    best = evidence.cosines.argmax(axis=1)[:, None]
    return np.take_along_axis(yes_odds(evidence), best, axis=1)[:, 0]


METHOD = Method("CLIPN-CTW", 2023, "Wang et al. (arXiv 2308.12213)", ("class_text", "no_text"), ctw)
