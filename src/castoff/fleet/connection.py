"""The way to NATS: kept for as long as the agent runs, whatever becomes of the servers.

Nothing here waits for a server to be there: who asks while this host is cut off gets :class:`Unavailable` at once, and
subscriptions are made again when it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Final

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import KeyValueConfig, StorageType, StreamConfig
from nats.js.kv import KeyValue

from castoff.errors import Invalid, NotFound, Unavailable
from castoff.fleet.settings import FleetSettings, check_fleet

__all__ = ["Connection", "asked", "end", "until_first"]

_CONNECT: Final = 5.0
_ANSWER: Final = 5.0
_SLOWEST: Final = 30.0
"""Seconds between two tries at most."""
_PENDING: Final = 8 << 20

Handler = Callable[[bytes], Awaitable[bytes | None]]
"""Answers a question; None: it has nothing to say."""


@contextlib.contextmanager
def asked(what: str) -> Iterator[None]:
    """Failures of NATS in the block, as castoff's.

    Raises:
        NotFound: There is no such key, bucket or stream.
        Unavailable: Anything else.
    """
    try:
        yield
    except (nats.js.errors.NotFoundError, nats.js.errors.KeyNotFoundError) as error:
        raise NotFound(f"{what}: the fleet has no such thing") from error
    except (nats.errors.Error, TimeoutError, OSError, EOFError) as error:
        said = str(error) or type(error).__name__
        raise Unavailable(
            f"{what}: NATS does not answer: {said}", hint="this host goes on without its fleet meanwhile"
        ) from error


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancels tasks until they have ended: a cancellation that comes with an answer is lost in wait_for of Python 3.11, which
    nats-py uses (https://github.com/python/cpython/issues/81839)."""
    cancelled = False
    while running := {task for task in tasks if not task.done()}:
        for task in running:
            task.cancel()
        try:
            await asyncio.wait(running, timeout=0.5)
        except asyncio.CancelledError:
            cancelled = True  # whoever ends this ends them no sooner
    for task in tasks:
        if not task.cancelled():
            task.exception()  # it is known: nobody is to be told that it was lost
    if cancelled:
        raise asyncio.CancelledError


async def until_first(*jobs: Coroutine[Any, Any, None]) -> None:
    """Runs all until one ends; ends the others, and raises what it raised. (A TaskGroup cancels once only: :func:`end`.)"""
    tasks = [asyncio.create_task(job) for job in jobs]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end(*tasks)
    for task in done:
        task.result()


@dataclass(frozen=True, slots=True)
class _Served:
    subject: str
    handler: Handler


