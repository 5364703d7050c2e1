import numpy as np
import pytest

from gradscope.diagnosis.model import CannotRunError
from gradscope.diagnosis.plan import next_rehearsals
from gradscope.diagnosis.rules.collapse import check
from gradscope.recommendation.remedies import next_remedies
from gradscope.report.answers import explosion
from gradscope.report.build import build_report
from gradscope.report.titles import title
from gradscope.runs.schema import Ending, Group, Optimizer, Plan, Trial
from tests.builders import make_run

NOISE = np.random.default_rng(1).normal(0, 0.01, 350)
WINDOW = np.linspace(2.3, 1.7, 50)


def losses(end, lowest=0.2):
    return np.concatenate([np.geomspace(1.7, lowest, 200), np.geomspace(lowest, end, 50), np.full(100, end)]) + NOISE


def run_with(tmp_path, rehearsed, scale=1.0, own=None, **changes):
    trial = Trial("rehearsal", "x1", indexes=tuple(range(50, 400)))
    pairs = [(i, "target_loss", ["own", "others"], [own, 2.3]) for i in range(10)] if own else []
    trials = {"x1": (trial, scale * rehearsed, scale * np.ones(350))}
    plan = Plan(total_steps=400)
    return make_run(
        tmp_path, scale * np.ones(50), loss=scale * WINDOW, trials=trials, trial_probes=pairs, plan=plan, **changes
    )


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_fires_on_a_loss_that_comes_back_up(tmp_path, scale):
    (finding,) = check(run_with(tmp_path, losses(2.3), scale))
    assert (finding.code, finding.severity) == ("GS208", "warning")
    assert finding.value == pytest.approx((2.3 - 0.2) / (2.2 - 0.2), rel=0.05)
    assert (finding.first_step, finding.last_step) == (250, 399)
    assert "after 50 recorded steps and 350 rehearsed ones" in finding.message


@pytest.mark.parametrize(("end", "lowest", "fires"), [(1.8, 0.2, 1), (1.5, 0.2, 0), (2.3, 1.6, 1)])
def test_limits(tmp_path, end, lowest, fires):
    assert len(list(check(run_with(tmp_path, losses(end, lowest))))) == fires


@pytest.mark.parametrize(("own", "fires"), [(2.3, 1), (1.5, 0), (None, 0)])
def test_below_where_it_began_only_what_is_at_chance_is_lost(tmp_path, own, fires):
    assert len(list(check(run_with(tmp_path, losses(1.2), own=own)))) == fires


def test_a_game_of_two_optimizers_may_end_where_it_began(tmp_path):
    two = Optimizer("Adam + Adam", (Group(0.1, (0, 1)), Group(0.1, (2,), optimizer=1)))
    assert not list(check(run_with(tmp_path, losses(2.3), optimizer=two)))


def test_a_loss_below_zero_is_not_judged(tmp_path):
    assert not list(check(run_with(tmp_path, losses(2.3) - 1.0)))


def test_an_explosion_is_told_by_others(tmp_path):
    loss = np.r_[WINDOW, losses(2.3)]
    assert not list(check(make_run(tmp_path, np.r_[np.ones(399), np.inf], loss=loss)))


def test_a_short_window_is_not_called_a_collapse(tmp_path):
    loss = np.r_[np.linspace(2.3, 0.1, 30), np.full(20, 2.3)]
    assert title(build_report(make_run(tmp_path, np.ones(50), loss=loss)))[1] == "no explosion so far"


def test_too_few_steps(tmp_path):
    with pytest.raises(CannotRunError, match="50 loss values, rehearsals included; 100 are needed"):
        list(check(make_run(tmp_path, np.ones(50), loss=WINDOW)))


def test_a_recorded_training_collapses_without_a_rehearsal(tmp_path):
    run = make_run(tmp_path, np.ones(400), loss=np.r_[WINDOW, losses(2.3)])
    (finding,) = check(run)
    assert "ends at 2.3, after 400 recorded steps." in finding.message


