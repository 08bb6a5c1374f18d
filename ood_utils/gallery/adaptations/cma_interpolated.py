"""CMA, interpolated: half of the way from the zero-shot weights to CMA's. Ours; see WiSE-FT and CMA.

w = (1 - a) w_zero-shot + a w_CMA, a = 1/2, all weights alike. Source: WiSE-FT (arXiv 2109.01903) on CMA
(arXiv 2503.18817); the two have not been put together in what we found.
"""

from .. import Adaptation

ADAPTATION = Adaptation(
    "CMA, interpolated",
    2026,
    "ours; Wortsman et al. (arXiv 2109.01903) on Kim & Hwang (arXiv 2503.18817)",
    "full",
    {"wise": 0.5},
    {"wise": 0.5},
    "nothing changed",
    scores=("MCM", "NegLabel"),
    recipe={"objective": "cma"},
)
