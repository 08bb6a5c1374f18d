"""Images and texts to unit vectors, at the speed of the device, cached by content.

The encoders run in the asked precision; what comes out is float32 of length 1. A cache file says in its
metadata which weights, images or texts it belongs to and what its bytes hash to: a truncated, damaged or
foreign file is rebuilt, and a pass that was killed goes on after its last whole shard. What is cached is read
without a network.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from open_clip import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

from . import files, models, negatives
from .config import Profile
from .data import ImageSet, Study
from .data.corpus import finished_list
from .errors import UnreadableImage, UserError, nearest, quoted
from .files import hash_of
from .negatives import NegativeList

SHARD = 16_384  # images of one cache file: what an interrupted pass can lose
VERSION = 2  # of this module's arithmetic, part of every cache key
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
Item = tuple[Tensor | None, int, int, str]  # image or None, label, key, path of what could not be read or ""


def resolve_device(wanted: str) -> str:
    """ "cpu" or "cuda:N" (torchrun: the local rank) for auto, cpu, cuda, cuda:N; UserError without CUDA."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", wanted):
        raise UserError(f"device is {quoted(wanted)}; choose auto, cpu, cuda or cuda:N")
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device is {wanted!r} but torch sees no CUDA GPU; set device to auto or cpu")
    if wanted == "cpu" or not torch.cuda.is_available():
        return "cpu"
    return wanted if ":" in wanted else f"cuda:{os.environ.get('LOCAL_RANK', 0)}"


# --- reading images ---


