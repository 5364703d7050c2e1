import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscope.errors import NothingMeasuredError, UsageError
from gradscope.recommendation import recommend
from gradscope.recommendation.recommend import _ordinal
from gradscope.runs.schema import Plan, Trial
from tests.builders import make_run

NAN, INF = float("nan"), float("inf")
NORMS = np.linspace(1.0, 2.0, 101)


def caveats(run, **asked):
    return " ".join(recommend(run, **asked).caveats)


def test_the_95th_percentile_is_the_default(tmp_path):
    found = recommend(make_run(tmp_path, NORMS))
    assert found.max_norm == pytest.approx(1.95)
    assert (found.percentile, found.by, found.mode, found.verified) == (95, "norm", "safety net", False)
    assert (found.steps_used, found.excluded, found.caveats) == (101, {}, ())
    assert found.basis == "101 pre-clip gradient norms of the recorded window"
    assert found.reason.startswith("The 95th percentile of 101 pre-clip gradient norms")
    assert found.clipped_fraction == pytest.approx(5 / 101)


def test_the_first_of_several_percentiles_is_the_answer(tmp_path):
    found = recommend(make_run(tmp_path, NORMS), (50, 99))
    assert found.max_norm == pytest.approx(1.5)
    assert [one.percentile for one in found.thresholds] == [50, 99]


def test_steps_left_out_are_counted_by_reason(tmp_path):
    norms = [INF, 1.0, 0.0, NAN, *[1.0] * 30]
    skipped = [True] + [False] * 33
    run = make_run(tmp_path, norms, columns={"skipped": skipped, "nonfinite": [3] + [0] * 33})
    found = recommend(run)
    assert found.excluded == {"skipped": 1, "no norm recorded": 1, "zero gradient": 1}
    assert found.steps_used == 31


def test_nonfinite_norms_never_reach_the_percentile(tmp_path):
    found = recommend(make_run(tmp_path, [1.0, 2.0, 3.0, INF, NAN]))
    assert found.max_norm == pytest.approx(2.9)
    assert found.excluded == {"nonfinite norm": 2}
    assert "The recorded window explodes" in " ".join(found.caveats)


def test_steps_of_the_explosion_are_left_out(tmp_path):
    run = make_run(tmp_path, [1.0] * 30 + [1000.0] * 20)
    found = recommend(run)
    assert found.max_norm == 1
    assert found.excluded == {"after the explosion began": 20}
    assert "rests on 30 steps" in " ".join(found.caveats)


def test_calm_steps_without_a_usable_norm_are_no_basis(tmp_path):
    found = recommend(make_run(tmp_path, [0.0, 1.0, NAN]))
    assert (found.max_norm, found.steps_used) == (1.0, 1)


def test_an_explosion_from_the_first_step_leaves_what_there_is(tmp_path):
    norms = [100.0] + [5.0] * 19
    found = recommend(make_run(tmp_path, norms, loss=[NAN] + [1.0] * 19))
    assert found.steps_used == 20
    assert "explodes" in " ".join(found.caveats)


def window(max_norm=0.1, name="clipped"):
    return Trial("window", name, max_norm=max_norm)


def test_a_contaminated_window_is_answered_from_the_clipped_one(tmp_path):
    trials = {"clipped": (window(), np.ones(40), np.linspace(0.5, 1.5, 40))}
    found = recommend(make_run(tmp_path, [1.0] * 10 + [INF] * 10, trials=trials), per_layer=True)
    assert found.max_norm == pytest.approx(np.percentile(np.linspace(0.5, 1.5, 40), 95))
    assert found.basis.startswith("40 pre-clip gradient norms of a trial clipped conservatively at 0.1")
    assert found.caveats == ()
    assert len(found.layers) == 3


def test_a_clipped_window_of_unknown_limit_and_one_without_norms(tmp_path):
    trials = {
        "a": (window(name="a"), [NAN], [NAN]),
        "b": (window(None, name="b"), np.ones(40), np.ones(40)),
        "c": (Trial("rehearsal", "c"), np.ones(40), np.ones(40)),
    }
    found = recommend(make_run(tmp_path, [1.0, INF], trials=trials))
    assert "clipped conservatively, since" in found.basis
    assert "since the recorded window explodes, is " in found.reason


def test_a_clean_window_is_used_although_a_clipped_one_is_there(tmp_path):
    trials = {"clipped": (window(), np.ones(40), np.ones(40))}
    assert recommend(make_run(tmp_path, NORMS, trials=trials)).steps_used == 101


