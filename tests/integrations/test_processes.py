"""Scripts in processes of their own: as python would run them, with workers, torchrun and Accelerate's launcher."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gradscope.runs.reader import load_run
from tests.integrations.processes import ROOT, recorded, run

SPEAKS = """
import os, sys
sys.stdout.buffer.write(bytes(range(256)))
print(__name__, __file__, __package__, __spec__ and __spec__.name, sys.argv, sys.path[0], os.getcwd(), sys.stdin.read())
print(sys.modules["__main__"].__dict__ is globals(), sorted(name for name in globals() if name.startswith("__")))
"""
TRAINS = """
import os, sys, torch
from torch import nn

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 32
    def __getitem__(self, index):
        x = torch.randn(6, generator=torch.Generator().manual_seed(index))
        return x, x.sum().view(1)

def main(how):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Linear(6, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    workers = {} if how == "none" else {"num_workers": 1, "multiprocessing_context": how}
    for x, y in torch.utils.data.DataLoader(Rows(), 8, **workers):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        print(f"{nn.utils.clip_grad_norm_(model.parameters(), 1.0).item():.9g}")
        optimizer.step()
    os.chdir("/")
    if how == "none" and os.fork() == 0:
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        os._exit(0)

if __name__ == "__main__":
    main(sys.argv[1])
"""
SPREAD = """
import torch, torch.distributed as dist
from torch import nn
dist.init_process_group("gloo")
torch.manual_seed(0)
torch.set_num_threads(1)
model = nn.parallel.DistributedDataParallel(nn.Linear(6, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for i in range(4):
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(10 * i + dist.get_rank()))
    optimizer.zero_grad()
    model(x).square().mean().backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5).item()
    if dist.get_rank() == 0:
        print(f"{norm:.9g}")
    optimizer.step()
dist.destroy_process_group()
"""


SHARDED = """
import math, torch, torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
dist.init_process_group("gloo")
torch.manual_seed(0)
torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
for part in (model[0], model[2], model):
    fully_shard(part, mesh=init_device_mesh("cpu", (2,)))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
for i in range(4):
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(10 * i + dist.get_rank()))
    optimizer.zero_grad()
    model(x).square().mean().backward()
    norm = math.sqrt(sum(p.grad.full_tensor().double().square().sum().item() for p in model.parameters()))
    if i % 2:
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    if dist.get_rank() == 0:
        print(f"{norm:.9g}")
    optimizer.step()