def test_the_headline_says_so_and_remedies_are_tried(tmp_path):
    run = run_with(tmp_path, losses(2.3))
    report = build_report(run)
    assert title(report) == ("▲", "no explosion, but a collapse")
    assert explosion(report).answer == "It does not explode, but loses what it learned"
    assert report.diagnosis.verdict.verdict == "stable"
    assert [one.name for one in next_remedies(run)] == ["lr-0.5", "lr-0.25", "lr-0.1", "warm-up"]


def test_a_remedy_that_collapses_too_does_not_hold(tmp_path):
    run = run_with(tmp_path, losses(2.3))
    steps = tuple(range(400))
    tried = {
        name: (
            Trial("remedy", name, start="initial", indexes=steps, note=f"{name}\n{name}"),
            np.r_[WINDOW, end],
            np.ones(400),
        )
        for name, end in (("lr-0.5", losses(2.3)), ("lr-0.1", losses(0.2)))
    }
    x1 = (run.trials["x1"].header.trial, losses(2.3), np.ones(350))
    again = make_run(tmp_path / "b", np.ones(50), loss=WINDOW, trials={"x1": x1, **tried}, plan=Plan(total_steps=400))
    assert [(one.name, one.held, one.best) for one in build_report(again).remedies] == [
        ("lr-0.1", True, True),
        ("lr-0.5", False, False),
    ]


def test_a_plan_that_clips_is_gone_through_again_as_it_clips_and_that_decides(tmp_path):
    plan = Plan(total_steps=400, max_norm=1.0)
    bare = Trial("rehearsal", "x1", indexes=tuple(range(50, 400)))
    trials = {"x1": (bare, losses(2.3), np.ones(350))}
    run = make_run(tmp_path, np.ones(50), loss=WINDOW, trials=trials, plan=plan)
    assert "350 rehearsed ones, without clipping." in next(check(run)).message
    (again,) = next_rehearsals(run)
    assert (again.name, again.max_norm) == ("x1-clipped", 1.0)
    for end, fires in ((0.2, 0), (2.3, 1)):
        both = trials | {"x1-clipped": (again, losses(end), np.ones(350))}
        run = make_run(tmp_path / str(end), np.ones(50), loss=WINDOW, trials=both, plan=plan)
        assert len(list(check(run))) == fires
        assert not next_rehearsals(run)


def test_a_rehearsal_that_ends_in_a_nonfinite_gradient_tells_nothing_of_learning(tmp_path):
    trial = Trial("rehearsal", "x1", indexes=tuple(range(50, 400)))
    trials = {"x1": (trial, losses(2.3), np.r_[np.ones(349), np.inf], Ending("nonfinite", 350))}
    with pytest.raises(CannotRunError, match="50 loss values"):
        list(check(make_run(tmp_path, np.ones(50), loss=WINDOW, trials=trials, plan=Plan(total_steps=400))))


@pytest.mark.parametrize(("constant", "fires"), [(7.0, 1), (9.0, 0)])
def test_a_fifth_must_be_gained(tmp_path, constant, fires):
    loss = np.r_[WINDOW, losses(2.3)] + constant
    assert len(list(check(make_run(tmp_path, np.ones(400), loss=loss)))) == fires


@pytest.mark.parametrize(("end", "fires"), [(2.3, 1), (2.0, 1), (1.8, 0)])
def test_what_learns_again_at_the_end_is_no_collapse(tmp_path, end, fires):
    """As after a change of the task: above where it began, and on its way down."""
    again = np.concatenate([np.geomspace(1.7, 0.2, 200), np.full(40, 3.0), np.geomspace(3.0, end, 110)]) + NOISE
    assert len(list(check(run_with(tmp_path, again)))) == fires


def test_noise_is_no_collapse(tmp_path):
    loss = np.r_[WINDOW, losses(2.3)] + 5.0
    assert list(check(make_run(tmp_path / "calm", np.ones(400), loss=loss)))
    noisy = loss + np.random.default_rng(0).normal(0, 3.0, 400)
    assert not list(check(make_run(tmp_path / "noisy", np.ones(400), loss=noisy)))


