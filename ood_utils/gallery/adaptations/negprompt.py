"""NegPrompt: learnt prompts that say what an image of a class is not, from ID images alone.

First CoOp; then its texts g_c are frozen and p = 2 negative contexts, shared by all classes, are learnt. With
n_jc the text of class c behind negative context j, and s = softmax over all p K of them:

    L = L_NIS + 0.1 L_NPD + 0.05 L_NND
    L_NIS = - mean over j, c of log s(f)_jc      ID images match no negative more than another
    L_NPD = - mean over j, c of cos(n_jc, g_c)   a negative stays near its class
    L_NND =   mean over j != k, c of cos(n_jc, n_kc)   a class's negatives spread

Source: Li et al. 2024 (arXiv 2404.03248). The released code multiplies norms in L_NND and, by default, turns
the sign of L_NPD; here both are as the paper has them. Negative contexts start at random, as CoOp's. They
give the evidence's negatives, in place of mined ones: NegLabel then scores by them, as "NegPrompt" does.
"""

import torch
from torch import Tensor, nn

from .. import Adaptation, State, Task
from ..prompts import Shots, apply, frozen, learn, of
from . import coop


def loss(logits: Tensor, negatives: Tensor, positives: Tensor, near: float, spread: float) -> Tensor:
    """L of ``logits`` (b, p K), ``negatives`` (p, K, d) and ``positives`` (K, d), unit rows."""
    count, classes = negatives.shape[:2]
    flat = -logits.log_softmax(1).mean()
    apart = -(negatives * positives).sum(2).mean()
    total = (negatives.sum(0) ** 2).sum() - count * classes  # cosines of all pairs j != k, twice each
    return flat + near * apart + spread * total / (count * max(1, count - 1) * classes)


def fit(task: Task) -> State:
    """class_text (K, d), context (m, width), negative_text (p K, d), parameters."""
    shots, hyper = Shots(task, "NegPrompt"), task.hyper
    state = learn(task, shots, coop.loss(shots))
    prompts, positives = of(task, shots.tower), shots.put(state["class_text"])
    seeds = range(1000 * task.seed + 1, 1000 * task.seed + 1 + hyper["negatives"])
    contexts = nn.Parameter(torch.stack([prompts.start(hyper["negative_context"], s) for s in seeds]))

    def texts(rows: Tensor | slice) -> Tensor:
        return torch.stack([prompts.encode(context, rows) for context in contexts])

    def of_batch(batch: object) -> Tensor:
        drawn = torch.randperm(len(positives))[: hyper["classes"] or None].to(shots.device)
        negatives = texts(drawn)
        logits = shots.logits(negatives.flatten(0, 1), batch)
        return loss(logits, negatives, positives[drawn], hyper["near"], hyper["spread"])

    with frozen(shots.tower):
        shots.train(task, [contexts], of_batch)
        with torch.no_grad():
            state["negative_text"] = texts(slice(None)).flatten(0, 1).cpu().numpy()
    return state | {"parameters": state["parameters"] + contexts.numel()}


WEIGHTS = {"negatives": 2, "negative_context": 16, "near": 0.1, "spread": 0.05, "classes": 0}
ADAPTATION = Adaptation(
    "NegPrompt",
    2024,
    "Li et al. 2024 (arXiv 2404.03248)",
    "few-shot",
    coop.PAPER | {"batch": 64} | WEIGHTS,
    coop.WORLD | WEIGHTS | {"negative_context": 4, "classes": 64},
    f"as CoOp: {coop.NOTE}; a step of the second stage looks at the negatives of 64 classes (0 = all)",
    needs=("class_text", "train"),
    scores=("NegPrompt",),
    fit=fit,
    apply=apply,
)
