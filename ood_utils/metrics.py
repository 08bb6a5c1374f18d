"""How well one number per image tells in-distribution (ID) from out-of-distribution (OoD) images.

Scores are float64 and a HIGHER score means MORE in-distribution; every metric is a fraction in [0, 1]. FPR95
has two meanings in this field, and both are always computed. ``fpr95_id``: share of OoD images accepted when
at least 95 % of ID images are (ID is positive: MCM, NegLabel, CMA). ``fpr95_ood``: share of ID images
rejected when at least 95 % of OoD images are (OoD is positive: OpenOOD, pytorch-ood).
"""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from .arrays import table, vector
from .errors import UserError

METRICS = ("auroc", "fpr95_id", "fpr95_ood", "aupr_in", "aupr_out")
LOWER_IS_BETTER = ("fpr95_id", "fpr95_ood")
RECALL = 95  # per cent; an integer, so that ceil(0.95 n) does not depend on how 0.95 is rounded
_ELEMENTS = 2**18  # images x draws worked on at once: fits a core's cache and keeps memory below 100 MB


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


def bootstrap(id_scores: Any, ood_scores: Any, n: int = 1000, seed: int = 0) -> dict[str, Interval]:
    """95 % percentile intervals of the five metrics from ``bootstrap_draws``; errors as ``ood_metrics``.

    ``ood_scores`` is one array, or a mapping set name -> array: then the intervals are those of the mean over
    the sets. An interval speaks of the test images only, not of training noise. Where a metric sits on its
    bound (FPR95 = 0) it is degenerate, as for every percentile bootstrap.
    """
    draws = np.mean([*bootstrap_draws(id_scores, ood_scores, n, seed).values()], axis=0)
    limits = np.quantile(draws[0], [0.025, 0.975], axis=0).T.tolist()
    return {name: Interval(*pair) for name, pair in zip(METRICS, limits, strict=True)}


def paired_bootstrap(
    id_a: Any, ood_a: Any, id_b: Any, ood_b: Any, n: int = 1000, seed: int = 0
) -> dict[str, Difference]:
    """Method a minus method b per metric, both scored on the SAME images in the same order.

    ``ood_a``, ``ood_b``: as in ``bootstrap``. Each draw takes the same images for both, so what both find
    hard cancels. A negative difference of an FPR95, or a positive one of AUROC/AUPR, says that a is better.
    Raises UserError as ``ood_metrics`` and for unequal sets or numbers of images.
    """
    sets_a, sets_b = _as_sets(ood_a), _as_sets(ood_b)
    if set(sets_a) != set(sets_b):
        raise UserError(f"ood_a has {sorted(sets_a)} but ood_b {sorted(sets_b)}; give both the same sets.")
    inside = _stack(id_a, id_b, "id")
    outside = {name: _stack(sets_a[name], sets_b[name], name) for name in sets_a}
    points = np.mean([_points(inside, scores) for scores in outside.values()], axis=0)
    draws = np.mean([*bootstrap_draws(inside, outside, n, seed).values()], axis=0)
    limits = np.quantile(draws[0] - draws[1], [0.025, 0.975], axis=0)
    rows = np.stack([points[0] - points[1], *limits], axis=1).tolist()
    return {name: Difference(*row) for name, row in zip(METRICS, rows, strict=True)}


