"""The one error for what no source gave."""

from __future__ import annotations

from collections.abc import Mapping

from castoff.errors import CastoffError, NotFound, Unavailable
from castoff.image.digest import Digest

__all__ = ["failure_of"]


def failure_of(pack: Digest, failures: Mapping[str, CastoffError]) -> CastoffError:
    """The error for ``pack``, with each source's name and what it said."""
    if len(failures) == 1:
        ((name, error),) = failures.items()
        if isinstance(error, NotFound):
            return error
        return Unavailable(f"pack {pack} cannot be read from {name}: {error.what}", hint=error.hint)
    told = "; ".join(f"{name}: {error.what}" for name, error in failures.items()) or "there is no source"
    kind = NotFound if failures and all(isinstance(error, NotFound) for error in failures.values()) else Unavailable
    return kind(f"pack {pack} cannot be read from anywhere: {told}")
