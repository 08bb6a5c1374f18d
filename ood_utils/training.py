"""Fine-tuning of both towers: the step and the loop, alike in a notebook, a child and every rank of torchrun.

A step is a function of (recipe, step, state): the batch's keys, the m2-Mix draw and the random seed all
follow from (seed, step), so a killed training that is started again ends with the same weights to the bit
on the same machine. Recipe: ``config.Recipe``. Paper values: core_methods 1.4.
"""

import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

from . import files, models, objectives
from .config import Recipe, TrainingValues
from .data import ImageSet
from .embeddings import Tolerant, collate, laid_out, resolve_device, too_many
from .errors import UserError
from .provenance import provenance

MAX_LOG_SCALE = math.log(100)  # CLIP's clamp of the logit scale
LOG_COLUMNS = ("step", "epoch", "lr", *objectives.Parts._fields, "relation", "gradient_norm", "seconds")
FLUSH = 10  # steps between reads of the log from the device: a read waits for the device
SEED_STRIDE = 1_000_003
STATE, MODULES = ("key", "step", "rows", "unreadable"), ("model", "optimiser", "scaler")  # in state.pt
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


def _rank() -> int:
    return torch.distributed.get_rank() if objectives.world_size() > 1 else 0


# --- which images make up a step ---


def _batches_per_epoch(images: int, batch: int, world: int) -> int:
    """Whole batches, and the rest as one more unless it is too small to contrast (fewer than 2 a process)."""
    return images // batch + (images % batch >= max(2, world))


def total_steps(recipe: TrainingValues, images: int) -> int:
    """Optimiser steps of a fine-tuning (of a recipe or profile) on a training set of that many images."""
    return recipe.epochs * _batches_per_epoch(images, recipe.batch, 1) or recipe.steps


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, images: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(images)