class Connection:
    """A connection to the fleet's NATS servers. Made by :meth:`open`."""

    def __init__(self, settings: FleetSettings, notice: Callable[[str], None]) -> None:
        self._settings = settings
        self._notice = notice
        self._client: Client | None = None
        self._served: list[_Served] = []
        self._answering: set[asyncio.Task[None]] = set()
        self._closed = asyncio.Event()
        self._told_cut_off = False
        self.times_reached = 0
        """How often a server was reached after none was: what was watched before may be gone."""

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, settings: FleetSettings, notice: Callable[[str], None] = lambda line: None) -> AsyncIterator[Connection]:
        """A connection for the block; it need not be there yet when the block begins.

        Args:
            settings: Where, and who this host is.
            notice: Called with a line for people when this host is cut off, and when it is back.

        Raises:
            Invalid: The settings are broken.
        """
        check_fleet(settings)
        connection = cls(settings, notice)
        options = await asyncio.to_thread(connection._options)
        keeping = asyncio.create_task(connection._keep(options))
        try:
            yield connection
        finally:
            await end(keeping, *connection._answering)
            await connection._end()

    @property
    def is_connected(self) -> bool:
        """Whether a server is reached now."""
        return self._client is not None and bool(self._client.is_connected)

    def subject(self, *words: str) -> str:
        """A subject of this fleet."""
        return ".".join(("castoff", self._settings.name, *words))

    def bucket_name(self, name: str) -> str:
        """A bucket's or a stream's name in this fleet."""
        return f"castoff-{self._settings.name}-{name}"

    def jetstream(self) -> JetStreamContext:
        """JetStream, as nats-py has it; use within :func:`asked`.

        Raises:
            Unavailable: This host is cut off.
        """
        context: JetStreamContext = self._reached().jetstream(timeout=_ANSWER)
        return context

    async def bucket(
        self, name: str, *, ttl: float | None = None, durable: bool = True, most_bytes: int, value_bytes: int
    ) -> KeyValue:
        """A bucket of keys and values, made where it is missing.

        Args:
            name: Its name in this fleet.
            ttl: Seconds after which a value is gone; None: it stays.
            durable: Kept on disk; else in the servers' memory.
            most_bytes: Of all of it: more is refused by the servers.
            value_bytes: Of one value.

        Raises:
            Unavailable: NATS does not answer.
        """
        config = KeyValueConfig(
            bucket=self.bucket_name(name),
            ttl=ttl,
            max_bytes=most_bytes,
            max_value_size=value_bytes,
            storage=StorageType.FILE if durable else StorageType.MEMORY,
            replicas=self._settings.replicas,
        )
        with asked(f"bucket {config.bucket}"):
            stream = self.jetstream()
            try:
                return await stream.key_value(config.bucket)
            except nats.js.errors.NotFoundError:
                return await stream.create_key_value(config)

    async def stream(self, name: str, config: StreamConfig) -> JetStreamContext:
        """JetStream, with a stream of this fleet in it; its name and replicas are set here.

        Raises:
            Unavailable: NATS does not answer.
        """
        config.name, config.num_replicas = self.bucket_name(name), self._settings.replicas
        with asked(f"stream {config.name}"):
            stream = self.jetstream()
            try:
                await stream.stream_info(config.name)
            except nats.js.errors.NotFoundError:
                await stream.add_stream(config)
            return stream

    async def serve(self, subject: str, handler: Handler) -> None:
        """Answers what is asked at a subject, for as long as the connection is open."""
        served = _Served(subject, handler)
        self._served.append(served)
        if self._client is not None and self.is_connected:
            await self._subscribe(self._client, served)

    async def ask_all(
        self, subject: str, question: bytes, *, within: float, patience: Callable[[bytes], float] | None = None
    ) -> AsyncGenerator[bytes, None]:
        """The answers of all that serve a subject, as they come; close it to hear no more.

        Args:
            subject: Which.
            question: What.
            within: Seconds after which it ends.
            patience: Says after each answer that was taken, how many seconds further ones have at most.

        Raises:
            Unavailable: NATS does not answer, or nobody serves the subject.
        """
        end = time.monotonic() + within
        with asked(f"asking the hosts of {self._settings.name}"):
            client = self._reached()
            inbox = client.new_inbox()
            subscription = await client.subscribe(inbox)
            try:
                await client.publish(subject, question, reply=inbox)
                while (left := end - time.monotonic()) > 0:
                    try:
                        message = await subscription.next_msg(timeout=left)
                    except TimeoutError:
                        return
                    if message.headers and message.headers.get("Status") == "503":
                        raise nats.errors.NoRespondersError
                    yield message.data
                    if patience is not None:
                        end = min(end, time.monotonic() + patience(message.data))
            finally:
                with contextlib.suppress(nats.errors.Error):
                    await subscription.unsubscribe()

    async def tell(self, subject: str, data: bytes) -> None:
        """Sends to all who serve a subject; nobody answers.

        Raises:
            Unavailable: This host is cut off.
        """
        with asked(f"telling the hosts of {self._settings.name}"):
            await self._reached().publish(subject, data)

    def _reached(self) -> Client:
        if self._client is None or not self._client.is_connected:
            raise Unavailable(
                f"this host is cut off from its fleet: no NATS server of {', '.join(self._settings.urls)} is reached",
                hint="it goes on alone and tries again",
            )
        return self._client

    def _options(self) -> dict[str, Any]:
        """What nats-py is told. Blocks: reads files."""
        settings = self._settings
        options: dict[str, Any] = {
            "servers": list(settings.urls),
            "name": f"castoff {settings.host_name}",
            "connect_timeout": _CONNECT,
            "max_reconnect_attempts": -1,
            "reconnect_time_wait": 1.0,
            "ping_interval": 5,
            "max_outstanding_pings": 2,
            "pending_size": _PENDING,
            "error_cb": self._failed,
            "disconnected_cb": self._lost,
            "reconnected_cb": self._found,
            "closed_cb": self._end_of_client,
        }
        for setting, path in (("credentials", settings.credentials), ("nkey", settings.nkey)):
            if path is not None and not path.is_file():
                raise Invalid(f"fleet.{setting}: {path} is no file")
        if settings.credentials is not None:
            options["user_credentials"] = str(settings.credentials)
        if settings.nkey is not None:
            options["nkeys_seed"] = str(settings.nkey)
        if settings.authority is not None or settings.certificate is not None or any(u.startswith("tls:") for u in settings.urls):
            options["tls"] = self._tls()
        return options

    def _tls(self) -> ssl.SSLContext:
        settings = self._settings
        try:
            context = ssl.create_default_context(cafile=settings.authority)
            if settings.certificate is not None:
                context.load_cert_chain(settings.certificate, settings.key)
        except (OSError, ssl.SSLError) as error:
            raise Invalid(f"fleet.authority, fleet.certificate or fleet.key cannot be used: {error}", hint="PEM files") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context

    async def _keep(self, options: dict[str, Any]) -> None:
        """Connects, and again whenever nats-py gives up."""
        wait = 0.5
        while True:
            self._closed.clear()
            try:
                self._client = Client()  # also while it connects: a cancellation must not leave its socket open
                await self._client.connect(**options)
            except (nats.errors.Error, TimeoutError, OSError, EOFError, ValueError) as error:
                self._tell_cut_off(str(error) or type(error).__name__)
            else:
                wait = 0.5
                await self._found()
                for served in self._served:
                    with contextlib.suppress(nats.errors.Error):  # lost already: the next client makes it
                        await self._subscribe(self._client, served)
                await self._closed.wait()
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))
            wait = min(2 * wait, _SLOWEST)

    async def _found(self) -> None:
        """A server is reached; nats-py itself makes the subscriptions of a client again."""
        self.times_reached += 1
        if self._told_cut_off:
            self._told_cut_off = False
            self._notice("this host is back in its fleet")

    async def _subscribe(self, client: Client, served: _Served) -> None:
        async def hear(message: Msg) -> None:
            answering = asyncio.create_task(self._answer(message, served.handler))
            self._answering.add(answering)
            answering.add_done_callback(self._answering.discard)

        await client.subscribe(served.subject, cb=hear)

    async def _answer(self, message: Msg, handler: Handler) -> None:
        answer = await handler(message.data)
        if answer is not None and message.reply:
            with contextlib.suppress(nats.errors.Error, OSError):  # whoever asked has a limit of time
                await message.respond(answer)

    async def _lost(self) -> None:
        self._tell_cut_off("the connection is lost")

    async def _failed(self, error: Exception) -> None:
        if not self.is_connected:
            self._tell_cut_off(str(error) or type(error).__name__)

    async def _end_of_client(self) -> None:
        self._closed.set()

    def _tell_cut_off(self, why: str) -> None:
        if not self._told_cut_off:
            self._told_cut_off = True
            self._notice(f"this host is cut off from its fleet and goes on alone: {why}")

    async def _end(self) -> None:
        self._told_cut_off = True  # by its own will: no news
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(nats.errors.Error, TimeoutError, OSError):
                async with asyncio.timeout(2.0):
                    await client.close()
