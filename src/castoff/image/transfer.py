"""A blob's bytes, in order, each once, over as many connections as it takes.

A transfer that breaks goes on where it stopped, with a Range request. What a server may do then: answer 206 with that
range, or ignore it and begin anew with 200 (the bytes that we have are skipped). ETags are not compared: a blob is
named by its digest, which whoever reads it checks, and mirrors and storage behind redirects each have ETags of their own.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from castoff.errors import Invalid
from castoff.image.connect import Broken
from castoff.image.image import Layer
from castoff.image.retry import Backoff
from castoff.image.transport import Response

__all__ = ["check_answer", "range_from", "transfer"]

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)\Z")
_PROGRESS = 1 << 20
_SLOWEST = 1024  # bytes a second; a server that drips on under this is as good as silent
_END_PATIENCE = 1.0  # seconds to wait for the end of a body that does not tell its length, once all of the blob is here


def range_from(offset: int) -> dict[str, str]:
    """The headers that ask for a blob's bytes from ``offset`` on."""
    return {"Range": f"bytes={offset}-"} if offset else {}


def check_answer(what: str, response: Response, offset: int, size: int) -> int:
    """How many bytes of the answer's body come before ``offset``, after a look at its headers.

    Raises:
        Invalid: They are the headers of another blob, or of another part of it.
    """
    if response.status == 206:
        match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) > offset or match[3] not in (str(size), "*"):
            shown = response.headers.get("Content-Range", "no range")[:100]
            raise Invalid(f"{response.url.origin} was asked for bytes {offset} to {size} of {what} and answers {shown!r}")
        return offset - int(match[1])
    if response.length is not None and response.length != size:
        raise Invalid(
            f"{what} has {response.length} bytes at {response.url.origin}, and its manifest says {size}",
            hint="manifest and registry contradict each other; push the image again",
        )
    return offset


async def transfer(
    what: str, layer: Layer, open_at: Callable[[int, Backoff], Awaitable[Response]], backoff: Backoff, *, patience: float
) -> AsyncGenerator[bytes, None]:
    """The blob's bytes in pieces of at most a MiB.

    Args:
        what: Names the blob in errors.
        layer: Its digest and size.
        open_at: Opens it at an offset, or at 0; headers checked.
        patience: Seconds over which the rate is looked at.
        backoff: The tries; a MiB of progress begins them anew (a byte does not: a server that sends one at a time is broken).

    Raises:
        Invalid: The registry has more bytes than the manifest says.
        Unavailable: It broke too often.
    """
    offset = settled = 0
    while offset < layer.size:
        try:
            async with await open_at(offset, backoff) as response, aclosing(_rest(what, response, offset, layer.size)) as pieces:
                since, before = time.monotonic(), offset
                async for piece in pieces:
                    now = time.monotonic()
                    if now - since > patience:
                        _check_rate(what, response, (offset + len(piece) - before) / (now - since))
                        since, before = now, offset
                    offset += len(piece)
                    if offset - settled >= _PROGRESS:
                        backoff.progressed()
                        settled = offset
                    yield piece
        except Broken as error:
            await backoff.wait(error)


def _check_rate(what: str, response: Response, rate: float) -> None:
    if rate < _SLOWEST:
        raise Broken(f"{response.url.origin} gives {what} at {rate:.0f} bytes a second", hint="try again later")


async def _rest(what: str, response: Response, offset: int, size: int) -> AsyncGenerator[bytes, None]:
    skip = check_answer(what, response, offset, size)
    missing = size - offset
    async with aclosing(response.pieces()) as pieces:
        async for piece in pieces:
            if skip:
                dropped = min(skip, len(piece))
                skip -= dropped
                piece = piece[dropped:]
            if len(piece) > missing:
                raise _too_long(what, response, size)
            missing -= len(piece)
            if piece:
                yield piece
            if not missing and response.length is None:
                break  # the end of such a body may never come; else it comes at once, and the connection is kept
        if missing:
            raise Broken(f"{response.url.origin} ended {what} {missing} bytes before its end", hint="try again later")
        if response.length is None:
            await _expect_end(what, response, pieces, size)


async def _expect_end(what: str, response: Response, pieces: AsyncGenerator[bytes, None], size: int) -> None:
    try:
        async with asyncio.timeout(_END_PATIENCE):
            extra = await anext(pieces, b"")
    except (TimeoutError, Broken):
        return  # all of the blob is here; how the connection ends is nobody's concern
    if extra:
        raise _too_long(what, response, size)


def _too_long(what: str, response: Response, size: int) -> Invalid:
    return Invalid(f"{response.url.origin} sends more of {what} than the {size} bytes that its manifest says")
