import dataclasses

import numpy as np
import pytest

from gradscope.diagnosis.rehearsals import stretch
from gradscope.diagnosis.verdict import judge
from gradscope.recommendation.candidates import candidates
from gradscope.recommendation.plan import FINAL, FIRST, next_candidates
from gradscope.recommendation.recommend import recommend
from gradscope.runs.schema import Plan, Trial
from tests.builders import make_run

INF = float("inf")
PLAN = Plan(total_steps=1600)


def outcome(trial, best=0.05):
    """A pretended training whose loss is least where it is clipped at `best`, and whose norms are all 1."""
    length = len(trial.indexes)
    limit = 30.0 if trial.max_norm is None else trial.max_norm / stretch(trial)
    return np.full(length, 0.1 + abs(np.log10(limit / best))), np.linspace(0.5, 1.0, length)


def play(tmp_path, *, respond=outcome, allowed=INF, plan=PLAN, norms=(1.0,) * 50, spends=False, **header):
    """Ask, play and ask again as `analyze` does; every stage with its trials, and the run at the end."""
    trials, stages = {}, []
    for _ in range(40):
        run = make_run(tmp_path, norms, trials=trials, plan=plan, **header)
        new = [trial for trial in next_candidates(run, allowed) if trial.name not in run.trials]
        if not new:
            return stages, run
        stages.append(new)
        if spends:
            allowed -= sum(len(trial.indexes) for trial in new)
        trials |= {trial.name: (trial, *respond(trial)) for trial in new}
    raise AssertionError("it never has enough")


def _large(trial):
    """Norms that every candidate reaches, though the clipped window's are 1."""
    return np.full(len(trial.indexes), 1.0 if trial.kind == "window" else 1e6)


def test_the_stages(tmp_path):
    stages, run = play(tmp_path)
    (window,), (none,), first, (plain,), final, again = stages
    assert (window.kind, window.max_norm, window.start) == ("window", 0.1, "initial")
    assert window.indexes == tuple(range(50))
    assert (none.kind, none.max_norm, len(none.indexes)) == ("candidate", None, FIRST)
    assert none.indexes[0] == 0
    assert none.indexes[-1] == 1599
    assert [trial.name for trial in first] == ["clip-0.1", "clip-0.01", "clip-0.001"]
    middle = 0.5 * 10**0.25
    assert first[0].max_norm == pytest.approx(0.1 * middle * 4)
    assert [trial.name for trial in final] == ["final-best", "final-side-1", "final-side-2"]
    assert (plain.name, plain.max_norm) == ("final-none", None)
    assert {len(trial.indexes) for trial in [plain, *final, *again]} == {FINAL}
    assert final[1].max_norm / final[0].max_norm == pytest.approx(np.sqrt(10))
    assert final[2].max_norm / final[0].max_norm == pytest.approx(np.sqrt(0.1))
    assert [(trial.name, trial.max_norm) for trial in again] == [
        ("final-again-1", pytest.approx(0.99 * final[0].max_norm))
    ]
    (chosen,) = [one for one in candidates(run) if one.chosen]
    assert (chosen.trial, chosen.max_norm) == ("final-best", pytest.approx(0.1 * middle))


def test_the_clipped_window_is_as_long_after_a_window_that_broke_off(tmp_path):
    (window,) = next_candidates(make_run(tmp_path, [1.0, 50.0, INF], plan=PLAN))
    assert (len(window.indexes), window.max_norm) == (50, 0.1)
    (short,) = next_candidates(make_run(tmp_path, [1.0, 50.0, INF], plan=Plan(total_steps=30)))
    assert len(short.indexes) == 30


def test_thresholds_that_an_unclipped_trial_never_reached_are_not_tried(tmp_path):
    stages, _ = play(tmp_path, respond=lambda trial: (outcome(trial)[0], _large(trial)))
    assert len(stages[2]) == 5


