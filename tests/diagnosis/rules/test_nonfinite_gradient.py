import numpy as np
import pytest

from gradscope.diagnosis.model import CannotRunError
from gradscope.diagnosis.rules.nonfinite_gradient import RULE, Settings, check
from gradscope.runs.schema import Offender
from tests.builders import make_run

NAN, INF = float("nan"), float("inf")


def found(run, **settings):
    return list(check(run, Settings(**settings)))


def test_names_the_last_layer_that_became_nonfinite_first(tmp_path):
    rows = [[1, 1, 1], [1, NAN, INF], [NAN, NAN, NAN]]
    (finding,) = found(make_run(tmp_path, grad_norm=rows))
    assert (finding.code, finding.severity, finding.subject) == ("GS101", "critical", "fc3")
    assert (finding.first_step, finding.last_step) == (1, 2)
    assert "fc3.weight" in finding.message
    assert "2 steps of 3" in finding.message


def test_a_layer_before_the_spreading_one_is_not_named(tmp_path):
    rows = [[1, 1, 1], [NAN, 1, 1]]
    (finding,) = found(make_run(tmp_path, grad_norm=rows))
    assert finding.subject == "fc1"


def test_a_parameter_that_never_has_a_gradient_is_not_blamed(tmp_path):
    rows = [[1, 1, NAN], [1, INF, NAN]]
    (finding,) = found(make_run(tmp_path, grad_norm=rows, columns={"nonfinite": [0, 4]}))
    assert finding.subject == "fc2"
    assert finding.value == 4
    assert "4 elements" in finding.message


def test_nan_from_the_first_step_is_still_said(tmp_path):
    (finding,) = found(make_run(tmp_path, grad_norm=[[NAN, NAN, NAN]]))
    assert finding.subject == "fc3"


def test_healthy_run_is_silent(tmp_path):
    assert found(make_run(tmp_path, [1.0] * 5)) == []


def test_skipped_steps_are_left_to_the_rule_for_skips(tmp_path):
    run = make_run(tmp_path, [INF, 1.0], columns={"skipped": [True, False]})
    assert found(run) == []


def test_at_the_limit(tmp_path):
    run = make_run(tmp_path, [1.0, INF])
    assert found(run, allowed=1) == []
    assert len(found(run, allowed=0)) == 1


def test_loss_that_was_nonfinite_first_is_said_instead_of_a_layer(tmp_path):
    run = make_run(tmp_path, [1.0, NAN, NAN], loss=[1.0, INF, NAN])
    (finding,) = found(run)
    assert finding.subject is None
    assert "loss was nonfinite before any gradient, at step 1" in finding.message


@pytest.mark.parametrize(
    ("offender", "said", "subject"),
    [
        (
            Offender(1, "fc2", "fc2.weight", "activation", batch=7),
            "values of fc2.weight were nonfinite themselves, batch 7",
            "fc2",
        ),
        (Offender(1, None, None, "loss"), "the loss was nonfinite before any gradient", None),
        (
            Offender(1, "fc2", "fc2.weight", "loss", batch=7),
            "the loss was nonfinite before any gradient, batch 7",
            None,
        ),
        (Offender(1, None, "scale", "gradient"), "gradient of scale went first", None),
    ],
)
def test_the_recorded_first_offender_wins(tmp_path, offender, said, subject):
    (finding,) = found(make_run(tmp_path, [1.0, INF], first_nonfinite=offender))
    assert finding.subject == subject
    assert said in finding.message


def test_an_offender_of_another_step_does_not_speak_for_this_one(tmp_path):
    offender = Offender(9, "fc1", None, "gradient")
    (finding,) = found(make_run(tmp_path, grad_norm=[[1, 1, 1], [1, NAN, 1]], first_nonfinite=offender))
    assert finding.subject == "fc2"


def test_a_sum_that_overflows_alone_blames_no_layer(tmp_path):
    run = make_run(tmp_path, [INF], grad_norm=np.ones((1, 3)), columns={"global_norm": [INF]})
    (finding,) = found(run)
    assert finding.subject is None
    assert "no single parameter" in finding.message
    assert finding.value == 0


def test_no_steps_at_all(tmp_path):
    with pytest.raises(CannotRunError, match="no steps"):
        found(make_run(tmp_path, []))


def test_the_rule_is_this_one(tmp_path):
    assert (RULE.code, RULE.name) == ("GS101", "nonfinite-gradient")
    assert len(list(RULE.check(make_run(tmp_path, [INF])))) == 1


@pytest.mark.parametrize(("scale", "told"), [(NAN, False), (1024.0, True)])
def test_float16_is_told_with_its_range(tmp_path, scale, told):
    run = make_run(tmp_path, grad_norm=[[1, 1, 1], [1, NAN, INF]], columns={"loss_scale": [scale] * 2})
    (finding,) = found(run)
    assert ("nothing above 65,504 fits" in finding.advice) is told
