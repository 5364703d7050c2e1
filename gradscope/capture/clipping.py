"""Clipping that records: torch's `clip_grad_norm_`, with the gradients read where they are in the cache anyway."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch.nn.utils import clip_grad

from gradscope.capture import recorder
from gradscope.capture.recorder import Recorder

_clip = clip_grad.clip_grad_norm_
_multiply = getattr(clip_grad, "_clip_grads_with_norm_", None)


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

    One recorder's norms are taken in the same pass as torch's, and a multiplication by exactly 1 is left out.
    """
    max_norm = float(max_norm)
    if len(recorders) == 1 and norm_type == 2.0 and foreach is not False and _multiply:
        with torch.no_grad():
            total = _total(tensors, recorders[0].places, recorders[0].measure_for_clip(max_norm))
            if total is not None and math.isfinite(total.item()):
                if not (max_norm / (total + 1e-6)).item() >= 1.0:
                    _multiply(tensors, max_norm, total, foreach)
                return total
    for one in recorders:
        one.measure(max_norm=max_norm if norm_type == 2.0 else None)
    return _clip(tensors, max_norm, norm_type, error_if_nonfinite, foreach)


def clip_scale_free(one: Recorder, tensors: list[torch.Tensor], max_norm: float) -> None:
    """Clip as torch does, but without the 1e-6 that torch adds to the norm, so that the scale of the loss does not matter.

    Both numbers are multiplied by the power of two that makes the norm about a million: against it 1e-6 is nothing.
    """
    if _multiply is None:
        clip_recorded([one], tensors, max_norm)
        return
    with torch.no_grad():
        total = _total(tensors, one.places, one.measure_for_clip(max_norm))
        size = math.nan if total is None else total.item()
        if total is None or not 0.0 < size < math.inf:
            clip_recorded([one], tensors, max_norm)
        elif size > max_norm:
            scale = 2.0 ** (20 - math.frexp(size)[1])
            _multiply(tensors, max_norm * scale, total * scale, None)


def _total(
    tensors: list[torch.Tensor], places: Mapping[int, int], norms: Mapping[int, torch.Tensor]
) -> torch.Tensor | None:
    """torch's norm over the `tensors` with gradients from its norms of each; None where some norm is not there."""
    found = [norms.get(places.get(id(tensor), -1)) for tensor in tensors if tensor.grad is not None]
    known = [norm for norm in found if norm is not None]
    return torch.linalg.vector_norm(torch.stack(known), 2.0) if found and len(known) == len(found) else None
