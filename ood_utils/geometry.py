"""The modality gap in numbers: how far apart images and texts lie, and what becomes of that.

Rows of length 1 to within 0.005 (half-precision features) are rescaled to length 1 in float64, so that cosine
and distance agree exactly: ||a - b||^2 = 2 - 2 a.b. Names used throughout: ``images`` (n, d); ``matched``
(n, d), row k the text of image k; ``class_text`` (K, d), one per class; ``labels`` (n,), indices into it.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pandas as pd
from scipy.special import logsumexp

from .arrays import indices, numbers, unit_rows, vector
from .errors import UserError

CHUNK = 1024  # rows of a similarity matrix held at once


def _pairs(images: np.ndarray, matched: np.ndarray) -> list[np.ndarray]:
    images, matched = unit_rows(images=images, matched=matched)
    if len(images) != len(matched):
        raise UserError(f"matched has {len(matched)} rows for {len(images)} images; give one text per image.")
    return [images, matched]


def _classified(images: np.ndarray, labels: np.ndarray, class_text: np.ndarray) -> tuple[np.ndarray, ...]:
    images, class_text = unit_rows(images=images, class_text=class_text)
    return images, indices(labels, "labels", len(images), len(class_text)), class_text


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


def relative_modality_gap(
    images: np.ndarray, matched_texts: np.ndarray, class_texts: np.ndarray | None = None
) -> float:
    """Relative modality gap a / (a + (b_I + b_T) / 2) of Schrodi et al. (ICLR 2025), in (0, 1).

    a = mean (1 - cos)/2 of matched pairs, b_I and b_T the same over distinct pairs of images and of texts.
    0.5 = a matched pair is as far apart as two random items of one modality; above = a gap. ``class_texts``
    (K, d) replaces ``matched_texts`` in b_T: give it when matched texts repeat.
    """

    def mean_cosine(rows: np.ndarray) -> float:
        n = len(rows)  # (||sum||^2 - n) / (n (n - 1)): distinct pairs, without the n x n matrix
        return float((np.square(rows.sum(0)).sum() - n) / (n * (n - 1))) if n > 1 else 1.0

    images, matched = _pairs(images, matched_texts)
    texts = matched if class_texts is None else unit_rows(images=images, class_texts=class_texts)[1]
    a = (1 - (images * matched).sum(1).mean()) / 2
    b = (1 - (mean_cosine(images) + mean_cosine(texts)) / 2) / 2
    return float(a / max(a + b, 1e-12))


def per_class_gap(images: np.ndarray, labels: np.ndarray, class_text: np.ndarray) -> pd.DataFrame:
    """The gap of each class, g_c = mean image of c - text of c.

    Columns: class (index into ``class_text``), n (images), gap = ||g_c||, cosine = cos(g_c, g) where g is the
    mean over images of i - t_y: 1 = one direction shared by all classes. Classes without images are left out.
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


