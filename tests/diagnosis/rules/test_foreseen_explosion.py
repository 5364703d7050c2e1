"""GS206: what `--fail-on` and code-scanning views see of an explosion that is still to come."""

import numpy as np
import pytest

from gradscope.cli.options import fails
from gradscope.diagnosis.rules import foreseen_explosion
from gradscope.report.answers import explosion
from gradscope.report.build import build_report
from gradscope.runs.schema import Ending, Plan
from tests.builders import make_run
from tests.diagnosis.test_verdict import FAILED, HELD, rehearsal, run_with

FULL = tuple(range(50, 150))


def test_an_explosion_that_is_foreseen_is_critical(tmp_path):
    run = run_with(tmp_path, (rehearsal(indexes=FULL), FAILED))
    (finding,) = foreseen_explosion.check(run)
    assert (finding.severity, finding.value) == ("critical", 1.0)
    assert fails(build_report(run), "critical")


def test_thin_headroom_is_an_information(tmp_path):
    run = run_with(tmp_path, (rehearsal(), HELD), (rehearsal("more", 4.0), FAILED))
    (finding,) = foreseen_explosion.check(run)
    assert (finding.severity, finding.value) == ("info", 4.0)
    assert "not at 4 × its learning rate" in finding.message


def test_what_holds_and_what_the_window_shows_are_silent(tmp_path):
    assert not [*foreseen_explosion.check(run_with(tmp_path / "held", (rehearsal(indexes=FULL), HELD)))]
    assert not [*foreseen_explosion.check(make_run(tmp_path / "window", [1.0] * 30 + [float("nan")]))]


@pytest.mark.parametrize(("norms", "grown"), [(np.ones(60), False), (np.r_[np.ones(50), np.logspace(1, 6, 10)], True)])
def test_what_is_nonfinite_out_of_nothing_is_told_so(tmp_path, norms, grown):
    failed = rehearsal(indexes=tuple(range(50, 150))), np.r_[np.ones(59), np.nan], norms, Ending("nonfinite", 59)
    run = make_run(tmp_path, np.ones(50), plan=Plan(150), trials={"x1": failed})
    (finding,) = foreseen_explosion.check(run)
    assert ("nonfinite in its rehearsal, at step 109." in finding.message) != grown
    assert ("look at that step's batch" in finding.advice) != grown
    assert ("it is nonfinite at step 109" in explosion(build_report(run)).answer) != grown
