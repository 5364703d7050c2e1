from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

import gradscope.workload
from gradscope.errors import SpecError
from gradscope.workload import Overrides, read_workload
from gradscope.workload.template import SPEC_TEMPLATE
from tests.workload.conftest import Write

BASE = "model = nn.Linear(4, 3)\ndata = (torch.randn(40, 4), torch.arange(40) % 3)\n"
PLAN = (
    "total_steps = 20_000\n"
    "max_norm = 1\n"
    "accumulate = 4\n"
    "precision = 'bf16-mixed'\n"
    "seed = 7\n"
    "batch_size = torch.tensor(5)\n"
    "device = 'cpu'\n"
)


def test_the_plan_is_read_and_said(write: Write) -> None:
    workload = read_workload(write(BASE + PLAN))
    plan = workload.plan
    assert (plan.total_steps, plan.max_norm, plan.accumulate, plan.precision, plan.batch_size) == (
        20_000,
        1.0,
        4,
        "bf16",
        5,
    )
    assert (workload.seed, workload.device) == (7, torch.device("cpu"))
    piece = workload.pieces[-1]
    assert (piece.value, piece.source, piece.detail) == (
        "20 000 steps",
        "model.py:7",
        "clips at 1 today, bf16, seed 7, accumulates 4 micro-steps",
    )
    assert [p.piece for p in workload.pieces] == ["model", "data", "loss", "optimizer", "schedule", "plan"]


def test_flags_win(write: Write) -> None:
    given = Overrides(total_steps=10, max_norm=2.5, accumulate=1, precision="fp16", seed=3, batch_size=8, device="cpu")
    workload = read_workload(write(BASE + PLAN), overrides=given)
    plan = workload.plan
    assert (plan.total_steps, plan.max_norm, plan.accumulate, plan.precision, plan.batch_size) == (
        10,
        2.5,
        1,
        "fp16",
        8,
    )
    assert workload.seed == 3
    assert workload.pieces[-1].source == "--total-steps"


def test_nothing_said_is_said(write: Write) -> None:
    workload = read_workload(write(BASE))
    piece = workload.pieces[-1]
    assert (piece.value, piece.source) == ("steps unknown", "default")
    assert piece.detail == "no clipping, fp32, seed 0, set total_steps to be told about later steps"
    assert (workload.seed, workload.plan.batch_size, workload.plan.total_steps) == (0, 32, None)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("total_steps = 0", r"model\.py:7: total_steps is 0; it must be a whole number of steps, at least 1"),
        ("total_steps = 1.5", "total_steps is 1.5"),
        ("total_steps = float('inf')", "total_steps is inf"),
        ("total_steps = True", "total_steps is True"),
        ("total_steps = 'many'", "total_steps is 'many'"),
        ("max_norm = 0", r"model\.py:7: max_norm is 0; it must be a positive number \(0 would zero every gradient\)"),
        ("max_norm = float('nan')", "max_norm is nan"),
        ("max_norm = torch.ones(2)", "max_norm is tensor"),
        ("accumulate = -1", "accumulate is -1; it must be a whole number of micro-steps"),
        ("batch_size = []", r"batch_size is \[\]"),
        ("precision = 'fp8'", "precision is 'fp8'; it must be fp32, bf16 or fp16"),
        ("device = 3.0", "device is 3.0; it must be a device such as cpu or cuda"),
        ("device = 'warp'", "device is 'warp', which cannot be used here"),
        ("seed = -1", r"model\.py: seed is -1; it must be a whole number, at least 0"),
        ("seed = 'a'", "seed is 'a'"),
    ],
)
def test_a_plan_that_makes_no_sense(write: Write, line: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read_workload(write(BASE + line + "\n"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Overrides(total_steps=0), "--total-steps is 0"),
        (Overrides(seed=-1), "--seed is -1"),
        (Overrides(max_norm=-2.0), "--max-norm is -2.0"),
    ],
)
def test_a_flag_that_makes_no_sense_is_named(write: Write, given: Overrides, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read_workload(write(BASE), overrides=given)


def test_whole_numbers_in_disguise_are_taken(write: Write) -> None:
    workload = read_workload(
        write(
            "import numpy as np\n" + BASE + "total_steps = np.int64(50)\nmax_norm = np.float32(0.5)\naccumulate = 2.0\n"
        )
    )
    assert (workload.plan.total_steps, workload.plan.max_norm, workload.plan.accumulate) == (50, 0.5, 2)


def test_reading_twice_with_a_seed_gives_the_same_workload(write: Write) -> None:
    body = (
        "import numpy as np, random\n"
        "model = nn.Linear(4, 3)\n"
        "X = torch.rand(40, 4) + np.random.rand() + random.random()\n"
        "data = (X, torch.arange(40) % 3)\n"
    )

    def read(seed: int) -> list[Any]:
        workload = read_workload(write(body), overrides=Overrides(seed=seed))
        return [workload.model.weight.tolist(), workload.batches.at(4)[0].tolist()]

    assert read(1) == read(1)
    assert read(1) != read(2)


def test_a_seed_that_is_no_literal_counts_as_none(write: Write) -> None:
    assert read_workload(write(BASE + "seed = 3 + len('a')\n")).seed == 0


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        ("[{'input': torch.ones(6, 4)}]", 6),
        ("[(3, torch.ones(6, 4))]", 6),
        ("[torch.tensor(3.0)]", None),
        ("[[]]", None),
    ],
)
def test_the_rows_of_a_batch(write: Write, data: str, rows: int | None) -> None:
    body = f"model = nn.Linear(4, 3)\ndata = {data}\ndef training_step(model, batch): return model.weight.sum()\n"
    assert read_workload(write(body)).plan.batch_size == rows


def test_the_starter_spec_works_as_it_is(write: Write) -> None:
    workload = read_workload(write(SPEC_TEMPLATE, "model.py", head=""))
    assert workload.plan.total_steps == 2000
    assert workload.plan.max_norm == 1.0
    first = workload.training_step(workload.model, workload.batches.at(0))
    first.backward()
    assert all(p.grad is not None for p in workload.model.parameters())


def test_importing_the_package_does_not_load_torch() -> None:
    code = (
        "import sys, gradscope.workload, gradscope.workload.template; assert 'torch' not in "
        "sys.modules; gradscope.workload.read_workload; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(gradscope.workload, "nothing")  # noqa: B009  # mypy knows that it is not there
