import numpy as np
import pytest

from gradscope.diagnosis.model import CannotRunError
from gradscope.diagnosis.rules.learns_nothing import check
from gradscope.recommendation.remedies import next_remedies
from gradscope.report.answers import explosion
from gradscope.report.build import build_report
from gradscope.report.titles import title
from gradscope.report.which_layer import layer
from gradscope.runs.schema import Group, Optimizer, Parameter, Piece, Plan, Trial
from tests.builders import make_run

NOISE = np.random.default_rng(1).normal(0, 0.01, 400)


def run_with(tmp_path, loss, rehearsed=None, **trial):
    trials = {}
    if rehearsed is not None:
        trials = {"x1": (Trial("rehearsal", "x1", **trial), rehearsed, np.ones(len(rehearsed)))}
    return make_run(tmp_path, np.ones(len(loss)), loss=loss, trials=trials)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_fires_on_a_loss_that_stays_at_chance(tmp_path, scale):
    (finding,) = check(run_with(tmp_path, scale * (2.3 + NOISE[:200])))
    assert (finding.code, finding.severity) == ("GS204", "warning")
    assert finding.value < 0.03
    assert "200 recorded steps." in finding.message


def test_silent_when_the_loss_falls(tmp_path):
    assert list(check(run_with(tmp_path, np.linspace(2.3, 1.0, 200)))) == []


def test_limit_is_three_per_cent(tmp_path):
    assert list(check(run_with(tmp_path, np.repeat(np.linspace(1.0, 0.96, 10), 10)))) == []
    assert len(list(check(run_with(tmp_path, np.repeat(np.linspace(1.0, 0.98, 10), 10))))) == 1


def test_noise_that_could_hide_learning_is_not_accused(tmp_path):
    assert list(check(run_with(tmp_path, 1.0 + 40 * NOISE[:200]))) == []


def test_a_rehearsal_of_the_plan_counts(tmp_path):
    (finding,) = check(run_with(tmp_path, 2.3 + NOISE[:50], 2.3 + NOISE[50:130]))
    assert "50 recorded steps and 80 rehearsed ones" in finding.message
    assert list(check(run_with(tmp_path, 2.3 + NOISE[:50], np.linspace(2.3, 1, 80)))) == []


@pytest.mark.parametrize("trial", [{"lr_factor": 2.0}, {"max_norm": 1.0}])
def test_another_rehearsal_does_not(tmp_path, trial):
    with pytest.raises(CannotRunError, match="100 are needed"):
        list(check(run_with(tmp_path, 2.3 + NOISE[:50], 2.3 + NOISE[50:130], **trial)))


def test_a_nonfinite_rehearsal_says_nothing_about_learning(tmp_path):
    with pytest.raises(CannotRunError, match="50 loss values"):
        list(check(run_with(tmp_path, 2.3 + NOISE[:50], [2.3] * 79 + [float("nan")])))


def test_an_explosion_is_not_called_learning_nothing(tmp_path):
    loss = 2.3 + NOISE[:200]
    loss[150] = np.inf
    assert list(check(run_with(tmp_path, loss))) == []


def test_too_few_steps(tmp_path):
    with pytest.raises(CannotRunError, match="1 loss value, rehearsals included"):
        list(check(run_with(tmp_path, [1.0])))


ENDS_AT_CHANCE = np.concatenate([np.linspace(4.0, 2.3, 30), 2.3 + NOISE[:320]])


def ending(tmp_path, own, others, rehearsed=ENDS_AT_CHANCE, steps=400, **more):
    """What is found where a loss begins above chance and these are measured at the end of its rehearsal."""
    pairs = [(i, "target_loss", ["own", "others"], pair) for i, pair in enumerate(zip(own, others, strict=True))]
    trial = Trial("rehearsal", "x1", indexes=tuple(range(50, 50 + len(rehearsed))))
    trials = {"x1": (trial, rehearsed, rehearsed)}
    loss, plan = 4.0 + NOISE[:50], Plan(total_steps=steps)
    return list(check(make_run(tmp_path, np.ones(50), loss=loss, trials=trials, trial_probes=pairs, plan=plan, **more)))


def test_fires_where_a_loss_ends_at_chance_wherever_it_began(tmp_path):
    (finding,) = ending(tmp_path, 2.3 + NOISE[:10], 2.3 + NOISE[10:20])
    assert (finding.code, finding.severity) == ("GS204", "warning")
    assert "ends at chance" in finding.message
    assert "50 recorded steps and 350 rehearsed ones" in finding.message
    assert abs(finding.value) < 0.01


