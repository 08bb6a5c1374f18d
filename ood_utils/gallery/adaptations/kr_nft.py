"""KR-NFT: every text is scaled and shifted, by what the image asks for, ID texts and negatives apart.

t' = unit((g + G(v)) * t + (b + B(v))), * feature by feature, v the image; g = 1, b = 0, and G, B are small
networks, zero at the start; one such set for the ID texts, one for the negatives.
L = L_pos + l1 L_neg + l2 L_kr over 10 groups of negatives: L_pos = CE of the truth among ID texts and a
group; L_neg = log ID mass of pseudo-negatives; L_kr = 1 - mean cos(t', t).
Source: arXiv 2507.19847; other_methods 2. Changed: given embeddings have no crops, and real crops of glyphs
did worse. Positives are the shots' own rows; pseudo-negatives are points half-way between two shots of
different classes. All cosines with t' are products of matrices: no text is held per image.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import Adaptation, Evidence, State, Task
from ..tuning import tune

GROUPS = 10
SHARED = {"weight_decay": 5e-4, "shots": 4, "hidden": 64, "l1": 0.3, "l2": 100.0}


class Affine(nn.Module):
    """The change of one group of texts, by image."""

    def __init__(self, d: int, hidden: int) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.stack([torch.ones(d), torch.zeros(d)]))
        made = [nn.Sequential(nn.Linear(d, hidden), nn.ReLU(), nn.Linear(hidden, d)) for _ in range(2)]
        self.by_image = nn.ModuleList(made)
        for net in made:
            nn.init.zeros_(net[-1].weight)
            nn.init.zeros_(net[-1].bias)

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Unit rows (n, d), (K, d) -> cosines of images with their own changed texts, and of these with the
        texts as they were: both (n, K)."""
        scale, shift = (base + net(images) for base, net in zip(self.base, self.by_image, strict=True))
        squares = texts.square().T  # ||scale * t + shift||^2, expanded
        norm = scale.square() @ squares + 2 * (scale * shift) @ texts.T + shift.square().sum(1, keepdim=True)
        norm = norm.clamp(min=1e-12).sqrt()
        with_image = (images * scale) @ texts.T + (images * shift).sum(1, keepdim=True)
        return with_image / norm, (scale @ squares + shift @ texts.T) / norm


def losses(
    rows: Tensor, labels: Tensor, outside: Tensor, texts: list[Tensor], change: nn.ModuleList, tau: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(L_pos, L_neg, L_kr), nats and a cosine. ``rows`` (b, d) of ``labels`` (b,); ``outside`` (c, d).

    ``texts``: ID (K, d) and negatives (M, d), whose last M mod 10 are not used; ``change``: of each.
    """
    found = [one(torch.cat([rows, outside]), of) for one, of in zip(change, texts, strict=True)]
    ours, theirs = (cosines / tau for cosines, _ in found)
    mass = ours.logsumexp(1, keepdim=True)
    group = theirs[:, : theirs.shape[1] // GROUPS * GROUPS].unflatten(1, (GROUPS, -1)).logsumexp(2)
    both, b = torch.logaddexp(mass, group), len(rows)
    truth = ours[:b].gather(1, labels[:, None])
    same = torch.cat([kept for _, kept in found], dim=1)[:b]
    return (both[:b] - truth).mean(), (mass - both)[b:].mean(), 1 - same.mean()


def fit(task: Task) -> State:
    """Parameters of both changes, "0.*" of the ID texts and "1.*" of the negatives."""
    known, options = task.known, dict(task.hyper)
    shots, hidden, l1, l2 = (options.pop(name) for name in ("shots", "hidden", "l1", "l2"))
    chosen = task.shots(shots)
    chosen = chosen[np.argsort(known.train_labels[chosen], kind="stable")]
    images, labels = torch.from_numpy(known.train[chosen]), torch.from_numpy(known.train_labels[chosen])
    order = np.random.default_rng(task.seed).permutation(len(known.negative_text))
    texts = [torch.from_numpy(known.class_text), torch.from_numpy(known.negative_text[order])]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        change = nn.ModuleList([Affine(images.shape[1], hidden) for _ in texts])

    most = int(labels.bincount().max())  # so far on, in order of class, begins another class

    def loss(batch: np.ndarray) -> Tensor:
        rows, ahead = images[batch], torch.randint(most, len(images) - most + 1, (len(batch),))
        between = F.normalize(rows + images[(torch.from_numpy(batch) + ahead) % len(images)], dim=1)
        positive, negative, moved = losses(rows, labels[batch], between, texts, change, known.temperature)
        return positive + l1 * negative + l2 * moved

    tune(change.parameters(), loss, len(images), seed=task.seed, **options)
    state = {name: part.numpy() for name, part in change.state_dict().items()}
    return state | {"parameters": np.array(sum(part.size for part in state.values()))}


def apply(evidence: Evidence, state: State) -> Evidence:
    """Evidence whose cosines are with the texts as each image changes them; the texts themselves stay."""
    parts = {name: torch.from_numpy(part) for name, part in state.items() if name != "parameters"}
    sizes = evidence.class_text.shape[1], len(parts["0.by_image.0.0.bias"])
    change = nn.ModuleList([Affine(*sizes), Affine(*sizes)])
    change.requires_grad_(False).load_state_dict(parts)
    texts = [torch.from_numpy(part) for part in (evidence.class_text, evidence.negative_text)]

    def look(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        blocks = torch.from_numpy(rows).split(2048)
        ours, theirs = (
            np.concatenate([one(block, of)[0].numpy() for block in blocks])
            for one, of in zip(change, texts, strict=True)
        )
        return ours, theirs

    return evidence.change(look=look)


ADAPTATION = Adaptation(
    "KR-NFT",
    2025,
    "Zhu et al. (arXiv 2507.19847)",
    "few-shot",
    {"steps": 12_000, "batch": 1, "lr": 1e-5} | SHARED,
    {"steps": 100, "batch": 64, "lr": 1e-4} | SHARED,
    "shots as they are and points between them in place of 256 crops of each; larger batches and rate",
    needs=("class_text", "negative_text", "train", "train_labels"),
    scores=("NegLabel",),
    fit=fit,
    apply=apply,
)
