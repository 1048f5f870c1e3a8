"""Which VMM runs a machine, and which kernel: those asked for, or the first of the configured ones that can here."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from castoff.errors import Invalid, Unsupported
from castoff.machine.model import MachineRequest
from castoff.store.store import Store
from castoff.vmm.kernel import Kernel, KnownKernels, find_kernel
from castoff.vmm.settings import VmmSettings
from castoff.vmm.vmm import Vmm

__all__ = ["DRIVERS", "open_vmm", "prepare"]

DRIVERS = ("firecracker", "qemu")
_STAND_IN = "stand-in"
"""castoff.fakes.vmm, for tests and benches: nothing it starts is a machine, so it exists only where ``vmm.order`` names it."""


def open_vmm(name: str, settings: VmmSettings, state: Path) -> Vmm:
    """The driver of that name.

    Args:
        name: One of DRIVERS.
        settings: The machines' settings.
        state: Where answers of slow probes are kept.

    Raises:
        Invalid: There is no such driver.
    """
    # Imported one by one: the drivers that are not used cost a warm start nothing.
    if name == "qemu":
        from castoff.vmm.qemu import QemuVmm

        return QemuVmm(settings, state=state)
    if name == "firecracker":
        from castoff.vmm.firecracker import FirecrackerVmm

        return FirecrackerVmm(settings, state=state)
    if name == _STAND_IN and name in settings.order:
        from castoff.fakes.vmm import StandInVmm

        return StandInVmm(settings)
    raise Invalid(f"{name[:60]!r} is no VMM", hint=f"there are: {', '.join(DRIVERS)}")


async def prepare(
    settings: VmmSettings, request: MachineRequest, store: Store, *, network: bool, known: KnownKernels | None = None
) -> tuple[Kernel, Vmm]:
    """The kernel and the driver for a machine. Needs nothing of its image, so it runs while that is fetched.

    Args:
        settings: Of kernels and drivers.
        request: May name either.
        store: Keeps kernels, and what probes found.
        network: Whether the machine wants a user network, which not every driver has.
        known: What this process has found already.

    Raises:
        CastoffError: There is no kernel, or no driver that can run it.
    """
    if request.kernel is not None:
        chosen = msgspec.structs.replace(settings.kernel, file=request.kernel.absolute(), modules=None)
        settings = msgspec.structs.replace(settings, kernel=chosen)
    kernel = await (find_kernel if known is None else known.find)(settings, store.kernels)
    return kernel, await _choose(settings, request.vmm, kernel, store.state, network=network)


async def _choose(settings: VmmSettings, asked: str | None, kernel: Kernel, state: Path, *, network: bool) -> Vmm:
    if asked is not None:
        return open_vmm(asked, settings, state)
    problems = []
    for name in settings.order:
        lack = await _lack(name, settings, kernel, state, network=network)
        if not lack:
            return open_vmm(name, settings, state)
        problems.append(f"{name}: {lack}")
    raise Unsupported(f"no VMM can run here ({'; '.join(problems)})", hint="`castoff doctor` tells how to get one")


async def _lack(name: str, settings: VmmSettings, kernel: Kernel, state: Path, *, network: bool) -> str:
    """What this host lacks for a driver; empty where it can run."""
    if name == "qemu":
        return "" if shutil.which(settings.qemu.binary) else f"{settings.qemu.binary} is not installed"
    if name == "firecracker":
        if shutil.which(settings.firecracker.binary) is None:
            return f"{settings.firecracker.binary} is not installed"
        if network:
            return "it has no user network (--network none does without)"
        from castoff.vmm.probe import kvm_runs

        probe = await kvm_runs(settings, kernel.path, state)
        return "" if probe.usable else probe.reason
    return "" if name == _STAND_IN else "there is no such driver"
