"""Real processes: norms under DDP and FSDP2 equal those of one process, and one run is written."""

import gc
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from gradscope.capture.distributed import combine, local, rank, world_size
from gradscope.capture.norms_compiled import host_norms
from gradscope.capture.norms_device import DeviceNorms
from gradscope.capture.norms_host import HostNorms
from gradscope.capture.recorder import Recorder
from gradscope.runs.reader import load_run

RANKS = 2
STEPS = 3


def make():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, 70), nn.Tanh(), nn.Linear(70, 65), nn.LayerNorm(65), nn.Linear(65, 3, bias=False)
    )


def train(model, recorder, part: slice) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(STEPS):
        x = torch.randn(8, 12, generator=torch.Generator().manual_seed(step))[part]
        optimizer.zero_grad()
        loss = model(x).pow(2).mean()
        loss.backward()
        recorder.observe(loss)
        recorder.measure()
        optimizer.step()
        recorder.finish_step()


def work(place: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=place, world_size=RANKS)
    record_and_read(place, folder)
    gc.collect()  # gloo aborts the process where a model that holds the group outlives it
    dist.destroy_process_group()


def record_and_read(place: int, folder: str) -> None:
    mesh = init_device_mesh("cpu", (RANKS,))
    part = slice(place, None, RANKS)
    for kind in ("ddp", "fsdp"):
        model = make()
        wrapped = nn.parallel.DistributedDataParallel(model) if kind == "ddp" else fully_shard(model, mesh=mesh)
        with Recorder(wrapped, directory=Path(folder) / kind) as recorder:
            assert recorder.writes == (place == 0)
            train(wrapped, recorder, part)
    tensors = placed(mesh)
    for name, reader in (("host", host_norms), ("device", DeviceNorms)):
        norms = reader(tensors).read()
        table = np.stack([norms.norm, norms.peak, norms.nonfinite, norms.present])
        np.save(Path(folder) / f"{name}{place}.npy", table)


def gradients() -> list[torch.Tensor]:
    torch.manual_seed(1)
    broken, infinite = torch.randn(5, 4), torch.randn(5, 4)
    broken[4, 1] = torch.nan
    infinite[0, 0] = torch.inf
    return [torch.randn(5, 4), torch.randn(1, 4), torch.zeros(4), torch.randn(300, 100) * 1e-30, broken, infinite]


def placed(mesh) -> list[torch.Tensor]:
    """Parameters whose gradients are sharded (one on one rank alone), replicated, pending sums, plain and missing."""
    tensors = []
    for gradient in gradients():
        for placement in (Shard(0), Replicate()):
            tensors.append(holder(distribute_tensor(gradient, mesh, [placement])))
    tensors.append(holder(DTensor.from_local(gradients()[0] / RANKS, mesh, [Partial()])))
    tensors += [holder(gradients()[0]), nn.Parameter(torch.ones(2))]
    return tensors


def holder(gradient: torch.Tensor) -> torch.Tensor:
    parameter = nn.Parameter(torch.zeros_like(gradient))
    if isinstance(gradient, DTensor) and gradient.placements[0].is_partial():
        parameter = nn.Parameter(torch.zeros_like(gradient).redistribute(placements=[Replicate()]))
    parameter.grad = gradient
    return parameter


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    where = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(work, (port, str(where)), nprocs=RANKS, start_method="spawn")
    return where


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_norms_are_those_of_one_process(folder, tmp_path, kind):
    model = make()
    with Recorder(model, directory=tmp_path / "one") as recorder:
        train(model, recorder, slice(None))
    one, several = load_run(tmp_path / "one"), load_run(folder / kind)
    assert several.header.world_size == RANKS
    assert one.header.world_size == 1
    assert [p.name for p in several.header.parameters] == [p.name for p in one.header.parameters]
    assert several.grad_norm == pytest.approx(one.grad_norm, rel=1e-4)
    assert several.grad_max == pytest.approx(one.grad_max, rel=1e-4)
    assert several.global_norm == pytest.approx(one.global_norm, rel=1e-4)


@pytest.mark.parametrize("name", ["host", "device"])
@pytest.mark.parametrize("place", range(RANKS))
def test_every_placement_gives_the_norm_of_the_whole(folder, name, place):
    norm, peak, nonfinite, present = np.load(folder / f"{name}{place}.npy")
    expected = [gradient for gradient in gradients() for _ in range(2)] + [gradients()[0]] * 2
    for i, gradient in enumerate(expected):
        assert norm[i] == pytest.approx(gradient.double().norm().item(), rel=1e-6, nan_ok=True)
        assert peak[i] == pytest.approx(gradient.abs().max().item(), rel=1e-6, nan_ok=True)
        assert nonfinite[i] == int((~gradient.isfinite()).sum())
    assert present.tolist() == [1] * len(expected) + [0]


def test_alone_there_is_one_rank_and_nothing_to_combine():
    assert (rank(), world_size()) == (0, 1)
    plain = torch.ones(3)
    assert local(plain) is plain
    assert local(None) is None
    table = torch.ones(3, 2, dtype=torch.double)
    combine([plain, None], *table.unbind())
    assert table.tolist() == [[1.0, 1.0]] * 3


def test_in_one_process_a_group_of_one_reads_its_shards(tmp_path):
    """The same code as in several processes, where this process's coverage sees it."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        tensors = placed(init_device_mesh("cpu", (1,)))
        norms, late, best = (reader(tensors).read() for reader in (HostNorms, DeviceNorms, host_norms))
        expected = [gradient for gradient in gradients() for _ in range(2)]
        for found in (norms, late, best):
            for i, gradient in enumerate(expected):
                assert found.norm[i] == pytest.approx(gradient.double().norm().item(), rel=1e-6, nan_ok=True)
        assert (rank(), world_size()) == (0, 1)
    finally:
        dist.destroy_process_group()
