"""GS401 saturated-clipping: the threshold in force clips nearly every step.

What it detects
    A `max_norm` below nearly all gradient norms.
Why it matters
    Clipping then no longer guards against rare large steps: it sets the length of every step, so under plain SGD it is a
    change of the learning rate, and under Adam it does nearly nothing.
How it decides
    Share of the usable steps whose pre-clip norm is above the threshold in force at that step: more than .90. Unit: clipped
    fraction (0–1). At least 10 steps. In norms read after clipping a step at .999 of the threshold counts. Where a trial at
    this threshold held and none of the same steps ended at a loss below .8 of its own, it is an information.
Known problems
    Some recipes mean it (normalised gradients). A window inside the warm-up may clip more than the training will.
What to do
    Decide what it is for: as a safety net take a high percentile of the norms; as a step limiter lower the learning rate.
References
    Pascanu, Mikolov, Bengio 2013; facebookresearch/detr#198.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gradscope.diagnosis.as_today import held_as_today
from gradscope.diagnosis.clipping import clipped_steps
from gradscope.diagnosis.model import Finding, Rule
from gradscope.diagnosis.rehearsals import Rehearsed
from gradscope.diagnosis.series import count, finding, median, number, percent
from gradscope.diagnosis.window import is_nonfinite, late_loss
from gradscope.runs.run import Run

CODE, NAME = "GS401", "saturated-clipping"
CLEARLY = 1.25


@dataclass(frozen=True)
class Settings:
    """`fraction` of clipped steps above which the threshold is saturated; `least` usable steps."""

    fraction: float = 0.9
    least: int = 10


DEFAULTS = Settings()


def check(run: Run, settings: Settings = DEFAULTS) -> Iterator[Finding]:
    """One finding when nearly every step is clipped."""
    seen = clipped_steps(run, settings.least)
    if not seen.share > settings.fraction:
        return
    limit = median(seen.limits)
    known = (
        "" if run.header.measured_at == "post_clip" else f"; the median norm (pre-clip) is {number(median(seen.norms))}"
    )
    held = _held(run)
    yield finding(
        CODE,
        NAME,
        "warning" if held is None else "info",
        f"max_norm {number(limit)} clips {percent(seen.share)} of {count(len(seen.steps), 'step')}{known}.",
        "As a safety net, take a high percentile of the norms; as a step limiter, lower the learning rate instead."
        if held is None
        else f"It held over {count(held.length, 'trial step')}: a step limiter, which sets the length of the steps together "
        "with the learning rate.",
        steps=(int(seen.steps[0]), int(seen.steps[-1])),
        value=seen.share,
        limit=settings.fraction,
        unit="clipped fraction",
    )


def _held(run: Run) -> Rehearsed | None:
    """The longest trial at the threshold in use that held, unless another of the same steps ended clearly lower."""
    held = max(held_as_today(run), key=lambda one: one.length, default=None)
    if held is None:
        return None
    own = run.trials[held.name]
    ends = [late_loss(one) for one in run.trials.values() if _alike(own, one) and not is_nonfinite(one)]
    return None if late_loss(own) > CLEARLY * min(ends) > 0 else held


def _alike(own: Run, other: Run) -> bool:
    """Whether another trial of thresholds took the same steps."""
    made, about = own.header.trial, other.header.trial
    return bool(made and about and about.kind == "candidate" and about.indexes == made.indexes)


RULE = Rule(CODE, NAME, check)
