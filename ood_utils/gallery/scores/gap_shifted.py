"""NegLabel, texts shifted: all texts are moved by the modality gap and set to length 1 again.

t' = unit(t + m_I - m_T), m_I the mean ID training image, m_T the mean class text. Without "unit" nothing
would change (``gap.one_vector_on_all_texts``): what acts is the renormalisation. Liang et al. (NeurIPS 2022,
arXiv 2203.02053) move embeddings so; as a step before NegLabel it is ours.
"""

from ...methods import Method
from .. import gap

METHOD = Method(
    "NegLabel, texts shifted",
    2022,
    "after Liang et al. 2022 (arXiv 2203.02053)",
    ("fixed_text", "negative_text", "train"),
    lambda e: gap.with_texts(e, e.once(gap.shifted)).log_odds,
)
