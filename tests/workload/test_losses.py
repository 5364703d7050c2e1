from __future__ import annotations

import pytest
import torch

from gradscope.errors import SpecError, UserCodeError
from gradscope.workload import read_workload
from gradscope.workload.read import try_first_step
from tests.workload.conftest import Write

MODEL = "model = nn.Linear(4, 3)\n"
DATA = "data = [(torch.randn(8, 4), torch.arange(8) % 3)]\n"


@pytest.mark.parametrize(
    ("body", "value", "source"),
    [
        (
            "def training_step(model, batch): return model(batch[0]).sum()\nloss = nn.MSELoss()\n",
            "training_step",
            "model.py:7",
        ),
        ("training_step = lambda *given: given[0](given[1][0]).sum()\n", "training_step", "model.py:7"),
        (
            "class S:\n    def __call__(self, model, batch): return model(batch[0]).sum()\ntraining_step = S()\n",
            "training_step",
            "model.py:9",
        ),
        ("loss = nn.CrossEntropyLoss()\n", "CrossEntropyLoss()", "model.py:7"),
        ("criterion = nn.CrossEntropyLoss\n", "CrossEntropyLoss()", "model.py:7"),
        ("loss_fn = F.cross_entropy\n", "cross_entropy", "model.py:7"),
        ("loss_fn = criterion = F.cross_entropy\n", "cross_entropy", "model.py:7"),
        ("loss = torch.tensor(3.0)\ndef loss_fn(output, target): return output.mean()\n", "loss_fn", "model.py:8"),
        (
            (
                "class LongLossName(nn.Module):\n"
                "    def __init__(self):\n"
                "        super().__init__()\n"
                "        self.part = nn.CrossEntropyLoss()\n"
                "    def forward(self, o, t): return self.part(o, t)\n"
                "loss = LongLossName()\n"
            ),
            "LongLossName",
            "model.py:12",
        ),
        ("", "cross_entropy", "inferred"),
    ],
)
def test_where_the_loss_comes_from(write: Write, body: str, value: str, source: str) -> None:
    workload = read_workload(write(MODEL + DATA + body))
    assert (workload.pieces[2].value, workload.pieces[2].source) == (value, source)
    assert workload.inferred_loss == (source == "inferred")
    loss = workload.training_step(workload.model, workload.batches.at(0))
    assert loss.requires_grad
    assert try_first_step(workload) == pytest.approx(loss.item())


CARRIED = """class Out:
    def __init__(self, loss, logits): self.loss, self.logits = loss, logits
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)
    def forward(self, x, labels=None):
        logits = self.fc(x)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return RETURN
"""


@pytest.mark.parametrize(
    ("returned", "data", "value"),
    [
        ("Out(loss, logits)", "{'x': X, 'labels': Y}", "output.loss"),
        ("{'loss': loss, 'logits': logits}", "{'x': X, 'labels': Y}", "output.loss"),
        ("(loss, logits)", "{'x': X, 'labels': Y}", "output.loss"),
        ("loss", "{'x': X, 'labels': Y}", "the model's scalar output"),
        ("logits.mean()", "X", "the model's scalar output"),
        ("Out(loss, logits)", "(X, Y)", "cross_entropy"),
        ("{'logits': logits}", "{'x': X, 'label': Y}", "cross_entropy"),
        ("(logits, loss)", "(X, Y)", "cross_entropy"),
        ("logits", "[X, Y]", "cross_entropy"),
    ],
)
def test_outputs_that_carry_a_loss_and_outputs_that_do_not(write: Write, returned: str, data: str, value: str) -> None:
    body = (
        CARRIED.replace("RETURN", returned)
        + f"X, Y = torch.randn(8, 4), torch.arange(8) % 3\ndata = lambda: iter([{data}] * 4)\n"
    )
    workload = read_workload(write(body))
    assert workload.pieces[2].value == value
    assert workload.training_step(workload.model, workload.batches.at(1)).requires_grad


def test_a_forward_whose_signature_cannot_be_read_is_given_the_whole_dict(write: Write) -> None:
    body = "class Net(nn.Linear):\n    forward = property(lambda self: Call(self))\n"
    call = (
        "class Call:\n"
        "    __signature__ = 3\n"
        "    def __init__(self, net): self.net = net\n"
        "    def __call__(self, x, y): return F.cross_entropy(F.linear(x, self.net.weight), y)\n"
    )
    data = "model = Net(4, 3)\ndata = [{'x': torch.randn(8, 4), 'y': torch.arange(8) % 3}]\n"
    assert read_workload(write(call + body + data)).pieces[2].value == "the model's scalar output"


