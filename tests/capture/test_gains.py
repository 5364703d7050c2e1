"""Gains equal those that torch's own module hooks give, and measuring them changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gradscope.capture import gains, graph
from gradscope.capture.gains import GainProbe, eagerly
from gradscope.capture.graph import edge_of, only_source, uses

Rows = dict[str, dict[str, float]]


class Collected:
    """Takes what a probe emits, by probe and subject."""

    def __init__(self) -> None:
        self.rows: Rows = {}

    def __call__(
        self, probe: str, subjects: Sequence[str], values: Sequence[float], index: Sequence[int] | None = None
    ) -> None:
        self.rows.setdefault(probe, {}).update(zip(subjects, values, strict=True))


def measured(model: nn.Module, *inputs: Any, scale: float = 1.0) -> tuple[Rows, GainProbe]:
    probe, seen = GainProbe(model), Collected()
    probe.begin(0)
    (scalar(model(*inputs)) * scale).backward()
    probe.end(0, seen)
    return seen.rows, probe


def scalar(output: Any) -> torch.Tensor:
    return next(gains.float_tensors(output)).square().mean()


class Residual(nn.Module):
    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.fc, self.norm, self.act = nn.Linear(6, 6), nn.LayerNorm(6), nn.ReLU(inplace)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.act(self.norm(self.fc(x)))


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.cell, self.head = nn.Linear(6, 6), nn.RNNCell(6, 6), nn.Linear(6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        hidden = torch.zeros(len(x), 6)
        for _ in range(4):
            hidden = self.cell(x, hidden)
        return self.head(hidden)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(torch.tanh(self.b(torch.tanh(self.a(x)))))


class Dense(nn.Module):
    """Its input is read three times inside, and twice outside."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.scale = nn.Linear(6, 6), nn.Parameter(torch.full((6,), 0.3))
        self.inner = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        return h * 3 + self.inner(h) * torch.sigmoid(h) + h * self.scale


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first, self.block, self.reentrant = nn.Linear(6, 6), Residual(), reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = checkpoint(self.block, self.first(x), use_reentrant=self.reentrant)  # type: ignore[no-untyped-call]
        return out


class Several(nn.Module):
    """Several inputs by name, a dictionary of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.w = nn.Bilinear(6, 6, 6), nn.Parameter(torch.ones(6))

    def forward(self, *, left: torch.Tensor, right: torch.Tensor) -> dict[str, Any]:
        return {"name": "out", "value": [self.mix(left, right) * self.w]}


class Halves(nn.Module):
    """Gives two parts, of which the first is never used: no gradient reaches it."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 12))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (x @ self.w).chunk(2, -1)


class SecondHalf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.halves, self.head = Halves(), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.halves(x)[1])


def attention() -> nn.Module:
    return nn.TransformerEncoderLayer(6, 2, 12, dropout=0.1, batch_first=True)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: nn.Sequential(Residual(), Residual()),
    "inplace": lambda: nn.Sequential(
        nn.Linear(6, 6), nn.ReLU(True), Residual(True), nn.Dropout(0.2, True), nn.ELU(inplace=True)
    ),
    "cells": Cells,
    "shared": Shared,
    "a part without a gradient": SecondHalf,
    "dense": lambda: nn.Sequential(nn.Linear(6, 6), Dense(), Dense()),
    "checkpoint": lambda: Checkpointed(False),
    "reentrant": lambda: Checkpointed(True),
    "gru": lambda: nn.Sequential(nn.Linear(6, 6), nn.GRU(6, 4, 2)),
    "lstm": lambda: nn.Sequential(nn.Linear(6, 6), nn.LSTM(6, 4, 2)),
    "attention": lambda: nn.Sequential(nn.Linear(6, 6), nn.Unflatten(0, (2, 4)), attention()),
}


