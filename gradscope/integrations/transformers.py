"""Transformers: `Trainer(callbacks=[GradscopeCallback()])`. Gradients are read before the trainer clips them, unscaled.

The trainer calls its callbacks only after it has clipped. So the callback looks over the shoulder of `training_step`, where
the backward pass ends: each call of it is watched on its own, and nothing is left behind when it raises.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import Trainer, TrainerCallback

from gradscope.capture.header import ending_of, new_header
from gradscope.capture.later import soon
from gradscope.capture.offender import Origin, origin_of, say_what_went_first
from gradscope.capture.recorder import Recorder, rates_of
from gradscope.capture.scaling import scale_of
from gradscope.errors import UsageError
from gradscope.runs.catalogue import new_run_directory


class GradscopeCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]  # Any where Transformers is not installed
    """Records every optimizer step of `train`.

    `every`: record each so-many-th step. `max_rows` bounds the file. `root`: the folder that holds `.gradscope`.
    `run` is the directory, None before training.

    Raises:
        UsageError: on `train`, where the run directory cannot be written or the trainer is not one of Transformers.
    """

    def __init__(
        self, name: str = "transformers", *, every: int = 1, max_rows: int | None = None, root: Path | None = None
    ) -> None:
        self.name, self.every, self.max_rows, self.root = name, every, max_rows, root
        self.run: Path | None = None
        self._recorder: Recorder | None = None
        self._trainer: Any = None
        self._origin: Origin | None = None
        self._batch = -1

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the recorder."""
        self._close(None)
        self._origin, self._batch = None, -1
        self._trainer = _trainer_above(sys._getframe(1))
        optimizer = kwargs["optimizer"]
        self._recorder = Recorder(
            kwargs["model"],
            getattr(optimizer, "optimizer", optimizer),
            directory=new_run_directory(self.name, self.root),
            header=new_header(self.name, "transformers", type(kwargs["model"]).__name__, args.world_size),
            every=self.every,
            max_rows=self.max_rows,
        )
        self.run = self._recorder.directory if self._recorder.writes else None

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the batches anew."""
        self._batch = -1

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Watch the first micro-step of a step."""
        self._watch()

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Watch the next one."""
        self._watch()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the row."""
        if self._recorder is not None:
            optimizer = kwargs["optimizer"]
            self._recorder.finish_step(skipped=self._skipped(optimizer), lr=rates_of([optimizer]))
            say_what_went_first(self._recorder, self._origin)
            self._origin = None

    def _skipped(self, optimizer: Any) -> bool:
        """Whether the scaler kept the optimizer from its step; Accelerate does not know it of a fused one."""
        reading = self._recorder.reading if self._recorder and self._trainer.accelerator.scaler else None
        return (reading is not None and reading.broken) or bool(getattr(optimizer, "step_was_skipped", False))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the run."""
        self._close(None)

    def _watch(self) -> None:
        """See the next call of the trainer's `training_step` and its backward pass, and only that one."""
        trainer = self._trainer
        restore, original = _replaceable(trainer, "training_step")

        def training_step(*args: Any, **kwargs: Any) -> Any:
            restore()
            try:
                with self._before_backward(trainer.accelerator):
                    loss = original(*args, **kwargs)
            except BaseException as error:
                self._close(error)
                raise
            self._after_backward(loss)
            return loss

        trainer.training_step = training_step

    @contextmanager
    def _before_backward(self, accelerator: Any) -> Iterator[None]:
        """See the loss that the accelerator differentiates, as long as its graph is there."""
        restore, original = _replaceable(accelerator, "backward")

        def backward(loss: Any, **kwargs: Any) -> Any:
            if self._recorder is not None and self._origin is None:
                self._origin = origin_of(self._recorder, loss)
            return original(loss, **kwargs)

        accelerator.backward = backward
        try:
            yield
        finally:
            restore()

    def _after_backward(self, loss: Any) -> None:
        if self._recorder is None:
            return
        self._batch += 1
        self._recorder.observe(loss, batch=self._batch)
        accelerator, limit = self._trainer.accelerator, self._trainer.args.max_grad_norm
        if accelerator.sync_gradients and self._recorder.step % self._recorder.every == 0:
            scaler = accelerator.scaler
            scale = soon(scale_of(scaler)) if scaler is not None else 1.0
            self._recorder.measure(scale=scale, max_norm=float(limit) if limit else None)

    def _close(self, error: BaseException | None) -> None:
        self._trainer = None
        if self._recorder is not None:
            self._recorder.close(ending_of(error, self._recorder.step))
            self._recorder = None


def _replaceable(owner: Any, name: str) -> tuple[Callable[[], None], Callable[..., Any]]:
    """What puts an attribute of an object back as it is now, and the attribute."""
    own = vars(owner).get(name)
    back = functools.partial(delattr, owner, name) if own is None else functools.partial(setattr, owner, name, own)
    return back, getattr(owner, name)


def _trainer_above(frame: FrameType | None) -> Any:
    """The trainer that is calling its callbacks. They are not told which one it is."""
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, Trainer):
            return owner
        frame = frame.f_back
    raise UsageError("GradscopeCallback works with transformers.Trainer; for a loop of your own use gradscope.Recorder")
