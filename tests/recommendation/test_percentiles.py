import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gradscope.errors import NothingMeasuredError, UsageError
from gradscope.recommendation import thresholds
from gradscope.recommendation.percentiles import interval, mode

ONE_TO_HUNDRED = np.arange(1.0, 101.0)


def test_a_percentile_with_what_it_would_clip():
    (found,) = thresholds(ONE_TO_HUNDRED, [95])
    assert found.max_norm == pytest.approx(95.05)
    assert found.clipped_fraction == 0.05
    assert found.mean_retained_step == pytest.approx(np.minimum(1, 95.05 / ONE_TO_HUNDRED).mean())
    assert (found.mode, found.confidence) == ("safety net", 0.95)


@pytest.mark.parametrize(("steps", "known"), [(58, False), (59, True)])
def test_an_upper_bound_on_the_95th_percentile_needs_59_steps(steps, known):
    (found,) = thresholds(np.arange(1.0, steps + 1), [95])
    assert (found.high is not None) == known
    assert found.low is not None


@pytest.mark.parametrize(("steps", "known"), [(58, False), (59, True)])
def test_a_lower_bound_on_the_5th_percentile_needs_as_many(steps, known):
    (found,) = thresholds(np.arange(1.0, steps + 1), [5])
    assert (found.low is not None) == known
    assert found.high is not None


def test_the_ends_of_the_scale():
    lowest, highest = thresholds(ONE_TO_HUNDRED, [0, 100])
    assert (lowest.max_norm, lowest.low, lowest.high) == (1, None, 1)
    assert (highest.max_norm, highest.low, highest.high) == (100, 100, None)
    assert highest.clipped_fraction == 0
    assert lowest.mode == "step limiter"


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 150), percentile=st.floats(0.5, 99.5), confidence=st.sampled_from([0.8, 0.95, 0.99]))
def test_bounds_are_the_exact_binomial_order_statistics(n, percentile, confidence):
    ordered, p = np.arange(1.0, n + 1), percentile / 100
    low, high = interval(ordered, percentile, confidence)
    lows = [k for k in range(1, n + 1) if stats.binom.cdf(k - 1, n, p) <= 1 - confidence - 1e-9]
    highs = [k for k in range(1, n + 1) if stats.binom.cdf(k - 1, n, p) >= confidence + 1e-9]
    assert low is None or stats.binom.cdf(low - 1, n, p) <= 1 - confidence + 1e-9
    assert high is None or stats.binom.cdf(high - 1, n, p) >= confidence - 1e-9
    assert (low or 0) >= (lows[-1] if lows else 0)
    assert (high or np.inf) <= (highs[0] if highs else np.inf)


def test_the_bounds_cover_as_often_as_they_say():
    rng = np.random.default_rng(0)
    truth = np.exp(stats.norm.ppf(0.95))
    found = [thresholds(np.exp(rng.normal(size=100)), [95])[0] for _ in range(400)]
    assert np.mean([one.low <= truth for one in found]) > 0.93
    assert np.mean([one.high >= truth for one in found]) > 0.93


@settings(max_examples=60, deadline=None)
@given(
    norms=st.lists(st.floats(1e-30, 1e30), min_size=1, max_size=80),
    percentiles=st.lists(st.floats(0, 100), min_size=1, max_size=4),
    scale=st.integers(-40, 40),
)
def test_thresholds_scale_with_the_norms_and_are_never_nan(norms, percentiles, scale):
    array = np.array(norms)
    plain, scaled = thresholds(array, percentiles), thresholds(2.0**scale * array, percentiles)
    for one, other in zip(plain, scaled, strict=True):
        assert np.isfinite(one.max_norm)
        assert other.max_norm == pytest.approx(2.0**scale * one.max_norm, rel=1e-12)
        assert other.mode == one.mode
        assert 0 <= one.clipped_fraction <= 1
        assert 0 <= one.mean_retained_step <= 1


@pytest.mark.parametrize("bad", [-0.1, 100.1, float("nan"), float("inf")])
def test_a_percentile_outside_its_scale(bad):
    with pytest.raises(UsageError, match="between 0 and 100"):
        thresholds(ONE_TO_HUNDRED, [bad])


def test_no_percentile_and_no_norms():
    with pytest.raises(UsageError, match="no percentile"):
        thresholds(ONE_TO_HUNDRED, [])
    with pytest.raises(NothingMeasuredError):
        thresholds(np.array([]), [95])


def test_mode_changes_at_a_quarter_of_the_steps():
    assert (mode(0.25), mode(0.26)) == ("safety net", "step limiter")
