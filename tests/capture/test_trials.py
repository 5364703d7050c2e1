"""Trials: what they train on, what they write, and that they leave no trace in the training."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradscope.capture.recorder import Recorder
from gradscope.capture.snapshot import take
from gradscope.capture.trials import (
    NEXT_IN_ORDER,
    OUT_OF_TIME,
    Change,
    both,
    change_of,
    longer_warmup,
    perturbed,
    run_trial,
    scaled_group,
    scaled_layer,
    set_to,
)
from gradscope.runs.reader import load_run
from gradscope.runs.run import Run
from gradscope.runs.schema import Ending, Plan, Trial
from gradscope.workload.model import Workload
from tests.capture.small_workloads import Fixed, mse, regression, workload


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def play(work: Workload, trial: Trial, folder: Path, **how: Any) -> tuple[Ending, Run]:
    snapshot = take(work)
    with Recorder(work.model, work.optimizers, directory=folder / "run") as parent:
        ending = run_trial(work, snapshot, trial, parent, **how)
    return ending, load_run(folder / "run").trials[trial.name]


def weights(work: Workload) -> list[float]:
    return [value for parameter in work.model.parameters() for value in parameter.detach().flatten().tolist()]


def test_a_trial_is_recorded_with_its_own_rates_and_leaves_no_trace(tmp_path: Path) -> None:
    work = workload(nn.Linear(4, 1), sgd, lambda o: torch.optim.lr_scheduler.StepLR(o, 10, 0.5))
    before, random_state = weights(work), torch.get_rng_state()
    trial = Trial("rehearsal", "x2", lr_factor=2.0, max_norm=0.5, indexes=(0, 9, 10, 35))
    ending, child = play(work, trial, tmp_path)
    assert ending == Ending("finished", 4)
    assert child.header.trial == trial
    assert child.header.ending == ending
    assert child.lr[:, 0].tolist() == [0.2, 0.2, 0.1, 0.025]
    assert child.max_norm.tolist() == [0.5] * 4
    assert np.isfinite(child.loss).all()
    assert weights(work) == before
    assert torch.equal(torch.get_rng_state(), random_state)
    assert work.schedulers[0].last_epoch == 0
    assert work.optimizers[0].param_groups[0]["lr"] == 0.1


def test_it_does_what_the_training_would_do(tmp_path: Path) -> None:
    work = workload(nn.Linear(4, 1), sgd)
    _, child = play(work, Trial("rehearsal", "x1", indexes=(3, 1)), tmp_path)
    expected = []
    for index in (3, 1):
        loss = mse(work.model, work.batches.at(index))
        work.optimizers[0].zero_grad()
        loss.backward()
        norm = torch.linalg.vector_norm(
            torch.cat([p.grad.flatten() for p in work.model.parameters() if p.grad is not None])
        )
        work.optimizers[0].step()
        expected.append((loss.item(), norm.item()))
    assert list(zip(child.loss, child.global_norm, strict=True)) == [pytest.approx(pair, rel=1e-6) for pair in expected]


def test_accumulated_micro_batches_are_those_of_the_planned_step(tmp_path: Path) -> None:
    batches = Fixed(regression)
    work = workload(nn.Linear(4, 1), sgd, batches=batches, plan=Plan(accumulate=3))
    play(work, Trial("rehearsal", "x1", indexes=(5, 2)), tmp_path)
    assert batches.asked == [15, 16, 17, 6, 7, 8]


def test_an_explosion_ends_it_at_once(tmp_path: Path) -> None:
    work = workload(nn.Linear(4, 1), sgd)
    ending, child = play(work, Trial("rehearsal", "hot", lr_factor=1e30, indexes=tuple(range(50))), tmp_path)
    assert ending.how == "nonfinite"
    assert ending.step == len(child.step) - 1 < 5
    assert not math.isfinite(child.loss[-1] + child.global_norm[-1])


def test_a_step_that_the_scaler_skips_is_no_explosion(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    work = workload(nn.Linear(4, 1), sgd, training_step=lambda m, b: 64 * mse(m, b), scaler=scaler)
    ending, child = play(work, Trial("rehearsal", "fp16", indexes=tuple(range(6))), tmp_path)
    assert ending.how == "finished"
    assert child.skipped[0]


def test_code_that_raises_fails_the_trial_alone(tmp_path: Path) -> None:
    calls = [0]

    def raising(model: nn.Module, batch: Any) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == 3:
            raise ValueError("probabilities must be finite")
        return mse(model, batch)

    work = workload(nn.Linear(4, 1), sgd, training_step=raising)
    before = weights(work)
    ending, child = play(work, Trial("rehearsal", "x1", indexes=(1, 2, 3, 4)), tmp_path)
    assert (ending.how, ending.step, len(child.step)) == ("failed", 2, 2)
    assert "probabilities must be finite" in str(ending.message)
    assert weights(work) == before
    assert calls == [0]


def test_ctrl_c_goes_on_after_everything_was_put_back(tmp_path: Path) -> None:
    work = workload(nn.Linear(4, 1), sgd)
    before = weights(work)

    def stop(seen: Any) -> None:
        if seen.position == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play(work, Trial("rehearsal", "x1", indexes=tuple(range(9))), tmp_path, on_step=stop)
    assert weights(work) == before
    child = load_run(tmp_path / "run").trials["x1"]
    assert child.header.ending == Ending("interrupted", 2)
    assert len(child.step) == 2


def test_a_deadline_ends_it(tmp_path: Path) -> None:
    work = workload(nn.Linear(4, 1), sgd)
    ending, child = play(work, Trial("rehearsal", "x1", indexes=(1, 2)), tmp_path, deadline=time.monotonic() - 1)
    assert ending == child.header.ending == Ending("interrupted", 0, OUT_OF_TIME)


def test_the_end_of_the_data_ends_it(tmp_path: Path) -> None:
    work = workload(nn.Linear(4, 1), sgd, batches=Fixed(regression, length=5))
    ending, _ = play(work, Trial("rehearsal", "x1", indexes=(3, 4, 5, 6)), tmp_path)
    assert (ending.how, ending.step, ending.message) == ("finished", 2, "the data ended")


@pytest.mark.parametrize(("note", "expected"), [("", NEXT_IN_ORDER), ("drawn anew", f"drawn anew; {NEXT_IN_ORDER}")])
def test_batches_out_of_reach_give_way_to_the_next_ones(tmp_path: Path, note: str, expected: str) -> None:
    batches = Fixed(regression, near=4)
    work = workload(nn.Linear(4, 1), sgd, lambda o: torch.optim.lr_scheduler.StepLR(o, 10, 0.5), batches=batches)
    _, child = play(work, Trial("rehearsal", "x1", indexes=(2, 12, 22), note=note), tmp_path)
    assert batches.asked == [2, 3, 4]
    assert child.header.trial is not None
    assert child.header.trial.note == expected
    assert child.lr[:, 0].tolist() == [0.1, 0.05, 0.025]


def test_a_rate_that_is_a_tensor_stays_one(tmp_path: Path) -> None:
    work = workload(nn.Linear(4, 1), lambda m: torch.optim.Adam(m.parameters(), lr=torch.tensor(0.5)))
    _, child = play(work, Trial("rehearsal", "x1", lr_factor=0.5, indexes=(1,)), tmp_path)
    assert child.lr.tolist() == [[0.25]]
    assert torch.equal(work.optimizers[0].param_groups[0]["lr"], torch.tensor(0.5))


def test_remedies_change_the_start_and_the_rates(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 1))
    work = workload(model, sgd)
    norm, matrix, bias = model[1].weight.clone(), model[0].weight.clone(), model[0].bias.clone()
    seen = []

    def look(_: Any) -> None:
        seen.append([model[0].weight.clone(), model[0].bias.clone(), model[1].weight.clone()])

    calm = Change(lr_scale=lambda _: 0.0)
    change = both(both(scaled_layer("0", 0.5), scaled_layer("1", 3.0)), both(calm, longer_warmup(10)))
    _, child = play(work, Trial("remedy", "both", indexes=(0,)), tmp_path, change=change, on_step=look)
    assert torch.equal(seen[0][0], matrix * 0.5)
    assert torch.equal(seen[0][1], bias)
    assert torch.equal(seen[0][2], norm * 3)
    assert torch.equal(model[0].weight, matrix)
    assert child.lr.tolist() == [[0.0]]


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-7)])
def test_perturbed_weights_differ_by_no_less_than_rounding(dtype: torch.dtype, size: float) -> None:
    model = nn.Sequential(nn.Linear(50, 40, dtype=dtype), nn.BatchNorm1d(40, dtype=dtype))
    model[0].bias.requires_grad_(False)
    before, work = [one.detach().clone() for one in model.parameters()], workload(model, sgd)
    found, state = [], torch.get_rng_state()
    for seed in (1, 1, 2):
        with torch.no_grad():
            for one, value in zip(model.parameters(), before, strict=True):
                one.copy_(value)
            prepare = perturbed(1e-5, seed).prepare
            assert prepare
            prepare(work)
        found.append(weights(work))
    apart = (model[0].weight.detach() / before[0] - 1).double()
    assert 0.8 * size < float(apart.square().mean().sqrt()) < 1.3 * size
    assert torch.equal(model[0].bias, before[1])
    assert found[0] == found[1] != found[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_longer_warm_up_rises_in_a_straight_line(tmp_path: Path) -> None:
    work = workload(nn.Linear(4, 1), sgd)
    _, child = play(work, Trial("remedy", "warm-up", indexes=(0, 4, 30)), tmp_path, change=longer_warmup(10))
    assert child.lr[:, 0].tolist() == pytest.approx([0.01, 0.05, 0.1])


def test_one_group_learns_at_its_peers_rate(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))

    def two(model: nn.Module) -> torch.optim.Optimizer:
        first, second = model.children()
        return torch.optim.SGD([{"params": first.parameters()}, {"params": second.parameters(), "lr": 3.0}], lr=0.1)

    work = workload(model, two)
    change = both(scaled_group(1, 1 / 30), longer_warmup(10))
    _, child = play(work, Trial("remedy", "group", indexes=(0, 30)), tmp_path, change=change)
    assert child.lr == pytest.approx(np.array([[0.01, 0.01], [0.1, 0.1]]))
    assert [group["lr"] for group in work.optimizers[0].param_groups] == [0.1, 3.0]


def test_batches_in_another_order_at_the_planned_rates(tmp_path: Path) -> None:
    plan = tuple(range(0, 60, 3))

    def played(order: int) -> tuple[list[int], list[float]]:
        batches = Fixed(regression)
        work = workload(
            optimizers=sgd,
            batches=batches,
            schedulers=lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
        )
        _, child = play(work, Trial("candidate", "x", indexes=plan, shuffled=order), tmp_path / str(order))
        return batches.asked[-len(plan) :], child.lr[:, 0].tolist()

    (asked, rates), (other, same_rates), (third, _) = played(0), played(1), played(2)
    assert asked == list(plan)
    assert sorted(other) == sorted(third) == asked
    assert other != asked
    assert other != third
    assert rates == same_rates


def test_other_settings_are_those_of_a_training_with_them(tmp_path: Path) -> None:
    def adam(**settings: Any) -> Any:
        return lambda model: torch.optim.Adam(model.parameters(), lr=0.05, **settings)

    trial = Trial("remedy", "settings", indexes=tuple(range(12)), settings={"betas": [0.9, 0.999], "momentum": 0.9})
    work = workload(optimizers=adam(betas=(0.5, 0.6)))
    _, child = play(work, trial, tmp_path / "tried", change=set_to(trial.settings))
    _, plain = play(workload(optimizers=adam()), Trial("remedy", "x", indexes=trial.indexes), tmp_path / "plain")
    assert child.loss.tolist() == plain.loss.tolist()
    group = work.optimizers[0].param_groups[0]
    assert group["betas"] == (0.5, 0.6)
    assert "momentum" not in group


def test_a_trial_changes_what_its_header_says(tmp_path: Path) -> None:
    steps = tuple(range(6))
    said = Trial(
        "remedy",
        "x",
        indexes=steps,
        warm_up=4,
        layer="fc1",
        layer_scale=0.5,
        group=0,
        group_scale=0.1,
        settings={"betas": [0.5, 0.9]},
    )
    by_hand = both(
        both(longer_warmup(4), scaled_layer("fc1", 0.5)), both(scaled_group(0, 0.1), set_to({"betas": [0.5, 0.9]}))
    )
    _, one = play(workload(), said, tmp_path / "one", change=change_of(said))
    _, other = play(workload(), Trial("remedy", "x", indexes=steps), tmp_path / "other", change=by_hand)
    _, plain = play(workload(), Trial("remedy", "x", indexes=steps), tmp_path / "plain")
    assert one.loss.tolist() == other.loss.tolist() != plain.loss.tolist()
    assert one.lr.tolist() == other.lr.tolist()
