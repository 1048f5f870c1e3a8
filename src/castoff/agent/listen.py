"""Where the agent listens: a unix socket for this host's operator, an address for everybody else; and that it is alone."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

from castoff.errors import Conflict, Invalid, Unauthorized, Unavailable
from castoff.lifecycle.settings import AgentSettings
from castoff.vmm.sockets import listen_unix

__all__ = ["SOCKET", "agent_directory", "alone", "bind", "bind_tcp", "check_place", "parse_listen", "tls_context"]

SOCKET = "agent.sock"


def agent_directory(state: Path) -> Path:
    """The agent's own directory, for its user only; made where it is missing."""
    directory = state / "agent"
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    directory.chmod(0o700)
    return directory


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """One agent a state directory, for the block; the kernel lets go of it when the process ends, however it does.

    Raises:
        Conflict: Another one runs.
    """
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(
                f"an agent runs already over {directory.parent}", hint="stop it, or give this one another --state"
            ) from error
        yield
    finally:
        os.close(descriptor)


def parse_listen(settings: AgentSettings) -> tuple[str, int] | None:
    """Address and port of ``agent.listen``; None where it is empty.

    Raises:
        Invalid: It is neither, or an address beyond loopback without TLS.
    """
    if not settings.listen:
        return None
    host, port = _address("agent.listen", settings.listen)
    if not ipaddress.ip_address(host).is_loopback and (settings.tls_certificate is None or settings.tls_key is None):
        raise Invalid(
            f"agent.listen: {host} is beyond loopback, and tokens must not travel in the clear",
            hint="set agent.tls_certificate and agent.tls_key, or listen at 127.0.0.1 behind a proxy that has TLS",
        )
    return host, port


def _address(name: str, listen: str) -> tuple[str, int]:
    """Address and port of a setting.

    Raises:
        Invalid: It is neither.
    """
    host, colon, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        ipaddress.ip_address(host)
    except ValueError as error:
        raise Invalid(f"{name}: {listen!r} is not ADDRESS:PORT", hint="127.0.0.1:4280, for instance") from error
    if not colon or not port.isascii() or not port.isdigit() or not 0 <= int(port) < 65536:
        raise Invalid(f"{name}: {listen!r} has no port", hint="127.0.0.1:4280, for instance")
    return host, int(port)


def tls_context(settings: AgentSettings) -> ssl.SSLContext | None:
    """TLS as the settings have it; None where they have none.

    Raises:
        Invalid: A file is missing or broken, or one of the two is not set.
    """
    if settings.tls_certificate is None and settings.tls_key is None:
        return None
    if settings.tls_certificate is None or settings.tls_key is None:
        raise Invalid("agent.tls_certificate and agent.tls_key belong together", hint="set both, or none")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.tls_certificate, settings.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise Invalid(
            f"agent.tls_certificate {settings.tls_certificate}: {error}", hint="PEM files, the key without a password"
        ) from error
    return context


def bind(settings: AgentSettings, directory: Path) -> list[socket.socket]:
    """The sockets, bound: the unix one first.

    Raises:
        Unavailable: The address is taken, or not this host's.
        Invalid: As :func:`parse_listen`.
    """
    where = parse_listen(settings)
    sockets = [listen_unix(directory / SOCKET)]
    if where is None:
        return sockets
    try:
        return [*sockets, _bound("agent.listen", *where)]
    except BaseException:
        sockets[0].close()
        raise


def bind_tcp(name: str, listen: str, *, secured: bool) -> socket.socket:
    """A bound socket for the setting ``name``, whose value is ``listen``.

    Raises:
        Unavailable: The address is taken, or not this host's.
        Invalid: It is no address, or one beyond loopback without ``secured``: nobody there would be known.
    """
    host, port = _address(name, listen)
    if not secured and not ipaddress.ip_address(host).is_loopback:
        raise Invalid(
            f"{name}: {host} is beyond loopback, and strangers must not come in",
            hint="set peers.certificate, peers.key and peers.authority",
        )
    return _bound(name, host, port)


def check_place(settings: AgentSettings, state: Path) -> bool:
    """Looks at whether an agent could be started here, and starts none. Blocks.

    Returns:
        Whether one runs there already; its port is its own then, and not looked at.

    Raises:
        Unavailable: The port is taken, or the address is not this host's.
        Invalid: As :func:`parse_listen`.
        Unauthorized: This user may not write to the state directory, or not make it.
    """
    there = next(path for path in (state, *state.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "is no directory" if not there.is_dir() else "cannot be written to by this user"
        raise Unauthorized(f"state {state}: {there} {what}", hint="give it to the agent's user, or name another with --state")
    try:
        with alone(state / "agent"):
            pass
    except FileNotFoundError:
        pass  # no agent was ever here
    except Conflict:
        return True
    where = parse_listen(settings)
    if where is not None:
        _bound("agent.listen", *where).close()
    return False


def _bound(name: str, host: str, port: int) -> socket.socket:
    tcp = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.bind((host, port))
    except OSError as error:
        tcp.close()
        raise Unavailable(f"{name}: {host}:{port}: {error.strerror}", hint="is another program there?") from error
    return tcp
