"""SFace: each image is pulled to its class's text and pushed off the others, by gates of their angles.

L = s mean_k [-[r_in(theta_ky)] cos theta_ky + sum_{c != y} [r_out(theta_kc)] cos theta_kc], [.] no gradient,
r_in = sigmoid(80 (theta - a)): no pull nearer than a; r_out = sigmoid(80 (b - theta)): no push beyond b.
Source: arXiv 2205.12010, for faces; other_methods 5. Changed: the prototypes are the class texts, frozen, so
that negatives keep their place; the image tower moves. Faces' a and b mean nothing for CLIP: they are
quantiles of the angles of training images with their own and with other texts, before training. (Measured on
each batch they follow what they should hold: images and texts end at opposite poles, gap 2.)
"""

import numpy as np
import torch
from torch import Tensor

from .. import Adaptation, State, Task, heads
from .fft import ADAPTATION as FFT

STEEP = 80.0  # 1/radian, as for faces: a gate opens within 0.05 radian


def sface(cosines: Tensor, labels: Tensor, a: float, b: float) -> Tensor:
    """The loss without s, of cosines (n, K) with all prototypes and labels (n,); a, b in radians."""
    angles = cosines.detach().clamp(-1, 1).acos()
    own = labels[:, None] == torch.arange(cosines.shape[1], device=labels.device)
    push = (STEEP * (b - angles)).sigmoid() * ~own
    pull = (STEEP * (angles - a)).sigmoid() * own
    return ((push - pull) * cosines).sum(1).mean()


def fit(task: Task) -> State:
    """ "matched", "mismatched": a and b, radians; the tower is in ``task.folder / "model.safetensors"``."""
    known, options = task.known, dict(task.hyper)
    shares = options.pop("matched"), options.pop("mismatched")
    angles = np.arccos(np.clip(known.train @ known.class_text.T, -1, 1))
    own = known.train_labels[:, None] == np.arange(len(known.class_text))
    a, b = (float(np.quantile(angles[of], q)) for of, q in zip((own, ~own), shares, strict=True))

    def judged(rows: Tensor, labels: Tensor) -> Tensor:
        texts = torch.from_numpy(known.class_text).to(rows.device)
        return sface(rows @ texts.T, labels, a, b) / known.temperature

    count = heads.tune_tower("SFace", task, judged, **options)
    return {"matched": np.array(a), "mismatched": np.array(b), "parameters": np.array(count)}


ADAPTATION = Adaptation(
    "SFace",
    2021,
    "Zhong et al. (arXiv 2205.12010), on CLIP",
    "full",
    FFT.paper | {"matched": 0.1, "mismatched": 0.5},
    FFT.world | {"lr": 2e-4, "matched": 0.1, "mismatched": 0.01},
    "a face recogniser's loss, no fine-tuning of CLIP by it is published: FFT's recipe, frozen class texts",
    needs=("class_text", "train", "train_labels"),
    scores=("MCM", "NegLabel"),
    fit=fit,
)
