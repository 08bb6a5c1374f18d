"""The gap in numbers: identities, hand-made cases, and the definitions written out slowly."""

from __future__ import annotations

import numpy as np
import pytest

from ood_utils import geometry
from ood_utils.errors import UserError


def world(gap: float = 0.6, n: int = 120, classes: int = 12, d: int = 16, seed: int = 0):
    """Images around K centres and one text per class, pushed apart along one direction by ``gap``."""
    rng = np.random.default_rng(seed)
    centres, push = rng.normal(size=(classes, d)), np.eye(d)[0] * gap * 4
    labels = np.arange(n) % classes
    images = centres[labels] + 0.5 * rng.normal(size=(n, d)) + push
    texts = centres - push
    return *(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts)), labels


def slow_rmg(images, matched, texts):
    b = [np.mean([(1 - x @ y) / 2 for i, x in enumerate(s) for y in s[i + 1 :]]) for s in (images, texts)]
    a = np.mean([(1 - i @ t) / 2 for i, t in zip(images, matched, strict=True)])
    return a / (a + sum(b) / 2)


def test_gap_of_hand_made_points():
    east, north = np.eye(2)[[0, 0, 0]], np.eye(2)[[1, 1, 1]]
    assert geometry.centroid_gap(east, north) == pytest.approx(np.sqrt(2))
    assert geometry.alignment(east, north) == pytest.approx(2)
    assert geometry.centroid_gap(east, east) == 0
    assert geometry.gap_direction(east, north) == pytest.approx([np.sqrt(0.5), -np.sqrt(0.5)])


def test_relative_modality_gap_is_the_definition():
    images, texts, labels = world()
    expected = slow_rmg(images, texts[labels], texts)
    assert geometry.relative_modality_gap(images, texts[labels], texts) == pytest.approx(expected, abs=1e-12)
    pairs = slow_rmg(images[:12], texts, texts)
    assert geometry.relative_modality_gap(images[:12], texts) == pytest.approx(pairs, abs=1e-12)


def test_half_precision_rows_are_accepted_and_rescaled():
    images, texts, labels = world()
    rough = images.astype(np.float16)
    assert geometry.centroid_gap(rough, texts) == pytest.approx(
        geometry.centroid_gap(images, texts), abs=1e-3
    )


@pytest.mark.parametrize("gap", [0.0, 0.3, 1.0])
def test_decomposition_is_an_identity(gap):
    images, texts, labels = world(gap)
    parts = geometry.gap_decomposition(images, texts[labels])
    assert parts["total"] == pytest.approx(parts["centroid"] + parts["residual"], abs=1e-10)
    assert parts["total"] == pytest.approx(geometry.alignment(images, texts[labels]), abs=1e-10)
    assert parts["centroid"] == pytest.approx(geometry.centroid_gap(images, texts[labels]) ** 2, abs=1e-10)


def test_uniformity_is_wang_and_isola(monkeypatch):
    monkeypatch.setattr(geometry, "CHUNK", 7)  # several chunks, the last one short
    images, texts, labels = world(n=40)
    square = np.square(images[:, None] - images[None]).sum(-1)
    within = np.log(np.exp(-2 * square[np.triu_indices(40, 1)]).mean())
    assert geometry.uniformity(images) == pytest.approx(within, abs=1e-5)
    kernel = np.exp(-2 * np.square(images[:, None] - texts[None]).sum(-1))
    assert geometry.uniformity(images, texts) == pytest.approx(np.log(kernel.mean()), abs=1e-5)
    wrong = labels[:, None] != np.arange(len(texts))
    assert geometry.uniformity(images, texts, skip=labels) == pytest.approx(
        np.log(kernel[wrong].mean()), abs=1e-5
    )


def test_uniformity_of_one_point_repeated_is_the_maximum():
    assert geometry.uniformity(np.eye(3)[[0, 0, 0]]) == pytest.approx(0)


def test_margins_and_accuracy():
    images, texts, labels = world(0.0)
    cosines = images @ texts.T
    own = cosines[np.arange(len(images)), labels]
    cosines[np.arange(len(images)), labels] = -9
    negatives = world(0.0, seed=5)[1]
    found = geometry.margins(images, labels, texts, negatives)
    assert found["margin_id"] == pytest.approx((own - cosines.max(1)).mean())
    assert found["margin_negative"] == pytest.approx((own - (images @ negatives.T).max(1)).mean())
    assert found["accuracy"] == pytest.approx(((images @ texts.T).argmax(1) == labels).mean())
    assert np.isnan(geometry.margins(images, labels, texts)["margin_negative"])


