"""Norms against plain float64 arithmetic, for every kind of gradient and size of number."""

import ctypes
import functools
import math
from array import array

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscope.capture import norms_compiled, norms_cuda, norms_host
from gradscope.capture.later import Later
from gradscope.capture.norms import exact, missing, root_sum_square
from gradscope.capture.norms_compiled import WIDTH, CompiledNorms
from gradscope.capture.norms_cuda import kernels
from gradscope.capture.norms_device import DeviceNorms
from gradscope.capture.norms_host import HostNorms

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
COMPILED = [functools.partial(CompiledNorms, width=width) for width in sorted({4, WIDTH})] if WIDTH else []
HOST = (HostNorms, *COMPILED)
READERS = (*HOST, DeviceNorms)
host = pytest.mark.parametrize("host", HOST)
SHAPES = ((), (1,), (7,), (3, 5), (4, 3, 3, 3), (2047,), (4096,), (64, 100), (128, 1024), (300, 1000))


def holder(gradient: torch.Tensor | None, like: torch.Tensor | None = None) -> torch.Tensor:
    """A parameter with this gradient."""
    shape = (2, 2) if gradient is None else gradient.shape
    dtype = torch.float32 if gradient is None else gradient.dtype
    parameter = torch.nn.Parameter(torch.empty(shape, dtype=dtype))
    parameter.grad = gradient
    return parameter


def reference(gradient: torch.Tensor) -> tuple[float, float]:
    """L2 and largest |g| by exact summation."""
    dense = gradient.to_dense() if gradient.layout != torch.strided else gradient
    values = dense.detach().abs().double().flatten()
    peak = values.max().item() if len(values) else 0.0
    if not math.isfinite(peak) or peak == 0.0:
        return peak, peak
    return peak * math.sqrt(math.fsum((values / peak).square().tolist())), peak


def check(reader, gradients, rel=1e-6, times=3):
    norms_of = reader([holder(gradient) for gradient in gradients])
    for _ in range(times):
        norms = norms_of.read()
        for i, gradient in enumerate(gradients):
            if gradient is None:
                assert not norms.present[i]
                assert np.isnan(norms.norm[i])
                continue
            norm, peak = reference(gradient)
            assert norms.present[i]
            assert norms.norm[i] == pytest.approx(norm, rel=rel, nan_ok=True), (i, gradient.shape)
            assert norms.peak[i] == pytest.approx(peak, rel=1e-7, nan_ok=True), (i, gradient.shape)
    return norms


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_every_shape_and_size_of_number(reader, dtype, scale):
    if dtype == torch.float16 and scale != 1.0:
        scale = {1e-25: 1e-7, 1e25: 1e4}[scale]
    generator = torch.Generator().manual_seed(0)
    check(reader, [(torch.randn(shape, generator=generator) * scale).to(dtype) for shape in SHAPES])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [0.1, 1 / 3, 1.7e-3])