def test_an_unclipped_trial_that_diverged_excludes_nothing(tmp_path):
    def respond(trial):
        loss, norms = outcome(trial)
        return (np.array([1.0, INF]), np.ones(2)) if trial.max_norm is None else (loss, norms)

    stages, run = play(tmp_path, respond=respond)
    assert len(stages[2]) == 5
    assert next(c for c in candidates(run) if c.max_norm is None).diverged


def test_the_best_without_clipping_is_tried_alone_before_its_neighbours(tmp_path):
    stages, run = play(tmp_path, respond=lambda trial: (np.full(len(trial.indexes), 0.5), np.ones(len(trial.indexes))))
    assert [trial.name for trial in stages[3]] != []
    assert candidates(run)[0].loss == 0.5


def test_no_clipping_goes_to_the_finals_when_it_is_best(tmp_path):
    def respond(trial):
        loss = 0.1 if trial.max_norm is None else 1.0
        return np.full(len(trial.indexes), loss), _large(trial)

    stages, run = play(tmp_path, respond=respond)
    assert [(trial.name, trial.max_norm) for trial in stages[3]] == [("final-best", None)]
    assert [trial.name for trial in stages[4]] == ["final-side-1"]
    assert len(stages) == 5
    assert next(c for c in candidates(run) if c.chosen).max_norm is None


def test_finals_are_as_long_as_the_first_of_them_while_the_time_runs_out(tmp_path):
    stages, run = play(tmp_path, allowed=50 + 4 * FIRST + 4 * 300 + 1, spends=True)
    plain, final = stages[3:5]
    assert [trial.name for trial in plain] == ["final-none"]
    assert [trial.name for trial in final] == ["final-best", "final-side-1", "final-side-2"]
    assert {len(trial.indexes) for trial in [*plain, *final]} == {300}
    assert next(c for c in candidates(run) if c.chosen).trial == "final-best"


def test_the_best_final_is_tried_where_there_is_no_time_for_all(tmp_path):
    run = play(tmp_path)[1]
    first = {name: one for name, one in run.trials.items() if not name.startswith("final") or name == "final-none"}
    left = dataclasses.replace(run, trials=first)
    assert [trial.name for trial in next_candidates(left, FINAL + 1)] == ["final-best"]
    assert next_candidates(left, FINAL - 1) == ()


@pytest.mark.parametrize(("reaches", "expected"), [(True, "clip-0.1"), (False, "final-none")])
def test_no_clipping_alone_tried_longer_decides_nothing(tmp_path, reaches, expected):
    """Unless no gradient of it reached the threshold that was best before, which then is no clipping."""
    run = play(tmp_path)[1]
    trials = {
        name: (
            one.header.trial,
            one.loss,
            one.global_norm if reaches or name != "final-none" else one.global_norm * 1e-9,
        )
        for name, one in run.trials.items()
        if not name.startswith("final") or name == "final-none"
    }
    (chosen,) = [one for one in candidates(make_run(tmp_path, [1.0] * 50, trials=trials, plan=PLAN)) if one.chosen]
    assert chosen.trial == expected


def test_the_threshold_in_use_is_tried(tmp_path):
    stages, _ = play(tmp_path, plan=dataclasses.replace(PLAN, max_norm=0.2))
    assert stages[2][-1].name == "clip-in-use"
    assert stages[2][-1].note == "the threshold in use today"
    stages, _ = play(tmp_path, plan=dataclasses.replace(PLAN, max_norm=0.0))
    assert "clip-in-use" not in [trial.name for trial in stages[2]]


def test_a_short_plan_is_tried_in_full_and_nothing_twice(tmp_path):
    stages, _ = play(tmp_path, plan=Plan(total_steps=60))
    tried = [(trial.max_norm, trial.indexes) for stage in stages[1:] for trial in stage]
    assert len(tried) == len(set(tried))
    assert {indexes for _, indexes in tried} == {tuple(range(60))}


