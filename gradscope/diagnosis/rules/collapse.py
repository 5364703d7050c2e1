"""GS208 collapse: the training learns, and loses again what it had learned.

What it detects
    A loss that falls, comes back up to where guessing is, and stays there, though nothing explodes.
Why it matters
    The run is lost as if it had exploded, and no norm need show it: units that died or saturated under steps too large leave
    small gradients.
How it decides
    Over the recorded steps followed by the rehearsal at the planned learning rate, where there is one; at least 100 steps
    together, in 20 equal parts. The best median of a part is below half of the first and of the last two, and these are
    above .75 × the first, or no better than chance as GS204 measures it. Unit: the last loss ÷ the first. Only of losses
    above zero, of one optimizer: a game of several may well end where it began. A training that explodes is not judged.
Known problems
    Where the data or the objective changes, as from task to task, a loss may come back up and be well.
What to do
    Lower the learning rate, or its peak; where rehearsed, remedies were tried and are in the report.
References
    Measured on the plans of benchmarks/accuracy and on trainings whose rate rises until they die.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis.learning import losses_of, rehearsal, unlearned
from gradscope.diagnosis.model import CannotRunError, Finding, Rule
from gradscope.diagnosis.series import count, finding, number
from gradscope.diagnosis.verdict import judge
from gradscope.diagnosis.window import NOT_RECOVERED, of_the_plan
from gradscope.runs.run import Run

CODE, NAME = "GS208", "collapse"
LEAST = 100
EXPLODES = ("exploding", "will-explode")


def check(run: Run) -> Iterator[Finding]:
    """One finding when the loss came back up to its beginning, or to chance."""
    losses = losses_of(run)
    if len(losses) < LEAST:
        raise CannotRunError(f"{count(len(losses), 'loss value')}, rehearsals included; {LEAST} are needed")
    found = unlearned(run)
    if found is None or judge(run).verdict in EXPLODES:
        return
    recorded, trial = int(np.isfinite(run.loss).sum()), rehearsal(run)
    bare = ", without clipping" if trial and run.header.plan.max_norm and of_the_plan(trial) else ""
    after = f" and {count(len(losses) - recorded, 'rehearsed one')}{bare}" if trial else ""
    yield finding(
        CODE,
        NAME,
        "warning",
        f"It loses what it learned: the loss falls from {number(found.first)} to {number(found.best)} and ends at "
        f"{number(found.end)}, after {count(recorded, 'recorded step')}{after}.",
        "Lower the learning rate, or its peak. Where the data or the objective changes there, it may be well.",
        steps=(int(run.step[0]), int(run.step[-1])),
        value=found.end / found.first,
        limit=NOT_RECOVERED,
        unit="the first loss",
    )


RULE = Rule(CODE, NAME, check)
