"""From a machine's configuration to what castoff.create is asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from castoff.disk.clone import MAX_VOLUMES, CloneKind
from castoff.errors import Invalid, Unsupported
from castoff.image.digest import Digest
from castoff.image.reference import RegistryReference, parse_reference
from castoff.lifecycle.config import MachineConfig, Process, RootfsConfig
from castoff.lifecycle.launcher import Launch
from castoff.machine.model import MachineRequest, ProcessRequest, VolumeDrive
from castoff.rootfs.settings import Lazy
from castoff.vmm.guest import MAX_BESIDE, check_mount_path

__all__ = ["LINGER", "check_config", "machine_request", "mount_paths"]

LINGER: Final = 600.0
"""Seconds that an ended machine waits for its exit code to be taken: an agent may be upgraded meanwhile."""
_MEMORY: Final = 256
"""Megabytes where the configuration says nothing: the API's shared-cpu-1x."""
_SIZES: Final = re.compile(r"(shared|performance)-(?:cpu-)?(\d{1,2})x\Z")
_MB, _GB = 1 << 20, 1 << 30


def check_config(config: MachineConfig, rootfs_directories: Sequence[Path]) -> None:
    """Refuses what castoff cannot boot on this host.

    Raises:
        Unsupported: It asks for what is not served.
        Invalid: It contradicts itself.
    """
    if config.guest is not None and (config.guest.gpus or config.guest.gpu_kind):
        raise Unsupported("guest: GPUs are not served", hint="leave gpus and gpu_kind away")
    mount_paths(config)
    _check_processes(config)
    if config.rootfs is not None:
        _override(config.rootfs, rootfs_directories)
        if _persists(config.rootfs) and (config.rootfs.clone is CloneKind.OVERLAY or config.rootfs.lazy is Lazy.ALWAYS):
            raise Unsupported(
                "rootfs: what persists is a whole file of the machine's own, not an overlay nor lazy",
                hint="leave clone and lazy away, or persist",
            )
    _hardware(config)


def machine_request(
    launch: Launch, rootfs_directories: Sequence[Path], existing: Path | None, *, reflink: bool = False
) -> MachineRequest:
    """What castoff.create is asked for.

    Args:
        launch: The boot.
        rootfs_directories: Where prepared root filesystems may lie.
        existing: The root filesystem that an earlier run left.
        reflink: Whether the store's files share extents.
    """
    config = launch.config
    rootfs = config.rootfs or RootfsConfig()
    first, *beside = _processes(launch)
    cpus, memory = _hardware(config)
    return MachineRequest(
        image=_pinned(launch),
        command=first.command,
        entrypoint=first.entrypoint,
        env=first.env,
        user=first.user,
        beside=tuple(beside),
        hostname=launch.name[:64],
        tty=bool(config.init and config.init.tty),
        cpus=cpus,
        memory=memory,
        disk_size=rootfs.size_gb and rootfs.size_gb * _GB,
        name=launch.machine,
        rootfs=_override(rootfs, rootfs_directories) or rootfs.provider,
        clone=_whole(rootfs, reflink) if _persists(rootfs) else rootfs.clone,
        lazy=Lazy.NEVER if _persists(rootfs) else rootfs.lazy,
        keep=True,
        id=launch.machine,
        agent=True,
        files=launch.files,
        linger=LINGER,
        volumes=tuple(VolumeDrive(Path(file), path) for file, path in zip(launch.volumes, mount_paths(config), strict=True)),
        rates=config.rates,
        existing=existing,
    )


def mount_paths(config: MachineConfig) -> list[str]:
    """Where the guest mounts its volumes, as ``config.mounts`` has them.

    Raises:
        Invalid: There are too many, or one cannot be mounted there.
    """
    mounts = config.mounts or ()
    if len(mounts) > MAX_VOLUMES:
        raise Invalid(f"mounts: {len(mounts)} volumes are given", hint=f"a machine has at most {MAX_VOLUMES}")
    if any(not mount.volume for mount in mounts):
        raise Invalid("mounts: a volume is not named", hint="give its id, vol_...")
    paths = [check_mount_path(mount.path) for mount in mounts]
    if len(set(paths)) < len(paths) or len({mount.volume for mount in mounts}) < len(mounts):
        raise Invalid("mounts: a path or a volume is there twice", hint="a volume has one place, a place one volume")
    return paths


