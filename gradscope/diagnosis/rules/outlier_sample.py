"""GS207 outlier-sample: one sample of the data is behind a step that stands out.

What it detects
    A sample that by itself has a far larger loss, gradient norm or input than the others in its batch: in the batch of the
    largest spike of the gradient norm, in the recorded steps or in a rehearsal, and of the step where an explosion begins.
Why it matters
    One broken sample, badly scaled or wrongly labelled, comes back every epoch. Clipping hides it at best.
How it decides
    The batch is taken apart, and each sample goes forward and backward by itself, with the model as it was after the
    recorded steps (as it began, where these explode), in evaluation mode. In log10: z = (x − median) / (1.4826·MAD + .05) >
    6, and more than 30 × the median; a value that is not finite always. Unit: multiples of the median of the others. Where
    no sample of a batch has a finite loss, another batch is taken apart too, and must have one.
Known problems
    Only batches with one sample a row are taken apart, by `analyze` alone, and losses that need several samples tell
    nothing. A hard sample of a model that has learned the others may stand out too.
What to do
    Look at the sample: is it scaled, cleaned and labelled like the others?
References
    Koh and Liang 2017 and Pruthi et al. 2020 trace a training back to its samples, the latter by gradients of single ones.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis.model import Finding, Rule
from gradscope.diagnosis.outliers import FACTOR, Outlier, outliers
from gradscope.diagnosis.series import finding, listed, number
from gradscope.runs.run import Run

CODE, NAME = "GS207", "outlier-sample"
SHOWN = 5


def check(run: Run) -> Iterator[Finding]:
    """One finding a sample that stands out."""
    for one in outliers(run):
        if not one.sizes:
            yield _whole_batch(run, one)
            continue
        name = f"row {one.row} of its batch" if one.sample is None else f"sample {one.sample} of the data"
        ahead = _ahead(run, one)
        more = f" {one.count} of the {one.of} samples in that batch stand out." if one.count > 1 else ""
        yield finding(
            CODE,
            NAME,
            "warning",
            f"Step {one.step}{ahead}: {name} stands out by itself: {_sizes(one)}.{more}",
            "Look at that sample: is it scaled, cleaned and labelled like the others? No threshold mends it.",
            steps=(one.step, one.step),
            value=max(size.factor for size in one.sizes.values()),
            limit=FACTOR,
            unit="times the median of the others",
        )


def _ahead(run: Run, one: Outlier) -> str:
    return ", rehearsed" if one.step > run.step.max(initial=-1) else ""


def _whole_batch(run: Run, one: Outlier) -> Finding:
    """Every sample of a batch is broken: what they share is to blame."""
    which = f" ({_places(one.samples)} of the data)" if one.samples else ""
    return finding(
        CODE,
        NAME,
        "warning",
        f"Step {one.step}{_ahead(run, one)}: each of the {one.of} samples of its batch{which} has by itself a loss that is "
        "not finite; those of another batch have not.",
        "Look at what these samples share: are they empty, masked out, or without a target?",
        steps=(one.step, one.step),
    )


def _places(samples: tuple[int, ...]) -> str:
    """`samples 3 to 9`, `samples 3, 17, 20 and 5 more`."""
    first, last = min(samples), max(samples)
    if last - first + 1 == len(set(samples)) and len(samples) > 1:
        return f"samples {first} to {last}"
    return f"samples {listed(samples, SHOWN)}"


def _sizes(one: Outlier) -> str:
    """`loss 3.4e+07 (others: 0.708), gradient norm …`."""
    values = {name: number(size.value) if np.isfinite(size.value) else "not finite" for name, size in one.sizes.items()}
    parts = [f"{name} {values[name]} (others: {number(size.others)})" for name, size in one.sizes.items()]
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]


RULE = Rule(CODE, NAME, check)
