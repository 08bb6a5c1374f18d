"""The notebooks' questions on made-up spaces whose answers are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from ood_utils import comparisons, data, embeddings, models, scores
from ood_utils.config import load_profile
from ood_utils.embeddings import EmbeddedSet, StudyEmbeddings
from ood_utils.errors import UserError

WORDS = ["ant", "bee", "cow", "bees", "dune", "elm", "fog", "gate"]


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _near(centres: np.ndarray, labels: np.ndarray, noise: float, seed: int) -> np.ndarray:
    return _unit(
        centres[labels] + noise * np.random.default_rng(seed).normal(size=(len(labels), centres.shape[1]))
    )


@pytest.fixture
def world() -> SimpleNamespace:
    """Three ID classes, near and far OoD sets whose images have names in the corpus, one validation set."""
    axes = np.eye(16)
    text = {word: axes[i] for i, word in enumerate(WORDS)}
    text["bees"] = _unit((text["bee"] + 0.1 * axes[12])[None])[0]
    contents = {
        "near_set": ("near", ["dune", "elm"]), "far_set": ("far", ["fog", "gate"]),
        "val_set": ("validation", ["elm"]), "id_val": ("id", ["ant", "bee", "cow"]),
        "id_test": ("id", ["ant", "bee", "cow"]),
    }  # fmt: skip
    sets = {}
    for seed, (name, (group, words)) in enumerate(contents.items()):
        which = np.arange(60) % len(words)
        rows = _near(np.stack([text[w] for w in words]), which, 0.1, seed)
        ids = [f"{words[k]} · {i}" for i, k in enumerate(which)]
        labels = which if group == "id" else np.full(60, -1)
        sets[name] = EmbeddedSet(rows, labels, ids, np.arange(60), group)
    class_text, corpus_text = (_unit(np.stack([text[w] for w in words])) for words in (WORDS[:3], WORDS))
    corpus = [(w, "noun") for w in WORDS]
    embedded = StudyEmbeddings(sets, WORDS[:3], [[]] * 3, class_text, corpus, corpus_text, 100.0)
    profile = load_profile("glyphs-tiny", {"keep": 1.0, "bootstrap": 20})
    mined = embeddings.mine(embedded, profile)
    return SimpleNamespace(embedded=embedded.with_negatives(mined), profile=profile)


def test_a_perfect_world_is_found_perfect(world) -> None:
    found = comparisons.on_validation(world.embedded, world.profile)
    assert found["accuracy"] == 1 and found["auroc"] > 0.999 and found["centroid_gap"] < 0.2
    without = {name: s for name, s in world.embedded.sets.items() if s.group != "validation"}
    assert np.isnan(comparisons.validation_auroc(replace(world.embedded, sets=without), world.profile))


def test_a_list_s_scores_are_those_of_neglabel(world) -> None:
    """Every list at once, by counts of words, against the module's NegLabel with that list alone."""
    book = comparisons.negative_lists({("zero-shot", 0): world.embedded}, world.profile)
    lists = dict.fromkeys(name for name, _, _ in book.keys)
    assert {"in use", "every 20th ID name added", "all ID names added", "not cleaned"} <= set(lists)
    clean, named = list(world.embedded.negatives.indices), [len(WORDS) + k for k in range(3)]
    known = np.concatenate([world.embedded.corpus_text, world.embedded.class_text])
    cases = {
        "in use": clean,
        "every 20th ID name added": clean + named[:1],
        "all ID names added": clean + named,
    }
    cases["OoD names out (looks at the test)"] = [i for i in clean if WORDS[i] not in WORDS[4:]]
    for name, indices in cases.items():
        if not indices:
            assert name not in lists
            continue
        inside, outside = book.scores(name, "zero-shot", 0)
        text = known[indices]
        for found, part in {"id_test": inside, **outside}.items():
            rows = world.embedded[found].rows
            alone = scores.neglabel(rows, world.embedded.class_text, text, world.profile.temperature)
            np.testing.assert_allclose(part, alone, atol=1e-7)
    whole, leaky = (book.scores(name, "zero-shot", 0)[0] for name in ("in use", "all ID names added"))
    np.testing.assert_allclose(leaky, -np.logaddexp(0, -whole), atol=1e-7)  # P / (N + P)


def test_a_finished_list_is_used_as_it_is_and_cleaned_beside(world, tmp_path: Path) -> None:
    words = [WORDS[5], "a name", WORDS[4], WORDS[5]]
    (tmp_path / "list.txt").write_text("\n".join(words))
    profile = world.profile.model_copy(update={"negatives": str(tmp_path / "list.txt")})
    with pytest.raises(UserError, match="1 words of negatives .* have no embedding, first 'a name'"):
        embeddings.mine(world.embedded, profile)
    (tmp_path / "list.txt").write_text("\n".join([*words[::2], WORDS[5]]))
    mined = embeddings.mine(world.embedded, profile)
    assert mined.indices == [5, 4, 5] and mined.provenance["list"] == profile.negatives
    model = world.embedded.with_negatives(mined)
    lists = dict.fromkeys(name for name, *_ in comparisons.negative_lists({("m", 0): model}, profile).keys)
    assert {"in use", "mined and cleaned"} <= set(lists)


def test_the_images_of_one_model_meet_the_texts_of_another(world) -> None:
    other = replace(
        world.embedded, class_text=-world.embedded.class_text, corpus_text=-world.embedded.corpus_text
    )
    mixed = comparisons.swapped(world.embedded, other)
    assert mixed.sets is world.embedded.sets and np.array_equal(mixed.class_text, other.class_text)
    assert np.array_equal(mixed.negative_text, other.negative_text)