def linear_separability(images: np.ndarray, texts: np.ndarray) -> float:
    """Balanced accuracy, on a held-out 20 %, of a logistic regression that tells images from texts.

    1 = a hyperplane parts the modalities, 0.5 = it cannot (Shi et al. 2023; Fahim et al. 2024). Give each
    text once: a text in both halves would leak. At most 5,000 random rows of either are used. Of fewer than
    5 images or texts each part in turn is held out.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict, train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    images, texts = unit_rows(images=images, texts=texts)
    if (few := min(len(images), len(texts))) < 2:
        raise UserError("linear_separability holds rows out: give at least 2 images and 2 texts.")
    rng = np.random.default_rng(0)
    groups = [rows[rng.permutation(len(rows))[:5000]] for rows in (images, texts)]
    x, y = np.concatenate(groups), np.repeat([0, 1], [len(rows) for rows in groups])
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    if few < 5:
        folds = StratifiedKFold(few, shuffle=True, random_state=0)
        return float(balanced_accuracy_score(y, cross_val_predict(model, x, y, cv=folds)))
    x, x_out, y, y_out = train_test_split(x, y, test_size=0.2, stratify=y, random_state=0)
    return float(balanced_accuracy_score(y_out, model.fit(x, y).predict(x_out)))


def alignment(images: np.ndarray, matched: np.ndarray) -> float:
    """Mean ||i - t_y||^2 of matched pairs, in [0, 4]; lower = closer (Wang and Isola 2020, alpha = 2)."""
    images, matched = _pairs(images, matched)
    return float(np.square(images - matched).sum(1).mean())


def uniformity(a: np.ndarray, b: np.ndarray | None = None, skip: np.ndarray | None = None) -> float:
    """log mean exp(-2 ||a - b||^2), at most 0; LOWER = more evenly spread (Wang and Isola 2020, t = 2).

    Over distinct pairs of ``a`` when ``b`` is None, else over all pairs of a row of ``a`` and a row of ``b``;
    ``skip`` (len(a),) then names the one row of ``b`` left out for each row of ``a`` (its match). The n x m
    matrix is never held whole. Raises UserError where no pair is left.
    """
    left, right = (rows.astype(np.float32) for rows in unit_rows(a=a, b=a if b is None else b))
    if b is None:
        skip = np.arange(len(left))
    elif skip is not None:
        skip = indices(skip, "skip", len(left), len(right))
    pairs = len(left) * (len(right) - (skip is not None))
    if pairs == 0:
        raise UserError("uniformity needs at least two rows to compare; give more.")
    total = 0.0
    for start in range(0, len(left), CHUNK):
        kernel = np.exp(4 * (left[start : start + CHUNK] @ right.T - 1))
        if skip is not None:
            kernel[np.arange(len(kernel)), skip[start : start + CHUNK]] = 0
        total += kernel.sum(dtype=np.float64)
    return float(np.log(total / pairs))


def accuracy(images: np.ndarray, labels: np.ndarray, class_text: np.ndarray) -> float:
    """Share of images (n, d) whose nearest class text (K, d) is that of their label, in [0, 1].

    A tie goes to the first, as argmax has it in the paper: of two classes with one name (ImageNet has two
    such pairs) the second is never right.
    """
    images, labels, class_text = _classified(images, labels, class_text)
    _, first, same = np.unique(class_text, axis=0, return_index=True, return_inverse=True)
    parts = range(0, len(images), CHUNK)
    found = np.concatenate([(images[start : start + CHUNK] @ class_text.T).argmax(1) for start in parts])
    return float((first[same.ravel()][found] == labels).mean())


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
        "accuracy": accuracy(images, labels, class_text),
    }


def gap_decomposition(images: np.ndarray, matched: np.ndarray) -> dict[str, float]:
    """The exact identity E||i - t||^2 = ||mean i - mean t||^2 + E||(i - mean i) - (t - mean t)||^2.

    Keys: total (= alignment), centroid (the part one shift removes), residual (what is left of each pair
    after the shift), centroid_share = centroid / total.
    """
    images, matched = _pairs(images, matched)
    shift, difference = images.mean(0) - matched.mean(0), images - matched
    total, centroid = np.square(difference).sum(1).mean(), np.square(shift).sum()
    residual = np.square(difference - shift).sum(1).mean()
    found = {"total": total, "centroid": centroid, "residual": residual}
    found["centroid_share"] = centroid / max(total, 1e-12)
    return {name: float(value) for name, value in found.items()}


def contrastive_loss(
    images: np.ndarray, matched: np.ndarray, labels: np.ndarray, scale: float, batch: int
) -> float:
    """Mean symmetric CLIP loss (nats) over consecutive batches; pairs of one label are no negatives."""
    images, matched = _pairs(images, matched)
    labels, losses = vector(labels, "labels"), []
    for start in range(0, len(images), batch):
        rows = slice(start, start + batch)
        logits = scale * images[rows] @ matched[rows].T
        same = labels[rows, None] == labels[rows]
        np.fill_diagonal(same, False)
        logits[same] = -np.inf
        losses.append((logsumexp(logits, axis=0) + logsumexp(logits, axis=1)) / 2 - logits.diagonal())
    return float(np.concatenate(losses).mean())


def gap_shift(
    images: np.ndarray,
    texts: np.ndarray,
    labels: np.ndarray,
    class_text: np.ndarray,
    fractions: Sequence[float],
    *,
    scale: float = 100.0,
    score: Callable[[Callable, Callable], float] | None = None,
) -> pd.DataFrame:
    """Move images and texts towards each other and see what the model loses (Liang et al. 2022, 4.2).

    i' = norm(i - f/2 g), t' = norm(t + f/2 g), g = mean image - mean text: fraction f = 0 is the model, 1
    closes the gap (but for the rescaling), f < 0 widens it. ``texts`` (n, d) are matched texts.
    ``score(move_images, move_texts)`` gets the two movements, which take any (m, d) unit rows, OoD images
    too, and returns an AUROC (column ``auroc``). Other columns: fraction, gap (signed along g: below 0 = the
    modalities have passed each other), centroid_gap, loss (at ``scale``, in shuffled batches of 128),
    accuracy (zero-shot, [0, 1]).
    """
    images, texts = _pairs(images, texts)
    _, labels, class_text = _classified(images, labels, class_text)
    gap = images.mean(0) - texts.mean(0)
    direction = gap / max(np.linalg.norm(gap), 1e-12)
    order = np.random.default_rng(0).permutation(len(images))

    def moved(x: np.ndarray, step: float) -> np.ndarray:
        return _normalise(numbers(x, "rows", 2) + step * gap)

    rows = []
    for fraction in fractions:
        move_images, move_texts = (partial(moved, step=sign * fraction / 2) for sign in (-1, 1))
        i, t = move_images(images), move_texts(texts)
        difference = i.mean(0) - t.mean(0)
        row = {
            "fraction": float(fraction),
            "gap": float(difference @ direction),
            "centroid_gap": float(np.linalg.norm(difference)),
            "loss": contrastive_loss(i[order], t[order], labels[order], scale, 128),
            "accuracy": accuracy(i, labels, move_texts(class_text)),
        }
        if score:
            row["auroc"] = float(score(move_images, move_texts))
        rows.append(row)
    return pd.DataFrame(rows)


def mean_subtraction(images: np.ndarray, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images and texts, each with its own mean removed, rescaled to unit rows.

    Removes the centroid part of ``gap_decomposition`` (but for the rescaling): compare ``alignment``, RMG or
    ``linear_separability`` before and after to see which part mattered. (Separability may then fall below
    0.5, to be read as "not separable": the means contain the held-out rows, so the training rows' means lie
    on the other side.)
    """
    images, texts = unit_rows(images=images, texts=texts)
    return _normalise(images - images.mean(0)), _normalise(texts - texts.mean(0))


