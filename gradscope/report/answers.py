"""The four answers of a report, in words that every renderer shares: explosion, layer, threshold, certainty."""

from __future__ import annotations

from gradscope.diagnosis.rehearsals import played
from gradscope.diagnosis.verdict import out_of_nothing
from gradscope.diagnosis.window import enough
from gradscope.recommendation.model import Recommendation, Threshold
from gradscope.report.facts import in_use
from gradscope.report.model import Answer, Report
from gradscope.report.paste import by_degrees, clip_fails, unreliable
from gradscope.report.rows import trials
from gradscope.report.text import number, ordinal, plural, sentences, share, times, visible
from gradscope.report.titles import lost_without_explosion
from gradscope.report.which_layer import layer
from gradscope.runs.run import Run

ADAPTIVE = ("Adam", "RMSprop", "Adagrad", "Adadelta", "Adafactor", "Rprop", "Lion")
"""Optimizers whose steps do not depend on the size of the gradients."""
SCALED = "GS404"
MEND_FIRST = {
    SCALED: "mend GS404 first: what the script clips is still scaled, so that its threshold means another one at each scale",
    "GS412": "mend GS412 first: gradients that pile up are larger than a step's own",
}
"""Faults of a script that make a threshold another one, by their rule."""
PROPORTIONAL = ("", "SGD", "ASGD")
"""Those whose steps are as large as the gradients; none known: a step by hand."""


def answers(report: Report) -> tuple[Answer, Answer, Answer, Answer]:
    """Will it explode · which layer · which threshold · how sure, in this order."""
    return explosion(report), layer(report), threshold(report), sureness(report)


def explosion(report: Report) -> Answer:
    """The verdict and its reasons."""
    verdict, today = report.diagnosis.verdict, in_use(report.run) if rehearsed(report) else None
    bare = " without clipping" if today and verdict.clipped_at is None else ""
    head = {
        "exploding": f"Yes: it explodes from step {verdict.first_step} on"
        if verdict.first_step is not None
        else "Yes: it is exploding",
        "will-explode": _later(report, bare),
        "thin-headroom": f"Perhaps: {verdict.chance} decides whether it explodes{bare}"
        if verdict.by_chance
        else f"Not as planned, but at {times(verdict.lr_headroom)} the learning rate{bare}",
        "stable": _calm(report),
        "unknown": "Not in the recorded steps; later is not known"
        if enough(report.run)
        else "Not known from these steps",
    }[verdict.verdict]
    ending = report.run.header.ending
    failed = f"the run failed at step {ending.step}: {visible(ending.message or '')}" if ending.how == "failed" else ""
    best = next((remedy for remedy in report.remedies if remedy.best), None)
    what = "the whole plan" if best and best.whole else f"a rehearsal of {plural(best.steps, 'step')}" if best else ""
    remedy = f"{what} held with: {visible(best.name)}" if best else ""
    lost = lost_without_explosion(report.run, verdict)
    found = report.found(lost.code) if lost else None
    unclipped = f"rehearsed without clipping, which is at {number(today)} today" if bare else ""
    told = (failed, found.message if found else "", *verdict.reasons, unclipped, remedy)
    return Answer("Will it explode?", lost.answer if lost else head, sentences(told))


def _later(report: Report, bare: str) -> str:
    broken = out_of_nothing(report.run)
    but = f"{', but' if bare else ''}{bare}"
    return (
        f"Yes, later: it is nonfinite at step {broken[0]:,}{but}"
        if broken
        else f"Yes, later: it explodes if trained as planned{but}"
    )


def _calm(report: Report) -> str:
    if not rehearsed(report):
        return "No sign of it in the recorded steps"
    sure = "No" if any(one.full for one in played(report.run)) else "Probably not"
    spared = report.diagnosis.verdict.clipped_at is not None
    return f"{sure}: clipped as it is today, it held" if spared else f"{sure}: it held in every rehearsal"


def rehearsed(report: Report) -> bool:
    """Whether the training was rehearsed ahead of its window."""
    return bool(trials(report.run, "rehearsal"))


