"""Notices when a training does things in the wrong order. It only takes notes; rules judge them from the file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from gradscope.capture.later import Number
from gradscope.integrations.sentinels import Sentinels
from gradscope.runs import events

MOST = 1000
"""Notes of one kind after which no more are taken, so that the file stays bounded."""

Note = Callable[[str, str, float, int], None]


class OrderNotes:
    """What happened since the last step of one training. `note(event, subject, value, back)` notes it, `back` steps ago."""

    def __init__(self, note: Note) -> None:
        self._note, self._taken = note, Counter[str]()
        self.micro_step = 0
        self._clipped_at: tuple[int, float] | None = None
        self._stepped = False
        self._parts: list[tuple[int, int, int]] = []
        self._known: dict[tuple[int, int, int], set[int]] = {}
        self._complete: set[tuple[Any, ...]] = set()
        self._whole: set[tuple[int, int, int]] = set()

    def backward(self) -> None:
        """Gradients were computed."""
        if self._clipped_at is not None:
            self.take(events.CLIP_MICRO_BATCH, "", self._clipped_at[0])
        self._clipped_at = None
        self.micro_step += 1

    def clip(self, limit: float, sentinels: Sentinels, scale: Number, raises: bool) -> None:
        """The training is about to clip at `limit`. `scale`: what its gradients are still multiplied by."""
        if self.micro_step == 0:
            late = self._stepped and not sentinels.gone
            self.take(events.CLIP_AFTER_STEP if late else events.CLIP_BEFORE_BACKWARD, "", limit, back=int(late))
        else:
            self._clipped_at = (self.micro_step - 1, limit)
        if scale != 1.0:
            self.take(events.CLIP_SCALED, "", float(scale))
        if not limit > 0 or math.isnan(limit):
            self.take(events.CLIP_LIMIT, "", limit)
        if raises:
            self.take(events.CLIP_RAISES, "", limit)

    def covers(self, clipped: Sequence[torch.Tensor]) -> None:
        """These were clipped; several calls before one step add up."""
        key = (len(clipped), id(clipped[0]), id(clipped[-1])) if clipped else (0, 0, 0)
        self._parts.append(key)
        if key not in self._known:
            self._known[key] = {id(one) for one in clipped}

    def covers_all(self, live: Callable[[], set[int]]) -> bool:
        """Whether the clipping calls of this step all have the same gradients, and those are all that are `live`."""
        parts = set(self._parts)
        if len(parts) == 1 and not parts <= self._whole and live() <= self.clipped:
            self._whole |= parts
        return len(parts) == 1 and parts <= self._whole

    def note_parts(self) -> None:
        """The step is about to be written: note that it was clipped in several parts."""
        if (parts := len(set(self._parts))) > 1:
            self.take(events.CLIP_PARTS, "", parts)

    @property
    def clipped(self) -> set[int]:
        """The ids of what was clipped since the last step."""
        return set[int]().union(*(self._known[part] for part in self._parts))

    def step(self, optimizer: torch.optim.Optimizer, name_of: Callable[[torch.Tensor], str]) -> None:
        """The optimizer is about to use its gradients."""
        parts = (id(optimizer), *self._parts)
        if not self._parts or parts in self._complete:
            return
        clipped = self.clipped
        held = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if left := [tensor for tensor in held if id(tensor) not in clipped]:
            self.take(events.CLIP_SUBSET, name_of(left[0]), len(left))
        else:
            self._complete.add(parts)

    def forget(self) -> None:
        """The parameters are others now."""
        self._known, self._complete, self._whole = {}, set(), set()

    def schedule(self) -> None:
        """A learning-rate scheduler moved on."""
        if self.micro_step:
            self.take(events.SCHEDULE_BEFORE_STEP, "", 0.0)

    def end_step(self) -> None:
        """The step is over."""
        self.micro_step, self._clipped_at, self._stepped = 0, None, True
        self._parts = []

    def take(self, event: str, subject: str, value: float, *, back: int = 0) -> None:
        """Write one note, unless there are very many of its kind already."""
        self._taken[event] += 1
        if self._taken[event] <= MOST:
            self._note(event, subject, value, back)
