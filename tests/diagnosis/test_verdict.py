import dataclasses

import numpy as np
import pytest

from gradscope.diagnosis.rehearsals import rehearsed
from gradscope.diagnosis.verdict import EXPLODING, judge, out_of_nothing
from gradscope.runs.schema import Ending, Offender, Plan, Trial
from tests.builders import make_run

NAN, INF = float("nan"), float("inf")
HELD = (np.linspace(1.0, 0.5, 80), np.ones(80))
FAILED = (np.linspace(1.0, 100.0, 80), np.full(80, 200.0))
COMPRESSED = tuple(range(50, 1000, 12))


def rehearsal(name="x1", factor=1.0, indexes=COMPRESSED, **more):
    return Trial("rehearsal", name, lr_factor=factor, indexes=indexes, **more)


def run_with(tmp_path, *trials, scale=1.0, **header):
    """A flat window and trials of (Trial, (losses, norms))."""
    made = {t.name: (t, *(scale * values for values in _over(t, *pair))) for t, pair in trials}
    return make_run(tmp_path, [scale] * 50, loss=[scale] * 50, trials=made, **header)


def _over(trial, loss, norm):
    """Both stretched over all of a trial's steps, unless they end nonfinite or are as many already."""
    pair = np.asarray(loss, float), np.asarray(norm, float)
    if not np.isfinite(pair).all() or not 0 < len(loss) < len(trial.indexes):
        return pair
    places = np.linspace(0, len(loss) - 1, len(trial.indexes))
    return tuple(np.interp(places, np.arange(len(loss)), values) for values in pair)


def test_a_window_alone_cannot_foresee(tmp_path):
    verdict = judge(run_with(tmp_path))
    assert (verdict.verdict, verdict.explosion_score, verdict.lr_headroom) == ("unknown", None, None)
    assert "cannot foresee" in verdict.reasons[1]
    assert "50 recorded steps (norms read pre-clip)" in verdict.reasons[0]


def test_too_few_steps_are_unknown(tmp_path):
    verdict = judge(make_run(tmp_path, [1.0] * 5))
    assert verdict.verdict == "unknown"
    assert "too few steps" in verdict.reasons[0]


def test_an_exploding_window(tmp_path):
    verdict = judge(make_run(tmp_path, [1.0] * 30 + [NAN]))
    assert (verdict.verdict, verdict.explosion_score, verdict.first_step) == ("exploding", EXPLODING, 30)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_all_rehearsals_hold(tmp_path, scale):
    trials = [(rehearsal(f"x{f}", float(f)), HELD) for f in (1, 2, 4)]
    verdict = judge(run_with(tmp_path, *trials, scale=scale))
    assert (verdict.verdict, verdict.lr_headroom) == ("stable", None)
    assert verdict.explosion_score == 0
    assert "rehearsal at 2 × the planned learning rate, 80 steps: held" in verdict.reasons[1]


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_a_confirmed_failure_will_explode(tmp_path, scale):
    trials = [(rehearsal("x1"), FAILED), (rehearsal("x1-long", indexes=tuple(range(50, 1000, 3))), FAILED)]
    verdict = judge(run_with(tmp_path, *trials, scale=scale))
    assert (verdict.verdict, verdict.lr_headroom) == ("will-explode", 1.0)
    assert 48 < verdict.explosion_score < EXPLODING


def test_one_compressed_failure_is_not_sure(tmp_path):
    verdict = judge(run_with(tmp_path, (rehearsal(), FAILED), (rehearsal("x2", 2.0), HELD)))
    assert (verdict.verdict, verdict.lr_headroom) == ("thin-headroom", 2.0)
    assert "nothing confirms it" in verdict.reasons[-1]


def test_an_exact_failure_needs_no_confirmation(tmp_path):
    late = (np.r_[np.ones(60), np.full(20, 200.0)], np.full(80, 200.0))
    verdict = judge(run_with(tmp_path, (rehearsal(indexes=tuple(range(50, 130))), late), plan=Plan(total_steps=130)))
    assert verdict.verdict == "will-explode"


@pytest.mark.parametrize(
    "coming",
    [
        (np.r_[np.ones(5), NAN, np.ones(74)], np.ones(80)),
        (np.ones(80), np.r_[np.ones(5), INF, np.ones(74)]),
        (np.r_[np.ones(5), np.full(75, 50.0)], np.full(80, 8.0)),
    ],
)
def test_the_next_steps_uncompressed_belong_to_the_window(tmp_path, coming):
    exact = rehearsal(indexes=tuple(range(50, 130)))
    assert judge(run_with(tmp_path, (exact, coming))).verdict == "exploding"
    assert judge(run_with(tmp_path, (rehearsal(), coming))).verdict != "exploding"


