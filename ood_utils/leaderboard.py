"""Every score of every method on every out-of-distribution (OoD) set, with intervals, as tidy tables.

A *method* is a way to train ("zero-shot", "FLYP", "CMA"), a *score* a way to read its embeddings ("MCM", "NegLabel").
Metrics are fractions in [0, 1]; ``fpr95_id`` and ``fpr95_ood`` are told apart in ``metrics``. Intervals are 95 %
bootstrap intervals over TEST IMAGES; the spread over training seeds stands beside them and is never mixed in.
Averages over sets weigh each set alike and get intervals of their own (the ID resample is shared by the sets).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from itertools import product
from typing import Any, Literal

import numpy as np
import pandas as pd

from . import metrics, scores
from .errors import UserError
from .metrics import LOWER_IS_BETTER, METRICS

# averages that published tables print; added where all their sets were scored. Named apart from our groups, so that
# no other world's "average near" is ever laid beside a paper's
BENCHMARKS = {
    "MOS": ("iNaturalist", "SUN", "Places", "Textures"),
    "OpenOOD near": ("SSB-hard", "NINCO"),
    "OpenOOD far": ("iNaturalist-OpenOOD", "Textures-OpenOOD", "OpenImage-O"),
}
_GROUPS = ("near", "far", "unseen")
_KEYS = ["method", "score", "set", "group", "average"]


@dataclass(frozen=True)
class ScoreBook:
    """Every image's score under every (method, seed, score), the M rows ``keys`` of all arrays; higher = more ID.

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
            raise UserError(
                f"No scores of {method!r}, seed {seed}, {score!r}; there are {_listed(self.keys)}."
            )
        row = self.keys.index((method, seed, score))
        return self.id[row], {name: values[row] for name, values in self.ood.items()}

    @cached_property
    def averages(self) -> dict[str, list[str]]:
        """Group -> its sets: near, far, unseen, any other group, published benchmarks, and "all"."""
        present = dict.fromkeys(
            [g for g in _GROUPS if g in self.groups.values()] + list(self.groups.values())
        )
        found = {group: [name for name, g in self.groups.items() if g == group] for group in present}
        found |= {name: list(sets) for name, sets in BENCHMARKS.items() if set(sets) <= set(self.groups)}
        return {**found, "all": list(self.groups)}

    @cached_property
    def points(self) -> dict[str, np.ndarray]:
        """Set or "average <group>" -> (M, 5) metrics in the order of ``METRICS``."""
        rows = {
            name: np.array(
                [[*metrics.ood_metrics(i, o).values().values()] for i, o in zip(self.id, ood, strict=True)]
            )
            for name, ood in self.ood.items()
        }
        return self._with_averages(rows)

    @cached_property
    def resampled(self) -> dict[str, np.ndarray]:
        """Set or "average <group>" -> (M, draws, 5): the bootstrap, the same images in every row."""
        return self._with_averages(metrics.bootstrap_draws(self.id, self.ood, self.draws, self.draw_seed))

    def table(self) -> pd.DataFrame:
        """One row per method, seed, score and set (or average): see ``evaluate``."""
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
        means = {
            f"average {g}": np.mean([by_set[s] for s in sets], axis=0) for g, sets in self.averages.items()
        }
        return {**by_set, **means}


def image_scores(
    spaces: Mapping[tuple[str, int], Any],
    study: Any,
    negatives: Any,
    profile: Any,
    split: Literal["test", "validation"] = "test",
    names: Sequence[str] = scores.SCORES,
) -> ScoreBook:
    """Score every image of ``study`` in every space: (method, seed) -> Space.

    ``negatives`` is a NegativeList, or indices into ``study.corpus``, shared by all methods. The profile gives
    temperature, groups and the number of bootstrap draws. ``split``: "test" (id_test and ``study.ood``) or
    "validation" (id_val and ``study.validation``), on which every choice is made. ``names``: the scores wanted.
    Raises UserError if a space lacks a set, if spaces disagree on the images, or if there is nothing to score.
    """
    if split not in ("test", "validation"):
        raise UserError(f"split is {split!r}; choose 'test' or 'validation'.")
    id_set, sets = ("id_test", study.ood) if split == "test" else ("id_val", study.validation)
    if not spaces or not sets:
        raise UserError(f"There is nothing to score: {len(spaces)} spaces, {len(sets)} OoD {split} sets.")
    if unknown := [name for name in names if name not in scores.SCORES]:
        raise UserError(f"No score is called {unknown[0]!r}; choose among {', '.join(scores.SCORES)}.")
    keys, rows = [], []
    for (method, seed), space in spaces.items():
        scored = _score_space(space, [id_set, *sets], negatives, profile, method)
        for name in names:
            keys.append((method, seed, name))
            rows.append({image_set: values[name] for image_set, values in scored.items()})
    stacked = {image_set: _stacked([row[image_set] for row in rows], image_set) for image_set in rows[0]}
    inside = stacked.pop(id_set)
    return ScoreBook(keys, inside, stacked, {name: s.group for name, s in sets.items()}, profile.bootstrap)


