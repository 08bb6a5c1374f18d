"""CMA."""

from __future__ import annotations

from torch import Tensor

from . import Parts, cma_parts


def parts(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    *,
    lam: float,
    labels: Tensor | None = None,
    seed: int = 0,
    step: int = 0,
) -> Parts:
    """The parts of the loss of a batch, as every objective gives them."""
    return cma_parts(image, text, scale, lam, labels)
