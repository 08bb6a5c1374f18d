"""How well one number per image tells in-distribution (ID) from out-of-distribution (OoD) images.

Scores are float64 and a HIGHER score means MORE in-distribution; every metric is a fraction in [0, 1]. FPR95
has two meanings in this field, and both are always computed. ``fpr95_id``: share of OoD images accepted when
at least 95 % of ID images are (ID is positive: MCM, NegLabel, CMA). ``fpr95_ood``: share of ID images
rejected when at least 95 % of OoD images are (OoD is positive: OpenOOD, pytorch-ood).
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from .arrays import table, vector
from .errors import UserError

METRICS = ("auroc", "fpr95_id", "fpr95_ood", "aupr_in", "aupr_out")
LOWER_IS_BETTER = ("fpr95_id", "fpr95_ood")
RECALL = 95  # per cent; an integer, so that ceil(0.95 n) does not depend on how 0.95 is rounded
_ELEMENTS = 2**16  # images x draws worked on at once: fits a core's cache


@dataclass(frozen=True)
class OodMetrics:
    """The five metrics as fractions in [0, 1] and the numbers of images behind them.

    ``aupr_in`` takes ID as the positive class, ``aupr_out`` OoD; both are average precisions and depend on
    the base rate n_id / (n_id + n_ood), so compare them on one set only.
    """

    auroc: float
    fpr95_id: float
    fpr95_ood: float
    aupr_in: float
    aupr_out: float
    n_id: int
    n_ood: int

    def values(self) -> dict[str, float]:
        """The metrics alone, name -> fraction, in the order of ``METRICS``."""
        return {name: getattr(self, name) for name in METRICS}


class Interval(NamedTuple):
    """A 95 % percentile interval, in the metric's own unit (a fraction)."""

    low: float
    high: float


class Difference(NamedTuple):
    """Method a minus method b on the same images, with its 95 % percentile interval (fractions)."""

    difference: float
    low: float
    high: float


