"""Images and texts to unit vectors, at the speed of the device, cached by content.

The encoders run in the asked precision; what comes out is float32 of length 1. A cache file says in its
metadata which weights, images or texts it belongs to and what its bytes hash to: a truncated, damaged or
foreign file is rebuilt, and a pass that was killed goes on after its last whole shard.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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

from . import decoding, models, negatives
from .errors import UnreadableImage, UserError
from .files import atomic_write, hash_of, progress

if TYPE_CHECKING:
    from .config import Profile
    from .data import ImageSet, Study

SHARD = 16_384  # images of one cache file: what an interrupted pass can lose
VERSION = 1  # of this module's arithmetic, part of every cache key
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


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


# --- reading images ----------------------------------------------------------------------------------------------


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

    def __getitem__(self, key: int) -> tuple[Tensor | None, int, int, str]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[int]) -> list[tuple[Tensor | None, int, int, str]]:
        whole = getattr(self.dataset, "__getitems__", None)
        try:
            items = whole(keys) if whole else [self.dataset[key] for key in keys]
            return [(image, label, key, "") for (image, label), key in zip(items, keys, strict=True)]
        except UnreadableImage:
            return [self._one(key) for key in keys]

    def _one(self, key: int) -> tuple[Tensor | None, int, int, str]:
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


def collate(
    items: list[tuple[Tensor | None, int, int, str]],
) -> tuple[Tensor | list[Tensor] | None, Tensor, list[int], list[tuple[int, str]]]:
    """(images, labels (b,), keys of these rows, (key, path) of what was unreadable).

    Images are (b, 3, H, W), a list of undecoded files, or None.
    """
    good = [item for item in items if item[0] is not None]
    rows = [item[0] for item in good]
    undecoded = not rows or rows[0].ndim == 1
    images = rows or None if undecoded else default_collate(rows)
    labels = torch.tensor([int(item[1]) for item in good], dtype=torch.long)
    return images, labels, [item[2] for item in good], [(item[2], item[3]) for item in items if item[3]]


def too_many(paths: Sequence[str], share: float, images: int, name: str) -> None:
    """UserError once more than ``share`` of a set's images were unreadable."""
    count = len(set(paths))
    if count > share * images:
        raise UserError(
            f"{count} of the {images} images of {name!r} are unreadable (max_unreadable allows {share:g} of them), "
            f"the first {sorted(set(paths))[0]}; replace them or raise max_unreadable"
        )


# --- encoding ----------------------------------------------------------------------------------------------------


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
    decode: Callable[[list[Tensor], str], list[Tensor | None]] | None = None,
) -> np.ndarray:
    """Embeddings of a dataset's images, (n, d) float32 unit rows in the dataset's order.

    ``precision``: fp32, bf16 or fp16, of the encoder alone. ``unreadable``: a list that gets (index, path) of
    every image that cannot be decoded; its row is left out. Without the list the first one is a UserError.
    ``progress``: True for a bar, False, or a bar of the caller to be moved on. ``compile``: torch.compile the
    image tower (pays on a GPU for tens of thousands of images). ``decode``: the dataset gives files as bytes
    (``decoding.Undecoded``) and this turns a batch of them into images on the device (``decoding.decoder``).
    Raises UserError if CUDA is asked for but absent or if embeddings are not finite.
    """
    device = resolve_device(device)
    model.to(device).eval().visual.to(memory_format=torch.channels_last)
    encoder = torch.compile(model.encode_image) if compile else model.encode_image
    loader = DataLoader(
        Tolerant(dataset),
        batch,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=device.startswith("cuda"),
    )
    bar = _bar(len(dataset), "images") if progress is True else progress or None
    bad, found = [] if unreadable is None else unreadable, []
    half = HALF.get(precision)
    dtype = next(model.visual.parameters()).dtype
    for images, _, keys, lost in loader:
        if decode is not None and images is not None:
            pictures = decode(images, device)
            lost += [
                (k, dataset.paths[k]) for k, picture in zip(keys, pictures, strict=True) if picture is None
            ]
            keys = [k for k, picture in zip(keys, pictures, strict=True) if picture is not None]
            images = torch.stack([picture for picture in pictures if picture is not None]) if keys else None
        bad += lost
        if lost and unreadable is None:
            raise UserError(
                f"image {lost[0][1]} cannot be read; replace it or pass a list for the unreadable ones"
            )
        if images is not None:
            images = images.to(device, dtype, non_blocking=True).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.split(":")[0], half or torch.bfloat16, enabled=half is not None):
                found.append(
                    encoder(images).float()
                )  # stays on the device: reading it here would wait for it
        if bar is not None:
            bar.update(len(keys) + len(lost))
    if progress is True and bar is not None:
        bar.close()
    return (
        _unit(torch.cat(found), "images")
        if found
        else np.empty((0, getattr(model.visual, "output_dim", 0)), np.float32)
    )


