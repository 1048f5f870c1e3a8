"""The health checks of a configuration, and what is known of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from castoff.errors import Invalid
from castoff.lifecycle.config import Check, MachineConfig
from castoff.lifecycle.durations import seconds
from castoff.lifecycle.launcher import Probe
from castoff.lifecycle.model import CheckStatus, Machine
from castoff.lifecycle.states import State

__all__ = ["CRITICAL", "PASSING", "STATUSES", "WARNING", "MachineCheck", "check_statuses", "machine_checks"]

PASSING: Final = "passing"
WARNING: Final = "warning"
CRITICAL: Final = "critical"
STATUSES: Final = (PASSING, WARNING, CRITICAL)

_MOST: Final = 32
"""Checks of a machine."""
_LONGEST_NAME: Final = 128
_INTERVAL, _TIMEOUT, _GRACE = 15.0, 5.0, 5.0
"""Seconds, where the configuration says nothing."""
_SHORTEST: Final = 1.0
_LONGEST_TIMEOUT: Final = 60.0
_LONGEST_TEXT: Final = 4096
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_TARGET: Final = re.compile(r"/[!-~]*")
_FIELD: Final = re.compile(r"[\x20-\x7e\x80-\xff\t]*")


@dataclass(frozen=True, slots=True)
class MachineCheck:
    """A check.

    Attributes:
        name: As clients know it.
        probe: What is asked.
        interval: Seconds between the end of one probe and the next, at least 1.
        timeout: Seconds that a probe may take.
        grace: Seconds from the machine's start in which a failure is only a warning.
    """

    name: str
    probe: Probe
    interval: float
    timeout: float
    grace: float


def machine_checks(config: MachineConfig) -> tuple[MachineCheck, ...]:
    """A configuration's checks: ``checks``, and those of ``services``, which are named ``servicecheck-NN-TYPE-PORT``.

    Raises:
        Invalid: One cannot be made, or they are too many.
    """
    found = []
    for name, check, port in _configured(config):
        try:
            found.append(_check(name, check, port))
        except Invalid as error:
            raise Invalid(f"check {name[:80]!r}: {error.what}", hint=error.hint) from error
    if len(found) > _MOST:
        raise Invalid(f"checks: {len(found)} are given", hint=f"a machine has at most {_MOST}")
    return tuple(found)


def check_statuses(machine: Machine) -> tuple[CheckStatus, ...]:
    """All checks of a machine, with what was found last; a check that has found nothing yet is a warning."""
    config = machine.config
    if not config.checks and not config.services:
        return ()
    known = {status.name: status for status in machine.checks}
    waits = "waiting for the first answer" if machine.state == State.STARTED else f"the machine is {machine.state}"
    names = [name for name, _, _ in _configured(config)][:_MOST]
    return tuple(
        known.get(name) or CheckStatus(name=name, status=WARNING, output=waits, updated=machine.updated) for name in names
    )


def _configured(config: MachineConfig) -> Iterator[tuple[str, Check, int | None]]:
    """Name, check and the port where it names none."""
    for name, check in (config.checks or {}).items():
        yield name, check, None
    number = 0
    for service in config.services or ():
        for check in service.checks or ():
            port = check.port or service.internal_port
            yield f"servicecheck-{number:02d}-{_type(check)}-{port or 0}", check, service.internal_port
            number += 1


def _type(check: Check) -> str:
    return check.type or ("http" if check.path or check.method else "tcp")


def _check(name: str, check: Check, default: int | None) -> MachineCheck:
    if not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
        raise Invalid("this cannot be its name", hint=f"at most {_LONGEST_NAME} printable characters")
    port = check.port or default
    if port is None:
        raise Invalid("it names no port", hint='write "port": 8080')
    interval, timeout, grace = (
        value if given is None else seconds(given)
        for given, value in ((check.interval, _INTERVAL), (check.timeout, _TIMEOUT), (check.grace_period, _GRACE))
    )
    probe = _request(check, port) if _type(check) == "http" else Probe(port=port)
    return MachineCheck(name, probe, max(interval, _SHORTEST), min(max(timeout, 0.1), _LONGEST_TIMEOUT), grace)


def _request(check: Check, port: int) -> Probe:
    method, path, protocol = check.method or "GET", check.path or "/", check.protocol or "http"
    if protocol not in ("http", "https"):
        raise Invalid(f"protocol {protocol[:40]!r} is none", hint="http or https")
    if _TOKEN.fullmatch(method) is None or method.upper() == "CONNECT":
        raise Invalid(f"method {method[:40]!r} is none", hint="GET, HEAD, ...")
    if _TARGET.fullmatch(path) is None or len(path) > _LONGEST_TEXT:
        raise Invalid(f"path {path[:80]!r} is none", hint="write it as /healthz?full=1, percent-encoded")
    return Probe(
        port=port,
        http=True,
        method=method.upper(),
        path=path,
        headers=tuple(_headers(check)),
        tls=protocol == "https",
        verify=not check.tls_skip_verify,
        server_name=(check.tls_server_name or "")[:253],
    )


def _headers(check: Check) -> Iterator[tuple[str, str]]:
    for header in check.headers or ():
        name = header.name or ""
        if _TOKEN.fullmatch(name) is None or name.lower() in ("content-length", "transfer-encoding", "connection"):
            raise Invalid(f"header {name[:80]!r} cannot be sent", hint="name it as HTTP does; those of a body are not for checks")
        for value in header.values or ():
            if _FIELD.fullmatch(value) is None or len(value) > _LONGEST_TEXT:
                raise Invalid(f"header {name[:80]!r} has a value that cannot be sent")
            yield name, value
