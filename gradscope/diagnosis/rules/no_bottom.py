"""GS211 loss-without-bottom: the loss falls below zero, ever faster.

What it detects
    A loss far below zero, in the recorded steps or in a trial: deeper than falling on as it began would have taken it.
Why it matters
    Gradients grow as it falls, and it explodes at last; nothing is wrong with the rate. A term has the wrong sign, targets
    lie outside of what the loss is made for (−1 and 1 for one of 0 and 1), or a variance may shrink to 0.
How it decides
    A loss below −10 × what counts as deep: three times the largest |loss| at the beginning, or what the losses moved × the
    learning rates to come. Trials of such a run are compared, and told, by the size of their losses. Unit: the loss.
Known problems
    A reward that really has no bound, or a game's loss, may fall so and be well.
What to do
    Check the sign of every term of the loss, the range of its targets, and what keeps a variance or a distance above 0.
References
    Rezende and Viola 2018 for likelihoods without a bound.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis.model import Finding, Rule
from gradscope.diagnosis.rehearsals import LOSS_FAILS, bottomless, reference
from gradscope.diagnosis.series import finding, number
from gradscope.runs.run import Run

CODE, NAME = "GS211", "loss-without-bottom"


def check(run: Run) -> Iterator[Finding]:
    """One finding where a loss has no bottom."""
    if not bottomless(run):
        return
    every = [one.loss[np.isfinite(one.loss)] for one in (run, *run.trials.values())]
    deepest = min(float(losses.min(initial=0.0)) for losses in every)
    yield finding(
        CODE,
        NAME,
        "warning",
        f"The loss falls below zero without a bottom, to {number(deepest)}; the trials are compared, and told, by |loss|.",
        "Check the sign of every term, the range of the targets, and what keeps a variance or a distance above 0.",
        value=deepest,
        limit=-LOSS_FAILS * reference(run).depth,
    )


RULE = Rule(CODE, NAME, check)
