"""Two real processes of one training: what each rank computed from its own batches, before gradients are averaged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gradscope.diagnosis.diagnose import diagnose
from gradscope.runs.run import Run
from tests.integrations.processes import ROOT, recorded, run

POISONED = """
import torch, torch.distributed as dist
from torch import nn
dist.init_process_group("gloo")
torch.manual_seed(0)
torch.set_num_threads(1)
rank, told = dist.get_rank(), []
net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
model = nn.parallel.DistributedDataParallel(net)
optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
for i in range(16):
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(10 * i + rank))
    if (rank, i) == (1, 12):
        x[3] = float("inf")
    optimizer.zero_grad()
    for half in x.chunk(2):
        loss = (model(half) - half.sum(1, keepdim=True)).square().mean() / 2
        loss.backward()
        told.append(loss.item())
    optimizer.step()
    with open(f"{rank}.txt", "a") as file:
        print((told[-2] + told[-1]) / 2, file=file)
dist.destroy_process_group()
"""
SHARDED = """
import torch, torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
dist.init_process_group("gloo")
torch.manual_seed(0)
torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
for i in range(20):
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(10 * i + dist.get_rank()))
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
dist.destroy_process_group()
"""


def torchrun(folder: Path, script: str, *options: str) -> Run:
    (folder / "train.py").write_text(script)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    run(folder, *launcher, "-m", "gradscope", "record", *options, "train.py")
    return recorded(folder)


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return torchrun(tmp_path_factory.mktemp("poisoned"), POISONED)


def told(run: Run, rank: int) -> list[float]:
    return [float(line) for line in (run.path.parents[2] / f"{rank}.txt").read_text().split()]


def test_each_rank_keeps_its_own_loss(poisoned: Run) -> None:
    assert list(poisoned.ranks) == [1]
    assert poisoned.ranks[1].step.tolist() == poisoned.step.tolist() == list(range(16))
    np.testing.assert_allclose(poisoned.loss, told(poisoned, 0), rtol=1e-6)
    np.testing.assert_allclose(poisoned.ranks[1].loss, told(poisoned, 1), rtol=1e-6)
    assert np.isfinite(poisoned.loss[12])
    assert not np.isfinite(poisoned.ranks[1].loss[12])


def test_the_rank_whose_batch_was_poisoned_is_named_and_no_layer(poisoned: Run) -> None:
    findings = {finding.code: finding for finding in diagnose(poisoned).findings}
    found = findings["GS205"]
    assert (found.severity, found.subject, found.first_step) == ("critical", "rank 1", 12)
    assert "on rank 0 the loss of that step is finite" in found.message
    assert findings["GS101"].subject is None
    assert "the loss of rank 1 was nonfinite first, at step 12" in findings["GS101"].message


def test_every_format_shows_the_ranks(poisoned: Run) -> None:
    def show(*options: str) -> str:
        command = [sys.executable, "-m", "gradscope", "show", str(poisoned.path), *options]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout

    text = show()
    assert "None: it began on rank 1" in text
    assert "Ranks" in text
    rows = json.loads(show("--format", "json"))["ranks"]
    assert [row["rank"] for row in rows] == [0, 1]
    assert [row["first_nonfinite"] for row in rows] == [13, 12]
    assert [row["nonfinite_steps"] for row in rows] == [3, 4]
    assert rows[1]["median"] == pytest.approx(np.median(told(poisoned, 1)[:12]), rel=1e-6)
    markdown = show("--format", "markdown")
    assert "## Ranks" in markdown
    assert f"| 1 | 16 | {rows[1]['median']:.4g} |" in markdown


def test_a_bounded_file_is_thinned_on_all_ranks_together(tmp_path: Path) -> None:
    """Reading shards is a collective call: ranks that disagree on the steps to read wait for each other for ever."""
    run = torchrun(tmp_path, SHARDED, "--max-rows", "4")
    assert run.step.tolist() == [0, 8, 16]
    assert set(run.step) <= set(run.ranks[1].step)
