"""Scripts recorded unchanged pass the conformance suite: a loop of plain torch, and one of Accelerate."""

from __future__ import annotations

import json
import math
import runpy
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from gradscope.integrations.find import trainer
from gradscope.integrations.script import record_script
from gradscope.runs.reader import load_run
from tests.integrations import conformance
from tests.integrations.conformance import Case, Outcome

PLAIN = """
import sys, torch
from torch.nn.utils import clip_grad_norm_
from tests.integrations import conformance
case = next(case for case in conformance.CASES if case.name == sys.argv[1])
model = conformance.make_model()
optimizer = torch.optim.SGD(model.parameters(), lr=conformance.RATE, momentum=0.5)
scaler = torch.amp.GradScaler("cpu", init_scale=case.init_scale or 1.0, enabled=case.init_scale is not None)
losses = []
try:
    for i, batch in enumerate(conformance.make_data(case)):
        conformance.check_raises(case, i)
        loss = conformance.loss_of(model, batch, case)
        losses.append(loss.item())
        scaler.scale(loss).backward()
        if (i + 1) % case.accumulate == 0:
            if case.max_norm is not None:
                scaler.unscale_(optimizer)
                clip_grad_norm_(model.parameters(), case.max_norm)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
finally:
    torch.save({"losses": losses, "weights": model.state_dict()}, sys.argv[2])
"""

ACCELERATE = """
import sys, torch
from accelerate import Accelerator
from tests.integrations import conformance
case = next(case for case in conformance.CASES if case.name == sys.argv[1])
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=case.accumulate)
model = conformance.make_model()
optimizer = torch.optim.SGD(model.parameters(), lr=conformance.RATE, momentum=0.5)
if case.init_scale is not None:
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=case.init_scale)
model, optimizer = accelerator.prepare(model, optimizer)
if case.init_scale is not None:  # what Accelerator(mixed_precision="fp16") sets where there is a GPU
    accelerator.native_amp, accelerator.state._mixed_precision = True, "fp16"
losses = []
try:
    for i, batch in enumerate(conformance.make_data(case)):
        conformance.check_raises(case, i)
        with accelerator.accumulate(model):
            loss = conformance.loss_of(model, batch, case)
            losses.append(loss.item())
            accelerator.backward(loss * case.accumulate)
            if accelerator.sync_gradients and case.max_norm is not None:
                accelerator.clip_grad_norm_(model.parameters(), case.max_norm)
            optimizer.step()
            optimizer.zero_grad()
finally:
    torch.save({"losses": losses, "weights": model.state_dict()}, sys.argv[2])
"""


def train(text: str, case: Case, folder: Path, recorded: bool, capsys: pytest.CaptureFixture[str]) -> Outcome:
    folder.mkdir()
    script, saved = folder / "train.py", folder / "saved.pt"
    script.write_text(text, encoding="utf-8")
    runs = []
    if recorded:
        done = record_script([str(script), case.name, str(saved)], root=folder)
        runs = [load_run(run) for run in done.runs]
        assert (
            done.exit_code == {None: 0, conformance.StopError: 1, KeyboardInterrupt: 130}[case.stops and case.stops[1]]
        )
        assert (case.stops is None) == ("the data stops here" not in capsys.readouterr().err)
    else:
        with suppress(conformance.StopError, KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", [str(script), case.name, str(saved)])
            runpy.run_path(str(script), run_name="__main__")
    result = torch.load(saved, weights_only=True)
    return Outcome(result["losses"], result["weights"], runs)


@pytest.mark.parametrize("case", conformance.CASES, ids=lambda case: case.name)
def test_a_plain_script(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conformance.check(lambda *given: train(PLAIN, *given, capsys), case, tmp_path)


@pytest.mark.parametrize("case", conformance.CASES, ids=lambda case: case.name)
def test_accelerate(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("accelerate")
    conformance.check(lambda *given: train(ACCELERATE, *given, capsys), case, tmp_path)


@pytest.mark.parametrize("text", [PLAIN, ACCELERATE], ids=["plain", "accelerate"])
def test_two_models_one_after_the_other(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("accelerate")
    conformance.check_two(lambda *given: train(text, *given, capsys), tmp_path)


FABRIC = """
import json, math, pathlib, sys, torch
from lightning.fabric import Fabric
from tests.integrations import conformance
fabric = Fabric(accelerator="cpu", devices=1)
model = conformance.make_model()
model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.05))
norms = []
for batch in conformance.make_data(conformance.PLAIN):
    optimizer.zero_grad()
    fabric.backward(conformance.loss_of(model, batch, conformance.PLAIN))
    norms.append(math.sqrt(sum(p.grad.double().square().sum().item() for p in model.parameters())))
    fabric.clip_gradients(model, optimizer, {limit})
    optimizer.step()
pathlib.Path(sys.argv[1]).write_text(json.dumps(norms))
"""


@pytest.mark.parametrize(("limit", "max_norm"), [("max_norm=0.5", 0.5), ("clip_val=0.1", math.nan)])
def test_clipping_of_fabric(limit: str, max_norm: float, tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    (tmp_path / "train.py").write_text(FABRIC.format(limit=limit))
    (path,) = record_script([str(tmp_path / "train.py"), str(tmp_path / "norms")], root=tmp_path).runs
    run = load_run(path)
    np.testing.assert_allclose(run.global_norm, json.loads((tmp_path / "norms").read_text()), rtol=1e-6)
    np.testing.assert_array_equal(run.max_norm, max_norm)
    assert run.header.parameters[0].name == "0.weight"
    assert run.header.framework is None


def test_the_framework_that_trains_is_noted(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    (tmp_path / "train.py").write_text(ACCELERATE)
    (path,) = record_script([str(tmp_path / "train.py"), "plain", str(tmp_path / "seen")], root=tmp_path).runs
    assert load_run(path).header.framework == "accelerate"


@pytest.mark.parametrize(
    ("module", "framework"),
    [
        ("transformers.trainer", "transformers"),
        ("lightning.pytorch.loops", "lightning"),
        ("lightning.fabric.fabric", None),
        ("accelerates", None),
    ],
)
def test_the_framework_is_known_by_its_modules(module: str, framework: str | None) -> None:
    assert eval("trainer()", {"__name__": module, "trainer": trainer}) == framework


def test_the_suite_can_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = PLAIN.replace(
        "loss = conformance.loss_of(model, batch, case)", "loss = 2 * conformance.loss_of(model, batch, case)"
    )
    with pytest.raises(AssertionError):
        conformance.check(lambda *given: train(wrong, *given, capsys), conformance.PLAIN, tmp_path)
