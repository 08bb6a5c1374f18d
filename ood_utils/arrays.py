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


def numbers(values: Any, name: str, dimensions: int | None = None) -> np.ndarray:
    """An array of numbers of any shape, or filled and of so many dimensions; not copied where it is one.

    UserError for what is ragged, text, objects, complex, or in another machine's byte order.
    """
    if hasattr(values, "detach"):  # a tensor
        values = _plain(values, name).cpu()
        values = values.float() if "bfloat16" in str(values.dtype) else values  # which numpy lacks
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as fault:
        raise UserError(f"{name} is no array: {str(fault)[:80]}; give rows of one length.") from None
    if array.dtype.kind not in "buif" or array.dtype.itemsize > 8:
        raise UserError(f"{name} holds {array.dtype}, not plain numbers; give floats or integers.")
    if not array.dtype.isnative:
        remedy = f"give {name}.astype({array.dtype.newbyteorder('=').name!r})"
        raise UserError(f"{name} holds {array.dtype.str}, another machine's byte order; {remedy}.")
    if dimensions is not None:
        _check_shape(array.shape, name, dimensions)
    return array


def indices(values: Any, name: str, count: int, below: int) -> np.ndarray:
    """(count,) int64 of whole numbers in [0, below), such as labels; UserError where they are none."""
    array = numbers(values, name)
    whole = array.astype(np.int64) if np.isfinite(array).all() else np.array([])
    fits = array.shape == whole.shape == (count,) and (whole == array).all()
    if not fits or (count and not 0 <= whole.min() <= whole.max() < below):
        raise UserError(f"{name} must be {count} numbers in [0, {below}), whole ones, one per image.")
    return whole


def table(values: Any, name: str) -> np.ndarray:
    """A filled (n, d) array of finite numbers; float32 and float64 are kept, all else becomes float64."""
    return _finite(_floats(values, name, 2), name)


def vector(values: Any, name: str) -> np.ndarray:
    """A filled (n,) float64 array of finite numbers."""
    return _finite(_floats(values, name, 1), name).astype(np.float64, copy=False)


def unit_rows(**arrays: Any) -> list[np.ndarray]:
    """The arrays, each (n, d) and of unit rows within 0.005, rescaled to exact unit rows in float64.

    Raises UserError for an array that is empty, no table, of no unit rows (NaN), or not as wide as the first.
    """
    rows = {name: _floats(values, name, 2).astype(np.float64, copy=False) for name, values in arrays.items()}
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
        if not isinstance(values, torch.Tensor):  # CW: torch warns of an array that is read-only
            values = torch.from_numpy(np.require(numbers(values, name), requirements="CW"))
        values = _plain(values, name)
        rows[name] = values if values.dtype in (torch.float32, torch.float64) else values.float()
        _check_shape(values.shape, name, 2)
    lengths = {name: torch.linalg.vector_norm(table, dim=1).cpu().numpy() for name, table in rows.items()}
    _check_units(rows, lengths)
    return list(rows.values())


def _plain(values: torch.Tensor, name: str) -> torch.Tensor:
    dense = str(values.layout) == "torch.strided"
    if values.is_complex() or values.is_quantized or not dense or values.is_meta:
        raise UserError(
            f"{name} is a {values.dtype} tensor, {values.layout}; give a dense one of real numbers."
        )
    return values.detach()


def _floats(values: Any, name: str, dimensions: int) -> np.ndarray:
    array = numbers(values, name, dimensions)
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
