"""GS308 sorted-data: batches of one class each.

What it detects
    Batches whose samples share a class far more often than samples of different batches do: data that is read in the order
    in which it lies, class by class.
Why it matters
    The model learns to give the class of the moment, whatever it sees: the loss falls to nothing, jumps where the next class
    begins and stays high for all others. It looks like an explosion, and clipping or a lower rate only soften it.
How it decides
    Over the sampled steps of the recorded window, 64 samples or more in batches of 8 or more, one class a sample: the
    probability that two samples of a batch share a class, less that of two samples of different batches. Unit: probability.
    Limit: .3. Where all have one class, of three or more that the model tells apart: 128 samples or more.
Known problems
    Data that comes class by class on purpose (continual learning) looks the same.
What to do
    Shuffle: `DataLoader(…, shuffle=True)`; for a stream, a shuffle buffer longer than a class.
References
    Bengio 2012, Practical recommendations for gradient-based training, §3.1.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis.model import Finding, Rule
from gradscope.diagnosis.series import count, finding, percent
from gradscope.diagnosis.severity import need_samples
from gradscope.runs.run import Floats, Run

CODE, NAME = "GS308", "sorted-data"
LIMIT, SAMPLES, EACH = 0.3, 64, 8
ALL_ALIKE, CLASSES = 128, 3
ADVICE = "Shuffle the data, DataLoader(…, shuffle=True). Where it comes class by class on purpose, it may be well."


def check(run: Run) -> Iterator[Finding]:
    """One finding where a batch tells the class of its samples."""
    need_samples(run, "the data was")
    counts = _counts(run)
    total = int(counts.sum())
    if total < SAMPLES or len(counts) < 2 or counts.sum(1).min() < EACH:
        return
    if counts.shape[1] == 1:
        classes = int(run.probes.select("classes").value[0])
        alike, said = float(classes >= CLASSES and total >= ALL_ALIKE), f"of {classes} that the model tells apart"
        share, message = alike, f"All {count(total, 'sample')} of {len(counts)} sampled batches have one class, {said}."
    else:
        within, across = _shared(counts)
        share = within - across
        message = f"Two samples of a batch have the same class in {percent(within)} of cases, of different batches in "
        message += f"{percent(across)}: the data comes class by class."
    if share <= LIMIT:
        return
    steps = run.probes.select("labels").step
    where = (int(steps.min()), int(steps.max()))
    yield finding(CODE, NAME, "warning", message, ADVICE, steps=where, value=share, limit=LIMIT, unit="probability")


def _counts(run: Run) -> Floats:
    """(batches, classes): how many samples of each class the sampled batches hold."""
    rows = run.probes.select("labels")
    (steps, row), (labels, column) = (np.unique(one, return_inverse=True) for one in (rows.step, rows.subject))
    counts = np.zeros((len(steps), len(labels)))
    counts[row, column] = rows.value
    return counts


def _shared(counts: Floats) -> tuple[float, float]:
    """The probability that two samples share a class: of one batch, and of two different ones."""
    sizes, squares = counts.sum(1), (counts**2).sum()
    within = (squares - counts.sum()) / (sizes * (sizes - 1)).sum()
    across = ((counts.sum(0) ** 2).sum() - squares) / (sizes.sum() ** 2 - (sizes**2).sum())
    return float(within), float(across)


RULE = Rule(CODE, NAME, check)
