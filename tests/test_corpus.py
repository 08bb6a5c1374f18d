"""Word lists: WordNet files made by hand, Debian's WordNet, CSP's phrases, a text file, a world's names."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import mini_imagenet
import pytest

from ood_utils import data
from ood_utils.config import Profile
from ood_utils.data import corpus
from ood_utils.errors import UserError

DEBIAN = Path("/usr/share/wordnet")
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
    assert corpus.wordnet(dict_folder) == [
        ("able", "adj"),
        ("red", "adj"),  # the noun of the same name comes later and does not count again
        ("abkhazian", "adj"),
        ("galore", "adj"),
        ("entity", "noun"),
        ("anchor", "noun"),
        ("yellow lady's slipper", "noun"),
    ]
    everything = [word for word, _ in corpus.wordnet(dict_folder, ())]
    assert {"canis familiaris", "bread"} < set(everything) and "dog" not in everything
    assert "abkhazian" not in [word for word, _ in corpus.wordnet(dict_folder, corpus.CSP_LEFT_OUT)]


def test_wordnet_refuses_other_folders(dict_folder: Path, tmp_path: Path) -> None:
    (dict_folder / "data.adj").write_text("just some text\n")
    with pytest.raises(UserError, match="data.adj is no Princeton"):
        corpus.wordnet(dict_folder)
    (dict_folder / "data.adj").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="data.adj is no Princeton"):
        corpus.wordnet(dict_folder)
    with pytest.raises(UserError, match="data.noun cannot be read"):
        corpus.wordnet(tmp_path / "nowhere")


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's wordnet-base is not installed")
def test_debians_wordnet_is_neglabels_corpus() -> None:
    found = corpus.wordnet(DEBIAN)
    assert len(found) == 70_794 and len({word for word, _ in found}) == len(found)
    assert Counter(part for _, part in found) == {"noun": 56_788, "adj": 14_006}
    assert {"artichoke", "yellow lady's slipper"} < dict(found).keys()


def test_synonyms_of_imagenet_s_classes_come_from_wordnet(tmp_path: Path) -> None:
    folder = mini_imagenet.wordnet(tmp_path / "dict")
    found = corpus.synonyms(folder, ["n01440764", "n01484850", "n99999999"])
    assert found == [["tench", "tinca tinca"], ["great white shark", "white shark", "man-eater"], []]
    with pytest.raises(UserError, match="data.noun cannot be read"):
        corpus.synonyms(tmp_path, ["n01440764"])
    (folder / "data.noun").write_text("01440764 broken\n")
    with pytest.raises(UserError, match="data.noun is no Princeton"):
        corpus.synonyms(folder, ["n01440764"])


def test_conjugated_names_depend_on_their_own_word_alone() -> None:
    words = [("red", "adj"), ("tree", "noun"), ("old", "adj")]
    found = corpus.conjugate(words)
    assert found[1] == ("tree", "noun")
    for (word, _), (name, part) in zip(words[::2], found[::2], strict=True):
        first, second = name.split()
        assert (first, part) == (word, "conjugated") and second in corpus.CSP_SUPERCLASSES
    assert corpus.conjugate(words[:1]) == found[:1]
    many = [(f"w{i}", "adj") for i in range(1400)]
    counts = Counter(name.split()[1] for name, _ in corpus.conjugate(many))
    assert len(counts) == 14 and max(counts.values()) < 150


def test_the_profile_says_where_the_words_come_from(tmp_path: Path) -> None:
    folder, listed = str(mini_imagenet.wordnet(tmp_path / "dict")), tmp_path / "words.txt"
    plain = corpus.load_corpus(Profile(corpus=folder))
    found = corpus.load_corpus(Profile(corpus=folder, conjugated=True))
    assert {part for _, part in plain} == {"adj", "noun"} and "able" in dict(plain)
    assert {part for _, part in found} == {"conjugated", "noun"}
    assert [word for word, _ in found if word.startswith("able ")]
    listed.write_text("tree\n\n  bus \ntree\n")
    assert corpus.load_corpus(Profile(corpus=str(listed))) == [("bus", "noun"), ("tree", "noun")]
    assert corpus.load_corpus(Profile(), [("b", "noun"), ("a", "noun")]) == [("b", "noun"), ("a", "noun")]
    whole = corpus.load_corpus(Profile())
    assert ("tench", "noun") in whole and whole == sorted(whole) and 990 < len(whole) <= 1000
    few = corpus.load_corpus(Profile(corpus_words=30, data_seed=3))
    assert len(few) == 30 and few == sorted(few) and set(few) < set(whole)
    assert few != corpus.load_corpus(Profile(corpus_words=30, data_seed=4))
    with pytest.raises(UserError, match="'/not/a/corpus' is neither 'names', a WordNet dict folder nor"):
        corpus.load_corpus(Profile(corpus="/not/a/corpus"))


def test_a_finished_list_is_read_in_its_order(tmp_path: Path) -> None:
    table, text = tmp_path / "list.csv", tmp_path / "list.txt"
    table.write_text('number,part,word\n1,adj,able\n2,noun,"yellow lady\'s slipper"\n3,adj,able\n4,,anchor\n')
    text.write_text("able\tadj\nyellow lady's slipper\n\nable\tadj\nanchor\tnoun\n")
    found = [("able", "adj"), ("yellow lady's slipper", "noun"), ("able", "adj"), ("anchor", "noun")]
    assert corpus.finished_list(table) == corpus.finished_list(text) == found
    assert corpus.list_need(str(text)).what.endswith("4 words, 3 different ones, taken as they are")
    (tmp_path / "words.txt").write_text("anchor\nbus\n")
    whole = corpus.load_corpus(Profile(corpus=str(tmp_path / "words.txt"), negatives=str(text)))
    assert whole == [("anchor", "noun"), ("bus", "noun"), *found[:2]]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("l.txt", None, "cannot be read"),
        ("l.txt", b"\xff\xfe", "cannot be read"),
        ("l.txt", b" \n", "holds no word; give one a line"),
        ("l.txt", b"tree\nrun\tverb\n", "line 2 of negatives .*l.txt says 'run', 'verb'; give a word"),
        ("l.csv", b"name,part\ntree,noun\n", "has no column 'word'"),
        ("l.csv", b"word,part\n,noun\n", "line 2 of negatives"),
    ],
)  # fmt: skip
def test_a_finished_list_that_is_none_is_refused(tmp_path: Path, name, content, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        corpus.finished_list(tmp_path / name)
    assert "\n" not in str(caught.value) and corpus.list_need(str(tmp_path / name)).ok is False


def test_a_corpus_on_disk_is_a_need(dict_folder: Path) -> None:
    assert corpus.corpus_need(str(dict_folder)).ok
    (dict_folder / "data.adj").unlink()
    found = corpus.corpus_need(str(dict_folder))
    assert found.ok is False and found.what.endswith("without data.adj")


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"an\xe9\n", "is not UTF-8 at byte 2; save"), (b" \n\n", "holds no word; write one a line")],
)
def test_a_corpus_that_is_no_list_of_words_is_refused_before_a_kernel_starts(tmp_path, content, said) -> None:
    (tmp_path / "words.txt").write_bytes(content)
    profile = Profile(corpus=str(tmp_path / "words.txt"))
    with pytest.raises(UserError, match=f"corpus .*words.txt {said}"):
        corpus.load_corpus(profile)
    with pytest.raises(UserError, match="profile mine: wrong: corpus .*words.txt " + said.split("; ")[0]):
        data.require(profile, "mine")
    (tmp_path / "words.txt").write_bytes("\ufeffé\na\n".encode())
    assert corpus.load_corpus(profile) == [("a", "noun"), ("é", "noun")]


def test_a_wordnet_without_a_word_is_refused(tmp_path) -> None:
    for name in ("data.noun", "data.adj"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="holds no word"):
        corpus.load_corpus(Profile(corpus=str(tmp_path)))
