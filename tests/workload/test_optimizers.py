from __future__ import annotations

from typing import Any

import pytest
import torch

from gradscope.errors import SpecError, UserCodeError
from gradscope.workload import read_workload
from tests.workload.conftest import Write

BASE = "model = nn.Linear(4, 3)\ndata = [(torch.randn(8, 4), torch.arange(8) % 3)]\ntotal_steps = 100\n"


def pieces(workload: Any, name: str) -> tuple[str, str, str]:
    piece = next(p for p in workload.pieces if p.piece == name)
    return piece.value, piece.source, piece.detail


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("", ("AdamW", "default", "lr 0.001; set `optimizer` to override")),
        ("optimizer = torch.optim.SGD(model.parameters(), lr=0.3)\n", ("SGD", "model.py:8", "lr 0.3")),
        ("optimizer = torch.optim.SGD\n", ("SGD", "model.py:8", "lr 0.001")),
        ("optimizer = lambda model: torch.optim.SGD(model.parameters(), lr=0.3)\n", ("SGD", "model.py:8", "lr 0.3")),
        ("optimizer = lambda p: torch.optim.SGD(p, lr=0.3)\n", ("SGD", "model.py:8", "lr 0.3")),
        (
            "from functools import partial\noptimizer = partial(torch.optim.SGD, lr=0.3)\n",
            ("SGD", "model.py:9", "lr 0.3"),
        ),
        (
            "def make_optimizer(params, lr=0.2): return torch.optim.SGD(params, lr=lr)\n",
            ("SGD", "model.py:8", "lr 0.2"),
        ),
        ("def make_optimizer(): return torch.optim.SGD(model.parameters(), lr=0.2)\n", ("SGD", "model.py:8", "lr 0.2")),
        (
            "def make_optimizer(model=None): return torch.optim.SGD(model.parameters(), lr=0.2)\n",
            ("SGD", "model.py:8", "lr 0.2"),
        ),
        (
            "optimizer = torch.optim.SGD([{'params': [model.weight], 'lr': 0.1}, {'params': [model.bias]}], lr=0.3)\n",
            ("SGD", "model.py:8", "lr 0.1 to 0.3"),
        ),
        (
            "optimizer = torch.optim.SGD([model.weight], lr=0.3)\n",
            ("SGD", "model.py:8", "lr 0.3; 1 trainable parameters are not in it"),
        ),
        (
            "optimizer = [torch.optim.SGD([model.weight], lr=0.3), torch.optim.Adam([model.bias])]\n",
            ("SGD and Adam", "model.py:8", "lr 0.001 to 0.3"),
        ),
        (
            "optimizer = torch.optim.Adam(model.parameters())\nmake_optimizer = lambda model: None\n",
            ("Adam", "model.py:8", "lr 0.001"),
        ),
        ("import torch.optim as optimizer\n", ("AdamW", "default", "lr 0.001; set `optimizer` to override")),
        (
            (
                "class Free(torch.optim.Optimizer):\n"
                "    def __init__(self, p): super().__init__(p, {})\n"
                "optimizer = Free\n"
            ),
            ("Free", "model.py:10", "no lr"),
        ),
    ],
)
def test_every_form_of_optimizer(write: Write, body: str, expected: tuple[str, str, str]) -> None:
    workload = read_workload(write(BASE + body))
    assert pieces(workload, "optimizer") == expected
    held = {id(p) for o in workload.optimizers for g in o.param_groups for p in g["params"]}
    assert held <= {id(p) for p in workload.model.parameters()}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "optimizer = torch.optim.SGD(nn.Linear(4, 3).parameters(), lr=1)\n",
            (
                r"model\.py:8: `optimizer` holds 2 parameters, of which none are the model's \(others have "
                r"shapes \(3, 4\), \(3,\)\); make it from this model, or as a function: optimizer = lambda "
                r"model: …"
            ),
        ),
        (
            "optimizer = torch.optim.SGD([model.weight, nn.Parameter(torch.ones(2))], lr=1)\n",
            r"holds 2 parameters, of which only 1 is the model's",
        ),
        ("optimizer = 3\n", r"model\.py:8: `optimizer` gives a int, not a torch\.optim\.Optimizer"),
        ("optimizer = 'adam'\n", "gives a str, not"),
        ("optimizer = []\n", "gives a list, not"),
        ("def make_optimizer(model): pass\n", "gives a NoneType, not"),
        ("def make_optimizer(model, lr): pass\n", r"model\.py:8: `make_optimizer` needs 2 arguments \(model, lr\)"),
        ("scheduler = 3\n", r"model\.py:8: the scheduler is a int, which has no step\(\)"),
        (
            "scheduler = torch.optim.lr_scheduler.LambdaLR\n",
            (
                r"model\.py:8: `LambdaLR` needs 2 arguments \(optimizer, lr_lambda\); `scheduler` is called "
                r"with the optimizer alone"
            ),
        ),
        (
            (
                "other = torch.optim.SGD(model.parameters(), lr=1)\n"
                "scheduler = torch.optim.lr_scheduler.ConstantLR(other)\n"
            ),
            r"model\.py:9: the scheduler is over another optimizer than `AdamW` of this file; name its own one `optimizer`",
        ),
    ],
)
def test_no_usable_optimizer_or_scheduler(write: Write, body: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read_workload(write(BASE + body))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "def make_optimizer(model):\n    return torch.optim.SGD(3)\n",
            r"make_optimizer\(model\) \(model\.py:8\) raised TypeError at model\.py:9",
        ),
        ("optimizer = iter\n", r"optimizer\(\) \(model\.py:8\) raised TypeError: iter expected"),
        (
            "def make_optimizer():\n    return len(3)\n",
            r"make_optimizer\(\) \(model\.py:8\) raised TypeError at model\.py:9",
        ),
        (
            "class Odd(torch.optim.SGD):\n    def __init__(self, params, more): pass\noptimizer = Odd\n",
            r"optimizer\(parameters\) \(model\.py:10\) raised TypeError",
        ),
        (
            "def scheduler(optimizer):\n    1 / 0\n",
            r"scheduler\(optimizer\) \(model\.py:8\) raised ZeroDivisionError at model\.py:9",
        ),
    ],
)
def test_factories_that_raise_are_the_users_own(write: Write, body: str, message: str) -> None:
    with pytest.raises(UserCodeError, match=message):
        read_workload(write(BASE + body))