def threshold(report: Report) -> Answer:
    """The clipping threshold and its evidence."""
    question, recommendation = "Which clipping threshold?", report.recommendation
    if recommendation is None:
        return Answer(question, "None: no gradient norm was measured", ())
    if recommendation.max_norm is None:
        return Answer(question, "Do not clip", sentences((recommendation.reason,)))
    head = f"{name_of(recommendation)} = {number(recommendation.max_norm)}"
    today = in_use(report.run)
    doubt = "do not rely on it: these steps explode, and it was not tried" if unreliable(report) else ""
    if degrees := by_degrees(report):
        doubt = f"raise it by degrees, {number(2 * degrees)} first: nearly every step was clipped at {number(degrees)}"
    doubt = next((said for code, said in MEND_FIRST.items() if report.found(code)), doubt)
    if clip_fails(report):
        doubt = "clipping alone does not put this training right: tried as a remedy, it did not hold"
    use = f"in use today: {number(today)}" if today and not report.found(SCALED) else ""
    return Answer(question, head, (*sentences((doubt,)), *_evidence(recommendation, report.run), *sentences((use,))))


def name_of(recommendation: Recommendation) -> str:
    """`max_norm`, or `clip_value` when it limits single values."""
    return "max_norm" if recommendation.by == "norm" else "clip_value"


def _evidence(recommendation: Recommendation, run: Run) -> tuple[str, ...]:
    kept, type_ = recommendation.mean_retained_step, run.header.optimizer.type if run.header.optimizer else ""
    what = "step" if set(type_.split(" + ")) <= set(PROPORTIONAL) else "gradient"
    if any(name in type_ for name in ADAPTIVE) and kept and kept < 1:
        what += f"; {type_} {'divide' if ' + ' in type_ else 'divides'} a constant factor out again"
    keeps = "" if kept is None else f"a {recommendation.mode}: it keeps {share(kept)} of the average {what}"
    return sentences((recommendation.reason, keeps))


def describe(asked: Threshold) -> str:
    """`95th percentile: 0.42 (0.38 to 0.51)`."""
    return f"{ordinal(asked.percentile)} percentile: {number(asked.max_norm)} ({interval(asked)})"


def interval(asked: Threshold) -> str:
    """Both ends of a threshold's interval, or what is missing for one."""
    sure = f"{share(asked.confidence)} sure"
    if asked.low is None and asked.high is None:
        return "too few steps for an interval"
    if asked.high is None:
        return f"at least {number(asked.low)}, {sure}; too few steps for an upper end"
    if asked.low is None:
        return f"at most {number(asked.high)}, {sure}; too few steps for a lower end"
    return f"{number(asked.low)} to {number(asked.high)}, each end {sure}"


def sureness(report: Report) -> Answer:
    """What the answers rest on, and whether the threshold was tried."""
    recommendation, question = report.recommendation, "How sure?"
    tried = len(trials(report.run, "rehearsal"))
    seen = report.diagnosis.verdict.verdict == "exploding"
    missing = "" if seen else "not rehearsed: a window alone cannot foresee"
    ahead = f"rehearsed ahead {plural(tried, 'time')}" if tried else missing
    if recommendation is None:
        return Answer(question, "Nothing was measured", sentences((ahead,)))
    head = "Threshold tried and held" if recommendation.verified else "Threshold not tried"
    if clip_fails(report):
        head = "Threshold tried: clipping alone does not put it right"
    if recommendation.max_norm is None:
        untried = "Every threshold tried failed" if recommendation.candidates else "Not tried"
        head = "Training without clipping was tried" if recommendation.verified else untried
    asked = recommendation.thresholds[0] if recommendation.thresholds else None
    rests = f"from {recommendation.basis}"
    left = ", ".join(
        f"{plural(count, 'step')} ({reason})" for reason, count in recommendation.excluded.items() if count
    )
    return Answer(
        question, head, sentences((ahead, rests, left and f"left out: {left}", describe(asked) if asked else ""))
    )
