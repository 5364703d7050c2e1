"""The data, where it is far from the size that initial weights are made for: what enters the model, and its targets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradscope.diagnosis.series import number
from gradscope.runs.run import Run
from gradscope.runs.schema import ROOT

LARGE, SMALL = 10.0, 1e-3
"""Of 734 small trainings, three that were not made so on purpose had inputs outside of these."""
APART = 10.0
"""How much larger than the median feature one must be to be told."""
DISTANCES = ("MSELoss", "L1Loss", "SmoothL1Loss", "HuberLoss", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
"""Losses of a difference: output and target may both be shifted and scaled."""


@dataclass(frozen=True)
class Data:
    """Data of an odd size. `rms`: its root mean square; `layer`: what it enters, None for targets; `type`: its class."""

    rms: float
    told: str
    layer: str | None = None
    type: str = ""

    @property
    def limit(self) -> float:
        """The limit that it is beyond."""
        return LARGE if self.rms > LARGE else SMALL


def odd_inputs(run: Run) -> Data | None:
    """What enters the model, where its size is above `LARGE` or below `SMALL`, and no norm takes that back."""
    sizes, normalised = run.probes.select("input_rms"), run.probes.select("normalised")
    if not len(sizes.value) or not _odd(sizes.value[0]):
        return None
    layer, rms = str(sizes.subject[0]), float(sizes.value[0])
    if (normalised.value[normalised.subject == layer][:1] == 1).any():
        return None
    largest, median = run.probes.select("input_largest"), run.probes.select("input_median")
    told = f"What enters {layer or ROOT} has a root mean square of {number(rms)}"
    if largest.value[0] > APART * median.value[0]:
        place, last = int(largest.index[0]), int(median.index[0]) - 1
        told += f"; feature {place} of 0 to {last:,} has {number(largest.value[0])}"
        told += f", the median one {number(median.value[0])}"
    kind = next((one.type for one in run.layers if one.name == layer), "")
    return Data(rms, told, layer, kind)


def odd_targets(run: Run) -> Data | None:
    """The targets, where their size is above `LARGE` or below `SMALL`, and not that of the first outputs."""
    target, output = (run.probes.select(name).value for name in ("target_rms", "output_rms"))
    if not len(target) or not _odd(target[0]) or 1 / APART < output[0] / target[0] < APART:
        return None
    told = f"The targets have a root mean square of {number(target[0])}, the first outputs one of {number(output[0])}"
    return Data(float(target[0]), told)


def compares_by_distance(run: Run) -> bool:
    """Whether the loss is one of `DISTANCES`."""
    return loss_named(run) in DISTANCES


def loss_named(run: Run) -> str:
    """The name of an analyzed run's loss, as `MSELoss` or `mse_loss`; "" where there is none."""
    loss = run.header.piece("loss")
    return loss.value.split("(")[0].split(" ")[0] if loss else ""


def _odd(size: float) -> bool:
    return bool(np.isfinite(size) and size > 0 and not SMALL <= size <= LARGE)