def rates(workload: Any) -> dict[int, float]:
    return {step: row[0] for step, row in zip(workload.plan.lr_steps, workload.plan.lr, strict=True)}


SGD = "optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)\nS = torch.optim.lr_scheduler\n"


@pytest.mark.parametrize(
    "body",
    [
        "scheduler = S.LambdaLR(optimizer, lambda t: 1 / (1 + t))\n",
        "scheduler = S.OneCycleLR(optimizer, 2.0, total_steps=1000)\n",
        (
            "scheduler = S.SequentialLR(optimizer, [S.LinearLR(optimizer, 0.1, total_iters=20), "
            "S.CosineAnnealingLR(optimizer, 980)], [20])\n"
        ),
        (
            "scheduler = S.ChainedScheduler([S.LinearLR(optimizer, 0.1, total_iters=20), "
            "S.ExponentialLR(optimizer, 0.99)])\n"
        ),
        "scheduler = lambda optimizer: S.StepLR(optimizer, 30)\n",
        "scheduler = S.PolynomialLR\n",
        "scheduler = (S.StepLR(optimizer, 30), S.StepLR(optimizer, 70))\n",
        (
            "class Own:\n"
            "    def __init__(self): self.optimizer, self.t = optimizer, 0\n"
            "    def step(self):\n"
            "        self.t += 1\n"
            "        self.optimizer.param_groups[0]['lr'] = 1 / (self.t + 1)\n"
            "lr_scheduler = Own()\n"
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
def test_the_planned_schedule_is_the_real_one_and_reading_it_touches_nothing(write: Write, body: str) -> None:
    workload = read_workload(
        write(BASE + SGD + body, name="short_plan.py"),
    )
    plain = read_workload(write(BASE + "total_steps = 1000\n" + SGD + body, name="long_plan.py"))
    for one in (workload, plain):
        group = one.optimizers[0].param_groups[0]
        planned = rates(one)
        for step in range(one.plan.total_steps):
            if step in planned:
                assert planned[step] == pytest.approx(group["lr"], rel=1e-12)
            one.optimizers[0].step()
            for scheduler in one.schedulers:
                scheduler.step() if step + 1 < one.plan.total_steps else None
    steps = plain.plan.lr_steps
    assert len(steps) == 400
    assert steps[:61] == tuple(range(61))
    assert steps[-1] == 999
    assert workload.plan.lr_steps == tuple(range(100))


@pytest.mark.parametrize(
    ("body", "value", "detail", "points"),
    [
        (
            "scheduler = S.LambdaLR(optimizer, lambda t: min(1, t / 50))\n",
            "LambdaLR",
            "warm-up 50 steps, peak lr 1, ends at 1",
            100,
        ),
        ("scheduler = S.LinearLR(optimizer, 1.0, 0.5, 10)\n", "LinearLR", "peak lr 1, ends at 0.5", 100),
        (
            "scheduler = S.OneCycleLR(optimizer, 2.0, total_steps=70)\n",
            "OneCycleLR",
            (
                "cannot be read ahead (ValueError: Tried to step 71 times. The specified number of total "
                "steps is 70), so taken as constant; lr 0.08"
            ),
            1,
        ),
        (
            "scheduler = S.ReduceLROnPlateau(optimizer)\n",
            "ReduceLROnPlateau",
            "follows a metric that is not measured here, so taken as constant; lr 1",
            1,
        ),
        (
            "total_steps = None\nscheduler = S.LambdaLR(optimizer, lambda t: min(1, t / 50))\n",
            "LambdaLR",
            "total_steps unknown, so taken as constant after step 60; warm-up 50 steps, peak lr 1, ends at 1",
            60,
        ),
        ("", "constant", "lr 1", 1),
    ],
)
def test_what_is_said_of_the_schedule(write: Write, body: str, value: str, detail: str, points: int) -> None:
    workload = read_workload(write(BASE + SGD + body))
    found = pieces(workload, "schedule")
    assert (found[0], found[2]) == (value, detail)
    assert len(workload.plan.lr) == len(workload.plan.lr_steps) == points
    assert all(hasattr(s, "step") and type(s).__name__ != "ReduceLROnPlateau" for s in workload.schedulers)


def test_a_very_long_schedule_is_read_ahead_without_going_there(write: Write) -> None:
    body = SGD + "scheduler = S.LambdaLR(optimizer, lambda t: 1 - t / 10**9)\ntotal_steps = 10**8\n"
    workload = read_workload(write(BASE + body))
    assert pieces(workload, "schedule")[2].startswith("taken as constant after step 1000000; peak lr 1, ends at")
    assert workload.plan.lr_steps[-1] == 999_999
    assert workload.plan.lr[-1][0] == pytest.approx(1 - 999_999 / 10**9, rel=1e-12)


def test_total_steps_may_come_from_the_scheduler(write: Write) -> None:
    workload = read_workload(
        write(
            BASE.replace("total_steps = 100\n", "") + SGD + "scheduler = S.OneCycleLR(optimizer, 2.0, total_steps=70)\n"
        )
    )
    assert workload.plan.total_steps == 70
    assert pieces(workload, "plan")[:2] == ("70 steps", "OneCycleLR")
    assert len(workload.plan.lr) == 70


def test_a_rate_that_is_a_tensor_is_read_as_a_number(write: Write) -> None:
    workload = read_workload(
        write(
            BASE
            + (
                "optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.5), capturable=False)\n"
                "scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)\n"
            )
        )
    )
    assert [row[0] for row in workload.plan.lr[:3]] == [0.5, 0.25, 0.125]
    assert workload.optimizers[0].param_groups[0]["lr"] == torch.tensor(0.5)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("optimzer = torch.optim.SGD(model.parameters(), lr=0.3)\n", [("optimzer", "did you mean `optimizer`?")]),
        ("schedular = None\nmax_nrm = 9\n", [("max_nrm", "did you mean `max_norm`?")]),
        ("optimizer = torch.optim.SGD(model.parameters(), lr=0.3)\noptimizers = [optimizer]\n", []),
        ("from torch.optim import Optimizer\nimport torch.optim as optimizers\n", []),
    ],
)
def test_a_name_that_is_nearly_read_is_told(write: Write, body: str, told: list[tuple[str, str]]) -> None:
    workload = read_workload(write(BASE + body))
    assert [(piece.value, piece.detail) for piece in workload.pieces if piece.piece == "not read"] == told
