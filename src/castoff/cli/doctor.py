"""``castoff doctor``: what this host can do, what each ability gives, and how to get those that it lacks."""

from __future__ import annotations

import asyncio
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from castoff.cli import probes
from castoff.cli.app import Command
from castoff.cli.exits import Exit
from castoff.cli.globals import Globals
from castoff.cli.probes import Finding
from castoff.cli.session import on_host
from castoff.rootfs.settings import ContainerdSettings

if TYPE_CHECKING:
    from castoff.host import Host

__all__ = ["command"]


@click.command(cls=Command)
@click.pass_obj
def command(shared: Globals) -> int:
    """Tell what this host can do, what it gives and how to get the rest.

    Everything is tried, not looked up: KVM boots a kernel, a tap device is made, files are reflinked. Exits with 1 when
    something is missing without which no machine runs.
    """
    findings = on_host(shared, _examine)
    answer = {"able": not any(_lacking(finding) for finding in findings), "findings": [asdict(finding) for finding in findings]}
    shared.answer(answer, lambda: "\n".join(_paragraph(finding, shared) for finding in findings))
    return Exit.OK if answer["able"] else Exit.NO


async def _examine(host: Host) -> list[Finding]:
    """Everything, in the order in which it matters."""
    vmm, containerd = host.config.vmm, host.config.rootfs.containerd
    kernel, guest = await probes.kernel(vmm, host.store.kernels)
    return [
        probes.qemu(vmm.qemu.binary),
        kernel,
        await probes.kvm(vmm, guest, host.store.state),
        probes.reflink(host.store),
        probes.mkfs_xfs(),
        probes.firecracker(vmm.firecracker.binary, vmm.firecracker.jailer),
        await asyncio.to_thread(probes.limits, vmm.limits, host.store.machines),
        probes.tap(),
        probes.nftables(),
        probes.fuse(),
        probes.fanotify(),
        await asyncio.to_thread(probes.lazy, host.store, host.config.rootfs),
        probes.containerd(Path((containerd or ContainerdSettings()).socket)),
    ]


def _lacking(finding: Finding) -> bool:
    return finding.needed and not finding.works


def _paragraph(finding: Finding, shared: Globals) -> str:
    mark, colour = ("yes", "green") if finding.works else ("NO", "red") if finding.needed else ("no", "yellow")
    said = click.style(f"{mark:<4}", fg=colour) if shared.colours(sys.stdout) else f"{mark:<4}"
    lines = [f"{said} {finding.name:<12} {finding.found}"]
    for label, text in (("", finding.gives), ("get it: ", finding.how)):
        if text:
            lines += textwrap.wrap(
                label + text, 110, initial_indent=" " * 18, subsequent_indent=" " * (18 + len(label)), break_on_hyphens=False
            )
    return "\n".join(lines)