def test_every_input_a_model_needs_is_given(write: Write) -> None:
    two = (
        "class Net(nn.Bilinear):\n"
        "    def forward(self, a, b): return super().forward(a, b)\n"
        "model = Net(4, 4, 3)\n"
        "X = torch.randn(8, 4)\n"
    )
    workload = read_workload(write(two + "data = [(X, X, torch.arange(8) % 3)]\n"))
    assert workload.pieces[2].value == "cross_entropy"
    whole = (
        "class Net(nn.Linear):\n"
        "    def forward(self, a, y): return F.cross_entropy(super().forward(a), y)\n"
        "model = Net(4, 3)\n"
        "X = torch.randn(8, 4)\n"
    )
    workload = read_workload(write(whole + "data = [(X, torch.arange(8) % 3)]\n"))
    assert workload.pieces[2].value == "the model's scalar output"
    alone = read_workload(
        write("model = nn.Linear(4, 4)\ndata = TensorDataset(torch.randn(40, 4))\nloss = nn.MSELoss()\n")
    )
    assert alone.training_step(alone.model, alone.batches.at(0)).requires_grad


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            DATA + "training_step = 3\n",
            r"model\.py:7: `training_step` is a int; write def training_step\(model, batch\)",
        ),
        (
            DATA + "def training_step(batch): pass\n",
            r"model\.py:7: training_step takes \(batch\); it is called as training_step\(model, batch\)",
        ),
        (DATA + "def training_step(model, batch, index): pass\n", r"takes \(model, batch, index\)"),
        (
            DATA + "loss = nn.MSELoss()\ncriterion = nn.L1Loss()\n",
            r"2 losses: `loss` \(model\.py:7\) and `criterion` \(model\.py:8\); keep one",
        ),
        (DATA + "def loss(a, b, c): pass\n", r"model\.py:7: `loss` needs 3 arguments \(a, b, c\)"),
        (
            DATA + "loss = nn.CrossEntropyLoss(reduction='none')\n",
            r"model\.py:7: the loss has shape \(8,\), not one number; reduce it, for example with \.mean\(\)",
        ),
        (DATA + "loss = lambda o, t: o.sum().item()\n", r"model\.py:7: the loss is a float, not a tensor"),
        (
            DATA + "loss = lambda o, t: o.sum().detach()\n",
            r"model\.py:7: the loss has no gradient; it must be computed from",
        ),
        (
            "data = lambda: iter(['text'])\n",
            (
                r"model\.py:6: a batch is a str, which does not say what is input and what is target; write "
                r"`def training_step"
            ),
        ),
        ("data = [()]\n", r"a batch is a tuple, which"),
        (
            "data = [(torch.randn(8, 4), 'kind')]\n",
            r"model\.py: the loss cannot be inferred: the target is a str; set `loss = …`",
        ),
    ],
)
def test_no_usable_loss(write: Write, body: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read_workload(write(MODEL + body))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            MODEL + "data = [(torch.randn(8, 7), torch.arange(8))]\n",
            (
                r"model\.py: the model cannot take its first batch \(float32 \(8, 7\), int64 \(8,\)\): in "
                r"layer `Linear` \(Linear\(in_features=4, out_features=3, bias=True\), given float32 \(8, "
                r"7\)\) RuntimeError: mat1"
            ),
        ),
        (
            "model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(5, 2)))\n" + DATA,
            r"in layer `1\.0` \(Linear\(in_features=5.*given float32 \(8, 4\)\)",
        ),
        (
            "class Net(nn.Linear):\n    def forward(self, x):\n        return x.missing\nmodel = Net(4, 3)\n" + DATA,
            r"in layer `Net` .* at model\.py:7 AttributeError",
        ),
        (
            MODEL + DATA + "def loss(o, t):\n    return o + t\n",
            (
                r"model\.py:7: `loss` raised RuntimeError at model\.py:8 for output float32 \(8, 3\) and "
                r"target int64 \(8,\)"
            ),
        ),
        (
            MODEL + "data = [(torch.randn(8, 4), torch.randn(8, 3))]\nloss = F.nll_loss\n",
            r"model\.py:7: `loss` raised RuntimeError for output",
        ),
        (
            MODEL
            + "data = [{'x': torch.randn(8, 4), 'label': torch.arange(8), 'a': [1], 'b': (1, 2, 3, 4, 5, 6, 7)}]\n",
            (
                r"cannot take its first batch \{x: float32 \(8, 4\), label: int64 \(8,\), a: \(int\), b: "
                r"\(int, int, int, int, int, int, …\)\}: TypeError"
            ),
        ),
    ],
)
def test_batches_that_do_not_fit_name_the_layer_and_the_line(write: Write, body: str, message: str) -> None:
    with pytest.raises(UserCodeError, match=message) as caught:
        read_workload(write(body))
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            "(loss * torch.ones(2)) if False else Out(x[0].detach(), None)",
            r"model\.py: the model's own loss has shape \(4,\)",
        ),
        ("Out(x.sum().detach(), None)", "the model's own loss has no gradient"),
        ("3", "the loss cannot be inferred: the model returns int"),
        ("Out(None, None)", "the model returns Out"),
        ("logits.detach()", "the model's output has no gradient; is it detached"),
        ("logits.argmax(1)", "the model's output is torch.int64, not floating point"),
    ],
)
def test_outputs_without_a_usable_loss(write: Write, returned: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read_workload(write(CARRIED.replace("RETURN", returned) + DATA))


def test_reading_leaves_the_model_and_the_random_state_alone(write: Write) -> None:
    body = (
        (
            "class Net(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.fc, self.bn, self.calls = nn.Linear(4, 3), nn.BatchNorm1d(3), 0\n"
            "    def forward(self, x):\n"
            "        self.calls += 1\n"
            "        return F.dropout(self.bn(self.fc(x)))\n"
            "model = Net()\n"
        )
        + DATA
        + "torch.manual_seed(5)\n"
    )
    workload = read_workload(write(body))
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)
    assert workload.model.calls == 0
    assert workload.model.bn.num_batches_tracked == 0


