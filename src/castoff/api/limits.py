"""How much one client may ask: a token bucket for each address."""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Final

from aiohttp import web

from castoff.api.errors import Refusal

__all__ = ["Rates", "rate_limits"]

_MOST_CLIENTS: Final = 8192
"""Addresses that are remembered; the one that was quiet longest is forgotten, and so may ask its whole burst again."""


class Rates:
    """Token buckets by client.

    Args:
        per_second: Requests that a bucket gains a second.
        burst: Requests that it holds.
        clock: Seconds of a clock that never goes back.
    """

    def __init__(self, per_second: float, burst: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> float:
        """Takes one request of a client's; 0.0, or the seconds until there is one."""
        now = self._clock()
        level, since = self._buckets.pop(client, (float(self._burst), now))
        level = min(self._burst, level + (now - since) * self._per_second)
        taken = level >= 1.0
        self._buckets[client] = (level - 1.0 if taken else level, now)
        if len(self._buckets) > _MOST_CLIENTS:
            self._buckets.popitem(last=False)
        return 0.0 if taken else (1.0 - level) / self._per_second


@lru_cache(1024)
def client_of(address: str) -> str:
    """What counts as one client: an IPv4 address, or the /64 that one host has of IPv6."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


def rate_limits(rates: Rates) -> Callable[..., Awaitable[web.StreamResponse]]:
    """The middleware that answers 429 to a client which asks too much. Whoever comes by the unix socket has no address and
    no limit."""

    @web.middleware
    async def limit(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        address = request.remote
        if address:
            wait = rates.take(client_of(address))
            if wait:
                raise Refusal(
                    "too many requests from your address",
                    http=429,
                    word="resource_exhausted",
                    retry_after=max(1, math.ceil(wait)),
                    hint="ask less often, or raise `agent.requests_per_second`",
                )
        return await handler(request)

    return limit
