"""What is told to somebody whose script is running. Imports neither torch nor numpy."""

from __future__ import annotations

import sys
from contextlib import suppress


def say(text: str) -> None:
    """A line on stderr, unless the script has closed it or taken it away; stdout is the script's own."""
    with suppress(AttributeError, OSError, ValueError):
        sys.stderr.write(text + "\n")
