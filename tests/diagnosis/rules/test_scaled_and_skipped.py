import pytest

from gradscope.diagnosis.rules import scaled_gradients, skipped_steps
from tests.builders import make_run

INF, NAN = float("inf"), float("nan")


def test_scaled_gradients_with_a_known_scale_are_an_information(tmp_path):
    run = make_run(tmp_path, [65536.0] * 3, gradients_are="scaled", columns={"loss_scale": [65536.0] * 3})
    (finding,) = scaled_gradients.check(run)
    assert (finding.severity, finding.value) == ("info", 65536)
    assert "divided out" in finding.message


def test_scaled_gradients_without_a_scale_are_a_warning(tmp_path):
    (finding,) = scaled_gradients.check(make_run(tmp_path, [65536.0] * 3, gradients_are="scaled"))
    assert (finding.severity, finding.value) == ("warning", None)
    assert "no norm of this run can be used" in finding.message


def test_unscaled_gradients_are_silent(tmp_path):
    assert list(scaled_gradients.check(make_run(tmp_path, [1.0]))) == []


def skips(tmp_path, pattern):
    norms = [INF if c == "x" else 1.0 for c in pattern]
    columns = {"skipped": [c == "x" for c in pattern], "loss_scale": [65536.0] * len(pattern)}
    run = make_run(tmp_path, norms, columns=columns)
    return list(skipped_steps.check(run))


def test_the_scale_settling_at_the_start_is_no_alarm(tmp_path):
    (finding,) = skips(tmp_path, "xxx" + "." * 17)
    assert (finding.severity, finding.first_step, finding.last_step) == ("info", 0, 2)
    assert "normal" in finding.message


@pytest.mark.parametrize(
    ("pattern", "severity", "share"),
    [
        ("." * 99 + "x", "info", 0.01),
        ("." * 95 + "x" * 5, "info", 0.05),
        ("." * 94 + "x" * 6, "warning", 0.06),
        ("x" + "." * 10 + "x" * 10, "warning", 0.5),
        ("." * 4 + "x" * 6, "critical", 0.6),
        ("x" * 10, "critical", 1.0),
    ],
)
def test_later_skips_count_by_their_share(tmp_path, pattern, severity, share):
    (finding,) = skips(tmp_path, pattern)
    assert (finding.severity, finding.subject) == (severity, "fc3")
    assert finding.value == pytest.approx(share)


def test_steps_that_the_script_skipped_are_not_laid_on_a_scaler(tmp_path):
    columns = {"skipped": [True] + [False] * 8 + [True]}
    (finding,) = skipped_steps.check(make_run(tmp_path, [INF] + [1.0] * 8 + [INF], columns=columns))
    assert finding.message == "The script skipped 2 steps of the 10 (20 %)."
    assert finding.severity == "warning"
    assert "scaler" not in finding.advice


def test_a_skip_without_a_known_origin_names_no_layer(tmp_path):
    run = make_run(tmp_path, [1.0] * 4, columns={"skipped": [False, True, False, False]})
    (finding,) = skipped_steps.check(run)
    assert finding.subject is None
    assert "overflowed" not in finding.message


def test_no_skips_no_finding(tmp_path):
    assert skips(tmp_path, "." * 5) == []
    assert skips(tmp_path, "") == []
