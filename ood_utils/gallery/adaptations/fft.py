"""Full fine-tuning: the whole image tower and a linear head, started from the class texts, by cross-entropy.

L = CE(softmax((W f(x) + b) / tau), y), f the unit image row. Source: CMA's table (arXiv 2503.18817), where
it has with Energy the best near-OoD AUROC; its settings are not known, so FLYP's are taken. Changed: this
world's steps and batch are those of the profile's fine-tunings; no negatives (see ``heads.apply``).
"""

from .. import Adaptation, State, Task, heads


def fit(task: Task) -> State:
    """State of ``heads.kept``; the tower is in ``task.folder / "model.safetensors"``."""
    return heads.tune_with("FFT", task, heads.start(task.known), **task.hyper)


ADAPTATION = Adaptation(
    "FFT",
    2022,
    "full fine-tuning, as in CMA's table (arXiv 2503.18817)",
    "full",
    {"steps": 25_030, "batch": 512, "lr": 1e-5, "warmup": 500, "weight_decay": 0.1},
    {"steps": 150, "batch": 128, "lr": 5e-4, "warmup": 20, "weight_decay": 0.1},
    "started from the class texts; FLYP's settings, as CMA's are not known",
    needs=("class_text", "train", "train_labels"),
    scores=("MSP", "Energy"),
    fit=fit,
    apply=heads.apply,
)
