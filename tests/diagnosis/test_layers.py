import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscope.diagnosis.layers import rank_layers
from gradscope.diagnosis.peers import excess, median_of_others
from gradscope.runs.schema import Group, Optimizer, Parameter
from tests.builders import make_run

NAN = float("nan")


def linear(name, order, *, shape=(16, 16), kind="Linear", bias=False):
    made = [Parameter(f"{name}.weight", name, kind, shape, "float32", order)]
    return made + ([Parameter(f"{name}.bias", name, kind, shape[:1], "float32", order)] if bias else [])


def stack(count, **more):
    return tuple(p for i in range(count) for p in linear(f"fc{i}", i, **more))


def scales_of(parameters, rms=1.0, **own):
    """The init_scale probe: rms · √fan_in of each parameter, `own` by parameter name with dots as underscores."""
    values = []
    for p in parameters:
        fan_in = math.prod(p.shape[1:]) if len(p.shape) > 1 else 1
        values.append(own.get(p.name.replace(".", "_"), rms) * math.sqrt(fan_in))
    return (0, "init_scale", [p.name for p in parameters], values)


def run_with(tmp_path, parameters, *probes, norms=(1.0,) * 20, rates=None, **header):
    groups = tuple(Group(rate, tuple(ids)) for rate, ids in (rates or {0.1: range(len(parameters))}).items())
    lr = {"lr": [[g.lr for g in groups]] * len(norms)}
    optimizer = Optimizer("SGD", groups)
    return make_run(tmp_path, norms, parameters=parameters, probes=probes, optimizer=optimizer, columns=lr, **header)


def gains(forward, backward, step=0, activation=True):
    tail = "_with_activation" if activation else ""
    names = [f"fc{i}" for i in range(len(forward))]
    probes = [(step, f"forward_gain{tail}", names, forward)]
    kept = [(name, gain) for name, gain in zip(names, backward, strict=True) if not math.isnan(gain)]
    return [*probes, (step, f"backward_gain{tail}", [n for n, _ in kept], [g for _, g in kept])]


def by_name(run):
    return {risk.name: risk for risk in rank_layers(run)}


def test_a_large_initialisation_is_found_although_its_own_gradient_is_the_smallest(tmp_path):
    parameters = stack(6)
    norms = np.ones((20, 6))
    norms[:, 2] = 1e-3
    run = make_run(tmp_path, grad_norm=norms, parameters=parameters, probes=[scales_of(parameters, fc2_weight=30.0)])
    first = rank_layers(run)[0]
    assert (first.name, first.level, first.component) == ("fc2", "high", "initialisation")
    assert first.factor == pytest.approx(30)
    assert first.advice == "Scale its init by 0.0333."
    assert first.evidence["initialisation factor"] == pytest.approx(30)


@pytest.mark.parametrize("convention", [lambda i, o: 0.02, lambda i, o: i**-0.5, lambda i, o: (2 / (i + o)) ** 0.5])
def test_no_usual_scheme_of_initialisation_stands_out(tmp_path, convention):
    shapes = [(64, 16), (1024, 64), (16, 1024), (8, 16), (256, 8)]
    parameters = tuple(p for i, shape in enumerate(shapes) for p in linear(f"fc{i}", i, shape=shape))
    own = {f"fc{i}_weight": convention(shape[1], shape[0]) for i, shape in enumerate(shapes)}
    run = run_with(tmp_path, parameters, scales_of(parameters, **own))
    assert {risk.level for risk in rank_layers(run)} == {"low"}


def test_an_initialisation_that_many_of_the_like_have_is_a_recipe(tmp_path):
    """GPT-2's: projections back into the stream begin 1/√(2 depth) as large, and its Conv1D lies transposed."""
    block = {"attn.c_attn": (64, 192), "attn.c_proj": (64, 64), "mlp.c_fc": (64, 256), "mlp.c_proj": (256, 64)}
    shapes = {f"h.{i}.{name}": shape for i in range(6) for name, shape in block.items()}
    parameters = tuple(p for i, name in enumerate(shapes) for p in linear(name, i, shape=shapes[name], kind="Conv1D"))
    own = {f"{name}_weight".replace(".", "_"): 0.02 / math.sqrt(12) for name in shapes if "c_proj" in name}
    risks = by_name(run_with(tmp_path / "recipe", parameters, scales_of(parameters, 0.02, **own)))
    assert {risk.level for risk in risks.values()} == {"low"}
    for name, planted in (("h.3.mlp.c_fc", 0.1), ("h.2.attn.c_proj", 0.1)):
        scales = scales_of(parameters, 0.02, **own | {f"{name}_weight".replace(".", "_"): planted})
        first = rank_layers(run_with(tmp_path / name, parameters, scales))[0]
        assert (first.name, first.level, first.component) == (name, "high", "initialisation")


