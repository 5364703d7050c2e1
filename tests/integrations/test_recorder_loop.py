"""The Recorder in a loop of one's own passes the conformance suite."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
import torch

from gradscope import Recorder, clip_grad_norm_, load_run
from tests.integrations import conformance
from tests.integrations.conformance import Case, Outcome


def train(case: Case, folder: Path, recorded: bool) -> Outcome:
    model, outcome = conformance.make_model(), Outcome()
    optimizer = torch.optim.SGD(model.parameters(), lr=conformance.RATE, momentum=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=case.init_scale or 1.0, enabled=case.init_scale is not None)
    recorder = Recorder(model, optimizer, directory=folder) if recorded else None
    clip = clip_grad_norm_ if recorded else torch.nn.utils.clip_grad_norm_
    with suppress(conformance.StopError, KeyboardInterrupt), recorder or nullcontext():
        for i, batch in enumerate(conformance.make_data(case)):
            conformance.check_raises(case, i)
            loss = conformance.loss_of(model, batch, case)
            outcome.losses.append(loss.item())
            scaler.scale(loss).backward()
            if recorder:
                recorder.observe(loss, batch=i)
            if (i + 1) % case.accumulate:
                continue
            scale = scaler.get_scale()
            scaler.unscale_(optimizer)
            if recorder and (case.max_norm is None or scaler.is_enabled()):
                noted = scale if scaler.is_enabled() else None
                recorder.measure(max_norm=case.max_norm, loss_scale=noted)
            if case.max_norm is not None:
                clip(model.parameters(), case.max_norm)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            if recorder:
                recorder.finish_step(skipped=scaler.get_scale() < scale)
    outcome.weights = model.state_dict()
    outcome.runs = [load_run(recorder.directory)] if recorder else []
    return outcome


@pytest.mark.parametrize("case", conformance.CASES, ids=lambda case: case.name)
def test_conformance(case: Case, tmp_path: Path) -> None:
    conformance.check(train, case, tmp_path)


def test_two_models_one_after_the_other(tmp_path: Path) -> None:
    conformance.check_two(train, tmp_path)
