"""GS203 spike: single steps whose gradient norm is far above the steps before them.

What it detects
    Short outbursts, at most 5 steps long, of the global gradient norm.
Why it matters
    One such step can throw the weights out of a good region or fill Adam's second moment for hundreds of steps. This is what
    clipping as a safety net is for; often one batch is to blame.
How it decides
    In log10: how far the norm lies from the median of up to 11 usable steps before it, against up to 50 such distances
    before: z = (d − median) / (1.4826·MAD + .05) > 6, and at least 3 × that median, whatever the trend of the norms. At
    least 10 steps must come before. A rise that lasts longer than 5 steps is a new level, not a spike. Unit: multiples of
    the median before.
Known problems
    With heavy-tailed norms (policy gradients, rare tokens) spikes are the normal state. Norms read after clipping cannot
    show one.
What to do
    Look at the batch of that step; clip at a value that ordinary steps stay below.
References
    Iglewicz and Hoaglin 1993 (modified z-score). A window that contains the tested value cannot exceed √(n−1).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis.model import Finding, Rule
from gradscope.diagnosis.series import Indexes, count, finding, number, percent, pre_clip_norms
from gradscope.diagnosis.spikes import FACTOR, LEAST, spikes_of
from gradscope.runs.run import Floats, Run

CODE, NAME = "GS203", "spike"


def check(run: Run) -> Iterator[Finding]:
    """One finding for all spikes, telling of the largest."""
    steps, norms = pre_clip_norms(run, LEAST + 1)
    calm = len(steps) - _on_the_way_up(run, steps, norms)
    spikes = spikes_of(steps[:calm], norms[:calm])
    if not len(spikes.steps):
        return
    peak = spikes.largest
    step, factor = int(spikes.steps[peak]), float(spikes.factors[peak])
    layer, share = _leading(run, step)
    carried = f"; {layer} carried {percent(share)} of its square" if layer else ""
    largest = f"{number(spikes.norms[peak])}, {number(factor)} × the median of the steps before it"
    amount = f"{count(len(spikes.steps), 'step')} of {len(norms)}"
    said = f"The gradient norm (pre-clip) spikes in {amount}, most at step {step}: {largest}{carried}."
    yield finding(
        CODE,
        NAME,
        "warning",
        said,
        "Look at the batch of that step; a threshold below it keeps such a step from doing harm.",
        subject=layer,
        steps=(int(spikes.steps[0]), int(spikes.steps[-1])),
        value=factor,
        limit=FACTOR,
        unit="times the median before",
    )


def _on_the_way_up(run: Run, steps: Indexes, norms: Floats) -> int:
    """How many of the last finite norms are far above and lead to where it is nonfinite to the end: an explosion."""
    if steps[-1] == run.step[-1]:
        return 0
    far = np.isin(steps, spikes_of(steps, norms).steps)
    return int(np.argmin(far[::-1])) if not far.all() else 0


def _leading(run: Run, step: int) -> tuple[str | None, float]:
    """The layer with more than half of the squared norm at `step`, and its share; None where no layer has."""
    row = int(np.flatnonzero(run.step == step)[0])
    squares = np.nan_to_num(run.of_layers(run.norms[row : row + 1])[0], nan=0.0, posinf=0.0) ** 2
    share = float(squares.max(initial=0.0) / max(float(squares.sum()), np.finfo(float).tiny))
    return (run.layers[int(np.argmax(squares))].name, share) if share > 0.5 else (None, share)


RULE = Rule(CODE, NAME, check)
