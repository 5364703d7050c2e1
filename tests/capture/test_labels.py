"""The classes of sampled batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradscope.capture.data import DataProbe
from gradscope.capture.labels import LabelProbe
from gradscope.capture.loop import run_steps
from gradscope.capture.recorder import Recorder
from gradscope.runs.reader import load_run
from gradscope.workload.steps import CriterionStep
from tests.capture.small_workloads import Fixed, workload
from tests.capture.test_gains import Collected


def counted(batch: Any, criterion: Any, *behind: nn.Module) -> Any:
    step = CriterionStep(criterion)
    work = workload(model=nn.Sequential(nn.Linear(3, 5), *behind), batches=Fixed(lambda _: batch), training_step=step)
    probe, seen = LabelProbe(work), Collected()
    for at in range(2):
        probe.begin(at)
        work.training_step(work.model, batch)
        probe.end(at, seen)
        assert work.training_step is step
    return seen.rows


def test_samples_of_each_class() -> None:
    rows = counted((torch.randn(6, 3), torch.tensor([4, 0, 4, 4, 1, 0])), F.cross_entropy)
    assert rows == {
        "labels": {"0": 2, "1": 1, "4": 3},
        "classes": {"(root)": 5},
        "probabilities": {"(root)": 0.0},
    }


@pytest.mark.parametrize(("behind", "share"), [(nn.Softmax(1), 1.0), (nn.LogSoftmax(1), 0.0), (nn.Sigmoid(), 0.0)])
def test_outputs_that_are_probabilities(behind: nn.Module, share: float) -> None:
    rows = counted((torch.randn(6, 3), torch.tensor([4, 0, 4, 4, 1, 0])), F.cross_entropy, behind)
    assert rows["probabilities"] == {"(root)": share}


@pytest.mark.parametrize(
    ("target", "criterion"),
    [(torch.randn(6, 5), F.mse_loss), (torch.rand(6, 5).softmax(1), F.cross_entropy)],
    ids=["numbers", "shares of every class"],
)
def test_targets_that_are_no_classes(target: torch.Tensor, criterion: Any) -> None:
    assert counted((torch.randn(6, 3), target), criterion) == {}


def test_several_probes_leave_the_training_step_as_it_was(tmp_path: Path) -> None:
    step = CriterionStep(F.cross_entropy)
    batch = (torch.randn(6, 3), torch.tensor([4, 0, 4, 4, 1, 0]))
    work = workload(model=nn.Linear(3, 5), batches=Fixed(lambda _: batch), training_step=step)
    with Recorder(work.model, work.optimizers, directory=tmp_path / "run") as recorder:
        run_steps(work, recorder, range(4), probes=(DataProbe(work), LabelProbe(work)), probe_steps={0, 2})
    assert work.training_step is step
    probes = load_run(tmp_path / "run").probes
    assert np.unique(probes.select("labels").step).tolist() == [0, 2]
    assert probes.select("input_rms").step.tolist() == [0]
