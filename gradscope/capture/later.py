"""Numbers that an accelerator still computes: copied to pinned memory behind the step, and looked at once they arrived."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class Later:
    """Values as they are now, on their way from a device to main memory."""

    def __init__(self, values: torch.Tensor) -> None:
        self._event: Any = None
        if values.device.type != "cuda":
            self._values = values.clone()
        else:
            self._values = values.to("cpu", non_blocking=True)  # pinned
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            self._event.record(torch.cuda.current_stream(values.device))

    @property
    def ready(self) -> bool:
        """Whether they have arrived."""
        return self._event is None or bool(self._event.query())

    def get(self) -> torch.Tensor:
        """The values, in main memory; waits for them where it must."""
        if self._event is not None:
            self._event.synchronize()
        return self._values.cpu()

    def __float__(self) -> float:
        """The only value; waits for it where it must."""
        return float(self.get())


Number = float | Later
"""A number that is known, or will be."""
Numbers = Sequence[float] | Later


def arrived(value: object) -> bool:
    """Whether it can be looked at without waiting for a device."""
    return not isinstance(value, Later) or value.ready


def soon(value: torch.Tensor | float) -> Number:
    """The number, without waiting for the device it is on."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
        return float(value) if value.is_cpu else Later(value)
    return float(value)


def widest(device: torch.device) -> torch.dtype:
    """The widest floating point that the device computes with."""
    return torch.float32 if device.type == "mps" else torch.float64


def gathered(values: Sequence[torch.Tensor | float]) -> Numbers:
    """The numbers, without waiting for the device that some are on."""
    away = next((one.device for one in values if isinstance(one, torch.Tensor) and not one.is_cpu), None)
    if away is None:
        return [float(one) for one in values]
    return Later(
        torch.stack([torch.as_tensor(one, device=away).detach().to(widest(away)).reshape(()) for one in values])
    )


def listed(values: Numbers) -> Sequence[float]:
    """The numbers; waits for them where it must."""
    return values.get().tolist() if isinstance(values, Later) else values
