"""What went nonfinite first: the loss, an activation or a gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gradscope.capture import offender
from gradscope.capture.offender import Broken
from gradscope.integrations import find
from tests.integrations.scripts import record

LOOP = """
optimizer = torch.optim.SGD(params, lr=0.01)
data = torch.utils.data.DataLoader(torch.randn(24, 6), 8)
for i, x in enumerate(data):
    optimizer.zero_grad()
    {loss}
    loss.backward()
    optimizer.step()
"""
CASES = {
    "loss": ("y = model(x)\n    loss = y.mean() * (math.inf if i == 1 else 1)", "2.weight", "2"),
    "target": (
        "y = (model(x) - (math.inf if i == 1 else 0.0) * torch.ones(8, 1)) ** 2\n    loss = y.mean()",
        "2.weight",
        "2",
    ),
    "judged target": (
        "loss = nn.functional.mse_loss(model(x), torch.full((8, 1), math.nan if i == 1 else 0.0))",
        "2.weight",
        "2",
    ),
    "output": (
        "y = model(x); y = y if i != 1 else y * torch.full_like(y, math.inf)\n    loss = (y * y).mean()",
        None,
        "2",
    ),
    "input": ("loss = model(x if i != 1 else x * math.nan).pow(2).mean()", None, "0"),
    "activation": ("h = model[1](model[0](x))\n    loss = model[2](h / (0.0 if i == 1 else 1.0)).mean()", None, "0"),
    "weight": (
        "model[2].weight.data.fill_(math.nan if i == 1 else 1.0)\n    loss = model(x).mean()",
        "2.weight",
        "2",
    ),
    "gradient": ("y = model(x)\n    loss = (y - (y.detach() if i == 1 else 9)).abs().pow(0.25).sum()", "2.weight", "2"),
}

OPERATIONS = {"activation": ("div",), "output": ("mul",)}
WENT = {
    "weight": "activation",
    "output": "operation",
    "activation": "operation",
    "target": "loss",
    "judged target": "loss",
}


@pytest.mark.parametrize("name", CASES)
def test_what_went_first(name: str, tmp_path: Path) -> None:
    loss, parameter, layer = CASES[name]
    found = record(tmp_path, LOOP.format(loss=loss)).run.header.first_nonfinite
    assert found is not None
    went = WENT.get(name, name)
    assert (found.went_first, found.step, found.batch, found.micro_step) == (went, 1, 1, 0)
    assert found.layer == layer
    assert found.parameter == parameter
    assert found.operations == OPERATIONS.get(name, ())


BETWEEN = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.qkv, self.tail = nn.Linear(6, 8), nn.Linear(8, 24), nn.Linear(8, 1)
        self.norm = nn.LayerNorm(8)
        nn.init.ones_(self.qkv.weight)

    def forward(self, x, bad):
        h = self.stem(x)
        {body}
        return self.tail(h)

net = Net()
optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
for i in range(2):
    optimizer.zero_grad()
    with {context}:
        loss = net(torch.ones(4, 6), i == 1).float().pow(2).mean()
    loss.backward()
    optimizer.step()
"""
ATTENTION = (
    "q, k, v = self.qkv(h).chunk(3, -1); mask = torch.full((4, 4), bad)\n        "
    "h = (q @ k.T / 2).masked_fill(mask, -math.inf).softmax(-1) @ v"
)
MASKED = "p = torch.log_softmax((h @ h.T).masked_fill(torch.eye(4, dtype=torch.bool), -math.inf), -1).exp()\n        "
HALF = "torch.autocast('cpu', dtype=torch.float16)"


