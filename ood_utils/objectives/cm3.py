"""CM3's alignment and calibrated uniformity: images are spread, those of like texts less."""

import math

import torch
from torch import Tensor

from ..errors import UserError
from . import Batch, Parts

GAMMA = 0.9  # weight of uniformity against alignment; the authors tried 0.5 to 0.9


def calibrated_uniformity(rows: Tensor, likeness: Tensor, t: float = 2.0) -> Tensor:
    """log mean_{i<j} exp(-t (||z_i - z_j||^2 - 2 + 2 s_ij)), unit rows z (B, d), likeness s (B, B); a scalar.

    On unit rows it is log mean exp(2 t (z_i . z_j - s_ij)). s = 1 is plain uniformity, s = 0 that + 2 t.
    """
    first, second = torch.triu_indices(len(rows), len(rows), offset=1, device=rows.device)
    exponents = 2 * t * (rows @ rows.T - likeness)[first, second]
    return exponents.logsumexp(0) - math.log(len(first))


def loss(batch: Batch, terms: Parts) -> Tensor:
    """(1 - lam) L_CLIP + lam / (2 tau) CM3; lam = 0 is FLYP, lam = 1 CM3 alone. UserError outside [0, 1].

    CM3 = mean ||image - text||^2 + GAMMA / 2 (U(text) + calU(image; s)), s_ij = text_i . text_j in [0, 1],
    not trained through; U: s = 1. Its users are our texts, its items our images. ``seed``, ``step`` are not
    used. Source: CM3 (arXiv 2508.01226); other_methods section 5.
    """
    return mixed(batch, terms, batch.image)


def mixed(batch: Batch, terms: Parts, items: Tensor) -> Tensor:
    """``loss`` with the items (B, d), unit rows, that are spread."""
    if not 0 <= batch.lam <= 1:
        raise UserError(f"lam is {batch.lam}; give 0 (FLYP) to 1 (CM3 alone).")
    likeness = (batch.text @ batch.text.T).detach().clamp(0, 1)
    uniform = calibrated_uniformity(batch.text, torch.ones_like(likeness))
    uniform = uniform + calibrated_uniformity(items, likeness)
    own = (batch.image - batch.text).square().sum(1).mean() + GAMMA / 2 * uniform
    return (1 - batch.lam) * terms.clip + batch.lam * terms.scale / 2 * own