def pair_cosines(
    images: np.ndarray, labels: np.ndarray, class_text: np.ndarray, pairs: int = 100_000
) -> dict[str, np.ndarray]:
    """Cosines of four families of pairs: image-image, text-text, matched, mismatched (image and wrong text).

    At most ``pairs`` random distinct pairs of each family; matched has every image once.
    """
    images, labels, class_text = _classified(images, labels, class_text)
    rng = np.random.default_rng(0)

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


def matched_uniformity(images: np.ndarray, matched: np.ndarray) -> float:
    """-log mean exp(-2 |x - y|^2) over images and their own texts, both (n, d); LARGER = more apart.

    What we take the "Uni-CMM" of the CMA paper's Table 4 to be (its definition is not printed).
    """
    images, matched = _pairs(images, matched)
    return float(-np.log(np.exp(-2 * np.square(images - matched).sum(1)).mean()))


def logit_structure(
    images: np.ndarray, class_text: np.ndarray, negatives: np.ndarray, scale: float = 100
) -> dict[str, float]:
    """How a model's logits (scale times cosine) of ID images with negative labels are made up.

    ``offset_ratio``: sd over images of an image's mean negative logit, over the mean sd within an image: the
    offset that an image shares with all texts, which NegLabel cancels. ``correlation``: over images, of P and
    N, the log-sum-exps of the logits with the ID texts (K, d) and with the negatives (M, d).
    ``negative_sd``: that mean sd within an image, in logits.
    """
    images, class_text, negatives = unit_rows(images=images, class_text=class_text, negatives=negatives)
    rows = []
    for start in range(0, len(images), CHUNK):
        block = scale * images[start : start + CHUNK]
        logits = block @ negatives.T
        both = logsumexp(block @ class_text.T, axis=1), logsumexp(logits, axis=1)
        rows.append(np.stack([logits.mean(axis=1), logits.std(axis=1), *both]))
    offset, within, p, n = np.concatenate(rows, axis=1)
    ratio, correlation = float(offset.std() / within.mean()), float(np.corrcoef(p, n)[0, 1])
    return {"offset_ratio": ratio, "correlation": correlation, "negative_sd": float(within.mean())}


def summary(
    images: np.ndarray, labels: np.ndarray, class_text: np.ndarray, negatives: np.ndarray | None = None
) -> dict[str, float]:
    """Every scalar of this module for one model: one row of a table like the CMA paper's Table 4.

    ``uni_*`` carry the paper's positive sign, -uniformity: LARGER = more spread. uni_images, uni_texts (class
    texts), uni_cross (image, wrong class text), uni_matched (image, own text), uni_all (images and class
    texts pooled). ``align_id`` as ``alignment`` (lower = closer). The centroid gap, as the decomposition,
    compares images with their matched texts (equal to the class texts for balanced classes); instance_gap is
    the mean distance of an image and its text, in [0, 2] (Schrodi et al. 2025, "L2I").
    """
    images, labels, class_text = _classified(images, labels, class_text)
    matched = class_text[labels]
    parts = gap_decomposition(images, matched)
    return {
        "uni_all": -uniformity(np.concatenate([images, class_text])),
        "uni_images": -uniformity(images),
        "uni_texts": -uniformity(class_text),
        "uni_cross": -uniformity(images, class_text, skip=labels),
        "uni_matched": matched_uniformity(images, matched),
        "align_id": parts["total"],
        **margins(images, labels, class_text, negatives),
        "centroid_gap": float(np.sqrt(parts["centroid"])),
        "centroid_share": parts["centroid_share"],
        "instance_gap": float(np.linalg.norm(images - matched, axis=1).mean()),
        "rmg": relative_modality_gap(images, matched, class_text),
        "separability": linear_separability(images, class_text),
    }