def test_a_training_that_had_learned_and_lost_it_is_left_to_another_rule(tmp_path):
    rehearsed = np.concatenate([np.geomspace(4.0, 1e-3, 200), 2.3 + NOISE[:150]])
    assert not ending(tmp_path, 2.3 + NOISE[:10], 2.3 + NOISE[10:20], rehearsed=rehearsed)


def test_a_few_compressed_steps_are_only_told(tmp_path):
    assert ending(tmp_path, 2.3 + NOISE[:10], 2.3 + NOISE[10:20], steps=20_000)[0].severity == "info"


@pytest.mark.parametrize(("lead", "fires"), [(0.0, 1), (0.004, 1), (0.006, 0), (0.2, 0), (-0.1, 1)])
def test_own_targets_that_do_better_by_half_a_per_cent_were_learned(tmp_path, lead, fires):
    assert len(ending(tmp_path, np.full(10, 2.3 * (1 - lead)), np.full(10, 2.3))) == fires


def test_batches_too_noisy_to_tell_accuse_nobody(tmp_path):
    assert not ending(tmp_path, 2.3 + 40 * NOISE[:10], 2.3 + 40 * NOISE[10:20])


def test_a_loss_that_still_falls_is_not_at_chance(tmp_path):
    assert not ending(tmp_path, np.full(10, 900.0), np.full(10, 900.0), rehearsed=np.geomspace(4e4, 900, 350))


def test_a_loss_that_is_not_above_zero_is_not_judged_by_its_targets(tmp_path):
    assert not ending(tmp_path, np.full(10, -0.1), np.full(10, -0.1))


def test_a_loss_that_stands_still_at_what_was_learned_before_is_fine(tmp_path):
    still = 4.0 + NOISE[:350]
    assert ending(tmp_path / "no", np.full(10, 4.0), np.full(10, 4.0), rehearsed=still)
    assert not ending(tmp_path / "yes", np.full(10, 4.0), np.full(10, 9.0), rehearsed=still)


def test_what_will_explode_is_not_called_learning_nothing(tmp_path):
    assert not ending(
        tmp_path, [1e5] * 10, [1e5] * 10, rehearsed=np.concatenate([np.full(100, 4.0), np.full(250, 1e5)])
    )


def at_chance(tmp_path, trials=(), **more):
    """A run of 400 steps whose rehearsal ends at chance, as its targets show; and further trials of 400 steps."""
    trial = Trial("rehearsal", "x1", indexes=tuple(range(50, 400)))
    every = tuple(range(400))
    tried = {
        name: (Trial("remedy", name, start="initial", indexes=every, note=f"{name}\n{name}"), loss, np.ones(400))
        for name, loss in trials
    }
    pairs = [(i, "target_loss", ["own", "others"], [2.3, 2.3]) for i in range(10)]
    made = {"x1": (trial, 2.3 + NOISE[:350], np.ones(350)), **tried}
    loss, plan = 2.3 + NOISE[:50], Plan(total_steps=400)
    return make_run(tmp_path, np.ones(50), loss=loss, trials=made, trial_probes=pairs, plan=plan, **more)


def test_the_headline_says_so_and_remedies_are_tried_with_a_higher_rate_too(tmp_path):
    run = at_chance(tmp_path)
    report = build_report(run)
    assert title(report) == ("▲", "no explosion, but nothing learned")
    assert explosion(report).answer == "It does not explode, but learns nothing"
    assert explosion(report).details[0].startswith("The training ends at chance")
    assert report.diagnosis.verdict.verdict == "stable"
    assert [one.name for one in next_remedies(run)] == ["lr-0.25", "lr-0.1", "lr-10", "warm-up"]


def test_a_remedy_holds_only_below_chance(tmp_path):
    run = at_chance(tmp_path, [("lr-0.1", 2.28 + NOISE), ("lr-10", np.geomspace(2.3, 1.0, 400))])
    assert [(one.name, one.held, one.best) for one in build_report(run).remedies] == [
        ("lr-10", True, True),
        ("lr-0.1", False, False),
    ]


