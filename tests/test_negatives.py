"""Negative labels: the miner against a literal NegMine, the filters by example, WordNet files made by hand."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import mini_imagenet
import numpy as np
import pytest
import torch
from fakes import refusing_disk

from ood_utils import data, negatives
from ood_utils.config import make_profile
from ood_utils.data import corpus as words
from ood_utils.data.corpus import conjugate, prompts, wordnet
from ood_utils.errors import UserError
from ood_utils.negatives import NegativeList, build, clean, leak, mine

DEBIAN = Path("/usr/share/wordnet")


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
        ((WORDS, CLASSES[:, :8]), "width 16 but id_text_embeddings 8"),
        ((WORDS[:0], CLASSES), r"shape \(0, 16\)"),
        ((WORDS[0], CLASSES), "shape"),
        ((WORDS * np.nan, CLASSES), "NaN"),
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
    kept = [word for word, ok in zip(words, clean(words, [], None), strict=True) if ok]
    assert kept == ["good", "t-shirt", "dog house", "house dog", "naïve"]  # word order makes two concepts


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


def test_list_is_saved_whole_and_read_back(tmp_path: Path) -> None:
    made = build(corpus_of(200), WORDS, CLASSES, provenance={"model": "GlyphCLIP"})
    path = made.save(tmp_path / "new" / "negatives.json")
    assert NegativeList.load(path) == made and NegativeList.load(path).hash == made.hash
    assert [p.name for p in path.parent.iterdir()] == ["negatives.json"]
    other = NegativeList(made.words, made.prompts[::-1], made.indices)
    assert other.hash != made.hash and len(other) == len(made)


def test_a_broken_list_is_refused(tmp_path: Path) -> None:
    made = NegativeList(["a"], ["the nice a"], [0])
    path = made.save(tmp_path / "n.json")
    whole = path.read_text()
    with pytest.raises(UserError, match="cannot be read"):
        NegativeList.load(tmp_path / "none.json")
    for content in (
        whole[:-20],
        "[]",
        "{}",
        json.dumps({"hash": 1, "words": 2}),
        '{"hash": "x", "wrong": 1}',
    ):
        path.write_text(content)
        with pytest.raises(UserError, match="not a whole negative list"):
            NegativeList.load(path)
    path.write_text(whole.replace("the nice a", "the nice b"))
    with pytest.raises(UserError, match="changed after it was mined"):
        NegativeList.load(path)
    with pytest.raises(UserError, match="as many"):
        NegativeList(["a"], [], [])


def test_a_failed_save_leaves_the_old_list(tmp_path: Path) -> None:
    path = NegativeList(["a"], ["a"], [0]).save(tmp_path / "n.json")
    with pytest.raises(TypeError):
        NegativeList(["b"], ["b"], [1], {"bad": object()}).save(path)
    assert NegativeList.load(path).words == ["a"] and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("step", ["write", "rename"])
def test_a_refusing_disk_is_one_sentence_and_leaves_the_old_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = NegativeList(["a"], ["a"], [0]).save(tmp_path / "n.json")
    old = path.read_bytes()
    refusing_disk(monkeypatch, step)
    with pytest.raises(UserError, match=r"cannot write .*n\.json: No space left"):
        NegativeList(["b"], ["b"], [1]).save(path)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


def test_conjugate_and_prompts() -> None:
    corpus = [("red", "adj"), ("tree", "noun"), ("old", "adj")]
    found = conjugate(corpus)
    assert found[1] == ("tree", "noun")
    for (word, part), (name, new) in zip(corpus[::2], found[::2], strict=True):
        assert part == "adj" and new == "conjugated"
        assert name.split()[0] == word and name.split()[1] in words.CSP_SUPERCLASSES
    assert conjugate(corpus[:1]) == found[:1]  # a name depends on its own word only
    many = [(f"w{i}", "adj") for i in range(1400)]
    assert conjugate(many, seed=1) != conjugate(many)
    counts = Counter(name.split()[1] for name, _ in conjugate(many))
    assert len(counts) == 14 and max(counts.values()) < 150
    assert prompts(found[:2]) == [f"the nice {found[0][0]}", "the nice tree"]
    assert prompts(corpus, "a {}", "a {}") == ["a red", "a tree", "a old"]
    with pytest.raises(UserError, match="no place for the word"):
        prompts(corpus, "a tree")


LICENCE = "  1 This software and database is being provided to you, the LICENSEE, by  \n"
NOUNS = """\
00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 ~ 00002137 n 0000 ~ 04424418 n 0000 | that which is
00002137 05 n 02 Canis_familiaris 0 dog 0 000 | left out: an animal
00002200 13 n 01 bread 0 000 | left out: a food
00002300 20 n 02 yellow_lady's_slipper 0 Cypripedium 0 000 | a plant
00002400 06 n 01 Red 0 000 | an artifact that shares its name
00002500 06 n 01 anchor 0 000 | an artifact
"""
ADJECTIVES = """\
00001740 00 a 01 able 0 000 | (usually followed by `to')
00001800 00 s 02 red(a) 0 reddish 0 000 | of a colour
00001900 44 a 01 galore(ip) 0 000 | participle
00002000 01 a 01 Abkhazian 0 000 | pertaining
"""


@pytest.fixture
def dict_folder(tmp_path: Path) -> Path:
    (tmp_path / "data.noun").write_text(LICENCE + NOUNS)
    (tmp_path / "data.adj").write_text(LICENCE + ADJECTIVES)
    return tmp_path


def test_wordnet_reads_princeton_files(dict_folder: Path) -> None:
    assert wordnet(dict_folder) == [
        ("able", "adj"),
        ("red", "adj"),  # the noun of the same name comes later and does not count again
        ("abkhazian", "adj"),
        ("galore", "adj"),
        ("entity", "noun"),
        ("anchor", "noun"),
        ("yellow lady's slipper", "noun"),
    ]
    everything = [word for word, _ in wordnet(dict_folder, (), every_word=True)]
    assert {"dog", "canis familiaris", "bread", "reddish", "cypripedium"} < set(everything)
    assert "abkhazian" not in [word for word, _ in wordnet(dict_folder, words.CSP_LEFT_OUT)]


def test_wordnet_refuses_other_folders(dict_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="noun.fish"):
        wordnet(dict_folder, ("noun.fish",))
    (dict_folder / "data.adj").write_text("just some text\n")
    with pytest.raises(UserError, match="data.adj is no Princeton"):
        wordnet(dict_folder)
    (dict_folder / "data.adj").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="data.adj is no Princeton"):
        wordnet(dict_folder)
    with pytest.raises(UserError, match="data.noun cannot be read"):
        wordnet(tmp_path / "nowhere")


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's wordnet-base is not installed")
def test_debians_wordnet_is_neglabels_corpus() -> None:
    corpus = wordnet(DEBIAN)
    assert len(corpus) == 70_794 and len({word for word, _ in corpus}) == len(corpus)
    assert Counter(part for _, part in corpus) == {"noun": 56_788, "adj": 14_006}
    assert {"artichoke", "yellow lady's slipper"} < dict(corpus).keys()


def test_select_takes_its_settings_from_the_profile() -> None:
    corpus = [(word, "adj" if i % 2 else "noun") for i, (word, _) in enumerate(corpus_of(200))]
    study = SimpleNamespace(corpus=corpus, class_names=[corpus[0][0]], synonyms=[[]])
    space = SimpleNamespace(corpus_text=WORDS, class_text=CLASSES)
    profile = make_profile({"quantile": 0.5, "keep": 0.3, "adjective_prompt": "so {}"}, "test")
    found = negatives.select(study, space, profile)
    expected = build(
        corpus, WORDS, CLASSES, [corpus[0][0]], templates=("a {}", "so {}"), quantile=0.5, keep=0.3
    )
    assert (found.words, found.prompts, found.indices) == (expected.words, expected.prompts, expected.indices)
    about = {"source": "names", "model": "GlyphCLIP / builtin", "prompts": ["a {}", "so {}"], "cleaned": True}
    assert about.items() <= found.provenance.items() and len(found.provenance["embeddings_sha256"]) == 64
    assert negatives.select(study, space, profile, cleaned=False).provenance["cleaned"] is False
    published = profile.model_copy(update={"cleaned": False, "keep_counts": {"adj": 7, "noun": 11}})
    found = negatives.select(study, space, published)
    assert [dict(corpus)[word] for word in found.words] == ["adj"] * 7 + ["noun"] * 11
    assert found.provenance["cleaned"] is False and found.provenance["keep"] == {"adj": 7, "noun": 11}


def test_synonyms_of_imagenet_s_classes_come_from_wordnet(tmp_path: Path) -> None:
    folder = mini_imagenet.wordnet(tmp_path / "dict")
    found = words.synonyms(folder, ["n01440764", "n01484850", "n99999999"])
    assert found == [["tench", "tinca tinca"], ["great white shark", "white shark", "man-eater"], []]
    with pytest.raises(UserError, match="data.noun cannot be read"):
        words.synonyms(tmp_path, ["n01440764"])
    (folder / "data.noun").write_text("01440764 broken\n")
    with pytest.raises(UserError, match="data.noun is no Princeton"):
        words.synonyms(folder, ["n01440764"])


def test_a_conjugated_corpus_is_asked_for_by_the_profile(tmp_path: Path) -> None:
    folder = str(mini_imagenet.wordnet(tmp_path / "dict"))
    plain, found = (
        data._corpus(make_profile({"corpus": folder, "conjugated": value}, "test"), None)
        for value in (False, True)
    )
    assert {part for _, part in plain} == {"adj", "noun"} and {part for _, part in found} == {
        "conjugated",
        "noun",
    }
    assert [word for word, _ in found if word.startswith("able ")] and "able" in dict(plain)
