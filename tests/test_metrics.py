"""Metrics against hand-made fixtures, scikit-learn, pytorch-ood and plain resampling loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_ood.metrics import functional as oracle
from scipy import optimize, stats
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks import coverage
from ood_utils import metrics
from ood_utils.errors import UserError
from ood_utils.metrics import METRICS, bootstrap, bootstrap_draws, compat_fpr95, ood_metrics, paired_bootstrap

ZEROS = np.zeros(10)
T4 = (np.r_[np.linspace(0.5, 1, 90), ZEROS], np.linspace(0.1, 0.4, 100))
T5 = (np.linspace(0.5, 1, 100), np.r_[np.linspace(0, 0.4, 90), np.linspace(0.9, 1.2, 10)])
T6 = (np.arange(1, 101.0), np.arange(0.5, 50))
SEPARATE = ([0.6, 0.7, 0.8, 0.9], [0.1, 0.2, 0.3, 0.4])

# other_methods 6.1: ID, OoD, AUROC, FPR95 with ID positive (nearest, first >=, interpolated), OoD positive
FIXTURES = {
    "T1": (*SEPARATE, 1, 0, 0, 0, 0),
    "T2": (*SEPARATE[::-1], 0, 1, 1, 1, 1),
    "T3": (ZEROS, ZEROS, 0.5, 1, 1, 0.95, 1),
    "T4": (*T4, 0.9, 1, 1, 1, 0.1),
    "T5": (*T5, 0.90415, 0.1, 0.1, 0.1, 1),
    "T6": (*T6, 0.755, 0.9, 0.88, 0.9, 0.47),
}

values = st.one_of(
    st.integers(-3, 3).map(float),  # many ties
    st.floats(-100, 100, allow_nan=False).map(lambda x: round(x, 3)),
)
arrays = st.lists(values, min_size=1, max_size=30).map(np.array)


@pytest.mark.parametrize("name", FIXTURES)
def test_golden_fixtures(name: str) -> None:
    inside, outside, auroc, nearest, first, interpolated, ood_positive = FIXTURES[name]
    found = ood_metrics(inside, outside)
    assert found.auroc == pytest.approx(auroc, abs=5e-6)
    assert found.fpr95_id == pytest.approx(first)
    assert found.fpr95_ood == pytest.approx(ood_positive)
    assert compat_fpr95(inside, outside, "mcm") == pytest.approx(nearest)
    assert compat_fpr95(inside, outside, "cma") == pytest.approx(interpolated)
    assert compat_fpr95(inside, outside, "openood") == pytest.approx(ood_positive)


@settings(deadline=None, max_examples=50)
@given(arrays, arrays)
def test_agrees_with_pytorch_ood(inside: np.ndarray, outside: np.ndarray) -> None:
    found = ood_metrics(inside, outside)
    scores = torch.from_numpy(np.r_[inside, outside])
    labels = torch.tensor([0] * len(inside) + [-1] * len(outside))
    assert found.auroc == pytest.approx(float(oracle.auroc(-scores, labels)))
    assert found.fpr95_ood == pytest.approx(float(oracle.fpr_at_tpr(-scores, labels, 0.95)))
    assert found.fpr95_id == pytest.approx(float(oracle.fpr_at_tpr(scores, -1 - labels, 0.95)))


@settings(deadline=None, max_examples=50)
@given(arrays, arrays)
def test_invariances(inside: np.ndarray, outside: np.ndarray) -> None:
    found, mirrored = ood_metrics(inside, outside), ood_metrics(outside, inside)
    assert all(0 <= value <= 1 for value in found.values().values())
    assert found.auroc == pytest.approx(1 - mirrored.auroc)
    swapped = ood_metrics(-outside, -inside)  # OoD takes the part of ID
    assert (swapped.fpr95_id, swapped.fpr95_ood) == pytest.approx((found.fpr95_ood, found.fpr95_id))
    assert (swapped.aupr_in, swapped.aupr_out) == pytest.approx((found.aupr_out, found.aupr_in))
    for changed in (ood_metrics(3 * inside + 7, 3 * outside + 7), ood_metrics(inside**3, outside**3)):
        assert changed.values() == pytest.approx(found.values())


@settings(deadline=None, max_examples=30)
@given(arrays, arrays, st.integers(2, 4))
def test_duplicating_every_image_changes_nothing(inside: np.ndarray, outside: np.ndarray, times: int) -> None:
    """Nor a threshold: the ceil(0.95 t n)-th of t copies each is a copy of the ceil(0.95 n)-th."""
    one, many = ood_metrics(inside, outside), ood_metrics(np.repeat(inside, times), np.repeat(outside, times))
    assert many.values() == pytest.approx(one.values())


def test_recall_is_never_below_95_percent() -> None:
    for n in (1, 2, 19, 20, 21, 39, 40, 59, 60, 61, 100, 199, 1000):
        inside = np.arange(n, dtype=float)
        k = metrics._needed(n)
        assert k / n >= 0.95 and (k - 1) / n < 0.95
        assert ood_metrics(inside, [n - k + 0.0]).fpr95_id == 1  # an OoD image on the threshold is accepted
        assert ood_metrics(inside, [n - k - 0.5]).fpr95_id == 0


def test_single_images_tensors_and_scale() -> None:
    assert ood_metrics([1.0], [0.0]).values() == dict(auroc=1, fpr95_id=0, fpr95_ood=0, aupr_in=1, aupr_out=1)
    close = 1 + np.arange(4) * 1e-12  # the sigmoid of a wide logit would tie these
    assert ood_metrics(close[2:], torch.from_numpy(close[:2])).auroc == 1
    assert ood_metrics([1e300, 1e301], [-1e300]).auroc == 1


def test_fpr95_depends_on_which_class_is_positive() -> None:
    rng = np.random.default_rng(0)
    found = ood_metrics(rng.normal(0, 1, 5000), rng.normal(-2, 1.6, 5000))
    assert found.fpr95_ood > found.fpr95_id + 0.2


def _loop(
    inside: np.ndarray, outside: np.ndarray, n: int, seed: int, clusters: tuple = (None, None)
) -> np.ndarray:
    """The same resamples, the slow way: repeat every score as often as it was drawn, then scikit-learn."""
    found = []
    for scores, own, key in zip((inside, outside), clusters, (0, metrics.zlib.crc32(b"ood")), strict=True):
        codes = np.arange(len(scores)) if own is None else np.searchsorted(np.unique(own), own)
        (counts,) = metrics._counts(codes.max() + 1, n, n, (seed, key))
        assert (counts.sum(1) == codes.max() + 1).all()  # K of K clusters
        found.append([np.repeat(scores, row[codes]) for row in counts])
    return np.array([list(ood_metrics(*pair).values().values()) for pair in zip(*found, strict=True)])


@pytest.mark.parametrize("digits", [0, 1, 8])
@pytest.mark.parametrize("sizes", [(1, 1), (2, 37), (60, 45), (101, 3)])
def test_bootstrap_equals_a_plain_loop_ties_included(sizes: tuple[int, int], digits: int) -> None:
    rng = np.random.default_rng(sizes[0])
    inside, outside = rng.normal(1, 1, sizes[0]).round(digits), rng.normal(0, 1.5, sizes[1]).round(digits)
    draws = bootstrap_draws(inside, outside, 40, seed=3)["ood"]
    assert draws.shape == (1, 40, 5)
    np.testing.assert_allclose(draws[0], _loop(inside, outside, 40, 3), atol=1e-12)
    intervals = bootstrap(inside, outside, 40, seed=3)
    low, high = np.quantile(draws[0], [0.025, 0.975], axis=0)
    np.testing.assert_array_equal([tuple(intervals[name]) for name in METRICS], np.stack([low, high], 1))


def _grouped(seed: int) -> tuple[np.ndarray, ...]:
    """Scores with many ties in clusters of unequal size, numbered out of order."""
    rng = np.random.default_rng(seed)
    inside, outside = rng.normal(1, 1, 70).round(1), rng.normal(0, 1.5, 45).round(1)
    return inside, outside, rng.integers(0, 12, 70) * 7 - 30, rng.integers(0, 9, 45)


def test_clusters_are_drawn_whole() -> None:
    inside, outside, a, b = _grouped(0)
    draws = bootstrap_draws(inside, {"ood": outside}, 40, 3, a, {"ood": b})["ood"][0]
    np.testing.assert_allclose(draws, _loop(inside, outside, 40, 3, (a, b)), atol=1e-12)
    np.testing.assert_array_equal(bootstrap_draws(inside, outside, 40, 3, a, b)["ood"][0], draws)
    shuffled = np.random.default_rng(1).permutation(70)
    again = bootstrap_draws(inside[shuffled], outside, 40, 3, a[shuffled], b)["ood"][0]
    np.testing.assert_allclose(again, draws, atol=1e-12)


def test_one_image_a_cluster_is_the_bootstrap_of_images_and_so_is_a_single_cluster() -> None:
    inside, outside, *_ = _grouped(1)
    plain = bootstrap_draws(inside, outside, 30)["ood"]
    for a, b in ((np.arange(70), np.arange(45)), (np.zeros(70), ["all"] * 45)):
        np.testing.assert_array_equal(bootstrap_draws(inside, outside, 30, 0, a, b)["ood"], plain)


def test_duplicates_inside_their_cluster_change_no_draw() -> None:
    inside, outside, a, b = _grouped(2)
    plain = bootstrap_draws(inside, outside, 60, 0, a, b)["ood"]
    double = bootstrap_draws(
        *(np.repeat(part, 2) for part in (inside, outside)), 60, 0, np.repeat(a, 2), np.repeat(b, 2)
    )
    np.testing.assert_allclose(double["ood"], plain, atol=1e-12)
    one, two = (bootstrap_draws(np.repeat(inside, t), np.repeat(outside, t), 400)["ood"] for t in (1, 2))
    assert (two.std(axis=1) < 0.85 * one.std(axis=1)).all()  # drawn alone, copies feign certainty


def test_variance_of_a_cluster_mean() -> None:
    """One OoD score: AUROC is then the share of ID images above it, the mean of clusters of equal size."""
    above = np.random.default_rng(3).random((20, 1)) < np.linspace(0.1, 0.9, 25)
    auroc = bootstrap_draws(above.astype(float).T.ravel(), [0.5], 40_000, 0, np.repeat(np.arange(25), 20))
    assert auroc["ood"][0, :, 0].mean() == pytest.approx(above.mean(), abs=0.005)
    assert auroc["ood"][0, :, 0].var() == pytest.approx(above.mean(axis=0).var() / 25, rel=0.05)


def _apart(seeds: int, n: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Points (seeds, 1, 1), draws about them (seeds, n, 1, 1) that move all seeds together and each apart."""
    rng = np.random.default_rng(seeds)
    points, apart = rng.normal(1, 1, seeds), rng.normal(0, 0.6, (seeds, n))
    return points[:, None, None], (points[:, None] + rng.normal(0, 0.4, n) + apart)[..., None, None]


