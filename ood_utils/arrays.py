"""Checked arrays: what every formula asks of its inputs, in one place."""

from __future__ import annotations

import numpy as np

from .errors import UserError

UNIT_TOLERANCE = (
    5e-3  # how far a row's length may be from 1: float16 CLIP features stray by 6e-4, bfloat16 ones by 4e-3
)


def unit_rows(**arrays: np.ndarray) -> list[np.ndarray]:
    """The arrays, each (n, d), checked and rescaled to exact unit rows in float64.

    Raises UserError naming the array that is empty, not two-dimensional, not of unit rows (NaN
    included), or of another width than the first.
    """
    checked, width = [], None
    for name, array in arrays.items():
        array = np.asarray(array, dtype=np.float64)
        if array.ndim != 2 or not array.size:
            raise UserError(
                f"{name} must be a non-empty (n, d) array of embeddings, not of shape {array.shape}."
            )
        norms = np.linalg.norm(array, axis=1, keepdims=True)
        if not (np.abs(norms - 1) < UNIT_TOLERANCE).all():
            worst = norms[np.argmax(np.nan_to_num(np.abs(norms - 1), nan=np.inf))].item()
            raise UserError(f"{name} has a row of length {worst:.3g}; divide each row by its length first.")
        if width is not None and array.shape[1] != width[1]:
            raise UserError(
                f"{name} is {array.shape[1]} wide but {width[0]} is {width[1]}; embed both with one and the same model."
            )
        width = width or (name, array.shape[1])
        checked.append(array / norms)
    return checked
