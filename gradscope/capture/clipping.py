"""Clipping that records: torch's `clip_grad_norm_`, by the norms that are recorded, so that the gradients are read once."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence

import torch
from torch.nn.utils import clip_grad

from gradscope.capture import recorder
from gradscope.capture.norms_compiled import total_as_torch
from gradscope.capture.recorder import Recorder

_clip = clip_grad.clip_grad_norm_


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
    concerned = [one for one in recorder.active if any(id(tensor) in one.places for tensor in tensors)]
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

    Where one recorder reads just these, torch does not read them again.
    """
    max_norm = float(max_norm)
    if len(recorders) == 1 and norm_type == 2.0 and foreach is not False and recorders[0].reads(tensors):
        total = _clip_as_read(recorders[0], tensors, max_norm)
        if total is not None:
            return total
    for one in recorders:
        one.measure(max_norm=max_norm if norm_type == 2.0 else None)
    return _clip(tensors, max_norm, norm_type, error_if_nonfinite, foreach)


@torch.no_grad()
def _clip_as_read(one: Recorder, tensors: list[torch.Tensor], max_norm: float) -> torch.Tensor | None:
    """Clip by the norms that the recorder reads here; None, with nothing changed, where torch has to read for itself."""
    norms = one.measure(max_norm=max_norm, as_torch=True).norms
    if norms.as_torch is None:
        return None
    rounded = norms.as_torch
    total = total_as_torch(array("f", [rounded[one.places[id(t)]] for t in tensors if t.grad is not None]))
    if total is None or not math.isfinite(total):
        return None
    result = torch.tensor(total, dtype=torch.float32, device="cpu")
    grads = [tensor.grad for tensor in tensors if tensor.grad is not None]
    torch._foreach_mul_(grads, torch.clamp(max_norm / (result + 1e-6), max=1.0))
    return result


@torch.no_grad()
def clip_scale_free(one: Recorder, max_norm: float) -> None:
    """Clip all gradients of a recorder as torch does, but without the 1e-6 that torch adds to the norm.

    With it, the scale of the loss would matter.
    """
    total = one.measure(max_norm=max_norm).global_norm
    if not total <= max_norm:
        for tensor in one.tensors:
            if tensor.grad is not None:
                tensor.grad.mul_(max_norm / total)
