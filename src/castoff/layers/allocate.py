"""Room in a file: reserved before it is written, given back as holes (fallocate(2), for which Python has no call)."""

from __future__ import annotations

import ctypes

__all__ = ["punch", "reserve"]

_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def reserve(descriptor: int, start: int, length: int) -> int:
    """Sees to it that a range has blocks; the file stays as long as it is. 0, or the errno that the system gives."""
    return _fallocate(descriptor, _KEEP_SIZE, start, length)


def punch(descriptor: int, start: int, length: int) -> int:
    """Makes a range a hole. 0, or the errno that the system gives."""
    return _fallocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, start, length)


def _fallocate(descriptor: int, mode: int, start: int, length: int) -> int:
    return 0 if _libc.fallocate(descriptor, mode, start, length) == 0 else ctypes.get_errno()
