"""Pushes: what is there is not sent, what breaks goes on, what refers is found; to docker-registry, and to one with the API."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

import daemons
from castoff.errors import Invalid, NotFound, Unauthorized, Unavailable, Unsupported
from castoff.image import media, tag_schema, upload
from castoff.image.digest import Digest
from castoff.image.outgoing import OutgoingBlob
from castoff.image.push import Pushed, RegistryWriter
from castoff.image.reference import RegistryReference, parse_reference
from castoff.image.referrers import read_referrers, referrers_tag
from castoff.image.settings import ImageSettings
from hostile_registry import HostileRegistry, answer, once, only
from referrers_registry import ReferrersRegistry

QUICK = ImageSettings(retries=2, retry_delay=0.01, read_timeout=5.0, connect_timeout=5.0)
LIMIT = 4 << 20
SUBJECT = Digest.of(b"an image's manifest")
TYPE = "application/vnd.example.thing"


def writer_of(host: str, repository: str = "team/app", settings: ImageSettings = QUICK) -> RegistryWriter:
    reference = parse_reference(f"{host}/{repository}")
    assert isinstance(reference, RegistryReference)
    return RegistryWriter(reference, settings)


@pytest.fixture
async def writer(registry: daemons.Registry) -> AsyncIterator[RegistryWriter]:
    """A repository of its own in docker-registry."""
    async with aclosing(_Closing(writer_of(registry.host, f"push/{os.urandom(4).hex()}"))) as closing:
        yield closing.writer


class _Closing:
    def __init__(self, writer: RegistryWriter) -> None:
        self.writer = writer

    async def aclose(self) -> None:
        await self.writer.close()


def large(tmp_path: Path, size: int) -> OutgoingBlob:
    """A blob of a file."""
    data = random.Random(size).randbytes(size)
    path = tmp_path / f"blob{size}"
    path.write_bytes(data)
    return OutgoingBlob("a large blob", Digest.of(data), size, path)


def manifest(*layers: OutgoingBlob, subject: Digest = SUBJECT, note: str = "") -> bytes:
    """An artifact's manifest."""
    empty = {"mediaType": media.OCI_EMPTY, "digest": str(Digest.of(media.EMPTY_JSON)), "size": 2}
    rows = [{"mediaType": "application/octet-stream", "digest": str(blob.digest), "size": blob.size} for blob in layers]
    document = {
        "schemaVersion": 2,
        "mediaType": media.OCI_MANIFEST,
        "artifactType": TYPE,
        "config": empty,
        "layers": rows or [empty],
    }
    document["subject"] = {"mediaType": media.OCI_MANIFEST, "digest": str(subject), "size": 7}
    return json.dumps({**document, "annotations": {"note": note}}).encode()


async def test_a_blob_travels_once(writer: RegistryWriter, registry: daemons.Registry, tmp_path: Path) -> None:
    """Sent in parts, then present; mounted into another repository; what arrives is what was sent."""
    blob = large(tmp_path, (upload._PART * 2) + 12345)
    taken: list[int] = []
    assert await writer.push_blob(blob, sent=taken.append) is Pushed.SENT
    assert taken == [upload._PART, upload._PART, 12345]
    assert await writer.push_blob(blob) is Pushed.PRESENT
    other = writer_of(registry.host, f"{writer.reference.repository}/other")
    assert await other.adopt_blob(blob) is None
    mounted = await other.push_blob(blob, mount_from=["no/such/thing", writer.reference.repository])
    assert mounted is Pushed.MOUNTED
    async with await other.client.open("it", "GET", f"blobs/{blob.digest}", {}, other.client.backoff()) as response:
        assert Digest.of(await response.read(blob.size)) == blob.digest
    await other.close()


async def test_small_blobs_go_in_one_request_each() -> None:
    """POST and PUT; those in memory too."""
    registry = ReferrersRegistry()
    async with registry.running() as host:
        writer = writer_of(host)
        assert await writer.push_blob(OutgoingBlob.of("two bytes", b"{}")) is Pushed.SENT
        await writer.close()
    assert [seen.method for seen in registry.requests] == ["HEAD", "POST", "PUT"]
    assert registry.received == 2


