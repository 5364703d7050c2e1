import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gradscope.capture.trials import scaled_layer
from gradscope.recommendation.remedies import next_remedies
from gradscope.report.remedies import remedies
from gradscope.runs.schema import TARGETS, Group, Optimizer, Parameter, Piece, Plan, Trial
from tests.builders import make_header, make_run

INF, NAN = float("inf"), float("nan")
PLAN = Plan(total_steps=1600, lr_steps=(0, 400, 1599), lr=((0.0,), (0.2,), (0.1,)))
EXPLODING = [1.0] * 30 + [NAN]


def exploding(tmp_path, trials=(), plan=PLAN, **header):
    made = {trial.name: (trial, losses, np.ones(len(losses))) for trial, losses in trials}
    return make_run(tmp_path, EXPLODING, loss=EXPLODING, trials=made, plan=plan, **header)


def by_name(trials):
    return {trial.name: trial for trial in trials}


def test_a_calm_run_needs_none(tmp_path):
    assert next_remedies(make_run(tmp_path, [1.0] * 50)) == ()


def test_lower_rates_and_a_longer_warm_up(tmp_path):
    tried = by_name(next_remedies(exploding(tmp_path)))
    assert list(tried) == ["lr-0.5", "lr-0.25", "lr-0.1", "warm-up"]
    assert {(trial.kind, trial.start, len(trial.indexes)) for trial in tried.values()} == {("remedy", "initial", 100)}
    assert tried["lr-0.25"].lr_factor == 0.25
    assert tried["lr-0.25"].note == "learning rate × 0.25\nlr *= 0.25  # wherever you set it; its peak becomes 0.05"
    assert tried["warm-up"].warm_up == 800
    assert "LambdaLR" in tried["warm-up"].note


def test_without_a_schedule_the_rate_of_the_optimizer_stands(tmp_path):
    assert "becomes 0.05" in next_remedies(exploding(tmp_path, plan=Plan(total_steps=1600)))[0].note
    without = exploding(tmp_path, plan=Plan(total_steps=1600), optimizer=None)
    assert "becomes 0" in next_remedies(without)[0].note


def test_a_layer_with_too_few_peers_to_be_accused_is_tried_too(tmp_path):
    layers = [f"fc{i}" for i in range(3)]
    scales = (0, "init_scale", [f"{layer}.weight" for layer in layers], [1, 12, 1])
    parameters = make_header(layers).parameters
    run = make_run(tmp_path, EXPLODING, loss=EXPLODING, parameters=parameters, probes=[scales], plan=PLAN)
    remedy = by_name(next_remedies(run))["init"]
    assert (remedy.layer, remedy.layer_scale) == ("fc1", pytest.approx(1 / 12))


def test_the_accused_layer_starts_like_its_peers(tmp_path):
    layers = [f"fc{i}" for i in range(6)]
    scales = (0, "init_scale", [f"{layer}.weight" for layer in layers], [1, 1, 20, 1, 1, 1])
    parameters = make_header(layers).parameters
    run = make_run(tmp_path, EXPLODING, loss=EXPLODING, parameters=parameters, probes=[scales], plan=PLAN)
    remedy = by_name(next_remedies(run))["init"]
    assert (remedy.layer, remedy.layer_scale) == ("fc2", pytest.approx(0.05))
    assert 'get_submodule("fc2").weight.data.mul_(0.05)' in remedy.note


