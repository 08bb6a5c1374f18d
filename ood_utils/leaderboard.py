"""Every score of every method on every out-of-distribution (OoD) set, with intervals, as tidy tables.

A *method* is a way to train ("zero-shot", "FLYP", "CMA"), a *score* a way to read its embeddings ("MCM").
Metrics are fractions, named as in ``metrics``. Intervals are 95 % and cover other test images, drawn by
class, character or photo block, and other trainings where a row is a mean over seeds
(``metrics.over_images_and_seeds``). Averages weigh each set alike and share the ID resample.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from . import methods, metrics
from .config import PACKAGE, Profile
from .embeddings import StudyEmbeddings
from .errors import UserError, nearest
from .metrics import LOWER_IS_BETTER, METRICS, Estimate

# averages that published tables print; added where all their sets were scored. Named apart from our groups,
# so that no other world's "average near" is ever laid beside a paper's
BENCHMARKS = {
    "MOS": ("iNaturalist", "SUN", "Places", "Textures"),
    "OpenOOD near": ("SSB-hard", "NINCO"),
    "OpenOOD far": ("iNaturalist-OpenOOD", "Textures-OpenOOD", "OpenImage-O"),
}
# OpenOOD's copies of MOS's images: shown, but in an average of ours only where the first is not there
COPIES = {"iNaturalist-OpenOOD": "iNaturalist", "Textures-OpenOOD": "Textures"}
# how the published numbers came about (core_methods 1.4, 8.3); of trained methods the recipe, of CMA lam too
PUBLISHED = {"model": "ViT-B-16-quickgelu", "weights": "openai", "ID classes": 1000}
RECIPE = {"epochs": 10, "batch": 512, "lr": 1e-5, "warmup": 500, "weight_decay": 0.1}
ALPHA = 0.05  # share of families of comparisons in which any verdict may err
BORROWED = 4  # degrees of freedom of a spread over seeds that the other comparisons lend
Family = Mapping[str, Collection[str]]  # column of ``differences`` -> values
Rows = Mapping[int, int]  # of a method's score: seed -> row
SAID = dict(zip(METRICS, ("AUROC", "FPR95", "FPR95 (OoD positive)", "AUPR-in", "AUPR-out"), strict=True))


@dataclass(frozen=True)
class ScoreBook:
    """Scores of every image, higher = more ID; the M rows of all arrays are ``keys``: (method, seed, score).

    ``id`` (M, n_id); ``ood``: set -> (M, n_set); ``groups``: set -> near, far, unseen, ...; ``draws``: of the
    bootstrap, which is computed once, when first asked for; ``id_clusters`` (n_id,), ``ood_clusters``: set ->
    (n_set,), as ``metrics.cluster_codes`` takes them; without, each image is drawn alone.
    """

    keys: list[tuple[str, int, str]]
    id: np.ndarray = field(repr=False)
    ood: dict[str, np.ndarray] = field(repr=False)
    groups: dict[str, str]
    draws: int = 1000
    id_clusters: np.ndarray | None = field(default=None, repr=False)
    ood_clusters: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)

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
    def _sizes(self) -> dict[str, tuple[int, int]]:
        """Images and clusters of each OoD set, and of the ID set under ""."""
        given = {"": (self.id, self.id_clusters)}
        given |= {name: (scores, self.ood_clusters.get(name)) for name, scores in self.ood.items()}
        codes = {x: metrics.cluster_codes(own, scores.shape[1], x) for x, (scores, own) in given.items()}
        return {name: (len(own), int(own.max()) + 1) for name, own in codes.items()}

    @property
    def clustered(self) -> bool:
        """Whether any images are drawn together."""
        return any(clusters < images for images, clusters in self._sizes.values())

    @cached_property
    def averages(self) -> dict[str, list[str]]:
        """Group -> its sets: near, far, unseen, any other group, published benchmarks, and "all".

        No image counts twice in an average of ours: ``COPIES``.
        """
        groups, whole = ("near", "far", "unseen", *self.groups.values()), once(self.groups)
        found = {group: [name for name in whole if self.groups[name] == group] for group in groups}
        found |= {name: list(sets) for name, sets in BENCHMARKS.items() if set(sets) <= set(self.groups)}
        return {group: sets for group, sets in found.items() if sets} | {"all": whole}

    @cached_property
    def sets(self) -> pd.DataFrame:
        """One row per set, then one per average, as ``points``: set, group, average (bool), n_id, n_ood and
        clusters, the fewest that ID images or a set were resampled by."""
        sets, (n_id, fewest) = self._sizes, self._sizes[""]
        rows = [(x, self.groups[x], False, n_id, sets[x][0], min(fewest, sets[x][1])) for x in self.ood]
        for group, names in self.averages.items():
            images, clusters = zip(*(sets[name] for name in names), strict=True)
            rows.append((f"average {group}", group, True, n_id, sum(images), min(fewest, *clusters)))
        return pd.DataFrame(rows, columns=["set", "group", "average", "n_id", "n_ood", "clusters"])

    @cached_property
    def points(self) -> dict[str, np.ndarray]:
        """Set or "average <group>" -> (M, 5) metrics in the order of ``METRICS``."""
        found = {name: metrics.point_metrics(self.id, ood) for name, ood in self.ood.items()}
        means = {
            group: np.mean([found[name] for name in sets], axis=0) for group, sets in self.averages.items()
        }
        return found | {f"average {group}": mean for group, mean in means.items()}

    @cached_property
    def resampled(self) -> dict[str, np.ndarray]:
        """Set -> (M, draws, 5): the bootstrap, the same images in every row, the same ID images in all."""
        clusters = self.id_clusters, self.ood_clusters
        return metrics.bootstrap_draws(self.id, self.ood, self.draws, 0, *clusters)

    def estimates(self, asked: Iterable[tuple[str, Rows, Rows | None]]) -> list[Estimate]:
        """The five metrics for each (set or "average <group>", a, b): means over seeds, intervals; each (5,).

        a: seed -> row, as ``rows`` gives them; b: None, or what is taken off it, seed by seed where both
        have the same seeds. What is asked for together, and read by the same score, tells together by how
        much seeds differ.
        """
        asked, images, found = list(asked), self._sizes, []
        ratios: dict[str, list[np.ndarray]] = {}
        for name, a, b in asked:
            if (ratio := metrics.seed_ratio(self._parts(name, a, b))) is not None:
                ratios.setdefault(self._score(a), []).append(ratio)
        others = {x: (np.mean(of, axis=0), min(len(of) - 1, BORROWED)) for x, of in ratios.items()}
        for name, a, b in asked:
            clusters = [min(images[""][1], images[x][1]) for x in self._members(name)]
            given = self._parts(name, a, b), clusters, others.get(self._score(a))
            found.append(metrics.over_images_and_seeds(*given))
        return found

    def _score(self, rows: Rows) -> str:
        return self.keys[next(iter(rows.values()))][2]

    def _members(self, name: str) -> list[str]:
        return self.averages[name.removeprefix("average ")] if name not in self.ood else [name]

    def _parts(self, name: str, a: Rows, b: Rows | None) -> list[list[np.ndarray]]:
        """Points and draws of a, or of a minus b, as ``metrics.over_images_and_seeds`` takes them."""
        sets, found = self._members(name), (self.points, self.resampled)
        if b and a.keys() == b.keys():
            first, second = _together(a, b)
            return [[np.stack([of[x][first] - of[x][second] for x in sets], axis=-2) for of in found]]
        rows = [(1, list(a.values())), (-1, list((b or {}).values()))]
        return [[np.stack([sign * of[x][r] for x in sets], axis=-2) for of in found] for sign, r in rows if r]

    def table(self) -> pd.DataFrame:
        """The leaderboard: one row per method, seed, score and set.

        Columns: method, seed, score, set, group, average (True for the rows "average near", "average far",
        ..., "average all"), n_id, n_ood, clusters, the five metrics, and ``<metric>_low``/``<metric>_high``,
        in [0, 1]: the interval of this one training over other images.
        """
        keys = pd.DataFrame(self.keys, columns=["method", "seed", "score"])
        frame = self.sets.merge(keys, how="cross")[[*keys, *self.sets]]
        rows = [{seed: row} for row, seed in enumerate(keys["seed"])]
        return _with_intervals(frame, self.estimates((x, row, None) for x in self.points for row in rows))


def once(sets: Iterable[str]) -> list[str]:
    """Sets without those whose images another of them holds already (``COPIES``)."""
    every = list(sets)
    return [name for name in every if COPIES.get(name) not in every]


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
    clusters = {name: next(iter(models.values()))[name].together for name in found}
    by_id = clusters.pop(id_set)
    return ScoreBook(list(found[id_set]), inside, stacked, groups, profile.bootstrap, by_id, clusters)


def evidence_of(embedded: StudyEmbeddings, name: str, profile: Profile) -> methods.Evidence:
    """What methods may judge the images of one set by. UserError when the set was not embedded."""
    if name not in embedded.sets:
        raise UserError(f"There are no embeddings of the set {name!r}{nearest(name, embedded.sets)}")
    texts = embedded.class_text, embedded.negative_text
    return methods.Evidence(embedded[name].rows, *texts, profile.temperature, profile.groups, profile.beta)


def summarise(book: ScoreBook) -> pd.DataFrame:
    """Mean over seeds: the columns of ``ScoreBook.table`` without ``seed``, plus ``seeds``, ``<metric>_std``.

    ``_low``/``_high`` cover other images and other seeds (one seed: images only). ``_std`` is the sample
    standard deviation over seeds (NaN for one seed). Where every draw sits on a bound (FPR95 = 0), the
    interval is that point, which is no proof.
    """
    every = pd.DataFrame(list(dict.fromkeys((m, s) for m, _, s in book.keys)), columns=["method", "score"])
    rows = [book.rows(*key) for key in every.itertuples(index=False)]
    frame = book.sets.merge(every.assign(seeds=[len(of) for of in rows]), how="cross")
    frame = frame[["method", "score", *book.sets, "seeds"]]
    frame = _with_intervals(frame, book.estimates((name, of, None) for name in book.points for of in rows))
    of_row = {row: k for k, of in enumerate(rows) for row in of.values()}
    single = [pd.DataFrame(points).groupby(of_row).std() for points in book.points.values()]
    frame[[f"{metric}_std" for metric in METRICS]] = np.vstack(single)
    return frame


def _with_intervals(frame: pd.DataFrame, found: Sequence[Estimate]) -> pd.DataFrame:
    """The frame with the metrics of its rows and the ends of their intervals, cut to [0, 1]."""
    value, low, high, _ = np.moveaxis(np.array(found), 1, 0)  # each (rows, 5)
    ends = np.stack([low, high], axis=2).clip(0, 1).reshape(len(frame), -1)
    names = [f"{metric}_{end}" for metric in METRICS for end in ("low", "high")]
    return frame.assign(**dict(zip(METRICS, value.T, strict=True)), **dict(zip(names, ends.T, strict=True)))


def differences(
    book: ScoreBook, pairs: Iterable[tuple[str, str]], family: Family | Sequence[Family] = ()
) -> pd.DataFrame:
    """Method a minus method b for each pair (a, b), averaged over seeds; the same images and seeds for both.

    One row per pair, score, average over sets and metric: a, b, score, set, group, average, metric,
    ``difference`` of the seed means, its 95 % interval ``low``/``high`` (not corrected for the family) over
    what ``covers`` says, ``seed_min``/``seed_max`` of the single seeds' differences (matched where a and b
    have the same seeds, else all combinations), ``seeds_better``: in how many of them a is better, "2 of 3",
    ``p`` and ``p_holm``, and ``verdict``.

    ``family``: column -> values, stated before looking, or several such questions; the rows that have them
    are ``family`` (none given: all). Theirs is "better" or "worse" (of a) where p, corrected by Holm over
    the family, is below 0.05, else "not settled". The verdict of any other row is "exploratory". UserError
    for a method that was not scored, and for a family that names no column or no row.
    """
    scores = dict.fromkeys(score for _, _, score in book.keys)
    asked = [(a, b, score) for (a, b), score in product(pairs, scores)]
    sets = book.sets.loc[book.sets["average"], ["set", "group", "average"]]
    frame = pd.DataFrame(asked, columns=["a", "b", "score"]).merge(sets, how="cross")
    asked = [
        (name, book.rows(a, score), book.rows(b, score))
        for a, b, score, name in frame[["a", "b", "score", "set"]].itertuples(index=False)
    ]
    rows = zip(frame["a"], frame["b"], asked, book.estimates(asked), strict=True)
    found = [_compared(book, *row) for row in rows]
    frame = frame.merge(pd.Series(METRICS, name="metric"), how="cross")
    frame = pd.concat([frame, pd.concat(found, ignore_index=True)], axis=1)
    questions = [family] if isinstance(family, Mapping) else family
    frame["family"] = np.any([_chosen(frame, one) for one in questions or [{}]], axis=0)
    frame.loc[frame["family"], "p_holm"] = metrics.holm(frame.loc[frame["family"], "p"])
    better = (frame["difference"] < 0) == frame["metric"].isin(LOWER_IS_BETTER)
    cases = {"exploratory": ~frame["family"], "not settled": ~settled(frame["p_holm"]), "better": better}
    return frame.assign(verdict=np.select(list(cases.values()), list(cases), "worse"))


def settled(p_holm: Any) -> Any:
    """Which corrected p, an array or column, are small enough; to four digits: none turns on rounding."""
    return np.round(p_holm, 4) < ALPHA


def _compared(
    book: ScoreBook, a: str, b: str, asked: tuple[str, Rows, Rows], estimate: Estimate
) -> pd.DataFrame:
    """What ``differences`` says of one pair, score and set before it judges: a row per metric."""
    name, at_a, at_b = asked
    first, second = _together(at_a, at_b)
    single = np.round(book.points[name][first] - book.points[name][second], 12)
    better = np.where(np.isin(METRICS, LOWER_IS_BETTER), single < 0, single > 0).sum(axis=0)
    columns = dict(zip(("difference", "low", "high", "p"), estimate, strict=True))
    columns |= {"seed_min": single.min(axis=0), "seed_max": single.max(axis=0)}
    columns |= {"seeds_better": [f"{k} of {len(single)}" for k in better]}
    several = [method for method, rows in ((a, at_a), (b, at_b)) if len(rows) > 1]
    seeds = ["seeds"] if len(several) == 2 else [f"seeds of {method}" for method in several]
    *others, last = [*(["classes"] if book.clustered else []), "images", *seeds]
    return pd.DataFrame(columns).assign(covers=", ".join(others) + (" and " if others else "") + last)


def _together(a: Rows, b: Rows) -> tuple[list[int], list[int]]:
    """Rows of a and of b (seed -> row) that are compared: of the same seeds if both have them, else all."""
    matched = [(row, b[seed]) for seed, row in a.items()] if a.keys() == b.keys() else None
    pairs = matched or list(product(a.values(), b.values()))
    return [first for first, _ in pairs], [second for _, second in pairs]


def _chosen(frame: pd.DataFrame, family: Family) -> pd.Series:
    """Which rows belong to the family; UserError for a column that is not there, or when none does."""
    if unknown := [column for column in family if column not in frame]:
        raise UserError(f"The family names {unknown[0]!r}, no column{nearest(unknown[0], frame)}")
    chosen = pd.Series(True, frame.index)
    for column, values in family.items():
        chosen &= frame[column].isin(list(values))
    if not chosen.any():
        raise UserError(
            f"No comparison belongs to the family {dict(family)}; give a list of values a column."
        )
    return chosen


def verdict(
    frame: pd.DataFrame, a: str, b: str, metric: str = "fpr95_id", score: str = "NegLabel", group: str = "all"
) -> dict[str, Any]:
    """One row of ``differences`` as a dict, with a ``sentence`` that says it.

    UserError if the table has no such row.
    """
    wanted = {"a": a, "b": b, "metric": metric, "score": score, "group": group}
    found = frame[(frame[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    if len(found) != 1:
        asked = f"{a} - {b}, {score}, {metric}, average {group}"
        raise UserError(f"The table holds {len(found)} rows for {asked}; make it with differences first.")
    row = found.iloc[0].to_dict()
    change, low, high = (f"{100 * row[part]:+.2f}" for part in ("difference", "low", "high"))
    said = f"{change} points, 95 % interval {low} to {high}"
    seeds = f"{a} is better in {row['seeds_better']} seeds"
    if "seeds" in row["covers"]:
        said += f" over {row['covers']}"
    else:
        seeds = f"one seed: the interval covers {row['covers']} only"
    corrected = f", p {row['p_holm']:.2g} after Holm's correction" if row["family"] else ""
    what = f"{a} against {b} in {SAID[metric]} ({score}, {row['set']})"
    return row | {"sentence": f"{what}: {row['verdict']}: {said}{corrected}; {seeds}."}


def paper_tables() -> pd.DataFrame:
    """Published numbers as fractions, kept beside the code; references, never results of ours.

    Columns: source, table, method, score, set, fpr95_id, auroc, id_accuracy, n_id and n_ood (images; empty
    where the source does not say), convention (the positive class of the source's FPR95), note.
    """
    options = {"keep_default_na": False, "na_values": [""], "dtype": {"table": "Int64", "note": "string"}}
    return pd.read_csv(PACKAGE / "assets/paper_tables.csv", **options)


def setting(profile: Profile, classes: int) -> str:
    """What a run is, in a line: model, weights, number of ID classes, recipe."""
    length = f"epochs {profile.epochs}" if profile.epochs else f"steps {profile.steps}"
    model = f"{profile.model}, weights {Path(profile.pretrained).name}, {classes:,} ID classes"
    recipe = f"{length}, batch {profile.batch}, lr {profile.lr:g}, lam {profile.lam:g}"
    return f"{model}; {recipe}, seeds {', '.join(map(str, profile.seeds))}"


def against_paper(
    ours: pd.DataFrame, paper: pd.DataFrame, profile: Profile, classes: int, trained_on: int
) -> pd.DataFrame:
    """Published numbers (fpr95_id, auroc) beside ours; rows meet by method, score and set.

    ``ours``: what ``summarise`` gave; ``paper``: (part of) ``paper_tables()``; ``classes``, ``trained_on``:
    numbers of ID classes and training images. Columns: source, table, method, score, set, metric, paper,
    ours, low, high (our interval), difference (ours - paper), differs (what else is not as published), and
    verdict: "agrees" where our interval holds the paper's number, "better"/"worse" (ours), "not comparable"
    where anything differs, "not measured".
    """
    joined = paper.merge(ours, on=["method", "score", "set"], how="left", suffixes=("_paper", ""))
    differs = [_differs(row, profile, classes, trained_on) for row in joined.to_dict("records")]
    parts = []
    for metric in ("fpr95_id", "auroc"):
        part = joined[["source", "table", "method", "score", "set"]].assign(metric=metric)
        columns = [f"{metric}_paper", metric, f"{metric}_low", f"{metric}_high"]
        part[["paper", "ours", "low", "high"]] = joined[columns]
        parts.append(part.assign(differs=differs).dropna(subset="paper"))
    result = pd.concat(parts).sort_index(kind="stable").reset_index(drop=True)
    result["difference"] = result["ours"] - result["paper"]
    better = (result["difference"] < 0) == result["metric"].isin(LOWER_IS_BETTER)
    within = result["paper"].between(result["low"], result["high"])
    cases = {"not measured": result["low"].isna(), "not comparable": result["differs"] != ""}
    cases |= {"agrees": within, "better": better}
    result["differs"] = result.pop("differs").mask(cases["not measured"], "")
    return result.assign(verdict=np.select(list(cases.values()), list(cases), "worse"))


def _differs(row: Mapping[str, Any], profile: Profile, classes: int, trained_on: int) -> str:
    """What of a row of ours is not as it was published: "ID classes 100, not 1000; ..."; "" if nothing is."""
    here = {"model": profile.model, "weights": Path(profile.pretrained).name, "ID classes": classes}
    here |= {"ID images": row["n_id"], "OoD images": row["n_ood"], "positive class of FPR95": "ID positive"}
    there = PUBLISHED | {"ID images": row["n_id_paper"], "OoD images": row["n_ood_paper"]}
    there |= {"positive class of FPR95": row["convention"]}
    if row["method"] != "zero-shot":
        here |= {name: getattr(profile, name) for name in (*RECIPE, "lam")} | {"training images": trained_on}
        there |= RECIPE | {"training images": 1_281_167}
        there["lam"] = 0.001 if row["method"] == "CMA" else profile.lam
    wrong = [(name, here[name], value) for name, value in there.items() if here[name] != value]
    return "; ".join(
        f"{name} {_plain(own)}, " + ("not stated there" if value != value else f"not {_plain(value)}")
        for name, own, value in wrong
    )


def _plain(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, int | float) else str(value)
