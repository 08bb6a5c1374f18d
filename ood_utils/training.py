"""Fine-tuning of both towers: one function for a notebook, a child process, or every rank under torchrun.

A step is a function of (recipe, step, state): the batch's keys, the m2-Mix draw and the random seed all
follow from (seed, step), so a killed run that is started again ends with the same weights to the bit on the
same machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from tqdm import tqdm

from . import models, objectives
from .embeddings import Tolerant, collate, prompts, resolve_device, too_many
from .errors import UserError
from .files import atomic_write, hash_of, replacing
from .provenance import provenance

if TYPE_CHECKING:
    from .config import Profile
    from .data import ImageSet, Study

MAX_LOG_SCALE = math.log(100)  # CLIP's clamp of the logit scale
LOG_COLUMNS = (*objectives.Parts._fields, "gradient_norm")
FLUSH = 10  # steps between reads of the log from the device: a read waits for the device
SEED_STRIDE = 1_000_003
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
CHOICES = {
    "objective": ("clip", "cma", "m2mix"),
    "scale_mode": ("clamped", "learned", "frozen"),
    "precision": ("fp32", "bf16", "fp16"),
}


@dataclass(frozen=True)
class Recipe:
    """All that decides a fine-tuning besides its data and starting weights; JSON-able.

    ``lam``: CMA's lam in [0, 1], or the weight of the m2-Mix term. ``steps``: optimiser steps, unless
    ``epochs`` > 0. ``batch``: image-text pairs a step, over all processes. ``lr``: peak; ``warmup``: steps of
    linear warm-up. ``decay_all``: weight decay on LayerNorm, biases and logit scale too (paper mode);
    otherwise on matrices only. ``scale_mode``: logit scale learned and clamped at 100, "learned" unclamped
    (paper mode), or "frozen". ``class_aware``: all texts of an image's class are its positives. ``chunk``:
    rows encoded at a time with cached gradients (0 = all; same result, less memory, a third more time).
    ``classes``: ID classes (0 = all). ``deterministic``: only deterministic algorithms, so that a GPU too
    gives the same bits again (slower). Raises UserError naming the field that is out of range. Paper values:
    core_methods 1.4.
    """

    objective: str = "cma"
    lam: float = 0.003
    seed: int = 0
    steps: int = 400
    batch: int = 128
    lr: float = 2e-4
    warmup: int = 40
    weight_decay: float = 0.1
    decay_all: bool = False
    scale_mode: str = "clamped"
    class_aware: bool = False
    chunk: int = 0
    precision: str = "fp32"
    betas: tuple[float, float] = (0.9, 0.999)
    classes: int = 0
    epochs: int = 0
    model: str = "GlyphCLIP"
    deterministic: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise UserError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(known)}")
        if not 0 <= self.lam <= 1:
            raise UserError(f"lam is {self.lam}; give a number from 0 (FLYP) to 1 (pure alignment)")
        least = {
            "steps": 1,
            "batch": 2,
            "warmup": 0,
            "weight_decay": 0,
            "chunk": 0,
            "classes": 0,
            "epochs": 0,
        }
        for name, low in (least | {"seed": 0}).items():
            if getattr(self, name) < low:
                raise UserError(f"{name} is {getattr(self, name)}; give a number of at least {low}")
        if not self.lr > 0:
            raise UserError(f"lr is {self.lr}; give a positive learning rate")

    @classmethod
    def from_profile(cls, profile: Profile, **overrides: object) -> Recipe:
        """The profile's fields of the same names, with changes (objective, lam, seed, classes, ...)."""
        shared = {
            f.name: getattr(profile, f.name) for f in dataclasses.fields(cls) if hasattr(profile, f.name)
        }
        return cls(**(shared | overrides))

    def total_steps(self, images: int) -> int:
        """Optimiser steps on a training set of that many images."""
        return self.epochs * _batches_per_epoch(images, self.batch, 1) if self.epochs else self.steps


