"""Clipping functions of torch, listened to: gradients are read there before they are clipped, whatever name calls them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.utils import clip_grad

from gradscope.capture.clipping import clip_recorded
from gradscope.integrations.patches import Patches
from gradscope.integrations.session import Session
from gradscope.runs import events

Call = Callable[..., Any]


def install(session: Session, patches: Patches) -> None:
    """Listen to torch's clipping for `session`."""
    busy = _Busy()
    for name, make in (
        ("clip_grad_norm_", _clip_norm),
        ("clip_grad_value_", _clip_value),
        ("_get_total_norm", _total_norm),
        ("_clip_grads_with_norm_", _clip_with_norm),
    ):
        if function := getattr(clip_grad, name, None):
            patches.wrapped(function, functools.partial(_unless_busy, session, busy, functools.partial(make, session)))


class _Busy:
    """Set while one clipping function is listened to: what it calls itself is not."""

    now = False


def _unless_busy(session: Session, busy: _Busy, listen: Call, original: Call) -> Call:
    @functools.wraps(original)
    def clip(*args: Any, **kwargs: Any) -> Any:
        if busy.now or not session.armed or torch.compiler.is_compiling():
            return original(*args, **kwargs)
        busy.now = True
        try:
            return listen(original, *args, **kwargs)
        finally:
            busy.now = False

    return clip


def _clip_norm(
    session: Session, original: Call, parameters: Any, max_norm: Any, norm_type: Any = 2.0, *rest: Any, **named: Any
) -> Any:
    tensors = _listed(parameters)
    if not tensors:
        return original(parameters, max_norm, norm_type, *rest, **named)
    raises = bool(rest[0] if rest else named.get("error_if_nonfinite", False))
    tracks = session.before_clip(tensors, float(max_norm), raises) or []
    if float(norm_type) != 2.0:
        session.read(tracks)
        total = original(tensors, max_norm, norm_type, *rest, **named)
        session.clipped(tracks, events.CLIP_OTHER_NORM, str(float(max_norm)), float(norm_type))
        return total
    recorders = session.to_share(tracks, float(max_norm)) or []
    try:
        total = clip_recorded(recorders, tensors, max_norm, norm_type, *rest, **named)
    except RuntimeError:
        raise  # error_if_nonfinite, or the tensors themselves: torch's own message
    except Exception as error:
        session.disarm(f"{type(error).__name__}: {error}")
        return original(tensors, max_norm, norm_type, *rest, **named)
    session.clipped(tracks)
    return total


def _clip_value(session: Session, original: Call, parameters: Any, clip_value: Any, *rest: Any, **named: Any) -> Any:
    tensors = _listed(parameters)
    tracks = session.before_clip(tensors, float(clip_value), False) or []
    session.read(tracks)
    result = original(tensors, clip_value, *rest, **named)
    session.clipped(tracks, events.CLIP_BY_VALUE, "", float(clip_value))
    return result


def _total_norm(session: Session, original: Call, tensors: Any, *rest: Any, **named: Any) -> Any:
    listed = _listed(tensors)
    session.read(session.owners(listed) or [])
    return original(listed, *rest, **named)


def _clip_with_norm(
    session: Session, original: Call, parameters: Any, max_norm: Any, total_norm: Any, *rest: Any, **named: Any
) -> Any:
    tensors = _listed(parameters)
    tracks = session.before_clip(tensors, float(max_norm), False) or []
    session.read(tracks, float(max_norm))
    result = original(tensors, max_norm, total_norm, *rest, **named)
    session.clipped(tracks)
    return result


def _listed(tensors: Any) -> list[torch.Tensor]:
    return [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)
