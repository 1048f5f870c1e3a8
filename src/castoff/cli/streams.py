"""The standard streams as a command needs them: there, and able to say any file's name."""

from __future__ import annotations

import codecs
import io
import os
import sys

__all__ = ["prepare"]

_ERRORS = "castoff"


def prepare() -> None:
    """Opens those that this process was started without, and lets stdout write what its encoding cannot say."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None and not _is_open(descriptor):
            _open_null(descriptor)
            setattr(sys, name, open(descriptor, mode, closefd=False))  # noqa: SIM115 - it stays open
    if isinstance(sys.stdout, io.TextIOWrapper):
        codecs.register_error(_ERRORS, _write_out)
        sys.stdout.reconfigure(errors=_ERRORS)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _open_null(descriptor: int) -> None:
    """/dev/null under a standard number, as Go's runtime does: else the next file takes the number, a lock or an image
    perhaps, and the guest's output goes into it."""
    null = os.open(os.devnull, os.O_RDWR)
    if null == descriptor:
        os.set_inheritable(null, True)
    else:
        os.dup2(null, descriptor)
        os.close(null)


def _write_out(error: UnicodeError) -> tuple[str | bytes, int]:
    """A name that is not UTF-8 as its bytes (PEP 383); what the encoding lacks as an escape."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeEncodeError:
        return codecs.lookup_error("backslashreplace")(error)
