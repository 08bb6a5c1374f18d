"""CoOp: the words around the class names become vectors, learnt from a few images a class.

One context v_1 ... v_m, shared by all classes, stands before the name; both towers stay as they are.

    L = CE( y | softmax_c( f . g_c(v) / T ) )

Source: Zhou et al. 2022 (arXiv 2109.01134). Ours: images are one cached view each, not a fresh crop a step;
warm-up rises from 0 where CoOp's stays at 1e-5 for an epoch. NegLabel's negatives keep their hand prompt, as
CMA's released list does, which is stored with its prompt.
"""

from collections.abc import Callable

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from .. import Adaptation, State, Task
from ..prompts import Shots, apply, learn

PAPER = {
    "shots": 16, "context": 16, "epochs": 50, "batch": 32, "lr": 2e-3, "warmup": 500, "weight_decay": 5e-4,
    "optimiser": "sgd",
}  # fmt: skip
# learnt from the one word of the hand prompt, "a"; large batches, as cached images cost nothing
WORLD = {"shots": 16, "context": 0, "steps": 40, "batch": 512, "lr": 5e-3, "warmup": 5}
NOTE = (
    "40 AdamW steps on 512 cached images instead of 50 epochs of SGD on 32; the context starts from the hand "
    "prompt's word, not from 16 random vectors"
)


def loss(shots: Shots) -> Callable[[Tensor, np.ndarray], Tensor]:
    """(class texts (K, d), batch) -> cross-entropy."""
    return lambda text, batch: F.cross_entropy(shots.logits(text, batch), shots.labels[batch])


def fit(task: Task) -> State:
    """class_text (K, d), context (m, width), parameters."""
    shots = Shots(task, "CoOp")
    return learn(task, shots, loss(shots))


ADAPTATION = Adaptation(
    "CoOp",
    2022,
    "Zhou et al. 2022 (arXiv 2109.01134)",
    "few-shot",
    PAPER,
    WORLD,
    NOTE,
    needs=("class_text", "train"),
    scores=("MCM", "GL-MCM"),
    fit=fit,
    apply=apply,
)
