"""What the recorder noted while the training ran, for the rules about its order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gradscope.diagnosis.model import Finding, Severity
from gradscope.diagnosis.series import count, finding
from gradscope.runs.run import Run


@dataclass(frozen=True)
class Noted:
    """One event with every step it happened on, in order; `subject` and `value` are those of its first time."""

    steps: tuple[int, ...]
    subject: str
    value: float

    @property
    def times(self) -> str:
        """`at step 3`, or `at 12 steps, first at step 3`."""
        first = self.steps[0]
        return (
            f"at step {first}"
            if len(self.steps) == 1
            else f"at {count(len(self.steps), 'step')}, first at step {first}"
        )


def noted(run: Run, event: str) -> Noted | None:
    """The event as the run holds it; None where it did not happen."""
    rows = run.probes.select(event)
    if not len(rows.step):
        return None
    steps = tuple(dict.fromkeys(int(step) for step in rows.step))
    return Noted(steps, str(rows.subject[0]), float(rows.value[0]))


def told(
    rule: tuple[str, str], severity: Severity, seen: Noted, message: str, advice: str, unit: str | None = None
) -> Iterator[Finding]:
    """The one finding that such a rule yields."""
    yield finding(
        *rule,
        severity,
        message,
        advice,
        steps=(seen.steps[0], seen.steps[-1]),
        value=seen.value if unit else None,
        unit=unit,
    )