@pytest.mark.parametrize(
    ("body", "context", "layer", "operations"),
    [
        ("h = torch.log(torch.relu(h) * (0.0 if bad else 1.0) + (0.0 if bad else 1.0))", "", "stem", ("log",)),
        ("h = h.tanh() * torch.full_like(h, math.inf if bad else 1.0)", "", "stem", ("mul",)),
        (ATTENTION, "", "qkv", ("mm", "div", "masked_fill", "softmax")),
        ("h = torch.exp(h + (1e3 if bad else 0.0))", "", "stem", ("add", "exp")),
        ("h = self.norm(torch.log(h.relu() * (0.0 if bad else 1.0) + (0.0 if bad else 1.0)))", "", "stem", ("log",)),
        ("h = self.norm(self.qkv(h.abs().sign() * (6e4 if bad else 1.0))[:, :8])", HALF, "qkv", ()),
        (
            MASKED + "h = h + p @ h; h = torch.sqrt(self.qkv(h)[:, :8] + (-1e3 if bad else 1e3))",
            "",
            "qkv",
            ("add", "sqrt"),
        ),
        (
            "h = nn.functional.layer_norm(self.qkv(h * (1e20 if bad else 1.0))[:, :8], (8,))",
            "",
            "qkv",
            ("native_layer_norm",),
        ),
        ("h = self.qkv(h.abs().sign() * (6e4 if bad else 1.0))[:, :8] * 1e-4", HALF, "qkv", ("mul",)),
    ],
)
def test_what_went_first_between_layers(
    body: str, context: str, layer: str, operations: tuple[str, ...], tmp_path: Path
) -> None:
    script = BETWEEN.format(body=body, context=context or "torch.enable_grad()")
    found = record(tmp_path, script).run.header.first_nonfinite
    assert found is not None
    assert (found.step, found.layer, found.operations) == (1, layer, operations)


def test_a_layer_that_was_given_finite_values_made_the_others() -> None:
    first, norm, last = torch.nn.Linear(8, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 1)
    loss = last(norm(first(torch.ones(4, 8) * 1e20))).mean()
    assert offender.nonfinite_activation(loss) == Broken(id(norm.weight), "activation")


def test_the_step_that_a_script_stops_at(tmp_path: Path) -> None:
    body = """
    optimizer = torch.optim.SGD(params, lr=0.01)
    for i in range(5):
        optimizer.zero_grad()
        loss = model(torch.ones(4, 6) * (1e30 if i == 3 else 1.0)).pow(2).mean()
        loss.backward()
        if not math.isfinite(loss.item()):
            break
        optimizer.step()
    """
    run = record(tmp_path, body).run
    assert run.skipped.tolist() == [False] * 4
    assert run.header.first_nonfinite is not None
    assert run.header.first_nonfinite.step == 3


def test_checkpointed_activations_are_left_alone(tmp_path: Path) -> None:
    body = """
    from torch.utils.checkpoint import checkpoint
    optimizer = torch.optim.SGD(params, lr=0.01)
    for i in range(2):
        optimizer.zero_grad()
        (checkpoint(model, torch.ones(2, 6), use_reentrant=False).mean() * (math.inf if i else 1.0)).backward()
        optimizer.step()
    """
    found = record(tmp_path, body).run.header.first_nonfinite
    assert found is not None
    assert found.went_first == "loss"


def test_the_micro_step_of_a_nonfinite_loss(tmp_path: Path) -> None:
    body = """
    optimizer = torch.optim.SGD(params, lr=0.01)
    for i in range(6):
        (loss_of(model, i) * (math.nan if i == 4 else 1.0)).backward()
        if i % 3 == 2:
            optimizer.step(); optimizer.zero_grad()
    """
    found = record(tmp_path, body).run.header.first_nonfinite
    assert found is not None
    assert (found.step, found.micro_step, found.went_first) == (1, 1, "loss")


def test_graphs_too_large_to_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(5)))
    loss = model(torch.full((1, 2), torch.nan)).sum()
    assert offender.nonfinite_activation(loss) == Broken(id(model[0].bias), "input")
    monkeypatch.setattr(offender, "WIDEST", 2)
    monkeypatch.setattr(find, "WIDEST", 2)
    assert offender.nonfinite_activation(loss) is None
    assert find.forward_order([loss]) == {}
