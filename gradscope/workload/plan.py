"""The plan: how long and how the real training runs, from flags, the spec, or defaults that are said."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

from gradscope.errors import SpecError
from gradscope.runs.schema import Piece, Plan
from gradscope.workload.overrides import Overrides
from gradscope.workload.schedule import Rates, current_rates, planned_rates, sample_steps
from gradscope.workload.target import Spec

PRECISIONS = {
    "fp32": "fp32",
    "32": "fp32",
    "32-true": "fp32",
    "float32": "fp32",
    "bf16": "bf16",
    "bf16-mixed": "bf16",
    "bfloat16": "bf16",
    "fp16": "fp16",
    "16-mixed": "fp16",
    "float16": "fp16",
}


def setting(spec: Spec, overrides: Overrides, name: str) -> Any:
    """A value of the plan: the override, else the spec's, else None.

    Raises:
        SpecError: not a value of that kind; names the line of the spec or the flag.
    """
    given = getattr(overrides, name)
    value = given if given is not None else spec.get(name)
    if value is None:
        return None
    where = f"--{name.replace('_', '-')}" if given is not None else f"{spec.where(name)}: {name}"
    valid, meant = _KINDS[name]
    value = value.item() if isinstance(value, torch.Tensor | np.generic) and _single(value) else value
    if not valid(value):
        raise SpecError(f"{where} is {value!r}; it must be {meant}")
    return _clean(name, value, where)


def _single(value: Any) -> bool:
    return (value.numel() if isinstance(value, torch.Tensor) else value.size) == 1


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, int | float) and not isinstance(v, bool) and v == v and v >= least and v == int(v)


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "total_steps": (lambda v: v != math.inf and _whole(1)(v), "a whole number of steps, at least 1"),
    "batch_size": (lambda v: v != math.inf and _whole(1)(v), "a whole number, at least 1"),
    "accumulate": (lambda v: v != math.inf and _whole(1)(v), "a whole number of micro-steps, at least 1"),
    "seed": (lambda v: v != math.inf and _whole(0)(v), "a whole number, at least 0"),
    "max_norm": (
        lambda v: isinstance(v, int | float) and not isinstance(v, bool) and 0 < v < math.inf,
        "a positive number (0 would zero every gradient), or left out for no clipping",
    ),
    "precision": (lambda v: str(v) in PRECISIONS, "fp32, bf16 or fp16"),
    "device": (lambda v: isinstance(v, str | torch.device), "a device such as cpu or cuda"),
}


def _clean(name: str, value: Any, where: str) -> Any:
    if name == "precision":
        return PRECISIONS[str(value)]
    if name == "max_norm":
        return float(value)
    if name == "device":
        return _device(value, where)
    return int(value)


def _device(value: Any, where: str) -> torch.device:
    try:
        device = torch.device(value)
        torch.empty(1, device=device)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise SpecError(f"{where} is {str(value)!r}, which cannot be used here: {reason}") from error
    return device


def make_plan(
    base: Plan, optimizers: Sequence[Optimizer], schedulers: Sequence[Any], source: str
) -> tuple[Plan, tuple[Piece, ...]]:
    """The plan with its sampled schedule, and the lines `schedule` and `plan`.

    Without `total_steps`, or with a scheduler that cannot be copied, the rate is taken as constant, and the line says so.
    """
    total = base.total_steps
    note = ""
    if total is None and schedulers:
        total = next((int(s.total_steps) for s in schedulers if isinstance(getattr(s, "total_steps", None), int)), None)
        note = f"total_steps from {type(schedulers[0]).__name__}; " if total else ""
    steps: tuple[int, ...] = (0,)
    rates: Rates = (current_rates(optimizers),)
    if total is not None and schedulers:
        try:
            steps = sample_steps(total)
            rates = planned_rates(optimizers, schedulers, steps)
        except Exception as error:
            steps, rates = (0,), (current_rates(optimizers),)
            note += f"it cannot be copied ({type(error).__name__}), so taken as constant; "
    elif schedulers:
        note += "total_steps unknown, so taken as constant; "
    plan = replace(base, total_steps=total, lr_steps=steps, lr=rates)
    names = " and ".join(_scheduler_name(s) for s in schedulers)
    schedule = Piece("schedule", names or "constant", source if names else "default", note + _shape(plan))
    return plan, (schedule, _plan_piece(plan))


def _scheduler_name(scheduler: Any) -> str:
    return type(getattr(scheduler, "scheduler", scheduler)).__name__


def _shape(plan: Plan) -> str:
    """`warm-up 500 steps, peak lr 0.003, ends at 0`."""
    peaks = [max(row) for row in plan.lr] if plan.lr and plan.lr[0] else [0.0]
    top = max(range(len(peaks)), key=lambda i: peaks[i])
    if max(peaks) == min(peaks):
        return f"lr {peaks[0]:g}"
    warm = f"warm-up {plan.lr_steps[top]} steps, " if top > 0 else ""
    return f"{warm}peak lr {peaks[top]:.4g}, ends at {peaks[-1]:.4g}"


def _plan_piece(plan: Plan) -> Piece:
    value = "steps unknown" if plan.total_steps is None else f"{plan.total_steps:,} steps".replace(",", " ")
    source = "default" if plan.total_steps is None else "spec"
    parts = [
        f"clips at {plan.max_norm:g} today" if plan.max_norm is not None else "no clipping",
        plan.precision,
        *([f"accumulates {plan.accumulate} micro-steps"] if plan.accumulate > 1 else []),
        *(["set total_steps to be told about later steps"] if plan.total_steps is None else []),
    ]
    return Piece("plan", value, source, ", ".join(parts))
