"""NegLabel, shift projected: texts move along the gap, but not within the plane of the class texts.

g = m_I - m_T, t' = unit(t + g - V V' g), V the main components of the class texts: a shift that stirs them
less. Chowers et al. (CVPR 2026, "Bug or Feature?"), read second-hand: which rows V is of, how many components
(95 % of the variance here) and the renormalisation are our reading, and so is NegLabel after it.
"""

from ...methods import Method
from .. import gap

METHOD = Method(
    "NegLabel, shift projected",
    2026,
    "after Chowers et al. 2026",
    ("fixed_text", "negative_text", "train"),
    lambda e: gap.with_texts(e, e.once(gap.projected)).log_odds,
)
