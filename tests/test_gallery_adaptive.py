"""Adaptive scores against brute force and limiting cases, and the streams they are tested on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit, logsumexp

from ood_utils import methods, metrics, scores
from ood_utils.errors import UserError
from ood_utils.gallery import Adaptive, Evidence, Step, every, find, online, stream
from ood_utils.gallery.adaptive import adaneg, auto, coevo, energy_propagation, online_prototypes, oodd, tanl

K, M, C, D, T = 5, 40, 60, 16, 0.05
NEVER = 1 - 1e-12  # a gap that no image crosses: none is sure


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def world(seed: int = 0) -> tuple[Evidence, np.ndarray, np.ndarray]:
    """Evidence of random texts; 48 ID rows around class texts, 48 OoD rows around further words."""
    draw = np.random.default_rng(seed)
    classes, corpus = unit(draw.normal(size=(K, D))), unit(draw.normal(size=(C, D)))
    ours = unit(classes[draw.integers(K, size=48)] + 0.25 * draw.normal(size=(48, D)))
    theirs = unit(corpus[draw.integers(30, C, size=48)] + 0.25 * draw.normal(size=(48, D)))
    known = Evidence(
        ours[:0], classes, corpus[:M], T, train=ours[:20], train_labels=np.zeros(20, int),
        class_names=[f"class{k}" for k in range(K)], corpus=[(f"word{i}", "noun") for i in range(C)],
        corpus_text=corpus,
    )  # fmt: skip
    return known, ours, theirs


KNOWN, OURS, THEIRS = world()
MIXED = np.stack([OURS, THEIRS], axis=1).reshape(-1, D)  # ID and OoD by turns


def run(step: Step, rows: np.ndarray = MIXED, batch: int = 16) -> np.ndarray:
    return np.concatenate([step(part) for part in np.split(rows, range(batch, len(rows), batch))])


def log_odds(images: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    p, n = (logsumexp(images.astype(float) @ text.T.astype(float) / T, axis=1) for text in (ours, theirs))
    return p - n


def base(rows: np.ndarray = MIXED) -> np.ndarray:
    return log_odds(rows, KNOWN.class_text, KNOWN.negative_text)


# --- streams ---


@pytest.mark.parametrize(
    ("ratio", "sides"),
    [
        ("1:1", (300, 300)),
        ("1:100", (10, 300)),
        ("100:1", (1000, 10)),
        ("2:1", (600, 300)),
        ("1:3", (100, 300)),
    ],
)
def test_a_ratio_takes_all_of_one_side_and_draws_the_other(ratio: str, sides: tuple[int, int]) -> None:
    planned = stream.plan(1000, 300, "shuffled", ratio, 0)
    assert len(set(planned.tolist())) == len(planned) and planned.max() < 1300
    assert ((planned < 1000).sum(), (planned >= 1000).sum()) == sides


def test_of_a_side_with_fewer_than_ten_images_all_are_taken() -> None:
    assert sorted(stream.plan(4, 300, "shuffled", "1:100", 0)) == list(range(304))


def test_orders_are_what_they_say_and_hold_the_same_images() -> None:
    plans = {order: stream.plan(500, 200, order, "1:1", 3) for order in stream.ORDERS}
    assert len({tuple(sorted(planned)) for planned in plans.values()}) == 1
    id_first, ood_first = (plans[order] >= 500 for order in ("ID first", "OoD first"))
    assert not id_first[:200].any() and id_first[200:].all()
    assert ood_first[:200].all() and not ood_first[200:].any()
    assert 0.3 < (plans["shuffled"][:200] >= 500).mean() < 0.7
    assert sorted(plans["ID first"][:200]) != plans["ID first"][:200].tolist()


def test_a_drifting_stream_has_more_and_more_ood_images_in_a_line() -> None:
    drifting = stream.plan(50_000, 50_000, "drifting", "1:1", 0) >= 50_000
    shares = drifting.reshape(10, -1).mean(axis=1)
    np.testing.assert_allclose(shares, np.arange(0.05, 1, 0.1), atol=0.05)


def test_the_seed_makes_the_stream() -> None:
    one, same, other = (stream.plan(100, 60, "drifting", "1:1", seed) for seed in (1, 1, 2))
    assert (one == same).all() and set(one) != set(other)


def test_every_adaptive_row_is_shown_on_six_streams() -> None:
    balanced = [(order, "1:1") for order in ("shuffled", "ID first", "OoD first", "drifting")]
    assert stream.CONDITIONS == [*balanced, ("shuffled", "1:100"), ("shuffled", "100:1")]


@pytest.mark.parametrize(
    ("order", "ratio", "n", "said"),
    [
        ("sorted", "1:1", 5, "order is 'sorted', which no stream has; choose shuffled, ID first"),
        ("shuffled", "1/100", 5, "ratio is '1/100'; give ID:OoD as two whole numbers, such as 1:100"),
        ("shuffled", "0:1", 5, "ratio is '0:1'"),
        ("shuffled", "1:1", 0, "a stream of 0 ID and 9 OoD images has one side only; give both"),
    ],
)
def test_what_is_no_stream_is_refused(order: str, ratio: str, n: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        stream.plan(n, 9, order, ratio, 0)


def test_each_image_is_scored_once_at_its_time() -> None:
    seen: list[np.ndarray] = []

    def start(known: Evidence) -> Step:
        return lambda rows: (seen.append(rows), known.of(rows).images[:, 0])[1]

    method = Adaptive("first coordinate", 2030, "nobody", ("class_text",), start)
    moved = KNOWN.change(moved=lambda rows: -rows)
    found = stream.simulate(method, moved, OURS, THEIRS[:30], order="OoD first", seed=4, batch=16)
    planned = stream.plan(48, 30, "OoD first", "1:1", 4)
    assert (np.concatenate(seen) == np.concatenate([OURS, THEIRS[:30]])[planned]).all()
    assert [len(rows) for rows in seen] == [16, 16, 16, 12]
    assert (found.id_scores == -OURS[found.id_index, 0]).all() and (np.diff(found.id_index) > 0).all()
    assert (found.ood_scores == -THEIRS[found.ood_index, 0]).all() and len(found.ood_index) == 30


def test_a_static_score_sees_the_same_images() -> None:
    how = {"order": "drifting", "ratio": "1:3", "seed": 5}
    static = stream.simulate(methods.find("NegLabel"), KNOWN, OURS, THEIRS, **how)
    adaptive = stream.simulate(find("adaptive", "OODD"), KNOWN, OURS, THEIRS, **how)
    assert (static.id_index == adaptive.id_index).all() and (static.ood_index == adaptive.ood_index).all()
    np.testing.assert_allclose(static.id_scores, base(OURS)[static.id_index], rtol=1e-9)


def test_a_score_that_is_not_finite_is_refused() -> None:
    broken = Adaptive("Broken", 2030, "nobody", (), lambda known: lambda rows: np.full(len(rows), np.nan))
    with pytest.raises(UserError, match="Broken left images of the stream without a finite score"):
        stream.simulate(broken, KNOWN, OURS, THEIRS)


# --- all methods ---

ALL = list(every("adaptive"))
PARAMETERS = pytest.mark.parametrize("name", ALL)


def test_every_adaptive_score_is_found() -> None:
    assert set(ALL) == {
        "AUTO", "Energy propagation", "AdaNeg", "OODD", "CoEvo", "Online prototypes", "TANL",
    }  # fmt: skip


@PARAMETERS
def test_no_future_changes_the_past_and_a_start_is_fresh(name: str) -> None:
    method, future = find("adaptive", name), MIXED[48:]
    one, other, again = (
        run(method(KNOWN), np.concatenate([MIXED[:48], rows])) for rows in (future, -future[::-1], future)
    )
    assert (one[:48] == other[:48]).all() and (one[48:] != other[48:]).any()
    assert (one == again).all()


@PARAMETERS
def test_no_method_sees_labels(name: str) -> None:
    blind = KNOWN.change(train_labels=None)
    assert (run(find("adaptive", name)(KNOWN)) == run(find("adaptive", name)(blind))).all()


@PARAMETERS
def test_higher_is_more_id(name: str) -> None:
    found = run(find("adaptive", name)(KNOWN))
    assert metrics.ood_metrics(found[::2], found[1::2]).auroc > 0.9


@PARAMETERS
def test_the_order_of_classes_and_words_is_nothing(name: str) -> None:
    draw = np.random.default_rng(7)
    classes, words, corpus = draw.permutation(K), draw.permutation(M), draw.permutation(C)
    other = KNOWN.change(
        class_text=KNOWN.class_text[classes], negative_text=KNOWN.negative_text[words],
        class_names=[KNOWN.class_names[k] for k in classes], corpus=[KNOWN.corpus[i] for i in corpus],
        corpus_text=KNOWN.corpus_text[corpus],
    )  # fmt: skip
    one, two = (run(find("adaptive", name)(known)) for known in (KNOWN, other))
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)  # the memory is float32


@PARAMETERS
def test_one_image_alone_is_scored(name: str) -> None:
    assert run(find("adaptive", name)(KNOWN), MIXED[:3], 1).shape == (3,)


@PARAMETERS
def test_a_head_of_its_own_is_served_or_refused(name: str) -> None:
    weights = np.random.default_rng(1).normal(size=(D, K + M)).astype(np.float32) / 10
    headed = KNOWN.change(look=lambda rows: ((rows @ weights)[:, :K], (rows @ weights)[:, K:]))
    if name in ("OODD", "Energy propagation"):
        assert np.isfinite(run(find("adaptive", name)(headed))).all()
    else:
        with pytest.raises(UserError, match=f"{name} needs fixed_text"):
            find("adaptive", name)(headed)


# --- what they share ---


def test_a_split_has_the_least_variance_within_its_sides() -> None:
    values = np.random.default_rng(0).normal(size=40) + np.repeat([0.0, 2.0], 20)
    ordered = np.sort(values)
    within = [i * ordered[:i].var() + (40 - i) * ordered[i:].var() for i in range(1, 40)]
    cut = int(np.argmin(within)) + 1
    assert ordered[cut - 1] < online.split(values) < ordered[cut]
    assert np.isnan(online.split(np.ones(5)))


def test_centred_at_nothing_sure_is_the_papers_thresholds() -> None:
    mass = np.array([0.0, 0.2499, 0.2501, 0.5, 0.7499, 0.7501, 1.0])
    ids, oods = online.Sure(0.5, centre=0.0)(mass)
    assert ids.tolist() == (mass > 0.75).tolist() and oods.tolist() == (mass < 0.25).tolist()
    assert not np.any(online.Sure(0.5)(np.full(4, 0.3)))  # nothing to split yet


def brute_proxies(
    held: dict[int, list], texts: np.ndarray, image: np.ndarray, sharpness: float
) -> np.ndarray:
    cosines = []
    for slot, text in enumerate(texts.astype(float)):
        rows = [text, *(row for _, row in held.get(slot, []))]
        vector = sum(np.exp(-sharpness * (1 - image @ row)) * row for row in rows)
        cosines.append(image @ vector / np.linalg.norm(vector))
    return np.array(cosines)


def brute_admit(
    held: dict[int, list], image: np.ndarray, logits: np.ndarray, first: int, length: int
) -> None:
    p = np.exp(logits - logsumexp(logits))
    slot = held.setdefault(first + int(logits.argmax()), [])
    slot.append((float(-(p * np.log(p)).sum()), image))
    slot.sort(key=lambda pair: pair[0])
    del slot[length:]


# --- each against its formula ---


@pytest.mark.parametrize("sharpness", [0.0, 5.5])
def test_adaneg_by_brute_force(sharpness: float) -> None:
    texts = np.concatenate([KNOWN.class_text, KNOWN.negative_text])
    found = run(adaneg.start(KNOWN, 0.1, sharpness, length=2, gap=0.5, centre=0.0))
    held: dict[int, list] = {}
    for batch in range(0, len(MIXED), 16):
        images = MIXED[batch : batch + 16].astype(float)
        mass = expit(base(images))
        for image, share in zip(images, mass, strict=True):
            if share > 0.75:
                brute_admit(held, image, KNOWN.class_text @ image / T, 0, 2)
            if share < 0.25:
                brute_admit(held, image, KNOWN.negative_text @ image / T, K, 2)
        for i, image in enumerate(images):
            logits = brute_proxies(held, texts, image, sharpness) / T
            ada = expit(logsumexp(logits[:K]) - logsumexp(logits[K:]))
            assert found[batch + i] == pytest.approx(ada + 0.1 * mass[i], rel=1e-3, abs=1e-5)
    assert max(map(len, held.values())) == 2 and min(held) < K <= max(held)


def test_adaneg_with_all_weight_on_the_base_ranks_as_it() -> None:
    assert (run(adaneg.start(KNOWN, weight=1e12)).argsort() == base().argsort()).all()
    np.testing.assert_allclose(run(adaneg.start(KNOWN, gap=NEVER)), 1.1 * expit(base()), rtol=1e-9)


def test_oodd_is_its_base_until_there_are_five_and_then_brute_force() -> None:
    mass, images = expit(base()), MIXED.astype(float)
    found = run(oodd.start(KNOWN, share=0.0, least=8), MIXED[:24], batch=4)
    np.testing.assert_allclose(found[:4], mass[:4], rtol=1e-9)
    for batch in range(4, 24, 4):
        lowest = np.argsort(mass[: batch + 4])[:8]
        near = np.sort(images[batch : batch + 4] @ images[lowest].T, axis=1)[:, -5]
        np.testing.assert_allclose(
            found[batch : batch + 4], mass[batch : batch + 4] - near, rtol=1e-5, atol=1e-6
        )


def test_oodds_queue_is_a_share_of_the_stream_between_its_ends() -> None:
    whole = run(oodd.start(KNOWN, share=1.0, most=10))
    assert (whole == run(oodd.start(KNOWN, share=0.0, least=10))).all()
    assert (whole != run(oodd.start(KNOWN, share=0.5, least=1, most=10_000))).any()


def test_propagation_by_a_dense_matrix() -> None:
    np.testing.assert_allclose(run(energy_propagation.start(KNOWN, alpha=1.0)), base(), rtol=1e-9)
    n, images, spread = len(MIXED), MIXED.astype(float), np.zeros((len(MIXED), len(MIXED)))
    for i in range(n):
        seen = [j for j in range(min(n, (i // 16 + 1) * 16)) if j != i]
        near = sorted(seen, key=lambda j: -(images[i] @ images[j]))[:3]
        spread[i, near] = 1 / 3
    expected = base()
    for _ in range(2):
        expected = 0.4 * expected + 0.6 * spread @ expected
    found = run(energy_propagation.start(KNOWN, alpha=0.4, neighbours=3))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_autos_gradient_is_autograds() -> None:
    texts = torch.from_numpy(KNOWN.class_text.astype(float)).requires_grad_()
    image, memory, labels = MIXED[1].astype(float), OURS[:3].astype(float), np.array([4, 0, 2])
    logits = texts @ torch.from_numpy(image) / T
    kept = torch.nn.functional.cross_entropy(torch.from_numpy(memory) @ texts.T / T, torch.from_numpy(labels))
    (0.7 * kept + 0.25 * (logits.logsumexp(0) - logits.mean())).backward()
    found = auto.gradient(KNOWN.class_text.astype(float), image, memory, labels, T, 0.7, 0.25)
    np.testing.assert_allclose(found, texts.grad.numpy(), rtol=1e-9, atol=1e-12)


def test_auto_that_may_not_learn_is_static() -> None:
    static = run(auto.start(KNOWN, rate=0.0))
    np.testing.assert_allclose(static, base(), rtol=1e-5)  # its texts are brought back to length 1 in float64
    np.testing.assert_allclose(run(auto.start(KNOWN, rate=1.0, h_out=1e6)), base(), rtol=1e-9)


def test_autos_steps_are_of_single_images() -> None:
    one, many = (run(auto.start(KNOWN, rate=1e-2, h_out=1.0), batch=batch) for batch in (1, 16))
    np.testing.assert_allclose(one, many, rtol=1e-9)
    assert np.abs(one - base()).max() > 0.1


def test_auto_learns_from_what_lies_under_a_border_that_falls() -> None:
    """Image by image: the first outlier moves the texts, one above the new border does not."""
    train = base(KNOWN.train)
    border = train.mean() - 3 * train.std()
    low = THEIRS[np.argsort(base(THEIRS))[:3]][::-1]  # each lower than the one before, all under the border
    assert base(low).max() < border
    under, texts, expected = [border], KNOWN.class_text.astype(float), []
    for image in [*low, low[0]]:
        expected.append(log_odds(image[None], texts, KNOWN.negative_text)[0])
        if expected[-1] < np.mean(under):
            under.append(expected[-1])
            moved = auto.gradient(texts, image.astype(float), np.empty((0, D)), np.array([], int), T, 1, 0.25)
            texts = texts - 1e-2 * moved
            texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    found = run(auto.start(KNOWN, rate=1e-2), np.array([*low, low[0]]), batch=2)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert len(under) > 2 and found[1] != pytest.approx(base(low)[1], rel=1e-6)


def test_online_prototypes_by_brute_force() -> None:
    static = run(online_prototypes.start(KNOWN, rate=0.0))
    np.testing.assert_allclose(static, expit(base()), rtol=1e-5)  # float32 texts brought to length 1
    texts = np.concatenate([KNOWN.class_text, KNOWN.negative_text]).astype(float)
    means, expected = texts.copy(), []
    for batch in range(0, 48, 16):
        images, moves = MIXED[batch : batch + 16].astype(float), np.zeros_like(means)
        for image in images:
            mixed = 0.7 * texts @ image + 0.3 * means @ image
            expected.append(expit(logsumexp(mixed[:K] / T) - logsumexp(mixed[K:] / T)))
            shares = np.exp(texts @ image / T - logsumexp(texts @ image / T))
            for c in range(K + M):
                moves[c] += shares[c] * (image - means[c])
        means = means + 0.2 * moves
        means /= np.linalg.norm(means, axis=1, keepdims=True)
    found = run(online_prototypes.start(KNOWN, rate=0.2, blend=0.3), MIXED[:48])
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def activation(rows: np.ndarray) -> np.ndarray:
    """(n, C): softmax of each row over ID texts and the corpus, the part of the words."""
    logits = rows.astype(float) @ np.concatenate([KNOWN.class_text, KNOWN.corpus_text]).T.astype(float) / T
    return np.exp(logits - logsumexp(logits, axis=1, keepdims=True))[:, K:]


def brute_tanl(image: np.ndarray, words: Sequence[int]) -> float:
    own = np.exp(KNOWN.class_text.astype(float) @ image / T).sum()
    theirs = np.exp(KNOWN.corpus_text[list(words)].astype(float) @ image / T)
    return float(np.mean([own / (own + theirs[: m + 1].sum()) for m in range(len(words))]))


def test_tanl_with_frozen_queues_is_the_formula_over_sorted_words() -> None:
    difference = activation(KNOWN.negative_text).mean(axis=0) - activation(KNOWN.class_text).mean(axis=0)
    words = sorted(range(C), key=lambda y: -difference[y])[:7]
    found = run(tanl.start(KNOWN, words=7, gap=NEVER))
    np.testing.assert_allclose(found, [brute_tanl(row.astype(float), words) for row in MIXED], rtol=1e-9)


def test_tanls_queues_are_first_in_first_out_and_choose_the_words() -> None:
    queues = [activation(KNOWN.class_text), activation(KNOWN.negative_text)]
    found, sure = run(tanl.start(KNOWN, words=6, length=44, gap=0.2, past=0.8)), online.Sure(0.2)
    for batch in range(0, len(MIXED), 16):
        images = MIXED[batch : batch + 16].astype(float)
        means = [queue.mean(axis=0) for queue in queues]
        words = np.argsort(means[0] - means[1])[:6]
        for k, chosen in enumerate(sure(np.array([brute_tanl(image, words) for image in images]))):
            if chosen.any():
                means[k] = 0.8 * means[k] + 0.2 * activation(images[chosen]).mean(axis=0)
                queues[k] = np.concatenate([queues[k], activation(images[chosen])])[-44:]
        words = np.argsort(means[0] - means[1])[:6]
        expected = [brute_tanl(image, words) for image in images]
        np.testing.assert_allclose(found[batch : batch + 16], expected, rtol=1e-9)
    assert len(queues[1]) == 44 > M and len(queues[0]) > K


def test_words_that_name_a_class_are_no_negatives() -> None:
    named = replace(KNOWN, class_names=["word55", *KNOWN.class_names[1:]], synonyms=[["word56"]], memo={})
    assert len(named.once(coevo._bank)) == len(named.usable.nonzero()[0]) == C - 2
    assert len(KNOWN.once(coevo._bank)) == C


def test_coevo_that_is_sure_of_nothing_is_neglabel() -> None:
    np.testing.assert_allclose(run(coevo.start(KNOWN, gap=NEVER)), expit(base()), rtol=1e-6)


def test_coevos_list_grows_by_the_nearest_and_the_farthest_words() -> None:
    rows = MIXED[:16].astype(float)
    ids, oods = online.Sure(0.5)(expit(base(rows)))
    assert ids.sum() > 1 and oods.sum() > 1
    free = set(range(M, C))
    free -= (near := {int(i) for row in rows[oods] for i in M + np.argsort(-KNOWN.corpus_text[M:] @ row)[:2]})
    left = np.array(sorted(free))
    far = {int(i) for row in rows[ids] for i in left[np.argsort(KNOWN.corpus_text[left] @ row)[:2]]}
    texts = KNOWN.corpus_text[[*range(M), *near, *far]]
    found = coevo.start(KNOWN, words=2, text_weight=0.0)(MIXED[:16])  # first batch: S is the texts' alone
    np.testing.assert_allclose(found, expit(log_odds(rows, KNOWN.class_text, texts)), rtol=1e-9)
    assert len(near) + len(far) < C - M


def test_coevo_scores_by_proxies_too() -> None:
    """With no word to add and all weight on proxies: a text's mean with its sure images."""
    whole = KNOWN.change(negative_text=KNOWN.corpus_text)
    rows, texts = MIXED[:16].astype(float), np.concatenate([KNOWN.class_text, KNOWN.corpus_text])
    mass = expit(log_odds(rows, KNOWN.class_text, KNOWN.corpus_text))
    held: dict[int, list] = {}
    for k, chosen in enumerate(online.Sure(0.5)(mass)):
        for row in rows[chosen]:
            brute_admit(held, row, texts[[slice(K), slice(K, None)][k]] @ row / T, k * K, 10)
    logits = np.array([brute_proxies(held, texts, row, 0.0) for row in rows]) / T
    expected = expit(logsumexp(logits[:, :K], axis=1) - logsumexp(logits[:, K:], axis=1))
    np.testing.assert_allclose(
        coevo.start(whole, text_weight=1.0)(MIXED[:16]), expected, rtol=1e-3, atol=1e-6
    )


def test_the_base_is_the_core_score() -> None:
    static = scores.neglabel(MIXED, KNOWN.class_text, KNOWN.negative_text, T)
    images, logits = online.looker(KNOWN)(MIXED)
    np.testing.assert_allclose(online.mass(logits, K), expit(static), rtol=1e-9)
    np.testing.assert_allclose(online.log_sum(logits), logsumexp(logits, axis=1), rtol=1e-12)
    assert (images == MIXED).all()
