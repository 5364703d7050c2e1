"""The training loop that records: one optimizer step, and a window of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from gradscope.capture import blame
from gradscope.capture.clipping import clip_recorded, clip_scale_free
from gradscope.capture.gains import eagerly
from gradscope.capture.offender import Origin, origin_of, say_what_went_first, watching_saves
from gradscope.capture.probes import Probe
from gradscope.capture.recorder import Reading, Recorder
from gradscope.capture.scaling import autocast, scaler_of
from gradscope.errors import GradscopeError, SpecError, UserCodeError
from gradscope.runs.schema import Ending
from gradscope.workload.model import DataEndedError, Workload
from gradscope.workload.move import holds_nonfinite, to_device
from gradscope.workload.steps import scalar_problem

__all__ = ["StepSeen", "micro_batches", "run_steps", "step_once"]

TWICE = "backward through the graph a second time"
GIVE_BACK = (
    "If training_step itself calls backward() or step(): return the loss and leave those to gradscope; for a loop of its "
    "own, as a GAN's, use: gradscope record train.py"
)
AFTERMATH = 3
"""Steps still taken after the first nonfinite one, so that the run shows how it spreads."""


@dataclass(frozen=True)
class StepSeen:
    """One recorded step, for a live display. `index`: its step of the plan; `position`: the how-manieth it was."""

    position: int
    index: int
    loss: float
    global_norm: float
    reading: Reading | None


def step_once(
    workload: Workload, index: int, recorder: Recorder, *, max_norm: float | None = None, trial: bool = False
) -> float:
    """Take optimizer step `index` of the plan and record it; returns its loss, the mean of its micro-steps.

    A `trial` leaves the schedulers alone and clips whatever the scale of the loss.

    Raises:
        SpecError: the loss is not a scalar, or has no gradient.
        UserCodeError: the user's code raised.
        DataEndedError: the data has no such batch.
    """
    try:
        return _step(workload, index, recorder, max_norm, trial)
    except (GradscopeError, DataEndedError):
        raise
    except (Exception, SystemExit) as error:
        raise _user_error(error, workload, index, recorder) from error


def run_steps(
    workload: Workload,
    recorder: Recorder,
    steps: Iterable[int],
    *,
    probes: Sequence[Probe] = (),
    probe_steps: Collection[int] = (),
    max_norm: float | None = None,
    on_step: Callable[[StepSeen], None] | None = None,
) -> Ending:
    """Take `steps` of the plan in turn and say how that ended; the recorder stays open.

    `probe_steps` are steps of the plan on which `probes` are placed. Ctrl-C and the end of the data end the window, a
    nonfinite loss or norm ends it a few steps later.

    Raises:
        SpecError, UserCodeError: as for `step_once`; the rows so far are kept.
    """
    broke: int | None = None
    for position, index in enumerate(steps):
        at = recorder.step
        if broke is not None and at > broke + AFTERMATH:
            break
        try:
            loss = _probed(workload, index, recorder, probes if index in probe_steps else (), max_norm)
            seen = StepSeen(position, index, loss, recorder.global_norm, recorder.last)
            if broke is None and not recorder.last_skipped and not math.isfinite(loss + seen.global_norm):
                broke = at
            if on_step:
                on_step(seen)
        except DataEndedError as error:
            return Ending("finished", at, f"the data ended: {error}" if str(error) else "the data ended")
        except KeyboardInterrupt:
            return Ending("interrupted", at)
    return Ending("finished", recorder.step) if broke is None else Ending("nonfinite", broke)


def _probed(
    workload: Workload, index: int, recorder: Recorder, probes: Sequence[Probe], max_norm: float | None
) -> float:
    row = recorder.step

    def emit(probe: str, subjects: Sequence[str], values: Sequence[float], index: Sequence[int] | None = None) -> None:
        recorder.probe(probe, subjects, values, index, step=row)

    begun: list[Probe] = []
    try:
        for probe in probes:
            begun.append(probe)
            probe.begin(row)
        with eagerly(workload.model) if probes else nullcontext():
            return step_once(workload, index, recorder, max_norm=max_norm)
    finally:
        for probe in reversed(begun):
            probe.end(row, emit)


def _step(workload: Workload, index: int, recorder: Recorder, max_norm: float | None, trial: bool) -> float:
    scaler = scaler_of(workload)
    tried: list[tuple[float, bool, Origin | None]] = []

    def gradients() -> torch.Tensor:
        for tensor in recorder.tensors:
            tensor.grad = None
        total, broken, origin = _accumulate(workload, index, recorder if not tried else None, scaler)
        tried.append((total.item(), broken, origin))
        for optimizer in workload.optimizers:
            if scaler:
                scaler.unscale_(optimizer)
        if scaler or max_norm is None:
            recorder.measure(max_norm=max_norm, loss_scale=scaler.get_scale() if scaler else None)
        if max_norm is not None and trial:
            clip_scale_free(recorder, max_norm)
        elif max_norm is not None:
            clip_recorded([recorder], list(recorder.tensors), max_norm)
        return total

    skipped = _update(workload, gradients, scaler)
    rates = [group["lr"] for optimizer in workload.optimizers for group in optimizer.param_groups]
    recorder.finish_step(skipped=skipped, lr=[float(rate) for rate in rates])
    loss, data_broke, origin = tried[0]
    if data_broke:
        recorder.blame("input")
    else:
        say_what_went_first(recorder, origin)
    if not (trial or skipped):
        for scheduler in workload.schedulers:
            scheduler.step()
    return loss


def micro_batches(workload: Workload, index: int) -> Iterator[tuple[int, Any]]:
    """The batches of optimizer step `index`, each with its micro-step, on the device. Raises DataEndedError."""
    count = workload.plan.accumulate
    for micro in range(index * count, (index + 1) * count):
        yield micro, to_device(workload.batches.at(micro), workload.device)


def _accumulate(
    workload: Workload, index: int, recorder: Recorder | None, scaler: Any
) -> tuple[torch.Tensor, bool, Origin | None]:
    """Forward and backward over the step's micro-steps; the mean loss, and whether the data, or which layer, broke it."""
    count = workload.plan.accumulate
    total, broken, origin = torch.zeros(()), False, None
    for micro, batch in micro_batches(workload, index):
        with autocast(workload), watching_saves() as kept_elsewhere:
            loss = workload.training_step(workload.model, batch)
        loss = _scalar(loss, workload)
        if recorder:
            recorder.observe(loss, batch=micro)
        value = loss.detach().cpu()
        total = total + value / count
        if not math.isfinite(value.item()):
            broken = broken or holds_nonfinite(batch)
            origin = origin or (origin_of(recorder, loss) if recorder and not kept_elsewhere() else None)
        loss = loss / count if count > 1 else loss
        (scaler.scale(loss) if scaler else loss).backward()
    return total, broken, origin


