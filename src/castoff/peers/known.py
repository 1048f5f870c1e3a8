"""The files with the hosts to ask, which the agent of a fleet keeps and all that fetches on this host reads.

``peers``: those that are asked for everything, a URL a line. ``holders``: in a large region, who else has which layers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from castoff.image.digest import Digest
from castoff.store.durable import replace_file

__all__ = ["HOLDERS", "KnownHolders", "KnownPeers", "write_holders", "write_known"]

HOLDERS: Final = "holders"
"""Its name, beside KNOWN_PEERS."""

_LOOK: Final = 1.0
_MOST_OF_ALL: Final = 8 << 20
_MOST_BYTES: Final = 64 << 10


def write_known(path: Path, urls: Sequence[str]) -> None:
    """Writes it whole or not at all. Blocks."""
    replace_file(path, "".join(f"{url}\n" for url in urls).encode(), durable=False)


class KnownPeers:
    """The file, read anew when it changed; one that cannot be read says nothing new.

    Args:
        path: It; None: nobody is known.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._urls: tuple[str, ...] = ()
        self._stamp: tuple[int, int] | None = None
        self._looked = float("-inf")

    def urls(self) -> tuple[str, ...]:
        """The hosts, nearest first. Looks at a small file once a second."""
        now = time.monotonic()
        if self._path is None or now - self._looked < _LOOK:
            return self._urls
        self._looked = now
        try:
            found = self._path.stat()
            stamp = (found.st_mtime_ns, found.st_ino)
            if stamp != self._stamp:
                with self._path.open("rb") as file:
                    lines = file.read(_MOST_BYTES).decode("ascii").splitlines()
                self._urls = tuple(line for line in lines if line.startswith(("https://", "http://")))
                self._stamp = stamp
        except (OSError, UnicodeDecodeError):
            return self._urls  # no agent, or one that writes it now
        return self._urls


class _Holders(msgspec.Struct, frozen=True, array_like=True):
    """Hosts; and of each layer's beginning (u64, sorted), of which host (u16) it is a row."""

    urls: list[str]
    layers: bytes
    hosts: bytes


def write_holders(path: Path, urls: Sequence[str], layers: NDArray[np.uint64], hosts: NDArray[np.uint16], told: bytes) -> bytes:
    """Writes it where it is other than ``told``; what is there then. Blocks.

    Args:
        path: Where.
        urls: Hosts.
        layers: The first 8 bytes of layers' diffIDs, sorted.
        hosts: Which of ``urls`` has each.
        told: What was written last.
    """
    used, places = np.unique(hosts, return_inverse=True)
    found = _Holders([urls[place] for place in used.tolist()], layers.astype("<u8").tobytes(), places.astype("<u2").tobytes())
    data = msgspec.msgpack.encode(found)
    if data != told:
        replace_file(path, data, durable=False)
    return data


class KnownHolders:
    """The file, read anew when it changed; one that makes no sense names nobody.

    Args:
        path: It; None: there is none.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._urls: list[str] = []
        self._layers = np.empty(0, np.uint64)
        self._hosts = np.empty(0, np.uint16)
        self._stamp: tuple[int, int] | None = None
        self._looked = float("-inf")

    def of(self, layer: Digest) -> list[str]:
        """The URLs of hosts that are said to have a layer, the best first. Looks at the file once a second."""
        self._look()
        wanted = np.uint64(int(layer.hex[:16], 16))
        first, last = (int(self._layers.searchsorted(wanted, side)) for side in ("left", "right"))
        return [self._urls[place] for place in self._hosts[first:last].tolist()]

    def _look(self) -> None:
        now = time.monotonic()
        if self._path is None or now - self._looked < _LOOK:
            return
        self._looked = now
        try:
            found = self._path.stat()
            stamp = (found.st_mtime_ns, found.st_ino)
            if stamp == self._stamp:
                return
            with self._path.open("rb") as file:
                self._take(msgspec.msgpack.decode(file.read(_MOST_OF_ALL), type=_Holders))
            self._stamp = stamp
        except (OSError, ValueError, msgspec.DecodeError):
            self._urls, self._layers, self._hosts = [], np.empty(0, np.uint64), np.empty(0, np.uint16)
            self._stamp = None

    def _take(self, found: _Holders) -> None:
        layers, hosts = np.frombuffer(found.layers, "<u8"), np.frombuffer(found.hosts, "<u2")
        if len(layers) != len(hosts) or (len(hosts) and int(hosts.max()) >= len(found.urls)):
            raise ValueError("rows without hosts")
        self._urls, self._layers, self._hosts = found.urls, layers.astype(np.uint64), hosts.astype(np.uint16)