def test_biases_are_no_weights(tmp_path):
    parameters = stack(5, bias=True)
    run = run_with(tmp_path, parameters, scales_of(parameters, fc1_bias=1000.0))
    assert by_name(run)["fc1"].component is None


def test_a_weight_alone_in_its_role_is_ranked_but_not_accused(tmp_path):
    parameters = (*stack(4), *linear("odd", 9, kind="Bilinear"))
    run = run_with(tmp_path, parameters, scales_of(parameters, odd_weight=50.0))
    first = rank_layers(run)[0]
    assert (first.name, first.level) == ("odd", "low")
    assert first.factor == pytest.approx(50)


def test_a_weight_alone_among_few_matrices_is_not_compared(tmp_path):
    parameters = (*linear("a", 0), *linear("odd", 1, kind="Bilinear"))
    run = run_with(tmp_path, parameters, scales_of(parameters, odd_weight=50.0))
    assert by_name(run)["odd"].score == 0


def test_an_embedding_alone_is_measured_against_one(tmp_path):
    parameters = (*linear("emb", 0, kind="Embedding"), *stack(4))
    run = run_with(tmp_path, parameters, scales_of(parameters, emb_weight=20.0))
    first = rank_layers(run)[0]
    assert (first.name, first.level, first.peers) == ("emb", "low", 1.0)
    assert first.factor == pytest.approx(20)


def test_an_embedding_as_torch_makes_it_does_not_stand_out_from_smaller_ones(tmp_path):
    names = ("shared", "encoder.bias", "decoder.bias")
    parameters = tuple(p for i, n in enumerate(names) for p in linear(n, i, shape=(200, 64), kind="Embedding"))
    for rms, level in ((1.01, "low"), (2.0, "medium")):
        scales = scales_of(parameters, 0.125, shared_weight=rms)
        assert by_name(run_with(tmp_path / level, parameters, scales))["shared"].level == level


def test_the_worst_weight_of_a_layer_counts(tmp_path):
    parameters = []
    for i in range(5):
        for leaf in ("weight_ih_l0", "weight_hh_l0"):
            parameters.append(Parameter(f"rnn{i}.{leaf}", f"rnn{i}", "RNN", (8, 8), "float32", i))
    run = run_with(tmp_path, tuple(parameters), scales_of(parameters, rnn3_weight_hh_l0=10.0))
    assert rank_layers(run)[0].name == "rnn3"
    again = run_with(tmp_path, tuple(parameters), scales_of(parameters, rnn3_weight_ih_l0=10.0))
    assert rank_layers(again)[0].name == "rnn3"


def test_a_learning_rate_far_above_the_others_is_found(tmp_path):
    parameters = stack(6)
    run = run_with(tmp_path, parameters, scales_of(parameters), rates={0.1: [0, 1, 2, 3, 5], 3.0: [4]})
    first = rank_layers(run)[0]
    assert (first.name, first.level, first.component) == ("fc4", "high", "learning rate")
    assert first.factor == pytest.approx(30)
    assert first.peers == pytest.approx(0.1)


def test_a_learning_rate_that_many_layers_have_is_a_recipe(tmp_path):
    parameters = stack(8)
    run = run_with(tmp_path, parameters, scales_of(parameters), rates={0.1: range(5), 3.0: [5, 6, 7]})
    assert {risk.level for risk in rank_layers(run)} == {"low", "medium"}


