import numpy as np
import pytest

from gradscope.diagnosis.model import CannotRunError
from gradscope.diagnosis.rules.learns_nothing import check
from gradscope.runs.schema import Trial
from tests.builders import make_run

NOISE = np.random.default_rng(1).normal(0, 0.01, 400)


def run_with(tmp_path, loss, rehearsed=None, **trial):
    trials = {}
    if rehearsed is not None:
        trials = {"x1": (Trial("rehearsal", "x1", **trial), rehearsed, np.ones(len(rehearsed)))}
    return make_run(tmp_path, np.ones(len(loss)), loss=loss, trials=trials)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_fires_on_a_loss_that_stays_at_chance(tmp_path, scale):
    (finding,) = check(run_with(tmp_path, scale * (2.3 + NOISE[:200])))
    assert (finding.code, finding.severity) == ("GS204", "warning")
    assert finding.value < 0.03
    assert "200 recorded steps." in finding.message


def test_silent_when_the_loss_falls(tmp_path):
    assert list(check(run_with(tmp_path, np.linspace(2.3, 1.0, 200)))) == []


def test_limit_is_three_per_cent(tmp_path):
    assert list(check(run_with(tmp_path, np.repeat(np.linspace(1.0, 0.96, 10), 10)))) == []
    assert len(list(check(run_with(tmp_path, np.repeat(np.linspace(1.0, 0.98, 10), 10))))) == 1


def test_noise_that_could_hide_learning_is_not_accused(tmp_path):
    assert list(check(run_with(tmp_path, 1.0 + 40 * NOISE[:200]))) == []


def test_a_rehearsal_of_the_plan_counts(tmp_path):
    (finding,) = check(run_with(tmp_path, 2.3 + NOISE[:50], 2.3 + NOISE[50:130]))
    assert "50 recorded steps and 80 rehearsed ones" in finding.message
    assert list(check(run_with(tmp_path, 2.3 + NOISE[:50], np.linspace(2.3, 1, 80)))) == []


@pytest.mark.parametrize("trial", [{"lr_factor": 2.0}, {"max_norm": 1.0}])
def test_another_rehearsal_does_not(tmp_path, trial):
    with pytest.raises(CannotRunError, match="100 are needed"):
        list(check(run_with(tmp_path, 2.3 + NOISE[:50], 2.3 + NOISE[50:130], **trial)))


def test_a_nonfinite_rehearsal_says_nothing_about_learning(tmp_path):
    with pytest.raises(CannotRunError, match="50 loss values"):
        list(check(run_with(tmp_path, 2.3 + NOISE[:50], [2.3] * 79 + [float("nan")])))


def test_an_explosion_is_not_called_learning_nothing(tmp_path):
    loss = 2.3 + NOISE[:200]
    loss[150] = np.inf
    assert list(check(run_with(tmp_path, loss))) == []


def test_too_few_steps(tmp_path):
    with pytest.raises(CannotRunError, match="1 loss value, rehearsals included"):
        list(check(run_with(tmp_path, [1.0])))
