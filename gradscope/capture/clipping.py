"""Clipping that records: torch's `clip_grad_norm_`, with the norms kept."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from gradscope.capture import recorder


def clip_grad_norm_(
    parameters: torch.Tensor | Iterable[torch.Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> torch.Tensor:
    """Drop-in for `torch.nn.utils.clip_grad_norm_`, with the same result bit for bit.

    An open Recorder of these parameters reads the gradients here, before they are clipped.
    """
    tensors = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
    for one in recorder.active:
        one.measure(max_norm=float(max_norm))
    return torch.nn.utils.clip_grad_norm_(tensors, max_norm, norm_type, error_if_nonfinite, foreach)
