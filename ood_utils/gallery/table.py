"""The gallery's one table, and which of its rows cannot be told apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from .. import leaderboard, metrics
from ..leaderboard import ScoreBook
from ..metrics import Interval
from . import find
from .board import BESIDE, PLAIN, Board, Stream

Row = tuple[str, str]  # (model, score)
SHOWN = ("auroc", "fpr95_id", "fpr95_ood")
LARGE = 20  # images from which an OoD class is large enough to have an FPR95 of its own


def table(board: Board, book: ScoreBook) -> pd.DataFrame:
    """One row per model and score, mean over seeds, the best AUROC over all sets first.

    Columns: model, score, year (of the score), accuracy (of ID classes on id_test), seeds, then for each
    group of sets and "all" auroc, fpr95_id and fpr95_ood (``auroc near``) with ``_low``/``_high`` over seeds
    and images, worst class (see ``worst_class``), data (training data used), centroid_gap (on id_test; NaN
    where a head stands for the texts), parameters trained, seconds to adapt, microseconds per image to score.
    """
    summary = leaderboard.summarise(book)
    means = _by_group(summary[summary.average], "method")
    named = board.facts.rename(columns={"model": "method"}).groupby(["method", "score"], sort=False)
    first = named[["accuracy", "accuracy_low", "accuracy_high"]].mean().assign(seeds=named.size())
    cost = named[["centroid_gap", "parameters", "seconds", "microseconds"]].mean()
    cost.insert(0, "data", named["data"].first())
    frame = pd.concat([first, means, worst_class(book).rename("worst class"), cost], axis=1).reset_index()
    frame = frame.rename(columns={"method": "model"})
    frame.insert(2, "year", [find("scores", name).year for name in frame.score])
    return frame.sort_values("auroc all", ascending=False, kind="stable", ignore_index=True)


def _by_group(means: pd.DataFrame, model: str) -> pd.DataFrame:
    """Rows of a ``model`` column, score and group -> a row per model and score; columns "auroc near" etc."""
    parts = []
    for name in [metric + end for metric in SHOWN for end in ("", "_low", "_high")]:
        wide = means.pivot_table(name, [model, "score"], "group", sort=False)
        parts.append(wide.add_prefix(f"{name} "))
    return pd.concat(parts, axis=1)


def adaptive(streams: pd.DataFrame) -> pd.DataFrame:
    """The rows of adaptive scores as ``table`` has them, by the plain test streams; the best AUROC first."""
    plain = plain_streams(streams)
    wide = _by_group(plain[(plain.group != "validation") & ~plain.score.isin(BESIDE)], "model")
    return wide.sort_values("auroc all", ascending=False, kind="stable").reset_index()


def plain_streams(streams: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``streams`` whose stream is balanced and shuffled."""
    return streams[(streams.order == PLAIN[0]) & (streams.ratio == PLAIN[1])]


def worst_class(book: ScoreBook) -> pd.Series:
    """(method, score) -> FPR95 (ID positive) of the OoD class that is accepted most, mean over seeds.

    A class is a cluster of at least ``LARGE`` images; a set without such counts as one class.
    """
    threshold, shares = metrics.threshold(book.id)[:, None], []
    for name, scores in book.ood.items():
        accepted, own = scores >= threshold, book.ood_clusters.get(name)
        codes = metrics.cluster_codes(own, scores.shape[1], name)
        large = np.flatnonzero(np.bincount(codes) >= LARGE)
        shares += [accepted[:, codes == k].mean(axis=1) for k in large] or [accepted.mean(axis=1)]
    keys = pd.DataFrame(book.keys, columns=["method", "seed", "score"])
    return keys.assign(worst=np.max(shares, axis=0)).groupby(["method", "score"], sort=False)["worst"].mean()


def streams(board: Board, draws: int = 200) -> pd.DataFrame:
    """One row per model, score, condition of the test stream and group of sets ("all" test sets too): means.

    Columns: model, score, order, ratio, group, streams, auroc, fpr95_id, fpr95_ood with ``_low``/``_high``:
    the mean over streams of each one's 95 % interval over its images (other streams of the same images do
    not make it narrower), ``auroc_min``/``auroc_max`` of single streams.
    """
    rows = []
    for (model, score, order, ratio, seed), found in _by_stream(board).items():
        drawn = {name: _resampled(board, [one], draws)[0] for name, one in found.items()}
        for group, own in _groups(board, found).items():
            if not own:
                continue
            mean = np.mean([drawn[name] for name in own], axis=0)
            ends = np.quantile(mean[1:], [0.025, 0.975], axis=0).T.ravel()
            rows.append([model, score, order, ratio, seed, group, *mean[0], *ends])
    ends = [f"{metric}_{end}" for metric in SHOWN for end in ("low", "high")]
    frame = pd.DataFrame(rows, columns=["model", "score", "order", "ratio", "seed", "group", *SHOWN, *ends])
    by = frame.groupby(["model", "score", "order", "ratio", "group"], sort=False)
    single = by["auroc"].agg(streams="size", auroc_min="min", auroc_max="max")
    return by[[*SHOWN, *ends]].mean().join(single).reset_index()