def _persists(rootfs: RootfsConfig) -> bool:
    return rootfs.persist in ("restart", "always", 2, 3)


def _whole(rootfs: RootfsConfig, reflink: bool) -> CloneKind:
    """What can be set aside between two runs, whatever the host's own setting is. A prepared rootfs may lie on another
    filesystem than the store's."""
    return rootfs.clone or (CloneKind.REFLINK if reflink and rootfs.file is None else CloneKind.COPY)


def _pinned(launch: Launch) -> str:
    """The image of the machine's version, wherever its tag has moved since: restarts boot what was asked for, without asking
    the registry again. Images on disk are taken as they are named."""
    reference = parse_reference(launch.config.image)
    if not launch.digest or not isinstance(reference, RegistryReference):
        return launch.config.image
    return str(replace(reference, digest=Digest.parse(launch.digest)))


def _check_processes(config: MachineConfig) -> None:
    processes = config.processes or ()
    if len(processes) > 1 + MAX_BESIDE:
        raise Invalid(f"processes: {len(processes)} are given", hint=f"a machine has at most {1 + MAX_BESIDE}")
    if len(processes) > 1 and config.init is not None and config.init.tty:
        raise Invalid("processes: several cannot share a terminal", hint="leave init.tty away")


def _processes(launch: Launch) -> list[ProcessRequest]:
    """What the machine runs: the first has its standard input or terminal, where there is one."""
    config = launch.config
    if not config.processes:
        return [_process(config, None, {**launch.env, **(config.env or {})})]
    return [_process(config, process, env) for process, env in zip(config.processes, launch.processes, strict=True)]


def _process(config: MachineConfig, process: Process | None, env: Mapping[str, str]) -> ProcessRequest:
    entrypoint, command = _words(config, process)
    variables = tuple(f"{name}={value}" for name, value in env.items())
    user = process.user if process else None
    return ProcessRequest(command=command, entrypoint=entrypoint, env=variables, user=user)


def _words(config: MachineConfig, process: Process | None) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Entrypoint and command that override the image's; None and (): the image's own."""
    for one in (process, config.init):
        if one is None:
            continue
        if one.exec:
            return one.exec, ()
        if one.entrypoint or one.cmd:
            return one.entrypoint or None, one.cmd or ()
    return None, ()


def _hardware(config: MachineConfig) -> tuple[int, int]:
    """CPUs, and bytes of memory."""
    guest = config.guest
    cpus, memory = 1, _MEMORY
    if config.size:
        match = _SIZES.match(config.size)
        if match is None:
            raise Invalid(f"size {config.size[:40]!r} is not known", hint="shared-cpu-1x, performance-2x, ...; or use guest")
        cpus = int(match[2]) or 1
        memory = cpus * (256 if match[1] == "shared" else 2048)
    if guest is not None:
        cpus, memory = guest.cpus or cpus, guest.memory_mb or memory
    return cpus, memory * _MB


def _override(rootfs: RootfsConfig, directories: Sequence[Path]) -> Path | None:
    """The prepared rootfs that the configuration names, with its symlinks resolved: no path of the host but those allowed."""
    if rootfs.file is None:
        return None
    if rootfs.provider not in (None, "prepared"):
        raise Invalid("rootfs: file and provider exclude each other")
    path = Path(rootfs.file).resolve()
    if not any(path.is_relative_to(directory.resolve()) for directory in directories):
        raise Invalid(
            f"rootfs: file {rootfs.file[:200]!r} is under none of the allowed directories",
            hint="the operator allows some by agent.rootfs_directories",
        )
    return path
