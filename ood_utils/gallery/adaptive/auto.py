"""AUTO: an image that scores far below ID is made an outlier to learn from, one step of descent at once.

Image by image; S is NegLabel's log-odds P - N, with mean m and deviation s over the ID training images:

    S < out-border: one step on w_in CE(memory) + w_out ( logsumexp(z) - mean(z) ),   z_k = f.t_k / T
    S > m + h_in s: the image enters the memory in the place of its best class, where it replaces the last
    out-border: the mean of m - h_out s and the scores that were under it so far

The second term moves the image away from its best class towards all alike. Source: Yang et al. 2023 (arXiv
2303.12267): max softmax of a classifier, its last block trained, h_in 0, h_out 3, w_in 1, w_out 0.25, rate
1e-3. Our transfer to CLIP: the ID texts are what is trained, and brought back to length 1, at a rate chosen
on validation (1e-3 is worse than no step); the log-odds in the softmax's place, as the mass saturates; the
consistency term (weight 0.1) is left out.
"""

from __future__ import annotations

import numpy as np
from scipy.special import softmax

from .. import Adaptive, Evidence, Step
from ..online import log_sum, looker


def _training(known: Evidence) -> tuple[float, float]:
    """Mean and standard deviation of the training images' log-odds."""
    scores = known.of(known.train).log_odds
    return float(scores.mean()), float(scores.std())


def gradient(
    texts: np.ndarray,
    image: np.ndarray,
    memory: np.ndarray,
    labels: np.ndarray,
    temperature: float,
    w_in: float,
    w_out: float,
) -> np.ndarray:
    """(K, d): of w_in CE + w_out ( logsumexp - mean ) by the texts (K, d); memory (m, d) of ``labels``."""
    found = w_out * np.outer(softmax(texts @ image / temperature) - 1 / len(texts), image)
    if len(labels):
        errors = softmax(memory @ texts.T / temperature, axis=1)
        errors[np.arange(len(labels)), labels] -= 1
        found += w_in / len(labels) * (errors.T @ memory)
    return found / temperature


def start(
    known: Evidence,
    rate: float = 1e-4,
    h_in: float = 0.0,
    h_out: float = 3.0,
    w_in: float = 1.0,
    w_out: float = 0.25,
) -> Step:
    """The step of an empty memory and the texts as they are."""
    mean, deviation = known.once(_training)
    see, texts = looker(known), known.class_text.astype(np.float64)
    memory, filled, under = np.zeros_like(texts), np.zeros(len(texts), bool), [mean - h_out * deviation]

    def one(image: np.ndarray, negative: float) -> float:
        logits = texts @ image / known.temperature
        score = float(log_sum(logits[None])[0] - negative)
        if score < np.mean(under):
            under.append(score)
            labels = np.flatnonzero(filled)
            moved = gradient(texts, image, memory[labels], labels, known.temperature, w_in, w_out)
            texts[:] -= rate * moved
            texts[:] /= np.linalg.norm(texts, axis=1, keepdims=True)
        if score > mean + h_in * deviation:
            memory[logits.argmax()], filled[logits.argmax()] = image, True
        return score

    def step(rows: np.ndarray) -> np.ndarray:
        images, logits = see(rows)
        negative = log_sum(logits[:, len(texts) :])
        return np.array([one(*pair) for pair in zip(images, negative, strict=True)])

    return step


ADAPTIVE = Adaptive(
    "AUTO", 2023, "Yang et al. 2023 (arXiv 2303.12267)", ("fixed_text", "negative_text", "train"), start
)