def batch_keys(images: int, batch: int, seed: int, step: int, world: int = 1) -> np.ndarray:
    """Keys (epoch * images + index) of a step's global batch: a function of (seed, step).

    Each epoch is a fresh permutation; its last batch is smaller (a multiple of ``world``), or missing if
    fewer than 2 images remain.
    """
    batch = min(batch, images)
    epoch, place = divmod(step, _batches_per_epoch(images, batch, world))
    picked = _order(seed, epoch, images)[place * batch : (place + 1) * batch]
    return epoch * images + picked[: len(picked) // world * world]


def loader(
    images: Dataset, batches: Iterable[np.ndarray], seed: int, workers: int, device: torch.device
) -> DataLoader:
    """Batches of images by their keys; the next image stands in for one that cannot be read."""
    return DataLoader(
        Tolerant(images, substitute=True),
        batch_sampler=(batch.tolist() for batch in batches),
        collate_fn=collate,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator().manual_seed(seed),
    )


# --- the two towers ---


class Towers(nn.Module):
    """Both encoders as one module, so that DDP sees one forward: distinct texts encoded once, then indexed.

    forward(images (b, 3, H, W), tokens (u, L)) -> unit float32 rows image (b, d), text (u, d), and the scale.
    With ``chunk`` ("cached gradients") no activations are kept: the loss is taken on the whole batch, and
    backward re-encodes it piece by piece.
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        self.model, self.chunk = model, recipe.chunk
        self.half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(recipe.precision)

    def _encode(self, tower: Callable[[Tensor], Tensor], rows: Tensor, size: int) -> Tensor:
        encode = partial(checkpoint, tower, use_reentrant=False) if self.chunk else tower
        return torch.cat([encode(part) for part in rows.split(self.chunk or size)])

    def _unit(self, encode: Callable[[], Tensor], device: torch.device) -> Tensor:
        with torch.autocast(device.type, self.half or torch.bfloat16, enabled=self.half is not None):
            rows = encode()
        return F.normalize(rows.to(self.model.logit_scale.dtype), dim=-1)  # float32, or float64 in tests

    def images(self, images: Tensor) -> Tensor:
        """Unit rows (b, d) of images."""
        return self._unit(lambda: self._encode(self.model.encode_image, images, len(images)), images.device)

    def texts(self, tokens: Tensor) -> Tensor:
        """Unit rows (u, d) of texts."""
        # like lengths together: less padding, same result; on CUDA the launches of three groups cost more
        order = (tokens != 0).sum(1).argsort(stable=True)
        group = max(32, -(-len(tokens) // 3)) if tokens.device.type == "cpu" else len(tokens)
        encode = partial(models.encode_text, self.model)
        return self._unit(lambda: self._encode(encode, tokens[order], group), tokens.device)[order.argsort()]

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit rows of images and texts, and the scale: see the class."""
        text = self.texts(tokens)  # first: encode_text waits for the device, which here has little queued
        return self.images(images), text, self.model.logit_scale.exp()


def _train_mode(model: nn.Module) -> None:
    """Training mode, but BatchNorm keeps its statistics: features must not depend on the batch or chunk."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def rate(step: int, steps: int, warmup: int) -> float:
    """Share of the peak learning rate at a step: (step + 1) / warmup, then half a cosine down to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW with the recipe's peak rate for each tower (0: locked, left out, no gradient computed).

    It decays matrices, and what has fewer dimensions only with ``decay_all``.
    """
    towers = {p: recipe.text_lr for p in model.parameters()} | {
        p: recipe.image_lr for p in model.visual.parameters()
    }
    towers[model.logit_scale] = 0 if recipe.scale_mode == "frozen" else None
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for p, own in towers.items():
        peak = recipe.lr if own is None else own
        p.requires_grad_(peak > 0)
        decay = recipe.weight_decay if recipe.decay_all or p.ndim > 1 else 0.0
        if peak:
            groups.setdefault((peak, decay), []).append(p)
    options = [{"params": p, "peak": peak, "weight_decay": decay} for (peak, decay), p in groups.items()]
    return torch.optim.AdamW(options, lr=recipe.lr, betas=tuple(recipe.betas), fused=True)


# --- one fine-tuning ---


class FineTuning:
    """One fine-tuning under way, on the model's device: modules, optimiser, log, and where they are kept.

    Put together by ``fine_tune``; on its own it makes steps without files (benchmarks): ``advance``.
    """

    def __init__(
        self,
        model: nn.Module,
        tokens: Tensor,
        train: ImageSet,
        recipe: Recipe,
        folder: Path,
        key: str,
        words: Tensor | None = None,
    ) -> None:
        self.recipe, self.folder, self.key, self.train = recipe, folder, key, train
        self.world, self.rank = objectives.world_size(), _rank()
        self.steps, self.step = total_steps(recipe, len(train.dataset)), 0
        self.rows: list[list[float]] = []
        self.waiting: list[tuple[list[float], Tensor]] = []
        self.unreadable: list[str] = []
        self.clock = time.perf_counter()
        model.visual.to(memory_format=torch.channels_last)
        self.model, self.tokens, self.device = model, tokens, model.logit_scale.device
        _train_mode(model)
        needed = recipe.relation > 0 or recipe.wise < 1  # the zero-shot model, later on
        self.frozen = copy.deepcopy(model).eval().requires_grad_(False) if needed else None
        self.words = words if recipe.relation else None
        if recipe.relation:
            with torch.no_grad():
                parts = (part.to(self.device) for part in words.split(512))
                self.frozen_words = torch.cat([Towers(self.frozen, recipe).texts(part) for part in parts])
        self.optimiser = _optimiser(model, recipe)
        self.scaler = torch.amp.GradScaler("cuda", enabled=recipe.precision == "fp16")
        self.towers = Towers(model, recipe)
        if self.world > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            self.towers = nn.parallel.DistributedDataParallel(self.towers, ids, broadcast_buffers=False)

    def loader(self, workers: int) -> DataLoader:
        """Batches of this rank (rows rank * B / world onwards of each) from the present step on."""
        images, recipe = len(self.train.dataset), self.recipe
        steps = range(self.step, self.steps)
        keys = (batch_keys(images, recipe.batch, recipe.seed, step, self.world) for step in steps)
        own = (batch.reshape(self.world, -1)[self.rank] for batch in keys)
        return loader(self.train.dataset, own, recipe.seed, workers, self.device)

    def advance(self, images: Tensor, labels: Tensor) -> None:
        """One optimiser step; the log row waits on the device."""
        recipe = self.recipe
        torch.manual_seed((recipe.seed * SEED_STRIDE + self.step) * self.world + self.rank)
        images = laid_out(images.to(self.device, self.model.logit_scale.dtype, non_blocking=True))
        distinct, inverse = labels.unique(return_inverse=True)  # on the CPU: a GPU would have to end first
        tokens, inverse = self.tokens[distinct], inverse.to(self.device, non_blocking=True)
        drawn = self._draw_words()
        words = self.words[drawn] if len(drawn) else tokens[:0]
        peers = labels.to(self.device, non_blocking=True) if recipe.class_aware else None
        image, text, scale = self.towers(images, torch.cat([tokens, words]).to(self.device))
        pairs, about = text[inverse], text[len(distinct) :]
        parts = objectives.parts(
            recipe.objective,
            image,
            pairs,
            scale,
            lam=recipe.lam,
            labels=peers,
            seed=recipe.seed,
            step=self.step,
        )
        kept = self._relation(images, image, about, drawn) if len(drawn) else torch.zeros_like(parts.loss)
        share = rate(self.step, self.steps, recipe.warmup)
        for group in self.optimiser.param_groups:
            group["lr"] = share * group["peak"]
        self.optimiser.zero_grad()
        self.scaler.scale(parts.loss + recipe.relation * kept).backward()
        self.scaler.unscale_(self.optimiser)
        norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        self.scaler.step(self.optimiser)
        self.scaler.update()
        if recipe.scale_mode == "clamped":
            self.model.logit_scale.data.clamp_(0, MAX_LOG_SCALE)
        epoch = self.step // _batches_per_epoch(len(self.train.dataset), recipe.batch, self.world)
        self.step += 1
        began, self.clock = self.clock, time.perf_counter()
        if self.world > 1 and len(drawn):  # each rank's own images, as the gradient: the log has the mean
            torch.distributed.all_reduce(kept := kept.detach() / self.world)
        logged = (*parts._replace(loss=parts.loss + recipe.relation * kept), kept, norm)
        values = torch.stack([part.detach() for part in logged])
        self.waiting.append(([self.step, epoch, recipe.lr * share, self.clock - began], values))

    def _draw_words(self) -> np.ndarray:
        """Which corpus words the step looks at: a function of (seed, step), alike on every rank; or none."""
        if self.words is None:
            return np.array([], dtype=int)
        rng = np.random.default_rng([self.recipe.seed, self.step])
        return np.sort(rng.permutation(len(self.words))[: self.recipe.relation_words])

    def _relation(self, images: Tensor, image: Tensor, about: Tensor, drawn: np.ndarray) -> Tensor:
        """``objectives.relation`` of this rank's images; a locked image tower is not run again."""
        with torch.no_grad():
            locked = self.recipe.image_lr == 0
            before = image.detach() if locked else Towers(self.frozen, self.recipe).images(images)
        scale = self.frozen.logit_scale.exp()
        return objectives.relation(image, about, before, self.frozen_words[drawn], scale)

    def flush(self) -> None:
        """Read the waiting log rows from the device; UserError as soon as a loss is not finite."""
        for (step, epoch, lr, seconds), values in self.waiting:
            row = values.tolist()
            if not math.isfinite(row[0]):
                raise UserError(f"loss is not finite at step {step}; lower lr or use precision fp32")
            self.rows.append([step, epoch, lr, *row, seconds])
        self.waiting = []
        if self.rank == 0:
            facts = {"step": self.step, "steps": self.steps, "pid": os.getpid()}
            files.atomic_write(self.folder / "progress.json", json.dumps(facts))

    def save(self) -> None:
        """Write state.pt, all that ``resume`` needs; killed while writing, the state before stays whole."""
        if self.rank == 0:
            state = {name: getattr(self, name) for name in STATE}
            state |= {name: getattr(self, name).state_dict() for name in MODULES}
            with _writing(self.folder), files.replacing(self.folder / "state.pt") as aside:
                torch.save(state, aside)

    def resume(self, state: dict) -> None:
        """Continue from a state; what is not in it follows from the step."""
        for name in MODULES:
            getattr(self, name).load_state_dict(state[name])
        for name in STATE:
            setattr(self, name, state[name])

    def loop(self, workers: int, save_every: int, progress: bool, max_unreadable: float) -> None:
        """All steps that remain, with the log, the states and one bar."""
        self.flush()
        images = len(self.train.dataset)
        bar = {"total": self.steps, "initial": self.step, "unit": "step", "disable": not progress}
        with files.progress(desc=self.folder.name, **bar) as shown:
            for pixels, labels, _, unreadable in self.loader(workers):
                self.unreadable += [path for _, path in unreadable]
                too_many(self.unreadable, max_unreadable, images, self.train.name)
                self.advance(pixels, labels)
                saving = self.step % save_every == 0 and self.step < self.steps
                if saving or self.step % FLUSH == 0 or self.step == self.steps:
                    self.flush()
                    shown.set_postfix(loss=f"{self.rows[-1][3]:.3f}", refresh=False)
                if saving:
                    self.save()
                shown.update()

    def finish(self, facts: dict) -> pd.DataFrame:
        """Write model.safetensors, log.parquet, and last card.json, which makes it finished."""
        self.model.eval()
        self.optimiser.zero_grad()
        if self.recipe.wise < 1:
            mixed = self.frozen.state_dict()
            for name, tuned in self.model.state_dict().items():
                if tuned.is_floating_point():
                    tuned.copy_(mixed[name].lerp(tuned, self.recipe.wise))
        log = pd.DataFrame(self.rows, columns=LOG_COLUMNS)
        if self.rank == 0:
            card = {"identity": self.key, "recipe": self.recipe.model_dump(), **facts, "steps": self.steps}
            card |= {"processes": self.world, "unreadable": sorted(set(self.unreadable))}
            card |= {"weights": models.weights_hash(self.model), "last": log.iloc[-1].to_dict()}
            card |= {"seconds": float(log["seconds"].sum()), "provenance": provenance()}
            with _writing(self.folder):
                models.save(self.model, self.folder / "model.safetensors", self.recipe.model)
                with files.replacing(self.folder / "log.parquet") as aside:
                    log.to_parquet(aside)
                card["log"] = files.file_hash(self.folder / "log.parquet")
                files.atomic_write(self.folder / "card.json", json.dumps(card, indent=1))
            for spent in [*self.folder.glob("*state.pt"), self.folder / "progress.json"]:
                spent.unlink(missing_ok=True)
        if self.world > 1:
            torch.distributed.barrier()  # the files are there when any process returns
        return log


def fine_tune(
    model: nn.Module,
    tokenizer: Callable[[list[str]], Tensor],
    train: ImageSet,
    class_texts: list[str],
    recipe: Recipe,
    folder: Path | str,
    *,
    device: str = "cpu",
    save_every: int = 200,
    progress: bool = True,
    workers: int = 0,
    max_unreadable: float = 0.001,
    words: list[str] | None = None,
) -> pd.DataFrame:
    """Fine-tune both towers of ``model`` in place and return the per-step log.

    ``train``: images by key (see ``data.Study``), labels index ``class_texts`` (one prompted text a class).
    ``folder`` gets model.safetensors, log.parquet and card.json; until then state.pt, every ``save_every``
    steps. Called again it resumes there with the same result to the bit, or, if finished, only loads.
    ``words``: prompted corpus words without ID names, needed where ``recipe.relation`` > 0. BatchNorm
    statistics stay frozen. In a ``torch.distributed`` group every rank calls it and rank 0 writes. An
    unreadable image is replaced by the next one and listed in the card.

    Log columns: step (from 1), epoch, lr (of ``recipe.lr``), loss, clip, lse_image, lse_text, positive
    (nats), scale, relation (nats, without its weight), gradient_norm, seconds (wall, with loading). Raises
    UserError: impossible batch, labels or rates, no words for relation, absent CUDA, loss not finite, disk
    full, more than ``max_unreadable`` (a share) of the images unreadable, deterministic after the GPU was
    used without it.
    """
    folder, device = Path(folder), resolve_device(device)
    words = (words or []) if recipe.relation else []
    _check(train, class_texts, recipe, device, words)
    started_from = models.weights_hash(model)
    facts = {"started_from": started_from, "data": train.fingerprint, "class_texts": len(class_texts)}
    key = identity(recipe, started_from, train, class_texts, words)
    kept = [_read(folder, key) if _rank() == 0 else None]
    if objectives.world_size() > 1:
        torch.distributed.broadcast_object_list(kept)  # machines need not share a disk
    state = kept[0] or {}
    if "log" in state:
        model.load_state_dict(state["model"])
        model.eval()
        return state["log"]
    with _writing(folder):
        (folder / "card.json").unlink(missing_ok=True)  # of another recipe: this folder is unfinished now
    aside = torch.random.fork_rng(devices=[device] if device.startswith("cuda") else [])
    with _determinism(recipe.deterministic, device), aside:
        tokens = tokenizer(class_texts), tokenizer(words) if words else None
        run = FineTuning(model.to(device), tokens[0], train, recipe, folder, key, tokens[1])
        if state:
            run.resume(state)
        run.loop(workers, save_every, progress and run.rank == 0, max_unreadable)
        return run.finish(facts)


def _check(train: ImageSet, class_texts: list[str], recipe: Recipe, device: str, words: list[str]) -> None:
    """UserError for what cannot be trained."""
    world, images, texts = objectives.world_size(), len(train.dataset), len(class_texts)
    if recipe.batch % world or recipe.batch < 2 * world:
        fault = f"batch {recipe.batch} is not divided by {world} processes"
        raise UserError(f"{fault}; choose a multiple of {world}, two images a process or more")
    if images < 2 * world:
        raise UserError(f"the training set {train.name!r} has {images} images; it needs at least {2 * world}")
    low, high = np.min(train.labels), np.max(train.labels)
    if low < 0 or high >= texts:
        fault = f"labels of {train.name!r} run from {low} to {high} but there are {texts} class texts"
        raise UserError(f"{fault}; give one text per class")
    if recipe.image_lr == recipe.text_lr == 0:
        raise UserError("image_lr and text_lr are both 0, so nothing would be trained; raise one of them")
    if recipe.relation and len(words) < 2:
        fault = (
            f"relation = {recipe.relation:g} needs corpus words beside the ID names, there are {len(words)}"
        )
        raise UserError(f"{fault}; give another corpus or relation = 0")
    if recipe.precision == "fp16" and not device.startswith("cuda"):
        raise UserError("precision 'fp16' needs CUDA; choose 'bf16' or 'fp32' on the CPU")


@contextmanager
def _determinism(wanted: bool, device: str) -> Iterator[None]:
    """Deterministic algorithms inside, if wanted; UserError where it is too late to ask cuBLAS for them."""
    before = torch.get_deterministic_debug_mode()
    if wanted:
        # cuBLAS reads its setting once, at its first call in a process
        if device.startswith("cuda") and torch.cuda.is_initialized() and CUBLAS not in os.environ:
            fault = "deterministic = true comes too late: this process has used the GPU already"
            remedy = (
                f"set parallel to 1 (trainings in their own process) or {CUBLAS}=:4096:8 in the environment"
            )
            raise UserError(f"{fault}; {remedy}")
        os.environ.setdefault(CUBLAS, ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


# --- what is on disk ---


def identity(recipe: Recipe, start: str, train: ImageSet, class_texts: list[str], words: list[str]) -> str:
    """Hash of all that decides the fine-tuned weights; ``start``: ``models.weights_hash`` of the model."""
    texts = [class_texts, words if recipe.relation else []]
    return files.hash_of([recipe.model_dump(), start, train.fingerprint, *texts])[:16]


def finished(folder: Path, key: str) -> dict | None:
    """The finished fine-tuning of that identity in ``folder``, its "model" and "log"; None where one of its
    three files is missing, foreign, or not as it was written.
    """
    try:
        card = json.loads((folder / "card.json").read_text())
        if card["identity"] != key:
            return None
        log, model = folder / "log.parquet", load_file(folder / "model.safetensors")
        logged = card.get("log") in (None, files.file_hash(log))  # None: of an older version
        whole = logged and models.state_hash(model) == card["weights"]
        return {"model": model, "log": pd.read_parquet(log)} if whole else None
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):  # pyarrow's are OSErrors, ValueErrors
        return None


def _read(folder: Path, key: str) -> dict | None:
    """What there is of this identity: the finished model and log, or the last whole state, or None."""
    if kept := finished(folder, key):
        return kept
    try:
        with ZipFile(folder / "state.pt") as file:
            whole = file.testzip() is None  # torch.load takes flipped bytes without a word
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True) if whole else {}
        return state if state.get("key") == key else None
    except Exception:  # a damaged file raises nearly anything, and the training starts over
        return None


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turns a full or read-only disk into one sentence; what was whole before stays whole."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as fault:  # torch and safetensors have their own errors
        remedy = "free space or choose another folder and run again, the last whole state is kept"
        raise UserError(f"cannot write the fine-tuning to {folder}: {fault}; {remedy}") from None
