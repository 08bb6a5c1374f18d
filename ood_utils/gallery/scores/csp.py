"""CSP: negative labels in which every property becomes a thing, "adjective superclass".

Broad categories ("white object") answer to more OoD images than bare properties ("white"), and less alike.
The nouns stay, the list is mined anew by the same rule, and the score is NegLabel on it. CSP (NeurIPS 2024,
arXiv 2410.08611): WordNet's adjectives and 14 superclasses (``data.corpus.conjugate``), 15 % of each part,
100 groups. Here: as large a share as the list that all methods get, 0.95 quantile, the groups of the
evidence. A corpus without adjectives, such as the glyphs' names, gets stand-ins: for adjectives the words
that ten names or more have before their last, for superclasses the 14 commonest last words. A corpus
conjugated already stays.
"""

from collections import Counter

import numpy as np

from ... import negatives
from ...data.corpus import conjugate
from ...methods import Method
from .. import Evidence

NAMES, SUPERCLASSES = 10, 14  # names that make a word a property; how many last words are superclasses


def conjugated(corpus: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """(name, "conjugated") of the corpus's adjectives or their stand-ins; none where it has some."""
    parts = {part for _, part in corpus}
    if "conjugated" in parts:
        return []
    if "adj" in parts:
        return conjugate([pair for pair in corpus if pair[1] == "adj"])
    names = [word.split() for word, _ in corpus]
    last = Counter(name[-1] for name in names if len(name) > 1 and len(name[-1]) > 2)
    before = Counter(word for name in names for word in set(name[:-1]))
    superclasses = [word for word, _ in last.most_common(SUPERCLASSES)]
    properties = sorted(word for word, count in before.items() if count >= NAMES and word not in superclasses)
    return conjugate([(word, "adj") for word in properties], superclasses) if superclasses else []


def share(evidence: Evidence) -> float:
    """Which share of the words that may be negatives the given list holds, in (0, 1]."""
    return min(1.0, len(evidence.negative_text) / max(evidence.usable.sum(), 1))


def fit(evidence: Evidence) -> np.ndarray:
    """(M', d) texts of the list: nouns and conjugated names, each part by its own ranks."""
    nouns = [i for i, (_, part) in enumerate(evidence.corpus) if part != "adj"]
    made = conjugated(list(evidence.corpus))
    texts = evidence.corpus_text[nouns]
    if made:
        texts = np.concatenate([texts, evidence.encode(negatives.prompts(made, evidence.prompt))])
    corpus = [evidence.corpus[i] for i in nouns] + made
    names = evidence.class_text, evidence.class_names, evidence.synonyms
    return texts[negatives.build(corpus, texts, *names, keep=share(evidence)).indices]


METHOD = Method(
    "CSP",
    2024,
    "CSP (arXiv 2410.08611)",
    ("fixed_text", "negative_text", "corpus_text", "encode"),
    lambda e: e.change(negative_text=e.once(fit)).log_odds,
)