def test_exact_and_short_and_calm_is_stable(tmp_path):
    exact = rehearsal(indexes=tuple(range(50, 60)))
    run = run_with(tmp_path, (exact, (np.ones(10), np.ones(10))), plan=Plan(total_steps=60))
    assert judge(run).verdict == "stable"


@pytest.mark.parametrize(("factor", "headroom"), [(2.0, 2.0), (4.0, 4.0)])
def test_a_failure_at_a_multiple_is_thin_headroom(tmp_path, factor, headroom):
    verdict = judge(run_with(tmp_path, (rehearsal(), HELD), (rehearsal("more", factor), FAILED)))
    assert (verdict.verdict, verdict.lr_headroom) == ("thin-headroom", headroom)


def test_a_rehearsal_that_failed_says_by_how_much_loss_and_norm_rose(tmp_path):
    verdict = judge(run_with(tmp_path, (rehearsal(), HELD), (rehearsal("more", 2.0), FAILED)))
    assert "held (loss 0.522, in the window 1)" in verdict.reasons[0]
    assert "; largest norm 200 at step 50 of the plan; in the window 1)" in verdict.reasons[1]


def test_a_failed_replay_is_thin_headroom(tmp_path):
    verdict = judge(run_with(tmp_path, (rehearsal(), HELD), (Trial("replay", "replay"), FAILED)))
    assert (verdict.verdict, verdict.lr_headroom) == ("thin-headroom", 2.0)
    assert "replay of the worst batch" in verdict.reasons[1]


def test_a_nonfinite_rehearsal_fails_whatever_it_was_before(tmp_path):
    run = run_with(tmp_path, (rehearsal(), HELD), (rehearsal("x2", 2.0), ([1.0, NAN], [1.0, 1.0])))
    verdict = judge(run)
    assert verdict.verdict == "thin-headroom"
    (two,) = [one for one in rehearsed(run) if one.lr_factor == 2]
    assert (two.loss_rise, two.norm_rise, two.nonfinite) == (12, 12, True)


TENFOLD, FLAT = (np.full(80, 10.0), np.ones(80)), (np.ones(80), np.ones(80))


def score(tmp_path, *trials):
    return judge(run_with(tmp_path, *trials)).explosion_score


def test_the_score_grows_with_the_rise(tmp_path):
    scores = [score(tmp_path, (rehearsal(), trial)) for trial in (FLAT, TENFOLD, FAILED)]
    assert scores == sorted(scores)
    assert len(set(scores)) == 3


def test_what_is_nearest_to_the_plan_counts_most(tmp_path):
    assert score(tmp_path, (rehearsal(), TENFOLD)) == pytest.approx(1)
    twice = [(rehearsal("x2", 2.0), FLAT), (rehearsal("x2-long", 2.0), TENFOLD)]
    assert score(tmp_path, (rehearsal(), FLAT), *twice) == pytest.approx(1)
    assert score(tmp_path, (rehearsal(), FLAT), (rehearsal("x4", 4.0), TENFOLD)) == pytest.approx(0.5)
    assert score(tmp_path, (rehearsal(), FLAT), (Trial("replay", "r"), TENFOLD)) == pytest.approx(0)


def test_a_window_of_zeros_is_no_measure(tmp_path):
    run = make_run(tmp_path, [0.0] * 50, loss=[0.0] * 50, trials={"x1": (rehearsal(), *HELD)})
    assert judge(run).verdict == "unknown"
    assert "to measure a rehearsal against" in judge(run).reasons[0]


def test_longer_rehearsals_replace_the_first(tmp_path):
    long = rehearsal("x1-long", indexes=tuple(range(50, 1000, 3)))
    second = rehearsal("x1-second", draw=1)
    assert score(tmp_path, (rehearsal(), TENFOLD), (long, FLAT)) == pytest.approx(0)
    assert score(tmp_path, (rehearsal(), TENFOLD), (long, FLAT), (second, FLAT)) == pytest.approx(0)
    assert score(tmp_path, (rehearsal(), FLAT), (long, TENFOLD), (second, FLAT)) == pytest.approx(0.5)


def test_the_full_rehearsal_decides_alone(tmp_path):
    full = rehearsal("x1-long", indexes=tuple(range(50, 1000)))
    held = (np.full(950, 1.0), np.ones(950))
    verdict = judge(run_with(tmp_path, (rehearsal(), FAILED), (full, held), (rehearsal("x2", 2.0), FAILED)))
    assert verdict.verdict == "thin-headroom"
    broke = judge(run_with(tmp_path, (rehearsal(), FLAT), (full, (np.r_[np.ones(900), NAN], np.ones(901)))))
    assert broke.verdict == "will-explode"


