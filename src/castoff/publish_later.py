"""``artifact.publish = "auto"``: what this host had to convert is published, by a process of its own that nobody waits for.

The first conversion anywhere is then the last one. ``castoff run`` may be over before the blobs have travelled, so a child
that outlives it does that; how it went is in ``STATE/publish.log``. The configuration that held goes along, on its stdin.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from castoff.config import Config, convert
from castoff.errors import CastoffError, Unavailable
from castoff.image.image import Image
from castoff.image.platforms import parse_platform
from castoff.image.reference import RegistryReference, parse_reference

__all__ = ["publish_later"]

_LOG = "publish.log"
_LOG_LIMIT = 1 << 20


class _Order(msgspec.Struct, frozen=True, kw_only=True):
    """What the child is told."""

    reference: str
    to: str | None
    platform: str
    config: dict[str, Any]


def publish_later(image: Image, config: Config, state: Path) -> None:
    """Has the artifact of an image published, where the settings say so and it can be put somewhere. Returns at once.

    Raises:
        Unavailable: No process can be started.
    """
    if config.artifact.publish != "auto":
        return
    reference = parse_reference(image.reference)
    to = config.artifact.repositories[0] if config.artifact.repositories else None
    if isinstance(reference, RegistryReference):
        name = f"{reference.name}@{image.digest}"
    elif to is not None:
        name = image.reference
    else:
        return
    tree = msgspec.to_builtins(msgspec.structs.replace(config, state=state), enc_hook=str)
    order = _Order(reference=name, to=to, platform=str(image.platform), config=tree)
    log = os.open(state / _LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if os.fstat(log).st_size > _LOG_LIMIT:
            os.ftruncate(log, 0)
        _spawn(msgspec.json.encode(order), log)
    except OSError as error:
        raise Unavailable(f"{image.reference} is not published: {error.strerror}", hint="`castoff publish` does it") from error
    finally:
        os.close(log)


def _spawn(order: bytes, log: int) -> None:
    """Not subprocess: that would have us wait for the child, or complain that nobody does."""
    reader, writer = os.pipe()  # it holds 64 KiB, and an order has a few: writing does not wait
    try:
        os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", "castoff.publish_later"],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, reader, 0), (os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)],
            setsid=True,
        )
        os.write(writer, order)
    finally:
        os.close(reader)
        os.close(writer)


async def _publish(order: _Order) -> str:
    """Does it; a line that says what came of it."""
    from castoff.host import Host

    config = convert(order.config, Path("configuration"))
    try:
        async with Host.open(config=config) as host:
            done = await host.publish(order.reference, to=order.to, platform=parse_platform(order.platform))
    except CastoffError as error:
        return f"{order.reference}: not published: {error}"
    return f"{order.reference}: {done.repository}@{done.artifact.digest}"


def main() -> int:
    """The child."""
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=_Order)
    said = asyncio.run(_publish(order))
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {said}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