def trained(make: Callable[[], nn.Module], probed: bool) -> list[bytes]:
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    probe, losses = GainProbe(model), []
    for step in range(6):
        if probed and step % 2 == 0:
            probe.begin(step)
        optimizer.zero_grad()
        loss = scalar(model(torch.randn(8, 6)))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        probe.end(step, Collected())
        losses.append(loss.detach().numpy().tobytes())
    return losses


@pytest.mark.parametrize("name", MODELS)
def test_training_is_the_same_bit_for_bit(name: str) -> None:
    assert trained(MODELS[name], True) == trained(MODELS[name], False)


def hook_reference(model: nn.Module, *inputs: Any) -> dict[str, tuple[list[float], list[float]]]:
    """Gains by torch's full backward hooks: forward and backward, a value a call."""
    found: dict[str, tuple[list[float], list[float]]] = {}

    def place(name: str, module: nn.Module) -> None:
        forward, backward = found.setdefault(name, ([], []))

        def ahead(_: Any, args: Any, out: Any) -> None:
            forward.append(float((first(out).pow(2).mean() / first(args).pow(2).mean()).sqrt().detach()))

        def back(_: Any, into: Any, out: Any) -> None:
            if first(into) is not None:
                backward.append(float(first(into).norm() / first(out).norm()))

        module.register_forward_hook(ahead)
        module.register_full_backward_hook(back)

    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            place(name, module)
    scalar(model(*inputs)).backward()
    return found


def first(value: Any) -> Any:
    return value if isinstance(value, torch.Tensor) else next((v for v in value if v is not None), None)


def rms(values: Sequence[float]) -> float:
    return math.sqrt(sum(v * v for v in values) / len(values))


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("name", ["residual", "cells", "shared", "dense", "gru", "lstm", "attention", "reentrant"])
def test_gains_are_those_of_full_backward_hooks(name: str) -> None:
    torch.manual_seed(0)
    model, x = MODELS[name]().double(), torch.randn(8, 6).double()
    state = torch.get_rng_state()
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        rows, _ = measured(model, x)
        torch.set_rng_state(state)
        reference = hook_reference(model, x)
    finally:
        torch.set_default_dtype(default)
    reference.pop(
        "2.self_attn", None
    )  # given one tensor thrice, torch's hook sees the gradient of the first place alone
    for layer, (forward, backward) in reference.items():
        if forward:
            assert rows["forward_gain"][layer] == pytest.approx(rms(forward), rel=1e-9), layer
        if backward:
            assert rows["backward_gain"][layer] == pytest.approx(rms(backward), rel=1e-9), layer
        else:
            assert layer not in rows["backward_gain"]


