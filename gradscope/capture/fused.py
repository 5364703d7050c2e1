"""One call of a fused recurrent layer: what went in, what came out, which gradients arrived, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from gradscope.capture.later import widest
from gradscope.capture.recurrence import Passage, Weights, backward, norms_along_time, reversed_in_time

Tensor = torch.Tensor

Found = tuple[str, list[float], list[float]]
"""Which part of the module, ‖∂L/∂h_t‖ by t, and ‖∂L/∂c_t‖ by t for an LSTM."""

CLOSE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""How far the states may be from those computed again, relative to the largest; half precision: HALF."""
HALF = 0.05


@dataclass
class _Arrivals:
    """Gradients by what they belong to: out, h, c."""

    got: dict[str, Tensor] = field(default_factory=dict)
    handles: list[Any] = field(default_factory=list)

    def watch(self, name: str, tensor: Tensor) -> None:
        def hook(gradient: Tensor | None) -> None:
            if gradient is not None:
                kept = gradient.detach()
                self.got[name] = self.got[name] + kept if name in self.got else kept.clone()

        target: Any = tensor
        if tensor.requires_grad:
            self.handles.append(target.register_hook(hook))


@dataclass(frozen=True)
class _Layout:
    """How the module's sequences lie in memory, and how to pad them to (T, B, …) in the order in which it runs them."""

    batch_sizes: Tensor | None
    order: Tensor | None
    batch_first: bool
    batched: bool

    def padded(self, values: Tensor) -> Tensor:
        if self.batch_sizes is not None:
            alive = self._alive(values.device)
            padded = values.new_zeros(*alive.shape, *values.shape[1:])
            padded[alive] = values
            return padded
        values = values if self.batched else values[:, None]
        return values.transpose(0, 1) if self.batch_first and self.batched else values

    def flat(self, padded: Tensor) -> Tensor:
        """Back to the shape in which the kernels drop elements out: packed, or (T, B, …)."""
        return padded if self.batch_sizes is None else padded[self._alive(padded.device)]

    def _alive(self, device: torch.device) -> Tensor:
        assert self.batch_sizes is not None
        sizes = self.batch_sizes.to(device)
        return torch.arange(int(sizes[0]), device=device)[None] < sizes[:, None]

    def lengths(self, steps: int, count: int) -> list[int]:
        if self.batch_sizes is None:
            return [steps] * count
        return [int((self.batch_sizes > b).sum()) for b in range(count)]

    def hidden(self, values: Tensor) -> Tensor:
        """(layers · directions, B, H) in the order in which sequences are run."""
        values = values if self.batched else values[:, None]
        return values if self.order is None else values.index_select(1, self.order)