def _update(workload: Workload, gradients: Callable[[], torch.Tensor], scaler: Any) -> bool:
    """One step of every optimizer; whether the scaler skipped it."""
    closures = [one for one in workload.optimizers if isinstance(one, torch.optim.LBFGS)]
    if not closures:
        gradients()
    for optimizer in workload.optimizers:
        if optimizer in closures:
            optimizer.step(torch.enable_grad()(gradients))  # type: ignore[no-untyped-call]  # torch leaves LBFGS.step untyped
        elif scaler:
            scaler.step(optimizer)
        else:
            optimizer.step()
    if not scaler:
        return False
    before = scaler.get_scale()
    scaler.update()
    return bool(scaler.get_scale() < before)


def _scalar(loss: Any, workload: Workload) -> torch.Tensor:
    problem = scalar_problem(loss)
    if problem:
        read = next((piece.source for piece in workload.pieces if piece.piece == "loss"), "")
        raise SpecError(f"{read if ':' in read else workload.source}: the loss {problem}")
    reduced: torch.Tensor = loss.reshape(())
    return reduced


def _user_error(error: BaseException, workload: Workload, index: int, recorder: Recorder) -> UserCodeError:
    hints = [hint for hint in (blame.layer(error, workload.model), blame.place(error)) if hint]
    where = f" in {', '.join(hints)}" if hints else ""
    more = f". {GIVE_BACK}" if TWICE in str(error) else ""
    return UserCodeError(
        f"{workload.source}: step {index} raised {type(error).__name__}{where}: {error}{more}",
        run_path=str(recorder.directory) if recorder.writes else None,
    )
