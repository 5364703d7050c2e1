import numpy as np
import pytest

from gradscope.diagnosis.rules.raises_later import check
from gradscope.report.answers import explosion
from gradscope.report.build import build_report
from gradscope.report.titles import title
from gradscope.runs.schema import Ending, Trial
from tests.builders import make_run

SAID = "model.py: step 93 raised IndexError: Target -1 is out of bounds."


def run_with(tmp_path, ending, **trial):
    made = Trial("rehearsal", "x1", indexes=tuple(range(50, 350)), **trial)
    return make_run(tmp_path, np.ones(50), trials={"x1": (made, np.ones(43), np.ones(43), ending)})


def test_an_error_of_a_step_to_come_is_the_headline(tmp_path):
    run = run_with(tmp_path, Ending("failed", 43, SAID))
    (finding,) = check(run)
    assert (finding.code, finding.severity, finding.first_step) == ("GS210", "critical", 93)
    assert SAID in finding.message
    report = build_report(run)
    assert title(report) == ("▲", "no explosion, but an error ahead")
    assert explosion(report).details[0] == finding.message
    assert sum(SAID in detail for detail in explosion(report).details) == 1


@pytest.mark.parametrize(
    ("ending", "trial"),
    [
        (Ending("finished", 43, "the data ended"), {}),
        (Ending("interrupted", 43, "the time budget ended"), {}),
        (Ending("failed", 43, SAID), {"lr_factor": 2.0}),
    ],
)
def test_other_endings_are_none(tmp_path, ending, trial):
    run = run_with(tmp_path, ending, **trial)
    assert not list(check(run))
    assert "error ahead" not in title(build_report(run))[1]
