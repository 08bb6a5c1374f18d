"""NegPrompt's score: the largest softmax probability of an ID text among ID and negative texts.

    S = max_c e^{f.g_c / T} / ( sum_c e^{f.g_c / T} + sum_m e^{f.n_m / T} )

given as log S = (max_c cos - Energy) / T + log sigmoid(P - N): MSP's times NegLabel's. Made for NegPrompt's
negative prompts, it takes any negatives. Source: Li et al. 2024 (arXiv 2404.03248).
"""

from scipy.special import log_expit

from ...scores import energy, max_logit
from .. import Method

METHOD = Method(
    "NegPrompt",
    2024,
    "Li et al. 2024 (arXiv 2404.03248)",
    ("class_text", "negative_text"),
    lambda e: (
        (max_logit(e.cosines) - energy(e.cosines, e.temperature)) / e.temperature + log_expit(e.log_odds)
    ),
)
