"""CLIPN: a second text tower that says "no": its text of a class lies near the images that do not show it.

The "no" tower starts as a copy of the text tower; a learnt prompt is added to the embeddings of its tokens.
Images f, texts g and the rest of CLIP are frozen; q is the "no" text of a caption.

    p_ij = e^{f_i.q_j / T} / ( e^{f_i.g_j / T} + e^{f_i.q_j / T} )    the "no" probability, 1/2 at q = g
    L_itbo = - mean over matching i, j of log(1 - p_ij) - mean over the others of log p_ij
    L_tso = mean_j ( 2 - |g_j - q_j| )          yes and no lie opposite each other
    L = L_itbo + L_tso

Scores: CLIPN-CTW and CLIPN-ATD. Source: Wang et al. 2023 (arXiv 2308.12213). Our reading: the captions are
the hand prompts of the ID classes that a batch shows, once each (the paper: CC3M's, 2.9 million), so that
images of one class are not each other's mismatches; one added prompt, where the code draws from 16.
"""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import models
from .. import Adaptation, State, Task
from ..prompts import Shots, apply


def loss(image: Tensor, text: Tensor, no: Tensor, matching: Tensor, temperature: float) -> Tensor:
    """L of unit rows ``image`` (b, d), ``text`` and ``no`` (u, d), and the bools ``matching`` (b, u)."""
    odds = image @ (no - text).T / temperature  # p = sigmoid(odds)
    right, wrong = -F.logsigmoid(-odds) * matching, -F.logsigmoid(odds) * ~matching
    itbo = right.sum() / matching.sum() + wrong.sum() / (~matching).sum().clamp(min=1)  # one class: none
    apart = (2 - 2 * (text * no).sum(1) + 1e-4).sqrt()  # the released code's guard at q = g
    return itbo + (2 - apart).mean()


class NoTower(nn.Module):
    """Tokens (n, L) -> unit "no" texts (n, d): a copy of a text tower, with a prompt added, zero at first."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = copy.deepcopy(tower, {id(tower.visual): nn.Identity()})
        self.tower.logit_scale.requires_grad_(False)
        self.prompt = nn.Parameter(torch.zeros_like(tower.positional_embedding))

    def forward(self, tokens: Tensor) -> Tensor:
        ends = tokens.argmax(1)
        width = int(ends.max()) + 1
        embedded = self.tower.token_embedding(tokens[:, :width]) + self.prompt[:width]
        return F.normalize(models.encode_embedded(self.tower, embedded, ends).float(), dim=-1)


def fit(task: Task) -> State:
    """no_text (K, d), parameters."""
    shots = Shots(task, "CLIPN")
    tower = NoTower(shots.tower)
    tokens = task.network.parts[2](task.study.class_texts(task.profile.prompt)).to(shots.device)
    trained = [p for p in tower.parameters() if p.requires_grad]

    def of_batch(batch: np.ndarray) -> Tensor:
        shown, which = shots.labels[batch].unique(return_inverse=True)
        matching = F.one_hot(which, len(shown)).bool()
        image, text = shots.images[batch], shots.class_text[shown]
        return loss(image, text, tower(tokens[shown]), matching, shots.temperature)

    shots.train(task, trained, of_batch)
    with torch.no_grad():
        no_text = tower(tokens).cpu().numpy()
    return {"no_text": no_text, "parameters": np.array(sum(p.numel() for p in trained))}


ADAPTATION = Adaptation(
    "CLIPN",
    2023,
    "Wang et al. 2023 (arXiv 2308.12213)",
    "full",
    {"shots": 0, "epochs": 10, "batch": 2048, "lr": 3e-4, "warmup": 10_000},
    {"shots": 0, "steps": 40, "batch": 128, "lr": 1e-3, "warmup": 5},
    "captions are the ID classes' hand prompts, 40 steps of 128 images instead of 10 epochs of CC3M",
    needs=("class_text", "train"),
    scores=("CLIPN-CTW", "CLIPN-ATD"),
    fit=fit,
    apply=apply,
)
