"""Checked arrays: what every formula asks of its inputs, numpy arrays, torch tensors of any device or lists.

A fault is one ``UserError`` naming the array, what is wrong with it, and the remedy. torch is imported where
there are tensors: what serves a detector by ONNX has only numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import UserError

if TYPE_CHECKING:
    import torch

UNIT_TOLERANCE = 5e-3  # of a row's length: CLIP's float16 features stray by 6e-4, bfloat16 ones by 4e-3


def table(values: Any, name: str) -> np.ndarray:
    """A filled (n, d) array of finite numbers; float32 and float64 are kept, all else becomes float64."""
    return _finite(_numbers(values, name, 2), name)


def vector(values: Any, name: str) -> np.ndarray:
    """A filled (n,) float64 array of finite numbers."""
    return _finite(_numbers(values, name, 1), name).astype(np.float64, copy=False)


def unit_rows(**arrays: Any) -> list[np.ndarray]:
    """The arrays, each (n, d) and of unit rows within 0.005, rescaled to exact unit rows in float64.

    Raises UserError for an array that is empty, no table, of no unit rows (NaN), or not as wide as the first.
    """
    rows = {name: _numbers(values, name, 2).astype(np.float64, copy=False) for name, values in arrays.items()}
    lengths = {name: np.linalg.norm(table, axis=1) for name, table in rows.items()}
    _check_units(rows, lengths)
    return [table / lengths[name][:, None] for name, table in rows.items()]


def unit_tensors(**arrays: Any) -> list[torch.Tensor]:
    """As ``unit_rows``, but tensors that share the inputs' memory: on their device, not rescaled.

    float32 and float64 are kept, all else becomes float32; a read-only array (a memory map) is copied.
    """
    import torch

    rows = {}
    for name, values in arrays.items():
        if not isinstance(values, torch.Tensor):
            values = torch.from_numpy(np.require(values, requirements="CW"))  # W: torch warns otherwise
        values = values.detach()
        rows[name] = values if values.dtype in (torch.float32, torch.float64) else values.float()
        _check_shape(values.shape, name, 2)
    lengths = {name: torch.linalg.vector_norm(table, dim=1).cpu().numpy() for name, table in rows.items()}
    _check_units(rows, lengths)
    return list(rows.values())


def _numbers(values: Any, name: str, dimensions: int) -> np.ndarray:
    if hasattr(values, "detach"):  # a tensor
        values = values.detach().cpu()
        values = values.float() if "bfloat16" in str(values.dtype) else values  # which numpy lacks
    array = np.asarray(values)
    _check_shape(array.shape, name, dimensions)
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)


def _finite(array: np.ndarray, name: str) -> np.ndarray:
    if bad := int(array.size - np.isfinite(array).sum()):
        raise UserError(f"{name} has {bad} value(s) that are NaN or infinite; find out what failed there.")
    return array


def _check_shape(shape: tuple[int, ...], name: str, dimensions: int) -> None:
    if len(shape) != dimensions or 0 in shape:
        wanted = "filled table (rows, columns)" if dimensions == 2 else "filled 1-D array"
        raise UserError(f"{name} has shape {tuple(shape)}; give a {wanted}.")


def _check_units(rows: Mapping[str, Any], lengths: Mapping[str, np.ndarray]) -> None:
    first, width = next((name, table.shape[1]) for name, table in rows.items())
    for name, table in rows.items():
        off = np.nan_to_num(np.abs(lengths[name] - 1), nan=np.inf)
        worst = int(off.argmax())
        if off[worst] > UNIT_TOLERANCE:
            found = f"row {worst} has length {lengths[name][worst]:.4g}; divide each row by its length first"
            raise UserError(f"{name} must hold rows of length 1 (within {UNIT_TOLERANCE}), but {found}.")
        if table.shape[1] != width:
            found = f"{name} is {table.shape[1]} wide but {first} is {width}"
            raise UserError(f"{found}; embed both with one and the same model.")
