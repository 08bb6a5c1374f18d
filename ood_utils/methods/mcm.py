"""MCM: the largest softmax probability over the ID classes at temperature 1 on raw cosines."""

from ..scores import mcm
from . import Method

METHOD = Method("MCM", 2022, "Ming et al. 2022 (arXiv 2211.13445)", ("class_text",), lambda e: mcm(e.cosines))