def test_a_model_that_cannot_be_copied_is_tried_and_its_buffers_put_back(write: Write) -> None:
    body = (
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.fc, self.bn = nn.Linear(4, 3), nn.BatchNorm1d(3)\n"
        "    def forward(self, x): return self.bn(self.fc(x))\n"
        "    def __deepcopy__(self, memo): raise TypeError('no')\n"
        "model = Net()\n"
    ) + DATA
    workload = read_workload(write(body))
    assert workload.model.bn.num_batches_tracked == 0
    assert workload.model.bn.running_mean.abs().sum() == 0


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (
            "def training_step(model, batch): return model(batch[0])\n",
            SpecError,
            r"model\.py: the loss has shape \(8, 3\)",
        ),
        ("def training_step(model, batch): return 1 / 0\n", UserCodeError, r"at model\.py:7 ZeroDivisionError"),
    ],
)
def test_trying_the_first_step(write: Write, body: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        try_first_step(read_workload(write(MODEL + DATA + body)))


def test_synthetic_batches_have_a_target_only_where_one_is_needed(write: Write) -> None:
    body = CARRIED.replace("RETURN", "logits.mean()") + "input_shape = (4,)\n"
    workload = read_workload(write(body))
    assert workload.pieces[2].value == "the model's scalar output"
    assert workload.batches.at(0).shape == (32, 4)
    with pytest.raises(SpecError, match="the loss cannot be inferred: the model returns NoneType"):
        read_workload(write(CARRIED.replace("RETURN", "None") + "input_shape = (4,)\n"))


def test_a_later_batch_of_another_form_says_so(write: Write) -> None:
    workload = read_workload(write(MODEL + "data = [(torch.randn(8, 4), torch.arange(8) % 3), 'text']\n"))
    with pytest.raises(SpecError, match="a batch is a str"):
        workload.training_step(workload.model, workload.batches.at(1))
    carried = CARRIED.replace("RETURN", "Out(loss, logits)")
    workload = read_workload(
        write(carried + "X = torch.randn(8, 4)\ndata = [{'x': X, 'labels': torch.arange(8) % 3}, {'x': X}]\n")
    )
    with pytest.raises(SpecError, match="had a loss for the first batch and has none now"):
        workload.training_step(workload.model, workload.batches.at(1))
    workload.batches.at = lambda index: "text"  # type: ignore[method-assign]
    with pytest.raises(SpecError, match=r"model\.py: a batch is a str"):
        try_first_step(workload)