class Tolerant(Dataset):
    """A dataset whose unreadable images do not end the pass: keys -> (image or None, label, key, bad path).

    ``substitute``: an unreadable image is replaced by the next readable one: a training batch stays whole.
    """

    def __init__(self, dataset: Dataset, substitute: bool = False) -> None:
        self.dataset, self.substitute = dataset, substitute

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, keys: Sequence[int]) -> list[Item]:
        whole = getattr(self.dataset, "__getitems__", None)
        try:
            items = whole(keys) if whole else [self.dataset[key] for key in keys]
            return [(image, label, key, "") for (image, label), key in zip(items, keys, strict=True)]
        except UnreadableImage:
            return [self._one(key) for key in keys]

    def _one(self, key: int) -> Item:
        n, bad = len(self.dataset), ""
        for ahead in range(min(n, 100) if self.substitute else 1):
            try:
                return (*self.dataset[key // n * n + (key + ahead) % n], key, bad)
            except UnreadableImage as fault:
                bad = bad or fault.path
        if self.substitute:
            raise UnreadableImage(bad, "and so are the images after it")
        return None, -1, key, bad


def collate(items: list[Item]) -> tuple[Tensor | None, Tensor, list[int], list[tuple[int, str]]]:
    """(images (b, 3, H, W) or None, labels (b,), keys of these rows, (key, path) of what was unreadable)."""
    good = [item[:3] for item in items if item[0] is not None]
    lost = [(key, path) for *_, key, path in items if path]
    if not good:
        return None, torch.empty(0, dtype=torch.long), [], lost
    images, labels, keys = zip(*good, strict=True)
    return default_collate(images), torch.tensor(labels), list(keys), lost  # in a worker into shared memory


def too_many(paths: Sequence[str], share: float, images: int, name: str) -> None:
    """UserError once more than ``share`` of a set's images were unreadable."""
    count = len(set(paths))
    if count > share * images:
        raise UserError(
            f"{count} of the {images} images of {name!r} are unreadable (max_unreadable allows {share:g} of "
            f"them), the first {sorted(set(paths))[0]}; replace them or raise max_unreadable"
        )


# --- encoding ---


def laid_out(images: Tensor) -> Tensor:
    """A batch as the encoders like it in memory: images (b, 3, H, W) channels last, vectors as they are."""
    return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images


def _unit(features: Sequence[Tensor], model: nn.Module, what: str) -> np.ndarray:
    """float32 unit rows as numpy; UserError if a feature is not finite or has no direction."""
    if not features:
        return np.empty((0, getattr(model.visual, "output_dim", 0)), np.float32)
    rows = F.normalize(torch.cat(list(features)).float(), dim=-1).cpu().numpy()
    if not (np.isfinite(rows).all() and (np.linalg.norm(rows, axis=1) > 0.5).all()):
        raise UserError(
            f"embeddings of {what} are not finite; use precision fp32 or check the model's weights"
        )
    return rows


@torch.no_grad()  # not inference mode: the model moved here may be trained afterwards
def encode_images(
    model: nn.Module,
    dataset: Dataset,
    *,
    batch: int = 256,
    device: str = "cpu",
    precision: str = "fp32",
    workers: int = 0,
    progress: bool | Any = True,
    unreadable: list[tuple[int, str]] | None = None,
    compile: bool = False,
) -> np.ndarray:
    """Embeddings of a dataset's images, (n, d) float32 unit rows in the dataset's order.

    ``precision``: fp32, bf16 or fp16, of the encoder alone. ``unreadable``: a list that gets (index, path) of
    every image that cannot be decoded; its row is left out. Without the list the first one is a UserError.
    ``progress``: True for a bar, False, or a bar of the caller to be moved on. ``compile``: torch.compile the
    image tower (pays on a GPU for tens of thousands of images). Raises UserError if CUDA is asked for but
    absent or if embeddings are not finite.
    """
    device = resolve_device(device)
    model.to(device).eval().visual.to(memory_format=torch.channels_last)
    encoder = torch.compile(model.encode_image) if compile else model.encode_image
    pinned = device.startswith("cuda")
    loader = DataLoader(Tolerant(dataset), batch, num_workers=workers, collate_fn=collate, pin_memory=pinned)
    bar = (
        files.progress(total=len(dataset), desc="embedding images") if progress is True else progress or None
    )
    bad, found, half = [] if unreadable is None else unreadable, [], HALF.get(precision)
    dtype = next(model.visual.parameters()).dtype
    for images, _, keys, lost in loader:
        bad += lost
        if lost and unreadable is None:
            raise UserError(f"image {lost[0][1]} cannot be read; replace it or pass a list for such images")
        if images is not None:
            images = laid_out(images.to(device, dtype, non_blocking=True))
            with torch.autocast(device.split(":")[0], half or torch.bfloat16, enabled=half is not None):
                found.append(encoder(images).float())  # stays on the device: reading it would wait for it
        if bar is not None:
            bar.update(len(keys) + len(lost))
    if progress is True:
        bar.close()
    return _unit(found, model, "images")


@torch.no_grad()
def encode_texts(
    model: nn.Module,
    tokenizer: Callable[[list[str]], Tensor],
    texts: Sequence[str],
    *,
    batch: int = 256,
    device: str = "cpu",
    precision: str = "fp32",
) -> np.ndarray:
    """Embeddings of texts, (n, d) float32 unit rows in the given order.

    Each distinct text is encoded once, with texts of like length and the context cut to the longest of a
    batch (exact: ``models.encode_text``). Raises UserError if CUDA is asked for but absent or if embeddings
    are not finite.
    """
    device = resolve_device(device)
    model.to(device).eval()
    distinct = sorted(set(texts))
    if not distinct:
        return _unit([], model, "texts")
    tokens = tokenizer(distinct)
    order = (tokens != 0).sum(1).argsort(stable=True)
    half, found = HALF.get(precision), []
    with torch.autocast(device.split(":")[0], half or torch.bfloat16, enabled=half is not None):
        for rows in order.split(batch):
            found.append(models.encode_text(model, tokens[rows].to(device)).float())
    unit = _unit(found, model, "texts")[order.argsort().numpy()]
    place = {text: row for row, text in enumerate(distinct)}
    return unit[[place[text] for text in texts]]


def encode(
    model: nn.Module, items: Dataset | Sequence[str], tokenizer: Any = None, **options: Any
) -> np.ndarray:
    """``encode_texts`` for a sequence of texts (``tokenizer`` needed), ``encode_images`` for a dataset."""
    if isinstance(items, list | tuple) and all(isinstance(x, str) for x in items):
        return encode_texts(model, tokenizer, items, **options)
    return encode_images(model, items, **options)


# --- a study, embedded ---


@dataclass(frozen=True)
class EmbeddedSet:
    """The embeddings of one image set, with what belongs to their rows.

    ``rows`` (n, d) float32 unit rows; ``labels`` (n,) int64, -1 for OoD; ``ids``: a name per row; ``index``
    (n,): the rows' places in the image set (an unreadable image has no row); ``group``: id, near, far, ...;
    ``clusters``: as of the image set, see ``together``.
    """

    rows: np.ndarray
    labels: np.ndarray
    ids: list[str]
    index: np.ndarray
    group: str
    clusters: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def together(self) -> np.ndarray:
        """(n,) int64, equal for rows that a bootstrap draws together: ``clusters``, else label or row."""
        if self.clusters is not None:
            return self.clusters
        alone = self.labels.max(initial=-1) + 1 + np.arange(len(self))
        return np.where(self.labels >= 0, self.labels, alone)


@dataclass(frozen=True)
class StudyEmbeddings:
    """One model's embeddings of a study; all float32 unit rows of one width d.

    ``sets``: id_val, id_test, the OoD and the validation sets by name. ``class_text`` (K, d) of
    ``class_names``; ``corpus_text`` (C, d) of ``corpus``; ``scale``: exp of the logit scale; ``negatives``:
    None before ``mine``.
    """

    sets: dict[str, EmbeddedSet]
    class_names: list[str]
    synonyms: list[list[str]]
    class_text: np.ndarray
    corpus: list[tuple[str, str]]
    corpus_text: np.ndarray
    scale: float
    negatives: NegativeList | None = None

    def __getitem__(self, name: str) -> EmbeddedSet:
        return self.sets[name]

    def of_split(self, split: str = "test") -> dict[str, EmbeddedSet]:
        """The OoD sets of "test" (near, far, unseen, ...), or of "validation", where choices are made."""
        ood = {name: s for name, s in self.sets.items() if s.group != "id"}
        return {name: s for name, s in ood.items() if (s.group == "validation") == (split == "validation")}

    @property
    def matched_text(self) -> np.ndarray:
        """(n, d): row k is the class text of row k of id_test."""
        return self.class_text[self["id_test"].labels]

    @property
    def negative_text(self) -> np.ndarray | None:
        """(M, d) embeddings of the negative labels, None before there are any."""
        return None if self.negatives is None else self.corpus_text[self.negatives.indices]

    def with_negatives(self, listed: NegativeList | Iterable[int]) -> Self:
        """The same with these negative labels: a list mined by ``mine``, or indices into the corpus."""
        index = [int(i) for i in getattr(listed, "indices", listed)]
        if index and not 0 <= min(index) <= max(index) < len(self.corpus):
            raise UserError(
                f"the negatives point beyond the {len(self.corpus)} words of the corpus; mine again"
            )
        if not isinstance(listed, NegativeList):
            words = [self.corpus[i][0] for i in index]
            listed = NegativeList(words, words, index)
        return replace(self, negatives=listed)


def mine(embedded: StudyEmbeddings, profile: Profile) -> NegativeList:
    """The study's negative labels, mined from its corpus with this model's text tower as the profile says.

    Mine once, with the zero-shot model, and use the list for every method (CMA and NegLabel do). The
    provenance names corpus, model and prompts, with a hash of the corpus's embeddings. Where the profile has
    a finished list, it is that, as it is; UserError for a word of it that the corpus lacks.
    """
    templates = profile.negative_prompt, profile.adjective_prompt
    origin = {
        "source": profile.corpus, "conjugated": profile.conjugated, "id_prompt": profile.prompt,
        "model": f"{profile.model} / {profile.pretrained}", "prompts": list(templates),
        "embeddings_sha256": hashlib.sha256(np.ascontiguousarray(embedded.corpus_text)).hexdigest(),
    }  # fmt: skip
    if profile.negatives:
        listed = finished_list(profile.negatives)
        place = {tuple(pair): i for i, pair in enumerate(embedded.corpus)}
        if lost := [word for word, part in listed if (word, part) not in place]:
            fault = f"{len(lost)} words of negatives {profile.negatives} have no embedding, first {lost[0]!r}"
            raise UserError(f"{fault}; embed them too (ood embed with the same list) or leave them out")
        words, asked = [word for word, _ in listed], negatives.prompts(listed, *templates)
        facts = origin | {"list": profile.negatives}
        return NegativeList(words, asked, [place[pair] for pair in listed], facts)
    texts = embedded.corpus_text, embedded.class_text, embedded.class_names, embedded.synonyms
    return negatives.build(
        embedded.corpus,
        *texts,
        templates=templates,
        quantile=profile.quantile,
        keep=profile.keep_counts or profile.keep,
        cleaned=profile.cleaned,
        provenance=origin,
    )


# --- the cache ---


class _Cache:
    """Embeddings of one model in one folder; the model is built only where something is missing."""

    def __init__(self, network: models.Network, profile: Profile, folder: Path) -> None:
        self.network, self.profile, self.folder = network, profile, folder
        device = resolve_device(profile.device)
        self.base = [VERSION, network.key, profile.precision, device.split(":")[0]]
        self.options = {"batch": profile.embed_batch, "device": device, "precision": profile.precision}

    def _kept(self, name: str, key: str, make: Callable[[], tuple[np.ndarray, list]]) -> tuple[Any, dict]:
        """(rows, facts) of a cache file; made anew where it is missing, truncated, damaged or foreign."""
        path = self.folder / f"{name}.safetensors"
        arrays, facts = files.read_arrays(path, key)
        if arrays is not None:
            return arrays["embeddings"], facts
        rows, lost = make()
        facts = {"unreadable": lost, "scale": float(self.network.parts[0].logit_scale.detach().exp())}
        files.write_arrays(path, key, {"embeddings": rows}, facts)
        return rows, facts

    def images(self, chosen: ImageSet, bar: Any) -> EmbeddedSet:
        """An image set, shard by shard. UserError when too many of its images are unreadable."""
        count = len(chosen.dataset)
        key = hash_of([*self.base, chosen.fingerprint, count, SHARD])[:16]
        parts, lost = [], []
        for number, start in enumerate(range(0, count, SHARD)):
            stop, before = min(start + SHARD, count), bar.n
            encode = partial(self._encode, chosen, start, stop, bar)
            rows, facts = self._kept(f"{chosen.name}-{key}-{number:03d}", key, encode)
            bar.update(stop - start - (bar.n - before))  # what was read from the cache
            parts.append(rows)
            lost += facts["unreadable"]
            too_many([path for _, path in lost], self.profile.max_unreadable, count, chosen.name)
        index = np.delete(np.arange(count), [place for place, _ in lost])
        ids = [chosen.ids[i] for i in index]
        clusters = None if chosen.clusters is None else chosen.clusters[index]
        return EmbeddedSet(np.concatenate(parts), chosen.labels[index], ids, index, chosen.group, clusters)

    def _encode(self, chosen: ImageSet, start: int, stop: int, bar: Any) -> tuple[np.ndarray, list]:
        whole = stop - start == len(chosen.dataset)
        part = chosen.dataset if whole else Subset(chosen.dataset, range(start, stop))
        more = {"workers": self.profile.loaders(), "compile": self.profile.compile, "progress": bar}
        lost: list[tuple[int, str]] = []
        rows = encode_images(self.network.parts[0], part, unreadable=lost, **more, **self.options)
        return rows, [(start + index, path) for index, path in lost]

    def texts(self, name: str, texts: list[str]) -> tuple[np.ndarray, dict[str, Any]]:
        """(rows, facts) of a list of prompted texts."""

        def make() -> tuple[np.ndarray, list]:
            model, _, tokenizer = self.network.parts
            return encode_texts(model, tokenizer, texts, **self.options), []

        key = hash_of([*self.base, texts])[:16]
        return self._kept(f"{name}-{key}", key, make)


def embed(
    study: Study,
    profile: Profile,
    folder: Path | str,
    weights: str = "",
    sets: Sequence[str] | None = None,
    network: models.Network | None = None,
) -> StudyEmbeddings:
    """Embed a study, reading from ``folder`` what is already there.

    ``weights``: a tag or path in place of ``profile.pretrained``; ``network``: the model in place of the
    profile's. ``sets``: names of the image sets wanted (default: all). Class texts are prompted with
    ``profile.prompt`` (or averaged over open_clip's templates: ``profile.ensemble``), the corpus with
    ``profile.negative_prompt``, its adjectives with ``profile.adjective_prompt``. Cache files are keyed by
    weights, images or texts, precision and kind of device. Raises UserError for an unknown set, more than
    ``profile.max_unreadable`` unreadable images, embeddings that are not finite, absent CUDA, a folder that
    cannot be written.
    """
    wanted = list(study.sets if sets is None else sets)
    if unknown := [name for name in wanted if name not in study.sets]:
        raise UserError(f"image set {unknown[0]!r} is not in this study{nearest(unknown[0], study.sets)}")
    cache = _Cache(
        network or models.Network(profile.model, weights or profile.pretrained), profile, Path(folder)
    )
    images = sum(len(study.sets[name].dataset) for name in wanted)
    with files.progress(total=images, desc="embedding images") as bar:
        embedded = {name: cache.images(study.sets[name], bar) for name in wanted}
    if profile.ensemble:
        several = [template(name) for name in study.class_names for template in OPENAI_IMAGENET_TEMPLATES]
        rows, facts = cache.texts("class_templates", several)
        rows = rows.reshape(len(study.class_names), len(OPENAI_IMAGENET_TEMPLATES), -1).mean(1)
        class_text = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    else:
        class_text, facts = cache.texts("class_text", study.class_texts(profile.prompt))
    asked = negatives.prompts(study.corpus, profile.negative_prompt, profile.adjective_prompt)
    words = study.class_names, study.synonyms, class_text, study.corpus, cache.texts("corpus_text", asked)[0]
    return StudyEmbeddings(embedded, *words, facts["scale"])
