"""Trials: short trainings from a saved state, to see how another learning rate, threshold or start would do.

A trial is recorded as a child run, and leaves the training as it found it, whatever happens.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any, Protocol

import numpy as np
import torch

from gradscope.capture.data import standard_inputs, standard_targets
from gradscope.capture.describe import layer_modules
from gradscope.capture.loop import StepSeen, step_once
from gradscope.capture.pairing import measure_pairing
from gradscope.capture.rates import Group, PlannedRates
from gradscope.capture.recorder import Recorder
from gradscope.capture.snapshot import Snapshot
from gradscope.errors import UserCodeError
from gradscope.runs.schema import TARGETS, Ending, Trial
from gradscope.workload.model import DataEndedError, Workload

NEXT_IN_ORDER = "the batches are the next ones in order, since those of the planned steps cannot be reached"
OUT_OF_TIME = "the time budget ended"


class Parent(Protocol):
    """The run that trials belong to."""

    def trial(self, trial: Trial) -> Recorder:
        """A recorder of a child run."""
        ...


@dataclass(frozen=True)
class Change:
    """What a trial changes besides its learning-rate factor and threshold.

    `prepare` is called on the workload after it was put back to the trial's start. `lr_scale(index)` is a further factor on
    the learning rate at a step of the plan; `group_scales`, further factors on single parameter groups; `settings` replace
    those of every group that has them. `during` is open while its steps are taken.
    """

    prepare: Callable[[Workload], None] | None = None
    lr_scale: Callable[[int], float] | None = None
    group_scales: Mapping[int, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    during: Callable[[Workload], AbstractContextManager[None]] = lambda _: nullcontext()


UNCHANGED = Change()


def run_trial(
    workload: Workload,
    start: Snapshot,
    trial: Trial,
    parent: Parent,
    *,
    change: Change = UNCHANGED,
    on_step: Callable[[StepSeen], None] | None = None,
    deadline: float | None = None,
) -> Ending:
    """Play `trial` from `start` (the snapshot that `trial.start` names) and record it in `parent`'s `trials/<name>/`.

    Step k takes the batch of step i = trial.indexes[k] of the plan, with its planned learning rate × trial.lr_factor, and
    clips at trial.max_norm; the batches in another order where it is `shuffled`. It ends early at a nonfinite loss or norm
    ("nonfinite"), where the user's code raises ("failed"), where the data ends ("finished", with a message), and at
    `deadline`, a time.monotonic() ("interrupted").
    The workload is left at `start`, whatever happens.

    Raises:
        KeyboardInterrupt: Ctrl-C, after everything was put back; the rows so far are kept.
        CannotSnapshotError: the training cannot be put back.
        OSError: the trial's directory cannot be written.
    """
    start.restore()
    try:
        batches, trial = _batches(workload, trial)
        if change.prepare:
            with torch.no_grad():
                change.prepare(workload)
        with change.during(workload):
            return recorded(
                parent,
                trial,
                lambda child: _Play(workload, start.rates, trial, child, change).run(batches, on_step, deadline),
            )
    finally:
        start.restore()


def recorded(parent: Parent, trial: Trial, play: Callable[[Recorder], Ending]) -> Ending:
    """Play a trial with a recorder of its own, which is closed with how that ended."""
    child = parent.trial(trial)
    ending: Ending | None = None
    try:
        ending = play(child)
    finally:
        child.close(ending or Ending("interrupted", child.step))
    return ending


def _batches(workload: Workload, trial: Trial) -> tuple[Sequence[int], Trial]:
    """Whose batch each step takes: the planned step's, or the next ones in order where those are out of reach."""
    count = workload.plan.accumulate
    if all(workload.batches.reach(index * count) for index in trial.indexes):
        return _order(trial), trial
    first = trial.indexes[0]
    note = f"{trial.note}; {NEXT_IN_ORDER}" if trial.note else NEXT_IN_ORDER
    return range(first, first + len(trial.indexes)), dataclasses.replace(trial, note=note)


def _order(trial: Trial) -> Sequence[int]:
    if not trial.shuffled:
        return trial.indexes
    return [int(index) for index in np.random.default_rng(trial.shuffled).permutation(trial.indexes)]


@dataclass(frozen=True)
class _Play:
    """One trial about to be played on a workload that stands at its start."""

    workload: Workload
    rates: PlannedRates
    trial: Trial
    child: Recorder
    change: Change

    def run(self, batches: Sequence[int], on_step: Callable[[StepSeen], None] | None, deadline: float | None) -> Ending:
        for position, (index, batch) in enumerate(zip(self.trial.indexes, batches, strict=True)):
            if deadline is not None and time.monotonic() > deadline:
                return Ending("interrupted", position, OUT_OF_TIME)
            try:
                loss = self._step(index, batch)
            except DataEndedError:
                return Ending("finished", position, "the data ended")
            except UserCodeError as error:
                return Ending("failed", position, str(error))
            if on_step:
                on_step(StepSeen(position, index, loss, self.child.global_norm, self.child.last))
            if not self.child.last_skipped and not math.isfinite(loss + self.child.global_norm):
                return Ending("nonfinite", position)
        if self.trial.kind == "rehearsal" and self.trial.lr_factor == 1.0:
            measure_pairing(self.workload, batches, self.child)
        return Ending("finished", len(batches))

    def _step(self, index: int, batch: int) -> float:
        factor = self.trial.lr_factor * (self.change.lr_scale(index) if self.change.lr_scale else 1.0)
        _set_rates(self.workload, self.rates.at(index), factor, self.change)
        return step_once(self.workload, batch, self.child, max_norm=self.trial.max_norm, trial=True)


