"""GS207: the sample behind a step that stands out; and which batches are taken apart to find it."""

import dataclasses

import numpy as np
import pytest

from gradscope.diagnosis.outliers import next_looks
from gradscope.diagnosis.rules import outlier_sample
from gradscope.report.build import build_report
from gradscope.report.which_layer import layer
from gradscope.runs.schema import Ending, Offender, Plan, Trial
from tests.builders import make_run
from tests.diagnosis.test_verdict import rehearsal

NAN, INF = float("nan"), float("inf")
NOISE = np.exp(np.random.default_rng(1).normal(0, 0.5, 32))
PEAKS = [("input_peak", ["input"], [2.0])]


def run_with(folder, losses=NOISE, norms=NOISE, *, window=(1.0,) * 50, samples=True, ending=None, **more):
    places = tuple(range(100, 100 + len(losses))) if samples else ()
    trial = Trial("samples", "samples-41", indexes=(41,), samples=places)
    probes = [(k, *PEAKS[0]) for k in range(len(losses))]
    return make_run(
        folder,
        list(window),
        trials={"samples": (trial, losses, norms, ending or Ending("finished", len(losses)))},
        trial_probes=probes,
        **more,
    )


def raised(factor, *rows):
    values = NOISE.copy()
    values[list(rows)] *= factor
    return values


@pytest.mark.parametrize("scale", [1e-18, 1.0, 1e18])
def test_the_sample_is_named_with_what_it_has_by_itself(tmp_path, scale):
    (finding,) = outlier_sample.check(run_with(tmp_path, scale * raised(1e6, 5), scale * raised(1e4, 5)))
    assert (finding.code, finding.severity, finding.first_step) == ("GS207", "warning", 41)
    assert "Step 41: sample 105 of the data stands out by itself: loss " in finding.message
    assert "and gradient norm" in finding.message
    assert "largest value" not in finding.message
    others = np.median(np.delete(NOISE, 5))
    assert finding.value == pytest.approx(1e6 * NOISE[5] / others, rel=1e-6)


def test_one_quantity_is_enough_and_the_row_is_named_where_the_place_is_unknown(tmp_path):
    (finding,) = outlier_sample.check(run_with(tmp_path, NOISE, raised(1e4, 3, 9), samples=False))
    assert "row 3 of its batch" in finding.message or "row 9 of its batch" in finding.message
    assert "2 of the 32 samples in that batch stand out." in finding.message
    assert "loss" not in finding.message


def test_a_negative_loss_counts_by_its_size_and_one_that_is_not_finite_always(tmp_path):
    (finding,) = outlier_sample.check(run_with(tmp_path / "negative", -raised(1e6, 5)))
    assert "sample 105" in finding.message
    losses = NOISE.copy()
    losses[7] = NAN
    (finding,) = outlier_sample.check(run_with(tmp_path / "nan", losses))
    assert "sample 107 of the data stands out by itself: loss not finite (others: " in finding.message
    assert finding.value is None


@pytest.mark.parametrize(
    "losses",
    [
        NOISE,
        raised(20, 5),
        np.exp(np.random.default_rng(2).normal(0, 4, 32)),  # a model that has learned most, not all
        np.zeros(32),
        np.full(32, NAN),
        [1.0, 1.0, 1e9],
    ],
)
def test_ordinary_samples_are_silent(tmp_path, losses):
    assert list(outlier_sample.check(run_with(tmp_path, losses, losses))) == []


def test_a_look_that_was_not_finished_is_silent(tmp_path):
    run = run_with(tmp_path, raised(1e6, 5), ending=Ending("interrupted", 32))
    assert list(outlier_sample.check(run)) == []


@pytest.mark.parametrize("offender", [None, Offender(45, None, None, "loss")])
def test_an_explosion_without_a_layer_that_stands_out_is_told_with_its_sample(tmp_path, offender):
    window = [1.0] * 40 + [1e9] * 10
    run = run_with(
        tmp_path, raised(1e6, 5), window=window, loss=[1.0] * 40 + [1e9] * 5 + [INF] * 5, first_nonfinite=offender
    )
    answer = layer(build_report(run))
    assert answer.answer == "None stands out, but a sample does"
    assert "sample 105 of the data" in answer.details[0]