def test_per_class_gap():
    images, texts, labels = world()
    frame = geometry.per_class_gap(images, labels, texts)
    three = images[labels == 3].mean(0) - texts[3]
    assert frame.loc[3, "gap"] == pytest.approx(np.linalg.norm(three))
    assert (frame["cosine"] > 0.8).all() and (frame["n"] == 10).all()
    assert 3 not in set(geometry.per_class_gap(images[labels != 3], labels[labels != 3], texts)["class"])


def test_separability_and_what_a_mean_subtraction_removes():
    images, texts, labels = world(0.5, n=300, classes=60)
    assert geometry.linear_separability(images, texts) > 0.9
    assert geometry.linear_separability(images, texts) == geometry.linear_separability(images, texts)
    moved = geometry.mean_subtraction(images, texts)
    assert np.linalg.norm(moved[0], axis=1) == pytest.approx(np.ones(300))
    assert geometry.centroid_gap(*moved) < 0.1 < geometry.centroid_gap(images, texts)
    assert geometry.linear_separability(*moved) < 0.8


def test_gap_shift_starts_at_the_model_and_closes_the_gap():
    images, texts, labels = world()
    seen = []

    def score(move_images, move_texts):
        seen.append(move_texts(texts))
        return float(move_images(images).mean())

    frame = geometry.gap_shift(images, texts[labels], labels, texts, [-0.5, 0, 1, 2], score=score)
    start = frame.loc[1]
    assert start["centroid_gap"] == pytest.approx(geometry.centroid_gap(images, texts[labels]))
    assert start["accuracy"] == geometry.margins(images, labels, texts)["accuracy"]
    assert seen[1] == pytest.approx(texts)
    assert frame.loc[0, "gap"] > start["gap"] > 0.1 > abs(frame.loc[2, "gap"]) and frame.loc[3, "gap"] < -0.1
    assert list(frame) == ["fraction", "gap", "centroid_gap", "loss", "accuracy", "auroc"]
    assert "auroc" not in geometry.gap_shift(images, texts[labels], labels, texts, [0])


def test_contrastive_loss_is_clip_and_skips_pairs_of_one_label():
    images, texts, _ = world(n=12)
    logits = 10 * images @ texts.T
    rows, columns = (np.log(np.exp(logits).sum(axis)) - logits.diagonal() for axis in (1, 0))
    loss = geometry.contrastive_loss(images, texts, np.arange(12), 10.0, 12)
    assert loss == pytest.approx(((rows + columns) / 2).mean())
    assert geometry.contrastive_loss(images, texts, np.zeros(12, int), 10.0, 12) == pytest.approx(0)


def test_pair_cosines_hold_no_pair_with_itself():
    images, texts, labels = world()
    families = geometry.pair_cosines(images, labels, texts, pairs=500)
    assert list(families) == ["image-image", "text-text", "matched", "mismatched"]
    assert families["image-image"].max() < 0.9999 and families["text-text"].max() < 0.9999
    assert families["matched"] == pytest.approx((images * texts[labels]).sum(1))
    assert families["matched"].mean() > families["mismatched"].mean()


def test_summary_carries_the_papers_sign_and_agrees_with_its_parts():
    images, texts, labels = world()
    row = geometry.summary(images, labels, texts, negatives=texts[::-1].copy())
    assert row["uni_images"] == pytest.approx(-geometry.uniformity(images)) and row["uni_images"] > 0
    assert row["align_id"] == pytest.approx(geometry.alignment(images, texts[labels]))
    distances = np.linalg.norm(images - texts[labels], axis=1)
    assert row["instance_gap"] == pytest.approx(distances.mean())
    assert row["centroid_gap"] == pytest.approx(geometry.centroid_gap(images, texts[labels]))
    assert all(isinstance(value, float) and np.isfinite(value) for value in row.values())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda i, t, y: geometry.centroid_gap(2 * i, t),
            r"images must hold rows of length 1 .*, but row \d+ has length 2",
        ),
        (lambda i, t, y: geometry.centroid_gap(i * np.nan, t), "images .* but row 0 has length nan"),
        (lambda i, t, y: geometry.centroid_gap(i, np.eye(5)), "texts is 5 wide but images is 16"),
        (lambda i, t, y: geometry.centroid_gap(i[:0], t), r"images has shape \(0, 16\)"),
        (lambda i, t, y: geometry.alignment(i, t), "matched has 12 rows for 120 images"),
        (lambda i, t, y: geometry.margins(i, y + 1, t), "labels must be 120 numbers in"),
        (lambda i, t, y: geometry.uniformity(i[:1]), "at least two rows"),
        (lambda i, t, y: geometry.linear_separability(i, t[:1]), "at least 2"),
    ],
)
def test_bad_input_is_named(call, message):
    images, texts, labels = world()
    with pytest.raises(UserError, match=message):
        call(images, texts, labels)
