"""Finds providers by name through the entry point group ``castoff.rootfs_providers``, ours as anybody's.

importlib.metadata takes 15-35 ms to import and reads every installed package's files; a warm create has no such time to
give. What an entry point is takes far less to find: a line ``name = module:object`` under ``[group]`` in the
``entry_points.txt`` of some ``*.dist-info`` directory on ``sys.path``
(https://packaging.python.org/en/latest/specifications/entry-points/). So those files are read here, and importlib.metadata
is asked only when they lack the name (eggs, zipped packages, import hooks).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from castoff.errors import NotFound, Unsupported

__all__ = ["GROUP", "load_plugin"]

GROUP = "castoff.rootfs_providers"


def load_plugin(name: str, group: str = GROUP) -> Any:
    """Imports the object that the entry point ``name`` names; the first on ``sys.path`` wins.

    Raises:
        NotFound: No installed package has such an entry point.
        Unsupported: Its module cannot be imported.
    """
    return _load(name, group, tuple(sys.path))


@lru_cache(64)
def _load(name: str, group: str, path: tuple[str, ...]) -> Any:
    """Once for a process: an agent asks at every create, and looking through the packages takes it longer than all else."""
    value = next((found for key, found in _quick(group, path) if key == name), None) or _slow(name, group)
    module, _, attribute = value.partition(":")
    try:
        found: Any = importlib.import_module(module.strip())
        for part in attribute.partition("[")[0].strip().split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise Unsupported(
            f"{name!r} of {group} is {value} and cannot be imported: {error}",
            hint="install what it needs, or take it out of the configuration",
        ) from error
    return found


def _quick(group: str, path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(name, value) of the group's entry points in the plain packages on ``sys.path``."""
    for place in path:
        try:
            packages = sorted(Path(place or ".").glob("*.dist-info"))
        except OSError:  # zip files, directories that are not there
            continue
        for package in packages:
            try:
                text = (package / "entry_points.txt").read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):  # most packages have none
                continue
            if group in text:
                yield from _section(text, group)


def _section(text: str, group: str) -> Iterator[tuple[str, str]]:
    current = ""
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("[") and line.endswith("]"):
            current = line[1:-1].strip()
        elif current == group and "=" in line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            yield name.strip(), value.strip()


def _slow(name: str, group: str) -> str:
    from importlib.metadata import entry_points

    for found in entry_points(group=group, name=name):
        return found.value
    known = sorted({found.name for found in entry_points(group=group)})
    raise NotFound(
        f"no installed package provides {name!r} ({group})", hint=f"there are: {', '.join(known) or 'none; install castoff'}"
    )
