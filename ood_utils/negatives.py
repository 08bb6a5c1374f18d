"""Negative labels: words that name no in-distribution (ID) class, far from all of them on the text sphere.

The corpus is a list of (word, part of speech), "noun" or "adj"; its embeddings come from elsewhere.
Everything is deterministic: the same corpus and embeddings give the same list.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from .arrays import table
from .errors import UserError

NOUN, ADJECTIVE = "the nice {}", "This is a {} photo"  # NegLabel's prompts by part of speech
CMA_SPLIT = {"adj": 1500, "noun": 8500}  # CMA's list: fixed counts, adjectives first (core_methods 3.5)
_CHUNK = 2**22  # cosines held at a time: 32 MB in float64


def prompts(corpus: Sequence[tuple[str, str]], noun: str = NOUN, adj: str = ADJECTIVE) -> list[str]:
    """One prompt per (word, part): ``adj`` for adjectives, ``noun`` for all else; by default NegLabel's."""
    for name, template in (("noun", noun), ("adj", adj)):
        if "{}" not in template:
            raise UserError(f"The {name} template {template!r} has no place for the word; put {{}} there.")
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
    (``CMA_SPLIT``) whose order is then the order of the result. Equal r_c go by index.
    ``candidate_embeddings`` (C, d) and ``id_text_embeddings`` (K, d) are unit rows, ``parts`` C labels or
    None (one part). Products are float64, in chunks. Source: NegLabel (arXiv 2403.20078), algorithm NegMine.
    Raises UserError for wrong shapes, non-finite values, quantile or share out of range, or an empty result.
    """
    candidates = table(candidate_embeddings, "candidate_embeddings")
    texts = table(id_text_embeddings, "id_text_embeddings")
    if candidates.shape[1] != texts.shape[1]:
        widths = f"{candidates.shape[1]} wide but id_text_embeddings {texts.shape[1]}"
        raise UserError(f"candidate_embeddings are {widths}; encode both with one model.")
    if not 0 <= quantile <= 1:
        raise UserError(f"quantile is {quantile}, but must lie in [0, 1]; NegLabel uses 0.95.")
    labels = np.array(["all"] * len(candidates) if parts is None else list(parts))
    if len(labels) != len(candidates):
        raise UserError(f"parts has {len(labels)} entries for {len(candidates)} candidates; give one each.")
    wanted = _wanted(labels, keep)
    likeness = _likeness(candidates, texts, quantile)
    chosen = [np.array([], dtype=np.int64)]
    for part, count in wanted.items():
        index = np.flatnonzero(labels == part)
        chosen.append(index[np.argsort(likeness[index], kind="stable")[:count]])
    selected = np.concatenate(chosen)
    if not len(selected):
        raise UserError(f"keep is {keep}, which selects none of the {len(candidates)} candidates; raise it.")
    return selected


def clean(
    words: Sequence[str], class_names: Sequence[str], synonyms: Sequence[Sequence[str]] | None = None
) -> np.ndarray:
    """Bool mask (len(words),): True for the words that may serve as negatives.

    Taken out: words that name an ID class or one of its ``synonyms`` (one list per class), near-synonyms of
    these, parsing artefacts (a square bracket anywhere; no letter or digit at all) and repetitions of an
    earlier word (after lower-casing and making each run of punctuation one space). A near-synonym is a word
    with the same multiset of words after lower-casing, dropping apostrophes, splitting at other punctuation
    and taking off a plural ending: "Lady's slippers, yellow" equals "yellow lady slipper". It finds no
    synonym that is spelt otherwise.
    """
    taken = _id_keys(class_names, synonyms)
    seen: set[str] = set()
    mask = np.zeros(len(words), dtype=bool)
    for i, word in enumerate(words):
        key, plain = _key(word), " ".join(_tokens(word))
        mask[i] = bool(key) and not set("[]") & set(word) and key not in taken and plain not in seen
        seen.add(plain)
    return mask


def leak(
    words: Sequence[str], class_names: Sequence[str], synonyms: Sequence[Sequence[str]] | None = None
) -> list[str]:
    """The words of a negative list that name an ID class by the rule of ``clean``, in order.

    For an image of such a class the score cannot exceed 1/2; 53 of CMA's 10,000 negatives leak so
    (core_methods 3.5).
    """
    taken = _id_keys(class_names, synonyms)
    return [word for word in words if _key(word) in taken]


@dataclass(frozen=True)
class NegativeList:
    """A mined list: ``words``, ``prompts`` and ``indices`` into the corpus, all in the miner's order.

    ``provenance`` tells where it came from (weights hash, quantile, keep, corpus; JSON values only).
    """

    words: list[str]
    prompts: list[str]
    indices: list[int]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.words) == len(self.prompts) == len(self.indices):
            raise UserError("A NegativeList needs as many prompts and indices as words; use negatives.build.")

    def __len__(self) -> int:
        return len(self.words)

    @property
    def hash(self) -> str:
        """sha256 (hex) of the prompts in order: what the model reads, and nothing else."""
        return hashlib.sha256(json.dumps(self.prompts, ensure_ascii=True).encode()).hexdigest()

    def to_json(self) -> str:
        """The list, its provenance and its hash, as the text of a JSON file."""
        return json.dumps({**asdict(self), "hash": self.hash}, ensure_ascii=False, indent=1)


def build(
    corpus: Sequence[tuple[str, str]],
    candidate_embeddings: Any,
    id_text_embeddings: Any,
    class_names: Sequence[str] = (),
    synonyms: Sequence[Sequence[str]] | None = None,
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
    candidates = table(candidate_embeddings, "candidate_embeddings")
    if len(candidates) != len(corpus):
        raise UserError(
            f"candidate_embeddings has {len(candidates)} rows for {len(corpus)} words; encode all."
        )
    words = [word for word, _ in corpus]
    usable = np.flatnonzero(clean(words, class_names, synonyms)) if cleaned else np.arange(len(corpus))
    if not len(usable):
        raise UserError("The corpus holds no word that is not an ID name; give a larger corpus.")
    parts = [corpus[i][1] for i in usable]
    chosen = usable[mine(candidates[usable], id_text_embeddings, quantile, keep, parts)].tolist()
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
        return {str(part): int(keep * available[part]) for part in nouns_first}
    for part, count in keep.items():
        if not 0 <= count <= available.get(part, 0):
            there = available.get(part, 0)
            raise UserError(f"keep asks for {count} of {part!r}, but there are {there}; ask for fewer.")
    return dict(keep)


def _likeness(candidates: np.ndarray, texts: np.ndarray, quantile: float) -> np.ndarray:
    step, texts = max(1, _CHUNK // len(texts)), texts.T.astype(np.float64)
    parts = [
        np.quantile(candidates[start : start + step].astype(np.float64) @ texts, quantile, axis=1)
        for start in range(0, len(candidates), step)
    ]
    return np.concatenate(parts).round(12)  # equal embeddings stay equal whatever block of BLAS computed them


def _tokens(word: str) -> list[str]:
    return re.findall(r"[^\W_]+", re.sub(r"['\u2019]", "", word.lower()))


def _key(word: str) -> tuple[str, ...]:
    """The multiset of singular words: what two names must share to be near-synonyms."""
    return tuple(sorted(_singular(token) for token in _tokens(word)))


def _singular(token: str) -> str:
    """Without a plural ending, by rule: need not be a real word, only the same for singular and plural."""
    if len(token) > 3 and token.endswith("ies"):
        return token[:-3] + "y"
    if len(token) > 4 and token.endswith(("ches", "shes", "sses", "xes", "zes")):
        return token[:-2]
    plural = len(token) > 2 and token.endswith("s") and not token.endswith(("ss", "us", "is"))
    return token[:-1] if plural else token


def _id_keys(class_names: Sequence[str], synonyms: Sequence[Sequence[str]] | None) -> set[tuple[str, ...]]:
    return {_key(name) for name in [*class_names, *(s for names in synonyms or () for s in names)]}
