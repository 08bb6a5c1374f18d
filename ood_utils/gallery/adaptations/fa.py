"""FA: a learnt prompt is forced to beat the hand prompt of every class, the true one's too.

The hand prompts o stay and compete with the learnt ones f in one softmax, K_f times; to win, f must hold more
of the ID images than the names say.

    L = -log e^{f_y / T} / ( sum_j e^{f_j / T} + K_f sum_j e^{o_j / T} )

K_f = 0 is CoOp. Source: ICCV 2025 (arXiv 2507.04511). Scored like any other by its learnt texts; the released
code takes the maximum of MCM's softmax over both sets of texts.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import Adaptation, State, Task
from ..prompts import Shots, apply, learn
from . import coop


def loss(shots: Shots, forced: float) -> Callable[[Tensor, np.ndarray], Tensor]:
    """(class texts (K, d), batch) -> cross-entropy against the learnt and ``forced`` times the hand texts."""

    def of(text: Tensor, batch: np.ndarray) -> Tensor:
        logits = shots.logits(text, batch)
        if forced:  # at 0 not a column of minus infinities: then it is CoOp to the bit
            logits = torch.cat([logits, shots.logits(shots.class_text, batch) + math.log(forced)], 1)
        return F.cross_entropy(logits, shots.labels[batch])

    return of


def fit(task: Task) -> State:
    """class_text (K, d), context (m, width), parameters."""
    shots = Shots(task, "FA")
    return learn(task, shots, loss(shots, task.hyper["forced"]))


ADAPTATION = Adaptation(
    "FA",
    2025,
    "ICCV 2025 (arXiv 2507.04511)",
    "few-shot",
    coop.PAPER | {"forced": 1},
    coop.WORLD | {"forced": 1},
    f"as CoOp: {coop.NOTE}; its own rate and epochs were not found, CoOp's stand in",
    needs=("class_text", "train"),
    scores=("MCM", "GL-MCM"),
    fit=fit,
    apply=apply,
)
