"""CLIPN, agreeing to differ: the mass of all classes whose "no" text agrees.

An unknown class gets what the classes are denied: S = sum_c (1 - p_no(c)) p_c = 1 - p_unknown, p the softmax
over the class texts, p_no as in ``clipn_ctw``. Wang et al. (ICCV 2023, arXiv 2308.12213), section 3.4.
Returned is the exact log-odds of S.
"""

import numpy as np
from scipy.special import log_expit, log_softmax, logsumexp

from ...methods import Method
from .. import Evidence
from .clipn_ctw import yes_odds


def atd(evidence: Evidence) -> np.ndarray:
    """(n,) log S - log(1 - S), each summed on its own."""
    share, odds = log_softmax(evidence.cosines / evidence.temperature, axis=1), yes_odds(evidence)
    return logsumexp(share + log_expit(odds), axis=1) - logsumexp(share + log_expit(-odds), axis=1)


METHOD = Method("CLIPN-ATD", 2023, "Wang et al. (arXiv 2308.12213)", ("class_text", "no_text"), atd)