async def test_a_broken_upload_goes_on_where_the_registry_says(tmp_path: Path) -> None:
    """Twice in one blob: nothing that was taken is sent again."""
    registry = ReferrersRegistry()
    registry.break_patches = [5 << 20, 1 << 20]
    blob = large(tmp_path, upload._PART + (8 << 20))
    taken: list[int] = []
    async with registry.running() as host:
        writer = writer_of(host)
        assert await writer.push_blob(blob, sent=taken.append) is Pushed.SENT
        await writer.close()
    assert registry.received == blob.size
    assert registry.count("GET", "/uploads/") == 2
    assert sum(taken) == blob.size
    assert registry.blobs["team/app"][str(blob.digest)] == (tmp_path / f"blob{blob.size}").read_bytes()


async def test_a_lost_upload_begins_anew(tmp_path: Path) -> None:
    """Where the registry forgot it, as docker-registry 2.8 does when it was given half a part."""
    registry = ReferrersRegistry()
    registry.break_patches, registry.lose_uploads = [3 << 20], True
    blob = large(tmp_path, upload._PART + 1)
    async with registry.running() as host:
        writer = writer_of(host)
        assert await writer.push_blob(blob) is Pushed.SENT
        await writer.close()
    assert registry.count("POST") == 2
    assert registry.received == blob.size + (3 << 20)


async def test_a_registry_that_breaks_for_ever_is_given_up(tmp_path: Path) -> None:
    """After as many tries as the settings say, without progress; sessions that stay where they are don't count as progress."""
    registry = ReferrersRegistry()
    registry.break_patches = [1] * 100
    async with registry.running() as host:
        writer = writer_of(host)
        with pytest.raises(Unavailable):
            await writer.push_blob(large(tmp_path, upload._PART + 1))
        await writer.close()
    assert registry.count("PATCH") == QUICK.retries + 1


async def test_real_registry_restarted_in_mid_push(daemon_directory: Path, tmp_path: Path) -> None:
    """docker-registry killed between two parts and started again: the push ends well."""
    blob = large(tmp_path, upload._PART * 2 + 5)
    directory = daemon_directory / "restarted"
    settings = ImageSettings(retries=40, retry_delay=0.2, retry_delay_limit=0.5)
    with daemons.registry(directory) as first:
        writer = writer_of(first.host, settings=settings)
        stopped = asyncio.Event()
        push = asyncio.create_task(writer.push_blob(blob, sent=lambda count: stopped.set()))
        await stopped.wait()
    port = int(first.host.rpartition(":")[2])
    with daemons.registry(directory, port=port):
        assert await asyncio.wait_for(push, 60) is Pushed.SENT
        assert await writer.has_blob(blob)
    await writer.close()


async def test_real_registry_reached_through_a_line_that_breaks(registry: daemons.Registry, tmp_path: Path) -> None:
    """docker-registry, cut off in the middle of a part, and of a small blob: both arrive, whole."""
    async with breaking_line(registry.host, [40 << 20, 100_000]) as line:
        writer = writer_of(line, "push/broken")
        for blob in (large(tmp_path, upload._PART + (16 << 20)), large(tmp_path, 1 << 20)):
            assert await writer.push_blob(blob) is Pushed.SENT
            assert await writer.push_blob(blob) is Pushed.PRESENT
        await writer.close()


