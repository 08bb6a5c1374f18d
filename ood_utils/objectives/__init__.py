"""Training objectives on unit embeddings: CLIP (FLYP's loss), CMA, m2-Mix.

All are computed in float32 (float64 stays float64) whatever autocast says, because a log-sum-exp of logits near 100
does not survive half precision. Where ``torch.distributed`` runs with more than one process, each process passes its
own rows, the features of all are gathered with gradient, and every process returns the loss of the whole batch;
gradients averaged over processes, as DDP does, are then exactly those of one process holding that batch.
"""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import registry
from ..errors import UserError


class Parts(NamedTuple):
    """A loss and what it is made of; scalars with gradient, in nats. S = scale * image @ text.T, B rows.

    ``loss``: what is minimised. ``clip``: (lse_image + lse_text) / 2 - positive, the CLIP term alone.
    ``lse_image``: mean over images of the log-sum-exp over texts; ``lse_text``: the reverse. ``positive``: mean
    S_kk (with class labels: mean S over the texts of k's class). ``scale``: exp of the logit scale, detached.
    """

    loss: Tensor
    clip: Tensor
    lse_image: Tensor
    lse_text: Tensor
    positive: Tensor
    scale: Tensor


def find(name: str) -> ModuleType:
    """The module of an objective; its ``parts`` is what training minimises."""
    return registry.find("objectives", name)


def world_size() -> int:
    """Number of processes of the running ``torch.distributed`` group; 1 without one."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _gathered(image: Tensor, text: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rows of all processes in rank order, in at least float32; features carry gradient across processes."""
    if image.shape != text.shape or image.ndim != 2:
        raise UserError(
            f"image {tuple(image.shape)} and text {tuple(text.shape)} embeddings must be two equal (rows, width) "
            "arrays; pass one text row for each image row"
        )
    wide = torch.float64 if torch.float64 in (image.dtype, text.dtype) else torch.float32
    image, text = image.to(wide), text.to(wide)
    if world_size() > 1:
        from open_clip.loss import gather_features

        with warnings.catch_warnings():  # torch calls the all_gather that open_clip 3.3 uses deprecated
            warnings.simplefilter("ignore", FutureWarning)
            image, text = gather_features(image, text, gather_with_grad=True, world_size=world_size())
        if labels is not None:
            rows = [torch.empty_like(labels) for _ in range(world_size())]
            torch.distributed.all_gather(rows, labels.contiguous())
            labels = torch.cat(rows)
    return image, text, labels


def _contrast(image: Tensor, text: Tensor, scale: Tensor | float, labels: Tensor | None, lam: float) -> Parts:
    """CMA on gathered rows; lam = 0 is CLIP."""
    scale = torch.as_tensor(scale, dtype=image.dtype, device=image.device)
    logits = scale * image @ text.T
    lse_image, lse_text = logits.logsumexp(1).mean(), logits.logsumexp(0).mean()
    if labels is None:
        positive = logits.diagonal().mean()
    else:
        same = (labels[:, None] == labels[None]).to(logits)
        positive = (logits * same / same.sum(1, keepdim=True)).sum(1).mean()
    clip = (lse_image + lse_text) / 2 - positive
    loss = clip - lam / 2 * (lse_image + lse_text) if lam else clip
    return Parts(loss, clip, lse_image, lse_text, positive, scale.detach())


def clip_parts(image: Tensor, text: Tensor, scale: Tensor | float, labels: Tensor | None = None) -> Parts:
    """Symmetric InfoNCE of a batch: FLYP's objective, equal to ``open_clip.ClipLoss``.

    ``image``, ``text`` (B, d) unit rows, row k of one matching row k of the other; ``scale`` = 1 / temperature (not
    its logarithm). ``labels`` (B,) integers, optional: all texts of k's class are positives of k with equal mass
    (class-aware; 40 % of ImageNet's batch of 512 has a same-class peer), otherwise text k alone (paper form).
    Raises UserError if the shapes differ. Source: core_methods 1.1 and 2.
    """
    return cma_parts(image, text, scale, 0.0, labels)


