import numpy as np
import pytest

from gradscope.diagnosis.model import CannotRunError
from gradscope.diagnosis.rules import nonfinite_gradient
from gradscope.diagnosis.rules.rank_apart import Settings, check
from gradscope.runs.schema import Offender
from tests.builders import make_run

NAN = float("nan")


def losses(ranks, steps=30, noise=0.1, seed=0):
    """(T, R) losses that fall on every rank, each with its own noise."""
    rng = np.random.default_rng(seed)
    return np.linspace(3, 1, steps)[:, None] * np.exp(rng.normal(0, noise, (steps, ranks)))


def run_of(folder, table, **header):
    table = np.asarray(table, float)
    others = {rank: list(table[:, rank]) for rank in range(1, table.shape[1])}
    return make_run(
        folder, [1.0] * len(table), loss=list(table[:, 0]), ranks=others, world_size=table.shape[1], **header
    )


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_the_rank_that_breaks_first_is_named(ranks, tmp_path):
    table = losses(ranks)
    table[20, 1] = table[21:] = NAN
    (finding,) = check(run_of(tmp_path, table))
    assert (finding.severity, finding.subject, finding.first_step, finding.value) == ("critical", "rank 1", 20, 10)
    assert "its loss is the first nonfinite one, at step 20" in finding.message


def test_rank_0_may_be_the_one(tmp_path):
    table = losses(4)
    table[20, 0] = np.inf
    (finding,) = check(run_of(tmp_path, table))
    assert finding.subject == "rank 0"
    assert "on ranks 1, 2 and 3 the loss of that step is finite" in finding.message


def test_several_may_break_together(tmp_path):
    table = losses(8)
    table[20, 2:6] = NAN
    (finding,) = check(run_of(tmp_path, table))
    assert finding.subject == "4 ranks (2, 3, 4, …)"
    assert "their losses are the first nonfinite ones" in finding.message


def test_ranks_that_break_together_accuse_none(tmp_path):
    table = losses(4)
    table[20:] = NAN
    assert list(check(run_of(tmp_path, table))) == []


def test_the_step_that_rank_0_did_not_live_to_write_counts(tmp_path):
    table = losses(2)
    run = make_run(
        tmp_path, [1.0] * 20, loss=list(table[:20, 0]), ranks={1: [*table[:20, 1], NAN], 2: table[:21, 0]}, world_size=3
    )
    (finding,) = check(run)
    assert (finding.subject, finding.first_step) == ("rank 1", 20)


@pytest.mark.parametrize("ranks", [2, 3, 8])
@pytest.mark.parametrize("scale", [1.0, -1e6, 1e-9])
def test_a_jump_on_one_rank_is_told_at_any_scale(ranks, scale, tmp_path):
    table = losses(ranks) * scale
    table[15, 1] *= 40
    (finding,) = check(run_of(tmp_path, table))
    assert (finding.severity, finding.subject, finding.first_step, finding.last_step) == ("warning", "rank 1", 15, 15)
    assert finding.value == pytest.approx(40, rel=0.5)
    assert finding.limit >= 10


def test_repeated_jumps_are_counted(tmp_path):
    table = losses(4)
    table[[5, 15], 3] *= 100
    (finding,) = check(run_of(tmp_path, table))
    assert "(so far from them at 2 steps of 30)" in finding.message
    assert (finding.first_step, finding.last_step) == (5, 15)


def test_a_jump_below_ten_times_or_within_the_usual_distance_is_none(tmp_path):
    table = losses(4)
    table[15, 1] *= 6
    assert list(check(run_of(tmp_path, table))) == []
    wild = losses(4, noise=2.0)
    wild[15, 1] = np.median(wild[15]) * 40
    assert list(check(run_of(tmp_path, wild))) == []


def test_a_jump_of_all_ranks_is_no_rank_s_own(tmp_path):
    table = losses(4)
    table[15:] *= 1000
    assert list(check(run_of(tmp_path, table))) == []


def test_a_rank_above_the_others_throughout_is_told(tmp_path):
    table = losses(4)
    table[:, 2] *= 1.8
    (finding,) = check(run_of(tmp_path, table))
    assert (finding.severity, finding.subject) == ("info", "rank 2")
    assert finding.value == pytest.approx(1.8, rel=0.1)
    assert list(check(run_of(tmp_path, table[:19]), Settings(enough=19))) != []
    assert list(check(run_of(tmp_path, table[:19]))) == []


def test_noise_alone_accuses_no_rank(tmp_path):
    for seed in range(20):
        assert list(check(run_of(tmp_path, losses(2 + seed % 7, 100, 0.3, seed)))) == []


def test_too_few_steps_and_a_single_process_say_nothing(tmp_path):
    table = losses(2, 9)
    table[5, 1] *= 1000
    assert list(check(run_of(tmp_path, table))) == []
    assert list(check(make_run(tmp_path, [1.0] * 30))) == []


def test_without_the_losses_of_other_ranks_it_cannot_judge(tmp_path):
    with pytest.raises(CannotRunError, match="one rank at most"):
        list(check(make_run(tmp_path, [1.0] * 30, world_size=4)))
    with pytest.raises(CannotRunError):
        list(check(make_run(tmp_path, [1.0] * 30, world_size=4, loss=[NAN] * 30, ranks={1: [1.0] * 30})))


def test_a_layer_is_not_accused_of_what_another_rank_s_loss_began(tmp_path):
    table = losses(2)
    table[20, 1] = table[21:] = NAN
    seen = Offender(20, "fc3", "fc3.weight", "gradient")
    run = make_run(
        tmp_path, [*[1.0] * 20, *[np.inf] * 10], loss=list(table[:, 0]), ranks={1: table[:, 1]}, world_size=2,
        first_nonfinite=seen,
    )  # fmt: skip
    (finding,) = nonfinite_gradient.check(run)
    assert finding.subject is None
    assert "the loss of rank 1 was nonfinite first, at step 20" in finding.message
    alone = make_run(tmp_path, [*[1.0] * 20, *[np.inf] * 10], loss=[1.0] * 30, first_nonfinite=seen)
    (finding,) = nonfinite_gradient.check(alone)
    assert finding.subject == "fc3"