def test_who_moved_is_an_angle_and_a_change_of_cosine(world) -> None:
    start = world.embedded
    turned = {n: replace(s, rows=_unit(s.rows + start.class_text[0])) if s.group == "far" else s
              for n, s in start.sets.items()}  # fmt: skip
    found = comparisons.who_moved({("moved", 0): replace(start, sets=turned)}, start).set_index("what")
    assert np.allclose(found.moved.drop("far images"), 0, atol=0.1)  # degrees; acos near 1 in float32
    rows = start["far_set"].rows
    angle = np.degrees(np.arccos((rows * turned["far_set"].rows).sum(1))).mean()
    assert found.moved["far images"] == pytest.approx(angle, abs=1e-3)
    assert found.to_id_texts["far images"] > 0.3 and abs(found.to_id_texts["near images"]) < 1e-6


def test_the_worst_mistake_is_the_planted_one(world) -> None:
    world.embedded["far_set"].rows[11] = world.embedded.class_text[1]
    world.embedded["far_set"].index[:] += 5  # as if five images before it had been unreadable
    table = comparisons.worst_mistakes(world.embedded, world.profile, count=3)
    assert (table.set[0], table["index"][0]) == ("far_set", 16) and table["nearest ID name"][0] == "bee"
    assert table["log-odds"].is_monotonic_decreasing and len(table) == 3


def test_every_method_of_a_table_gets_the_zero_shot_list(tmp_path) -> None:
    profile = load_profile("glyphs-tiny", {"id_classes": 5, "ood_images": 4, "corpus_words": 40})
    methods = pd.DataFrame(
        {"method": ["zero-shot", "copy"], "seed": [0, 1], "weights": ["builtin", "own.safetensors"]}
    )
    (tmp_path / "own.safetensors").write_bytes(models.GLYPH_WEIGHTS.read_bytes())
    found = comparisons.embed_methods(tmp_path, data.load(profile), profile, methods)
    assert list(found) == [("zero-shot", 0), ("copy", 1)]
    one, other = found.values()
    assert one.negatives.indices == other.negatives.indices and np.array_equal(
        one.class_text, other.class_text
    )


def test_the_gap_is_closed_as_far_as_in_the_paper_by_the_smallest_lam() -> None:
    sweep = pd.DataFrame({"lam": [0, 0.01, 0.1, 0, 0.01, 0.1], "uni_matched": [2, 0.7, 0.1, 2, 0.6, 0.1]})
    assert comparisons.closing_lam(sweep) == 0.01  # 0.65 of 2 is less than 0.34; one seed alone would say 0.1
    assert comparisons.closing_lam(sweep[sweep.lam < 0.1].assign(uni_matched=[2, 1.5, 2, 1.5])) == 0.01
    with pytest.raises(UserError, match="FLYP"):
        comparisons.closing_lam(sweep[sweep.lam > 0])


def test_a_weight_is_chosen_on_validation_and_never_for_a_price() -> None:
    sweep = pd.DataFrame(
        {"relation": [0.1, 0.3, 1], "accuracy": [0.8, 0.795, 0.7], "auroc": [0.9, 0.91, 0.95]}
    )
    assert comparisons.best_on_validation(sweep, "relation") == 0.3
    assert comparisons.best_on_validation(sweep.assign(auroc=np.nan), "relation") == 0.1


def test_the_score_sweep_holds_the_ends_of_its_family(world) -> None:
    found = (
        comparisons.score_sweep({("zero-shot", 0): world.embedded}, world.profile).set_index("score").auroc
    )
    assert found["P - 0 N"] == found["Energy"] and found["P - 1 N"] == found["NegLabel"]
    assert {"MCM", "MaxLogit", "P - 0.25 N"} <= set(found.index) and found.between(0.5, 1).all()


def test_verdicts_are_told_by_word() -> None:
    rows = [("near", "better"), ("far", "not settled"), ("unseen", "better")]
    judged = pd.DataFrame(rows, columns=["group", "verdict"]).assign(a="CMA", b="FLYP", score="MCM")
    told = {("CMA", "FLYP", "MCM"): "better on near/unseen, not settled on far"}
    assert comparisons.verdict_words(judged) == told


def test_the_smallest_share_within_the_tolerance_is_taken() -> None:
    frame = pd.DataFrame(
        {"keep": [0.15, 0.6, 0.8, 1.0], "words": [1, 2, 3, 4], "auroc": [0.8, 0.9, 0.914, 0.917]}
    )
    assert comparisons.smallest_share(frame) == 0.8


def test_the_order_holds_where_both_are_better_and_fails_where_one_is_worse() -> None:
    words = {
        "near": ("better", "better"),
        "far": ("worse", "better"),
        "unseen": ("better", "not settled"),
        "all": ("exploratory", "better"),
    }
    facts = {"score": "NegLabel", "metric": "fpr95_id", "difference": -0.1, "low": -0.2, "high": -0.05}
    facts |= {"p_holm": 0.01, "family": True, "seeds_better": "3 of 3", "covers": "images and seeds"}
    pairs = [("CMA", "FLYP"), ("FLYP", "zero-shot")]
    rows = [
        facts | {"a": a, "b": b, "set": f"average {group}", "group": group, "verdict": word}
        for group, both in words.items()
        for (a, b), word in zip(pairs, both, strict=True)
    ]
    lines, answers = comparisons.order_claims(pd.DataFrame(rows), words)
    assert list(answers.values()) == ["holds", "does not hold", "not settled", "not settled"]
    assert lines[0].startswith(
        "- **near, NegLabel**: the order holds. CMA against FLYP in FPR95 (NegLabel, average near): better: "
    )
    assert "the order does not hold" in lines[1] and "the order is not settled. CMA against" in lines[2]
