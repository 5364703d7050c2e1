"""GS208 collapse: the training learns, and loses again what it had learned.

What it detects
    A loss that falls and ends most of the way back up, or where guessing is, though nothing explodes.
Why it matters
    The run is lost as if it had exploded, and no norm need show it: units that died or saturated under steps too large leave
    small gradients.
How it decides
    Over the recorded steps followed by the rehearsal at the planned learning rate, where there is one; at least 100 steps
    together, in 20 equal parts. The best median of a part is below .8 of the first and of the last two, by four standard
    errors, and these are back up by .7 of what was gained, or no better than chance as GS204 measures it, and do not fall
    by .3 again in the last quarter. Unit: the share of the gain that is lost again. Only of losses above zero, of one
    optimizer: a game of several may well end where it began. A training that explodes is not judged. Where a tenth of the
    learning rate was tried and lost it about as early, or ended as high as at every rate tried and falls too slowly to end
    lower, it is an information: something else changes there.
Known problems
    Where the data or the objective changes, as from task to task, a loss may come back up and be well.
What to do
    Lower the learning rate, or its peak; where rehearsed, remedies were tried and are in the report.
References
    Measured on 424 small trainings, of which it tells 18, whose rates rise or whose data change.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis.learning import BACK, LEAST, losses_of, lost_at_a_tenth, rehearsal, step_of, unlearned
from gradscope.diagnosis.model import CannotRunError, Finding, Rule
from gradscope.diagnosis.series import count, finding, number
from gradscope.diagnosis.verdict import judge
from gradscope.diagnosis.window import of_the_plan
from gradscope.runs.run import Run

CODE, NAME = "GS208", "collapse"
LOWER = "Lower the learning rate, or its peak. Where the data or the objective changes there, it may be well."
CHANGED = (
    "At a tenth of the rate it ends as high: look at what changes in the data or the objective there; it may be well."
)


def check(run: Run) -> Iterator[Finding]:
    """One finding when the loss came back up to its beginning, or to chance."""
    losses = losses_of(run)
    if len(losses) < LEAST:
        raise CannotRunError(f"{count(len(losses), 'loss value')}, rehearsals included; {LEAST} are needed")
    found = unlearned(run)
    if found is None or judge(run).may_explode:
        return
    recorded, trial = int(np.isfinite(run.loss).sum()), rehearsal(run)
    bare = ", without clipping" if trial and run.header.plan.max_norm and of_the_plan(trial) else ""
    after = f" and {count(len(losses) - recorded, 'rehearsed one')}{bare}" if trial else ""
    at, changed = step_of(run, found.row), lost_at_a_tenth(run)
    yield finding(
        CODE,
        NAME,
        "info" if changed else "warning",
        f"It loses what it learned: the loss falls from {number(found.first)} to {number(found.best)}, about step {at:,}, "
        f"and ends at {number(found.end)}, after {count(recorded, 'recorded step')}{after}.",
        CHANGED if changed else LOWER,
        steps=(at, step_of(run, len(losses) - 1)),
        value=(found.end - found.best) / (found.first - found.best),
        limit=BACK,
        unit="share of the gain",
    )


RULE = Rule(CODE, NAME, check)