def candidate(name, max_norm, loss, norms=None, note="", **more):
    norms = np.ones(len(loss)) if norms is None else norms
    return {name: (Trial("candidate", name, max_norm=max_norm, note=note, **more), loss, norms)}


def test_the_candidate_with_the_lowest_loss_wins(tmp_path):
    trials = candidate("a", 0.5, np.full(60, 0.9)) | candidate("b", 1.2, np.full(60, 0.4), note="halfway")
    trials |= candidate("c", 9.0, [1.0, NAN]) | candidate("d", 5.0, [1.0] * 30 + [11.0] * 30)
    found = recommend(make_run(tmp_path, NORMS, trials=trials))
    assert (found.max_norm, found.verified, found.mode) == (1.2, True, "safety net")
    assert found.thresholds[0].max_norm == pytest.approx(1.95)
    assert [(c.origin, c.loss, c.diverged, c.chosen) for c in found.candidates] == [
        ("halfway", 0.4, False, True),
        ("a", 0.9, False, False),
        ("d", 11.0, True, False),
        ("c", None, True, False),
    ]
    assert found.candidates[1].clipped_fraction == 1
    assert found.candidates[1].mean_retained_step == 0.5
    assert "Of 4 thresholds tried, 1.2 ended at the lowest loss, 0.4 on its trial; it clipped 0 %" in found.reason
    assert "It is 0.615 × the 95th percentile, 1.95." in found.reason


def test_only_the_last_losses_of_a_candidate_count(tmp_path):
    trials = candidate("late", 1.0, [9.0] * 40 + [0.1] * 20) | candidate("early", 2.0, [0.01] * 40 + [0.5] * 20)
    assert recommend(make_run(tmp_path, NORMS, trials=trials)).max_norm == 1.0


def test_not_clipping_is_no_threshold_that_was_tried(tmp_path):
    trials = candidate("none", None, np.full(60, 0.1)) | candidate("a", 0.5, np.full(60, 0.1))
    found = recommend(make_run(tmp_path, NORMS, trials=trials), (95,))
    assert "Of 1 threshold tried, the best was not clipping, with loss 0.1." in found.reason


@pytest.mark.parametrize(("today", "limit"), [(None, 1.95), (0.5, 0.5), (7.0, 1.95)])
def test_trials_cut_short_by_the_budget_choose_nothing(tmp_path, today, limit):
    few = tuple(range(0, 1000, 50))
    trials = candidate("none", None, np.full(20, 0.5), indexes=few) | candidate(
        "a", 0.5, np.full(20, 0.1), np.full(20, 3.0), indexes=few
    )
    found = recommend(make_run(tmp_path, NORMS, trials=trials, plan=Plan(total_steps=1000, max_norm=today)))
    assert found.max_norm == pytest.approx(limit)
    assert not found.verified
    assert "Of 1 threshold tried over 20 steps none is proven: too few" in found.reason
    assert ("in use today held there: keep it" in found.reason) == (today == limit)
    assert not any(one.chosen for one in found.candidates)


def test_trials_cut_short_still_tell_what_holds_where_not_clipping_diverges(tmp_path):
    few = tuple(range(0, 1000, 50))
    trials = candidate("none", None, [1.0, INF], indexes=few) | candidate("a", 0.5, np.full(20, 0.1), indexes=few)
    found = recommend(make_run(tmp_path, NORMS, trials=trials))
    assert (found.max_norm, found.verified) == (0.5, True)


@pytest.mark.parametrize(("unclipped", "chosen"), [(0.5, None), (INF, 1.0)])
def test_a_threshold_between_two_that_diverged_is_chosen_only_where_nothing_else_holds(tmp_path, unclipped, chosen):
    trials = {}
    for name, limit, end in (("a", 0.1, INF), ("b", 1.0, 0.1), ("c", 10.0, INF), ("none", None, unclipped)):
        losses = [1.0, INF] if end == INF else np.full(60, end)
        trials |= candidate(name, limit, losses, np.full(len(losses), 30.0))
    assert recommend(make_run(tmp_path, NORMS, trials=trials)).max_norm == chosen


