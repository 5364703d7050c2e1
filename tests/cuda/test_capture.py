"""What is read on a GPU equals float64 arithmetic, and a training that was rehearsed there goes on bit for bit."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gradscope.capture import norms_device
from gradscope.capture.loop import step_once
from gradscope.capture.norms_cuda import kernels
from gradscope.capture.norms_device import DeviceNorms
from gradscope.capture.recorder import Recorder
from gradscope.capture.snapshot import take
from gradscope.workload.model import Workload
from tests.capture.small_workloads import PLAN, workload
from tests.capture.test_along_time import measured

SHAPES = ((1,), (7,), (3, 0), (64, 3, 3, 3), (1000, 257), (1 << 20,))


def holder(gradient: torch.Tensor | None) -> torch.Tensor:
    parameter = torch.empty(0, device="cuda")
    if gradient is not None:
        parameter = torch.empty_like(gradient)
        parameter.grad = gradient
    return parameter


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_every_shape_and_size_of_number(dtype: torch.dtype, scale: float) -> None:
    if dtype == torch.float16:
        scale = {1e-25: 1e-7, 1e25: 1e4}.get(scale, scale)
    gradients = [(torch.randn(shape, device="cuda") * scale).to(dtype) for shape in SHAPES]
    reader = DeviceNorms([*map(holder, gradients), holder(None)])
    wide = [gradient.double().cpu() for gradient in gradients]
    for norms in (reader.read(), reader.read()):
        np.testing.assert_allclose(norms.norm[:-1], [float(one.norm()) for one in wide], rtol=1e-6)
        np.testing.assert_array_equal(norms.peak[:-1], [float(one.abs().max()) if one.numel() else 0 for one in wide])
        assert norms.present.tolist() == [True] * len(wide) + [False]
        assert math.isnan(norms.norm[-1])


@pytest.mark.parametrize("value", [0.3, 3e-25, 3e25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fifty_million_elements(dtype: torch.dtype, value: float) -> None:
    gradient = torch.full((50_000_000,), value, device="cuda").to(dtype)
    norms = DeviceNorms([holder(gradient)]).read()
    assert norms.norm[0] == pytest.approx(float(gradient[0].double()) * math.sqrt(50_000_000), rel=1e-6)


def test_kinds_of_numbers_beside_each_other_and_nonfinite_ones() -> None:
    kinds = (torch.float32, torch.bfloat16, torch.float32, torch.float16)
    gradients = [torch.full((5,), 1.0 + i, device="cuda", dtype=kind) for i, kind in enumerate(kinds)]
    gradients[1][2] = torch.nan
    norms = DeviceNorms([*map(holder, gradients)]).read()
    assert norms.nonfinite.tolist() == [0, 1, 0, 0]
    assert math.isnan(norms.peak[1])
    assert math.isnan(norms.norm[1])
    np.testing.assert_allclose(norms.norm[[0, 2, 3]], np.array([1, 3, 4]) * math.sqrt(5), rtol=1e-6)


def test_more_gradients_than_one_launch_reads() -> None:
    gradients = [torch.full((1 + i % 7, 3), float(i), device="cuda") for i in range(1000)]
    for _ in range(2):
        norms = DeviceNorms([*map(holder, gradients)]).read()
        assert norms.peak.tolist() == list(map(float, range(1000)))
        np.testing.assert_allclose(norms.norm, [float(one.double().norm()) for one in gradients], rtol=1e-12)


def test_a_gradient_that_was_forgotten_while_it_was_read() -> None:
    tensors = [holder(torch.full((1 << 24,), 2.0, device="cuda")) for _ in range(4)]
    reader = DeviceNorms(tensors)
    late = [reader.read() for _ in range(20)]
    for tensor in tensors:
        tensor.grad = None
    torch.full((1 << 24,), torch.nan, device="cuda")
    assert all(norms.peak.tolist() == [2.0] * 4 for norms in late[::3])


def test_the_kernels_and_torch_s_own_operations_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    image = torch.randn(8, 3, 40, 50, device="cuda").to(memory_format=torch.channels_last)
    gradients = [
        image,
        image[:, :, ::2],
        torch.randn((), device="cuda"),
        torch.ones(5, device="cuda").expand(4, 5),
        torch.randn(70_000, device="cuda")[1:],
        torch.randn(9, device="cuda", dtype=torch.complex64),
        torch.eye(50, device="cuda").to_sparse(),
        torch.full((100_000,), -math.inf, device="cuda"),
        torch.randn(33, 17, device="cuda").t().bfloat16(),
    ]
    tensors = [*map(holder, gradients)]
    assert kernels(image.device) is not None
    reader = DeviceNorms(tensors)
    reader.read()
    monkeypatch.setattr(norms_device, "kernels", lambda _: None)
    plain = DeviceNorms(tensors).read()
    for _ in range(2):
        norms = reader.read()
        np.testing.assert_allclose(norms.norm, plain.norm, rtol=1e-12)
        np.testing.assert_array_equal(norms.peak, plain.peak)
        assert norms.nonfinite.tolist() == [0] * 7 + [100_000, 0]
        for tensor in tensors[2:5]:
            tensor.grad = tensor.grad.clone()  # they move


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_along_time_as_on_the_cpu(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    plain = kind(6, 8, num_layers=2, bidirectional=True).double()  # cuDNN rounds float32 to TF32
    x = torch.randn(20, 3, 6).double()
    there = along_time(copy.deepcopy(plain).cuda(), x.cuda())
    here = along_time(plain, x)
    assert here.keys() == there.keys()
    assert ("state_grad_norm", "rnn layer 1 reverse") in here
    for name, values in here.items():
        assert there[name] == pytest.approx(values, rel=1e-5), name


def along_time(rnn: nn.RNNBase, x: torch.Tensor) -> dict[tuple[str, str], dict[int, float]]:
    found, probe = measured(nn.ModuleDict({"rnn": rnn}), lambda: rnn(x)[0].square().sum())
    assert probe.unmeasured == {}
    return {(kind, name): values for kind, profiles in found.items() for name, values in profiles.items()}


def on_the_gpu(precision: str) -> Workload:
    work = workload(plan=dataclasses.replace(PLAN, precision=precision))
    work.model.cuda()
    return dataclasses.replace(work, device=torch.device("cuda"))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_rehearsed_training_goes_on_as_if_never_rehearsed(precision: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    plain = on_the_gpu(precision)
    expected = losses(plain, range(12), tmp_path / "plain")
    torch.manual_seed(3)
    tried = on_the_gpu(precision)
    first = losses(tried, range(5), tmp_path / "first")
    snapshot = take(tried)
    losses(tried, range(50, 56), tmp_path / "rehearsed")
    snapshot.restore()
    assert first + losses(tried, range(5, 12), tmp_path / "last") == expected


def losses(work: Workload, steps: range, directory: Path) -> list[float]:
    with Recorder(work.model, work.optimizers, directory=directory) as recorder:
        return [step_once(work, i, recorder) for i in steps]