def _bar(total: int, unit: str) -> Any:
    return progress(None, total=total, desc=f"embedding {unit}")


@torch.no_grad()  # not inference mode: the model moved here may be trained afterwards
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
        return np.empty((0, getattr(model.visual, "output_dim", 0)), np.float32)
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
    if (
        isinstance(items, Sequence)
        and not isinstance(items, Dataset)
        and all(isinstance(x, str) for x in items)
    ):
        return encode_texts(model, tokenizer, items, **options)
    return encode_images(model, items, **options)


# --- the cache ---------------------------------------------------------------------------------------------------


def _read_shard(path: Path, key: str) -> tuple[np.ndarray, list[tuple[int, str]]] | None:
    """(rows, unreadable) of a cache file; None if missing, truncated, damaged or of another key."""
    try:
        with safe_open(path, "np") as file:
            facts, rows = json.loads((file.metadata() or {})["facts"]), file.get_tensor("embeddings")
        if facts["key"] == key and facts["sha256"] == hashlib.sha256(rows.tobytes()).hexdigest():
            return rows, [tuple(pair) for pair in facts["unreadable"]]
    except (OSError, SafetensorError, KeyError, ValueError):
        pass
    return None


def _write_shard(path: Path, key: str, rows: np.ndarray, unreadable: list[tuple[int, str]]) -> None:
    digest = hashlib.sha256(rows.tobytes()).hexdigest()
    facts = {
        "key": key,
        "sha256": digest,
        "unreadable": unreadable,
    }  # one entry: safetensors shuffles several
    atomic_write(
        path, save({"embeddings": np.ascontiguousarray(rows)}, metadata={"facts": json.dumps(facts)})
    )


@dataclass(frozen=True)
class Space:
    """One model's embeddings of a study; all float32 unit rows of one width d.

    ``images``: set name -> (n, d), keys id_val, id_test and every OoD and validation set. ``class_text`` (K,
    d); ``corpus_text`` (C, d) aligned with study.corpus; ``scale``: exp of the logit scale. ``unreadable``:
    set name -> (index, path) of images that could not be decoded: their rows are missing, see ``rows``.
    """

    images: dict[str, np.ndarray]
    class_text: np.ndarray
    corpus_text: np.ndarray
    scale: float
    unreadable: dict[str, list[tuple[int, str]]] = field(default_factory=dict)

    def rows(self, name: str) -> np.ndarray:
        """Indices into the image set of the rows of ``images[name]``: ``labels[space.rows("id_test")]`` fits
        them.
        """
        lost = [index for index, _ in self.unreadable.get(name, [])]
        return np.delete(np.arange(len(self.images[name]) + len(lost)), lost)


