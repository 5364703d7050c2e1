"""Weights before the first step, gate by gate."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gradscope.capture.gains import GainProbe
from gradscope.capture.trials import scaled_layer
from tests.capture.small_workloads import workload


def gates(model: nn.Module) -> dict[tuple[str, int], float]:
    """The gate_scale probe, as the first sampled step emits it."""
    found: dict[tuple[str, int], float] = {}

    def emit(probe: str, subjects: object, values: object, index: object = None) -> None:
        if probe == "gate_scale":
            found.update(zip(zip(subjects, index, strict=True), values, strict=True))  # type: ignore[call-overload]

    probe = GainProbe(model)
    for step in (0, 1):
        probe.begin(step)
        probe.end(step, emit)
    return found


@pytest.mark.parametrize(("kind", "count"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.LSTMCell, 4), (nn.GRUCell, 3)])
def test_every_gate_of_both_matrices(kind: type[nn.Module], count: int) -> None:
    layer = kind(5, 6)
    suffix = "" if kind.__name__.endswith("Cell") else "_l0"
    hidden = layer.get_parameter(f"weight_hh{suffix}")
    with torch.no_grad():
        hidden[6:12].fill_(2.0)
    found = gates(nn.ModuleDict({"rnn": layer}))
    assert set(found) == {(f"rnn.weight_{m}{suffix}", gate) for m in ("ih", "hh") for gate in range(count)}
    assert found[f"rnn.weight_hh{suffix}", 1] == pytest.approx(2 * math.sqrt(6))
    expected = hidden[:6].square().mean().sqrt().item() * math.sqrt(6)
    assert found[f"rnn.weight_hh{suffix}", 0] == pytest.approx(expected, rel=1e-5)


def test_a_layer_without_gates_has_none() -> None:
    assert gates(nn.Sequential(nn.RNN(3, 3), nn.Linear(3, 3))) == {}


@pytest.mark.parametrize(("what", "rows"), [("rnn.weight_hh_l0", slice(0, 16)), ("rnn.weight_hh_l0[4:8]", slice(4, 8))])
def test_a_matrix_or_a_gate_can_be_scaled_alone(what: str, rows: slice) -> None:
    work = workload(nn.ModuleDict({"rnn": nn.LSTM(3, 4)}))
    before = {name: value.detach().clone() for name, value in work.model.named_parameters()}
    expected = before["rnn.weight_hh_l0"].clone()
    expected[rows] *= 0.5
    change = scaled_layer(what, 0.5).prepare
    assert change
    with torch.no_grad():
        change(work)
    after = dict(work.model.named_parameters())
    assert torch.equal(after.pop("rnn.weight_hh_l0"), expected)
    assert all(torch.equal(value, before[name]) for name, value in after.items())
