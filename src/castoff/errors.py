"""Every failure that castoff reports: few codes, classes that carry data, messages that say what to do next.

A message has three parts: *what* failed (and where), *why*, and a *hint*: what the reader can do. Errors of the operating
system, HTTP and subprocesses are translated once, at the I/O edge, with ``raise ... from``.
"""

from __future__ import annotations

import enum

__all__ = [
    "CastoffError",
    "Code",
    "Conflict",
    "DigestMismatch",
    "Internal",
    "Invalid",
    "LimitExceeded",
    "NoSpace",
    "NotFound",
    "Unauthorized",
    "Unavailable",
    "Unsupported",
]


class Code(enum.StrEnum):
    """What kind of failure it is; the CLI maps it to an exit code, the API to an HTTP status."""

    INVALID = "invalid"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    UNAUTHORIZED = "unauthorized"
    UNAVAILABLE = "unavailable"
    UNSUPPORTED = "unsupported"
    NO_SPACE = "no_space"
    INTERNAL = "internal"


class CastoffError(Exception):
    """A failure with a code, for people and for programs.

    Args:
        what: What failed and why, one line, without a full stop at its end.
        hint: What to do about it, one line; empty where nobody can do anything.
    """

    code: Code = Code.INTERNAL

    def __init__(self, what: str, *, hint: str = "") -> None:
        self.what = _one_line(what)
        self.hint = _one_line(hint)
        super().__init__(self.what)

    def __str__(self) -> str:
        return f"{self.what}; {self.hint}" if self.hint else self.what


def _one_line(text: str) -> str:
    """``text`` with what a terminal would act on, or could not show, escaped: names come from images and registries."""
    if text.isprintable():
        return text
    return "".join(part if part.isprintable() else part.encode("unicode_escape").decode("ascii") for part in text)


class Invalid(CastoffError):
    """The input (reference, image, layer, archive, configuration) is broken or hostile."""

    code = Code.INVALID


class LimitExceeded(Invalid):
    """The input is larger than a configured limit allows.

    Args:
        what: What was too large.
        limit: The limit, in the unit that ``what`` names.
        setting: The configuration key that raises it.
    """

    def __init__(self, what: str, *, limit: int, setting: str) -> None:
        super().__init__(f"{what} is over the limit of {limit}", hint=f"raise `{setting}` in the configuration if you trust it")
        self.limit = limit
        self.setting = setting


class DigestMismatch(Invalid):
    """Bytes that do not hash to the digest that names them."""

    def __init__(self, what: str, *, expected: str, actual: str) -> None:
        super().__init__(
            f"{what} should be {expected} and is {actual}",
            hint="its origin or the transfer is broken; nothing was kept, try again or another origin",
        )
        self.expected = expected
        self.actual = actual


class NotFound(CastoffError):
    """The thing named does not exist."""

    code = Code.NOT_FOUND


class Conflict(CastoffError):
    """The thing exists already, or is in use."""

    code = Code.CONFLICT


class Unauthorized(CastoffError):
    """Credentials are missing or were refused."""

    code = Code.UNAUTHORIZED


class Unavailable(CastoffError):
    """A remote or a daemon does not answer; trying later may help."""

    code = Code.UNAVAILABLE


class Unsupported(CastoffError):
    """This host, or this version, cannot do it."""

    code = Code.UNSUPPORTED


class NoSpace(CastoffError):
    """The disk is, or would become, full.

    Args:
        where: The directory or file.
        needed: Bytes needed.
        available: Bytes there are.
    """

    code = Code.NO_SPACE

    def __init__(self, where: str, *, needed: int, available: int) -> None:
        super().__init__(
            f"{where} needs {needed / 1e6:.1f} MB and has {available / 1e6:.1f} MB",
            hint="free space, run `castoff store prune`, or move the state with --state",
        )
        self.where = where
        self.needed = needed
        self.available = available


class Internal(CastoffError):
    """castoff itself is wrong: please report it."""

    code = Code.INTERNAL
