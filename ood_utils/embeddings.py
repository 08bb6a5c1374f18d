"""Images and texts to unit vectors, at the speed of the device, cached by content.

The encoders run in the asked precision; what comes out is float32 of length 1. A cache file says in its
metadata which weights, images or texts it belongs to and what its bytes hash to: a truncated, damaged or
foreign file is rebuilt, and a pass that was killed goes on after its last whole shard. What is cached is read
without a network.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from open_clip import OPENAI_IMAGENET_TEMPLATES
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

from . import files, models, negatives
from .errors import UnreadableImage, UserError, nearest
from .files import atomic_write, hash_of

if TYPE_CHECKING:
    from .config import Profile
    from .data import ImageSet, Study

SHARD = 16_384  # images of one cache file: what an interrupted pass can lose
VERSION = 2  # of this module's arithmetic, part of every cache key
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
Item = tuple[Tensor | None, int, int, str]  # image or None, label, key, path of what could not be read or ""


def resolve_device(wanted: str) -> str:
    """ "cpu" or "cuda:N" for auto, cpu, cuda or cuda:N; under torchrun N is the local rank. UserError without
    CUDA.
    """
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device is {wanted!r} but torch sees no CUDA GPU; set device to auto or cpu")
    if wanted == "cpu" or not torch.cuda.is_available():
        return "cpu"
    return wanted if ":" in wanted else f"cuda:{os.environ.get('LOCAL_RANK', 0)}"


def prompts(template: str, names: Sequence[str]) -> list[str]:
    """The template with each name in place of "{}"."""
    return [template.replace("{}", name) for name in names]


# --- reading images ---


class Tolerant(Dataset):
    """A dataset whose unreadable images do not end the pass: item key -> (image or None, label, key, bad path
    or "").

    ``substitute``: an unreadable image is replaced by the next readable one, so that a training batch stays
    whole.
    """

    def __init__(self, dataset: Dataset, substitute: bool = False) -> None:
        self.dataset, self.substitute = dataset, substitute

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int) -> Item:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[int]) -> list[Item]:
        whole = getattr(self.dataset, "__getitems__", None)
        try:
            items = whole(keys) if whole else [self.dataset[key] for key in keys]
            return [(image, label, key, "") for (image, label), key in zip(items, keys, strict=True)]
        except UnreadableImage:
            return [self._one(key) for key in keys]

    def _one(self, key: int) -> Item:
        try:
            return (*self.dataset[key], key, "")
        except UnreadableImage as fault:
            if not self.substitute:
                return None, -1, key, fault.path
            bad = fault.path
        n = len(self.dataset)
        for ahead in range(1, min(n, 100)):
            with contextlib.suppress(UnreadableImage):
                return (*self.dataset[key // n * n + (key + ahead) % n], key, bad)
        raise UnreadableImage(bad, "and so are the images after it")


def collate(items: list[Item]) -> tuple[Tensor | None, Tensor, list[int], list[tuple[int, str]]]:
    """(images (b, 3, H, W) or None, labels (b,), keys of these rows, (key, path) of what was unreadable)."""
    good = [item for item in items if item[0] is not None]
    images = default_collate([item[0] for item in good]) if good else None
    labels = torch.tensor([int(item[1]) for item in good], dtype=torch.long)
    return images, labels, [item[2] for item in good], [(item[2], item[3]) for item in items if item[3]]


def too_many(paths: Sequence[str], share: float, images: int, name: str) -> None:
    """UserError once more than ``share`` of a set's images were unreadable."""
    count = len(set(paths))
    if count > share * images:
        raise UserError(
            f"{count} of the {images} images of {name!r} are unreadable (max_unreadable allows {share:g} of "
            f"them), the first {sorted(set(paths))[0]}; replace them or raise max_unreadable"
        )


# --- encoding ---


def _unit(features: Tensor, what: str) -> np.ndarray:
    """float32 unit rows as numpy; UserError if a feature is not finite or has no direction."""
    rows = F.normalize(features.float(), dim=-1).cpu().numpy()
    if not (np.isfinite(rows).all() and (np.linalg.norm(rows, axis=1) > 0.5).all()):
        raise UserError(
            f"the embeddings of {what} are not finite; use precision fp32 or check the model's weights"
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
            images = images.to(device, dtype, non_blocking=True).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.split(":")[0], half or torch.bfloat16, enabled=half is not None):
                found.append(encoder(images).float())  # stays on the device: reading it would wait for it
        if bar is not None:
            bar.update(len(keys) + len(lost))
    if progress is True:
        bar.close()
    return _unit(torch.cat(found), "images") if found else _no_rows(model)


