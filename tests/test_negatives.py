"""Negative labels: the miner against a literal NegMine, the filters by example."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ood_utils import negatives
from ood_utils.errors import UserError
from ood_utils.negatives import NegativeList, build, clean, leak, mine, prompts


def unit(n: int, d: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


WORDS, CLASSES = unit(200, 16, 0), unit(23, 16, 1)
PARTS = np.where(np.arange(200) % 3 == 0, "adj", "noun")


def literal(quantile: float, keep: float) -> list[int]:
    """NegMine as its text reads, with torch's quantile (which the official code calls)."""
    cosines = torch.from_numpy(WORDS).double() @ torch.from_numpy(CLASSES).double().T
    likeness = torch.quantile(cosines, quantile, dim=1)
    chosen = []
    for part in ("noun", "adj"):
        index = [i for i in range(len(WORDS)) if PARTS[i] == part]
        chosen += sorted(index, key=lambda i: float(likeness[i]))[: int(keep * len(index))]
    return chosen


@pytest.mark.parametrize(("quantile", "keep"), [(0.95, 0.15), (1.0, 0.5), (0.5, 0.07)])
def test_mine_is_negmine(quantile: float, keep: float) -> None:
    found = mine(WORDS, CLASSES, quantile, keep, PARTS)
    assert found.tolist() == literal(quantile, keep)
    assert found.dtype == np.int64
    tensors = mine(torch.from_numpy(WORDS), torch.from_numpy(CLASSES), quantile, keep, list(PARTS))
    np.testing.assert_array_equal(tensors, found)


def test_mine_without_parts_keeps_the_least_alike_first() -> None:
    found = mine(WORDS, CLASSES, 1.0, 0.1)
    nearest = (WORDS @ CLASSES.T).max(1)
    assert len(found) == 20 and (np.diff(nearest[found]) >= 0).all()
    assert nearest[found].max() <= np.delete(nearest, found).min()


def test_mine_breaks_ties_by_index_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    repeated = np.tile(WORDS[:25], (8, 1))  # every word eight times
    found = mine(repeated, CLASSES, keep=0.48).reshape(12, 8)
    assert (found % 25 == found[:, :1] % 25).all()  # the eight copies stand together,
    assert (np.diff(found, axis=1) > 0).all()  # in the corpus's order
    monkeypatch.setattr(negatives, "_CHUNK", 150)
    np.testing.assert_array_equal(mine(repeated, CLASSES, keep=0.48), found.ravel())


