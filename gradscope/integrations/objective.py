"""What a script differentiates: its loss without the loss scale, and the layer where a nonfinite one came from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from gradscope.capture.later import Number, soon
from gradscope.capture.offender import Broken, nonfinite_activation
from gradscope.capture.scaling import scale_of

Loss = torch.Tensor | float | None


class Objective:
    """The loss of the backward pass that is running. `origin`: the layer that broke it. `kept_elsewhere` says whether
    activations were, so far, so that they cannot be read.
    """

    def __init__(self) -> None:
        self.origin: Broken | None = None
        self.kept_elsewhere: Callable[[], bool] = lambda: False
        self._scaler: Any = None
        self._unscaled: tuple[Any, Any] = (None, None)
        self._loss: Loss = None

    def scaling(self, scaler: Any, loss: Any, scaled: Any) -> None:
        """A gradient scaler has multiplied `loss`, which gave `scaled`."""
        self._scaler, self._unscaled = scaler, (loss, scaled)

    def begin(self, roots: Sequence[Any]) -> None:
        """Gradients are about to be computed from `roots`."""
        if self._known(roots):
            roots = self._unscaled[:1]
        self._loss = _value(roots)
        broken = isinstance(self._loss, float) and not math.isfinite(self._loss) and len(roots) == 1
        self.origin = nonfinite_activation(roots[0]) if broken and not self.kept_elsewhere() else None

    def end(self, roots: Sequence[Any]) -> tuple[Loss, Number]:
        """The loss of the `roots` that were differentiated, and what their gradients are multiplied by."""
        if self._scaler is None:
            return self._loss, 1.0
        scale = scale_of(self._scaler)
        loss = self._loss if self._loss is None or self._known(roots) else self._loss / scale
        self._scaler, self._unscaled = None, (None, None)
        return loss, soon(scale)

    def _known(self, roots: Sequence[Any]) -> bool:
        """Whether the only root is the one that was scaled, so that its loss without the scale is at hand."""
        return len(roots) == 1 and roots[0] is self._unscaled[1]


def _value(roots: Sequence[Any]) -> Loss:
    """The loss, a sum where there are several: a number, or a tensor without its graph where a device would have to be
    waited for. None where that is unknown, since what is differentiated is no scalar.
    """
    if len(roots) == 1 and isinstance(root := roots[0], torch.Tensor) and root.numel() == 1:
        return float(root.item()) if root.is_cpu else root.detach()
    if len(roots) > 1 and all(isinstance(root, torch.Tensor) and root.numel() == 1 for root in roots):
        return _value([sum(root.detach() for root in roots)])
    return None