class Estimate(NamedTuple):
    """Means over seeds, their 95 % intervals and the two-sided p of their being 0; arrays of one shape."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray


def ood_metrics(id_scores: Any, ood_scores: Any) -> OodMetrics:
    """AUROC, AUPR and both FPR95s of two 1-D arrays (or tensors) of scores; higher = more ID.

    Ties count one half in AUROC. The threshold of an FPR95 is the k-th largest score of the positive class,
    k = ceil(0.95 n): recall is never below 95 %; a score on the threshold is accepted.
    Raises UserError for an empty array, a wrong shape, NaN or infinity.
    """
    inside, outside, scores, is_id = _both(id_scores, ood_scores)
    return OodMetrics(
        auroc=float(roc_auc_score(is_id, scores)),
        fpr95_id=_fpr95(inside, outside),
        fpr95_ood=_fpr95(-outside, -inside),
        aupr_in=float(average_precision_score(is_id, scores)),
        aupr_out=float(average_precision_score(1 - is_id, -scores)),
        n_id=len(inside),
        n_ood=len(outside),
    )


def compat_fpr95(id_scores: Any, ood_scores: Any, variant: Literal["mcm", "openood", "cma"]) -> float:
    """FPR95 as three published code bases compute it; only to show how far they differ from each other.

    ``mcm`` (MCM, NegLabel, LoCoOp ...): ID positive, the point whose recall is nearest to 0.95, even below.
    ``cma`` (CMA, ood-metrics): ID positive, linear interpolation of the ROC curve at recall 0.95.
    ``openood`` (OpenOOD v1.5): OoD positive, the first point kept by scikit-learn with recall >= 0.95.
    Raises UserError for another variant or unusable scores.
    """
    inside, outside, scores, is_id = _both(id_scores, ood_scores)
    if variant == "mcm":
        fpr, tpr, _ = roc_curve(is_id, scores, drop_intermediate=False)
        full = int(np.searchsorted(tpr, 1.0)) + 1  # MCM cuts the curve at full recall and reads it backwards
        nearest = np.argmin(np.abs(tpr[:full][::-1] - RECALL / 100))
        return float(fpr[:full][::-1][nearest])
    if variant == "cma":
        fpr, tpr, _ = roc_curve(is_id, scores)
        return float(np.interp(RECALL / 100, tpr, fpr))
    if variant == "openood":
        fpr, tpr, _ = roc_curve(1 - is_id, -scores)
        return float(fpr[np.argmax(tpr >= RECALL / 100)])
    raise UserError(f"variant is {variant!r}, which is unknown; choose 'mcm', 'openood' or 'cma'.")


def bootstrap(
    id_scores: Any,
    ood_scores: Any,
    n: int = 1000,
    seed: int = 0,
    id_clusters: Any = None,
    ood_clusters: Any = None,
) -> dict[str, Interval]:
    """95 % percentile intervals of the five metrics from ``bootstrap_draws``; arguments and errors as there.

    ``ood_scores`` is one array, or a mapping set name -> array: then the intervals are those of the mean over
    the sets. An interval speaks of the test images only, not of training noise. Where a metric sits on its
    bound (FPR95 = 0) it is degenerate, as for every percentile bootstrap.
    """
    draws = bootstrap_draws(id_scores, ood_scores, n, seed, id_clusters, ood_clusters)
    limits = np.quantile(np.mean([*draws.values()], axis=0)[0], [0.025, 0.975], axis=0).T.tolist()
    return {name: Interval(*pair) for name, pair in zip(METRICS, limits, strict=True)}


def paired_bootstrap(
    id_a: Any,
    ood_a: Any,
    id_b: Any,
    ood_b: Any,
    n: int = 1000,
    seed: int = 0,
    id_clusters: Any = None,
    ood_clusters: Any = None,
) -> dict[str, Difference]:
    """Method a minus method b per metric, both scored on the SAME images in the same order.

    ``ood_a``, ``ood_b``, the clusters: as in ``bootstrap``. Each draw takes the same images for both, so what
    both find hard cancels. A negative difference of an FPR95, or a positive one of AUROC/AUPR, says that a is
    better. Raises UserError as ``bootstrap_draws`` and for unequal sets or numbers of images.
    """
    sets_a, sets_b = _as_sets(ood_a), _as_sets(ood_b)
    if set(sets_a) != set(sets_b):
        raise UserError(f"ood_a has {sorted(sets_a)} but ood_b {sorted(sets_b)}; give both the same sets.")
    inside = _stack(id_a, id_b, "id")
    outside = {name: _stack(sets_a[name], sets_b[name], name) for name in sets_a}
    points = np.mean([point_metrics(inside, scores) for scores in outside.values()], axis=0)
    draws = bootstrap_draws(inside, outside, n, seed, id_clusters, ood_clusters)
    drawn_a, drawn_b = np.mean([*draws.values()], axis=0)
    limits = np.quantile(drawn_a - drawn_b, [0.025, 0.975], axis=0)
    rows = np.stack([points[0] - points[1], *limits], axis=1).tolist()
    return {name: Difference(*row) for name, row in zip(METRICS, rows, strict=True)}


def bootstrap_draws(
    id_scores: Any,
    ood_scores: Any,
    n: int = 1000,
    seed: int = 0,
    id_clusters: Any = None,
    ood_clusters: Any = None,
) -> dict[str, np.ndarray]:
    """Every draw of every metric: set name -> (M, n, 5) float64, the last axis in the order of ``METRICS``.

    ``id_scores`` is (n_id,) or (M, n_id): M scorings of the same images; ``ood_scores`` the same shape per
    set, one array (the set "ood") or a mapping. ``id_clusters`` (n_id,) and ``ood_clusters`` (an array, or a
    mapping from some of the sets) number the images that are drawn together; see ``cluster_codes``. ID and
    OoD are drawn apart: of K clusters K with replacement, so that the number of images differs from draw to
    draw; each draw's thresholds are those of its own images. Draw b takes the same images for all M scorings,
    and the same ID images for all sets, so any difference or mean of the results is a paired or shared
    bootstrap, exact on ties. The draws of a set depend on ``seed``, its name and its clusters alone.
    Raises UserError as ``ood_metrics`` and for clusters of another length or of no such set.
    """
    if n < 1:
        raise UserError(f"n is {n}, but a bootstrap needs at least one draw; give a number such as 1000.")
    inside = _rows(id_scores, "id_scores")
    outside = {name: _rows(scores, f"ood_scores[{name!r}]") for name, scores in _as_sets(ood_scores).items()}
    if wrong := [name for name, scores in outside.items() if len(scores) != len(inside)]:
        raise UserError(f"{wrong[0]!r} has not {len(inside)} scorings as the ID set; score every set alike.")
    if not isinstance(ood_clusters, Mapping):
        ood_clusters = {} if ood_clusters is None else {"ood": ood_clusters}
    if unknown := [name for name in ood_clusters if name not in outside]:
        raise UserError(
            f"ood_clusters name {unknown[0]!r}, but ood_scores {sorted(outside)}; name one of them."
        )
    id_codes = cluster_codes(id_clusters, inside.shape[1], "id_clusters")
    sorted_id = [_Distinct(scores, id_codes) for scores in inside]
    step = max(1, _ELEMENTS // max(scores.shape[1] for scores in (inside, *outside.values())))
    pairs, ood_counts = {}, {}
    for name, scores in outside.items():
        codes = cluster_codes(ood_clusters.get(name), scores.shape[1], f"ood_clusters[{name!r}]")
        pairs[name] = [_Pair(i, _Distinct(o, codes)) for i, o in zip(sorted_id, scores, strict=True)]
        ood_counts[name] = _counts(codes.max() + 1, n, step, (seed, zlib.crc32(name.encode())))
    draws, done = {name: np.empty((len(inside), n, len(METRICS))) for name in outside}, 0
    for id_part in _counts(id_codes.max() + 1, n, step, (seed, 0)):
        cumulated = [scoring.cumulate(id_part) for scoring in sorted_id]  # once, for all sets
        block = slice(done, done := done + len(id_part))
        for name, generator in ood_counts.items():
            ood_part = next(generator)
            for row, (pair, of_id) in enumerate(zip(pairs[name], cumulated, strict=True)):
                draws[name][row, block] = pair.draw(*of_id, *pair.ood.cumulate(ood_part))
    return draws


def cluster_codes(clusters: Any, n: int, name: str = "clusters") -> np.ndarray:
    """(n,) integers 0 ... K - 1 of the clusters that a bootstrap of n images resamples.

    ``clusters``: any n numbers or names, equal for images that belong together; None: each image alone. So it
    is for a single cluster too, from which nothing could be learned of how clusters differ. UserError for
    another length.
    """
    if clusters is None:
        return np.arange(n)
    if np.shape(clusters) != (n,):
        raise UserError(f"{name} has shape {np.shape(clusters)} for {n} images; give one number an image.")
    codes = np.unique(np.asarray(clusters), return_inverse=True)[1]
    return codes if codes.max() else np.arange(n)


def share(hits: Any, clusters: Any = None, draws: int = 1000) -> tuple[float, Interval]:
    """Share of ``hits`` (n,) bool, with its interval by a bootstrap of whole ``clusters``."""
    codes = cluster_codes(clusters, len(hits))
    found, sizes = np.bincount(codes, hits), np.bincount(codes)
    resampled = np.random.default_rng(0).multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), draws)
    shares = (resampled @ found) / (resampled @ sizes)
    return float(np.mean(hits)), Interval(*np.quantile(shares, [0.025, 0.975]))


def conformal_rank(n: int, target: float) -> int:
    """floor((1 - target)(n + 1)): the rank, from 1 for the smallest, of the calibration score to set a
    threshold at, so that a new image exchangeable with the n of the calibration reaches it with probability
    >= ``target``. 0: n is too small for that. UserError for a target outside (0, 1).

    Source: split conformal prediction (Vovk et al. 2005; Lei et al. 2018).
    """
    if not 0 < target < 1:
        raise UserError(f"target is {target}; give the share of ID images to accept, above 0 and below 1")
    return int((1 - Fraction(str(float(target)))) * (n + 1))  # exact: 0.1 * 10 is to be 1


def over_images_and_seeds(
    parts: Sequence[tuple[np.ndarray, np.ndarray]],
    clusters: Sequence[int],
    others: tuple[np.ndarray, int] | None = None,
) -> Estimate:
    """Means over seeds and sets, with what other seeds, classes and images would have made of them.

    Each part is (points (S, J, m), draws (S, n, J, m)): m metrics of S trainings on J sets and their
    bootstrap, draw b being of the same images in all of them. The value (m,) is the sum over parts of the
    mean over S and J: differences of matched seeds are one part, else a and minus b are two. A part of one
    training adds nothing for its seed. ``clusters`` (J,): how many were resampled, of ID or of the set
    whichever are fewer. ``others``: the mean ``seed_ratio`` (m,) of the comparisons this is one of, and how
    many degrees of freedom it counts: a few seeds say little of how much seeds differ, so each comparison
    borrows from the others (moderated variances: Smyth 2004).

    The variance of images, that of the mean draw, holds what images do to all seeds alike and to each apart.
    The variance of seeds, s^2 / S, holds the latter again: only its excess over that is added (two-way
    clustering: Cameron, Gelbach, Miller 2011; resampling both at once counts it three times: Owen 2007). The
    interval is Student's, its degrees of freedom Satterthwaite's from S - 1 (and what is borrowed) and from
    clusters - 1 by each set's share of the variance. A difference of rounding (below 1e-12) is 0. How often
    the interval holds the truth: ``python -m benchmarks.coverage``.
    """
    value = sum(points.mean(axis=(0, 1)) for points, _ in parts)
    value = np.where(np.abs(value) < 1e-12, 0.0, value)
    by_set = sum(draws.mean(axis=0) for _, draws in parts)  # (n, J, m)
    by_set = by_set - by_set.mean(axis=0)
    drawn, degrees = by_set.mean(axis=1), np.maximum(np.asarray(clusters) - 1, 1)
    images = drawn.var(axis=0, ddof=1)
    shares = np.einsum("njm,nm->jm", by_set, drawn) / (len(drawn) - 1) / len(clusters)  # their sum is images
    # shared ID images: an average knows no more of them than one set does
    spread = np.maximum((shares**2 / degrees[:, None]).sum(axis=0), images**2 / degrees.max())
    seeds = np.zeros_like(images)
    for between, apart, freedom in _of_seeds(parts):
        if others:
            ratio, weight = others
            between = (freedom * between + weight * ratio * apart) / (freedom + weight)
            freedom += weight
        excess = np.maximum(between - apart, 0)
        seeds += excess
        # few degrees: they fade out where images explain why seeds differ, else intervals are too wide
        spread += np.minimum(between, 4 * excess) ** 2 / freedom
    variance = images + seeds
    error, far = np.round(np.sqrt(variance), 12), np.where(value == 0, 0.0, np.inf)
    freedom = np.divide(variance**2, spread, out=np.full_like(images, np.inf), where=spread > 0)
    p = 2 * stats.t.sf(np.divide(np.abs(value), error, out=far, where=error > 0), freedom)
    reach = stats.t.ppf(0.975, freedom) * error
    return Estimate(value, value - reach, value + reach, p)


def seed_ratio(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray | None:
    """(m,): the variance of seeds over what the images drawn explain of it; None where no part has two seeds.

    About 1 where seeds differ only by which images they get right. ``parts`` as above.
    """
    found = [
        np.divide(between, apart, out=np.ones_like(apart), where=apart > 0)
        for between, apart, _ in _of_seeds(parts)
    ]
    return np.mean(found, axis=0) if found else None


def _of_seeds(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Of each part of several seeds: s^2 / S (m,), as much of it as images explain, degrees of freedom."""
    for points, draws in parts:
        points, draws = points.mean(axis=1), draws.mean(axis=2)
        if (count := len(points)) > 1:
            apart = (draws - draws.mean(axis=1, keepdims=True)).var(axis=0, ddof=1).mean(axis=0)
            yield points.var(axis=0, ddof=1) / count, apart / count, count - 1