def _set_rates(workload: Workload, planned: Sequence[Group], factor: float, change: Change) -> None:
    groups: list[dict[str, Any]] = [group for one in workload.optimizers for group in one.param_groups]
    for i, (group, values) in enumerate(zip(groups, planned, strict=False)):
        group.update({key: value for key, value in values.items() if key != "lr"})
        group.update({key: value for key, value in change.settings.items() if key in group})
        rate = values["lr"] * factor * change.group_scales.get(i, 1.0)
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def change_of(trial: Trial) -> Change:
    """Everything that a trial's header says it changes."""
    changes = [standardised(what) for what in trial.standardised]
    if trial.warm_up:
        changes.append(longer_warmup(trial.warm_up))
    if trial.layer:
        changes.append(scaled_layer(trial.layer, trial.layer_scale))
    if trial.group is not None:
        changes.append(scaled_group(trial.group, trial.group_scale))
    if trial.settings:
        changes.append(set_to(trial.settings))
    if trial.perturbed:
        changes.append(perturbed(trial.perturbed, trial.draw))
    return reduce(both, changes, UNCHANGED)


def scaled_layer(layer: str, factor: float) -> Change:
    """Start with one layer's matrices (its other weights where it has none) times `factor`.

    `layer` may also be one parameter, or rows of it: `rnn.weight_hh_l0[32:64]`; or several, with ", " between them.
    """

    def prepare(workload: Workload) -> None:
        layers = layer_modules(workload.model)
        for weights in (one for name in layer.split(", ") for one in _weights(layers, name)):
            weights.mul_(factor)

    return Change(prepare)


def _weights(layers: Mapping[str, torch.nn.Module], name: str) -> Sequence[torch.Tensor]:
    if name not in layers:
        parameter, _, rows = name.partition("[")
        layer, _, leaf = parameter.rpartition(".")
        weights: torch.Tensor = getattr(layers[layer], leaf)
        first, _, last = rows.rstrip("]").partition(":")
        return [weights[int(first) : int(last)] if rows else weights]
    own = dict(layers[name].named_parameters(recurse=False))
    matrices = [one for one in own.values() if one.dim() > 1]
    return matrices or [one for leaf, one in own.items() if "bias" not in leaf]


def perturbed(size: float, seed: int) -> Change:
    """Start with every weight times 1 + `size` × a normal random number, `size` no less than the rounding of its type."""

    def prepare(workload: Workload) -> None:
        noise = torch.Generator().manual_seed(seed)
        for weights in workload.model.parameters():
            if weights.requires_grad and (weights.is_floating_point() or weights.is_complex()):
                share = max(size, torch.finfo(weights.dtype).eps)
                factor = 1 + share * torch.randn(weights.shape, generator=noise)
                weights.mul_(factor.to(weights.device, weights.dtype))

    return Change(prepare)


def scaled_group(group: int, factor: float) -> Change:
    """The learning rate of one parameter group times `factor`; groups are counted over all optimizers."""
    return Change(group_scales={group: factor})


def set_to(settings: Mapping[str, Any]) -> Change:
    """Other settings of the optimizer, as `{"betas": [0.9, 0.999]}`."""
    return Change(settings={key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()})


def standardised(what: str) -> Change:
    """The data with mean 0 and variance 1 in each feature: of what enters a layer, or of the `TARGETS`."""
    return Change(during=standard_targets if what == TARGETS else partial(standard_inputs, layer=what))


def longer_warmup(steps: int) -> Change:
    """Let the learning rate rise in a straight line over the first `steps` steps, below what the plan has."""
    return Change(lr_scale=lambda index: min(1.0, (index + 1) / steps))


def both(one: Change, other: Change) -> Change:
    """Two changes at once."""

    def prepare(workload: Workload) -> None:
        for change in (one, other):
            if change.prepare:
                change.prepare(workload)

    def lr_scale(index: int) -> float:
        return math.prod(change.lr_scale(index) for change in (one, other) if change.lr_scale)

    @contextmanager
    def during(workload: Workload) -> Iterator[None]:
        with ExitStack() as opened:
            for change in (one, other):
                opened.enter_context(change.during(workload))
            yield

    scales, settings = {**one.group_scales, **other.group_scales}, {**one.settings, **other.settings}
    return Change(prepare, lr_scale, scales, settings, during)
