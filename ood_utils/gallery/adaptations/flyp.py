"""FLYP: fine-tune as it was pretrained, both towers, by CLIP's own loss on images and prompted class names.

L_CLIP = 1/2B sum_k [LSE_j S_kj + LSE_j S_jk] - 1/B sum_k S_kk. Source: arXiv 2212.00638; core_methods 2.
Changed: one prompt (as in CMA's baseline), not 80; the profile's batch, rate and steps.
"""

from .. import Adaptation

# of FLYP and of CMA alike (core_methods 1.4): ImageNet, ViT-B/16
PAPER = {
    "epochs": 10,
    "batch": 512,
    "lr": 1e-5,
    "warmup": 500,
    "weight_decay": 0.1,
    "decay_all": True,
    "scale_mode": "learned",
}
SCORES = ("MCM", "NegLabel")  # of CMA's table

ADAPTATION = Adaptation(
    "FLYP",
    2023,
    "Goyal et al. (arXiv 2212.00638)",
    "full",
    PAPER,
    {},
    "one prompt instead of 80; this world's steps, batch and rate are the profile's",
    scores=SCORES,
    recipe={"objective": "clip", "lam": 0.0},
)