def test_a_network_whose_gradient_fades_is_to_blame_in_all_its_layers(tmp_path):
    names = [f"fc{i}" for i in range(10)]
    parameters = tuple(
        Parameter(f"{name}.weight", name, "Linear", (4, 4), "float32", i) for i, name in enumerate(names)
    )
    probes = [
        (0, "grad_out_norm", names, (0.25 ** np.arange(9.0, -1, -1)).tolist()),
        (0, "forward_order", names, np.arange(10.0).tolist()),
    ]
    every = Optimizer("SGD", (Group(0.1, tuple(range(10))),))
    run = at_chance(tmp_path, parameters=parameters, probes=probes, optimizer=every)
    report = build_report(run)
    assert [(one.code, one.severity) for one in report.diagnosis.findings] == [
        ("GS204", "warning"),
        ("GS304", "warning"),
    ]
    assert layer(report).answer == "All of them: it fades from layer to layer"
    (scaled,) = [one for one in next_remedies(run) if one.name == "init"]
    assert scaled.layer_scale == pytest.approx(4.0)


@pytest.mark.parametrize(("value", "fires"), [("CrossEntropyLoss()", 1), ("training_step", 0)])
def test_what_an_opaque_step_takes_for_targets_is_not_known(tmp_path, value, fires):
    found = ending(tmp_path, 2.3 + NOISE[:10], 2.3 + NOISE[10:20], pieces=(Piece("loss", value, "spec.py:3"),))
    assert len(found) == fires


def test_a_training_that_calibrated_itself_is_not_called_lost_in_the_headline(tmp_path):
    pairs = [(i, "target_loss", ["own", "others"], [2.3, 2.3]) for i in range(10)]
    trial = Trial("rehearsal", "x1", indexes=tuple(range(50, 400)))
    trials = {"x1": (trial, ENDS_AT_CHANCE, np.ones(350))}
    loss = 4.0 + NOISE[:50]
    run = make_run(tmp_path, np.ones(50), loss=loss, trials=trials, trial_probes=pairs, plan=Plan(total_steps=400))
    assert list(check(run))
    assert title(build_report(run)) == ("●", "stable")


@pytest.mark.parametrize(
    ("first", "learned", "step", "word"),
    [
        (2.3, 0.0, "CrossEntropyLoss()", "no explosion, but nothing learned"),
        (4.0, 0.0, "CrossEntropyLoss()", "stable"),
        (2.3, 0.2, "CrossEntropyLoss()", "stable"),
    ],
    ids=["back to where it began", "lower than it began", "something learned"],
)
def test_a_loss_that_ends_at_chance_after_an_explosion_of_its_first_steps_learned_nothing(
    tmp_path, first, learned, step, word
):
    loss = np.concatenate([[first], np.geomspace(1e9, 2.3, 29), 2.3 + NOISE[:20]])
    pairs = [(i, "target_loss", ["own", "others"], [2.3 * (1 - learned), 2.3]) for i in range(10)]
    trial = Trial("rehearsal", "x1", indexes=tuple(range(50, 400)))
    run = make_run(
        tmp_path,
        np.ones(50),
        loss=loss,
        trials={"x1": (trial, 2.3 + NOISE[:350], np.ones(350))},
        trial_probes=pairs,
        plan=Plan(total_steps=400),
        pieces=(Piece("loss", step, "spec.py:3"),),
    )
    assert title(build_report(run))[1] == word


@pytest.mark.parametrize(
    ("lead", "step", "word"),
    [
        (0.01, "CrossEntropyLoss()", "no explosion, but nothing learned"),
        (0.2, "CrossEntropyLoss()", "stable"),
        (0.01, "training_step", "stable"),
    ],
    ids=["hardly better than others'", "surely better", "targets not known"],
)
def test_a_loss_that_stands_still_over_the_plan_is_the_headline_where_targets_are_known(tmp_path, lead, step, word):
    trial = Trial("rehearsal", "x1", indexes=tuple(range(50, 400)))
    run = make_run(
        tmp_path,
        np.ones(50),
        loss=2.3 + NOISE[:50],
        trials={"x1": (trial, np.linspace(2.3, 2.27, 350), np.ones(350))},
        trial_probes=[(i, "target_loss", ["own", "others"], [2.3 * (1 - lead), 2.3]) for i in range(10)],
        plan=Plan(total_steps=400),
        pieces=(Piece("loss", step, "spec.py:3"),),
    )
    assert title(build_report(run))[1] == word
