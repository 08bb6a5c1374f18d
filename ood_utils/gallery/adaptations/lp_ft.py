"""LP-FT: first the linear probe, then the full fine-tuning from it: no raw head tears the tower.

L as in LP, then as in FFT. Source: Kumar et al. (arXiv 2202.10054); CMA's table, whose settings are not
known. Changed: both steps start from the class texts, so that even the first head is not raw.
"""

from .. import Adaptation, State, Task, heads
from . import fft, lp


def fit(task: Task) -> State:
    """State of ``heads.kept``; the tower is in ``task.folder / "model.safetensors"``."""
    tuning = dict(task.hyper)
    head = heads.start(task.known)
    heads.probe(task, head, **tuning.pop("probe"))
    return heads.tune_with("LP-FT", task, head, **tuning)


ADAPTATION = Adaptation(
    "LP-FT",
    2022,
    "Kumar et al. (arXiv 2202.10054)",
    "full",
    fft.ADAPTATION.paper | {"probe": lp.ADAPTATION.paper},
    fft.ADAPTATION.world | {"probe": lp.ADAPTATION.world},
    "the probe starts from the class texts",
    needs=("class_text", "train", "train_labels"),
    scores=("MSP", "Energy"),
    fit=fit,
    apply=heads.apply,
)
