"""GS413 rate-gone: the learning rate is next to nothing for most of the training.

What it detects
    A schedule that falls to almost 0 long before the training ends.
Why it matters
    What comes after that learns nothing, and looks calm. Most often a scheduler that counts epochs is stepped a batch.
How it decides
    The highest rate of all groups, over the plan where that is known, else over the recorded steps, 20 at least: below a
    thousandth of its peak for the whole last half, or longer. Unit: share of the steps. Limit: .5.
Known problems
    A short schedule may be meant, with averaging of weights after it.
What to do
    Step the scheduler once an epoch if it counts epochs, or give it the number of optimizer steps.
References
    PyTorch, torch.optim.lr_scheduler.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis.model import CannotRunError, Finding, Rule
from gradscope.diagnosis.series import Indexes, count, finding, highest_rates, number, percent
from gradscope.runs.run import Floats, Run

CODE, NAME = "GS413", "rate-gone"
LEAST, SAMPLES, GONE, SHARE = 20, 400, 1e-3, 0.5


def check(run: Run) -> Iterator[Finding]:
    """One finding where little of the schedule is left for the last half."""
    steps, rates = _schedule(run)
    if len(rates) < LEAST:
        raise CannotRunError(f"{count(len(rates), 'learning rate')} known; {LEAST} are needed")
    peak = float(rates.max())
    left = np.flatnonzero(rates >= GONE * peak)
    begin = int(left[-1]) + 1
    share = 1 - begin / len(rates)
    if peak <= 0 or share < SHARE:
        return
    yield finding(
        CODE,
        NAME,
        "warning",
        f"From step {steps[begin]:,} of {steps[-1] + 1:,} on the learning rate is below {number(GONE * peak)}, a thousandth "
        f"of its peak: {percent(share)} of the training hardly learns.",
        "If the scheduler counts epochs, step it once an epoch; else give it the number of optimizer steps.",
        steps=(int(steps[begin]), int(steps[-1])),
        value=share,
        limit=SHARE,
        unit="share of the steps",
    )


def _schedule(run: Run) -> tuple[Indexes, Floats]:
    """Steps and the highest rate at each: of the plan, or as recorded."""
    plan = run.header.plan
    if plan.total_steps and len(plan.lr_steps) > 1:
        steps = np.unique(np.linspace(0, plan.total_steps - 1, SAMPLES).astype(np.int64))
        return steps, np.array([max(plan.rates_at(int(step))) for step in steps])
    rates = highest_rates(run)
    known = np.isfinite(rates)
    return run.step[known], rates[known]


RULE = Rule(CODE, NAME, check)
