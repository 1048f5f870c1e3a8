"""Ed25519 keys: how they are written, and the one that this host signs with.

A public key is written ``castoff-ed25519:`` and its 32 bytes in URL-safe base64 without padding; people compare its
*fingerprint*, the first 16 hex digits of the sha256 of those bytes. ``STATE/keys/host.key`` holds
``castoff-ed25519-private:`` and the 32 bytes of the private key in the same way; it is made when it is first needed. A fleet
that wants to be one signer puts the same file on each of its hosts.

Source: RFC 8032. The library is imported in the functions that compute: a warm ``castoff run`` has no use for it.
"""

from __future__ import annotations

import binascii
import contextlib
import fcntl
import hashlib
import os
import stat
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from castoff.errors import CastoffError, Invalid, Unauthorized, Unavailable
from castoff.store.durable import replace_file

__all__ = [
    "KEY_PREFIX",
    "HostKey",
    "PublicKey",
    "alone",
    "check_directories",
    "decode_signature",
    "encode_signature",
    "find_host_key",
    "host_key",
    "keys_directory",
    "read_own_file",
]

KEY_PREFIX: Final = "castoff-ed25519:"
PRIVATE_PREFIX: Final = "castoff-ed25519-private:"

_SIZE = 32
_SIGNATURE_SIZE = 64
_FILE_LIMIT = 4096
_P = 2**255 - 19
_ORDER_8 = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_SMALL_ORDER = frozenset({0, 1, _P - 1, _ORDER_8, _P - _ORDER_8})


@dataclass(frozen=True, slots=True, order=True)
class PublicKey:
    """A key that signatures are checked with."""

    raw: bytes

    @classmethod
    def parse(cls, text: str) -> PublicKey:
        """Reads ``castoff-ed25519:...``.

        Raises:
            Invalid: It is none, or one whose signatures prove nothing.
        """
        raw = _decode(text.strip(), KEY_PREFIX)
        if raw is None:
            hint = "that is a private key: it stays where it is" if text.strip().startswith(PRIVATE_PREFIX) else ""
            raise Invalid(
                f"{text[:100]!r} is not a key", hint=hint or f"keys begin with {KEY_PREFIX}; `castoff key show` prints one"
            )
        if (int.from_bytes(raw, "little") & (2**255 - 1)) % _P in _SMALL_ORDER:
            # Anyone can sign for such a point: a multiple of it by the hash of the message is one of eight values.
            raise Invalid(f"{text.strip()} is no key that anybody owns", hint="anybody could sign for it; refused")
        return cls(raw)

    @property
    def fingerprint(self) -> str:
        """16 hex digits, for people to compare."""
        return hashlib.sha256(self.raw).hexdigest()[:16]

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether ``signature`` is this key's for ``message``."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except InvalidSignature:
            return False
        return True

    def __str__(self) -> str:
        return KEY_PREFIX + _encode(self.raw)


@dataclass(frozen=True, slots=True)
class HostKey:
    """The key that this host signs with."""

    private: bytes = field(repr=False)
    public: PublicKey

    @classmethod
    def of(cls, private: bytes) -> HostKey:
        """The key of 32 private bytes."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        public = Ed25519PrivateKey.from_private_bytes(private).public_key()
        return cls(private, PublicKey(public.public_bytes(Encoding.Raw, PublicFormat.Raw)))

    def sign(self, message: bytes) -> bytes:
        """The 64 bytes of its signature; the same each time (RFC 8032 takes no random numbers)."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return Ed25519PrivateKey.from_private_bytes(self.private).sign(message)


def keys_directory(state: Path) -> Path:
    """Where keys are: ``host.key``, and those that are trusted in ``trusted/``."""
    return state / "keys"


def host_key(state: Path) -> HostKey:
    """This host's key; made, once, where there is none. Blocks.

    Raises:
        Unauthorized: Others may read or replace it.
        Invalid: Its file is broken.
        Unavailable: It cannot be read or written.
    """
    found = find_host_key(state)
    if found is not None:
        return found
    directory = keys_directory(state)
    with alone(directory):
        found = find_host_key(state)  # of any number of processes one makes it
        if found is not None:
            return found
        for stale in directory.glob(".host.key.*"):  # of a process that was killed between writing and naming it
            stale.unlink()
        made = HostKey.of(os.urandom(_SIZE))
        replace_file(directory / "host.key", f"{PRIVATE_PREFIX}{_encode(made.private)}\n".encode(), mode=0o600)
        return made


