"""What a probe is: something measured on a few sampled steps, because it costs too much for every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol


class Emit(Protocol):
    """Takes one measurement a subject; `index` is the time step of an along-time probe."""

    def __call__(
        self, probe: str, subjects: Sequence[str], values: Sequence[float], index: Sequence[int] | None = None
    ) -> None:
        """Add `values[i]` for `subjects[i]`."""
        ...


class Probe(Protocol):
    """Placed for one optimizer step and taken away after it: `begin` before the forward pass, `end` after the step."""

    @property
    def unmeasured(self) -> Mapping[str, str]:
        """Layers that could not be measured, each with the reason."""
        ...

    def begin(self, step: int) -> None:
        """Place hooks, copy what must be compared."""
        ...

    def end(self, step: int, emit: Emit) -> None:
        """Take every hook away and hand on what was measured. Also called after an exception, with nothing to say."""
        ...
