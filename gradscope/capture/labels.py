"""Which classes the samples of a batch have, where each has one, and whether the outputs are probabilities of them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch

from gradscope.capture.data import comparing
from gradscope.capture.probes import Emit
from gradscope.runs.schema import ROOT
from gradscope.workload.model import Workload

NEARLY = 1e-2
"""How far the sum of probabilities may be from 1: as far as half precision takes it."""


class LabelProbe:
    """Counts the classes of a batch on sampled steps, where the loss is a criterion of output and target, and targets are
    one whole number a sample.

    Emits `labels`, the number of samples of each class in the step's first batch; `classes`, how many classes the output
    tells apart; and `probabilities`, the share of the samples whose outputs are not negative and sum to 1.
    """

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._hooks = ExitStack()
        self._seen: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def unmeasured(self) -> Mapping[str, str]:
        """Nothing: targets belong to no layer."""
        return {}

    def begin(self, step: int) -> None:
        """Wait for the criterion."""
        del step
        self._hooks.enter_context(comparing(self._workload, self._look))

    def end(self, step: int, emit: Emit) -> None:
        """Count, once the step is over."""
        del step
        self._hooks.close()
        if self._seen:
            (labels, counts), outputs = torch.unique(self._seen[0], return_counts=True), self._seen[1].float()
            emit("labels", [str(label) for label in labels.tolist()], counts.tolist())
            emit("classes", [ROOT], [outputs.shape[1]])
            shares = (outputs.sum(1) - 1).abs() < NEARLY
            emit("probabilities", [ROOT], [float((shares & (outputs >= 0).all(1)).float().mean())])
        self._seen = None

    def _look(self, output: Any, target: Any) -> None:
        if self._seen or not (isinstance(output, torch.Tensor) and isinstance(target, torch.Tensor)):
            return
        if (output.dim(), target.dim()) == (2, 1) and not target.is_floating_point():
            self._seen = target, output.detach()
