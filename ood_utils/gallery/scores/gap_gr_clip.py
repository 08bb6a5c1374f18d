"""NegLabel, GR-CLIP: each modality loses its mean and is set to length 1 again.

f' = unit(f - m_I), t' = unit(t - m_T), m_I the mean ID training image, m_T the mean class text. GR-CLIP
(arXiv 2507.19054; for mixed-modality search, formula recalled); NegLabel after it is ours. An OoD image that
lies near the mean image loses most of its length, and gains most by the renormalisation.
"""

import numpy as np

from ...methods import Method
from .. import Evidence, gap


def gr_clip(evidence: Evidence) -> np.ndarray:
    """(n,) log-odds."""
    images = evidence.images - evidence.once(gap.image_centre)
    images /= np.maximum(np.linalg.norm(images, axis=1, keepdims=True), 1e-12)
    return gap.with_texts(evidence.change(images=images), evidence.once(gap.less_centre)).log_odds


METHOD = Method(
    "NegLabel, GR-CLIP",
    2025,
    "after GR-CLIP (arXiv 2507.19054)",
    ("fixed_text", "negative_text", "train"),
    gr_clip,
)
