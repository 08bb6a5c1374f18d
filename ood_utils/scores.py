"""From cosines to one number per image; a HIGHER score means MORE in-distribution (ID).

``c_k`` is the cosine of an image and the text of ID class k. The temperature divides it: 1 is the raw cosine
(MCM's convention), 0.01 is CLIP's logit scale, 100. Arrays or tensors go in, numpy float64 (n,) comes out:
at temperature 1 all MCM scores of 1,000 classes lie between 0.00108 and 0.00136, too close for fp16.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit, log_expit, logsumexp

from .arrays import numbers, table, unit_tensors
from .errors import UserError

if TYPE_CHECKING:
    import torch

_ELEMENTS = 2**24  # cosines held at a time (64 MB in float32): of smaller blocks threads wait for each other
_EXACT_BELOW = 2**34  # multiplications up to which float64 products cost under a second; then they are taken


def cosines(images: Any, texts: Any) -> np.ndarray:
    """``images`` (n, d) and ``texts`` (K, d), unit rows -> (n, K) float64, the input of the scores below.

    Multiplied on the images' device, in float64 while n K d <= 2^34 or if the images are float64, else in
    float32 (right to 1e-6). Raises UserError for empty inputs, different widths and rows not of unit length.
    """
    rows, texts = unit_tensors(images=images, texts=texts)
    texts = texts.to(rows.device, _product_type(rows, len(texts)))
    blocks = rows.split(max(1, _ELEMENTS // len(texts)))
    return np.concatenate([(block.to(texts.dtype) @ texts.T).cpu().double().numpy() for block in blocks])


def mcm(cosines: Any, temperature: float = 1.0) -> np.ndarray:
    """Maximum concept matching: max_k softmax_k(c / temperature), in (1/K, 1]; ``cosines`` (n, K) -> (n,).

    Source: Ming et al. 2022 (arXiv 2211.13445), temperature 1 on raw cosines.
    Raises UserError for an empty or non-finite array, a wrong shape, or a temperature that is not positive.
    """
    return 1.0 / _partition(cosines, temperature)[1]


def msp(cosines: Any, temperature: float = 0.01) -> np.ndarray:
    """Maximum softmax probability (Hendrycks & Gimpel 2017), ``mcm`` at CLIP's scale; (n, K) -> (n,)."""
    return mcm(cosines, temperature)


def max_logit(cosines: Any) -> np.ndarray:
    """The largest cosine, max_k c_k, in [-1, 1]; (n, K) -> (n,). Needs no temperature. Errors as ``mcm``."""
    return table(cosines, "cosines").max(axis=1).astype(np.float64)


def energy(cosines: Any, temperature: float = 0.01) -> np.ndarray:
    """Negative free energy, T log sum_k exp(c_k / T) with T the temperature: a cosine's unit; (n, K) -> (n,).

    Source: Liu et al. 2020; 0.01 is the usual energy of CLIP's logits, MCM's code has 1. Errors as ``mcm``.
    """
    top, total = _partition(cosines, temperature)
    return top + temperature * np.log(total)


