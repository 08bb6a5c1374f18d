"""Geodesic multi-modal mixup: CLIP's loss with hard negatives from the gap between an image and its text."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from . import Parts, contrast, slerp, whole_batch


def parts(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    *,
    lam: float,
    labels: Tensor | None = None,
    seed: int = 0,
    step: int = 0,
) -> Parts:
    """``mixed`` with weight ``lam`` at the point of the arc that (seed, step) draw, one for the batch."""
    return mixed(image, text, scale, draw_mix(seed, step), lam, labels=labels)


def draw_mix(seed: int, step: int, beta: float = 0.5) -> float:
    """The mixing weight of a step, from Beta(beta, beta): a function of (seed, step), alike everywhere."""
    return float(np.random.default_rng([seed, step]).beta(beta, beta))


@whole_batch
def mixed(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    mix: float,
    weight: float = 0.01,
    mix_scale: Tensor | float | None = None,
    *,
    labels: Tensor | None = None,
) -> Parts:
    """CLIP plus ``weight`` times m2-Mix: negatives j are the points ``slerp(image_j, text_j, mix)`` between.

    Such negatives lie in the gap, hence hard. ``mix`` in [0, 1] is one draw for the batch (``draw_mix``);
    ``mix_scale`` is the m2 term's own 1 / temperature (1 / 0.07 in the sweeps with --sep_scale), by default
    ``scale``. The m2 term is the sum of both directions, as in the authors' main code; ``clip`` and the lse
    parts are those of the CLIP term. Raises UserError if mix or weight is out of range. Source: m2-Mix (arXiv
    2203.03897); core_methods 5.1.
    """
    if not 0 <= mix <= 1 or weight < 0:
        raise UserError(f"m2-Mix needs mix in [0, 1] and weight >= 0, not mix {mix}, weight {weight}.")
    found = contrast(image, text, scale, labels)
    sharpness = scale if mix_scale is None else mix_scale
    between, target = slerp(image, text, mix), torch.arange(len(image), device=image.device)
    own = torch.diag_embed((image * text).sum(1))
    others = 1 - torch.eye(len(image), dtype=image.dtype, device=image.device)
    hard = [
        F.cross_entropy(sharpness * (own + others * (side @ between.T)), target) for side in (image, text)
    ]
    return found._replace(loss=found.loss + weight * (hard[0] + hard[1]))
