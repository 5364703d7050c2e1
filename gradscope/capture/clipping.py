"""Clipping that records: torch's `clip_grad_norm_`, with the gradients read where they are in the cache anyway."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch.nn.utils import clip_grad

from gradscope.capture import recorder
from gradscope.capture.recorder import Recorder

_clip = clip_grad.clip_grad_norm_
_total = getattr(clip_grad, "_get_total_norm", None)


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
    keys = {id(tensor) for tensor in tensors}
    concerned = [one for one in recorder.active if one.due and not keys.isdisjoint(one.keys)]
    return clip_recorded(concerned, tensors, max_norm, norm_type, error_if_nonfinite, foreach)


def clip_recorded(
    recorders: Sequence[Recorder],
    tensors: list[torch.Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> torch.Tensor:
    """torch's clipping of the `tensors`' gradients, read by these `recorders` just before it.

    Where one recorder has just these parameters, it reads them in the pass that multiplies, and the multiplication by
    exactly 1 is left out.
    """
    max_norm = float(max_norm)
    if len(recorders) == 1 and norm_type == 2.0 and foreach is not False and _total and recorders[0].covers(tensors):
        with torch.no_grad():
            grads = [tensor.grad for tensor in tensors if tensor.grad is not None]
            total: torch.Tensor = _total(grads, 2.0, error_if_nonfinite, foreach)
            if _clip_together(recorders[0], total, max_norm):
                return total
    for one in recorders:
        one.measure(max_norm=max_norm if norm_type == 2.0 else None)
    return _clip(tensors, max_norm, norm_type, error_if_nonfinite, foreach)


def _clip_together(one: Recorder, total: torch.Tensor, max_norm: float) -> bool:
    """Read and clip in one pass; False, with nothing done, where the gradients are not all finite."""
    if not math.isfinite(total.item()):
        return False
    coefficient = torch.clamp(max_norm / (total + 1e-6), max=1.0)
    if coefficient.item() == 1.0:
        one.measure(max_norm=max_norm)
    else:
        one.measure_and_multiply(coefficient, max_norm)
    return True
