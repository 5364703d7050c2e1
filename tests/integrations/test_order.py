"""What is noted about the order of a training's calls, and the findings that come of it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from gradscope.diagnosis.diagnose import diagnose
from gradscope.integrations import order
from gradscope.runs import events
from gradscope.runs.run import Run
from tests.integrations.scripts import record

HEAD = """
optimizer = torch.optim.SGD(params, lr=0.01)
clip = nn.utils.clip_grad_norm_
"""
WRONG = {
    "before backward": (
        "for i in range(3):\n    optimizer.zero_grad(); loss = loss_of(model, i); clip(params, 1.0)\n"
        "    loss.backward(); optimizer.step()",
        events.CLIP_BEFORE_BACKWARD,
        "GS403",
        [1, 2],
    ),
    "after step": (
        "for i in range(3):\n    optimizer.zero_grad(); loss_of(model, i).backward(); optimizer.step(); clip(params, 1.0)",
        events.CLIP_AFTER_STEP,
        "GS403",
        [0, 1, 2],
    ),
    "scaled": (
        "scaler = torch.amp.GradScaler('cpu', init_scale=1024.0)\n"
        "for i in range(3):\n    optimizer.zero_grad(); scaler.scale(loss_of(model, i)).backward(); clip(params, 1.0)\n"
        "    scaler.step(optimizer); scaler.update()",
        events.CLIP_SCALED,
        "GS404",
        [0, 1, 2],
    ),
    "a micro-batch at a time": (
        "for i in range(3):\n    optimizer.zero_grad()\n    for k in range(2):\n"
        "        loss_of(model, 2 * i + k).backward(); clip(params, 1.0)\n    optimizer.step()",
        events.CLIP_MICRO_BATCH,
        "GS405",
        [0, 1, 2],
    ),
    "zero": (
        "for i in range(3):\n    optimizer.zero_grad(); loss_of(model, i).backward(); clip(params, 0.0); optimizer.step()",
        events.CLIP_LIMIT,
        "GS406",
        [0, 1, 2],
    ),
    "not a number": (
        "for i in range(1):\n    loss_of(model, i).backward(); clip(params, math.nan); optimizer.step()",
        events.CLIP_LIMIT,
        "GS406",
        [0],
    ),
    "a subset": (
        "for i in range(3):\n    optimizer.zero_grad(); loss_of(model, i).backward()\n"
        "    clip(params[:2], 1.0); optimizer.step()",
        events.CLIP_SUBSET,
        "GS407",
        [0, 1, 2],
    ),
    "never": (
        "for i in range(3):\n    optimizer.zero_grad(); loss_of(model, i).backward()\n"
        "    if i > 5: nn.utils.clip_grad_norm_(params, 1.0)\n    optimizer.step()",
        events.CLIP_UNREACHED,
        "GS408",
        [2],
    ),
    "raising": (
        "for i in range(3):\n    optimizer.zero_grad(); loss_of(model, i).backward()\n"
        "    clip(params, 1.0, error_if_nonfinite=True); optimizer.step()",
        events.CLIP_RAISES,
        "GS409",
        [0, 1, 2],
    ),
    "in two parts": (
        "for i in range(3):\n    optimizer.zero_grad(); loss_of(model, i).backward(); clip(params[:2], 1.0)\n"
        "    clip(params[2:], 1.0); optimizer.step()",
        events.CLIP_PARTS,
        "GS410",
        [0, 1, 2],
    ),
    "never zeroed": (
        "for i in range(3):\n    loss_of(model, i).backward(); optimizer.step()",
        events.GRADIENTS_KEPT,
        "GS412",
        [1, 2],
    ),
    "the schedule first": (
        "schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)\nimport warnings; warnings.simplefilter('ignore')\n"
        "for i in range(3):\n    optimizer.zero_grad(); loss_of(model, i).backward(); schedule.step(); optimizer.step()",
        events.SCHEDULE_BEFORE_STEP,
        "GS411",
        [0, 1, 2],
    ),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.filterwarnings("ignore:Detected call of")
def test_a_wrong_order_is_noted_and_found(name: str, tmp_path: Path) -> None:
    body, event, code, steps = WRONG[name]
    done = record(tmp_path, HEAD + body)
    assert [step for step, _, _ in done.events(event)] == steps
    assert set(done.run.probes.probe) - {events.CLIP_UNREACHED} <= {event}
    assert code in {finding.code for finding in diagnose(done.run).findings}


RIGHT = {
    "clip, step, schedule": (
        "schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9)\n"
        "for i in range(3):\n    optimizer.zero_grad(); loss_of(model, i).backward(); clip(model.parameters(), 1.0)\n"
        "    optimizer.step(); schedule.step()"
    ),
    "a scheduler after each of two optimizers": (
        "two = [torch.optim.SGD(params[:2], lr=0.1), torch.optim.SGD(params[2:], lr=0.2)]\n"
        "schedules = [torch.optim.lr_scheduler.ExponentialLR(one, 0.5) for one in two]\n"
        "for i in range(3):\n    optimizer.zero_grad(); loss_of(model, i).backward()\n"
        "    for one, schedule in zip(two, schedules):\n        one.step(); schedule.step()"
    ),
    "gradients set by hand": (
        "masters = [p.detach().clone().requires_grad_() for p in params]\n"
        "optimizer = torch.optim.SGD(masters, lr=0.1)\n"
        "for i in range(3):\n    model.zero_grad(); loss_of(model, i).backward()\n"
        "    for master, p in zip(masters, params):\n        master.grad = p.grad.clone()\n"
        "    clip(masters, 1.0); optimizer.step()"
    ),
    "zeroed after the step": (
        "for i in range(3):\n    loss_of(model, i).backward(); optimizer.step(); optimizer.zero_grad(set_to_none=False)"
    ),
    "a part of the losses at a time": (
        "for i in range(12):\n    optimizer.zero_grad(); loss_of(model, i).backward()\n"
        "    params[-1].square().sum().backward(); clip(params, 1.0); optimizer.step()"
    ),
    "accumulated": (
        "for i in range(6):\n    loss_of(model, i).backward()\n"
        "    if i % 2:\n        clip(params, 1.0); optimizer.step(); optimizer.zero_grad()"
    ),
    "unscaled first": (
        "scaler = torch.amp.GradScaler('cpu', init_scale=1024.0)\n"
        "for i in range(3):\n    optimizer.zero_grad(); scaler.scale(loss_of(model, i)).backward()\n"
        "    scaler.unscale_(optimizer); clip(params, 1.0); scaler.step(optimizer); scaler.update()"
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_order_is_not_noted(name: str, tmp_path: Path) -> None:
    assert set(record(tmp_path, HEAD + RIGHT[name]).run.probes.probe) <= {events.CLIP_UNREACHED}


def test_a_schedule_that_moves_on_before_another_optimizer_steps_changes_no_recorded_rate(tmp_path: Path) -> None:
    run = record(tmp_path, HEAD + RIGHT["a scheduler after each of two optimizers"]).run
    assert run.lr[:, 1:].tolist() == [[0.1, 0.2], [0.05, 0.1], [0.025, 0.05]]


def as_seen(folder: Path, body: str) -> Run:
    """The run of a script, whose norms are those that it saw itself."""
    done = record(folder, HEAD + body)
    np.testing.assert_allclose(done.run.global_norm, done.seen["norms"], rtol=1e-6)
    return done.run


@pytest.mark.parametrize("order", ["{0}; {1}", "{1}; {0}"])
def test_a_backward_pass_of_a_few_parameters_is_part_of_the_step(order: str, tmp_path: Path) -> None:
    passes = order.format("loss_of(model, i).backward()", "(10 * params[-1]).square().sum().backward()")
    body = (
        f"for i in range(14):\n    optimizer.zero_grad(); {passes}\n"
        "    seen['norms'].append(norm_of(model)); optimizer.step()"
    )
    assert as_seen(tmp_path, body).micro_steps.tolist() == [2] * 14


def test_a_backward_pass_of_a_few_parameters_that_comes_late_is_read_too(tmp_path: Path) -> None:
    body = (
        "for i in range(20):\n    optimizer.zero_grad(); loss_of(model, i).backward()\n"
        "    if i > 14: (10 * params[2]).square().sum().backward()\n"
        "    seen['norms'].append(norm_of(model)); optimizer.step()"
    )
    as_seen(tmp_path, body)


def test_a_backward_pass_of_something_else_after_the_clip_changes_no_norm(tmp_path: Path) -> None:
    body = (
        "other = torch.ones(3, requires_grad=True)\n"
        "for i in range(20):\n    optimizer.zero_grad(); loss_of(model, i).backward()\n"
        "    seen['norms'].append(norm_of(model)); clip(params, 0.1)\n"
        "    if i > 14: other.square().sum().backward()\n    optimizer.step()"
    )
    assert as_seen(tmp_path, body).micro_steps.tolist() == [1] * 20


def test_what_is_clipped_in_parts_has_no_one_threshold(tmp_path: Path) -> None:
    assert np.isnan(record(tmp_path, HEAD + WRONG["in two parts"][0]).run.max_norm).all()
    assert np.isnan(record(tmp_path / "subset", HEAD + WRONG["a subset"][0]).run.max_norm).all()
    assert (record(tmp_path / "all", HEAD + RIGHT["accumulated"]).run.max_norm == 1.0).all()


def test_a_clip_of_the_scripts_own_by_torchs_name_is_no_unreached_call(tmp_path: Path) -> None:
    body = (
        "class Trainer:\n    def clip_grad_norm(self): pass\n\ndef clip_grad_norm_(params): pass\n\nclip_grad_value_ = 0.0\n"
        "optimizer = torch.optim.SGD(params, lr=0.01)\n"
        "for i in range(2):\n    loss_of(model, i).backward(); Trainer().clip_grad_norm()\n"
        "    clip_grad_norm_(clip_grad_value_); optimizer.step(); optimizer.zero_grad()"
    )
    done = record(tmp_path, body)
    assert not done.events(events.CLIP_UNREACHED)


def test_a_scaled_clip_is_told_in_unscaled_units(tmp_path: Path) -> None:
    run = record(tmp_path, HEAD + WRONG["scaled"][0]).run
    assert run.max_norm.tolist() == [1.0 / 1024.0] * 3
    assert (run.global_norm < 100).all()


def test_clipping_by_error_keeps_the_step_that_raised(tmp_path: Path) -> None:
    body = """
    for i in range(3):
        optimizer.zero_grad()
        (loss_of(model, i) * (math.inf if i == 1 else 1.0)).backward()
        nn.utils.clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
        optimizer.step()
    """
    done = record(tmp_path, HEAD.replace("\n", "\n    ") + body)
    assert done.recorded.exit_code == 1
    assert math.isfinite(done.run.global_norm[0])
    assert not math.isfinite(done.run.global_norm[1])
    assert "nonfinite" in str(done.run.header.ending.message) or "non-finite" in str(done.run.header.ending.message)


def test_notes_are_bounded() -> None:
    taken = []
    notes = order.OrderNotes(lambda *note: taken.append(note))
    for _ in range(order.MOST + 5):
        notes.take("event", "", 0.0)
    assert len(taken) == order.MOST
