"""The gallery's static scores against closed forms, limits, plain loops in float64, pytorch-ood."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_ood.detector import Mahalanobis
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit, logsumexp, softmax
from scipy.stats import spearmanr
from sklearn.covariance import EmpiricalCovariance, ledoit_wolf
from sklearn.metrics import roc_auc_score

from ood_utils import gallery, negatives, registry, scores
from ood_utils.errors import UserError
from ood_utils.gallery import Method, gap
from ood_utils.gallery.scores import (
    cooked,
    csp,
    delta_energy,
    dnm,
    dnm_words,
    feature_masking,
    gl_mcm,
    interneg,
    knn,
    logit_gap,
    mahalanobis,
    neglabel_100,
    renyi,
    residual,
)

D, K, T = 24, 6, 0.05
STATIC = [registry.find("gallery/scores", name).METHOD for name in registry.names("gallery/scores")]
NAMES = [method.name for method in STATIC]


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def encode(texts: list[str]) -> np.ndarray:
    """A text tower: one fixed direction a text."""
    found = [np.random.default_rng(zlib.crc32(text.encode())).normal(size=D) for text in texts]
    return unit(np.stack(found) + OFFSET)


RNG = np.random.default_rng(0)
OFFSET, IMAGE_OFFSET = np.eye(2, D) * 2  # the two modalities' cones
CLASSES = RNG.normal(size=(K, D))  # what image and text of a class share
WORDS = [
    f"{a} {b}" for a in ("red", "old", "wet", "dim") for b in "axe bun cat dog eel fox gnu hen imp".split()
]
CLASS_NAMES = [f"class {k}" for k in range(K)]


def pictures(labels: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return unit(CLASSES[labels] + 0.3 * rng.normal(size=(len(labels), D)) + IMAGE_OFFSET)


def strangers(count: int, seed: int) -> np.ndarray:
    """Images of what some word of the corpus names."""
    rng = np.random.default_rng(seed)
    words = encode(WORDS)[rng.integers(0, len(WORDS), count)] * 5 - OFFSET
    return unit(words + 0.3 * rng.normal(size=(count, D)) + IMAGE_OFFSET)


LABELS = np.arange(9 * K) % K
IMAGES = np.concatenate([pictures(np.arange(5 * K) % K, 1), strangers(30, 2)])
KNOWN = gallery.Evidence(
    np.empty((0, D), np.float32),
    unit(CLASSES + OFFSET),
    encode(WORDS),
    temperature=T,
    train=pictures(LABELS, 3),
    train_labels=LABELS,
    class_names=CLASS_NAMES,
    corpus=[(word, "noun") for word in WORDS],
    corpus_text=encode(WORDS),
    encode=encode,
    no_text=unit(RNG.normal(size=(K, D)) + OFFSET),
    prompt="{}",
)
PATCHES = unit(IMAGES[:, None] + 0.1 * RNG.normal(size=(len(IMAGES), 4, D)))
E = KNOWN.of(IMAGES, PATCHES)
I64, T64, N64 = (x.astype(np.float64) for x in (IMAGES, KNOWN.class_text, KNOWN.negative_text))
COS, NEG = I64 @ T64.T, I64 @ N64.T
LOG_ODDS = logsumexp(COS / T, axis=1) - logsumexp(NEG / T, axis=1)


def close(found: np.ndarray, wanted: np.ndarray, atol: float = 1e-9) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=atol)


# --- what holds for all ---


@pytest.mark.parametrize("method", STATIC, ids=NAMES)
def test_higher_is_more_id_and_an_image_is_judged_alone(method: Method) -> None:
    found = method(E)
    assert found.shape == (60,) and found.dtype == np.float64 and np.isfinite(found).all()
    assert roc_auc_score(np.arange(60) < 30, found) > 0.8
    order = np.random.default_rng(5).permutation(60)[:11]
    close(method(KNOWN.of(IMAGES[order], PATCHES[order])), found[order], 1e-6)


@pytest.mark.parametrize("method", STATIC, ids=NAMES)
def test_the_order_of_the_classes_does_not_matter(method: Method) -> None:
    order = np.random.default_rng(6).permutation(K)
    other = E.change(
        class_text=E.class_text[order],
        no_text=E.no_text[order],
        class_names=[CLASS_NAMES[k] for k in order],
        train_labels=np.argsort(order)[LABELS],
    )
    close(method(other), method(E), 1e-3 if method.name == "COOkeD" else 1e-6)


def test_every_file_is_small_and_found_beside_the_core_six() -> None:
    assert set(NAMES) | {"MSP", "NegLabel"} <= set(gallery.every("scores"))
    for name in registry.names("gallery/scores"):
        assert len((Path(gallery.__file__).parent / f"scores/{name}.py").read_text().splitlines()) <= 120


def test_logits_come_in_blocks_by_look_too(monkeypatch: pytest.MonkeyPatch) -> None:
    by_look = E.change(look=lambda rows: (rows @ E.class_text.T, rows @ E.negative_text.T))
    whole = neglabel_100.METHOD(E), renyi.METHOD(E)
    monkeypatch.setattr(gallery, "BLOCK", 200)  # a few images at a time
    assert len(list(E.blocks())) > 10
    close(np.concatenate([theirs for _, theirs in E.blocks()]), NEG / T)
    close(by_look.log_odds, LOG_ODDS, 1e-4)  # float32 products
    for method, wanted in zip((neglabel_100.METHOD, renyi.METHOD), whole, strict=True):
        close(method(E), wanted)
        close(method(by_look), wanted, 1e-4)


def test_what_is_multiplied_by_other_texts_is_refused_under_look() -> None:
    by_look = E.change(look=lambda rows: (rows @ E.class_text.T, None))
    refused = {method.name for method in STATIC if method.lacks(by_look)}
    assert {"CSP", "InterNeg", "NegLabel, GR-CLIP", "Feature masking"} <= refused
    assert not refused & {"LogitGap", "ΔEnergy", "kNN", "COOkeD"}
    with pytest.raises(UserError, match="CSP needs fixed_text"):
        csp.METHOD(by_look)


# --- class texts alone ---


def test_gl_mcm_is_the_formula_in_blocks_and_mcm_without_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = []
    for image, regions in zip(IMAGES, PATCHES, strict=True):
        local = max(softmax(T64 @ region.astype(np.float64)).max() for region in regions)
        wanted.append(softmax(T64 @ image.astype(np.float64)).max() + 0.5 * local)
    close(gl_mcm.gl_mcm(E, 0.5), wanted)
    monkeypatch.setattr(gl_mcm, "BLOCK", 100)
    close(gl_mcm.gl_mcm(E, 0.5), wanted)
    close(gl_mcm.gl_mcm(E, 0), scores.mcm(COS))


def test_logit_gap_is_the_formula_and_ranks_as_mcm_with_all_classes() -> None:
    cosines = np.random.default_rng(1).normal(0.2, 0.03, (300, 50))
    ranked = -np.sort(-cosines, axis=1)
    close(logit_gap.logit_gap(cosines), ranked[:, 0] - ranked[:, 1:10].mean(axis=1))
    assert spearmanr(logit_gap.logit_gap(cosines, 1.0), scores.mcm(cosines))[0] > 0.9999
    assert spearmanr(logit_gap.logit_gap(cosines, 0.2), scores.mcm(cosines))[0] < 0.99


def test_delta_energy_is_the_formula_and_msp_at_clips_scale() -> None:
    cropped = [np.where(row >= np.sort(row)[-2], 0, row) for row in COS]
    wanted = [0.3 * (logsumexp(a / 0.3) - logsumexp(b / 0.3)) for a, b in zip(COS, cropped, strict=True)]
    close(delta_energy.delta_energy(COS, 0.3, 2 / K), wanted)
    high = 0.5 + COS / 10  # where exp(0 / T) of the cropped one counts for nothing
    close(delta_energy.delta_energy(high, 0.01), -0.01 * np.log1p(-scores.msp(high, 0.01)))


# --- negatives ---


@pytest.mark.parametrize(("asked", "groups"), [(1, 1), (4, 4), (5, 5), (100, 36)])
def test_groups_are_those_of_the_core_or_as_many_as_there_are_negatives(asked: int, groups: int) -> None:
    found = neglabel_100.pooled(neglabel_100.group_odds(E, asked))
    close(found, scores.neglabel(IMAGES, E.class_text, E.negative_text, T, groups))


@pytest.mark.parametrize("prior", [0.9, 0.97, 1.0])
@pytest.mark.parametrize("groups", [1, 4])
def test_dnm_is_the_released_formula(prior: float, groups: int) -> None:
    size, positive = 36 // groups, np.exp(COS / T)
    order = np.random.default_rng(0).permutation(36) if groups > 1 else np.arange(36)
    shares = []
    for part in np.split(order, groups):
        negative = np.exp(NEG[:, part] / T)
        less = (1 - prior) / prior * positive.mean(axis=1)
        z = positive.sum(axis=1) + size * (negative.mean(axis=1) / prior - less)
        shares.append(positive.sum(axis=1) / K / z)
    room = 1 - size * (1 - prior) / (prior * K)
    found = dnm.dnm(E, prior, groups)
    np.testing.assert_allclose(expit(found) / (K * room), np.mean(shares, axis=0), rtol=1e-9)


def test_dnm_is_neglabel_moved_by_a_constant_in_one_group() -> None:
    differences = gap.dnm_against_neglabel(E, 0.95)
    close(differences, np.full(60, np.log(0.95 - 36 * 0.05 / K)))
    close(dnm.dnm(E, 1.0, 1), LOG_ODDS)  # prior 1: NegLabel / K
    with pytest.raises(UserError, match="DNM: prior is 0.5 with 36 negatives a group for 6 classes"):
        dnm.dnm(E, 0.5, 1)


def test_renyi_is_the_formula_and_exact_is_its_minimum() -> None:
    both = np.concatenate([COS, NEG], axis=1)

    def naive(b: float, row: np.ndarray, q: float, eta: float) -> float:
        return b / T + eta * np.mean((np.maximum(row - b, 0) / T) ** q) ** (1 / q)

    ours = logsumexp(COS / T, axis=1)
    close(renyi.renyi(E), ours - [naive(-0.1, row, 21, 1.2) for row in both])
    least = [
        minimize_scalar(naive, bounds=(-1, row.max()), args=(row, 21, 1.2), method="bounded").fun
        for row in both
    ]
    close(renyi.renyi(E, exact=True), ours - least, 1e-5)
    far = np.full(len(both), -1 / T)  # below every logit a mean: b + mean(h - b)
    close(renyi.penalty(both / T, far, q=1, eta=1), both.mean(axis=1) / T)
    assert np.isfinite(renyi.penalty(np.array([[95.0, 90.0]], np.float32), np.array([-10.0]))).all()


def test_clipn_by_its_formulas_and_undecided_where_no_is_yes() -> None:
    ctw, atd = (gallery.find("scores", f"CLIPN-{name}") for name in ("CTW", "ATD"))
    no = I64 @ E.no_text.T.astype(np.float64)
    p, p_no = softmax(COS / T, axis=1), np.exp(no / T) / (np.exp(COS / T) + np.exp(no / T))
    close(expit(ctw(E)), 1 - p_no[np.arange(60), p.argmax(axis=1)])
    close(expit(atd(E)), ((1 - p_no) * p).sum(axis=1))
    for method in (ctw, atd):
        close(method(E.change(no_text=E.class_text)), np.zeros(60))
    sure = E.change(no_text=-E.class_text, temperature=0.001)
    assert len(np.unique(atd(sure)[:30])) == 30  # the probability itself is 1


# --- images ---


def test_knn_and_residual_by_all_distances() -> None:
    apart = np.linalg.norm(I64[:, None] - E.train[None].astype(np.float64), axis=2)
    close(knn.METHOD(E), -np.sort(apart, axis=1)[:, 2], 1e-6)  # a third of 9
    means = np.stack([E.train[LABELS == k].astype(np.float64).mean(axis=0) for k in range(K)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    close(residual.METHOD(E), -np.linalg.norm(I64[:, None] - means[None], axis=2).min(axis=1), 1e-7)
    close(residual.residual(E.change(images=means)), np.zeros(K), 1e-6)


def test_mahalanobis_agrees_with_pytorch_ood_where_nothing_is_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mahalanobis, "LedoitWolf", EmpiricalCovariance)
    oracle = Mahalanobis(None).fit_features(torch.from_numpy(E.train), torch.from_numpy(LABELS))
    theirs = -oracle.predict_features(torch.from_numpy(IMAGES)).numpy()
    scaled = 2 * len(LABELS) * theirs  # theirs has a half of log-densities, and scatter where we divide by n
    np.testing.assert_allclose(mahalanobis.METHOD(E.change()), scaled, rtol=1e-3)


def test_mahalanobis_is_the_formula_with_the_shrunk_covariance() -> None:
    train = E.train.astype(np.float64)
    means = np.stack([train[LABELS == k].mean(axis=0) for k in range(K)])
    spread = train - means[LABELS]
    precision = np.linalg.inv(ledoit_wolf(spread, assume_centered=True)[0])
    gaps = I64[:, None] - means[None]
    wanted = -np.einsum("nkd,de,nke->nk", gaps, precision, gaps).min(axis=1)
    np.testing.assert_allclose(mahalanobis.METHOD(E), wanted, rtol=1e-6)
    with pytest.raises(UserError, match="Mahalanobis needs two training images of a class"):
        mahalanobis.METHOD(E.change(train=E.train[:K], train_labels=LABELS[:K]))


def test_cooked_is_the_mean_of_text_and_a_probe_that_is_optimal() -> None:
    probe = E.once(cooked.fit)
    logits = I64 @ probe.coef_.T + probe.intercept_
    close(cooked.METHOD(E), ((softmax(logits, axis=1) + softmax(COS / T, axis=1)) / 2).max(axis=1), 1e-6)
    error = softmax(E.train @ probe.coef_.T + probe.intercept_, axis=1) - np.eye(K)[LABELS]
    gradient = error.T @ E.train + probe.coef_ / 100
    assert np.abs(gradient).max() < 0.02 < np.abs((1 / K - np.eye(K)[LABELS]).T @ E.train).max() / 100
    partly = E.change(train=E.train[LABELS > 0], train_labels=LABELS[LABELS > 0])
    assert np.isfinite(cooked.METHOD(partly)).all()


def test_feature_masking_by_hand_and_without_masks() -> None:
    head, means = E.once(feature_masking.fit)
    close(head, T64 - T64.mean(axis=0))
    wanted = []
    for image in I64:
        row = head[(head @ image).argmax()]
        kept = np.where(row >= np.quantile(row, 0.5), image, 0)
        likeness = kept @ means[(head @ image).argmax()] / np.linalg.norm(kept)
        wanted.append(T * logsumexp(max(likeness, 0) * (head @ kept) / T))
    close(feature_masking.masked_energy(IMAGES, head, means, T, 0.5), wanted)
    own = means[(I64 @ head.T).argmax(axis=1)]  # images that are their prototypes: plain energy
    near = feature_masking.masked_energy(own, head, own[:K] * 0 + means, T, 1.0)
    close(near[(own @ head.T).argmax(1) == (I64 @ head.T).argmax(1)], scores.energy(own @ head.T, T))
    with pytest.raises(UserError, match="training image of every class; 'class 0' has none"):
        feature_masking.METHOD(E.change(train=E.train[LABELS > 0], train_labels=LABELS[LABELS > 0]))


# --- other lists ---


def test_csp_puts_things_in_the_place_of_properties() -> None:
    corpus = [(word, "noun") for word in WORDS] + [("white", "adj"), ("sad", "adj")]
    made = csp.conjugated(corpus)
    assert [name.split()[0] for name, _ in made] == ["white", "sad"] and {p for _, p in made} == {
        "conjugated"
    }
    assert csp.conjugated([*corpus, ("sad thing", "conjugated")]) == []
    standing_in = csp.conjugated([(f"big wet {word}", "noun") for word in ["axe"] * 12])
    assert standing_in == [("big axe", "conjugated"), ("wet axe", "conjugated")]


def test_csp_scores_against_the_mined_list_of_nouns_and_made_names() -> None:
    corpus = [*KNOWN.corpus, ("white", "adj")]
    evidence = E.change(corpus=corpus, corpus_text=encode([word for word, _ in corpus]), prompt="a {}")
    made = csp.conjugated(corpus)
    texts = np.concatenate([encode(WORDS), encode([f"a {made[0][0]}"])])
    wanted = scores.neglabel(IMAGES, E.class_text, texts, T)
    assert csp.share(evidence) == 36 / 37 and csp.share(E) == 1
    full = evidence.change(negative_text=evidence.corpus_text)  # keeps all that is there
    close(csp.METHOD(full), wanted)
    plain = E.change(negative_text=E.negative_text[:18])  # nothing to conjugate: the core's list
    mined = negatives.build(E.corpus, E.corpus_text, E.class_text, CLASS_NAMES, keep=0.5)
    close(csp.METHOD(plain), scores.neglabel(IMAGES, E.class_text, E.corpus_text[mined.indices], T))


def test_interneg_keeps_what_no_image_prototype_prefers() -> None:
    means = E.once(residual.prototypes)
    spoilt = np.concatenate([E.corpus_text, E.class_text + 0.3 * means.astype(np.float32)])
    kept, sums = [], []
    for y, word in enumerate(spoilt.astype(np.float64)):
        margins = [T64[i] @ means[i] - word @ means[i] for i in range(K)]
        if min(margins) > 0:
            kept.append(y)
            sums.append(sum(margins))
    wanted = np.array(kept)[np.argsort(-np.array(sums), kind="stable")]
    found = interneg.select(spoilt, E.class_text, means, 1000)
    np.testing.assert_array_equal(found, wanted)
    assert 0 < len(found) < len(spoilt) and not set(found) & set(range(36, 36 + K))
    np.testing.assert_array_equal(interneg.select(spoilt, E.class_text, means, 5), wanted[:5])
    with pytest.raises(UserError, match="InterNeg keeps none of 36 words"):
        interneg.METHOD(E.change(corpus_text=np.repeat(unit(means[:1]), 36, axis=0)))


def test_dense_words_by_all_distances_and_id_names_are_no_words() -> None:
    words = encode(WORDS).astype(np.float64)
    squares = np.sort(((words[:, None] - words[None]) ** 2).sum(axis=2), axis=1)[:, 1:6].sum(axis=1)
    np.testing.assert_array_equal(dnm_words.densest(words, 7, 5), np.argsort(squares)[:7])
    leaking = E.change(
        corpus=[*E.corpus, ("class 0", "noun"), ("kind", "noun")],
        corpus_text=np.concatenate([E.corpus_text, E.class_text[:2]]),
        synonyms=[["kind"]],
    )
    close(np.sort(dnm_words.fit(leaking).sum(axis=1)), np.sort(E.corpus_text.sum(axis=1)), 1e-6)


# --- the gap ---


def test_shifted_texts_lie_where_the_images_do_and_the_projected_shift_leaves_the_class_plane() -> None:
    texts = T64 - T64.mean(axis=0)
    g = E.train.astype(np.float64).mean(axis=0) - T64.mean(axis=0)
    moved = T64 + g
    close(gap.shifted(E)[0], moved / np.linalg.norm(moved, axis=1, keepdims=True))
    v = np.linalg.svd(texts, full_matrices=False)[2][: K - 1]  # all of the plane
    moved = N64 + g - v.T @ (v @ g)
    close(gap.projected(E, 0.9999)[1], moved / np.linalg.norm(moved, axis=1, keepdims=True))
    for name, texts in (("texts shifted", gap.shifted(E)), ("shift projected", gap.projected(E))):
        close(gallery.find("scores", f"NegLabel, {name}")(E), scores.neglabel(IMAGES, *texts, T))


def test_gr_clip_does_not_see_where_the_modalities_lie() -> None:
    """A vector added to all images or to all texts cancels, before anything is renormalised."""
    method, rng = gallery.find("scores", "NegLabel, GR-CLIP"), np.random.default_rng(0)
    a, b = rng.normal(size=(2, D))
    moved = E.change(
        images=E.images + a, train=E.train + a, class_text=T64 + b, negative_text=E.negative_text + b
    )
    close(method(moved), method(E), 1e-4)  # T64 + b is exact, float32 rows are not


def test_centred_images_are_logits_less_a_prior() -> None:
    prior = E.train.astype(np.float64).mean(axis=0)
    wanted = [logsumexp((side - prior @ rows.T) / T, axis=1) for side, rows in ((COS, T64), (NEG, N64))]
    close(gallery.find("scores", "NegLabel, images centred")(E), wanted[0] - wanted[1], 1e-6)
    assert gap.centring_is_logit_adjustment(E) < 1e-9


def test_one_vector_on_all_texts_moves_max_logit_and_energy_alone() -> None:
    asked = ["MCM", "MSP", "NegLabel", "LogitGap", "NegLabel, 100 groups", "MaxLogit", "Energy"]
    vector = np.random.default_rng(0).normal(size=D)
    moved = gap.one_vector_on_all_texts(E, [gallery.find("scores", name) for name in asked], vector)
    assert max(moved[name] for name in [*asked[:5], "predicted class"]) < 1e-9
    for name in ("MaxLogit", "Energy"):
        close(moved[name], np.abs(I64 @ vector).max())
    exact = Method(
        "", 0, "", (), lambda e: renyi.renyi(e, exact=True)
    )  # its b moves along, the fixed one cannot
    renyis = gap.one_vector_on_all_texts(E, [exact, renyi.METHOD], 0.1 * vector)
    assert renyis[""] < 1e-4 < renyis["Rényi"]


def test_a_fit_serves_all_sets_and_another_model_gets_its_own() -> None:
    E.once(residual.prototypes)
    assert replace(E, images=IMAGES[:3]).memo is E.memo and E.change(groups=2).memo == {}


def test_logit_of_pooled_groups_is_the_papers_mean() -> None:
    odds = np.random.default_rng(0).normal(size=(20, 5))
    close(neglabel_100.pooled(odds), logit(expit(odds).mean(axis=1)))
