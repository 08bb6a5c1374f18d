"""Image towers tuned against something fixed or trained with them, and linear heads in the texts' place."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import models
from ..embeddings import laid_out, resolve_device
from ..training import batch_keys, loader
from . import Evidence, State, Task
from .tuning import tune


def start(known: Evidence) -> nn.Linear:
    """A head whose outputs are cosines with the class texts (K, d): rows (n, d) -> (n, K); bias 0."""
    head = nn.Linear(known.class_text.shape[1], len(known.class_text))
    head.load_state_dict({"weight": torch.from_numpy(known.class_text), "bias": torch.zeros(len(head.bias))})
    return head


def cross_entropy(head: nn.Linear, rows: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy, nats, of the softmax of head(rows) / temperature; rows (b, d), labels (b,)."""
    return F.cross_entropy(head(rows) / temperature, labels)


def probe(task: Task, head: nn.Linear, **options: Any) -> None:
    """Train a head in place on the kept rows of the training images; ``options`` of ``tune``."""
    rows, labels = (torch.from_numpy(part) for part in (task.known.train, task.known.train_labels))

    def loss(batch: np.ndarray) -> Tensor:
        return cross_entropy(head, rows[batch], labels[batch], task.known.temperature)

    tune(head.parameters(), loss, len(rows), seed=task.seed, **options)


def tune_tower(
    name: str,
    task: Task,
    judged: Callable[[Tensor, Tensor], Tensor],
    beside: Iterable[nn.Parameter] = (),
    **options: Any,
) -> int:
    """Train a copy of the image tower, and ``beside`` in place, on fresh views; writes model.safetensors.

    ``judged``: unit rows (b, d) and labels (b,), on the profile's device, -> the loss. BatchNorm keeps its
    statistics; the next image stands in for one that cannot be read (``task.known`` has counted those).
    Returns the count of trained parameters. UserError where there is no tower (``Task.tower``) or the loss is
    not finite.
    """
    model = copy.deepcopy(task.tower(name)).eval()
    device, images = resolve_device(task.profile.device), task.study.train.dataset
    model.to(device)
    keys = (batch_keys(len(images), options["batch"], task.seed, step) for step in range(options["steps"]))
    batches = iter(loader(images, keys, task.seed, task.profile.loaders(), torch.device(device)))

    def loss(_: np.ndarray) -> Tensor:
        pixels, labels, *_rest = next(batches)  # the same indices, as seen in this epoch
        return judged(F.normalize(model.encode_image(laid_out(pixels.to(device))), dim=-1), labels.to(device))

    trained = [*model.visual.parameters(), *beside]
    tune(trained, loss, len(images), seed=task.seed, **options)
    models.save(model, task.folder / "model.safetensors", task.network.name)
    return sum(p.numel() for p in trained)


def tune_with(name: str, task: Task, head: nn.Linear, **options: Any) -> State:
    """``tune_tower`` with a head, in place, by cross-entropy; the state of ``kept``."""
    head.to(resolve_device(task.profile.device))

    def judged(rows: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(head, rows, labels, task.known.temperature)

    return kept(head, tune_tower(name, task, judged, head.parameters(), **options))


def kept(head: nn.Linear, parameters: int = 0) -> State:
    """A head as it is kept: weight (K, d), bias (K,), and the count of all that was trained with it."""
    state = {name: part.numpy(force=True) for name, part in head.named_parameters()}
    count = parameters or sum(part.size for part in state.values())
    return state | {"parameters": np.array(count)}


def apply(evidence: Evidence, state: State) -> Evidence:
    """Evidence that reads images by a kept head: its outputs as cosines, its unit rows as class texts.

    No negatives: a head knows no other words, and its outputs are no longer cosines to hold theirs against.
    """
    weight, bias = state["weight"], state["bias"]
    texts = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    return evidence.change(
        class_text=texts, negative_text=None, look=lambda rows: (rows @ weight.T + bias, None)
    )
