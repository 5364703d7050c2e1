"""Will it explode? From the window what it shows, from rehearsals what it foresees.

score = L₁ + L₂ + L₄ + G₁ + G₂ + 0.5·L_replay, with L and G the rise in log10 of loss and norm of the rehearsals at 1, 2
and 4 × the planned learning rate and of the replay of the worst batch. A failed rehearsal at ×1 that a second one confirms
(another draw or length, or the one at ×2) is "will-explode"; failures at ×2 or ×4 only are thin headroom.
"""

from __future__ import annotations

from gradscope.diagnosis.model import Verdict
from gradscope.diagnosis.rehearsals import Rehearsed, rehearsed
from gradscope.diagnosis.series import count, number, read_at
from gradscope.diagnosis.window import enough, explosion
from gradscope.runs.run import Run

CANNOT_FORESEE = "recorded steps alone cannot foresee an explosion that comes later; rehearsals can"


def judge(run: Run) -> Verdict:
    """The verdict on a run from its recorded steps and its trials."""
    seen = explosion(run)
    trials = rehearsed(run)
    score = explosion_score(trials)
    if seen:
        return Verdict("exploding", score, _headroom(trials), seen.first_step, (seen.reason,))
    if not enough(run):
        return Verdict(
            "unknown", score, _headroom(trials), None, ("too few steps with a finite loss or norm to judge",)
        )
    if not any(t.kind == "rehearsal" and t.lr_factor == 1.0 for t in trials):
        nothing = f"no explosion in the {count(len(run.step), 'recorded step')} (norms read {read_at(run)})"
        return Verdict("unknown", score, _headroom(trials), None, (nothing, CANNOT_FORESEE))
    return _from_trials(trials, score)


def explosion_score(trials: list[Rehearsed]) -> float | None:
    """The sum above; larger is worse. None without ×1 and ×2; a missing ×4 counts as ×2, a missing replay as ×1."""
    one, two = _at(trials, 1.0), _at(trials, 2.0)
    if not (one and two):
        return None
    four = _at(trials, 4.0) or two
    replay = [t for t in trials if t.kind == "replay"] or one
    first, second = one[0], two[0]
    rise = first.loss_rise + second.loss_rise + four[0].loss_rise + first.norm_rise + second.norm_rise
    return rise + 0.5 * replay[0].loss_rise


def _at(trials: list[Rehearsed], factor: float) -> list[Rehearsed]:
    """The rehearsals at one multiple of the learning rate, the first draw first, the longest of a draw first."""
    chosen = [t for t in trials if t.kind == "rehearsal" and t.lr_factor == factor]
    return sorted(chosen, key=lambda t: (t.draw, -t.steps))


def _headroom(trials: list[Rehearsed]) -> float | None:
    return min((t.lr_factor for t in trials if t.kind == "rehearsal" and t.failed), default=None)


def _from_trials(trials: list[Rehearsed], score: float | None) -> Verdict:
    told = tuple(_say(t) for t in sorted(trials, key=lambda t: (t.kind, t.lr_factor, t.draw)))
    planned = _at(trials, 1.0)
    failures = [t for t in planned if t.failed]
    confirmed = len(failures) > 1 or (len(planned) == 1 and any(t.failed for t in _at(trials, 2.0)))
    headroom = _headroom(trials)
    if failures and confirmed:
        return Verdict("will-explode", score, headroom, None, told)
    if headroom is not None:
        unsure = ("a rehearsal at the planned learning rate failed, but no second one confirms it",) if failures else ()
        return Verdict("thin-headroom", score, headroom, None, told + unsure)
    return Verdict("stable", score, None, None, told)


def _say(trial: Rehearsed) -> str:
    what = "replay of the worst batch" if trial.kind == "replay" else "rehearsal"
    end = "nonfinite" if trial.nonfinite else f"loss at {number(10**trial.loss_rise)} × the window's"
    state = "failed" if trial.failed else "held"
    return f"{what} at {number(trial.lr_factor)} × the planned learning rate, {count(trial.steps, 'step')}: {state} ({end})"
