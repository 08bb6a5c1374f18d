"""The one validator of the formula rooms: what passes, in which form, and what is refused in which words."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ood_utils import geometry, negatives, scores
from ood_utils.arrays import indices, table, unit_rows, unit_tensors, vector
from ood_utils.errors import UserError

ROWS = np.eye(4, dtype=np.float32)[:3]


def test_units_are_rescaled_in_float64() -> None:
    rough = torch.from_numpy(ROWS * np.float32(1.002))
    for given in (rough, rough.numpy(), rough.tolist(), rough.bfloat16(), rough.half().requires_grad_()):
        found, again = unit_rows(a=given, b=ROWS)
        np.testing.assert_array_equal(found, ROWS)
        assert found.dtype == again.dtype == np.float64


@pytest.mark.filterwarnings("error")
def test_tensors_share_memory_and_keep_their_length() -> None:
    rows = ROWS * np.float32(1.004)
    (found,) = unit_tensors(a=rows)
    assert found.data_ptr() == rows.ctypes.data and found.dtype == torch.float32
    (same,) = unit_tensors(a=found.requires_grad_())
    assert same.data_ptr() == found.data_ptr() and not same.requires_grad
    rows.setflags(write=False)
    assert torch.equal(unit_tensors(a=rows)[0], found)
    wide, half = unit_tensors(a=ROWS.astype(np.float64), b=torch.from_numpy(ROWS).half())
    assert (wide.dtype, half.dtype) == (torch.float64, torch.float32)


def test_tables_and_vectors() -> None:
    assert table(ROWS, "a") is ROWS and table([[1, 2]], "a").dtype == np.float64
    assert vector(torch.ones(3, dtype=torch.bfloat16), "a").dtype == np.float64
    np.testing.assert_array_equal(vector([1, 2], "a"), [1.0, 2.0])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: table(np.ones(3), "words"),
            r"words has shape \(3,\); give a filled table \(rows, columns\)",
        ),
        (lambda: table(np.ones((0, 3)), "words"), r"words has shape \(0, 3\)"),
        (lambda: table([[1.0, np.nan]], "words"), "words has 1 value.s. that are NaN or infinite"),
        (lambda: vector(3.0, "scores"), r"scores has shape \(\); give a filled 1-D array"),
        (lambda: vector([], "scores"), r"scores has shape \(0,\)"),
        (lambda: vector([np.inf, 0.0], "scores"), "scores has 1 value"),
    ],
)
def test_tables_and_vectors_are_refused_in_one_sentence(call: object, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("units", [unit_rows, unit_tensors])
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (ROWS * 1.006, r"b must hold rows of length 1 \(within 0.005\), but row 0 has length 1.006; divide"),
        (np.where(ROWS == 0, np.nan, ROWS), "row 0 has length nan"),
        (ROWS[:, :3] * [[1.0], [1.0], [0.0]], "row 2 has length 0"),
        (ROWS[:, :3], "b is 3 wide but a is 4; embed both"),
        (ROWS[0], r"b has shape \(4,\)"),
        (ROWS[:0], r"b has shape \(0, 4\)"),
    ],
)
def test_rows_that_are_no_units_are_refused(units: object, bad: np.ndarray, words: str) -> None:
    for given in (bad, torch.tensor(bad)):
        with pytest.raises(UserError, match=words) as caught:
            units(a=ROWS, b=given)
        assert "\n" not in str(caught.value)


NO_NUMBERS = {
    "holds object, not plain numbers": np.array([[0.6, None]], dtype=object),
    "holds <U1, not plain numbers": [["a", "b"]],
    "holds complex128, not plain": np.array([[1j, 0]]),
    "another machine's byte order; give .*astype": np.array([[0.6, 0.8]], dtype=">f4"),
    "is no array": [[1.0], [1.0, 2.0]],
    "tensor, torch.sparse_coo; give a dense one": torch.eye(2).to_sparse(),
}


@pytest.mark.parametrize("said", NO_NUMBERS)
@pytest.mark.parametrize(
    "call",
    [
        lambda bad: table(bad, "a"),
        lambda bad: unit_rows(a=bad),
        lambda bad: scores.mcm(bad),
        lambda bad: scores.cosines(ROWS, bad),
        lambda bad: scores.neglabel(ROWS, ROWS, bad),
        lambda bad: scores.neglabel_probability(bad),
        lambda bad: geometry.centroid_gap(bad, ROWS),
        lambda bad: geometry.alignment(ROWS, bad),
        lambda bad: geometry.uniformity(bad),
        lambda bad: geometry.matched_uniformity(bad, ROWS),
        lambda bad: geometry.margins(ROWS, bad, ROWS),
        lambda bad: negatives.mine(bad, ROWS),
        lambda bad: negatives.build([("a", "noun")], bad, ROWS),
    ],
)
def test_what_is_no_array_of_numbers_is_refused_in_one_sentence(call: object, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        call(NO_NUMBERS[said])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "bad", [["a"] * 3, [0.5, 1, 2], [0, 1, np.nan], [0, 1], [[0], [1], [2]], [0, 1, 3], [-1, 0, 1]]
)
def test_labels_are_whole_numbers_of_classes(bad: list) -> None:
    for call in (lambda: indices(bad, "labels", 3, 3), lambda: geometry.per_class_gap(ROWS, bad, ROWS)):
        with pytest.raises(
            UserError, match="labels (must be 3 numbers in .0, 3.|holds <U1, not plain numbers)"
        ):
            call()
    assert indices([2.0, 0.0], "labels", 2, 3).dtype == np.int64


def test_a_temperature_is_a_number() -> None:
    with pytest.raises(UserError, match="temperature is warm; give a positive number"):
        scores.mcm(ROWS, "warm")
