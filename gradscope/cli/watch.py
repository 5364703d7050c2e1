"""`gradscope watch [RUN]`: follow a run that is being written by another process."""

from __future__ import annotations


def watch_command() -> None:
    """Follow a run that is being recorded."""
