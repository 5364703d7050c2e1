"""GS203 spike: single steps whose gradient norm is far above the steps before them.

What it detects
    Short outbursts, at most 5 steps long, of the global gradient norm.
Why it matters
    One such step can throw the weights out of a good region or fill Adam's second moment for hundreds of steps. This is what
    clipping as a safety net is for; often one batch is to blame.
How it decides
    In log10 of the norm, against up to 50 usable steps before, the step itself left out: z = (x − median) / (1.4826·MAD +
    .05) > 6, and at least 3 × the median. At least 10 steps must come before. A rise that lasts longer than 5 steps is a
    new level, not a spike. Unit: multiples of the median before.
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
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradscope.diagnosis.model import Finding, Rule
from gradscope.diagnosis.series import Bools, count, deviation, finding, number, percent, pre_clip_norms, running_median
from gradscope.runs.run import Floats, Run

CODE, NAME = "GS203", "spike"


@dataclass(frozen=True)
class Settings:
    """`z` and `factor` above which a step stands out; `width` steps before it; `longest` spike; `least` steps before."""

    z: float = 6.0
    factor: float = 3.0
    width: int = 50
    longest: int = 5
    least: int = 10


DEFAULTS = Settings()


def check(run: Run, settings: Settings = DEFAULTS) -> Iterator[Finding]:
    """One finding for all spikes, telling of the largest."""
    steps, norms = pre_clip_norms(run, settings.least + 1)
    before = running_median(norms, settings.width, settings.least)
    spikes = _short(_stands_out(norms, settings), settings.longest)
    if not spikes.any():
        return
    rows = np.flatnonzero(spikes)
    peak = int(rows[np.argmax((norms / before)[rows])])
    factor = float(norms[peak] / before[peak])
    layer, share = _leading(run, int(steps[peak]))
    carried = f"; {layer} carried {percent(share)} of its square" if layer else ""
    largest = f"{number(norms[peak])}, {number(factor)} × the median of the steps before it"
    amount = f"{count(len(rows), 'step')} of {len(norms)}"
    said = f"The gradient norm (pre-clip) spikes in {amount}, most at step {steps[peak]}: {largest}{carried}."
    yield finding(
        CODE,
        NAME,
        "warning",
        said,
        "Look at the batch of that step; clipping as a safety net keeps such a step from doing harm.",
        subject=layer,
        steps=(int(steps[rows[0]]), int(steps[rows[-1]])),
        value=factor,
        limit=settings.factor,
        unit="times the median before",
    )


def _stands_out(norms: Floats, settings: Settings) -> Bools:
    """Which steps are far above the steps before them."""
    logs = np.log10(norms)
    center = running_median(logs, settings.width, settings.least)
    far = np.zeros(len(norms), bool)
    for i in np.flatnonzero(logs - center > np.log10(settings.factor)):
        window = logs[max(0, i - settings.width) : i]
        far[i] = (logs[i] - center[i]) / (deviation(window - center[i]) + 0.05) > settings.z
    return far


def _short(far: Bools, longest: int) -> Bools:
    """`far` without its unbroken stretches longer than `longest`."""
    edges: NDArray[np.int64] = np.flatnonzero(np.diff(np.concatenate([[0], far.astype(np.int8), [0]])))
    kept = far.copy()
    for begin, end in edges.reshape(-1, 2):
        kept[begin:end] = end - begin <= longest
    return kept


def _leading(run: Run, step: int) -> tuple[str | None, float]:
    """The layer with more than half of the squared norm at `step`, and its share; None where no layer has."""
    row = int(np.flatnonzero(run.step == step)[0])
    squares = np.nan_to_num(run.of_layers(run.norms[row : row + 1])[0], nan=0.0, posinf=0.0) ** 2
    share = float(squares.max(initial=0.0) / max(float(squares.sum()), np.finfo(float).tiny))
    return (run.layers[int(np.argmax(squares))].name, share) if share > 0.5 else (None, share)


RULE = Rule(CODE, NAME, check)
