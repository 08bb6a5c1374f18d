"""Energy: the negative free energy of the ID logits, in units of a cosine."""

from ..scores import energy
from . import Method

METHOD = Method(
    "Energy", 2020, "Liu et al. 2020", ("class_text",), lambda e: energy(e.cosines, e.temperature)
)
