"""GS307 data-scale: inputs or targets far larger or smaller than initial weights are made for.

What it detects
    Inputs or targets that are not standardised: raw pixels, prices, time stamps, one feature in the millions.
Why it matters
    Initial weights are made for inputs of mean 0 and variance 1, and give outputs of that size. The curvature along the
    first layer's weights grows with the square of what enters it: at 100, the highest rate that holds with SGD is 10,000
    times lower. Small inputs leave the output the same for every sample. Targets far away make every gradient as large.
How it decides
    On the first step: the root mean square of what enters the first layer with a matrix, unless a norm follows it, which
    takes the size back; and that of the targets, where the loss is a function of output and target, unless the outputs are
    within a factor of 10. Limits: above 10 or below .001. A warning where the training explodes, or will, loses what it
    learned or learns nothing; else an information.
Known problems
    Seen on one batch, in analyzed runs. A layer that is fed something small on purpose looks the same.
What to do
    Subtract each feature's mean over the training set and divide by its standard deviation. Where remedies are tried, that
    is among them.
References
    LeCun, Bottou, Orr, Müller 1998, Efficient backprop, §4.3.
"""

from __future__ import annotations

from collections.abc import Iterator

from gradscope.diagnosis.data import Data, odd_inputs, odd_targets
from gradscope.diagnosis.model import Finding, Rule
from gradscope.diagnosis.series import finding
from gradscope.diagnosis.severity import need_samples, severity_of
from gradscope.runs.run import Run

CODE, NAME = "GS307", "data-scale"
INPUTS = "Standardise the inputs: subtract each feature's mean over the training set, divide by its standard deviation."
TARGETS = "Standardise the targets, as inputs are, and put the outputs back to their scale when you use them."
HELD = "The training does not explode for it."


def check(run: Run) -> Iterator[Finding]:
    """One finding for the inputs, and one for the targets."""
    need_samples(run, "the data was")
    if inputs := odd_inputs(run):
        yield _finding(run, inputs, INPUTS)
    if targets := odd_targets(run):
        yield _finding(run, targets, TARGETS)


def _finding(run: Run, data: Data, advice: str) -> Finding:
    severity = severity_of(run)
    return finding(
        CODE,
        NAME,
        severity,
        f"{data.told}; initial weights are made for 1.",
        advice if severity == "warning" else f"{HELD} {advice}",
        subject=data.layer,
        steps=(int(run.step[0]), int(run.step[0])),
        value=data.rms,
        limit=data.limit,
        unit="root mean square",
    )


RULE = Rule(CODE, NAME, check)
