"""Every score of every method on every out-of-distribution (OoD) set, with intervals, as tidy tables.

A *method* is a way to train ("zero-shot", "FLYP", "CMA"), a *score* a way to read its embeddings ("MCM").
Metrics are fractions, named as in ``metrics``. Intervals are 95 % bootstrap intervals over TEST IMAGES; the
spread over seeds stands beside them, never mixed in. Averages weigh each set alike and share the ID resample.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any, Literal

import numpy as np
import pandas as pd

from . import methods, metrics
from .config import PACKAGE, Profile
from .embeddings import StudyEmbeddings
from .errors import UserError, nearest
from .metrics import LOWER_IS_BETTER, METRICS

# averages that published tables print; added where all their sets were scored. Named apart from our groups,
# so that no other world's "average near" is ever laid beside a paper's
BENCHMARKS = {
    "MOS": ("iNaturalist", "SUN", "Places", "Textures"),
    "OpenOOD near": ("SSB-hard", "NINCO"),
    "OpenOOD far": ("iNaturalist-OpenOOD", "Textures-OpenOOD", "OpenImage-O"),
}


@dataclass(frozen=True)
class ScoreBook:
    """Scores of every image, higher = more ID; the M rows of all arrays are ``keys``: (method, seed, score).

    ``id`` (M, n_id); ``ood``: set -> (M, n_set); ``groups``: set -> near, far, unseen, ...; ``draws``: of the
    bootstrap, which is computed once, when first asked for.
    """

    keys: list[tuple[str, int, str]]
    id: np.ndarray = field(repr=False)
    ood: dict[str, np.ndarray] = field(repr=False)
    groups: dict[str, str]
    draws: int = 1000

    def rows(self, method: str, score: str) -> dict[int, int]:
        """Seed -> row of a method's score. UserError where there is none."""
        found = {seed: row for row, (m, seed, s) in enumerate(self.keys) if (m, s) == (method, score)}
        if not found:
            known, _, by = (", ".join(map(str, dict.fromkeys(part))) for part in zip(*self.keys, strict=True))
            raise UserError(f"No scores of {method!r} with {score!r}; there are {known} with {by}.")
        return found

    def scores(self, method: str, score: str, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(ID scores (n_id,), set -> scores (n_set,)) of one row, for histograms and ROC curves."""
        rows = self.rows(method, score)
        if seed not in rows:
            raise UserError(f"{method} with {score} has no seed {seed}; choose one of {sorted(rows)}.")
        return self.id[rows[seed]], {name: values[rows[seed]] for name, values in self.ood.items()}

    @cached_property
    def averages(self) -> dict[str, list[str]]:
        """Group -> its sets: near, far, unseen, any other group, published benchmarks, and "all"."""
        groups = ("near", "far", "unseen", *self.groups.values())
        found = {group: [name for name, own in self.groups.items() if own == group] for group in groups}
        found |= {name: list(sets) for name, sets in BENCHMARKS.items() if set(sets) <= set(self.groups)}
        return {group: sets for group, sets in found.items() if sets} | {"all": list(self.groups)}

    @cached_property
    def sets(self) -> pd.DataFrame:
        """One row per set, then one per average, as ``points``: set, group, average (bool), n_id, n_ood."""
        n_id, n = self.id.shape[1], {name: scores.shape[1] for name, scores in self.ood.items()}
        rows = [(name, self.groups[name], False, n_id, n[name]) for name in n]
        for group, sets in self.averages.items():
            rows.append((f"average {group}", group, True, n_id, sum(n[name] for name in sets)))
        return pd.DataFrame(rows, columns=["set", "group", "average", "n_id", "n_ood"])

    @cached_property
    def points(self) -> dict[str, np.ndarray]:
        """Set or "average <group>" -> (M, 5) metrics in the order of ``METRICS``."""
        found = {}
        for name, ood in self.ood.items():
            rows = [metrics.ood_metrics(*both).values() for both in zip(self.id, ood, strict=True)]
            found[name] = pd.DataFrame(rows).to_numpy()
        return self._with_averages(found)

    @cached_property
    def resampled(self) -> dict[str, np.ndarray]:
        """Set or "average <group>" -> (M, draws, 5): the bootstrap, the same images in every row."""
        return self._with_averages(metrics.bootstrap_draws(self.id, self.ood, self.draws))

    def _with_averages(self, by_set: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        members = {f"average {group}": sets for group, sets in self.averages.items()}
        return by_set | {name: np.mean([by_set[s] for s in sets], axis=0) for name, sets in members.items()}

    def table(self) -> pd.DataFrame:
        """The leaderboard: one row per method, seed, score and set.

        Columns: method, seed, score, set, group, average (True for the rows "average near", "average far",
        ..., "average all"), n_id, n_ood, the five metrics, and ``<metric>_low``/``<metric>_high``.
        """
        keys = pd.DataFrame(self.keys, columns=["method", "seed", "score"])
        frame = self.sets.merge(keys, how="cross")[[*keys, *self.sets]]
        frame[list(METRICS)] = np.concatenate(list(self.points.values()))
        ends = np.quantile(list(self.resampled.values()), [0.025, 0.975], axis=2)  # (2, sets, M, 5)
        names = [f"{metric}_{end}" for metric in METRICS for end in ("low", "high")]
        frame[names] = np.moveaxis(ends, 0, -1).reshape(len(frame), -1)
        return frame


def image_scores(
    models: Mapping[tuple[str, int], StudyEmbeddings],
    profile: Profile,
    split: Literal["test", "validation"] = "test",
    names: Sequence[str] = (),
) -> ScoreBook:
    """Score every image with every model, (method, seed) -> embeddings with the negatives that all share.

    The profile gives temperature, groups and bootstrap draws. ``split``: "test" (id_test, OoD test sets) or
    "validation" (id_val, validation sets), on which every choice is made. ``names``: the scores wanted; by
    default all whose needs are met. UserError if a model lacks a set, if models disagree on the images, for
    an unknown score, or if there is nothing to score.
    """
    if split not in ("test", "validation"):
        raise UserError(f"split is {split!r}; choose 'test' or 'validation'.")
    sets = next(iter(models.values())).of_split(split) if models else {}
    if not sets:
        raise UserError(f"There is nothing to score: {len(models)} models, {len(sets)} OoD {split} sets.")
    id_set = "id_test" if split == "test" else "id_val"
    found: dict[str, dict[tuple[str, int, str], np.ndarray]] = {name: {} for name in (id_set, *sets)}
    for ((method, seed), embedded), (name, by_key) in product(models.items(), found.items()):
        evidence = evidence_of(embedded, name, profile)
        for score in names or methods.names(evidence):
            by_key[method, seed, score] = methods.find(score)(evidence)
    for name, by_key in found.items():
        if len(counts := sorted({len(scores) for scores in by_key.values()})) > 1:
            raise UserError(f"The models embedded {counts} images of {name!r}; embed the same for each.")
    stacked = {name: np.stack(list(by_key.values())) for name, by_key in found.items()}
    inside, groups = stacked.pop(id_set), {name: embedded.group for name, embedded in sets.items()}
    return ScoreBook(list(found[id_set]), inside, stacked, groups, profile.bootstrap)


def evidence_of(embedded: StudyEmbeddings, name: str, profile: Profile) -> methods.Evidence:
    """What methods may judge the images of one set by. UserError when the set was not embedded."""
    if name not in embedded.sets:
        raise UserError(f"There are no embeddings of the set {name!r}{nearest(name, embedded.sets)}")
    texts = embedded.class_text, embedded.negative_text
    return methods.Evidence(embedded[name].rows, *texts, profile.temperature, profile.groups, profile.beta)


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds of a book's table: its columns without ``seed``, plus ``seeds`` and ``<metric>_std``.

    ``_std`` is the sample standard deviation (NaN for one seed). ``_low``/``_high`` are the means of the
    seeds' bounds, a little wider than an interval of the mean, which ``differences`` computes exactly.
    """
    keys = ["method", "score", "set", "group", "average"]
    grouped = frame.drop(columns="seed").groupby(keys, sort=False)
    spread = grouped[list(METRICS)].std().add_suffix("_std")
    return pd.concat([grouped.size().rename("seeds"), grouped.mean(), spread], axis=1).reset_index()


def differences(book: ScoreBook, pairs: Iterable[tuple[str, str]]) -> pd.DataFrame:
    """Method a minus method b for each pair (a, b), averaged over seeds: a bootstrap paired by images.

    One row per pair, score, average over sets and metric: a, b, score, set, group, average, metric,
    ``difference`` of the seed means, its 95 % interval ``low``/``high`` over test images (seeds held fixed),
    ``seed_min``/``seed_max`` of the single seeds' differences (matched where a and b have the same seeds,
    else all combinations) and ``verdict``: "better" or "worse" (of a) where the interval leaves out 0, else
    "no difference". UserError for a method that was not scored.
    """
    scores = dict.fromkeys(score for _, _, score in book.keys)
    asked = [(a, b, score) for (a, b), score in product(pairs, scores)]
    sets = book.sets.loc[book.sets["average"], ["set", "group", "average"]]
    points, draws = (np.stack([held[name] for name in sets["set"]]) for held in (book.points, book.resampled))
    found = [_paired(points, draws, book.rows(a, score), book.rows(b, score)) for a, b, score in asked]
    frame = pd.DataFrame(asked, columns=["a", "b", "score"]).merge(sets, how="cross")
    frame = frame.merge(pd.Series(METRICS, name="metric"), how="cross")
    frame[["difference", "low", "high", "seed_min", "seed_max"]] = np.reshape(found, (-1, 5))
    return frame.assign(verdict=_verdicts(frame["metric"], frame["low"], frame["high"], "no difference"))


def _paired(points: np.ndarray, draws: np.ndarray, at_a: dict[int, int], at_b: dict[int, int]) -> np.ndarray:
    """(sets, metrics, 5): a - b of the seed means, its interval, least and largest of single seeds."""
    a, b = list(at_a.values()), list(at_b.values())
    difference = points[:, a].mean(axis=1) - points[:, b].mean(axis=1)
    drawn = draws[:, a].mean(axis=1) - draws[:, b].mean(axis=1)
    matched = at_a.keys() == at_b.keys()
    combined = [(row, at_b[seed]) for seed, row in at_a.items()] if matched else list(product(a, b))
    first, second = np.transpose(combined)
    single = points[:, first] - points[:, second]
    interval = np.quantile(drawn, [0.025, 0.975], axis=1)
    return np.stack([difference, *interval, single.min(axis=1), single.max(axis=1)], axis=-1)


def _verdicts(metric: pd.Series, low: pd.Series, high: pd.Series, neither: str) -> np.ndarray:
    """What the interval of a difference says of its first side; ``neither`` where the interval holds 0."""
    better = (high < 0) == metric.isin(LOWER_IS_BETTER)
    cases = {"not measured": low.isna(), neither: (low <= 0) & (high >= 0), "better": better}
    return np.select(list(cases.values()), list(cases), "worse")


def verdict(
    frame: pd.DataFrame, a: str, b: str, metric: str = "fpr95_id", score: str = "NegLabel", group: str = "all"
) -> dict[str, Any]:
    """One row of ``differences`` as a dict, with a ``sentence`` that says it and whether the seeds disagree.

    UserError if the table has no such row.
    """
    wanted = {"a": a, "b": b, "metric": metric, "score": score, "group": group}
    found = frame[(frame[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    if len(found) != 1:
        asked = f"{a} - {b}, {score}, {metric}, average {group}"
        raise UserError(f"The table holds {len(found)} rows for {asked}; make it with differences first.")
    row = found.iloc[0].to_dict()
    claims = {"better": f"{a} is better than {b}", "worse": f"{a} is worse than {b}"}
    claim = claims.get(row["verdict"], f"{a} and {b} do not differ measurably")
    change, low, high = (f"{100 * row[part]:+.2f}" for part in ("difference", "low", "high"))
    doubt = "; the seeds disagree on the sign" if row["seed_min"] < 0 < row["seed_max"] else ""
    said = f"{change} points, 95 % interval {low} to {high} over test images{doubt}."
    return row | {"sentence": f"{claim} in {metric} ({score}, {row['set']}): {said}"}


def paper_tables() -> pd.DataFrame:
    """Published numbers as fractions, kept beside the code; references, never results of ours.

    Columns: source, table, method, score, set, fpr95_id, auroc, id_accuracy, convention (the positive class
    of the source's FPR95), note.
    """
    options = {"keep_default_na": False, "na_values": [""], "dtype": {"table": "Int64", "note": "string"}}
    return pd.read_csv(PACKAGE / "assets/paper_tables.csv", **options)


def against_paper(frame: pd.DataFrame, paper: pd.DataFrame) -> pd.DataFrame:
    """Published numbers (fpr95_id, auroc) beside ours; rows meet by method, score and set.

    ``frame``: a book's table or ``summarise``'s; ``paper``: (part of) ``paper_tables()``. Columns: source,
    table, method, score, set, metric, paper, ours, low, high (our interval), difference (ours - paper), and
    verdict: "agrees" where our interval holds the paper's number, "better"/"worse" (ours), "not measured".
    """
    ours = summarise(frame) if "seed" in frame else frame
    joined = paper.merge(ours, on=["method", "score", "set"], how="left", suffixes=("_paper", ""))
    parts = []
    for metric in ("fpr95_id", "auroc"):
        part = joined[["source", "table", "method", "score", "set"]].assign(metric=metric)
        columns = [f"{metric}_paper", metric, f"{metric}_low", f"{metric}_high"]
        part[["paper", "ours", "low", "high"]] = joined[columns]
        parts.append(part.dropna(subset="paper"))
    result = pd.concat(parts).sort_index(kind="stable").reset_index(drop=True)
    result["difference"] = result["ours"] - result["paper"]
    low, high = result["low"] - result["paper"], result["high"] - result["paper"]
    return result.assign(verdict=_verdicts(result["metric"], low, high, "agrees"))