def test_cma_split_takes_fixed_numbers_in_its_own_order() -> None:
    found = mine(WORDS, CLASSES, keep={"adj": 6, "noun": 34}, parts=PARTS)
    assert list(PARTS[found]) == ["adj"] * 6 + ["noun"] * 34
    share = mine(WORDS, CLASSES, keep=1.0, parts=PARTS)
    nouns, adjectives = share[PARTS[share] == "noun"], share[PARTS[share] == "adj"]
    np.testing.assert_array_equal(found, np.r_[adjectives[:6], nouns[:34]])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((WORDS, unit(23, 8, 1)), "id_text_embeddings is 8 wide but candidate_embeddings is 16"),
        ((WORDS[:0], CLASSES), r"shape \(0, 16\)"),
        ((WORDS[0], CLASSES), "shape"),
        ((WORDS * np.nan, CLASSES), "candidate_embeddings must hold rows of length 1"),
        ((WORDS, CLASSES, 1.5), "quantile is 1.5"),
        ((WORDS, CLASSES, 0.95, 0), "keep is 0"),
        ((WORDS, CLASSES, 0.95, -1), "keep is -1"),
        ((WORDS, CLASSES, 0.95, 0.001), "selects none"),
        ((WORDS, CLASSES, 0.95, {"verb": 3}, PARTS), "3 of 'verb', but there are 0"),
        ((WORDS, CLASSES, 0.95, {"adj": -3}, PARTS), "-3 of 'adj'"),
        ((WORDS, CLASSES, 0.95, 0.15, ["noun"]), "parts has 1 entries for 200"),
    ],
)
def test_mine_refuses_what_it_cannot_mine(arguments: tuple, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        mine(*arguments)
    assert "\n" not in str(caught.value)


NAMES, SYNONYMS = (
    ["yellow lady's slipper", "fox squirrel", "Samoyed", "bus"],
    [["moccasin flower"], [], [], ["coach"]],
)
CASES = {
    "samoyed": True,
    "SAMOYEDS": True,
    "fox squirrels": True,
    "squirrel, fox": True,
    "slippers of ladies": False,  # further words make another concept
    "yellow ladies' slipper": True,
    "Lady's-slipper (yellow)": True,
    "yellow lady slipper": True,
    "moccasin-flower": True,
    "coaches": True,
    "buses": False,  # "bus" keeps its s, "buses" becomes "buse": irregular plurals are not found
    "fox": False,
    "red fox squirrel": False,
}


def test_names_synonyms_and_near_synonyms_are_found() -> None:
    words = list(CASES)
    assert leak(words, NAMES, SYNONYMS) == [word for word, named in CASES.items() if named]
    np.testing.assert_array_equal(clean(words, NAMES, SYNONYMS), [not named for named in CASES.values()])
    assert leak(["moccasin flower"], NAMES) == []  # without synonyms given


def test_artefacts_and_repetitions_go() -> None:
    words = [
        "[ lynx",
        "good",
        "Good",
        "good]",
        "---",
        "",
        "t-shirt",
        "T shirt",
        "dog house",
        "house dog",
        "naïve",
        "naïve",
    ]
    kept = [word for word, ok in zip(words, clean(words, []), strict=True) if ok]
    assert kept == ["good", "t-shirt", "dog house", "house dog", "naïve"]  # word order makes two concepts


def test_spacing_variants_are_found() -> None:
    names = ["coffeemaker", "tea cup", "sunglasses", "man-of-war"]
    words = [
        "coffee maker",
        "Coffee-makers",
        "teacup",
        "teacups",
        "sun glasses",
        "manofwar",
        "coffee",
        "cuptea",
    ]
    assert leak(words, names) == words[:-2]
    assert clean(words, names).tolist() == [False] * 6 + [True] * 2


def corpus_of(n: int) -> list[tuple[str, str]]:
    return [(f"word{i:03d}", str(part)) for i, part in zip(range(n), PARTS, strict=True)]


def test_build_points_into_the_whole_corpus() -> None:
    corpus = corpus_of(200)
    best = mine(WORDS, CLASSES, parts=PARTS)
    banned = corpus[best[0]][0]
    cleaned = build(corpus, WORDS, CLASSES, [banned], provenance={"weights": "abc"})
    assert (
        banned not in cleaned.words and banned in build(corpus, WORDS, CLASSES, [banned], cleaned=False).words
    )
    assert [corpus[i][0] for i in cleaned.indices] == cleaned.words
    facts = {
        "weights": "abc",
        "cleaned": True,
        "candidates": 199,
        "corpus": 200,
        "quantile": 0.95,
        "keep": 0.15,
    }
    assert cleaned.provenance == facts
    for word, prompt in zip(cleaned.words, cleaned.prompts, strict=True):
        part = dict(corpus)[word]
        assert prompt == (f"This is a {word} photo" if part == "adj" else f"the nice {word}")
    assert build(corpus, WORDS, CLASSES, keep={"adj": 3, "noun": 5}).provenance["keep"] == {
        "adj": 3,
        "noun": 5,
    }
    with pytest.raises(UserError, match="200 rows for 3 words"):
        build(corpus[:3], WORDS, CLASSES)
    with pytest.raises(UserError, match="no word that is not an ID name"):
        build([("a", "noun")], WORDS[:1], CLASSES, ["a"])


def test_the_hash_is_that_of_the_prompts_in_order() -> None:
    made = build(corpus_of(200), WORDS, CLASSES, provenance={"model": "GlyphCLIP"})
    same = NegativeList(made.words[::-1], list(made.prompts), made.indices)
    other = NegativeList(made.words, made.prompts[::-1], made.indices)
    assert same.hash == made.hash != other.hash and len(other) == len(made)


def test_prompts_by_part_of_speech() -> None:
    corpus = [("red", "adj"), ("tree", "noun"), ("old house", "conjugated")]
    assert prompts(corpus) == ["This is a red photo", "the nice tree", "the nice old house"]
    assert prompts(corpus, "a {}", "a {}") == ["a red", "a tree", "a old house"]
