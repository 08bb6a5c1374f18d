"""NegLabel: the share of softmax mass on ID texts against negative labels, as log-odds."""

from . import Method

METHOD = Method(
    "NegLabel",
    2024,
    "Jiang et al. 2024 (arXiv 2403.20078), section 3",
    ("class_text", "negative_text"),
    lambda e: e.log_odds,
)
