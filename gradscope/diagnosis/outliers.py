"""Samples of the data that make a step stand out: which batches to take apart, and what was found in them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradscope.diagnosis.series import deviation, log10, median
from gradscope.diagnosis.spikes import suspects
from gradscope.diagnosis.window import explosion
from gradscope.runs.run import Floats, Run
from gradscope.runs.schema import Trial

FACTOR, Z, FLOOR, LEAST = 30.0, 6.0, 0.05, 4


@dataclass(frozen=True)
class Size:
    """What one sample has by itself: the value, and the median of the others in its batch."""

    value: float
    others: float

    @property
    def factor(self) -> float:
        """How far it stands out."""
        return self.value / self.others if self.others > 0 else float("inf")


@dataclass(frozen=True)
class Outlier:
    """The sample that stands out most in the batch at `step`: its row there, and its place in the data where known.

    `sizes`: by name, each that stands out. `count`: how many of the `of` samples do. Where every sample of the batch has a
    loss that is not finite, as those of another batch have not, there are no sizes, and `samples` are their places.
    """

    step: int
    row: int
    sample: int | None
    sizes: dict[str, Size]
    count: int
    of: int
    samples: tuple[int, ...] = ()


def next_looks(run: Run, allowed: float = float("inf")) -> tuple[Trial, ...]:
    """Trials (kind samples) for the batches that may be to blame for a spike or an explosion.

    An exploding window leaves a model that tells nothing, so that its batches are looked at with the model it began with.
    Where each sample of a batch is broken, an ordinary batch tells whether that is the way of the loss.
    """
    seen = explosion(run)
    start = "initial" if seen else "window"
    steps = suspects(run, seen)
    if any(_all_broken(trial) for trial in _looks(run)):
        steps.append(next(step for step in range(len(steps) + 1) if step not in steps))
    looks = [Trial("samples", f"samples-{step}", start=start, indexes=(step,)) for step in steps]
    wanted = [look for look in looks if look.name not in run.trials]
    return tuple(wanted if allowed > len(wanted) else wanted[: int(allowed)])


def outliers(run: Run) -> list[Outlier]:
    """The sample that stands out most, of each batch that was taken apart and has one; one that came again, once."""
    looked = [(trial, made) for trial in _looks(run) if (made := trial.header.trial)]
    found = [_outlier(trial, made) for trial, made in looked]
    if not all(_all_broken(trial) for trial, _ in looked):
        found += [_broken(trial, made) for trial, made in looked if _all_broken(trial)]
    ordered = sorted((one for one in found if one), key=lambda one: -one.step)
    named = {(one.step, one.row) if one.sample is None else one.sample: one for one in ordered}
    return sorted(named.values(), key=lambda one: one.step)


def _looks(run: Run) -> list[Run]:
    """The batches that were taken apart."""
    made = [(trial, trial.header.trial) for trial in run.trials.values() if trial.header.ending.how == "finished"]
    return [trial for trial, about in made if about and about.kind == "samples"]


def _all_broken(trial: Run) -> bool:
    return len(trial.loss) > 0 and not np.isfinite(trial.loss).any()


def _broken(trial: Run, made: Trial) -> Outlier:
    places, amount = made.samples, len(trial.loss)
    return Outlier(made.indexes[0], 0, places[0] if places else None, {}, amount, amount, places)


def _outlier(trial: Run, made: Trial) -> Outlier | None:
    _, inputs = trial.probes.matrix("input_peak", ["input"])
    measured = {
        "loss": np.abs(trial.loss),
        "gradient norm": trial.global_norm,
        "largest value": inputs[:, 0] if len(inputs) == len(trial.loss) else np.full(len(trial.loss), np.nan),
    }
    found = {name: _beyond(values) for name, values in measured.items()}
    far = np.any([beyond > 0 for beyond in found.values()], axis=0)
    if not far.any():
        return None
    row = int(np.argmax(np.max(list(found.values()), axis=0)))
    sizes = {
        name: Size(float(measured[name][row]), median(measured[name][~far]))
        for name, beyond in found.items()
        if beyond[row] > 0
    }
    sample = made.samples[row] if made.samples else None
    return Outlier(made.indexes[0], row, sample, sizes, int(far.sum()), len(far))


def _beyond(values: Floats) -> Floats:
    """(n,): the decades of those that stand out, 0 for the others.

    In log10: z = (x − median) / (1.4826·MAD + .05) > 6, and more than 30 × the median; a value that is not finite always,
    where others are.
    """
    logs, finite = log10(values), np.isfinite(values)
    if np.isfinite(logs).sum() < LEAST:
        return np.zeros(len(values))
    distance = np.where(finite, np.nan_to_num(logs, nan=-np.inf) - median(logs), np.inf)
    far = (distance > Z * (deviation(distance) + FLOOR)) & (distance > np.log10(FACTOR))
    return np.where(far, distance, 0.0)
