"""The questions the notebooks ask of models, tables and lists: one function each, so that they can be tested.

``profile`` gives every setting; embeddings come with their negative labels.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from . import embeddings, geometry, leaderboard, methods, metrics, models, negatives, scores
from .config import Profile
from .data import Study
from .embeddings import StudyEmbeddings
from .errors import UserError
from .negatives import NegativeList

PAPER_CLOSURE = 0.725 / 2.124  # Uni-CMM of CMA over FLYP's in the paper's Table 4
FAMILY = "P - beta N"
ByMethod = Mapping[tuple[str, int], StudyEmbeddings]  # (method, seed) -> embeddings


def network(folder: Path, profile: Profile, weights: str) -> models.Network:
    """The profile's model with these weights: a tag, or a path below the run's ``folder``."""
    return models.Network(profile.model, str(folder / weights) if (folder / weights).is_file() else weights)


def embed_weights(
    folder: Path,
    study: Study,
    profile: Profile,
    weights: str,
    listed: NegativeList | None = None,
    sets: Sequence[str] | None = None,
) -> StudyEmbeddings:
    """Embeddings of a study with these weights (a tag, or a path below the run's ``folder``), cached in it.

    ``listed``: the negative labels they get; ``sets``: only these image sets. Errors as ``embeddings.embed``.
    """
    own = network(folder, profile, weights)
    embedded = embeddings.embed(study, profile, folder / "embeddings", sets=sets, network=own)
    return embedded if listed is None else embedded.with_negatives(listed)


def embed_methods(
    folder: Path, study: Study, profile: Profile, methods: pd.DataFrame, listed: NegativeList | None = None
) -> dict[tuple[str, int], StudyEmbeddings]:
    """(method, seed) -> embeddings of each row of a table of methods (columns method, seed, weights).

    All get the same negative labels: ``listed``, or those that the zero-shot model mines from the corpus.
    """
    rows = methods.itertuples()
    found = {(row.method, row.seed): embed_weights(folder, study, profile, row.weights) for row in rows}
    if listed is None:
        zero_shot = found.get(("zero-shot", 0))
        zero_shot = zero_shot or embed_weights(folder, study, profile, profile.pretrained)
        listed = embeddings.mine(zero_shot, profile)
    return {key: embedded.with_negatives(listed) for key, embedded in found.items()}


def group_means(book: leaderboard.ScoreBook, metric: str = "auroc") -> pd.DataFrame:
    """One row per (method, seed, score): the metric's mean over each group's sets and over all sets."""
    k, frame = metrics.METRICS.index(metric), pd.DataFrame(book.keys, columns=["method", "seed", "score"])
    return frame.assign(**{group: book.points[f"average {group}"][:, k] for group in book.averages})


def validation_auroc(embedded: StudyEmbeddings, profile: Profile) -> float:
    """Mean AUROC of NegLabel over the validation OoD sets against id_val; NaN without such sets."""
    if not embedded.of_split("validation"):
        return float("nan")
    book = leaderboard.image_scores({("", 0): embedded}, profile, "validation", ["NegLabel"])
    return float(group_means(book)["all"].iloc[0])


def on_validation(embedded: StudyEmbeddings, profile: Profile) -> dict[str, float]:
    """What is chosen by, on the validation split: centroid_gap, uni_matched, accuracy (fraction), auroc."""
    images, labels = embedded["id_val"].rows, embedded["id_val"].labels
    matched = embedded.class_text[labels]
    return {
        "centroid_gap": geometry.centroid_gap(images, matched),
        "uni_matched": geometry.matched_uniformity(images, matched),
        "accuracy": geometry.accuracy(images, labels, embedded.class_text),
        "auroc": validation_auroc(embedded, profile),
    }


def closing_lam(sweep: pd.DataFrame) -> float:
    """The smallest lam that closes the gap as far as the paper's CMA does, else the one that closes it most.

    ``sweep``: columns lam (the smallest is FLYP, 0) and uni_matched on the validation ID images, averaged
    over seeds; no OoD image is looked at. The paper: Uni-CMM of CMA over FLYP's, ``PAPER_CLOSURE`` (Table 4).
    UserError for a sweep without FLYP.
    """
    by_lam = sweep.groupby("lam").uni_matched.mean()
    if 0 not in by_lam:
        raise UserError("lams has no 0, which is FLYP, against which the gap is measured; add it")
    ratio = by_lam.iloc[1:] / by_lam.iloc[0] if len(by_lam) > 1 else by_lam / by_lam
    enough = ratio[ratio <= PAPER_CLOSURE]
    return float(enough.index.min() if len(enough) else ratio.idxmin())


def best_on_validation(sweep: pd.DataFrame, column: str, tolerance: float = 0.01) -> float:
    """The value of ``column`` of the highest mean validation AUROC among those that cost little accuracy.

    ``sweep`` has that column, accuracy and auroc on the validation split; accuracy may lie ``tolerance``
    below the best. Where there is no AUROC, the value of best accuracy.
    """
    means = sweep.groupby(column)[["accuracy", "auroc"]].mean()
    allowed = means[means.accuracy >= means.accuracy.max() - tolerance]
    return float((allowed.auroc if allowed.auroc.notna().all() else allowed.accuracy).idxmax())


def score_sweep(models: ByMethod, profile: Profile) -> pd.DataFrame:
    """Validation AUROC of every score, and of "P - beta N" for every beta of the profile.

    Columns method, seed, score (which names the beta too), beta, auroc: the mean over the validation OoD
    sets. Empty without such sets.
    """
    if not next(iter(models.values())).of_split("validation"):
        return pd.DataFrame(columns=["method", "seed", "score", "beta", "auroc"])
    singles = [name for name in methods.every() if name != FAMILY]
    book = leaderboard.image_scores(models, profile, "validation", singles)
    parts = [group_means(book).assign(beta=float("nan"))]
    ends = [[row for row, key in enumerate(book.keys) if key[2] == name] for name in ("Energy", "NegLabel")]

    def between(rows: np.ndarray, beta: float) -> np.ndarray:
        return scores.p_minus_beta_n(*(rows[of] for of in ends), beta, profile.temperature)

    for beta in profile.beta_sweep:
        keys = [(*key, f"P - {beta:g} N") for key in models]
        ood = {name: between(rows, beta) for name, rows in book.ood.items()}
        family = replace(book, keys=keys, id=between(book.id, beta), ood=ood)
        parts.append(group_means(family).assign(beta=beta))
    found = pd.concat(parts, ignore_index=True).rename(columns={"all": "auroc"})
    return found[["method", "seed", "score", "beta", "auroc"]]


def best_score(tried: pd.DataFrame, profile: Profile) -> tuple[str, float]:
    """(score, beta): the best score beside NegLabel, by mean validation AUROC in a ``score_sweep``.

    beta is the best below 1, which is NegLabel. MCM, or the profile's beta, where there is nothing to choose
    from. AUROC is rounded to four digits first, so that no choice turns on rounding.
    """
    means = tried[tried.beta.isna() & (tried.score != "NegLabel")].groupby("score").auroc.mean().round(4)
    family = tried[tried.beta < 1].groupby("beta").auroc.mean().round(4)
    if not len(means):
        return "MCM", profile.beta
    best = str(means.idxmax())
    if not len(family):
        return best, profile.beta
    return FAMILY if family.max() > means.max() else best, float(family.idxmax())


def best_detector(tried: pd.DataFrame, profile: Profile) -> tuple[str, int, str, float]:
    """(method, seed, score, beta) of the highest mean validation AUROC in a ``score_sweep``; its first seed.

    Of those within 0.001 of the best the first, which is the simplest. The paper's, CMA with NegLabel, where
    there is no validation OoD set to choose by.
    """
    if not len(tried):
        return "CMA", profile.seeds[0], "NegLabel", profile.beta
    means = tried.groupby(["method", "score"], sort=False).auroc.mean()
    method, name = means[means >= means.max() - 0.001].index[0]
    first = tried[(tried.method == method) & (tried.score == name)].sort_values("seed").iloc[0]
    in_family = first.beta == first.beta
    return method, int(first.seed), FAMILY if in_family else name, first.beta if in_family else profile.beta


def acceptance(
    val: np.ndarray, test: np.ndarray, clusters: np.ndarray, target: float, draws: int = 1000
) -> pd.DataFrame:
    """Which share of ID images is accepted by a threshold set on others, from their scores (n,).

    Columns threshold_on, accepted_of, expected (what conformal prediction expects of exchangeable images),
    share, low, high. First id_val on id_test, the interval over other test images by ``clusters``; then
    random halves of a split, which are exchangeable by construction, on its other half: the mean and the
    central 95 % of ``draws`` divisions, where a half is large enough for ``target``.
    """
    rank, random, rows = metrics.conformal_rank(len(val), target), np.random.default_rng(0), []
    accepted, ends = metrics.share(test >= np.sort(val)[rank - 1], clusters, draws)
    rows.append(("id_val", "id_test", 1 - rank / (len(val) + 1), accepted, *ends))
    for name, values in (("id_val", val), ("id_test", test)):
        if not (rank := metrics.conformal_rank(half := len(values) // 2, target)):
            continue
        divided = [np.split(random.permutation(values), [half]) for _ in range(draws)]
        shares = [(rest >= np.sort(first)[rank - 1]).mean() for first, rest in divided]
        ends = np.quantile(shares, [0.025, 0.975])
        rows.append((f"half of {name}", "its other half", 1 - rank / (half + 1), np.mean(shares), *ends))
    return pd.DataFrame(rows, columns=["threshold_on", "accepted_of", "expected", "share", "low", "high"])


def verdict_words(judged: pd.DataFrame) -> dict[tuple[str, str, str], str]:
    """(a, b, score) -> the verdicts of a family in words: "better on near, not settled on far/unseen"."""
    found = {}
    for key, rows in judged.groupby(["a", "b", "score"], sort=False):
        groups = rows.groupby("verdict", sort=False).group.agg("/".join)
        found[key] = ", ".join(f"{word} on {where}" for word, where in groups.items())
    return found


def answer_table(summary: pd.DataFrame, score_names: Sequence[str]) -> pd.DataFrame:
    """The report's first table: FPR95 with intervals by group and score, a column a method.

    ``summary``: as ``leaderboard.summarise`` gives it.
    """
    rows = summary[summary.average & summary.score.isin(score_names)]
    percent = 100 * rows[["fpr95_id", "fpr95_id_low", "fpr95_id_high"]]
    cells = ["{:.1f} [{:.1f}, {:.1f}]".format(*row) for row in percent.to_numpy()]
    wide = rows.assign(cell=cells).pivot_table("cell", ["group", "score"], "method", "first", sort=False)
    return wide.reset_index().rename(columns={"group": "FPR95 (ID positive), %"})


def keep_sweep(embedded: StudyEmbeddings, profile: Profile) -> pd.DataFrame:
    """Validation AUROC of the zero-shot model by the share of the corpus kept: columns keep, words, auroc."""
    rows = []
    for keep in (0.15, 0.3, 0.6, 0.8, 1.0):
        changed = profile.model_copy(update={"keep": keep, "keep_counts": {}, "negatives": ""})
        listed = embeddings.mine(embedded, changed)
        auroc = validation_auroc(embedded.with_negatives(listed), profile)
        rows.append({"keep": keep, "words": len(listed), "auroc": auroc})
    return pd.DataFrame(rows)


def smallest_share(frame: pd.DataFrame, tolerance: float = 0.005) -> float:
    """The smallest keep of ``keep_sweep`` whose AUROC is within ``tolerance`` of the best; NaN if none is."""
    return float(frame[frame.auroc >= frame.auroc.max() - tolerance].keep.min())


def order_claims(
    differences: pd.DataFrame, groups: Iterable[str], score: str = "NegLabel"
) -> tuple[list[str], dict[str, str]]:
    """Does the order CMA, FLYP, zero-shot hold in FPR95 with a score? (Markdown lines, group -> answer).

    "holds" where both differences are better, "does not hold" where one is worse, else "not settled".
    """
    lines, answers = [], {}
    for group in groups:
        steps = ("CMA", "FLYP"), ("FLYP", "zero-shot")
        found = [leaderboard.verdict(differences, *pair, score=score, group=group) for pair in steps]
        words = {claim["verdict"] for claim in found}
        answers[group] = "does not hold" if "worse" in words else "not settled"
        if words == {"better"}:
            answers[group] = "holds"
        said = " ".join(claim["sentence"] for claim in found)
        answer = answers[group].replace("not settled", "is not settled")
        lines.append(f"- **{group}, {score}**: the order {answer}. {said}")
    return lines, answers


def negative_lists(models: ByMethod, profile: Profile) -> leaderboard.ScoreBook:
    """NegLabel, in one group, by what is in the list: a book of lists as "methods", of models as "scores".

    So ``leaderboard.differences`` compares two lists. "in use" is the models' own list; one that equals it or
    is empty is left out. "OoD names out" looks at the test images' names, as a user cannot.
    """
    first = next(iter(models.values()))
    own, count = list(first.negatives.indices), len(first.corpus) + len(first.class_names)
    named = list(range(len(first.corpus), count))  # the class texts stand behind the corpus
    shown = {one.split(" · ")[0] for images in first.of_split().values() for one in images.ids}

    def mined(embedded: StudyEmbeddings = first, **changes: object) -> list[int]:
        return embeddings.mine(embedded, profile.model_copy(update={"negatives": "", **changes})).indices

    usable = negatives.clean([word for word, _ in first.corpus], first.class_names, first.synonyms)
    lists = {
        "in use": own,
        "ID names, artefacts taken out": [i for i in own if usable[i]],
        "mined and cleaned": mined(cleaned=True),
        "15 % kept": mined(keep=max(0.15, 1 / len(own)), keep_counts={}),
        "all kept": mined(keep=1.0, keep_counts={}),
        "synonyms and twins left in": mined(replace(first, synonyms=[[] for _ in first.class_names])),
        "not cleaned": mined(cleaned=False),
        "every 20th ID name added": own + named[::20],
        "all ID names added": own + named,
        "OoD names out (looks at the test)": [i for i in own if first.corpus[i][0] not in shown],
    }
    other = {name: of for name, of in lists.items() if of and sorted(of) != sorted(own)}
    lists = {"in use": own} | other
    counts = np.array([np.bincount(of, minlength=count) for of in lists.values()], float).T
    book = leaderboard.image_scores(models, profile, names=["Energy"])  # P, in units of a cosine
    sets = {name: first[name] for name in ("id_test", *book.ood)}
    found: dict[str, list[np.ndarray]] = {name: [] for name in sets}
    for row, embedded in enumerate(models.values()):
        texts = np.concatenate([embedded.corpus_text, embedded.class_text])
        words = texts.astype(np.float64) / profile.temperature
        for name in sets:
            energy = (book.id if name == "id_test" else book.ood[name])[row]
            negative = _negative_mass(embedded[name].rows, words, counts)
            found[name] += list((energy[:, None] / profile.temperature - negative).T)
    keys = [(name, seed, method) for method, seed in models for name in lists]
    stacked = {name: np.stack(rows) for name, rows in found.items()}
    return replace(book, keys=keys, id=stacked.pop("id_test"), ood=stacked)


def _negative_mass(rows: np.ndarray, words: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """N of every list, (n, lists): log-sum-exp of rows (n, d) @ words (C, d), words ``counts`` (C, lists)."""
    parts, step = [], max(1, 2**23 // len(words))  # 64 MB of logits at a time
    for start in range(0, len(rows), step):
        logits = rows[start : start + step].astype(np.float64) @ words.T
        top = logits.max(axis=1, keepdims=True)
        parts.append(top + np.log(np.exp(logits - top) @ counts))
    return np.concatenate(parts)


def swapped(images_of: StudyEmbeddings, texts_of: StudyEmbeddings) -> StudyEmbeddings:
    """The images of one model with the texts of another: which tower did it?"""
    return replace(images_of, class_text=texts_of.class_text, corpus_text=texts_of.corpus_text)


def who_moved(models: ByMethod, start: StudyEmbeddings) -> pd.DataFrame:
    """Where each model's points went from ``start``: columns method, seed, what, moved, to_id_texts.

    ``what``: ID texts, other words (the negatives), ID images, and the OoD test images by group. ``moved``:
    mean angle to where the point was, degrees; ``to_id_texts``: change of its mean cosine to the nearest ID
    text (of an ID text: to the nearest other one).
    """

    def points(embedded: StudyEmbeddings) -> dict[str, np.ndarray]:
        groups: dict[str, list[np.ndarray]] = {}
        for one in (embedded[name] for name in ("id_test", *leaderboard.once(embedded.of_split()))):
            groups.setdefault("ID images" if one.group == "id" else f"{one.group} images", []).append(
                one.rows
            )
        texts = {"ID texts": embedded.class_text, "other words": embedded.negative_text}
        return texts | {name: np.concatenate(rows) for name, rows in groups.items()}

    def nearest(embedded: StudyEmbeddings, name: str, rows: np.ndarray) -> float:
        cosines = rows @ embedded.class_text.T
        if name == "ID texts":
            np.fill_diagonal(cosines, -1)
        return float(cosines.max(axis=1).mean())

    rows, before = [], points(start)
    began = {name: nearest(start, name, at) for name, at in before.items()}
    for (method, seed), embedded in models.items():
        for name, now in points(embedded).items():
            angle = np.degrees(np.arccos(np.clip((now * before[name]).sum(axis=1), -1, 1))).mean()
            rows.append([method, seed, name, float(angle), nearest(embedded, name, now) - began[name]])
    return pd.DataFrame(rows, columns=["method", "seed", "what", "moved", "to_id_texts"])


def worst_mistakes(
    embedded: StudyEmbeddings, profile: Profile, count: int = 10, score_name: str = "NegLabel"
) -> pd.DataFrame:
    """The OoD test images that a score finds most ID.

    Columns: set, index (into the image set), is, nearest ID name, nearest negative, and the score, which is
    "log-odds" for NegLabel.
    """
    unit = "log-odds" if score_name == "NegLabel" else score_name
    found, names, others = [], np.array(embedded.class_names), np.array(embedded.negatives.words)
    for name in leaderboard.once(embedded.of_split()):
        ood = embedded[name]
        score = methods.find(score_name)(leaderboard.evidence_of(embedded, name, profile))
        top = np.argsort(-score, kind="stable")[:count]
        columns = {
            "set": name,
            "index": ood.index[top],
            "is": [ood.ids[i].split(" · ")[0] for i in top],
            "nearest ID name": names[(ood.rows[top] @ embedded.class_text.T).argmax(1)],
            "nearest negative": others[(ood.rows[top] @ embedded.negative_text.T).argmax(1)],
            unit: score[top],
        }
        found.append(pd.DataFrame(columns))
    return pd.concat(found, ignore_index=True).nlargest(count, unit).reset_index(drop=True)
