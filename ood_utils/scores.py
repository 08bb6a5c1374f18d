"""From cosines to one number per image; a HIGHER score means MORE in-distribution (ID).

``c_k = i . t_k`` is the cosine of image i and the text of ID class k (both unit length). Every function takes numpy
arrays or torch tensors and returns a numpy float64 array (n,), because at temperature 1 all MCM scores of 1,000
classes lie between 0.00108 and 0.00136 and fp16 would leave a few hundred distinct ones.

The temperature divides the cosines: 1 is the raw cosine (MCM's convention), 0.01 is CLIP's logit scale of 100.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.special import expit

from .errors import UserError

SCORES = ("MSP", "MaxLogit", "Energy", "MCM", "NegLabel")
_ELEMENTS = 2**22  # cosines held at a time (16 MB in float32): enough for full BLAS speed, still in the cache
_EXACT_BELOW = (
    2**34
)  # multiplications up to which float64 products cost under a second; then they are the default
_HEAVY = 0.07  # share of a result from which a float32 term is computed again in float64
_TOLERANCE = 1e-3  # how far a row's length may be from 1


def mcm(cosines: Any, temperature: float = 1.0) -> np.ndarray:
    """Maximum concept matching: max_k softmax_k(c / temperature), in (1/K, 1]; ``cosines`` (n, K) -> (n,).

    Source: Ming et al. 2022 (arXiv 2211.13445), temperature 1 on raw cosines.
    Raises UserError for an empty or non-finite array, a wrong shape, or a temperature that is not positive.
    """
    return 1.0 / _partition(_cosines(cosines), temperature)[1]


def msp(cosines: Any, temperature: float = 0.01) -> np.ndarray:
    """Maximum softmax probability of the logits c / temperature: MCM at CLIP's logit scale; (n, K) -> (n,).

    Source: Hendrycks & Gimpel 2017; formula and errors as ``mcm``.
    """
    return mcm(cosines, temperature)


def max_logit(cosines: Any) -> np.ndarray:
    """The largest cosine, max_k c_k, in [-1, 1]; (n, K) -> (n,). Needs no temperature. Errors as ``mcm``."""
    return _cosines(cosines).max(axis=1)


def energy(cosines: Any, temperature: float = 0.01) -> np.ndarray:
    """Negative free energy, temperature * log sum_k exp(c_k / temperature), in units of a cosine; (n, K) -> (n,).

    Source: Liu et al. 2020; 0.01 is the usual energy of CLIP's logits, MCM's code has temperature 1. Errors as ``mcm``.
    """
    top, total = _partition(_cosines(cosines), temperature)
    return top + temperature * np.log(total)


def neglabel(
    image_embeddings: Any,
    id_text: Any,
    negative_text: Any,
    temperature: float = 0.01,
    groups: int = 1,
    seed: int = 0,
    exact: bool | None = None,
) -> np.ndarray:
    """NegLabel as log-odds: the share of softmax mass on ID texts against negative texts; (n,) float64, unbounded.

    With P = log sum_k exp(c_k / T) over the K ID texts and N_g the same over the negative texts of group g, the paper
    scores S = mean_g sigmoid(P - N_g), which saturates at 1. Returned is its exact logit, log S - log(1 - S): the same
    order of images, no saturation. For one group it is P - N. ``neglabel_probability`` gives S back.

    ``image_embeddings`` (n, d), ``id_text`` (K, d), ``negative_text`` (M, d): unit rows, arrays or tensors (computed on
    the device of the images if they are tensors). With ``groups`` > 1 the last M mod groups negatives are dropped,
    then the rest permuted by a CPU generator of its own seeded with ``seed`` and cut into equal groups, as in the
    official code (whose permutation is drawn by the GPU's generator and so differs). Images are streamed: beyond the
    inputs memory is a few blocks of 16 MB (float64: 32 MB) and two copies of the texts.

    ``exact``: products in float64 (equal to a float64 reference to 1e-9), or in float32, centred and with the heavy
    terms computed again (equal to 1e-6 in log-odds at temperature 0.01, twice as fast); None takes float64 while
    n (K + M) d <= 2^34 or if the images are float64. Source: Jiang et al. 2024 (arXiv 2403.20078), section 3; ``groups`` = 1 is what CMA uses.
    Raises UserError for empty inputs, different widths, rows that are not unit length within 1e-3 (or NaN), a
    temperature that is not positive, and groups outside [1, M].
    """
    images, texts = _unit_rows(image_embeddings, "image_embeddings"), _unit_rows(id_text, "id_text")
    negatives = _unit_rows(negative_text, "negative_text")
    for name, rows in (("id_text", texts), ("negative_text", negatives)):
        _same_width(images, rows, name)
    if not 1 <= groups <= len(negatives):
        raise UserError(
            f"groups is {groups}; choose a number from 1 to {len(negatives)}, the number of negative texts."
        )
    temperature = _positive(temperature)
    kept = len(negatives) - len(negatives) % groups
    if groups > 1:
        order = torch.randperm(kept, generator=torch.Generator().manual_seed(seed))
        negatives = negatives[order.to(negatives.device)]
    dtype = _product_type(images, len(texts) + kept, exact)
    if (
        dtype == torch.float32
    ):  # a vector taken off every text moves P and N alike, and small products round less
        centre = torch.cat([texts, negatives]).double().mean(0)
        texts, negatives = (rows.double() - centre for rows in (texts, negatives))
    step = max(1, _ELEMENTS // (len(texts) + kept))
    sides = [
        _Side((rows.double() / temperature).to(images.device), dtype, min(step, len(images)), parts)
        for rows, parts in ((texts, 1), (negatives, groups))
    ]
    parts = [_log_odds(block.to(dtype), *sides) for block in images.split(step)]
    return torch.cat(parts).cpu().numpy()


def neglabel_probability(log_odds: Any) -> np.ndarray:
    """The score of the NegLabel paper, in [0, 1]: the sigmoid of ``neglabel``'s log-odds; any shape, float64."""
    return expit(np.asarray(log_odds, dtype=np.float64))


def all_scores(
    images: Any, class_text: Any, negative_text: Any | None, temperature: float = 0.01, groups: int = 1
) -> dict[str, np.ndarray]:
    """Every score of unit embeddings ``images`` (n, d): name -> (n,) float64, names in the order of ``SCORES``.

    ``class_text`` (K, d), ``negative_text`` (M, d) or None (then without NegLabel). ``temperature`` is that of MSP,
    Energy and NegLabel; MCM keeps its own 1. Cosines are streamed. Errors as ``neglabel``.
    """
    rows, texts = _unit_rows(images, "images"), _unit_rows(class_text, "class_text")
    _same_width(rows, texts, "class_text")
    _positive(temperature)
    dtype = _product_type(rows, len(texts), None)
    texts = texts.to(rows.device, dtype)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in SCORES[:4]}
    for block in rows.split(max(1, _ELEMENTS // len(texts))):
        cosines = (block.to(dtype) @ texts.T).cpu().double().numpy()
        for name, part in zip(
            SCORES[:4],
            (msp(cosines, temperature), max_logit(cosines), energy(cosines, temperature), mcm(cosines)),
            strict=True,
        ):
            parts[name].append(part)
    scores = {name: np.concatenate(part) for name, part in parts.items()}
    if negative_text is not None:
        scores["NegLabel"] = neglabel(images, class_text, negative_text, temperature, groups)
    return scores


def _log_odds(images: torch.Tensor, ours: _Side, theirs: _Side) -> torch.Tensor:
    """Logit of mean_g sigmoid(P - N_g), (n,) float64."""
    ours.meet(images)
    theirs.meet(images)
    if images.dtype != torch.float64:
        ours.recompute(images, torch.ones_like(ours.total))
        theirs.recompute(images, _group_weights(ours.log() - theirs.log()))
    odds = ours.log() - theirs.log()  # (n, groups)
    if odds.shape[1] == 1:
        return odds[:, 0]
    inside, outside = _log_sigmoids(odds)
    return inside.logsumexp(dim=1) - outside.logsumexp(dim=1)


def _log_sigmoids(odds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log S and log(1 - S) apart: neither may be computed as 1 minus the other."""
    return torch.nn.functional.logsigmoid(odds), torch.nn.functional.logsigmoid(-odds)


def _group_weights(odds: torch.Tensor) -> torch.Tensor:
    """How much the logit of mean_g sigmoid(odds_g) moves with each odds_g; (n, groups), 1 for one group."""
    inside, outside = _log_sigmoids(odds)
    both = inside.logsumexp(dim=1, keepdim=True) + outside.logsumexp(dim=1, keepdim=True)
    return (inside + outside - both).exp() * odds.shape[1]


class _Side:
    """The ID texts or the negatives: terms exp(l - top) of a block of images' logits l = c / T, and their sums a group.

    The largest logit and the log of the sum are put together in float64: a float32 near 30 would round to 1e-6. One
    piece of memory serves every block.
    """

    def __init__(self, texts: torch.Tensor, dtype: torch.dtype, images: int, groups: int) -> None:
        self.exact, self.texts, self.groups = texts, texts.to(dtype), groups
        self.held = self.texts.new_empty(images, len(texts))

    def meet(self, images: torch.Tensor) -> None:
        """Compute the terms of these images."""
        logits = torch.mm(images, self.texts.T, out=self.held[: len(images)]).view(
            len(images), self.groups, -1
        )
        top = logits.amax(dim=-1, keepdim=True)
        self.terms = logits.sub_(top).exp_()
        self.top, self.total = top.squeeze(-1).double(), self.terms.sum(dim=-1).double()

    def log(self) -> torch.Tensor:
        """Log-sum-exp of the logits, (n, groups) float64."""
        return self.top + self.total.log()

    def recompute(self, images: torch.Tensor, weights: torch.Tensor) -> None:
        """Put float64 logits where a term is more than ``_HEAVY`` of the result; ``weights`` (n, groups).

        The rounding of the many light terms averages out, that of a heavy one does not.
        """
        least = _HEAVY * self.total / weights
        some, part = (least < 1).nonzero(
            as_tuple=True
        )  # the largest term is 1: all other rows hold no heavy one
        found, column = (self.terms[some, part] > least[some, part, None].to(self.terms.dtype)).nonzero(
            as_tuple=True
        )
        row, group = some[found], part[found]
        exact = (images[row].double() * self.exact[group * self.terms.shape[2] + column]).sum(dim=-1)
        change = (exact - self.top[row, group]).exp() - self.terms[row, group, column]
        self.total.index_put_((row, group), change, accumulate=True)


def _partition(cosines: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """The largest cosine c of each row and sum_k exp((c_k - c) / temperature), which is at least 1."""
    top = cosines.max(axis=1)
    return top, np.exp((cosines - top[:, None]) / _positive(temperature)).sum(axis=1)


def _product_type(images: torch.Tensor, texts: int, exact: bool | None) -> torch.dtype:
    if exact is None:
        exact = images.dtype == torch.float64 or images.numel() * texts <= _EXACT_BELOW
    return torch.float64 if exact else torch.float32


def _cosines(values: Any) -> np.ndarray:
    """Checked (n, K) float64."""
    values = values.detach().cpu().double().numpy() if isinstance(values, torch.Tensor) else values
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.size == 0:
        raise UserError(f"cosines have shape {array.shape}; give a filled table (images, classes).")
    if not np.isfinite(array).all():
        raise UserError(
            "cosines hold NaN or infinity; find the embeddings that failed and encode them again."
        )
    return array


def _unit_rows(values: Any, name: str) -> torch.Tensor:
    """Checked (n, d) tensor of unit rows; shares memory with a numpy array."""
    if not isinstance(
        values, torch.Tensor
    ):  # a read-only array (a memory map) is copied, else torch would warn
        values = torch.from_numpy(np.require(values, requirements="CW"))
    rows = values.detach()
    if rows.ndim != 2 or rows.numel() == 0:
        raise UserError(
            f"{name} has shape {tuple(rows.shape)}; give a filled table (rows, width) of embeddings."
        )
    rows = rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
    off = (torch.linalg.vector_norm(rows, dim=1) - 1).abs()
    if not bool((off <= _TOLERANCE).all()):  # also false for NaN
        worst = int(torch.argmax(off.nan_to_num(nan=math.inf)))
        raise UserError(
            f"{name} must hold rows of length 1 (within {_TOLERANCE}), but row {worst} has length "
            f"{float(torch.linalg.vector_norm(rows[worst])):.4g}; normalise the embeddings first."
        )
    return rows


def _same_width(images: torch.Tensor, rows: torch.Tensor, name: str) -> None:
    if rows.shape[1] != images.shape[1]:
        raise UserError(
            f"{name} has width {rows.shape[1]} but the images have {images.shape[1]}; encode both with the same model."
        )


def _positive(temperature: float) -> float:
    if not (math.isfinite(temperature) and temperature > 0):
        raise UserError(
            f"temperature is {temperature}; give a positive number (CLIP's logits: 0.01, MCM: 1)."
        )
    return float(temperature)