def test_seeds_and_images_have_the_variance_of_two_crossed_samples() -> None:
    points, draws = _apart(8)
    found = metrics.over_images_and_seeds([(points, draws)], [41])
    between, twice, mean = points.var(ddof=1) / 8, 0.6**2 / 8, points.mean()
    assert between > 1.5 * twice  # so the seeds' own part is not cut at 0
    variance = 0.4**2 + twice + (between - twice)
    freedom = variance**2 / (between**2 / 7 + (0.4**2 + twice) ** 2 / 40)
    reach = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    assert found.value == pytest.approx([mean])
    assert (*found.low, *found.high) == pytest.approx((mean - reach, mean + reach), abs=0.03)
    assert found.p == pytest.approx(2 * stats.t.sf(mean / np.sqrt(variance), freedom), rel=0.15)
    pair = metrics.over_images_and_seeds([(points, draws), (-points, -draws)], [41])  # b: seeds of its own
    assert pair.value == 0 and pair.p == 1
    assert pair.high > 0.9 * np.sqrt(2) * 1.96 * np.sqrt(between - twice)


def test_comparisons_lend_each_other_what_they_know_of_seeds() -> None:
    points, draws = _apart(3)
    part = points, draws
    own, apart, alone = points.var(ddof=1) / 3, 0.6**2 / 3, metrics.over_images_and_seeds([part], [41])
    assert metrics.seed_ratio([part]) == pytest.approx([own / apart], rel=0.1)
    assert metrics.seed_ratio([(points[:1], draws[:1])]) is None
    for ratio in (1.0, 9.0):  # seeds that differ as images make them, and by far more
        between = (2 * own + 4 * ratio * apart) / 6
        excess = max(between - apart, 0)
        variance = 0.4**2 + apart + excess
        freedom = variance**2 / (min(between, 4 * excess) ** 2 / 6 + (0.4**2 + apart) ** 2 / 40)
        found = metrics.over_images_and_seeds([part], [41], (np.array([ratio]), 4))
        reach = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
        assert found.value == alone.value and found.high - found.value == pytest.approx([reach], rel=0.05)


