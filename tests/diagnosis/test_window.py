import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscope.diagnosis.rules import already_exploding, nonfinite_loss
from gradscope.diagnosis.window import BLOWN, enough, explosion, stable_prefix
from gradscope.recommendation.remedies import next_remedies
from gradscope.runs.schema import Ending, Offender, Trial
from tests.builders import make_run

NAN, INF = float("nan"), float("inf")
FLAT = [1.0] * 50


def test_a_flat_run_does_not_explode(tmp_path):
    assert explosion(make_run(tmp_path, FLAT)) is None


def test_norms_a_hundred_times_their_beginning(tmp_path):
    seen = explosion(make_run(tmp_path, [1.0] * 30 + [101.0] * 20))
    assert seen is not None
    assert (seen.first_step, seen.limit) == (30, 100)
    assert "gradient norm of the last 10" in seen.reason
    assert explosion(make_run(tmp_path, [1.0] * 30 + [100.0] * 20, loss=[1.0] * 30 + [0.5] * 20)) is None


def test_norms_that_jump_over_several_decades_begin_where_they_jump(tmp_path):
    norms = [1.0] * 20 + list(np.logspace(1, 4, 30))
    seen = explosion(make_run(tmp_path, norms))
    assert seen is not None
    assert 20 < seen.first_step < 26


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_a_blow_up_that_the_loss_does_not_recover_from(tmp_path, scale):
    norms = scale * np.array([1.0] * 20 + [2 * BLOWN] + [1.0] * 29)
    up = make_run(tmp_path, norms, loss=scale * np.array([1.0] * 20 + [4.0] * 30))
    seen = explosion(up)
    assert seen is not None
    assert seen.first_step == 20
    assert seen.value == pytest.approx(2 * BLOWN)
    recovered = make_run(tmp_path, norms, loss=scale * np.array([1.0] * 20 + [0.5] * 30))
    assert explosion(recovered) is None


def test_a_blow_up_at_the_first_steps(tmp_path):
    norms = [1.0, 3000.0, 3000.0, 10.0, 10.0] + [10.0] * 45
    seen = explosion(make_run(tmp_path, norms, loss=[0.1, 50, 50, 2, 2] + [2.0] * 45))
    assert seen is not None
    assert seen.first_step == 1


def test_a_first_loss_far_below_the_rest_is_no_reference(tmp_path):
    assert explosion(make_run(tmp_path, FLAT, loss=[1e-6] * 5 + [1.0] * 45)) is not None
    assert explosion(make_run(tmp_path, FLAT, loss=[0.0, 1.0, 1.0, 1.0, 1.0] + [1.0] * 45)) is None


def test_a_loss_that_falls_below_zero_does_not_explode(tmp_path):
    assert explosion(make_run(tmp_path, FLAT, loss=np.linspace(0.1, -9.0, 50))) is None


def test_few_steps_show_only_nonfinite_values(tmp_path):
    rising = make_run(tmp_path, np.logspace(0, 2, 19), loss=np.logspace(0, 2, 19))
    assert explosion(rising) is None
    assert not enough(rising)
    assert enough(make_run(tmp_path, FLAT[:20]))
    assert enough(make_run(tmp_path, [NAN] * 20, columns={"nonfinite": [0] * 20}))


def test_a_script_that_stops_at_an_explosion(tmp_path):
    norms, losses = [16.0] * 40, [*np.linspace(400, 10, 20), *[11.0] * 20]
    seen = explosion(make_run(tmp_path, [*norms, 660, 1e4, 6e11], loss=[*losses, 507.0, 2.3e4, 2.9e13]))
    assert seen is not None
    assert seen.first_step == 40
    assert "the loss rises to 2.9e+13 at the last step, against 11 before" in seen.reason
    few = explosion(make_run(tmp_path, [87, 165, 80, 68, 75, 9e8, 1.5e27], loss=[1e3, 1e3, 2e3, 1e3, 1e3, 3e8, 1e29]))
    assert few is not None
    assert few.first_step == 5


def test_a_norm_that_leaves_a_layer_dead_is_an_explosion(tmp_path):
    norms, losses = np.ones((90, 3)), np.full(90, 0.5)
    norms[40], losses[:20], losses[40] = 1e6, 9.0, 1e6
    assert explosion(make_run(tmp_path, grad_norm=norms, loss=losses)) is None
    norms[45:, 1] = 0.0
    seen = explosion(make_run(tmp_path, grad_norm=norms, loss=losses))
    assert seen is not None
    assert seen.first_step == 40
    assert "after which layer fc2 gets a gradient of 0 to the end" in seen.reason
    norms[:40, 1] = 0.0
    assert explosion(make_run(tmp_path, grad_norm=norms, loss=losses)) is None  # it was dead before


def test_a_single_step_of_a_run_that_failed_there_is_an_explosion(tmp_path):
    norms, losses = [16.0] * 40 + [9e3], [*np.linspace(400, 10, 20), *[11.0] * 20, 5e4]
    assert explosion(make_run(tmp_path, norms, loss=losses)) is None
    failed = Ending("failed", 40, "AssertionError: diverged")
    assert explosion(make_run(tmp_path, norms, loss=losses, ending=failed)) is not None


