"""Scores against naive float64 formulas, pytorch-ood, and the limits where float32 or a sigmoid would
break."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from pytorch_ood.detector import MCM
from scipy.special import logit, logsumexp, softmax

from ood_utils import scores
from ood_utils.errors import UserError


def unit(n: int, d: int, seed: int, about: float = 0.0) -> np.ndarray:
    """Random unit rows, float32; ``about`` > 0 draws them to a common direction, as CLIP's are."""
    rows = np.random.default_rng(seed).normal(size=(n, d)) + about
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


IMAGES, TEXTS, NEGATIVES = unit(40, 24, 0, 0.4), unit(7, 24, 1, 0.3), unit(53, 24, 2, 0.3)


def naive_groups(
    images: np.ndarray, texts: np.ndarray, negatives: np.ndarray, t: float, groups: int
) -> np.ndarray:
    """S of the paper, group by group as the official code loops, in float64: (n,) probabilities."""
    images, texts, negatives = (x.astype(np.float64) for x in (images, texts, negatives))
    kept = len(negatives) - len(negatives) % groups
    order = np.random.default_rng(0).permutation(kept) if groups > 1 else np.arange(kept)
    parts = np.split(negatives[:kept][order], groups)
    each = [softmax(images @ np.r_[texts, part].T / t, axis=1)[:, : len(texts)].sum(1) for part in parts]
    return np.mean(each, axis=0)


def naive_log_odds(images: np.ndarray, texts: np.ndarray, negatives: np.ndarray, t: float) -> np.ndarray:
    images, texts, negatives = (x.astype(np.float64) for x in (images, texts, negatives))
    return logsumexp(images @ texts.T / t, axis=1) - logsumexp(images @ negatives.T / t, axis=1)


def test_mcm_agrees_with_pytorch_ood() -> None:
    for temperature in (1.0, 0.01):
        detector = MCM(encoder=None, text_embeddings=torch.from_numpy(TEXTS), temperature=temperature)
        theirs = -detector.predict_features(torch.from_numpy(IMAGES)).numpy()
        cosines = IMAGES.astype(np.float64) @ TEXTS.T.astype(np.float64)
        np.testing.assert_allclose(scores.mcm(cosines, temperature), theirs, rtol=2e-5)
        np.testing.assert_allclose(scores.mcm(torch.from_numpy(cosines), temperature), theirs, rtol=2e-5)


def test_cosine_scores_by_their_formulas() -> None:
    cosines = (IMAGES @ TEXTS.T).astype(np.float64)
    np.testing.assert_allclose(scores.mcm(cosines), softmax(cosines, axis=1).max(1), rtol=1e-14)
    np.testing.assert_allclose(scores.msp(cosines), softmax(cosines * 100, axis=1).max(1), rtol=1e-12)
    np.testing.assert_array_equal(scores.max_logit(cosines), cosines.max(1))
    np.testing.assert_allclose(scores.energy(cosines), 0.01 * logsumexp(cosines / 0.01, axis=1), rtol=1e-12)
    np.testing.assert_allclose(scores.energy(cosines, 1.0), logsumexp(cosines, axis=1), rtol=1e-12)
    assert all(f(cosines.astype(np.float32)).dtype == np.float64 for f in (scores.mcm, scores.energy))


def test_mcm_of_many_classes_keeps_its_resolution() -> None:
    """All scores of 1,000 classes lie within 3e-4; fp16 would leave a few hundred distinct values of
    4,000."""
    cosines = np.random.default_rng(0).normal(0.2, 0.03, (4000, 1000))
    found = scores.mcm(cosines)
    assert found.max() - found.min() < 3e-4 and len(np.unique(found)) == 4000
    assert len(np.unique(found.astype(np.float16))) < 400