def test_when_every_threshold_diverges_it_stops(tmp_path):
    def respond(trial):
        return (np.ones(50), np.ones(50)) if trial.kind == "window" else (np.array([1.0, INF]), np.ones(2))

    stages, run = play(tmp_path, respond=respond)
    assert len(stages) == 3
    assert not any(c.chosen for c in candidates(run))


def test_short_time_shortens_the_second_stage_then_the_first(tmp_path):
    stages, _ = play(tmp_path, allowed=600)
    assert {len(trial.indexes) for stage in stages[3:5] for trial in stage} == {150}
    stages, _ = play(tmp_path, allowed=200)
    assert {len(trial.indexes) for trial in stages[2]} == {25}
    assert {len(trial.indexes) for stage in stages[3:5] for trial in stage} == {50}
    stages, _ = play(tmp_path, allowed=70)
    assert len(stages) == 3
    assert play(tmp_path, allowed=19)[0] == []


def test_nothing_to_try_without_norms(tmp_path):
    assert next_candidates(make_run(tmp_path, [float("nan")])) == ()
    few = play(tmp_path, respond=lambda trial: (np.ones(4), np.ones(4)))[0]
    assert [trial.name for stage in few for trial in stage] == ["clipped-window"]


def test_a_plan_of_a_few_hundred_steps_is_tried_in_full(tmp_path):
    stages, _ = play(tmp_path, plan=Plan(total_steps=300))
    assert {trial.indexes for stage in stages[1:] for trial in stage} == {tuple(range(300))}
    assert [[trial.name for trial in stage] for stage in stages[3:]] == [
        ["final-side-1", "final-side-2"],
        ["final-again-1"],
    ]
    short = play(tmp_path, plan=Plan(total_steps=300), allowed=8 * 300 - 1)[0]
    assert {len(trial.indexes) for trial in stages[1]} == {300}
    assert {len(trial.indexes) for trial in short[1]} == {299}


def test_the_winner_is_followed_while_a_side_of_it_is_untried(tmp_path):
    """The grid, on fewer steps, took the largest threshold for the best; in the finals the smallest is."""

    def respond(trial):
        losses, norms = outcome(trial, best=10.0 if len(trial.indexes) == FIRST else 1e-3)
        return losses, norms * 1e6 if trial.kind == "candidate" else norms

    stages, run = play(tmp_path, respond=respond)
    walked = [trial for stage in stages for trial in stage if trial.name.startswith("final-walk")]
    limits = [trial.max_norm for trial in walked]
    assert [trial.name for trial in walked] == ["final-walk-1", "final-walk-2", "final-walk-3"]
    assert limits == sorted(limits, reverse=True)
    assert next(c for c in candidates(run) if c.chosen).max_norm == pytest.approx(
        walked[-1].max_norm / stretch(walked[-1])
    )


def test_chaos_at_the_winner_shows_when_it_is_tried_again(tmp_path):
    def respond(trial):
        losses, norms = outcome(trial)
        return (losses + 5.0 if trial.name == "final-again-1" else losses), norms

    stages, run = play(tmp_path, respond=respond)
    again = [trial.name for stage in stages for trial in stage if trial.name.startswith("final-again")]
    assert again == ["final-again-1", "final-again-2"]
    (chosen,) = [one for one in candidates(run) if one.chosen]
    assert chosen.trial in ("final-side-1", "final-side-2")
    first, second = (run.trials[name].header.trial.max_norm for name in again)
    assert second not in (first, 0.99 * first)


def failing_in_full(tmp_path, trials, **more):
    """A run whose rehearsal of the whole rest of the plan becomes nonfinite."""
    rest = tuple(range(50, 1600))
    failed = (
        Trial("rehearsal", "x1", indexes=rest),
        np.array([1.0] * 600 + [np.nan]),
        np.array([1.0] * 600 + [np.nan]),
    )
    return make_run(tmp_path, [1.0] * 50, trials={"x1": failed} | trials, plan=PLAN, **more)


