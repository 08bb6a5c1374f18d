"""SCT: LoCoOp in which an image counts by how sure the model already is of it.

Images it is sure of have background to teach from; unsure ones first need their class. With p_y the softmax
probability of the true class (through which the gradient flows, as in the released code):

    L = mean[ (1 - p_y) CE ] - lam mean_{p in J} [ p_y H(pi_p) ]

Constant weights are LoCoOp. Source: Yu et al. 2024 (arXiv 2411.03359). The paper sweeps lam over 0.2 to 0.4
and evaluates OoD test sets at each; here it is LoCoOp's 0.25.
"""

from functools import partial

from torch import Tensor

from .. import Adaptation
from ..prompts import apply
from . import coop, locoop


def calibrated(sure: Tensor) -> tuple[Tensor, Tensor]:
    """(1 - p_y, p_y), kept off zero by the released code's 1e-7."""
    return 1 + 1e-7 - sure, sure + 1e-7


ADAPTATION = Adaptation(
    "SCT",
    2024,
    "Yu et al. 2024 (arXiv 2411.03359)",
    "few-shot",
    coop.PAPER | {"epochs": 25, "lam": 0.25, "top": 0.2},
    coop.WORLD | {"lam": 0.25, "top": 0.2},
    f"as LoCoOp and CoOp: {coop.NOTE}",
    needs=("class_text", "train"),
    scores=("MCM", "GL-MCM"),
    fit=partial(locoop.fit, name="SCT", weigh=calibrated),
    apply=apply,
)
