"""Gains: how much a layer enlarges what flows through it, forward and backward.

    forward gain   rms(out) / rms(in)
    backward gain  ‖∂L/∂in‖ / ‖∂L/∂out‖

A layer whose gains stand out amplifies everyone else's gradients while its own stays small, so that gradient norms point
elsewhere (Pascanu et al. 2013; Philipp et al. 2017). `in` and `out` are a call's first floating-point input and output;
where the first input takes no gradient, the backward side uses the first one that does. Only what passes through the
layer counts: a residual path around it has no part in ∂L/∂in. Nothing is added to the graph: forward hooks look at the
values, and hooks on the graph's own nodes at the gradients, so training is the same bit for bit, with in-place
activations too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from gradscope.capture.describe import layer_modules
from gradscope.capture.graph import Edge, Node, edge_of, only_source, uses
from gradscope.capture.magnitude import float_tensors, l2, rms, root_mean_square
from gradscope.capture.probes import Emit

NAN = math.nan


@dataclass
class _Call:
    """One call of one module. `end_*`: at the input of the next layer, or behind the last activation seen before it."""

    layer: str
    in_rms: float = NAN
    out_rms: float = NAN
    end_rms: float = NAN
    out_grad: float = NAN
    end_grad: float = NAN
    end_is_final: bool = False
    incoming: _Incoming | None = None

    @property
    def in_grad(self) -> float:
        return self.incoming.norm() if self.incoming else NAN


@dataclass
class _Incoming:
    """∂L/∂in of one call, gathered from the nodes that read the input."""

    shape: torch.Size
    waiting: int
    total: torch.Tensor | None = None
    value: float = NAN

    def add(self, gradient: torch.Tensor | None) -> None:
        self.waiting -= 1
        if gradient is not None:
            part = gradient.detach()
            part = part if part.shape == self.shape else part.sum_to_size(self.shape)
            self.total = part if self.total is None else self.total + part
        if self.waiting == 0:
            self.norm()

    def norm(self) -> float:
        if self.total is not None:
            self.value, self.total = l2(self.total), None
        return self.value


@dataclass
class _Tape:
    """Everything seen during one step."""

    calls: list[_Call] = field(default_factory=list)
    sources: dict[Node, _Call] = field(default_factory=dict)
    handles: list[Any] = field(default_factory=list)

    def watch(self, target: Any, hook: Callable[..., None]) -> None:
        """Place a gradient hook on a tensor or a node of the graph."""
        self.handles.append(target.register_hook(hook))


class GainProbe:
    """Measures gains on sampled steps; `model` is a module. Subjects are layers, except where said otherwise.

    Emits, for each layer that ran: `in_rms`, `out_rms`, `grad_in_norm`, `grad_out_norm` (as the backward pass had them,
    a loss scale included), `forward_gain`, `backward_gain`, and `forward_gain_with_activation`,
    `backward_gain_with_activation`: up to the input of the next layer, where that is computed from this layer's output
    alone. A layer called several times has the root mean square over its calls. On the first sampled step also
    `init_scale`, by parameter: rms(weight)·√fan_in, with fan_in the number of elements in weight[0] (1 for a vector).
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._unmeasured: dict[str, str] = {}
        self._tape: _Tape | None = None
        self._scales: dict[str, float] | None = None

    @property
    def unmeasured(self) -> Mapping[str, str]:
        """Layers without a gain, each with the reason."""
        return self._unmeasured

    def begin(self, step: int) -> None:
        """Place hooks on every layer, and on the modules without parameters between them."""
        del step
        if self._scales is None:
            self._scales = _init_scales(self._model)
        tape = self._tape = _Tape()
        layers = layer_modules(self._model)
        compiled = _compiled(self._model)
        for name, module in layers.items():
            if module in compiled:
                self._unmeasured[name] = "runs inside torch.compile, where hooks are not called"
            else:
                self._place(tape, _LayerHooks(name, tape, self._unmeasured), module)
        own = set(layers.values())
        for module in self._model.modules():
            if module not in own and module not in compiled and not any(True for _ in module.children()):
                self._place(tape, _BetweenHooks(tape), module)

    def _place(self, tape: _Tape, hooks: _LayerHooks | _BetweenHooks, module: nn.Module) -> None:
        if isinstance(hooks, _LayerHooks):
            tape.handles.append(module.register_forward_pre_hook(hooks.before, with_kwargs=True))
        tape.handles.append(module.register_forward_hook(hooks.after, with_kwargs=True))

    def end(self, step: int, emit: Emit) -> None:
        """Take every hook away and emit what was measured."""
        del step
        tape, self._tape = self._tape, None
        if tape is None:
            return
        for handle in tape.handles:
            handle.remove()
        calls: dict[str, list[_Call]] = {}
        for call in tape.calls:
            calls.setdefault(call.layer, []).append(call)
        for name in layer_modules(self._model):
            if name not in calls:
                self._unmeasured.setdefault(name, "its forward was not called on the sampled steps")
            elif self._unmeasured.get(name, "").startswith("its forward was not"):
                del self._unmeasured[name]
        for probe, value_of in _QUANTITIES.items():
            known = {name: root_mean_square([value_of(call) for call in own]) for name, own in calls.items()}
            _emit_known(emit, probe, known)
        if self._scales:
            _emit_known(emit, "init_scale", self._scales)
            self._scales = {}