def tried(name, limit, length, loss, norms):
    indexes = tuple(int(i) for i in np.linspace(0, 1599, length))
    plain = Trial("candidate", name, start="initial", indexes=indexes, note=name)
    clip = None if limit is None else limit * stretch(plain)
    losses = np.broadcast_to(loss, length)
    return {name: (dataclasses.replace(plain, max_norm=clip), losses, np.full(length, norms))}


def test_no_clipping_is_not_chosen_where_the_plan_fails_in_full_without(tmp_path):
    both = tried("clip-none", None, 400, 0.5, 9.0) | tried("final-best", 1.0, 400, 0.5, 9.0)
    run = failing_in_full(tmp_path, both)
    answer = recommend(run)
    assert answer.max_norm == pytest.approx(1.0)
    assert "(without clipping the plan fails in full)" in answer.reason
    unfailing = make_run(tmp_path, [1.0] * 50, trials=both, plan=PLAN)
    assert recommend(unfailing).max_norm is None


def test_where_no_trial_clipped_the_percentile_is_the_answer(tmp_path):
    trials = tried("clip-none", None, 400, 0.5, 9.0) | tried("final-best", 100.0, 400, 0.5, 9.0)
    answer = recommend(failing_in_full(tmp_path, trials))
    assert (answer.max_norm, answer.verified) == (1.0, False)
    assert "no threshold that was tried clipped on its trial" in answer.reason


def test_the_best_thresholds_are_tried_on_the_whole_plan_until_one_holds(tmp_path):
    def respond(trial):
        length = len(trial.indexes)
        limit = np.inf if trial.max_norm is None else trial.max_norm / stretch(trial)
        if length == 1600:
            return np.full(length, 0.3 if limit < 0.2 else np.nan), np.full(length, 9.0 if limit < 0.2 else np.nan)
        return np.full(length, 0.1 + 0.01 * abs(np.log10(min(limit, 1e3)))), np.full(
            length, 1.0 if trial.kind == "window" else 9.0
        )

    trials, seen = {}, []
    for _ in range(20):
        run = failing_in_full(tmp_path, trials)
        new = [trial for trial in next_candidates(run) if trial.name not in run.trials]
        if not new:
            break
        seen += [trial for trial in new if len(trial.indexes) == 1600]
        trials |= {trial.name: (trial, *respond(trial)) for trial in new}
    assert [trial.name for trial in seen] == [f"whole-{i}" for i in range(1, len(seen) + 1)]
    assert all(trial.max_norm >= 0.2 for trial in seen[:-1])
    assert seen[-1].max_norm < 0.2 or len(seen) == 4
    chosen = [one for one in candidates(run) if one.chosen]
    assert seen[-1].max_norm >= 0.2 or chosen[0].trial == seen[-1].name


def test_a_network_that_died_under_the_first_clip_says_nothing_of_thresholds(tmp_path):
    window = next_candidates(make_run(tmp_path, [1.0] * 50, plan=PLAN))[0]
    dead = np.r_[1.0, np.full(49, 1e-30)]
    run = make_run(tmp_path, [1.0] * 50, plan=PLAN, trials={window.name: (window, np.ones(50), dead)})
    assert next_candidates(run) == ()
    assert recommend(run).max_norm == 1.0


