"""Pull: an image's layers go from its source into containerd's content store, and are unpacked into snapshots.

In containerd a pull is the client's work (client/pull.go): fetch blobs, for each layer prepare a snapshot on its parent, have
the differ unpack the blob into it, commit it under its chain ID. Blobs come in several at once; layers are unpacked one after
another, each on the one below. A lease keeps what is half done; labels keep what is done: the image's record refers to the
manifest, that to config and layers, the config to the top snapshot (docs/garbage-collection.md of containerd).

Manifest and config are written anew from what castoff knows of the image, since not every source has them (docker-archive);
the blobs of layers are the image's own. Source of chain IDs: OCI image spec 1.1, config.md, "Layer ChainID".
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial

import grpc
import grpc.aio

from castoff import timeline
from castoff.errors import Conflict, DigestMismatch, Invalid, Unavailable
from castoff.image.digest import Digest
from castoff.image.image import Image, Layer
from castoff.image.source import ImageSource
from castoff.rootfs.containerd import messages as m
from castoff.rootfs.containerd.client import Client, translated
from castoff.rootfs.settings import ContainerdSettings

__all__ = ["chain_ids", "leased", "pull"]

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
Opened = Callable[[], AbstractAsyncContextManager[AsyncIterator[bytes]]]
"""Opens a blob, if it turns out that it must be read."""

_EXPIRY = 24 * 3600
"""Seconds after which containerd forgets a lease whose holder died."""


def chain_ids(diff_ids: Sequence[Digest]) -> list[str]:
    """The chain ID of each layer: what it and all below it make together."""
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(str(Digest.of(f"{chain[-1]} {diff_id}".encode())) if chain else str(diff_id))
    return chain


@asynccontextmanager
async def leased(client: Client, purpose: str) -> AsyncIterator[Client]:
    """The client under a lease of its own, which ends with the block (or a day after a crash)."""
    lease = f"castoff-{purpose}-{os.urandom(6).hex()}"
    expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + _EXPIRY))
    await client.create_lease(lease, {"containerd.io/gc.expire": expires})
    try:
        yield client.under(lease)
    finally:
        await client.delete_lease(lease)


async def pull(client: Client, image: Image, source: ImageSource, settings: ContainerdSettings, *, parallel: int) -> str:
    """Makes the image's snapshots, as far as they are not there.

    Args:
        client: Under a lease.
        image: The image.
        source: Where its blobs come from.
        settings: The snapshotter.
        parallel: Blobs fetched at once.

    Returns:
        The chain ID of the top layer, the name of its snapshot; empty for an image without layers.

    Raises:
        DigestMismatch: A layer unpacked to something else than its diffID.
        CastoffError: As the source raises, or containerd.
    """
    chain = chain_ids([layer.diff_id for layer in image.layers])
    with timeline.step("rootfs.containerd.pull", layers=len(image.layers), total=sum(layer.size for layer in image.layers)):
        if chain and await client.stat_snapshot(chain[-1]) is None:
            await _fetch_and_unpack(client, image, source, chain, parallel)
            await _record(client, image, chain[-1], settings.snapshotter)
    return chain[-1] if chain else ""


async def _fetch_and_unpack(client: Client, image: Image, source: ImageSource, chain: list[str], parallel: int) -> None:
    turns = asyncio.Semaphore(parallel)

    async def fetch(layer: Layer) -> None:
        labels = {"containerd.io/uncompressed": str(layer.diff_id)}
        async with turns:
            with timeline.step("rootfs.containerd.content", total=layer.size, layer=str(layer.digest)) as step:
                await put_blob(client, _descriptor(layer), lambda: source.open_blob(layer), labels, step)

    fetches = {layer.digest: asyncio.ensure_future(fetch(layer)) for layer in {one.digest: one for one in image.layers}.values()}
    try:
        for index, layer in enumerate(image.layers):
            await fetches[layer.digest]
            if await client.stat_snapshot(chain[index]) is None:
                await _unpack(client, layer, chain[index - 1] if index else "", chain[index])
    finally:
        for task in fetches.values():
            task.cancel()
        await asyncio.gather(*fetches.values(), return_exceptions=True)


async def _unpack(client: Client, layer: Layer, parent: str, name: str) -> None:
    """One layer, from the content store onto its parent's snapshot, committed as ``name``."""
    key = f"extract-{os.urandom(6).hex()} {name}"
    with timeline.step("rootfs.containerd.unpack", layer=str(layer.diff_id)):
        try:
            mounts = await client.prepare(key, parent, {"containerd.io/snapshot.ref": name})
        except Conflict:  # a snapshotter that has the layer already (remote snapshotters say it so)
            return
        try:
            applied = await client.apply(_descriptor(layer), mounts)
            if applied != str(layer.diff_id):
                raise DigestMismatch(f"layer {layer.digest}, unpacked,", expected=str(layer.diff_id), actual=applied)
            await client.commit(name, key, {"containerd.io/snapshot.ref": name})
        except Conflict:  # another client was first
            await client.remove_snapshot(key)
        except BaseException:
            await asyncio.shield(client.remove_snapshot(key))
            raise