# --- which images make up a step ---------------------------------------------------------------------------------


def _batches_per_epoch(images: int, batch: int, world: int) -> int:
    """Whole batches, and the rest as one more unless it is too small to contrast (fewer than 2 a process)."""
    return images // batch + (images % batch >= max(2, world))


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, images: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(images)


def batch_keys(images: int, batch: int, seed: int, step: int, world: int = 1) -> np.ndarray:
    """Keys (epoch * images + index) of a step's global batch: a function of (seed, step).

    Each epoch is a fresh permutation; its last batch is smaller (and a multiple of ``world``, at most world -
    1 images are left out), or missing if fewer than 2 images remain.
    """
    batch = min(batch, images)
    epoch, place = divmod(step, _batches_per_epoch(images, batch, world))
    picked = _order(seed, epoch, images)[place * batch : (place + 1) * batch]
    return epoch * images + picked[: len(picked) // world * world]


class _Batches:
    """Batch sampler of this rank's keys from step ``start`` to ``stop``: rows rank * B / world onwards."""

    def __init__(self, images: int, recipe: Recipe, start: int, stop: int) -> None:
        self.images, self.recipe, self.span = images, recipe, range(start, stop)

    def __len__(self) -> int:
        return len(self.span)

    def __iter__(self) -> Iterator[list[int]]:
        world = objectives.processes()
        rank = torch.distributed.get_rank() if world > 1 else 0
        for step in self.span:
            keys = batch_keys(self.images, self.recipe.batch, self.recipe.seed, step, world)
            yield keys.reshape(world, -1)[rank].tolist()


# --- the two towers ----------------------------------------------------------------------------------------------


class Towers(nn.Module):
    """Both encoders as one module, so that DDP sees one forward: distinct texts encoded once, then indexed.

    forward(images (b, 3, H, W), tokens (u, L), inverse (b,)) -> unit float32 rows image (b, d), text (b, d),
    scale. With ``chunk``, each piece is encoded under ``torch.utils.checkpoint``: no activations are kept,
    the loss is taken on the whole batch, and backward re-encodes piece by piece with the loss's gradient
    ("cached gradients").
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        self.model, self.chunk = model, recipe.chunk
        self.half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(recipe.precision)

    def _image(self, images: Tensor) -> Tensor:
        return self.model.encode_image(images)

    def _text(self, tokens: Tensor) -> Tensor:
        return models.encode_text(self.model, tokens)

    def _encode(self, tower: str, rows: Tensor, size: int) -> Tensor:
        encode = getattr(self, tower)
        if not self.chunk:
            return torch.cat([encode(part) for part in rows.split(size)])
        return torch.cat([checkpoint(encode, part, use_reentrant=False) for part in rows.split(size)])

    def forward(self, images: Tensor, tokens: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # like lengths together: less padding, same result; on CUDA the launches of three groups cost more than that
        order = (tokens != 0).sum(1).argsort(stable=True)
        groups = self.chunk or (max(32, -(-len(tokens) // 3)) if tokens.device.type == "cpu" else len(tokens))
        with torch.autocast(images.device.type, self.half or torch.bfloat16, enabled=self.half is not None):
            # texts first: encode_text waits for the device, which here has little queued
            text = self._encode("_text", tokens[order], groups)[order.argsort()]
            image = self._encode("_image", images, self.chunk or len(images))
        wide = self.model.logit_scale.dtype  # float32, or float64 in tests
        return (
            F.normalize(image.to(wide), dim=-1),
            F.normalize(text.to(wide), dim=-1)[inverse],
            self.model.logit_scale.exp(),
        )


def _train_mode(model: nn.Module) -> None:
    """Training mode, but BatchNorm keeps its statistics: a row's features must not depend on its batch or
    chunk.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def _optimiser(model: nn.Module, recipe: Recipe, steps: int) -> tuple[torch.optim.Optimizer, object]:
    """AdamW with two decay groups, and linear warm-up then cosine to 0, stepped each step."""
    model.logit_scale.requires_grad_(recipe.scale_mode != "frozen")
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if recipe.decay_all or p.ndim > 1]
    plain = [p for p in trained if not (recipe.decay_all or p.ndim > 1)]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    optimiser = torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, fused=True)
    return optimiser, torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: rate(step, steps, recipe.warmup)
    )