def test_images_alone_where_seeds_differ_by_nothing_else() -> None:
    """One seed, or seeds that differ by less than the images drawn explain: a plain cluster bootstrap."""
    points, draws = _apart(8)
    points, draws = points.repeat(2, axis=-1), draws.repeat(2, axis=-1)  # two metrics at once
    for part in ((points[:1], draws[:1]), (0 * points, draws)):
        found = metrics.over_images_and_seeds([part], [21])
        reach = part[1].mean(axis=0).std(axis=0, ddof=1) * stats.t.ppf(0.975, 20)
        np.testing.assert_allclose(found.high - found.value, reach[0])
    still = metrics.over_images_and_seeds([(np.full((2, 1, 1), 1e-17), np.full((2, 9, 1, 1), 1e-17))], [5])
    assert [part.item() for part in still] == [0, 0, 0, 1]  # rounding is no difference


def test_a_set_of_few_clusters_counts_by_its_share() -> None:
    """Two photographs are one degree of freedom; beside quiet sets they decide, beside loud ones hardly."""

    def degrees(*sets: tuple[float, int]) -> float:
        rng = np.random.default_rng(0)
        draws = np.stack([rng.normal(0, error, 20_000) for error, _ in sets], axis=1)
        found = metrics.over_images_and_seeds(
            [(np.zeros((1, len(sets), 1)), draws[None, ..., None])], [k for _, k in sets]
        )
        reach = found.high.item() / draws.mean(axis=1).std(ddof=1)
        return float(optimize.brentq(lambda df: stats.t.ppf(0.975, df) - reach, 0.5, 1e6))

    assert degrees((1, 41)) == pytest.approx(40, rel=1e-3)
    assert degrees((1, 2), (1, 101)) == pytest.approx(4 / (1 + 0.01), rel=0.1)
    assert degrees((0.01, 2), (1, 101)) == pytest.approx(100, rel=0.01)
    assert degrees((1, 2), (0.01, 101)) == pytest.approx(1, rel=0.01)
    assert degrees((1, 101), (1, 101)) == pytest.approx(100, rel=0.01)  # ID images are shared: no 200


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(metrics.holm(np.array([0.04, 0.01, 0.03])), [0.06, 0.03, 0.06])
    np.testing.assert_allclose(metrics.holm(np.array([0.6, 0.2, 0.9, 0.2])), [1, 0.8, 1, 0.8])
    assert metrics.holm(np.array([0.02])) == [0.02]


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Three seeds that differ; all of ``benchmarks.coverage``'s worlds take minutes."""
    times = 200
    found = coverage.measure(coverage.WORLDS["seeds differ"], 3, 40, times, draws=150)
    error = np.sqrt(0.95 * 0.05 / times)
    assert (np.abs(found["ours"].mean(axis=0) - 0.95) < 3 * error).all()
    assert (np.abs(found["alone"] - 0.95) < 3 * error).all()
    assert found["naive"][0] < 0.95 - 3 * error  # what a percentile interval makes of three seeds


