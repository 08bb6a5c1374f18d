"""TANL: the negatives are the corpus words that the stream's OoD images activate and its ID images do not.

    Act(X, y) = mean over x in X of softmax(cos / T)_y, over ID texts and words
    Act_d = Act(X_neg) - Act(X_pos);   words 1..M: those of the largest Act_d
    S = (1/M) sum_{m=1..M} sum_ID / (sum_ID + sum_{j<=m} exp(cos_j / T))

so that a word of large Act_d counts in more terms. X_pos and X_neg are queues of 300 surely ID and surely
OoD images. Of a batch S is first computed by the queues; its own sure images, weighed 1 - ``past``, then
choose the words of the final S and enter the queues. Source: TANL (CVPR 2026, arXiv 2603.25250), M 1,000.
Ours: M as many as were mined (1,000 of the glyphs' 5,768 words are too few on validation); X_neg starts from
the mined negatives' texts, as X_pos from the ID texts (the paper: from images of Gaussian noise, for which
stored embeddings have no encoder); words that name an ID class are left out; sure is what ``online.Sure``
says, of logit S.
"""

from __future__ import annotations

import numpy as np
from scipy.special import softmax

from .. import Adaptive, Evidence, Step
from ..online import Sure, looker


def activation_score(own: np.ndarray, words: np.ndarray) -> np.ndarray:
    """S of the summed weight of ID texts (b,) and of the words' in their order (b, M) -> (b,) in [0, 1]."""
    return (own[:, None] / (own[:, None] + words.cumsum(axis=1))).mean(axis=1)


def start(
    known: Evidence, words: int | None = None, length: int = 300, gap: float = 0.5, past: float = 0.95
) -> Step:
    """The step of queues that hold texts; ``past`` 1 chooses words by the queues alone."""
    words = words or len(known.negative_text)
    see, sure, count = looker(known, known.corpus_text[known.usable]), Sure(gap), len(known.class_text)

    def activations(rows: np.ndarray) -> np.ndarray:
        return softmax(see(rows)[1], axis=1)

    def some(texts: np.ndarray) -> np.ndarray:
        return texts[np.linspace(0, len(texts) - 1, min(length, len(texts))).astype(int)]

    queues = [activations(some(texts))[:, count:] for texts in (known.class_text, known.negative_text)]

    def score(active: np.ndarray, means: list[np.ndarray]) -> np.ndarray:
        chosen = np.argsort(means[0] - means[1], kind="stable")[:words]
        return activation_score(active[:, :count].sum(axis=1), active[:, count + chosen])

    def step(rows: np.ndarray) -> np.ndarray:
        active, means = activations(rows), [queue.mean(axis=0) for queue in queues]
        for k, chosen in enumerate(sure(score(active, means))):
            if chosen.any():
                new = active[chosen, count:]
                means[k] = past * means[k] + (1 - past) * new.mean(axis=0)
                queues[k] = np.concatenate([queues[k], new])[-length:]
        return score(active, means)

    return step


ADAPTIVE = Adaptive(
    "TANL", 2026, "arXiv 2603.25250 (CVPR 2026)", ("fixed_text", "negative_text", "corpus_text"), start
)
