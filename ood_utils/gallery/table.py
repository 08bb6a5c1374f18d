"""The gallery's one table, and which of its rows cannot be told apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from .. import leaderboard, metrics
from ..leaderboard import ScoreBook
from . import find
from .board import Board

SHOWN = ("auroc", "fpr95_id", "fpr95_ood")
LARGE = 20  # images from which an OoD class is large enough to have an FPR95 of its own


class Claim(NamedTuple):
    """Of two rows (model, score) a is said to be better on a group of sets."""

    claim: str
    a: tuple[str, str]
    b: tuple[str, str]
    group: str = "all"


def table(board: Board, book: ScoreBook) -> pd.DataFrame:
    """One row per model and score, mean over seeds, the best AUROC over all sets first.

    Columns: model, score, year (of the score), seeds, accuracy (of ID classes on id_test), centroid_gap
    (there too; NaN where a head stands for the texts), then for each group of sets and "all" auroc, fpr95_id
    and fpr95_ood (``auroc near``) with ``_low``/``_high`` over seeds and images, worst class (see
    ``worst_class``), data (training data used), seconds to adapt, parameters trained, microseconds per image
    to score.
    """
    summary = leaderboard.summarise(book)
    means, parts = summary[summary.average], []
    for metric in SHOWN:
        for end in ("", "_low", "_high"):
            wide = means.pivot_table(metric + end, ["method", "score"], "group", sort=False)
            parts.append(wide.add_prefix(f"{metric}{end} "))
    frame = pd.concat(parts, axis=1)
    named = board.facts.rename(columns={"model": "method"})
    numbers = [
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "centroid_gap",
        "seconds",
        "parameters",
        "microseconds",
    ]
    facts = named.groupby(["method", "score"], sort=False)[numbers].mean()
    facts["data"] = named.groupby(["method", "score"], sort=False)["data"].first()
    facts["seeds"] = named.groupby(["method", "score"], sort=False).size()
    facts["worst class"] = worst_class(book)
    frame = facts.join(frame).reset_index().rename(columns={"method": "model"})
    frame.insert(2, "year", [find("scores", name).year for name in frame.score])
    return frame.sort_values("auroc all", ascending=False, kind="stable", ignore_index=True)


def worst_class(book: ScoreBook) -> pd.Series:
    """(method, score) -> FPR95 (ID positive) of the OoD class that is accepted most, mean over seeds.

    A class is a cluster of at least ``LARGE`` images; a set without such counts as one class.
    """
    needed = int(np.ceil(0.95 * book.id.shape[1]))
    threshold = np.sort(book.id, axis=1)[:, -needed][:, None]
    shares = []
    for name, scores in book.ood.items():
        accepted, own = scores >= threshold, book.ood_clusters.get(name)
        codes = metrics.cluster_codes(own, scores.shape[1], name)
        large = np.flatnonzero(np.bincount(codes) >= LARGE)
        shares += [accepted[:, codes == k].mean(axis=1) for k in large] or [accepted.mean(axis=1)]
    keys = pd.DataFrame(book.keys, columns=["method", "seed", "score"])
    return keys.assign(worst=np.max(shares, axis=0)).groupby(["method", "score"], sort=False)["worst"].mean()


def claims(book: ScoreBook, asked: Iterable[Claim]) -> pd.DataFrame:
    """What others claim, judged here: one row each, in AUROC, averaged over a group's sets.

    Columns: claim, a, b ("model · score"), group, difference (a minus b), low, high, p_holm (corrected over
    all that are asked), verdict: "holds" where a is better, "the reverse" where it is worse, "not settled",
    or "not measured" where a row is missing.
    """
    rows = {(model, score): book.rows(model, score) for model, _, score in book.keys}
    listed, k = list(asked), metrics.METRICS.index("auroc")
    there = [{one.a, one.b} <= rows.keys() and one.group in book.averages for one in listed]
    known = [one for one, is_there in zip(listed, there, strict=True) if is_there]
    found = book.estimates((f"average {one.group}", rows[one.a], rows[one.b]) for one in known)
    numbers = np.full((len(listed), 4), np.nan)
    if known:
        numbers[there] = np.array([[part[k] for part in one] for one in found])
        numbers[there, 3] = metrics.holm(numbers[there, 3])
    said = [(one.claim, " · ".join(one.a), " · ".join(one.b), one.group) for one in listed]
    frame = pd.DataFrame(said, columns=["claim", "a", "b", "group"])
    frame[["difference", "low", "high", "p_holm"]] = numbers
    settled, missing = frame.p_holm.round(4) < leaderboard.ALPHA, frame.p_holm.isna()
    cases = {"not measured": missing, "not settled": ~settled, "holds": frame.difference > 0}
    return frame.assign(verdict=np.select(list(cases.values()), list(cases), "the reverse"))


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
    apart = {pair for pair, value in zip(pairs, np.round(p, 4), strict=True) if value < leaderboard.ALPHA}
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
