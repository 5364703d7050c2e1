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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from gradscope.capture.describe import has_matrix, layer_modules
from gradscope.capture.graph import Edge, Node, edge_of, only_source, uses
from gradscope.capture.initial import Measured, initial_scales
from gradscope.capture.magnitude import float_tensors, l2, rms, root_mean_square
from gradscope.capture.probes import Emit
from gradscope.runs.schema import is_norm

NAN = math.nan
COMPILED = "runs inside torch.compile, where hooks are not called"


@dataclass
class _Place:
    """What one tensor held, and the gradient that arrived there."""

    rms: float = NAN
    numel: int = 0
    grad: float = NAN


@dataclass
class _Call:
    """One call of one layer. `end`: behind the activations and norms that follow it directly, None where none does."""

    layer: str
    in_rms: float = NAN
    in_numel: int = 0
    out: _Place = field(default_factory=_Place)
    end: _Place | None = None
    open: bool = True
    normalised: bool = False
    fed_normalised: float = NAN
    """1 where a layer with a matrix reads from a norm of a residual stream, else 0; NaN for others and outside the graph."""
    in_graph: bool = False
    taking: tuple[torch.Size, Edge] | None = None
    """The shape of the input that takes a gradient, and where that gradient arrives."""
    entries: set[Node] = field(default_factory=set)
    """The nodes that made the inputs: where the call's part of the graph begins."""
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
    chains: dict[Node, tuple[_Call, ...]] = field(default_factory=dict)
    """Which calls' signal ends, for now, in the tensor that a node made."""
    normed: dict[Node, bool] = field(default_factory=dict)
    """Whether the tensor that a node made comes from a norm of a residual stream, not of one layer's output."""
    handles: list[Any] = field(default_factory=list)
    last: _Place = field(default_factory=_Place)
    last_tensor: torch.Tensor | None = None
    last_version: int = -1

    def watch(self, target: Any, hook: Callable[..., None]) -> None:
        """Place a gradient hook on a tensor or a node of the graph."""
        self.handles.append(target.register_hook(hook))

    def size(self, tensor: torch.Tensor) -> float:
        """Root mean square; known already for the tensor that came last, as one module's output is the next one's input."""
        return self.last.rms if self._is_last(tensor) else rms(tensor)

    def place(self, tensor: torch.Tensor) -> _Place:
        """The tensor's size now, and its gradient once it comes."""
        if not self._is_last(tensor):
            self.last = _Place(rms(tensor), tensor.numel())
            self.last_tensor, self.last_version = tensor, -1 if tensor.is_inference() else tensor._version
            if tensor.requires_grad:
                self.watch(tensor, _keeps(self.last))
        return self.last

    def normed_at(self, tensor: torch.Tensor) -> float:
        """1 where `tensor` comes from a norm of a residual stream, else 0; NaN outside the graph."""
        return NAN if tensor.grad_fn is None else float(only_source(tensor.grad_fn, self.normed) or False)

    def pass_on(self, module: nn.Module, out: torch.Tensor, *, follows: bool) -> None:
        """Note whether `out` comes from a norm that `follows` no single layer, if the module is one to say so."""
        if _is_norm(module) or has_matrix(module):
            self.normed[out.grad_fn] = not (follows or has_matrix(module))

    def _is_last(self, tensor: torch.Tensor) -> bool:
        return tensor is self.last_tensor and not tensor.is_inference() and tensor._version == self.last_version

    def follow(
        self, tensor: torch.Tensor, came_with: int, *, last: bool, normalised: bool = False
    ) -> tuple[_Call, ...]:
        """The open calls that `tensor` is computed from alone; their ends move to it.

        `came_with`: elements that entered the module which made the tensor. Another number than the calls' own end means
        that something else lies between. `last`: a layer with a matrix reads the tensor, so that the chain ends here.
        """
        chain = only_source(tensor.grad_fn, self.chains) or ()
        reached = tuple(call for call in chain if call.open and (call.end or call.out).numel == came_with)
        if reached:
            place = self.place(tensor)
        for call in reached:
            call.end = place
            call.normalised |= normalised
        if last:
            for call in chain:
                call.open = False
        return reached


