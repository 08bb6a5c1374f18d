"""Embedding and fine-tuning: items a second, as a share of the device's matrix-product ceiling.

GlyphCLIP on the CPU in float32, ViT-B/16 (random weights: speed does not depend on them) on CUDA in bf16.
"Resident" rows have their batch on the device, so they show the model's speed alone; the others call the
package's own functions on images in memory, data loader included, and leave out only decoding.
"""

from __future__ import annotations

import tempfile
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode

from .measure import Peak, ceiling, seconds, side_by_side, synchronise
from .record import Row, waiting

if TYPE_CHECKING:
    from ood_utils.config import Recipe

POOL = 64  # different images in memory, served again and again


@dataclass(frozen=True)
class Lane:
    """What is measured on a device."""

    device: str
    model: str
    precision: str
    side: int  # pixels
    batch: int  # images of an embedding batch
    train_batch: int
    images: int  # embedded in the timed pass
    steps: int  # timed training steps

    @property
    def name(self) -> str:
        return f"{self.model}, {self.device}, {self.precision}"


CPU = Lane("cpu", "GlyphCLIP", "fp32", 32, 256, 128, 4096, 10)
CUDA = Lane("cuda", "ViT-B-16-quickgelu", "bf16", 224, 512, 512, 32_768, 30)
PLANNED = {  # rows of the CUDA lane, to be named where there is no CUDA: (what, unit, target)
    "encode": [
        ("encode_images (share: of the matrix-product ceiling)", "images/s", "share >= 0.45"),
        ("encode images, resident batch (share: of the ceiling)", "images/s", ""),
        ("encode_texts (share: of the ceiling)", "texts/s", ""),
        ("encode_images, peak memory above the start", "GB", ""),
    ],
    "train": [
        ("fine_tune (share: of the matrix-product ceiling)", "samples/s", "share >= 0.4"),
        ("one step, resident batch (share: of the ceiling)", "samples/s", ""),
        ("official recipe's plain fp32 loop, resident batch", "samples/s", ""),
        ("one step, resident batch (share: times the plain fp32 loop)", "samples/s", "share >= 4"),
        ("fine_tune, peak memory above the start", "GB", ""),
    ],
}


class Resident(Dataset):
    """``count`` images from a small pool in memory, labels 0 to ``classes`` - 1: nothing to decode."""

    def __init__(self, count: int, side: int, classes: int) -> None:
        self.pool = torch.randn(POOL, 3, side, side, generator=torch.Generator().manual_seed(0))
        self.labels = np.random.default_rng(0).integers(0, classes, count)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int) -> tuple[Tensor, int]:
        return self.pool[key % POOL], int(self.labels[key % len(self)])


def class_texts(model: str) -> list[str]:
    """Prompted ID classes of the model's world."""
    if model == "GlyphCLIP":
        names = (unicodedata.name(chr(code), "").lower() for code in range(0x41, 0x460))
        return [f"a {name}" for name in names if " letter " in name and " with " not in name]
    from open_clip import IMAGENET_CLASSNAMES

    return [f"The nice {name}" for name in IMAGENET_CLASSNAMES]


