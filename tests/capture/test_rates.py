"""Planned learning rates equal those that training through the schedule gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler as schedule

from gradscope.capture import rates
from gradscope.capture.rates import PlannedRates
from gradscope.runs.schema import Plan
from gradscope.workload.model import Workload
from tests.capture.small_workloads import workload

SCHEDULES: list[Callable[[Any], Any]] = [
    lambda o: schedule.StepLR(o, 3, 0.5),
    lambda o: schedule.CosineAnnealingLR(o, 20),
    lambda o: schedule.OneCycleLR(o, 0.5, total_steps=30),
    lambda o: schedule.LambdaLR(o, lambda i: 1 / (1 + i)),
    lambda o: schedule.SequentialLR(
        o, [schedule.LinearLR(o, 0.1, total_iters=5), schedule.ExponentialLR(o, 0.9)], milestones=[5]
    ),
]


def take_steps(work: Workload, count: int) -> None:
    for _ in range(count):
        work.optimizers[0].step()
        work.schedulers[0].step()


def rate(work: Workload) -> float:
    return float(work.optimizers[0].param_groups[0]["lr"])


@pytest.mark.parametrize("make", SCHEDULES)
@pytest.mark.parametrize("begun", [0, 7])
def test_rates_are_those_of_the_training(make: Any, begun: int) -> None:
    work = workload(schedulers=make)
    take_steps(work, begun)
    planned, now = PlannedRates(work), rate(work)
    found = [planned.at(i)[0] for i in (begun, begun + 4, begun + 1, begun + 12)]
    assert rate(work) == now
    assert planned.first == begun
    for i, group in zip(
        (begun, begun + 1, begun + 4, begun + 12), [found[0], found[2], found[1], found[3]], strict=True
    ):
        take_steps(work, i - work.schedulers[0].last_epoch)
        assert group["lr"] == rate(work)
        assert group["betas"] == work.optimizers[0].param_groups[0]["betas"]


def test_without_a_scheduler_the_rate_stays() -> None:
    planned = PlannedRates(workload())
    assert [planned.at(i)[0]["lr"] for i in (0, 5, 500)] == [0.01] * 3


def test_a_schedule_that_waits_for_the_loss_stays() -> None:
    planned = PlannedRates(workload(schedulers=lambda o: schedule.ReduceLROnPlateau(o)))
    assert planned.at(9)[0]["lr"] == 0.01


class _Sealed:
    last_epoch = 0

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("sealed")


@pytest.mark.parametrize(("plan", "expected"), [(Plan(), 0.01), (Plan(lr_steps=(0, 10), lr=((1.0,), (2.0,))), 1.5)])
def test_a_schedule_that_cannot_be_copied_is_read_from_the_plan(plan: Plan, expected: float) -> None:
    planned = PlannedRates(workload(schedulers=lambda _: _Sealed(), plan=plan))
    assert planned.at(5)[0]["lr"] == expected


def test_far_steps_are_read_from_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "FARTHEST", 10)
    plan = Plan(lr_steps=(0, 100), lr=((1.0,), (2.0,)))
    planned = PlannedRates(workload(schedulers=SCHEDULES[0], plan=plan))
    assert planned.at(10)[0]["lr"] == 0.01 * 0.5**3
    assert planned.at(50)[0]["lr"] == 1.5


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=8, unique=True), st.integers(0, 1200))
def test_samples_are_met_and_lines_stay_between_them(steps: list[int], index: int) -> None:
    steps = sorted(steps)
    plan = Plan(lr_steps=tuple(steps), lr=tuple((float(i % 7), 1.0) for i in steps))
    for step, values in zip(plan.lr_steps, plan.lr, strict=True):
        assert tuple(plan.rates_at(step)) == values
    low, high = min(v[0] for v in plan.lr), max(v[0] for v in plan.lr)
    assert low <= plan.rates_at(index)[0] <= high


def test_a_rate_that_is_a_tensor_is_read() -> None:
    planned = PlannedRates(workload(optimizers=lambda m: torch.optim.Adam(m.parameters(), lr=torch.tensor(0.5))))
    assert planned.at(3)[0]["lr"] == 0.5