def _no_rows(model: nn.Module) -> np.ndarray:
    return np.empty((0, getattr(model.visual, "output_dim", 0)), np.float32)


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
        return _no_rows(model)
    tokens = tokenizer(distinct)
    order = (tokens != 0).sum(1).argsort(stable=True)
    half, found = HALF.get(precision), []
    with torch.autocast(device.split(":")[0], half or torch.bfloat16, enabled=half is not None):
        for rows in order.split(batch):
            found.append(models.encode_text(model, tokens[rows].to(device)).float())
    unit = _unit(torch.cat(found), "texts")[order.argsort().numpy()]
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
    (n,): the rows' places in the image set (an image that could not be decoded has no row); ``group``: id,
    near, far, ...
    """

    rows: np.ndarray
    labels: np.ndarray
    ids: list[str]
    index: np.ndarray
    group: str

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class StudyEmbeddings:
    """One model's embeddings of a study; all float32 unit rows of one width d.

    ``sets``: set name -> EmbeddedSet, keys id_val, id_test and the OoD and validation sets. ``class_text``
    (K, d) of ``class_names``; ``corpus_text`` (C, d) of ``corpus``; ``scale``: exp of the logit scale;
    ``negatives``: the negative labels, None before ``mine``.
    """

    sets: dict[str, EmbeddedSet]
    class_names: list[str]
    synonyms: list[list[str]]
    class_text: np.ndarray
    corpus: list[tuple[str, str]]
    corpus_text: np.ndarray
    scale: float
    negatives: negatives.NegativeList | None = None

    def __getitem__(self, name: str) -> EmbeddedSet:
        return self.sets[name]

    def of_split(self, split: str = "test") -> dict[str, EmbeddedSet]:
        """The OoD sets of "test" (near, far, unseen, ...), or of "validation", where choices are made."""
        wanted = split == "validation"
        ood = {name: s for name, s in self.sets.items() if s.group != "id"}
        return {name: s for name, s in ood.items() if (s.group == "validation") == wanted}

    @property
    def matched_text(self) -> np.ndarray:
        """(n, d): row k is the class text of row k of id_test."""
        return self.class_text[self["id_test"].labels]

    @property
    def negative_text(self) -> np.ndarray | None:
        """(M, d) embeddings of the negative labels, None before there are any."""
        return None if self.negatives is None else self.corpus_text[self.negatives.indices]

    def with_negatives(self, listed: negatives.NegativeList | Iterable[int]) -> StudyEmbeddings:
        """The same with these negative labels: a list mined by ``mine``, or indices into the corpus."""
        index = [int(i) for i in getattr(listed, "indices", listed)]
        if index and not 0 <= min(index) <= max(index) < len(self.corpus):
            raise UserError(
                f"the negatives point beyond the {len(self.corpus)} words of the corpus; mine again"
            )
        if not isinstance(listed, negatives.NegativeList):
            words = [self.corpus[i][0] for i in index]
            listed = negatives.NegativeList(words, words, index)
        return replace(self, negatives=listed)


def mine(embedded: StudyEmbeddings, profile: Profile, cleaned: bool | None = None) -> negatives.NegativeList:
    """The study's negative labels, mined from its corpus with this model's text tower, settings from the
    profile.

    Mine once, with the zero-shot model, and use the list for every method (CMA and NegLabel do). ``cleaned``
    overrides the profile's. The provenance names corpus, model and prompts, with a hash of the corpus's
    embeddings.
    """
    return negatives.build(
        embedded.corpus,
        embedded.corpus_text,
        embedded.class_text,
        embedded.class_names,
        embedded.synonyms,
        templates=(profile.negative_prompt, profile.adjective_prompt),
        quantile=profile.quantile,
        keep=profile.keep_counts or profile.keep,
        cleaned=profile.cleaned if cleaned is None else cleaned,
        provenance={
            "source": profile.corpus,
            "conjugated": profile.conjugated,
            "model": f"{profile.model} / {profile.pretrained}",
            "id_prompt": profile.prompt,
            "prompts": [profile.negative_prompt, profile.adjective_prompt],
            "embeddings_sha256": hashlib.sha256(np.ascontiguousarray(embedded.corpus_text)).hexdigest(),
        },
    )


# --- the cache ---


def _read_shard(path: Path, key: str) -> tuple[np.ndarray, dict[str, Any]] | None:
    """(rows, facts) of a cache file; None if missing, truncated, damaged or of another key."""
    try:
        with safe_open(path, "np") as file:
            facts, rows = json.loads((file.metadata() or {})["facts"]), file.get_tensor("embeddings")
        if facts["key"] == key and facts["sha256"] == hashlib.sha256(rows).hexdigest():
            return rows, facts
    except (OSError, SafetensorError, KeyError, ValueError):
        pass
    return None


class _Cache:
    """Embeddings of one model in one folder; the model is built only where something is missing."""

    def __init__(self, network: models.Network, profile: Profile, folder: Path) -> None:
        self.network, self.profile, self.folder = network, profile, folder
        self.device = resolve_device(profile.device)
        self.base = [VERSION, network.key, profile.precision, self.device.split(":")[0]]
        self.options = {"batch": profile.embed_batch, "device": self.device, "precision": profile.precision}

    def _kept(self, path: Path, key: str, make: Callable[[], tuple[np.ndarray, list]]) -> tuple[Any, dict]:
        """(rows, facts) of a cache file, made and written first where it is not there."""
        if (known := _read_shard(path, key)) is not None:
            return known
        rows, lost = make()
        facts = {
            "key": key,
            "sha256": hashlib.sha256(np.ascontiguousarray(rows)).hexdigest(),
            "unreadable": lost,
        }
        facts["scale"] = float(self.network.parts[0].logit_scale.detach().exp())
        # one entry: safetensors shuffles several
        atomic_write(path, save({"embeddings": np.ascontiguousarray(rows)}, {"facts": json.dumps(facts)}))
        return rows, facts

    def images(self, chosen: ImageSet, bar: Any) -> EmbeddedSet:
        """An image set, shard by shard. UserError when too many of its images are unreadable."""
        count = len(chosen.dataset)
        key = hash_of([*self.base, chosen.fingerprint, count, SHARD])[:16]
        parts, lost = [], []
        for number, start in enumerate(range(0, count, SHARD)):
            stop, before = min(start + SHARD, count), bar.n
            path = self.folder / f"{chosen.name}-{key}-{number:03d}.safetensors"
            rows, facts = self._kept(path, key, partial(self._encode, chosen, start, stop, bar))
            bar.update(stop - start - (bar.n - before))  # what was read from the cache
            parts.append(rows)
            lost += facts["unreadable"]
            too_many([path for _, path in lost], self.profile.max_unreadable, count, chosen.name)
        index = np.delete(np.arange(count), [place for place, _ in lost])
        ids = [chosen.ids[i] for i in index]
        return EmbeddedSet(np.concatenate(parts), chosen.labels[index], ids, index, chosen.group)

    def _encode(self, chosen: ImageSet, start: int, stop: int, bar: Any) -> tuple[np.ndarray, list]:
        whole = stop - start == len(chosen.dataset)
        part = chosen.dataset if whole else Subset(chosen.dataset, range(start, stop))
        more = {"workers": self.profile.workers, "compile": self.profile.compile, "progress": bar}
        lost: list[tuple[int, str]] = []
        rows = encode_images(self.network.parts[0], part, unreadable=lost, **more, **self.options)
        return rows, [(start + index, path) for index, path in lost]

    def texts(self, name: str, texts: list[str]) -> tuple[np.ndarray, dict[str, Any]]:
        """(rows, facts) of a list of prompted texts."""
        key = hash_of([*self.base, texts])[:16]

        def make() -> tuple[np.ndarray, list]:
            model, _, tokenizer = self.network.parts
            return encode_texts(model, tokenizer, texts, **self.options), []

        return self._kept(self.folder / f"{name}-{key}.safetensors", key, make)

    def classes(self, names: list[str]) -> tuple[np.ndarray, float]:
        """((K, d) rows of the ID classes: prompted, or the mean over open_clip's templates; the scale)."""
        if not self.profile.ensemble:
            rows, facts = self.texts("class_text", prompts(self.profile.prompt, names))
            return rows, facts["scale"]
        texts = [template(name) for name in names for template in OPENAI_IMAGENET_TEMPLATES]
        rows, facts = self.texts("class_templates", texts)
        means = rows.reshape(len(names), len(OPENAI_IMAGENET_TEMPLATES), -1).mean(1)
        return _unit(torch.from_numpy(means), "class texts"), facts["scale"]


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
    profile's. ``sets``: names of the image sets wanted (all of ``study.sets`` by default). Class texts are
    prompted with ``profile.prompt`` (or averaged over open_clip's templates: ``profile.ensemble``), the
    corpus with ``profile.negative_prompt``, its adjectives with ``profile.adjective_prompt``. Cache files are
    keyed by weights, images or texts, precision and kind of device. Raises UserError for an unknown set, more
    than ``profile.max_unreadable`` unreadable images, embeddings that are not finite, absent CUDA, a folder
    that cannot be written.
    """
    wanted = list(study.sets if sets is None else sets)
    if unknown := [name for name in wanted if name not in study.sets]:
        raise UserError(f"image set {unknown[0]!r} is not in this study{nearest(unknown[0], study.sets)}")
    network = network or models.Network(profile.model, weights or profile.pretrained)
    cache = _Cache(network, profile, Path(folder))
    images = sum(len(study.sets[name].dataset) for name in wanted)
    with files.progress(total=images, desc="embedding images") as bar:
        embedded = {name: cache.images(study.sets[name], bar) for name in wanted}
    class_text, scale = cache.classes(study.class_names)
    templates = profile.negative_prompt, profile.adjective_prompt
    corpus_text, _ = cache.texts("corpus_text", negatives.prompts(study.corpus, *templates))
    return StudyEmbeddings(
        embedded, study.class_names, study.synonyms, class_text, study.corpus, corpus_text, scale
    )