dist.destroy_process_group()
"""
STEPS = """
import os, sys, torch
torch.manual_seed(0)
torch.set_num_threads(1)
model = torch.nn.Linear(6, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
def steps(count):
    for i in range(count):
        optimizer.zero_grad()
        model(torch.ones(2, 6)).square().mean().backward()
        optimizer.step()
steps(3)
"""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    (tmp_path / "script.py").write_text(SPEAKS)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "__main__.py").write_text(SPEAKS)
    (tmp_path / "package" / "inner.py").write_text(SPEAKS)
    (tmp_path / "package" / "broken.py").write_text("import package.nothing")
    (tmp_path / "wrong.py").write_text("x = (")
    (tmp_path / "raises.py").write_text("def f():\n    raise ValueError('boom')\ntry:\n    f()\nfinally:\n    print(1)")
    (tmp_path / "says.py").write_text("raise SystemExit('a message')")
    (tmp_path / "leaves.py").write_text("import sys; sys.exit(int(sys.argv[1]))")
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("__main__.py", SPEAKS)
    return tmp_path


ALIKE = [
    ("script.py", "a", "--b"),
    ("./script.py",),
    ("package",),
    ("archive.zip",),
    ("-m", "package", "--lr", "1"),
    ("-m", "package.inner"),
    ("raises.py",),
    ("says.py",),
    ("leaves.py", "7"),
    ("wrong.py",),
]


@pytest.mark.parametrize("command", ALIKE, ids=" ".join)
def test_as_python_runs_it(command: tuple[str, ...], programs: Path) -> None:
    bare = subprocess.run([sys.executable, *command], cwd=programs, input=b"in", capture_output=True, check=False)
    code = bare.returncode or 5
    ours = run(programs, "-m", "gradscope", "record", *command, input=b"in", code=code)
    assert ours.stdout == bare.stdout
    *told, why = ours.stderr.splitlines()
    assert b"nothing was recorded: the script never imported torch" in why
    assert told == bare.stderr.splitlines()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("nothing.py",), "no script at"),
        (("-m", "nothing"), "no module"),
        (("-m", "package.broken"), ""),
        (("empty",), "no __main__"),
    ],
)
def test_what_cannot_be_run(command: tuple[str, ...], words: str, programs: Path) -> None:
    (programs / "empty").mkdir()
    done = run(programs, "-m", "gradscope", "record", *command, code=2 if words else 1)
    assert words in done.stderr.decode()
    assert b"Traceback" not in done.stderr or not words


@pytest.mark.parametrize("how", ["none", "fork", "spawn"])
def test_workers_of_a_data_loader(how: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAINS)
    bare = run(tmp_path, "train.py", how)
    ours = run(tmp_path, "-m", "gradscope", "record", "train.py", how)
    assert ours.stdout == bare.stdout
    np.testing.assert_allclose(recorded(tmp_path).global_norm, [float(line) for line in ours.stdout.split()], rtol=1e-5)
    assert b"next: gradscope report" in ours.stderr


TWO = ("torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29617")
ONE = ("accelerate.commands.launch", "--cpu", "--num_processes", "1")
LAUNCHED = {"torchrun": (TWO, SPREAD), "torchrun, sharded": (TWO, SHARDED), "accelerate": (ONE, TRAINS)}


@pytest.mark.parametrize("name", LAUNCHED)
def test_launchers(name: str, tmp_path: Path) -> None:
    launcher, script = LAUNCHED[name]
    (tmp_path / "train.py").write_text(script)
    alone = launcher is ONE
    done = run(tmp_path, "-m", *launcher, "-m", "gradscope", "record", "train.py", *(["fork"] if alone else []))
    ours = recorded(tmp_path)
    np.testing.assert_allclose(ours.global_norm, [float(line) for line in done.stdout.split()], rtol=1e-5)
    assert ours.header.world_size == (1 if alone else 2)
    assert {parameter.type for parameter in ours.header.parameters} == {"Linear"}
    assert (b"Rank 0 of 2 recorded" in done.stderr) == (not alone)


@pytest.mark.parametrize("whole", [True, False])
def test_gradients_that_lie_in_parts_are_not_taken_for_whole_ones(whole: bool, tmp_path: Path) -> None:
    wrapped = "nn.parallel.DistributedDataParallel(nn.Linear(6, 1))"
    strategy = f"sharding_strategy=ShardingStrategy.{'NO_SHARD' if whole else 'FULL_SHARD'}"
    flat = f"FullyShardedDataParallel(nn.Linear(6, 1), device_id=torch.device('cpu'), use_orig_params=True, {strategy})"
    script = SPREAD.replace(wrapped, flat).replace(
        "nn.utils.clip_grad_norm_(model.parameters(), 0.5)", "torch.ones(())"
    )
    imports = "from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy"
    (tmp_path / "train.py").write_text(imports + script)
    done = run(tmp_path, "-m", *TWO, "-m", "gradscope", "record", "train.py", code=0 if whole else 1)
    assert done.stdout.split() == [b"1"] * 4
    assert (b"a part of every gradient" in done.stderr) == (not whole)
    assert whole == bool(list(tmp_path.glob(".gradscope/runs/*")))


ENDS = {
    "a forked child that runs to the end": (
        "steps(2)\npid = os.fork()\nsteps(1)\nif pid: print(os.waitpid(pid, 0)[1])",
        6,
    ),
    "a forked child that exits": (
        "pid = os.fork()\nif not pid: steps(2); sys.exit(7)\nprint(os.waitpid(pid, 0)[1] >> 8)\nsteps(1)",
        4,
    ),
    "stderr is closed": ("sys.stderr.close()", 3),
    "stderr is taken away": ("sys.stdout.flush(); sys.stdout = sys.stderr = None", 3),
    "stdout is closed": ("sys.stdout.close()", 3),
    "the folder is gone": ("import tempfile\nd = tempfile.mkdtemp(); os.chdir(d); os.rmdir(d)\nsteps(1)", 4),
    "a warning of torch": ("torch.optim.lr_scheduler.StepLR(optimizer, 1).step()", 3),
    "a warning about a skipped step": (
        "schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)\noptimizer.step = lambda: None\nschedule.step()",
        3,
    ),
    "a signal that the script catches": (
        "import signal\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(9))\nos.kill(os.getpid(), signal.SIGTERM)",
        3,
    ),
    "Ctrl-C": (
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "steps(1)\nos.kill(os.getpid(), signal.SIGINT)\nsteps(1)",
        4,
    ),
    "os._exit": ("sys.stdout.flush(); os._exit(4)", 3),
    "a hook for exceptions": ("sys.excepthook = lambda kind, *_: print(kind)\n1 / 0", 3),
    "a part of torch is loaded anew": (
        "import importlib, torch.nn.utils.clip_grad as part; importlib.reload(part); steps(2)",
        5,
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_the_script_ends_as_without_gradscope(name: str, tmp_path: Path) -> None:
    end, steps = ENDS[name]
    (tmp_path / "train.py").write_text(STEPS + end)
    bare = subprocess.run([sys.executable, "train.py"], cwd=tmp_path, capture_output=True, check=False)
    ours = run(tmp_path, "-m", "gradscope", "record", "train.py", code=bare.returncode)
    assert ours.stdout == bare.stdout
    assert ours.stderr.startswith(bare.stderr)
    assert len(recorded(tmp_path).step) == steps


def test_what_was_recorded_before_a_kill_is_there(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(STEPS + "import time; time.sleep(60)")
    process = subprocess.Popen(
        [sys.executable, "-m", "gradscope", "record", "train.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        while not _has_rows(tmp_path):
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.kill()
    assert process.wait() == -9
    assert len(recorded(tmp_path).step) == 3
    assert recorded(tmp_path).header.ending.how == "recording"


def _has_rows(folder: Path) -> bool:
    headers = list((folder / ".gradscope" / "runs").glob("*/run.json"))
    return bool(headers) and all(len(load_run(header.parent).step) for header in headers)
