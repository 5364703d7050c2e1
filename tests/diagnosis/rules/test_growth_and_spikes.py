import numpy as np
import pytest

from gradscope.diagnosis.model import CannotRunError
from gradscope.diagnosis.rules import already_exploding, spike, sustained_growth
from gradscope.runs.schema import Ending, Plan
from tests.builders import make_run
from tests.diagnosis.test_verdict import rehearsal

NAN, INF = float("nan"), float("inf")
SMOOTH = np.exp(np.random.default_rng(0).normal(0, 0.2, 60))
HELD = ([1.0] * 80, [100.0] * 80)
FAILED = (np.linspace(1.0, 100.0, 80), np.full(80, 1e4))
SCALES = [1e-18, 1.0, 1e18]


def test_exploding_fires_on_a_rising_loss(tmp_path):
    loss = [1.0] * 30 + [11.0] * 20
    (finding,) = already_exploding.check(make_run(tmp_path, [1.0] * 30 + [4.0] * 20, loss=loss))
    assert (finding.code, finding.severity, finding.first_step, finding.last_step) == ("GS201", "critical", 30, 49)
    assert finding.value == pytest.approx(11)


@pytest.mark.parametrize(
    ("end", "norm", "spike", "fires"),
    [
        (49.0, 6.9, 1.0, 0),
        (49.0, 7.1, 1.0, 1),
        (101.0, 1.0, 1.0, 1),
        (49.0, 50.0, 148.0, 0),
        (49.0, 50.0, 146.0, 1),
        (49.0, 101.0, 1e3, 1),
    ],
    ids=["targets grow", "weights grow", "above 100 ×", "it was higher before", "not 3 ×", "norms above 100 ×"],
)
@pytest.mark.parametrize("scale", SCALES)
def test_a_loss_that_rises_with_its_targets_is_no_explosion(tmp_path, end, norm, spike, fires, scale):
    loss, norms = np.r_[np.ones(30), np.full(20, end)], np.r_[np.ones(30), np.full(20, norm)]
    loss[20] = spike
    run = make_run(tmp_path, scale * norms, loss=scale * loss)
    assert len(list(already_exploding.check(run))) == fires


def test_exploding_is_silent_at_its_limit(tmp_path):
    run = make_run(tmp_path, [1.0] * 30 + [100.0] * 20, loss=[1.0] * 30 + [10.0] * 20)
    assert list(already_exploding.check(run)) == []


def test_exploding_on_a_nonfinite_value_needs_no_length(tmp_path):
    (finding,) = already_exploding.check(make_run(tmp_path, [1.0, INF]))
    assert finding.value is None
    assert "nonfinite at step 1" in finding.message


def test_exploding_cannot_run_on_a_few_finite_steps(tmp_path):
    with pytest.raises(CannotRunError, match="fewer than 20"):
        list(already_exploding.check(make_run(tmp_path, [1.0] * 19)))


@pytest.mark.parametrize("scale", SCALES)
def test_growth_fires_at_any_scale(tmp_path, scale):
    (finding,) = sustained_growth.check(make_run(tmp_path, scale * np.logspace(0, 2, 50)))
    assert finding.severity == "warning"
    assert finding.value == pytest.approx(10 ** (2 * 45 / 49))
    assert "9.9 % a step" in finding.message


def test_growth_is_silent_at_its_limit_and_on_a_jump(tmp_path):
    steps = np.repeat(np.linspace(1.0, 10.0, 10), 2)
    assert list(sustained_growth.check(make_run(tmp_path, steps))) == []
    jump = np.r_[np.linspace(1.0, 1.2, 25), np.linspace(2000.0, 2400.0, 25)]
    assert list(sustained_growth.check(make_run(tmp_path, jump))) == []
    (over,) = sustained_growth.check(make_run(tmp_path, np.repeat(np.linspace(1.0, 10.1, 10), 2)))
    assert over.value == pytest.approx(10.1)
    assert list(sustained_growth.check(make_run(tmp_path, [1.0] * 25 + [1000.0] * 25))) == []