def rate(step: int, steps: int, warmup: int) -> float:
    """Share of the peak learning rate at a step: (step + 1) / warmup, then half a cosine down to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _loss(
    recipe: Recipe, step: int, image: Tensor, text: Tensor, scale: Tensor, labels: Tensor
) -> objectives.Parts:
    known = labels if recipe.class_aware else None
    if recipe.objective == "m2mix":
        mix = objectives.draw_mix(recipe.seed, step)
        return objectives.m2mix_parts(image, text, scale, mix, recipe.lam, labels=known)
    return objectives.cma_parts(image, text, scale, recipe.lam if recipe.objective == "cma" else 0.0, known)


# --- state on disk -----------------------------------------------------------------------------------------------


def identity(recipe: Recipe, model: nn.Module, train: ImageSet, class_texts: list[str]) -> str:
    """Hash of all that decides the fine-tuned weights: recipe, starting weights, training images, class
    texts.
    """
    facts = [dataclasses.asdict(recipe), models.weights_hash(model), train.fingerprint, class_texts]
    return hash_of(facts)[:16]


def finished(folder: Path, key: str) -> bool:
    """Whether ``folder`` holds the finished fine-tuning of that identity, its weights file whole."""
    try:
        card = json.loads((folder / "card.json").read_text())
        with safe_open(folder / "model.safetensors", "pt") as file:
            return card["identity"] == key and bool(file.keys()) and (folder / "log.parquet").is_file()
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return False


def _read_finished(folder: Path, key: str) -> tuple[dict[str, Tensor], pd.DataFrame] | None:
    """(weights, log) of a finished fine-tuning of that identity, or None."""
    if not finished(folder, key):
        return None
    return load_file(folder / "model.safetensors"), pd.read_parquet(folder / "log.parquet")


def _read_state(folder: Path, key: str) -> dict | None:
    """The last whole state of this identity with its weights; None if there is none, or a foreign or broken
    one.
    """
    try:
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        return state | {"weights": load_file(folder / state["weights"])} if state["identity"] == key else None
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError, SafetensorError):
        return None


def _from_first(value: object) -> object:
    """Rank 0's object in every process: machines need not share a disk."""
    if objectives.processes() == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box)
    return box[0]


