"""GS202 sustained-growth: the gradient norm rises through the whole window.

What it detects
    A global gradient norm that grows steadily, not in one jump.
Why it matters
    Steady growth at a constant learning rate ends in an explosion or in saturation; in a warm-up it shows how the network
    answers to the rising rate.
How it decides
    The usable steps are cut into 10 equal parts. Fires when at least 8 of the 9 changes between the medians of neighbouring
    parts are upward, none of them three quarters of all in decades, and the last median is more than 10 × the first; an
    information where the plan held in its rehearsals. Units: multiples of the run's own beginning. At least 20 steps.
Known problems
    Growth in a window hardly foresees an explosion (AUROC .55 over 673 small trainings): it is a hint, not a verdict. Norms
    read after clipping cannot show it.
What to do
    See whether the loss still falls. Rehearse the plan; shorten the steps or clip if a rehearsal fails.
References
    Philipp, Song, Carbonell 2017 for growth over depth; here it is over time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gradscope.diagnosis.model import Finding, Rule
from gradscope.diagnosis.series import finding, log10, number, pre_clip_norms
from gradscope.diagnosis.verdict import judge
from gradscope.runs.run import Run

CODE, NAME = "GS202", "sustained-growth"
JUMP = 0.75


@dataclass(frozen=True)
class Settings:
    """`factor`: last part over first; `rises`: upward changes among `parts - 1`; `least`: usable steps."""

    factor: float = 10.0
    parts: int = 10
    rises: int = 8
    least: int = 20


DEFAULTS = Settings()


def check(run: Run, settings: Settings = DEFAULTS) -> Iterator[Finding]:
    """One finding when the norm grows through the window."""
    steps, norms = pre_clip_norms(run, settings.least)
    medians = np.array([np.median(part) for part in np.array_split(norms, settings.parts)])
    decades, factor = np.diff(log10(medians)), float(medians[-1] / medians[0])
    if (decades > 0).sum() < settings.rises or not factor > settings.factor or decades.max() > JUMP * decades.sum():
        return
    held = bool(run.trials) and judge(run).verdict == "stable"
    per_step = factor ** (1 / (len(norms) * (1 - 1 / settings.parts)))
    yield finding(
        CODE,
        NAME,
        "info" if held else "warning",
        f"The gradient norm (pre-clip) rose {number(factor)}-fold over {len(norms)} steps, "
        f"from {number(medians[0])} to {number(medians[-1])}: {100 * (per_step - 1):.2g} % a step.",
        "The plan held in its rehearsals all the same: nothing to do."
        if held
        else "Watch whether the loss still falls; rehearse the plan, since growth alone does not say how it ends.",
        steps=(int(steps[0]), int(steps[-1])),
        value=factor,
        limit=settings.factor,
        unit="times the beginning",
    )


RULE = Rule(CODE, NAME, check)
