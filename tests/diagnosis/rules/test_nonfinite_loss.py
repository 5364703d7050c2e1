import pytest

from gradscope.diagnosis.model import CannotRunError
from gradscope.diagnosis.rules.nonfinite_loss import Settings, check
from tests.builders import make_run

NAN, INF = float("nan"), float("inf")


def test_fires_with_the_loss_before(tmp_path):
    run = make_run(tmp_path, [1.0] * 4, loss=[2.0, 3.5, NAN, INF])
    (finding,) = check(run)
    assert (finding.severity, finding.first_step, finding.last_step, finding.value) == ("critical", 2, 3, 2)
    assert "one step earlier it was 3.5" in finding.message


def test_at_the_very_first_step_there_is_no_loss_before(tmp_path):
    (finding,) = check(make_run(tmp_path, [1.0, 1.0], loss=[INF, 1.0]))
    assert "earlier" not in finding.message


def test_nan_losses_beside_nan_gradients_are_not_taken_for_absent_ones(tmp_path):
    (finding,) = check(make_run(tmp_path, [1.0, NAN, NAN], loss=[NAN, NAN, NAN]))
    assert finding.first_step == 1


def test_silent_on_finite_losses_and_at_the_limit(tmp_path):
    assert list(check(make_run(tmp_path, [1.0] * 3, loss=[1, -2, 0]))) == []
    assert list(check(make_run(tmp_path, [1.0] * 2, loss=[1, NAN]), Settings(allowed=1))) == []


def test_a_run_without_losses_cannot_be_judged(tmp_path):
    with pytest.raises(CannotRunError, match="no loss was recorded"):
        list(check(make_run(tmp_path, [1.0] * 3, loss=[NAN] * 3)))


def test_a_loss_whose_step_was_skipped_is_a_warning(tmp_path):
    loss = [3.5, NAN, 3.0, 2.9]
    run = make_run(tmp_path, [1.0, NAN, 1.0, 1.0], loss=loss, columns={"skipped": [False, True, False, False]})
    (finding,) = check(run)
    assert finding.severity == "warning"
    assert finding.message == (
        "The loss is nan at step 1; one step earlier it was 3.5 (1 step of 4 in all, skipped before it did harm)."
    )


def test_the_steps_between_recorded_ones_are_counted(tmp_path):
    (finding,) = check(make_run(tmp_path, [1.0] * 3, loss=[2.0, 3.5, NAN], columns={"step": [0, 5, 10]}))
    assert "at step 10; 5 steps earlier it was 3.5" in finding.message