@contextlib.contextmanager
def _determinism(wanted: bool, device: str) -> Iterator[None]:
    """Deterministic algorithms, if wanted, for what is inside; UserError where it is too late to ask cuBLAS
    for them.
    """
    if not wanted:
        yield
        return
    # cuBLAS reads its setting once, at its first call in a process
    if device.startswith("cuda") and torch.cuda.is_initialized() and CUBLAS not in os.environ:
        raise UserError(
            "deterministic = true comes too late: this process has used the GPU already; set parallel to 1 (trainings "
            f"in their own process) or {CUBLAS}=:4096:8 in the environment"
        )
    os.environ.setdefault(CUBLAS, ":4096:8")
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turns a full or read-only disk into one sentence; what was whole before stays whole."""
    try:
        yield
    except (
        OSError,
        SafetensorError,
        RuntimeError,
    ) as fault:  # torch and safetensors have their own disk errors
        for part in folder.glob("*.part"):
            part.unlink(missing_ok=True)
        raise UserError(
            f"cannot write the fine-tuning to {folder}: {fault}; free space or choose another folder and run again, "
            "the last whole state is kept"
        ) from None


# --- the loop ----------------------------------------------------------------------------------------------------


class _Run:
    """One fine-tuning under way: modules, optimiser, log, and where they are kept."""

    def __init__(
        self,
        model: nn.Module,
        tokens: Tensor,
        train: ImageSet,
        recipe: Recipe,
        folder: Path,
        key: str,
        device: str,
    ) -> None:
        self.recipe, self.folder, self.key, self.device, self.train = recipe, folder, key, device, train
        self.world = objectives.processes()
        self.rank = torch.distributed.get_rank() if self.world > 1 else 0
        self.steps, self.step = recipe.total_steps(len(train.dataset)), 0
        self.rows: list[list[float]] = []
        self.waiting: list[tuple[list[float], Tensor]] = []
        self.unreadable: list[str] = []
        self.clock = time.perf_counter()
        model.visual.to(memory_format=torch.channels_last)
        self.model, self.tokens = model.to(device), tokens
        _train_mode(model)
        self.optimiser, self.schedule = _optimiser(model, recipe, self.steps)
        self.scaler = torch.amp.GradScaler("cuda", enabled=recipe.precision == "fp16")
        self.towers = Towers(model, recipe)
        if self.world > 1:
            ids = [torch.device(device).index] if device.startswith("cuda") else None
            self.towers = nn.parallel.DistributedDataParallel(self.towers, ids, broadcast_buffers=False)

    def resume(self, state: dict) -> None:
        """Continue from a state: weights, optimiser, schedule, scaler, log; the rest follows from the step."""
        self.model.load_state_dict(state["weights"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.rows, self.unreadable = state["step"], state["log"], state["unreadable"]

    def loader(self, workers: int) -> DataLoader:
        """Batches of this rank from the present step on."""
        return DataLoader(
            Tolerant(self.train.dataset, substitute=True),
            batch_sampler=_Batches(len(self.train.dataset), self.recipe, self.step, self.steps),
            collate_fn=collate,
            num_workers=workers,
            pin_memory=self.device.startswith("cuda"),
            generator=torch.Generator().manual_seed(self.recipe.seed),
        )

    def advance(self, images: Tensor, labels: Tensor) -> None:
        """One optimiser step; the log row waits on the device."""
        recipe = self.recipe
        torch.manual_seed((recipe.seed * SEED_STRIDE + self.step) * self.world + self.rank)
        images = images.to(self.device, self.model.logit_scale.dtype, non_blocking=True)
        distinct, inverse = labels.unique(
            return_inverse=True
        )  # on the CPU: on a GPU this waits for the device
        tokens, inverse = self.tokens[distinct].to(self.device), inverse.to(self.device, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        image, text, scale = self.towers(
            images.contiguous(memory_format=torch.channels_last), tokens, inverse
        )
        parts = _loss(recipe, self.step, image, text, scale, labels)
        self.optimiser.zero_grad()
        self.scaler.scale(parts.loss).backward()
        self.scaler.unscale_(self.optimiser)
        norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        lr = self.schedule.get_last_lr()[0]
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.schedule.step()
        if recipe.scale_mode == "clamped":
            self.model.logit_scale.data.clamp_(0, MAX_LOG_SCALE)
        epoch = self.step // _batches_per_epoch(len(self.train.dataset), recipe.batch, self.world)
        self.step += 1
        values = torch.stack([part.detach() for part in (*parts, norm)])
        began, self.clock = self.clock, time.perf_counter()
        self.waiting.append(([self.step, epoch, lr, self.clock - began], values))

    def flush(self) -> None:
        """Read the waiting log rows from the device; UserError as soon as a loss is not finite."""
        if self.waiting:
            for (known, _), values in zip(
                self.waiting, torch.stack([v for _, v in self.waiting]).tolist(), strict=True
            ):
                if not math.isfinite(values[0]):
                    raise UserError(
                        f"loss is not finite at step {known[0]}; lower lr (now {self.recipe.lr}) or use precision fp32"
                    )
                self.rows.append([*known[:3], *values, known[3]])
            self.waiting = []
        if self.rank == 0 and self.rows:
            facts = {"step": self.step, "steps": self.steps, "loss": self.rows[-1][3]}
            atomic_write(self.folder / "progress.json", json.dumps(facts))

    def save(self) -> None:
        """Write weights, then the state that names them: killed in between, the state before is still whole."""
        if self.rank:
            return
        weights = f"state-{self.step:06d}.safetensors"
        state = {"identity": self.key, "step": self.step, "weights": weights, "log": self.rows}
        state |= {"optimiser": self.optimiser.state_dict(), "schedule": self.schedule.state_dict()}
        state |= {"scaler": self.scaler.state_dict(), "unreadable": self.unreadable}
        with _writing(self.folder):
            models.save(self.model, self.folder / weights, self.recipe.model)
            with replacing(self.folder / "state.pt") as aside:
                torch.save(state, aside)
        for old in self.folder.glob("state-*.safetensors"):
            if old.name != weights:
                old.unlink()

    def finish(self, facts: dict) -> pd.DataFrame:
        """Write model.safetensors, log.parquet and last card.json, which makes it finished; remove the state."""
        self.model.eval()
        self.optimiser.zero_grad()
        log = _frame(self.rows)
        if self.rank == 0:
            card = {"identity": self.key, "recipe": dataclasses.asdict(self.recipe), **facts}
            card |= {"steps": self.steps, "processes": self.world, "unreadable": sorted(set(self.unreadable))}
            card |= {"weights": models.weights_hash(self.model), "last": log.iloc[-1].to_dict()}
            card |= {"seconds": float(log["seconds"].sum()), "provenance": provenance()}
            with _writing(self.folder):
                models.save(self.model, self.folder / "model.safetensors", self.recipe.model)
                with replacing(self.folder / "log.parquet") as aside:
                    log.to_parquet(aside)
                atomic_write(self.folder / "card.json", json.dumps(card, indent=1))
            for spent in [*self.folder.glob("state*"), self.folder / "progress.json"]:
                spent.unlink(missing_ok=True)
        if self.world > 1:
            torch.distributed.barrier()  # the files are there when any process returns
        return log


def _frame(rows: list[list[float]]) -> pd.DataFrame:
    """The per-step log: step (from 1), epoch, lr, parts of the loss (nats), gradient norm, seconds (wall,
    with loading).
    """
    frame = pd.DataFrame(rows, columns=["step", "epoch", "lr", *LOG_COLUMNS, "seconds"])
    return frame.astype({"step": "int64", "epoch": "int64"})


def _check(train: ImageSet, class_texts: list[str], recipe: Recipe, device: str) -> None:
    """UserError for what cannot be trained."""
    world, images = objectives.processes(), len(train.dataset)
    if recipe.batch % world or recipe.batch < 2 * world:
        raise UserError(
            f"batch {recipe.batch} is not divided by {world} processes; choose a multiple of {world}"
        )
    if images < max(2, 2 * world):
        raise UserError(
            f"the training set {train.name!r} has {images} images; it needs at least {max(2, 2 * world)}"
        )
    labels = np.asarray(train.labels)
    if labels.min() < 0 or labels.max() >= len(class_texts):
        raise UserError(
            f"labels of {train.name!r} run from {labels.min()} to {labels.max()} but there are {len(class_texts)} "
            "class texts; give one text per class"
        )
    if recipe.precision == "fp16" and not device.startswith("cuda"):
        raise UserError("precision 'fp16' needs CUDA; choose 'bf16' or 'fp32' on the CPU")


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
) -> pd.DataFrame:
    """Fine-tune both towers of ``model`` in place and return the per-step log.

    ``train``: images by key (see ``data.Study``), labels index ``class_texts`` (one prompted text a class).
    ``folder`` gets model.safetensors, log.parquet and card.json; while unfinished also state.pt and its
    weights, every ``save_every`` steps. Called again it resumes there with the same result to the bit, or, if
    finished, only loads. BatchNorm statistics stay frozen. Under torchrun (``train.main`` starts the process
    group) every rank calls it and rank 0 writes. An unreadable image is replaced by the next one and listed
    in the card.

    Log columns: step, epoch, lr, loss, clip, lse_image, lse_text, positive, scale, gradient_norm, seconds.
    Raises UserError: impossible batch or labels, absent CUDA, loss not finite, disk full, more than
    ``max_unreadable`` (a share) of the images unreadable, deterministic after the GPU was used without it.
    """
    folder, device = Path(folder), resolve_device(device)
    _check(train, class_texts, recipe, device)
    facts = {
        "started_from": models.weights_hash(model),
        "data": train.fingerprint,
        "class_texts": len(class_texts),
    }
    key = identity(recipe, model, train, class_texts)
    rank = torch.distributed.get_rank() if objectives.processes() > 1 else 0
    done = _from_first(_read_finished(folder, key) if not rank else None)
    if done is not None:
        model.load_state_dict(done[0])
        model.eval()
        return done[1]
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "card.json").unlink(
            missing_ok=True
        )  # of another recipe: from here on this folder is unfinished
    state = _from_first(None if rank else _read_state(folder, key))
    aside = torch.random.fork_rng(devices=[device] if device.startswith("cuda") else [])
    with _determinism(recipe.deterministic, device), aside:
        run = _Run(model, tokenizer(class_texts), train, recipe, folder, key, device)
        if state is not None:
            run.resume(state)
        _loop(run, workers, save_every, progress and rank == 0, max_unreadable)
        return run.finish(facts)


def _bar(shown: bool, **options: object) -> tqdm:
    """A live bar on a terminal; elsewhere plain text on standard output, at most one update every 5 seconds."""
    live = sys.stderr.isatty()
    place = {"file": sys.stderr if live else sys.stdout, "mininterval": 0.1 if live else 5.0}
    return tqdm(disable=not shown, **place, **options)


def _loop(run: _Run, workers: int, save_every: int, progress: bool, max_unreadable: float) -> None:
    images = len(run.train.dataset)
    with _bar(progress, total=run.steps, initial=run.step, unit="step", desc=run.folder.name) as bar:
        for pixels, labels, _, unreadable in run.loader(workers):
            run.unreadable += [path for _, path in unreadable]
            too_many(run.unreadable, max_unreadable, images, run.train.name)
            run.advance(pixels, labels)
            saving = run.step % save_every == 0 and run.step < run.steps
            if saving or run.step % FLUSH == 0 or run.step == run.steps:
                run.flush()
                bar.set_postfix(loss=f"{run.rows[-1][3]:.3f}", refresh=False)
            if saving:
                run.save()
            bar.update()


# --- what a study trains -----------------------------------------------------------------------------------------


def plan(profile: Profile, lam: float | None = None) -> pd.DataFrame:
    """The fine-tunings of a study, one row each: role, method, seed, classes, lam, tag.

    Without ``lam`` the sweep: every lam of the profile with the first seed. With the chosen ``lam`` all there
    is: "headline" (zero-shot, and FLYP and CMA with every seed), "few classes" (both on profile.few_classes
    classes) and what else the sweep trained. lam = 0 is FLYP.
    """
    rows, first = [], profile.seeds[0]
    if lam is not None:
        rows.append(("headline", "zero-shot", 0, 0, float("nan")))
        rows += [
            ("headline", name, s, 0, x) for name, x in (("FLYP", 0.0), ("CMA", lam)) for s in profile.seeds
        ]
        if profile.few_classes:
            rows += [
                ("few classes", name, first, profile.few_classes, x)
                for name, x in (("FLYP", 0.0), ("CMA", lam))
            ]
    rows += [
        ("sweep", f"CMA, lam {x:g}" if x else "FLYP", first, 0, x)
        for x in profile.lams
        if lam is None or x not in (0, lam)
    ]
    frame = pd.DataFrame(rows, columns=["role", "method", "seed", "classes", "lam"])
    frame["tag"] = [
        "zero-shot" if row.method == "zero-shot"
        else f"lam{row.lam:g}_seed{row.seed}" + (f"_classes{row.classes}" if row.classes else "")
        for row in frame.itertuples()
    ]  # fmt: skip
    return frame


def planned_jobs(planned: pd.DataFrame, profile: Profile) -> list[tuple[str, Recipe]]:
    """(tag, recipe) of every fine-tuning of a ``plan``, for ``fine_tune_many``."""
    return [
        (
            row.tag,
            Recipe.from_profile(
                profile,
                objective="cma" if row.lam else "clip",
                lam=row.lam,
                seed=row.seed,
                classes=row.classes,
            ),
        )
        for row in planned[planned.method != "zero-shot"].itertuples()
    ]


def carry_out(planned: pd.DataFrame, profile: Profile, folder: Path, **options: object) -> pd.DataFrame:
    """Run every fine-tuning of a ``plan`` that is not done yet; the plan with ``weights``, paths below
    ``folder``.

    The zero-shot row keeps the profile's own weights. Options and errors as ``fine_tune_many``.
    """
    jobs = planned_jobs(planned, profile)
    places = fine_tune_many(jobs, profile, folder / "checkpoints", **options)
    weights = {tag: str((place / "model.safetensors").relative_to(folder)) for tag, place in places.items()}
    return planned.assign(weights=[weights.get(tag, profile.pretrained) for tag in planned.tag])


# --- many at once ------------------------------------------------------------------------------------------------


def fine_tune_many(
    jobs: Sequence[tuple[str, Recipe]],
    profile: Profile,
    folder: Path | str,
    *,
    study: Study | None = None,
    model: nn.Module | None = None,
    save_every: int = 50,
    progress: bool = True,
) -> dict[str, Path]:
    """Run independent fine-tunings side by side; returns tag -> folder of the finished fine-tuning.

    With ``profile.processes`` > 1 one torchrun of that size takes the jobs in turn, whatever ``parallel``
    says. Otherwise ``profile.parallel`` child processes share them: of one thread each on the CPU, one child
    on a GPU, or with 0 this process. A child serves several jobs, so that data and libraries are loaded once.
    Finished jobs are skipped by identity: here for jobs on all classes if ``study`` and the starting
    ``model`` are given, otherwise by the child. Interrupted or failed, the children are ended and the next
    call resumes. Raises UserError (or RuntimeError for a crash) with the last lines of the failing child's
    log.
    """
    folder = Path(folder)
    places = {tag: folder / tag for tag, _ in jobs}
    if len(places) < len(jobs):
        raise UserError("two fine-tunings have the same tag; give each its own")
    pending = [
        (tag, recipe) for tag, recipe in jobs if not _known_done(recipe, places[tag], profile, study, model)
    ]
    if pending:
        _run_lanes(pending, profile, folder, save_every, progress)
    return places


def study_of(job: dict[str, Any], studies: dict[str, Study]) -> tuple[Profile, Recipe, Study]:
    """What a job file of ``fine_tune_many`` asks for; ``studies`` keeps what was loaded for earlier jobs."""
    from . import data
    from .config import make_profile

    profile, recipe = make_profile(job["profile"], "the job's profile"), Recipe(**job["recipe"])
    wanted = f"{profile.key()}-{recipe.classes}"
    if wanted not in studies:
        studies[wanted] = data.load(profile, recipe.classes)
    return profile, recipe, studies[wanted]


def run_job(job: dict[str, Any], studies: dict[str, Study]) -> None:
    """One fine-tuning of ``fine_tune_many``, from the profile's starting weights."""
    profile, recipe, study = study_of(job, studies)
    model, _, tokenizer = models.load(profile.model, profile.pretrained)
    fine_tune(
        model,
        tokenizer,
        study.train,
        prompts(profile.prompt, study.class_names),
        recipe,
        job["folder"],
        device=profile.device,
        save_every=job["save_every"],
        workers=profile.workers,
        max_unreadable=profile.max_unreadable,
    )
    del model
    give_back_memory()