class _Cache:
    """Embeddings of one model in one folder."""

    def __init__(self, model: nn.Module, tokenizer: Any, profile: Profile, folder: Path) -> None:
        self.model, self.tokenizer, self.profile, self.folder = model, tokenizer, profile, folder
        self.device = resolve_device(profile.device)
        self.base = [VERSION, models.weights_hash(model), profile.precision, self.device.split(":")[0]]
        self.base += (
            [profile.decoder] if profile.decoder != "pil" else []
        )  # its pixels differ by a grey level or so

    def images(self, chosen: ImageSet, bar: Any) -> tuple[np.ndarray, list[tuple[int, str]]]:
        """(rows, unreadable) of an image set, shard by shard."""
        key = hash_of([*self.base, chosen.fingerprint, len(chosen.dataset), SHARD])[:16]
        rows, unreadable, count = [], [], len(chosen.dataset)
        for number, start in enumerate(range(0, count, SHARD)):
            path = self.folder / f"{chosen.name}-{key}-{number:03d}.safetensors"
            part = _read_shard(path, key)
            if part is None:
                part = self._encode(chosen, start, min(start + SHARD, count), bar)
                _write_shard(path, key, *part)
            else:
                bar.update(min(SHARD, count - start))
            rows.append(part[0])
            unreadable += part[1]
            too_many([path for _, path in unreadable], self.profile.max_unreadable, count, chosen.name)
        return np.concatenate(rows), unreadable

    def _encode(
        self, chosen: ImageSet, start: int, stop: int, bar: Any
    ) -> tuple[np.ndarray, list[tuple[int, str]]]:
        profile, lost, decode = self.profile, [], None
        if profile.decoder == "device" and hasattr(chosen.dataset, "paths"):
            part: Dataset = decoding.Undecoded(chosen.dataset, start, stop)
            decode = decoding.decoder(models.preprocess_config(profile.model, profile.pretrained))
        else:
            part = (
                chosen.dataset
                if stop - start == len(chosen.dataset)
                else Subset(chosen.dataset, range(start, stop))
            )
        rows = encode_images(
            self.model,
            part,
            batch=profile.embed_batch,
            device=self.device,
            precision=profile.precision,
            workers=profile.workers,
            progress=bar,
            unreadable=lost,
            compile=profile.compile,
            decode=decode,
        )
        return rows, [(start + index, path) for index, path in lost]

    def texts(self, name: str, texts: list[str]) -> np.ndarray:
        """Rows of a list of prompted texts."""
        key = hash_of([*self.base, texts])[:16]
        path = self.folder / f"{name}-{key}.safetensors"
        part = _read_shard(path, key)
        if part is None:
            options = {
                "batch": self.profile.embed_batch,
                "device": self.device,
                "precision": self.profile.precision,
            }
            part = encode_texts(self.model, self.tokenizer, texts, **options), []
            _write_shard(path, key, *part)
        return part[0]

    def classes(self, names: list[str]) -> np.ndarray:
        """(K, d) rows of the ID classes: prompted, or the unit mean over open_clip's templates."""
        if not self.profile.ensemble:
            return self.texts("class_text", prompts(self.profile.prompt, names))
        texts = [template(name) for name in names for template in OPENAI_IMAGENET_TEMPLATES]
        rows = self.texts("class_templates", texts).reshape(len(names), len(OPENAI_IMAGENET_TEMPLATES), -1)
        return _unit(torch.from_numpy(rows.mean(1)), "class texts")


def embed(
    model: nn.Module,
    tokenizer: Callable[[list[str]], Tensor],
    study: Study,
    profile: Profile,
    folder: Path | str,
    sets: Sequence[str] | None = None,
) -> Space:
    """Embed a study with a model, reading from ``folder`` what is already there.

    ``sets``: names of the image sets wanted (all of ``study.sets`` by default). Class texts are prompted with
    ``profile.prompt`` (or averaged over open_clip's templates: ``profile.ensemble``), the corpus with
    ``profile.negative_prompt``, its adjectives with ``profile.adjective_prompt``. Cache files are keyed by
    weights, images or texts, precision and kind of device. Raises UserError for an unknown set, more than
    ``profile.max_unreadable`` unreadable images, embeddings that are not finite, absent CUDA, a folder that
    cannot be written.
    """
    wanted = list(study.sets if sets is None else sets)
    unknown = [name for name in wanted if name not in study.sets]
    if unknown:
        raise UserError(
            f"image set {unknown[0]!r} is not in this study; choose among {', '.join(study.sets)}"
        )
    cache = _Cache(model, tokenizer, profile, Path(folder))
    images, unreadable = {}, {}
    with _bar(sum(len(study.sets[name].dataset) for name in wanted), "images") as bar:
        for name in wanted:
            images[name], lost = cache.images(study.sets[name], bar)
            if lost:
                unreadable[name] = lost
    return Space(
        images,
        cache.classes(study.class_names),
        cache.texts(
            "corpus_text", negatives.prompts(study.corpus, profile.negative_prompt, profile.adjective_prompt)
        ),
        float(model.logit_scale.detach().exp()),
        unreadable,
    )
