"""What a machine's directory says of its rootfs: ``machines/<id>/rootfs.json``.

Written before a machine's clone is made. Pruning reads it, so that nothing goes that a machine stands on; and whoever
destroys the machine, perhaps in another process, learns from it which provider must give something back.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from castoff.errors import Invalid
from castoff.store.durable import replace_file

__all__ = ["MachineRootfs", "machine_rootfs", "read_machine_rootfs", "write_machine_rootfs"]

_FILE = "rootfs.json"


class MachineRootfs(msgspec.Struct, frozen=True, kw_only=True):
    """On what a machine stands."""

    version: int = 1
    provider: str
    """Who provided its rootfs, and is asked to release it."""
    rootfs: str = ""
    """Name of the rootfs in the store, ``<key>-<size>``; empty where it is none of the store's."""
    layers: tuple[str, ...] = ()
    """diffIDs of the layers that it is made of, if any."""
    state: dict[str, str] = {}
    """What the provider must know to release it."""


def write_machine_rootfs(directory: Path, record: MachineRootfs, *, durable: bool = False) -> None:
    """Writes a machine's record.

    Args:
        directory: The machine's.
        record: What it says.
        durable: Flush it: for what outlives a crash of the host elsewhere. Else the machine's own record, which its creator
            flushes, acknowledges it.
    """
    replace_file(directory / _FILE, msgspec.json.encode(record), durable=durable)


def read_machine_rootfs(directory: Path) -> MachineRootfs | None:
    """A machine's record; None where it has none.

    Raises:
        Invalid: It is broken.
    """
    path = directory / _FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=MachineRootfs)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except msgspec.MsgspecError as error:
        raise Invalid(f"{path}: {error}", hint="remove the machine that it belongs to") from error


def machine_rootfs(machines: Path) -> Iterator[tuple[Path, MachineRootfs]]:
    """Every machine directory that has a record, also one that is being made or deleted."""
    for directory in sorted(machines.iterdir()):
        record = read_machine_rootfs(directory)
        if record is not None:
            yield directory, record