def test_self_attention_has_the_gradient_of_all_three_places() -> None:
    torch.manual_seed(0)
    layer, x = nn.MultiheadAttention(6, 2), torch.randn(3, 2, 6, requires_grad=True)

    class Self(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.layer(x, x, x)[0]
            return out

    rows, probe = measured(Self(), x)
    (expected,) = torch.autograd.grad(scalar(layer(x, x, x)), x)
    assert rows["grad_in_norm"]["layer"] == pytest.approx(float(expected.norm()))
    assert set(probe.unmeasured) == {"layer.out_proj"}


def test_a_cell_fed_with_data_has_the_gain_of_its_state() -> None:
    torch.manual_seed(0)
    cell, x = nn.RNNCell(6, 6), torch.randn(8, 6)

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.cell(x, self.cell(x))
            return out

    rows, _ = measured(Loop(), x)
    hidden = cell(x)
    after = cell(x, hidden)
    d_hidden, d_after = torch.autograd.grad(scalar(after), (hidden, after))
    assert rows["backward_gain"]["cell"] == pytest.approx(float(d_hidden.norm() / d_after.norm()))


class Joined(nn.Module):
    """A frozen layer, then one with two inputs by name, called twice between in-place activations in a residual path."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.mix = nn.Linear(6, 6), nn.Bilinear(6, 6, 6)
        self.frozen.requires_grad_(False)

    def forward(self, x: torch.Tensor, seen: list[tuple[torch.Tensor, ...]] | None = None) -> torch.Tensor:
        h = x * 1
        out = self.frozen(h)
        calls = [(h, out)]
        for _ in range(2):
            left = out.clone().relu_()
            mixed = self.mix(input1=left, input2=h)
            calls.append((left, mixed))
            out = mixed.clone().tanh_() + left
        if seen is not None:
            seen.extend(calls)
        return out


def test_frozen_in_place_several_inputs_and_calls_by_hand() -> None:
    torch.manual_seed(0)
    model, x = Joined(), torch.randn(8, 6, requires_grad=True)
    rows, probe = measured(model, x)
    calls: list[tuple[torch.Tensor, ...]] = []
    loss = scalar(model(x, calls))

    def backward_gain(layer: nn.Module, into: torch.Tensor, out: torch.Tensor) -> float:
        (d_out,) = torch.autograd.grad(loss, out, retain_graph=True)
        own = into.detach().requires_grad_()
        again = layer(own) if layer is model.frozen else layer(own, calls[0][0].detach())
        (d_in,) = torch.autograd.grad(again, own, d_out)
        return float(d_in.norm() / d_out.norm())

    mixes = [backward_gain(model.mix, *call) for call in calls[1:]]
    assert rows["backward_gain"] == {
        "frozen": pytest.approx(backward_gain(model.frozen, *calls[0])),
        "mix": pytest.approx(rms(mixes)),
    }
    gains_forward = [float((out.norm() / into.norm()).detach()) for into, out in calls]
    assert rows["forward_gain"]["frozen"] == pytest.approx(gains_forward[0])
    assert rows["forward_gain"]["mix"] == pytest.approx(rms(gains_forward[1:]))
    assert probe.unmeasured == {}


@pytest.mark.parametrize("name", ["checkpoint", "reentrant"])
def test_checkpoints_change_no_gain(name: str) -> None:
    torch.manual_seed(0)
    model, x = MODELS[name](), torch.randn(8, 6)
    assert isinstance(model, Checkpointed)
    plain = nn.Sequential()
    plain.first, plain.block = model.first, model.block
    rows, expected = measured(model, x)[0], measured(plain, x)[0]
    for probe in ("forward_gain", "backward_gain", "grad_out_norm", "backward_gain_with_activation"):
        for layer in ("first", "block.fc", "block.norm"):
            assert rows[probe].get(layer) == pytest.approx(expected[probe].get(layer)), (probe, layer)


def test_in_place_activations_change_no_gain() -> None:
    torch.manual_seed(0)
    one, other = Residual(True), Residual(False)
    other.load_state_dict(one.state_dict())
    x = torch.randn(8, 6, requires_grad=True)
    assert measured(one, x)[0] == measured(other, x)[0]


def test_the_gain_of_a_linear_layer_by_hand() -> None:
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 3.0]]))
    rows, probe = measured(layer, torch.randn(5, 2, requires_grad=True))
    assert rows["forward_gain"][""] == pytest.approx(3)
    assert rows["backward_gain"][""] == pytest.approx(3)
    assert rows["init_scale"]["weight"] == pytest.approx(3)
    assert rows["forward_order"] == {"": 0}
    assert "forward_gain_with_activation" not in rows
    assert probe.unmeasured == {}


def chain_of(*modules: nn.Module) -> tuple[Rows, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(*modules)
    x = torch.randn(8, 6, requires_grad=True)
    return measured(model, x)[0], x


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        return self.b(h * torch.sigmoid(h))


def test_what_follows_a_layer_is_part_of_its_gain_with_activation() -> None:
    linear, last = nn.Linear(6, 6), nn.Linear(6, 6)
    rows, x = chain_of(linear, nn.LayerNorm(6), nn.Tanh(), nn.BatchNorm1d(6, affine=False), last)
    end = nn.functional.batch_norm(torch.tanh(nn.functional.layer_norm(linear(x), (6,))), None, None, training=True)
    assert rows["forward_gain_with_activation"]["0"] == pytest.approx(float((end.norm() / x.norm()).detach()))
    (d_end,) = torch.autograd.grad(last(end).square().mean(), end, retain_graph=True)
    (d_in,) = torch.autograd.grad(end, x, d_end)
    assert rows["backward_gain_with_activation"]["0"] == pytest.approx(float(d_in.norm() / d_end.norm()), rel=1e-5)
    assert rows["normalised"] == {"0": 1, "1": 1, "4": 0}
    assert "4" not in rows["forward_gain_with_activation"]


def test_a_functional_activation_counts_too() -> None:
    torch.manual_seed(0)
    model, x = Functional(), torch.randn(8, 6)
    rows, _ = measured(model, x)
    h = model.a(x)
    assert rows["forward_gain_with_activation"] == {
        "a": pytest.approx(float((h * torch.sigmoid(h)).detach().norm() / x.norm()))
    }
    assert rows["normalised"] == {"a": 0, "b": 0}


def test_a_residual_path_ends_what_follows() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 6), Residual(), nn.Linear(6, 1)), torch.randn(8, 6)
    rows, _ = measured(model, x)
    h = model[0](x)
    inside = model[1].act(model[1].norm(model[1].fc(h)))  # type: ignore[union-attr,operator]
    assert rows["forward_gain_with_activation"]["1.fc"] == pytest.approx(float((inside.norm() / h.norm()).detach()))
    assert rows["forward_gain_with_activation"]["0"] == rows["forward_gain"]["0"]
    assert "2" not in rows["forward_gain_with_activation"]


def test_a_change_of_size_ends_what_follows() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.act = nn.Linear(6, 6), nn.Linear(6, 1), nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.act(self.a(x)).mean(0))

    torch.manual_seed(0)
    model, x = Pooled(), torch.randn(8, 6)
    rows, _ = measured(model, x)
    assert rows["forward_gain_with_activation"] == {
        "a": pytest.approx(float(model.act(model.a(x)).detach().norm() / x.norm()))
    }


@pytest.mark.parametrize("scale", [1e-18, 1e-30, 1e18])
def test_the_scale_of_the_loss_does_not_matter(scale: float) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Residual(), Residual()), torch.randn(8, 6)
    plain, scaled = measured(model, x)[0], measured(model, x, scale=scale)[0]
    for probe in ("backward_gain", "backward_gain_with_activation"):
        assert scaled[probe] == pytest.approx(plain[probe], rel=1e-4)
    assert scaled["grad_out_norm"]["1.fc"] == pytest.approx(scale * plain["grad_out_norm"]["1.fc"], rel=1e-4)


def test_nonfinite_gradients_stay_visible() -> None:
    rows, _ = measured(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), torch.randn(8, 6), scale=math.inf)
    assert not math.isfinite(rows["grad_out_norm"].get("1", math.nan))
    assert rows["forward_gain"]["1"] > 0


def test_frozen_layers_pass_gradients_on_and_are_measured() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 1))
    model[1].requires_grad_(False)
    rows, _ = measured(model, torch.randn(8, 6))
    assert "1" in rows["backward_gain"]
    model[0].requires_grad_(False)
    rows, _ = measured(model, torch.randn(8, 6))
    assert set(rows["forward_gain"]) == {"0", "1", "2"}
    assert "backward_gain" not in rows


def test_token_ids_have_no_gain_but_a_size() -> None:
    rows, _ = measured(nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 1)), torch.tensor([1, 2]))
    assert set(rows["out_rms"]) == {"0", "1"}
    assert set(rows["forward_gain"]) == {"1"}


def test_inputs_by_name_and_outputs_in_a_dictionary() -> None:
    torch.manual_seed(0)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.several = Several()

        def forward(self, x: torch.Tensor) -> Any:
            return self.several(left=x.detach(), right=x * 2)

    rows, probe = measured(Outer(), torch.randn(8, 6, requires_grad=True))
    assert set(rows["backward_gain"]) == {"several", "several.mix"}
    assert probe.unmeasured == {}


def test_layers_that_were_not_called_say_so_until_they_are() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.both = nn.Linear(6, 6), nn.Linear(6, 6), False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x)) if self.both else self.a(x)

    model, x = Sometimes(), torch.randn(8, 6)
    _, probe = measured(model, x)
    assert probe.unmeasured == {"b": "its forward was not called on the sampled steps"}
    model.both = True
    probe.begin(1)
    scalar(model(x)).backward()  # type: ignore[no-untyped-call]
    seen = Collected()
    probe.end(1, seen)
    assert probe.unmeasured == {}
    assert "init_scale" not in seen.rows


def test_inference_tensors_have_forward_gains() -> None:
    model, seen = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)), Collected()
    probe = GainProbe(model)
    probe.begin(0)
    with torch.inference_mode():
        model(torch.randn(8, 6))
    probe.end(0, seen)
    assert set(seen.rows["forward_gain"]) == {"0", "2"}
    assert probe.unmeasured == {}


def test_nothing_is_said_without_a_step() -> None:
    seen = Collected()
    GainProbe(nn.Linear(2, 2)).end(0, seen)
    assert seen.rows == {}


def test_a_layer_without_outputs_or_inputs_is_counted_as_called() -> None:
    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(2, 2))

        def forward(self) -> str:
            return "nothing"

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.silent, self.fc, self.flat = Silent(), nn.Linear(6, 1), nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.silent()
            self.flat("words")
            return self.fc(self.flat(x))

    rows, probe = measured(Outer(), torch.randn(8, 6))
    assert set(rows["out_rms"]) == {"fc"}
    assert probe.unmeasured == {}


@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.parametrize("way", ["wrapped", "in place", "inside"])
@pytest.mark.parametrize("stance", ["force_eager", None])
def test_compiled_layers_are_run_eagerly_or_say_so(way: str, stance: str | None, monkeypatch: Any) -> None:
    torch._dynamo.reset()  # type: ignore[attr-defined]
    torch.manual_seed(0)
    inner = nn.Linear(6, 6)
    block = nn.Sequential(inner, nn.ReLU())
    first, batch = nn.Linear(6, 6), torch.randn(8, 6)
    expected, _ = measured(nn.Sequential(first, block), batch)
    if way == "in place":
        block.compile(backend="eager")  # type: ignore[no-untyped-call]
        model: Any = nn.Sequential(first, block)
    elif way == "inside":
        model = nn.Sequential(first, torch.compile(block, backend="eager"))
    else:
        model = torch.compile(nn.Sequential(first, block), backend="eager")
    model(batch)
    if stance is None:  # torch before 2.6
        monkeypatch.delattr(torch.compiler, "set_stance")
    with eagerly(model):
        rows, probe = measured(model, batch)
    if stance:
        assert not probe.unmeasured
        assert rows["backward_gain"] == expected["backward_gain"]
        assert rows["forward_gain"] == expected["forward_gain"]
    else:
        assert probe.unmeasured["1.0"] == "runs inside torch.compile, where hooks are not called"
        assert ("0" in probe.unmeasured) == (way == "wrapped")
        assert ("forward_gain" in rows) == (way != "wrapped")


def hooks_of(model: nn.Module) -> int:
    return sum(
        len(one._forward_hooks) + len(one._forward_pre_hooks) + len(one._backward_hooks) for one in model.modules()
    )


def test_no_hook_is_left_even_after_an_exception() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(3, 6))
    probe = GainProbe(model)
    probe.begin(0)
    assert hooks_of(model) == 5
    with pytest.raises(RuntimeError):
        model(torch.randn(8, 6))
    probe.end(0, Collected())
    assert hooks_of(model) == 0


@pytest.mark.parametrize(("broken", "side"), [("edge_of", "input"), ("uses", "output")])
def test_what_cannot_be_read_is_said_and_breaks_nothing(
    monkeypatch: pytest.MonkeyPatch, broken: str, side: str
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("strange tensor")

    monkeypatch.setattr(gains, broken, fails)
    _, probe = measured(nn.Sequential(nn.Linear(6, 6)), torch.randn(8, 6, requires_grad=True))
    assert probe.unmeasured["0"].startswith(f"its {side} could not be read: ")


def test_a_graph_too_large_to_walk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "WIDEST", 2)
    _, probe = measured(nn.Sequential(nn.GRU(6, 6)), torch.randn(8, 6, requires_grad=True))
    assert probe.unmeasured == {"0": "its part of the autograd graph is too large to walk"}


def test_only_near_sources_count() -> None:
    x = torch.ones(2, requires_grad=True) * 2
    y = x
    for _ in range(graph.NEAR + 1):
        y = y * 1.0
    assert only_source(y.grad_fn, {x.grad_fn: "x"}) is None
    assert only_source((x * 3).grad_fn, {x.grad_fn: "x"}) == "x"


def test_a_gradient_that_is_spread_is_gathered_to_the_shape_of_the_input() -> None:
    x = torch.randn(3, 1, requires_grad=True)
    inner = x * 1
    out = inner * torch.randn(3, 4)
    assert len(uses([out], edge_of(inner), {inner.grad_fn}) or []) == 1

    class Spread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.w

    model = Spread()
    rows, _ = measured(model, x)
    (expected,) = torch.autograd.grad(scalar(model(x)), x)
    assert rows["grad_in_norm"][""] == pytest.approx(float(expected.norm()))


class Stream(nn.Module):
    """A residual block with its norm in front (`pre`) or behind the sum; without one where `bare`."""

    def __init__(self, pre: bool, bare: bool) -> None:
        super().__init__()
        self.pre = pre
        self.norm = nn.Identity() if bare else nn.LayerNorm(6, elementwise_affine=pre)
        self.fc1, self.fc2 = nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inside = self.norm(x) if self.pre else x
        x = x + self.fc2(torch.relu(self.fc1(inside)))
        return x if self.pre else self.norm(x)


@pytest.mark.parametrize("pre", [True, False])
def test_what_reads_a_normalised_residual_stream(pre: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), *(Stream(pre, bare=i == 2) for i in range(4)))
    rows, _ = measured(model, torch.randn(8, 6))
    fed = (2, 4) if pre else (2, 3)  # the first block reads one layer's output; the bare one is the third
    assert rows["fed_normalised"] == {f"{i}.fc{k}": float(k == 1 and i in fed) for i in range(1, 5) for k in (1, 2)}


def test_a_norm_of_one_layers_output_is_no_normalised_stream_and_no_graph_is_unknown() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.Linear(6, 6))
    model[0].requires_grad_(False)
    model[1].requires_grad_(False)
    rows, _ = measured(model, torch.randn(8, 6))
    assert rows["fed_normalised"] == {"3": 0}
    assert rows["normalised"] == {"2": 0, "3": 0}
    model.requires_grad_(True)
    rows, _ = measured(model, torch.randn(8, 6))
    assert rows["fed_normalised"] == {"2": 0, "3": 0}
    assert rows["normalised"] == {"0": 1, "1": 0, "2": 0, "3": 0}


class OnData(nn.Module):
    """A residual stream that begins with a value that takes no gradient, as of a frozen embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(6, 6), nn.LayerNorm(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + self.fc(x))


def test_what_is_added_from_outside_the_graph_ends_what_follows() -> None:
    rows, _ = measured(OnData(), torch.randn(4, 6))
    assert "fc" in rows["forward_gain"]
    assert "fc" not in rows.get("forward_gain_with_activation", {})
