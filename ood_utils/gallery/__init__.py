"""The method gallery: every system of the field, one small file each, under one protocol.

Three kinds, found by their files' names, so that a new one is a new file and nothing else:

``scores/``       evidence -> one number per image, HIGHER = MORE ID; a ``METHOD``, as in ``methods``
``adaptive/``     the same, but it sees the test stream, batch by batch; an ``ADAPTIVE``
``adaptations/``  ID training data -> changed texts, features or weights; an ``ADAPTATION``

A method says what it needs of the ``Evidence`` and gets only that. The core notebooks do not import this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from scipy.special import logsumexp

from .. import methods, negatives, registry
from ..errors import UserError, nearest
from ..methods import Method

if TYPE_CHECKING:
    from pathlib import Path

    from ..config import Profile
    from ..data import Study
    from ..models import Network

Kind = Literal["scores", "adaptive", "adaptations"]
State = dict[str, np.ndarray]  # what an adaptation learnt, as it is kept on disk
Step = Callable[[np.ndarray], np.ndarray]  # unit rows (b, d) of the next batch -> (b,) scores
Look = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]  # rows -> cosines (n, K), (n, M) or None
TEXTS = {"class_text", "negative_text", "corpus_text", "no_text"}
PARTS = TEXTS | {"patches", "train", "train_labels", "encode"}  # what a method has to ask for
BLOCK = 2**19  # cosines held at a time, 4 MB in float64: with 64 MB a row costs twice the time


@dataclass(frozen=True)
class Evidence(methods.Evidence):
    """What there is to judge images by, of one model; what is None this model or study does not have.

    Before any image is seen ``images`` is empty; ``of`` puts those of one set there. Beside the core's
    fields: ``patches`` (n, p, d) unit rows of image regions; ``train`` (m, d) unit rows of ID training
    images, ``train_labels`` (m,); ``class_names``; ``corpus`` (word, part of speech) and ``corpus_text``
    (C, d), from which negatives are mined; ``encode``: prompted texts -> unit rows; ``no_text`` (K, d):
    CLIPN's "no" texts. ``look``: cosines where they are no products of images and texts (a linear head, texts
    that depend on the image); ``moved``: what an adaptation does to image rows and patches. ``synonyms``: of
    the classes, no negatives; ``prompt``: template of the corpus's nouns, for what is encoded beside it.
    """

    patches: np.ndarray | None = None
    train: np.ndarray | None = None
    train_labels: np.ndarray | None = None
    class_names: Sequence[str] = ()
    synonyms: Sequence[Sequence[str]] = ()
    prompt: str = negatives.NOUN
    corpus: Sequence[tuple[str, str]] = ()
    corpus_text: np.ndarray | None = None
    encode: Callable[[list[str]], np.ndarray] | None = None
    no_text: np.ndarray | None = None
    look: Look | None = None
    moved: Callable[[np.ndarray], np.ndarray] | None = None
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)

    def of(self, images: np.ndarray, patches: np.ndarray | None = None) -> Self:
        """The same with the images of one set, unit rows (n, d) of the model before ``moved``."""
        if self.moved is not None:
            images = self.moved(images)
            patches = None if patches is None else self.moved(patches)
        return replace(self, images=images, patches=patches)

    def only(self, needs: Sequence[str]) -> Self:
        """The same without the ``PARTS`` that a method does not say it needs; what is fitted stays shared."""
        kept = {*needs, *(["class_text"] if "fixed_text" in needs else [])}
        return replace(self, **dict.fromkeys(PARTS - kept))

    def once(self, fit: Callable[[Self], Any]) -> Any:
        """``fit(self)``, computed once for all sets of this model: it must not look at ``images``."""
        if fit not in self.memo:
            self.memo[fit] = fit(self)
        return self.memo[fit]

    @property
    def usable(self) -> np.ndarray:
        """(C,) bool: the corpus words that may be negatives, being no name or synonym of an ID class."""
        return self.once(_usable)

    def behind(
        self, image: Callable[[np.ndarray], np.ndarray], text: Callable[[np.ndarray], np.ndarray]
    ) -> Self:
        """The same with images and training rows behind one map of unit rows, all texts behind another."""
        names = ("class_text", "negative_text", "corpus_text")
        texts = {name: text(rows) for name in names if (rows := getattr(self, name)) is not None}
        encode = self.encode and (lambda asked: text(self.encode(asked)))
        return self.change(moved=image, train=image(self.train), encode=encode, **texts)

    def change(self, **fields: Any) -> Self:
        """The same with other fields, and nothing fitted yet."""
        return replace(self, memo={}, **fields)

    @cached_property
    def cosines(self) -> np.ndarray:
        """(n, K) float64, by ``look`` where there is one."""
        return super().cosines if self.look is None else self.look(self.images)[0].astype(np.float64)

    @cached_property
    def log_odds(self) -> np.ndarray:
        """(n,) float64 NegLabel, of the cosines that ``look`` gives (one group) where there is one."""
        if self.look is None:
            return super().log_odds
        return np.concatenate([logsumexp(p, axis=1) - logsumexp(n, axis=1) for p, n in self.blocks()])

    @property
    def fixed_text(self) -> np.ndarray | None:
        """``class_text``, None under ``look``: a need of what multiplies images by texts of its own."""
        return self.class_text if self.look is None else None

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Logits (b, K) and (b, M), float64, of consecutive images: cosines / temperature, 4 MB a time.

        Needs ``class_text`` and ``negative_text``; by ``look`` where there is one. Any length of rows.
        """
        texts = [self.class_text.T.astype(np.float64), self.negative_text.T.astype(np.float64)]
        width = texts[0].shape[1] + texts[1].shape[1]
        for rows in np.array_split(self.images, len(self.images) * width // BLOCK + 1):
            products = self.look(rows) if self.look else [rows.astype(np.float64) @ text for text in texts]
            ours, theirs = (part.astype(np.float64) / self.temperature for part in products)
            yield ours, theirs


def _usable(evidence: Evidence) -> np.ndarray:
    words = [word for word, _ in evidence.corpus]
    return negatives.clean(words, evidence.class_names, evidence.synonyms)


@dataclass(frozen=True)
class Adaptive:
    """A score that learns from the test stream. ``needs`` as of ``Method``.

    ``start``: evidence without images -> a step, which gets the stream's batches in order and returns their
    scores, higher = more ID, before it sees the next.
    """

    name: str
    year: int
    source: str
    needs: tuple[str, ...]
    start: Callable[[Evidence], Step]

    lacks = Method.lacks

    def __call__(self, evidence: Evidence) -> Step:
        """A fresh step. UserError naming what the method needs and the evidence lacks."""
        if lacking := self.lacks(evidence):
            raise UserError(f"{self.name} needs {lacking[0]}, which this model or lane lacks; leave it out")
        return self.start(evidence)


@dataclass(frozen=True)
class Task:
    """What an adaptation may use: the start, as evidence without images, and its ID training images.

    ``hyper``: its hyper-parameters, the paper's or this world's; ``network``: the start's model (UserError
    from ``tower`` where there is none to train); ``folder``: its own, for files.
    """

    known: Evidence
    hyper: dict[str, Any]
    seed: int
    network: Network
    study: Study
    profile: Profile
    folder: Path

    def shots(self, count: int) -> np.ndarray:
        """Indices (sorted) of ``count`` training images of each class, or of all it has; by the seed."""
        order = np.random.default_rng(self.seed).permutation(len(self.known.train_labels))
        labels = self.known.train_labels[order]
        return np.sort(np.concatenate([order[labels == k][:count] for k in np.unique(labels)]))

    def tower(self, name: str) -> Any:
        """The open_clip model that is trained. UserError on given embeddings, which have none."""
        if self.profile.data == "embeddings":
            raise UserError(f"{name} needs a model to train; on given embeddings there is none; leave it out")
        return self.network.parts[0]


@dataclass(frozen=True)
class Adaptation:
    """A way to change a model by ID training data.

    ``data``: what of it, "none", "few-shot" or "full"; ``paper`` and ``world``: hyper-parameters as published
    and as used in the glyph world, with ``note`` on what had to change; ``scores``: the paper's own.

    Either ``recipe``: changes to the profile's recipe, of a fine-tuning as in notebook 02 (``paper`` or
    ``world`` is laid over it); or ``fit``: task -> state, plain arrays that follow from the task, and
    ``apply``: (evidence, state) -> changed evidence, for all sets. A ``fit`` that changes weights writes
    ``task.folder / "model.safetensors"``: what is given to ``apply`` was embedded with them. A state may hold
    "parameters", the count of what was trained.
    """

    name: str
    year: int
    source: str
    data: Literal["none", "few-shot", "full"]
    paper: dict[str, Any]
    world: dict[str, Any]
    note: str
    needs: tuple[str, ...] = ()
    scores: tuple[str, ...] = ()
    recipe: dict[str, Any] | None = None
    fit: Callable[[Task], State] | None = None
    apply: Callable[[Evidence, State], Evidence] = lambda evidence, state: evidence

    lacks = Method.lacks


def modules(kind: Kind) -> dict[str, ModuleType]:
    """Name -> the file of each method of a kind, by year and name; among the scores also the core's six.

    UserError for a file that cannot be imported or does not hold its method, and for a name that two give.
    """
    folders = [f"gallery/{kind}", *(["methods"] if kind == "scores" else [])]
    files = [_imported(folder, name, kind) for folder in folders for name in registry.names(folder)]
    found: dict[str, ModuleType] = {}
    for file in sorted(files, key=lambda file: (_held(file, kind).year, _held(file, kind).name)):
        other = found.setdefault(name := _held(file, kind).name, file)
        if other is not file:
            both = " and ".join(f"{one.__name__.rpartition('.')[2]}.py" for one in (other, file))
            raise UserError(f"{both} both call their method {name!r}; rename one of gallery/{kind}")
    return found


def _imported(folder: str, name: str, kind: Kind) -> ModuleType:
    try:
        file = registry.find(folder, name)
        _held(file, kind)
    except Exception as fault:  # a file of anybody's
        why = f"{type(fault).__name__}: {fault}"
        raise UserError(
            f"ood_utils/{folder}/{name}.py holds no method: {why}; repair or remove it"
        ) from fault
    return file


def _held(file: ModuleType, kind: Kind) -> Any:
    return getattr(file, {"scores": "METHOD", "adaptive": "ADAPTIVE", "adaptations": "ADAPTATION"}[kind])


def every(kind: Kind) -> dict[str, Any]:
    """Name -> what the files of a kind hold, by year and name."""
    return {name: _held(file, kind) for name, file in modules(kind).items()}


def find(kind: Kind, name: str) -> Any:
    """The one of that name. Raises UserError with the nearest names."""
    if name not in (known := every(kind)):
        raise UserError(f"no method of the gallery's {kind} is called {name!r}{nearest(name, known)}")
    return known[name]