def _known_done(
    recipe: Recipe, place: Path, profile: Profile, study: Study | None, model: nn.Module | None
) -> bool:
    if study is None or model is None or recipe.classes:
        return False
    return finished(place, identity(recipe, model, study.train, prompts(profile.prompt, study.class_names)))


def _start_lane(
    number: int, files: list[Path], profile: Profile, folder: Path, forks: int = 1
) -> subprocess.Popen:
    """One child that takes these job files, ``forks`` at a time; it ends when this process closes its input
    or dies.
    """
    command = [sys.executable, "-m"]
    if profile.processes > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(profile.processes), "-m"]
    command += ["ood_utils.train", "--watch", "--forks", str(forks), "--job", *map(str, files)]
    package = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([package, os.environ.get("PYTHONPATH", "")])}
    if resolve_device(profile.device) == "cpu":
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    with open(folder / f"lane-{number}.log", "w") as log:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
        )


def _run_lanes(
    pending: list[tuple[str, Recipe]], profile: Profile, folder: Path, save_every: int, progress: bool
) -> None:
    files, described = folder / "jobs", []
    for tag, recipe in pending:
        job = {"profile": profile.model_dump(mode="json"), "recipe": dataclasses.asdict(recipe)}
        described.append(job | {"folder": str((folder / tag).resolve()), "save_every": save_every})
    if profile.processes == 1 and profile.parallel == 0:
        studies: dict[str, Any] = {}
        for job in described:
            run_job(job, studies)
        return
    with _writing(folder):
        files.mkdir(parents=True, exist_ok=True)
        for (tag, _), job in zip(pending, described, strict=True):
            (files / f"{tag}.json").write_text(json.dumps(job))
    alone = profile.processes > 1 or resolve_device(profile.device) != "cpu"
    count = 1 if alone else max(1, min(profile.parallel, len(pending)))
    forks = (
        count if sys.platform == "linux" else 1
    )  # forked lanes share libraries and data: 0.8 GB less for two
    tags = [[tag for tag, _ in pending[lane :: count // forks]] for lane in range(count // forks)]
    give_back_memory()
    lanes = [
        _start_lane(n, [files / f"{tag}.json" for tag in lane], profile, folder, forks)
        for n, lane in enumerate(tags)
    ]
    try:
        _watch(lanes, tags, folder, progress)
    finally:
        for lane in lanes:
            _end(lane)


def give_back_memory() -> None:
    """Return to the system what this process no longer needs: glibc would keep it while other processes want
    it.
    """
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def _watch(lanes: list[subprocess.Popen], tags: list[list[str]], folder: Path, progress: bool) -> None:
    """One bar over all jobs until every lane has ended well; raises with a failing lane's last lines."""
    everything = [tag for lane in tags for tag in lane]
    form = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} [{elapsed}<{remaining}]"
    with _bar(progress, total=len(everything), desc="fine-tunings", bar_format=form) as bar:
        while True:
            states = [lane.poll() for lane in lanes]
            bar.update(sum(_share(folder / tag) for tag in everything) - bar.n)
            for number, state in enumerate(states):
                if state:
                    raise _failure(folder / f"lane-{number}.log", state)
            if all(state == 0 for state in states):
                return
            time.sleep(0.2)


def _share(place: Path) -> float:
    """How much of a job is done, 0 to 1."""
    try:
        facts = json.loads((place / "progress.json").read_text())
        return facts["step"] / facts["steps"]
    except (OSError, ValueError, KeyError):
        return float((place / "card.json").exists())


def _failure(log: Path, state: int) -> Exception:
    lines = log.read_text(errors="replace").strip().splitlines()
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if said:
        return UserError(said[-1])
    return RuntimeError(
        f"a fine-tuning ended with status {state}; the last lines of {log}:\n" + "\n".join(lines[-15:])
    )


def _end(lane: subprocess.Popen) -> None:
    """End a child and its own children, gently first."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if lane.poll() is None:
            os.killpg(lane.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                lane.wait(10)
    lane.stdin.close()
