"""Negative labels: words that name no in-distribution (ID) class, far from all of them on the text sphere.

A corpus is a list of (word, part of speech), "noun" or "adj". Everything is deterministic.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .arrays import unit_tensors
from .errors import UserError

NOUN, ADJECTIVE = "the nice {}", "This is a {} photo"  # NegLabel's prompts by part of speech
_CHUNK = 2**22  # cosines held at a time: 32 MB in float64


def prompts(corpus: Sequence[tuple[str, str]], noun: str = NOUN, adj: str = ADJECTIVE) -> list[str]:
    """One prompt per (word, part): ``adj`` for adjectives, ``noun`` for all else; by default NegLabel's."""
    return [(adj if part == "adj" else noun).format(word) for word, part in corpus]


def mine(
    candidate_embeddings: Any,
    id_text_embeddings: Any,
    quantile: float = 0.95,
    keep: float | Mapping[str, int] = 0.15,
    parts: Sequence[str] | None = None,
) -> np.ndarray:
    """NegMine: indices (int64) of the candidates that are least like the ID classes, least alike first.

    For candidate c, r_c is the ``quantile`` (linear interpolation) over the ID classes of its cosine, a
    robust "similarity to the nearest class". Per part of speech the ``int(keep * n)`` smallest r_c are kept;
    parts never compete; nouns come first, then the others by name. ``keep`` may be a mapping part -> number
    (CMA's list: {"adj": 1500, "noun": 8500}), whose order is then that of the result. Equal r_c go by index.
    ``candidate_embeddings`` (C, d) and ``id_text_embeddings`` (K, d) are unit rows, ``parts`` C labels or
    None (one part). Products are float64. Source: NegLabel (arXiv 2403.20078), algorithm NegMine.
    Raises UserError for wrong shapes, rows not of unit length, values out of range, or an empty result.
    """
    both = unit_tensors(candidate_embeddings=candidate_embeddings, id_text_embeddings=id_text_embeddings)
    candidates, texts = (rows.cpu().numpy() for rows in both)
    if not 0 <= quantile <= 1:
        raise UserError(f"quantile is {quantile}, but must lie in [0, 1]; NegLabel uses 0.95.")
    labels = np.array(["all"] * len(candidates) if parts is None else list(parts))
    if len(labels) != len(candidates):
        raise UserError(f"parts has {len(labels)} entries for {len(candidates)} candidates; give one each.")
    wanted = _wanted(labels, keep)
    likeness = _likeness(candidates, texts, quantile)
    selected = []
    for part, count in wanted.items():
        index = np.flatnonzero(labels == part)
        selected += index[np.argsort(likeness[index], kind="stable")[:count]].tolist()
    if not selected:
        raise UserError(f"keep is {keep}, which selects none of the {len(candidates)} candidates; raise it.")
    return np.array(selected, dtype=np.int64)


def clean(
    words: Sequence[str], class_names: Sequence[str], synonyms: Sequence[Sequence[str]] = ()
) -> np.ndarray:
    """Bool mask (len(words),): True for the words that may serve as negatives.

    Taken out: words that name an ID class or one of its ``synonyms`` (one list per class), near-synonyms of
    these, parsing artefacts (a square bracket anywhere; no letter or digit at all) and repetitions of an
    earlier word (after lower-casing and making each run of punctuation one space). A near-synonym is a word
    with the same multiset of words after lower-casing, dropping apostrophes, splitting at other punctuation
    and taking off a plural ending: "Lady's slippers, yellow" equals "yellow lady slipper"; or with the same
    letters where only the spacing differs: "coffeemaker", "coffee maker". Synonyms that are spelt otherwise
    stay.
    """
    taken, seen = _id_keys(class_names, synonyms), set()
    mask = np.zeros(len(words), dtype=bool)
    for i, word in enumerate(words):
        keys, plain = _keys(word), " ".join(_tokens(word))
        mask[i] = bool(plain) and not set("[]") & set(word) and not keys & taken and plain not in seen
        seen.add(plain)
    return mask


def leak(
    words: Sequence[str], class_names: Sequence[str], synonyms: Sequence[Sequence[str]] = ()
) -> list[str]:
    """The words of a negative list that name an ID class by the rule of ``clean``, in order.

    An image of such a class cannot score above 1/2; 53 of CMA's 10,000 negatives leak (core_methods 3.5).
    """
    taken = _id_keys(class_names, synonyms)
    return [word for word in words if _keys(word) & taken]


