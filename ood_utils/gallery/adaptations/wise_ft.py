"""WiSE-FT: the point half-way between the zero-shot weights and FLYP's.

theta = (1 - alpha) theta_zero-shot + alpha theta_FLYP, alpha = 0.5, both towers and the scale.
Source: arXiv 2109.01903. Changed: the authors mix with an image tower fine-tuned by cross-entropy; here with
FLYP's two towers, so that texts and negatives have their place too. Trained anew: alpha is of the recipe.
"""

from .. import Adaptation
from .flyp import PAPER, SCORES

ADAPTATION = Adaptation(
    "WiSE-FT",
    2022,
    "Wortsman et al. (arXiv 2109.01903)",
    "full",
    PAPER,
    {},
    "between zero-shot and FLYP, not a cross-entropy tuning",
    scores=SCORES,
    recipe={"objective": "clip", "lam": 0.0, "wise": 0.5},
)