def bootstrap_draws(id_scores: Any, ood_scores: Any, n: int = 1000, seed: int = 0) -> dict[str, np.ndarray]:
    """Every draw of every metric: set name -> (M, n, 5) float64, the last axis in the order of ``METRICS``.

    ``id_scores`` is (n_id,) or (M, n_id): M scorings of the same images; ``ood_scores`` the same shape per
    set, one array (the set "ood") or a mapping. ID and OoD images are drawn apart, with replacement: draw b
    takes the same images for all M scorings, and the same ID images for all sets, so any difference or mean
    of the results is a paired or shared bootstrap, exact on ties. The draws of a set depend on ``seed``, its
    name and its size alone. Raises UserError as ``ood_metrics``.
    """
    if n < 1:
        raise UserError(f"n is {n}, but a bootstrap needs at least one draw; give a number such as 1000.")
    inside = _rows(id_scores, "id_scores")
    outside = {name: _rows(scores, f"ood_scores[{name!r}]") for name, scores in _as_sets(ood_scores).items()}
    if wrong := [name for name, scores in outside.items() if len(scores) != len(inside)]:
        raise UserError(f"{wrong[0]!r} has not {len(inside)} scorings as the ID set; score every set alike.")
    sorted_id = [_Distinct(scores) for scores in inside]
    largest = max(scores.shape[1] for scores in (inside, *outside.values()))
    step = min(n, max(1, _ELEMENTS // largest))
    pairs, ood_counts, parts = {}, {}, {}
    for name, scores in outside.items():
        pairs[name] = [_Pair(i, _Distinct(o)) for i, o in zip(sorted_id, scores, strict=True)]
        ood_counts[name] = _counts(scores.shape[1], n, step, (seed, zlib.crc32(name.encode())))
        parts[name] = []
    for id_part in _counts(inside.shape[1], n, step, (seed, 0)):
        cumulated = [scoring.cumulate(id_part) for scoring in sorted_id]  # once, for all sets
        for name, generator in ood_counts.items():
            ood_part = next(generator)
            both = zip(pairs[name], cumulated, strict=True)
            parts[name].append(np.stack([pair.draw(*c, *pair.ood.cumulate(ood_part)) for pair, c in both]))
    return {name: np.concatenate(part, axis=1) for name, part in parts.items()}


class _Distinct:
    """The distinct values of an array, ascending, and the way from counts per item to counts per value."""

    def __init__(self, scores: np.ndarray) -> None:
        self.order = np.argsort(scores, kind="stable")
        ordered = scores[self.order]
        self.starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        self.values = ordered[self.starts]

    def cumulate(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Counts per item (n, b) -> counts per value (u, b) and their exclusive running sum (u + 1, b)."""
        counts = np.take(counts, self.order, axis=0)
        if len(self.starts) < len(self.order):
            counts = np.add.reduceat(counts, self.starts, axis=0)
        below = np.zeros((len(counts) + 1, counts.shape[1]), np.int32)
        np.cumsum(counts, axis=0, out=below[1:])
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
        n, m, draw = int(id_below[-1, 0]), int(ood_below[-1, 0]), np.arange(w.shape[1])
        id_upto = id_below[self.id_upto_ood]
        smaller = id_below[self.id_below_ood] + id_upto  # twice the ID images under an OoD score, ties once
        auroc = 1.0 - np.einsum("ib,ib->b", v, smaller, dtype=np.float64) / (2.0 * n * m)
        at = (id_below[1:] < n - _needed(n) + 1).sum(axis=0)  # the k-th largest ID value of each draw
        fpr95_id = 1.0 - ood_below[self.ood_below_id[at], draw] / m
        at = (ood_below[1:] < _needed(m)).sum(axis=0)
        fpr95_ood = id_below[self.id_upto_ood[at], draw] / n
        aupr_in = _average_precision(w / n, n - id_below[:-1], m - ood_below[self.ood_below_id])
        aupr_out = _average_precision(v / m, ood_below[1:], id_upto)
        return np.stack([auroc, fpr95_id, fpr95_ood, aupr_in, aupr_out], axis=1)


def _average_precision(gain: np.ndarray, true: np.ndarray, false: np.ndarray) -> np.ndarray:
    """Sum over thresholds of precision times ``gain`` in recall; all (u, b), the last two counts."""
    precision = true / np.maximum(true + false, 1)  # 0/0 only where the gain is 0 too
    return np.einsum("ib,ib->b", gain, precision)


def _counts(items: int, draws: int, step: int, seed: tuple[int, int]) -> Iterator[np.ndarray]:
    """How often each image is drawn: (items, <= step) int32 at a time, the same whatever ``step``."""
    generator = np.random.default_rng(seed)
    for start in range(0, draws, step):
        b = min(step, draws - start)
        drawn = generator.integers(0, items, size=(b, items)) * b + np.arange(b)[:, None]
        yield np.bincount(drawn.ravel(), minlength=items * b).reshape(items, b).astype(np.int32)


def _needed(n: int) -> int:
    """ceil(0.95 n): how many of n positives must be accepted."""
    return -(-RECALL * int(n) // 100)


def _fpr95(positive: np.ndarray, negative: np.ndarray) -> float:
    """Share of negatives at or above the ceil(0.95 n)-th largest positive score."""
    k = len(positive) - _needed(len(positive))
    return float(np.mean(negative >= np.partition(positive, k)[k]))


def _points(inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """Metrics of M scorings, (M, 5)."""
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
