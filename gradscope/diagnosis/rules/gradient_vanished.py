"""GS209 gradient-vanished: from some step on there is no gradient any more, though there is a loss.

What it detects
    Global norms that fall to nothing and stay there while the loss does not.
Why it matters
    Nothing is learned from that step on: units that died or saturated, embeddings that fell into one point, a loss whose
    every sample lies beyond its margin or its clamp.
How it decides
    Over the recorded steps followed by the rehearsal at the planned learning rate, where there is one: the last 20 norms at
    least, and a tenth of all, are below 1e-9 × the median of the first 20, and the loss there lies above 3 % of the first.
    Unit: steps. A training that explodes is not judged.
Known problems
    A loss with a constant in it, whose margins are all met, has no gradient either, and is well.
What to do
    Look at what the outputs are from that step on; lower the learning rate before it.
References
    Hermans, Beyer, Leibe 2017, on embeddings that fall into one point at a loss of the margin.
"""

from __future__ import annotations

from collections.abc import Iterator

from gradscope.diagnosis.learning import FIRST, vanished
from gradscope.diagnosis.model import CannotRunError, Finding, Rule
from gradscope.diagnosis.series import count, finding, usable
from gradscope.diagnosis.verdict import judge
from gradscope.runs.run import Run

CODE, NAME = "GS209", "gradient-vanished"


def check(run: Run) -> Iterator[Finding]:
    """One finding where no gradient is left."""
    if int(usable(run)[:FIRST].sum()) < FIRST:
        raise CannotRunError(f"{count(int(usable(run)[:FIRST].sum()), 'first step')} with a norm; {FIRST} are needed")
    step = vanished(run)
    if step is None or judge(run).may_explode:
        return
    yield finding(
        CODE,
        NAME,
        "warning",
        f"From step {step:,} on there is no gradient any more, though there is a loss.",
        "Look at the outputs from there on: are they all the same, saturated or clamped? Lower the learning rate before it.",
        steps=(step, None),
    )


RULE = Rule(CODE, NAME, check)
