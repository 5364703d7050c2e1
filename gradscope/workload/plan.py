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
from gradscope.workload.schedule import (
    AHEAD,
    EXACT,
    Rates,
    current_rates,
    follows_a_metric,
    planned_rates,
    sample_steps,
)
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


def _whole(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value >= 1 and value == int(value)


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "total_steps": (_whole, "a whole number of steps, at least 1"),
    "batch_size": (_whole, "a whole number of rows, at least 1"),
    "accumulate": (_whole, "a whole number of micro-steps, at least 1"),
    "max_norm": (_positive, "a positive number (0 would zero every gradient), or left out for no clipping"),
    "precision": (lambda value: str(value) in PRECISIONS, "fp32, bf16 or fp16"),
    "device": (lambda value: isinstance(value, str | torch.device), "a device such as cpu or cuda"),
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
    base: Plan, optimizers: Sequence[Optimizer], schedulers: Sequence[Any], source: str, given: str, seed: int
) -> tuple[Plan, tuple[Any, ...], tuple[Piece, ...]]:
    """The plan with its sampled schedule, the schedulers to step, and the lines `schedule` and `plan`.

    Without `total_steps` only the first 60 steps are sampled; a scheduler that cannot be read ahead, or follows a metric,
    counts as constant. The line says so. `source` and `given` say where the schedulers and `total_steps` come from;
    `seed` is only said.
    """
    ready = [one for one in schedulers if not follows_a_metric(one)]
    note = "" if len(ready) == len(schedulers) else "follows a metric that is not measured here, so taken as constant; "
    total = base.total_steps
    if total is None:
        total = next((s.total_steps for s in ready if isinstance(getattr(s, "total_steps", None), int)), None)
        given = type(ready[0]).__name__ if total else "default"
    steps, rates, why = _sampled(optimizers, ready, total)
    plan = replace(base, total_steps=total, lr_steps=steps, lr=rates)
    names = " and ".join(_scheduler_name(s) for s in schedulers)
    schedule = Piece("schedule", names or "constant", source if names else "default", note + why + _shape(plan))
    return plan, tuple(ready), (schedule, _plan_piece(plan, given, seed))


def _sampled(
    optimizers: Sequence[Optimizer], schedulers: Sequence[Any], total: int | None
) -> tuple[tuple[int, ...], Rates, str]:
    constant: Rates = (current_rates(optimizers),)
    if not schedulers:
        return (0,), constant, ""
    steps = sample_steps(EXACT if total is None else min(total, AHEAD))
    try:
        rates = planned_rates(optimizers, schedulers, steps)
    except Exception as error:
        return (0,), constant, f"cannot be read ahead ({type(error).__name__}: {error}), so taken as constant; "
    if total is None:
        return steps, rates, f"total_steps unknown, so taken as constant after step {EXACT}; "
    return steps, rates, f"taken as constant after step {AHEAD}; " if total > AHEAD else ""


def _scheduler_name(scheduler: Any) -> str:
    return type(getattr(scheduler, "scheduler", scheduler)).__name__


def _shape(plan: Plan) -> str:
    """`warm-up 500 steps, peak lr 0.003, ends at 0`."""
    peaks = [max(row, default=0.0) for row in plan.lr]
    top = max(range(len(peaks)), key=lambda i: peaks[i])
    if max(peaks) == min(peaks):
        return f"lr {peaks[0]:g}"
    if top == len(peaks) - 1:
        return f"rises from lr {peaks[0]:.4g} to {peaks[top]:.4g} at step {plan.lr_steps[top]}"
    warm = f"warm-up {plan.lr_steps[top]} steps, " if top > 0 else ""
    return f"{warm}peak lr {peaks[top]:.4g}, ends at {peaks[-1]:.4g}"


def _plan_piece(plan: Plan, given: str, seed: int) -> Piece:
    value = "steps unknown" if plan.total_steps is None else f"{plan.total_steps:,} steps".replace(",", " ")
    parts = [
        f"clips at {plan.max_norm:g} today" if plan.max_norm is not None else "no clipping",
        plan.precision,
        f"seed {seed}",
        *([f"accumulates {plan.accumulate} micro-steps"] if plan.accumulate > 1 else []),
        *(["set total_steps to be told about later steps"] if plan.total_steps is None else []),
    ]
    return Piece("plan", value, given, ", ".join(parts))
