"""What a script itself does to gradients between backward and step, where no function of torch clips them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from gradscope.capture.later import Number
from gradscope.capture.magnitude import l2
from gradscope.capture.recorder import Reading, Recorder
from gradscope.integrations.order import OrderNotes
from gradscope.integrations.sentinels import SAME, Mark, Sentinels, clipped, mark, ratios, unchanged, uniform
from gradscope.runs import events

WHOLE = 1e-6
"""How near to a whole number 1 ÷ ratio must be to call a shrinkage a division, as by a number of micro-batches."""
LARGEST = 1 << 12
"""Divisors beyond it lie too close for float32 to tell them from any other factor, but for powers of two."""
OFTEN, SELDOM = 10, 8
"""Values of a few gradients are compared at each of the first steps, then at each so-many-th."""


class Changes:
    """Compares the gradients of a step before and after what the script does, and sets the reading right.

    `limit`: the L2 norm that the script clips at by hand, NaN where it does not. `reads_after_backward`: whether gradients
    are best read right after the backward pass, since the script shrinks them.
    """

    def __init__(self, recorder: Recorder, order: OrderNotes, measure: Callable[[], Reading]) -> None:
        """`measure` reads the gradients, as they are now."""
        self.limit = math.nan
        self.reads_after_backward = True
        self._recorder, self._order, self._measure = recorder, order, measure
        self._trusts_backward, self._looked = True, False
        self._division, self._alike, self._partial = 1.0, 0, False
        self._marks: Mark = ()
        self._copies: dict[int, torch.Tensor] = {}

    def take_over(self, other: Changes) -> None:
        """Go on with what `other` knows."""
        self.limit, self.reads_after_backward = other.limit, other.reads_after_backward

    @property
    def looks(self) -> bool:
        """Whether values are compared in this step even where no gradient seems to have been written to."""
        step = self._recorder.step
        seldom = self._recorder.away or (math.isnan(self.limit) and not self._partial)
        return step < OFTEN or step % SELDOM == 0 or not seldom

    @property
    def divides(self) -> bool:
        """Whether the script divides its gradients, so that they are read after that."""
        return self._alike > 0

    def begin(self) -> None:
        """Gradients were computed, or a step begins: nothing was done to them yet."""
        self._looked, self._copies = False, {}

    def keep(self, sentinels: Sentinels) -> None:
        """Remember the gradients as the backward pass left them."""
        self._marks, self._copies = mark(self._recorder.tensors), sentinels.copies()

    def look(self, sentinels: Sentinels, scale: Number) -> None:
        """See, once a step, what was done to the gradients, whose values are still multiplied by `scale`."""
        if self._looked or not self._trusts_backward:
            return
        self._looked = True
        now = mark(self._recorder.tensors) if self.looks else self._marks
        if any(old is not None and new is None for old, new in zip(self._marks, now, strict=False)):
            self._partial = True  # the script took gradients away
            self._recorder.take(None)
            return
        found, shrunk = self._found(sentinels, scale, written=now != self._marks)
        if not found or unchanged(found):
            return
        ratio, same = min(found), uniform(found)
        if same and self._is_division(ratio, sentinels):
            self._divided(ratio)
        elif not shrunk or max(found) > 1 + SAME:
            self._changed(ratio)
        elif not self._alike:
            self._clipped(ratio, same)
        elif same and self._is_constant() and ratio < self._division:
            self._clipped(ratio / self._division, same)
        else:
            self._changed(ratio)

    def _is_division(self, ratio: float, sentinels: Sentinels) -> bool:
        """By the nearest whole number, element by element where copies are at hand: a clip too may come near to one."""
        by = round(1 / ratio)
        told_apart = 2 <= by <= LARGEST or by.bit_count() == 1
        return told_apart and abs(1 - ratio * by) < WHOLE and sentinels.divided(self._copies, by)

    def _is_constant(self) -> bool:
        """Whether it is always the same number that is divided by: seen twice, or a power of two, as loss scales are."""
        return self._alike > 1 or math.log2(self._division) % 1 == 0

    def _found(self, sentinels: Sentinels, scale: Number, *, written: bool) -> tuple[list[float], bool]:
        """after ÷ before of the sentinels' norms; of all norms where something else was written to, and on a device, which
        is waited for then. And whether a clip can have done that.
        """
        found = [] if self._recorder.away else self._of_sentinels(sentinels, scale)
        reading = self._recorder.reading
        if not written or reading is None or not unchanged(found):
            return found, sentinels.only_shrunk(self._copies)
        self._recorder.take(None)
        after = self._measure().norms
        self._recorder.take(reading)
        return ratios(dict(enumerate(reading.norms.norm)), dict(enumerate(after.norm))), clipped(reading.norms, after)

    def _of_sentinels(self, sentinels: Sentinels, scale: Number) -> list[float]:
        now, reading = sentinels.norms(), self._recorder.reading
        if reading is None:
            return ratios({i: l2(copy) for i, copy in self._copies.items()}, now)
        return ratios({i: float(reading.norms.norm[i]) * float(scale) for i in now}, now)

    def _divided(self, ratio: float) -> None:
        """The gradients were divided by a number of micro-steps, of samples or of tokens."""
        if not (self._alike or math.isnan(self.limit)):
            self._order.take(events.DIVIDED_LATE, "", 1 / ratio)
        alike = abs(ratio / self._division - 1) <= SAME
        self._division, self._alike = ratio, self._alike + 1 if alike else 1
        self.reads_after_backward = False
        self._recorder.take(None)

    def _changed(self, ratio: float) -> None:
        """What was done to the gradients cannot be told apart: they are read at the step from now on."""
        self._trusts_backward = self.reads_after_backward = False
        self.limit = math.nan
        self._recorder.take(None)
        self._order.take(events.GRADIENTS_CHANGED, "", ratio)

    def _clipped(self, ratio: float, uniform: bool) -> None:
        self._order.take(events.CLIP_BY_HAND, "", ratio)
        reading = self._recorder.reading
        if reading is None:
            after = self._measure()
            reading = after._replace(norms=after.norms.divided(ratio)) if uniform else after
        self.limit = reading.global_norm * ratio if uniform else math.nan
        self._recorder.take(reading)
        self.reads_after_backward = not self._alike
