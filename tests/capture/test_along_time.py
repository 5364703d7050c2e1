"""Gradients along time against an unrolled network whose states keep their gradients."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from gradscope.capture.along_time import AlongTimeProbe
from gradscope.capture.gains import eagerly
from gradscope.capture.loops import CellCalls

Profile = dict[str, dict[int, float]]


class Collected:
    def __init__(self) -> None:
        self.probes: dict[str, Profile] = {}

    def __call__(
        self, probe: str, subjects: Sequence[str], values: Sequence[float], index: Sequence[int] | None = None
    ) -> None:
        rows = self.probes.setdefault(probe, {})
        for subject, value, t in zip(subjects, values, index or [0] * len(subjects), strict=True):
            rows.setdefault(subject, {})[t] = value


def measured(model: nn.Module, run: Any) -> tuple[dict[str, Profile], AlongTimeProbe]:
    probe, seen = AlongTimeProbe(model), Collected()
    probe.begin(0)
    run().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(7)  # the optimizer has moved the weights before a probe ends
    probe.end(0, seen)
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())
    return seen.probes, probe


class Net(nn.Module):
    """A recurrent layer behind another layer; the loss reads outputs at every time and the last states."""

    def __init__(self, rnn: nn.RNNBase, width: int = 3) -> None:
        super().__init__()
        self.into, self.rnn = nn.Linear(width, rnn.input_size), rnn

    def forward(self, x: Any, hx: Any = None, last_only: bool = False) -> torch.Tensor:
        into = x._replace(data=self.into(x.data)) if isinstance(x, PackedSequence) else self.into(x)
        out, last = self.rnn(into, hx)
        states = last if isinstance(last, tuple) else (last,)
        read = out.data if isinstance(out, PackedSequence) else out
        loss = sum(((i + 1.5) * state).sin().sum() for i, state in enumerate(states))
        return loss if last_only else loss + (read * torch.linspace(-1, 1, read.numel()).view_as(read)).sum()  # type: ignore[return-value]  # sum() of tensors is no int here


def steps_of(rnn: nn.RNNBase, place: str, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor | None) -> Any:
    """One time step of one layer and direction, written out."""
    w_ih, w_hh = getattr(rnn, f"weight_ih_{place}"), getattr(rnn, f"weight_hh_{place}")
    b_ih, b_hh = (getattr(rnn, f"bias_{k}_{place}") if rnn.bias else 0.0 for k in ("ih", "hh"))
    ahead, back = x @ w_ih.T + b_ih, h @ w_hh.T + b_hh
    if rnn.mode == "LSTM":
        i, f, g, o = (ahead + back).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return (h @ getattr(rnn, f"weight_hr_{place}").T if rnn.proj_size else h), c
    if rnn.mode == "GRU":
        (x_r, x_z, x_n), (h_r, h_z, h_n) = ahead.chunk(3, -1), back.chunk(3, -1)
        n = (x_n + (x_r + h_r).sigmoid() * h_n).tanh()
        z = (x_z + h_z).sigmoid()
        return (1 - z) * n + z * h, None
    return (ahead + back).tanh() if rnn.mode == "RNN_TANH" else (ahead + back).relu(), None


class Unrolled:
    """The same network, one sequence at a time, every state a tensor that keeps its gradient."""

    def __init__(self, rnn: nn.RNNBase, lengths: Sequence[int]) -> None:
        self.rnn, self.lengths = rnn, lengths
        self.states: dict[str, list[list[torch.Tensor]]] = {}
        self.memories: dict[str, list[list[torch.Tensor]]] = {}

    def run(self, xs: torch.Tensor, hx: Any, masks: Sequence[torch.Tensor] = ()) -> Any:
        """`xs` (T, B, I); the outputs as lists by sequence, and last states (places, B, ·)."""
        directions = 2 if self.rnn.bidirectional else 1
        rows = [list(xs[:n, b]) for b, n in enumerate(self.lengths)]
        last: list[list[Any]] = []
        for layer in range(self.rnn.num_layers):
            outs = []
            for d in range(directions):
                place = f"l{layer}" + ("_reverse" if d else "")
                name = f"rnn layer {layer}{' reverse' if d else ''}" if self.rnn.num_layers * directions > 1 else "rnn"
                done = [
                    self._one(name, place, layer * directions + d, b, row[::-1] if d else row, hx)
                    for b, row in enumerate(rows)
                ]
                outs.append([hs[::-1] if d else hs for hs, _ in done])
                last.append([(hs[-1], cs[-1]) for hs, cs in done])
            rows = [[torch.cat(parts) for parts in zip(*both, strict=True)] for both in zip(*outs, strict=True)]
            if masks and layer < len(masks):
                rows = [[h * masks[layer][t, b] for t, h in enumerate(row)] for b, row in enumerate(rows)]
        return rows, last

    def _one(self, name: str, place: str, number: int, b: int, row: Any, hx: Any) -> Any:
        width = self.rnn.proj_size or self.rnn.hidden_size
        h, c = torch.zeros(width), torch.zeros(self.rnn.hidden_size)
        if hx is not None:
            h, c = (hx[0][number, b], hx[1][number, b]) if self.rnn.mode == "LSTM" else (hx[number, b], c)
        hs, cs = [], []
        for x in row:
            h, c = steps_of(self.rnn, place, x, h, c)
            h.retain_grad()
            hs.append(h)
            if c is not None:
                c.retain_grad()
            cs.append(c)
        self.states.setdefault(name, []).append(hs)
        if self.rnn.mode == "LSTM":
            self.memories.setdefault(name, []).append(cs)
        return hs, cs

    def norms(self, held: dict[str, list[list[torch.Tensor]]]) -> Profile:
        found: Profile = {}
        for name, sequences in held.items():
            for t in range(max(self.lengths)):
                parts = [s[t].grad if s[t].grad is not None else torch.zeros(1) for s in sequences if t < len(s)]
                found.setdefault(name, {})[t] = float(torch.cat([p for p in parts if p is not None]).norm())
        return found


KINDS: list[tuple[type[nn.RNNBase], dict[str, Any]]] = [
    (nn.RNN, {}),
    (nn.RNN, {"nonlinearity": "relu"}),
    (nn.LSTM, {}),
    (nn.LSTM, {"proj_size": 2}),
    (nn.GRU, {}),
]
SHAPES: list[dict[str, Any]] = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"bidirectional": True, "bias": False},
    {"num_layers": 3},
]


@pytest.fixture(autouse=True)
def _double() -> Any:
    torch.manual_seed(1)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(default)


def start_of(rnn: nn.RNNBase, count: int) -> Any:
    places = rnn.num_layers * (2 if rnn.bidirectional else 1)
    h, c = torch.randn(places, count, rnn.proj_size or rnn.hidden_size), torch.randn(places, count, rnn.hidden_size)
    return (h, c) if rnn.mode == "LSTM" else h


def compare(found: dict[str, Profile], unrolled: Unrolled, rel: float = 1e-8) -> None:
    expected = unrolled.norms(unrolled.states)
    assert found["state_grad_norm"].keys() == expected.keys()
    for name, norms in expected.items():
        assert found["state_grad_norm"][name] == pytest.approx(norms, rel=rel), name
    memories = unrolled.norms(unrolled.memories)
    for name, norms in memories.items():
        assert found["cell_state_grad_norm"][name] == pytest.approx(norms, rel=rel), name
    assert ("cell_state_grad_norm" in found) == bool(memories)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(("kind", "options"), KINDS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_padded_sequences(kind: Any, options: Any, shape: Any) -> None:
    net = Net(kind(4, 5, **options, **shape))
    x, hx = torch.randn(7, 2, 3), start_of(net.rnn, 2) if shape else None
    unrolled = Unrolled(net.rnn, [7, 7])
    rows, last = unrolled.run(net.into(x), hx)
    out = torch.stack([torch.stack(row) for row in rows], 1)
    states = [
        torch.stack([torch.stack([pair[k] for pair in place]) for place in last])
        for k in range(2 if net.rnn.mode == "LSTM" else 1)
    ]
    loss = sum(((i + 1.5) * state).sin().sum() for i, state in enumerate(states))
    (loss + (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum()).backward()
    found, probe = measured(net, lambda: net(x, hx))
    compare(found, unrolled)
    assert probe.unmeasured == {}


@pytest.mark.parametrize(("kind", "options"), [KINDS[0], KINDS[2], KINDS[4]], ids=str)
@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
@pytest.mark.parametrize("sorted_", [True, False], ids=["sorted", "unsorted"])
def test_packed_sequences(kind: Any, options: Any, shape: Any, sorted_: bool) -> None:
    lengths = [6, 4, 1] if sorted_ else [4, 1, 6]
    net = Net(kind(4, 5, **options, **shape))
    x, hx = torch.randn(6, 3, 3), start_of(net.rnn, 3)
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=sorted_)
    found, probe = measured(net, lambda: net(packed, hx))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.div_(7)
    unrolled = Unrolled(net.rnn, lengths)
    rows, last = unrolled.run(net.into(x), hx)
    weight = torch.linspace(-1, 1, packed.data.shape[0] * rows[0][0].numel()).view(packed.data.shape[0], -1)
    weights, _ = pad_packed_sequence(packed._replace(data=weight))
    total: Any = sum((h * weights[t, b]).sum() for b, row in enumerate(rows) for t, h in enumerate(row))
    for k in range(2 if net.rnn.mode == "LSTM" else 1):
        total = total + sum(((k + 1.5) * pair[k]).sin().sum() for place in last for pair in place)
    total.backward()
    compare(found, unrolled)
    assert probe.unmeasured == {}


def plain(net: Net, run: Any) -> dict[str, Profile]:
    return measured(net, run)[0]


def test_batch_first_and_unbatched_are_the_same_training() -> None:
    net, first = Net(nn.LSTM(4, 5, 2)), Net(nn.LSTM(4, 5, 2, batch_first=True))
    first.load_state_dict(net.state_dict())
    alone = Net(nn.LSTM(4, 5, 2))
    alone.load_state_dict(net.state_dict())
    x = torch.randn(7, 1, 3)
    hx = start_of(net.rnn, 1)
    expected = plain(net, lambda: net(x, hx, last_only=True))
    assert plain(first, lambda: first(x.transpose(0, 1), hx, last_only=True)) == expected
    found = plain(alone, lambda: alone(x[:, 0], (hx[0][:, 0], hx[1][:, 0]), last_only=True))
    for probe in expected:
        for name, norms in expected[probe].items():
            assert found[probe][name] == pytest.approx(norms)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_dropout_between_layers_is_drawn_again(kind: Any, packed: bool) -> None:
    net = Net(kind(4, 5, 3, dropout=0.5, bidirectional=True))
    x = torch.randn(6, 3, 3)
    given: Any = pack_padded_sequence(x, torch.tensor([6, 4, 1])) if packed else x
    torch.manual_seed(5)
    expected = float(net(given).detach())
    after = torch.get_rng_state()
    torch.manual_seed(5)
    losses = []

    def run() -> torch.Tensor:
        losses.append(net(given))
        return losses[0]

    found, probe = measured(net, run)
    assert float(losses[0].detach()) == expected
    assert torch.equal(torch.get_rng_state(), after)
    assert probe.unmeasured == {}
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.div_(7)
    torch.manual_seed(5)
    masks = []
    for _ in range(2):
        shape = given.data.shape[0] if packed else (6, 3)
        drawn = torch.dropout(torch.ones(*([shape] if packed else shape), 10), 0.5, True)
        masks.append(pad_packed_sequence(given._replace(data=drawn))[0] if packed else drawn)
    lengths = [6, 4, 1] if packed else [6, 6, 6]
    unrolled = Unrolled(net.rnn, lengths)
    rows, last = unrolled.run(net.into(x), None, masks)
    count = sum(lengths)
    weight = torch.linspace(-1, 1, count * 10).view(count, 10)
    weights = pad_packed_sequence(given._replace(data=weight))[0] if packed else weight.view(6, 3, 10)
    total: Any = sum((h * weights[t, b]).sum() for b, row in enumerate(rows) for t, h in enumerate(row))
    for k in range(2 if net.rnn.mode == "LSTM" else 1):
        total = total + sum(((k + 1.5) * pair[k]).sin().sum() for place in last for pair in place)
    total.backward()
    compare(found, unrolled)


@pytest.mark.parametrize("scale", [1.0, 1e-18, 1e12])
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_float32_at_any_scale_of_the_loss(kind: Any, scale: float) -> None:
    net = Net(kind(4, 16))
    x = torch.randn(60, 2, 3)
    unrolled = Unrolled(net.rnn, [60, 60])
    rows, _ = unrolled.run(net.into(x), None)
    (rows[0][-1].sum() + rows[1][-1].sum()).backward()
    single = Net(kind(4, 16)).float()
    single.load_state_dict(net.state_dict())
    found, _ = measured(single, lambda: scale * single.rnn(single.into(x.float()))[0][-1].sum())
    expected = {t: scale * value for t, value in unrolled.norms(unrolled.states)["rnn"].items()}
    assert found["state_grad_norm"]["rnn"] == pytest.approx(expected, rel=1e-5)


class Loop(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.into, self.cell = nn.Linear(3, 4), cell

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state: Any = torch.zeros(x.shape[1], 5)
        state = (state, state) if isinstance(self.cell, nn.LSTMCell) else state
        for t in range(len(x)):
            state = self.cell(self.into(x[t]), state)
        return (state[0] if isinstance(state, tuple) else state).sin().sum()


class OwnCell(nn.Module):
    """A cell of one's own, which gives an output beside its state and has a cell of torch's inside or not."""

    def __init__(self, inner: bool = False) -> None:
        super().__init__()
        self.ih, self.hh = nn.Linear(4, 5), nn.Linear(5, 5)
        self.inner = nn.RNNCell(4, 5) if inner else None

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return self.inner(x, h) if self.inner else (self.ih(x) + self.hh(h)).tanh()


@pytest.mark.parametrize(("cell", "fused"), [(nn.RNNCell, nn.RNN), (nn.LSTMCell, nn.LSTM), (nn.GRUCell, nn.GRU)])
def test_cells_in_a_loop_are_like_the_fused_layer(cell: Any, fused: Any) -> None:
    loop, net = Loop(cell(4, 5)), Net(fused(4, 5))
    net.into.load_state_dict(loop.into.state_dict())
    net.rnn.load_state_dict({f"{name}_l0": value for name, value in loop.cell.state_dict().items()})
    x = torch.randn(9, 2, 3)
    found = measured(loop, lambda: loop(x))[0]
    expected = measured(net, lambda: net.rnn(net.into(x))[0][-1].sin().sum())[0]
    for probe in ("state_grad_norm", "cell_state_grad_norm", "sigma_recurrent"):
        assert found.get(probe, {}).get("cell") == (
            None if probe not in expected else pytest.approx(expected[probe]["rnn"])
        )


@pytest.mark.parametrize(("inner", "name"), [(False, "cell"), (True, "cell.inner")])
def test_cells_of_ones_own(inner: bool, name: str) -> None:
    loop = Loop(OwnCell(inner))
    found, probe = measured(loop, lambda: loop(torch.randn(9, 2, 3)))
    norms = found["state_grad_norm"]
    assert list(norms) == [name]
    assert len(norms[name]) == 9
    assert all(value > 0 for value in norms[name].values())
    assert ("sigma_recurrent" in found) == inner
    assert probe.unmeasured == {}


def test_a_last_state_that_no_gradient_reaches() -> None:
    class Pair(nn.Module):
        """Both states from one matrix: the second of the last step is used by nothing."""

        def __init__(self) -> None:
            super().__init__()
            self.ih, self.hh = nn.Linear(4, 10), nn.Linear(10, 10)

        def forward(self, x: torch.Tensor, state: Any) -> Any:
            return (self.ih(x) + self.hh(torch.cat(state, -1))).tanh().chunk(2, -1)

    class PairLoop(Loop):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            state = (torch.zeros(x.shape[1], 5),) * 2
            for t in range(len(x)):
                state = self.cell(self.into(x[t]), state)
            return state[0].sum()

    loop = PairLoop(Pair())
    found, _ = measured(loop, lambda: loop(torch.randn(9, 2, 3)))
    assert found["state_grad_norm"]["cell"][8] == pytest.approx((2 * 5) ** 0.5)
    assert found["cell_state_grad_norm"]["cell"][8] == 0.0
    assert found["cell_state_grad_norm"]["cell"][7] > 0


def test_a_state_that_comes_second_and_is_dropped_out_between() -> None:
    class Second(OwnCell):
        def forward(self, x: torch.Tensor, h: torch.Tensor) -> Any:  # type: ignore[override]  # it gives an output too
            h = super().forward(x, h)
            return h * 2, h

    class SecondLoop(Loop):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.zeros(x.shape[1], 5)
            for t in range(len(x)):
                y, h = self.cell(x=self.into(x[t]), h=nn.functional.dropout(h, 0.1))
            return y.sum()

    loop = SecondLoop(Second())
    norms = measured(loop, lambda: loop(torch.randn(9, 2, 3)))[0]["state_grad_norm"]["cell"]
    assert len(norms) == 9
    assert norms[3] > 0
    assert norms[8] == pytest.approx(2 * (2 * 5) ** 0.5)


def test_a_block_that_is_repeated_in_depth_is_no_cell() -> None:
    class Repeated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = OwnCell()
            self.block.ih = nn.Linear(5, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mask = torch.ones(2, 5)
            for _ in range(6):
                x = self.block(mask, x)
            return x.sum()

    model = Repeated()
    assert measured(model, lambda: model(torch.randn(2, 5)))[0] == {}


def test_sequences_of_one_step_are_one_larger_batch() -> None:
    net = Net(nn.RNN(4, 5))
    x, y = torch.randn(7, 2, 3), torch.randn(5, 1, 3)
    together = plain(net, lambda: net(x) + net(y))["state_grad_norm"]["rnn"]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.div_(7)
    one = plain(net, lambda: net(x))["state_grad_norm"]["rnn"]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.div_(7)
    other = plain(net, lambda: net(y))["state_grad_norm"]["rnn"]
    for t in range(7):
        assert together[t] == pytest.approx((one[t] ** 2 + other.get(t, 0.0) ** 2) ** 0.5)


def test_growth_is_the_rate_of_the_recurrent_matrix() -> None:
    net = Net(nn.RNN(4, 8, nonlinearity="relu", bias=False))
    with torch.no_grad():
        net.rnn.weight_hh_l0.copy_(1.9 * torch.eye(8))
        net.rnn.weight_ih_l0.abs_()
        net.into.weight.abs_()
        net.into.bias.abs_()
    found = plain(net, lambda: net.rnn(net.into(torch.rand(50, 2, 3)))[0][-1].sum())
    norms = found["state_grad_norm"]["rnn"]
    ratios = [a / b for a, b in itertools.pairwise(norms[t] for t in range(50))]
    assert ratios == pytest.approx([1.9] * 49)


@pytest.mark.parametrize("size", [8, 300])
def test_sigma_is_the_largest_singular_value(size: int) -> None:
    net = Net(nn.GRU(4, size))
    expected = float(torch.linalg.matrix_norm(net.rnn.weight_hh_l0.detach().chunk(3)[2], 2))
    found = plain(net, lambda: net(torch.randn(3, 1, 3)))
    assert found["sigma_recurrent"]["rnn"][0] == pytest.approx(expected, rel=1e-2)


def test_the_loss_is_the_same_bit_for_bit() -> None:
    def losses(probed: bool) -> list[float]:
        torch.manual_seed(0)
        net = Net(nn.LSTM(4, 5, 2, dropout=0.3, batch_first=True))
        optimizer, probe = torch.optim.Adam(net.parameters(), lr=0.05), AlongTimeProbe(net)
        found = []
        for step in range(6):
            if probed:
                probe.begin(step)
            optimizer.zero_grad()
            loss = net(torch.randn(3, 6, 3))
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
            probe.end(step, Collected())
            found.append(loss.item())
        return found

    assert losses(True) == losses(False)


def test_calls_without_a_gradient_say_nothing() -> None:
    net = Net(nn.LSTM(4, 5))
    net.rnn.requires_grad_(False)
    net.into.requires_grad_(False)
    other = nn.Linear(1, 1)
    net.other = other
    assert plain(net, lambda: net(torch.randn(3, 1, 3)) + other(torch.ones(1)).sum()) == {}
    kept = Net(nn.LSTM(4, 5))

    def unused() -> torch.Tensor:
        kept.rnn(kept.into(torch.randn(3, 1, 3)))
        return kept.into(torch.ones(3)).sum()

    assert plain(kept, unused) == {}


class Odd(nn.RNN):
    """Not what its equations say."""

    def forward(self, *args: Any) -> Any:
        out, last = super().forward(*args)
        return out * 2, last


class Odder(nn.RNN):
    def forward(self, *args: Any) -> Any:
        return super().forward(*args)[0]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Odd, "its states could not be computed again: they differ from the layer's equations"),
        (Odder, "its call could not be read: "),
    ],
)
def test_what_is_not_as_assumed_is_said(kind: type[nn.RNN], reason: str) -> None:
    model = nn.Sequential(kind(4, 5))

    def run() -> torch.Tensor:
        found = model(torch.randn(3, 1, 4))
        return (found[0] if isinstance(found, tuple) else found).sum()

    found, probe = measured(model, run)
    assert found == {}
    assert probe.unmeasured["0"].startswith(reason)


def test_a_cell_that_cannot_be_read_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("strange tensor")

    monkeypatch.setattr(CellCalls, "called", fails)
    loop = Loop(nn.RNNCell(4, 5))
    found, probe = measured(loop, lambda: loop(torch.randn(3, 2, 3)))
    assert found == {}
    assert probe.unmeasured["cell"] == "its call could not be read: strange tensor"


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_compiled_layers_are_run_eagerly_or_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = Net(nn.RNN(4, 5)), torch.randn(3, 1, 3)
    start = {name: value.clone() for name, value in net.state_dict().items()}
    expected, _ = measured(net, lambda: net(x))
    net.load_state_dict(start)
    net.compile(backend="eager")  # type: ignore[no-untyped-call]  # torch leaves it untyped
    net(x)
    with eagerly(net):
        found, probe = measured(net, lambda: net(x))
    assert found == expected
    assert not probe.unmeasured
    monkeypatch.delattr(torch.compiler, "set_stance")  # torch before 2.6
    found, probe = measured(net, lambda: net(x))
    assert found == {}
    assert probe.unmeasured["rnn"] == "runs inside torch.compile, where hooks are not called"


def test_a_matrix_that_is_no_number_has_no_sigma() -> None:
    loop = Loop(nn.RNNCell(4, 5))
    with torch.no_grad():
        loop.cell.weight_hh.fill_(float("inf"))  # type: ignore[operator,union-attr]  # an attribute of any module
    found = measured(loop, lambda: loop(torch.randn(3, 1, 3)))[0]
    assert "sigma_recurrent" not in found
