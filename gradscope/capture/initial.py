"""How large weights are before the first step: by parameter, and in a gated recurrent layer by gate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from gradscope.capture.describe import layer_modules
from gradscope.capture.magnitude import rms

GATES: dict[type[nn.Module], int] = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3}
"""Blocks of rows in `weight_ih` and `weight_hh`, one a gate."""

Measured = tuple[str, Sequence[str], Sequence[float], Sequence[int]]
"""A probe, its subjects, values and indexes."""


def initial_scales(model: nn.Module) -> list[Measured]:
    """`init_scale` of every parameter and `gate_scale` of every gate of a recurrent matrix (its number as the index).

    Both are rms(weight)·√fan_in, with fan_in the number of elements of weight[0] (1 for a vector); NaN is left out.
    """
    rows = [row for row in _rows(model) if not math.isnan(row[2])]
    kept = {probe: [row[1:] for row in rows if row[0] == probe] for probe in ("init_scale", "gate_scale")}
    return [(probe, *zip(*found, strict=True)) for probe, found in kept.items() if found]


def _rows(model: nn.Module) -> Iterator[tuple[str, str, float, int]]:
    for layer, module in layer_modules(model).items():
        gates = next((count for kind, count in GATES.items() if isinstance(module, kind)), 0)
        for leaf, parameter in module.named_parameters(recurse=False):
            name = f"{layer}.{leaf}" if layer else leaf
            yield "init_scale", name, _scale(parameter), 0
            if gates and leaf.startswith(("weight_ih", "weight_hh")):
                for gate, rows in enumerate(parameter.chunk(gates)):
                    yield "gate_scale", name, _scale(rows), gate


def _scale(parameter: torch.Tensor) -> float:
    fan_in = parameter[0].numel() if parameter.dim() > 1 and len(parameter) else 1
    return rms(parameter) * math.sqrt(fan_in)
