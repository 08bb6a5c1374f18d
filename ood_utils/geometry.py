"""The modality gap in numbers: how far apart images and texts lie, and what becomes of that.

Every function takes numpy arrays of unit rows (embeddings) and returns floats, dicts or DataFrames.
Rows are accepted when their length is 1 to within 0.005 (half-precision features), then rescaled to
length 1 in float64, so that cosine and distance agree exactly: ||a - b||^2 = 2 - 2 a.b.

Names used throughout: ``images`` (n, d); ``matched`` (n, d), row k being the text of image k;
``class_text`` (K, d), one text per class; ``labels`` (n,) indices into ``class_text``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from .arrays import unit_rows
from .errors import UserError

CHUNK = 1024  # rows of a similarity matrix held at once


def _pairs(images: np.ndarray, matched: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit images and matched texts, checked to be as many."""
    if len(images) != len(matched):
        raise UserError(f"matched has {len(matched)} rows for {len(images)} images; give one text per image.")
    images, matched = unit_rows(images=images, matched=matched)
    return images, matched


def _classified(
    images: np.ndarray, labels: np.ndarray, class_text: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit images and class texts, and labels checked to be one class per image."""
    images, class_text = unit_rows(images=images, class_text=class_text)
    labels = np.asarray(labels, dtype=np.int64)
    if labels.shape != (len(images),) or labels.min() < 0 or labels.max() >= len(class_text):
        raise UserError(f"labels must be {len(images)} numbers in [0, {len(class_text)}), one per image.")
    return images, labels, class_text


def _normalise(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)


def gap_direction(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """(d,) unit vector from the texts' centroid to the images' centroid (Liang et al. 2022, section 4.2)."""
    images, texts = unit_rows(images=images, texts=texts)
    gap = images.mean(0) - texts.mean(0)
    return gap / max(np.linalg.norm(gap), 1e-12)


def centroid_gap(images: np.ndarray, texts: np.ndarray) -> float:
    """||mean image - mean text||, in [0, 2]; 0 = no gap, about 0.85 in CLIP (Liang et al. 2022, 4.2)."""
    images, texts = unit_rows(images=images, texts=texts)
    return float(np.linalg.norm(images.mean(0) - texts.mean(0)))


def instance_gap(images: np.ndarray, matched: np.ndarray) -> float:
    """Mean distance ||i - t_y|| of matched pairs, in [0, 2] (Schrodi et al. 2025, "L2I")."""
    images, matched = _pairs(images, matched)
    return float(np.linalg.norm(images - matched, axis=1).mean())


def _mean_cosine(rows: np.ndarray) -> float:
    """Mean cosine of distinct pairs of unit rows, without the n x n matrix: (||sum||^2 - n) / (n (n - 1))."""
    n = len(rows)
    return float((np.square(rows.sum(0)).sum() - n) / (n * (n - 1))) if n > 1 else 1.0


def relative_modality_gap(
    images: np.ndarray, matched_texts: np.ndarray, class_texts: np.ndarray | None = None
) -> float:
    """Relative modality gap a / (a + (b_I + b_T) / 2) of Schrodi et al. (ICLR 2025), in (0, 1).

    a = mean (1 - cos)/2 of matched pairs, b_I and b_T the same over distinct pairs of images and of
    texts. 0.5 = a matched pair is as far apart as two random items of one modality; above = a gap.
    ``class_texts`` (K, d) replaces ``matched_texts`` in b_T: give it when matched texts repeat.
    """
    images, matched = _pairs(images, matched_texts)
    texts = matched if class_texts is None else unit_rows(images=images, class_texts=class_texts)[1]
    a = (1 - (images * matched).sum(1).mean()) / 2
    b = (1 - (_mean_cosine(images) + _mean_cosine(texts)) / 2) / 2
    return float(a / max(a + b, 1e-12))


def per_class_gap(images: np.ndarray, labels: np.ndarray, class_text: np.ndarray) -> pd.DataFrame:
    """The gap of each class, g_c = mean image of c - text of c.

    Columns: class (index into ``class_text``), n (images), gap = ||g_c||, cosine = cos(g_c, g) where g
    is the mean over images of i - t_y: 1 = the gap is one direction shared by all classes. Classes
    without images are left out.
    """
    images, labels, class_text = _classified(images, labels, class_text)
    counts = np.bincount(labels, minlength=len(class_text))
    sums = np.zeros_like(class_text)
    np.add.at(sums, labels, images)
    present = np.flatnonzero(counts)
    gaps = sums[present] / counts[present, None] - class_text[present]
    shared = (gaps * counts[present, None]).sum(0)
    norms = np.linalg.norm(gaps, axis=1)
    cosine = gaps @ shared / (norms * np.linalg.norm(shared)).clip(1e-12)
    return pd.DataFrame({"class": present, "n": counts[present], "gap": norms, "cosine": cosine})


def linear_separability(images: np.ndarray, texts: np.ndarray, seed: int = 0, limit: int = 5000) -> float:
    """Balanced accuracy, on a held-out 20 %, of a logistic regression that tells images from texts.

    1 = a hyperplane parts the modalities, 0.5 = it cannot (Shi et al. 2023; Fahim et al. 2024). Give
    each text once: a text in both halves would leak. At most ``limit`` rows of either are used.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    images, texts = unit_rows(images=images, texts=texts)
    if min(len(images), len(texts)) < 5:
        raise UserError(
            "linear_separability needs at least 5 images and 5 texts to hold 20 % out; give more."
        )
    rng = np.random.default_rng(seed)
    groups = [rows[rng.permutation(len(rows))[:limit]] for rows in (images, texts)]
    x, y = np.concatenate(groups), np.repeat([0, 1], [len(rows) for rows in groups])
    x, x_out, y, y_out = train_test_split(x, y, test_size=0.2, stratify=y, random_state=seed)
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    return float(balanced_accuracy_score(y_out, model.fit(x, y).predict(x_out)))


def alignment(images: np.ndarray, matched: np.ndarray) -> float:
    """Mean ||i - t_y||^2 of matched pairs, in [0, 4]; lower = closer (Wang and Isola 2020, alpha = 2)."""
    images, matched = _pairs(images, matched)
    return float(np.square(images - matched).sum(1).mean())


def uniformity(
    a: np.ndarray, b: np.ndarray | None = None, t: float = 2.0, skip: np.ndarray | None = None
) -> float:
    """log mean exp(-t ||a - b||^2), at most 0; LOWER = more evenly spread (Wang and Isola 2020).

    Over distinct pairs of ``a`` when ``b`` is None, else over all pairs of a row of ``a`` and a row of
    ``b``; ``skip`` (len(a),) then names the one row of ``b`` left out for each row of ``a`` (its match).
    Streamed in chunks: the n x m matrix is never held. Raises UserError where no pair is left.
    """
    if b is None:
        skip = np.arange(len(a))
    left, right = (rows.astype(np.float32) for rows in unit_rows(a=a, b=a if b is None else b))
    pairs = len(left) * (len(right) - (skip is not None))
    if t <= 0 or pairs == 0:
        raise UserError(
            "uniformity needs t > 0 and at least two rows to compare; check t and the arrays' lengths."
        )
    total = 0.0
    for start in range(0, len(left), CHUNK):
        kernel = np.exp(2 * t * (left[start : start + CHUNK] @ right.T - 1))
        if skip is not None:
            kernel[np.arange(len(kernel)), skip[start : start + CHUNK]] = 0
        total += kernel.sum(dtype=np.float64)
    return float(np.log(total / pairs))


def margins(
    images: np.ndarray, labels: np.ndarray, class_text: np.ndarray, negatives: np.ndarray | None = None
) -> dict[str, float]:
    """Mean cosine margins of the true text: ``margin_id`` over the hardest other ID text, ``margin_negative``
    over the hardest of ``negatives`` (M, d), NaN without them; also zero-shot ``accuracy`` in [0, 1].

    Positive = the true text wins on average. Half of m2-Mix' relative alignment (core_methods 5.2).
    """
    images, labels, class_text = _classified(images, labels, class_text)
    hardest_id, hardest_negative, true = (np.full(len(images), np.nan) for _ in range(3))
    texts = None if negatives is None else unit_rows(images=images, negatives=negatives)[1]
    for start in range(0, len(images), CHUNK):
        rows = slice(start, start + CHUNK)
        cosines = images[rows] @ class_text.T
        own = np.arange(len(cosines)), labels[rows]
        true[rows], cosines[own] = cosines[own], -np.inf
        hardest_id[rows] = cosines.max(1)
        if texts is not None:
            hardest_negative[rows] = (images[rows] @ texts.T).max(1)
    return {
        "margin_id": float((true - hardest_id).mean()) if len(class_text) > 1 else float("nan"),
        "margin_negative": float((true - hardest_negative).mean()),
        "accuracy": float((true > hardest_id).mean()),
    }


def gap_decomposition(images: np.ndarray, matched: np.ndarray) -> dict[str, float]:
    """The exact identity E||i - t||^2 = ||mean i - mean t||^2 + E||(i - mean i) - (t - mean t)||^2.

    Keys: total (= alignment), centroid (the part one shift removes), residual (what is left of each
    pair after the shift), centroid_share = centroid / total.
    """
    images, matched = _pairs(images, matched)
    shift = images.mean(0) - matched.mean(0)
    difference = images - matched
    total, centroid = np.square(difference).sum(1).mean(), np.square(shift).sum()
    residual = np.square(difference - shift).sum(1).mean()
    return {
        "total": float(total), "centroid": float(centroid), "residual": float(residual),
        "centroid_share": float(centroid / max(total, 1e-12)),
    }  # fmt: skip


def contrastive_loss(
    images: np.ndarray, matched: np.ndarray, labels: np.ndarray, scale: float, batch: int
) -> float:
    """Mean symmetric CLIP loss (nats) over consecutive batches; pairs of one label are no negatives."""
    from scipy.special import logsumexp

    losses = []
    for start in range(0, len(images), batch):
        rows = slice(start, start + batch)
        logits = scale * images[rows] @ matched[rows].T
        same = labels[rows, None] == labels[None, rows]
        positive = logits.diagonal().copy()
        logits[same] = -np.inf
        np.fill_diagonal(logits, positive)
        losses.append((logsumexp(logits, axis=0) + logsumexp(logits, axis=1)) / 2 - positive)
    return float(np.concatenate(losses).mean())


def gap_shift(
    images: np.ndarray,
    texts: np.ndarray,
    labels: np.ndarray,
    class_text: np.ndarray,
    fractions: Sequence[float],
    *,
    scale: float = 100.0,
    batch: int = 128,
    seed: int = 0,
    score: Callable[[Callable, Callable], float | Mapping[str, float]] | None = None,
) -> pd.DataFrame:
    """Move images and texts towards each other and see what the model loses (Liang et al. 2022, 4.2).

    i' = norm(i - f/2 g), t' = norm(t + f/2 g), g = mean image - mean text: fraction f = 0 is the model,
    1 closes the gap (but for the rescaling), f < 0 widens it. ``texts`` (n, d) are matched texts.
    ``score(move_images, move_texts)`` gets the two movements, which take any (m, d) unit rows, OoD images
    too, and returns an AUROC (column ``auroc``) or a dict of columns. Columns: fraction, gap (signed along
    g: below 0 = the modalities have passed each other), centroid_gap, loss (at ``scale``, in shuffled
    batches), accuracy (zero-shot, [0, 1]).
    """
    images, texts = _pairs(images, texts)
    _, labels, class_text = _classified(images, labels, class_text)
    gap = images.mean(0) - texts.mean(0)
    direction = gap / max(np.linalg.norm(gap), 1e-12)
    order = np.random.default_rng(seed).permutation(len(images))
    rows = []
    for fraction in fractions:

        def move_images(x: np.ndarray, step: float = fraction / 2) -> np.ndarray:
            return _normalise(np.asarray(x, dtype=np.float64) - step * gap)

        def move_texts(x: np.ndarray, step: float = fraction / 2) -> np.ndarray:
            return _normalise(np.asarray(x, dtype=np.float64) + step * gap)

        i, t = move_images(images), move_texts(texts)
        difference = i.mean(0) - t.mean(0)
        row = {
            "fraction": float(fraction),
            "gap": float(difference @ direction),
            "centroid_gap": float(np.linalg.norm(difference)),
            "loss": contrastive_loss(i[order], t[order], labels[order], scale, batch),
            "accuracy": float(((i @ move_texts(class_text).T).argmax(1) == labels).mean()),
        }
        extra = score(move_images, move_texts) if score else {}
        rows.append(row | (dict(extra) if isinstance(extra, Mapping) else {"auroc": float(extra)}))
    return pd.DataFrame(rows)


def mean_subtraction(images: np.ndarray, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images and texts, each with its own mean removed, rescaled to unit rows.

    Removes the centroid part of ``gap_decomposition`` (but for the rescaling) and leaves the paired
    residual: compare ``alignment``, RMG or ``linear_separability`` before and after to see which part
    mattered. (Separability may then fall below 0.5: the means contain the held-out rows, so that the
    training rows' means lie on the other side. Read it as "not separable".)
    """
    images, texts = unit_rows(images=images, texts=texts)
    return _normalise(images - images.mean(0)), _normalise(texts - texts.mean(0))


def pair_cosines(
    images: np.ndarray, labels: np.ndarray, class_text: np.ndarray, pairs: int = 100_000, seed: int = 0
) -> dict[str, np.ndarray]:
    """Cosines of four families of pairs: image-image, text-text, matched, mismatched (image and wrong text).

    At most ``pairs`` random distinct pairs of each family; matched has every image once.
    """
    images, labels, class_text = _classified(images, labels, class_text)
    rng = np.random.default_rng(seed)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        first, step = rng.integers(0, n, pairs), rng.integers(1, max(n, 2), pairs)
        return first, (first + step) % n

    (i, j), (k, m) = draw(len(images)), draw(len(class_text))
    row, wrong = rng.integers(0, len(images), pairs), rng.integers(1, max(len(class_text), 2), pairs)
    other = (labels[row] + wrong) % len(class_text)
    return {
        "image-image": np.einsum("nd,nd->n", images[i], images[j]),
        "text-text": np.einsum("nd,nd->n", class_text[k], class_text[m]),
        "matched": (images * class_text[labels]).sum(1),
        "mismatched": np.einsum("nd,nd->n", images[row], class_text[other]),
    }


def summary(
    images: np.ndarray,
    labels: np.ndarray,
    class_text: np.ndarray,
    negatives: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Every scalar of this module for one model: one row of a table like the CMA paper's Table 4.

    ``uni_*`` carry the paper's positive sign, -uniformity: LARGER = more spread. uni_images, uni_texts
    (class texts), uni_cross (image, wrong class text), uni_matched (image, own text), uni_all (images
    and class texts pooled). ``align_id`` as ``alignment`` (lower = closer). The centroid gap, as the
    decomposition, compares images with their matched texts (equal to the class texts for balanced classes).
    """
    images, labels, class_text = _classified(images, labels, class_text)
    matched = class_text[labels]
    own = np.exp(-2 * np.square(images - matched).sum(1)).mean()
    parts = gap_decomposition(images, matched)
    return {
        "uni_all": -uniformity(np.concatenate([images, class_text])),
        "uni_images": -uniformity(images),
        "uni_texts": -uniformity(class_text),
        "uni_cross": -uniformity(images, class_text, skip=labels),
        "uni_matched": float(-np.log(own)),
        "align_id": parts["total"],
        **margins(images, labels, class_text, negatives),
        "centroid_gap": float(np.sqrt(parts["centroid"])),
        "centroid_share": parts["centroid_share"],
        "instance_gap": instance_gap(images, matched),
        "rmg": relative_modality_gap(images, matched, class_text),
        "separability": linear_separability(images, class_text, seed),
    }
