"""Residual adapters: a small map beside each frozen tower, trained by CMA's loss on kept rows.

f' = unit(f + A(f)), t' = unit(t + B(t)); A, B: layer norm, one hidden layer, zero at the start. They move
whatever lies on the sphere: negatives, corpus and patches too. L = CMA on a batch's pairs, tau fixed.
Source: CLIP-Adapter (arXiv 2110.04544) for the maps, CMA (arXiv 2503.18817) for the loss; anchors_2026 5.2.
Ours: maps on both sides, as the lane of given embeddings trains them (``residual.Map``).
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import objectives
from ...residual import Map
from .. import Adaptation, Evidence, State, Task
from ..tuning import tune
from .fft import ADAPTATION as FFT


def moved(side: Map, rows: Tensor) -> Tensor:
    """Unit rows (..., d) behind one side's map."""
    return F.normalize(rows + side(rows), dim=-1)


def fit(task: Task) -> State:
    """Parameters of both maps, "image.*" and "text.*", float32."""
    known, options = task.known, dict(task.hyper)
    lam, width = options.pop("lam"), known.train.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        hidden = options.pop("hidden")
        maps = nn.ModuleDict({"image": Map(width, hidden), "text": Map(width, hidden)})
    images, texts, labels = map(torch.from_numpy, (known.train, known.class_text, known.train_labels))

    def loss(batch: np.ndarray) -> Tensor:
        pairs = moved(maps["image"], images[batch]), moved(maps["text"], texts[labels[batch]])
        return objectives.cma_loss(*pairs, 1 / known.temperature, lam)

    tune(maps.parameters(), loss, len(images), seed=task.seed, **options)
    state = {name: part.numpy() for name, part in maps.state_dict().items()}
    return state | {"parameters": np.array(sum(part.size for part in state.values()))}


def apply(evidence: Evidence, state: State) -> Evidence:
    """Evidence with images, training rows and all texts behind their maps."""

    def side(name: str) -> Callable[[np.ndarray], np.ndarray]:
        own = [key for key in state if key.startswith(f"{name}.")]
        parts = {key.removeprefix(f"{name}."): torch.from_numpy(state[key]) for key in own}
        made = Map(evidence.class_text.shape[1], len(parts["1.bias"])).requires_grad_(False)
        made.load_state_dict(parts)
        return lambda rows: moved(made, torch.from_numpy(rows)).numpy()

    return evidence.behind(side("image"), side("text"))


ADAPTATION = Adaptation(
    "Residual adapters",
    2026,
    "maps after CLIP-Adapter (arXiv 2110.04544), loss of CMA (arXiv 2503.18817)",
    "full",
    FFT.paper | {"lam": 0.001, "hidden": 256},
    {"steps": 300, "batch": 256, "lr": 1e-3, "warmup": 20, "weight_decay": 0.01, "lam": 0.03, "hidden": 64},
    "no published setting: CMA's recipe on kept rows",
    needs=("class_text", "train", "train_labels"),
    scores=("MCM", "NegLabel"),
    fit=fit,
    apply=apply,
)
