"""Geodesic multi-modal mixup: CLIP's loss with hard negatives from the gap between an image and its text."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from . import Batch, Parts, slerp


def loss(batch: Batch, terms: Parts) -> Tensor:
    """CLIP plus ``lam`` times m2-Mix: negatives j are the points ``slerp(image_j, text_j, mix)`` between.

    Such negatives lie in the gap, hence hard; ``mix`` is one draw for the batch (``draw_mix``). The m2 term
    is the sum of both directions, as in the authors' main code. Raises UserError if ``lam`` is negative.
    Source: m2-Mix (arXiv 2203.03897); core_methods 5.1.
    """
    if not batch.lam >= 0:
        raise UserError(f"lam is {batch.lam}; m2-Mix needs a weight of 0 (FLYP) or more, such as 0.01.")
    image, text = batch.image, batch.text
    between = slerp(image, text, draw_mix(batch.seed, batch.step))
    own, target = torch.diag_embed((image * text).sum(1)), torch.arange(len(image), device=image.device)
    others = 1 - torch.eye(len(image), dtype=image.dtype, device=image.device)
    logits = [batch.scale * (own + others * (side @ between.T)) for side in (image, text)]
    return terms.clip + batch.lam * (F.cross_entropy(logits[0], target) + F.cross_entropy(logits[1], target))


def draw_mix(seed: int, step: int) -> float:
    """The mixing weight of a step, from Beta(0.5, 0.5): a function of (seed, step), alike everywhere."""
    return float(np.random.default_rng([seed, step]).beta(0.5, 0.5))
