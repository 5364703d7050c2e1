import numpy as np
import pytest

from gradscope.diagnosis.rules.no_bottom import check
from gradscope.runs.schema import Plan, Trial
from tests.builders import make_run

WINDOW = np.linspace(1.0, 0.5, 50)


def run_with(tmp_path, rehearsed, scale=1.0):
    trial = Trial("rehearsal", "x1", indexes=tuple(range(50, 400)))
    made = {"x1": (trial, scale * rehearsed, np.ones(350))}
    return make_run(tmp_path, np.ones(50), loss=scale * WINDOW, trials=made, plan=Plan(total_steps=400))


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_fires_on_a_loss_that_falls_ever_faster_below_zero(tmp_path, scale):
    (finding,) = check(run_with(tmp_path, -np.geomspace(0.1, 1e6, 350), scale))
    assert (finding.code, finding.severity) == ("GS211", "warning")
    assert finding.value == pytest.approx(-1e6 * scale)
    assert "sign of every term" in finding.advice


def test_silent_on_a_likelihood_that_falls_on_as_it_began(tmp_path):
    assert not list(check(run_with(tmp_path, np.linspace(0.5, -30.0, 350))))
    assert not list(check(run_with(tmp_path, np.linspace(0.5, 0.1, 350))))