def test_frozen_layers_and_a_warm_up_from_zero_do_not_disturb_the_rates(tmp_path):
    parameters = list(stack(6))
    parameters[0] = replace(parameters[0], trainable=False)
    optimizer = Optimizer("SGD", (Group(0.0, (0, 1, 2, 3, 4)), Group(0.0, (5,))))
    lr = [[0.0, 0.0]] + [[0.01, 0.5]] * 19
    probes = [scales_of(parameters)]
    run = make_run(
        tmp_path, [1.0] * 20, parameters=tuple(parameters), probes=probes, optimizer=optimizer, columns={"lr": lr}
    )
    assert rank_layers(run)[0].name == "fc5"
    assert "learning rate factor" not in by_name(run)["fc0"].evidence
    never = make_run(
        tmp_path, [1.0] * 20, parameters=tuple(parameters), optimizer=optimizer, columns={"lr": [[0.0, 0.0]] * 20}
    )
    assert all("learning rate factor" not in risk.evidence for risk in rank_layers(never))


def test_a_run_without_an_optimizer(tmp_path):
    parameters = stack(4)
    run = make_run(tmp_path, [1.0] * 20, parameters=parameters, optimizer=None, probes=[scales_of(parameters)])
    assert [risk.level for risk in rank_layers(run)] == ["low"] * 4


def test_gain_needs_both_directions(tmp_path):
    parameters = stack(12)
    both, one = [1.0] * 12, [1.0] * 12
    both[7] = 50.0
    amplifies = rank_layers(run_with(tmp_path, parameters, *gains(both, both)))[0]
    assert (amplifies.name, amplifies.level, amplifies.component) == ("fc7", "high", "gain")
    assert "multiplies activations by 50 (others: 1) and gradients by 50 (others: 1)" in amplifies.message
    assert {r.level for r in rank_layers(run_with(tmp_path, parameters, *gains(both, one)))} == {"low"}


def test_gains_without_an_activation_behind_are_used_too(tmp_path):
    parameters, both = stack(12), [1.0] * 11 + [50.0]
    run = run_with(tmp_path, parameters, *gains(both, both, activation=False))
    assert rank_layers(run)[0].name == "fc11"


def test_a_gain_of_one_is_none_where_the_others_shrink_what_they_get(tmp_path):
    """A head with a norm behind it in a transformer that starts with small weights."""
    both = [0.15] * 11 + [1.0]
    risks = by_name(run_with(tmp_path / "one", stack(12), *gains(both, both)))
    assert {risk.level for risk in risks.values()} == {"low"}
    assert "gain factor" not in risks["fc11"].evidence
    both[-1] = 5.0
    assert by_name(run_with(tmp_path / "five", stack(12), *gains(both, both)))["fc11"].level == "high"


def test_the_gain_of_what_a_norm_follows_or_lies_in_tells_of_its_input_alone(tmp_path):
    both = [1.0] * 11 + [50.0]
    flags = (0, "normalised", [f"fc{i}" for i in range(12)], [0.0] * 11 + [1.0])
    assert by_name(run_with(tmp_path / "follows", stack(12), *gains(both, both), flags))["fc11"].level == "low"
    inside = (*stack(12), *linear("fc11.norm", 12, kind="LayerNorm", shape=(16,)))
    assert by_name(run_with(tmp_path / "inside", inside, *gains(both, both)))["fc11"].level == "low"
    beside = (*stack(12), *linear("fc110.norm", 12, kind="LayerNorm", shape=(16,)))
    assert by_name(run_with(tmp_path / "beside", beside, *gains(both, both)))["fc11"].level == "high"


def test_weights_no_larger_than_torchs_own_are_not_accused(tmp_path):
    parameters = stack(8, shape=(48, 48))
    for rms, level in ((0.083, "low"), (0.5, "high")):
        scales = scales_of(parameters, 0.01, fc3_weight=rms)
        first = rank_layers(run_with(tmp_path / level, parameters, scales))[0]
        assert (first.name, first.level) == ("fc3", level)


def test_the_first_layer_has_no_gradient_at_its_input_and_counts_half(tmp_path):
    parameters = stack(12)
    forward, backward = [1e4] + [1.0] * 11, [NAN] + [1.0] * 11
    first = rank_layers(run_with(tmp_path, parameters, *gains(forward, backward)))[0]
    assert (first.name, first.level) == ("fc0", "medium")
    assert first.score == pytest.approx(0.5 * 4 * 11 / 14)
    assert "gradients by" not in first.message


