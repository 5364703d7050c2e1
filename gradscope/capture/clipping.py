"""Clipping that records: torch's `clip_grad_norm_`, with the gradients read in the pass that multiplies them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch.nn.utils import clip_grad

from gradscope.capture import recorder
from gradscope.capture.norms import multiply
from gradscope.capture.norms_host import single
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

    One recorder reads them as they are multiplied, and a multiplication by exactly 1 is left out.
    """
    max_norm = float(max_norm)
    if len(recorders) == 1 and norm_type == 2.0 and foreach is not False and recorders[0].reads(tensors):
        total = _total([tensor.grad for tensor in tensors if tensor.grad is not None])
        if total is not None and math.isfinite(total.item()):
            factor = (max_norm / (total + 1e-6)).item()
            recorders[0].measure(max_norm=max_norm, factor=1.0 if factor >= 1.0 else factor)
            return total
    for one in recorders:
        one.measure(max_norm=max_norm if norm_type == 2.0 else None)
    return _clip(tensors, max_norm, norm_type, error_if_nonfinite, foreach)


@torch.no_grad()
def clip_scale_free(one: Recorder, max_norm: float) -> None:
    """Clip all gradients of a recorder as torch does, but without the 1e-6 that torch adds to the norm.

    With it, the scale of the loss would matter.
    """
    total = one.measure(max_norm=max_norm).global_norm
    if not total <= max_norm:
        multiply([tensor.grad for tensor in one.tensors], max_norm / total)


@torch.no_grad()
def _total(grads: list[torch.Tensor]) -> torch.Tensor | None:
    """Their norm as torch's own clipping computes it; None where they are not all plain float32."""
    if not single(grads):
        return None
    norms = torch.stack(torch._foreach_norm(grads, 2.0))
    total: torch.Tensor = torch.linalg.vector_norm(norms, 2.0)
    return total