def evaluate(
    spaces: Mapping[tuple[str, int], Any],
    study: Any,
    negatives: Any,
    profile: Any,
    split: Literal["test", "validation"] = "test",
    names: Sequence[str] = scores.SCORES,
) -> pd.DataFrame:
    """The leaderboard: ``image_scores(...).table()``; keep the book instead where differences are wanted too.

    Columns: method, seed, score, set, group, average (True for the rows "average near", "average far", ...,
    "average all"), n_id, n_ood, the five metrics (fractions), and ``<metric>_low``/``<metric>_high``.
    """
    return image_scores(spaces, study, negatives, profile, split, names).table()


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds of ``evaluate``'s table: the same columns without ``seed``, plus ``seeds`` and ``<metric>_std``.

    ``_std`` is the sample standard deviation over seeds (NaN for one seed). ``_low``/``_high`` are the means of the
    seeds' bounds, a little wider than the interval of the mean itself, which ``differences`` computes exactly.
    """
    wanted = [c for metric in METRICS for c in (metric, f"{metric}_low", f"{metric}_high")]
    grouped = frame.groupby(_KEYS, sort=False)
    summary = grouped[["n_id", "n_ood", *wanted]].mean()
    spread = grouped[list(METRICS)].std().add_suffix("_std")
    return pd.concat([grouped.size().rename("seeds"), summary, spread], axis=1).reset_index()


def differences(
    book: ScoreBook, pairs: Iterable[tuple[str, str]], every_set: bool = False, score: str | None = None
) -> pd.DataFrame:
    """Method a minus method b for each pair (a, b), on the same images: a paired bootstrap, averaged over seeds.

    One row per pair, score, average (with ``every_set`` also per set) and metric: a, b, score, set, group, average,
    metric, ``difference`` of the seed means, its 95 % interval ``low``/``high`` over test images (seeds held fixed),
    ``seed_min``/``seed_max`` (the single seeds' differences: matched where a and b have the same seeds, else all
    combinations) and ``verdict``: "better" or "worse" (of a) where the interval leaves out 0, else "no difference".
    ``score`` keeps one score only. Raises UserError for a method that was not scored.
    """
    wanted = [name for name in dict.fromkeys(key[2] for key in book.keys) if score in (None, name)]
    sets = [name for name in book.points if every_set or name not in book.ood]
    rows = [
        row
        for a, b in pairs
        for name in wanted
        for image_set in sets
        for row in _difference_rows(book, a, b, name, image_set)
    ]
    return pd.DataFrame(rows)


def verdict(
    frame: pd.DataFrame, a: str, b: str, metric: str = "fpr95_id", score: str = "NegLabel", group: str = "all"
) -> dict[str, Any]:
    """One row of ``differences`` as a dict, with a ``sentence`` that says it plainly, seeds that disagree included.

    Raises UserError if the table has no such row.
    """
    found = frame.query(
        "a == @a and b == @b and metric == @metric and score == @score and group == @group and average"
    )
    if len(found) != 1:
        asked = f"{a} - {b}, {score}, {metric}, average {group}"
        raise UserError(f"The table holds {len(found)} rows for {asked}; make it with differences first.")
    row = found.iloc[0].to_dict()
    claim = {"better": f"{a} is better than {b}", "worse": f"{a} is worse than {b}"}.get(
        row["verdict"], f"{a} and {b} do not differ measurably"
    )
    doubt = "; the seeds disagree on the sign" if row["seed_min"] < 0 < row["seed_max"] else ""
    row["sentence"] = (
        f"{claim} in {metric} ({score}, {row['set']}): {100 * row['difference']:+.2f} points, 95 % interval "
        f"{100 * row['low']:+.2f} to {100 * row['high']:+.2f} over test images{doubt}."
    )
    return row


def paper_tables(source: str | None = None, table: int | None = None) -> pd.DataFrame:
    """Published numbers as fractions, kept beside the code; ``source`` and ``table`` choose a part.

    Columns: source, table, method, score, set, fpr95_id, auroc, id_accuracy, convention, note. They are references,
    never results of ours; ``convention`` names the positive class of the source's FPR95. UserError for an unknown part.
    """
    with resources.files("ood_utils").joinpath("assets/paper_tables.csv").open("rb") as file:
        frame = pd.read_csv(
            file, keep_default_na=False, na_values=[""], dtype={"table": "Int64", "note": "string"}
        )
    for column, value in (("source", source), ("table", table)):
        if value is not None and value not in set(frame[column]):
            raise UserError(
                f"paper_tables has no {column} {value!r}; it has {_listed(frame[column].unique())}."
            )
        frame = frame if value is None else frame[frame[column].eq(value).fillna(False)]
    return frame.reset_index(drop=True)


def against_paper(frame: pd.DataFrame, paper: pd.DataFrame) -> pd.DataFrame:
    """Published numbers beside ours, one row per source, table, method, score, set and metric.

    Further columns: paper, ours, low, high (our interval), difference, verdict.
    ``frame`` is the table of ``evaluate`` or ``summarise``; ``paper`` (part of) ``paper_tables()``. Rows meet by
    method, score and set. ``difference`` is ours minus paper; ``verdict``: "agrees" where our interval holds the
    paper's number, "better"/"worse" (ours) where not, "not measured" where we have none. Metrics: fpr95_id, auroc.
    """
    ours = summarise(frame) if "seed" in frame else frame
    joined = paper.merge(ours, on=["method", "score", "set"], how="left", suffixes=("_paper", ""))
    parts = []
    for metric in ("fpr95_id", "auroc"):
        part = joined[["source", "table", "method", "score", "set"]].assign(
            metric=metric,
            paper=joined[f"{metric}_paper"],
            ours=joined[metric],
            low=joined[f"{metric}_low"],
            high=joined[f"{metric}_high"],
        )
        parts.append(part[part["paper"].notna()])
    result = pd.concat(parts).sort_index(kind="stable").reset_index(drop=True)
    result["difference"] = result["ours"] - result["paper"]
    result["verdict"] = [
        "not measured" if np.isnan(ours) else _word(metric, low - paper, high - paper, "agrees")
        for metric, paper, ours, low, high in result[["metric", "paper", "ours", "low", "high"]].itertuples(
            index=False
        )
    ]
    return result


def _score_space(
    space: Any, sets: Sequence[str], negatives: Any, profile: Any, method: str
) -> dict[str, dict[str, np.ndarray]]:
    if missing := [name for name in sets if name not in space.images]:
        raise UserError(
            f"The space of {method!r} has no images of the set {missing[0]!r}; embed the study again."
        )
    index = np.asarray(getattr(negatives, "indices", negatives), dtype=np.int64)
    if index.size and not 0 <= index.min() <= index.max() < len(space.corpus_text):
        raise UserError(
            f"The negatives point beyond the {len(space.corpus_text)} words of the corpus; mine them again."
        )
    negative_text = space.corpus_text[index]
    return {
        name: scores.all_scores(
            space.images[name], space.class_text, negative_text, profile.temperature, profile.groups
        )
        for name in sets
    }


def _stacked(rows: list[np.ndarray], name: str) -> np.ndarray:
    if len(sizes := {len(row) for row in rows}) > 1:
        raise UserError(
            f"The methods embedded {sorted(sizes)} images of {name!r}; embed the same images with each."
        )
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
        raise UserError(
            f"No scores of {method!r} with {score!r}; the book has {_listed(m for m, _, _ in book.keys)}."
        )
    return rows


def _word(metric: str, low: float, high: float, neither: str) -> str:
    if low <= 0 <= high:
        return neither
    return "better" if (high < 0) == (metric in LOWER_IS_BETTER) else "worse"


def _listed(items: Iterable[Any]) -> str:
    return ", ".join(str(item) for item in dict.fromkeys(items))
