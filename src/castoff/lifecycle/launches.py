"""From what the agent knows of a machine to one boot of it: environment, files, volumes."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Mapping
from typing import Protocol

from castoff.errors import Invalid, NotFound
from castoff.lifecycle.config import File
from castoff.lifecycle.launcher import Launch
from castoff.lifecycle.model import Machine
from castoff.lifecycle.ports import Published
from castoff.lifecycle.processes import process_variables
from castoff.lifecycle.states import State
from castoff.vmm.guest import GuestFile

__all__ = ["SecretValues", "VolumeFiles", "begins_anew", "build_launch", "file_content", "identification"]


class SecretValues(Protocol):
    """Knows the secrets of apps."""

    async def values(self, app: str) -> Mapping[str, str]:
        """An app's secrets, by name."""
        ...

    async def version(self, app: str) -> int:
        """Their version: one more with each change."""
        ...


class VolumeFiles(Protocol):
    """Gives volumes to machines."""

    def check(self, app: str, volume: str, machine: str | None = None) -> None:
        """Refuses a volume that a machine, or a new one, could not have now.

        Raises:
            NotFound: The app has no such volume.
            Conflict: Another machine has it.
        """
        ...

    async def attach(self, app: str, volume: str, machine: str, *, grow: bool = True) -> str:
        """Reserves a volume for a machine, which has it until ``detach``; the file that holds it. Idempotent.

        Args:
            app: Whose volume.
            volume: Its id.
            machine: Who gets it.
            grow: The file may be made as large as it shall be. Not for a machine that goes on from its memory, which has the
                filesystem mounted.

        Raises:
            NotFound: The app has no such volume.
            Conflict: Another machine has it.
        """
        ...

    async def detach(self, machine: str, *, keep: Collection[str] = ()) -> None:
        """Gives back all that a machine has, but ``keep``. Idempotent."""
        ...


def identification(machine: Machine) -> dict[str, str]:
    """The variables by which a machine knows itself: those of the API's own platform, and the same as castoff's."""
    facts = {
        "APP_NAME": machine.app,
        "MACHINE_ID": machine.id,
        "ALLOC_ID": machine.id,
        "MACHINE_VERSION": machine.version,
        "REGION": machine.region,
        "IMAGE_REF": machine.config.image,
        "PROCESS_GROUP": machine.metadata.get("fly_process_group", ""),
    }
    guest = machine.config.guest
    facts["PRIVATE_IP"] = machine.address6
    facts["VM_MEMORY_MB"] = str((guest.memory_mb if guest else None) or 256)
    return {f"{prefix}_{name}": value for prefix in ("FLY", "CASTOFF") for name, value in facts.items() if value}


async def build_launch(
    machine: Machine,
    *,
    secrets: SecretValues,
    volumes: VolumeFiles,
    ports: tuple[Published, ...] = (),
    fresh: bool,
    resume: bool = False,
) -> Launch:
    """What the launcher is given.

    Raises:
        NotFound: A secret or a volume that the configuration names is missing.
        Conflict: Another machine has one of its volumes.
    """
    values = await secrets.values(machine.app)
    files = [_file(file, values) for file in machine.config.files or ()]
    mounted = [mount.volume for mount in machine.config.mounts or ()]
    await volumes.detach(machine.id, keep=mounted)  # what an earlier configuration had
    paths = [await volumes.attach(machine.app, volume, machine.id, grow=not resume) for volume in mounted]
    facts = identification(machine)
    return Launch(
        machine=machine.id,
        name=machine.name,
        app=machine.app,
        version=machine.version,
        digest=machine.digest,
        config=machine.config,
        env={**values, **facts},
        processes=tuple(
            process_variables(process, machine, secrets=values, facts=facts) for process in machine.config.processes or ()
        ),
        files=tuple(files),
        volumes=tuple(paths),
        address=machine.address,
        address6=machine.address6,
        ports=ports,
        fresh=fresh,
        resume=resume,
    )


def begins_anew(machine: Machine, *, restart: bool) -> bool:
    """Whether the root filesystem begins anew. It does for another image than the one that ran last, persistent or not.

    Args:
        machine: The machine; ``rootfs.persist`` by name or as the API's number (0 and 1: never, 2: restart, 3: always).
        restart: It does not stop in between.
    """
    persist = machine.config.rootfs.persist if machine.config.rootfs is not None else None
    kept = {"restart": 2, "always": 3}.get(persist, 0) if isinstance(persist, str) else persist or 0
    if kept < (2 if restart else 3):
        return True
    for event in machine.events:
        if event.type == "start" and event.status == State.STARTED:
            return False
        if event.type == "update" and event.request is not None and event.request.get("image_changed"):
            return True
    return False


def _file(file: File, values: Mapping[str, str]) -> GuestFile:
    if file.secret_name is None:
        return GuestFile(file.guest_path, file_content(file), file.mode or 0o644)
    if file.secret_name not in values:
        raise NotFound(f"files: the app has no secret {file.secret_name[:80]!r}", hint="set it, then start the machine")
    # A secret that is base64 is a file of any bytes, as the API has it; another one is text.
    value = values[file.secret_name]
    try:
        data = base64.b64decode(value, validate=True)
    except binascii.Error:
        data = value.encode()
    return GuestFile(file.guest_path, data, file.mode or 0o600)


def file_content(file: File) -> bytes:
    """What a file that names no secret holds.

    Raises:
        Invalid: It has no content.
    """
    if file.raw_value is None:
        raise Invalid(f"files: {file.guest_path[:80]!r} has neither raw_value nor secret_name")
    try:
        return base64.b64decode(file.raw_value, validate=True)
    except binascii.Error as error:
        raise Invalid(f"files: raw_value of {file.guest_path[:80]!r} is not base64") from error