def test_an_outlier_that_leaves_norms_and_losses_as_they_were_is_no_explosion(tmp_path):
    norms = np.ones(80)
    norms[40] = 2e3
    assert explosion(make_run(tmp_path, norms, loss=np.full(80, 1.5))) is None
    norms[41:] = 50.0
    assert explosion(make_run(tmp_path, norms, loss=np.full(80, 1.5))) is not None


def test_of_a_script_a_nonfinite_loss_that_was_seen_is_no_unseen_one(tmp_path):
    losses = [1.0] * 30 + [NAN] * 4 + [1.0] * 30
    seen = Offender(30, None, None, "loss")
    run = make_run(tmp_path, [1.0] * 64, loss=losses, recorded_by="record", first_nonfinite=seen)
    (finding,) = nonfinite_loss.check(run)
    assert (finding.severity, finding.first_step, finding.value) == ("warning", 30, 4)
    assert list(nonfinite_loss.check(make_run(tmp_path, [1.0] * 64, loss=losses, recorded_by="record"))) == []


def test_a_rise_at_the_end_that_is_no_explosion(tmp_path):
    norms, losses = [16.0] * 40, [*np.linspace(400, 10, 20), *[11.0] * 20]
    assert (
        explosion(make_run(tmp_path, [*norms, 6e11], loss=[*losses, 2.9e13])) is None
    )  # one step, perhaps a bad sample
    assert explosion(make_run(tmp_path, [*norms, 6e11, 1e6], loss=[*losses, 2.9e13, 1e7])) is None  # comes back
    assert explosion(make_run(tmp_path, [*norms, 60, 70], loss=[*losses, 500.0, 900.0])) is None  # norms that stay
    assert explosion(make_run(tmp_path, [*norms, 1e6, 6e11], loss=[*losses, 12.0, 13.0])) is None  # losses that stay


@pytest.mark.parametrize("bad", [NAN, INF])
def test_nonfinite_never_reads_as_healthy(tmp_path, bad):
    gradient = explosion(make_run(tmp_path, [1.0, 1.0, bad]))
    assert gradient is not None
    assert gradient.reason == "the gradient is nonfinite at step 2"
    loss = explosion(make_run(tmp_path, [1.0, 1.0, 1.0], loss=[1.0, bad, 1.0]))
    assert loss is not None
    assert loss.reason == "the loss is nonfinite at step 1"


def test_an_overflow_that_the_scaler_skipped_is_no_explosion(tmp_path):
    norms = [INF, INF, *FLAT]
    skipped = [True, True] + [False] * 50
    assert explosion(make_run(tmp_path, norms, columns={"skipped": skipped})) is None


def test_norms_after_clipping_are_not_judged(tmp_path):
    grown = [1.0] * 30 + [1000.0] * 20
    assert explosion(make_run(tmp_path, grown, measured_at="post_clip")) is None


def test_scaled_norms_are_judged_with_the_scale_divided_out(tmp_path):
    scale = np.array([2.0**16] * 25 + [2.0**6] * 25)
    run = make_run(tmp_path, scale, gradients_are="scaled", columns={"loss_scale": scale})
    assert explosion(run) is None
    assert stable_prefix(run) == 50


def test_stable_prefix(tmp_path):
    assert stable_prefix(make_run(tmp_path, [])) == 0
    assert stable_prefix(make_run(tmp_path, FLAT)) == 50
    assert stable_prefix(make_run(tmp_path, [1.0, 31.0, 1.0])) == 1
    assert stable_prefix(make_run(tmp_path, [1.0, 30.0, NAN, 1.0])) == 2
    assert stable_prefix(make_run(tmp_path, [NAN, 1.0])) == 1
    skipped = make_run(tmp_path, [INF, 1.0, 1.0, 99.0], columns={"skipped": [True, False, False, False]})
    assert stable_prefix(skipped) == 3
    absent = make_run(tmp_path, [1.0, NAN, 1.0, 99.0], columns={"nonfinite": [0, 0, 0, 0]})
    assert stable_prefix(absent) == 3


@settings(max_examples=40, deadline=None)
@given(
    norms=st.lists(st.floats(1e-3, 1e3), min_size=20, max_size=60),
    losses=st.lists(st.floats(-1e2, 1e2), min_size=60, max_size=60),
    scale=st.integers(-20, 26),
)
def test_the_scale_of_loss_and_norm_does_not_matter(tmp_path_factory, norms, losses, scale):
    folder = tmp_path_factory.mktemp("w")
    factor = 2.0**scale
    losses = losses[: len(norms)]
    plain = explosion(make_run(folder, norms, loss=losses))
    scaled = explosion(make_run(folder, [factor * n for n in norms], loss=[factor * v for v in losses]))
    assert (plain is None) == (scaled is None)
    if plain and scaled:
        assert plain.first_step == scaled.first_step