@pytest.mark.parametrize(("kinds", "holders"), [("SGD", (0, 0)), ("SGD + Adam", (0, 1)), ("SGD + Adam", (0, 0))])
def test_the_accused_group_learns_like_its_peers(tmp_path, kinds, holders):
    parameters = make_header([f"fc{i}" for i in range(6)]).parameters
    own = tuple(i for i, parameter in enumerate(parameters) if parameter.layer == "fc2")
    others = tuple(i for i in range(len(parameters)) if i not in own)
    optimizer = Optimizer(kinds, (Group(0.1, others, holders[0]), Group(3.0, own, holders[1])))
    scales = (0, "init_scale", [parameter.name for parameter in parameters], [1.0] * len(parameters))
    run = make_run(
        tmp_path,
        EXPLODING,
        loss=EXPLODING,
        parameters=parameters,
        optimizer=optimizer,
        probes=[scales],
        columns={"lr": [[0.1, 3.0]] * len(EXPLODING)},
    )
    remedy = by_name(next_remedies(run))["group"]
    assert (remedy.group, remedy.group_scale) == (1, pytest.approx(1 / 30))
    said, where, place = {
        ("SGD", 0): ("parameter group 1", "", 1),
        ("SGD + Adam", 1): ("optimizer 2 of 2 (Adam), parameter group 0", "optimizer 2 of 2 (Adam), ", 0),
        ("SGD + Adam", 0): ("optimizer 1 of 2 (SGD), parameter group 1", "optimizer 1 of 2 (SGD), ", 1),
    }[kinds, holders[1]]
    assert remedy.note == (
        f"{said} learns at × 0.0333\n"
        f'optimizer.param_groups[{place}]["lr"] *= 0.0333  # {where}before the scheduler is made'
    )


def test_the_line_that_scales_a_layer_works_for_any_names_of_weights(tmp_path):
    names = [f"rnn{i}.{leaf}" for i in range(6) for leaf in ("weight_ih_l0", "weight_hh_l0", "bias_hh_l0")]
    parameters = tuple(
        Parameter(name, name.partition(".")[0], "RNN", (3,) if "bias" in name else (3, 3), "float32", 0)
        for name in names
    )
    scales = (0, "init_scale", names, [20.0 if name == "rnn2.weight_hh_l0" else 1.0 for name in names])
    run = make_run(tmp_path, EXPLODING, loss=EXPLODING, parameters=parameters, probes=[scales], plan=PLAN)
    line = by_name(next_remedies(run))["init"].note.split("\n")[1]
    model = torch.nn.ModuleDict({f"rnn{i}": torch.nn.RNN(3, 3) for i in range(6)})
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    exec(line, {"model": model})  # what the user pastes
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"rnn2.weight_hh_l0"}


def test_the_line_scales_all_matrices_of_a_layer_that_is_no_recurrent_one(tmp_path):
    leaves = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    names = [f"block{i}.{leaf}" for i in range(6) for leaf in leaves]
    parameters = tuple(Parameter(name, name.partition(".")[0], "Attention", (3, 3), "float32", 0) for name in names)
    scales = (0, "init_scale", names, [20.0 if name.startswith("block2.") else 1.0 for name in names])
    run = make_run(tmp_path, EXPLODING, loss=EXPLODING, parameters=parameters, probes=[scales], plan=PLAN)
    line = by_name(next_remedies(run))["init"].note.split("\n")[1]
    model = torch.nn.ModuleDict(
        {f"block{i}": torch.nn.ParameterDict({leaf: torch.ones(3, 3) for leaf in leaves}) for i in range(6)}
    )
    exec(line, {"model": model})  # what the user pastes
    changed = {name for name, value in model.state_dict().items() if not bool((value == 1).all())}
    assert changed == {f"block2.{leaf}" for leaf in leaves}


def test_the_proven_threshold_is_tried_as_compressed_trials_are(tmp_path):
    candidate = Trial("candidate", "c", max_norm=0.5)
    remedy = by_name(next_remedies(exploding(tmp_path, [(candidate, np.full(60, 0.3))])))["clip"]
    assert remedy.max_norm == pytest.approx(0.5 * 4)
    assert "max_norm=0.5)" in remedy.note
    unclipped = Trial("candidate", "c")
    assert "clip" not in by_name(next_remedies(exploding(tmp_path, [(unclipped, np.full(60, 0.3))])))


def played(tmp_path, **losses):
    """The first remedies, played: each ends at the loss given for it, or became nonfinite."""
    first = by_name(next_remedies(exploding(tmp_path)))
    ends = {name.replace("_", "-"): loss for name, loss in losses.items()}
    return exploding(tmp_path, [(first[name], np.full(30, loss)) for name, loss in ends.items()])


def test_the_best_two_of_different_kind_are_joined(tmp_path):
    run = played(tmp_path, **{"lr-0.5": 0.5, "lr-0.1": 0.4, "warm_up": 0.6})
    (pair,) = next_remedies(run)
    assert (pair.name, pair.lr_factor, pair.warm_up) == ("lr-0.1+warm-up", 0.1, 800)
    change, rate, schedule = pair.note.split("\n")
    assert change == "learning rate × 0.1 and a warm-up over 800 steps on top"
    assert rate.startswith("lr *= ")
    assert schedule.startswith("scheduler = ")


