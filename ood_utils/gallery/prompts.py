"""Learnt contexts: class names behind vectors that stand where the hand prompt has its words.

The tower is frozen and images come from the cache, so that a step costs one pass of the class names through
the text tower and back to the context.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import models
from ..embeddings import resolve_device
from ..errors import UserError
from .tuning import tune

if TYPE_CHECKING:
    from . import Evidence, State, Task


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for its gradient inside; afterwards each does as before."""
    before = {p: p.requires_grad for p in model.parameters()}
    model.requires_grad_(False)
    try:
        yield
    finally:
        for p, wanted in before.items():
            p.requires_grad_(wanted)


class Prompts:
    """Class names (K) in a prompt whose words before the name give way to vectors (m, width).

    ``tower``: one that ``models.causal`` finds so. ``words`` (m, width): the hand prompt's own. UserError
    where they run into the name.
    """

    def __init__(
        self, tower: nn.Module, tokenizer: Callable[[list[str]], Tensor], template: str, names: Sequence[str]
    ) -> None:
        self.tower, self.template, self.names = tower, template, names
        device = tower.positional_embedding.device
        before = tokenizer([template.partition("{}")[0]])[0]
        tokens = tokenizer([template.replace("{}", name) for name in names])
        words = before[1 : before.argmax()]
        self.replaced = len(words)
        if not (tokens[:, 1 : 1 + self.replaced] == words).all():
            raise UserError(f"prompt {template!r} runs into the name; put a space before its {{}}")
        self.ends = tokens.argmax(1).to(device)
        with torch.no_grad():
            self.words = tower.token_embedding(words.to(device))
            self.fixed = tower.token_embedding(tokens.to(device))  # (K, L, width)

    def start(self, count: int, seed: int) -> Tensor:
        """A context to begin with: the words (``count`` 0), or ``count`` random vectors, sd 0.02 as CoOp's.

        UserError where no word stands before the name, or ``count`` leaves no room for the longest name.
        """
        if not count and not self.replaced:
            raise UserError(f"prompt {self.template!r} has no word before its {{}}; set context to a number")
        if int(self.ends.max()) - self.replaced + count >= len(self.tower.positional_embedding):
            name = self.names[int(self.ends.argmax())]
            raise UserError(f"context = {count} leaves no room for the class name {name!r}; lower it")
        if not count:
            return self.words.clone()
        rows = torch.randn(count, self.words.shape[1], generator=torch.Generator().manual_seed(seed))
        return 0.02 * rows.to(self.words)

    def encode(self, context: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """Unit rows (K, d) of the names, or of ``rows`` of them; the gradient goes to ``context``.

        Names of like length are run together, which pads less and changes nothing.
        """
        fixed, ends, found = self.fixed[rows], self.ends[rows] - self.replaced + len(context), []
        order = ends.argsort(stable=True)
        for part in order.split(max(32, -(-len(order) // 4))):
            name = fixed[part, 1 + self.replaced : 2 + self.replaced + int(ends[part].max()) - len(context)]
            x = torch.cat([fixed[part, :1], context.expand(len(part), -1, -1), name], 1)
            found.append(models.encode_embedded(self.tower, x, ends[part]))
        return F.normalize(torch.cat(found).float(), dim=-1)[order.argsort()]


class Shots:
    """The training images an adaptation may see, on the model's device.

    ``rows`` (n,) of the task's training set; ``images`` (n, d) unit rows, ``labels`` (n,). UserError where
    there is no tower to train, or its texts are not encoded as CLIP's.
    """

    def __init__(self, task: Task, name: str) -> None:
        self.tower = task.tower(name).to(resolve_device(task.profile.device))
        if not models.causal(self.tower):
            fault = f"{name} needs a text tower as CLIP's, causal and read at its end token"
            raise UserError(f"{fault}; that of model {task.profile.model!r} is another, so leave it out")
        self.device, self.temperature = self.tower.logit_scale.device, task.known.temperature
        count = task.hyper["shots"]
        self.rows = task.shots(count) if count else np.arange(len(task.known.train))
        self.images = self.put(task.known.train[self.rows])
        self.labels = torch.from_numpy(task.known.train_labels[self.rows]).to(self.device)
        self.class_text = self.put(task.known.class_text)

    def put(self, rows: np.ndarray) -> Tensor:
        """float32 rows on the model's device."""
        return torch.from_numpy(np.array(rows, np.float32)).to(self.device)

    def logits(self, text: Tensor, batch: np.ndarray) -> Tensor:
        """(b, K) cosines of a batch's images and ``text`` (K, d), over the temperature."""
        return self.images[batch] @ text.T / self.temperature

    def train(
        self, task: Task, trained: Sequence[Tensor], loss: Callable[[np.ndarray], Tensor], **over: Any
    ) -> None:
        """``tune`` as the task's hyper-parameters and ``over`` say: so many ``steps``, else ``epochs``."""
        kept = ("batch", "lr", "warmup", "weight_decay", "optimiser")
        hyper = task.hyper | over
        options: dict[str, Any] = {key: hyper[key] for key in kept if key in hyper}
        steps = hyper.get("steps") or hyper["epochs"] * math.ceil(len(self.rows) / hyper["batch"])
        tune(trained, loss, len(self.rows), steps=steps, seed=task.seed, **options)


def of(task: Task, tower: nn.Module) -> Prompts:
    """The task's class names in its profile's prompt."""
    return Prompts(tower, task.network.parts[2], task.profile.prompt, task.known.class_names)


def learn(task: Task, shots: Shots, loss: Callable[[Tensor, np.ndarray], Tensor], *also: nn.Module) -> State:
    """Minimise ``loss`` (class texts (K, d), batch) over a context shared by all classes, and ``also``.

    Returns class_text (K, d), context (m, width), parameters.
    """
    prompts = of(task, shots.tower)
    context = nn.Parameter(prompts.start(task.hyper["context"], task.seed))
    trained = [context, *(p for module in also for p in module.parameters())]
    with frozen(shots.tower):
        shots.train(task, trained, lambda batch: loss(prompts.encode(context), batch))
        with torch.no_grad():
            text = prompts.encode(context)
    learnt = {"class_text": text, "context": context.detach()}
    count = np.array(sum(p.numel() for p in trained))
    return {key: rows.cpu().numpy() for key, rows in learnt.items()} | {"parameters": count}


def apply(evidence: Evidence, state: State) -> Evidence:
    """The evidence with the texts that a state holds; the others stay the hand prompt's."""
    held = {key: state[key] for key in ("class_text", "negative_text", "no_text") if key in state}
    return evidence.change(**held)
