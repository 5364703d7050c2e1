"""Replaces functions of others for a while, and puts every one back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any, TypeVar

T = TypeVar("T")

_ABSENT = object()


class Patches:
    """A stack of replacements; `undo` takes them back in reverse order, whatever else was replaced since."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def attribute(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """Replace `owner.name` by `make(original)`; nothing happens where there is no such name."""
        original = getattr(owner, name, _ABSENT)
        if original is _ABSENT:
            return
        own = name in vars(owner)
        setattr(owner, name, make(original))
        self._undo.append(lambda: setattr(owner, name, original) if own else delattr(owner, name))

    def wrapped(self, function: Any, make: Callable[[Any], Any]) -> bool:
        """Replace what a decorated function calls, so that every name it was imported by calls the replacement.

        Works on a wrapper that holds the original in a closure cell named `func`. False: it does not.
        """
        names = getattr(getattr(function, "__code__", None), "co_freevars", ())
        if "func" not in names:
            return False
        cell = function.__closure__[names.index("func")]
        original = cell.cell_contents
        cell.cell_contents = make(original)
        self._undo.append(lambda: setattr(cell, "cell_contents", original))
        return True

    def handle(self, handle: Any) -> None:
        """Remember a hook that `handle.remove()` takes away."""
        self._undo.append(handle.remove)

    def entered(self, context: AbstractContextManager[T]) -> T:
        """Enter a context that `undo` leaves; what it gives."""
        stack = ExitStack()
        self._undo.append(stack.close)
        return stack.enter_context(context)

    def undo(self) -> None:
        """Put everything back; a second call does nothing."""
        while self._undo:
            self._undo.pop()()