class GainProbe:
    """Measures gains on sampled steps, run inside `eagerly`; `model` is a module. Subjects are layers, except where
    said otherwise.

    Emits, for each layer that ran: `in_rms`, `out_rms`, `grad_in_norm`, `grad_out_norm` (as the backward pass had them,
    a loss scale included), `forward_gain`, `backward_gain`; `forward_gain_with_activation` and
    `backward_gain_with_activation`, measured behind the activations and norms that follow the layer and take nothing but
    its output, up to the next layer with a matrix; `normalised`, 1 where a norm is among them; `fed_normalised`, of a layer
    with a matrix, 1 where its input is a normalised residual stream; and `forward_order`, the layer's place in the forward
    pass. A layer called several times has the root mean square over its calls. On the first sampled step also what
    `initial_scales` measures.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._unmeasured: dict[str, str] = {}
        self._tape: _Tape | None = None
        self._initial: list[Measured] | None = None

    @property
    def unmeasured(self) -> Mapping[str, str]:
        """Layers without a gain, each with the reason."""
        return self._unmeasured

    def begin(self, step: int) -> None:
        """Place hooks on every layer, and on the modules without parameters between them."""
        del step
        if self._initial is None:
            self._initial = initial_scales(self._model)
        tape = self._tape = _Tape()
        layers = layer_modules(self._model)
        compiled = compiled_modules(self._model)
        for name, module in layers.items():
            if module in compiled:
                self._unmeasured[name] = COMPILED
            else:
                hooks = _LayerHooks(name, tape, self._unmeasured)
                tape.handles.append(module.register_forward_pre_hook(hooks.before, with_kwargs=True))
                tape.handles.append(module.register_forward_hook(hooks.after, with_kwargs=True))
        for module in set(self._model.modules()) - set(layers.values()) - compiled:
            if not any(True for _ in module.children()):
                tape.handles.append(module.register_forward_hook(_between(tape), with_kwargs=True))

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
        if calls:
            emit("forward_order", list(calls), [float(place) for place in range(len(calls))])
        for measured in self._initial or ():
            emit(*measured)
        self._initial = []


class _LayerHooks:
    """The two forward hooks of one layer. What they cannot read becomes a reason: they never break a training."""

    def __init__(self, layer: str, tape: _Tape, unmeasured: dict[str, str]) -> None:
        self._layer, self._tape, self._unmeasured = layer, tape, unmeasured
        self._entered: list[_Call] = []

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        try:
            self._enter(module, list(float_tensors((args, kwargs))))
        except Exception as error:
            self._unmeasured[self._layer] = f"its input could not be read: {error}"

    def after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        del args, kwargs
        try:
            self._leave(module, list(float_tensors(output)))
        except Exception as error:
            self._unmeasured[self._layer] = f"its output could not be read: {error}"

    def _enter(self, module: nn.Module, inputs: list[torch.Tensor]) -> None:
        call = _Call(self._layer)
        self._entered.append(call)
        for tensor in inputs[:1]:
            call.in_rms, call.in_numel = self._tape.size(tensor), tensor.numel()
            if has_matrix(module):
                call.fed_normalised = self._tape.normed_at(tensor)
                self._tape.follow(tensor, call.in_numel, last=True)
        edges = [(tensor.shape, edge_of(tensor)) for tensor in inputs if tensor.requires_grad]
        call.taking, call.entries = (edges[0] if edges else None), {edge[0] for _, edge in edges}

    def _leave(self, module: nn.Module, outputs: list[torch.Tensor]) -> None:
        call = self._entered.pop()
        self._tape.calls.append(call)
        if not outputs:
            return
        out = outputs[0]
        call.out = self._tape.place(out)
        call.in_graph = out.requires_grad
        before = (
            () if has_matrix(module) else self._tape.follow(out, call.in_numel, last=False, normalised=_is_norm(module))
        )
        if out.requires_grad:
            self._tape.pass_on(module, out, follows=bool(before))
            self._tape.chains[out.grad_fn] = (*before, call)
            if call.taking is not None:
                self._read_incoming(call, outputs, *call.taking)

    def _read_incoming(self, call: _Call, outputs: list[torch.Tensor], shape: torch.Size, edge: Edge) -> None:
        made = [one for one in outputs if one.grad_fn is not None]
        nodes = uses(made, edge, call.entries)
        if nodes is None:
            self._unmeasured[self._layer] = "its part of the autograd graph is too large to walk"
            return
        call.incoming = _Incoming(shape, sum(len(places) for _, places in nodes))
        for node, places in nodes:
            self._tape.watch(node, _adds(call.incoming, places))


def _between(tape: _Tape) -> Callable[..., None]:
    """The forward hook of a module without parameters: an activation, a pooling, a dropout, a norm without weights."""

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        entered, out = next(float_tensors((args, kwargs)), None), next(float_tensors(output), None)
        if entered is not None and out is not None and out.grad_fn is not None:
            reached = tape.follow(out, entered.numel(), last=False, normalised=_is_norm(module))
            tape.pass_on(module, out, follows=bool(reached))
            if reached:
                tape.chains[out.grad_fn] = reached

    return hook


def _is_norm(module: nn.Module) -> bool:
    return is_norm(type(module).__name__)


def _keeps(place: _Place) -> Callable[[torch.Tensor], None]:
    def hook(gradient: torch.Tensor | None) -> None:
        if gradient is not None:
            place.grad = l2(gradient)

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
    "out_rms": lambda call: call.out.rms,
    "grad_in_norm": lambda call: call.in_grad,
    "grad_out_norm": lambda call: call.out.grad,
    "forward_gain": lambda call: _ratio(call.out.rms, call.in_rms),
    "backward_gain": lambda call: _ratio(call.in_grad, call.out.grad),
    "forward_gain_with_activation": lambda call: _ratio(call.end.rms, call.in_rms) if call.end else NAN,
    "backward_gain_with_activation": lambda call: _ratio(call.in_grad, call.end.grad) if call.end else NAN,
    "normalised": lambda call: float(call.normalised) if call.in_graph else NAN,
    "fed_normalised": lambda call: call.fed_normalised,
}


def _emit_known(emit: Emit, probe: str, values: Mapping[str, float]) -> None:
    known = {name: value for name, value in values.items() if not math.isnan(value)}
    if known:
        emit(probe, list(known), list(known.values()))


def compiled_modules(model: nn.Module) -> set[nn.Module]:
    """Modules whose forward runs as part of a compiled graph, also inside `eagerly`: all in torch before 2.6, else none."""
    return set() if hasattr(torch.compiler, "set_stance") else _compiled(model)


@contextmanager
def eagerly(model: nn.Module) -> Iterator[None]:
    """Run what torch.compile made of the model as the Python it was made from, so that hooks are called."""
    if _compiled(model) and hasattr(torch.compiler, "set_stance"):
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


def _compiled(model: nn.Module) -> set[nn.Module]:
    inside: set[nn.Module] = set()
    for module in model.modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            inside |= set(module.modules())
    return inside