def test_the_longest_trials_decide(tmp_path):
    short, long = tuple(range(0, 400, 8)), tuple(range(0, 400, 4))
    trials = candidate("short", 0.5, np.full(50, 0.1), indexes=short)
    trials |= candidate("none", None, np.full(50, 3.0), indexes=short)
    trials |= candidate("long", 2.0, np.full(100, 0.4), np.full(100, 3.0), indexes=long) | candidate(
        "broke", 9.0, [INF], indexes=long
    )
    found = recommend(make_run(tmp_path, NORMS, trials=trials))
    assert found.max_norm == 2.0
    assert "over 100 trial steps that stand for 1,000 (without clipping 3 over 50)" in found.reason


def test_a_compressed_trial_stands_for_a_smaller_threshold(tmp_path):
    trials = candidate("a", 2.0, np.full(100, 0.4), indexes=tuple(range(3, 400, 4)), start="initial")
    assert recommend(make_run(tmp_path, NORMS, trials=trials)).max_norm == pytest.approx(1.0)


def test_not_clipping_can_win(tmp_path):
    trials = candidate("none", None, np.full(60, 0.104)) | candidate("a", 0.5, np.full(60, 0.1))
    found = recommend(make_run(tmp_path, NORMS, trials=trials))
    assert (found.max_norm, found.mode, found.verified) == (None, "off", True)
    assert (found.clipped_fraction, found.mean_retained_step) == (0, 1)
    assert "none ended at a clearly lower loss than not clipping: 0.104 on its trial" in found.reason
    closer = candidate("none", None, np.full(60, 0.106)) | candidate("a", 0.5, np.full(60, 0.1))
    assert recommend(make_run(tmp_path, NORMS, trials=closer)).max_norm == 0.5


def test_a_trial_without_clipping_that_diverged_is_told(tmp_path):
    trials = candidate("none", None, [1.0, INF]) | candidate("a", 0.5, np.full(60, 0.1))
    assert "(without clipping it diverged)" in recommend(make_run(tmp_path, NORMS, trials=trials)).reason
    rest = tuple(range(len(NORMS), 400))
    held = {"x1": (Trial("rehearsal", "x1", indexes=rest), np.full(len(rest), 0.3), np.ones(len(rest)))}
    plan = Plan(total_steps=400)
    said = recommend(
        make_run(tmp_path / "held", NORMS, loss=np.ones(len(NORMS)), trials=trials | held, plan=plan)
    ).reason
    assert "(without clipping it diverged; the plan in full held, at loss 0.3)" in said


def test_a_short_trial_without_clipping_is_told_beside_the_plan_in_full(tmp_path):
    rest = tuple(range(len(NORMS), 400))
    held = {"x1": (Trial("rehearsal", "x1", indexes=rest), np.full(len(rest), 0.3), np.ones(len(rest)))}
    short = tuple(range(0, 400, 4))
    trials = candidate("none", None, np.full(100, 0.9), indexes=short) | candidate(
        "a", 0.5, np.full(100, 0.1), indexes=short
    )
    run = make_run(tmp_path, NORMS, loss=np.ones(len(NORMS)), trials=trials | held, plan=Plan(total_steps=400))
    assert "(without clipping 0.9 over 100; the plan in full held, at loss 0.3)" in recommend(run).reason


def test_when_nothing_holds_it_says_so(tmp_path):
    trials = candidate("a", 0.5, [NAN] * 5) | candidate("b", 0.1, [1.0, INF])
    found = recommend(make_run(tmp_path, NORMS, trials=trials))
    assert (found.max_norm, found.mode, found.verified) == (None, "off", False)
    assert "Clipping alone does not help" in found.reason
    assert not any(c.chosen for c in found.candidates)


def test_a_winner_that_does_not_rescue_is_not_called_verified(tmp_path):
    trials = candidate("a", 0.5, [1.0] * 30 + [50.0] * 30) | candidate("b", 0.1, [1.0, INF])
    found = recommend(make_run(tmp_path, NORMS, trials=trials))
    assert (found.max_norm, found.verified) == (0.5, False)
    assert "does not rescue" in found.reason


def test_a_candidate_that_took_no_usable_step_clipped_none(tmp_path):
    (one,) = recommend(make_run(tmp_path, NORMS, trials=candidate("a", 0.5, [INF], [INF]))).candidates
    assert (one.clipped_fraction, one.mean_retained_step, one.loss) == (0, 1, None)


def test_the_largest_of_those_near_the_lowest_loss_says_so(tmp_path):
    trials = (
        candidate("a", 0.5, [0.400], [1.0]) | candidate("b", 1.5, [0.404], [2.0]) | candidate("c", None, [9.0], [9.0])
    )
    found = recommend(make_run(tmp_path, NORMS, trials=trials), proven=True)
    assert found.max_norm == 1.5
    assert "1.5 ended as the largest of those near the lowest loss (0.4), at 0.404 on its trial" in found.reason