async def put_blob(client: Client, blob: m.Descriptor, opened: Opened, labels: dict[str, str], step: timeline.Step) -> None:
    """Writes a blob into the content store, which checks its digest and size; one that is there is kept for our lease, too.

    Each try has a reference of its own: the server may still be closing the one before, whose client died, and what that
    wrote goes with its lease. A blob that another namespace has counts as all written from the start, and is only committed.

    Raises:
        Invalid: The pieces are another blob.
        CastoffError: As the blob's source, or containerd, raises.
    """
    ref = f"castoff-{blob.digest}-{os.urandom(4).hex()}"
    request = m.WriteContentRequest(ref=ref, total=blob.size, expected=blob.digest)
    try:
        async with client.write_stream() as stream:
            offset = await _exchange(stream, request)
            if offset < blob.size:
                async with opened() as pieces:
                    async for piece in pieces:
                        await _exchange(stream, replace(request, action=m.WriteAction.WRITE, offset=offset, data=bytes(piece)))
                        offset += len(piece)
                        step.advance(len(piece))
            await _exchange(stream, replace(request, action=m.WriteAction.COMMIT, offset=offset, labels=labels))
            await stream.done_writing()
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.ALREADY_EXISTS:
            await client.label_content(blob.digest, labels)
            return
        failure = translated(error, f"writing {blob.digest}")
        if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
            failure = Invalid(failure.what, hint="its origin or the transfer is broken; nothing was kept, try again")
        raise failure from error


async def _exchange(stream: grpc.aio.StreamStreamCall, request: m.WriteContentRequest) -> int:
    """Sends one request; the offset in its answer."""
    with contextlib.suppress(asyncio.InvalidStateError):  # the server ended the call; read() says why
        await stream.write(request)
    answer = await stream.read()
    if not isinstance(answer, m.WriteContentResponse):
        code, details = await stream.code(), await stream.details()
        raise Unavailable(f"containerd ended the write of {request.expected}: {code.name} {details}")
    return answer.offset


async def _record(client: Client, image: Image, top: str, snapshotter: str) -> None:
    """Writes config, manifest and image record, each referring to what it keeps."""
    config = _json(_config(image))
    config_blob = m.Descriptor(_CONFIG, str(Digest.of(config)), len(config))
    layers = [_descriptor(layer) for layer in image.layers]
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": _as_json(config_blob),
            "layers": [_as_json(layer) for layer in layers],
        }
    )
    manifest_blob = m.Descriptor(_MANIFEST, str(Digest.of(manifest)), len(manifest))
    references = {f"containerd.io/gc.ref.content.l.{number}": layer.digest for number, layer in enumerate(layers)}
    references["containerd.io/gc.ref.content.config"] = config_blob.digest
    with timeline.step("rootfs.containerd.image"):
        for blob, data, labels in (
            (config_blob, config, {f"containerd.io/gc.ref.snapshot.{snapshotter}": top}),
            (manifest_blob, manifest, references),
        ):
            await put_blob(client, blob, partial(_once, data), labels, timeline.Step(0, None, "", 0.0))
        labels = {"castoff/image": str(image.digest)}
        await client.put_image(m.ImageRecord(image.reference, labels, manifest_blob))


@asynccontextmanager
async def _once(data: bytes) -> AsyncIterator[AsyncIterator[bytes]]:
    """A blob of one piece."""

    async def pieces() -> AsyncIterator[bytes]:
        yield data

    yield pieces()


def _config(image: Image) -> dict[str, object]:
    config = image.config
    process = {
        "Entrypoint": list(config.entrypoint),
        "Cmd": list(config.cmd),
        "Env": list(config.env),
        "User": config.user,
        "WorkingDir": config.working_dir,
        "StopSignal": config.stop_signal,
        "ExposedPorts": {port: {} for port in config.exposed_ports},
        "Labels": dict(config.labels),
    }
    platform = {"os": image.platform.os, "architecture": image.platform.architecture, "variant": image.platform.variant}
    return {
        **{key: value for key, value in platform.items() if value},
        "config": {key: value for key, value in process.items() if value},
        "rootfs": {"type": "layers", "diff_ids": [str(layer.diff_id) for layer in image.layers]},
    }


def _descriptor(layer: Layer) -> m.Descriptor:
    return m.Descriptor(layer.media_type, str(layer.digest), layer.size)


def _as_json(blob: m.Descriptor) -> dict[str, object]:
    return {"mediaType": blob.media_type, "digest": blob.digest, "size": blob.size}


def _json(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
