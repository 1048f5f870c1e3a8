"""Machines: /v1/apps/{app}/machines and what one of them can be told."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any, Final

from aiohttp import web

from castoff.api import body
from castoff.api.answer import json_answer, ok
from castoff.api.auth import grant_of
from castoff.api.parts import MACHINE_ID, PARTS, Parts
from castoff.api.regions import ANY
from castoff.api.wire.image import check_image
from castoff.api.wire.machine import MachineViews, machine_document, summary_document
from castoff.api.wire.requests import ExecBody, MachineBody, SignalBody, StopBody
from castoff.api.wire.signals import parse_signal
from castoff.api.wire.volume import gigabytes
from castoff.errors import Invalid, NotFound, Unsupported
from castoff.lifecycle.config import MachineConfig, parse_config
from castoff.lifecycle.launcher import ExecRequest
from castoff.lifecycle.machines import Machines
from castoff.lifecycle.model import CreateRequest, UpdateRequest
from castoff.lifecycle.states import State
from castoff.lifecycle.statistics import Measured

__all__ = ["NONCE", "ROUTES", "VIEWS"]

NONCE: Final = "fly-machine-lease-nonce"
VIEWS: Final = web.AppKey("castoff.machine_views", MachineViews)
_ALL: Final = "/v1/apps/{app}/machines"
_ONE: Final = "/v1/apps/{app}/machines/{id}"
_EXEC_SECONDS: Final = 60
_METADATA: Final = "metadata."
_PS_ORDERS: Final = {"pid", "stime", "rtime", "cpu", "rss", "command", "directory"}


def _machines(request: web.Request) -> Machines:
    return request.app[PARTS].machines


def _names(request: web.Request) -> tuple[str, str]:
    return request.match_info["app"], request.match_info["id"]


def _nonce(request: web.Request) -> str | None:
    return request.headers.get(NONCE) or None


async def list_machines(request: web.Request) -> web.Response:
    """GET /machines."""
    app = request.match_info["app"]
    parts = request.app[PARTS]
    parts.apps.get(app)
    metadata = {key.removeprefix(_METADATA): value for key, value in request.query.items() if key.startswith(_METADATA)}
    found = parts.machines.list(
        app,
        include_deleted=request.query.get("include_deleted") == "" or body.flag(request, "include_deleted"),  # fly-admin's way
        region=request.query.get("region") or None,
        states=states_of(request),
        metadata=metadata,
    )
    if body.flag(request, "summary"):
        return json_answer([summary_document(machine) for machine in found])
    views = request.app[VIEWS]
    return json_answer([views.view(machine) for machine in found])


def states_of(request: web.Request) -> tuple[State, ...]:
    """The query's ``state``: a list with commas, or several."""
    known = {state.value: state for state in State}
    wanted = body.words(request, "state")
    for word in wanted:
        if word not in known:
            raise Invalid(f"query: state {word[:32]!r} is none", hint=f"they are {', '.join(known)}")
    return tuple(known[word] for word in wanted)


async def create_machine(request: web.Request) -> web.Response:
    """POST /machines."""
    app = request.match_info["app"]
    parts = request.app[PARTS]
    wanted = await body.read(request, MachineBody)
    parts.apps.get(app)
    machine = await parts.machines.create(
        app,
        CreateRequest(
            config=_config(request, wanted),
            document=_document(parts, app, wanted.config),
            name=wanted.name or None,
            region=wanted.region if wanted.region not in ("", ANY) else None,
            skip_launch=bool(wanted.skip_launch),
            skip_service_registration=bool(wanted.skip_service_registration),
            lease_ttl=wanted.lease_ttl or None,
            min_secrets_version=wanted.min_secrets_version or None,
        ),
        id=request.get(MACHINE_ID),
    )
    request[MACHINE_ID] = machine.id  # for the log
    document = machine_document(machine)
    if wanted.lease_ttl and machine.lease is not None:
        document["nonce"] = machine.lease.nonce
    return json_answer(document)


def _config(request: web.Request, wanted: MachineBody) -> MachineConfig:
    config = parse_config(wanted.config)
    check_image(config.image, grant_of(request), request.app[PARTS].settings.rootfs_directories)
    return config


def _document(parts: Parts, app: str, config: dict[str, Any]) -> dict[str, Any]:
    """A configuration, of which it is known that it can be read, as it is kept and shown: each mount tells its volume's name and
    size, from which ``flyctl machine clone`` and ``flyctl scale count`` make further volumes."""
    mounts = config.get("mounts")
    return {**config, "mounts": [_mount(parts, app, mount) for mount in mounts]} if mounts else config


def _mount(parts: Parts, app: str, mount: dict[str, Any]) -> dict[str, Any]:
    try:
        volume = parts.volumes.get(app, mount["volume"])
    except NotFound:
        return mount  # whoever makes the machine says so, and what else it would need
    return {**mount, "name": volume.name, "size_gb": gigabytes(volume), "encrypted": False}


async def show_machine(request: web.Request) -> web.Response:
    """GET /machines/{id}."""
    return json_answer(request.app[VIEWS].view(_machines(request).get(*_names(request))))


async def update_machine(request: web.Request) -> web.Response:
    """POST /machines/{id}."""
    wanted = await body.read(request, MachineBody)
    machine = await _machines(request).update(
        *_names(request),
        UpdateRequest(
            config=_config(request, wanted),
            document=_document(request.app[PARTS], request.match_info["app"], wanted.config),
            current_version=wanted.current_version or None,
            skip_launch=bool(wanted.skip_launch),
            skip_service_registration=bool(wanted.skip_service_registration),
            lease_ttl=wanted.lease_ttl or None,
            min_secrets_version=wanted.min_secrets_version or None,
        ),
        nonce=_nonce(request),
    )
    return json_answer(machine_document(machine))


