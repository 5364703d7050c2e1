import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscope.diagnosis.model import CannotRunError
from gradscope.diagnosis.rules.recurrent_growth import check, time_profiles
from gradscope.runs.schema import Parameter
from tests.builders import make_run


def profile(step, factor, length=51, layer="rnn", scale=1.0, noise=0.0):
    """‖∂L/∂h_t‖ that changes by `factor` with each time step back from the end."""
    times = np.arange(length)
    wobble = np.exp(noise * np.random.default_rng(step).normal(size=length))
    values = scale * factor ** (length - 1 - times) * wobble
    return (step, "state_grad_norm", [layer] * length, values.tolist(), times.tolist())


def run_with(tmp_path, *probes):
    return make_run(tmp_path, [1.0] * 30, probes=probes)


@pytest.mark.parametrize("scale", [1e-18, 1.0, 1e8])
def test_growth_is_found_with_its_rate_at_any_scale(tmp_path, scale):
    run = run_with(tmp_path, *(profile(s, 1.9, scale=scale, noise=0.1) for s in (0, 10, 20)))
    (finding,) = check(run)
    assert (finding.subject, finding.severity) == ("rnn", "warning")
    assert finding.value == pytest.approx(1.9, rel=0.01)
    assert "grows 1.9× a time step over 50 time steps (measured on 3 training steps)" in finding.message
    assert "doubles every 1.08" in finding.message
    (one,) = time_profiles(run)
    assert one.low < math.log(1.9) < one.high
    assert one.half_life == pytest.approx(math.log(2) / math.log(1.9), rel=0.02)


def test_fading_is_an_information_with_its_half_life(tmp_path):
    (finding,) = check(run_with(tmp_path, profile(0, 0.5)))
    assert finding.severity == "info"
    assert "95 % interval 0.5 to 0.5; its half-life is 1 time steps." in finding.message


@pytest.mark.parametrize(("kind", "advised"), [("RNN", "use a gated layer"), ("GRU", "use shorter paths")])
def test_a_gated_layer_is_not_advised_where_there_is_one(tmp_path, kind, advised):
    parameter = Parameter("rnn.weight_hh_l0", "rnn", kind, (4, 4), "float32", 0)
    run = make_run(tmp_path, [1.0] * 30, probes=[profile(0, 0.5)], parameters=(parameter,))
    (finding,) = check(run)
    assert advised in finding.advice


@pytest.mark.parametrize("factor", [1.9, 0.5])
def test_sigma_stands_beside_the_rate(tmp_path, factor):
    sigmas = [(step, "sigma_recurrent", ["rnn", "other"], [value, 9.0], [0, 0]) for step, value in ((0, 2.0), (5, 2.2))]
    (finding,) = check(run_with(tmp_path, profile(0, factor), profile(5, factor), *sigmas))
    assert finding.message.endswith("time steps; σmax(W_hh)·max σ′ is 2.1.")


def test_steady_gradients_are_silent(tmp_path):
    assert list(check(run_with(tmp_path, profile(0, 1.0, noise=0.2)))) == []
    assert list(check(run_with(tmp_path, profile(0, 1.0)))) == []


def test_the_limit_is_a_factor_of_ten_over_the_sequence(tmp_path):
    assert list(check(run_with(tmp_path, profile(0, 9.9 ** (1 / 50))))) == []
    assert len(list(check(run_with(tmp_path, profile(0, 10.1 ** (1 / 50)))))) == 1


def test_an_unsure_slope_is_no_finding(tmp_path):
    assert list(check(run_with(tmp_path, profile(0, 1.35, length=9, noise=4.0)))) == []


def test_nonfinite_values_are_left_out_and_counted(tmp_path):
    step, probe, subjects, values, index = profile(0, 1.9)
    values[0], values[1], values[2] = float("inf"), float("nan"), 0.0
    (finding,) = check(run_with(tmp_path, (step, probe, subjects, values, index)))
    assert finding.value == pytest.approx(1.9)
    assert "2 values of it nonfinite" in finding.message


def test_each_layer_for_itself(tmp_path):
    findings = check(
        run_with(tmp_path, profile(0, 1.9, layer="a"), profile(0, 1.0, layer="b"), profile(0, 2.0, layer="c"))
    )
    assert [finding.subject for finding in findings] == ["a", "c"]


def test_without_the_probe_or_with_short_sequences_it_cannot_run(tmp_path):
    with pytest.raises(CannotRunError, match="no gradients along time"):
        list(check(run_with(tmp_path)))
    with pytest.raises(CannotRunError, match="no sequence with 8"):
        list(check(run_with(tmp_path, profile(0, 2.0, length=7))))


def test_a_flat_profile_has_no_half_life(tmp_path):
    (one,) = time_profiles(run_with(tmp_path, profile(0, 1.0)))
    assert one.rate == 0
    assert one.half_life == math.inf


@settings(max_examples=25, deadline=None)
@given(factor=st.floats(0.5, 2.0), length=st.integers(10, 80), scale=st.floats(-30, 8))
def test_the_rate_is_exact_on_a_geometric_profile(tmp_path_factory, factor, length, scale):
    run = run_with(tmp_path_factory.mktemp("r"), profile(0, factor, length, scale=10.0**scale))
    (one,) = time_profiles(run)
    assert one.factor == pytest.approx(factor, rel=1e-6)
