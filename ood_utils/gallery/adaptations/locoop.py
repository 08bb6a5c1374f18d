"""LoCoOp: CoOp that also learns from the background of its ID images.

An image region p that does not look like the image's class (the class is not among the K likeliest of the
region's softmax pi_p) is a free outlier: its prediction is to be flat.

    J = { p : y not in top-K of pi_p },  pi_p = softmax_c( f_p . g_c / T )
    L = CE - lam mean_{p in J} H(pi_p)

lam = 0 is CoOp. Source: Miyai et al. 2023 (arXiv 2306.01293). ``top`` is a share of the classes: the paper's
200 of 1,000. The mean runs over the regions of the whole batch.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .. import Adaptation, State, Task
from ..patches import of_shots
from ..prompts import Shots, apply, learn
from . import coop

Weights = Callable[[Tensor], tuple[Tensor, Tensor]]  # p_y (b,) -> weights (b,) of cross-entropy and entropy


def constant(sure: Tensor) -> tuple[Tensor, Tensor]:
    """LoCoOp's: one each."""
    return torch.ones_like(sure), torch.ones_like(sure)


def loss(
    shots: Shots, regions: Tensor, lam: float, top: float, weigh: Weights
) -> Callable[[Tensor, np.ndarray], Tensor]:
    """(class texts (K, d), batch) -> weighted cross-entropy less ``lam`` times weighted mean entropy."""

    def of(text: Tensor, batch: np.ndarray) -> Tensor:
        true = shots.labels[batch][:, None]
        likely = shots.logits(text, batch).log_softmax(1).gather(1, true)[:, 0]
        of_class, of_background = weigh(likely.exp())
        logits = regions[batch] @ text.T / shots.temperature  # (b, p, K)
        own = logits.gather(2, true[:, None].expand(-1, logits.shape[1], 1))
        outside = (logits > own).sum(2) >= round(top * len(text))
        log_p = logits.log_softmax(2)
        entropy = -(log_p.exp() * log_p).sum(2) * of_background[:, None]
        flat = (entropy * outside).sum() / outside.sum().clamp(min=1)
        return -(of_class * likely).mean() - lam * flat

    return of


def fit(task: Task, name: str = "LoCoOp", weigh: Weights = constant) -> State:
    """class_text (K, d), context (m, width), parameters."""
    shots = Shots(task, name)
    regions = shots.put(of_shots(task, name, shots.rows))
    return learn(task, shots, loss(shots, regions, task.hyper["lam"], task.hyper["top"], weigh))


ADAPTATION = Adaptation(
    "LoCoOp",
    2023,
    "Miyai et al. 2023 (arXiv 2306.01293)",
    "few-shot",
    coop.PAPER | {"lam": 0.25, "top": 0.2},
    coop.WORLD | {"lam": 0.25, "top": 0.2},
    f"as CoOp: {coop.NOTE}; regions are crops where the image tower's map is one position",
    needs=("class_text", "train"),
    scores=("MCM", "GL-MCM"),
    fit=fit,
    apply=apply,
)