def test_of_a_threshold_tried_again_the_worst_trial_counts(tmp_path):
    """So that a loss below all others, which its second trial did not reach, wins nothing, and the words say so."""
    trials = candidate("a", 0.5, [0.500], [1.0]) | candidate("a again", 0.501, [0.300], [1.0])
    trials |= candidate("b", 1.5, [0.400], [2.0]) | candidate("c", None, [9.0], [9.0])
    found = recommend(make_run(tmp_path, NORMS, trials=trials), proven=True)
    assert found.max_norm == 1.5
    assert "1.5 ended at the lowest loss, the worst trial of each counting, 0.4 on its trial" in found.reason


def test_empty_trials_and_other_kinds_are_no_candidates(tmp_path):
    trials = candidate("a", 0.5, []) | {"x1": (Trial("rehearsal", "x1"), np.ones(9), np.ones(9))}
    assert recommend(make_run(tmp_path, NORMS, trials=trials)).candidates == ()


def test_by_value_rests_on_the_largest_gradient(tmp_path):
    rows = np.linspace(1.0, 2.0, 101)[:, None] * [1.0, 3.0, NAN]
    run = make_run(tmp_path, grad_norm=rows, columns={"nonfinite": [0] * 101, "global_norm": NORMS})
    found = recommend(run, (100,), by="value", per_layer=True)
    assert found.max_norm == pytest.approx(3.0)
    assert "largest pre-clip gradient values" in found.basis
    assert [(one.layer, one.max_norm) for one in found.layers] == [("fc1", pytest.approx(1)), ("fc2", pytest.approx(3))]


def test_candidates_are_for_clipping_by_norm(tmp_path):
    run = make_run(tmp_path, NORMS, trials=candidate("a", 0.5, np.full(60, 0.9)))
    assert not recommend(run, by="value").verified


def test_per_layer(tmp_path):
    rows = NORMS[:, None] * [1.0, 10.0, 0.0]
    found = recommend(make_run(tmp_path, grad_norm=rows), per_layer=True)
    assert [one.layer for one in found.layers] == ["fc1", "fc2"]
    assert found.layers[1].max_norm == pytest.approx(19.5)
    assert found.layers[1].clipped_fraction == pytest.approx(5 / 101)


@pytest.mark.parametrize("by", ["norm", "value"])
def test_scaled_gradients_are_unscaled(tmp_path, by):
    run = make_run(tmp_path, 1024 * NORMS, gradients_are="scaled", columns={"loss_scale": [1024.0] * 101})
    plain = make_run(tmp_path, NORMS)
    scaled, expected = recommend(run, by=by, per_layer=True), recommend(plain, by=by, per_layer=True)
    assert scaled.max_norm == pytest.approx(expected.max_norm)
    assert scaled.layers[0].max_norm == pytest.approx(expected.layers[0].max_norm)


def test_scaled_gradients_of_unknown_scale_are_refused(tmp_path):
    with pytest.raises(NothingMeasuredError, match=r"unscale_\(optimizer\)"):
        recommend(make_run(tmp_path, NORMS, gradients_are="scaled"))


def test_post_clip_norms_carry_their_caveat(tmp_path):
    clipped = make_run(tmp_path, [1.0] * 30, measured_at="post_clip", columns={"max_norm": [1.0] * 30})
    assert "cannot exceed max_norm 1," in caveats(clipped)
    assert recommend(clipped).measured_at == "post_clip"
    assert "30 post-clip gradient norms" in recommend(clipped).basis
    unknown = make_run(tmp_path, [1.0] * 30, measured_at="post_clip")
    assert "cannot exceed max_norm, so" in caveats(unknown)


def test_what_torch_adds_to_a_small_norm_is_told(tmp_path):
    assert "adds 1e-06 to each" in caveats(make_run(tmp_path, NORMS * 1e-5))
    assert caveats(make_run(tmp_path, NORMS * 1e-3)) == ""


def test_other_caveats(tmp_path):
    said = caveats(make_run(tmp_path, [1.0] * 19, every=5, synthetic_data=True))
    assert "rests on 19 steps" in said
    assert "1 of 5 steps" in said
    assert "not your data" in said


