"""Whose artifacts count on this host: its own key, and those in ``STATE/keys/trusted/``.

Each is a file ``*.pub`` with one line, a key and perhaps its name; lines that begin with ``#`` are for people. ``castoff
trust add`` writes ``<fingerprint>.pub``, and whoever configures hosts by other means may drop files of any name. A file
that is broken, or that others may change, makes nobody trusted and nothing fail: it is told as a problem.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from castoff.artifact.keys import KEY_PREFIX, PublicKey, alone, check_directories, find_host_key, keys_directory, read_own_file
from castoff.errors import CastoffError, Conflict, Invalid, NotFound
from castoff.image.files import Span, open_regular, read_span
from castoff.store.durable import fsync_path, replace_file

__all__ = ["OWN_NAME", "Trust", "TrustedKey", "distrust", "load_trust", "read_key", "trust_key"]

OWN_NAME: Final = "this host"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}\Z")
_FILE_LIMIT = 4096
_MAX_FILES = 1024
_SHORTEST = 6  # characters of a fingerprint that name a key


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A key whose artifacts count."""

    key: PublicKey
    name: str
    """For people; may be empty."""
    own: bool = False
    """Whether it is this host's own."""


@dataclass(frozen=True, slots=True)
class Trust:
    """The keys whose artifacts count, this host's own first."""

    keys: tuple[TrustedKey, ...] = ()
    problems: tuple[str, ...] = ()
    """Of files that count for nothing, a line each."""

    def find(self, key: PublicKey) -> TrustedKey | None:
        """The entry of ``key``; None: nobody said to trust it."""
        return next((known for known in self.keys if known.key == key), None)


def load_trust(state: Path) -> Trust:
    """Whom this host trusts now. Makes nothing: a host that signed nothing yet has no key to trust. Blocks."""
    keys: list[TrustedKey] = []
    problems: list[str] = []
    try:
        own = find_host_key(state)
        if own is not None:
            keys.append(TrustedKey(own.public, OWN_NAME, own=True))
    except CastoffError as error:
        problems.append(str(error))
    for path in _files(state):
        try:
            found = _read(state, path)
        except CastoffError as error:
            problems.append(str(error))
            continue
        if found is not None and all(known.key != found.key for known in keys):
            keys.append(found)
    return Trust(tuple(keys), tuple(problems))


def read_key(text: str) -> tuple[PublicKey, str]:
    """A key as a person gives it: itself, or a file that holds it; and the name that the file has for it, else "".

    Raises:
        Invalid, NotFound: It is neither.
    """
    if text.startswith(KEY_PREFIX):
        return PublicKey.parse(text), ""
    path = Path(text)
    try:
        descriptor, size = open_regular(path)
    except NotFound as error:
        raise NotFound(
            f"{text[:100]!r} is neither a key nor a file", hint=f"keys begin with {KEY_PREFIX}; `castoff key show` prints one"
        ) from error
    with os.fdopen(descriptor, "rb") as file:
        data = read_span(Span(str(path), file.fileno(), 0, size), _FILE_LIMIT)
    return _parse(path, data.decode("ascii", "replace"))


def trust_key(state: Path, key: PublicKey, name: str = "") -> TrustedKey:
    """From now on artifacts that ``key`` signed count here. Again: renames it, where a name is given. Blocks.

    Raises:
        Invalid: The name is none.
        Conflict: Another key has that name, or that fingerprint.
        Unauthorized, Unavailable: The files cannot be written.
    """
    if name and (_NAME.match(name) is None or name.startswith(KEY_PREFIX)):
        raise Invalid(f"{name[:100]!r} cannot name a key", hint="up to 64 letters, digits and . _ @ + -")
    directory = _directory(state)
    with alone(keys_directory(state)):
        trust = load_trust(state)
        known = trust.find(key)
        if known is not None and (known.own or name in ("", known.name)):
            return known
        if any(name and other.name == name and other.key != key for other in trust.keys):
            raise Conflict(f"another key is called {name}", hint="choose another name, or remove that one first")
        directory.mkdir(mode=0o700, exist_ok=True)
        check_directories(state, directory)
        path = directory / f"{key.fingerprint}.pub"
        with contextlib.suppress(Invalid):  # a broken file is replaced
            there = _read(state, path)
            if there is not None and there.key != key:
                raise Conflict(f"{path} holds another key of the same fingerprint", hint="one of the two was made to deceive")
        for other in _files_of(state, key):
            if other != path:
                other.unlink()
        replace_file(path, f"{key} {name}".rstrip().encode() + b"\n")
    return TrustedKey(key, name)


def distrust(state: Path, what: str) -> TrustedKey:
    """From now on artifacts of that key are as if they were not there. Blocks.

    Args:
        state: The state directory.
        what: The key, its name, or the beginning of its fingerprint.

    Raises:
        NotFound: No trusted key is meant.
        Conflict: Several are, or this host's own.
        Unauthorized, Unavailable: The files cannot be written.
    """
    with alone(keys_directory(state)):
        found = [known for known in load_trust(state).keys if _means(what, known)]
        if not found:
            raise NotFound(f"{what[:100]!r} is no key that is trusted here", hint="`castoff trust list` shows those that are")
        if len(found) > 1:
            raise Conflict(f"{what[:100]!r} means {len(found)} keys", hint="give the whole fingerprint")
        if found[0].own:
            raise Conflict(
                f"{found[0].key.fingerprint} is this host's own key", hint="remove keys/host.key to have a new one made"
            )
        for path in _files_of(state, found[0].key):
            path.unlink()
        fsync_path(_directory(state))
    return found[0]


def _directory(state: Path) -> Path:
    return keys_directory(state) / "trusted"


def _files(state: Path) -> list[Path]:
    """In the order of their names."""
    return sorted(_directory(state).glob("*.pub"))[:_MAX_FILES]


def _files_of(state: Path, key: PublicKey) -> Iterator[Path]:
    for path in _files(state):
        with contextlib.suppress(CastoffError):  # one that is broken is nobody's
            found = _read(state, path)
            if found is not None and found.key == key:
                yield path


def _read(state: Path, path: Path) -> TrustedKey | None:
    text = read_own_file(state, path)
    return None if text is None else TrustedKey(*_parse(path, text))


def _parse(path: Path, text: str) -> tuple[PublicKey, str]:
    lines = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
    if len(lines) != 1:
        raise Invalid(f"{path} has {len(lines)} lines", hint="a key's file has one, the key and perhaps its name")
    word, _, name = lines[0].partition(" ")
    try:
        key = PublicKey.parse(word)
    except Invalid as error:
        raise Invalid(f"{path}: {error.what}", hint=error.hint) from error
    return key, name.strip() if _NAME.match(name.strip()) else ""


def _means(what: str, known: TrustedKey) -> bool:
    if what in (str(known.key), known.key.fingerprint) or (what and what == known.name):
        return True
    return len(what) >= _SHORTEST and known.key.fingerprint.startswith(what)
