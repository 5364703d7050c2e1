"""Sizes of tensors at any scale, and the tensors of nested values."""

from __future__ import annotations

import math
from collections import namedtuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradscope.capture.magnitude import float_tensors, l2, rms, root_mean_square


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=20), st.integers(-100, 100))
def test_l2_at_any_scale(values: list[float], power: int) -> None:
    tensor = torch.tensor(values) * 2.0**power
    expected = float(torch.linalg.vector_norm(tensor.double() / 2.0**power)) * 2.0**power
    assert l2(tensor) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
def test_l2_of_every_kind(dtype: torch.dtype) -> None:
    assert l2(torch.tensor([3.0, 4.0], dtype=dtype)) == 5
    assert rms(torch.full((4,), 2.0, dtype=dtype)) == 2


def test_l2_of_sparse_empty_zero_and_nonfinite() -> None:
    assert l2(torch.tensor([0.0, 3.0, 4.0]).to_sparse()) == 5
    assert l2(torch.zeros(0)) == 0
    assert l2(torch.zeros(3)) == 0
    assert l2(torch.tensor([1.0, math.inf])) == math.inf
    assert math.isnan(l2(torch.tensor([1.0, math.nan])))
    assert math.isnan(rms(torch.zeros(0)))


@pytest.mark.parametrize(
    ("values", "expected"),
    [([3.0, 4.0], math.sqrt(12.5)), ([1e200, math.nan], 1e200), ([0.0], 0.0), ([math.inf], math.inf)],
)
def test_root_mean_square(values: list[float], expected: float) -> None:
    assert root_mean_square(values) == expected
    assert math.isnan(root_mean_square([]))


def test_float_tensors_of_nested_values() -> None:
    pair = namedtuple("pair", ["x", "y"])
    one, two, three = torch.ones(1), torch.ones(2, dtype=torch.complex64), torch.ones(3)
    value = {"a": [one, 3, "words"], "b": pair(torch.tensor([1]), (two, {"c": three})), "d": None}
    assert [len(tensor) for tensor in float_tensors(value)] == [1, 2, 3]