@host
def test_a_constant_gradient_is_not_rounded_one_way(host, dtype, value):
    check(host, [torch.full((n,), value).to(dtype) for n in (1000, 5000, 131_072, 400_001)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [0.3, 3e-25, 3e25])
@host
def test_fifty_million_elements(host, dtype, value):
    gradient = torch.full((50_000_000,), value).to(dtype)
    gradient[17] *= -2
    one = float(gradient[0].double())
    parameter = torch.nn.Parameter(torch.empty(0))
    parameter.data = gradient
    parameter.grad = gradient
    norms = host([parameter]).read()
    assert norms.norm[0] == pytest.approx(abs(one) * math.sqrt(50_000_000 - 1 + 4), rel=1e-6)
    assert norms.peak[0] == 2 * abs(one)


@host
def test_the_peak_may_be_negative_anywhere(host):
    generator = torch.Generator().manual_seed(1)
    gradients = []
    for place in (0, 1, 2047, 2048, 131_071, 131_072, 199_999):
        gradient = torch.randn(200_000, generator=generator)
        gradient[place] = -1000.0
        gradients += [gradient, -gradient, gradient.abs(), -gradient.abs()]
    check(host, gradients, times=1)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("size", [5, 5000, 200_000])
def test_nonfinite_values_are_seen_and_counted(reader, bad, size):
    gradients = [torch.ones(size), torch.ones(size), torch.ones(3)]
    gradients[1][size // 2 :] = bad
    norms = check(reader, gradients)
    assert norms.nonfinite[[0, 2]].tolist() == [0, 0]
    assert norms.nonfinite[1] == (size - size // 2 if reader is not DeviceNorms else 1)
    assert not math.isfinite(norms.total)


@host
def test_infinity_and_nan_together_are_nan(host):
    for size in (10, 5000):
        gradient = torch.ones(size)
        gradient[0], gradient[1] = math.inf, math.nan
        norms = host([holder(gradient)]).read()
        assert np.isnan(norms.norm[0])
        assert np.isnan(norms.peak[0])
        assert norms.nonfinite[0] == 2


@pytest.mark.parametrize("reader", READERS)
def test_unusual_gradients(reader):
    channels_last = torch.randn(8, 64, 12, 12).contiguous(memory_format=torch.channels_last)
    gradients = [
        None,
        torch.zeros(0, 4),
        torch.zeros(5000),
        torch.zeros(3),
        torch.randn(100, 90).t(),
        torch.randn(9, 7)[::2, 1:],
        torch.randn(1).expand(6000),
        channels_last,
        torch.randn(40, dtype=torch.complex64),
        torch.sparse_coo_tensor(torch.tensor([[1, 1, 3]]), torch.tensor([2.0, 3.0, -1.0]), (5,), check_invariants=True),
        torch.sparse_coo_tensor(torch.zeros(1, 0, dtype=torch.long), torch.zeros(0), (5,), check_invariants=True),
        torch.randn(3, 3, requires_grad=True),
    ]
    check(reader, gradients)


def test_csr_gradients_are_read_as_dense():
    with pytest.warns(UserWarning, match="CSR"):
        gradient = torch.eye(3).to_sparse_csr()
    assert exact(gradient) == (pytest.approx(math.sqrt(3)), 1.0, 0)


def test_nothing_to_read():
    for reader in READERS:
        norms = reader([]).read()
        assert math.isnan(norms.total)
        norms = reader([holder(None), holder(None)]).read()
        assert math.isnan(norms.total)
        assert norms.present.tolist() == [False, False]


@host
def test_a_plan_out_of_date_is_made_again(host):
    """The same tensors: gradients that come, go, and change in kind, size and number."""
    parameters = [holder(torch.randn(10)), holder(torch.randn(5000)), holder(torch.randn(10))]
    norms_of = host(parameters)
    sparse = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.tensor([2.0]), (10,), check_invariants=True)
    for small, large in [
        (torch.randn(10), torch.randn(5000)),
        (None, None),
        (torch.randn(10), torch.randn(5000)),
        (sparse, torch.randn(5000)),
        (torch.randn(10), torch.randn(5000)),
        (torch.randn(10, requires_grad=True), torch.randn(5000, requires_grad=True)),
        (torch.randn(10), torch.randn(5000)),
    ]:
        parameters[0].grad, parameters[1].grad = small, large
        norms = norms_of.read()
        for i, gradient in ((0, small), (1, large)):
            expected = (math.nan, math.nan) if gradient is None else reference(gradient)
            assert norms.norm[i] == pytest.approx(expected[0], rel=1e-6, nan_ok=True)
    for dtype, size in ((torch.float64, 5000), (torch.bfloat16, 6000), (torch.float32, 7000)):
        parameters[1].grad = None
        parameters[1].data = torch.zeros(size, dtype=dtype)
        parameters[1].grad = torch.randn(size).to(dtype)
        assert norms_of.read().norm[1] == pytest.approx(reference(parameters[1].grad)[0], rel=1e-6)


@host
def test_magnitudes_that_change_between_steps(host):
    """The guessed power of two is from the step before, and wrong after each of these jumps."""
    parameter = holder(torch.randn(200_000))
    norms_of = host([parameter])
    for scale in (1.0, 1e-30, 1e-38, 1e-44, 1e30, 1e-30, 0.0, 1e-20, 1e38, 1e-44, 1.0):
        gradient = torch.randn(200_000).clamp(-3, 3) * scale
        gradient[150_000:] = 0.0
        parameter.grad = gradient
        norm, peak = reference(gradient)
        norms = norms_of.read()
        assert norms.norm[0] == pytest.approx(norm, rel=1e-6)
        assert norms.peak[0] == pytest.approx(peak, rel=1e-7)


@settings(max_examples=60, deadline=None)
@given(st.data())
@host
def test_any_mixture(host, data):
    kinds = st.tuples(
        st.sampled_from([*DTYPES, None]),
        st.sampled_from([(), (3,), (3, 2), (2, 2), (70, 70), (4100,), (0,)]),
        st.floats(-44, 38),
        st.integers(0, 5),
    )
    gradients = []
    for dtype, shape, exponent, special in data.draw(st.lists(kinds, min_size=1, max_size=12)):
        gradient = torch.randn(shape).clamp(-3, 3).double() * 10.0**exponent
        if special < 2 and gradient.numel():
            gradient.view(-1)[0] = (math.inf, math.nan)[special]
        gradients.append(None if dtype is None else gradient.to(dtype))
    norms = check(host, gradients, times=2)
    check(DeviceNorms, gradients, rel=1e-5, times=1)
    present = norms.norm[norms.present]
    if len(present) and np.isfinite(present).all():
        assert norms.total == pytest.approx(math.hypot(*present), rel=1e-12)


def test_many_small_gradients_fill_several_chunks():
    gradients = [torch.randn(4000) for _ in range(70)] + [torch.randn(3, 1000) for _ in range(3)]
    assert sum(gradient.numel() for gradient in gradients) > 2 * norms_host.BLOCK
    check(HostNorms, gradients, times=2)


def test_the_older_numpy_way_of_summing_rows(monkeypatch):
    monkeypatch.setattr(norms_host, "_square_rows", norms_host._rows_by_matmul)
    check(HostNorms, [torch.randn(300_000), torch.randn(5000) * 1e-30])


def test_the_total_neither_over_nor_underflows():
    for size in (1e-200, 1.0, 1e200):
        assert root_sum_square(np.full(4, size)) == pytest.approx(2 * size)
    assert root_sum_square(np.zeros(3)) == 0.0
    assert math.isnan(root_sum_square(np.array([1.0, math.nan])))
    assert root_sum_square(np.array([1.0, math.inf])) == math.inf
    assert math.isnan(missing(0).total)


@host
def test_dividing_by_the_loss_scale(host):
    norms = host([holder(torch.full((4,), 512.0))]).read()
    assert norms.divided(1.0) is norms
    assert norms.divided(256.0).norm.tolist() == [4.0]
    late = DeviceNorms([holder(torch.full((4,), 512.0))]).read().divided(256.0)
    assert late.divided(2.0).norm.tolist() == [2.0]
    assert late.peak.tolist() == [2.0]
    assert late.ready


class Device:
    """Stands for a CUDA event: done when told."""

    def __init__(self):
        self.done = self.waited = False

    def query(self):
        return self.done

    def synchronize(self):
        self.waited = True


def test_values_on_their_way_are_waited_for_only_when_asked():
    late = Later(torch.ones(3))
    late._event = Device()
    assert not late.ready
    assert not late._event.waited
    assert late.get().tolist() == [1.0] * 3
    assert late._event.waited
    late._event.done = True
    assert late.ready


@pytest.mark.parametrize("scale", [1e-25, 3e-20, 1e-19, 1e-17, 1e-15])
@pytest.mark.parametrize("flush", [False, True])
@host
def test_squares_too_small_for_float32_are_not_lost(host, scale: float, flush: bool) -> None:
    tensor = torch.zeros(200_000)
    tensor.grad = torch.randn(200_000, generator=torch.Generator().manual_seed(0)) * scale
    true = float(tensor.grad.double().square().sum().sqrt())
    reader = host([tensor])
    torch.set_flush_denormal(flush)
    try:
        found = [reader.read().norm[0] for _ in range(2)]
    finally:
        torch.set_flush_denormal(False)
    assert found == pytest.approx([true, true], rel=1e-6)


@pytest.mark.skipif(WIDTH != 8, reason="seen in torch's builds for AVX2 and AVX-512 alone")
@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("exponent", [-19, -12, 0, 12])
def test_norms_rounded_as_torch_rounds_them(width, exponent):
    """Bit for bit, in sizes of every remainder, below and above one row; an absent one takes no part."""
    generator = torch.Generator().manual_seed(exponent)
    sizes = (*range(1, 80), 2047, 2048, 2049, 50_001)
    gradients = [torch.randn(size, generator=generator) * 10.0**exponent for size in sizes]
    norms = CompiledNorms([holder(None), *map(holder, gradients)], width).read_as_torch()
    expected = torch._foreach_norm(gradients, 2.0)
    assert norms.as_torch[1:].tolist() == [one.item() for one in expected]
    assert norms_compiled.total_as_torch(norms.as_torch[1:]) == torch.stack(expected).norm().item()


@host
@pytest.mark.parametrize("as_torch", [False, True])
def test_reading_leaves_how_the_processor_rounds(host, as_torch):
    """Squares below the normal range are flushed to zero while it reads, and not afterwards."""
    small = torch.full((5000,), 1e-20)
    reader = host([holder(small)])
    norms = reader.read_as_torch() if as_torch else reader.read()
    assert norms.norm[0] == pytest.approx(5000**0.5 * 1e-20, rel=1e-6)
    assert small.square().count_nonzero() == 5000


def test_where_torch_rounds_otherwise_it_reads_for_itself(monkeypatch):
    rounds = norms_compiled._rounds_as_torch.__wrapped__
    monkeypatch.setattr(norms_compiled, "_rounds_as_torch", rounds)
    real = torch._foreach_norm
    monkeypatch.setattr(torch, "_foreach_norm", lambda values, order: [one * (1 + 2e-7) for one in real(values, order)])
    assert norms_compiled.total_as_torch(array("f", [1.0, 1.0, 1.0])) is None


@host
def test_rows_of_every_size_of_number_in_one_gradient(host):
    """Each row of 2,048 finds its own power of two, up and down again, zeros and all."""
    sizes = torch.tensor([1.0, 1e-30, 0.0, 1e30, 1e-44, 1e-16, 3e-20, 1e38, 1.0, 0.0, 1e17, 1e20])
    for gradient in (sizes.repeat_interleave(2048), sizes.flip(0).repeat_interleave(2048)):
        check(host, [gradient, gradient[2048:].clone(), gradient.clamp(max=1e-30), gradient.clamp(max=1e-44)], times=1)


def test_without_a_compiler_numpy_reads(monkeypatch):
    monkeypatch.setattr(norms_compiled, "find_spec", lambda name: None)
    assert norms_compiled._loaded() is None
    monkeypatch.setattr(norms_compiled, "WIDTH", 0)
    assert type(norms_compiled.host_norms([holder(torch.ones(3))])) is HostNorms


def test_kernels_only_where_there_is_an_nvidia_gpu(monkeypatch):
    assert kernels(torch.device("cpu")) is None
    assert kernels(torch.device("meta")) is None
    monkeypatch.setattr(torch.version, "cuda", None)
    assert kernels(torch.device("cuda", 99)) is None


def test_without_a_compiler_torch_s_own_operations_read(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "0.0")
    with pytest.raises(OSError, match=r"nvrtc"):
        norms_cuda._compiled((9, 0))


def test_what_the_kernels_are_told(monkeypatch):
    """The table of `norms.cu`, replayed here: every element is read once, by the launch that knows where its gradient is."""
    monkeypatch.setattr(norms_cuda, "MOST", 3)
    sizes = [5, 0, norms_cuda.CHUNK, 2 * norms_cuda.CHUNK + 1, 1]
    kinds = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float32]
    gradients = [torch.zeros(size, dtype=kind) for size, kind in zip(sizes, kinds, strict=True)]
    reader = norms_cuda.CudaNorms(norms_cuda.Kernels(ctypes.c_void_p(), ctypes.c_void_p()), gradients)
    count, table = len(sizes), reader._table.tolist()
    first, owners = table[2 * count : 3 * count + 1], table[3 * count + 1 :]
    assert table[:count] == sizes
    assert table[count : 2 * count] == [norms_cuda.KINDS[kind] for kind in kinds]
    read = [0] * count
    for begin, blocks in reader._groups:
        for piece in range(first[begin], first[begin] + blocks):
            array = owners[piece]
            assert begin <= array < begin + 3
            read[array] += min(norms_cuda.CHUNK, sizes[array] - (piece - first[array]) * norms_cuda.CHUNK)
    assert read == sizes
