"""A loss may lie below zero and be well: likelihoods do. Only a fall without bottom is an explosion."""

import numpy as np
import pytest

from gradscope.diagnosis.series import level
from gradscope.diagnosis.verdict import judge
from gradscope.recommendation import recommend
from gradscope.report.remedies import remedies
from gradscope.runs.schema import Plan, Trial
from tests.builders import make_run

NEXT = tuple(range(50, 1000))
WINDOW = np.linspace(1.0, 0.1, 50)
LARGE = np.full(950, 300.0)


def foreseen(tmp_path, end, scale=1.0):
    """The verdict on a window whose loss falls to a tenth, and whose rehearsal in full goes on to `end`."""
    losses = np.r_[np.linspace(0.1, end, 475), np.full(475, end)]
    trials = {"x1": (Trial("rehearsal", "x1", indexes=NEXT), scale * losses, scale * LARGE)}
    return judge(make_run(tmp_path, [scale] * 50, loss=scale * WINDOW, trials=trials))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e8])
@pytest.mark.parametrize(("end", "verdict"), [(-9.0, "stable"), (9.0, "will-explode"), (-500.0, "will-explode")])
def test_a_likelihood_may_fall_below_zero(tmp_path, end, verdict, scale):
    assert foreseen(tmp_path, end, scale).verdict == verdict


@pytest.mark.parametrize("window", [np.zeros(50), np.full(50, np.nan)])
def test_a_window_without_a_loss_is_no_measure(tmp_path, window):
    trials = {"x1": (Trial("rehearsal", "x1", indexes=NEXT), np.full(950, -9.0), LARGE)}
    assert judge(make_run(tmp_path, [1.0] * 50, loss=window, trials=trials)).verdict == "unknown"


def test_a_negative_loss_is_told_as_it_is(tmp_path):
    assert "held (loss -9, in the window" in foreseen(tmp_path, -9.0).reasons[0]


def test_where_losses_lie():
    assert level([-1.0, 2.0, -3.0]) == 2.0
    assert level([-1.0, -2.0, -3.0, np.nan]) == -2.0
    assert np.isnan(level([]))


def tried(name, limit, end, kind="candidate", note=""):
    losses = np.r_[np.ones(20), np.linspace(1.0, end, 40), np.full(40, end)]
    about = Trial(kind, name, max_norm=limit, indexes=tuple(range(0, 1000, 10)), start="initial", note=note)
    return {name: (about, losses, np.full(100, 50.0))}


def test_the_lowest_loss_wins_below_zero_too(tmp_path):
    trials = tried("none", None, 0.5) | tried("a", 1.0, -2.0) | tried("b", 2.0, -4.0)
    found = recommend(make_run(tmp_path, [50.0] * 50, trials=trials))
    assert [(one.trial, one.chosen) for one in found.candidates] == [("b", True), ("a", False), ("none", False)]
    assert (
        "ended at the lowest loss, -4 over 100 trial steps that stand for 1,000 (without clipping 0.5 over 100)"
        in found.reason
    )


def test_where_a_loss_has_no_bottom_the_smallest_wins(tmp_path):
    trials = tried("none", None, -500.0) | tried("a", 1.0, -2.0) | tried("b", 2.0, -4.0)
    found = recommend(make_run(tmp_path, [50.0] * 50, trials=trials))
    assert [(one.trial, one.diverged, one.chosen) for one in found.candidates] == [
        ("a", False, True),
        ("b", False, False),
        ("none", True, False),
    ]


def test_how_high_an_explosion_climbs_before_numbers_end_is_no_bottom(tmp_path):
    window = np.r_[np.ones(30), 1e3, 1e6, 1e9]
    trials = tried("none", None, -5e3) | tried("a", 1.0, -2.0)
    chosen = []
    for steps in (31, 33):
        run = make_run(tmp_path / str(steps), window[:steps], loss=window[:steps], trials=trials)
        chosen += [one.trial for one in recommend(run).candidates if one.chosen]
    assert chosen == ["a", "a"]


@pytest.mark.parametrize(("again", "winner"), [(0.8, "a"), (0.82, "a"), (0.86, "none"), (9.0, "none")])
def test_clipping_that_gains_no_more_than_chaos_does_is_not_needed(tmp_path, again, winner):
    trials = tried("a", 1.0, 0.8) | tried("a-again", 1.0, again) | tried("none", None, 0.88) | tried("b", 0.1, 0.9)
    run = make_run(tmp_path, [50.0] * 50, trials=trials)
    (chosen,) = [one.trial for one in recommend(run).candidates if one.chosen]
    assert chosen.removesuffix("-again") == winner


@pytest.mark.parametrize(("other", "order"), [(0.9, ["half", "tenth", "other"]), (-500.0, ["tenth", "half", "other"])])
def test_the_best_remedy_is_the_lowest_loss(tmp_path, other, order):
    trials = tried("lr-0.5", None, -2.0, "remedy", "half\n") | tried("lr-0.1", None, 0.5, "remedy", "tenth\n")
    trials |= tried("warm-up", None, other, "remedy", "other\n")
    found = remedies(make_run(tmp_path, [1.0] * 50, loss=WINDOW, trials=trials))
    assert [one.name for one in found] == order
    assert [one.best for one in found] == [True, False, False]
    assert found[-1].held == (other > 0)


def test_a_loss_that_falls_from_near_zero_far_below_it_is_no_explosion(tmp_path):
    window, coming = np.linspace(-0.0001, -0.3, 50), np.linspace(-0.3, -1.5, 450)
    trials = {"x1": (Trial("rehearsal", "x1", indexes=tuple(range(50, 500))), coming, np.ones(450))}
    run = make_run(tmp_path, [1.0] * 50, loss=window, trials=trials, plan=Plan(total_steps=500))
    assert judge(run).verdict == "stable"
    deep = {"x1": (trials["x1"][0], np.linspace(-20.0, -1e4, 450), np.linspace(1.0, 1e4, 450))}
    assert (
        judge(make_run(tmp_path, [1.0] * 50, loss=window, trials=deep, plan=Plan(total_steps=500))).verdict != "stable"
    )


@pytest.mark.parametrize(
    ("warm_up", "end", "verdict"), [(300, -4.0, "stable"), (300, -500.0, "exploding"), (1, -4.0, "will-explode")]
)
def test_a_likelihood_that_begins_near_zero_falls_as_far_as_its_rates_take_it(tmp_path, warm_up, end, verdict):
    window = np.linspace(0.019, 0.012, 50)
    coming = np.r_[np.linspace(0.012, end, 475), np.full(475, end)]
    trials = {"x1": (Trial("rehearsal", "x1", indexes=NEXT), coming, np.full(950, 900.0))}
    plan = Plan(total_steps=1000, lr_steps=(0, warm_up, 999), lr=((1e-3 / warm_up,), (1e-3,), (1e-3,)))
    run = make_run(tmp_path, [1.0] * 50, loss=window, trials=trials, plan=plan)
    assert judge(run).verdict == verdict


@pytest.mark.parametrize(("scale", "speed"), [(1e-6, 2), (1.0, 2), (1e8, 2), (1.0, 8)])
def test_norms_that_grow_as_a_likelihood_sharpens_are_no_explosion_but_a_fall_ever_faster_is(tmp_path, scale, speed):
    falls = 0.001 - 3.0 * (np.arange(1, 51) / 50) ** speed
    run = make_run(tmp_path, scale * np.r_[np.ones(35), np.full(15, 500.0)], loss=scale * falls)
    assert judge(run).verdict == ("unknown" if speed == 2 else "exploding")
