"""NegLabel: the share of softmax mass on ID texts against negative labels, as log-odds."""

from ..scores import neglabel
from . import Method

METHOD = Method(
    "NegLabel",
    2024,
    "Jiang et al. 2024 (arXiv 2403.20078), section 3",
    ("class_text", "negative_text"),
    lambda e: neglabel(e.images, e.class_text, e.negative_text, e.temperature, e.groups),
)
