"""OGEN: image features of classes that nobody has shown, made from their names, for prompts to learn from.

A class-conditional generator looks from the text of an unknown class q to its k = 3 nearest known classes,
whose keys are their texts g and whose values are image features drawn from their mean and spread:

    v_i = mu_i + u sigma_i, u ~ U(0, 1);   made(q) = unit( FFN(q) + Attention(q, g_1..k, v_1..k) )

It learns by making the images of a known class from its neighbours; then the prompts join in. With CE(x, y)
over the K learnt class texts and the hand texts of the step's unknown words:

    L = d MSE( made(g_y), f ) + [ CE(f, y) / 4 + CE(made(g_y), y) / 4 + CE(made(word), word) / 2 ]

Source: Zang et al. 2024 (arXiv 2401.15914), a paper on new classes, not on OoD. Our reading: its unknown
classes are drawn from the negative labels, and count as classes of their own in every softmax; left out are
generation in the other direction and the self-distillation.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import Adaptation, State, Task
from ..prompts import Shots, apply, learn
from . import coop


class Generator(nn.Module):
    """Texts q (n, d), with keys and values (n, k, d) of their neighbours -> unit image features (n, d)."""

    def __init__(self, d: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(d, heads, dropout, batch_first=True)
        self.ffn = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, d))

    def forward(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        looked = self.attention(query[:, None], keys, values, need_weights=False)[0][:, 0]
        return F.normalize(self.ffn(query) + looked, dim=-1)


def moments(images: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (K, d) of each class's images (n, d); 0 of a class without any."""
    of_class = F.one_hot(labels, classes).to(images).T
    share = of_class / of_class.sum(1, keepdim=True).clamp(min=1)
    mean = share @ images
    return mean, (share @ images**2 - mean**2).clamp(min=0).sqrt()


def neighbours(known: Tensor, k: int) -> Tensor:
    """(K, k) indices of the k classes nearest to each of ``known`` (K, d), itself left out."""
    return (known @ known.T).fill_diagonal_(-2).topk(k).indices


def told(shown: Tensor, again: Tensor, new: Tensor, labels: Tensor, text: Tensor, words: Tensor) -> Tensor:
    """The three cross-entropies: real and remade images (b, d) of ``labels``, made ones (u, d) of ``words``.

    ``text`` (K, d) and ``words`` (u, d) are texts over the temperature; all (K + u) stand in each softmax.
    """
    both, place = torch.cat([text, words]), len(text) + torch.arange(len(words), device=labels.device)
    real, remade = (F.cross_entropy(rows @ both.T, labels) for rows in (shown, again))
    return real / 4 + remade / 4 + F.cross_entropy(new @ both.T, place) / 2


def fit(task: Task) -> State:
    """class_text (K, d), context (m, width), parameters (with the generator's)."""
    shots, hyper, k = Shots(task, "OGEN"), task.hyper, task.hyper["neighbours"]
    known, words = shots.class_text, shots.put(task.known.negative_text)
    mean, sd = moments(shots.images, shots.labels, len(known))
    near = neighbours(known, k)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        generator = Generator(known.shape[1], hyper["heads"], hyper["dropout"]).to(shots.device)

    def made(text: Tensor, near: Tensor) -> Tensor:
        values = mean[near] + torch.rand(len(near), 1, known.shape[1], device=near.device) * sd[near]
        return generator(text, known[near], values)

    def rebuilt(batch: np.ndarray) -> tuple[Tensor, Tensor]:
        again = made(known[shots.labels[batch]], near[shots.labels[batch]])
        return again, (again - shots.images[batch]).square().sum(1).mean()

    def loss(text: Tensor, batch: np.ndarray) -> Tensor:
        unknown = words[torch.randperm(len(words))[: hyper["unknown"]].to(shots.device)]
        new = made(unknown, (unknown @ known.T).topk(k).indices)
        again, missed = rebuilt(batch)
        texts = text / shots.temperature, unknown / shots.temperature
        return missed + told(shots.images[batch], again, new, shots.labels[batch], *texts)

    first = {"steps": hyper["apart"], "warmup": 0}
    shots.train(task, [*generator.parameters()], lambda batch: rebuilt(batch)[1], **first)
    return learn(task, shots, loss, generator)


OWN = {"neighbours": 3, "heads": 4, "dropout": 0.1, "unknown": 96}
ADAPTATION = Adaptation(
    "OGEN",
    2024,
    "Zang et al. 2024 (arXiv 2401.15914)",
    "few-shot",
    coop.PAPER | {"context": 4, "epochs": 8, "apart": 1000} | OWN,
    coop.WORLD | {"apart": 100} | OWN,
    f"as CoOp: {coop.NOTE}; the unknown classes are words of the negative labels",
    needs=("class_text", "train", "negative_text"),
    scores=("MCM", "NegLabel"),
    fit=fit,
    apply=apply,
)
