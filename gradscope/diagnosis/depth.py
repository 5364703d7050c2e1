"""The gradient along depth, where no single layer is to blame: grown, or faded, by the same factor from layer to layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gradscope.diagnosis.series import log10
from gradscope.diagnosis.slope import common_slope
from gradscope.runs.run import Floats, Run

LEAST, GROWN, FADED = 6, 100.0, 1e-3
STRAIGHT = 0.9
"""The share of the variance that one factor a layer explains; where single layers stand out, it is less."""


@dataclass(frozen=True)
class Along:
    """‖∂L/∂out‖ of layers with a matrix, the last first: × `rate` a layer, with its 95 % interval, × `total` in all."""

    layers: tuple[str, ...]
    types: tuple[str, ...]
    rate: float
    low: float
    high: float

    @property
    def total(self) -> float:
        """From the last layer to the first."""
        return self.rate ** (len(self.layers) - 1)


def along_depth(run: Run) -> Along | None:
    """The factor a layer at the first sampled step, as the training begins; None where fewer than 6 layers were measured, or
    where one factor does not explain them.
    """
    types = {one.layer: one.type for one in run.header.parameters if len(one.shape) > 1 and "Embedding" not in one.type}
    steps, values = run.probes.matrix("grad_out_norm", list(types))
    order = run.probes.matrix("forward_order", list(types))[1]
    if not len(steps) or not len(order):
        return None
    logs, places = math.log(10) * log10(values[0]), order[0]
    known = np.flatnonzero(np.isfinite(logs) & np.isfinite(places))
    chosen = known[np.argsort(-places[known])]
    if len(chosen) < LEAST:
        return None
    depth = np.arange(len(chosen), dtype=float) - (len(chosen) - 1) / 2
    curve: Floats = np.asarray(logs[chosen] - logs[chosen].mean(), float)
    if not curve.any() or np.corrcoef(depth, curve)[0, 1] ** 2 < STRAIGHT:
        return None
    slope, error = common_slope([depth], [curve])
    names = [list(types)[i] for i in chosen]
    kinds = tuple(dict.fromkeys(types[name] for name in names))
    return Along(tuple(names), kinds, *(math.exp(slope + width * error) for width in (0.0, -1.96, 1.96)))
