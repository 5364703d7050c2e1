"""What a training learns over its recorded steps and the rehearsal of the plan that follows them: how far its loss falls,
whether it does better than chance, whether it loses again what it had learned, and whether a gradient is left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradscope.diagnosis.rehearsals import horizon
from gradscope.diagnosis.series import MEDIAN_ERROR, deviation, level, median, unscaled_norms
from gradscope.diagnosis.window import at_planned_rate, is_nonfinite, of_the_plan
from gradscope.runs.run import Floats, Run, once

SHARE, NONE = 0.03, 0.005
"""What it must learn: a share of the loss. Below `NONE` own targets do no better than others'."""
LEAST, PARTS, LAST = 100, 20, 2
STILL, ENOUGH = 10, 400
"""Parts that a loss must never have fallen in, and rehearsed steps that are enough to say that nothing is learned."""
FIRST, GONE, LAST_SHARE = 20, 1e-9, 10
"""First steps to compare with; a share of their norm below which there is none; one step in so many must have none."""
PLACE = 0.15
"""Of the plan: how far apart two collapses may be and have one cause that is not the rate."""
COLLAPSED, BACK, AGAIN, SURELY = 0.8, 0.7, 0.7, 4.0
"""A collapse: what was below this share of where it began and ends, is back up by this share of the gain and not down to
this share again in the last quarter; by so many standard errors.
"""


@dataclass(frozen=True)
class Lower:
    """By which share of `before` the loss `after` is lower, and the standard error of that."""

    before: float
    after: float
    share: float
    error: float

    def less_than(self, limit: float) -> bool:
        """Whether that is certain, by two standard errors."""
        return self.share + 2 * self.error < limit

    def at_least(self, limit: float) -> bool:
        """Whether that is certain, by two standard errors."""
        return self.share - 2 * self.error >= limit


@dataclass(frozen=True)
class Collapse:
    """A loss that fell from `first` to `best`, lowest about the row `row`, and ends at `end`."""

    first: float
    best: float
    row: int
    end: float


def losses_of(run: Run) -> Floats:
    """The finite losses of the recorded steps, then those of the rehearsal that goes on from them."""
    trial, window = rehearsal(run), run.loss[np.isfinite(run.loss)]
    return window if trial is None else np.concatenate([window, trial.loss])


def rehearsal(run: Run) -> Run | None:
    """The first rehearsal at the planned rate that stays finite, clipped as the plan is before one that is not."""
    clips = run.header.plan.max_norm is not None
    planned = [one for one in run.trials.values() if (at_planned_rate if clips else of_the_plan)(one)]
    held = [one for one in planned if np.isfinite(one.loss).all() and not is_nonfinite(one)]
    return min(held, key=of_the_plan, default=None)


def fall(losses: Floats, count: int) -> Lower:
    """Cut into `count` equal parts, the best one's median against the first's."""
    medians, error = _medians(losses, count)
    first, best = float(medians[0]), float(medians.min())
    scale = abs(first) or 1.0
    return Lower(first, best, (first - best) / scale, error / scale)


def _medians(losses: Floats, count: int) -> tuple[Floats, float]:
    """The median of each of `count` equal parts, and the standard error of one."""
    parts = np.array_split(losses, count)
    medians = np.array([np.median(part) for part in parts])
    noise = deviation(np.concatenate([part - middle for part, middle in zip(parts, medians, strict=True)]))
    return medians, MEDIAN_ERROR * noise / float(np.sqrt(len(parts[0])))


def lead(trial: Run) -> Lower | None:
    """Own targets against others' at the end of a rehearsal, where both were measured and are above zero."""
    own, others = trial.probes.matrix("target_loss", ["own", "others"])[1].T
    if not len(own) or not (np.minimum(own, others) > 0).all():
        return None
    shares = (others - own) / others
    middle = float(np.median(shares))
    error = MEDIAN_ERROR * deviation(shares - middle) / float(np.sqrt(len(shares)))
    before = float(np.median(others))
    return Lower(before, before * (1 - middle), middle, error)


