"""Settings of what hosts give one another."""

from __future__ import annotations

from pathlib import Path

import msgspec

__all__ = ["KNOWN_PEERS", "PeerSettings"]

KNOWN_PEERS = "peers"
"""The file's name in the agent's directory (castoff.peers.known)."""


class PeerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Chunks from other hosts, and for them. Off as long as neither ``urls`` nor ``listen`` is set."""

    urls: tuple[str, ...] = ()
    """The other hosts that chunks are asked of before the registry: ``https://HOST:PORT`` of their ``peers.listen``, in
    any order. The list may have this host's own ``url``, so that all hosts share one list."""
    known: Path | None = None
    """A file with more of them, a URL a line, nearest first, which is read anew when it changes. The agent of a fleet keeps one,
    ``STATE/agent/peers``, and it need not be named."""
    url: str = ""
    """How the others reach this host: shares of a layer are handed out by it. Empty: this host takes no share of its own."""
    listen: str = ""
    """``ADDRESS:PORT`` at which the agent serves chunks to other hosts; empty: it does not. Beyond loopback it demands the
    three files below."""
    certificate: Path | None = None
    """PEM file with this host's certificate, which ``authority`` issued: it is shown to peers, as server and as client."""
    key: Path | None = None
    """PEM file with its key."""
    authority: Path | None = None
    """PEM file with the fleet's own certificate authority, and no other: whoever has a certificate of it is a peer, and nobody
    else is."""
    upload_limit: int = 0
    """Bytes a second that this host sends to its peers at most, urgent chunks aside; 0: no limit but the link."""
    deadline: float = 0.05
    """Seconds that a guest which waits for a chunk waits for a peer alone; then the registry is asked besides."""
    patience: float = 0.5
    """Seconds without a chunk from those peers that have taken a share of a layer, after which the registry is asked for it."""

    @property
    def is_used(self) -> bool:
        """Whether others are asked."""
        return self.known is not None or any(url != self.url for url in self.urls)