def test_where_none_held_other_initial_weights_are_tried_at_a_tenth_of_the_rate(tmp_path):
    layers = [f"fc{i}" for i in range(6)]
    scales = (0, "init_scale", [f"{layer}.weight" for layer in layers], [1, 1, 20, 1, 1, 1])
    more = {"parameters": make_header(layers).parameters, "probes": [scales]}
    first = next_remedies(exploding(tmp_path, **more))
    (pair,) = next_remedies(exploding(tmp_path, [(trial, np.full(30, NAN)) for trial in first], **more))
    assert (pair.name, pair.layer, pair.lr_factor) == ("init+lr-0.1", "fc2", 0.1)
    without = next_remedies(played(tmp_path, **{"lr-0.1": NAN, "lr-0.5": NAN}))
    assert not any("+" in trial.name for trial in without)


def again(tmp_path, run, *more):
    """The run with further trials, each of 30 steps that end at a loss."""
    trials = [(one.header.trial, one.loss) for one in run.trials.values()]
    return exploding(tmp_path, [*trials, *((trial, np.full(30, loss)) for trial, loss in more)])


def test_after_the_pair_the_best_are_tried_in_full_until_one_holds(tmp_path):
    run = played(tmp_path, **{"lr-0.1": 0.4, "warm_up": 0.6})
    (pair,) = next_remedies(run)
    run = again(tmp_path, run, (pair, 0.2))
    (first,) = next_remedies(run)
    assert (first.name, first.lr_factor, first.indexes) == ("lr-0.1-whole", 0.1, tuple(range(1600)))
    (second,) = next_remedies(again(tmp_path, run, (first, NAN)))
    assert second.name == "warm-up-whole"
    (third,) = next_remedies(again(tmp_path, run, (first, NAN), (second, 0.5)))
    assert (third.name, third.lr_factor, third.warm_up) == ("lr-0.1+warm-up-whole", 0.1, 800)
    assert next_remedies(again(tmp_path, run, (first, NAN), (second, NAN), (third, NAN))) == ()
    assert next_remedies(again(tmp_path, run, (first, 0.4), (second, 0.5), (third, 0.4))) == ()
    assert next_remedies(run, 1599) == ()


def test_three_that_hold_in_full_are_enough(tmp_path):
    run = played(tmp_path, **{"lr-0.1": 0.4, "lr-0.25": 0.5, "lr-0.5": NAN, "warm_up": NAN})
    seen = []
    for loss in (0.4, 0.5, 0.3):
        (following,) = next_remedies(run)
        seen.append(following.name)
        run = again(tmp_path, run, (following, loss))
    assert seen == ["lr-0.1-whole", "lr-0.25-whole", "lr-0.5-whole"]  # that failed compressed too
    assert next_remedies(run) == ()
    best = remedies(run)[0]
    assert (best.trial, best.loss, best.best) == ("lr-0.5-whole", 0.3, True)


def test_a_short_plan_is_tried_in_full_at_once(tmp_path):
    short = exploding(tmp_path, plan=Plan(total_steps=300))
    assert {len(trial.indexes) for trial in next_remedies(short)} == {300}
    assert {len(trial.indexes) for trial in next_remedies(short, 600)} == {100}


def test_a_threshold_is_tried_in_full_as_it_will_be_used(tmp_path):
    run = exploding(tmp_path)
    indexes = next_remedies(run)[0].indexes
    clip = Trial("remedy", "clip", start="initial", note="clip at 0.5\nclip", max_norm=2.0, indexes=indexes)
    (whole,) = next_remedies(again(tmp_path, run, (clip, 0.3)))
    assert (whole.name, whole.max_norm) == ("clip-whole", pytest.approx(2.0 / 4.0))


@pytest.mark.parametrize("loss", [NAN, 11.0])
def test_what_did_not_hold_is_not_joined(tmp_path, loss):
    (following,) = next_remedies(played(tmp_path, **{"lr-0.1": 0.4, "warm_up": loss}))
    assert following.name == "lr-0.1-whole"