class _LayerHooks:
    """The two forward hooks of one layer."""

    def __init__(self, layer: str, tape: _Tape, unmeasured: dict[str, str]) -> None:
        self._layer, self._tape, self._unmeasured = layer, tape, unmeasured
        self._entered: list[tuple[_Call, tuple[torch.Tensor, Edge] | None]] = []

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        del module
        try:
            self._enter(list(float_tensors((args, kwargs))))
        except Exception as error:  # a measurement must never break the training it watches
            self._unmeasured[self._layer] = f"its inputs could not be read: {error}"

    def after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        del module, args, kwargs
        try:
            self._leave(list(float_tensors(output)))
        except Exception as error:
            self._unmeasured[self._layer] = f"its outputs could not be read: {error}"

    def _enter(self, inputs: list[torch.Tensor]) -> None:
        call = _Call(self._layer)
        taking = next((one for one in inputs if one.requires_grad), None)
        self._entered.append((call, None if taking is None else (taking.detach(), edge_of(taking))))
        if inputs:
            call.in_rms = rms(inputs[0])
            self._close_previous(inputs[0], call.in_rms)

    def _close_previous(self, tensor: torch.Tensor, size: float) -> None:
        source = only_source(tensor.grad_fn, self._tape.sources)
        if source is not None and not source.end_is_final:
            source.end_is_final = True
            _set_end(source, tensor, size, self._tape)

    def _leave(self, outputs: list[torch.Tensor]) -> None:
        call, taking = self._entered.pop()
        self._tape.calls.append(call)
        if not outputs:
            return
        out = outputs[0]
        call.out_rms = rms(out)
        if not out.requires_grad:
            return
        self._tape.watch(out, _keeps(call, "out_grad"))
        self._tape.sources[out.grad_fn] = call
        if taking is not None:
            self._read_incoming(call, outputs, *taking)

    def _read_incoming(self, call: _Call, outputs: list[torch.Tensor], taken: torch.Tensor, edge: Edge) -> None:
        nodes = uses([one for one in outputs if one.grad_fn is not None], edge)
        if nodes is None:
            self._unmeasured[self._layer] = "its part of the autograd graph is too large to walk"
            return
        call.incoming = _Incoming(taken.shape, sum(len(places) for _, places in nodes))
        for node, places in nodes:
            self._tape.watch(node, _adds(call.incoming, places))


class _BetweenHooks:
    """The forward hook of a module without parameters: an activation, a pooling, a dropout."""

    def __init__(self, tape: _Tape) -> None:
        self._tape = tape

    def after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        del module, args, kwargs
        out = next(float_tensors(output), None)
        if out is None or out.grad_fn is None:
            return
        source = only_source(out.grad_fn, self._tape.sources)
        if source is not None and not source.end_is_final:
            self._tape.sources[out.grad_fn] = source
            _set_end(source, out, rms(out), self._tape)


def _set_end(call: _Call, tensor: torch.Tensor, size: float, tape: _Tape) -> None:
    call.end_rms = size
    call.end_grad = NAN
    if tensor.requires_grad:
        tape.watch(tensor, _keeps(call, "end_grad"))


def _keeps(call: _Call, name: str) -> Callable[[torch.Tensor], None]:
    def hook(gradient: torch.Tensor) -> None:
        setattr(call, name, l2(gradient))

    return hook


def _adds(incoming: _Incoming, places: list[int]) -> Callable[[Any, Any], None]:
    def hook(before: Any, after: Any) -> None:
        del after
        for place in places:
            incoming.add(before[place])

    return hook


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 and math.isfinite(below) else NAN


_QUANTITIES: dict[str, Callable[[_Call], float]] = {
    "in_rms": lambda call: call.in_rms,
    "out_rms": lambda call: call.out_rms,
    "grad_in_norm": lambda call: call.in_grad,
    "grad_out_norm": lambda call: call.out_grad,
    "forward_gain": lambda call: _ratio(call.out_rms, call.in_rms),
    "backward_gain": lambda call: _ratio(call.in_grad, call.out_grad),
    "forward_gain_with_activation": lambda call: _ratio(call.end_rms, call.in_rms),
    "backward_gain_with_activation": lambda call: _ratio(call.in_grad, call.end_grad),
}


def _emit_known(emit: Emit, probe: str, values: Mapping[str, float]) -> None:
    known = {name: value for name, value in values.items() if not math.isnan(value)}
    if known:
        emit(probe, list(known), list(known.values()))


def _init_scales(model: nn.Module) -> dict[str, float]:
    scales = {}
    for layer, module in layer_modules(model).items():
        for name, parameter in module.named_parameters(recurse=False):
            fan_in = parameter[0].numel() if parameter.dim() > 1 and len(parameter) else 1
            scales[f"{layer}.{name}" if layer else name] = rms(parameter) * math.sqrt(fan_in)
    return scales


def _compiled(model: nn.Module) -> set[nn.Module]:
    """Modules whose forward runs as part of a compiled graph."""
    inside: set[nn.Module] = set()
    for module in model.modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            inside |= set(module.modules())
    return inside
