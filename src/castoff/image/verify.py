"""Checks a stream against its descriptor: digest and size, as the bytes go by."""

from __future__ import annotations

import hashlib

from castoff.errors import DigestMismatch, Invalid
from castoff.image.digest import Digest

__all__ = ["Verifier", "check"]


class Verifier:
    """Hashes and counts a blob; nothing of it may be used for good before ``finish`` returned.

    hashlib lets go of the GIL for pieces over 2 KiB, so a verifier belongs in the thread that handles the bytes.

    Args:
        what: What is checked, for the error's message.
        digest: The sha256 that the whole must have.
        size: The bytes that the whole must have.
    """

    __slots__ = ("_digest", "_hash", "_size", "_what", "seen")

    def __init__(self, what: str, digest: Digest, size: int) -> None:
        self._what = what
        self._digest = digest
        self._size = size
        self._hash = hashlib.sha256()
        self.seen = 0

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Takes the next bytes.

        Raises:
            Invalid: They are more than the size allows.
        """
        self.seen += data.nbytes if isinstance(data, memoryview) else len(data)
        if self.seen > self._size:
            raise Invalid(f"{self._what} is longer than the {self._size} bytes that its manifest says")
        self._hash.update(data)

    def finish(self) -> None:
        """The stream has ended.

        Raises:
            Invalid: It was shorter than its size.
            DigestMismatch: Its bytes are others than the digest says.
        """
        if self.seen != self._size:
            raise Invalid(f"{self._what} ended after {self.seen} of the {self._size} bytes that its manifest says")
        actual = self._hash.hexdigest()
        if actual != self._digest.hex:
            raise DigestMismatch(self._what, expected=str(self._digest), actual=f"sha256:{actual}")


def check(what: str, data: bytes, digest: Digest, size: int | None = None) -> bytes:
    """``data`` itself, once it is known to have the digest (and size, where one is given); raises as a Verifier does."""
    verifier = Verifier(what, digest, len(data) if size is None else size)
    verifier.update(data)
    verifier.finish()
    return data