def test_two_of_a_kind_are_not_joined(tmp_path):
    (following,) = next_remedies(played(tmp_path, **{"lr-0.1": 0.4, "lr-0.5": 0.5}))
    assert following.name == "lr-0.1-whole"


def test_what_held_as_it_did_without_a_change_says_nothing(tmp_path):
    run = played(tmp_path, **{"lr-0.1": 0.4, "lr-0.5": NAN})
    indexes = run.trials["lr-0.1"].header.trial.indexes
    unclipped = Trial("candidate", "clip-none", start="initial", indexes=indexes)
    first, second = remedies(run)
    assert (first.outcome, first.best, first.length) == ("● held", True, "100 of 1,600")
    assert (second.outcome, second.best) == ("✖ failed", False)
    vain = remedies(again(tmp_path, run, (unclipped, 0.5)))
    assert [(one.outcome, one.best) for one in vain] == [("○ held, as without it", False), ("✖ failed", False)]
    (whole,) = next_remedies(run)
    proven = remedies(again(tmp_path, run, (unclipped, 0.5), (whole, 0.3)))
    assert (proven[0].outcome, proven[0].best, proven[0].length) == ("● held", True, "1,600")
    assert len(proven) == 2


def test_short_time_shortens_and_then_leaves_out(tmp_path):
    assert {len(trial.indexes) for trial in next_remedies(exploding(tmp_path), 200)} == {40}
    assert [trial.name for trial in next_remedies(exploding(tmp_path), 45)] == ["lr-0.5", "lr-0.25"]
    assert next_remedies(exploding(tmp_path), 19) == ()


def test_the_lines_that_scale_all_layers_do_what_was_tried(tmp_path):
    def made():
        torch.manual_seed(0)
        stack = [part for _ in range(7) for part in (torch.nn.Linear(3, 3), torch.nn.ReLU())]
        return torch.nn.Sequential(torch.nn.Embedding(5, 3), *stack, torch.nn.LayerNorm(3))

    model, pasted, tried = made(), made(), made()
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    parameters = tuple(
        Parameter(name, layer := name.rpartition(".")[0], kinds[layer], tuple(weights.shape), "float32", i)
        for i, (name, weights) in enumerate(model.named_parameters())
    )
    deep = [name for name, kind in kinds.items() if kind == "Linear"]
    probes = [
        (0, "grad_out_norm", deep, [4.0**-i for i in range(7)]),
        (0, "forward_order", deep, [float(i) for i in range(7)]),
    ]
    run = make_run(tmp_path, EXPLODING, loss=EXPLODING, parameters=parameters, probes=probes, plan=PLAN)
    remedy = by_name(next_remedies(run))["init"]
    exec(remedy.note.split("\n", 1)[1], {"model": pasted})  # what the user pastes
    with torch.no_grad():
        scaled_layer(remedy.layer, remedy.layer_scale).prepare(SimpleNamespace(model=tried))
    assert remedy.layer_scale == pytest.approx(0.25)
    for name, weights in model.named_parameters():
        linear = kinds[name.rpartition(".")[0]] == "Linear" and weights.dim() > 1
        assert torch.equal(dict(pasted.named_parameters())[name], weights * (0.25 if linear else 1.0))
        assert torch.equal(dict(tried.named_parameters())[name], dict(pasted.named_parameters())[name])


def standardising(tmp_path, inputs=None, targets=None, kind="Linear", loss="MSELoss()"):
    """The remedy of an exploding run whose data has these sizes."""
    probes = []
    if inputs:
        probes += [(0, f"input_{name}", ["fc1"], [inputs], [1]) for name in ("rms", "largest", "median")]
    if targets:
        probes += [(0, "target_rms", ["(root)"], [targets]), (0, "output_rms", ["(root)"], [0.1])]
    parameters = tuple(dataclasses.replace(one, type=kind) for one in make_header().parameters)
    pieces = (Piece("loss", loss, "model.py:1"),)
    run = make_run(tmp_path, EXPLODING, loss=EXPLODING, parameters=parameters, pieces=pieces, probes=probes, plan=PLAN)
    return by_name(next_remedies(run)).get("data")


