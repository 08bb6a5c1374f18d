"""CMA, class-aware: all texts of an image's class in the batch are its positives, not its own alone.

L as CMA's with S_kk replaced by the mean of S_kj over the j of k's class: no pair of one class is pushed
apart. Source: ours, on arXiv 2503.18817 (a branch of FLYP's code, off by default, has the targets);
core_methods 2. 38 % of a batch of 128 of 267 classes has such a peer.
"""

from .. import Adaptation
from .flyp import PAPER, SCORES

ADAPTATION = Adaptation(
    "CMA, class-aware",
    2026,
    "ours, on Kim & Hwang (arXiv 2503.18817)",
    "full",
    PAPER | {"lam": 0.001},
    {},
    "no published setting: CMA's",
    scores=SCORES,
    recipe={"objective": "cma", "class_aware": True},
)
