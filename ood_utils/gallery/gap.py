"""Closing the modality gap before scoring, without training: evidence in, evidence out.

The centres are those of the ID training images and of the class texts: the same things in both modalities,
so their difference is the gap and no difference of content. Test images are never averaged.
"""

from collections.abc import Iterable

import numpy as np

from ..methods import Method
from . import Evidence
from .scores.dnm import dnm

Texts = tuple[np.ndarray, np.ndarray]  # class texts (K, d) and negatives (M, d)


def image_centre(evidence: Evidence) -> np.ndarray:
    """(d,) float64 mean of the training images."""
    return evidence.train.mean(axis=0, dtype=np.float64)


def _moved(evidence: Evidence, vector: np.ndarray) -> Texts:
    """Class texts and negatives with ``vector`` (d,) added, at length 1 again."""
    texts = [rows + vector for rows in (evidence.class_text, evidence.negative_text)]
    return tuple(rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in texts)


def _gap(evidence: Evidence) -> np.ndarray:
    return image_centre(evidence) - evidence.class_text.mean(axis=0, dtype=np.float64)


def shifted(evidence: Evidence) -> Texts:
    """Every text moved by the gap, to the images' centre."""
    return _moved(evidence, _gap(evidence))


def projected(evidence: Evidence, share: float = 0.95) -> Texts:
    """The same, by the part of the gap that is orthogonal to the class texts' main components.

    These are the components V that hold ``share`` of their variance; the shift is g - V V' g.
    """
    texts = evidence.class_text.astype(np.float64)
    _, sizes, axes = np.linalg.svd(texts - texts.mean(axis=0), full_matrices=False)
    held = np.cumsum(sizes**2) / (sizes**2).sum()
    main, gap = axes[: np.searchsorted(held, share) + 1], _gap(evidence)
    return _moved(evidence, gap - main.T @ (main @ gap))


def less_centre(evidence: Evidence) -> Texts:
    """Every text less the class texts' centre."""
    return _moved(evidence, -evidence.class_text.mean(axis=0, dtype=np.float64))


def with_texts(evidence: Evidence, texts: Texts) -> Evidence:
    """The same images judged by other texts."""
    return evidence.change(class_text=texts[0], negative_text=texts[1])


def by_products(
    evidence: Evidence, images: np.ndarray | float = 0.0, texts: np.ndarray | float = 0.0
) -> Evidence:
    """The same with ``images`` (d,) added to every image and ``texts`` (d,) to every text, of any length."""
    both = [rows.astype(np.float64) + texts for rows in (evidence.class_text, evidence.negative_text)]
    return evidence.change(look=lambda rows: tuple((rows + images) @ part.T for part in both))


# --- three exact facts, for the notebook ---


def one_vector_on_all_texts(
    evidence: Evidence, scores: Iterable[Method], vector: np.ndarray
) -> dict[str, float]:
    """By how much each score moves, at most, when ``vector`` (d,) is added to all texts; name -> change.

    All logits of an image rise alike, so that softmax scores (MCM, MSP, NegLabel), LogitGap and the predicted
    class stay: 0 up to rounding. MaxLogit and Energy move, by another amount for each image. Under "predicted
    class" stands the share of images whose class changes.
    """
    moved = by_products(evidence, texts=vector)
    found = {method.name: float(np.abs(method(moved) - method(evidence)).max()) for method in scores}
    other = moved.cosines.argmax(axis=1) != evidence.cosines.argmax(axis=1)
    return found | {"predicted class": float(other.mean())}


def centring_is_logit_adjustment(evidence: Evidence) -> float:
    """Largest difference between NegLabel of centred images and NegLabel less a prior for each text; 0.

    (f - m) t_k = f t_k - m t_k: to take the mean image m off is to take off text k's logit for it.
    """
    centre = image_centre(evidence)
    centred = by_products(evidence, images=-centre)
    texts = [rows.astype(np.float64) for rows in (evidence.class_text, evidence.negative_text)]
    adjusted = evidence.change(look=lambda rows: tuple(rows @ part.T - centre @ part.T for part in texts))
    return float(np.abs(centred.log_odds - adjusted.log_odds).max())


def dnm_against_neglabel(evidence: Evidence, prior: float = 0.5) -> np.ndarray:
    """(n,) DNM less NegLabel in one group, as log-odds: one and the same number for all images.

    UserError where DNM's denominator can be zero (``dnm.shift``).
    """
    return dnm(evidence, prior, groups=1) - evidence.change(groups=1).log_odds
