"""Lightning: `Trainer(callbacks=[GradscopeCallback()])`. Gradients are read before they are clipped, unscaled.

That is at `on_before_optimizer_step`; right after the backward pass where a module clips earlier: one that optimizes
by hand, or has an `on_after_backward` of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gradscope.capture.header import ending_of, new_header
from gradscope.capture.later import Numbers, soon
from gradscope.capture.offender import Origin, origin_of, say_what_went_first
from gradscope.capture.recorder import Recorder, rates_of
from gradscope.capture.scaling import scale_of
from gradscope.integrations.find import models_of
from gradscope.integrations.patches import Patches
from gradscope.runs.catalogue import new_run_directory

try:
    from lightning.pytorch import Callback, LightningModule
except ImportError:
    from pytorch_lightning import Callback, LightningModule  # type: ignore[assignment,unused-ignore]  # the same class by its other name


class GradscopeCallback(Callback):  # type: ignore[misc,unused-ignore]  # Any where Lightning is not installed
    """Records every optimizer step of `fit`: one run an optimizer, the first the one to look at.

    `every`: record each so-many-th step. `max_rows` bounds a run's file. `root`: the folder that holds `.gradscope`.
    `runs` holds the directories, in the order of `trainer.optimizers`.

    Raises:
        UsageError: on `fit`, where the run directory cannot be written.
    """

    def __init__(
        self, name: str = "lightning", *, every: int = 1, max_rows: int | None = None, root: Path | None = None
    ) -> None:
        self.name, self.every, self.max_rows, self.root = name, every, max_rows, root
        self.runs: list[Path] = []
        self._recorders: dict[int, Recorder] = {}
        self._losses: list[tuple[torch.Tensor, int]] = []
        self._pending: tuple[Recorder, Numbers, bool] | None = None
        self._patches = Patches()
        self._origin: Origin | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Open a recorder an optimizer."""
        self.runs, self._losses, self._pending = [], [], None
        for i, optimizer in enumerate(trainer.optimizers):
            name = self.name if i == 0 else f"{self.name}-{i + 1}"
            models = pl_module if len(trainer.optimizers) == 1 else _part(optimizer, trainer.optimizers)
            recorder = Recorder(
                models,
                optimizer,
                directory=new_run_directory(name, self.root),
                header=replace(
                    new_header(name, "lightning", type(pl_module).__name__, trainer.world_size),
                    framework="lightning" if pl_module.automatic_optimization else "lightning-manual",
                ),
                every=self.every,
                max_rows=self.max_rows,
            )
            self._recorders[id(optimizer)] = recorder
            self.runs += [recorder.directory] if recorder.writes else []
        self._patches.attribute(LightningModule, "clip_gradients", self._noting)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: torch.Tensor) -> None:
        """Take the loss of a micro-step."""
        scale = _scale(trainer)
        unscaled = loss.detach() if scale is None else loss.detach() / scale
        self._losses.append((unscaled, trainer.fit_loop.batch_idx))
        if self._origin is None and self._recorders:
            self._origin = next(filter(None, (origin_of(one, loss) for one in self._recorders.values())), None)

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """Read the gradients where the module may clip them before the step; the last reading of a step counts."""
        own = type(pl_module).on_after_backward is not LightningModule.on_after_backward
        if pl_module.automatic_optimization and not own:
            return
        self._finish()
        scale = _scale(trainer)
        for recorder in self._recorders.values():
            recorder.take(None)
            if recorder.due and any(tensor.grad is not None for tensor in recorder.tensors):
                recorder.measure(scale=1.0 if scale is None else soon(scale))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Read the gradients, unless that was done: they are unscaled by now, and not clipped yet."""
        optimizer = getattr(optimizer, "optimizer", optimizer)
        recorder = self._recorders.get(id(optimizer))
        if self._pending and self._pending[0] is recorder and isinstance(optimizer, torch.optim.LBFGS):
            self._losses = []  # its search calls the closure again: the first call is the step
            return
        self._finish()
        if recorder is None:
            return
        for loss, batch in self._losses:
            recorder.observe(loss, batch=batch)
        self._losses = []
        scale, skipped = _scale(trainer), False
        if recorder.due:
            reading = recorder.measure(loss_scale=None if scale is None else soon(scale))
            skipped = scale is not None and reading.broken
        self._pending = recorder, rates_of([optimizer]), skipped

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Write the row of the step that this batch completed, if it did."""
        self._finish()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the runs."""
        self._close(None)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close the runs with what was recorded."""
        self._close(exception)

    def _noting(self, original: Callable[..., None]) -> Callable[..., None]:
        """`LightningModule.clip_gradients`, which a trainer or the module itself calls, with its threshold noted."""

        @functools.wraps(original)
        def clip_gradients(
            module: Any, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
        ) -> None:
            limit = gradient_clip_val or module.trainer.gradient_clip_val
            how = gradient_clip_algorithm or module.trainer.gradient_clip_algorithm or "norm"
            recorder = self._recorders.get(id(getattr(optimizer, "optimizer", optimizer)))
            if recorder and recorder.reading and limit and str(how).lower().endswith("norm"):
                recorder.take(recorder.reading._replace(max_norm=float(limit)))
            original(module, optimizer, gradient_clip_val, gradient_clip_algorithm)

        return clip_gradients

    def _finish(self) -> None:
        if self._pending is not None:
            recorder, rates, skipped = self._pending
            recorder.finish_step(skipped=skipped, lr=rates)
            say_what_went_first(recorder, self._origin)
            self._pending = self._origin = None

    def _close(self, error: BaseException | None) -> None:
        if error is None:
            self._finish()
        self._pending = None
        self._patches.undo()
        for recorder in self._recorders.values():
            recorder.close(ending_of(error, recorder.step))
        self._recorders = {}


def _scale(trainer: Any) -> Any:
    """What the losses are multiplied by; None without a gradient scaler."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return None if scaler is None else scale_of(scaler)


def _part(optimizer: torch.optim.Optimizer, among: list[torch.optim.Optimizer]) -> Any:
    """The modules that one of several optimizers trains."""
    held = [[p for group in one.param_groups for p in group["params"]] for one in among]
    others = {id(p) for one, its in zip(among, held, strict=True) if one is not optimizer for p in its}
    return models_of(held[among.index(optimizer)], others)
