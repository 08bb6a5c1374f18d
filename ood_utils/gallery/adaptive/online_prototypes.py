"""Online prototypes: texts stand apart from the images they name, so prototypes drift from texts to images.

Each text t_c, of ID classes and negatives, has a prototype mu_c, at first t_c. After a batch is scored,

    mu_c <- unit( mu_c + rate sum_f p_c(f) (f - mu_c) ),   p: CLIP's softmax over ID texts and negatives
    S = NegLabel's mass on the cosines (1 - b) f.t + b f.mu

Source: the idea of "Respecting Modality Gap" (ICML 2026, arXiv 2605.26661): class prototypes in image space,
learnt online from CLIP's soft predictions. Our reading: we could not read the update rule, ``rate`` and
``blend``, so that paper's figures do not speak of this file; ``rate`` is chosen on validation.
"""

import numpy as np
from scipy.special import softmax

from .. import Adaptive, Evidence, Step
from ..online import looker, mass


def start(known: Evidence, rate: float = 0.01, blend: float = 0.5) -> Step:
    """The step of prototypes that are still the texts."""
    see, count = looker(known), len(known.class_text)
    prototypes = np.concatenate([known.class_text, known.negative_text]).astype(np.float64)

    def step(rows: np.ndarray) -> np.ndarray:
        nonlocal prototypes
        images, logits = see(rows)
        mixed = (1 - blend) * logits + blend / known.temperature * (images @ prototypes.T)
        shares = softmax(logits, axis=1)
        prototypes += rate * (shares.T @ images - shares.sum(axis=0)[:, None] * prototypes)
        prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
        return mass(mixed, count)

    return step


ADAPTIVE = Adaptive(
    "Online prototypes", 2026, "our reading of arXiv 2605.26661 (RMG)", ("fixed_text", "negative_text"), start
)