@dataclass
class FusedCall:
    """See the module's text. `random_state`: before the call, where it dropped elements out between its layers."""

    module: nn.RNNBase
    layout: _Layout
    x: Tensor
    out: Tensor
    hx: tuple[Tensor, ...]
    weights: list[list[Tensor]]
    arrivals: _Arrivals
    random_state: Tensor | None

    @classmethod
    def of(cls, module: nn.RNNBase, args: Any, kwargs: Any, output: Any, random_state: Tensor | None) -> Self | None:
        """Watch one call, from a forward hook; None where no gradient will come back."""
        given = args[0] if args else kwargs["input"]
        start = args[1] if len(args) > 1 else kwargs.get("hx")
        out, last = output
        packed = isinstance(given, PackedSequence)
        x, out = (given.data, out.data) if packed else (given, out)
        if not out.requires_grad:
            return None
        if draws(module) and out.device.type != "cpu":
            raise ValueError("its kernel draws the dropout between its layers by itself")
        layout = _Layout(
            given.batch_sizes if packed else None,
            given.sorted_indices if packed else None,
            module.batch_first,
            packed or given.dim() == 3,
        )
        arrivals = _Arrivals()
        arrivals.watch("out", out)
        for name, tensor in zip(("h", "c"), last if isinstance(last, tuple) else (last,), strict=False):
            arrivals.watch(name, tensor)
        return cls(
            module=module,
            layout=layout,
            x=x.detach(),
            out=out.detach(),
            hx=tuple(one.detach() for one in (start if isinstance(start, tuple) else (start,)) if one is not None),
            weights=[[weight.detach().clone() for weight in group] for group in module.all_weights],
            arrivals=arrivals,
            random_state=random_state,
        )

    @staticmethod
    def parts(module: nn.RNNBase) -> Iterator[tuple[str, str]]:
        """Each layer and direction: how it is called, and how its parameters' names end."""
        several = module.num_layers > 1 or module.bidirectional
        for layer in range(module.num_layers):
            yield (f"layer {layer}" if several else ""), f"l{layer}"
            if module.bidirectional:
                yield f"layer {layer} reverse", f"l{layer}_reverse"

    def close(self) -> None:
        """Take the hooks away."""
        for handle in self.arrivals.handles:
            handle.remove()

    def along_time(self) -> list[Found]:
        """The norms of the states' gradients, of every layer and direction; none where no gradient arrived.

        Raises:
            ValueError: the layer's states do not follow from its equations, so that something is not as assumed.
        """
        if not self.arrivals.got:
            return []
        with torch.no_grad():
            return self._backward()

    def _backward(self) -> list[Found]:
        directions = 2 if self.module.bidirectional else 1
        outputs, masks = self._forward()
        inputs = [self.layout.padded(self.x), *(out * mask for out, mask in zip(outputs, masks, strict=False))]
        dh = self._arrived("out", outputs[-1])
        found: list[list[Found]] = []
        names = list(self.parts(self.module))
        for layer in reversed(range(self.module.num_layers)):
            parts, arriving = [], []
            for direction in range(directions):
                place, h = layer * directions + direction, self._part(outputs[layer], direction)
                states, memory, ahead = self._passage(
                    place, direction == 1, _single(inputs[layer]), _single(h), self._part(dh, direction)
                )
                arriving += [ahead() @ _wide(self.weights[place][0])] if layer else []
                parts.append((names[place][0], states, memory))
            found.append(parts)
            dh = sum(arriving) * masks[layer - 1] if layer else dh
        return [part for parts in reversed(found) for part in parts]

    def _part(self, values: Tensor, direction: int) -> Tensor:
        return values.chunk(2, -1)[direction] if self.module.bidirectional else values

    def _passage(
        self, place: int, turned: bool, x: Tensor, h: Tensor, dh: Tensor
    ) -> tuple[list[float], list[float], Callable[[], Tensor]]:
        steps, count = h.shape[:2]
        lengths = self.layout.lengths(steps, count)

        def turn(values: Tensor) -> Tensor:
            return reversed_in_time(values, lengths) if turned else values

        h0 = _single(self._first(0, [place], h)[0])
        c0 = _single(self._first(1, [place], h)[0]) if self.module.mode == "LSTM" else None
        passage = Passage(self.module.mode, self._weights(place), turn(x), turn(h), h0, c0)
        ends = torch.tensor(lengths, device=h.device) - 1, torch.arange(count, device=h.device)
        dh = turn(dh).clone()
        dh[ends] += self._last("h", place, h0)
        dc = None
        if c0 is not None:
            dc = dh.new_zeros(steps, *c0.shape)
            dc[ends] += self._last("c", place, c0)
        found = backward(passage, dh, dc)
        if not found.error <= CLOSE.get(self.out.dtype, HALF):
            raise ValueError(f"they differ from the layer's equations by {found.error:.1g} of the largest")
        memory = norms_along_time(found.dc) if found.dc is not None else []
        return norms_along_time(found.dh), memory, lambda: turn(found.ahead())

    def _arrived(self, name: str, like: Tensor) -> Tensor:
        gradient = self.arrivals.got.get(name)
        return torch.zeros_like(_wide(like)) if gradient is None else _wide(self.layout.padded(gradient))

    def _last(self, name: str, place: int, like: Tensor) -> Tensor:
        gradient = self.arrivals.got.get(name)
        return torch.zeros_like(_wide(like)) if gradient is None else _wide(self.layout.hidden(gradient)[place])

    def _weights(self, place: int) -> Weights:
        ih, hh, *rest = [_single(weight) for weight in self.weights[place]]
        bias_ih, bias_hh = rest[:2] if self.module.bias else (None, None)
        return Weights(ih, hh, bias_ih, bias_hh, rest[-1] if self.module.proj_size else None)

    def _forward(self) -> tuple[list[Tensor], list[Tensor]]:
        """The padded output of every layer, and what dropout multiplied it by before the next one."""
        outputs: list[Tensor] = []
        masks: list[Tensor] = []
        x = self.layout.padded(self.x)
        with _random(self.random_state):
            for layer in range(self.module.num_layers - 1):
                outputs.append(self._run(x, layer))
                kept = torch.ones_like(self.layout.flat(outputs[-1]))
                if self.random_state is not None:
                    kept = torch.nn.functional.dropout(kept, self.module.dropout)
                masks.append(kept if self.layout.batch_sizes is None else self.layout.padded(kept))
                x = outputs[-1] * masks[-1]
        return [*outputs, self.layout.padded(self.out)], masks

    def _run(self, x: Tensor, layer: int) -> Tensor:
        """One layer's padded output for its padded input, by torch's own kernel."""
        directions = 2 if self.module.bidirectional else 1
        places = range(layer * directions, (layer + 1) * directions)
        weights = [weight for place in places for weight in self.weights[place]]
        flat = self.layout.flat(x.to(weights[0].dtype))
        first = tuple(self._first(kind, places, x).to(flat) for kind in range(2 if self.module.mode == "LSTM" else 1))
        kernel = _KERNELS[self.module.mode]
        start = first if len(first) > 1 else first[0]
        options = (weights, self.module.bias, 1, 0.0, False, self.module.bidirectional)
        sizes = self.layout.batch_sizes
        if sizes is not None:
            return self.layout.padded(kernel(flat, sizes, start, *options)[0])
        out: Tensor = kernel(flat, start, *options, False)[0]
        return out

    def _first(self, kind: int, places: Sequence[int], x: Tensor) -> Tensor:
        """h_0 (kind 0) or c_0 (kind 1) of some layers and directions, (places, B, …)."""
        width = self.module.hidden_size if kind else self.module.proj_size or self.module.hidden_size
        if self.hx:
            return self.layout.hidden(self.hx[kind])[places[0] : places[-1] + 1]
        return x.new_zeros(len(places), x.shape[1], width)


_KERNELS: dict[str, Any] = {
    "RNN_TANH": torch.rnn_tanh,
    "RNN_RELU": torch.rnn_relu,
    "LSTM": torch.lstm,
    "GRU": torch.gru,
}


def draws(module: nn.RNNBase) -> bool:
    """Whether a call drops elements out between layers."""
    return module.training and module.dropout > 0 and module.num_layers > 1


def _wide(values: Tensor) -> Tensor:
    return values.to(widest(values.device))


def _single(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


@contextmanager
def _random(state: Tensor | None) -> Iterator[None]:
    """Draw from `state`, and leave the random states as they were."""
    with torch.random.fork_rng(devices=[], enabled=state is not None):
        if state is not None:
            torch.set_rng_state(state)
        yield
