"""The calls into torch that a session listens to. Everything replaced here is put back by the Patches it returns."""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import lr_scheduler, optimizer
from torch.utils.data import dataloader

from gradscope.capture.offender import watching_saves
from gradscope.integrations import clip_calls
from gradscope.integrations.patches import Patches
from gradscope.integrations.session import Session

Call = Callable[..., Any]


def install(session: Session) -> Patches:
    """Listen for `session` until `undo` of what is returned."""
    patches = Patches()
    patches.attribute(torch.autograd, "_engine_run_backward", functools.partial(_backward, session))
    patches.attribute(torch.optim.Optimizer, "__init__", functools.partial(_new_optimizer, session))
    patches.handle(optimizer.register_optimizer_step_pre_hook(functools.partial(_enter_step, session)))
    patches.handle(optimizer.register_optimizer_step_post_hook(functools.partial(_leave_step, session)))
    for name, make in (("scale", _scale), ("unscale_", _unscale), ("step", _scaled_step)):
        patches.attribute(torch.amp.GradScaler, name, functools.partial(make, session))
    _listen_to_schedules(session, patches)
    patches.attribute(dataloader._BaseDataLoaderIter, "__next__", functools.partial(_next_batch, session))
    patches.attribute(os, "_exit", functools.partial(_leave, session))
    session.objective.kept_elsewhere = patches.entered(watching_saves())
    clip_calls.install(session, patches)
    _forget_in_children(session)
    return patches


def _backward(session: Session, original: Call) -> Call:
    @functools.wraps(original)
    def run_backward(roots: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        if session.differentiating or not session.armed or not kwargs.get("accumulate_grad"):
            return original(roots, *args, **kwargs)
        session.before_backward(roots)
        session.differentiating = True
        try:
            result = original(roots, *args, **kwargs)
        finally:
            session.differentiating = False
        session.after_backward(roots)
        return result

    return run_backward


def _new_optimizer(session: Session, original: Call) -> Call:
    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        original(self, *args, **kwargs)
        session.register(self)

    return __init__


def _enter_step(session: Session, optimizer: Any, args: Any, kwargs: Any) -> Any:
    if torch.compiler.is_compiling():
        session.compiled_step = True  # the compiler repeats this whenever the compiled code runs
        return None
    if not session.armed:
        return None
    session.enter_step(optimizer)
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if not callable(closure):
        session.before_step(optimizer)
        return None
    wrapped = _closure(session, optimizer, closure)
    if "closure" in kwargs:
        return args, {**kwargs, "closure": wrapped}
    return (args[0], wrapped, *args[2:]), kwargs


def _closure(session: Session, optimizer: Any, closure: Call) -> Call:
    @functools.wraps(closure)
    def evaluate(*args: Any, **kwargs: Any) -> Any:
        session.around_closure(optimizer, 1)
        try:
            return closure(*args, **kwargs)
        finally:
            session.around_closure(optimizer, -1)

    return evaluate


def _leave_step(session: Session, optimizer: Any, args: Any, kwargs: Any) -> None:
    if torch.compiler.is_compiling():
        return
    found = getattr(optimizer, "found_inf", None)
    session.after_step(optimizer, 0.0 if found is None else found)


def _scale(session: Session, original: Call) -> Call:
    @functools.wraps(original)
    def scale(self: Any, outputs: Any) -> Any:
        result = original(self, outputs)
        if self.is_enabled():
            session.scaling(self, outputs, result)
        return result

    return scale


def _unscale(session: Session, original: Call) -> Call:
    @functools.wraps(original)
    def unscale_(self: Any, optimizer: Any) -> Any:
        result = original(self, optimizer)
        if self.is_enabled():
            session.unscaled(optimizer)
        return result

    return unscale_


def _scaled_step(session: Session, original: Call) -> Call:
    @functools.wraps(original)
    def step(self: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.is_enabled():
            return original(self, optimizer, *args, **kwargs)
        session.before_step(optimizer)
        before = session.steps_seen
        result = original(self, optimizer, *args, **kwargs)
        if session.steps_seen == before:
            session.after_step(optimizer, 1.0)
        return result

    return step


def _schedulers(kind: type) -> list[type]:
    children: list[type] = kind.__subclasses__()
    return [kind, *(found for child in children for found in _schedulers(child))]


def _listen_to_schedules(session: Session, patches: Patches) -> None:
    base = lr_scheduler.LRScheduler
    inner = hasattr(base, "_update_lr")  # the end of `step`, which itself warns in the name of the line that calls it
    patches.attribute(base, "_update_lr" if inner else "step", functools.partial(_schedule, session, int(inner)))
    for kind in _schedulers(base)[1:]:
        if "step" in vars(kind):
            patches.attribute(kind, "step", functools.partial(_schedule, session, 0))


def _schedule(session: Session, initial: int, original: Call) -> Call:
    """`initial`: the count of steps when a scheduler takes the first one itself."""

    @functools.wraps(original)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(self, "_step_count", 0) > initial and getattr(self, "optimizer", None) is not None:
            session.scheduled(self.optimizer)
        return original(self, *args, **kwargs)

    return step


def _next_batch(session: Session, original: Call) -> Call:
    @functools.wraps(original)
    def __next__(self: Any) -> Any:  # noqa: N807
        batch = original(self)
        session.batch = self._num_yielded - 1
        return batch

    return __next__


def _leave(session: Session, original: Call) -> Call:
    @functools.wraps(original)
    def _exit(status: int) -> Any:
        session.leave(status)
        return original(status)

    return _exit


def _forget_in_children(session: Session) -> None:
    reference = weakref.ref(session)

    def after_fork() -> None:
        if (known := reference()) is not None:
            forget(known)

    os.register_at_fork(after_in_child=after_fork)


def forget(session: Session) -> None:
    """In a forked child: the run belongs to the parent."""
    session.armed = False
