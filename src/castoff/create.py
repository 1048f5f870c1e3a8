"""The story of a create: an image reference becomes a running machine, top to bottom.

What was done is undone when a later step fails or is cancelled. What a crash leaves is found by its record, which is on
disk before anything else of the machine is (castoff.machine.leftovers).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from castoff.config import Config
from castoff.disk.clone import Drive, Role, inherited, volume_role
from castoff.errors import Invalid, NotFound
from castoff.image.image import Image, Platform
from castoff.image.opening import open_source
from castoff.image.platforms import host_platform
from castoff.image.reference import parse_reference
from castoff.image.source import ImageSource
from castoff.machine.drivers import prepare
from castoff.machine.hardware import hardware
from castoff.machine.identity import Owner
from castoff.machine.known import Known
from castoff.machine.memory import check_memory
from castoff.machine.model import MachineId, MachineRecord, MachineRequest, MachineState, check_name, new_machine_id
from castoff.machine.ports import check_ports
from castoff.machine.process import guest_settings
from castoff.machine.records import MachineRecords
from castoff.rootfs.chain import configured_chain
from castoff.rootfs.context import ProviderContext
from castoff.rootfs.provider import Rootfs, RootfsRequest
from castoff.store.builds import uninterrupted
from castoff.store.store import Store
from castoff.vmm.guest import GuestSettings
from castoff.vmm.initramfs import assemble
from castoff.vmm.process import user_ids
from castoff.vmm.rates import granted
from castoff.vmm.vmm import MachineSpec

if TYPE_CHECKING:
    from castoff.machine.hydration import Hydration
    from castoff.machine.machine import Machine

__all__ = ["create", "locate", "opened"]

T = TypeVar("T")


async def create(
    request: MachineRequest,
    *,
    config: Config,
    store: Store,
    providers: ProviderContext,
    records: MachineRecords,
    known: Known | None = None,
) -> Machine:
    """Makes the machine that ``request`` asks for, and returns when its command runs.

    Args:
        request: What is asked for.
        config: The host's.
        store: What it keeps.
        providers: Of root filesystems.
        records: Where machines are written down.
        known: What this process has looked up for machines before.

    Raises:
        CastoffError: A step failed; all that came before it was undone.
    """
    network = config.machine.network == "user" if request.network is None else request.network
    if request.ports and not network:
        raise Invalid("a port cannot be published of a machine without a network", hint="leave --publish or --network none away")
    memory = config.machine.memory if request.memory is None else request.memory
    check_memory(memory)
    check_ports(request.ports)
    rates = granted(config.vmm.rates, request.rates, card=request.tap is not None)
    machine_id = request.id or new_machine_id()
    name = check_name(request.name) if request.name else machine_id
    async with (
        contextlib.AsyncExitStack() as undo,
        contextlib.AsyncExitStack() as held,
        _beside(
            prepare(config.vmm, request, store, network=network and request.tap is None, known=known.kernels if known else None)
        ) as prepared,
        opened(request.image, request.platform, config=config, store=store, known=known) as (source, image),
    ):
        guest = guest_settings(image.config, request, hostname=name, linger=config.vmm.linger_seconds)
        record = _first_record(machine_id, name, request, image, guest)
        undo.push_async_callback(_remove, record, records, providers)
        record = await uninterrupted(records.add, record, user_ids(machine_id, config.vmm))
        directory = records.path(machine_id)

        async with _beside(_clone(request, image, source, providers, machine_id, directory, held)) as cloned:
            # A kernel that is missing is told at once, not when an image has been fetched for it.
            done, _ = await asyncio.wait((prepared, cloned), return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
            drives = await cloned
            hydration = _hydration(drives, directory, providers, undo)
            kernel, vmm = await prepared
        spec = MachineSpec(
            id=machine_id,
            directory=directory,
            cpus=config.machine.cpus if request.cpus is None else request.cpus,
            memory=memory,
            kernel=kernel.path,
            initramfs=assemble(kernel, guest, directory / "initramfs"),
            drives=(*drives, *_volumes(request)),
            ports=request.ports,
            network=network,
            tap=request.tap,
            user=record.user,
            rates=rates,
        )
        handle = await vmm.start(spec)
        undo.push_async_callback(handle.kill)
        await held.aclose()
        record = msgspec.structs.replace(
            record,
            state=MachineState.STARTED,
            vmm=vmm.name,
            vmm_state=handle.state(),
            hardware=hardware(spec),
            lazy=hydration is not None,
        )
        from castoff.machine.boot import boot  # 15 ms that the VMM need not wait for

        async with _beside(uninterrupted(records.update, record)) as written:
            machine = await boot(
                record,
                records,
                providers,
                handle=handle,
                hydration=hydration,
                timeout=config.machine.boot_timeout,
                guest=guest,
            )
            await written
        undo.pop_all()
    return machine


@contextlib.asynccontextmanager
async def opened(
    reference: str, platform: Platform | None, *, config: Config, store: Store, known: Known | None = None
) -> AsyncIterator[tuple[ImageSource, Image]]:
    """The source that ``reference`` names, and its image, for the block.

    Raises:
        CastoffError: It is no reference, or there is no such image.
    """
    source = open_source(parse_reference(reference), config.image, store.images, known.images if known else None)
    try:
        yield source, await source.resolve(platform or host_platform())
    finally:
        await source.close()


async def locate(request: MachineRequest, image: Image, source: ImageSource, providers: ProviderContext) -> Rootfs:
    """The rootfs of the provider that the request names, or of the first that has one.

    Raises:
        NotFound: No provider has one.
        CastoffError: What the provider raised.
    """
    override = request.rootfs if isinstance(request.rootfs, Path) else None
    name = "prepared" if override is not None else request.rootfs
    chain = configured_chain(providers.only(name) if isinstance(name, str) else providers)
    rootfs = await chain.locate(_rootfs_request(request, image, source, override))
    if rootfs is None:
        what = "no provider has a root filesystem" if name is None else f"{name} has no root filesystem"
        raise NotFound(f"{what} for {request.image}", hint="see rootfs.providers in `castoff config show`")
    return rootfs


def _rootfs_request(request: MachineRequest, image: Image, source: ImageSource, override: Path | None) -> RootfsRequest:
    return RootfsRequest(image, source, size=request.disk_size, override=override, clone=request.clone, lazy=request.lazy)


def _first_record(machine_id: MachineId, name: str, request: MachineRequest, image: Image, guest: GuestSettings) -> MachineRecord:
    """What is written down before anything else of the machine is made."""
    return MachineRecord(
        id=machine_id,
        name=name,
        state=MachineState.CREATING,
        owner=Owner.this(),
        created=time.time(),
        keep=request.keep,
        agent=request.agent,
        image=_as_text(request.image),
        digest=str(image.digest),
        command=tuple(map(_as_text, guest.argv)),
    )


def _as_text(word: str) -> str:
    """A word of the command line for the record, which is JSON: bytes that are no UTF-8 (PEP 383) are shown as such."""
    return word.encode(errors="surrogateescape").decode(errors="replace")


async def _clone(
    request: MachineRequest,
    image: Image,
    source: ImageSource,
    providers: ProviderContext,
    machine_id: MachineId,
    directory: Path,
    held: contextlib.AsyncExitStack,
) -> Sequence[Drive]:
    """The machine's drives; descriptors that the VMM will inherit are closed here with ``held``."""
    if request.existing is not None:
        # Linked: where the create fails, the other name is left with all that it had.
        (directory / "root.ext4").hardlink_to(request.existing)
        return [Drive(Role.ROOT, directory / "root.ext4", read_only=False, direct=True)]
    rootfs = await locate(request, image, source, providers)
    drives = await rootfs.clone(machine_id, directory)
    for descriptor in inherited(drives):
        held.callback(os.close, descriptor)
    return drives


def _volumes(request: MachineRequest) -> list[Drive]:
    """The drives of the machine's volumes, after its own."""
    return [
        Drive(volume_role(number), volume.path, read_only=False, direct=True) for number, volume in enumerate(request.volumes)
    ]


def _hydration(
    drives: Sequence[Drive], directory: Path, providers: ProviderContext, undo: contextlib.AsyncExitStack
) -> Hydration | None:
    """Follows how the machine's data comes in, from now on; None where it is all here."""
    if not inherited(drives):
        return None
    from castoff.machine.hydration import Hydration  # not for machines that have it all

    hydration = Hydration(providers.store.state, directory, providers.notice)
    undo.push_async_callback(hydration.close)
    return hydration


async def _remove(record: MachineRecord, records: MachineRecords, providers: ProviderContext) -> None:
    from castoff.machine.removal import remove_machine  # wanted by creates that fail

    await remove_machine(record, records, providers)


@contextlib.asynccontextmanager
async def _beside(work: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """Runs ``work`` beside the block, as a task of its own, and ends it with the block."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