@dataclass(frozen=True)
class NegativeList:
    """A mined list: ``words``, ``prompts`` and ``indices`` into the corpus, all in the miner's order.

    ``provenance`` tells where it came from (weights hash, quantile, keep, corpus; JSON values only).
    """

    words: list[str]
    prompts: list[str]
    indices: list[int]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.words)

    @property
    def hash(self) -> str:
        """sha256 (hex) of the prompts in order: what the model reads, and nothing else."""
        return hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest()


def build(
    corpus: Sequence[tuple[str, str]],
    candidate_embeddings: Any,
    id_text_embeddings: Any,
    class_names: Sequence[str] = (),
    synonyms: Sequence[Sequence[str]] = (),
    *,
    templates: tuple[str, str] = (NOUN, ADJECTIVE),
    quantile: float = 0.95,
    keep: float | Mapping[str, int] = 0.15,
    cleaned: bool = True,
    provenance: Mapping[str, Any] | None = None,
) -> NegativeList:
    """Clean, mine and record: the list whose ``indices`` point into ``corpus`` and its embeddings (C, d).

    ``templates`` are the (noun, adjective) prompts the embeddings were made with. ``cleaned=False`` leaves
    ID names, artefacts and repetitions in, as the published lists do (an ablation). Errors as ``mine``.
    """
    candidate_embeddings = unit_tensors(candidate_embeddings=candidate_embeddings)[0].cpu().numpy()
    if (rows := len(candidate_embeddings)) != len(corpus):
        raise UserError(f"candidate_embeddings has {rows} rows for {len(corpus)} words; encode all.")
    words = [word for word, _ in corpus]
    usable = np.flatnonzero(clean(words, class_names, synonyms)) if cleaned else np.arange(len(corpus))
    if not len(usable):
        raise UserError("The corpus holds no word that is not an ID name; give a larger corpus.")
    parts = [corpus[i][1] for i in usable]
    chosen = usable[mine(candidate_embeddings[usable], id_text_embeddings, quantile, keep, parts)].tolist()
    facts = {
        "quantile": quantile, "keep": dict(keep) if isinstance(keep, Mapping) else keep, "cleaned": cleaned,
        "corpus": len(corpus), "candidates": len(usable), **(provenance or {}),
    }  # fmt: skip
    asked = prompts([corpus[i] for i in chosen], *templates)
    return NegativeList([words[i] for i in chosen], asked, chosen, facts)


def _wanted(labels: np.ndarray, keep: float | Mapping[str, int]) -> dict[str, int]:
    """How many of each part, in the order of the result."""
    available = dict(zip(*np.unique(labels, return_counts=True), strict=True))
    if not isinstance(keep, Mapping):
        if not 0 < keep <= 1:
            raise UserError(f"keep is {keep}, but must be a share in (0, 1]; NegLabel keeps 0.15.")
        nouns_first = sorted(available, key=lambda part: (part != "noun", part))
        return {part: int(keep * available[part]) for part in nouns_first}
    for part, count in keep.items():
        there = available.get(part, 0)
        if not 0 <= count <= there:
            raise UserError(f"keep asks for {count} of {part!r}, but there are {there}; ask for fewer.")
    return dict(keep)


def _likeness(candidates: np.ndarray, texts: np.ndarray, quantile: float) -> np.ndarray:
    step, texts = max(1, _CHUNK // len(texts)), texts.T.astype(np.float64)
    blocks = (candidates[start : start + step] for start in range(0, len(candidates), step))
    parts = [np.quantile(block.astype(np.float64) @ texts, quantile, axis=1) for block in blocks]
    return np.concatenate(parts).round(12)  # equal embeddings stay equal whatever block of BLAS computed them


def _tokens(word: str) -> list[str]:
    return re.findall(r"[^\W_]+", re.sub(r"['\u2019]", "", word.lower()))


def _keys(word: str) -> set[tuple[str, ...]]:
    """The multiset of singular words, and all of them as one: near-synonyms share one of the two, or both."""
    singular = [_singular(token) for token in _tokens(word)]
    return {tuple(sorted(singular)), ("".join(singular),)}


def _singular(token: str) -> str:
    """Without a plural ending, by rule: need not be a real word, only the same for singular and plural."""
    if len(token) > 3 and token.endswith("ies"):
        return token[:-3] + "y"
    if len(token) > 4 and token.endswith(("ches", "shes", "sses", "xes", "zes")):
        return token[:-2]
    plural = len(token) > 2 and token.endswith("s") and not token.endswith(("ss", "us", "is"))
    return token[:-1] if plural else token


def _id_keys(class_names: Sequence[str], synonyms: Sequence[Sequence[str]]) -> set[tuple[str, ...]]:
    return {key for names in (class_names, *synonyms) for name in names for key in _keys(name)}
