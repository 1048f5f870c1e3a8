"""Who we are at a registry: Docker's ``config.json`` and its credential helpers.

Sources: docker/cli's ``docs/reference/commandline/login.md`` for the file, docker/docker-credential-helpers' README for
the helpers: ``docker-credential-NAME get`` reads a server's name on its standard input and answers with JSON.
"""

from __future__ import annotations

import asyncio
import binascii
import contextlib
import os
import re
import shutil
import signal
from base64 import b64decode
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from castoff.errors import Invalid, NotFound, Unavailable
from castoff.image.files import Span, open_regular, read_span
from castoff.image.manifest import decode_json
from castoff.image.settings import ImageSettings

__all__ = ["Credentials", "Keyring"]

HUB_KEY = "https://index.docker.io/v1/"
"""Under which name `docker login` keeps what is for the Docker Hub."""

_CONFIG_LIMIT = 1 << 20
_ANSWER_LIMIT = 64 << 10
_HELPER = re.compile(r"[A-Za-z0-9._-]{1,100}\Z")


@dataclass(frozen=True, slots=True)
class Credentials:
    """What proves who we are: a password, or a token that is exchanged (identity) or shown (registry) as it is."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)


class _Auth(msgspec.Struct):
    auth: str | None = None
    username: str | None = None
    password: str | None = None
    identitytoken: str | None = None
    registrytoken: str | None = None


class _DockerConfig(msgspec.Struct, rename={"auths": "auths", "helpers": "credHelpers", "store": "credsStore"}):
    auths: dict[str, _Auth | None] | None = None
    helpers: dict[str, str] | None = None
    store: str | None = None


class _HelperAnswer(msgspec.Struct, rename="pascal"):
    username: str = ""
    secret: str = ""


class Keyring:
    """Finds credentials, each host's once; nothing is read before a registry asks.

    Args:
        settings: Where Docker's file is, how long a helper may take.
    """

    def __init__(self, settings: ImageSettings) -> None:
        self._settings = settings
        self._config: _DockerConfig | None = None
        self._found: dict[str, Credentials | None] = {}

    async def find(self, host: str) -> Credentials | None:
        """The credentials for a registry's host; None: there are none, go in as anybody.

        Raises:
            Invalid: Docker's file is broken.
            Unavailable: A helper is missing, fails or hangs.
        """
        if host not in self._found:
            self._found[host] = await self._look(HUB_KEY if host == "docker.io" else host)
        return self._found[host]

    async def _look(self, key: str) -> Credentials | None:
        if self._config is None:
            path = self._path()
            self._config = _DockerConfig() if path is None else _read_config(path)
        helper = (self._config.helpers or {}).get(key) or self._config.store
        if helper:
            found = await _ask_helper(helper, key, self._settings.helper_timeout)
            if found is not None:
                return found
        for name, auth in (self._config.auths or {}).items():
            if auth is not None and _same_host(name, key) and (found := _read_auth(name, auth)):
                return found
        return None

    def _path(self) -> Path | None:
        if self._settings.docker_config is not None:
            return Path(self._settings.docker_config)
        directory = os.environ.get("DOCKER_CONFIG")
        if directory:
            return Path(directory) / "config.json"
        try:
            return Path.home() / ".docker" / "config.json"
        except RuntimeError:  # a user id without an account, and no HOME
            return None


def _read_config(path: Path) -> _DockerConfig:
    try:
        fd, size = open_regular(path)
    except NotFound:
        return _DockerConfig()
    try:
        return decode_json(str(path), read_span(Span(str(path), fd, 0, size), _CONFIG_LIMIT), _DockerConfig)
    finally:
        os.close(fd)


def _same_host(name: str, key: str) -> bool:
    """Whether an entry's name (``HOST``, ``https://HOST/v1/``) means the registry ``key``."""
    return name == key or _bare(name) == _bare(key)


def _bare(name: str) -> str:
    return name.removeprefix("https://").removeprefix("http://").partition("/")[0].lower()


def _read_auth(name: str, auth: _Auth) -> Credentials | None:
    username, password = auth.username or "", auth.password or ""
    if auth.auth:
        try:
            pair = b64decode("".join(auth.auth.split()), validate=True).decode("utf-8")
        except (binascii.Error, UnicodeDecodeError) as error:
            raise Invalid(
                f"the entry of {name[:100]} in Docker's config.json is not base64", hint="docker login again"
            ) from error
        username, _, password = pair.rstrip("\0").partition(":")
    found = Credentials(username, password, auth.identitytoken or "", auth.registrytoken or "")
    return found if found != Credentials(username) else None


async def _ask_helper(name: str, key: str, timeout: float) -> Credentials | None:
    program = f"docker-credential-{name[:100]}"
    path = shutil.which(program) if _HELPER.match(name) else None
    if path is None:
        raise Unavailable(
            f"{program!r}, which Docker's config.json names, is not installed", hint="install it, or change the file"
        )
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            path, "get", stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL, start_new_session=True
        )
    except OSError as error:
        raise Unavailable(f"{program} cannot be run: {error.strerror}", hint="run it by hand to see why") from error
    try:
        async with asyncio.timeout(timeout):
            answer = await _talk(process, key)
            status = 0 if len(answer) > _ANSWER_LIMIT else await process.wait()
    except TimeoutError as error:
        raise Unavailable(f"{program} does not answer within {timeout:g} s", hint="run it by hand to see why") from error
    finally:
        await _end(process)
    return _read_answer(program, key, status, answer)


async def _talk(process: asyncio.subprocess.Process, key: str) -> bytes:
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may end without reading; its status tells why
        process.stdin.write(f"{key}\n".encode())
        await process.stdin.drain()
        process.stdin.close()
    answer = b""
    while len(answer) <= _ANSWER_LIMIT and (piece := await process.stdout.read(4096)):
        answer += piece
    return answer


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ends the helper and all that it started, and empties its pipe, so that nothing of it stays behind."""
    assert process.stdout is not None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):  # a pipe held open by one that left the session: closed with the event loop
        async with asyncio.timeout(1):
            while await process.stdout.read(_ANSWER_LIMIT):
                pass
    await process.wait()


def _read_answer(program: str, key: str, status: int, answer: bytes) -> Credentials | None:
    if len(answer) > _ANSWER_LIMIT:
        raise Invalid(f"{program} answers with over {_ANSWER_LIMIT} bytes for {key}")
    if status != 0:
        text = answer[:300].decode("utf-8", "replace").strip()
        if "credentials not found" in text:  # the helpers' own constant: there is nothing for this host
            return None
        raise Unavailable(
            f"{program} failed for {key}: {text or f'status {status}'}", hint="run it by hand, or docker login again"
        )
    row = decode_json(f"the answer of {program}", answer, _HelperAnswer)
    if row.username == "<token>":
        return Credentials(identity_token=row.secret)
    return Credentials(row.username, row.secret) if row.username or row.secret else None
