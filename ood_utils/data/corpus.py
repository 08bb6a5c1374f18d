"""Word lists from which negative labels are mined: a world's names, WordNet, a text file, CSP's phrases."""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from .study import Need, subset

if TYPE_CHECKING:
    from ..config import Profile

NEGLABEL_LEFT_OUT = ("noun.animal", "noun.food")  # lexicographer files absent from NegLabel's corpus
CSP_LEFT_OUT = (*NEGLABEL_LEFT_OUT, "noun.person", "noun.quantity", "noun.group", "adj.pert")
CSP_SUPERCLASSES = (
    "environment", "space", "object", "scene", "place", "item", "area",
    "view", "thing", "pattern", "structure", "landscape", "vista", "creature",
)  # fmt: skip
_NOUNS = (
    "Tops act animal artifact attribute body cognition communication event feeling food group location "
    "motive object person phenomenon plant possession process quantity relation shape state substance time"
).split()
# lexnames(5WN): file number -> name; fixed in every Princeton release, and Debian ships no lexnames file
_LEXICOGRAPHER = {"noun": dict(enumerate(_NOUNS, start=3)), "adj": {0: "all", 1: "pert", 44: "ppl"}}


def load_corpus(profile: Profile, names: Sequence[tuple[str, str]] | None = None) -> list[tuple[str, str]]:
    """(word, part of speech) candidates in the source's order, at most ``profile.corpus_words`` of them.

    ``profile.corpus``: "names" (``names`` of the lane, by default ImageNet's), a WordNet ``dict`` folder, or
    a text file with a noun a line. UserError when it is none of these.
    """
    whole = names if profile.corpus == "names" and names is not None else _read_corpus(profile)
    return [whole[i] for i in subset(len(whole), profile.corpus_words, profile.data_seed)]


def _read_corpus(profile: Profile) -> list[tuple[str, str]]:
    if profile.corpus == "names":
        from open_clip import IMAGENET_CLASSNAMES

        return [(name, "noun") for name in sorted(set(IMAGENET_CLASSNAMES))]
    path = Path(profile.corpus).expanduser()
    if path.is_dir():
        return conjugate(wordnet(path, CSP_LEFT_OUT)) if profile.conjugated else wordnet(path)
    if not path.is_file():
        raise UserError(
            f"corpus {profile.corpus!r} is neither 'names', a WordNet dict folder nor a text file"
        )
    words = {line.strip() for line in path.read_text().splitlines()} - {""}
    return [(word, "noun") for word in sorted(words)]


def corpus_need(corpus: str) -> Need:
    """Whether a corpus on disk is there: a text file, or a folder with WordNet's two files."""
    path = Path(corpus).expanduser()
    gone = [name for name in ("data.noun", "data.adj") if path.is_dir() and not (path / name).is_file()]
    what = f"corpus {path}" + (f" without {' and '.join(gone)}" if gone else "")
    remedy = "10 MB; Debian package wordnet-base, or nltk.download('wordnet'); WordNet licence (free)"
    return Need(path.exists() and not gone, what, remedy)


def conjugate(corpus: Sequence[tuple[str, str]], seed: int = 0) -> list[tuple[str, str]]:
    """CSP's corpus: each adjective becomes "adjective superclass", the part "conjugated"; nouns stay.

    The superclass is one of 14 broad words (``CSP_SUPERCLASSES``), picked by a hash of ``seed`` and the
    adjective: as good as random, and the same whatever else the corpus holds (the official code draws in
    corpus order). Pass ``wordnet(folder, CSP_LEFT_OUT)``; a conjugated name is a noun phrase and takes the
    nouns' prompt. Source: CSP (arXiv 2410.08611).
    """
    pick = [zlib.crc32(f"{seed} {word}".encode()) % len(CSP_SUPERCLASSES) for word, _ in corpus]
    return [
        (f"{word} {CSP_SUPERCLASSES[k]}", "conjugated") if part == "adj" else (word, part)
        for (word, part), k in zip(corpus, pick, strict=True)
    ]


def wordnet(
    dict_folder: str | Path, left_out: Collection[str] = NEGLABEL_LEFT_OUT, every_word: bool = False
) -> list[tuple[str, str]]:
    """(word, "noun" or "adj") of a Princeton-format ``dict`` folder: the corpus of NegLabel.

    Reads ``data.noun`` and ``data.adj`` line by line (nltk's reader needs fifteen files, of which Debian's
    package lacks one, and refuses folders outside its own data path). Words are lower-cased, underscores
    become spaces, markers of syntax such as "(p)" go. Order: lexicographer files by name (adj.all, adj.pert,
    adj.ppl, noun.Tops, ...), words sorted within; a word counts once, where it comes first, so some nouns are
    listed as adjectives, as in NegLabel. ``left_out`` names files to skip. Only the first word of a synset is
    taken: WordNet 3.0 then gives 70,794, each file within 1 % of NegLabel's but adj.all (10 % more);
    ``every_word=True`` takes all 120,269 of them. Raises UserError for a missing or foreign file.
    """
    files = {f"{part}.{name}": set() for part, names in _LEXICOGRAPHER.items() for name in names.values()}
    for part in _LEXICOGRAPHER:
        for _, name, words in _synsets(dict_folder, part):
            files[name].update(words if every_word else words[:1])
    if unknown := sorted(set(left_out) - set(files)):
        raise UserError(f"left_out names {unknown[0]!r}, which is none of {', '.join(sorted(files))}.")
    ordered: dict[str, str] = {}
    for name in sorted(set(files) - set(left_out)):
        for word in sorted(files[name]):
            ordered.setdefault(word, name.split(".")[0])
    return list(ordered.items())


def synonyms(dict_folder: str | Path, wnids: Sequence[str]) -> list[list[str]]:
    """All words of the noun synset of each ImageNet wnid ("n" and the offset in data.noun of WordNet 3.0).

    An empty list where the offset is none of that file's (another version of WordNet). Errors as ``wordnet``.
    """
    found = {offset: words for offset, _, words in _synsets(dict_folder, "noun")}
    return [found.get(wnid[1:], []) for wnid in wnids]


def _synsets(dict_folder: str | Path, part: str) -> Iterator[tuple[str, str, list[str]]]:
    """(offset, lexicographer file, words) of every synset of a part of speech. UserError as ``wordnet``."""
    path = Path(dict_folder) / f"data.{part}"
    try:
        for line in path.read_text("utf-8").splitlines():
            if line.strip() and not line.startswith(" "):  # the licence is indented
                yield line.split()[0], *_synset(line, part)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); give a dict folder of WordNet."
        ) from error
    except (ValueError, KeyError, IndexError) as error:
        raise UserError(f"{path} is no Princeton WordNet data file; give WordNet's dict folder.") from error


def _synset(line: str, part: str) -> tuple[str, list[str]]:
    """(lexicographer file, words) of a line: offset, file number, type, hex count of words, (word, id) ..."""
    fields = line.split()
    words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
    name = f"{part}.{_LEXICOGRAPHER[part][int(fields[1])]}"
    return name, [re.sub(r"\((a|p|ip)\)$", "", word).replace("_", " ").lower() for word in words]
