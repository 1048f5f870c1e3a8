"""``castoff agent``: the host's long-running service."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from castoff.cli.app import Group
from castoff.cli.exits import printable
from castoff.cli.globals import Globals

if TYPE_CHECKING:
    from castoff.agent.reload import Reload

__all__ = ["command"]

_MACHINE: Final = re.compile(r"machine ([0-9a-f]{14})\b")
"""How a line begins that is about one machine."""


@click.group(cls=Group, invoke_without_command=True)
@click.option(
    "--discard-unknown",
    is_flag=True,
    help="Remove machines and volumes that are on disk and not in the agent's database; without this it refuses to start.",
)
@click.option("--fleet", "urls", multiple=True, metavar="URL", help="A NATS server of the fleet to join, instead of fleet.urls.")
@click.pass_context
def command(context: click.Context, discard_unknown: bool, urls: tuple[str, ...]) -> None:
    """Run the agent: the Machines API, and machines that outlive it. It stays in the foreground; SIGTERM ends it."""
    if context.invoked_subcommand is None:
        _serve(context.obj, discard_unknown, urls)


@command.command("check-config")
@click.pass_obj
def check_config(shared: Globals) -> None:
    """Check the agent's configuration: its settings, its TLS files, its address and port, its state directory. Starts nothing."""
    from castoff.agent.listen import check_place, parse_listen, tls_context
    from castoff.agent.tracing import check_endpoint
    from castoff.errors import Invalid
    from castoff.fleet.settings import check_fleet

    config = shared.load()
    check_fleet(config.fleet)
    where = parse_listen(config.agent)
    tls = tls_context(config.agent)
    if config.agent.otlp_endpoint:
        check_endpoint(config.agent.otlp_endpoint)
    for directory in config.agent.rootfs_directories:
        if not directory.is_absolute() or not directory.is_dir():
            raise Invalid(f"agent.rootfs_directories: {directory} is not the absolute path of a directory")
    runs = check_place(config.agent, config.state)
    answer = {"state": str(config.state), "listen": config.agent.listen, "tls": tls is not None, "running": runs}
    place = f"{_place(where)}{' with TLS' if tls else ''}{'; an agent runs there' if runs else ''}"
    shared.answer(answer, lambda: f"the configuration is good: state {config.state}, {place}")


def _place(where: tuple[str, int] | None) -> str:
    return "the unix socket only" if where is None else f"port {where[1]} of {where[0]}"


def _serve(shared: Globals, discard_unknown: bool, urls: tuple[str, ...]) -> None:
    from castoff.cli.loop import complete

    _log_to_stderr(shared)
    complete(_run(shared, discard_unknown, urls))


async def _run(shared: Globals, discard_unknown: bool, urls: tuple[str, ...]) -> None:
    from castoff.agent.main import running
    from castoff.agent.notify import notify, watchdog
    from castoff.agent.process import calm_collector, raise_descriptors
    from castoff.agent.reload import Reload

    log = logging.getLogger("castoff.agent")

    def tell(line: str) -> None:
        about = _MACHINE.match(line)
        log.info("%s", line, extra={"machine": about[1]} if about else None)

    config = shared.load()
    if urls:
        config = msgspec.structs.replace(config, fleet=msgspec.structs.replace(config.fleet, urls=urls))
    raise_descriptors()
    # A token in the journal would be read by whoever may read that: there, `castoff token create` makes the first one.
    first_token = not _is_journal(sys.stderr.fileno())
    async with running(config, notice=tell, first_token=first_token, discard_unknown=discard_unknown) as agent:
        if agent.token:
            print(f"castoff: the first token, told this once: {agent.token}", file=sys.stderr, flush=True)
        calm_collector()
        log.info("listening at %s%s", agent.socket, f" and {agent.address}" if agent.address else "")
        notify("READY=1")
        watched = asyncio.create_task(watchdog())
        try:
            await _reload_at_hangups(shared, Reload(config, agent.tls, tell), log)  # a signal cancels it
        finally:
            watched.cancel()
            notify("STOPPING=1")


async def _reload_at_hangups(shared: Globals, reload: Reload, log: logging.Logger) -> None:
    from castoff.agent.notify import notify
    from castoff.config import load
    from castoff.errors import CastoffError

    hangup = asyncio.Event()
    if not sys.stdin.isatty():  # there it says that the terminal is gone
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hangup.set)
    while True:
        await hangup.wait()
        hangup.clear()
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            reload.take(await asyncio.to_thread(load, shared.config, state=shared.state))
        except CastoffError as error:
            log.error("not reloaded, all stays as it was: %s", error)
        notify("READY=1")


def _is_journal(descriptor: int) -> bool:
    """As systemd.exec(5) says of ``JOURNAL_STREAM``: the variable alone is inherited by what has another stderr."""
    found = os.fstat(descriptor)
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


class _Lines(logging.Formatter):
    """One line a record: JSON for machines, plain for people. Text from clients is escaped."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        for name in ("app", "machine", "request_id", "milliseconds"):
            if hasattr(record, name):
                fields[name] = getattr(record, name)
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        if self._as_json:
            return json.dumps(fields)
        text = f"{fields['time']} {printable(fields['message'])}"
        return f"{text}\n{fields['traceback']}" if record.exc_info else text


def _log_to_stderr(shared: Globals) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines(as_json=shared.json or not sys.stderr.isatty()))
    root = logging.getLogger("castoff")
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING if shared.quiet else logging.INFO)
    root.propagate = False
