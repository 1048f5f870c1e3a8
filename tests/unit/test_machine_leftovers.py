"""What machines leave whose process is gone."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from castoff.machine.identity import Owner
from castoff.machine.leftovers import sweep
from castoff.machine.model import MachineRecord, MachineState, new_machine_id
from castoff.machine.records import MachineRecords
from castoff.rootfs.context import ProviderContext
from castoff.store.machines import MachineRootfs, write_machine_rootfs
from castoff.store.settings import StoreSettings
from castoff.store.store import Store
from castoff.vmm.settings import VmmSettings


@pytest.fixture(name="host")
def _host(tmp_path: Path) -> tuple[MachineRecords, ProviderContext]:
    store = Store.open(tmp_path, StoreSettings(backing="native"))
    return MachineRecords(store.machines), ProviderContext(store)


def _dead() -> Owner:
    """The identity of a process that has ended."""
    code = "from castoff.machine.identity import Owner; print(Owner.this())"
    return Owner.parse(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.strip())


def _record(owner: Owner, **more: object) -> MachineRecord:
    identity = new_machine_id()
    fields = {"state": MachineState.CREATING, "owner": owner, "created": time.time(), "keep": False, "image": "x"}
    return MachineRecord(**({"id": identity, "name": identity} | fields | more))


@contextmanager
def _process(name: str, file: Path | None) -> Iterator[subprocess.Popen[bytes]]:
    """A process with ``name`` among its arguments that holds ``file`` open."""
    with ExitStack() as stack:
        opened = stack.enter_context(file.open("wb")) if file else subprocess.DEVNULL
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "-name", name], stdout=opened)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


async def test_a_vmm_that_nobody_wrote_down_is_found_and_ended(host: tuple[MachineRecords, ProviderContext]) -> None:
    """By its name and its files together: a person's process that has one of the two is left alone."""
    records, providers = host
    record = _record(_dead())
    records.add(record)
    directory = records.path(record.id)
    name = f"castoff-{record.id}"
    with (
        _process(name, directory / "console.log") as vmm,
        _process(name, None) as pgrep,
        _process("less", directory / "console.log.copy") as less,
    ):
        await sweep(records, VmmSettings(), providers)
        assert vmm.wait(10) == -9
        assert pgrep.poll() is None and less.poll() is None
    assert not directory.exists()


async def test_machines_of_the_living_and_those_that_are_kept_stay(host: tuple[MachineRecords, ProviderContext]) -> None:
    """A kept one's record tells that it ended; its directory is a person's to remove."""
    records, providers = host
    alive, kept, gone = _record(Owner.this()), _record(_dead(), keep=True), _record(_dead(), state=MachineState.STARTED)
    for record in (alive, kept, gone):
        records.add(record)
    await sweep(records, VmmSettings(), providers)
    assert {record.id: record.state for record in records} == {alive.id: MachineState.CREATING, kept.id: MachineState.EXITED}


async def test_one_that_cannot_be_released_is_told_and_does_not_stop_the_others(
    host: tuple[MachineRecords, ProviderContext],
) -> None:
    """Its provider is gone from the configuration: it is left for a time when it is back."""
    records, providers = host
    stuck, gone = _record(_dead()), _record(_dead())
    for record in (stuck, gone):
        records.add(record)
    write_machine_rootfs(records.path(stuck.id), MachineRootfs(provider="uninstalled"))
    told: list[str] = []
    await sweep(records, VmmSettings(), providers, told.append)
    assert [record.id for record in records] == [stuck.id]
    assert len(told) == 1 and stuck.id in told[0] and "uninstalled" in told[0]


async def test_debris_that_cannot_be_deleted_is_told_and_stops_nobody(host: tuple[MachineRecords, ProviderContext]) -> None:
    """A new machine starts all the same, and a run that ended well ends well."""
    records, providers = host
    debris = records.path(new_machine_id()).with_name(f".{_dead()}.x")
    debris.parent.mkdir(exist_ok=True)
    debris.touch()  # no directory, so that deleting it as one fails
    said: list[str] = []
    await sweep(records, VmmSettings(), providers, said.append)
    assert len(said) == 1 and debris.name in said[0]