@pytest.mark.parametrize(
    ("norms", "said"),
    [
        ([], "holds no steps; record at least 20 with: .*, or choose another run of: gradscope runs"),
        ([NAN, INF], "2 nonfinite norm"),
        ([0.0], "1 zero gradient"),
    ],
)
def test_nothing_measured(tmp_path, norms, said):
    with pytest.raises(NothingMeasuredError, match=said):
        recommend(make_run(tmp_path, norms))


def test_wrong_arguments(tmp_path):
    run = make_run(tmp_path, NORMS)
    with pytest.raises(UsageError, match="'agc'"):
        recommend(run, by="agc")
    with pytest.raises(UsageError, match="between 0 and 100"):
        recommend(run, (101,))
    with pytest.raises(UsageError, match="between 0 and 100"):
        recommend(make_run(tmp_path, []), (-1,))


@pytest.mark.parametrize(
    ("percentile", "said"),
    [
        (1, "1st"),
        (2, "2nd"),
        (3, "3rd"),
        (4, "4th"),
        (11, "11th"),
        (12, "12th"),
        (13, "13th"),
        (95, "95th"),
        (99.9, "99.9th"),
        (81, "81st"),
    ],
)
def test_ordinals(percentile, said):
    assert _ordinal(percentile) == said


@settings(max_examples=15, deadline=None)
@given(
    norms=st.lists(st.one_of(st.floats(1e-6, 1e6), st.sampled_from([NAN, INF, 0.0])), min_size=1, max_size=25),
    percentile=st.floats(0, 100),
)
def test_never_a_nan(tmp_path_factory, norms, percentile):
    run = make_run(tmp_path_factory.mktemp("n"), norms)
    if not any(np.isfinite(norms) & (np.array(norms) > 0)):
        with pytest.raises(NothingMeasuredError):
            recommend(run, (percentile,))
        return
    found = recommend(run, (percentile,))
    numbers = [found.max_norm, found.clipped_fraction, found.mean_retained_step]
    assert np.isfinite(numbers).all()
    assert found.max_norm > 0
    assert found.steps_used + sum(found.excluded.values()) == len(norms)


def test_a_percentile_that_was_itself_the_best_is_told_once(tmp_path):
    trials = candidate("percentile-95", 1.95, np.full(60, 0.4)) | candidate("small", 0.1, np.full(60, 0.9))
    found = recommend(make_run(tmp_path, NORMS, trials=trials), [95])
    assert found.verified
    assert found.reason.endswith("Tried as a threshold it ended at loss 0.4.")


@pytest.mark.parametrize(("loss", "max_norm"), [(0.5, 7.0), (0.505, 7.0), (0.6, None)])
def test_the_threshold_in_use_is_kept_where_it_did_no_harm(tmp_path, loss, max_norm):
    trials = candidate("none", None, np.full(60, 0.5)) | candidate("own", 7.0, np.full(60, loss), np.full(60, 8.0))
    found = recommend(make_run(tmp_path, NORMS, trials=trials, plan=Plan(total_steps=60, max_norm=7.0)))
    assert (found.max_norm, found.verified) == (max_norm, True)
    assert ("The 7 in use today did no worse" in found.reason) == (max_norm is not None)


def test_where_only_no_clipping_was_tried_and_diverged_the_percentile_stands(tmp_path):
    found = recommend(make_run(tmp_path, NORMS, trials=candidate("none", None, [1.0, NAN])))
    assert (found.max_norm, found.verified) == (pytest.approx(1.95), False)
    assert "no threshold was tried" in found.reason
    assert "does not help" not in found.reason


@pytest.mark.parametrize(("noise", "chosen"), [(0.01, 0.5), (1.0, None)])
def test_a_gain_within_the_noise_of_the_losses_is_none(tmp_path, noise, chosen):
    own = np.random.default_rng(0)
    trials = candidate("none", None, np.abs(1.0 + own.normal(0, noise, 400)))
    trials |= candidate("a", 0.5, np.abs(0.8 + own.normal(0, noise, 400)))
    assert recommend(make_run(tmp_path, NORMS, trials=trials)).max_norm == chosen


def test_noise_that_all_trials_share_hides_no_gain(tmp_path):
    shared = 1.0 + np.random.default_rng(0).normal(0, 1.0, 400)
    trials = candidate("none", None, 5.0 + shared) | candidate("a", 0.5, 4.5 + shared)
    assert recommend(make_run(tmp_path, NORMS, trials=trials)).max_norm == 0.5