def test_only_the_stable_prefix_counts(tmp_path):
    parameters = stack(12)
    calm, wild = [1.0] * 12, [1.0] * 11 + [1e6]
    norms = [1.0] * 5 + [1e6] * 15
    run = run_with(tmp_path, parameters, *gains(calm, calm), *gains(wild, wild, step=10), norms=norms)
    assert rank_layers(run)[0].score == pytest.approx(0.0)
    late = run_with(tmp_path, parameters, *gains(wild, wild, step=10), norms=norms)
    assert rank_layers(late)[0].name == "fc11"


def test_a_bias_that_outweighs_the_weights_is_medium_at_most(tmp_path):
    parameters = stack(8, bias=True)
    inputs = (0, "in_rms", [f"fc{i}" for i in range(8)], [1.0] * 8)
    run = run_with(tmp_path, parameters, scales_of(parameters, rms=0.25, fc3_bias=1000.0), inputs)
    first = rank_layers(run)[0]
    assert (first.name, first.level, first.component) == ("fc3", "medium", "bias")
    assert first.advice == "Try it with its bias starting at zero."


def test_the_cause_that_accuses_is_told_and_its_layer_comes_first(tmp_path):
    """fc5's gain stands out further, but a norm follows."""
    parameters, both = stack(8, bias=True), [1.0] * 5 + [1e4] + [1.0] * 2
    names = [f"fc{i}" for i in range(8)]
    probes = [(0, "in_rms", names, [1.0] * 8), (0, "normalised", names, [0.0] * 5 + [1.0] + [0.0] * 2)]
    scales = scales_of(parameters, rms=0.25, fc5_bias=1000.0, fc2_bias=100.0)
    first, second = rank_layers(run_with(tmp_path, parameters, *gains(both, both), *probes, scales))[:2]
    assert [(one.name, one.component, one.level) for one in (first, second)] == [
        ("fc5", "bias", "medium"),
        ("fc2", "bias", "medium"),
    ]


def test_what_attention_adds_to_its_queries_is_no_bias(tmp_path):
    """XLNet's r_w_bias has a row a head."""
    own = [
        [Parameter(f"{i}.r_w_bias", f"{i}", "Attention", (4, 12), "float32", i), *linear(f"{i}", i)] for i in range(8)
    ]
    parameters, inputs = tuple(p for pair in own for p in pair), (0, "in_rms", [f"{i}" for i in range(8)], [1.0] * 8)
    scales = scales_of(parameters, 0.25, **{"3_r_w_bias": 1.0})
    assert by_name(run_with(tmp_path, parameters, scales, inputs))["3"].component != "bias"


def test_biases_of_zero_and_inputs_of_zero_are_like_their_peers(tmp_path):
    parameters = stack(8, bias=True)
    zeros = {f"fc{i}_bias": 0.0 for i in range(8)}
    inputs = (0, "in_rms", [f"fc{i}" for i in range(8)], [0.0] + [1.0] * 7)
    run = run_with(tmp_path, parameters, scales_of(parameters, **zeros), inputs)
    assert [risk.score for risk in rank_layers(run)] == [0.0] * 8


def bare_run(tmp_path, bare, gain):
    names = [f"fc{i}" for i in range(6)]
    forward = [1.0] * 6
    forward[bare] = gain
    flags = [0.0 if i == bare else 1.0 for i in range(6)]
    return run_with(tmp_path, stack(6), *gains(forward, forward), (0, "normalised", names, flags))


def test_a_missing_normalisation_is_named(tmp_path):
    first = rank_layers(bare_run(tmp_path, 3, 3.0))[0]
    assert (first.name, first.component) == ("fc3", "missing normalisation")
    assert "no normalisation here, unlike its siblings" in first.message
    assert first.score > math.log10(3) * 5 / 8


def test_a_missing_normalisation_is_told_beside_another_cause(tmp_path):
    parameters = stack(6)
    names, flags = [f"fc{i}" for i in range(6)], [1.0, 1.0, 1.0, 0.0, 1.0, 0.0]
    run = run_with(tmp_path, parameters, scales_of(parameters, fc3_weight=10.0), (0, "normalised", names, flags))
    first = rank_layers(run)[0]
    assert (first.name, first.component) == ("fc3", "initialisation")
    assert first.message == "fc3 starts with weights 10 × its peers'; no normalisation here, unlike its siblings."


