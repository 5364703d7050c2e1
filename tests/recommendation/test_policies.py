import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscope.recommendation import policies
from gradscope.recommendation.policies import POLICIES, replay

NAN, INF = float("nan"), float("inf")
RNG = np.random.default_rng(0)
NORMS = np.exp(RNG.normal(0, 0.2, 200))


def test_autoclip_is_the_percentile_of_all_norms_so_far():
    limits = policies.autoclip(NORMS)
    assert limits == pytest.approx(np.array([np.percentile(NORMS[: t + 1], 10) for t in range(200)]))


def test_zclip_clips_an_outlier_to_below_itself_and_goes_on():
    norms = NORMS.copy()
    norms[100] = 50.0
    limits = policies.zclip(norms)
    assert np.isinf(limits[:25]).all()
    assert 1 < limits[100] < 2
    assert np.mean(np.isfinite(limits[26:])) < 0.1


def test_zclip_without_spread_never_clips():
    assert np.isinf(policies.zclip(np.ones(60))).all()


def test_icefall_and_deviations_look_at_the_last_norms():
    norms = np.r_[np.ones(150), np.full(150, 5.0)]
    limits = policies.icefall(norms)
    assert limits[0] == INF
    assert (limits[150], limits[299]) == (2, 10)
    deviations = policies.mean_and_deviations(np.r_[1.0, 3.0, 9.0])
    assert deviations[2] == pytest.approx(2 + 3 * 1)
    assert np.isinf(deviations[:2]).all()


def test_pascanu_is_the_mean_so_far():
    assert policies.pascanu(np.array([1.0, 3.0, 5.0])) == pytest.approx(np.array([INF, 1, 2]))


@pytest.mark.parametrize("policy", [policies.chen, policies.olmo, policies.megatron])
def test_policies_that_drop_a_step(policy):
    norms = NORMS.copy()
    norms[150] = 1e4
    limits = policy(norms)
    assert limits[150] == 0
    assert np.isinf(limits[151:]).all()


def test_megatron_waits_for_its_first_hundred():
    assert np.isinf(policies.megatron(NORMS[:100])).all()
    limits = policies.megatron(np.r_[1e3, NORMS[:99], 1e4, 1e4 + 1])
    assert (limits[100], limits[101]) == (INF, 0)


@pytest.mark.parametrize("name", POLICIES)
def test_one_nan_poisons_nothing(name):
    poisoned = np.insert(NORMS, [30, 120], [NAN, INF])
    kept = np.isfinite(poisoned)
    assert not np.isnan(POLICIES[name](poisoned)).any()
    plain = POLICIES[name](NORMS)
    if name != "ZClip":
        assert POLICIES[name](poisoned)[kept][-50:] == pytest.approx(plain[-50:])


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=25, deadline=None)
@given(norms=st.lists(st.one_of(st.floats(0, 1e6), st.sampled_from([NAN, INF])), max_size=140))
def test_limits_are_never_nan_and_come_from_the_past(name, norms):
    array = np.array(norms)
    limits = POLICIES[name](array)
    assert limits.shape == array.shape
    assert not np.isnan(limits).any()
    assert (limits >= 0).all()
    half = len(array) // 2
    np.testing.assert_allclose(POLICIES[name](array[:half]), limits[:half])


def test_replay_tells_what_each_would_have_clipped():
    found = {one.name: one for one in replay(np.r_[0.5, 2.0, NAN, 4.0])}
    assert list(found) == list(POLICIES)
    assert found["1.0"].clipped_fraction == pytest.approx(2 / 3)
    assert found["1.0"].mean_retained_step == pytest.approx((1 + 0.5 + 0.25) / 3)


def test_replay_of_nothing_finite():
    assert {(one.clipped_fraction, one.mean_retained_step) for one in replay(np.array([NAN, 0.0]))} == {(None, None)}