def holm(p: np.ndarray) -> np.ndarray:
    """p values (k,) of a family, corrected by Holm (1979): below 0.05 at most 5 % of families err at all."""
    order = np.argsort(p)
    steps = np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(p), 0, -1))
    return np.minimum(steps, 1)[np.argsort(order)]


class _Distinct:
    """The distinct values of an array, ascending, and the way from counts per cluster to counts per value."""

    def __init__(self, scores: np.ndarray, codes: np.ndarray) -> None:
        order = np.argsort(scores, kind="stable")
        ordered = scores[order]
        self.codes = codes[order]
        self.starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        self.values = ordered[self.starts]

    def cumulate(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Counts per cluster (b, K) -> counts per value (b, u) and their exclusive running sum (b, u + 1)."""
        counts = np.take(counts, self.codes, axis=1)
        if len(self.starts) < len(self.codes):
            counts = np.add.reduceat(counts, self.starts, axis=1)
        below = np.zeros((len(counts), len(self.starts) + 1), np.int32)
        np.cumsum(counts, axis=1, out=below[:, 1:])
        return counts, below


class _Pair:
    """Where the distinct ID and OoD scores fall among each other; a draw is then counts alone."""

    def __init__(self, inside: _Distinct, outside: _Distinct) -> None:
        self.ood = outside
        self.ood_below_id = np.searchsorted(outside.values, inside.values, side="left")
        self.id_below_ood = np.searchsorted(inside.values, outside.values, side="left")
        self.id_upto_ood = np.searchsorted(inside.values, outside.values, side="right")

    def draw(self, w: np.ndarray, id_below: np.ndarray, v: np.ndarray, ood_below: np.ndarray) -> np.ndarray:
        """What ``_Distinct.cumulate`` gave for b draws of ID and of OoD -> their metrics (b, 5)."""
        n, m, draw = id_below[:, -1:], ood_below[:, -1:], np.arange(len(w))
        id_upto = np.take(id_below, self.id_upto_ood, axis=1)
        smaller = np.take(id_below, self.id_below_ood, axis=1) + id_upto  # twice the ID images, ties once
        auroc = 1.0 - np.einsum("bi,bi->b", v, smaller, dtype=np.float64) / (2.0 * n * m)[:, 0]
        at = (id_below[:, 1:] <= n - _needed(n)).sum(axis=1)  # the k-th largest ID value of each draw
        fpr95_id = 1.0 - ood_below[draw, self.ood_below_id[at]] / m[:, 0]
        at = (ood_below[:, 1:] < _needed(m)).sum(axis=1)
        fpr95_ood = id_below[draw, self.id_upto_ood[at]] / n[:, 0]
        outside = m - np.take(ood_below, self.ood_below_id, axis=1)
        aupr_in = _average_precision(w, n - id_below[:, :-1], outside)
        aupr_out = _average_precision(v, ood_below[:, 1:], id_upto)
        return np.stack([auroc, fpr95_id, fpr95_ood, aupr_in, aupr_out], axis=1)


def _average_precision(gain: np.ndarray, true: np.ndarray, false: np.ndarray) -> np.ndarray:
    """Mean over the positives, ``gain`` of them at each threshold, of the precision there; counts (b, u)."""
    precision = true / np.maximum(true + false, 1)  # 0/0 only where the gain is 0 too
    return np.einsum("bi,bi->b", gain, precision) / gain.sum(axis=1)


def _counts(items: int, draws: int, step: int, seed: tuple[int, int]) -> Iterator[np.ndarray]:
    """How often each cluster is drawn: (<= step, items) int32 at a time, the same whatever ``step``."""
    generator = np.random.default_rng(seed)
    for start in range(0, draws, step):
        b = min(step, draws - start)
        drawn = generator.integers(0, items, size=(b, items)) + items * np.arange(b)[:, None]
        yield np.bincount(drawn.ravel(), minlength=items * b).reshape(b, items).astype(np.int32)


def _needed(n: Any) -> Any:
    """ceil(0.95 n): how many of n positives must be accepted; n an integer, or an array of them."""
    return -(-RECALL * n // 100)


def threshold(positive: np.ndarray) -> np.ndarray:
    """The ceil(0.95 n)-th largest of the scores (..., n) of positives: at or above it are accepted; (...)."""
    k = positive.shape[-1] - _needed(positive.shape[-1])
    return np.partition(positive, k)[..., k]


def _fpr95(positive: np.ndarray, negative: np.ndarray) -> float:
    """Share of negatives at or above the positives' threshold."""
    return float(np.mean(negative >= threshold(positive)))


def point_metrics(inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """The metrics of M scorings, (M, n_id) and (M, n_ood), in the order of ``METRICS``: (M, 5)."""
    return np.array([[*ood_metrics(*both).values().values()] for both in zip(inside, outside, strict=True)])


def _as_sets(scores: Any) -> Mapping[str, Any]:
    if not isinstance(scores, Mapping):
        return {"ood": scores}
    if not scores:
        raise UserError("ood_scores name no set; give at least one OoD set.")
    return scores


def _stack(a: Any, b: Any, name: str) -> np.ndarray:
    a, b = vector(a, f"{name} scores of a"), vector(b, f"{name} scores of b")
    if len(a) != len(b):
        raise UserError(f"{name} has {len(a)} scores of a but {len(b)} of b; a pair needs the same images.")
    return np.stack([a, b])


def _both(id_scores: Any, ood_scores: Any) -> tuple[np.ndarray, ...]:
    """Checked ID and OoD scores, all of them in one array, and which of these are ID (1, else 0)."""
    inside, outside = vector(id_scores, "id_scores"), vector(ood_scores, "ood_scores")
    return inside, outside, np.r_[inside, outside], np.repeat([1, 0], [len(inside), len(outside)])


def _rows(values: Any, name: str) -> np.ndarray:
    """A checked (M, n) float64 array; 1-D input becomes one row."""
    return table(values, name).astype(np.float64) if np.ndim(values) == 2 else vector(values, name)[None]
