"""Which remedies to try next: a pure function of the run on disk, asked again until it wants nothing more.

Where it explodes, or will, loses what it learned, or learns nothing: standard data and usual settings where these are
odd, lower learning rates (a higher one too where it learns nothing), a longer warm-up, the culprit's initialisation scaled
to its peers, and clipping, each from the start on the same time-compressed rehearsal of the whole plan, or, where that fails
in another order of the batches, in that order; then the best two that can be joined. A compressed rehearsal may leave out
the step where the plan fails, or fail where the plan holds: then they are tried on the plan in full, until three hold, as
far as the time allows it. A plan of a few hundred steps is tried in full at once.
"""

from __future__ import annotations

from dataclasses import replace

from gradscope.diagnosis.learning import SHARE, collapse, nothing_learned, unlearned, vanished, without_gradient
from gradscope.diagnosis.plan import AFFORDED, even
from gradscope.diagnosis.rehearsals import horizon, in_other_orders, recommended, reference, stretch
from gradscope.diagnosis.severity import goes_wrong
from gradscope.diagnosis.verdict import judge
from gradscope.diagnosis.window import broken_data, is_nonfinite
from gradscope.recommendation.candidates import DIVERGED, blew_up, final_loss
from gradscope.recommendation.changes import CLIP, joined, single_changes
from gradscope.recommendation.plan import FINAL
from gradscope.runs.run import Run
from gradscope.runs.schema import Trial

LENGTH, LEAST = 100, 20
WHOLE, ENOUGH = "-whole", 3


def next_remedies(run: Run, allowed: float = float("inf")) -> tuple[Trial, ...]:
    """The next trials of kind remedy within `allowed` training steps; empty when none is needed."""
    needed = goes_wrong(run) or vanished(run) is not None
    if not needed or allowed < LEAST or broken_data(run):
        return ()
    tried = {name: one for name, one in run.trials.items() if one.header.trial and one.header.trial.kind == "remedy"}
    if not tried:
        wanted = single_changes(run)
        if broke := next(filter(is_nonfinite, in_other_orders(run)), None):
            wanted = [_in_the_order_of(broke, one) for one in wanted]
            return tuple(wanted[: int(min(allowed, 1e9) / len(wanted[0].indexes))])
        fits = allowed / (len(wanted) + 1)
        length = horizon(run) if horizon(run) <= min(FINAL, fits) else int(min(LENGTH, max(LEAST, fits)))
        indexes = tuple(int(i) for i in even(0, horizon(run), length))
        return tuple(_over(indexes, one) for one in wanted[: int(min(allowed, 1e9) / length)])
    pair = None if any("+" in name for name in tried) else _pair(run, tried)
    following = pair or _in_full(run, tried)
    return (following,) if following and len(following.indexes) <= allowed else ()


def _in_full(run: Run, tried: dict[str, Run]) -> Trial | None:
    """The next one to try in full: clipping, then single changes, those first that held compressed; none once three held.
    Rates and initial weights are tried even if they did not: what is compressed may be too short to learn.
    """
    whole = {name for name, one in tried.items() if is_whole(run, one)}
    if horizon(run) > AFFORDED or sum(held(run, tried[name]) for name in whole) >= ENOUGH:
        return None
    left = [name for name, one in tried.items() if name not in whole and name + WHOLE not in whole]
    hopeful = [name for name in left if held(run, tried[name]) or name == "init" or name.startswith("lr-")]

    def place(name: str) -> tuple[bool, bool, bool, float]:
        return name != CLIP, "+" in name, not held(run, tried[name]), final_loss(run, tried[name])

    trial = tried[min(hopeful, key=place)].header.trial if hopeful else None
    if trial is None:
        return None
    return replace(trial, name=trial.name + WHOLE, indexes=tuple(range(horizon(run))), max_norm=recommended(trial))


def is_whole(run: Run, trial: Run) -> bool:
    """Whether a trial was to take every step of the plan."""
    return trial.header.trial is not None and len(trial.header.trial.indexes) == horizon(run)


def _in_the_order_of(broke: Run, one: Trial) -> Trial:
    """The remedy on the batches of a trial that did not hold, in their order."""
    made = broke.header.trial
    assert made is not None
    return replace(_over(made.indexes, one), shuffled=made.shuffled)


def _over(indexes: tuple[int, ...], one: Trial) -> Trial:
    """The remedy on these steps; a threshold grows as for every compressed trial."""
    spread = replace(one, indexes=indexes)
    return spread if one.max_norm is None else replace(spread, max_norm=one.max_norm * stretch(spread))


def _pair(run: Run, tried: dict[str, Run]) -> Trial | None:
    """The two best that held and change different things, as one; where none held, other initial weights at a tenth of the
    rate: what passes gradients on may ask for smaller steps.
    """
    good = [one for one in sorted(tried.values(), key=lambda one: final_loss(run, one)) if held(run, one)]
    best = [one.header.trial for one in good or map(tried.get, ("init", "lr-0.1")) if one and one.header.trial]
    if not good:
        return joined(*best) if len(best) > 1 else None
    for other in best[1:]:
        if _kind(best[0]) != _kind(other):
            return joined(best[0], other)
    return None


def _kind(trial: Trial) -> str:
    return trial.name.split("-")[0]


def held(run: Run, trial: Run) -> bool:
    """Whether a remedy's trial stayed finite, did not blow up on the way and ended near where the window began, or below it,
    with what it learned; where the training as it is ends at chance, below that; where it loses what it learned, nearer to
    the best than to its end.
    """
    end, limit = final_loss(run, trial), DIVERGED * reference(run).first_loss
    if chance := nothing_learned(run):
        limit = (1 - SHARE) * chance.before
    elif not judge(run).may_explode and (lost := unlearned(run)):
        limit = (lost.best + lost.end) / 2
    blown = blew_up(trial, reference(run).first_loss)
    return end <= limit and not blown and collapse(trial.loss) is None and without_gradient([trial]) is None
