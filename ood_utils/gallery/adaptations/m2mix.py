"""m2-Mix: FLYP with hard negatives that lie between images and texts, in the gap.

L = L_CLIP + lam [CE(image_k . mix_j) + CE(text_k . mix_j)], mix_j = slerp(image_j, text_j; Beta(.5, .5)).
Source: arXiv 2203.03897; core_methods 5.1. CMA's own setting of this baseline is not known: lam is from the
authors' sweep (.001 to .05). Changed: that weight does not decay over epochs.
"""

from .. import Adaptation
from .flyp import PAPER, SCORES

ADAPTATION = Adaptation(
    "m2-Mix",
    2023,
    "Oh et al. (arXiv 2203.03897)",
    "full",
    PAPER | {"lam": 0.01},
    {"lam": 0.05},
    "one temperature; the term's weight stays the same over epochs",
    scores=SCORES,
    recipe={"objective": "m2mix"},
)