def test_a_block_whose_stream_is_not_normalised_is_named_among_its_like(tmp_path):
    names = [f"blocks.{i}.{leaf}" for i in range(6) for leaf in ("fc1", "fc2")]
    parameters = tuple(p for i, name in enumerate(names) for p in linear(name, i))
    flags = [0.0 if name == "blocks.3.fc1" or name.endswith("fc2") else 1.0 for name in names]
    first, second = rank_layers(
        run_with(tmp_path, parameters, scales_of(parameters), (0, "fed_normalised", names, flags))
    )[:2]
    assert (first.name, first.component, first.level) == ("blocks.3.fc1", "missing normalisation", "medium")
    assert second.level == "low"


def test_layers_of_a_block_that_differ_by_a_number_are_no_siblings(tmp_path):
    names = [f"blocks.{i}.mlp.{leaf}" for i in range(3) for leaf in (0, 2)]
    parameters = tuple(p for i, name in enumerate(names) for p in linear(name, i))
    flags = [0.0 if name.endswith("2") else 1.0 for name in names]
    run = run_with(tmp_path, parameters, scales_of(parameters), (0, "fed_normalised", names, flags))
    assert {risk.level for risk in rank_layers(run)} == {"low"}


def test_what_is_bare_in_every_block_is_a_recipe(tmp_path):
    names = [f"stages.{i}.{leaf}" for i in range(4) for leaf in ("conv", "mix", "out", "down")]
    parameters = tuple(p for i, name in enumerate(names) for p in linear(name, i))

    def levels(where, bare):
        flags = [0.0 if name in bare else 1.0 for name in names]
        run = run_with(tmp_path / where, parameters, scales_of(parameters), (0, "normalised", names, flags))
        return {risk.name: risk.level for risk in rank_layers(run) if risk.level != "low"}

    assert levels("all", [name for name in names if name.endswith("down")]) == {}
    assert levels("one", ["stages.2.down"]) == {"stages.2.down": "medium"}


def test_first_and_last_layer_without_a_norm_hide_no_missing_one(tmp_path):
    names, flags = [f"fc{i}" for i in range(8)], [0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0]
    forward = [1.0, 1.0, 1.0, 3.0, 1.0, 1.0, 1.0, 1.0]
    run = run_with(tmp_path, stack(8), *gains(forward, forward), (0, "normalised", names, flags))
    assert rank_layers(run)[0].component == "missing normalisation"


@pytest.mark.parametrize("end", [0, 5])
def test_the_first_and_the_last_layer_need_no_norm(tmp_path, end):
    assert rank_layers(bare_run(tmp_path, end, 3.0))[0].component == "gain"
    assert by_name(bare_run(tmp_path, end, 1.0))[f"fc{end}"].level == "low"


@pytest.mark.parametrize("gain", [0.5, 1.0])
def test_a_missing_normalisation_that_amplifies_nothing_is_named_too(tmp_path, gain):
    first = rank_layers(bare_run(tmp_path, 3, gain))[0]
    assert (first.name, first.component, first.level) == ("fc3", "missing normalisation", "medium")
    assert first.message.startswith("fc3: no normalisation here, unlike its siblings; it multiplies activations by")
    assert first.factor is None


def test_a_missing_normalisation_comes_before_the_neighbours_it_makes_amplify(tmp_path):
    names, flags = [f"fc{i}" for i in range(6)], [1.0, 1.0, 0.0, 1.0, 1.0, 1.0]
    forward = [1.0, 1.0, 0.4, 2.4, 1.0, 1.0]
    run = run_with(tmp_path, stack(6), *gains(forward, forward), (0, "normalised", names, flags))
    assert [risk.name for risk in rank_layers(run)[:2]] == ["fc2", "fc3"]


def test_layers_like_their_peers_keep_their_order_when_training_is_chaos(tmp_path):
    """Gains that differ by less than 25 % after the first step, as the same training's do on another scale of the loss."""
    orders = []
    for late in ([1.0, 1.1, 1.0, 1.2, 1.0, 1.0], [1.2, 1.0, 1.0, 1.0, 1.1, 1.0]):
        first = [1.0, 1.01, 1.05, 1.02, 1.0, 0.99]
        run = run_with(tmp_path, stack(6), *gains(first, first), *gains(late, late, 5), *gains(late, late, 10))
        orders.append([risk.name for risk in rank_layers(run)])
    assert orders[0] == orders[1]


