"""CMA + centroid uniformity: CMA closes each pair, and the pairs' middles are spread over the sphere.

L = CMA + lam / (2 tau) CU, CU = log 1/B sum_{i != j} exp(-2 ||mu_i - mu_j||^2), mu = (image + text) / 2.
Source: CU is ModGap's second term (arXiv 2601.18525); anchors_2026 3. Our reading: CU weighs what CMA's pull
weighs, their 1:1; pairs of one class count, as published (1 pair in 267 here).
"""

from .. import Adaptation
from .flyp import PAPER, SCORES

ADAPTATION = Adaptation(
    "CMA + centroid uniformity",
    2026,
    "ModGap (arXiv 2601.18525), on CMA",
    "full",
    PAPER | {"lam": 0.02},
    {"lam": 0.001},
    "ModGap is for COCO; its unit weights are lam = 0.02 at temperature 0.01",
    scores=SCORES,
    recipe={"objective": "cma_cu"},
)
