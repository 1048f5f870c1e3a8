"""The story of a rootfs build: an image reference becomes a bootable filesystem, without a machine."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from castoff.config import Config
from castoff.create import locate, opened
from castoff.disk.clone import CloneKind
from castoff.errors import Invalid, NotFound, Unauthorized, Unsupported
from castoff.image.image import Image, Platform
from castoff.image.source import ImageSource
from castoff.machine.model import MachineRequest, new_machine_id
from castoff.rootfs.context import ProviderContext
from castoff.rootfs.provider import Rootfs
from castoff.rootfs.settings import Lazy
from castoff.store.builds import uninterrupted
from castoff.store.space import no_space_as
from castoff.store.store import Store
from castoff.timeline import step

__all__ = ["BuiltRootfs", "build_rootfs"]


@runtime_checkable
class _InAFile(Protocol):
    """What most providers' rootfs are: a file, or a block device, of a size."""

    path: Path
    size: int


@dataclass(frozen=True, slots=True)
class BuiltRootfs:
    """A root filesystem that is ready to boot from."""

    image: Image
    provider: str
    path: Path | None
    """Where it is: the file that was asked for, or the provider's own, which must not be written. None where a provider
    makes one for each machine only."""
    size: int
    """Bytes of the filesystem."""


async def build_rootfs(
    reference: str,
    *,
    size: int | None,
    output: Path | None,
    platform: Platform | None,
    config: Config,
    store: Store,
    providers: ProviderContext,
) -> BuiltRootfs:
    """Makes the rootfs of an image, or finds it made; see ``Host.build_rootfs``."""
    request = MachineRequest(image=reference, disk_size=size, platform=platform, lazy=Lazy.NEVER)
    directory = Path() if output is None else _directory_for(output)
    async with opened(reference, platform, config=config, store=store) as (source, image):
        if output is None:
            rootfs = await locate(request, image, source, providers)
            if isinstance(rootfs, _InAFile):
                return BuiltRootfs(image, rootfs.provider, rootfs.path, rootfs.size)
            return BuiltRootfs(image, rootfs.provider, None, size or 0)
        shares = store.reflink and store.root.stat().st_dev == directory.stat().st_dev
        provider = await _write(request, image, source, providers, output, shares=shares)
        return BuiltRootfs(image, provider, output, (directory / output.name).stat().st_size)


async def _write(
    request: MachineRequest, image: Image, source: ImageSource, providers: ProviderContext, output: Path, *, shares: bool
) -> str:
    """Writes the rootfs to ``output``, sharing extents with the store's where it can; its provider's name."""
    for kind in (CloneKind.REFLINK, CloneKind.COPY) if shares else (CloneKind.COPY,):
        rootfs = await locate(dataclasses.replace(request, clone=kind), image, source, providers)
        try:
            await _clone_to(rootfs, output)
        except Unsupported:  # a block device cannot be reflinked
            if kind is CloneKind.COPY:
                raise
        else:
            break
    return rootfs.provider


async def _clone_to(rootfs: Rootfs, output: Path) -> None:
    """A machine's clone, of a machine that never is, becomes the file: so every provider can."""
    nobody = new_machine_id()
    with step("build", file=str(output)), _directory_beside(output) as directory:
        try:
            drives = await rootfs.clone(nobody, directory)
            if len(drives) != 1 or drives[0].path.parent != directory:
                raise Unsupported(f"the rootfs of {rootfs.provider} cannot be written to a file")
            await uninterrupted(_publish, drives[0].path, output)
        finally:
            await rootfs.release(nobody)


def _publish(made: Path, output: Path) -> None:
    """Gives a finished file its name, durably; one that was there is replaced."""
    with no_space_as(output), made.open("rb+") as file:
        os.fchmod(file.fileno(), 0o666 & ~_umask())
        os.fsync(file.fileno())
    made.rename(output)
    descriptor = os.open(output.absolute().parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    """This process's umask. Asking sets it: /proc tells without."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o077


@contextlib.contextmanager
def _directory_beside(output: Path) -> Iterator[Path]:
    """A directory of our own on the filesystem of ``output``, gone after the block."""
    try:
        directory = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.absolute().parent))
    except OSError as error:
        raise Unauthorized(f"{output} cannot be written: {error.strerror}", hint="choose another --output") from error
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _directory_for(output: Path) -> Path:
    """Where ``output`` goes. Refuses what a rename could not or must not replace, before any work is done."""
    if not output.absolute().parent.is_dir():
        raise NotFound(f"the directory of {output} does not exist", hint="make it first")
    if output.exists() and not output.is_file():
        raise Invalid(f"{output} is there and is no regular file", hint="choose another --output")
    return output.absolute().parent
