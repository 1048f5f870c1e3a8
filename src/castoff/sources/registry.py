"""Packs in a registry's repository, read by range.

A transfer that breaks goes on with the ranges that are missing. A token that expires is renewed by the client. A
server that ignores Range is read whole, once (castoff.sources.whole). Storage
behind a redirect (a signed URL) is asked directly as long as it answers, since going through the registry each time would
cost a round trip for each request; when it refuses, the registry is asked for a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path

import msgspec

from castoff.artifact.repository import whole_name
from castoff.errors import Invalid, NotFound
from castoff.image.client import RegistryClient
from castoff.image.connect import Broken
from castoff.image.credentials import Keyring
from castoff.image.digest import Digest
from castoff.image.endpoint import endpoints_of
from castoff.image.exchange import Request, follow
from castoff.image.retry import Backoff
from castoff.image.settings import ImageSettings
from castoff.image.transport import Response, Transport
from castoff.image.url import Url
from castoff.sources.merge import merged
from castoff.sources.ranges import Cutter, coalesce
from castoff.sources.settings import SourceSettings
from castoff.sources.source import ByteRange, Located, Piece
from castoff.sources.whole import WholePack

__all__ = ["RegistrySource"]

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)\Z")
_SLOWEST = 16 << 10  # bytes a second; under this a request is as good as stalled
_SMALL = 320 << 10  # bytes; a single chunk has no more
_END_PATIENCE = 1.0  # seconds for the end of a body of which all is here
_SKIPPED = 32 << 20  # bytes before the ranges that are read over, once, where a server ignores Range


class RegistrySource:
    """A ChunkSource over one repository.

    Args:
        repository: ``HOST[:PORT]/PATH``. Mirrors are left out: they have no artifacts.
        settings: How patiently.
        image: How registries are reached.
        spool: Directory for packs that must be read whole, since the server ignores Range. On a disk: /tmp may be memory.

    Raises:
        Invalid: It is no repository.
    """

    def __init__(
        self,
        repository: str,
        settings: SourceSettings | None = None,
        image: ImageSettings | None = None,
        *,
        spool: Path = Path("/var/tmp"),
    ) -> None:
        self._settings = settings or SourceSettings()
        self._image = msgspec.structs.replace(
            image or ImageSettings(), read_timeout=self._settings.timeout, retries=self._settings.retries
        )
        endpoint = endpoints_of(whole_name(repository), self._image)[-1]
        self._transport = Transport(self._image, quick_ack=True, small=_SMALL)
        self._client = RegistryClient(endpoint, Keyring(self._image), self._transport, self._image)
        self._direct: dict[Digest, Url] = {}
        self._ignored: set[Digest] = set()
        """Packs of which an answer was the whole although a range was asked for."""
        self._whole: dict[Digest, WholePack] = {}
        self._spool = spool
        self.name = f"registry {repository}"

    async def locate(self, pack: Digest) -> Located | None:
        """One HEAD."""
        client = self._client
        try:
            async with await client.open(_what(pack), "HEAD", f"blobs/{pack}", {}, client.backoff()) as response:
                size = response.headers.get("Content-Length", "")  # http.client says 0, since no body follows a HEAD
                return Located(self.name, int(size) if size.isdecimal() and len(size) < 20 else None)
        except NotFound:
            return None

    async def read(self, pack: Digest, ranges: Sequence[ByteRange]) -> AsyncGenerator[Piece, None]:
        """As the port says; neighbours in one request, several requests at a time."""
        groups = [self._read_group(pack, group) for group in coalesce(ranges)]
        async with aclosing(merged(groups, at_once=self._settings.connections)) as pieces:
            async for piece in pieces:
                yield piece

    async def close(self) -> None:
        for whole in self._whole.values():
            await whole.close()
        await self._transport.close()

    async def _read_group(self, pack: Digest, group: Sequence[ByteRange]) -> AsyncGenerator[Piece, None]:
        """One request's ranges, over as many requests as it takes."""
        backoff = self._client.backoff()
        left = list(group)
        while left:
            read = self._read_whole(pack, left) if pack in self._whole else self._request(pack, left, backoff)
            try:
                async with aclosing(read) as pieces:
                    async for piece in pieces:
                        del left[0]
                        backoff.progressed()
                        yield piece
            except _RangeIgnored:
                self._spool_whole(pack)
            except Broken as error:
                if left:
                    await backoff.wait(error)

    async def _request(self, pack: Digest, ranges: Sequence[ByteRange], backoff: Backoff) -> AsyncGenerator[Piece, None]:
        """One request's ranges, in their order.

        Raises:
            Broken: It ended, or stalled, before its end.
        """
        span = ByteRange(ranges[0].start, ranges[-1].end)
        clock = asyncio.get_running_loop().time
        deadline = clock() + 2 * self._settings.timeout + len(span) / _SLOWEST
        async with await self._open(pack, span, backoff) as response, aclosing(response.pieces()) as pieces:
            start = self._start(pack, span, response)
            if start is None:
                raise _RangeIgnored
            cutter = Cutter(ranges, start)
            while not cutter.done:
                data = await self._next(pieces, response, deadline)
                if data is None:
                    raise Broken(f"{response.url.origin} ended {_what(pack)} before byte {span.end}", hint="try again later")
                for one, found in cutter.feed(data):
                    before = clock()
                    yield Piece(one, found, self.name)
                    deadline += clock() - before  # the consumer's time, not the server's
            if (
                response.status == 206
            ):  # its end comes with its last byte; and a body that was read to its end keeps the connection
                await self._next(pieces, response, min(deadline, clock() + _END_PATIENCE))

    async def _next(self, pieces: AsyncGenerator[bytes, None], response: Response, deadline: float) -> bytes | None:
        try:
            async with asyncio.timeout_at(deadline):
                return await anext(pieces, None)
        except TimeoutError as error:
            raise Broken(f"{response.url.origin} is too slow", hint="try again later") from error

    async def _open(self, pack: Digest, span: ByteRange, backoff: Backoff) -> Response:
        headers = {"Range": f"bytes={span.start}-{span.end - 1}"}
        known = self._direct.get(pack)
        if known is not None:
            with contextlib.suppress(Broken):  # the registry tells where the blob is by now, or fails in its own words
                response = await follow(self._transport, Request("GET", known, headers), self._image)
                if response.status == 206:
                    return response
                response.close()  # most likely it expired
            if self._direct.get(pack) == known:
                del self._direct[pack]
        response = await self._client.open(_what(pack), "GET", f"blobs/{pack}", headers, backoff)
        if response.url.origin != self._client.endpoint.origin(response.url.origin.scheme):
            self._direct[pack] = response.url
        return response

    def _start(self, pack: Digest, span: ByteRange, response: Response) -> int | None:
        """Where in the blob the answer's body begins; None: it is the whole, and too much to read over.

        Raises:
            Invalid: It is another part.
        """
        if response.status == 206:
            shown = response.headers.get("Content-Range", "no range")
            match = _CONTENT_RANGE.match(shown)
            if match is None or int(match[1]) != span.start:
                origin = response.url.origin
                raise Invalid(f"{origin} was asked for bytes {span.start} to {span.end} of {_what(pack)}: {shown[:100]!r}")
            return span.start
        if span.start > _SKIPPED or pack in self._ignored:
            return None
        self._ignored.add(pack)  # once it may be a cache's whim; a second time it is the rule
        return 0

    def _spool_whole(self, pack: Digest) -> None:
        """From now on the pack is read from its start to its end."""

        async def begin(backoff: Backoff) -> Response:
            return await self._client.open(_what(pack), "GET", f"blobs/{pack}", {}, backoff)

        if pack not in self._whole:
            self._whole[pack] = WholePack(_what(pack), begin, self._client.backoff, self._spool)

    async def _read_whole(self, pack: Digest, ranges: Sequence[ByteRange]) -> AsyncGenerator[Piece, None]:
        """The ranges, from the pack as it comes in whole."""
        for one in list(ranges):
            yield Piece(one, await self._whole[pack].read(one), self.name)


class _RangeIgnored(Exception):
    """The answer is the whole blob."""


def _what(pack: Digest) -> str:
    return f"pack {pack}"
