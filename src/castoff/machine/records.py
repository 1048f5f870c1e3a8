"""Machine records on disk: ``MACHINES/<id>/machine.json``, and what is left of machines whose process is gone.

A directory appears whole, by rename, with its record in it, and goes whole, by rename to a name that tells who is
deleting it: so a crash at any instant leaves either a machine with an owner, or debris with one, and both can be told
from those that live.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import msgspec

from castoff.errors import CastoffError, Conflict, Internal, Invalid, NoSpace, NotFound
from castoff.machine.identity import Owner
from castoff.machine.model import MachineId, MachineRecord, parse_machine_id
from castoff.store.durable import fsync_path, replace_file
from castoff.timeline import step

__all__ = ["MachineRecords"]

_FILE = "machine.json"
_LIMIT = 1024 * 1024
_DEBRIS = "."
"""First character of names that are no machine: ``.OWNER.ID`` is being made or being deleted by OWNER."""


class MachineRecords:
    """The machines of one host. Every method blocks on the disk: call from a thread where an event loop runs.

    Args:
        directory: The directory of all machines; made when the first one is.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._users = directory.with_name(f"{directory.name}.users")

    @property
    def directory(self) -> Path:
        """The directory of all machines."""
        return self._directory

    def path(self, machine_id: str) -> Path:
        """A machine's own directory."""
        return self._directory / parse_machine_id(machine_id)

    def add(self, record: MachineRecord, users: Iterable[int] | None = None) -> MachineRecord:
        """Makes a machine's directory with its record, durably.

        Args:
            record: What is known of it.
            users: User ids that it may have; it gets the first that no other machine has. None, or empty: none.

        Returns:
            The record, with its user.

        Raises:
            Conflict: Another machine has its name or id; or all of the users are taken.
            NoSpace: The disk is full.
        """
        place = self.path(record.id)
        making = self._directory / f"{_DEBRIS}{record.owner}.{record.id}"
        rest = iter(() if users is None else users)
        record = msgspec.structs.replace(record, user=next(rest, None))
        with step("machine.records", machine=record.id), _disk(place):
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o711)
            making.mkdir(mode=0o711)
            try:
                _write(making, record)
                with _alone(self._directory):
                    if self._is_taken(record):
                        raise Conflict(
                            f"a machine named {record.name!r} exists",
                            hint=f"take another name, or `castoff machine remove {record.name}`",
                        )
                    if record.user is not None:
                        user = self._claim(record.id, chain((record.user,), rest))
                        if user != record.user:  # seldom: so it was written before anybody waits for the lock
                            record = msgspec.structs.replace(record, user=user)
                            _write(making, record)
                    making.rename(place)
            except BaseException:
                _delete(making)
                raise
            fsync_path(self._directory)
        return record

    def _claim(self, machine_id: MachineId, users: Iterable[int]) -> int:
        """The first of the users that no machine has, which is this machine's from now on. For one process at a time.

        A claim is a symlink named by the user that leads to the machine's id: made at once or not, and found without reading
        others' records. That of a machine that is gone counts no more."""
        self._users.mkdir(mode=0o700, exist_ok=True)
        for user in users:
            claim = self._users / str(user)
            try:
                claim.symlink_to(machine_id)
            except FileExistsError:
                if self._holds(claim):
                    continue
                claim.unlink()
                claim.symlink_to(machine_id)
            return user
        raise Conflict("every user id for machines is taken", hint="remove machines, or give castoff more: vmm.uid_count")

    def _holds(self, claim: Path) -> bool:
        """Whether a claim's machine is still there."""
        return (self._directory / claim.readlink().name).is_dir()

    def _release(self, claims: Iterable[str]) -> None:
        """Drops those claims whose machine is gone."""
        with _disk(self._users), _alone(self._directory):
            for name in claims:
                with contextlib.suppress(FileNotFoundError):
                    if not self._holds(self._users / name):
                        (self._users / name).unlink()
            with contextlib.suppress(OSError):  # others have claims, or nobody ever had one
                self._users.rmdir()

    def _is_taken(self, record: MachineRecord) -> bool:
        """Whether its id or its name is another's. Where it is named by its id, as all of an agent's are, no other is looked at:
        with a thousand of them each create would read a thousand records."""
        if record.name == record.id:
            return self.path(record.id).exists()
        return any(other.name == record.name or other.id == record.id for other in self)

    def update(self, record: MachineRecord) -> None:
        """Replaces a machine's record, durably."""
        with _disk(self.path(record.id)):
            _write(self.path(record.id), record)

    def get(self, name_or_id: str) -> MachineRecord:
        """One machine by its id or its name. An id is looked at first, and alone where there is such a machine.

        Raises:
            NotFound: There is none.
        """
        with contextlib.suppress(CastoffError):
            return _read(self.path(name_or_id))
        for record in self:
            if name_or_id in (record.id, record.name):
                return record
        raise NotFound(f"no machine {name_or_id[:80]!r}", hint="`castoff machine list` shows those that are here")

    def __iter__(self) -> Iterator[MachineRecord]:
        """Every machine, by id. One whose record is broken is passed over here; :meth:`broken` finds it."""
        for directory in self._directories():
            with contextlib.suppress(CastoffError):
                yield _read(directory)

    def broken(self) -> Iterator[tuple[Path, CastoffError]]:
        """Machine directories whose record cannot be read, and why."""
        for directory in self._directories():
            try:
                _read(directory)
            except NotFound:
                continue  # removed meanwhile
            except CastoffError as error:
                yield directory, error

    def remove(self, machine_id: str) -> None:
        """Deletes a machine's directory. Idempotent; of several processes that try, one does it."""
        doomed = self._directory / f"{_DEBRIS}{Owner.this()}.{machine_id}"
        user = None
        with contextlib.suppress(CastoffError):  # where its record is broken, a sweep finds its claim
            user = _read(self.path(machine_id)).user
        with _disk(doomed):
            try:
                self.path(machine_id).rename(doomed)
            except FileNotFoundError:
                return
            if user is not None:
                self._release([str(user)])
            _delete(doomed)

    def sweep_debris(self) -> int:
        """Deletes what processes that are gone were making or deleting; of how many machines."""
        count = 0
        if claims := _names(self._users):
            self._release(claims)
        for name in _names(self._directory):
            if not name.startswith(_DEBRIS):
                continue
            owner = name[len(_DEBRIS) :].partition(".")[0]
            with contextlib.suppress(Invalid):  # a name that is none of ours is not ours to delete
                if not Owner.parse(owner).alive():
                    with _disk(self._directory / name):
                        _delete(self._directory / name)
                    count += 1
        return count

    def _directories(self) -> Iterator[Path]:
        for name in sorted(_names(self._directory)):
            if not name.startswith(_DEBRIS):
                yield self._directory / name


