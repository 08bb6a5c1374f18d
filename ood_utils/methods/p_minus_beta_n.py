"""P - beta N: the line from Energy (beta 0) to NegLabel (beta 1), of log-sum-exps."""

from ..scores import energy, p_minus_beta_n
from . import Method

METHOD = Method(
    "P - beta N",
    2026,
    "ours; beta from validation",
    ("class_text", "negative_text"),
    lambda e: p_minus_beta_n(energy(e.cosines, e.temperature), e.log_odds, e.beta, e.temperature),
)