def test_a_failure_at_twice_the_rate_confirms_a_long_one(tmp_path):
    long = rehearsal("x1-long", indexes=tuple(range(50, 1000, 3)))
    trials = [(rehearsal(), FLAT), (long, FAILED), (rehearsal("x2", 2.0), FAILED)]
    assert judge(run_with(tmp_path, *trials)).verdict == "will-explode"
    trials[2] = (rehearsal("x2", 2.0), FLAT)
    assert judge(run_with(tmp_path, *trials)).verdict == "thin-headroom"


def test_a_short_and_a_double_failure_are_not_enough(tmp_path):
    verdict = judge(run_with(tmp_path, (rehearsal(), FAILED), (rehearsal("x2", 2.0), FAILED)))
    assert verdict.verdict == "thin-headroom"


def test_a_blow_up_in_the_window_is_forgiven_when_a_rehearsal_recovers(tmp_path):
    norms = np.r_[np.ones(20), 5000.0, np.ones(29)]
    run = {"loss": np.r_[np.ones(20), np.full(30, 2.0)], "trials": {"x1": (rehearsal(), *HELD)}}
    assert judge(make_run(tmp_path, norms, **run)).verdict != "exploding"
    run["trials"] = {"x1": (rehearsal(), np.full(80, 2.0), np.ones(80))}
    assert judge(make_run(tmp_path, norms, **run)).verdict == "exploding"
    run["trials"] = {"x1": (rehearsal(), np.r_[0.1, NAN], np.ones(2))}
    assert judge(make_run(tmp_path, norms, **run)).verdict == "exploding"


def test_unfinished_clipped_and_empty_trials_are_left_out(tmp_path):
    run = run_with(
        tmp_path,
        (rehearsal(), HELD),
        (rehearsal("clipped", max_norm=1.0), FAILED),
        (Trial("candidate", "c"), FAILED),
        (rehearsal("empty"), ((), ())),
    )
    assert [one.name for one in rehearsed(run)] == ["x1"]


@pytest.mark.parametrize(("how", "kept"), [("interrupted", 0), ("nonfinite", 1), ("finished", 1)])
def test_a_trial_must_have_come_to_its_end(tmp_path, how, kept):
    run = run_with(tmp_path, (rehearsal(), HELD))
    trial = run.trials["x1"]
    header = trial.header.__class__(**{**vars(trial.header), "ending": Ending(how)})
    ended = trial.__class__(**{**{k: getattr(trial, k) for k in trial.__dataclass_fields__}, "header": header})
    again = run.__class__(**{**{k: getattr(run, k) for k in run.__dataclass_fields__}, "trials": {"x1": ended}})
    assert len(rehearsed(again)) == kept


def test_what_the_rehearsals_cannot_know_is_said(tmp_path):
    far = rehearsal(indexes=tuple(range(50, 50 + 80 * 60, 60)))
    verdict = judge(run_with(tmp_path, (far, HELD), plan=Plan()))
    assert any("plan is not known" in reason for reason in verdict.reasons)
    assert any("compress the plan 59 ×" in reason for reason in verdict.reasons)


def test_a_window_without_losses_is_judged_by_its_norms(tmp_path):
    trial = {"x1": (rehearsal(), np.full(80, NAN), np.full(80, 2000.0))}
    run = make_run(tmp_path, [1.0] * 50, loss=[NAN] * 50, trials=trial)
    (one,) = rehearsed(run)
    assert (one.loss_rise, one.failed) == (0.0, True)
    assert one.norm_rise == pytest.approx(np.log10(2000))


def test_a_loss_of_zero_rose_by_the_least(tmp_path):
    (one,) = rehearsed(run_with(tmp_path, (rehearsal(), (np.zeros(80), np.zeros(80)))))
    assert (one.loss_rise, one.norm_rise) == (-3, -3)


def test_a_rehearsal_that_broke_off_says_nothing_unless_it_failed(tmp_path):
    ended = Ending("finished", 20, "the data ended")
    calm = make_run(
        tmp_path, [1.0] * 50, loss=[1.0] * 50, trials={"x1": (rehearsal(), np.ones(20), np.ones(20), ended)}
    )
    assert judge(calm).verdict == "unknown"
    assert judge(calm).reasons[1] == "its rehearsal took 20 of 80 steps: the data ended"
    high = rehearsal(), np.full(20, 100.0), np.full(20, 200.0), ended
    assert judge(make_run(tmp_path, [1.0] * 50, loss=[1.0] * 50, trials={"x1": high})).verdict == "thin-headroom"


