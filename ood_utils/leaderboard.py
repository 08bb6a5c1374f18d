"""Every score of every method on every out-of-distribution (OoD) set, with intervals, as tidy tables.

A *method* is a way to train ("zero-shot", "FLYP", "CMA"), a *score* a way to read its embeddings ("MCM",
"NegLabel"). Metrics are fractions in [0, 1]; ``fpr95_id`` and ``fpr95_ood`` are told apart in ``metrics``.
Intervals are 95 % bootstrap intervals over TEST IMAGES; the spread over training seeds stands beside them and
is never mixed in. Averages over sets weigh each set alike and get intervals of their own (the ID resample is
shared by the sets).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from . import methods, metrics
from .errors import UserError, nearest
from .metrics import LOWER_IS_BETTER, METRICS

if TYPE_CHECKING:
    from .config import Profile
    from .embeddings import StudyEmbeddings

# averages that published tables print; added where all their sets were scored. Named apart from our groups,
# so that no other world's "average near" is ever laid beside a paper's
BENCHMARKS = {
    "MOS": ("iNaturalist", "SUN", "Places", "Textures"),
    "OpenOOD near": ("SSB-hard", "NINCO"),
    "OpenOOD far": ("iNaturalist-OpenOOD", "Textures-OpenOOD", "OpenImage-O"),
}
_GROUPS = ("near", "far", "unseen")
_KEYS = ["method", "score", "set", "group", "average"]


@dataclass(frozen=True)
class ScoreBook:
    """Every image's score under every (method, seed, score), the M rows ``keys`` of all arrays; higher = more
    ID.

    ``id`` (M, n_id); ``ood``: set -> (M, n_set); ``groups``: set -> near, far, unseen, ...; ``draws`` and
    ``draw_seed`` of the bootstrap, which is computed once, when first asked for.
    """

    keys: list[tuple[str, int, str]]
    id: np.ndarray = field(repr=False)
    ood: dict[str, np.ndarray] = field(repr=False)
    groups: dict[str, str]
    draws: int = 1000
    draw_seed: int = 0

    def scores(self, method: str, score: str, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(ID scores (n_id,), set -> scores (n_set,)) of one row, for histograms and ROC curves."""
        if (method, seed, score) not in self.keys:
            known = _listed(self.keys)
            raise UserError(f"No scores of {method!r}, seed {seed}, {score!r}; there are {known}.")
        row = self.keys.index((method, seed, score))
        return self.id[row], {name: values[row] for name, values in self.ood.items()}

    @cached_property
    def averages(self) -> dict[str, list[str]]:
        """Group -> its sets: near, far, unseen, any other group, published benchmarks, and "all"."""
        groups = list(self.groups.values())
        present = dict.fromkeys([g for g in _GROUPS if g in groups] + groups)
        found = {group: [name for name, g in self.groups.items() if g == group] for group in present}
        found |= {name: list(sets) for name, sets in BENCHMARKS.items() if set(sets) <= set(self.groups)}
        return {**found, "all": list(self.groups)}

    @cached_property
    def points(self) -> dict[str, np.ndarray]:
        """Set or "average <group>" -> (M, 5) metrics in the order of ``METRICS``."""
        return self._with_averages({name: _points(self.id, ood) for name, ood in self.ood.items()})

    @cached_property
    def resampled(self) -> dict[str, np.ndarray]:
        """Set or "average <group>" -> (M, draws, 5): the bootstrap, the same images in every row."""
        return self._with_averages(metrics.bootstrap_draws(self.id, self.ood, self.draws, self.draw_seed))

    def table(self) -> pd.DataFrame:
        """The leaderboard: one row per method, seed, score and set.

        Columns: method, seed, score, set, group, average (True for the rows "average near", "average far",
        ..., "average all"), n_id, n_ood, the five metrics (fractions), and
        ``<metric>_low``/``<metric>_high``.
        """
        return pd.concat([self._rows(name) for name in self.points], ignore_index=True)

    def _rows(self, name: str) -> pd.DataFrame:
        average = name not in self.ood
        group = name.removeprefix("average ") if average else self.groups[name]
        members = self.averages[group] if average else [name]
        frame = pd.DataFrame(self.keys, columns=["method", "seed", "score"])
        frame = frame.assign(set=name, group=group, average=average, n_id=self.id.shape[1])
        frame["n_ood"] = sum(self.ood[member].shape[1] for member in members)
        frame[list(METRICS)] = self.points[name]
        low, high = np.quantile(self.resampled[name], [0.025, 0.975], axis=1)
        for k, metric in enumerate(METRICS):
            frame[f"{metric}_low"], frame[f"{metric}_high"] = low[:, k], high[:, k]
        return frame

    def _with_averages(self, by_set: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        members = {f"average {group}": sets for group, sets in self.averages.items()}
        return by_set | {name: np.mean([by_set[s] for s in sets], axis=0) for name, sets in members.items()}


def image_scores(
    models: Mapping[tuple[str, int], StudyEmbeddings],
    profile: Profile,
    split: Literal["test", "validation"] = "test",
    names: Sequence[str] = (),
) -> ScoreBook:
    """Score every image with every model, (method, seed) -> embeddings with the negative labels that all
    share.

    The profile gives temperature, groups and the number of bootstrap draws. ``split``: "test" (id_test and
    the OoD test sets) or "validation" (id_val and the validation sets), on which every choice is made.
    ``names``: the scores wanted, by default all whose needs are met; only these are computed. Raises
    UserError if a model lacks a set, if models disagree on the images, for an unknown score, or if there is
    nothing to score.
    """
    if split not in ("test", "validation"):
        raise UserError(f"split is {split!r}; choose 'test' or 'validation'.")
    id_set = "id_test" if split == "test" else "id_val"
    sets = next(iter(models.values())).of_split(split) if models else {}
    if not sets:
        raise UserError(f"There is nothing to score: {len(models)} models, {len(sets)} OoD {split} sets.")
    keys, rows = [], []
    for (method, seed), embedded in models.items():
        scored = {name: _scored(evidence_of(embedded, name, profile), names) for name in [id_set, *sets]}
        for score in scored[id_set]:
            keys.append((method, seed, score))
            rows.append({name: by_score[score] for name, by_score in scored.items()})
    stacked = {name: _stacked([row[name] for row in rows], name) for name in rows[0]}
    inside = stacked.pop(id_set)
    return ScoreBook(keys, inside, stacked, {name: s.group for name, s in sets.items()}, profile.bootstrap)


def evidence_of(embedded: StudyEmbeddings, name: str, profile: Profile) -> methods.Evidence:
    """What methods may judge the images of one set by. UserError when the set was not embedded."""
    if name not in embedded.sets:
        raise UserError(f"There are no embeddings of the set {name!r}{nearest(name, embedded.sets)}")
    texts = embedded.class_text, embedded.negative_text
    return methods.Evidence(embedded[name].rows, *texts, profile.temperature, profile.groups)


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds of a book's table: the same columns without ``seed``, plus ``seeds`` and
    ``<metric>_std``.

    ``_std`` is the sample standard deviation over seeds (NaN for one seed). ``_low``/``_high`` are the means
    of the seeds' bounds, a little wider than the interval of the mean itself, which ``differences`` computes
    exactly.
    """
    wanted = [c for metric in METRICS for c in (metric, f"{metric}_low", f"{metric}_high")]
    grouped = frame.groupby(_KEYS, sort=False)
    summary = grouped[["n_id", "n_ood", *wanted]].mean()
    spread = grouped[list(METRICS)].std().add_suffix("_std")
    return pd.concat([grouped.size().rename("seeds"), summary, spread], axis=1).reset_index()


def differences(
    book: ScoreBook, pairs: Iterable[tuple[str, str]], every_set: bool = False, score: str | None = None
) -> pd.DataFrame:
    """Method a minus method b for each pair (a, b), on the same images: a paired bootstrap, averaged over
    seeds.

    One row per pair, score, average (with ``every_set`` also per set) and metric: a, b, score, set, group,
    average, metric, ``difference`` of the seed means, its 95 % interval ``low``/``high`` over test images
    (seeds held fixed), ``seed_min``/``seed_max`` (the single seeds' differences: matched where a and b have
    the same seeds, else all combinations) and ``verdict``: "better" or "worse" (of a) where the interval
    leaves out 0, else "no difference". ``score`` keeps one score only. Raises UserError for a method that was
    not scored.
    """
    wanted = [name for name in dict.fromkeys(key[2] for key in book.keys) if score in (None, name)]
    sets = [name for name in book.points if every_set or name not in book.ood]
    rows = [_difference_rows(book, *pair, name, where) for pair in pairs for name in wanted for where in sets]
    return pd.DataFrame([row for part in rows for row in part])


def verdict(
    frame: pd.DataFrame, a: str, b: str, metric: str = "fpr95_id", score: str = "NegLabel", group: str = "all"
) -> dict[str, Any]:
    """One row of ``differences`` as a dict, with a ``sentence`` that says it plainly, seeds that disagree
    included.

    Raises UserError if the table has no such row.
    """
    wanted = {"a": a, "b": b, "metric": metric, "score": score, "group": group, "average": True}
    found = frame[(frame[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    if len(found) != 1:
        asked = f"{a} - {b}, {score}, {metric}, average {group}"
        raise UserError(f"The table holds {len(found)} rows for {asked}; make it with differences first.")
    row = found.iloc[0].to_dict()
    claims = {"better": f"{a} is better than {b}", "worse": f"{a} is worse than {b}"}
    claim = claims.get(row["verdict"], f"{a} and {b} do not differ measurably")
    doubt = "; the seeds disagree on the sign" if row["seed_min"] < 0 < row["seed_max"] else ""
    change, low, high = (f"{100 * row[part]:+.2f}" for part in ("difference", "low", "high"))
    row["sentence"] = (
        f"{claim} in {metric} ({score}, {row['set']}): {change} points, 95 % interval {low} to {high} "
        f"over test images{doubt}."
    )
    return row


def paper_tables(source: str | None = None, table: int | None = None) -> pd.DataFrame:
    """Published numbers as fractions, kept beside the code; ``source`` and ``table`` choose a part.

    Columns: source, table, method, score, set, fpr95_id, auroc, id_accuracy, convention, note. They are
    references, never results of ours; ``convention`` names the positive class of the source's FPR95.
    UserError for an unknown part.
    """
    with resources.files("ood_utils").joinpath("assets/paper_tables.csv").open("rb") as file:
        types = {"table": "Int64", "note": "string"}
        frame = pd.read_csv(file, keep_default_na=False, na_values=[""], dtype=types)
    for column, value in (("source", source), ("table", table)):
        if value is not None and value not in set(frame[column]):
            known = _listed(frame[column].unique())
            raise UserError(f"paper_tables has no {column} {value!r}; it has {known}.")
        frame = frame if value is None else frame[frame[column].eq(value).fillna(False)]
    return frame.reset_index(drop=True)


def against_paper(frame: pd.DataFrame, paper: pd.DataFrame) -> pd.DataFrame:
    """Published numbers beside ours, one row per source, table, method, score, set and metric.

    Further columns: paper, ours, low, high (our interval), difference, verdict. ``frame`` is a book's table
    or ``summarise``'s; ``paper`` (part of) ``paper_tables()``. Rows meet by method, score and set.
    ``difference`` is ours minus paper; ``verdict``: "agrees" where our interval holds the paper's number,
    "better"/"worse" (ours) where not, "not measured" where we have none. Metrics: fpr95_id, auroc.
    """
    ours = summarise(frame) if "seed" in frame else frame
    joined = paper.merge(ours, on=["method", "score", "set"], how="left", suffixes=("_paper", ""))
    parts = []
    for metric in ("fpr95_id", "auroc"):
        columns = {
            f"{metric}_paper": "paper",
            metric: "ours",
            f"{metric}_low": "low",
            f"{metric}_high": "high",
        }
        part = joined[["source", "table", "method", "score", "set", *columns]].rename(columns=columns)
        part.insert(5, "metric", metric)
        parts.append(part[part["paper"].notna()])
    result = pd.concat(parts).sort_index(kind="stable").reset_index(drop=True)
    result["difference"] = result["ours"] - result["paper"]
    result["verdict"] = [
        _word(row.metric, row.low - row.paper, row.high - row.paper, "agrees")
        if row.ours == row.ours  # not NaN
        else "not measured"
        for row in result.itertuples()
    ]
    return result


def _points(inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """Metrics of M scorings of the same images, (M, 5)."""
    found = [metrics.ood_metrics(i, o) for i, o in zip(inside, outside, strict=True)]
    return np.array([list(each.values().values()) for each in found])


def _scored(evidence: methods.Evidence, names: Sequence[str]) -> dict[str, np.ndarray]:
    return {name: methods.find(name)(evidence) for name in names or methods.names(evidence)}


def _stacked(rows: list[np.ndarray], name: str) -> np.ndarray:
    if len(sizes := {len(row) for row in rows}) > 1:
        counts = sorted(sizes)
        raise UserError(f"The models embedded {counts} images of {name!r}; embed the same images with each.")
    return np.stack(rows)


def _difference_rows(book: ScoreBook, a: str, b: str, score: str, image_set: str) -> list[dict[str, Any]]:
    """The five metrics' rows of one pair, score and set."""
    at_a, at_b = _rows_of(book, a, score), _rows_of(book, b, score)
    points, draws = book.points[image_set], book.resampled[image_set]
    delta = points[list(at_a.values())].mean(axis=0) - points[list(at_b.values())].mean(axis=0)
    drawn = draws[list(at_a.values())].mean(axis=0) - draws[list(at_b.values())].mean(axis=0)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    combined = [(s, s) for s in at_a] if at_a.keys() == at_b.keys() else list(product(at_a, at_b))
    single = np.array([points[at_a[s]] - points[at_b[t]] for s, t in combined])
    average = image_set not in book.ood
    group = image_set.removeprefix("average ") if average else book.groups[image_set]
    common = {"a": a, "b": b, "score": score, "set": image_set, "group": group, "average": average}
    return [
        {
            **common, "metric": metric, "difference": delta[k], "low": low[k], "high": high[k],
            "seed_min": single[:, k].min(), "seed_max": single[:, k].max(),
            "verdict": _word(metric, low[k], high[k], "no difference"),
        }
        for k, metric in enumerate(METRICS)
    ]  # fmt: skip


def _rows_of(book: ScoreBook, method: str, score: str) -> dict[int, int]:
    """Seed -> row of a method's score."""
    rows = {seed: row for row, (m, seed, s) in enumerate(book.keys) if (m, s) == (method, score)}
    if not rows:
        known = _listed(m for m, _, _ in book.keys)
        raise UserError(f"No scores of {method!r} with {score!r}; the book has {known}.")
    return rows


def _word(metric: str, low: float, high: float, neither: str) -> str:
    if low <= 0 <= high:
        return neither
    return "better" if (high < 0) == (metric in LOWER_IS_BETTER) else "worse"


def _listed(items: Iterable[Any]) -> str:
    return ", ".join(str(item) for item in dict.fromkeys(items))
