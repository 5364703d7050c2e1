"""GS210 raises-later: the training's own code raises an error at a step that is still to come.

What it detects
    A rehearsal of the plan in which the code of the training raised: a label out of range, a batch of another shape.
Why it matters
    The real training stops there too, however calm its norms are, and what comes after it could not be rehearsed.
How it decides
    A rehearsal at the planned learning rate ended with an error. The step is that of the plan. No limit.
Known problems
    Data drawn at random may be drawn otherwise by the real training.
What to do
    Mend what the error names: it comes of that step's batch, where the steps before it did not raise.
References
    None.
"""

from __future__ import annotations

from collections.abc import Iterator

from gradscope.diagnosis.model import Finding, Rule
from gradscope.diagnosis.rehearsals import raised
from gradscope.diagnosis.series import finding
from gradscope.runs.run import Run

CODE, NAME = "GS210", "raises-later"


def check(run: Run) -> Iterator[Finding]:
    """One finding for the first step of the plan that raised."""
    ahead = [found for trial in run.trials.values() if (found := raised(trial))]
    if ahead:
        step, said = min(ahead)
        yield finding(
            CODE,
            NAME,
            "critical",
            f"The training's own code raises an error in its rehearsal, and what follows is not known: {said}",
            f"Mend what it names; look at the batch of step {step} first.",
            steps=(step, step),
        )


RULE = Rule(CODE, NAME, check)