def cma_parts(
    image: Tensor, text: Tensor, scale: Tensor | float, lam: float, labels: Tensor | None = None
) -> Parts:
    """CMA as published: L_CLIP - lam / (2B) sum_k [LSE_j S_kj + LSE_j S_jk].

    Identical to (1 - lam) L_CLIP - (lam / B) sum_k S_kk; lam = 0 is FLYP, lam = 1 pure alignment, which collapses.
    Arguments as ``clip_parts``, ``lam`` in [0, 1]. Raises UserError if lam is outside. Source: core_methods 1.1, 1.2.
    """
    if not 0 <= lam <= 1:
        raise UserError(
            f"lam is {lam}; give a number from 0 (FLYP) to 1 (pure alignment), the paper's is 0.001"
        )
    with torch.autocast(image.device.type, enabled=False):
        image, text, labels = _gathered(image, text, labels)
        return _contrast(image, text, scale, labels, lam)


def clip_loss(image: Tensor, text: Tensor, scale: Tensor | float) -> Tensor:
    """The scalar of ``clip_parts``, for where only the loss is wanted."""
    return clip_parts(image, text, scale).loss


def cma_loss(image: Tensor, text: Tensor, scale: Tensor | float, lam: float) -> Tensor:
    """The scalar of ``cma_parts``, for where only the loss is wanted."""
    return cma_parts(image, text, scale, lam).loss


def m2mix_loss(
    image: Tensor, text: Tensor, scale: Tensor | float, mix: float, weight: float = 0.01
) -> Tensor:
    """The scalar of ``m2mix_parts``, for where only the loss is wanted."""
    return m2mix_parts(image, text, scale, mix, weight).loss


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """Point on the arc from ``b`` (weight 0) to ``a`` (weight 1), row by row: m2-Mix's geodesic mixing.

    ``a``, ``b`` (..., d) unit rows, ``weight`` in [0, 1]; returns unit rows (..., d). For angles too small for
    acos the weights' series is used, so that values and gradients stay finite and right at a == b.
    Exactly opposite rows have no single arc; they give a finite point on the line between them.
    """
    dot = (a * b).sum(-1, keepdim=True)
    eps = torch.finfo(dot.dtype).eps
    rest = 1 - dot
    near = rest < eps**0.5
    # the branch not taken must be finite too: where() passes 0 * inf = NaN back through acos otherwise
    angle = torch.where(near, torch.zeros_like(dot), dot).clamp(min=eps - 1).acos()

    def share(part: float) -> Tensor:
        series = part * (
            1 + (1 - part * part) * rest / 3
        )  # sin(part * angle) / sin(angle) for angle^2 ~ 2 rest
        return torch.where(near, series, (part * angle).sin() / angle.sin())

    return share(weight) * a + share(1 - weight) * b


def draw_mix(seed: int, step: int, beta: float = 0.5) -> float:
    """The mixing weight of a step, from Beta(beta, beta): a function of (seed, step), so alike in all processes."""
    return float(np.random.default_rng([seed, step]).beta(beta, beta))


def m2mix_parts(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    mix: float,
    weight: float = 0.01,
    mix_scale: Tensor | float | None = None,
    labels: Tensor | None = None,
) -> Parts:
    """CLIP plus ``weight`` times m2-Mix: negatives j are the points ``slerp(image_j, text_j, mix)`` between the two.

    Such negatives lie in the gap, hence hard. ``mix`` in [0, 1] is one draw for the batch (``draw_mix``);
    ``mix_scale`` is the m2 term's own 1 / temperature (1 / 0.07 in the sweeps with --sep_scale), by default
    ``scale``. The m2 term is the sum of both directions, as in the authors' main code; ``clip`` and the lse parts
    are those of the CLIP term. Raises UserError if mix or weight is out of range. Source: core_methods 5.1.
    """
    if not 0 <= mix <= 1 or weight < 0:
        raise UserError(
            f"m2-Mix needs mix in [0, 1] and weight >= 0, not mix {mix} and weight {weight}; correct them"
        )
    with torch.autocast(image.device.type, enabled=False):
        image, text, labels = _gathered(image, text, labels)
        parts = _contrast(image, text, scale, labels, 0.0)
        sharpness = torch.as_tensor(
            scale if mix_scale is None else mix_scale, dtype=image.dtype, device=image.device
        )
        mixed, target = slerp(image, text, mix), torch.arange(len(image), device=image.device)
        own = torch.diag_embed((image * text).sum(1))
        others = 1 - torch.eye(len(image), dtype=image.dtype, device=image.device)
        hard = [
            F.cross_entropy(sharpness * (own + others * (side @ mixed.T)), target) for side in (image, text)
        ]
        return parts._replace(loss=parts.loss + weight * (hard[0] + hard[1]))
