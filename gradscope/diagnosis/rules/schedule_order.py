"""GS411 schedule-order: the learning rate moves on before the step.

What it detects
    A scheduler that is stepped while gradients wait for their optimizer step.
Why it matters
    The first rates of the schedule are skipped; within an accumulation the schedule runs that many times too fast.
How it decides
    The recorder saw `scheduler.step()` between a backward pass and the step that uses it. One time is enough. No unit.
Known problems
    None known.
What to do
    Call `scheduler.step()` right after `optimizer.step()`, once a step.
References
    PyTorch, torch.optim: how to adjust learning rate (since 1.1.0 schedulers are stepped after the optimizer).
"""

from __future__ import annotations

from collections.abc import Iterator

from gradscope.diagnosis.model import Finding, Rule
from gradscope.diagnosis.noted import noted, told
from gradscope.runs import events
from gradscope.runs.run import Run

CODE, NAME = "GS411", "schedule-order"


def check(run: Run) -> Iterator[Finding]:
    """One finding for each kind that the recorder noted."""
    if seen := noted(run, events.SCHEDULE_BEFORE_STEP):
        message = f"The learning-rate schedule moves on between backward and step, {seen.times}."
        yield from told((CODE, NAME), "warning", seen, message, "Step the scheduler after the optimizer, once a step.")


RULE = Rule(CODE, NAME, check)
