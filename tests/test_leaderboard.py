"""The leaderboard on made-up embeddings: what it holds, how it averages, and that its verdicts are earned."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ood_utils import leaderboard, methods, metrics, scores
from ood_utils.config import load_profile
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
PROFILE = SimpleNamespace(temperature=0.05, groups=1, beta=0.25, bootstrap=60)


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
        labels, pairs = np.arange(n) % 6 if group == "id" else np.full(n, -1), np.arange(n) // 2
        clusters = pairs if name == "braille" else None  # two drawings of each character
        sets[name] = EmbeddedSet(rows, labels, [""] * n, np.arange(n), group, clusters)
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
    wanted = ["method", "seed", "score", "set", "group", "average", "n_id", "n_ood", "clusters"]
    wanted += [*metrics.METRICS] + [f"{m}_{end}" for m in metrics.METRICS for end in ("low", "high")]
    assert list(frame.columns) == wanted and frame.notna().all().all()
    for metric in metrics.METRICS:
        assert (frame[f"{metric}_low"] <= frame[metric]).all() and (
            frame[metric] <= frame[f"{metric}_high"]
        ).all()
        assert frame[f"{metric}_low"].min() >= 0 and frame[f"{metric}_high"].max() <= 1


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
    clusters = np.arange(120) % 6, {"braille": np.arange(30) // 2}
    draws = metrics.bootstrap_draws(inside, {"braille": outside}, 60, 0, *clusters)["braille"][0]
    point = np.reshape([*found.values().values()], (1, 1, 5))
    expected = metrics.over_images_and_seeds([(point, draws[None, :, None])], [6])
    assert row["clusters"] == 6 and row["auroc_low"] == pytest.approx(expected.low[0])


def test_averages_weigh_sets_alike_and_have_intervals_of_their_own(
    book: leaderboard.ScoreBook, frame: pd.DataFrame
) -> None:
    mine = frame.query("method == 'FLYP' and seed == 0 and score == 'MCM'").set_index("set")
    for group, members in {"far": ["arrows", "braille"], "near": ["accented"], "all": list(GROUPS)}.items():
        row = mine.loc[f"average {group}"]
        assert row["auroc"] == pytest.approx(mine.loc[members, "auroc"].mean())
        assert row["group"] == group and row["average"] and row["n_ood"] == sum(SIZES[m] for m in members)
    inside, outside = book.scores("FLYP", "MCM", 0)
    far, clusters = {name: outside[name] for name in ("arrows", "braille")}, {"braille": np.arange(30) // 2}
    draws = metrics.bootstrap_draws(inside, far, 60, 0, np.arange(120) % 6, clusters)
    error = np.mean([*draws.values()], axis=0)[0, :, 2].std(ddof=1)
    reach = (row := mine.loc["average far"])["fpr95_ood_high"] - row["fpr95_ood"]
    assert reach == pytest.approx(stats.t.ppf(0.975, 5) * error)


def test_clusters_make_intervals_of_classes(book: leaderboard.ScoreBook) -> None:
    """120 ID images of 6 classes say less of other classes than 120 images of 120."""
    alone = replace(book, id_clusters=None, ood_clusters={})
    assert book.clustered and not alone.clustered
    assert set(book.sets["clusters"]) == {6} and set(alone.sets["clusters"]) == set(list(SIZES.values())[2:6])
    wide, narrow = (summarise(held).eval("auroc_high - auroc_low") for held in (book, alone))
    assert (wide > narrow).mean() > 0.8


def test_published_averages_appear_when_all_their_sets_do() -> None:
    row = np.ones((1, 3))
    sets = {name: row for name in leaderboard.BENCHMARKS["MOS"]}
    made = leaderboard.ScoreBook([("CMA", 0, "MCM")], row, sets, dict.fromkeys(sets, "far"), 5)
    assert list(made.averages) == ["far", "MOS", "all"]


def test_validation_is_kept_apart(frame: pd.DataFrame) -> None:
    found = image_scores(MODELS, PROFILE, split="validation", names=["NegLabel"]).table()
    assert set(found["set"]) == {"val_far", "average validation", "average all"}
    assert set(found["n_id"]) == {60} and set(found["score"]) == {"NegLabel"}


def test_summary_over_seeds(book: leaderboard.ScoreBook, frame: pd.DataFrame) -> None:
    summary = summarise(book).set_index(["method", "score", "set"])
    pair = frame.query("method == 'CMA' and score == 'MCM' and set == 'arrows'")
    row = summary.loc["CMA", "MCM", "arrows"]
    assert row["seeds"] == 2 and row["auroc"] == pytest.approx(pair["auroc"].mean())
    assert (
        row["auroc_std"] == pytest.approx(pair["auroc"].std()) and row["fpr95_id_low"] <= row["fpr95_id_high"]
    )
    rows = book.rows("CMA", "MCM")
    parts = book.points["arrows"][[*rows.values()]][:, None], book.resampled["arrows"][[*rows.values()]]
    expected = metrics.over_images_and_seeds([(parts[0], parts[1][:, :, None])], [6])
    (found,) = book.estimates([("arrows", rows, None)])  # asked alone, nothing is borrowed
    np.testing.assert_allclose(found, expected)
    assert row["auroc_low"] <= row["auroc"] and row["auroc_low"] != pytest.approx(expected.low[0], abs=1e-9)
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
    assert row["low"] <= row["difference"] <= row["high"] and row["seeds_better"] == "2 of 2"
    rows = [list(book.rows(method, "NegLabel").values()) for method in ("CMA", "FLYP")]
    parts = {}
    for group, sets in book.averages.items():
        gaps = (
            np.stack([of[x][rows[0]] - of[x][rows[1]] for x in sets], -2)
            for of in (book.points, book.resampled)
        )
        parts[group] = [tuple(gaps)]
    others = np.mean([metrics.seed_ratio(part) for part in parts.values()], axis=0), 3  # of four comparisons
    found = differences(book, [("CMA", "FLYP")]).query("score == 'NegLabel'")
    for group, sets in book.averages.items():
        expected = metrics.over_images_and_seeds(parts[group], [6] * len(sets), others)
        np.testing.assert_allclose(
            found[found.group == group][["difference", "low", "high", "p"]].T, expected
        )


def test_seeds_are_matched_or_else_stand_for_themselves(book: leaderboard.ScoreBook) -> None:
    swapped = replace(book, keys=[(m, (1 - seed if m == "CMA" else seed), s) for m, seed, s in book.keys])
    renamed = replace(book, keys=[(m, (seed + 7 if m == "CMA" else seed), s) for m, seed, s in book.keys])
    found = [
        differences(held, [("CMA", "FLYP"), ("CMA", "zero-shot"), ("zero-shot", "zero-shot")])
        for held in (book, swapped, renamed)
    ]
    same, other, apart = (table.query("metric == 'auroc' and group == 'far'") for table in found)
    assert np.allclose(same["difference"], other["difference"]) and np.allclose(
        same["difference"], apart["difference"]
    )
    assert not np.allclose(same["seed_min"], other["seed_min"])
    pair = apart.query("b == 'FLYP'")
    assert {word[-4:] for word in pair["seeds_better"]} == {"of 4"} and set(pair["covers"]) == {
        "classes, images and seeds"
    }
    assert set(same.query("a == 'CMA' and b == 'zero-shot'")["covers"]) == {
        "classes, images and seeds of CMA"
    }
    assert set(same.query("a == 'zero-shot'")["covers"]) == {"classes and images"}


PAIRS = [("CMA", "FLYP"), ("FLYP", "CMA"), ("CMA", "CMA")]


def test_verdict_words(book: leaderboard.ScoreBook) -> None:
    found = differences(book, PAIRS, {"score": ["NegLabel"], "metric": ["auroc"], "group": ["far", "all"]})
    assert set(found["set"]) == {f"average {g}" for g in ("near", "far", "unseen", "all")}
    asked = found[found["family"]]
    assert len(asked) == 6 and list(asked["p_holm"]) == list(metrics.holm(asked["p"]))
    assert found["p_holm"].isna().sum() == len(found) - 6
    words = [verdict(found, *pair, "auroc")["verdict"] for pair in PAIRS]
    assert words == ["better", "worse", "not settled"]
    assert set(found[~found["family"]]["verdict"]) == {"exploratory"}
    assert (found["p"] < 0.05).sum() > 6 and found[["low", "high"]].notna().all().all()


def test_a_family_of_more_comparisons_settles_less(book: leaderboard.ScoreBook) -> None:
    few = differences(book, PAIRS, {"score": ["NegLabel"], "group": ["far"], "metric": ["auroc", "aupr_in"]})
    many = differences(book, PAIRS)
    assert set(few["verdict"]) == {"better", "worse", "not settled", "exploratory"}
    key = ["a", "b", "score", "set", "metric"]
    both = few[few["family"]].merge(many, on=key, suffixes=("", "_many"))
    assert (both["p_holm"] <= both["p_holm_many"]).all() and many["family"].all()
    assert (many["verdict"] == "not settled").sum() > (both["verdict"] == "not settled").sum()
    for table in (few[few["family"]], many):
        settled = table["p_holm"].round(4) < 0.05
        good = (table["difference"] < 0) == table["metric"].isin(metrics.LOWER_IS_BETTER)
        expected = np.where(settled, np.where(good, "better", "worse"), "not settled")
        np.testing.assert_array_equal(table["verdict"], expected)


def test_the_sentence_follows_its_row(book: leaderboard.ScoreBook) -> None:
    found = differences(book, PAIRS, {"score": ["NegLabel"], "metric": ["auroc"], "group": ["far"]})
    row = verdict(found, "CMA", "FLYP", "auroc", group="far")
    change, low, high = (f"{100 * row[part]:+.2f}" for part in ("difference", "low", "high"))
    assert row["sentence"] == (
        f"CMA against FLYP in AUROC (NegLabel, average far): better: {change} points, "
        f"95 % interval {low} to {high} over classes, images and seeds, p {row['p_holm']:.2g} after Holm's "
        "correction; CMA is better in 2 of 2 seeds."
    )
    mirrored = verdict(found, "FLYP", "CMA", "auroc", group="far")["sentence"]
    assert ": worse: -" in mirrored and "FLYP is better in 0 of 2 seeds" in mirrored
    same = verdict(found, "CMA", "CMA", "auroc", group="far")["sentence"]
    assert "AUROC (NegLabel, average far): not settled: +0.00 points, 95 % interval +0.00 to +0.00" in same
    loose = verdict(found, "CMA", "FLYP", group="near")["sentence"]
    assert ": exploratory: " in loose and "Holm" not in loose
    one = replace(
        book, keys=[(f"{m}{seed}", 0, s) for m, seed, s in book.keys], id_clusters=None, ood_clusters={}
    )
    said = verdict(differences(one, [("CMA1", "FLYP1")]), "CMA1", "FLYP1")["sentence"]
    assert said.endswith("; one seed: the interval covers images only.") and " over " not in said
    with pytest.raises(UserError, match="holds 0 rows"):
        verdict(found, "CMA", "LoCoOp")


PAPER = load_profile("imagenet")
OTHER = {"convention": "OoD positive"}


def test_published_numbers_are_whole() -> None:
    paper = paper_tables()
    assert {"CMA", "NegLabel", "MCM", "CSP", "AdaNeg"} <= set(paper["source"])
    sizes = paper[paper["source"] == "CMA"].groupby("table").size()
    assert (sizes[1], sizes[2]) == (22 * 5, 21 * 7)
    shown = paper.dropna(subset="auroc")
    assert shown[["fpr95_id", "auroc"]].stack().between(0, 1).all()
    other = paper[paper["convention"] == "OoD positive"]
    assert set(other["source"]) == {"AdaNeg", "TANL"}
    assert set(paper["convention"].dropna()) == {"ID positive", "OoD positive"}
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


def test_against_paper(book: leaderboard.ScoreBook) -> None:
    frame = summarise(book)
    ours = frame.query("method == 'CMA' and score == 'NegLabel' and set == 'arrows'").iloc[0]
    rows = [
        ("arrows", ours["fpr95_id"], ours["auroc"]),
        ("braille", 1.0, 0.0),
        ("digits", -0.1, 1.1),
        ("elsewhere", 0.5, 0.5),
    ]
    paper = pd.DataFrame(rows, columns=["set", "fpr95_id", "auroc"])
    paper = paper.assign(source="X", table=1, method="CMA", score="NegLabel", id_accuracy=np.nan)
    paper = paper.assign(n_id=ours["n_id"], n_ood=[40, 30, 45, 9], convention="ID positive")
    found = against_paper(frame, paper, PAPER, 1000, 1_281_167)
    columns = "source table method score set metric paper ours low high difference differs verdict".split()
    assert sorted(found.columns) == sorted(columns) and set(found["differs"]) == {""}
    assert list(found["metric"]) == ["fpr95_id", "auroc"] * 4
    words = ["agrees", "agrees", "better", "better", "worse", "worse", "not measured", "not measured"]
    assert list(found["verdict"]) == words
    assert found["difference"][2] == pytest.approx(found["ours"][2] - 1.0) and np.isnan(found["ours"][6])
    assert set(against_paper(frame, paper_tables(), PAPER, 1000, 1_281_167)["verdict"]) == {"not measured"}


def test_what_is_not_as_published_gets_no_verdict(book: leaderboard.ScoreBook) -> None:
    frame = summarise(book).query("set == 'arrows' and score == 'NegLabel'")
    row = {"source": "X", "table": 1, "score": "NegLabel", "set": "arrows", "fpr95_id": 0.1, "auroc": 0.9}
    row |= {"n_id": frame.iloc[0]["n_id"], "n_ood": 40.0, "convention": "ID positive"}
    cases = {
        "CMA": {
            "": ({}, 1000, {}),
            "model RN50, not ViT-B-16-quickgelu": ({"model": "RN50"}, 1000, {}),
            "weights start.pt, not openai": ({"pretrained": "/mine/start.pt"}, 1000, {}),
            "ID classes 100, not 1000": ({}, 100, {}),
            "epochs 1, not 10; lam 0.01, not 0.001": ({"epochs": 1, "lam": 0.01}, 1000, {}),
            "ID images 40, not 50000; OoD images 40, not stated there": (
                {}, 1000, {"n_id": 50000, "n_ood": np.nan}
            ),
            "positive class of FPR95 ID positive, not OoD positive": ({}, 1000, OTHER),
        },
        "zero-shot": {"": ({"epochs": 1, "lam": 0.01}, 1000, {})},
    }  # fmt: skip
    for method, by_words in cases.items():
        for words, (changes, classes, stated) in by_words.items():
            paper = pd.DataFrame([row | stated | {"method": method}])
            found = against_paper(frame, paper, PAPER.model_copy(update=changes), classes, 1_281_167)
            assert list(found["differs"]) == [words.replace("ID images 40", f"ID images {row['n_id']:g}")] * 2
            assert (set(found["verdict"]) == {"not comparable"}) == bool(words)
            assert found["ours"].notna().all()
    small = against_paper(frame, pd.DataFrame([row | {"method": "FLYP"}]), PAPER, 1000, 5000)
    assert set(small["differs"]) == {"training images 5000, not 1281167"}
    said = leaderboard.setting(PAPER.model_copy(update={"pretrained": "/mine/start.pt"}), 100)
    recipe = "epochs 10, batch 512, lr 1e-05, lam 0.001, seeds 0, 1, 2"
    assert said == f"ViT-B-16-quickgelu, weights start.pt, 100 ID classes; {recipe}"


def test_no_image_is_averaged_twice() -> None:
    rng = np.random.default_rng(0)
    sets = {"SUN": "far", "iNaturalist": "far", "iNaturalist-OpenOOD": "far", "Textures-OpenOOD": "far"}
    ood = {name: rng.normal(size=(1, 20)) for name in sets}
    copied = leaderboard.ScoreBook([("m", 0, "s")], rng.normal(1, 1, (1, 30)), ood, sets, 5)
    counted = ["SUN", "iNaturalist", "Textures-OpenOOD"]  # of Textures the other copy is not there
    assert copied.averages == {"far": counted, "all": counted}
    assert set(copied.table()["set"]) == {*sets, "average far", "average all"}


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
        (lambda: differences(book, PAIRS, {"scores": ["MCM"]}), "names 'scores', no column.*score"),
        (lambda: differences(book, PAIRS, {"score": "MCM"}), "No comparison belongs to the family"),
        (lambda: book.scores("CMA", "MCM", 9), "seed 9"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_without_negatives_the_scores_that_need_none_are_given() -> None:
    bare = replace(MODELS["CMA", 0], negatives=None)
    assert [key[2] for key in image_scores({("CMA", 0): bare}, PROFILE).keys] == list(methods.every())[:4]
