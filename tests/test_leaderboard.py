"""The leaderboard on made-up embeddings: what it holds, how it averages, and that its verdicts are earned."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from ood_utils import leaderboard, methods, metrics, scores
from ood_utils.embeddings import EmbeddedSet, StudyEmbeddings
from ood_utils.errors import UserError
from ood_utils.leaderboard import against_paper, differences, image_scores, paper_tables, summarise, verdict

GROUPS = {"accented": "near", "arrows": "far", "braille": "far", "digits": "unseen"}
SIZES = {
    "id_test": 120,
    "id_val": 60,
    "accented": 50,
    "arrows": 40,
    "braille": 30,
    "digits": 45,
    "val_far": 35,
}
METHODS = [("zero-shot", 0), ("FLYP", 0), ("FLYP", 1), ("CMA", 0), ("CMA", 1)]
PROFILE = SimpleNamespace(temperature=0.05, groups=1, bootstrap=60)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def model(seed: int, blur: float) -> StudyEmbeddings:
    """ID images near their class text, the others near a corpus word; ``blur`` makes the model worse."""
    fixed, own = np.random.default_rng(0), np.random.default_rng(100 + seed)
    class_text, corpus_text = unit(fixed.normal(size=(6, 12))), unit(fixed.normal(size=(5, 12)))
    sets = {}
    for name, n in SIZES.items():
        centres = class_text if name.startswith("id") else corpus_text
        noise = fixed.normal(size=(n, 12)) * blur + own.normal(size=(n, 12)) * 0.02
        rows = unit(centres[np.arange(n) % len(centres)] + noise)
        group = GROUPS.get(name, "id" if name.startswith("id") else "validation")
        sets[name] = EmbeddedSet(rows, np.arange(n) % 6, [""] * n, np.arange(n), group)
    corpus = [(word, "noun") for word in "abcde"]
    made = StudyEmbeddings(sets, list("ABCDEF"), [[]] * 6, class_text, corpus, corpus_text, 20.0)
    return made.with_negatives([4, 0, 2])


MODELS = {key: model(key[1], {"zero-shot": 0.5, "FLYP": 0.45, "CMA": 0.25}[key[0]]) for key in METHODS}


@pytest.fixture(scope="module")
def book() -> leaderboard.ScoreBook:
    return image_scores(MODELS, PROFILE)


@pytest.fixture(scope="module")
def frame(book: leaderboard.ScoreBook) -> pd.DataFrame:
    return book.table()


def test_every_cell_is_there_once(frame: pd.DataFrame) -> None:
    sets = [*GROUPS, "average near", "average far", "average unseen", "average all"]
    assert len(frame) == len(METHODS) * len(methods.every()) * len(sets)
    assert list(dict.fromkeys(frame["set"])) == sets and set(frame["score"]) == set(methods.every())
    assert not frame.duplicated(["method", "seed", "score", "set"]).any()
    wanted = ["method", "seed", "score", "set", "group", "average", "n_id", "n_ood", *metrics.METRICS]
    wanted += [f"{m}_{end}" for m in metrics.METRICS for end in ("low", "high")]
    assert list(frame.columns) == wanted and frame.notna().all().all()
    for metric in metrics.METRICS:
        assert (frame[f"{metric}_low"] <= frame[f"{metric}_high"]).all()
        assert frame[metric].between(0, 1).all()


def test_a_cell_is_what_the_parts_give(book: leaderboard.ScoreBook, frame: pd.DataFrame) -> None:
    one = MODELS["CMA", 1]
    inside, outside = (
        scores.neglabel(one[name].rows, one.class_text, one.corpus_text[[4, 0, 2]], 0.05)
        for name in ("id_test", "braille")
    )
    kept_id, kept_ood = book.scores("CMA", "NegLabel", 1)
    np.testing.assert_array_equal(kept_id, inside)
    np.testing.assert_array_equal(kept_ood["braille"], outside)
    row = frame.query("method == 'CMA' and seed == 1 and score == 'NegLabel' and set == 'braille'").iloc[0]
    found = metrics.ood_metrics(inside, outside)
    assert (row["n_id"], row["n_ood"]) == (found.n_id, found.n_ood)
    for metric, value in found.values().items():
        assert row[metric] == value
    draws = metrics.bootstrap_draws(inside, {"braille": outside}, 60)["braille"][0]
    assert row["auroc_low"] == pytest.approx(np.quantile(draws[:, 0], 0.025))


def test_averages_weigh_sets_alike_and_have_intervals_of_their_own(
    book: leaderboard.ScoreBook, frame: pd.DataFrame
) -> None:
    mine = frame.query("method == 'FLYP' and seed == 0 and score == 'MCM'").set_index("set")
    for group, members in {"far": ["arrows", "braille"], "near": ["accented"], "all": list(GROUPS)}.items():
        row = mine.loc[f"average {group}"]
        assert row["auroc"] == pytest.approx(mine.loc[members, "auroc"].mean())
        assert row["group"] == group and row["average"] and row["n_ood"] == sum(SIZES[m] for m in members)
    inside, outside = book.scores("FLYP", "MCM", 0)
    expected = metrics.bootstrap(inside, {name: outside[name] for name in ("arrows", "braille")}, 60)[
        "fpr95_ood"
    ]
    assert (
        mine.loc["average far", "fpr95_ood_low"],
        mine.loc["average far", "fpr95_ood_high"],
    ) == pytest.approx(expected)


def test_published_averages_appear_when_all_their_sets_do() -> None:
    row = np.ones((1, 3))
    sets = {name: row for name in leaderboard.BENCHMARKS["MOS"]}
    made = leaderboard.ScoreBook([("CMA", 0, "MCM")], row, sets, dict.fromkeys(sets, "far"), 5)
    assert list(made.averages) == ["far", "MOS", "all"]


def test_validation_is_kept_apart(frame: pd.DataFrame) -> None:
    found = image_scores(MODELS, PROFILE, split="validation", names=["NegLabel"]).table()
    assert set(found["set"]) == {"val_far", "average validation", "average all"}
    assert set(found["n_id"]) == {60} and set(found["score"]) == {"NegLabel"}


def test_summary_over_seeds(frame: pd.DataFrame) -> None:
    summary = summarise(frame).set_index(["method", "score", "set"])
    pair = frame.query("method == 'CMA' and score == 'MCM' and set == 'arrows'")
    row = summary.loc["CMA", "MCM", "arrows"]
    assert row["seeds"] == 2 and row["auroc"] == pytest.approx(pair["auroc"].mean())
    assert (
        row["auroc_std"] == pytest.approx(pair["auroc"].std()) and row["fpr95_id_low"] <= row["fpr95_id_high"]
    )
    alone = summary.loc["zero-shot", "MCM", "arrows"]
    assert alone["seeds"] == 1 and np.isnan(alone["auroc_std"])
    assert "seed" not in summary.columns and len(summary) == len(frame) // len(METHODS) * 3


def test_differences_are_paired_and_averaged_over_seeds(
    book: leaderboard.ScoreBook, frame: pd.DataFrame
) -> None:
    found = differences(book, [("CMA", "FLYP"), ("CMA", "zero-shot")])
    assert len(found) == 2 * len(methods.every()) * 4 * 5
    row = found.query(
        "b == 'FLYP' and score == 'NegLabel' and set == 'average all' and metric == 'auroc'"
    ).iloc[0]
    seeds = frame.query("score == 'NegLabel' and set == 'average all'").set_index(["method", "seed"])["auroc"]
    single = seeds["CMA"] - seeds["FLYP"]
    assert row["difference"] == pytest.approx(single.mean())
    assert (row["seed_min"], row["seed_max"]) == pytest.approx((single.min(), single.max()))
    assert row["low"] <= row["difference"] <= row["high"] and row["verdict"] == "better"
    inside, outside = zip(*(book.scores(m, "NegLabel", 0) for m in ("CMA", "zero-shot")), strict=True)
    one = leaderboard.ScoreBook(
        [("CMA", 0, "x"), ("zero-shot", 0, "x")],
        np.stack(inside),
        {name: np.stack([o[name] for o in outside]) for name in GROUPS},
        GROUPS,
        60,
    )
    expected = metrics.paired_bootstrap(inside[0], outside[0], inside[1], outside[1], 60)["fpr95_id"]
    row = differences(one, [("CMA", "zero-shot")]).query("group == 'all' and metric == 'fpr95_id'").iloc[0]
    assert tuple(row[["difference", "low", "high"]]) == pytest.approx(tuple(expected))


def test_verdict_words(book: leaderboard.ScoreBook) -> None:
    found = differences(book, [("CMA", "FLYP"), ("FLYP", "CMA"), ("CMA", "CMA")])
    assert set(found["set"]) == {f"average {g}" for g in ("near", "far", "unseen", "all")}
    for metric in ("auroc", "fpr95_id"):
        words = [
            verdict(found, a, b, metric)["verdict"]
            for a, b in (("CMA", "FLYP"), ("FLYP", "CMA"), ("CMA", "CMA"))
        ]
        assert words == ["better", "worse", "no difference"]
    said = verdict(found, "CMA", "FLYP", "auroc", group="far")
    assert said["sentence"].startswith("CMA is better than FLYP in auroc (NegLabel, average far): +")
    assert "do not differ measurably" in verdict(found, "CMA", "CMA")["sentence"]
    doubtful = found.assign(seed_min=-1.0, seed_max=1.0)
    assert "the seeds disagree on the sign" in verdict(doubtful, "CMA", "FLYP")["sentence"]
    with pytest.raises(UserError, match="holds 0 rows"):
        verdict(found, "CMA", "LoCoOp")


def test_published_numbers_are_whole() -> None:
    paper = paper_tables()
    assert {"CMA", "NegLabel", "MCM"} == set(paper["source"])
    sizes = paper[paper["source"] == "CMA"].groupby("table").size()
    assert (sizes[1], sizes[2]) == (22 * 5, 21 * 7)
    shown = paper.dropna(subset="auroc")
    assert shown[["fpr95_id", "auroc"]].stack().between(0, 1).all() and set(shown["convention"]) == {
        "ID positive"
    }
    assert not paper.duplicated(["source", "table", "method", "score", "set"]).any()
    third = paper.query("source == 'CMA' and table == 3").set_index("method")
    assert third["id_accuracy"]["CMA"] == 0.8264


@pytest.mark.parametrize("average", ["average MOS", "average OpenOOD near", "average OpenOOD far"])
def test_published_averages_are_the_means_of_their_cells(average: str) -> None:
    paper = paper_tables().query("source == 'CMA'").set_index(["table", "method", "score", "set"])
    paper = paper.sort_index().loc[1 if average == "average MOS" else 2]
    members = leaderboard.BENCHMARKS[average.removeprefix("average ")]
    for method, score in {key[:2] for key in paper.index}:
        row = paper.loc[method, score, average]
        cells = paper.loc[[(method, score, name) for name in members], ["fpr95_id", "auroc"]].mean()
        assert row["fpr95_id"] == pytest.approx(cells["fpr95_id"], abs=1.1e-4)
        if pd.isna(row["note"]):  # the paper's own slip is noted, not mended
            assert row["auroc"] == pytest.approx(cells["auroc"], abs=1.1e-4)


def test_against_paper(frame: pd.DataFrame) -> None:
    ours = summarise(frame).query("method == 'CMA' and score == 'NegLabel' and set == 'arrows'").iloc[0]
    rows = [
        ("arrows", ours["fpr95_id"], ours["auroc"]),
        ("braille", 1.0, 0.0),
        ("digits", -0.1, 1.1),
        ("elsewhere", 0.5, 0.5),
    ]
    paper = pd.DataFrame(rows, columns=["set", "fpr95_id", "auroc"])
    paper = paper.assign(source="X", table=1, method="CMA", score="NegLabel", id_accuracy=np.nan)
    found = against_paper(frame, paper)
    columns = "source table method score set metric paper ours low high difference verdict".split()
    assert list(found.columns) == columns
    assert list(found["metric"]) == ["fpr95_id", "auroc"] * 4
    words = ["agrees", "agrees", "better", "better", "worse", "worse", "not measured", "not measured"]
    assert list(found["verdict"]) == words
    assert found["difference"][2] == pytest.approx(found["ours"][2] - 1.0) and np.isnan(found["ours"][6])
    pd.testing.assert_frame_equal(against_paper(summarise(frame), paper), found)
    assert set(against_paper(frame, paper_tables())["verdict"]) == {"not measured"}


def test_unusable_calls_are_refused(book: leaderboard.ScoreBook) -> None:
    whole = MODELS["CMA", 0]
    poor = replace(whole, sets={name: s for name, s in whole.sets.items() if name != "arrows"})
    short = replace(
        whole, sets=whole.sets | {"arrows": replace(whole["arrows"], rows=whole["arrows"].rows[1:])}
    )
    blind = replace(whole, sets={name: s for name, s in whole.sets.items() if s.group == "id"})
    for call, words in (
        (lambda: image_scores({}, PROFILE), "nothing to score"),
        (lambda: image_scores({("x", 0): blind}, PROFILE), "nothing to score"),
        (lambda: image_scores(MODELS, PROFILE, split="train"), "split is 'train'"),
        (lambda: image_scores(MODELS, PROFILE, names=["ODIN"]), "no score is called 'ODIN'"),
        (lambda: image_scores({**MODELS, ("x", 0): short}, PROFILE), "39, 40.* images of 'arrows'"),
        (lambda: image_scores({**MODELS, ("x", 0): poor}, PROFILE), "no embeddings of the set 'arrows'"),
        (lambda: differences(book, [("CMA", "LoCoOp")]), "No scores of 'LoCoOp'"),
        (lambda: book.scores("CMA", "MCM", 9), "seed 9"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_without_negatives_the_scores_that_need_none_are_given() -> None:
    bare = replace(MODELS["CMA", 0], negatives=None)
    assert [key[2] for key in image_scores({("CMA", 0): bare}, PROFILE).keys] == list(methods.every())[:4]
