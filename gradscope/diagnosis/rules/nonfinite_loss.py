"""GS102 nonfinite-loss: the loss became infinite or NaN.

What it detects
    Steps whose loss is infinite or NaN.
Why it matters
    Every gradient computed from such a loss is useless, and one optimizer step with it ruins the weights.
How it decides
    Counts recorded steps whose loss is not a finite number. Unit: steps. Default limit: 0. Where each of them was skipped,
    by a gradient scaler or by the script, and the loss was finite again later, it is a warning. A run in which no loss
    was recorded at all cannot be judged.
Known problems
    A step whose loss was not recorded in a run that otherwise holds losses looks like NaN, and is reported.
What to do
    If the gradient norm grew in the steps before, it is an explosion: lower the learning rate, lengthen the warm-up or clip.
    If it came out of nothing, look at that step's batch and at divisions, logarithms and square roots in the loss.
References
    IEEE 754 arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gradscope.diagnosis.model import CannotRunError, Finding, Rule
from gradscope.diagnosis.series import count, finding, number
from gradscope.diagnosis.window import broken_data, harmful, nonfinite_losses, nonfinite_steps, what_to_do
from gradscope.runs.run import Run

CODE, NAME = "GS102", "nonfinite-loss"


@dataclass(frozen=True)
class Settings:
    """`allowed`: steps with a nonfinite loss that are no finding."""

    allowed: int = 0


DEFAULTS = Settings()


def check(run: Run, settings: Settings = DEFAULTS) -> Iterator[Finding]:
    """One finding for the first nonfinite loss."""
    bad = nonfinite_losses(run)
    if np.isnan(run.loss).all() and not bad.any():
        raise CannotRunError("no loss was recorded")
    rows = np.flatnonzero(bad)
    if len(rows) <= settings.allowed:
        return
    row = int(rows[0])
    survived = not harmful(run)[rows].any()
    amount = f"{count(len(rows), 'step')} of {len(bad)} in all"
    harmless = (
        f", skipped before {'it' if len(rows) == 1 else 'they'} did harm" if run.skipped[rows].all() else ", passed"
    )
    skipped = harmless if survived else ""
    yield finding(
        CODE,
        NAME,
        "warning" if survived else "critical",
        f"The loss is {run.loss[row]} at step {run.step[row]}{_before(run, row)} ({amount}{skipped}).",
        _advice(run, row),
        steps=(int(run.step[row]), int(run.step[rows[-1]])),
        value=len(rows),
        limit=float(settings.allowed),
        unit="steps",
    )


def _advice(run: Run, row: int) -> str:
    if broken_data(run):
        return "Look at this step's batch, which is not finite itself."
    if (earlier := np.flatnonzero(nonfinite_steps(run)[:row])).size:
        return f"The nonfinite gradient of step {run.step[earlier[0]]} ruined the weights: look there."
    origin = run.header.first_nonfinite
    if origin is not None and origin.step == run.step[row] and origin.layer and origin.went_first != "loss":
        return f"GS101 says where it began: look there, at {origin.layer}."
    return what_to_do(run, row, "this step's batch and how the loss is computed from it")


def _before(run: Run, row: int) -> str:
    """What the loss was at the row before."""
    if not row or not np.isfinite(run.loss[row - 1]):
        return ""
    earlier = int(run.step[row] - run.step[row - 1])
    return f"; {'one step' if earlier == 1 else f'{earlier} steps'} earlier it was {number(float(run.loss[row - 1]))}"


RULE = Rule(CODE, NAME, check)
