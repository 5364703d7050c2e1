"""From a run to its diagnosis: every rule, the ranking of layers, the verdict."""

from __future__ import annotations

from gradscope.diagnosis.layers import rank_layers
from gradscope.diagnosis.model import CannotRunError, Diagnosis, Finding, Unable
from gradscope.diagnosis.range_test import training_of
from gradscope.diagnosis.rules import RULES
from gradscope.diagnosis.verdict import judge
from gradscope.runs.run import Run

_GRAVITY = {"critical": 0, "warning": 1, "info": 2}


def diagnose(run: Run) -> Diagnosis:
    """Everything concluded about explosion from one run: findings, the gravest first, layers, and the verdict."""
    run, findings = training_of(run), list[Finding]()
    unable: list[Unable] = []
    for rule in RULES:
        try:
            findings += list(rule.check(run))
        except CannotRunError as reason:
            unable.append(Unable(rule.code, rule.name, str(reason)))
    ordered = sorted(findings, key=lambda f: (_GRAVITY[f.severity], f.code))
    return Diagnosis(judge(run), rank_layers(run), tuple(ordered), tuple(unable))