def test_no_overflow_at_a_tiny_temperature() -> None:
    cosines = np.array([[1.0, -1.0], [0.5, 0.5]])
    assert scores.msp(cosines, 1e-6) == pytest.approx([1, 0.5])
    assert np.isfinite(scores.energy(cosines, 1e-6)).all()


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.01])
def test_neglabel_equals_the_float64_reference(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = naive_log_odds(IMAGES, TEXTS, NEGATIVES, temperature)
    found = scores.neglabel(IMAGES, TEXTS, NEGATIVES, temperature)
    np.testing.assert_allclose(found, reference, atol=1e-9)
    assert found.dtype == np.float64 and found.shape == (40,)
    monkeypatch.setattr(scores, "_ELEMENTS", 300)  # 5 images at a time
    np.testing.assert_allclose(scores.neglabel(IMAGES, TEXTS, NEGATIVES, temperature), reference, atol=1e-9)
    as_tensors = [torch.from_numpy(x) for x in (IMAGES, TEXTS, NEGATIVES)]
    np.testing.assert_allclose(scores.neglabel(*as_tensors, temperature), reference, atol=1e-9)


@pytest.fixture(scope="module")
def wide() -> tuple[np.ndarray, ...]:
    """CLIP's width and cone: images that match a class, images that match a negative, images that match
    nothing."""
    images, texts, negatives = unit(600, 512, 0, 0.5), unit(300, 512, 1, 0.7), unit(2000, 512, 2, 0.7)
    rng = np.random.default_rng(3)
    images[:200] += 0.3 * texts[rng.integers(0, 300, 200)]
    images[200:400] += 0.3 * negatives[rng.integers(0, 2000, 200)]
    return images / np.linalg.norm(images, axis=1, keepdims=True), texts, negatives


@pytest.mark.parametrize("groups", [1, 20, 100])
@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
def test_float32_products_keep_the_stated_error(
    wide: tuple[np.ndarray, ...], groups: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large problems are multiplied in float32: 2e-6 + 1e-6 / T is promised, 1e-4 at temperature 0.01."""
    reference = scores.neglabel(*wide, temperature, groups)
    monkeypatch.setattr(scores, "_EXACT_BELOW", 1000)
    found = scores.neglabel(*wide, temperature, groups)
    assert 0 < np.abs(found - reference).max() < 2e-6 + 1e-6 / temperature
    double = scores.neglabel(wide[0].astype(np.float64), *wide[1:], temperature, groups)
    np.testing.assert_allclose(double, reference, rtol=0, atol=1e-9)


def test_cosines_are_streamed_by_the_same_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = IMAGES.astype(np.float64) @ TEXTS.T.astype(np.float64)
    monkeypatch.setattr(scores, "_ELEMENTS", 50)  # 7 images at a time
    for images, texts in ((IMAGES, TEXTS), (torch.from_numpy(IMAGES), torch.from_numpy(TEXTS))):
        found = scores.cosines(images, texts)
        assert found.dtype == np.float64 and found.shape == (40, 7)
        np.testing.assert_allclose(found, reference, rtol=0, atol=1e-14)
    monkeypatch.setattr(scores, "_EXACT_BELOW", 100)
    assert 0 < np.abs(scores.cosines(IMAGES, TEXTS) - reference).max() < 1e-6
    np.testing.assert_allclose(scores.cosines(IMAGES.astype(float), TEXTS), reference, rtol=0, atol=1e-14)
    with pytest.raises(UserError, match="texts is 20 wide but images is 24"):
        scores.cosines(IMAGES, unit(7, 20, 0))


@pytest.mark.parametrize("groups", [1, 2, 10, 53])
def test_grouped_neglabel_is_the_papers_score(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for temperature in (0.3, 0.05):
        reference = naive_groups(IMAGES, TEXTS, NEGATIVES, temperature, groups)
        found = scores.neglabel(IMAGES, TEXTS, NEGATIVES, temperature, groups)
        np.testing.assert_allclose(scores.neglabel_probability(found), reference, rtol=1e-9)
        middle = (reference > 1e-6) & (reference < 1 - 1e-6)
        np.testing.assert_allclose(found[middle], logit(reference[middle]), atol=1e-6)
        plain = scores.plain_neglabel(IMAGES, TEXTS, NEGATIVES, temperature, groups)
        np.testing.assert_allclose(plain, found, rtol=0, atol=1e-9)


def test_groups_drop_the_remainder_before_permuting_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    kept = scores.neglabel(IMAGES, TEXTS, NEGATIVES[:50], 0.05, 10)
    assert torch.equal(torch.rand(1), expected)
    whole = scores.neglabel(IMAGES, TEXTS, NEGATIVES, 0.05, 10)
    np.testing.assert_array_equal(whole, kept)  # the last 3 do not count


@pytest.mark.parametrize("groups", [1, 4])
def test_neglabel_does_not_saturate_and_keeps_the_order(groups: int) -> None:
    """Images ever nearer to a class: the probability ends at 1 to the last bit, the log-odds rise on."""
    texts, negatives = np.eye(1, 8), np.roll(np.eye(4, 8), 1, axis=1)
    angle = np.linspace(1.3, 0.2, 30)
    images = np.cos(angle)[:, None] * texts + np.sin(angle)[:, None] * negatives[:1]
    found = scores.neglabel(images, texts, negatives, 0.005, groups)
    assert np.isfinite(found).all() and (np.diff(found) >= 0).all()
    nearer = (
        found > 2
    )  # with 4 groups the other end has a true floor: three groups without the matching negative
    assert (np.diff(found[nearer]) > 0).all() and nearer.sum() > 10
    assert (scores.neglabel_probability(found) == 1).sum() > 5


def test_one_group_falls_as_far_as_it_rises() -> None:
    one, other = np.eye(1, 8), np.roll(np.eye(1, 8), 1, axis=1)
    assert scores.neglabel(one, one, other, 1e-3) == pytest.approx(1000)
    assert scores.neglabel(other, one, other, 1e-3) == pytest.approx(-1000)


def test_a_leaked_class_name_caps_the_probability_at_one_half() -> None:
    leaked = np.r_[NEGATIVES, TEXTS[:1]]
    assert scores.neglabel_probability(scores.neglabel(TEXTS[:1], TEXTS, leaked, 0.001))[0] <= 0.5 + 1e-9


@pytest.mark.filterwarnings("error")
def test_read_only_and_half_precision_inputs() -> None:
    frozen = IMAGES.copy()
    frozen.setflags(write=False)
    np.testing.assert_array_equal(
        scores.neglabel(frozen, TEXTS, NEGATIVES), scores.neglabel(IMAGES, TEXTS, NEGATIVES)
    )
    half = torch.from_numpy(IMAGES).half()
    assert np.isfinite(scores.neglabel(half, TEXTS, NEGATIVES)).all()


GOOD = dict(image_embeddings=IMAGES, id_text=TEXTS, negative_text=NEGATIVES)
BROKEN = IMAGES.copy()
BROKEN[3, 2] = np.nan


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"temperature": 0}, "temperature is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"groups": 0}, "groups is 0"),
        ({"groups": 54}, "groups is 54; choose from 1 to 53"),
        ({"image_embeddings": IMAGES * 1.01}, "image_embeddings must hold rows of length 1"),
        ({"image_embeddings": BROKEN}, "row 3 has length nan"),
        ({"id_text": TEXTS * 0}, "id_text must hold rows of length 1"),
        ({"id_text": unit(7, 20, 0)}, "id_text is 20 wide but image_embeddings is 24"),
        ({"negative_text": unit(7, 20, 0)}, "negative_text is 20 wide"),
        ({"negative_text": NEGATIVES[:0]}, r"negative_text has shape \(0, 24\)"),
        ({"image_embeddings": IMAGES[0]}, r"image_embeddings has shape \(24,\)"),
    ],
)
def test_unusable_inputs_are_refused_in_one_sentence(change: dict, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        scores.neglabel(**{**GOOD, **change})
    assert "\n" not in str(caught.value)


def test_unusable_cosines_are_refused() -> None:
    for call, bad in itertools.product(
        (scores.mcm, scores.msp, scores.max_logit, scores.energy), (np.ones(3), np.ones((0, 3)), [[np.nan]])
    ):
        with pytest.raises(UserError, match="cosines"):
            call(bad)
    for call in (scores.mcm, scores.msp, scores.energy):
        with pytest.raises(UserError, match="temperature"):
            call(np.ones((2, 3)), 0)


def test_a_length_within_the_tolerance_passes() -> None:
    assert np.isfinite(scores.neglabel(IMAGES * 1.004, TEXTS, NEGATIVES)).all()