@contextlib.asynccontextmanager
async def breaking_line(host: str, after: list[int]) -> AsyncIterator[str]:
    """A TCP port before ``host`` that resets connections, one after another, when the client sent so many bytes on it."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int | None) -> None:
        while data := await reader.read(65536):
            if limit is not None:
                limit -= len(data)
                if limit < 0:
                    raise ConnectionResetError
            writer.write(data)
            await writer.drain()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name, _, port = host.rpartition(":")
        back, forth = await asyncio.open_connection(name, int(port))
        copies = {
            asyncio.create_task(copy(reader, forth, after.pop(0) if after else None)),
            asyncio.create_task(copy(back, writer, None)),
        }
        await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
        for task in copies:
            task.cancel()
        await asyncio.gather(*copies, return_exceptions=True)
        for end in (writer, forth):
            end.transport.abort()

    server = await asyncio.start_server(handle, "127.0.0.1")
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await asyncio.sleep(0.05)


async def test_tokens_that_expire_in_mid_push_are_renewed(tmp_path: Path) -> None:
    """Each is good for two requests; every part arrives once, and pushing is what they were asked for."""
    registry = ReferrersRegistry()
    registry.token_life = 2
    blob = large(tmp_path, 2 * upload._PART + 1)
    async with registry.running() as host:
        writer = writer_of(host)
        assert await writer.push_blob(blob) is Pushed.SENT
        await writer.close()
    assert registry.blobs["team/app"][str(blob.digest)] == (tmp_path / f"blob{blob.size}").read_bytes()
    assert len(registry.scopes) >= 3 and set(registry.scopes) == {"repository:team/app:pull,push"}


async def test_a_file_that_changes_meanwhile_is_told(tmp_path: Path) -> None:
    """Shorter than it was, or other bytes: nothing stands under the digest."""
    registry = ReferrersRegistry()
    async with registry.running() as host:
        writer = writer_of(host)
        blob = large(tmp_path, 100_000)
        assert isinstance(blob.source, Path)
        blob.source.write_bytes(bytes(100_000))
        with pytest.raises(Invalid, match="DIGEST_INVALID"):
            await writer.push_blob(blob)
        blob.source.write_bytes(b"short")
        with pytest.raises((Invalid, Unavailable)):
            await writer.push_blob(blob)
        assert registry.blobs["team/app"] == {}
        await writer.close()


async def test_refusals_say_why(tmp_path: Path) -> None:
    """A registry for reading only, no right to push, an upload without a place, one that leads to this host's own ports."""
    blob = OutgoingBlob.of("a blob", b"blob")
    cases: list[tuple[int, dict[str, str], type[Exception], str]] = [
        (405, {}, Unsupported, "takes no pushes"),
        (403, {}, Unauthorized, "refuses a blob"),
        (202, {}, Invalid, "does not say where"),
        (413, {}, Invalid, "does not take"),
        (404, {}, NotFound, "does not have"),
        (202, {"Location": "ftp://example.com/x"}, Invalid, "not an http"),
    ]
    for status, headers, kind, words in cases:
        registry = HostileRegistry()
        registry.faults.append(only("uploads", answer(status, headers=headers)))
        async with registry.running() as host:
            writer = writer_of(host)
            with pytest.raises(kind, match=words):
                await writer.push_blob(blob)
            await writer.close()


async def test_credentials_stay_with_the_registry(tmp_path: Path) -> None:
    """An upload that the registry sends elsewhere goes there without them; the registry itself sees them."""
    elsewhere = HostileRegistry()
    elsewhere.faults.append(only("/storage", answer(201)))
    registry = HostileRegistry()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {}}))
    async with elsewhere.running() as other, registry.running() as host:
        (tmp_path / "config.json").write_text(json.dumps({"auths": {host: {"auth": "dXNlcjpzZWNyZXQ="}}}))
        challenge = answer(401, headers={"WWW-Authenticate": "Basic realm=x"})
        registry.faults.append(once(only("/v2/", challenge)))
        registry.faults.append(only("uploads", answer(202, headers={"Location": f"http://{other}/storage?token=1"})))
        writer = writer_of(host, settings=ImageSettings(docker_config=str(tmp_path / "config.json"), retries=0))
        assert await writer.push_blob(OutgoingBlob.of("a blob", b"blob")) is Pushed.SENT
        await writer.close()
    assert [seen.authorization for seen in elsewhere.requests] == [None]
    assert elsewhere.requests[0].query == {"token": "1", "digest": str(Digest.of(b"blob"))}
    assert all(seen.authorization for seen in registry.requests[1:])


async def test_a_token_for_pushing_is_asked_for(tmp_path: Path) -> None:
    """Also where the registry, asked for something to read, names pull alone; and the source's scope where it mounts."""
    registry = HostileRegistry()
    async with registry.running() as host:
        realm = f'Bearer realm="http://{host}/token",service="s",scope="repository:team/app:pull repository:other:pull"'
        registry.faults.append(once(only("/v2/", answer(401, headers={"WWW-Authenticate": realm}))))
        token = answer(200)
        token.body = json.dumps({"token": "t"}).encode()
        registry.faults.append(only("/token", token))
        writer = writer_of(host)
        assert not await writer.has_blob(OutgoingBlob.of("a blob", b"blob"))
        await writer.close()
    (asked,) = [seen for seen in registry.requests if seen.path == "/token"]
    assert asked.scopes == ["repository:team/app:pull,push", "repository:other:pull"]


