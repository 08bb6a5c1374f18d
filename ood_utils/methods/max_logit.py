"""MaxLogit: the largest cosine with an ID class text; needs no temperature."""

from ..scores import max_logit
from . import Method

METHOD = Method(
    "MaxLogit", 2019, "Hendrycks et al. (arXiv 1911.11132)", ("class_text",), lambda e: max_logit(e.cosines)
)
