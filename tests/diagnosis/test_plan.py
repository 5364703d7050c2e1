import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscope.diagnosis.plan import LEAST, between, creeps, even, next_rehearsals, with_worst
from gradscope.diagnosis.verdict import judge
from gradscope.runs.schema import Plan, Trial
from tests.builders import make_run

INF, NAN = float("inf"), float("nan")
LONG = Plan(total_steps=50_000)


def calm(trial):
    length = len(trial.indexes)
    return np.linspace(1.0, 0.5, length), np.ones(length)


def blown(trial):
    length = len(trial.indexes)
    return np.r_[np.ones(length // 2), np.full(length - length // 2, 100.0)], np.full(length, 500.0)


def play(tmp_path, respond=calm, *, plan=LONG, allowed=INF):
    """Ask, play and ask again as `analyze` does; the names of every stage, and the run at the end."""
    trials, stages = {}, []
    for _ in range(9):
        run = make_run(tmp_path, [1.0] * 50, trials=trials, plan=plan)
        new = [trial for trial in next_rehearsals(run, allowed) if trial.name not in run.trials]
        if not new:
            return stages, run
        stages.append(new)
        trials |= {trial.name: (trial, *respond(trial)) for trial in new}
    raise AssertionError("it never has enough")


def names(stages):
    return [[trial.name for trial in stage] for stage in stages]


def test_a_calm_plan_is_looked_at_three_times(tmp_path):
    stages, run = play(tmp_path)
    assert names(stages) == [["sweep"], ["x1", "x2", "x4"]]
    assert [len(trial.indexes) for trial in stages[1]] == [80, 80, 40]
    assert [trial.lr_factor for trial in stages[1]] == [1, 2, 4]
    assert judge(run).verdict == "stable"


def test_a_short_remainder_is_rehearsed_in_full(tmp_path):
    stages, run = play(tmp_path, blown, plan=Plan(total_steps=450))
    assert stages[1][0].indexes == tuple(range(50, 450))
    assert names(stages)[2:] == [["x1-perturbed-1", "x1-perturbed-2"]]
    assert judge(run).verdict == "will-explode"


def test_a_longer_remainder_is_rehearsed_in_full_where_that_is_cheap(tmp_path):
    stages, _ = play(tmp_path, blown, plan=Plan(total_steps=1500), allowed=2 * 1450)
    assert stages[1][0].indexes == tuple(range(50, 1500))
    stages, _ = play(tmp_path, calm, plan=Plan(total_steps=20_051))
    assert len(stages[1][0].indexes) == 80


def test_an_alarm_is_confirmed_in_full_where_that_is_affordable(tmp_path):
    stages, run = play(tmp_path, blown, plan=Plan(total_steps=1500), allowed=2899)
    assert len(stages[1][0].indexes) == 80
    assert names(stages)[2:] == [["x1-long"], ["x1-long-perturbed-1"], ["x1-long-perturbed-2"]]
    assert stages[2][0].indexes == tuple(range(50, 1500))
    assert judge(run).verdict == "will-explode"


def test_an_alarm_of_a_long_plan_is_confirmed_by_two_longer_draws(tmp_path):
    stages, run = play(tmp_path, lambda trial: calm(trial) if trial.name == "next" else blown(trial))
    assert names(stages)[2:] == [["next", "x1-long", "x1-second"]]
    assert [len(trial.indexes) for trial in stages[2]] == [20, 400, 400]
    assert stages[2][0].indexes == tuple(range(50, 70))
    assert stages[2][2].draw == 1
    assert judge(run).verdict == "will-explode"


def test_only_four_times_the_rate_failing_asks_for_a_longer_look_at_twice(tmp_path):
    stages, run = play(tmp_path, lambda trial: blown(trial) if trial.name == "x4" else calm(trial))
    assert names(stages)[2:] == [["x2-long"]]
    assert judge(run).lr_headroom == 4
    stages, run = play(tmp_path, lambda trial: blown(trial) if trial.name in ("x4", "x2-long") else calm(trial))
    assert names(stages)[3:] == [["next", "x1-long", "x1-second"]]
    assert judge(run).verdict == "thin-headroom"


def test_a_loss_that_creeps_upwards_is_an_alarm(tmp_path):
    def creeping(trial):
        length = len(trial.indexes)
        return (1.01 ** np.arange(length), np.ones(length)) if trial.name in both else calm(trial)

    both = ("x1", "x2")
    assert names(play(tmp_path, creeping)[0])[2:] == [["next", "x1-long", "x1-second"]]
    both = ("x1",)
    assert len(play(tmp_path, creeping)[0]) == 2


@pytest.mark.parametrize(
    ("losses", "remaining", "seen"),
    [
        (1.01 ** np.arange(80), 5000, True),
        (1.01 ** np.arange(80), 100, False),
        (np.ones(80), 5000, False),
        (1.01 ** np.arange(20), 5000, False),
        (np.r_[np.ones(27), np.full(26, 9.0), np.full(27, 3.0)], 5000, False),
        (1 + 0.5 * np.sin(np.arange(80) * 1.7) + 0.001 * np.arange(80), 5000, False),
    ],
)
def test_creeping(losses, remaining, seen):
    assert creeps(losses, remaining) == seen


@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_nonfinite_first_rehearsal_is_an_alarm_without_creeping(tmp_path, bad):
    def respond(trial):
        return (np.array([1.0, bad]), np.ones(2)) if trial.name == "x1" else calm(trial)

    assert names(play(tmp_path, respond)[0])[2:] == [["next", "x1-long", "x1-second"]]


def test_nothing_is_rehearsed_after_the_end_or_in_an_explosion(tmp_path):
    assert next_rehearsals(make_run(tmp_path, [1.0] * 50, plan=Plan(total_steps=50))) == ()
    assert next_rehearsals(make_run(tmp_path, [1.0, NAN])) == ()


def test_an_unknown_plan_is_rehearsed_for_400_steps(tmp_path):
    stages, _ = play(tmp_path, plan=Plan())
    assert stages[1][0].indexes == tuple(range(50, 450))


def test_the_worst_coming_batches_are_rehearsed_at_their_own_time(tmp_path):
    def respond(trial):
        losses, norms = calm(trial)
        if trial.kind == "sweep":
            losses[[100, 200]] = [50.0, NAN]
        return losses, norms

    (sweep,), first = play(tmp_path, respond)[0]
    for trial in first:
        assert {sweep.indexes[100], sweep.indexes[200]} <= set(trial.indexes)
        assert list(trial.indexes) == sorted(trial.indexes)


def test_without_a_sweep_the_draw_is_even(tmp_path):
    trial = Trial("rehearsal", "x1", indexes=tuple(range(50, 50_000, 600)))
    run = make_run(tmp_path, [1.0] * 50, plan=LONG, trials={"x1": (trial, *blown(trial))})
    (_, long, _) = next_rehearsals(run)
    assert long.indexes == tuple(even(50, 50_000, 400))


def test_short_time_leaves_out_the_last_and_then_shortens(tmp_path):
    assert names(play(tmp_path, allowed=199)[0]) == [["sweep"], ["x1", "x2"]]
    short, _ = play(tmp_path, allowed=80)
    assert [len(trial.indexes) for trial in short[1]] == [40, 40]
    assert names(play(tmp_path, allowed=39)[0]) == [["sweep"], ["x1"]]
    least, _ = play(tmp_path, allowed=1)
    assert [(trial.name, len(trial.indexes)) for stage in least for trial in stage] == [("x1", LEAST)]
    compressed, _ = play(tmp_path, plan=Plan(total_steps=450), allowed=400)
    assert len(compressed[1][0].indexes) == 80
    alarmed, _ = play(tmp_path, blown, plan=Plan(total_steps=1500), allowed=300)
    assert [len(trial.indexes) for trial in alarmed[2]] == [20, 140, 140]
    assert len(play(tmp_path, blown, allowed=79)[0]) == 2


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 100), st.integers(1, 3000), st.integers(1, 500), st.lists(st.integers(0, 3100), max_size=9))
def test_draws_lie_in_the_plan_and_in_order(start, rest, count, worst):
    stop = start + rest
    inside = np.array([step for step in worst if start <= step < stop], np.int64)
    for drawn in (even(start, stop, count), between(start, stop, count), with_worst(even(start, stop, count), inside)):
        assert len(drawn) == min(count, rest)
        assert drawn.min() >= start
        assert drawn.max() < stop
        assert (np.diff(drawn) >= 0).all()
    assert set(inside[: min(count, rest)]) <= set(with_worst(even(start, stop, count), inside))


