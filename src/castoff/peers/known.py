"""The file with the hosts to ask, which the agent of a fleet keeps and all that fetches on this host reads: a URL a line."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from castoff.store.durable import replace_file

__all__ = ["KNOWN_PEERS", "KnownPeers", "write_known"]

KNOWN_PEERS: Final = "peers"
"""Its name in the agent's directory."""

_LOOK: Final = 1.0
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
