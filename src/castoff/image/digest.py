"""Content digests, as OCI writes them: ``sha256:<64 lower-case hex digits>``."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from castoff.errors import Invalid

__all__ = ["Digest"]

_SHA256 = re.compile(r"sha256:([0-9a-f]{64})\Z")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A sha256 digest; the only algorithm that castoff accepts from the outside."""

    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Reads ``sha256:<hex>``.

        Raises:
            Invalid: The text is not a sha256 digest.
        """
        match = _SHA256.match(text)
        if match is None:
            raise Invalid(f"{text[:100]!r} is not a sha256 digest", hint="write sha256: and 64 hex digits")
        return cls(match[1])

    @classmethod
    def of(cls, data: bytes | memoryview) -> Digest:
        """The digest of ``data``."""
        return cls(hashlib.sha256(data).hexdigest())

    def __str__(self) -> str:
        return f"sha256:{self.hex}"
