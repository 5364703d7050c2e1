"""The four answers of a report, in words that every renderer shares: explosion, layer, threshold, certainty."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gradscope.diagnosis.learning import nothing_learned, unlearned
from gradscope.diagnosis.model import Finding, Verdict
from gradscope.diagnosis.offenders import named
from gradscope.diagnosis.verdict import out_of_nothing
from gradscope.diagnosis.window import GREW, enough, growth_before, of_the_plan
from gradscope.recommendation.model import Recommendation, Threshold
from gradscope.report.facts import in_use
from gradscope.report.model import Report
from gradscope.report.paste import clip_fails
from gradscope.report.ranks import apart
from gradscope.report.rows import trials
from gradscope.report.text import number, ordinal, plural, share, times, visible
from gradscope.runs.run import Run
from gradscope.runs.schema import ROOT

TITLES = {
    "exploding": ("✖", "X", "exploding"),
    "will-explode": ("▲", "!", "will explode"),
    "thin-headroom": ("◆", "~", "thin headroom"),
    "stable": ("●", "+", "stable"),
    "unknown": ("?", "?", "not known"),
}
CALM = ("stable", "thin-headroom", "unknown")
LEVELS = {"high": ("▲", "!"), "medium": ("◆", "~"), "low": ("·", ".")}
FIRST = "GS101"
"""The rule that tells what was nonfinite first."""
DEPTH = "GS304"
"""The rule that tells of gradients that grow from layer to layer."""
OUTLIER = "GS207"
"""The rule that tells which sample of the data stands out."""
SATURATED = "GS401"
"""The rule that tells that nearly every step is clipped."""
ACCUSING = (FIRST, "GS302")
"""Rules whose subject is the layer where it began, though it need not stand out from its peers."""
SEVERITIES = {"critical": ("✖", "X"), "warning": ("▲", "!"), "info": ("·", ".")}


@dataclass(frozen=True)
class Answer:
    """One question, its answer in few words, and what stands behind it, a sentence each."""

    question: str
    answer: str
    details: tuple[str, ...]


def title(report: Report) -> tuple[str, str]:
    """The sign and the word of the verdict."""
    return titled(report.run, report.diagnosis.verdict)


def titled(run: Run, verdict: Verdict) -> tuple[str, str]:
    """The sign and the word of this verdict on a run."""
    symbol, _, word = TITLES[tone(run, verdict)]
    if lost := _lost(run, verdict):
        return symbol, f"no explosion, but {lost.word}"
    return symbol, "no explosion so far" if verdict.verdict == "unknown" and enough(run) else word


def tone(run: Run, verdict: Verdict) -> str:
    """The verdict whose sign and color it wears: a training that learns nothing is as lost as one that explodes."""
    return "will-explode" if _lost(run, verdict) else verdict.verdict


class _Lost(NamedTuple):
    """A training that comes to nothing without an explosion: in a word, as an answer, and the rule that tells more."""

    word: str
    answer: str
    code: str


COLLAPSES = _Lost("a collapse", "It does not explode, but loses what it learned", "GS208")
AT_CHANCE = _Lost("nothing learned", "It does not explode, but learns nothing", "GS204")


def _lost(run: Run, verdict: Verdict) -> _Lost | None:
    if verdict.verdict not in CALM:
        return None
    return COLLAPSES if unlearned(run) else AT_CHANCE if nothing_learned(run) else None


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
        "thin-headroom": f"Not as planned, but at {times(verdict.lr_headroom)} the learning rate{bare}",
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
    lost = _lost(report.run, verdict)
    found = _found(report, lost.code) if lost else None
    unclipped = f"rehearsed without clipping, which is at {number(today)} today" if bare else ""
    told = (failed, found.message if found else "", *verdict.reasons, unclipped, remedy)
    return Answer("Will it explode?", lost.answer if lost else head, _sentences(told))


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
    spared = report.diagnosis.verdict.clipped_at is not None
    return "No: clipped as it is today, it held" if spared else "No: it held in every rehearsal"


def rehearsed(report: Report) -> bool:
    """Whether the training was rehearsed ahead of its window."""
    return bool(trials(report.run, "rehearsal"))


def layer(report: Report) -> Answer:
    """The layer most at risk; where none stands out, the one that a finding accuses."""
    question, ranked, found = "Which layer?", report.diagnosis.layers, accused(report)
    if found:
        sure = "Perhaps " if any(one.name == found[0] and one.level == "medium" for one in ranked) else ""
        return Answer(question, sure + visible(found[0]), _sentences((without_subject(found[1], found[0]), found[2])))
    rank = apart(report.diagnosis)
    if rank and rank.severity != "info":
        told = (without_subject(rank.message, rank.subject), rank.advice)
        return Answer(question, f"None: it began on {rank.subject}", _sentences(told))
    if report.diagnosis.verdict.verdict in ("exploding", "will-explode") and (broken := _sample(report)):
        what = "a batch" if broken.unit is None else "a sample"
        return Answer(question, f"None stands out, but {what} does", _sentences((broken.message, broken.advice)))
    if (along := _found(report, DEPTH)) and along.severity != "info":
        way = "grows" if (along.value or 0.0) > 1 else "fades"
        return Answer(question, f"All of them: it {way} from layer to layer", _sentences((along.message, along.advice)))
    if (outside := _found(report, FIRST)) and outside.subject is None:
        return Answer(question, "None: it did not begin in a layer", _sentences((outside.message, outside.advice)))
    if outside and outside.subject is not None:
        least = "Not known" if report.unranked else "None stands out"
        told = (without_subject(outside.message, outside.subject), outside.advice)
        return Answer(question, f"{least}, but {visible(outside.subject)} breaks first", _sentences(told))
    if not ranked:
        return Answer(question, "No layer was measured", ())
    if report.unranked:
        return Answer(question, "Not known", _sentences((report.unranked, "measure them with: gradscope analyze")))
    if broke := _broke_ahead(report):
        return Answer(question, f"None stands out, but {visible(broke[0])} breaks first", _sentences((broke[1],)))
    nearest = f"nearest to it is the layer {visible(ranked[0].name)}" if ranked[0].component else ""
    return Answer(question, "None stands out", _sentences((nearest,)))


def _broke_ahead(report: Report) -> tuple[str, str] | None:
    """The layer that went nonfinite first where the plan is rehearsed, and how; None where the clip in use spares it."""
    verdict = report.diagnosis.verdict
    if verdict.clipped_at is not None and verdict.verdict in ("stable", "thin-headroom"):
        return None
    for trial in trials(report.run, "rehearsal"):
        seen = trial.header.first_nonfinite
        if of_the_plan(trial) and seen is not None and seen.layer and seen.went_first not in ("input", "loss"):
            return seen.layer, f"in its rehearsal {visible(named(seen))} is nonfinite first"
    return None


def _found(report: Report, code: str) -> Finding | None:
    """The first finding of a rule."""
    return next((one for one in report.diagnosis.findings if one.code == code), None)


def _sample(report: Report) -> Finding | None:
    """The sample to suspect: one that makes something nonfinite before one that only stands out."""
    samples = [one for one in report.diagnosis.findings if one.code == OUTLIER]
    return next((one for one in samples if one.value is None), next(iter(samples), None))


def accused(report: Report) -> tuple[str, str, str] | None:
    """The layer to look at first, what was seen in it, and what to do; None where there is none."""
    for one in report.diagnosis.layers:
        if one.level != "low":
            return one.name, one.message, one.advice
    for finding in report.diagnosis.findings:
        if finding.code == FIRST and _grown_before(report.run, finding.first_step):
            continue
        if finding.code in ACCUSING and finding.severity != "info" and finding.subject is not None:
            return finding.subject, finding.message, finding.advice
    return None


def _grown_before(run: Run, step: int | None) -> bool:
    """Whether the gradient had grown before a step: then what breaks first there ends an explosion, and did not begin it."""
    row = int(np.searchsorted(run.step, step)) if step is not None else 0
    growth = growth_before(run, row)
    return growth is not None and growth > GREW


def without_subject(message: str, subject: str | None) -> str:
    """A message without the layer it begins with, for where the layer is named already."""
    name = ROOT if subject == "" else subject
    for prefix in (f"{name}: ", f"{name} ") if name else ():
        if message.startswith(prefix):
            return message[len(prefix) :][:1].upper() + message[len(prefix) + 1 :]
    return message


def threshold(report: Report) -> Answer:
    """The clipping threshold and its evidence."""
    question, recommendation = "Which clipping threshold?", report.recommendation
    if recommendation is None:
        return Answer(question, "None: no gradient norm was measured", ())
    if recommendation.max_norm is None:
        return Answer(question, "Do not clip", _sentences((recommendation.reason,)))
    head = f"{name_of(recommendation)} = {number(recommendation.max_norm)}"
    today = in_use(report.run)
    exploded = report.diagnosis.verdict.verdict == "exploding" and not recommendation.verified
    doubt = "do not rely on it: these steps explode, and it was not tried" if exploded else ""
    larger = today is not None and recommendation.max_norm > today and not recommendation.verified
    if larger and not exploded and _found(report, SATURATED):
        doubt = (
            f"raise it by degrees: nearly every step was clipped at {number(today or 0.0)}, and no larger one was tried"
        )
    if clip_fails(report):
        doubt = "clipping alone does not put this training right: tried as a remedy, it did not hold"
    use = f"in use today: {number(today)}" if today else ""
    return Answer(question, head, (*_sentences((doubt,)), *_evidence(recommendation), *_sentences((use,))))


def name_of(recommendation: Recommendation) -> str:
    """`max_norm`, or `clip_value` when it limits single values."""
    return "max_norm" if recommendation.by == "norm" else "clip_value"


def _evidence(recommendation: Recommendation) -> tuple[str, ...]:
    kept = recommendation.mean_retained_step
    keeps = "" if kept is None else f"a {recommendation.mode}: it keeps {share(kept)} of the average step"
    return _sentences((recommendation.reason, keeps))


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
        return Answer(question, "Nothing was measured", _sentences((ahead,)))
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
        question, head, _sentences((ahead, rests, left and f"left out: {left}", describe(asked) if asked else ""))
    )


def _sentences(lines: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{line[0].upper()}{line[1:]}{'' if line[-1] in '.:!?' else '.'}" for line in lines if line)