def find_host_key(state: Path) -> HostKey | None:
    """This host's key; None where none was made yet; raises as :func:`host_key`."""
    path = keys_directory(state) / "host.key"
    text = read_own_file(state, path, secret=True)
    if text is None:
        return None
    private = _decode(text.strip(), PRIVATE_PREFIX)
    if private is None:
        raise Invalid(f"{path} is not a private key", hint="restore it from a backup, or remove it and trust the new one")
    return HostKey.of(private)


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Nobody else changes the keys while the block runs; makes the directory. What the disk refuses becomes an error here."""
    try:
        directory.parent.mkdir(mode=0o711, parents=True, exist_ok=True)  # the state directory, as the store makes it
        directory.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # held for microseconds, so nobody waits long
            yield
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _unreadable(Path(error.filename or directory), error) from error


def read_own_file(state: Path, path: Path, *, secret: bool = False) -> str | None:
    """A small file that decides who is trusted, so one that only its owner or root may change; None: it is not there.

    Args:
        state: The state directory.
        path: The file, somewhere in :func:`keys_directory`.
        secret: Others may not even read it.

    Raises:
        Unauthorized: Others may.
        Invalid: It is no small text file.
        Unavailable: The disk does not give it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(path, error) from error
    with os.fdopen(descriptor, "rb") as file:
        _check_owner(path, os.fstat(descriptor), secret=secret)
        check_directories(state, path.parent)
        data = file.read(_FILE_LIMIT + 1)
    if len(data) > _FILE_LIMIT or not data.isascii():
        raise Invalid(f"{path} is not a key's file", hint="one line with a key, and perhaps its name")
    return data.decode("ascii")


def check_directories(state: Path, directory: Path) -> None:
    """Raises Unauthorized where others may put files into ``directory`` or one above it, up to :func:`keys_directory`."""
    for above in (directory, *directory.parents):
        if above == state:
            return
        _check_owner(above, above.stat())


def _check_owner(path: Path, status: os.stat_result, *, secret: bool = False) -> None:
    if status.st_uid not in (0, os.geteuid()):
        raise Unauthorized(f"{path} belongs to uid {status.st_uid}", hint="chown it to the user that runs castoff")
    if stat.S_IMODE(status.st_mode) & (0o077 if secret else 0o022):
        what, mode = ("read", "600") if secret else ("change", "go-w")
        raise Unauthorized(f"others may {what} {path}, which decides who is believed", hint=f"chmod {mode} {path}")


def encode_signature(value: bytes) -> str:
    """A signature as annotations hold it: URL-safe base64 without padding."""
    return _encode(value)


def decode_signature(text: str) -> bytes:
    """The 64 bytes of a signature, written in the one way that there is: base64 has spare bits, and Python's passes over
    what is not of its alphabet, so that one signature would have many names.

    Raises:
        Invalid: It is none.
    """
    try:
        value = urlsafe_b64decode(text + "==") if len(text) == 86 and text.isascii() else b""
    except binascii.Error:
        value = b""
    if len(value) != _SIGNATURE_SIZE or _encode(value) != text:
        raise Invalid(f"{text[:100]!r} is not an Ed25519 signature")
    return value


def _encode(raw: bytes) -> str:
    return urlsafe_b64encode(raw).decode("ascii").rstrip("=")


def _decode(text: str, prefix: str) -> bytes | None:
    """The 32 bytes behind ``prefix``, written in the one way that there is."""
    body = text.removeprefix(prefix)
    if not text.startswith(prefix) or len(body) != 43 or not body.isascii():
        return None
    try:
        raw = urlsafe_b64decode(body + "=")
    except binascii.Error:
        return None
    return raw if _encode(raw) == body else None


def _unreadable(path: Path, error: OSError) -> CastoffError:
    kind = Unauthorized if isinstance(error, PermissionError) else Unavailable
    return kind(f"{path}: {error.strerror}", hint="is the state directory yours, and the disk well?")