@pytest.mark.parametrize("api", [True, False])
async def test_referrers_are_found_with_and_without_the_api(api: bool) -> None:
    """With it nothing is kept under the tag; without, ours is added, once, and others' entries stay as they are.

    But for one whose manifest is gone: the registry would not take the list with it.
    """
    registry = ReferrersRegistry(api=api, page=1)
    foreign: dict[str, Any] = {
        "mediaType": media.OCI_MANIFEST,
        "digest": f"sha256:{'1' * 64}",
        "size": 3,
        "x-vendor": {"kept": True},
    }
    async with registry.running() as host:
        writer = writer_of(host)
        await writer.push_blob(OutgoingBlob.of("empty", media.EMPTY_JSON))
        if not api:
            registry.manifests["team/app"][foreign["digest"]] = (media.OCI_MANIFEST, b"{}")
            rows = [foreign, {**foreign, "digest": f"sha256:{'2' * 64}"}]
            index = {"schemaVersion": 2, "mediaType": media.OCI_INDEX, "manifests": rows, "annotations": {"theirs": "yes"}}
            registry.manifests["team/app"][referrers_tag(SUBJECT)] = (media.OCI_INDEX, json.dumps(index).encode())
        for note in ("a", "b", "b"):
            await writer.put_referrer("it", manifest(note=note), subject=SUBJECT, artifact_type=TYPE, annotations={"note": note})
        found = await read_referrers(writer.client, SUBJECT, limit=LIMIT)
        await writer.close()
    assert found.kept_by == ("registry" if api else "clients")
    assert sorted(row.annotations["note"] for row in found.rows if row.artifact_type == TYPE) == ["a", "b"]
    tagged = registry.manifests["team/app"].get(referrers_tag(SUBJECT))
    if api:
        assert tagged is None
    else:
        assert tagged is not None
        kept = json.loads(tagged[1])
        assert kept["manifests"][0] == foreign and kept["annotations"] == {"theirs": "yes"} and len(kept["manifests"]) == 3


async def test_many_who_refer_at_once_without_the_api(writer: RegistryWriter) -> None:
    """docker-registry 2.8, six writers of one list: each finds its entry in the end."""
    await writer.push_blob(OutgoingBlob.of("empty", media.EMPTY_JSON))

    async def refer(note: str) -> None:
        await writer.put_referrer("it", manifest(note=note), subject=SUBJECT, artifact_type=TYPE, annotations={"note": note})

    await asyncio.gather(*(refer(str(n)) for n in range(6)))
    found = await read_referrers(writer.client, SUBJECT, limit=LIMIT)
    assert sorted(row.annotations["note"] for row in found.rows) == list("012345")


async def test_a_list_that_is_none_is_left_alone(writer: RegistryWriter) -> None:
    """Somebody's image under the tag: an error, and the image stays."""
    await writer.push_blob(OutgoingBlob.of("empty", media.EMPTY_JSON))
    data = manifest(note="theirs")
    await writer.put_manifest("theirs", data, media.OCI_MANIFEST, tag=referrers_tag(SUBJECT))
    entry = {"mediaType": media.OCI_MANIFEST, "digest": str(Digest.of(data)), "size": len(data)}
    with pytest.raises(Invalid):
        await tag_schema.add_referrer(writer.client, SUBJECT, entry, limit=LIMIT)
    kept, _ = await writer.client.read("it", f"manifests/{referrers_tag(SUBJECT)}", media.OCI_MANIFEST, LIMIT)
    assert kept == data


async def test_a_manifest_whose_blobs_are_missing_is_refused(writer: RegistryWriter) -> None:
    """By the registry, in its words: so its garbage collection knows every blob that an artifact needs."""
    with pytest.raises(Invalid, match="BLOB_UNKNOWN"):
        await writer.put_manifest("it", manifest(OutgoingBlob.of("never sent", b"never sent")), media.OCI_MANIFEST)
