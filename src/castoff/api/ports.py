"""What the API needs of apps, volumes, secrets and releases; castoff.lifecycle has them.

Times are Unix milliseconds, sizes bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

__all__ = ["App", "Apps", "Release", "Releases", "Secret", "Secrets", "Snapshot", "Volume", "Volumes"]


class App(Protocol):
    """A name that machines, volumes and secrets belong to."""

    @property
    def name(self) -> str: ...
    @property
    def number(self) -> int: ...
    @property
    def network(self) -> str: ...


class Apps(Protocol):
    """All apps."""

    def list(self) -> Sequence[App]:
        """Every one."""
        ...

    def get(self, name: str) -> App:
        """One.

        Raises:
            NotFound: There is none.
        """
        ...

    async def create(self, name: str, *, organization: str, network: str) -> App:
        """Makes one.

        Raises:
            Conflict: There is one of this name.
            Invalid: It could not be a name.
        """
        ...

    async def delete(self, name: str, *, used: Callable[[], str]) -> None:
        """Deletes one.

        Args:
            name: Its name.
            used: Says what still belongs to it; empty: nothing.

        Raises:
            NotFound: There is none.
            Conflict: Something belongs to it.
        """
        ...


class Volume(Protocol):
    """A filesystem of an app's that outlives its machines."""

    @property
    def id(self) -> str: ...
    @property
    def app(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def region(self) -> str: ...
    @property
    def fstype(self) -> str: ...
    @property
    def machine(self) -> str | None: ...
    @property
    def snapshot_retention(self) -> int: ...
    @property
    def auto_backup(self) -> bool: ...
    @property
    def created(self) -> int: ...


class Snapshot(Protocol):
    """A volume as it was."""

    @property
    def id(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def volume_size(self) -> int: ...
    @property
    def digest(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def retention_days(self) -> int: ...
    @property
    def created(self) -> int: ...


class Volumes(Protocol):
    """All volumes. ``app`` None: of any app. All raise NotFound for one that is not there."""

    def list(self, app: str | None = None) -> Sequence[Volume]:
        """Those of an app."""
        ...

    def get(self, app: str | None, id: str) -> Volume:
        """One."""
        ...

    async def create(
        self,
        app: str,
        name: str,
        *,
        size: int | None,
        fstype: str,
        snapshot: str | None,
        source: str | None,
        snapshot_retention: int,
        auto_backup: bool,
    ) -> Volume:
        """Makes one: empty, of a snapshot, or as a fork of another volume."""
        ...

    async def update(self, app: str, id: str, *, snapshot_retention: int | None, auto_backup: bool | None) -> Volume:
        """Changes what is not None."""
        ...

    async def delete(self, app: str, id: str) -> Volume:
        """Deletes one.

        Raises:
            Conflict: A machine has it.
        """
        ...

    def snapshots(self, app: str, id: str) -> Sequence[Snapshot]:
        """Its snapshots."""
        ...


class Secret(Protocol):
    """A secret without its value."""

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def created(self) -> int: ...
    @property
    def updated(self) -> int: ...


class Secrets(Protocol):
    """The secrets of all apps."""

    async def list(self, app: str) -> Sequence[Secret]:
        """Those of an app."""
        ...

    async def get(self, app: str, name: str) -> Secret:
        """One.

        Raises:
            NotFound: There is none.
        """
        ...

    async def values(self, app: str) -> Mapping[str, str]:
        """An app's secrets, by name."""
        ...

    async def version(self, app: str) -> int:
        """The version of an app's secrets."""
        ...

    async def set(self, app: str, values: Mapping[str, str | None]) -> int:
        """Sets some and removes those that are None; the new version of the app's secrets."""
        ...

    def forget(self, app: str) -> None:
        """The app was deleted, and its secrets with it."""
        ...


class Release(Protocol):
    """What ``flyctl deploy`` writes down of a deployment."""

    @property
    def id(self) -> str: ...
    @property
    def app(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def image(self) -> str: ...
    @property
    def strategy(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def definition(self) -> Mapping[str, Any]: ...
    @property
    def owner(self) -> str: ...
    @property
    def created(self) -> int: ...
    @property
    def in_progress(self) -> bool: ...


class Releases(Protocol):
    """The releases of all apps."""

    async def list(self, app: str, *, limit: int) -> Sequence[Release]:
        """Those of an app, the newest first."""
        ...

    async def current(self, app: str) -> Release | None:
        """An app's newest one."""
        ...

    async def newest(self) -> Sequence[Release]:
        """The newest one of each app."""
        ...

    async def get(self, id: str) -> Release:
        """One.

        Raises:
            NotFound: There is none.
        """
        ...

    async def create(self, app: str, *, image: str, strategy: str, definition: Mapping[str, Any], owner: str) -> Release:
        """Writes one down, ``pending``.

        Raises:
            NotFound: There is no such app.
        """
        ...

    async def set_status(self, id: str, status: str) -> Release:
        """Tells how one fares.

        Raises:
            NotFound: There is none.
            Invalid: ``status`` is no word.
        """
        ...
