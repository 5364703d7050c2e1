"""Gradients along time: ‖∂L/∂h_t‖ of every state of a recurrent layer (Pascanu, Mikolov, Bengio 2013).

Fused layers (`nn.RNN`, `nn.LSTM`, `nn.GRU`) are watched at their outputs, and their states' gradients computed from what
arrives there. Cells that the model calls in a loop (`nn.RNNCell`, `nn.LSTMCell`, `nn.GRUCell`, or any module that is given
its own last output again together with something new) are watched at the states themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from gradscope.capture.describe import clean_name, unwrap
from gradscope.capture.fused import FusedCall, draws
from gradscope.capture.gains import COMPILED, compiled_modules
from gradscope.capture.loops import CellCalls
from gradscope.capture.magnitude import root_sum_square
from gradscope.capture.probes import Emit
from gradscope.capture.recurrence import candidate, largest_singular_value

SPARSER = 4
"""A step is measured when it is this many steps after the last measured one, and this many times as far."""

Profile = dict[str, list[list[float]]]
"""By subject, a list of norms along time for each sequence that was run."""


class AlongTimeProbe:
    """Measures the gradients of states on sampled steps.

    Emits `state_grad_norm` (and `cell_state_grad_norm`, the c_t of an LSTM), index t: the how-manieth state the layer
    computed, so that a reverse direction begins at the sequence's end. Several sequences in one step count as one larger
    batch. Subjects are layers: `rnn`, or `rnn layer 1 reverse` where a module holds several. For torch's own layers also
    `sigma_recurrent`: σmax(W_hh)·max σ′, with max σ′ = 1 (tanh, ReLU), of the rows behind the candidate state for an LSTM or
    a GRU, before the optimizer's step: below 1, an RNN's gradients must fade.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._unmeasured: dict[str, str] = {}
        self._handles: list[Any] = []
        self._fused: list[tuple[str, FusedCall]] = []
        self._cells: dict[str, CellCalls] = {}
        self._called_once: set[str] = set()
        self._sigmas: dict[str, float] = {}
        self._next = 0

    @property
    def unmeasured(self) -> Mapping[str, str]:
        """Recurrent layers without gradients along time, each with the reason."""
        return self._unmeasured

    def begin(self, step: int) -> None:
        """Place hooks on every recurrent layer, and on every module that may be a cell.

        Only on the first step asked for and on those `SPARSER` steps after the last and `SPARSER` times as far: profiles
        cost a pass back through time in Python, and change slowly.
        """
        if step < self._next:
            return
        self._next = max(step + SPARSER, SPARSER * step)
        self._fused, self._cells = [], {}
        model = unwrap(self._model)
        self._sigmas = _sigmas(model)
        compiled = compiled_modules(self._model)
        for path, module in model.named_modules():
            name = clean_name(path)
            if isinstance(module, nn.RNNBase):
                if module in compiled:
                    self._unmeasured[name] = COMPILED
                else:
                    self._watch_fused(name, module)
            elif name not in self._called_once and module not in compiled and _may_be_cell(module):
                cell = self._cells[name] = CellCalls(isinstance(module, nn.RNNCellBase))
                self._handles.append(module.register_forward_hook(self._cell_hook(name, cell), with_kwargs=True))

    def _watch_fused(self, name: str, module: nn.RNNBase) -> None:
        random_states: list[torch.Tensor] = []

        def before(module: nn.RNNBase, args: Any, kwargs: Any) -> None:
            del args, kwargs
            if draws(module):
                random_states.append(torch.get_rng_state())

        def after(module: nn.RNNBase, args: Any, kwargs: Any, output: Any) -> None:
            random_state = random_states.pop() if random_states else None
            try:
                call = FusedCall.of(module, args, kwargs, output, random_state)
                if call:
                    self._fused.append((name, call))
            except Exception as error:  # a measurement must never break the training it watches
                self._unmeasured[name] = f"its call could not be read: {error}"

        self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        self._handles.append(module.register_forward_hook(after, with_kwargs=True))

    def _cell_hook(self, name: str, cell: CellCalls) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            del module
            try:
                cell.called((args, kwargs), output)
            except Exception as error:
                self._unmeasured[name] = f"its call could not be read: {error}"

        return hook

    def end(self, step: int, emit: Emit) -> None:
        """Take every hook away, compute and emit."""
        del step
        for handle in self._handles:
            handle.remove()
        for _, call in self._fused:
            call.close()
        for cell in self._cells.values():
            cell.close()
        self._handles = []
        states: Profile = {}
        cells: Profile = {}
        for name, call in self._fused:
            self._follow(name, call, states, cells)
        loops = {name: cell for name, cell in self._cells.items() if cell.sequences()}
        for name, cell in loops.items():
            if not any(other != name and _within(other, name) for other in loops):
                for state, memory in cell.sequences():
                    states.setdefault(name, []).append(state)
                    if memory:
                        cells.setdefault(name, []).append(memory)
        _emit(emit, "state_grad_norm", states)
        _emit(emit, "cell_state_grad_norm", cells)
        sigmas = {name: value for name, value in self._sigmas.items() if name in states}
        if sigmas:
            emit("sigma_recurrent", list(sigmas), list(sigmas.values()))
        self._called_once |= {name for name, cell in self._cells.items() if cell.called_once}
        self._fused, self._cells, self._sigmas = [], {}, {}

    def _follow(self, name: str, call: FusedCall, states: Profile, cells: Profile) -> None:
        try:
            found = call.along_time()
        except Exception as error:
            self._unmeasured[name] = f"its states could not be computed again: {error}"
            return
        for part, state, memory in found:
            subject = f"{name} {part}".strip()
            states.setdefault(subject, []).append(state)
            if memory:
                cells.setdefault(subject, []).append(memory)


def _may_be_cell(module: nn.Module) -> bool:
    """Whether it owns parameters, and is no layer of torch's that takes no state."""
    known = type(module).__module__.startswith("torch.nn.modules") and not isinstance(module, nn.RNNCellBase)
    return not known and any(True for _ in module.parameters())


def _within(inner: str, outer: str) -> bool:
    return not outer or inner.startswith(f"{outer}.")


def _emit(emit: Emit, probe: str, profile: Profile) -> None:
    for subject, sequences in profile.items():
        longest = max(map(len, sequences))
        values = [root_sum_square([one[t] for one in sequences if t < len(one)]) for t in range(longest)]
        emit(probe, [subject] * longest, values, list(range(longest)))


def _sigmas(model: nn.Module) -> dict[str, float]:
    found = {}
    for path, module in model.named_modules():
        name = clean_name(path)
        if isinstance(module, nn.RNNBase):
            for part, suffix in FusedCall.parts(module):
                matrix = getattr(module, f"weight_hh_{suffix}")
                found[f"{name} {part}".strip()] = _sigma(matrix, module.mode)
        elif isinstance(module, nn.RNNCellBase):
            mode = type(module).__name__.removesuffix("Cell")
            found[name] = _sigma(module.weight_hh, mode)
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _sigma(matrix: torch.Tensor, mode: str) -> float:
    rows = candidate(matrix.detach(), mode)
    return largest_singular_value(rows.float()) if torch.isfinite(rows).all() else math.nan
