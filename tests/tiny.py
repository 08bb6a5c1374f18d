"""Small stand-ins shared by the tests of objectives, training and embeddings.

A CLIP of a few thousand weights, a tokenizer of one token a letter, images that are a function of their key.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import open_clip
import pytest
import torch
from torch.utils.data import Dataset

from ood_utils.errors import UnreadableImage

CONTEXT = 12


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Bits depend on the number of threads, and what scikit-learn limits it gives back changed."""
    torch.set_num_threads(1)


def model(tower: str = "resnet", seed: int = 0) -> torch.nn.Module:
    """An untrained open_clip CLIP on 32 x 32 images: "resnet" has BatchNorm, "vit" has none."""
    torch.manual_seed(seed)
    vision = (
        {"layers": (1, 1, 1, 1), "width": 8, "head_width": 64}
        if tower == "resnet"
        else {"layers": 1, "width": 16, "head_width": 8, "patch_size": 16}
    )
    text = {"context_length": CONTEXT, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    built = open_clip.CLIP(
        16, open_clip.CLIPVisionCfg(image_size=32, **vision), open_clip.CLIPTextCfg(**text)
    )
    return built.eval()


def tokenizer(texts: list[str]) -> torch.Tensor:
    """(n, CONTEXT) int64: start 1, a token a letter, end 63, padding 0."""
    rows = torch.zeros(len(texts), CONTEXT, dtype=torch.long)
    for row, text in zip(rows, texts, strict=True):
        codes = [1, *(2 + ord(c) % 60 for c in text[: CONTEXT - 2]), 63]
        row[: len(codes)] = torch.tensor(codes)
    return rows


class Keyed(Dataset):
    """Noise around one colour a class; item KEY -> (image, label of key % n), a function of key alone."""

    def __init__(
        self, labels: np.ndarray, bad: tuple[int, ...] = (), dtype: torch.dtype = torch.float32
    ) -> None:
        self.labels, self.bad, self.dtype = np.asarray(labels), bad, dtype
        self.reads = 0

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int) -> tuple[torch.Tensor, int]:
        row = int(key) % len(self)
        self.reads += 1
        if row in self.bad:
            raise UnreadableImage(f"image-{row}.png", "made so")
        noise = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(int(key)), dtype=self.dtype)
        colour = torch.randn(3, 1, 1, generator=torch.Generator().manual_seed(10_000 + int(self.labels[row])))
        return 0.3 * noise + colour, int(self.labels[row])


@dataclass(frozen=True)
class Images:
    """What training and embeddings read of ``data.ImageSet``."""

    name: str
    dataset: Dataset
    labels: np.ndarray
    fingerprint: str = "tiny"


def images(count: int = 22, classes: int = 6, name: str = "train", **options: object) -> Images:
    """A set of ``count`` images whose labels go round the classes."""
    labels = np.arange(count) % classes
    return Images(name, Keyed(labels, **options), labels, f"{name}-{count}-{classes}-{options}")


TEXTS = ["a b", "a cd", "an efg", "xy", "the nice h", "q"]


def two_processes(worker: Callable[[int, str], None], folder: str) -> None:
    """Run worker(rank, folder) in two processes of one gloo group, of one thread; raises what one raises."""
    how = "fork" if sys.platform == "linux" else "spawn"  # forked children need not import torch again
    torch.multiprocessing.start_processes(_joined, (worker, folder), nprocs=2, start_method=how)


def _joined(rank: int, worker: Callable[[int, str], None], folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    worker(rank, folder)
    torch.distributed.destroy_process_group()
