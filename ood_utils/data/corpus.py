"""Word lists from which negative labels are mined: a world's names, WordNet, a text file, CSP's phrases."""

import csv
import re
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from ..config import Profile
from ..errors import UserError
from .study import Need, subset, wrong

NEGLABEL_LEFT_OUT = ("noun.animal", "noun.food")  # lexicographer files absent from NegLabel's corpus
CSP_LEFT_OUT = (*NEGLABEL_LEFT_OUT, "noun.person", "noun.quantity", "noun.group", "adj.pert")
CSP_SUPERCLASSES = (
    "environment space object scene place item area view thing pattern structure landscape vista creature"
).split()
_NOUNS = (
    "Tops act animal artifact attribute body cognition communication event feeling food group location "
    "motive object person phenomenon plant possession process quantity relation shape state substance time"
).split()
# lexnames(5WN): file number -> name; fixed in every Princeton release, and Debian ships no lexnames file
_FILES = {number: f"noun.{name}" for number, name in enumerate(_NOUNS, start=3)}
_FILES |= {0: "adj.all", 1: "adj.pert", 44: "adj.ppl"}


def load_corpus(profile: Profile, names: Sequence[tuple[str, str]] | None = None) -> list[tuple[str, str]]:
    """(word, part of speech) candidates in the source's order, at most ``profile.corpus_words`` of them.

    ``profile.corpus``: "names" (``names`` of the lane, by default ImageNet's), a WordNet ``dict`` folder, or
    a text file with a noun a line. UserError when it is none of these. The words of a finished list
    (``profile.negatives``) that it lacks stand at its end, so that they are embedded too.
    """
    path = Path(profile.corpus).expanduser()
    if profile.corpus == "names":
        from open_clip import IMAGENET_CLASSNAMES

        whole = names or [(name, "noun") for name in sorted(set(IMAGENET_CLASSNAMES))]
    elif path.is_dir():
        whole = conjugate(wordnet(path, CSP_LEFT_OUT)) if profile.conjugated else wordnet(path)
    elif path.is_file():
        whole = [(word, "noun") for word in _lines(path)]
    else:
        raise UserError(f"corpus {str(path)!r} is neither 'names', a WordNet dict folder nor a text file")
    kept = [whole[i] for i in subset(len(whole), profile.corpus_words, profile.data_seed)]
    known, listed = set(kept), finished_list(profile.negatives) if profile.negatives else []
    return kept + [pair for pair in dict.fromkeys(listed) if pair not in known]


def finished_list(path: str | Path) -> list[tuple[str, str]]:
    """(word, part of speech) of a finished list of negative labels, in its order, repetitions and all.

    A CSV file with a column ``word`` and perhaps ``part`` (noun, adj or conjugated), or a text file with a
    word a line, perhaps a tab and its part; a noun where no part is given. UserError naming file and line.
    """
    path, found = Path(path).expanduser(), []
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as fault:
        raise UserError(f"negatives {path} cannot be read ({fault}); give a file of words") from None
    table = path.suffix.lower() == ".csv"
    plain = {"fieldnames": ["word", "part"], "delimiter": "\t", "quoting": csv.QUOTE_NONE}
    rows = csv.DictReader(lines, **({} if table else plain))
    if "word" not in (rows.fieldnames or ()):
        raise UserError(f"negatives {path} has no column 'word'; name it so, and the part of speech 'part'")
    for row in rows:
        word, part = (row["word"] or "").strip(), (row.get("part") or "noun").strip()
        if part not in ("noun", "adj", "conjugated") or (table and not word):
            fault = f"line {rows.line_num} of negatives {path} says {word!r}, {part!r}"
            raise UserError(f"{fault}; give a word and its part: noun, adj or conjugated")
        found += [(word, part)] if word else []
    if not found:
        raise UserError(f"negatives {path} holds no word; give one a line")
    return found


def list_need(path: str) -> Need:
    """Whether a finished list of negative labels can be read, and how many words it holds."""
    try:
        words = finished_list(path)
    except UserError as fault:
        return wrong(fault)
    counts = f"{len(words):,} words, {len(set(words)):,} different ones, taken as they are"
    return Need(True, f"negatives {path}: {counts}")


