"""Training scripts for the tests of `record`, as text. Each writes what it saw to the file named by its first argument."""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradscope.integrations.script import Recorded, record_script
from gradscope.runs.reader import load_run
from gradscope.runs.run import Run

HEAD = """
import json, math, pathlib, sys
import torch
from torch import nn
torch.manual_seed(0)
torch.set_num_threads(1)

def make():
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 1))

def norm_of(model):
    return math.sqrt(sum(p.grad.double().square().sum().item() for p in model.parameters() if p.grad is not None))

def loss_of(model, i):
    inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(i))
    return nn.functional.mse_loss(model(inputs), inputs.sum(1, keepdim=True))

seen = {"norms": [], "losses": []}
model = make()
params = list(model.parameters())
"""
TAIL = """
seen["weights"] = [p.tolist() for p in model.parameters()]
pathlib.Path(sys.argv[1]).write_text(json.dumps(seen))
"""


@dataclass
class Done:
    """A script that was recorded: what it saw itself, what was recorded of it."""

    recorded: Recorded
    seen: dict[str, Any]
    runs: list[Run]

    @property
    def run(self) -> Run:
        """The only run."""
        assert len(self.runs) == 1
        return self.runs[0]

    def events(self, name: str) -> list[tuple[int, str, float]]:
        """(step, subject, value) of each note of this name."""
        found = self.run.probes.select(name)
        return list(zip(found.step.tolist(), found.subject.tolist(), found.value.tolist(), strict=True))


def write(folder: Path, body: str, *, head: str = HEAD, tail: str = TAIL, name: str = "train.py") -> Path:
    """A script file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(head + textwrap.dedent(body) + tail, encoding="utf-8")
    return path


def record(folder: Path, body: str, *arguments: str, **options: Any) -> Done:
    """Write a script and record it in this process."""
    path, seen = write(folder, body), folder / "seen.json"
    recorded = record_script([str(path), str(seen), *arguments], root=folder, **options)
    saw = json.loads(seen.read_text()) if seen.exists() else {}
    return Done(recorded, saw, [load_run(run) for run in recorded.runs])
