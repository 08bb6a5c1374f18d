"""CM3 with its items fused: the calibrated uniformity spreads points of the arcs between images and texts."""

from torch import Tensor

from . import Batch, Parts, cm3, slerp
from .m2mix import draw_mix


def loss(batch: Batch, terms: Parts) -> Tensor:
    """``cm3`` with items slerp(image, text, mix), a spherical Bezier point; mix ~ Beta(.5, .5), one a step.

    Errors as ``cm3``. Source: CM3 (arXiv 2508.01226); other_methods section 5.
    """
    return cm3.mixed(batch, terms, slerp(batch.image, batch.text, draw_mix(batch.seed, batch.step)))
