"""Pretrain GlyphCLIP on all named glyphs: ``ood pretrain --help``. CPU or GPU."""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer, bytes_to_unicode
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from .. import embeddings, geometry, models
from ..data import glyph_sets
from ..data import glyph_world as glyphs
from ..errors import UserError
from ..files import atomic_write, replacing
from ..provenance import provenance
from ..store import OUTPUTS

BATCH = 256  # image-text pairs a step
TEMPLATES = ("{}", "a {}", "the nice {}", "an image of a {}")
LETTER_WEIGHT = 0.8  # how often an ID letter's drawing is shown beside any other: leaves fine-tuning a task
PARTIAL = 0.65  # share of captions that lose words: information imbalance makes the gap (Schrodi et al. 2025)
MISMATCHED = 0.1  # share of captions that are another image's: caps confidence, as on the web
# Weight of the text-to-image half of the loss. The other half cannot see an offset that an image shares with
# all texts, this one fights it: at 0 the offset grows beyond real CLIP's, at 0.002 it falls far below.
TEXT_TO_IMAGE = 1.5e-4
LOGGED = ("step", "loss", "top1", "centroid_gap", "offset_ratio", "correlation", "negative_sd")


def vocabulary() -> list[int]:
    """Ids of open_clip's BPE that glyph names and templates need, and all single bytes; sorted."""
    bpe, more = SimpleTokenizer(), "a photo of this is drawing without no not containing"
    texts = [*glyphs.world().names, *TEMPLATES, more]
    needed = {code for text in texts for code in bpe.encode(text.replace("{}", ""))}
    return sorted(needed | {bpe.encoder[c] for c in bytes_to_unicode().values()})


