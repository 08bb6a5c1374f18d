"""CRoFT: linear maps on frozen rows, by cross-entropy and a flat energy, here and under the worst shift.

f = unit((1 - r) z + r A z), t' alike with B; A = B = I at the start. E = -tau log sum_c exp(f . t'_c / tau).
L = CE(z) + l1 CE(z_c) + l2 [L_e(z) + L_e(z_c)], L_e = mean ||dE/dA||^2, in closed form:
dE/dA = -r v z^T, v = (m - (f . m) f) / |u|, m = sum_c p_c t'_c, u = f before it was made unit.
Source: arXiv 2405.16417; other_methods 3.4 (a summary: l1, l2, r and e are ours). Our reading: the exact
gradient, per image; z_c = unit(G z), G one step of length e from I up the batch's CE, not a learnt G.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import Adaptation, Evidence, State, Task
from ..tuning import tune


def moved(matrix: Tensor, rows: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """(unit rows (..., d), their lengths (..., 1) before) of (1 - share) z + share matrix z."""
    mixed = torch.lerp(rows, rows @ matrix.T, share)
    length = mixed.norm(dim=-1, keepdim=True)
    return mixed / length, length


def steepness(rows: Tensor, matrix: Tensor, texts: Tensor, share: float, temperature: float) -> Tensor:
    """L_e per image, (b,): the squared Frobenius norm of the energy's gradient by the image matrix (d, d).

    ``rows`` (b, d) before the map, ``texts`` (K, d) unit; differentiable.
    """
    unit, length = moved(matrix, rows, share)
    mean = (unit @ texts.T / temperature).softmax(1) @ texts
    across = (mean - (mean * unit).sum(1, keepdim=True) * unit) / length
    return share**2 * across.square().sum(1) * rows.square().sum(1)


def fit(task: Task) -> State:
    """ "image", "text" (d, d) and "share" (), float32."""
    known, options = task.known, dict(task.hyper)
    l1, l2, share, reach = (options.pop(name) for name in ("l1", "l2", "share", "reach"))
    images, texts, labels = map(torch.from_numpy, (known.train, known.class_text, known.train_labels))
    same = torch.eye(images.shape[1])
    image, text = (torch.nn.Parameter(same.clone()) for _ in range(2))

    def entropy(rows: Tensor, prototypes: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(moved(image, rows, share)[0] @ prototypes.T / known.temperature, labels)

    def loss(batch: np.ndarray) -> Tensor:
        rows, truth = images[batch], labels[batch]
        prototypes = moved(text, texts, share)[0]
        shift = same.clone().requires_grad_()
        worst = torch.autograd.grad(entropy(rows @ shift.T, prototypes.detach(), truth), shift)[0]
        shifted = F.normalize(rows @ (same + reach * worst / worst.norm()).T, dim=1)
        found = entropy(rows, prototypes, truth) + l1 * entropy(shifted, prototypes, truth)
        both = torch.cat([rows, shifted])
        return found + 2 * l2 * steepness(both, image, prototypes, share, known.temperature).mean()

    tune([image, text], loss, len(images), seed=task.seed, **options)
    count = {"share": np.float32(share), "parameters": np.array(2 * same.numel())}
    return {"image": image.detach().numpy(), "text": text.detach().numpy()} | count


def apply(evidence: Evidence, state: State) -> Evidence:
    """Evidence with images, training rows and all texts behind their matrices."""

    def side(name: str) -> Callable[[np.ndarray], np.ndarray]:
        matrix, share = torch.from_numpy(state[name]), float(state["share"])
        return lambda rows: moved(matrix, torch.from_numpy(rows), share)[0].numpy()

    return evidence.behind(side("image"), side("text"))


ADAPTATION = Adaptation(
    "CRoFT",
    2024,
    "Zhu et al. (arXiv 2405.16417)",
    "full",
    {"steps": 5000, "batch": 32, "lr": 2e-3, "l1": 1.0, "l2": 1.0, "share": 0.2, "reach": 0.3},
    {"steps": 300, "batch": 256, "lr": 1e-3, "warmup": 20, "l1": 1.0, "l2": 3.0, "share": 0.5, "reach": 0.3},
    "only the form is known, every number is ours; a step uphill in place of a learnt generator of shifts",
    needs=("class_text", "train", "train_labels"),
    scores=("Energy", "kNN"),
    fit=fit,
    apply=apply,
)
