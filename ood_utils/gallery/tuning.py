"""The loop of every small training of the gallery: a loss of batch indices, AdamW or SGD, half a cosine."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UserError
from ..training import SEED_STRIDE, batch_keys, rate


def tune(
    parameters: Iterable[nn.Parameter],
    loss: Callable[[np.ndarray], Tensor],
    images: int,
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    warmup: int = 0,
    weight_decay: float = 0.0,
    optimiser: Literal["adamw", "sgd"] = "adamw",
) -> Sequence[float]:
    """Minimise ``loss`` over ``parameters`` in place; returns its value at every step.

    ``loss`` gets the indices (b,) of a batch of the ``images`` and may draw from torch's generator: each step
    is seeded by (seed, step). Batches are those of ``training.batch_keys``, the rate is ``training.rate``'s.
    UserError as soon as the loss is not finite.
    """
    trained, values = list(parameters), []
    options = {"lr": lr, "weight_decay": weight_decay}
    if optimiser == "sgd":
        made: torch.optim.Optimizer = torch.optim.SGD(trained, momentum=0.9, **options)
    else:
        made = torch.optim.AdamW(trained, **options)
    with torch.random.fork_rng(devices=[]):
        for step in range(steps):
            torch.manual_seed(seed * SEED_STRIDE + step)
            found = loss(batch_keys(images, batch, seed, step) % images)
            values.append(found.item())
            if not math.isfinite(values[-1]):
                raise UserError(f"loss is not finite at step {step + 1}; lower the learning rate, {lr:g}")
            made.param_groups[0]["lr"] = lr * rate(step, steps, warmup)
            made.zero_grad()
            found.backward()
            made.step()
    return values
