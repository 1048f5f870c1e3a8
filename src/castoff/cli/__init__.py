"""The ``castoff`` command: one module a subcommand, imported when it is run."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code; nothing ever leaves as a traceback unless ``--debug`` asks.

    Args:
        arguments: The words after ``castoff``; those of this process by default.
    """
    entered = time.monotonic()
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Interruption is guarded from here on: imports take a tenth of a second, and Ctrl-C in them is no traceback either.
    try:
        from castoff.cli.app import execute
        from castoff.cli.streams import prepare

        prepare()
    except KeyboardInterrupt:
        return 130
    return execute(words, entered=entered)