async def destroy_machine(request: web.Request) -> web.Response:
    """DELETE /machines/{id}: the description says ``force``, fly-go ``kill``."""
    force = body.flag(request, "force") or body.flag(request, "kill")
    await _machines(request).destroy(*_names(request), force=force, nonce=_nonce(request))
    return ok()


async def start_machine(request: web.Request) -> web.Response:
    """POST /machines/{id}/start."""
    previous = await _machines(request).start(*_names(request), nonce=_nonce(request))
    return json_answer({"previous_state": previous.value, "migrated": False, "new_host": ""})


async def stop_machine(request: web.Request) -> web.Response:
    """POST /machines/{id}/stop."""
    wanted = await body.read(request, StopBody)
    await _machines(request).stop(
        *_names(request),
        signal=parse_signal(wanted.signal),
        timeout=body.duration(wanted.timeout, "timeout"),
        nonce=_nonce(request),
    )
    return ok()


async def suspend_machine(request: web.Request) -> web.Response:
    """POST /machines/{id}/suspend."""
    await _machines(request).suspend(*_names(request), nonce=_nonce(request))
    return ok()


async def restart_machine(request: web.Request) -> web.Response:
    """POST /machines/{id}/restart: ``timeout`` is a Go duration, or seconds; in the query, or as fly-admin has it in the body."""
    wanted = await body.read(request, StopBody)
    timeout = request.query.get("timeout") or wanted.timeout
    if isinstance(timeout, str) and timeout.isascii() and timeout.isdigit():
        timeout = f"{timeout}s"
    await _machines(request).restart(
        *_names(request),
        force=body.flag(request, "force_stop"),
        signal=parse_signal(request.query.get("signal") or wanted.signal),
        timeout=body.duration(timeout, "timeout"),
        nonce=_nonce(request),
    )
    return ok()


async def signal_machine(request: web.Request) -> web.Response:
    """POST /machines/{id}/signal."""
    wanted = await body.read(request, SignalBody)
    number = parse_signal(wanted.signal)
    if number is None:
        raise Invalid("signal: none is named")
    await (await _machines(request).running(*_names(request))).signal(number)
    return ok()


async def execute(request: web.Request) -> web.Response:
    """POST /machines/{id}/exec."""
    wanted = await body.read(request, ExecBody)
    run = await _machines(request).running(*_names(request))
    result = await run.execute(
        ExecRequest(
            argv=_argv(wanted),
            stdin=(wanted.stdin or "").encode(errors="surrogatepass"),
            timeout=float(wanted.timeout or _EXEC_SECONDS),
        ),
    )
    return json_answer(
        {
            "exit_code": result.exit_code,
            "exit_signal": result.exit_signal,
            "stdout": result.stdout.decode(errors="replace"),
            "stderr": result.stderr.decode(errors="replace"),
        }
    )


def _argv(wanted: ExecBody) -> tuple[str, ...]:
    if wanted.container:
        raise Invalid("container: castoff's machines have none")
    if wanted.command:
        return wanted.command
    try:
        argv = tuple(shlex.split(wanted.cmd or ""))
    except ValueError as error:
        raise Invalid(f"cmd: {error}") from error
    if not argv:
        raise Invalid("cmd: no command was given", hint="send `command`, a list of its words")
    return argv


async def processes(request: web.Request) -> web.Response:
    """GET /machines/{id}/ps."""
    by = request.query.get("sort_by") or "pid"
    order = request.query.get("order") or "asc"
    if by not in _PS_ORDERS or order not in ("asc", "desc"):
        raise Invalid("query: sort_by or order is none", hint=f"sort by {', '.join(sorted(_PS_ORDERS))}; asc or desc")
    found = [dataclasses.asdict(process) for process in await (await _machines(request).running(*_names(request))).processes()]
    found.sort(key=lambda process: process[by], reverse=order == "desc")
    return json_answer(found)


async def statistics(request: web.Request) -> web.Response:
    """GET /machines/{id}/statistics: castoff's own."""
    run = await _machines(request).running(*_names(request))
    if not isinstance(run, Measured):
        raise Unsupported("this machine cannot be measured")
    return json_answer(dataclasses.asdict(await run.statistics()))


async def cordon(request: web.Request) -> web.Response:
    """POST /machines/{id}/cordon."""
    await _machines(request).cordon(*_names(request), nonce=_nonce(request))
    return ok()


async def uncordon(request: web.Request) -> web.Response:
    """POST /machines/{id}/uncordon."""
    await _machines(request).uncordon(*_names(request), nonce=_nonce(request))
    return ok()


ROUTES: Final = (
    web.get(_ALL, list_machines),
    web.post(_ALL, create_machine),
    web.get(_ONE, show_machine),
    web.post(_ONE, update_machine),
    web.delete(_ONE, destroy_machine),
    web.post(f"{_ONE}/start", start_machine),
    web.post(f"{_ONE}/stop", stop_machine),
    web.post(f"{_ONE}/suspend", suspend_machine),
    web.post(f"{_ONE}/restart", restart_machine),
    web.post(f"{_ONE}/signal", signal_machine),
    web.post(f"{_ONE}/exec", execute),
    web.get(f"{_ONE}/ps", processes),
    web.get(f"{_ONE}/statistics", statistics),
    web.post(f"{_ONE}/cordon", cordon),
    web.post(f"{_ONE}/uncordon", uncordon),
)
