"""Training objectives on unit embeddings, one file each, found by name: CLIP (FLYP's loss), CMA, m2-Mix, ...

A new objective is a new file of this package with a function ``loss(batch: Batch, terms: Parts) -> Tensor``,
the scalar to minimise, in nats, from the rows of all processes and their CLIP terms.
"""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from .. import registry
from ..errors import UserError


class Batch(NamedTuple):
    """What an objective sees. ``image``, ``text`` (B, d): unit rows, row k of one matches row k of the other.

    ``scale`` = 1 / temperature (not its logarithm); ``lam`` is the objective's own weight. What it draws must
    be a function of (``seed``, ``step``).
    """

    image: Tensor
    text: Tensor
    scale: Tensor
    lam: float
    seed: int
    step: int


class Parts(NamedTuple):
    """A loss and what it is made of; scalars with gradient, in nats. S = scale * image @ text.T, B rows.

    ``loss``: what is minimised. ``clip``: (lse_image + lse_text) / 2 - positive, the CLIP term alone.
    ``lse_image``: mean over images of the log-sum-exp over texts; ``lse_text``: the reverse. ``positive``:
    mean S_kk (with labels: mean S over the texts of k's class). ``scale``: exp of the logit scale, detached.
    """

    loss: Tensor
    clip: Tensor
    lse_image: Tensor
    lse_text: Tensor
    positive: Tensor
    scale: Tensor


def world_size() -> int:
    """Number of processes of the running ``torch.distributed`` group; 1 without one."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def parts(
    name: str,
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    *,
    lam: float = 0.0,
    labels: Tensor | None = None,
    seed: int = 0,
    step: int = 0,
) -> Parts:
    """The objective ``name`` of a batch; arguments as in ``Batch``.

    With ``labels`` (B,), integers, all texts of k's class are positives of k with equal mass (class-aware:
    40 % of ImageNet's batch of 512 has a same-class peer), otherwise text k alone is (paper form).

    Computed in float32 (float64 stays float64) whatever autocast says: a log-sum-exp of logits near 100 does
    not survive half precision. Of several ``torch.distributed`` processes each passes its own rows and gets
    the loss of all, gathered with gradient: gradients averaged over processes, as DDP does, are then those of
    one process holding the whole batch. Raises UserError for an unknown name or unequal shapes.
    """
    if image.shape != text.shape or image.ndim != 2:
        shapes = f"image {tuple(image.shape)} and text {tuple(text.shape)}"
        raise UserError(f"{shapes} must be two equal (rows, width) arrays; pass one text per image.")
    wide = torch.float64 if torch.float64 in (image.dtype, text.dtype) else torch.float32
    with torch.autocast(image.device.type, enabled=False):
        image, text = image.to(wide), text.to(wide)
        if world_size() > 1:
            image, text, labels = _gathered(image, text, labels)
        scale = torch.as_tensor(scale, dtype=wide, device=image.device)
        terms = contrast(image, text, scale, labels)
        formula = registry.find("objectives", name).loss
        return terms._replace(loss=formula(Batch(image, text, scale, lam, seed, step), terms))


def _gathered(image: Tensor, text: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rows and labels of all processes in rank order, rows with gradient across processes."""
    from open_clip.loss import gather_features

    if labels is not None:
        gathered = [torch.empty_like(labels) for _ in range(world_size())]
        torch.distributed.all_gather(gathered, labels.contiguous())
        labels = torch.cat(gathered)
    with warnings.catch_warnings():  # torch calls the all_gather that open_clip 3.3 uses deprecated
        warnings.simplefilter("ignore", FutureWarning)
        return *gather_features(image, text, gather_with_grad=True, world_size=world_size()), labels


def contrast(image: Tensor, text: Tensor, scale: Tensor, labels: Tensor | None = None) -> Parts:
    """Symmetric InfoNCE of gathered rows, equal to ``open_clip.ClipLoss`` without ``labels``; loss = clip."""
    logits = scale * image @ text.T
    lse_image, lse_text = logits.logsumexp(1).mean(), logits.logsumexp(0).mean()
    if labels is None:
        positive = logits.diagonal().mean()
    else:
        same = (labels[:, None] == labels[None]).to(logits)
        positive = (logits * same / same.sum(1, keepdim=True)).sum(1).mean()
    clip = (lse_image + lse_text) / 2 - positive
    return Parts(clip, clip, lse_image, lse_text, positive, scale.detach())


def relation(
    image: Tensor, words: Tensor, frozen_image: Tensor, frozen_words: Tensor, scale: Tensor
) -> Tensor:
    """What a fine-tuning did to the images' relations with words: mean KL(before || after) over images, nats.

    Each image's softmax over the same W words, before (``frozen_*``: the zero-shot model) and after; image
    (B, d), words (W, d), unit rows, words without the ID names. Its own: 0 where nothing has moved. Used as a
    term beside any objective; the words stand for all that is not ID. Ours; after "learning without
    forgetting" (arXiv 1606.09282) and relation distillation (arXiv 1904.05068).
    """
    with torch.autocast(image.device.type, enabled=False):
        scale = scale.detach().to(image.dtype)
        before = (scale * frozen_image @ frozen_words.T).log_softmax(1)
        after = (scale * image @ words.T).log_softmax(1)
    return (before.exp() * (before - after)).sum(1).mean()


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """Point on the arc from ``b`` (weight 0) to ``a`` (weight 1), row by row: m2-Mix's geodesic mixing.

    ``a``, ``b`` (..., d) unit rows, ``weight`` in [0, 1]; returns unit rows (..., d). For angles too small
    for acos the weights' series is used, so that values and gradients stay finite and right at a == b.
    Exactly opposite rows have no single arc; they give a finite point on the line between them.
    """
    dot = (a * b).sum(-1, keepdim=True)
    eps = torch.finfo(dot.dtype).eps
    rest = 1 - dot
    near = rest < eps**0.5
    # the branch not taken must be finite too: where() passes 0 * inf = NaN back through acos otherwise
    angle = torch.where(near, torch.zeros_like(dot), dot).clamp(min=eps - 1).acos()

    def share(part: float) -> Tensor:
        series = part * (1 + (1 - part * part) * rest / 3)  # of the sines' ratio below; angle^2 ~ 2 rest
        return torch.where(near, series, (part * angle).sin() / angle.sin())

    return share(weight) * a + share(1 - weight) * b


def clip_loss(image: Tensor, text: Tensor, scale: Tensor | float) -> Tensor:
    """The loss of ``parts("clip", ...)``, for where only the scalar is wanted."""
    return parts("clip", image, text, scale).loss


def cma_loss(image: Tensor, text: Tensor, scale: Tensor | float, lam: float) -> Tensor:
    """The loss of ``parts("cma", ...)``, for where only the scalar is wanted."""
    return parts("cma", image, text, scale, lam=lam).loss
