"""The data: how large what enters a model and what its output is compared with are, and a training where each feature of one
of these has mean 0 and variance 1.

The curvature along a layer's weights grows with the square of what enters it (LeCun et al. 1998, Efficient backprop, §4.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from gradscope.capture.describe import has_matrix, layer_modules
from gradscope.capture.gains import eagerly
from gradscope.capture.magnitude import rms
from gradscope.capture.probes import Emit
from gradscope.runs.schema import ROOT
from gradscope.workload.model import Workload
from gradscope.workload.steps import CriterionStep

ENOUGH = 8
"""Values of a feature that tell its mean and variance; fewer tell only how large it is."""

Hook = Callable[[nn.Module, Any, Any], Any]


class DataProbe:
    """Measures the data on the first sampled step.

    Emits for the first layer with a matrix what enters it: `input_rms`, over all elements; `input_largest`, the root mean
    square of the largest feature, with the feature's number as the index; and `input_median`, that of the median feature,
    with how many there are. Nothing where what enters is not floating-point data, as with token numbers, or comes from
    something that is trained. For the whole network, where the loss is a criterion of output and target and both are
    floating-point: `target_rms` and `output_rms`.
    """

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._hooks: ExitStack | None = None
        self._entered: tuple[str, torch.Tensor] | None = None
        self._compared: dict[str, float] = {}
        self._called = False

    @property
    def unmeasured(self) -> Mapping[str, str]:
        """Nothing: what is no data needs no measure."""
        return {}

    def begin(self, step: int) -> None:
        """Wait for the first layer that is called, and for the criterion."""
        del step
        if self._hooks is not None:
            return
        self._hooks = ExitStack()
        self._hooks.enter_context(comparing(self._workload, self._look_at_both))
        for name, module in layer_modules(self._workload.model).items():
            if has_matrix(module):
                self._hooks.enter_context(_before(module, self._looks_at(name)))

    def end(self, step: int, emit: Emit) -> None:
        """Emit what was seen."""
        del step
        if self._hooks is not None:
            self._hooks.close()
        if self._entered:
            layer, sizes = self._entered
            emit("input_rms", [layer], [rms(sizes)])
            emit("input_largest", [layer], [float(sizes.max())], [int(sizes.argmax())])
            emit("input_median", [layer], [float(sizes.median())], [len(sizes)])
        for probe, size in self._compared.items():
            emit(probe, [ROOT], [size])
        self._entered, self._compared = None, {}

    def _looks_at(self, name: str) -> Hook:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            called, self._called = self._called, True
            data = None if called else _data(args, kwargs)
            if data is not None:
                self._entered = name, _columns(data, _axis(module, data)).pow(2).mean(0).sqrt()

        return hook

    def _look_at_both(self, output: Any, target: Any) -> None:
        if not self._compared and _both_real(output, target):
            self._compared = {"target_rms": rms(target), "output_rms": rms(output)}


@contextmanager
def standard_inputs(workload: Workload, layer: str) -> Iterator[None]:
    """While this is open, each feature of the data that enters `layer` has mean 0 and variance 1, by the first batch's."""
    known: list[tuple[torch.Tensor, torch.Tensor]] = []

    def hook(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        data = _data(args, kwargs)
        if data is None:
            return None
        axis = _axis(module, data)
        known[:] = known or [_center_and_size(_columns(data, axis))]
        shape = [-1 if place == axis else 1 for place in range(data.dim())]
        center, size = (one.reshape(shape) for one in known[0])
        standard = ((data.to(center.dtype) - center) / size).to(data.dtype)
        return ((standard, *args[1:]), kwargs) if args else (args, kwargs | {next(iter(kwargs)): standard})

    with _before(layer_modules(workload.model)[layer], hook), eagerly(workload.model):
        yield


@contextmanager
def standard_targets(workload: Workload) -> Iterator[None]:
    """While this is open, each column of the targets has mean 0 and variance 1, by the first batch's.

    The loss keeps its value, that of an output put back to the targets' own scale, and has the gradient of the other.
    """
    known: list[tuple[torch.Tensor, torch.Tensor]] = []

    def compare(output: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, ...]:
        known[:] = known or [_center_and_size(_columns(target, 1 if target.dim() == 2 else target.dim()))]
        center, size = known[0]
        return (target - center) / size, output.detach() * size + center

    def criterion(own: Callable[[Any, Any], torch.Tensor], output: Any, target: Any) -> torch.Tensor:
        if not _both_real(output, target):
            return own(output, target)
        standard, put_back = compare(output, target)
        loss = own(output, standard.to(target.dtype))
        return loss + (own(put_back.to(output.dtype), target).detach() - loss.detach())

    with _replacing(workload, criterion):
        yield


@contextmanager
def comparing(workload: Workload, look: Callable[[Any, Any], None]) -> Iterator[None]:
    """While this is open, `look` sees every output and its target, where the loss is a criterion of the two."""

    def criterion(own: Callable[[Any, Any], torch.Tensor], output: Any, target: Any) -> torch.Tensor:
        look(output, target)
        return own(output, target)

    with _replacing(workload, criterion):
        yield


@contextmanager
def _replacing(workload: Workload, criterion: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Another criterion in place of the training step's own, which it gets first; nothing where there is none."""
    step = workload.training_step
    if isinstance(step, CriterionStep):
        workload.training_step = CriterionStep(partial(criterion, step.criterion))
    try:
        yield
    finally:
        workload.training_step = step


@contextmanager
def _before(module: nn.Module, hook: Hook) -> Iterator[None]:
    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _both_real(output: Any, target: Any) -> bool:
    return all(isinstance(one, torch.Tensor) and one.is_floating_point() and one.numel() for one in (output, target))


def _data(args: Any, kwargs: Any) -> torch.Tensor | None:
    """A layer's first argument, where it is floating-point data that takes no gradient."""
    first = next(iter((*args, *kwargs.values())), None)
    if not isinstance(first, torch.Tensor) or first.requires_grad or not first.is_floating_point():
        return None
    return first if first.dim() > 1 and first.numel() else None


def _axis(module: nn.Module, data: torch.Tensor) -> int:
    """The dimension that counts features: of a convolution the one before those that it slides along, else the last."""
    return data.dim() - 1 - len(getattr(module, "kernel_size", ()))


def _columns(data: torch.Tensor, axis: int) -> torch.Tensor:
    """(values, features), in float32 at least; one feature where there is no such axis."""
    flat = data.movedim(axis, -1).flatten(0, -2) if axis < data.dim() else data.reshape(-1, 1)
    return flat.detach().to(torch.promote_types(data.dtype, torch.float32))


def _center_and_size(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each feature's mean and standard deviation, the largest of these where it did not vary; 0 and its root mean square,
    where it has too few values.
    """
    if len(values) >= ENOUGH:
        center, size = values.mean(0), values.std(0)
    else:
        center, size = torch.zeros_like(values[0]), values.pow(2).mean(0).sqrt()
    return center, torch.where(size > 0, size, torch.where(size.max() > 0, size.max(), 1.0))
