"""GS309 odd-logits: outputs that cross-entropy does not expect.

What it detects
    Probabilities where cross-entropy wants logits, which takes the softmax of a softmax; outputs so large at the start that
    the loss is far above that of guessing.
Why it matters
    Of probabilities the gradient is small, and the loss cannot fall below log(1 + (C − 1)/e) for C classes. A loss far above
    guessing means that a network which knows nothing yet is very sure: its first steps are as large as its error.
How it decides
    Where the loss is cross-entropy of one class a sample. On every sampled step all outputs are at least 0 and sum to 1 for
    every sample: a warning. The first loss is above 10 times log C, with C ≥ 2 classes: an information, or a warning where
    the training explodes, or will, loses what it learned or learns nothing. Unit: times log C.
Known problems
    A single sampled step says little; the loss of a run that goes on from trained weights may begin anywhere.
What to do
    Leave the softmax out: `CrossEntropyLoss` takes it. Outputs that are too large: standardise the inputs, add a norm, or
    start the last layer smaller.
References
    PyTorch, torch.nn.CrossEntropyLoss; Karpathy 2019, A recipe for training neural networks, "verify loss @ init".
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis.data import loss_named
from gradscope.diagnosis.model import Finding, Rule
from gradscope.diagnosis.series import finding, number
from gradscope.diagnosis.severity import need_samples, severity_of
from gradscope.runs.run import Run

CODE, NAME = "GS309", "odd-logits"
LOSSES = ("CrossEntropyLoss", "cross_entropy")
TIMES = 10.0
LEAST = 2
PROBABILITIES = "The outputs are probabilities already: the loss takes the softmax of a softmax, and cannot fall below"
TWICE = "Give it the outputs from before the softmax: cross-entropy takes its own."
LARGE = "Outputs are far too large at the start: standardise the inputs, add a norm, or start the last layer smaller."


def check(run: Run) -> Iterator[Finding]:
    """One finding for probabilities, and one for a start far above guessing."""
    need_samples(run, "the outputs were")
    classes, shares = run.probes.select("classes").value, run.probes.select("probabilities").value
    if not len(classes) or loss_named(run) not in LOSSES or classes[0] < LEAST:
        return
    if len(shares) >= LEAST and shares.min() == 1.0:
        least = math.log1p((classes[0] - 1) / math.e)
        said = f"{PROBABILITIES} {number(least)}."
        yield finding(CODE, NAME, "warning", said, TWICE, value=1.0, limit=1.0, unit="share of the samples")
    first, guess = next(iter(run.loss[np.isfinite(run.loss)]), math.nan), math.log(classes[0])
    if first > TIMES * guess:
        times = float(first / guess)
        said = f"The loss begins at {number(float(first))}, {number(times)} × that of guessing among "
        said += f"{int(classes[0])} classes, {number(guess)}."
        yield finding(CODE, NAME, severity_of(run), said, LARGE, value=times, limit=TIMES, unit="times log C")


RULE = Rule(CODE, NAME, check)
