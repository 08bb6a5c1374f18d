"""MSP: the largest softmax probability over the ID classes at CLIP's logit scale."""

from ..scores import msp
from . import Method

METHOD = Method(
    "MSP", 2017, "Hendrycks & Gimpel 2017", ("class_text",), lambda e: msp(e.cosines, e.temperature)
)