def neglabel(
    image_embeddings: Any, id_text: Any, negative_text: Any, temperature: float = 0.01, groups: int = 1
) -> np.ndarray:
    """NegLabel as log-odds: softmax mass on ID texts against that on negative texts; (n,) float64, unbounded.

    With P = log sum_k exp(c_k / T) over the K ID texts and N_g the same over the negative texts of group g,
    the paper scores S = mean_g sigmoid(P - N_g), which saturates at 1. Returned is its exact logit, log S -
    log(1 - S): the same order of images; for one group (CMA's choice) it is P - N.

    ``image_embeddings`` (n, d), ``id_text`` (K, d), ``negative_text`` (M, d): unit rows, computed on the
    images' device in blocks of 64 MB (float64: 128 MB). With ``groups`` > 1 the last M mod groups negatives
    are dropped, the rest permuted (always alike) and cut into equal groups; the official code's permutation
    is the GPU generator's and so differs. Products are float64 while n (K + M) d <= 2^34 or if the images are
    float64 (log-odds right to 1e-9), else float32: right to 2e-6 + 1e-6 / T, seen 6e-6 at T = 0.01.
    Source: Jiang et al. 2024 (arXiv 2403.20078), section 3. Raises UserError for inputs that ``cosines``
    refuses, a temperature that is not positive, and groups outside [1, M].
    """
    import torch
    from torch.nn.functional import logsigmoid

    named = {"image_embeddings": image_embeddings, "id_text": id_text, "negative_text": negative_text}
    images, texts, negatives = unit_tensors(**named)
    if not 1 <= groups <= len(negatives):
        raise UserError(f"groups is {groups}; choose from 1 to {len(negatives)}, the number of negatives.")
    if groups > 1:
        negatives = negatives[torch.from_numpy(_shuffled(len(negatives), groups)).to(negatives.device)]
    both = torch.cat([rows.to(images.device).double() for rows in (texts, negatives)])
    dtype = _product_type(images, len(both))
    if dtype == torch.float32:
        both -= both.mean(dim=0)  # moves P and N alike, and small products round less
    both = (both / _positive(temperature)).to(dtype)
    step = min(len(images), max(1, _ELEMENTS // len(both)))
    held = both.new_empty(step, len(both))  # one piece of memory serves every block
    scores = []
    for block in images.split(step):
        logits = torch.mm(block.to(both.dtype), both.T, out=held[: len(block)])
        ours = _log_sum(logits[:, : len(texts)].unflatten(1, (1, -1)))
        odds = ours - _log_sum(logits[:, len(texts) :].unflatten(1, (groups, -1)))  # (n, groups)
        # log S and log(1 - S) apart: neither may be computed as 1 minus the other
        scores.append(logsigmoid(odds).logsumexp(dim=1) - logsigmoid(-odds).logsumexp(dim=1))
    return torch.cat(scores).cpu().numpy()


def plain_neglabel(
    images: np.ndarray, id_text: np.ndarray, negative_text: np.ndarray, temperature: float, groups: int = 1
) -> np.ndarray:
    """``neglabel`` by numpy alone, in float64, slower, inputs unchecked: for a server without torch."""
    texts, negatives = (rows.T.astype(np.float64) / temperature for rows in (id_text, negative_text))
    if groups > 1:
        negatives = negatives[:, _shuffled(len(negative_text), groups)]
    found = []
    for block in np.array_split(images.astype(np.float64), len(images) * len(negative_text) // _ELEMENTS + 1):
        mass = logsumexp((block @ negatives).reshape(len(block), groups, -1), axis=2)
        odds = logsumexp(block @ texts, axis=1)[:, None] - mass
        found.append(logsumexp(log_expit(odds), axis=1) - logsumexp(log_expit(-odds), axis=1))
    return np.concatenate(found)


def _shuffled(count: int, groups: int) -> np.ndarray:
    """The order in which ``count`` negatives are cut into equal groups, always the same, less the rest."""
    return np.random.default_rng(0).permutation(count - count % groups)


def p_minus_beta_n(energy: np.ndarray, log_odds: np.ndarray, beta: float, temperature: float) -> np.ndarray:
    """(1 - beta) P + beta (P - N) of ``energy`` (temperature times P) and log-odds (P - N), of any shape.

    Higher = more ID. beta 0 orders images as Energy does, 1 as NegLabel. Ours.
    """
    energy, log_odds = numbers(energy, "energy"), numbers(log_odds, "log_odds")
    return (1 - beta) * (energy / temperature) + beta * log_odds


def neglabel_probability(log_odds: Any) -> np.ndarray:
    """The paper's score, in [0, 1]: the sigmoid of ``neglabel``'s log-odds; any shape, float64."""
    return expit(numbers(log_odds, "log_odds").astype(np.float64))


def _log_sum(logits: torch.Tensor) -> torch.Tensor:
    """Log-sum-exp over the last axis, put together in float64; overwrites ``logits``."""
    top = logits.amax(dim=-1, keepdim=True)
    return top.squeeze(-1).double() + logits.sub_(top).exp_().sum(dim=-1).double().log()


def _partition(cosines: Any, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """The largest cosine c of each row and sum_k exp((c_k - c) / temperature), which is at least 1."""
    cosines = table(cosines, "cosines").astype(np.float64, copy=False)
    top = cosines.max(axis=1)
    return top, np.exp((cosines - top[:, None]) / _positive(temperature)).sum(axis=1)


def _product_type(images: torch.Tensor, texts: int) -> torch.dtype:
    import torch

    exact = images.dtype == torch.float64 or images.numel() * texts <= _EXACT_BELOW
    return torch.float64 if exact else torch.float32


def _positive(temperature: float) -> float:
    if not (isinstance(temperature, Real) and math.isfinite(temperature) and temperature > 0):
        raise UserError(f"temperature is {temperature}; give a positive number (CLIP: 0.01, MCM: 1).")
    return float(temperature)
