"""CMA: FLYP with a term that draws every image to the texts and every text to the images.

L = L_CLIP - lam / 2B sum_k [LSE_j S_kj + LSE_j S_jk], which is (1 - lam) L_CLIP + lam / (2 tau) mean
||image - text||^2 - lam / tau. Source: arXiv 2503.18817; core_methods 1. Changed: the profile's steps.
"""

from .. import Adaptation
from .flyp import PAPER, SCORES

ADAPTATION = Adaptation(
    "CMA",
    2025,
    "Kim & Hwang (arXiv 2503.18817)",
    "full",
    PAPER | {"lam": 0.001},
    {},
    "this world's lam, steps, batch and rate are the profile's",
    scores=SCORES,
    recipe={"objective": "cma"},
)
