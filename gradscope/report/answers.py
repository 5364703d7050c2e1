"""The four answers of a report, in words that every renderer shares: explosion, layer, threshold, certainty."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gradscope.recommendation.model import Recommendation, Threshold
from gradscope.report.model import Report
from gradscope.report.rows import trials
from gradscope.report.text import number, ordinal, plural, share, times, visible

TITLES = {
    "exploding": ("✖", "X", "exploding"),
    "will-explode": ("▲", "!", "will explode"),
    "thin-headroom": ("◆", "~", "thin headroom"),
    "stable": ("●", "+", "stable"),
    "unknown": ("?", "?", "not known"),
}
LEVELS = {"high": ("▲", "!"), "medium": ("◆", "~"), "low": ("·", ".")}
SEVERITIES = {"critical": ("✖", "X"), "warning": ("▲", "!"), "info": ("·", ".")}


@dataclass(frozen=True)
class Answer:
    """One question, its answer in few words, and what stands behind it, a sentence each."""

    question: str
    answer: str
    details: tuple[str, ...]


def answers(report: Report) -> tuple[Answer, Answer, Answer, Answer]:
    """Will it explode · which layer · which threshold · how sure, in this order."""
    return explosion(report), layer(report), threshold(report), sureness(report)


def explosion(report: Report) -> Answer:
    """The verdict and its reasons."""
    verdict = report.diagnosis.verdict
    head = {
        "exploding": f"Yes: it explodes from step {verdict.first_step} on"
        if verdict.first_step is not None
        else "Yes: it is exploding",
        "will-explode": "Yes, later: it explodes if trained as planned",
        "thin-headroom": f"Not as planned, but at {times(verdict.lr_headroom)} the learning rate",
        "stable": "No: it held in every rehearsal" if rehearsed(report) else "No sign of it in the recorded steps",
        "unknown": "Not known from these steps",
    }[verdict.verdict]
    return Answer("Will it explode?", head, _sentences(verdict.reasons))


def rehearsed(report: Report) -> bool:
    """Whether the training was rehearsed ahead of its window."""
    return bool(trials(report.run, "rehearsal"))


def layer(report: Report) -> Answer:
    """The layer most at risk."""
    question, ranked = "Which layer?", report.diagnosis.layers
    if not ranked:
        return Answer(question, "No layer was measured", ())
    top = ranked[0]
    if top.level == "low":
        return Answer(question, "None stands out", (f"Nearest to it is {visible(top.name)}.",))
    message = without_subject(top.message, top.name)
    return Answer(question, visible(top.name), _sentences((message, top.advice)))


def without_subject(message: str, subject: str | None) -> str:
    """A message without the layer it begins with, for where the layer is named already."""
    for prefix in (f"{subject}: ", f"{subject} ") if subject else ():
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
    return Answer(question, f"{name_of(recommendation)} = {number(recommendation.max_norm)}", _evidence(recommendation))


def name_of(recommendation: Recommendation) -> str:
    """`max_norm`, or `clip_value` when it limits single values."""
    return "max_norm" if recommendation.by == "norm" else "clip_value"


def _evidence(recommendation: Recommendation) -> tuple[str, ...]:
    asked = recommendation.thresholds[0] if recommendation.thresholds else None
    clips = f"{recommendation.mode}: clips {share(recommendation.clipped_fraction)} of the steps"
    kept = recommendation.mean_retained_step
    lines = [
        recommendation.reason,
        clips + (f", keeps {share(kept)} of the step on average" if kept is not None else ""),
    ]
    if asked is not None:
        lines.append(describe(asked))
    return _sentences(lines)


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
    ahead = f"rehearsed ahead {plural(tried, 'time')}" if tried else "not rehearsed: a window alone cannot foresee"
    if recommendation is None:
        return Answer(question, "Nothing was measured", _sentences((ahead,)))
    head = "Threshold tried and held" if recommendation.verified else "Threshold not tried"
    if recommendation.max_norm is None:
        head = "Training without clipping was tried" if recommendation.verified else "Not tried"
    basis = f"from {plural(recommendation.steps_used, 'step')}: {recommendation.basis}"
    left = ", ".join(f"{count} {reason}" for reason, count in recommendation.excluded.items() if count)
    return Answer(question, head, _sentences((ahead, basis, left and f"left out: {left}")))


def _sentences(lines: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{line[0].upper()}{line[1:]}{'' if line[-1] in '.:!?' else '.'}" for line in lines if line)
