"""The headline of a report, and the signs of verdicts, levels and severities."""

from __future__ import annotations

from typing import NamedTuple

from gradscope.diagnosis.learning import lost_at_a_tenth, nothing_learned, unlearned, vanished
from gradscope.diagnosis.model import Verdict
from gradscope.diagnosis.rehearsals import raised
from gradscope.diagnosis.window import enough
from gradscope.report.model import Report
from gradscope.runs.run import Run

TITLES = {
    "exploding": ("✖", "X", "exploding"),
    "will-explode": ("▲", "!", "will explode"),
    "thin-headroom": ("◆", "~", "thin headroom"),
    "stable": ("●", "+", "stable"),
    "unknown": ("?", "?", "not known"),
}
LOST = "will-explode"
"""The verdict whose sign and color it wears that comes to nothing: it is as lost as one that explodes."""
LEVELS = {"high": ("▲", "!"), "medium": ("◆", "~"), "low": ("·", ".")}
SEVERITIES = {"critical": ("✖", "X"), "warning": ("▲", "!"), "info": ("·", ".")}


def title(report: Report) -> tuple[str, str]:
    """The sign and the word of the verdict."""
    return titled(report.run, report.diagnosis.verdict)


def titled(run: Run, verdict: Verdict) -> tuple[str, str]:
    """The sign and the word of this verdict on a run."""
    if lost := lost_without_explosion(run, verdict):
        return TITLES[LOST][0], f"no explosion, but {lost.word}"
    if verdict.by_chance:
        return TITLES[verdict.verdict][0], "may explode"
    symbol, _, word = TITLES[verdict.verdict]
    return symbol, "no explosion so far" if verdict.verdict == "unknown" and enough(run) else word


def tone(run: Run, verdict: Verdict) -> str:
    """The verdict whose color it wears."""
    return LOST if lost_without_explosion(run, verdict) else verdict.verdict


class Lost(NamedTuple):
    """A training that comes to nothing without an explosion: in a word, as an answer, and the rule that tells more."""

    word: str
    answer: str
    code: str


COLLAPSES = Lost("a collapse", "It does not explode, but loses what it learned", "GS208")
COMES_BACK = Lost("a loss that comes back up", "It does not explode, but its loss comes back up", "GS208")
"""A collapse, as far as the recorded steps of a script tell, where the target may as well have moved."""
VANISHED = Lost("no gradient left", "It does not explode, but its gradient vanishes", "GS209")
STOPS = Lost("an error ahead", "It stops before it could: its own code raises an error", "GS210")
LEARNS_NOTHING = Lost("nothing learned", "It does not explode, but learns nothing", "GS204")


def lost_without_explosion(run: Run, verdict: Verdict) -> Lost | None:
    """How it comes to nothing, where it does and does not explode."""
    if verdict.may_explode:
        return None
    if any(map(raised, run.trials.values())):
        return STOPS
    if unlearned(run):
        return None if lost_at_a_tenth(run) else COLLAPSES if run.trials else COMES_BACK
    if vanished(run) is not None:
        return VANISHED
    return LEARNS_NOTHING if nothing_learned(run) else None