def test_a_nonfinite_loss_whose_step_was_skipped_is_no_explosion_unless_it_stays(tmp_path):
    loss, skipped = [1.0] * 30, [False] * 30
    loss[9], skipped[9] = float("nan"), True
    norms = [float("nan") if bad else 1.0 for bad in skipped]
    columns = {"skipped": skipped, "nonfinite": [int(bad) for bad in skipped]}
    assert explosion(make_run(tmp_path / "once", norms, loss=loss, columns=columns)) is None
    stays, last = [1.0] * 25 + [float("nan")] * 5, [False] * 25 + [True] * 5
    columns = {"skipped": last, "nonfinite": [int(bad) for bad in last]}
    seen = explosion(make_run(tmp_path / "stays", [1.0] * 25 + [float("nan")] * 5, loss=stays, columns=columns))
    assert seen is not None
    assert seen.first_step == 25


def test_the_last_step_of_a_run_that_failed_counts_though_no_optimizer_used_it(tmp_path):
    columns = {"skipped": [False] * 29 + [True], "nonfinite": [0] * 29 + [3]}
    norms = [1.0] * 29 + [float("inf")]
    assert explosion(make_run(tmp_path / "went on", norms, columns=columns)) is None
    ending = Ending("failed", 29, "RuntimeError: nonfinite")
    seen = explosion(make_run(tmp_path / "failed", norms, columns=columns, ending=ending))
    assert seen is not None
    assert "the gradient is nonfinite at step 29" in seen.reason


def test_a_loss_that_was_not_seen_is_not_a_nonfinite_one(tmp_path):
    losses = [1.0, NAN] * 30
    assert explosion(make_run(tmp_path / "script", [1.0] * 60, loss=losses, recorded_by="record")) is None
    seen = explosion(make_run(tmp_path / "analyzed", [1.0] * 60, loss=losses))
    assert seen is not None
    norms = [1.0] * 59 + [NAN]
    assert explosion(make_run(tmp_path / "broken", norms, loss=losses, recorded_by="record")) is not None


def test_bad_data_is_no_matter_of_learning_rates(tmp_path):
    first = Offender(30, None, None, "input")
    run = make_run(tmp_path, [1.0] * 30 + [NAN], loss=[1.0] * 30 + [NAN], first_nonfinite=first)
    (loss,), (exploding,) = nonfinite_loss.check(run), already_exploding.check(run)
    assert "not finite itself" in loss.advice
    assert exploding.advice.startswith("Clean the data")
    assert next_remedies(run) == ()


def at_once(end, high=(58.0, 61.0, 80.0, 56.0, 38.0)):
    """A learning rate typed a hundred times too large: up at the first step, then where guessing is."""
    losses = [2.3, *high, *np.linspace(19.0, end, 30), *[end] * 64]
    return losses, [0.4, *(loss / 1.5 for loss in losses[1:])]


def test_an_explosion_at_the_first_steps_counts_though_the_loss_comes_back_to_chance(tmp_path):
    losses, norms = at_once(2.28)
    seen = explosion(make_run(tmp_path / "chance", norms, loss=losses))
    assert (seen.first_step, seen.limit) == (1, 100)
    assert seen.reason.startswith("the loss rises at once, from 2.3 to 80, and ends at 2.28; the gradient norm is 53.3")
    losses, norms = at_once(0.5)
    assert explosion(make_run(tmp_path / "learns", norms, loss=losses)) is None
    losses, norms = at_once(2.28, high=(58.0, 9.0, 5.0, 3.0, 2.0))
    losses[6:10] = [2.0] * 4
    assert explosion(make_run(tmp_path / "outlier", norms, loss=losses)) is None
    losses, norms = at_once(2.28)
    rehearsal = Trial("rehearsal", "x1", indexes=tuple(range(100, 200)))
    for name, window, end, seen in (("later", 2.28, 0.4, 0), ("chance", 2.28, 2.28, 0), ("stays", 5.0, 5.0, 1)):
        losses, norms = at_once(window)
        trials = {"x1": (rehearsal, np.linspace(window, end, 100), np.ones(100))}
        run = make_run(tmp_path / f"rehearsed-{name}", norms, loss=losses, trials=trials)
        assert (explosion(run) is not None) == seen


def test_a_few_steps_that_run_away_are_an_explosion(tmp_path):
    """The script skips every loss that is not finite, so that no more is seen of it."""
    losses, norms = [11.6, 4.5, 2.9e4, 5.5e15], [2.7, 10.7, 1.8e4, 2.3e14]
    seen = explosion(make_run(tmp_path / "away", norms, loss=losses))
    assert seen.first_step == 2
    assert "5.5e+15 at the last step, against 11.6 at the first" in seen.reason
    assert explosion(make_run(tmp_path / "back", [*norms, 1.0], loss=[*losses, 9.0])) is None
    assert explosion(make_run(tmp_path / "one", [2.7, 10.7, 1.8e4], loss=[11.6, 4.5, 5e15])) is None
