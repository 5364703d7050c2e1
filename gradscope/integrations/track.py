"""One training inside a script: a recorder, and what is known about the step it is in."""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from gradscope.capture.describe import describe_optimizer
from gradscope.capture.later import Number, gathered
from gradscope.capture.offender import Broken, Origin, origin_at, say_what_went_first
from gradscope.capture.recorder import Reading, Recorder, learning_rates
from gradscope.integrations.changes import OFTEN, Changes
from gradscope.integrations.holdings import Holdings, held
from gradscope.integrations.order import OrderNotes
from gradscope.integrations.sentinels import Mark, Sentinels, mark
from gradscope.runs import events
from gradscope.runs.schema import Ending


class Track:
    """Turns what a script does into the verbs of its recorder. One row a step, read before anything clips it."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._references: list[weakref.ref[torch.optim.Optimizer]] = []
        self.parameters = recorder.places
        self.holdings = Holdings()
        self.order = OrderNotes(self._note)
        self.sentinels = Sentinels(recorder.tensors, recorder.header.parameters)
        self.changes = Changes(recorder, self.order, self._measure)
        self.scale: Number = 1.0
        self.loss_scale: Number | None = None
        self.inside_closure = False
        self._usual_micro_steps = 1
        self._before: Mark = ()
        self._after: Mark = ()
        self._at_end: Mark = ()
        self._apart = False
        self._stale = self._kept = self._skips = False
        self._rates: dict[int, list[Any]] = {}
        self._clipped = self._clips = False
        self._stepped: set[int] = set()
        self._hooked = False
        self._spare: list[int] = []
        self._origin: Origin | None = None

    def _note(self, event: str, subject: str, value: float, back: int) -> None:
        self.recorder.probe(event, [subject], [value], step=max(0, self.recorder.step - back))

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Those that are still alive, in the order of the `lr` column."""
        return [one for reference in self._references if (one := reference()) is not None]

    @property
    def due(self) -> bool:
        """Whether this step is one of those that are recorded."""
        return self.recorder.step % self.recorder.every == 0

    def join(self, optimizer: torch.optim.Optimizer) -> None:
        """One more optimizer steps this training."""
        self._references.append(weakref.ref(optimizer))
        self.holdings.forget(optimizer)
        used = {id(p) for one in self.optimizers for p in held(one)}
        self._spare = [place for key, place in self.parameters.items() if key not in used]
        self._say_which_are_trained()
        self._say_what_it_holds(optimizer)

    def _say_which_are_trained(self) -> None:
        known = self.recorder.header.parameters
        trained = [p.requires_grad and i not in self._spare for i, p in enumerate(self.recorder.tensors)]
        if trained != [parameter.trainable for parameter in known]:
            changed = tuple(dataclasses.replace(p, trainable=now) for p, now in zip(known, trained, strict=True))
            self.recorder.update_header(parameters=changed)

    def _say_what_it_holds(self, optimizer: torch.optim.Optimizer) -> None:
        """Groups with parameters that none held before, as where a part is trained from later on."""
        known, more = self.recorder.header.optimizer, describe_optimizer([optimizer], self.parameters)
        if known is None or more is None:
            return
        before = {place for group in known.groups for place in group.parameters}
        new = tuple(group for group in more.groups if not before.issuperset(group.parameters))
        if new:
            self.recorder.update_header(optimizer=dataclasses.replace(known, groups=(*known.groups, *new)))

    def replace(self, swaps: dict[int, torch.Tensor]) -> None:
        """Parameters, by their ids, gave their places to others."""
        places = {self.parameters[key]: tensor for key, tensor in swaps.items()}
        names = [self.recorder.header.parameters[place].name for place in places]
        self.recorder.replace(places)
        self.order.forget()
        self.sentinels = Sentinels(self.recorder.tensors, self.recorder.header.parameters, self.sentinels.live)
        note = "were replaced by the script and go on under these names."
        notes = self.recorder.header.notes
        if not any(note in one for one in notes):
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            self.recorder.update_header(notes=(*notes, f"from step {self.recorder.step}, {names[0]}{more} {note}"))

    @property
    def left_out(self) -> list[torch.optim.Optimizer]:
        """Optimizers that did not step at the very first step, though they were given gradients with the others."""
        return self._waiting() if self._stepped and not self.recorder.step else []

    def take_over(self, other: Track) -> None:
        """Go on with the step that `other` is in, which was begun with more parameters than belong to it."""
        places = [other.parameters[key] for key in self.parameters]
        other.recorder.hand_on(self.recorder, places)
        reading = self.recorder.reading
        live = None if reading is None else np.flatnonzero(reading.norms.present)
        self.sentinels = Sentinels(self.recorder.tensors, self.recorder.header.parameters, live)
        self.order.micro_step, self._usual_micro_steps = other.order.micro_step, other._usual_micro_steps
        self._stepped, self._hooked, self._clips, self._apart = other._stepped, True, other._clips, other._apart
        self.changes.take_over(other.changes)

    def before_backward(self) -> None:
        """Gradients are about to be computed, perhaps of this training."""
        if self.inside_closure:
            return
        if self._stepped:
            self.finish_step()
        elif self.order.micro_step and self.sentinels.gone:
            self._abandon()
        self._before = self._mark()
        same = self._hooked and any(self._before) and self._before == self._at_end
        self._stale = same and not self.order.micro_step and not self.sentinels.gone

    def blame(self, origin: Broken | None) -> None:
        """What was nonfinite first in this backward pass, None where that is unknown."""
        self._origin = self._origin or origin_at(self.recorder, origin)

    def after_backward(self, loss: torch.Tensor | float | None, scale: Number, batch: int | None) -> bool:
        """Gradients were computed: False if they were of another training. `scale`: what they are multiplied by.

        `loss`: None where it is unknown.
        """
        if self.inside_closure or (now := self._mark()) == self._before:
            return False
        if not self.order.micro_step:
            self._kept = self._stale
        self._apart = self._apart or (self._wide and self.sentinels.spared(self._before, now))
        self._after = now
        self.order.backward()
        self.scale, self.loss_scale = scale, scale if scale != 1.0 else None
        self.recorder.take(None)
        self._clipped = False
        self.changes.begin()
        if self.due:
            self.recorder.observe(loss, batch=batch)
            if self._reads_now():
                self._measure()
            if self.changes.looks and not self._clips:
                self.changes.keep(self.sentinels)
        return True

    def _reads_now(self) -> bool:
        """Whether gradients are read before the script does anything to them: it may throw nonfinite ones away."""
        if self.changes.divides:
            return not all(map(math.isfinite, self.sentinels.norms().values()))
        return self.changes.reads_after_backward and self._whole

    def doubt(self) -> None:
        """Gradients were computed that the sentinels saw nothing of, perhaps here: all are watched, and read again."""
        if not (self.inside_closure or self._wide):
            self._apart = True
            self._after = self._mark()
            if not self._clipped:
                self.recorder.take(None)

    @property
    def _wide(self) -> bool:
        """Whether all gradients are watched in this step."""
        return self._apart or self.recorder.step < OFTEN

    def _mark(self) -> Mark:
        """Changes when a gradient is written to: any, at first and where some backward pass spares the sentinels."""
        return mark(self.recorder.tensors) if self._wide else self.sentinels.mark()

    def _measure(self) -> Reading:
        return self.recorder.measure(scale=self.scale, loss_scale=self.loss_scale)

    def gradients(self) -> set[int]:
        """The ids of its gradients."""
        return {id(tensor.grad) for tensor in self.recorder.tensors if tensor.grad is not None}

    def forget_stale(self) -> None:
        """Forget a reading of this step if the script has changed the gradients since, other than by clipping."""
        changed = self.recorder.step < OFTEN or self._mark() != self._after  # `.data` is written to unseen
        if self.recorder.reading is not None and not self._clipped and changed:
            self.recorder.take(None)

    def before_clip(self, tensors: Sequence[torch.Tensor], limit: float, raises: bool) -> None:
        """The script is about to clip the gradients of `tensors`, which it set itself if no backward pass made them."""
        self.forget_stale()
        if not self.order.micro_step and self._set_by_hand():
            self.order.backward()
            self._after = self._mark()
        self.order.clip(limit, self.sentinels, self.scale, raises)
        self.order.covers(tensors)

    def _set_by_hand(self) -> bool:
        """Whether gradients were written since the last step, and are not zero."""
        return self._mark() != self._at_end and not self.sentinels.gone

    def read(self, limit: float = math.nan) -> Reading | None:
        """Read the gradients now, unless that was done since the last backward, and note the threshold."""
        if not self.due:
            return None
        reading = self.recorder.reading or self._measure()
        if not math.isnan(limit):
            reading = reading._replace(max_norm=limit)
        self.recorder.take(reading)
        return reading

    def clipped(self) -> None:
        """A function of torch has clipped the gradients."""
        self._clipped = self._clips = True
        self.changes.reads_after_backward = False
        if not self.order.micro_step:
            self._at_end = self._mark()
        if (reading := self.recorder.reading) is None:
            return
        if self.loss_scale is not None:
            reading = reading._replace(scale=self.loss_scale)
        if not self.order.covers_all(self._live):
            reading = reading._replace(max_norm=math.nan)
        self.recorder.take(reading)

    def _live(self) -> set[int]:
        """The ids of the parameters that have a gradient which is used."""
        spare = set(self._spare)
        return {id(p) for i, p in enumerate(self.recorder.tensors) if p.grad is not None and i not in spare}

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer is about to use the gradients."""
        if self._clipped and not self._stepped:
            self.order.step(optimizer, self._name)
        if not (self.order.micro_step or self._stepped) and self._set_by_hand():
            self.order.take(events.GRADIENTS_SET, "", 0.0)
        if not self.due:
            return
        if not self._clipped and (self.changes.looks or self._mark() != self._after):
            self.changes.look(self.sentinels, self.scale)
        self.read(math.nan if self._clipped else self.changes.limit)

    def after_step(self, optimizer: torch.optim.Optimizer, *, skipped: Number = False) -> None:
        """The optimizer has used them, or a gradient scaler has kept it from that."""
        self._hooked = True
        self._stepped.add(id(optimizer))
        if len(self._references) > 1:
            rates = learning_rates(optimizer)
            self._rates[id(optimizer)] = [one.clone() if isinstance(one, torch.Tensor) else one for one in rates]
        if not any(p.grad is not None for one in self._waiting() for p in held(one)):
            self.finish_step(skipped=skipped)

    def scheduled(self, optimizer: torch.optim.Optimizer) -> None:
        """A learning-rate scheduler of `optimizer` moved on."""
        if id(optimizer) not in self._stepped:
            self.order.schedule()

    def _waiting(self) -> list[torch.optim.Optimizer]:
        """Optimizers that have not stepped, and whose parameters none has that did."""
        if len(self._stepped) == len(self._references):
            return []
        waiting = [one for one in self.optimizers if id(one) not in self._stepped]
        stepped = {id(p) for one in self.optimizers if id(one) in self._stepped for p in held(one)}
        return [one for one in waiting if not any(id(p) in stepped for p in held(one))]

    def stepped_unseen(self) -> None:
        """A compiled step may have used the gradients since the last backward."""
        if self.order.micro_step and self.recorder.reading is not None:
            self.finish_step()

    def finish_step(self, *, skipped: Number = False) -> None:
        """Write the row."""
        if self._kept:
            self.order.take(events.GRADIENTS_KEPT, "", 0.0)
        if not self.recorder.step and (hooked := sum(bool(p._backward_hooks) for p in self.recorder.tensors)):
            self.order.take(events.GRADIENT_HOOKS, "", hooked)
        self.order.note_parts()
        rates = gathered([rate for one in self.optimizers for rate in self._rates.get(id(one)) or learning_rates(one)])
        if self._spare and self.due:
            self._leave_out_unused()
        if self.changes.looks:
            self.sentinels.follow(self.recorder.reading)
        self.recorder.finish_step(skipped=skipped, lr=rates)
        if self._origin is not None:
            say_what_went_first(self.recorder, self._origin)
            self._origin = None
        self._usual_micro_steps = max(1, self.order.micro_step)
        self._begin()

    def _leave_out_unused(self) -> None:
        """Gradients that no optimizer uses and no clipping covers are no part of the step, and may be of many steps."""
        used = self.order.clipped.union(*(map(id, held(one)) for one in self.optimizers))
        self._spare = [place for key, place in self.parameters.items() if key not in used]
        if (reading := self.read()) is not None:
            self.recorder.take(reading._replace(norms=reading.norms.without(self._spare)))

    def close(self, ending: Callable[[int], Ending] | None = None) -> None:
        """Write what is left and how it ended; `ending` is told the steps taken.

        A step that was clipped or became nonfinite, or in which the script failed, and that was not taken, is the one that
        the script stops at; where it skipped nonfinite steps before, another such.
        """
        reading, unseen = self.recorder.reading, not self._hooked and (self.recorder.step or not self._references)
        failed = ending is not None and ending(self.recorder.step).how == "failed" and self._whole
        if self._stepped or (reading is not None and (unseen or self._clipped or failed or reading.broken)):
            broken = reading is not None and reading.broken
            self.finish_step(skipped=broken and self._hooked and not self._stepped and self._skips)
        self.recorder.close(ending(self.recorder.step) if ending else None)

    @property
    def _whole(self) -> bool:
        """Whether as many backward passes came as a step has."""
        return self.order.micro_step >= self._usual_micro_steps

    def _begin(self) -> None:
        self.order.end_step()
        self._stepped, self._clipped, self.inside_closure, self._kept = set(), False, False, False
        self.changes.begin()
        self.scale, self.loss_scale = 1.0, None
        self._rates = {}
        self._at_end = self._mark()

    def _abandon(self) -> None:
        """The gradients were thrown away. Where no optimizer steps that is how a step ends; else it was left out."""
        reading, by_hand = self.recorder.reading, not self._hooked and (self._clipped or not self._references)
        if reading is not None and (by_hand or reading.broken):
            self._skips = self._skips or self._hooked
            self.finish_step(skipped=self._hooked)
        else:
            self.recorder.abandon()
            self._begin()

    def _name(self, tensor: torch.Tensor) -> str:
        place = self.parameters.get(id(tensor))
        return "a parameter" if place is None else self.recorder.header.parameters[place].name
