"""Creates as traces, sent to an OpenTelemetry collector: OTLP over HTTP, in its JSON encoding.

A create is one trace: a root span, ``create``, and a span for each step, down to the guest's kernel and init. Source of the
encoding: https://opentelemetry.io/docs/specs/otlp/ ("JSON Protobuf Encoding": ids in hexadecimal, 64-bit numbers as strings,
enumerations as numbers). Sending never holds up a create: spans wait in a bounded queue, and what finds it full is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from importlib.metadata import version
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

from castoff.api.creates import Create
from castoff.errors import CastoffError, Invalid
from castoff.timeline import Step

__all__ = ["Tracer", "check_endpoint"]

_QUEUE: Final = 8192
"""Spans that wait at most: some hundred creates."""
_BATCH: Final = 512
_EVERY: Final = 1.0
"""Seconds between two batches."""
_PATIENCE: Final = 10.0
"""Seconds in which a collector answers."""
_INTERNAL, _SERVER, _ERROR = 1, 2, 2
"""Span.SpanKind and Status.StatusCode."""


def check_endpoint(text: str) -> str:
    """The URL that traces are sent to, of the setting ``agent.otlp_endpoint``.

    Raises:
        Invalid: It is no URL of a collector.
    """
    try:
        url = urlsplit(text)
        usable = url.scheme in ("http", "https") and bool(url.hostname) and not (url.query or url.fragment)
        _ = url.port
    except ValueError:
        usable = False
    if not usable:
        raise Invalid(f"agent.otlp_endpoint {text[:200]!r} is no base URL", hint="http://127.0.0.1:4318, for instance")
    return f"{text.rstrip('/')}/v1/traces"


class Tracer:
    """Sends creates as traces. Implements castoff.api.creates.CreateSink. Made by :meth:`open`.

    Attributes:
        dropped: Spans that were lost, since the collector did not take them in time.
    """

    def __init__(self, url: str, notice: Callable[[str], None]) -> None:
        self.dropped = 0
        self._url = url
        self._notice = notice
        self._spans: deque[dict[str, Any]] = deque()
        self._is_failing = False

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, endpoint: str, *, notice: Callable[[str], None] = lambda line: None) -> AsyncIterator[Tracer]:
        """A tracer that sends to ``endpoint`` during the block; what is left at its end is sent then.

        Raises:
            Invalid: The endpoint is no URL.
        """
        tracer = cls(check_endpoint(endpoint), notice)
        timeout = aiohttp.ClientTimeout(total=_PATIENCE)
        async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
            sending = asyncio.create_task(tracer._send_all(session))
            try:
                yield tracer
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
                await tracer._send(session)

    def on_step(self, create: Create, step: Step) -> None:
        """A step that ended is a span."""
        if step.ended is not None:
            trace, root = _ids(create)
            parent = root if step.parent is None else _span_id(root, step.parent)
            self._put(
                _span(
                    create,
                    trace,
                    _span_id(root, step.id),
                    parent,
                    step.name,
                    (step.started, step.ended),
                    _attributes(step),
                    step.error if step.state == "failed" else None,
                )
            )

    def on_end(self, create: Create, error: BaseException | None) -> None:
        """The root span."""
        trace, root = _ids(create)
        attributes = {"castoff.machine": create.machine, "castoff.app": create.app, "castoff.image": create.image}
        if isinstance(error, CastoffError):
            attributes["error.type"] = str(error.code)
        ended = create.timeline.now() if create.ended is None else create.ended
        self._put(
            _span(create, trace, root, "", "create", (0.0, ended), attributes.items(), create.error if error else None, _SERVER)
        )

    def _put(self, span: dict[str, Any]) -> None:
        if len(self._spans) >= _QUEUE:
            self.dropped += 1
        else:
            self._spans.append(span)

    async def _send_all(self, session: aiohttp.ClientSession) -> None:
        while True:
            await asyncio.sleep(_EVERY)
            while self._spans and await self._send(session):
                pass

    async def _send(self, session: aiohttp.ClientSession) -> bool:
        """Sends a batch; whether it was taken. What was not is lost: the next ones are more interesting."""
        batch = [self._spans.popleft() for _ in range(min(_BATCH, len(self._spans)))]
        if not batch:
            return False
        try:
            async with session.post(self._url, json=_request(batch), allow_redirects=False) as response:
                failure = "" if response.status < 300 else f"it answers {response.status}"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            failure = str(error) or type(error).__name__
        if failure:
            self.dropped += len(batch)
        if bool(failure) != self._is_failing:
            self._is_failing = bool(failure)
            self._notice(
                f"traces cannot be sent to {self._url}: {failure}" if failure else f"traces are sent to {self._url} again"
            )
        return not failure


def _ids(create: Create) -> tuple[str, int]:
    """A create's trace id, and the number that its span ids count from: the root's."""
    found: tuple[str, int] | None = create.attributes.get("otlp")
    if found is None:
        # setdefault: two steps may end at once, in two threads
        found = create.attributes.setdefault("otlp", (secrets.token_hex(16), secrets.randbits(63) | 1))
    return found


def _span_id(root: int, step: int) -> int:
    return (root + step + 1) % 2**64 or 1


def _span(
    create: Create,
    trace: str,
    span: int,
    parent: int | str,
    name: str,
    times: tuple[float, float],
    attributes: Iterable[tuple[str, Any]],
    error: str | None,
    kind: int = _INTERNAL,
) -> dict[str, Any]:
    """A span of opentelemetry/proto/trace/v1/trace.proto."""
    return {
        "traceId": trace,
        "spanId": f"{span:016x}",
        "parentSpanId": f"{parent:016x}" if isinstance(parent, int) else parent,
        "name": name,
        "kind": kind,
        "startTimeUnixNano": str(int((create.began + times[0]) * 1e9)),
        "endTimeUnixNano": str(int((create.began + times[1]) * 1e9)),
        "attributes": [_attribute(key, value) for key, value in attributes],
        "status": {"code": _ERROR, "message": error[:1000]} if error is not None else {},
    }


def _attributes(step: Step) -> Iterable[tuple[str, Any]]:
    yield from ((f"castoff.{key}", value) for key, value in step.attributes.items())
    if step.total is not None:
        yield "castoff.total", step.total
    if step.done:
        yield "castoff.done", step.done


def _attribute(key: str, value: Any) -> dict[str, Any]:
    """A KeyValue of common.proto."""
    if isinstance(value, bool):
        return {"key": key, "value": {"boolValue": value}}
    if isinstance(value, int):
        return {"key": key, "value": {"intValue": str(value)}}
    if isinstance(value, float):
        return {"key": key, "value": {"doubleValue": value}}
    return {"key": key, "value": {"stringValue": str(value)[:1000]}}


def _request(spans: list[dict[str, Any]]) -> dict[str, Any]:
    """An ExportTraceServiceRequest."""
    resource = {"service.name": "castoff", "service.version": version("castoff"), "host.name": platform.node()}
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": [_attribute(key, value) for key, value in resource.items()]},
                "scopeSpans": [{"scope": {"name": "castoff"}, "spans": spans}],
            }
        ]
    }