def test_the_threshold_in_use_is_tried_on_the_whole_plan_first(tmp_path):
    plan = Plan(total_steps=1600, max_norm=0.7)
    trials = tried("clip-none", None, 400, 0.5, 9.0) | tried("final-best", 1.0, 400, 0.4, 9.0)
    rest = tuple(range(50, 1600))
    failed = (
        Trial("rehearsal", "x1", indexes=rest),
        np.array([1.0] * 600 + [np.nan]),
        np.array([1.0] * 600 + [np.nan]),
    )

    def run_with(**more):
        return make_run(tmp_path, [1.0] * 50, trials={"x1": failed} | trials | more, plan=plan)

    assert judge(run_with()).verdict == "will-explode"
    whole = Trial("candidate", "whole-1", max_norm=0.7, start="initial", indexes=tuple(range(1600)))
    held = run_with(**{"whole-1": (whole, np.full(1600, 0.5), np.full(1600, 9.0))})
    verdict = judge(held)
    assert verdict.verdict == "stable"
    rate = "1 × the planned learning rate, clipped at 0.7 as today"
    assert (
        verdict.reasons[0] == f"the whole plan from its start at {rate}, 1,600 steps: held (loss 0.5, in the window 1)"
    )
    assert verdict.reasons[1].startswith("unclipped: rehearsal at 1 × the planned learning rate")
    lost = run_with(**{"whole-1": (whole, np.full(1600, 0.5), np.r_[np.ones(1599), np.inf])})
    assert judge(lost).verdict == "will-explode"


@pytest.mark.parametrize(("in_use", "whole"), [(5.0, [5.0, 0.1]), (0.1, [0.1]), (None, [0.1])])
def test_where_the_threshold_in_use_holds_the_best_shorter_one_is_tried_on_the_whole_plan_too(tmp_path, in_use, whole):
    def respond(trial):
        limit = np.inf if trial.max_norm is None else trial.max_norm / stretch(trial)
        loss = np.nan if limit > 1e3 else 0.1 + 0.1 * abs(np.log10(limit) + 1)
        return np.full(len(trial.indexes), loss), np.full(len(trial.indexes), 1.0 if trial.kind == "window" else 9.0)

    plan = Plan(total_steps=1600, max_norm=in_use)
    rest = Trial("rehearsal", "x1", indexes=tuple(range(50, 1600)))
    trials, seen = {"x1": (rest, np.array([1.0] * 600 + [np.nan]), np.array([1.0] * 600 + [np.nan]))}, []
    for _ in range(30):
        run = make_run(tmp_path, [1.0] * 50, trials=trials, plan=plan)
        new = [trial for trial in next_candidates(run) if trial.name not in run.trials]
        if not new:
            break
        seen += [trial.max_norm for trial in new if len(trial.indexes) == 1600]
        trials |= {trial.name: (trial, *respond(trial)) for trial in new}
    assert seen == pytest.approx(whole)
    assert recommend(run).max_norm == pytest.approx(0.1)


def test_the_runner_up_is_one_that_clipped(tmp_path):
    def respond(trial):
        limit = np.inf if trial.max_norm is None else trial.max_norm
        norms = np.full(len(trial.indexes), 1.0 if trial.kind == "window" else 3.0)
        return np.full(len(trial.indexes), 1.0 if limit > 3.0 else 1.1), norms

    trials = {}
    for _ in range(30):
        run = make_run(tmp_path, [1.0] * 50, trials=trials, plan=PLAN)
        new = [trial for trial in next_candidates(run) if trial.name not in run.trials]
        if not new:
            break
        trials |= {trial.name: (trial, *respond(trial)) for trial in new}
    runner_up = trials["final-runner-up"][0]
    assert runner_up.max_norm < 3.0


def in_orders(stages):
    return [trial for stage in stages for trial in stage if trial.shuffled]


def breaks(fragile):
    """A pretended training that breaks where its batches come in another order and `fragile(threshold)` says so."""

    def respond(trial):
        limit = INF if trial.max_norm is None else trial.max_norm / stretch(trial)
        if trial.shuffled and fragile(limit):
            return np.array([1.0, INF]), np.ones(2)
        return outcome(trial)

    return respond


def test_the_winner_is_tried_in_other_orders_of_the_batches(tmp_path):
    stages, run = play(tmp_path, shuffled=True)
    orders = in_orders(stages)
    assert [trial.shuffled for trial in orders] == [1, 2, 3]
    assert {trial.max_norm for trial in orders} == {stages[4][0].max_norm}
    assert {trial.indexes for trial in orders} == {stages[4][0].indexes}
    said = recommend(run)
    assert next(c for c in candidates(run) if c.chosen).trial == "final-best"
    assert "and held in 3 other orders of the batches too." in said.reason


