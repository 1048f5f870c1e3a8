"""Exit codes, and how a failure becomes one line on stderr; docs/cli.md lists the codes."""

from __future__ import annotations

import enum
import signal

from castoff.errors import CastoffError, Code

__all__ = ["Exit", "Signalled", "code_of", "line_of", "printable", "signalled"]


class Exit(enum.IntEnum):
    """What ``castoff`` ends with; ``castoff run`` hands on the command's own code and says RUN_FAILED for itself."""

    OK = 0
    NO = 1
    """The command worked and its answer is no: something is damaged or missing."""
    USAGE = 2
    NOT_FOUND = 3
    INVALID = 4
    UNAVAILABLE = 5
    UNAUTHORIZED = 6
    NO_SPACE = 7
    UNSUPPORTED = 8
    CONFLICT = 9
    INTERNAL = 70
    """EX_SOFTWARE of sysexits.h."""
    RUN_FAILED = 125
    """As ``docker run``: castoff itself failed, the image's command never ran or was lost."""


_CODES = {
    Code.INVALID: Exit.INVALID,
    Code.NOT_FOUND: Exit.NOT_FOUND,
    Code.CONFLICT: Exit.CONFLICT,
    Code.UNAUTHORIZED: Exit.UNAUTHORIZED,
    Code.UNAVAILABLE: Exit.UNAVAILABLE,
    Code.UNSUPPORTED: Exit.UNSUPPORTED,
    Code.NO_SPACE: Exit.NO_SPACE,
    Code.INTERNAL: Exit.INTERNAL,
}


def signalled(number: int) -> int:
    """The exit code of a process that a signal ended, as shells have it."""
    return 128 + number


class Signalled(Exception):
    """A signal ended the command; everything it began was undone."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = signalled(number)


def code_of(error: BaseException) -> int:
    """The exit code for a failure."""
    if isinstance(error, CastoffError):
        return _CODES[error.code]
    if isinstance(error, KeyboardInterrupt):
        return signalled(signal.SIGINT)
    if isinstance(error, BrokenPipeError):
        return signalled(signal.SIGPIPE)
    return Exit.INTERNAL


def line_of(error: BaseException) -> str:
    """One line that says what failed and what to do. Never more: names from images may hold line feeds and escapes."""
    if isinstance(error, CastoffError):
        return printable(str(error))
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return printable(f"{where}{error.strerror}; --debug shows where")
    said = str(error) or "no message"
    return printable(
        f"unexpected {type(error).__name__}: {said}; this is castoff's own fault, --debug shows the traceback to report"
    )


def printable(text: str) -> str:
    """``text`` on one line, with control characters written out, so that no image's name can steer a terminal."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
