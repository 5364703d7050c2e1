"""Is the training already exploding in the recorded steps? Shared by rule GS201 and by the verdict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gradscope.diagnosis.series import Bools, Indexes, level, median, number, running_median, unscaled_norms, usable
from gradscope.runs.run import Floats, Run
from gradscope.runs.schema import ROOT

LEAST = 20
EARLY_LOSSES, EARLY_NORMS, LATE = 5, 10, 10
LATE_LOSSES, LATE_SHARE = 8, 10
LOSS_FACTOR, NORM_FACTOR = 10.0, 100.0
BLOWN, BEFORE = 1000.0, 100
NOT_RECOVERED, STAYS_UP = 0.75, 2.0
RISING = 2
SHORTLY, GREW, UNMOVED, FAR = 3, 10.0, 1.25, 1e6
JUMP = 30.0
STEADY = 10.0
PASSED = 3.0
GUARD = 0.01
"""A beginning a hundred times below the median of the window is no reference."""


@dataclass(frozen=True)
class Explosion:
    """An explosion seen in the window: where it begins, what showed it, and by how much (None: nonfinite)."""

    first_step: int
    reason: str
    value: float | None = None
    limit: float | None = None


def explosion(run: Run) -> Explosion | None:
    """The explosion that the recorded steps show, or None: `seen_in_window`, or a norm above 1000 × what came before it with
    a loss that recovers neither in the window nor in a rehearsal of the plan, or that rises where the recording ends, or
    with a layer that is dead afterwards; or the same from the first steps on.
    """
    return seen_in_window(run) or _stays_blown(run) or _ends_rising(run) or _blown_at_once(run) or _runs_away(run)


def seen_in_window(run: Run) -> Explosion | None:
    """What the recorded steps alone prove.

    Any nonfinite value, or, of the run's own beginning: median of the last 10 |loss| above 10 × (below 100 ×: unless no norm
    grew by more than its square root; or none by 100 ×, and the loss had been 3 × as high before), median of the last 10
    norms above 100 × (unless the loss falls steadily below zero), or a norm above 1000 × the first with a last loss above
    10 × the first. Steps that were skipped, by a scaler or by the script, count only by a loss that stays nonfinite; a loss
    that falls is no explosion, however negative. Norms read after clipping are not judged.
    """
    return _nonfinite(run) or next(_grown(_Window(run)), None)


def enough(run: Run) -> bool:
    """Whether there are steps enough to compare early with late ones."""
    return int(np.isfinite(run.loss).sum()) >= LEAST or int(usable(run).sum()) >= LEAST


def stable_prefix(run: Run) -> int:
    """How many rows come before the first norm that is nonfinite or above 30 × the running median; skipped steps aside."""
    norms = unscaled_norms(run)
    taken = np.flatnonzero(~run.skipped & ~(np.isnan(norms) & (run.nonfinite == 0)))
    values = np.where(np.isfinite(norms[taken]), norms[taken], np.inf)
    stays = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        stays &= ~(values > JUMP * running_median(np.where(stays, values, 0.0), 50))
    stays[:1] = True
    return len(run.step) if stays.all() else int(taken[np.argmin(stays)])


def nonfinite_steps(run: Run) -> Bools:
    """(T,): steps whose gradient is nonfinite and was not thrown away. The last one of a run that failed counts always."""
    taken = ~run.skipped
    taken[-1:] |= run.header.ending.how == "failed"
    return np.asarray(taken & ((run.nonfinite > 0) | np.isinf(run.global_norm)))


def nonfinite_losses(run: Run) -> Bools:
    """(T,): steps whose loss is nonfinite. Where a run holds no loss at all, only steps with a nonfinite gradient count."""
    bad = ~np.isfinite(run.loss) & ~unseen_losses(run)
    if np.isnan(run.loss).all():
        bad &= nonfinite_steps(run)
    return np.asarray(bad)


def unseen_losses(run: Run) -> Bools:
    """(T,): steps of a script whose loss was not seen: it is NaN, as an unknown one is, and the gradient is finite. From a
    loss on that was seen to be nonfinite, such losses are that.
    """
    if run.header.recorded_by == "analyze":
        return np.zeros(len(run.step), bool)
    first = run.header.first_nonfinite
    before = run.step < first.step if first is not None and first.went_first != "gradient" else True
    return np.asarray(np.isnan(run.loss) & np.isfinite(run.global_norm) & before)


def growth_before(run: Run, row: int) -> float | None:
    """The largest of the last 3 norms before a row ÷ the median of those before them, of the first where these are under 5;
    where one of the last quarter is a million times the first tenth's median, that; None where so few do not show whether it
    grew.
    """
    norms = unscaled_norms(run)[:row][usable(run)[:row]]
    if run.header.measured_at != "pre_clip" or len(norms) < SHORTLY - 1:
        return None
    few = len(norms) < EARLY_LOSSES + SHORTLY
    growth = float(norms[-SHORTLY:].max()) / (float(norms[0]) if few else median(norms[:-SHORTLY]))
    if few:
        return growth if growth > LOSS_FACTOR else None
    far = float(norms[-(len(norms) // 4) :].max()) / median(norms[: max(1, len(norms) // 10)])
    return far if growth <= GREW and far > FAR else growth


def what_to_do(run: Run, row: int, look: str) -> str:
    """Advice for a row that is the first with something nonfinite. `look`: where to look if it came out of nothing."""
    growth = growth_before(run, row)
    if growth is None:
        return f"If the gradient norm grew before, lower the learning rate or clip; if not, look at {look}."
    if growth > GREW:
        return f"The gradient norm had grown {number(growth)} × just before: lower the learning rate or clip."
    return f"The gradient norm had not grown before, so first look at {look} (a division by 0, a log or root of 0)."


def broken_data(run: Run) -> bool:
    """Whether a batch that was not finite itself is what went nonfinite first."""
    first = run.header.first_nonfinite
    return first is not None and first.went_first == "input"


def harmful(run: Run) -> Bools:
    """(T,): nonfinite steps, but for those whose loss was finite again later, and whose step was skipped or, by a script,
    taken with a finite gradient.
    """
    losses = nonfinite_losses(run)
    finite = np.flatnonzero(np.isfinite(run.loss))
    later = np.arange(len(losses)) < (finite[-1] if len(finite) else -1)
    passed = np.isfinite(run.global_norm) & (run.header.recorded_by != "analyze")
    survived = (run.skipped | passed) & later
    return np.asarray(nonfinite_steps(run) | (losses & ~survived))


def is_nonfinite(trial: Run) -> bool:
    """Whether a loss, or a gradient, became nonfinite, other than in a skipped step that came to nothing."""
    return bool(harmful(trial).any()) or trial.header.ending.how == "nonfinite"


def late_loss(trial: Run) -> float:
    """The level of the losses in the last tenth of its steps, of 8 at least."""
    made = trial.header.trial
    length = len(made.indexes) if made and made.indexes else len(trial.step)
    return level(trial.loss[-max(LATE_LOSSES, length // LATE_SHARE) :])


def _nonfinite(run: Run) -> Explosion | None:
    bad = np.flatnonzero(harmful(run))
    if not len(bad):
        return None
    row = int(bad[0])
    what = "the loss" if nonfinite_losses(run)[row] else "the gradient"
    return Explosion(_begin(run, row), f"{what} is nonfinite at step {run.step[row]}")


class _Window:
    """The finite losses and usable norms of a run, with their rows; none of either where there are too few."""

    def __init__(self, run: Run) -> None:
        self.run = run
        rows = np.flatnonzero(np.isfinite(run.loss))
        self.loss_rows = rows if len(rows) >= LEAST else rows[:0]
        self.losses = run.loss[self.loss_rows]
        self.sizes = np.abs(self.losses)
        rows = np.flatnonzero(usable(run) & (run.header.measured_at == "pre_clip"))
        self.norm_rows = rows if len(rows) >= LEAST else rows[:0]
        self.norms = unscaled_norms(run)[self.norm_rows]

    @property
    def both(self) -> bool:
        """Whether losses and norms are known."""
        return bool(len(self.losses) and len(self.norms))


def _grown(seen: _Window) -> Iterator[Explosion]:
    """What grew, the surest sign first."""
    losses, sizes, norms = seen.losses, seen.sizes, seen.norms
    last, first = median(sizes[-LATE:]), beginning(sizes, EARLY_LOSSES)
    rose = last > LOSS_FACTOR * first > 0 and median(losses[-LATE:]) > median(losses[:EARLY_LOSSES])
    if rose and not _may_be_well(seen, last, last / first):
        what = f"median |loss| of the last {LATE}"
        yield _explosion(
            seen.run, seen.loss_rows, sizes, (last, first, LOSS_FACTOR), what, median(sizes[:EARLY_LOSSES])
        )
    ends = median(norms[-LATE:]), beginning(norms, EARLY_NORMS), NORM_FACTOR
    if ends[0] > NORM_FACTOR * ends[1] and not _falls_steadily(losses):
        what = f"median gradient norm of the last {LATE}"
        yield _explosion(seen.run, seen.norm_rows, norms, ends, what, median(norms[:EARLY_NORMS]))
    if seen.both and norms.max() > BLOWN * norms[0] and level(losses[-LATE:]) > LOSS_FACTOR * losses[0] > 0:
        what = "the largest gradient norm, with a loss that stays up,"
        yield _explosion(seen.run, seen.norm_rows, norms, (float(norms.max()), float(norms[0]), BLOWN), what)


def _may_be_well(seen: _Window, last: float, growth: float) -> bool:
    """Whether a loss rose with its targets; or less than 100 ×, as the norms, and it had been 3 × as high before."""
    if growth >= NORM_FACTOR or not len(seen.norms):
        return False
    passed = float(seen.sizes[:-LATE].max()) > PASSED * last
    steeper = float(seen.norms.max()) / beginning(seen.norms, EARLY_NORMS)
    return with_its_targets(growth, steeper) or (passed and steeper < NORM_FACTOR)


def with_its_targets(growth: float, steeper: float) -> bool:
    """Whether a loss grew less than 100 × while no gradient norm grew by more than the square root of that, as where not the
    weights but the targets grow.
    """
    return growth < NORM_FACTOR and steeper < growth**0.5


def _falls_steadily(losses: Floats) -> bool:
    """Whether losses end below zero, where the sharpening of a likelihood enlarges gradients, and fell at most 10 × as far
    from their beginning as by their middle: what has no bottom falls ever faster.
    """
    middle, first, last = len(losses) // 2, median(losses[:EARLY_LOSSES]), level(losses[-LATE:])
    halfway = first - median(losses[max(0, middle - LATE // 2) : middle + LATE // 2])
    return last < 0 and first - last <= STEADY * halfway


def _stays_blown(run: Run) -> Explosion | None:
    seen = _Window(run)
    before = running_median(seen.norms, BEFORE, EARLY_LOSSES)
    with np.errstate(invalid="ignore"):
        jumps = seen.norms > BLOWN * before
    ends = [level(seen.losses[-LATE:]), *(_end(trial) for trial in run.trials.values() if of_the_plan(trial))]
    if not jumps.any():
        return None
    row = int(np.argmax(jumps))
    pair, rows = (float(seen.norms[row]), float(before[row]), BLOWN), seen.norm_rows[row:]
    stays_up = min(ends) > NOT_RECOVERED * beginning(seen.sizes, EARLY_LOSSES)
    if seen.both and stays_up and not (len(ends) == 1 and _passed(seen, row, float(before[row]))):
        return _explosion(run, rows, seen.norms[row:], pair, "a gradient norm, with a loss that stays up,")
    if dead := _dead_after(run, int(rows[0])):
        what = f"a gradient norm, after which layer {dead} gets a gradient of 0 to the end,"
        return _explosion(run, rows, seen.norms[row:], pair, what)
    return None


def _blown_at_once(run: Run) -> Explosion | None:
    """Of the first 20 losses at least 5 above 10 × the first, with a norm above 100 × the first, and a loss that does not
    come back down below .75 × the first; where the plan was rehearsed, in no rehearsal below twice the first.
    """
    seen = _Window(run)
    if not seen.both:
        return None
    losses, norms, end = seen.losses[:LEAST], seen.norms[:LEAST], level(seen.losses[-LATE:])
    ahead = [_end(trial) for trial in run.trials.values() if of_the_plan(trial)]
    high = (losses > LOSS_FACTOR * losses[0]) & (losses[0] > 0)
    stays_up = min([end, *ahead]) > (STAYS_UP if ahead else NOT_RECOVERED) * losses[0]
    if high.sum() < EARLY_LOSSES or not norms.max() > NORM_FACTOR * norms[0] or not stays_up:
        return None
    said = f"the loss rises at once, from {number(losses[0])} to {number(losses.max())}, and ends at {number(end)}"
    said += f"; the gradient norm is {number(norms.max())}, against {number(norms[0])} before"
    first = int(run.step[seen.loss_rows[np.argmax(high)]])
    return Explosion(first, said, float(norms.max() / norms[0]), NORM_FACTOR)


def _runs_away(run: Run) -> Explosion | None:
    """Few steps, at whose end loss and norm are the highest, above 1000 × the first, after a loss above 10 × the first: what
    a script leaves that skips every loss from then on.
    """
    rows, losses, norms = _known(run)
    if not 2 < len(rows) < LEAST or losses[0] <= 0 or not losses[-2] > LOSS_FACTOR * losses[0]:
        return None
    if losses.max() > losses[-1] or not losses[-1] > BLOWN * losses[0] or not norms[-1] > BLOWN * norms[0]:
        return None
    said = f"the loss rises to {number(losses[-1])} at the last step, against {number(losses[0])} at the first"
    return Explosion(int(run.step[rows[np.argmax(losses > LOSS_FACTOR * losses[0])]]), said)


def _passed(seen: _Window, row: int, before: float) -> bool:
    """Whether a jump of the norm at `row` left norms and losses as they were, or came too late to tell."""
    after = seen.norms[row + 1 :]
    if len(after) < EARLY_LOSSES:
        return True
    step = seen.norm_rows[row]
    losses = [level(seen.losses[part]) for part in (seen.loss_rows < step, seen.loss_rows > step)]
    return before / GREW < median(after) < GREW * before and losses[1] <= UNMOVED * losses[0]


def _dead_after(run: Run, row: int) -> str | None:
    """The first layer whose gradient was not 0 before a row, and is in all of the later half of the steps that follow it,
    which are 20 at least.
    """
    left = len(run.step) - row - 1
    if left < LEAST:
        return None
    alive = run.ever(lambda norms: norms > 0, np.arange(row))
    moves = run.ever(lambda norms: norms != 0, np.arange(len(run.step) - left // 2, len(run.step)))
    killed = np.flatnonzero(alive & ~moves)
    return run.header.parameters[killed[0]].layer or ROOT if len(killed) else None


def _ends_rising(run: Run) -> Explosion | None:
    """A script that stops at what it sees leaves a few rows of an explosion: at least two at the end whose losses are above
    10 × the median before, the last the highest, with a norm above 1000 × the median before; one, and 100 ×, where the run
    says that it failed.
    """
    rows, losses, norms = _known(run)
    stopped = run.header.ending.how == "failed" or bool(run.header.ending.message)
    begin = len(rows)
    while begin > EARLY_LOSSES and losses[begin - 1] > LOSS_FACTOR * median(np.abs(losses[: begin - 1])):
        begin -= 1
    if len(rows) - begin < (1 if stopped else RISING) or losses[begin:].max() > losses[-1]:
        return None
    before, loss, highest = median(norms[:begin]), median(np.abs(losses[:begin])), float(norms[begin:].max())
    ends = (_end(trial) for trial in run.trials.values() if of_the_plan(trial))
    if not highest > (NORM_FACTOR if stopped else BLOWN) * before > 0 or any(end <= LOSS_FACTOR * loss for end in ends):
        return None
    said = (
        f"the loss rises to {number(losses[-1])} at the last step, against {number(loss)} before, and the gradient norm"
    )
    return _explosion(run, rows[begin:], norms[begin:], (highest, before, BLOWN), said)


def _known(run: Run) -> tuple[Indexes, Floats, Floats]:
    """The rows with both a finite loss and a usable norm from before clipping, and these."""
    rows = np.flatnonzero(np.isfinite(run.loss) & usable(run) & (run.header.measured_at == "pre_clip"))
    return rows, run.loss[rows], unscaled_norms(run)[rows]


def of_the_plan(trial: Run) -> bool:
    """Whether a trial rehearses the plan at its own learning rate, unclipped."""
    return at_planned_rate(trial) and trial.header.trial is not None and trial.header.trial.max_norm is None


def at_planned_rate(trial: Run) -> bool:
    """Whether a trial rehearses the plan at its own learning rate."""
    made = trial.header.trial
    return made is not None and made.kind == "rehearsal" and made.lr_factor == 1.0


def _end(trial: Run) -> float:
    return float("inf") if is_nonfinite(trial) else late_loss(trial)


def beginning(sizes: Floats, count: int) -> float:
    """The beginning to compare with; never below a hundredth of the median."""
    return float(np.fmax(median(sizes[:count]), GUARD * median(sizes)))


def _explosion(
    run: Run, rows: Indexes, sizes: Floats, ends: tuple[float, float, float], what: str, before: float | None = None
) -> Explosion:
    """`ends`: the last size, what it is compared with, and the limit as a factor; `before`: what the first was, if other."""
    last, first, limit = ends
    row = int(rows[np.argmax(sizes > limit * first)])
    said = f"{what} is {number(last)}, against {number(first if before is None else before)} before"
    return Explosion(_begin(run, row), said, last / first if first else None, limit)


def _begin(run: Run, row: int) -> int:
    return int(run.step[min(row, stable_prefix(run))])