def test_where_the_order_means_something_it_is_kept(tmp_path):
    assert not in_orders(play(tmp_path)[0])


def test_what_breaks_in_another_order_is_not_chosen(tmp_path):
    first = next(c for c in candidates(play(tmp_path)[1]) if c.chosen).max_norm
    stages, run = play(tmp_path, respond=breaks(lambda limit: 0.9 < limit / first < 1.1), shuffled=True)
    chosen = next(c for c in candidates(run) if c.chosen)
    assert chosen.max_norm is not None
    assert not 0.9 < chosen.max_norm / first < 1.1
    assert [trial.max_norm == stages[4][0].max_norm for trial in in_orders(stages)] == [True, False, False, False]


def test_without_clipping_it_is_tried_in_other_orders_too_where_anything_diverged(tmp_path):
    stages, run = play(tmp_path, respond=breaks(lambda limit: limit < INF), shuffled=True)
    tried = [trial.max_norm for trial in in_orders(stages)]
    assert tried[-3:] == [None] * 3
    assert None not in tried[:-3]
    assert recommend(run).max_norm is None
    assert judge(run).verdict == "unknown"


def test_where_every_threshold_breaks_in_some_order_none_is_chosen(tmp_path):
    stages, run = play(tmp_path, respond=breaks(lambda limit: True), shuffled=True)
    said = recommend(run)
    assert said.max_norm is None
    assert not said.verified
    assert "each diverged, in one order of the batches or another" in said.reason
    assert len(in_orders(stages)) <= 10


def test_a_threshold_that_was_never_tried_in_another_order_does_not_win_by_that(tmp_path):
    """Each breaks in the last of its three orders, so that thresholds are left when orders are not."""

    def respond(trial):
        broken = trial.shuffled and trial.max_norm is not None and trial.shuffled % 3 == 0
        return (np.array([1.0, INF]), np.ones(2)) if broken else outcome(trial, best=1e-9)

    stages, run = play(tmp_path, respond=respond, shuffled=True)
    clipped = [trial for trial in in_orders(stages) if trial.max_norm is not None]
    assert len(clipped) == 9
    assert recommend(run).max_norm is None
    untried = {c.max_norm for c in candidates(run) if c.steps == FINAL} - {
        c.max_norm for c in candidates(run) if c.shuffled
    }
    assert untried


def test_no_clipping_that_broke_in_another_order_is_told(tmp_path):
    def respond(trial):
        limit = INF if trial.max_norm is None else trial.max_norm / stretch(trial)
        broken = 2 < limit < INF or (trial.shuffled and limit == INF)
        losses, norms = outcome(trial, best=30.0)
        norms = norms if trial.kind == "window" else 1e3 * norms
        return (np.array([1.0, INF]), np.ones(2)) if broken else (losses, norms)

    run = play(tmp_path, respond=respond, shuffled=True)[1]
    said = recommend(run)
    assert said.max_norm is not None
    assert "(without clipping it diverged in another order of the batches)" in said.reason


@pytest.mark.parametrize(
    ("losses", "blown"),
    [
        ([1.0] * 200 + [1e17, 0.5] * 20 + [0.5] * 160, True),
        ([1.0] * 200 + [1e17, 0.5] * 2 + [0.5] * 196, False),
        ([1.0, 1e17] + [1.0] * 18 + ([1e17] + [1.0] * 19) * 19, False),
        ([1.0] * 200 + [900.0] * 40 + [0.5] * 160, False),
    ],
    ids=["it came back", "two batches", "a sample that comes every epoch", "not so far"],
)
def test_a_trial_that_blew_up_on_the_way_diverged(tmp_path, losses, blown):
    run = make_run(tmp_path, [1.0] * 50, trials=tried("final-best", 0.1, 400, losses, 1.0), plan=PLAN)
    assert [c.diverged for c in candidates(run)] == [blown]
