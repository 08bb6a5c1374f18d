"""Linear probe: a linear head on the frozen image rows, started from the class texts.

L = CE(softmax((W f + b) / tau), y); W begins as the class texts, b as 0, so step 0 is zero-shot.
Source: CMA's table (arXiv 2503.18817); its settings are not known: rate and steps are COOkeD's probe's, and
the batch ours. Changed: on kept rows of unaugmented images; no negatives (see ``heads.apply``).
"""

from .. import Adaptation, State, Task, heads


def fit(task: Task) -> State:
    """State of ``heads.kept``."""
    head = heads.start(task.known)
    heads.probe(task, head, **task.hyper)
    return heads.kept(head)


ADAPTATION = Adaptation(
    "LP",
    2021,
    "linear probe, as in CMA's table (arXiv 2503.18817)",
    "full",
    {"steps": 50_000, "batch": 512, "lr": 1e-5, "optimiser": "sgd"},  # 0.1 on logits, so tau^2 of it here
    {"steps": 300, "batch": 512, "lr": 3e-4, "weight_decay": 0.0},
    "started from the class texts; AdamW; unaugmented images",
    needs=("class_text", "train", "train_labels"),
    scores=("MSP", "Energy"),
    fit=fit,
    apply=heads.apply,
)