def stream_difference(board: Board, a: Row, b: Row, draws: int = 1000) -> Interval:
    """AUROC of row a minus row b, (model, score), on the plain test streams, mean over sets.

    The 95 % interval, paired over images: the mean over streams of each one's.
    """
    by, ends = _by_stream(board), []
    for key in [key for key in by if key[:4] == (*a, *PLAIN) and (*b, *key[2:]) in by]:
        other = by[(*b, *key[2:])]
        own = _groups(board, by[key])["all"]
        pairs = [_resampled(board, [by[key][name], other[name]], draws)[:, 1:, 0] for name in own]
        ends.append(np.quantile(np.mean([a - b for a, b in pairs], axis=0), [0.025, 0.975]))
    return Interval(*np.mean(ends, axis=0))


def _by_stream(board: Board) -> dict[tuple, dict[str, Stream]]:
    """(model, score, order, ratio, seed) -> its streams by set."""
    found: dict[tuple, dict[str, Stream]] = {}
    for one in board.streams:
        found.setdefault((one.model, one.score, one.order, one.ratio, one.seed), {})[one.set] = one
    return found


def _groups(board: Board, sets: Iterable[str]) -> dict[str, list[str]]:
    """Group -> which of the sets are in it; "all": the test sets."""
    of = {name: board.embedded[name].group for name in sets}
    found = {group: [name for name in of if of[name] == group] for group in dict.fromkeys(of.values())}
    return found | {"all": [name for name in of if of[name] != "validation"]}


def _resampled(board: Board, ones: Sequence[Stream], draws: int) -> np.ndarray:
    """(streams, 1 + draws, 3): the metrics ``SHOWN`` of streams of the same images, and their bootstrap."""
    first, outside = ones[0], board.embedded[ones[0].set]
    inside = board.embedded["id_val" if outside.group == "validation" else "id_test"]
    clusters = inside.together[first.found.id_index], outside.together[first.found.ood_index]
    both = [np.stack(scores) for scores in zip(*(one.found[:2] for one in ones), strict=True)]
    drawn = metrics.bootstrap_draws(both[0], both[1], draws, first.seed, *clusters)["ood"]
    return np.concatenate([metrics.point_metrics(*both)[:, None], drawn], axis=1)[..., : len(SHOWN)]


def cliques(
    book: ScoreBook, rows: Sequence[tuple[str, str]], metric: str = "auroc", group: str = "all"
) -> tuple[pd.DataFrame, list[tuple[int, int]]]:
    """Which of some rows (model, score) cannot be told apart in a metric, averaged over a group's sets.

    Returns a frame, the best first: model, score, value, low, high; and cliques, (first, last) places in it
    of the longest runs in which no pair differs: paired over images and seeds as ``leaderboard.differences``,
    p corrected by Holm over all pairs, 0.05.
    """
    name, k = f"average {group}", metrics.METRICS.index(metric)
    at = [book.rows(*row) for row in rows]
    found = book.estimates((name, of, None) for of in at)
    values = np.array([[one.value[k], one.low[k], one.high[k]] for one in found])
    order = np.argsort(values[:, 0] if metric in metrics.LOWER_IS_BETTER else -values[:, 0], kind="stable")
    pairs = list(combinations(range(len(rows)), 2))
    asked: list[Any] = [(name, at[order[i]], at[order[j]]) for i, j in pairs]
    p = metrics.holm(np.array([one.p[k] for one in book.estimates(asked)])) if pairs else np.array([])
    apart = {pair for pair, value in zip(pairs, leaderboard.settled(p), strict=True) if value}
    frame = pd.DataFrame([rows[i] for i in order], columns=["model", "score"])
    frame[["value", "low", "high"]] = values[order]
    return frame, _runs(len(rows), apart)


def _runs(count: int, apart: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """The longest runs (first, last) of 0 .. count - 1 without a pair that is apart; no single places."""
    found: list[tuple[int, int]] = []
    for first in range(count):
        last = first
        while last + 1 < count and not any((k, last + 1) in apart for k in range(first, last + 1)):
            last += 1
        if last > first and not (found and found[-1][1] >= last):
            found.append((first, last))
    return found