def bump(end, norm):
    losses = np.full(100, 1.0)
    losses[:30], losses[80:] = 40.0, end
    return losses, np.full(100, norm)


@pytest.mark.parametrize(
    ("end", "norm", "word"),
    [(0.5, 7.0, "stable"), (40.0, 7.0, "exploding"), (40.0, 6.0, "stable")],
    ids=["passes", "stays", "with its targets"],
)
def test_a_bump_after_the_window_that_passes_in_full_is_no_explosion(tmp_path, end, norm, word):
    indexes = tuple(range(50, 150))
    run = run_with(tmp_path, (rehearsal(indexes=indexes), bump(end, norm)), plan=Plan(total_steps=150))
    assert judge(run).verdict == word


def test_where_a_rehearsal_fails_is_said_with_its_learning_rate(tmp_path):
    indexes = tuple(range(50, 150))
    plan = Plan(total_steps=150, lr_steps=(0, 99, 100), lr=((0.1,), (0.1,), (2.0,)))
    losses, norms = np.ones(60), np.ones(60)
    losses[-1] = norms[-1] = INF
    broken = judge(run_with(tmp_path / "nonfinite", (rehearsal(indexes=indexes), (losses, norms)), plan=plan))
    assert (
        "failed (nonfinite at step 109 of the plan, where the learning rate is 20 × that of the window)"
        in broken.reasons[0]
    )
    losses, norms = np.geomspace(1.0, 100.0, 100), np.full(100, 200.0)
    norms[20] = 1000.0
    grown = judge(run_with(tmp_path / "grown", (rehearsal(indexes=indexes), (losses, norms)), plan=plan))
    assert "; largest norm 1,000 at step 70 of the plan; in the window 1)" in grown.reasons[0]
    seen = Offender(109, "fc1", None, "operation", operations=("log",))
    losses, norms = np.ones(60), np.ones(60)
    losses[-1] = norms[-1] = INF
    started = run_with(tmp_path / "told", (rehearsal(indexes=indexes), (losses, norms)), plan=plan)
    (name, trial), *_ = started.trials.items()
    told = dataclasses.replace(trial, header=dataclasses.replace(trial.header, first_nonfinite=seen))
    said = judge(dataclasses.replace(started, trials={name: told})).reasons[0]
    assert "nonfinite at step" in said
    assert "; first what log computed after fc1)" in said


def ordered(number, pair, **more):
    indexes = tuple(range(0, 1000, 10))
    trial = Trial("candidate", f"final-shuffled-{number}", start="initial", indexes=indexes, shuffled=number, **more)
    return trial, pair


BROKE = (np.array([1.0, NAN]), np.array([1.0, NAN]))


def test_what_breaks_in_another_order_of_its_batches_explodes_by_chance(tmp_path):
    held = rehearsal(indexes=tuple(range(50, 1000))), HELD
    verdict = judge(run_with(tmp_path, held, ordered(1, HELD), ordered(2, BROKE)))
    assert (verdict.verdict, verdict.lr_headroom, verdict.by_chance) == ("thin-headroom", 1.0, True)
    assert verdict.reasons[0] == "of 2 trainings of the plan with its batches in other orders, 1 became nonfinite"
    assert verdict.chance == "the order of the batches"


@pytest.mark.parametrize("plan", [Plan(total_steps=1000), Plan(total_steps=1000, max_norm=1.0)])
def test_only_the_plan_as_it_is_counts_in_other_orders(tmp_path, plan):
    held, trial = (
        (rehearsal(indexes=tuple(range(50, 1000))), HELD),
        ordered(1, BROKE, max_norm=None if plan.max_norm else 1.0),
    )
    assert judge(run_with(tmp_path, held, trial, plan=plan)).verdict == "stable"


def test_norms_that_had_grown_a_millionfold_are_no_explosion_out_of_nothing(tmp_path):
    norms = [1.0] * 300 + [1.0, 1e20, 1.0, 1.0] * 50
    broke = (rehearsal(indexes=tuple(range(50, 1000))), (np.array([1.0] * 500 + [NAN]), np.array([*norms, NAN])))
    assert out_of_nothing(run_with(tmp_path, broke)) is None
    calm = (rehearsal(indexes=tuple(range(50, 1000))), (np.array([1.0] * 500 + [NAN]), np.array([1.0] * 500 + [NAN])))
    step, advice = out_of_nothing(run_with(tmp_path, calm))
    assert step == 550
    assert "had not grown" in advice
