"""CMA with centroid uniformity: the pairs' middles are spread while each pair is pulled shut."""

import math

import torch
from torch import Tensor

from . import Batch, Parts, cma


def loss(batch: Batch, terms: Parts) -> Tensor:
    """CMA + lam / (2 tau) CU; ``seed`` and ``step`` are not used. lam = 0 is FLYP. Errors as ``cma``.

    CU = log (1/B) sum_{i != j} exp(-2 ||mu_i - mu_j||^2), mu_k = (image_k + text_k) / 2. CMA holds the pull
    ||image - text||^2 with weight lam / (2 tau), so CU gets that weight too: the published 1:1 of the two at
    any lam (at tau = 0.01 both are 1 at lam = 0.02). Pairs of one class count like all, as published.
    Source: ModGap (arXiv 2601.18525); anchors_2026 section 3.
    """
    middle = (batch.image + batch.text) / 2
    squares = middle.square().sum(1)
    apart = squares[:, None] + squares[None] - 2 * middle @ middle.T
    others = ~torch.eye(len(middle), dtype=torch.bool, device=middle.device)
    spread = (-2 * apart)[others].logsumexp(0) - math.log(len(middle))
    return cma.loss(batch, terms) + batch.lam * terms.scale / 2 * spread