def test_what_a_tenth_of_the_rate_loses_too_is_the_data_s_doing(tmp_path):
    steps = tuple(range(400))
    for end, severity in ((0.2, "warning"), (2.3, "info")):
        tenth = (
            Trial("remedy", "lr-0.1", start="initial", indexes=steps, note="tenth\n"),
            np.r_[WINDOW, losses(end)],
            np.ones(400),
        )
        x1 = Trial("rehearsal", "x1", indexes=steps[50:]), losses(2.3), np.ones(350)
        folder, plan = tmp_path / str(end), Plan(total_steps=400)
        run = make_run(folder, np.ones(50), loss=WINDOW, trials={"x1": x1, "lr-0.1": tenth}, plan=plan)
        (finding,) = check(run)
        assert finding.severity == severity
        assert ("data or the objective there" in finding.advice) == (severity == "info")
        assert (title(build_report(run))[1] == "no explosion, but a collapse") == (severity == "warning")


def test_a_tenth_of_a_rising_rate_that_loses_it_later_is_the_rate_s_doing(tmp_path):
    steps = tuple(range(400))
    later = np.r_[np.linspace(2.3, 0.1, 330), np.linspace(0.1, 2.3, 30), np.full(40, 2.3)]
    trials = {
        "x1": (Trial("rehearsal", "x1", indexes=steps[50:]), losses(2.3), np.ones(350)),
        "lr-0.1": (Trial("remedy", "lr-0.1", start="initial", indexes=steps, note="a\n"), later, np.ones(400)),
    }
    run = make_run(tmp_path, np.ones(50), loss=WINDOW, trials=trials, plan=Plan(total_steps=400))
    assert [finding.severity for finding in check(run)] == ["warning"]


@pytest.mark.parametrize(
    ("half", "tenth", "severity"),
    [
        (2.3, np.linspace(2.0, 2.3, 400), "info"),
        (0.2, np.linspace(2.0, 2.3, 400), "warning"),
        (2.3, np.linspace(3.0, 1.8, 400), "warning"),
        (2.3, np.full(400, 0.3), "warning"),
        (None, np.linspace(2.0, 2.3, 400), "warning"),
    ],
    ids=["as high at every rate", "half the rate holds", "a tenth still learns", "a tenth holds", "one rate alone"],
)
def test_what_comes_to_rest_as_high_at_every_rate_is_the_data_s_doing(tmp_path, half, tenth, severity):
    steps, ones = tuple(range(400)), np.ones(400)
    trials = {
        "x1": (Trial("rehearsal", "x1", indexes=steps[50:]), losses(2.3), np.ones(350)),
        "lr-0.1": (Trial("remedy", "lr-0.1", start="initial", indexes=steps, note="a\n"), tenth, ones),
    }
    if half is not None:
        at_half = np.r_[WINDOW, losses(half)]
        trials["lr-0.5"] = Trial("remedy", "lr-0.5", start="initial", indexes=steps, note="b\n"), at_half, ones
    run = make_run(tmp_path, np.ones(50), loss=WINDOW, trials=trials, plan=Plan(total_steps=400))
    assert [finding.severity for finding in check(run)] == [severity]


def test_a_remedy_that_ends_as_high_is_none(tmp_path):
    steps = tuple(range(400))
    warm = Trial("remedy", "warm-up", start="initial", indexes=steps, note="warm\n"), np.full(400, 2.25), np.ones(400)
    x1 = Trial("rehearsal", "x1", indexes=steps[50:]), losses(2.3), np.ones(350)
    run = make_run(tmp_path, np.ones(50), loss=WINDOW, trials={"x1": x1, "warm-up": warm}, plan=Plan(total_steps=400))
    assert [(one.held, one.best) for one in build_report(run).remedies] == [(False, False)]
