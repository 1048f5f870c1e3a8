"""``castoff run``: a command in a machine of its own, as near to running it here as can be."""

from __future__ import annotations

import asyncio
import contextlib
import stat
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from castoff.cli.app import Command
from castoff.cli.globals import Globals
from castoff.cli.parameters import environment, parse_platform, parse_port, parse_size
from castoff.cli.session import on_host, shown
from castoff.cli.terminal import output_size
from castoff.disk.clone import CloneKind
from castoff.image.image import Platform
from castoff.machine.model import MachineRequest
from castoff.rootfs.settings import Lazy
from castoff.vmm.vmm import PortForward

if TYPE_CHECKING:
    from castoff.host import Host
    from castoff.machine.machine import Machine
    from castoff.vmm.guest_session import Exit

__all__ = ["command"]

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(cls=Command, context_settings={"allow_interspersed_args": False})
@click.option("-i", "--interactive", is_flag=True, help="Give the command this process's stdin.")
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal; its size follows this one's.")
@click.option("-e", "--env", multiple=True, metavar="K=V|K", help="Set a variable; K alone takes its value from here.")
@click.option("--env-file", multiple=True, type=_FILE, metavar="FILE", help="Set the variables of a file, one a line.")
@click.option("-w", "--workdir", metavar="DIR", help="Working directory in the image.")
@click.option("-u", "--user", metavar="USER[:GROUP]", help="Names or numbers.")
@click.option("--entrypoint", metavar="PROGRAM", help='Replace the image\'s entrypoint; "" drops it.')
@click.option("--hostname", metavar="NAME", help="Host name; else the machine's name or id.")
@click.option("--name", metavar="NAME", help="The machine's name.")
@click.option("--cpus", type=click.IntRange(1, 255), metavar="N", help="Virtual CPUs.")
@click.option("--memory", type=parse_size, metavar="SIZE", help="Guest memory, like 512M.")
@click.option("--disk-size", type=parse_size, metavar="SIZE", help="Size of the root filesystem, like 8G.")
@click.option("--platform", type=parse_platform, metavar="OS/ARCH", help="Platform of the image.")
@click.option("--vmm", metavar="NAME", help="qemu or firecracker.")
@click.option("--lazy", type=click.Choice([lazy.value for lazy in Lazy]), help="Start before all data is here.")
@click.option("--kernel", type=_FILE, metavar="FILE", help="Guest kernel.")
@click.option("--rootfs", metavar="PROVIDER|FILE", help="Who provides the root filesystem, or a file or block device with it.")
@click.option("--clone", type=click.Choice([kind.value for kind in CloneKind]), help="How the machine gets its own copy.")
@click.option(
    "-p", "--publish", multiple=True, type=parse_port, metavar="[ADDR:]HOST:GUEST[/udp]", help="Publish a port of the guest."
)
@click.option("--network", type=click.Choice(["user", "none"]), help="Network of the machine.")
@click.option("--keep", is_flag=True, help="Keep the machine's directory when it ends (`castoff machine remove` removes it).")
@click.option("-d", "--detach", is_flag=True, help="Let the agent run it, and print its id when its command runs.")
@click.option(
    "--agent",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Whether the agent runs it: auto only with --detach.",
)
@click.option("--console", is_flag=True, help="Show the guest kernel's console on stderr.")
@click.option("--timeline", "timeline_file", metavar="FILE", help="Write the timeline as JSON; - draws it on stderr.")
@click.argument("image")
@click.argument("words", nargs=-1, metavar="[COMMAND]...", type=click.UNPROCESSED)
@click.pass_obj
def command(shared: Globals, /, *, agent: str, detach: bool, console: bool, timeline_file: str | None, **options: Any) -> int:
    """Run a command in a new machine made from an image.

    The machine is this process's own and ends with it; with --detach it is the agent's and outlives both. --agent always has the
    agent, of CASTOFF_URL or of this host, run it, and prints what it writes, line by line.

    IMAGE is a name in a registry (alpine:3, localhost:5000/team/app@sha256:...), or on disk oci:DIR[:TAG],
    oci-archive:FILE or docker-archive:FILE. Exits with the command's code; 125 when castoff itself failed.
    """
    request = _request(**options)
    if detach and agent == "never":
        raise click.UsageError("a machine that outlives this process needs an agent: leave --agent never away")
    if detach or agent == "always":
        from castoff.cli.run_agent import run_detached, run_followed

        others = tuple(flag for flag, given in (("--console", console), ("--timeline", timeline_file)) if given)
        return (run_detached if detach else run_followed)(shared, request, others=others)
    progress = shown(shared)

    async def work(host: Host) -> int:
        from castoff.cli.attach import attach

        async with await host.create(request) as machine, _console(machine, shown=console):
            progress.stop()
            code = await attach(machine, interactive=request.interactive, tty=request.tty)
            if machine.exit is not None:
                _explain(shared, machine.exit)
            return code

    return on_host(shared, work, progress=progress, timeline_file=timeline_file, title=request.image)


def _explain(shared: Globals, ended: Exit) -> None:
    """What an exit code alone does not tell."""
    if ended.message:
        shared.note(ended.message)
    elif ended.out_of_memory and ended.code:
        shared.note(
            f"the machine ran out of memory and its kernel killed a process (exit {ended.code}); give it more with --memory"
        )


def _request(
    *,
    image: str,
    words: tuple[str, ...],
    env: tuple[str, ...],
    env_file: tuple[Path, ...],
    entrypoint: str | None,
    workdir: str | None,
    rootfs: str | None,
    clone: str | None,
    lazy: str | None,
    network: str | None,
    publish: Sequence[PortForward],
    platform: Platform | None,
    **plain: Any,
) -> MachineRequest:
    """The command line as a request; what carries over as it stands is in ``plain``."""
    if rootfs is not None and ("/" in rootfs or _is_image(rootfs)):
        plain["rootfs"] = Path(rootfs).absolute()
    else:
        plain["rootfs"] = rootfs
    columns, rows = output_size(1, 0, 2)
    return MachineRequest(
        image=image,
        command=words,
        env=environment(env, env_file),
        entrypoint=None if entrypoint is None else ((entrypoint,) if entrypoint else ()),
        working_dir=workdir,
        clone=None if clone is None else CloneKind(clone),
        lazy=None if lazy is None else Lazy(lazy),
        network=None if network is None else network == "user",
        ports=tuple(publish),
        platform=platform,
        columns=columns,
        rows=rows,
        **plain,
    )


def _is_image(name: str) -> bool:
    """Whether a name without a slash is a file or a device here; a directory that is called as a provider is no rootfs."""
    try:
        mode = Path(name).stat().st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)


@contextlib.asynccontextmanager
async def _console(machine: Machine, *, shown: bool) -> AsyncIterator[None]:
    if not shown:
        yield
        return
    from castoff.cli.attach import follow_console

    task = asyncio.create_task(follow_console(machine.console))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
