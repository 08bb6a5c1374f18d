"""The notebooks' questions on made-up spaces whose answers are known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from ood_utils import analyses, negatives, training
from ood_utils.config import load_profile

WORDS = ["ant", "bee", "cow", "bees", "dune", "elm", "fog", "gate"]


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _near(centres: np.ndarray, labels: np.ndarray, noise: float, seed: int) -> np.ndarray:
    return _unit(
        centres[labels] + noise * np.random.default_rng(seed).normal(size=(len(labels), centres.shape[1]))
    )


@pytest.fixture
def world() -> SimpleNamespace:
    """Three ID classes, a near and a far OoD set whose images have names in the corpus, one validation set."""
    axes = np.eye(16)
    text = {word: axes[i] for i, word in enumerate(WORDS)}
    text["bees"] = _unit((text["bee"] + 0.1 * axes[12])[None])[0]
    class_text = _unit(np.stack([text[w] for w in ("ant", "bee", "cow")]))
    id_labels = np.arange(60) % 3

    def image_set(name: str, group: str, words: list[str], labels: np.ndarray) -> SimpleNamespace:
        ids = [f"{words[k % len(words)]} · {k}" for k in range(len(labels))]
        return SimpleNamespace(name=name, group=group, labels=labels, ids=ids)

    ood_words = {"near_set": ["dune", "elm"], "far_set": ["fog", "gate"], "val_set": ["elm"]}
    groups = {"near_set": "near", "far_set": "far", "val_set": "validation"}
    sets = {n: image_set(n, groups[n], w, np.full(40, -1)) for n, w in ood_words.items()}
    images = {
        n: _near(np.stack([text[w] for w in ws]), np.arange(40) % len(ws), 0.1, i)
        for i, (n, ws) in enumerate(ood_words.items())
    }
    images |= {n: _near(class_text, id_labels, 0.1, 7 + i) for i, n in enumerate(("id_val", "id_test"))}
    id_set = image_set("id", "id", ["ant", "bee", "cow"], id_labels)
    study = SimpleNamespace(
        class_names=["ant", "bee", "cow"], synonyms=[[], [], []], id_val=id_set, id_test=id_set,
        ood={n: sets[n] for n in ("near_set", "far_set")}, validation={"val_set": sets["val_set"]},
        corpus=[(w, "noun") for w in WORDS],
    )  # fmt: skip
    space = SimpleNamespace(
        images=images, class_text=class_text, corpus_text=_unit(np.stack([text[w] for w in WORDS])), scale=100.0,
        rows=lambda name: np.arange(len(images[name])),
    )  # fmt: skip
    profile = load_profile("glyphs-tiny", {"keep": 1.0, "bootstrap": 20})
    return SimpleNamespace(
        study=study, space=space, profile=profile, mined=negatives.select(study, space, profile)
    )


def test_a_perfect_world_is_found_perfect(world) -> None:
    found = analyses.on_validation(world.space, world.study, world.mined, world.profile)
    assert found["accuracy"] == 1 and found["auroc"] > 0.999 and found["centroid_gap"] < 0.2
    world.study.validation = {}
    assert np.isnan(analyses.validation_auroc(world.space, world.study, world.mined, world.profile))


def test_negative_lists_tell_a_leak_from_a_clean_list(world) -> None:
    assert "bees" not in world.mined.words and set(world.mined.words) == {"dune", "elm", "fog", "gate"}
    table = analyses.negative_lists({("zero-shot", 0): world.space}, world.study, world.mined, world.profile)
    fpr95 = table.set_index("list").fpr95_id
    assert fpr95["clean"] == 0 and (table.auroc <= 1).all()
    assert table.set_index("list").words["all ID names added"] == 4 + 3
    assert table.set_index("list").auroc["all ID names added"] <= table.set_index("list").auroc["clean"]


def test_own_names_are_the_cosine_to_the_true_word(world) -> None:
    table = analyses.own_names({("zero-shot", 0): world.space}, world.study)
    assert list(table.set) == ["near_set", "far_set"] and (table.ood_cosine > 0.9).all()
    first = world.space.images["near_set"][::2] @ world.space.corpus_text[WORDS.index("dune")]
    second = world.space.images["near_set"][1::2] @ world.space.corpus_text[WORDS.index("elm")]
    assert table.ood_cosine[0] == pytest.approx(np.concatenate([first, second]).mean(), abs=1e-5)
    world.study.ood["near_set"].ids = world.study.ood["far_set"].ids = ["nameless"] * 40
    assert analyses.own_names({("zero-shot", 0): world.space}, world.study).empty


def test_the_worst_mistake_is_the_planted_one(world) -> None:
    world.space.images["far_set"][11] = world.space.class_text[1]
    table = analyses.worst_mistakes(world.space, world.study, world.mined, world.profile, count=3)
    assert (table.set[0], table["index"][0]) == ("far_set", 11) and table["nearest ID name"][0] == "bee"
    assert table["log-odds"].is_monotonic_decreasing and len(table) == 3


def _sweep(**columns: list[float]) -> pd.DataFrame:
    defaults = {
        "lam": [0, 0.01, 0.1],
        "centroid_gap": [0.7, 0.2, 0.1],
        "accuracy": [0.8, 0.795, 0.75],
        "auroc": [0.9, 0.8, 0.95],
    }
    return pd.DataFrame(defaults | columns)


def test_lam_is_chosen_by_the_rule_and_never_for_a_price() -> None:
    choice = analyses.choose_lam(_sweep(), 0.5)
    assert choice.lam == 0.01 and choice.closed.lam == 0.01  # 0.1 detects better but costs accuracy
    assert analyses.choose_lam(_sweep(accuracy=[0.8, 0.8, 0.8]), 0.5).lam == 0.1
    assert analyses.choose_lam(_sweep(accuracy=[0.8, 0.5, 0.5]), 0.5).lam == 0.5
    assert analyses.choose_lam(_sweep(auroc=[np.nan] * 3), 0.5).lam == 0.5


def test_the_smallest_share_within_the_tolerance_is_taken() -> None:
    frame = pd.DataFrame(
        {"keep": [0.15, 0.6, 0.8, 1.0], "words": [1, 2, 3, 4], "auroc": [0.8, 0.9, 0.914, 0.917]}
    )
    assert analyses.smallest_share(frame) == 0.8


def test_the_order_holds_only_where_both_differences_are_better() -> None:
    def row(a: str, b: str, group: str, verdict: str) -> dict:
        numbers = {"difference": -0.1, "low": -0.2, "high": -0.05, "seed_min": -0.1, "seed_max": -0.1}
        facts = {
            "a": a,
            "b": b,
            "score": "NegLabel",
            "metric": "fpr95_id",
            "set": f"average {group}",
            "group": group,
        }
        return facts | numbers | {"average": True, "verdict": verdict}

    frame = pd.DataFrame(
        [row("CMA", "FLYP", "near", "better"), row("FLYP", "zero-shot", "near", "better")]
        + [row("CMA", "FLYP", "far", "worse"), row("FLYP", "zero-shot", "far", "better")]
    )
    lines, holds = analyses.order_claims(frame, ["near", "far"])
    assert (
        holds == {"near": True, "far": False}
        and "does not hold" in lines[1]
        and "CMA is worse than FLYP" in lines[1]
    )


def test_the_plan_trains_nothing_twice() -> None:
    profile = load_profile("glyphs")
    sweep, whole = training.plan(profile), training.plan(profile, 0.003)
    assert list(sweep.lam) == profile.lams and set(sweep.role) == {"sweep"}
    assert not whole.tag.duplicated().any() and set(sweep.tag) <= set(whole.tag)
    headline = whole[whole.role == "headline"]
    assert headline.groupby("method").size().to_dict() == {"zero-shot": 1, "FLYP": 3, "CMA": 3}
    assert (whole[whole.role == "few classes"].classes == profile.few_classes).all()