class Batches:
    """Views and captions of random drawings of the training faces; a function of (seed, step)."""

    def __init__(self, tokenizer: models.GlyphTokenizer, batch: int, seed: int) -> None:
        self.batch, self.seed, self.world = batch, seed, glyphs.world()
        self.pool = self.world.pick(range(len(self.world.names)), glyphs.TRAIN_FACES)
        self.clutter = self.world.alphas[self.pool]
        letters = [c for group in glyphs.concepts().classes for c in group]
        weight = np.where(np.isin(self.world.character[self.pool], letters), LETTER_WEIGHT, 1.0)
        self.weight = weight / weight.sum()
        self.words = [[tokenizer.encode(w) for w in name.split()] for name in self.world.names]
        self.heads = [tokenizer.encode(template.replace("{}", "")) for template in TEMPLATES]
        self.ends = tokenizer.sot_token_id, tokenizer.eot_token_id

    def __call__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(images (batch, 3, SIDE, SIDE) in [-1, 1], tokens (batch, longest)) of a step."""
        rng, keys = np.random.default_rng([self.seed, step]), np.arange(self.batch) + step * self.batch
        chosen = self.pool[rng.choice(len(self.pool), self.batch, p=self.weight)]
        images = glyphs.views(self.world.alphas[chosen], self.clutter, keys, self.seed)
        told, mismatched = self.world.character[chosen], rng.random(self.batch) < MISMATCHED
        told = np.where(mismatched, np.roll(told, 1), told)
        captions = [torch.tensor(self._caption(c, rng)) for c in told]
        return (images - 0.5) / 0.5, pad_sequence(captions, batch_first=True)

    def _caption(self, character: int, rng: np.random.Generator) -> list[int]:
        """Tokens of a random caption; a share of them loses words at random, as captions on the web do."""
        words = self.words[character]
        if rng.random() < PARTIAL and len(words) > 1:
            keep = rng.random(len(words)) < 0.5
            keep[rng.integers(len(words))] = True
            words = [w for w, k in zip(words, keep, strict=True) if k]
        return [self.ends[0], *self.heads[rng.integers(len(self.heads))], *sum(words, []), self.ends[1]]


def _loss(model: torch.nn.Module, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """CLIP loss, its halves weighted, at a logit scale of 100; texts go in four groups of like length."""
    with torch.autocast(images.device.type, torch.bfloat16):
        image = model.encode_image(images)
    order = tokens.argmax(-1).argsort()
    text = torch.cat([models.encode_text(model, tokens[group]) for group in order.chunk(4)])[order.argsort()]
    logits = 100 * F.normalize(image.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
    own = torch.arange(len(logits), device=logits.device)
    return F.cross_entropy(logits, own) + TEXT_TO_IMAGE * F.cross_entropy(logits.T, own)


@torch.no_grad()
def calibration(
    model: torch.nn.Module, tokenizer: models.GlyphTokenizer, faces: tuple[str, ...]
) -> dict[str, float]:
    """What GlyphCLIP is calibrated by, on ID images alone (two views of a drawing in each of ``faces``).

    Zero-shot accuracy, the gap, and ``geometry.logit_structure`` with every word that names no ID class.
    """
    device = str(model.logit_scale.device)
    world, known = glyphs.world(), glyphs.concepts()
    first = [group[0] for group in known.classes]
    drawings = np.repeat(world.pick(first, faces), 2)
    labels = np.array([first.index(c) for c in world.character[drawings]])
    images = glyph_sets.drawn("calibration", "id", drawings, labels, seed=1)
    image = embeddings.encode_images(model, images.dataset, device=device, progress=False)
    named = {c for group in (*known.classes, *known.twins) for c in group}
    words = [*first, *(c for c in range(len(world.names)) if c not in named)]
    texts = [f"a {world.names[c]}" for c in words]
    encoded = embeddings.encode_texts(model, tokenizer, texts, device=device)
    text, others = np.split(encoded, [len(first)])
    top = np.argsort(-image @ text.T, axis=1)[:, :5]
    return {
        "top1": float((top[:, 0] == labels).mean()),
        "top5": float((top == labels[:, None]).any(1).mean()),
        "centroid_gap": geometry.centroid_gap(image, text[labels]),
        "matched_cosine": float((image * text[labels]).sum(-1).mean()),
        **geometry.logit_structure(image, text, others),
        "images": len(labels),
    }


class _Pretraining:
    """A model, its optimiser (AdamW, biases and norms not decayed), schedule and log; saved and resumed."""

    def __init__(self, steps: int, lr: float, seed: int, checkpoint: Path | None, device: str) -> None:
        torch.manual_seed(seed)
        self.model = open_clip.create_model("GlyphCLIP", device=device).to(memory_format=torch.channels_last)
        self.model.logit_scale.requires_grad_(False)
        weights = [p for p in self.model.parameters() if p.requires_grad]
        decayed = {"params": [p for p in weights if p.ndim > 1], "weight_decay": 0.1}
        plain = {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0}
        self.optimiser = torch.optim.AdamW([decayed, plain], lr=lr, betas=(0.9, 0.98))
        self.rate = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser, lambda s: min((s + 1) / 500, 0.5 * (1 + math.cos(math.pi * min(1, s / steps))))
        )
        self.checkpoint, self.step, self.log = checkpoint, 0, []
        self.parts = {"model": self.model, "optimiser": self.optimiser, "rate": self.rate}
        if checkpoint and checkpoint.exists():
            state = torch.load(checkpoint, weights_only=True, map_location=device)
            self.step, self.log = state["step"], state["log"]
            for name, part in self.parts.items():
                part.load_state_dict(state[name])

    def advance(self, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """One optimiser step on a batch; returns the loss."""
        device = self.model.logit_scale.device
        self.model.train()
        loss = _loss(self.model, images.to(device, memory_format=torch.channels_last), tokens.to(device))
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.rate.step()
        self.step += 1
        return loss.detach()

    def note(self, row: dict[str, float]) -> None:
        """Log and print a row; write the checkpoint, whole or not at all."""
        self.log.append(row)
        tqdm.write(json.dumps(row))
        if self.checkpoint:
            state = {name: part.state_dict() for name, part in self.parts.items()}
            with replacing(self.checkpoint) as aside:
                torch.save(state | {"step": self.step, "log": self.log}, aside)


def pretrain(
    steps: int,
    lr: float = 1e-3,
    seed: int = 0,
    checkpoint: Path | None = None,
    device: str = "cpu",
    stop_at: int = 0,
    batch: int = BATCH,
    log_every: int = 500,
) -> tuple[torch.nn.Module, list[dict[str, float]]]:
    """Train GlyphCLIP from scratch with the CLIP loss at a fixed logit scale of 100; returns (model, log).

    A checkpoint is written every ``log_every`` steps and resumed from; ``stop_at`` > 0 ends there, as an
    interruption would.
    """
    tokenizer = models.GlyphTokenizer()
    run, batches = _Pretraining(steps, lr, seed, checkpoint, device), Batches(tokenizer, batch, seed)
    began, todo = time.time(), range(run.step, stop_at or steps)
    for step in tqdm(todo, initial=run.step, total=steps, unit="step", mininterval=10):
        loss = run.advance(*batches(step))
        if run.step % log_every == 0 or run.step == steps:
            row = {"step": run.step, "loss": loss.item(), "seconds": time.time() - began}
            run.note(row | calibration(run.model, tokenizer, glyphs.VALIDATION_FACES))
    return run.model.eval(), run.log


def card(model: torch.nn.Module, log: list[dict[str, float]], options: argparse.Namespace) -> dict[str, Any]:
    """The model card: data, recipe, seed, commit, hardware, minutes, hash, accuracy on unseen faces."""
    tokenizer, facts = models.GlyphTokenizer(), provenance()
    faces = {"validation_faces": glyphs.VALIDATION_FACES, "test_faces": glyphs.TEST_FACES}
    minutes = round(log[-1]["seconds"] / 60, 1)
    return {
        "model": "GlyphCLIP",
        "data": f"all named glyphs, {len(glyphs.TRAIN_FACES)} training faces (docs/DATASHEET.md)",
        "recipe": {
            "steps": options.steps, "stopped_at": log[-1]["step"], "batch": BATCH,
            "optimiser": "AdamW (0.9, 0.98), decay 0.1", "lr": options.lr, "schedule": "500 warm-up, cosine",
            "logit_scale": 100, "partial_captions": PARTIAL, "letter_weight": LETTER_WEIGHT,
            "mismatched_captions": MISMATCHED, "text_to_image_weight": TEXT_TO_IMAGE,
            "templates": TEMPLATES, "image_tower_precision": "bf16",
        },
        "seed": options.seed,
        "commit": facts["commit"],
        "hardware": options.hardware or facts["machine"],
        "minutes": {"CPU, 1 thread (shared machine)": minutes, "GPU": "not yet measured"},
        "weights_hash": models.weights_hash(model),
        "parameters": sum(p.numel() for p in model.parameters()),
        "calibrated_to_real_clip": models.real_clip().reset_index().to_dict("records"),
        "calibration": {part: calibration(model, tokenizer, chosen) for part, chosen in faces.items()},
        "log": [{k: row[k] for k in LOGGED} for row in log],
    }  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Train (resuming from the checkpoint); ``--install`` makes the result the package's model (float16) and
    writes its card, measured on what was written.
    """
    parser = argparse.ArgumentParser(
        prog="ood pretrain", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add, place = parser.add_argument, OUTPUTS / "pretrain" / "checkpoint.pt"
    add("--steps", type=int, default=4_500, help=f"optimiser steps of {BATCH} image-text pairs")
    add("--stop-at", type=int, default=0, help="stop there, mid-schedule; 0 = at the end")
    add("--lr", type=float, default=1e-3, help="peak learning rate of AdamW")
    add("--seed", type=int, default=0, help="of weights, batches, captions and views")
    add("--checkpoint", type=Path, default=place, help="written and resumed")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    add("--threads", type=int, default=0, help="CPU threads, 0 = torch's choice")
    add("--hardware", default="", help="what to call this machine in the card")
    add("--install", action="store_true", help="write weights and card into the package")
    options = parser.parse_args(argv)
    allowed = {
        "steps": (1, 1e9),
        "stop_at": (0, 1e9),
        "lr": (1e-9, 1),
        "seed": (0, 2**32 - 1),
        "threads": (0, 1024),
    }
    for name, (low, high) in allowed.items():
        if not low <= (given := getattr(options, name)) <= high:
            name = name.replace("_", "-")
            raise UserError(f"--{name} {given} is refused: give {low:g} or more, at most {high:g}")
    options.device = embeddings.resolve_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    names = ("steps", "lr", "seed", "checkpoint", "device", "stop_at")
    model, log = pretrain(**{name: getattr(options, name) for name in names})
    if options.install:
        models.save(model.to("cpu"), models.GLYPH_WEIGHTS, "GlyphCLIP", half=True)
        facts = json.dumps(card(models.load()[0], log, options), indent=1)
        atomic_write(models.ASSETS / "GlyphCLIP.card.json", facts + "\n")


if __name__ == "__main__":
    main()
