"""What ends a recording while the script goes on: an error of ours, or threads that train at once."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from gradscope.integrations.session import Session

F = TypeVar("F", bound=Callable[..., Any])

GRAPHS = torch.backends.cuda.is_built()  # type: ignore[no-untyped-call]  # torch leaves it untyped
"""Whether this torch knows CUDA graphs."""


class CannotRecordError(Exception):
    """Raised where a training cannot be recorded; its text is the reason."""


AT_ONCE = "it trains in several threads at once, whose steps cannot be told apart"


def guarded(method: F) -> F:
    """An error of ours ends the recording, with one line on stderr; the script goes on."""

    @functools.wraps(method)
    def call(self: Session, *args: Any, **kwargs: Any) -> Any:
        if not self.armed or (GRAPHS and self.captures()):
            return None
        try:
            return method(self, *args, **kwargs)
        except CannotRecordError as error:
            self.disarm(str(error))
        except Exception as error:
            self.disarm(self.threads.reason(f"{type(error).__name__}: {error}"))
        return None

    return call  # type: ignore[return-value]  # the wrapper has the method's own signature


class Threads:
    """The threads that train."""

    def __init__(self) -> None:
        self._now: threading.Thread | None = None
        self._before: set[threading.Thread | None] = set()

    def returned(self) -> bool:
        """Whether this thread, which trains now, trained before another one did."""
        now = threading.current_thread()
        if now is not self._now:
            self._before.add(self._now)
            self._now = now
        return now in self._before

    def reason(self, otherwise: str) -> str:
        """Why recording has to stop: several threads that trained are still alive, or what is known `otherwise`."""
        alive = [one for one in {self._now, *self._before} if one is not None and one.is_alive()]
        return AT_ONCE if len(alive) > 1 else otherwise