def test_what_failed_is_gone_through_again_as_the_plan_clips(tmp_path):
    def saved_by_clipping(trial):
        return blown(trial) if trial.lr_factor > 1 and trial.max_norm is None else calm(trial)

    stages, run = play(tmp_path, saved_by_clipping, plan=Plan(total_steps=5050, max_norm=0.5), allowed=4000)
    assert names(stages)[-1] == ["x2-clipped", "x4-clipped"]
    bare, clipped = run.trials["x4"].header.trial, stages[-1][1]
    assert (clipped.indexes, clipped.lr_factor) == (bare.indexes, 4.0)
    assert clipped.max_norm == pytest.approx(0.5 * (5000 / 40) ** 0.5)
    verdict = judge(run)
    assert (verdict.verdict, verdict.lr_headroom, verdict.clipped_at) == ("stable", None, 0.5)
    assert any(
        "2 × the planned learning rate, clipped at 0.5 as today, 80 steps: held" in one for one in verdict.reasons
    )
    assert any(one.startswith("unclipped: rehearsal at 2 × the planned") for one in verdict.reasons)


def test_clipping_that_does_not_help_is_no_excuse(tmp_path):
    def hopeless_at_four(trial):
        return blown(trial) if trial.lr_factor > (1 if trial.max_norm is None else 2) else calm(trial)

    _, run = play(tmp_path, hopeless_at_four, plan=Plan(total_steps=50_000, max_norm=0.5))
    assert (judge(run).verdict, judge(run).lr_headroom) == ("thin-headroom", 4.0)
    _, run = play(tmp_path / "all", blown, plan=Plan(total_steps=450, max_norm=0.5))
    assert (judge(run).verdict, judge(run).clipped_at) == ("will-explode", 0.5)


