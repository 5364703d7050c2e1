"""A module called again and again, each time with the state it gave the time before."""

from __future__ import annotations

from typing import Any

import torch

from gradscope.capture.graph import only_source
from gradscope.capture.magnitude import float_tensors, l2

SHORTEST = 4
"""Calls in a chain before a module that is not one of torch's cells counts as one."""


class _Call:
    """One call: its floating-point outputs, the gradients that reach them, and which of them the next call was given."""

    def __init__(self, outputs: list[torch.Tensor]) -> None:
        self.outputs = outputs
        self.norms = [0.0] * len(outputs)
        self.passed_on: set[int] = set()
        self.handles = [out.register_hook(self._keeps(i)) for i, out in enumerate(outputs) if out.requires_grad]  # type: ignore[no-untyped-call]  # torch leaves register_hook untyped

    def _keeps(self, place: int) -> Any:
        def hook(gradient: torch.Tensor | None) -> None:
            if gradient is not None:
                self.norms[place] = l2(gradient)

        return hook


class CellCalls:
    """The calls of one module during one step, split into sequences where the state was begun anew."""

    def __init__(self, is_cell: bool) -> None:
        self._is_cell = is_cell
        self._sequences: list[list[_Call]] = []
        self._last_inputs: list[torch.Tensor] = []

    def called(self, inputs: Any, output: Any) -> None:
        """Take note of one call."""
        given = list(tensors(inputs))
        call = _Call(list(float_tensors(output))[:2])
        last = self._sequences[-1][-1] if self._sequences else None
        if last and (self._is_cell or self._has_something_new(given)) and self._links(last, given):
            self._sequences[-1].append(call)
        else:
            self._sequences.append([call])
        self._last_inputs = given

    def _has_something_new(self, given: list[torch.Tensor]) -> bool:
        """Besides the state there is another input, and not the same one each time: a time step, not a repeated block."""
        before = {id(tensor) for tensor in self._last_inputs}
        return sum(id(tensor) not in before for tensor in given) >= 2

    @staticmethod
    def _links(last: _Call, given: list[torch.Tensor]) -> bool:
        nodes = {out.grad_fn: i for i, out in enumerate(last.outputs) if out.grad_fn is not None}
        for tensor in given:
            place = next((i for i, out in enumerate(last.outputs) if out is tensor), None)
            if place is None and nodes and tensor.grad_fn is not None:
                place = only_source(tensor.grad_fn, nodes)
            if place is not None:
                last.passed_on.add(place)
        return bool(last.passed_on)

    @property
    def called_once(self) -> bool:
        """Whether it cannot be a cell, by what this step showed."""
        return len(self._sequences) == 1 and len(self._sequences[0]) == 1

    def sequences(self) -> list[tuple[list[float], list[float]]]:
        """For each sequence the norms along time of its state, and of a second state where there is one."""
        found = []
        for calls in self._sequences:
            places = sorted(calls[0].passed_on)
            if len(calls) >= (2 if self._is_cell else SHORTEST) and any(call.handles for call in calls):
                kept = [[call.norms[place] for call in calls if place < len(call.norms)] for place in places[:2]]
                found.append((kept[0], kept[1] if len(kept) > 1 else []))
        return found

    def close(self) -> None:
        """Take the hooks of the states away."""
        for calls in self._sequences:
            for call in calls:
                for handle in call.handles:
                    handle.remove()


def tensors(value: Any) -> list[torch.Tensor]:
    """Every tensor, integers too, in nested tuples, lists and dictionaries."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for item in value for tensor in tensors(item)]