def at_chance(run: Run) -> Lower | None:
    """The lead of own targets at the end of the rehearsal, where they do no better and the loss falls no more.

    What a spec's own `training_step` takes for targets is not known, so that there the loss must never have fallen, either.
    """
    trial, losses = rehearsal(run), losses_of(run)
    found = lead(trial) if trial is not None else None
    if (
        found is None
        or fall(losses[len(losses) // 2 :], 2).at_least(SHARE)
        or (_opaque(run) and not _never_fell(losses))
    ):
        return None
    return found if found.less_than(SHARE) and found.share < max(2 * found.error, NONE) else None


@once
def nothing_learned(run: Run) -> Lower | None:
    """Over 400 rehearsed steps or all that are left of the plan: `at_chance` with a loss that never fell, or ends no lower
    than the very first; or one that never fell, where targets are known and own ones do not surely better.
    """
    trial, losses = rehearsal(run), losses_of(run)
    if trial is None or not long_enough(run, trial):
        return None
    if found := at_chance(run):
        no_lower = level(losses[-len(losses) // LAST_SHARE :]) >= (1 - SHARE) * losses[0]
        return found if no_lower or _never_fell(losses) else None
    known = None if _opaque(run) else lead(trial)
    stands_still = known is not None and not known.at_least(SHARE) and _never_fell(losses)
    return fall(losses, STILL) if stands_still else None


def long_enough(run: Run, trial: Run, enough: int = ENOUGH) -> bool:
    """Whether so many steps were rehearsed, or all that are left of the plan."""
    return len(trial.step) >= min(enough, horizon(run) - len(run.step))


def _opaque(run: Run) -> bool:
    loss = run.header.piece("loss")
    return loss is not None and loss.value.endswith("training_step")


def _never_fell(losses: Floats) -> bool:
    return len(losses) >= STILL and fall(losses, STILL).less_than(SHARE)


@once
def unlearned(run: Run) -> Collapse | None:
    """The collapse of a training of one optimizer, over 100 steps at least; a game of several may end where it began."""
    optimizer, losses = run.header.optimizer, losses_of(run)
    if len(losses) < LEAST or (optimizer is not None and len({group.optimizer for group in optimizer.groups}) > 1):
        return None
    return collapse(losses, BACK if at_chance(run) is None else 0.0)


def collapse(losses: Floats, back: float = BACK) -> Collapse | None:
    """Whether losses, in 20 equal parts and all above zero, surely fall below .8 of the first part, and of the last two, and
    these are back up by `back` of what was gained, and in the last quarter do not fall by .3 again.
    """
    if len(losses) < PARTS or not np.isfinite(losses).all():
        return None
    medians, error = _medians(losses, PARTS)
    first, best, end = float(medians[0]), float(medians.min()), float(medians[-LAST:].min())
    lost = min(first, end) - best
    if not best > 0 or not best < COLLAPSED * min(first, end) or not end - best > back * (first - best):
        return None
    if medians[-1] < AGAIN * medians[-PARTS // 4] or not lost > SURELY * error:
        return None
    part = np.array_split(np.arange(len(losses)), PARTS)[int(medians.argmin())]
    return Collapse(first, best, int(part[len(part) // 2]), float(medians[-1]))


def lost_at_a_tenth(run: Run) -> bool:
    """Whether the whole plan was tried at a tenth of its learning rate and lost what it learned there too, about as early (a
    rate that rises gets there later); or ended as high as at every other rate tried, and would after as many steps again.
    """
    lower = {name: one.loss for name, one in run.trials.items() if _at_lower_rate(run, one)}
    tenth = next((losses for name, losses in lower.items() if name.startswith("lr-0.1")), None)
    found = unlearned(run)
    if tenth is None or found is None:
        return False
    again, halfway = collapse(tenth), (found.best + found.end) / 2
    same_place = again is not None and abs(again.row - step_of(run, found.row)) <= PLACE * len(tenth)
    quarter = _medians(tenth, PARTS)[0][-PARTS // 4 :]
    to_come = 4 * max(0.0, float(quarter[0] - quarter[-1]))
    as_high = len(lower) > 1 and all(_end(losses) >= halfway for losses in lower.values())
    return same_place or (as_high and _end(tenth) - to_come >= halfway)


def step_of(run: Run, row: int) -> int:
    """The step of the plan of one of `losses_of`."""
    trial, known = rehearsal(run), run.step[np.isfinite(run.loss)]
    if row < len(known) or trial is None or trial.header.trial is None:
        return int(known[min(row, len(known) - 1)])
    return int(trial.header.trial.indexes[row - len(known)])


def _at_lower_rate(run: Run, trial: Run) -> bool:
    """Whether a remedy's trial took the whole plan at a lower rate, with nothing else changed, and stayed finite."""
    made = trial.header.trial
    return (
        made is not None
        and made.kind == "remedy"
        and made.name.startswith("lr-")
        and "+" not in made.name
        and len(made.indexes) == run.header.plan.total_steps
        and len(trial.loss) >= LEAST
        and bool(np.isfinite(trial.loss).all())
    )


def _end(losses: Floats) -> float:
    return float(_medians(losses, PARTS)[0][-LAST:].min())


def vanished(run: Run) -> int | None:
    """The step of the plan from which on no gradient is left, over the recorded steps and the rehearsal after them."""
    trial = rehearsal(run)
    parts = [(run, run.step)]
    if trial is not None and trial.header.trial is not None:
        parts.append((trial, np.asarray(trial.header.trial.indexes)[: len(trial.step)]))
    row = without_gradient([part for part, _ in parts])
    return None if row is None else int(np.concatenate([steps for _, steps in parts])[row])


def without_gradient(parts: list[Run]) -> int | None:
    """The row from which on no gradient is left, though there is a loss, of runs that follow each other; None where some is.
    At least 20 rows and a tenth of all.
    """
    norms = np.concatenate([unscaled_norms(part) for part in parts])
    losses = np.concatenate([part.loss for part in parts])
    left = np.flatnonzero(~(norms <= GONE * median(norms[:FIRST])))
    begin = int(left[-1]) + 1 if len(left) else len(norms)
    if len(norms) - begin < max(FIRST, len(norms) // LAST_SHARE):
        return None
    return begin if level(losses[begin:]) > SHARE * abs(median(losses[:FIRST])) else None
