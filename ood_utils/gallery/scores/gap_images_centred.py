"""NegLabel, images centred: the mean ID training image is taken off every image, nothing renormalised.

(f - m_I) t = f t - m_I t takes a prior off each text: logit adjustment, the same for all images
(``gap.centring_is_logit_adjustment``). Centring the texts as well would change no softmax score. Ours.
"""

from ...methods import Method
from .. import gap

METHOD = Method(
    "NegLabel, images centred",
    2026,
    "ours",
    ("fixed_text", "negative_text", "train"),
    lambda e: gap.by_products(e, images=-e.once(gap.image_centre)).log_odds,
)
