"""GS206 foreseen-explosion: the rehearsals of the rest of the plan fail.

What it detects
    A training that holds in the recorded steps and explodes in the rehearsals of what is left of its plan, or does so at 2
    or 4 times its learning rate.
Why it matters
    The explosion is still to come: a smaller learning rate, a longer warm-up or a threshold can prevent it.
How it decides
    As the verdict does; GS201 tells of what the recorded steps themselves show. Will explode: the rehearsal of the whole
    rest of the plan fails, and again from weights changed by one part in 10,000,000, or a compressed one and a second that
    confirms it, or the next 20 steps do: critical. By chance, where the plan in full fails and not from all of the changed
    weights: a warning. Thin headroom, at 2 or 4 times the planned learning rate alone, or where nothing confirms a failure:
    an information. Unit: multiples of the planned learning rate.
Known problems
    A rehearsal compresses what does not fit into the budget; the report says by how much. Without rehearsals it is silent.
What to do
    Take the best of the remedies that the report lists. Where a rehearsal becomes nonfinite without a gradient norm that
    grows, look first at that step's batch and at divisions, logarithms and roots in the loss.
References
    Measured on small trainings with known outcome, see benchmarks/accuracy.
"""

from __future__ import annotations

from collections.abc import Iterator

from gradscope.diagnosis.learning import nothing_learned, unlearned
from gradscope.diagnosis.model import ALARMS, Finding, Rule, Severity, Verdict
from gradscope.diagnosis.series import finding, number
from gradscope.diagnosis.verdict import judge, out_of_nothing
from gradscope.runs.run import Run

CODE, NAME = "GS206", "foreseen-explosion"
TAKE = "Take the best of the remedies that were tried, where one held."


def check(run: Run) -> Iterator[Finding]:
    """One finding when a rehearsal failed."""
    if not run.trials:
        return
    verdict = judge(run)
    if verdict.verdict not in ALARMS or verdict.first_step is not None:
        return
    severity, message, advice = _told(run, verdict)
    yield finding(
        CODE,
        NAME,
        severity,
        message,
        advice,
        value=verdict.lr_headroom or 1.0,
        unit="times the planned learning rate",
    )


def _told(run: Run, verdict: Verdict) -> tuple[Severity, str, str]:
    """Severity, message and advice."""
    if verdict.by_chance:
        return "warning", f"Whether the rest of the plan explodes is a matter of {verdict.chance}.", TAKE
    return ("critical", *_sure(run)) if verdict.may_explode else ("info", *_thin(run, verdict))


def _sure(run: Run) -> tuple[str, str]:
    """Message and advice where the plan explodes."""
    if broken := out_of_nothing(run):
        step, advice = broken
        return f"The rest of the plan becomes nonfinite in its rehearsal, at step {step}.", advice
    return "The rest of the plan explodes in its rehearsals.", TAKE


def _thin(run: Run, verdict: Verdict) -> tuple[str, str]:
    """Message and advice where it would at a higher rate."""
    factor = number(verdict.lr_headroom or 1.0)
    lost = unlearned(run) or nothing_learned(run)
    holds = "does not explode as planned, but does" if lost else "holds as planned, but not"
    advice = "Let it learn first." if lost else "Raise the learning rate with care."
    return f"The rest of the plan {holds} at {factor} × its learning rate.", advice


RULE = Rule(CODE, NAME, check)
