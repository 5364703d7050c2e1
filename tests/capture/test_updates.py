"""Updates and learning rates, by parameter."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from gradscope.capture.updates import UpdateProbe
from tests.capture.test_gains import Collected, Rows, scalar


def stepped(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], *, take: bool = True) -> Rows:
    probe, seen = UpdateProbe(model, optimizers), Collected()
    probe.begin(0)
    scalar(model(torch.randn(8, 4))).backward()  # type: ignore[no-untyped-call]
    for optimizer in optimizers if take else ():
        optimizer.step()
    probe.end(0, seen)
    assert probe.unmeasured == {}
    return seen.rows


def test_an_update_is_the_change_over_the_step() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    groups = [{"params": model[0].parameters(), "lr": 0.5}, {"params": [model[1].weight]}]
    rows = stepped(model, [torch.optim.SGD(groups, lr=0.1), torch.optim.Adam([model[1].bias], lr=0.01)])
    for name, parameter in model.named_parameters():
        assert rows["weight_norm"][name] == pytest.approx(float(before[name].norm()))
        assert rows["update_norm"][name] == pytest.approx(float((parameter - before[name]).detach().norm()))
    rates = {"0.weight": 0.5, "0.bias": 0.5, "1.weight": 0.1, "1.bias": 0.01}
    assert rows["parameter_lr"] == rates
    assert rows["update_norm"]["1.bias"] == pytest.approx(0.01, rel=1e-3)


def test_frozen_and_unheld_parameters() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    model[0].requires_grad_(False)
    rows = stepped(model, [torch.optim.SGD([model[1].weight], lr=0.1)])
    assert set(rows["weight_norm"]) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert set(rows["update_norm"]) == {"1.weight", "1.bias"}
    assert rows["update_norm"]["1.bias"] == 0
    assert set(rows["parameter_lr"]) == {"1.weight"}


def test_a_skipped_step_changes_nothing() -> None:
    model = nn.Linear(4, 1)
    assert set(stepped(model, [torch.optim.SGD(model.parameters())], take=False)["update_norm"].values()) == {0.0}


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_sizes_beyond_what_can_be_squared(size: float) -> None:
    model = nn.Linear(4, 1, bias=False)
    nn.init.constant_(model.weight, size)
    probe, seen = UpdateProbe(model, ()), Collected()
    probe.begin(0)
    with torch.no_grad():
        model.weight.mul_(3)
    probe.end(0, seen)
    assert seen.rows["weight_norm"]["weight"] == pytest.approx(2 * size)
    assert seen.rows["update_norm"]["weight"] == pytest.approx(4 * size)


def test_an_update_that_is_no_number_stays_visible() -> None:
    model = nn.Linear(4, 1, bias=False)
    probe, seen = UpdateProbe(model, ()), Collected()
    probe.begin(0)
    nn.init.constant_(model.weight, math.nan)
    probe.end(0, seen)
    assert math.isnan(seen.rows["update_norm"]["weight"])


def test_nothing_is_said_without_a_step() -> None:
    seen = Collected()
    UpdateProbe(nn.Linear(2, 2), ()).end(0, seen)
    assert seen.rows == {}
