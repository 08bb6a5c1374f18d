"""Word lists: WordNet files made by hand, and CSP's conjugated names."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import mini_imagenet
import pytest
from ood_utils.run import make_profile
from ood_utils.words import conjugate, wordnet

from ood_utils import data, words
from ood_utils.errors import UserError

DEBIAN = Path("/usr/share/wordnet")


def test_conjugated_names_depend_on_their_word_alone() -> None:
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
