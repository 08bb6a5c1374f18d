"""m2-Mix."""

from __future__ import annotations

from torch import Tensor

from . import Parts, draw_mix, m2mix_parts


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
    return m2mix_parts(image, text, scale, draw_mix(seed, step), lam, labels=labels)
