"""What the rules of how a training is set up share, its data, outputs and settings: they warn where it goes wrong."""

from __future__ import annotations

from gradscope.diagnosis.learning import nothing_learned, unlearned
from gradscope.diagnosis.model import CannotRunError, Severity
from gradscope.diagnosis.verdict import judge
from gradscope.runs.run import Run


def goes_wrong(run: Run) -> bool:
    """Whether the training explodes, or will, loses what it learned or learns nothing."""
    return judge(run).may_explode or bool(unlearned(run)) or bool(nothing_learned(run))


def severity_of(run: Run) -> Severity:
    """How grave it is that a training was set up oddly: a warning where it goes wrong."""
    return "warning" if goes_wrong(run) else "info"


def need_samples(run: Run, what: str) -> None:
    """Raises CannotRunError: no step was sampled, so that `what` was not looked at."""
    if not len(run.probes.probe):
        raise CannotRunError(f"{what} not looked at: no step was sampled")
