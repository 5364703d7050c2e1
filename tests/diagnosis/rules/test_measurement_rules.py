import pytest

from gradscope.diagnosis.rules import (
    inferred_loss,
    measured_post_clip,
    synthetic_data,
    too_few_steps,
    unrecorded_steps,
)
from gradscope.runs.schema import Piece
from tests.builders import make_run

NAN = float("nan")


@pytest.mark.parametrize(("steps", "fires"), [(0, True), (19, True), (20, False)])
def test_too_few_steps(tmp_path, steps, fires):
    found = list(too_few_steps.check(make_run(tmp_path, [1.0] * steps)))
    assert [finding.value for finding in found] == ([steps] if fires else [])


def test_nonfinite_steps_do_not_count_as_measured(tmp_path):
    (finding,) = too_few_steps.check(make_run(tmp_path, [1.0] * 19 + [NAN] * 11))
    assert "Only 19 steps of 30 recorded" in finding.message


def test_post_clip(tmp_path):
    assert list(measured_post_clip.check(make_run(tmp_path, [1.0]))) == []
    (finding,) = measured_post_clip.check(make_run(tmp_path, [1.0], measured_at="post_clip"))
    assert finding.value is None
    known = make_run(tmp_path, [1.0], measured_at="post_clip", columns={"max_norm": [0.5]})
    (finding,) = measured_post_clip.check(known)
    assert finding.value == 0.5
    assert "cannot exceed max_norm 0.5" in finding.message


def test_synthetic_data(tmp_path):
    assert list(synthetic_data.check(make_run(tmp_path, [1.0]))) == []
    (finding,) = synthetic_data.check(make_run(tmp_path, [1.0], synthetic_data=True))
    assert "not your data" in finding.message


def test_inferred_loss(tmp_path):
    assert list(inferred_loss.check(make_run(tmp_path, [1.0]))) == []
    (finding,) = inferred_loss.check(make_run(tmp_path, [1.0], inferred_loss=True))
    assert "inferred from the targets" in finding.message
    pieces = (Piece("model", "Net()", "m.py"), Piece("loss", "cross_entropy", "inferred"))
    (finding,) = inferred_loss.check(make_run(tmp_path, [1.0], inferred_loss=True, pieces=pieces))
    assert "inferred as cross_entropy" in finding.message


def test_unrecorded_steps(tmp_path):
    assert list(unrecorded_steps.check(make_run(tmp_path, []))) == []
    assert list(unrecorded_steps.check(make_run(tmp_path, [1.0] * 5))) == []
    (gap,) = unrecorded_steps.check(make_run(tmp_path, [1.0] * 3, columns={"step": [0, 1, 5]}))
    assert gap.value == pytest.approx(0.5)
    assert "every" not in gap.message
    (thinned,) = unrecorded_steps.check(make_run(tmp_path, [1.0] * 3, every=10, columns={"step": [0, 10, 20]}))
    assert thinned.value == pytest.approx(0.1)
    assert "1 of 10 steps" in thinned.message