def _names(directory: Path) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(directory)]
    except FileNotFoundError:
        return []


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """One process at a time looks whether a name is free and takes it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _delete(directory: Path) -> None:
    """Deletes a tree. Two sweeps may meet in one: what the other one deleted is deleted."""
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        shutil.rmtree(directory)  # says why


def _read(directory: Path) -> MachineRecord:
    file = directory / _FILE
    try:
        with file.open("rb") as opened:
            data = opened.read(_LIMIT + 1)
        record = msgspec.json.decode(data, type=MachineRecord)
    except FileNotFoundError as error:
        raise NotFound(f"{file} does not exist") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Invalid(f"machine record {file} is broken: {error}", hint=f"delete {directory} when no VMM uses it") from error
    except OSError as error:
        raise Internal(f"machine record {file} cannot be read: {error.strerror}") from error
    if record.id != directory.name:
        raise Invalid(
            f"machine record {file} is of another machine, {record.id[:40]!r}", hint=f"delete {directory} when no VMM uses it"
        )
    return record


def _write(directory: Path, record: MachineRecord) -> None:
    replace_file(
        directory / _FILE, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n", mode=0o600
    )  # arguments may be secrets


@contextlib.contextmanager
def _disk(where: Path) -> Iterator[None]:
    """Translates what the disk says."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(str(where), needed=_LIMIT, available=0) from error
        raise Internal(
            f"machine directory {where} cannot be written: {error.strerror}", hint="is --state yours to write?"
        ) from error