def test_bootstrap_agrees_with_scipy() -> None:
    rng = np.random.default_rng(1)
    inside, outside = rng.normal(1, 1, 150).round(1), rng.normal(0, 1, 120).round(1)
    truth = np.repeat([1, 0], [150, 120])
    for name, statistic in {
        "auroc": lambda i, o: roc_auc_score(truth, np.r_[i, o]),
        "aupr_in": lambda i, o: average_precision_score(truth, np.r_[i, o]),
    }.items():
        theirs = stats.bootstrap(
            (inside, outside), statistic, n_resamples=500, vectorized=False, method="percentile", rng=rng
        ).confidence_interval
        ours = bootstrap(inside, outside, 3000)[name]
        assert tuple(ours) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_draws_do_not_depend_on_blocks_or_on_the_other_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    inside, sets = rng.normal(1, 1, (2, 40)), {"a": rng.normal(size=(2, 30)), "b": rng.normal(size=(2, 50))}
    whole = bootstrap_draws(inside, sets, 50)
    monkeypatch.setattr(metrics, "_ELEMENTS", 350)  # 7 draws at a time
    np.testing.assert_allclose(bootstrap_draws(inside, sets, 50)["b"], whole["b"], atol=1e-12)
    np.testing.assert_allclose(bootstrap_draws(inside, {"b": sets["b"]}, 50)["b"], whole["b"], atol=1e-12)
    assert not np.array_equal(bootstrap_draws(inside, sets, 50, seed=1)["b"], whole["b"])


