"""Pretrain GlyphCLIP on all named glyphs: ``python -m ood_utils.pretrain --help``. CPU or GPU."""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer, bytes_to_unicode
from tqdm import tqdm

from . import models
from .data import glyph_world as glyphs
from .files import atomic_write
from .provenance import provenance
from .store import OUTPUTS

TEMPLATES = ("{}", "a {}", "the nice {}", "an image of a {}")
LETTER_WEIGHT = (
    0.5  # how often an ID letter's drawing is shown beside any other: leaves fine-tuning something to learn
)
PARTIAL = 0.7  # share of captions that lose words: information imbalance makes the gap (Schrodi et al. 2025)


def vocabulary() -> list[int]:
    """Ids of open_clip's BPE that glyph names and templates need, and all single bytes; sorted."""
    bpe = SimpleTokenizer()
    needed = {bpe.encoder[c] for c in bytes_to_unicode().values()}
    for text in [*glyphs.world().names, *TEMPLATES]:
        needed.update(bpe.encode(text.replace("{}", "")))
    needed.update(bpe.encode("a photo of this is drawing without no not containing"))
    return sorted(needed)


class Captions:
    """Captions of glyphs as tokens; half of them lose words at random, as captions on the web do."""

    def __init__(self, tokenizer: models.GlyphTokenizer, names: tuple[str, ...], partial: float) -> None:
        self.words = [[tokenizer.encode(w) for w in name.split()] for name in names]
        self.heads = [
            [c for w in t.replace("{}", "").split() for c in tokenizer.encode(w)] for t in TEMPLATES
        ]
        self.ends, self.partial = (tokenizer.sot_token_id, tokenizer.eot_token_id), partial

    def __call__(self, characters: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
        """Tokens (n, longest) of one random caption for each character."""
        rows = []
        for character in characters:
            words = self.words[character]
            if rng.random() < self.partial and len(words) > 1:
                keep = rng.random(len(words)) < 0.5
                keep[rng.integers(len(words))] = True
                words = [w for w, k in zip(words, keep, strict=True) if k]
            head = self.heads[rng.integers(len(self.heads))]
            rows.append([self.ends[0], *head, *[c for w in words for c in w], self.ends[1]])
        tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for row, codes in zip(tokens, rows, strict=True):
            row[: len(codes)] = torch.tensor(codes)
        return tokens


def _texts_by_length(model: torch.nn.Module, tokens: torch.Tensor, parts: int = 4) -> torch.Tensor:
    """Text features of a batch, encoded in ``parts`` groups of like length (less padding, same result)."""
    order = tokens.argmax(-1).argsort()
    features = torch.cat([models.encode_text(model, tokens[group]) for group in order.chunk(parts)])
    return features[order.argsort()]


@torch.no_grad()
def calibration(
    model: torch.nn.Module, tokenizer: models.GlyphTokenizer, faces: tuple[str, ...]
) -> dict[str, float]:
    """Zero-shot accuracy on the ID classes (one view of each canonical drawing in ``faces``) and the centroid
    gap.
    """
    model.eval()
    world, classes = glyphs.world(), glyphs.concepts().classes
    first = [group[0] for group in classes]
    picked = np.repeat(world.pick(first, faces), 2)
    labels = torch.tensor([first.index(c) for c in world.character[picked]])
    pool = world.alphas[world.pick(range(len(world.names)), glyphs.TRAIN_FACES)]
    images = glyphs.views(world.alphas[picked], pool, range(len(picked)), seed=1)
    device = next(model.parameters()).device
    image = F.normalize(model.encode_image((images.to(device) - 0.5) / 0.5), dim=-1)
    text = F.normalize(
        models.encode_text(model, tokenizer([f"a {world.names[c]}" for c in first]).to(device)), dim=-1
    )
    top = (image @ text.T).topk(5).indices.cpu()
    matched = text[labels.to(device)]
    return {
        "top1": (top[:, 0] == labels).float().mean().item(),
        "top5": (top == labels[:, None]).any(1).float().mean().item(),
        "centroid_gap": (image.mean(0) - matched.mean(0)).norm().item(),
        "matched_cosine": (image * matched).sum(-1).mean().item(),
        "images": len(labels),
    }


def pretrain(
    steps: int = 4_000,
    batch: int = 256,
    lr: float = 1e-3,
    seed: int = 0,
    partial: float = PARTIAL,
    checkpoint: Path | None = None,
    device: str = "cpu",
    log_every: int = 500,
    stop_at: int = 0,
) -> tuple[torch.nn.Module, list[dict[str, float]]]:
    """Train GlyphCLIP from scratch with the CLIP loss at a fixed logit scale of 100; returns (model, log).

    ``partial``: share of captions that lose words. A checkpoint is written every ``log_every`` steps and
    resumed from; ``stop_at`` > 0 ends there, as an interruption would.
    """
    torch.manual_seed(seed)
    world, tokenizer = glyphs.world(), models.GlyphTokenizer()
    model = open_clip.create_model("GlyphCLIP", device=device).to(memory_format=torch.channels_last)
    model.logit_scale.requires_grad_(False)
    captions = Captions(tokenizer, world.names, partial)
    pool = world.pick(range(len(world.names)), glyphs.TRAIN_FACES)
    letters = {c for group in glyphs.concepts().classes for c in group}
    weight = np.where([c in letters for c in world.character[pool]], LETTER_WEIGHT, 1.0)
    weight /= weight.sum()
    decay = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda s: min((s + 1) / 500, 0.5 * (1 + math.cos(math.pi * min(1, s / steps))))
    )
    log, start = [], 0
    if checkpoint and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        rate.load_state_dict(state["rate"])
        start, log = state["step"], state["log"]
    diagonal, began = torch.arange(batch, device=device), time.time()
    for step in tqdm(range(start, stop_at or steps), initial=start, total=steps, unit="step", mininterval=10):
        model.train()
        rng = np.random.default_rng([seed, step])
        chosen = pool[rng.choice(len(pool), batch, p=weight)]
        images = glyphs.views(
            world.alphas[chosen], world.alphas[pool], range(step * batch, (step + 1) * batch), seed
        )
        tokens = captions(world.character[chosen], rng).to(device)
        with torch.autocast(device, torch.bfloat16):
            image = model.encode_image(((images - 0.5) / 0.5).to(device, memory_format=torch.channels_last))
        text = _texts_by_length(model, tokens)
        logits = 100 * F.normalize(image.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
        loss = (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        rate.step()
        if (step + 1) % log_every == 0 or step + 1 == steps:
            row = {"step": step + 1, "loss": loss.item(), "seconds": time.time() - began}
            row |= calibration(model, tokenizer, glyphs.VALIDATION_FACES)
            log.append(row)
            tqdm.write(json.dumps(row))
            if checkpoint:
                state = {
                    "model": model.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "rate": rate.state_dict(),
                }
                torch.save(state | {"step": step + 1, "log": log}, f"{checkpoint}.part")
                os.replace(f"{checkpoint}.part", checkpoint)
    return model.eval(), log


def card(
    model: torch.nn.Module, log: list[dict[str, float]], options: argparse.Namespace
) -> dict[str, object]:
    """The model card's facts: data, recipe, seed, commit, hardware, minutes, hash, calibration on unseen
    faces.
    """
    tokenizer, facts = models.GlyphTokenizer(), provenance()
    return {
        "model": "GlyphCLIP",
        "data": f"all named glyphs, {len(glyphs.TRAIN_FACES)} training faces (docs/DATASHEET.md)",
        "recipe": {
            "steps": options.steps, "stopped_at": log[-1]["step"], "batch": 256, "optimiser": "AdamW (0.9, 0.98), decay 0.1",
            "lr": options.lr, "schedule": "500 warm-up, cosine", "logit_scale": 100, "partial_captions": PARTIAL,
            "letter_weight": LETTER_WEIGHT, "templates": TEMPLATES, "image_tower_precision": "bf16",
        },
        "seed": options.seed,
        "commit": facts["commit"],
        "hardware": options.hardware or facts["machine"],
        "minutes": {"CPU, 1 thread (shared machine)": round(log[-1]["seconds"] / 60, 1), "GPU": "not yet measured"},
        "weights_hash": models.weights_hash(model),
        "parameters": sum(p.numel() for p in model.parameters()),
        "calibration": {
            "validation_faces": calibration(model, tokenizer, glyphs.VALIDATION_FACES),
            "test_faces": calibration(model, tokenizer, glyphs.TEST_FACES),
        },
        "log": [{k: row[k] for k in ("step", "loss", "top1", "centroid_gap")} for row in log],
    }  # fmt: skip


def install(model: torch.nn.Module, log: list[dict[str, float]], options: argparse.Namespace) -> None:
    """Write the package's weights (float16) and then the card, measured on what was written."""
    models.save(model, models.GLYPH_WEIGHTS, "GlyphCLIP", half=True)
    shipped, _, _ = models.load()
    atomic_write(
        models.ASSETS / "GlyphCLIP.card.json", json.dumps(card(shipped, log, options), indent=1) + "\n"
    )


def main(argv: list[str] | None = None) -> None:
    """Command line: train (resuming from the checkpoint); ``--install`` makes the result the package's model."""
    parser = argparse.ArgumentParser(
        prog="ood pretrain", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=4_000, help="optimiser steps of 256 image-text pairs")
    parser.add_argument(
        "--stop-at", type=int, default=0, help="stop there, in the middle of the schedule; 0 = at the end"
    )
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate of AdamW")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches, captions and views")
    parser.add_argument(
        "--checkpoint", type=Path, default=OUTPUTS / "pretrain" / "checkpoint.pt", help="written and resumed"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0 = torch's choice")
    parser.add_argument("--hardware", default="", help="what to call this machine in the card")
    parser.add_argument(
        "--install", action="store_true", help="write weights and card into the package when done"
    )
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    options.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    model, log = pretrain(
        options.steps,
        lr=options.lr,
        seed=options.seed,
        checkpoint=options.checkpoint,
        device=options.device,
        stop_at=options.stop_at,
    )
    if options.install:
        install(model.to("cpu"), log, options)


if __name__ == "__main__":
    main()
