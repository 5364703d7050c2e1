"""Every error gradscope raises on purpose.

    GradscopeError                exit 4   base class; raised itself only for our own bugs
    ├── UsageError                exit 2   a wrong argument or option
    │   ├── ConfigError                    an unknown or ill-typed configuration key
    │   ├── SpecError                      a spec file that cannot be read into a workload
    │   ├── RunNotFoundError               no run by that path, id or prefix
    │   └── RunFormatError                 a damaged or foreign run directory, or one of a newer schema
    ├── UserCodeError             exit 3   the user's own code raised; its traceback is kept
    └── NothingMeasuredError      exit 5   a run without one usable gradient norm

A message says what was found, where, and what to do. `ScriptInterrupted` is none of them: Ctrl-C ended a recorded script.
"""

from __future__ import annotations


class GradscopeError(Exception):
    """Base class of every error raised on purpose."""

    exit_code = 4


class UsageError(GradscopeError):
    """A wrong argument or option."""

    exit_code = 2


class ConfigError(UsageError):
    """An unknown or ill-typed configuration key."""


class SpecError(UsageError):
    """A spec file that cannot be read into a workload."""


class RunNotFoundError(UsageError):
    """No run by that path, id or prefix."""


class RunFormatError(UsageError):
    """A damaged or foreign run directory, or one of a newer schema."""


class UserCodeError(GradscopeError):
    """The user's own code raised; `__cause__` is its exception.

    `run_path` names the partial run that was kept, if there is one.
    """

    exit_code = 3

    def __init__(self, message: str, *, run_path: str | None = None) -> None:
        super().__init__(message)
        self.run_path = run_path


class NothingMeasuredError(GradscopeError):
    """A run without one usable gradient norm."""

    exit_code = 5


class ScriptInterrupted(Exception):  # noqa: N818  # no error
    """Ctrl-C ended the script that was recorded, which has been shown: what is left is to end as python does."""