def test_mean_over_sets_shares_the_id_resample() -> None:
    """Two sets that differ little: their mean varies almost as much as either, not by 1/sqrt(2)."""
    rng = np.random.default_rng(3)
    inside = rng.normal(1, 1, 50)
    sets = {name: rng.normal(0, 1, 4000) for name in "ab"}
    draws = bootstrap_draws(inside, sets, 400)
    a, b = (draws[name][0, :, 0] for name in "ab")
    assert np.corrcoef(a, b)[0, 1] > 0.9
    mean = np.quantile((a + b) / 2, [0.025, 0.975])
    assert tuple(bootstrap(inside, sets, 400)["auroc"]) == pytest.approx(mean)


def test_paired_bootstrap() -> None:
    rng = np.random.default_rng(4)
    inside, outside = rng.normal(1, 1, 300), rng.normal(0, 1, 200)
    same = paired_bootstrap(inside, outside, inside * 2, outside * 2, 50)
    assert all(tuple(value) == (0, 0, 0) for value in same.values())
    better = paired_bootstrap(inside + 0.1, outside, inside, outside, 300)["auroc"]
    assert 0 < better.low < better.difference < better.high
    alone = bootstrap(inside, outside, 300)["auroc"]
    assert better.high - better.low < (alone.high - alone.low) / 4  # what pairing is for
    a, b = ood_metrics(inside + 0.1, outside), ood_metrics(inside, outside)
    assert better.difference == pytest.approx(a.auroc - b.auroc)
    clusters = (np.arange(300) // 10, np.arange(200) // 10)
    assert tuple(alone) != tuple(bootstrap(inside, outside, 300, 0, *clusters)["auroc"])
    by_cluster = paired_bootstrap(inside + 0.1, outside, inside, outside, 300, 0, *clusters)["auroc"]
    assert by_cluster.difference == better.difference and by_cluster != better
    by_set = paired_bootstrap(inside + 0.1, {"ood": outside}, inside, {"ood": outside}, 300)
    assert by_set["auroc"] == better


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ([], r"id_scores has shape \(0,\)"),
        ([1.0, np.nan], "id_scores has 1 value"),
        ([np.inf], "NaN or infinite"),
        ([[1.0, 2.0]], "shape"),
        (3.0, "shape"),
    ],
)
def test_unusable_scores_are_refused_in_one_sentence(bad: object, words: str) -> None:
    for call in (lambda: ood_metrics(bad, [1.0]), lambda: compat_fpr95(bad, [1.0], "mcm")):
        with pytest.raises(UserError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="ood_scores has shape"):
        ood_metrics([1.0], [])


def test_unusable_calls_are_refused() -> None:
    with pytest.raises(UserError, match="variant"):
        compat_fpr95([1.0], [0.0], "nearest")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="n is 0"):
        bootstrap([1.0], [0.0], 0)
    with pytest.raises(UserError, match="no set"):
        bootstrap([1.0], {})
    with pytest.raises(UserError, match="same sets"):
        paired_bootstrap([1.0], {"a": [0.0]}, [1.0], {"b": [0.0]})
    with pytest.raises(UserError, match="same images"):
        paired_bootstrap([1.0], [0.0], [1.0, 2.0], [0.0])
    with pytest.raises(UserError, match=r"ood_clusters\['ood'\] has shape \(3,\) for 1 images"):
        bootstrap([1.0, 2.0], [0.0], id_clusters=[0, 0], ood_clusters=[0, 1, 2])
    with pytest.raises(UserError, match="ood_clusters name 'a', but ood_scores"):
        bootstrap([1.0], {"b": [0.0]}, ood_clusters={"a": [0]})
    with pytest.raises(UserError, match="score every set alike"):
        bootstrap_draws(np.ones((2, 3)), {"a": np.ones((3, 3))})