def test_a_sample_that_makes_something_nonfinite_is_told_before_one_that_stands_out(tmp_path):
    losses = raised(1.0, 5)
    losses[9] = NAN
    run = run_with(tmp_path, raised(1e6, 5), window=[1.0] * 40 + [1e9] * 10, loss=[1.0] * 40 + [1e9] * 5 + [INF] * 5)
    (broken,) = run_with(tmp_path / "broken", losses).trials.values()
    later = Trial("samples", "samples-45", indexes=(45,), samples=tuple(range(200, 232)))
    broken = dataclasses.replace(broken, header=dataclasses.replace(broken.header, trial=later))
    both = dataclasses.replace(run, trials={**run.trials, "samples-45": broken})
    assert [finding.first_step for finding in outlier_sample.check(both)] == [41, 45]
    assert "sample 209 of the data" in layer(build_report(both)).details[0]


def test_the_largest_spikes_of_window_and_rehearsal_are_looked_at(tmp_path):
    calm = np.ones(50)
    assert next_looks(make_run(tmp_path / "calm", calm)) == ()
    window, norms = calm.copy(), np.ones(100)
    window[[20, 30]], norms[60] = [5, 8], 20
    indexes = (30, 110)
    held = rehearsal(indexes=tuple(range(50, 150))), [1.0] * 100, norms, Ending("finished", 100)
    run = make_run(tmp_path / "both", window, plan=Plan(150), trials={"x1": held})
    looks = next_looks(run)
    assert [look.indexes for look in looks] == [(one,) for one in indexes]
    assert [look.start for look in looks] == ["window", "window"]
    assert next_looks(run, 1.0) == looks[:1]
    norms[60] = 9
    smaller = make_run(tmp_path / "smaller", window, plan=Plan(150), trials={"x1": held})
    assert [look.indexes for look in next_looks(smaller)] == [(30,)]


def test_what_was_looked_at_is_not_asked_for_again(tmp_path):
    window = np.ones(50)
    window[41] = 9
    run = run_with(tmp_path, window=window)
    assert next_looks(run) == ()


def test_an_explosion_is_looked_at_with_the_model_it_began_with(tmp_path):
    (look,) = next_looks(make_run(tmp_path, [1.0] * 30 + [NAN], loss=[1.0] * 30 + [INF]))
    assert (look.indexes, look.start) == ((30,), "initial")


def test_a_rehearsal_that_fails_is_looked_at_where_it_begins_to(tmp_path):
    norms, losses = np.full(60, 1.0), np.full(60, 1.0)
    norms[30:], losses[40:] = np.logspace(2, 6, 30), np.logspace(1, 5, 20)
    norms[-1] = losses[-1] = INF
    failed = rehearsal(indexes=tuple(range(50, 150))), losses, norms, Ending("nonfinite", 59)
    run = make_run(tmp_path, np.ones(50), plan=Plan(150), trials={"x1": failed})
    looks = next_looks(run)
    assert [look.indexes for look in looks] == [(80,), (109,)]
    assert {look.start for look in looks} == {"window"}


def test_a_sample_that_comes_again_is_told_once(tmp_path):
    looks = {
        str(step): (
            Trial("samples", f"samples-{step}", indexes=(step,), samples=tuple(range(100 - k, 132 - k))),
            raised(1e6, 5 + k),
            NOISE,
            Ending("finished", 32),
        )
        for k, step in enumerate((41, 60))
    }
    (finding,) = outlier_sample.check(make_run(tmp_path, [1.0] * 50, trials=looks))
    assert "Step 41: sample 105" in finding.message


def test_a_batch_whose_every_sample_is_broken_is_told_where_another_is_not(tmp_path):
    norms, losses = np.ones(60), np.r_[np.ones(59), NAN]
    failed = rehearsal(indexes=tuple(range(50, 150))), losses, norms, Ending("nonfinite", 59)

    def look(step, values):
        trial = Trial("samples", f"samples-{step}", indexes=(step,), samples=tuple(range(8 * step, 8 * step + 8)))
        return {f"samples-{step}": (trial, values, values, Ending("finished", 8))}

    def run_of(name, **looks):
        return make_run(tmp_path / name, np.ones(50), plan=Plan(150), trials={"x1": failed} | looks)

    broken = look(109, np.full(8, NAN))
    run = run_of("one", **broken)
    assert [one.indexes for one in next_looks(run)] == [(0,)]
    assert not list(outlier_sample.check(run))
    control = run_of("two", **broken, **look(0, np.ones(8)))
    assert next_looks(control) == ()
    (finding,) = outlier_sample.check(control)
    assert "Step 109, rehearsed: each of the 8 samples of its batch (samples 872 to 879 of the data)" in finding.message
    assert layer(build_report(control)).answer == "None stands out, but a batch does"
    assert not list(outlier_sample.check(run_of("both", **broken, **look(0, np.full(8, NAN)))))
