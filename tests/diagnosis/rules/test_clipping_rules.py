import numpy as np
import pytest

from gradscope.diagnosis.model import CannotRunError
from gradscope.diagnosis.rules import inactive_clipping, saturated_clipping
from gradscope.runs.schema import Plan, Trial
from tests.builders import make_run

NAN, INF = float("nan"), float("inf")


def clipped_at(tmp_path, limit, norms, **header):
    return make_run(tmp_path, norms, columns={"max_norm": [limit] * len(norms)}, **header)


def test_saturated_clipping_fires(tmp_path):
    (finding,) = saturated_clipping.check(clipped_at(tmp_path, 1.0, [5.0] * 30))
    assert (finding.code, finding.severity, finding.value) == ("GS401", "warning", 1.0)
    assert "max_norm 1 clips 100 % of 30 steps; the median norm (pre-clip) is 5" in finding.message


def test_saturated_limit_is_ninety_per_cent(tmp_path):
    assert list(saturated_clipping.check(clipped_at(tmp_path, 1.0, [5.0] * 18 + [0.5] * 2))) == []
    assert len(list(saturated_clipping.check(clipped_at(tmp_path, 1.0, [5.0] * 19 + [0.5])))) == 1


def test_a_norm_at_the_threshold_is_not_clipped(tmp_path):
    assert list(saturated_clipping.check(clipped_at(tmp_path, 1.0, [1.0] * 30))) == []


def test_post_clip_norms_at_the_threshold_were_clipped(tmp_path):
    run = clipped_at(tmp_path, 1.0, [1.0] * 30, measured_at="post_clip")
    (finding,) = saturated_clipping.check(run)
    assert "median norm" not in finding.message
    assert list(inactive_clipping.check(run)) == []


def test_the_plan_stands_in_for_a_threshold_that_no_step_recorded(tmp_path):
    run = make_run(tmp_path, [5.0] * 30, plan=Plan(max_norm=1.0))
    assert len(list(saturated_clipping.check(run))) == 1


def test_inactive_clipping_tells_how_far_away_the_threshold_is(tmp_path):
    norms = np.linspace(0.5, 1.0, 30)
    (finding,) = inactive_clipping.check(clipped_at(tmp_path, 2.0, norms))
    assert (finding.code, finding.severity, finding.value) == ("GS402", "info", pytest.approx(2.0))
    (far,) = inactive_clipping.check(clipped_at(tmp_path, 10.1, norms))
    assert far.severity == "warning"
    (limit,) = inactive_clipping.check(clipped_at(tmp_path, 10.0, norms))
    assert limit.severity == "info"


def test_one_clipped_step_makes_it_active(tmp_path):
    assert list(inactive_clipping.check(clipped_at(tmp_path, 1.0, [0.5] * 29 + [1.1]))) == []


def test_nonfinite_norms_count_neither_way(tmp_path):
    norms = [5.0] * 28 + [NAN, INF]
    (finding,) = saturated_clipping.check(clipped_at(tmp_path, 1.0, norms))
    assert "28 steps" in finding.message


@pytest.mark.parametrize("rule", [saturated_clipping, inactive_clipping])
@pytest.mark.parametrize(
    ("header", "limit", "length", "reason"),
    [
        ({}, NAN, 30, "no clipping"),
        ({}, 0.0, 30, "no clipping"),
        ({"plan": Plan(max_norm=-1.0)}, NAN, 30, "no clipping"),
        ({}, 1.0, 9, "needed"),
    ],
)
def test_when_they_cannot_run(tmp_path, rule, header, limit, length, reason):
    with pytest.raises(CannotRunError, match=reason):
        list(rule.check(clipped_at(tmp_path, limit, [5.0] * length, **header)))


@pytest.mark.parametrize(("loss", "severity"), [(1.0, "info"), (1e6, "warning")])
def test_a_step_limiter_that_was_tried_and_held_is_an_information(tmp_path, loss, severity):
    indexes = tuple(range(0, 400, 4))
    trial = Trial("candidate", "clip-in-use", max_norm=1.0 * (397 / 100) ** 0.5, start="initial", indexes=indexes)
    trials = {"clip-in-use": (trial, np.full(100, loss), np.full(100, 5.0 * loss))}
    run = make_run(tmp_path, [5.0] * 30, plan=Plan(total_steps=400, max_norm=1.0), trials=trials)
    (finding,) = saturated_clipping.check(run)
    assert finding.severity == severity
    assert ("It held over 100 trial steps" in finding.advice) == (severity == "info")


def test_a_step_limiter_is_a_warning_where_another_threshold_ends_clearly_lower(tmp_path):
    def tried(name, limit, loss):
        trial = Trial("candidate", name, max_norm=limit, start="initial", indexes=tuple(range(400)))
        return {name: (trial, np.full(400, loss), np.full(400, 5.0))}

    for other, severity in ((0.9, "info"), (0.5, "warning")):
        trials = tried("clip-in-use", 1.0, 1.0) | tried("clip-none", None, other)
        plan = Plan(total_steps=400, max_norm=1.0)
        run = make_run(tmp_path / str(other), [5.0] * 30, plan=plan, trials=trials)
        (finding,) = saturated_clipping.check(run)
        assert finding.severity == severity