def recurrent(kind, *layers, width=8, inputs=8):
    """Parameters of recurrent layers by dotted path, each of so many layers in itself."""
    gates = 3 if kind.startswith("GRU") else 4
    return tuple(
        Parameter(f"{name}.{leaf}_l{k}", name, kind, (gates * width, inputs), "float32", order)
        for order, (name, count) in enumerate(layers)
        for k in range(count)
        for leaf in ("weight_ih", "weight_hh")
    )


def gate_scales(parameters, gates, **own):
    """The gate_scale probe: 1, or what `own` says by a parameter's leaf: one number, or one a gate."""
    rows = [(p.name, gate, own.get(p.name.rpartition(".")[2], 1.0)) for p in parameters for gate in range(gates)]
    values = [value[gate] if isinstance(value, list) else value for _, gate, value in rows]
    return (0, "gate_scale", [name for name, _, _ in rows], values, [gate for _, gate, _ in rows])


@pytest.mark.parametrize(
    ("kind", "count", "own", "said", "weights"),
    [
        ("LSTM", 2, {"weight_hh_l1": 8.0}, "weight_hh_l1 8 ×", "rnn.weight_hh_l1"),
        ("LSTM", 1, {"weight_hh_l0": 8.0}, "weight_hh_l0 8 ×", "rnn.weight_hh_l0"),
        ("GRU", 1, {"weight_ih_l0": 8.0}, "weight_ih_l0 8 ×", "rnn.weight_ih_l0"),
        (
            "LSTM",
            1,
            {"weight_hh_l0": [1.0, 9.0, 1, 1]},
            "the forget gate of weight_hh_l0 9 ×",
            "rnn.weight_hh_l0[8:16]",
        ),
        ("GRUCell", 1, {"weight_hh_l0": [1.0, 1, 9.0]}, "the new gate of weight_hh_l0 9 ×", "rnn.weight_hh_l0[16:24]"),
    ],
)
def test_one_matrix_or_one_gate_of_a_recurrent_layer_is_named(tmp_path, kind, count, own, said, weights):
    parameters = (*recurrent(kind, ("rnn", count)), *linear("head", 1))
    gates = 3 if kind.startswith("GRU") else 4
    probes = scales_of(parameters), gate_scales(parameters[:-1], gates, **own)
    first = rank_layers(run_with(tmp_path, parameters, *probes))[0]
    assert (first.name, first.level, first.weights) == ("rnn", "high", weights)
    assert said in first.message


def test_orthogonal_recurrent_matrices_beside_torchs_own_inputs_are_fine(tmp_path):
    parameters = recurrent("LSTM", ("rnn", 2))
    gates = gate_scales(parameters, 4, weight_hh_l0=1.73, weight_hh_l1=1.73)
    run = run_with(tmp_path, parameters, scales_of(parameters), gates)
    assert rank_layers(run)[0].level == "low"


def test_few_siblings_say_nothing_about_norms(tmp_path):
    names = ["fc0", "fc1", "fc2"]
    run = run_with(tmp_path, stack(3), *gains([3.0, 1, 1], [3.0, 1, 1]), (0, "normalised", names, [0.0, 1.0, 1.0]))
    assert rank_layers(run)[0].component == "gain"


def test_without_probes_no_layer_is_accused(tmp_path):
    norms = np.ones((20, 3))
    norms[:, 1] = 1e6
    risks = rank_layers(make_run(tmp_path, grad_norm=norms))
    assert risks[0].name == "fc2"
    assert [risk.level for risk in risks] == ["low"] * 3
    assert risks[0].component is None
    assert "does not make a layer the cause" in risks[0].message


def test_an_empty_run_still_lists_its_layers(tmp_path):
    assert [risk.score for risk in rank_layers(make_run(tmp_path, []))] == [0.0] * 3


def test_a_layer_that_could_not_be_measured_says_why(tmp_path):
    parameters = stack(4)
    run = run_with(tmp_path, parameters, scales_of(parameters), unmeasured={"fc1": "runs inside torch.compile"})
    assert "its gain was not measured: runs inside torch.compile" in by_name(run)["fc1"].message