def _lines(path: Path) -> list[str]:
    """The distinct words of a text file, sorted; UserError where it is no UTF-8 or holds none."""
    try:
        words = sorted({line.strip() for line in path.read_text("utf-8-sig").splitlines()} - {""})
    except UnicodeDecodeError as fault:
        raise UserError(f"corpus {path} is not UTF-8 at byte {fault.start}; save it as UTF-8 text") from None
    if not words:
        raise UserError(f"corpus {path} holds no word; write one a line")
    return words


def corpus_need(corpus: str) -> Need:
    """Whether a corpus on disk is there: a text file of words, or a folder with WordNet's two files."""
    path = Path(corpus).expanduser()
    gone = [name for name in ("data.noun", "data.adj") if path.is_dir() and not (path / name).is_file()]
    what = f"corpus {path}" + (f" without {' and '.join(gone)}" if gone else "")
    remedy = "10 MB; Debian package wordnet-base, or nltk.download('wordnet'); WordNet licence (free)"
    if path.is_file():
        try:
            _lines(path)
        except UserError as fault:
            return wrong(fault)
    return Need(path.exists() and not gone, what, remedy)


def conjugate(
    corpus: Sequence[tuple[str, str]], superclasses: Sequence[str] = CSP_SUPERCLASSES
) -> list[tuple[str, str]]:
    """CSP's corpus: each adjective becomes "adjective superclass", the part "conjugated"; nouns stay.

    The superclass is one of ``superclasses``, by default CSP's 14 broad words, picked by a hash of the
    adjective: as good as random, and the same whatever else the corpus holds (the official code draws in
    corpus order). Pass ``wordnet(folder, CSP_LEFT_OUT)``; a conjugated name is a noun phrase and takes the
    nouns' prompt. Source: CSP (arXiv 2410.08611).
    """
    found = []
    for word, part in corpus:
        if part == "adj":
            pick = zlib.crc32(f"0 {word}".encode()) % len(superclasses)
            word, part = f"{word} {superclasses[pick]}", "conjugated"
        found.append((word, part))
    return found


def wordnet(dict_folder: str | Path, left_out: Collection[str] = NEGLABEL_LEFT_OUT) -> list[tuple[str, str]]:
    """(word, "noun" or "adj") of a Princeton-format ``dict`` folder: the corpus of NegLabel.

    Reads ``data.noun`` and ``data.adj`` line by line (nltk's reader needs fifteen files, of which Debian's
    package lacks one, and refuses folders outside its own data path). Words are lower-cased, underscores
    become spaces, markers of syntax such as "(p)" go. Order: lexicographer files by name (adj.all, adj.pert,
    adj.ppl, noun.Tops, ...), words sorted within; a word counts once, where it comes first, so some nouns are
    listed as adjectives, as in NegLabel. ``left_out`` names files to skip. Only the first word of a synset is
    taken: WordNet 3.0 then gives 70,794 (120,269 with all words), each file within 1 % of NegLabel's but
    adj.all (10 % more). Raises UserError for a missing or foreign file.
    """
    synsets = [*_synsets(dict_folder, "noun"), *_synsets(dict_folder, "adj")]
    found = {(file, word) for _, file, words in synsets if file not in left_out for word in words[:1]}
    if not found:
        raise UserError(
            f"WordNet folder {dict_folder} holds no word; give the dict folder of a whole WordNet"
        )
    ordered: dict[str, str] = {}
    for file, word in sorted(found):
        ordered.setdefault(word, file.split(".")[0])
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
                # offset, file number, type, hexadecimal count of words, (word, id) for each, ...
                offset, number, _, count, *rest = line.split()
                bare = (re.sub(r"\((a|p|ip)\)$", "", word) for word in rest[: 2 * int(count, 16) : 2])
                yield offset, _FILES[int(number)], [word.replace("_", " ").lower() for word in bare]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a dict folder of WordNet.") from None
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} is no Princeton WordNet data file; give WordNet's dict folder.") from error
