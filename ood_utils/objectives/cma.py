"""Cross-modal alignment: CLIP's loss and a pull of every image and text towards the other modality."""

from torch import Tensor

from ..errors import UserError
from . import Batch, Parts


def loss(batch: Batch, terms: Parts) -> Tensor:
    """CMA as published: L_CLIP - lam / (2B) sum_k [LSE_j S_kj + LSE_j S_jk]; ``seed``, ``step`` are not used.

    Identical to (1 - lam) L_CLIP - (lam / B) sum_k S_kk; lam = 0 is FLYP, lam = 1 pure alignment, which
    collapses. UserError if ``lam`` is outside [0, 1]. Source: CMA (arXiv 2503.18817); core_methods 1.1, 1.2.
    """
    if not 0 <= batch.lam <= 1:
        raise UserError(f"lam is {batch.lam}; give 0 (FLYP) to 1 (pure alignment), the paper's is 0.001.")
    return terms.clip - batch.lam / 2 * (terms.lse_image + terms.lse_text)