def test_updates_are_evidence_but_not_score(tmp_path):
    parameters = stack(4)
    names = [p.name for p in parameters]
    updates = [(0, "update_norm", names, [1.0, 1.0, 1.0, 500.0]), (0, "weight_norm", names, [100.0] * 4)]
    run = run_with(tmp_path, parameters, scales_of(parameters), *updates)
    risk = by_name(run)["fc3"]
    assert risk.evidence["update/weight"] == pytest.approx(5)
    assert risk.score == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=15))
def test_median_of_others_leaves_the_own_value_out(values):
    array = np.array(values)
    expected = [np.median(np.delete(array, i)) for i in range(len(array))]
    assert median_of_others(array) == pytest.approx(np.array(expected))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=15))
def test_excess_is_the_distance_from_the_others_in_their_own_spread(values):
    array = np.array(values)
    found = excess(array, [np.arange(len(array))])
    for i in range(len(array)):
        others = np.delete(array, i)
        spread = 1.4826 * np.median(np.abs(others - np.median(others))) + 0.05
        assert found.decades[i] == pytest.approx(array[i] - np.median(others))
        assert found.z[i] == pytest.approx((array[i] - np.median(others)) / spread)
        assert found.peers[i] == len(array) - 1


@settings(max_examples=20, deadline=None)
@given(scale=st.integers(-30, 30))
def test_the_scale_of_the_gradient_does_not_change_the_ranking(tmp_path_factory, scale):
    parameters = stack(8)
    forward, backward = [1.0, 2.0, 1.0, 1.5, 9.0, 1.0, 1.1, 1.0], [1.0, 1.0, 2.0, 1.5, 8.0, 1.0, 1.2, 1.0]
    probes = [scales_of(parameters), *gains(forward, backward)]
    folder = tmp_path_factory.mktemp("s")
    plain = run_with(folder, parameters, *probes)
    scaled = run_with(folder, parameters, *probes, norms=[2.0**scale] * 20)
    assert [(r.name, r.level, r.score) for r in rank_layers(plain)] == [
        (r.name, r.level, r.score) for r in rank_layers(scaled)
    ]


def test_a_norm_is_not_accused_of_its_gain(tmp_path):
    names = [f"norm{i}" for i in range(6)]
    parameters = tuple(Parameter(f"{n}.weight", n, "LayerNorm", (4,), "float32", i) for i, n in enumerate(names))
    ups = [(0, f"{side}_gain", names, [1.0, 1.0, 30.0, 1.0, 1.0, 1.0]) for side in ("forward", "backward")]
    assert {risk.level for risk in rank_layers(run_with(tmp_path, parameters, *ups))} == {"low"}


def test_the_model_itself_is_called_root(tmp_path):
    parameters = (*stack(4), Parameter("scale", "", "Model", (4, 4), "float32", 4))
    run = run_with(tmp_path, parameters, scales_of(parameters))
    assert by_name(run)[""].message.startswith("(root): like its peers")


def test_a_rate_is_held_against_one_that_a_layer_has(tmp_path):
    run = run_with(tmp_path, stack(3), rates={0.01: [0, 1], 0.001: [2]})
    assert {risk.level for risk in rank_layers(run)} == {"low"}


def test_which_parameter_of_a_layer_learns_fast_is_named(tmp_path):
    parameters = stack(6, bias=True)
    slow = [i for i in range(12) if i != 5]
    risk = rank_layers(run_with(tmp_path, parameters, scales_of(parameters), rates={0.1: slow, 10.0: [5]}))[0]
    assert risk.message == "fc2 has a learning rate 100 × the others' (bias)."


def test_frozen_layers_that_are_like_their_peers_come_last(tmp_path):
    parameters = tuple(replace(p, trainable=p.layer not in ("fc0", "fc2")) for p in stack(6))
    run = run_with(tmp_path, parameters, scales_of(parameters))
    ranked = rank_layers(run)
    assert {one.name for one in ranked[-2:]} == {"fc0", "fc2"}
    assert all(one.message.endswith(": frozen: it gets no gradient.") for one in ranked[-2:])
    accused = rank_layers(run_with(tmp_path / "bad", parameters, scales_of(parameters, fc0_weight=30.0)))
    assert accused[0].name == "fc0"
