"""Configuration: one frozen tree from TOML files. Each package owns its settings and their defaults; here they meet.

Read, the later over the earlier: /etc/castoff/config.toml, then $XDG_CONFIG_HOME/castoff/config.toml; or one file that
was named (``CASTOFF_CONFIG`` does too), alone; then ``CASTOFF_STATE``. docs/configuration.md tells of every setting.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from castoff.artifact.settings import ArtifactSettings
from castoff.errors import Invalid, NotFound
from castoff.fleet.settings import FleetSettings
from castoff.hydrate.settings import HydrateSettings
from castoff.image.settings import ImageSettings
from castoff.layers.settings import Limits
from castoff.lifecycle.settings import AgentSettings
from castoff.machine.settings import MachineSettings
from castoff.peers.settings import PeerSettings
from castoff.rootfs.settings import RootfsSettings
from castoff.sources.settings import SourceSettings
from castoff.store.settings import StoreSettings
from castoff.vmm.settings import VmmSettings

__all__ = ["Config", "convert", "default_files", "default_state", "load", "read_file"]

_LIMIT = 1024 * 1024


def default_state() -> Path:
    """Where state lives if nobody says otherwise: /var/lib/castoff for root, the XDG data directory for others."""
    if os.geteuid() == 0:
        return Path("/var/lib/castoff")
    return _xdg("XDG_DATA_HOME", ".local/share") / "castoff"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole configuration."""

    state: Path = msgspec.field(default_factory=default_state)
    """Directory of all that castoff keeps; ``--state`` and ``CASTOFF_STATE`` win over it. Without root the default is
    ``$XDG_DATA_HOME/castoff`` (``~/.local/share/castoff``)."""
    image: ImageSettings = ImageSettings()
    artifact: ArtifactSettings = ArtifactSettings()
    layers: Limits = Limits()
    store: StoreSettings = StoreSettings()
    rootfs: RootfsSettings = RootfsSettings()
    sources: SourceSettings = SourceSettings()
    hydrate: HydrateSettings = HydrateSettings()
    peers: PeerSettings = PeerSettings()
    fleet: FleetSettings = FleetSettings()
    vmm: VmmSettings = VmmSettings()
    machine: MachineSettings = MachineSettings()
    agent: AgentSettings = AgentSettings()


def default_files() -> tuple[Path, ...]:
    """The files that are read where they exist, in the order in which they are laid over each other."""
    return Path("/etc/castoff/config.toml"), _xdg("XDG_CONFIG_HOME", ".config") / "castoff" / "config.toml"


def load(file: Path | None = None, *, state: Path | None = None) -> Config:
    """The configuration.

    Args:
        file: The one file to read, which must exist; None: what ``CASTOFF_CONFIG`` names, or the usual ones that exist.
        state: Wins over ``CASTOFF_STATE``, which wins over the files' ``state``.

    Raises:
        NotFound: ``file`` does not exist.
        Invalid: A file is not TOML, or has an unknown key or a value of the wrong type; named with the file.
    """
    if file is None and os.environ.get("CASTOFF_CONFIG"):
        file = Path(os.environ["CASTOFF_CONFIG"])
    if state is None and os.environ.get("CASTOFF_STATE"):
        state = Path(os.environ["CASTOFF_STATE"])
    files = [file] if file is not None else [found for found in default_files() if _is_there(found)]
    merged: dict[str, Any] = {}
    for found in files:
        merged = _laid_over(merged, read_file(found))
    if state is not None:
        merged["state"] = str(state)
    config = convert(merged, files[-1] if files else Path("configuration"))
    try:
        return msgspec.structs.replace(config, state=config.state.expanduser().absolute())
    except RuntimeError as error:  # pathlib's, for `~somebody`
        raise Invalid(f"the state directory {config.state} is nobody's home", hint="write its whole path") from error


def read_file(path: Path) -> dict[str, Any]:
    """One file's tree, checked by itself so that an error names the file that has it.

    Raises:
        NotFound, Invalid: As :func:`load`.
    """
    import tomllib  # on the warm path only where a file exists

    try:
        with path.open("rb") as file:
            data = file.read(_LIMIT + 1)
    except FileNotFoundError as error:
        raise NotFound(f"configuration file {path} does not exist") from error
    except OSError as error:
        raise Invalid(f"configuration file {path} cannot be read: {error.strerror}") from error
    if len(data) > _LIMIT:
        raise Invalid(f"configuration file {path} is over {_LIMIT >> 10} KiB")
    try:
        tree = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"configuration file {path} is not TOML: {error}") from error
    convert(tree, path)
    return tree


def convert(tree: Mapping[str, Any], path: Path) -> Config:
    """A tree of plain values as configuration.

    Raises:
        Invalid: It has an unknown key or a value of the wrong type; ``path`` is named with it.
    """
    try:
        return msgspec.convert(tree, Config, dec_hook=_path)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        key = where.strip("`").lstrip(".")
        place = f"`{key}` in {path}" if key else str(path)
        raise Invalid(
            f"configuration {place}: {what[:1].lower()}{what[1:]}", hint="docs/configuration.md lists every setting"
        ) from error


def _path(kind: type[Any], value: Any) -> Any:
    """msgspec knows no paths: makes them of strings."""
    if kind is not Path:
        raise NotImplementedError(kind)
    if not isinstance(value, str) or "\0" in value or not value:
        raise ValueError("Expected a path")
    return Path(value)


def _laid_over(under: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over``'s values on top of ``under``'s, table by table; lists are replaced whole."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        result[key] = _laid_over(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return result


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise Invalid(f"configuration file {path} cannot be read: {error.strerror}", hint="is HOME yours?") from error
    return True


def _xdg(variable: str, fallback: str) -> Path:
    """A directory of the XDG base directory specification, which says to pass over relative ones."""
    named = os.environ.get(variable, "")
    if named.startswith("/"):
        return Path(named)
    try:
        return Path.home() / fallback
    except RuntimeError as error:  # pathlib's, for a user id without an account
        raise Invalid("this user has no home directory", hint=f"set HOME or {variable}") from error
