"""CM3's calibrated uniformity: images are spread over the sphere, those with like texts less.

L = (1 - lam) L_CLIP + lam / (2 tau) [mean ||image - text||^2 + .9/2 (U(text) + calU(image))],
calU = log mean_{i<j} exp(4 (z_i . z_j - s_ij)), s_ij = text_i . text_j clipped to [0, 1]; U: s = 1.
Source: CM3 (arXiv 2508.01226), a recommender: its users are our texts, its items our images; other_methods 5.
Our reading: mixed with L_CLIP by lam (lam = 1 is theirs alone), so that a pretrained model can keep its own.
"""

from .. import Adaptation
from .flyp import PAPER, SCORES

ADAPTATION = Adaptation(
    "CM3",
    2025,
    "CM3 (arXiv 2508.01226), on CLIP",
    "full",
    PAPER | {"lam": 1.0},
    {"lam": 0.01},
    "a recommender's loss; no fine-tuning of CLIP by it is published",
    scores=SCORES,
    recipe={"objective": "cm3"},
)
