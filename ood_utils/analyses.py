"""The questions the notebooks ask of models, tables and lists; each answered by one function.

Kept out of the notebooks so that they can be tested and read; nothing here knows where files lie but
``space_of``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from . import embeddings, geometry, leaderboard, metrics, models, negatives, scores

if TYPE_CHECKING:
    from .config import Profile
    from .data import Study
    from .embeddings import Space
    from .negatives import NegativeList
    from .store import RunFolder

Spaces = Mapping[tuple[str, int], "Space"]


def space_of(run: RunFolder, study: Study, weights: str, sets: Sequence[str] | None = None) -> Space:
    """Embeddings of a study by the profile's model with these weights (tag, or path below the run folder);
    cached.
    """
    path = run.folder / weights
    model, _, tokenizer = models.load(run.profile.model, str(path) if path.is_file() else weights)
    return embeddings.embed(model, tokenizer, study, run.profile, run.folder / "embeddings", sets=sets)


def group_means(book: leaderboard.ScoreBook, metric: str = "auroc") -> pd.DataFrame:
    """One row per (method, seed, score): the metric's mean over the sets of each group and over all; no
    intervals.
    """
    frame = pd.DataFrame(book.keys, columns=["method", "seed", "score"])
    for group in book.averages:
        frame[group] = book.points[f"average {group}"][:, metrics.METRICS.index(metric)]
    return frame


def validation_auroc(space: Space, study: Study, listed: NegativeList, profile: Profile) -> float:
    """Mean AUROC of NegLabel over the validation OoD sets against the ID validation images; NaN without such
    sets.
    """
    if not study.validation:
        return float("nan")
    book = leaderboard.image_scores(
        {("", 0): space}, study, listed, profile, split="validation", names=["NegLabel"]
    )
    return float(group_means(book)["all"].iloc[0])


def on_validation(space: Space, study: Study, listed: NegativeList, profile: Profile) -> dict[str, float]:
    """What ``lam`` is chosen by: centroid_gap, accuracy (fraction) and auroc, all on the validation split."""
    images, labels = space.images["id_val"], study.id_val.labels[space.rows("id_val")]
    return {
        "centroid_gap": geometry.centroid_gap(images, space.class_text[labels]),
        "accuracy": float(((images @ space.class_text.T).argmax(1) == labels).mean()),
        "auroc": validation_auroc(space, study, listed, profile),
    }


class Choice(NamedTuple):
    """``lam`` taken and why; ``closed``: the row of the sweep with the smallest gap that costs no accuracy."""

    lam: float
    why: str
    closed: pd.Series


def choose_lam(sweep: pd.DataFrame, fallback: float, tolerance: float = 0.01) -> Choice:
    """Among lam > 0 whose accuracy is at most ``tolerance`` below FLYP's, the one of highest validation
    AUROC.

    ``sweep`` has columns lam (0 = FLYP), centroid_gap, accuracy, auroc, measured on the validation split
    only. Where no lam passes, or there is no AUROC, ``fallback`` is taken.
    """
    flyp = sweep.loc[sweep.lam.idxmin()]
    allowed = sweep[(sweep.lam > 0) & (sweep.accuracy >= flyp.accuracy - tolerance)]
    closed = (allowed if len(allowed) else sweep).sort_values("centroid_gap").iloc[0]
    if len(allowed) and allowed.auroc.notna().all():
        best = allowed.loc[allowed.auroc.idxmax()]
        return Choice(
            float(best.lam),
            f"highest validation AUROC within {100 * tolerance:g} point of FLYP's accuracy",
            closed,
        )
    return Choice(fallback, "the profile's value: no lam of the sweep passed the rule", closed)


def keep_sweep(
    space: Space, study: Study, profile: Profile, shares: Iterable[float] = (0.15, 0.3, 0.6, 0.8, 1.0)
) -> pd.DataFrame:
    """Validation AUROC of the zero-shot model by the share of the corpus kept: columns keep, words, auroc."""
    rows = []
    for keep in shares:
        listed = negatives.select(study, space, profile.model_copy(update={"keep": keep, "keep_counts": {}}))
        rows.append(
            {"keep": keep, "words": len(listed), "auroc": validation_auroc(space, study, listed, profile)}
        )
    return pd.DataFrame(rows)


def smallest_share(frame: pd.DataFrame, tolerance: float = 0.005) -> float:
    """The smallest keep of ``keep_sweep`` whose AUROC lies within ``tolerance`` of the best; NaN without
    AUROCs.
    """
    good = frame[frame.auroc >= frame.auroc.max() - tolerance]
    return float(good.keep.min())


def order_claims(
    differences: pd.DataFrame, groups: Iterable[str], order: Sequence[str] = ("CMA", "FLYP", "zero-shot")
) -> tuple[list[str], dict[str, bool]]:
    """Does ``order`` (best first) hold in FPR95 with NegLabel? (one Markdown line per group, group -> holds).

    It holds where each neighbouring difference's interval lies on the better side of 0.
    """
    lines, holds = [], {}
    for group in groups:
        found = [
            leaderboard.verdict(differences, a, b, group=group)
            for a, b in zip(order, order[1:], strict=False)
        ]
        holds[group] = all(claim["verdict"] == "better" for claim in found)
        said = " ".join(claim["sentence"] for claim in found)
        lines.append(f"- **{group}**: the order {'holds' if holds[group] else 'does not hold'}. {said}")
    return lines, holds


def negative_lists(spaces: Spaces, study: Study, mined: NegativeList, profile: Profile) -> pd.DataFrame:
    """NegLabel by what is in the list: columns list, method, seed, words, auroc, fpr95_id (means over the
    test sets).

    Lists: clean; not cleaned (mined with ID names and repetitions in the corpus); every 20th ID class's name
    added; all ID names added; every second word doubled; clean in 100 groups.
    """
    first = next(iter(spaces.values()))
    position = {word: i for i, (word, _) in enumerate(study.corpus)}
    names = [*study.class_names, *(name for group in study.synonyms for name in group)]
    own = [position[name] for name in names if name in position]
    clean = list(mined.indices)
    raw = negatives.select(study, first, profile, cleaned=False).indices
    lists = {
        "clean": clean,
        "not cleaned": raw,
        "every 20th ID name added": clean
        + [position[name] for name in study.class_names[::20] if name in position],
        "all ID names added": clean + own,
        "every second word doubled": clean + clean[::2],
        "clean, 100 groups": clean,
    }
    rows = []
    for name, indices in lists.items():
        groups = min(100, len(indices) // 2) if "groups" in name else profile.groups
        settings = profile.model_copy(update={"groups": groups})
        book = leaderboard.image_scores(spaces, study, np.array(indices), settings, names=["NegLabel"])
        means = group_means(book).rename(columns={"all": "auroc"})[["method", "seed", "auroc"]]
        rows.append(
            means.assign(list=name, words=len(indices), fpr95_id=group_means(book, "fpr95_id")["all"])
        )
    return pd.concat(rows, ignore_index=True)[["list", "method", "seed", "words", "auroc", "fpr95_id"]]


def own_names(spaces: Spaces, study: Study) -> pd.DataFrame:
    """Mean cosine of an image to its own name: columns method, seed, set, group, id_cosine, ood_cosine.

    Only OoD images whose id begins with a word of the corpus count ("name · where from"); empty if there are
    none.
    """
    position = {word: i for i, (word, _) in enumerate(study.corpus)}
    rows = []
    for (method, seed), space in spaces.items():
        matched = space.class_text[study.id_test.labels[space.rows("id_test")]]
        own = float((space.images["id_test"] * matched).sum(1).mean())
        for name, image_set in study.ood.items():
            words = [position.get(image_set.ids[i].split(" · ")[0], -1) for i in space.rows(name)]
            known = np.flatnonzero(np.array(words) >= 0)
            if len(known):
                texts = space.corpus_text[np.array(words)[known]]
                cosine = float((space.images[name][known] * texts).sum(1).mean())
                rows.append([method, seed, name, image_set.group, own, cosine])
    return pd.DataFrame(rows, columns=["method", "seed", "set", "group", "id_cosine", "ood_cosine"])


def worst_mistakes(
    space: Space, study: Study, mined: NegativeList, profile: Profile, count: int = 10
) -> pd.DataFrame:
    """The OoD test images that NegLabel finds most ID: columns set, index, is, nearest ID name, nearest
    negative, log-odds.
    """
    negative_text = space.corpus_text[mined.indices]
    found: list[dict[str, Any]] = []
    for name, image_set in study.ood.items():
        rows = space.rows(name)
        score = scores.neglabel(
            space.images[name], space.class_text, negative_text, profile.temperature, profile.groups
        )
        for i in np.argsort(-score, kind="stable")[:count]:
            image = space.images[name][i]
            found.append({
                "set": name, "index": int(rows[i]), "is": image_set.ids[rows[i]].split(" · ")[0],
                "nearest ID name": study.class_names[int((space.class_text @ image).argmax())],
                "nearest negative": mined.words[int((negative_text @ image).argmax())], "log-odds": float(score[i]),
            })  # fmt: skip
    return pd.DataFrame(found).nlargest(count, "log-odds").reset_index(drop=True)
