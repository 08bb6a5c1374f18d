"""CLIP's contrastive loss, with which FLYP fine-tunes."""

from torch import Tensor

from . import Batch, Parts


def loss(batch: Batch, terms: Parts) -> Tensor:
    """Symmetric InfoNCE of a batch; ``lam``, ``seed`` and ``step`` are not used.

    L_CLIP = 1 / (2B) sum_k [LSE_j S_kj + LSE_j S_jk] - 1 / B sum_k S_kk, equal to ``open_clip.ClipLoss``.
    Source: FLYP (arXiv 2212.00638); core_methods 1.1 and 2.
    """
    return terms.clip