def flops(function: object) -> int:
    """Floating-point operations of a call; attention is counted by its plain matrix products."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        function()
    return counter.get_total_flops()


def measure(section: str, scale: float, workers: int) -> list[Row]:
    """Rows of ``encode`` or ``train``: the CPU lane here, the CUDA lane here or as rows that wait."""
    lane_rows = encode_rows if section == "encode" else train_rows
    rows = lane_rows(CPU, scale, workers)
    if torch.cuda.is_available():
        return rows + lane_rows(CUDA, scale, workers)
    command = f"python -m benchmarks {section} --workers 12"
    planned = ((f"{CUDA.name}: {what}", unit, target) for what, unit, target in PLANNED[section])
    return rows + [waiting(section, what, unit, target, command) for what, unit, target in planned]


def named(
    section: str, lane: Lane, figures: list[tuple[float, float | None]], best: float, workers: int
) -> list[Row]:
    """Rows of a lane in the order of PLANNED, then the ceiling; targets are set for CUDA alone."""
    command = f"python -m benchmarks {section}" + (f" --workers {workers}" if workers else "")
    rows = []
    for (what, unit, target), (value, share) in zip(PLANNED[section], figures, strict=True):
        target = target if lane.device == "cuda" else ""
        rows.append(Row(section, f"{lane.name}: {what}", value, unit, share, target, command))
    return [
        *rows,
        Row(section, f"{lane.name}: matrix-product ceiling", best / 1e12, "TFLOP/s", None, "", command),
    ]


def encode_rows(lane: Lane, scale: float, workers: int) -> list[Row]:
    """Images and texts a second of ``embeddings``."""
    from ood_utils import embeddings, models

    model, _, tokenizer = models.load(lane.model, "random", lane.device)
    count = max(lane.batch, int(lane.images * scale))
    images, texts = Resident(count, lane.side, 1), class_texts(lane.model)
    texts = [f"{text} {number}" for text in texts for number in range(10)]
    options = {"batch": lane.batch, "device": lane.device, "precision": lane.precision}
    whole = options | {"workers": workers, "progress": False}
    best = ceiling(lane.device, lane.precision != "fp32")
    with Peak(lane.device) as peak:
        embeddings.encode_images(model, Resident(lane.batch, lane.side, 1), **whole)  # chooses kernels
        image_time = seconds(lambda: embeddings.encode_images(model, images, **whole), 2, lane.device)
    embeddings.encode_texts(model, tokenizer, texts, **options)
    text_time = seconds(lambda: embeddings.encode_texts(model, tokenizer, texts, **options), 2, lane.device)
    batch = images.pool[:8].to(lane.device)
    # with gradient, as MHA's fused path is not counted
    image_flops = flops(lambda: model.encode_image(batch)) / len(batch)
    tokens = tokenizer(texts[::97]).to(lane.device)  # each text alone: its own length, no padding counted
    text_flops = np.mean([flops(lambda row=row: models.encode_text(model, row[None])) for row in tokens])
    resident = resident_seconds(model, lane)
    figures = [
        (count / image_time, count / image_time * image_flops / best),
        (lane.batch / resident, lane.batch / resident * image_flops / best),
        (len(texts) / text_time, len(texts) / text_time * text_flops / best),
        (peak.gb, None),
    ]
    return named("encode", lane, figures, best, workers)


def resident_seconds(model: nn.Module, lane: Lane) -> float:
    """Seconds of encoding one batch that lies on the device."""
    batch = torch.randn(lane.batch, 3, lane.side, lane.side, device=lane.device)
    batch = batch.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def encode() -> None:
        with torch.autocast(lane.device, torch.bfloat16, enabled=lane.precision == "bf16"):
            for _ in range(5):
                model.encode_image(batch)

    encode()
    return seconds(encode, 3, lane.device) / 5


def train_rows(lane: Lane, scale: float, workers: int) -> list[Row]:
    """Samples a second of ``training``, and of the official recipe's loop."""
    from ood_utils import models
    from ood_utils.config import Recipe

    texts, steps = class_texts(lane.model), max(2, int(lane.steps * scale))
    recipe = Recipe(batch=lane.train_batch, precision=lane.precision, warmup=1, model=lane.model, lr=1e-5)
    model, _, tokenizer = models.load(lane.model, "random", lane.device)
    best = ceiling(lane.device, lane.precision != "fp32")
    with Peak(lane.device) as peak:
        through = function_seconds(lane, model, tokenizer, texts, recipe, steps, workers)
    with tempfile.TemporaryDirectory() as folder:
        step = resident_step(lane, model, tokenizer, texts, recipe, Path(folder))
        step()
        work = flops(step)
        official = official_step(lane, models.load(lane.model, "random", lane.device)[0], tokenizer(texts))
        official()
        ours, plain = side_by_side(step, official, rounds=max(3, steps // 3), device=lane.device)
    rate = lane.train_batch / np.array([through, ours, plain])
    figures = [
        (rate[0], work / through / best),
        (rate[1], work / ours / best),
        (rate[2], None),
        (rate[1], plain / ours),
        (peak.gb, None),
    ]
    figures = [(float(value), None if share is None else float(share)) for value, share in figures]
    return named("train", lane, figures, best, workers)


def function_seconds(
    lane: Lane,
    model: nn.Module,
    tokenizer: object,
    texts: list[str],
    recipe: Recipe,
    steps: int,
    workers: int,
) -> float:
    """Seconds a step of ``fine_tune`` in the steady state: a longer run less a shorter one (no set-up)."""
    from ood_utils import data, training

    dataset = Resident(max(1, steps) * 4 * lane.train_batch, lane.side, len(texts))
    train = data.ImageSet("resident", "id", dataset, dataset.labels, [""] * len(dataset), "resident")

    def run(count: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            changed = recipe.model_copy(update={"steps": count})
            options = {"device": lane.device, "progress": False, "save_every": 10**9, "workers": workers}
            call = lambda: training.fine_tune(model, tokenizer, train, texts, changed, folder, **options)  # noqa: E731
            return seconds(call, 1, lane.device)

    run(2)  # chooses kernels
    short, long = run(2), run(2 + steps)
    return (long - short) / steps


def resident_step(
    lane: Lane, model: nn.Module, tokenizer: object, texts: list[str], recipe: Recipe, folder: Path
) -> object:
    """A call of ``training``'s own step on one batch that lies on the device."""
    from ood_utils import data, training

    dataset = Resident(lane.train_batch, lane.side, len(texts))
    train = data.ImageSet("resident", "id", dataset, dataset.labels, [""] * len(dataset), "resident")
    tokens = tokenizer(texts)
    run = training.FineTuning(model.to(lane.device), tokens, train, recipe, folder, "benchmark")
    images = torch.randn(lane.train_batch, 3, lane.side, lane.side, device=lane.device)
    labels = torch.from_numpy(dataset.labels)

    def step() -> None:
        run.advance(images, labels)
        run.waiting.clear()  # the log row: reading it is part of the whole function's time
        synchronise(lane.device)

    return step


def official_step(lane: Lane, model: nn.Module, tokens: Tensor) -> object:
    """The step of the official training script: fp32, a text per image at full context, one AdamW group."""
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.1)
    images = torch.randn(lane.train_batch, 3, lane.side, lane.side, device=lane.device)
    labels = torch.from_numpy(Resident(lane.train_batch, lane.side, len(tokens)).labels)
    texts = tokens[labels].to(lane.device)
    target = torch.arange(lane.train_batch, device=lane.device)

    def step() -> None:
        image = F.normalize(model.encode_image(images), dim=-1)
        text = F.normalize(model.encode_text(texts), dim=-1)
        logits = model.logit_scale.exp() * image @ text.T
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        loss = loss - 0.001 * (logits.logsumexp(1).mean() + logits.logsumexp(0).mean()) / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step