@pytest.mark.parametrize(("outcome", "severity"), [(HELD, "info"), (FAILED, "warning")])
def test_growth_that_a_rehearsal_held_is_an_information(tmp_path, outcome, severity):
    trials = {"x1": (rehearsal(indexes=tuple(range(50, 130))), *outcome, Ending("finished", 80))}
    (finding,) = sustained_growth.check(make_run(tmp_path, np.logspace(0, 2, 50), plan=Plan(130), trials=trials))
    assert finding.severity == severity
    assert ("held in its rehearsals" in finding.advice) == (severity == "info")


def test_growth_looks_past_nonfinite_norms(tmp_path):
    norms = np.logspace(0, 3, 50)
    norms[20] = NAN
    assert len(list(sustained_growth.check(make_run(tmp_path, norms)))) == 1


@pytest.mark.parametrize("rule", [sustained_growth, spike])
def test_growth_and_spikes_cannot_run_on_few_steps_or_after_clipping(tmp_path, rule):
    with pytest.raises(CannotRunError, match="needed"):
        list(rule.check(make_run(tmp_path, [1.0] * 5)))
    with pytest.raises(CannotRunError, match="after clipping"):
        list(rule.check(make_run(tmp_path, [1.0] * 50, measured_at="post_clip")))


@pytest.mark.parametrize("scale", SCALES)
def test_spike_fires_at_any_scale_and_names_the_layer_that_carries_it(tmp_path, scale):
    norms = np.repeat(SMOOTH[:, None], 3, axis=1) * scale
    norms[40, 1] *= 50
    (finding,) = spike.check(make_run(tmp_path, grad_norm=norms))
    assert (finding.subject, finding.first_step, finding.last_step) == ("fc2", 40, 40)
    assert finding.value > 20
    assert "1 step of 60" in finding.message


def test_a_spike_shared_by_all_layers_names_none(tmp_path):
    norms = SMOOTH.copy()
    norms[[20, 40]] *= [40, 60]
    (finding,) = spike.check(make_run(tmp_path, norms))
    assert (finding.subject, finding.first_step, finding.last_step) == (None, 20, 40)
    assert "2 steps of 60, most at step 40" in finding.message


def test_ordinary_noise_and_new_levels_are_no_spikes(tmp_path):
    assert list(spike.check(make_run(tmp_path, SMOOTH))) == []
    raised = np.concatenate([SMOOTH[:30], 100 * SMOOTH[30:]])
    assert list(spike.check(make_run(tmp_path, raised))) == []


def test_spike_limit_lies_at_three_times_the_median(tmp_path):
    flat = np.ones(30)
    flat[20] = 3.0
    assert list(spike.check(make_run(tmp_path, flat))) == []
    flat[20] = 3.01
    assert len(list(spike.check(make_run(tmp_path, flat)))) == 1


def test_a_nonfinite_norm_is_no_spike_and_hides_none(tmp_path):
    norms = SMOOTH.copy()
    norms[30], norms[50] = NAN, 80
    (finding,) = spike.check(make_run(tmp_path, norms))
    assert finding.first_step == 50


def test_a_spike_still_stands_out_after_the_window_of_fifty(tmp_path):
    norms = np.tile(SMOOTH, 3)
    norms[170] = 90
    (finding,) = spike.check(make_run(tmp_path, norms))
    assert finding.first_step == 170


def test_the_last_steps_before_it_is_nonfinite_to_the_end_are_an_explosion_and_no_spike(tmp_path):
    norms = np.r_[SMOOTH, 50.0, 400.0, 1e5, NAN, NAN]
    assert list(spike.check(make_run(tmp_path, norms))) == []
    norms[20] = 70.0
    (finding,) = spike.check(make_run(tmp_path, norms))
    assert (finding.first_step, finding.last_step) == (20, 20)