def test_odd_inputs_are_tried_as_standard_ones(tmp_path):
    remedy = standardising(tmp_path, inputs=124.0)
    assert remedy.standardised == ("fc1",)
    first, line = remedy.note.split("\n")
    assert first == "each feature that enters fc1 with mean 0 and variance 1"
    scope = {"X": torch.randn(50, 3) * 40 + 7}
    exec(line, scope)
    assert scope["X"].std(0).tolist() == pytest.approx([1] * 3)


def test_channels_of_images_are_standardised_each(tmp_path):
    line = standardising(tmp_path, inputs=124.0, kind="Conv2d").note.split("\n")[1]
    scope = {"X": torch.randn(50, 3, 4, 4) * torch.tensor([1.0, 40.0, 9.0])[:, None, None]}
    exec(line, scope)
    assert scope["X"].std((0, 2, 3)).tolist() == pytest.approx([1] * 3)


def test_odd_inputs_and_targets_are_one_remedy(tmp_path):
    remedy = standardising(tmp_path, inputs=124.0, targets=2e5)
    assert remedy.standardised == ("fc1", TARGETS)
    assert [line[0] for line in remedy.note.split("\n")[1:]] == ["X", "Y"]


def test_what_is_its_own_target_is_standardised_in_one_line(tmp_path):
    remedy = standardising(tmp_path, inputs=124.0, targets=124.0)
    assert remedy.standardised == ("fc1", TARGETS)
    assert len(remedy.note.split("\n")) == 2


@pytest.mark.parametrize(
    ("targets", "loss"), [(None, "MSELoss()"), (2e5, "PoissonNLLLoss()"), (2.0, "mse_loss to the input")]
)
def test_targets_that_stay_as_they_are(tmp_path, targets, loss):
    assert standardising(tmp_path, targets=targets, loss=loss) is None


def test_what_breaks_in_another_order_is_mended_in_that_order(tmp_path):
    rest, indexes = tuple(range(50, 1600)), tuple(range(0, 1600, 4))
    trials = [
        (Trial("rehearsal", "x1", indexes=rest), np.ones(len(rest))),
        (Trial("candidate", "final-shuffled-1", start="initial", indexes=indexes, shuffled=1), np.ones(len(indexes))),
        (Trial("candidate", "final-shuffled-2", start="initial", indexes=indexes, shuffled=2), np.array([1.0, NAN])),
    ]
    made = {trial.name: (trial, losses, np.ones(len(losses))) for trial, losses in trials}
    run = make_run(tmp_path, [1.0] * 50, trials=made, plan=PLAN)
    asked = next_remedies(run)
    assert {trial.name for trial in asked} >= {"lr-0.5", "lr-0.25", "lr-0.1", "warm-up"}
    assert {(trial.indexes, trial.shuffled) for trial in asked} == {(indexes, 2)}
    assert len(next_remedies(run, 2 * len(indexes) + 1)) == 2


def test_a_remedy_that_blew_up_on_its_way_did_not_hold(tmp_path):
    tried = Trial("remedy", "lr-0.5", start="initial", indexes=tuple(range(0, 1600, 4)), note="learning rate × 0.5")
    calm, back = [1.0] * 200 + [0.5] * 200, [1.0] * 200 + [1e17, 0.5] * 50 + [0.5] * 100
    for losses, held in ((calm, True), (back, False)):
        (found,) = remedies(exploding(tmp_path, [(tried, np.array(losses))]))
        assert found.held is held


def test_usual_settings_are_tried_in_place_of_odd_ones(tmp_path):
    optimizer = Optimizer("Adam", (Group(0.1, (0, 1, 2)),), {"betas": [0.95, 0.5], "eps": 1e-15})
    remedy = by_name(next_remedies(exploding(tmp_path, optimizer=optimizer)))["settings"]
    assert remedy.settings == {"betas": [0.9, 0.999], "eps": 1e-8}
    first, line = remedy.note.split("\n")
    assert first == "betas (0.9, 0.999) and eps 1e-08"
    made = torch.optim.Adam([torch.zeros(1)], betas=(0.95, 0.5), eps=1e-15)
    exec(line, {"optimizer": made})
    assert (made.param_groups[0]["betas"], made.param_groups[0]["eps"]) == ((0.9, 0.999), 1e-8)