def test_without_the_time_for_all_of_it_nothing_is_gone_through_again(tmp_path):
    trials = {"x1": tuple(range(50, 450)), "x2": tuple(range(50, 450, 5))}
    made = {name: Trial("rehearsal", name, lr_factor=float(name[1:]), indexes=steps) for name, steps in trials.items()}
    plan = Plan(total_steps=450, max_norm=0.5)
    run = make_run(tmp_path, [1.0] * 50, trials={n: (t, *blown(t)) for n, t in made.items()}, plan=plan)
    assert next_rehearsals(run, allowed=479) == ()
    assert [trial.name for trial in next_rehearsals(run, allowed=480)] == ["x1-clipped", "x2-clipped"]
    assert (judge(run).verdict, judge(run).clipped_at) == ("will-explode", None)


def test_a_plan_that_failed_in_full_is_gone_through_again_from_slightly_other_weights(tmp_path):
    def by_luck(trial):
        return calm(trial) if trial.draw == 2 or trial.lr_factor > 1 else blown(trial)

    stages, run = play(tmp_path, by_luck, plan=Plan(total_steps=450))
    assert [(trial.draw, trial.perturbed, trial.indexes) for trial in stages[-1]] == [
        (draw, 1e-7, run.trials["x1"].header.trial.indexes) for draw in (1, 2)
    ]
    verdict = judge(run)
    assert (verdict.verdict, verdict.lr_headroom, verdict.by_chance, verdict.may_explode) == (
        "thin-headroom",
        1,
        True,
        True,
    )
    assert verdict.reasons[0] == "of 3 rehearsals of the plan that differ by rounding, 2 failed"
    assert sum("from weights changed by one part in 10,000,000" in reason for reason in verdict.reasons) == 2


def test_perturbing_takes_what_time_there_is(tmp_path):
    for allowed, again in ((1199, 2), (799, 1), (399, 0)):
        trials = {
            "x1": (
                Trial("rehearsal", "x1", indexes=tuple(range(50, 450))),
                *np.array(blown(Trial("rehearsal", "x1", indexes=tuple(range(50, 450))))),
            )
        }
        run = make_run(tmp_path / str(allowed), [1.0] * 50, trials=trials, plan=Plan(total_steps=450))
        assert len(next_rehearsals(run, allowed)) == again
        assert judge(run).verdict == "will-explode"


def test_where_the_plan_clips_it_is_perturbed_as_it_clips(tmp_path):
    def by_luck(trial):
        return calm(trial) if trial.draw == 2 or trial.lr_factor > 1 else blown(trial)

    stages, run = play(tmp_path, by_luck, plan=Plan(total_steps=450, max_norm=0.5))
    assert names(stages)[2:] == [["x1-clipped"], ["x1-clipped-perturbed-1", "x1-clipped-perturbed-2"]]
    assert {trial.max_norm for trial in stages[-1]} == {0.5}
    assert (judge(run).by_chance, judge(run).clipped_at) == (True, 0.5)


def test_data_that_the_model_makes_is_drawn_by_the_first_rehearsal_alone(tmp_path):
    trials = {}
    for wanted in (["x1", "x2", "x4"], []):
        run = make_run(tmp_path, [1.0] * 50, trials=trials, plan=Plan(total_steps=450), on_policy=True)
        new = next_rehearsals(run)
        assert [trial.name for trial in new] == wanted
        trials |= {trial.name: (trial, *blown(trial)) for trial in new}
