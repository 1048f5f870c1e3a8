"""Boot profiles between hosts: through a real registry, and through one that lies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import daemons
from artifacts import MINE, STRANGER, Published, built, trusting
from castoff.artifact.artifact import Blob
from castoff.artifact.keys import HostKey
from castoff.artifact.manifest import Subject
from castoff.artifact.profile_referrer import profile_manifest, read_profile_referrer, sign_profile
from castoff.artifact.profiles import PublishedProfile, find_profile, open_hot_pack, read_profiles
from castoff.artifact.trust import Trust
from castoff.errors import CastoffError, DigestMismatch
from castoff.hydrate.hot_stream import HotPackStream
from castoff.hydrate.hotpack import write_hot_pack
from castoff.hydrate.profile import Boot, ChunkId, Profile
from castoff.hydrate.profile_file import encode_profile, read_profile, update_profile
from castoff.hydrate.sharing import Sharing, adopt_profile, share_profile
from castoff.image.client import RegistryClient
from castoff.image.credentials import Keyring
from castoff.image.digest import Digest
from castoff.image.endpoint import endpoints_of
from castoff.image.media import OCI_MANIFEST
from castoff.image.push import RegistryWriter
from castoff.image.reference import RegistryReference
from castoff.image.referrers import ReferrerLists
from castoff.image.settings import ImageSettings
from castoff.image.transport import Transport
from castoff.layers.index import LayerIndex
from castoff.layers.toc import CHUNK
from faulty_proxy import Answer, faulty_proxy
from hostile_registry import HostileRegistry, break_after, once, only
from layer_reader import convert_bytes
from oci_builder import Blob as Document
from oci_builder import LayerTar

QUICK = ImageSettings(retries=2, retry_delay=0.01, read_timeout=2.0, connect_timeout=2.0)
IMAGE = built("base", "app")
OTHER = built("base", "another")
SUBJECT = Subject(IMAGE.manifest.media_type, Digest.parse(IMAGE.digest), len(IMAGE.manifest.data))


@dataclass(frozen=True)
class Host:
    """A host's store as far as profiles go, with one layer of the image in it, and its key."""

    root: Path
    key: HostKey
    diff_id: Digest
    index: LayerIndex

    @property
    def layers(self) -> dict[Digest, tuple[Path, LayerIndex]]:
        return {self.diff_id: (self.root / "segment", self.index)}

    async def boot(self, *numbers: int, at: int, id: str) -> Profile:
        """Records a boot that read these chunks."""
        boot = Boot(at, id * 16, tuple(ChunkId(self.diff_id, number) for number in numbers))
        found = await update_profile(
            self.root, SUBJECT.digest, lambda own: Profile.of(SUBJECT.digest, (*(own.boots if own else ()), boot))
        )
        assert found is not None
        return found

    async def share(self, host: str, repository: str, trust: Trust) -> PublishedProfile | None:
        """Publishes what is news."""
        writer = RegistryWriter(RegistryReference(host, repository), QUICK)
        try:
            return await share_profile(Sharing(self.root, writer, self.key, trust, SUBJECT, self.layers))
        finally:
            await writer.close()


async def host(directory: Path, key: HostKey) -> Host:
    """Makes one."""
    tar = LayerTar().file("words", b"".join(b"%d words " % number for number in range(200_000))).file("zeros", bytes(2 * CHUNK))
    index = await convert_bytes(directory, tar.file("end", b"end").bytes())
    for name in ("locks", "tmp"):
        (directory / name).mkdir()
    return Host(directory, key, index.diff_id, index)


async def find(host: str, repository: str, trust: Trust) -> tuple[PublishedProfile | None, list[str]]:
    """As a create does."""
    return await find_profile(SUBJECT.digest, RegistryReference(host, repository, "v1"), QUICK, trust, timeout=5)


@asynccontextmanager
async def connected(host: str, repository: str) -> AsyncIterator[RegistryClient]:
    """Requests to a repository."""
    transport = Transport(QUICK)
    try:
        yield RegistryClient(endpoints_of(RegistryReference(host, repository), QUICK)[-1], Keyring(QUICK), transport, QUICK)
    finally:
        await transport.close()


async def stream(client: RegistryClient, hot_pack: Blob, one: Host) -> list[tuple[ChunkId, bytes]]:
    """All of a hot pack."""
    pieces = open_hot_pack(client, SUBJECT.digest, hot_pack, QUICK)
    async with HotPackStream(pieces, image=SUBJECT.digest, size=hot_pack.size) as coming:
        return [item async for item in coming.chunks({one.diff_id: one.index})]


async def test_what_one_host_recorded_the_next_one_uses(tmp_path: Path, registry: daemons.Registry) -> None:
    """Through a docker-registry without the referrers API: found, joined, and its hot pack streamed, byte for byte."""
    first, second = await host(tmp_path / "a", MINE), await host(tmp_path / "b", STRANGER)
    both = trusting(MINE, STRANGER)
    recorded = await first.boot(4, 0, 2, at=100, id="a")
    published = await first.share(registry.host, "profiles/app", both)
    assert published is not None

    found, notes = await find(registry.host, "profiles/app", both)
    assert (found, notes) == (published, [])
    async with connected(registry.host, "profiles/app") as client:
        await second.boot(3, 0, at=50, id="b")
        joined = await adopt_profile(second.root, client, published)
        chunks = await stream(client, published.referrer.hot_pack, second)
    assert joined == read_profile(second.root, SUBJECT.digest)
    assert [boot.id[0] for boot in joined.boots] == ["b", "a"]
    segment = (second.root / "segment").read_bytes()
    assert [chunk.number for chunk, _ in chunks] == [4, 0, 2] == [chunk.number for chunk in recorded.chunks]
    assert all(data == segment[chunk.number * CHUNK :][:CHUNK] for chunk, data in chunks)
    assert not list((first.root / "tmp").iterdir())


async def test_only_news_is_published(tmp_path: Path, registry: daemons.Registry) -> None:
    """The first boot, twice as many boots, other chunks; never the same again, and never what another host has told."""
    one, other = await host(tmp_path / "a", MINE), await host(tmp_path / "b", STRANGER)
    both = trusting(MINE, STRANGER)
    published = []
    for at in range(8):
        await one.boot(0, 1, 2, at=100 + at, id=f"{at:x}")
        published.append(await one.share(registry.host, "profiles/news", both))
    assert [found is not None for found in published] == [True, True, False, True, False, False, False, True]
    assert await one.share(registry.host, "profiles/news", both) is None
    assert await other.share(registry.host, "profiles/news", both) is None, "it has nothing of its own"
    found = read_profile(other.root, SUBJECT.digest)
    assert found is not None
    assert len(found.boots) == 8, "and knows now what others published"
    for at in range(5):
        await other.boot(5, 6, at=200 + at, id=f"{8 + at:x}")
    changed = await other.share(registry.host, "profiles/news", both)
    assert changed is not None
    best, _ = await find(registry.host, "profiles/news", both)
    assert best == changed, "as many boots, and newer"


async def profiles_in(host: str, repository: str) -> list[tuple[str, int]]:
    """(key, boots) of each that is listed, and there."""
    async with connected(host, repository) as client:
        rows = await read_profiles(client, ReferrerLists(SUBJECT.digest), limit=1 << 20)
        for row in rows:
            await client.read("it", f"manifests/{row.digest}", OCI_MANIFEST, 1 << 20)
    read = [read_profile_referrer(row.annotations) for row in rows]
    return [(str(one.key), one.boots) for one in read]


async def test_what_is_superseded_is_deleted(tmp_path: Path, registry: daemons.Registry) -> None:
    """Of the same signer, manifest and entry of the list; what others signed stays, and so does what a registry keeps."""
    one, other = await host(tmp_path / "a", MINE), await host(tmp_path / "b", STRANGER)
    await other.boot(3, 4, at=10, id="e")
    assert await other.share(registry.host, "profiles/old", trusting(STRANGER)) is not None
    for at in range(4):
        await one.boot(0, 1, 2, at=100 + at, id=f"{at:x}")
        await one.share(registry.host, "profiles/old", trusting(MINE))
    assert await profiles_in(registry.host, "profiles/old") == [(str(STRANGER.public), 1), (str(MINE.public), 4)]


@pytest.mark.parametrize("status", [400, 401, 403, 405, 500, 501])
async def test_a_registry_that_deletes_nothing_stops_nothing(tmp_path: Path, registry: daemons.Registry, status: int) -> None:
    """The profile is published, and the old one stays."""
    one = await host(tmp_path / "a", MINE)
    repository = f"profiles/kept-{status}"
    with faulty_proxy(registry.host) as proxy:
        proxy.choose = lambda request: Answer(status) if request.method == "DELETE" else None
        for at in range(2):
            await one.boot(0, 1, 2, at=100 + at, id=f"{at:x}")
            assert await one.share(proxy.host, repository, trusting(MINE)) is not None
        assert any(request.method == "DELETE" for request in proxy.seen)
    assert [boots for _, boots in await profiles_in(registry.host, repository)] == [1, 2]


async def test_without_the_chunks_nothing_is_published(tmp_path: Path, registry: daemons.Registry) -> None:
    """A profile whose chunks are evicted has no hot pack, and goes nowhere."""
    one = await host(tmp_path / "a", MINE)
    await one.boot(0, 1, at=100, id="a")
    (one.root / "segment").write_bytes(bytes(one.index.segment_size))
    assert await one.share(registry.host, "profiles/evicted", trusting(MINE)) is None
    assert (await find(registry.host, "profiles/evicted", trusting(MINE)))[0] is None


def manifest_of(one: Profile, hot_pack: Blob, key: HostKey = MINE) -> Document:
    """A published profile's manifest."""
    data = encode_profile(one)
    referrer = sign_profile(
        key,
        image=one.image,
        blob=Blob(Digest.of(data), len(data)),
        hot_pack=hot_pack,
        boots=len(one.boots),
        recorded=one.boots[-1].recorded,
    )
    return Document(profile_manifest(referrer, media_type=SUBJECT.media_type, size=SUBJECT.size), OCI_MANIFEST)


def a_profile(*ids: str, image: Digest = SUBJECT.digest) -> Profile:
    """Of boots that read one chunk."""
    return Profile.of(image, [Boot(at + 1, id * 16, (ChunkId(Digest("a" * 64), 0),)) for at, id in enumerate(ids)])


HOT = Blob(Digest("d" * 64), 12345)


async def looked(*documents: Document, trust: Trust | None = None) -> tuple[PublishedProfile | None, list[str]]:
    """What is found among these referrers."""
    registry = HostileRegistry()
    Published(IMAGE).add(*documents).put_on(registry, "team/app")
    async with registry.running() as host:
        return await find(host, "team/app", trust or trusting(MINE))


async def test_the_profile_of_most_boots_is_chosen() -> None:
    """Among those that count; a stranger's may rest on any number."""
    few, many = manifest_of(a_profile("a", "b"), HOT), manifest_of(a_profile("a", "b", "c"), HOT)
    strangers = manifest_of(a_profile("a", "b", "c", "d"), HOT, STRANGER)
    found, notes = await looked(few, strangers, many)
    assert found is not None
    assert (str(found.digest), found.referrer.boots) == (many.digest, 3)
    assert not notes


async def test_a_registry_that_leaves_annotations_out_is_asked_for_them() -> None:
    """A request more for each profile: as good as any."""
    good = manifest_of(a_profile("a"), HOT)
    registry = HostileRegistry()
    Published(IMAGE).add(good).put_on(registry, "team/app", annotations=False)
    async with registry.running() as host:
        found, notes = await find(host, "team/app", trusting(MINE))
    assert found is not None
    assert (str(found.digest), notes) == (good.digest, [])


async def test_a_strangers_profile_is_as_if_it_were_not_there() -> None:
    """Only whose artifacts count, their profiles do."""
    assert await looked(manifest_of(a_profile("a"), HOT, STRANGER)) == (None, [])
    assert await looked(manifest_of(a_profile("a"), HOT), trust=Trust()) == (None, [])


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("blob", '"vnd.castoff.profile.blob":"sha256:', "9"),
        ("hot pack", '"vnd.castoff.profile.hot-pack":"sha256:', "9"),
        ("size", f"{HOT.digest} ", "2"),
        ("boots", '"vnd.castoff.profile.boots":"', "7"),
        ("recorded", '"vnd.castoff.profile.recorded":"', "7"),
        ("image", '"vnd.castoff.profile.image":"sha256:', "9"),
        ("signature", '"vnd.castoff.profile.signature":"', "_"),
    ],
)
async def test_a_changed_profile_is_refused(name: str, old: str, new: str) -> None:
    """Any fact that a registry changes breaks the signature."""
    good = manifest_of(a_profile("a"), HOT)
    text = good.data.decode()
    at = text.index(old) + len(old)
    assert text[at] != new
    found, notes = await looked(Document((text[:at] + new + text[at + 1 :]).encode(), OCI_MANIFEST))
    assert found is None
    assert len(notes) == 1
    assert "refused" in notes[0]


async def test_a_profile_of_another_image_is_refused() -> None:
    """Though a trusted key signed it, for that one."""
    found, notes = await looked(manifest_of(a_profile("a", image=Digest.parse(OTHER.digest)), HOT))
    assert found is None
    assert "refused" in notes[0]


async def test_a_broken_one_does_not_hide_a_good_one() -> None:
    """It is told of, and the next one counts."""
    good = manifest_of(a_profile("a"), HOT)
    broken = Document(good.data.replace(b'boots":"1"', b'boots":"01"'), OCI_MANIFEST)
    forged = Document(good.data.replace(b'boots":"1"', b'boots":"8"'), OCI_MANIFEST)
    found, notes = await looked(broken, forged, good)
    assert found is not None
    assert str(found.digest) == good.digest
    assert len(notes) == 2


async def test_a_registry_that_does_not_answer_stops_nothing() -> None:
    """A line says so; the create goes on without."""
    registry = HostileRegistry()
    registry.faults.append(only("referrers", break_after(0)))
    Published(IMAGE).add(manifest_of(a_profile("a"), HOT)).put_on(registry, "team/app")
    async with registry.running() as host:
        found, notes = await find(host, "team/app", trusting(MINE))
    assert found is None
    assert "was not asked for a boot profile" in notes[0]


async def test_a_changed_profile_blob_is_refused(tmp_path: Path) -> None:
    """What the registry gives must be what was signed; nothing of it is kept."""
    profile = a_profile("a")
    data = encode_profile(profile)
    registry = HostileRegistry()
    Published(IMAGE).add(manifest_of(profile, HOT)).put_on(registry, "team/app")
    registry.put(f"/v2/team/app/blobs/{Digest.of(data)}", Document(data.replace(b"aaaa", b"bbbb", 1), "application/json"))
    (tmp_path / "locks").mkdir()
    async with registry.running() as host, connected(host, "team/app") as client:
        found, _ = await find(host, "team/app", trusting(MINE))
        assert found is not None
        with pytest.raises(DigestMismatch):
            await adopt_profile(tmp_path, client, found)
    assert read_profile(tmp_path, SUBJECT.digest) is None


async def test_the_hot_pack_is_one_get_that_goes_on_where_it_broke(tmp_path: Path) -> None:
    """Whole in one request; broken twice, three requests and the same chunks, no byte of which came twice."""
    one = await host(tmp_path / "a", MINE)
    profile = await one.boot(3, 1, 0, 2, 4, at=1, id="a")
    pack = write_hot_pack(profile, one.layers, tmp_path / "hot")
    assert pack is not None
    registry = HostileRegistry()
    registry.put(f"/v2/team/app/blobs/{pack.digest}", Document((tmp_path / "hot").read_bytes(), "application/octet-stream"))
    hot_pack = Blob(pack.digest, pack.size)
    async with registry.running() as at, connected(at, "team/app") as client:
        whole = await stream(client, hot_pack, one)
        assert len(registry.requests) == 1
        registry.faults.append(once(break_after(pack.size // 3), times=2))
        assert await stream(client, hot_pack, one) == whole
    ranges = [seen.range for seen in registry.requests[1:]]
    assert ranges == [None, f"bytes={pack.size // 3}-", f"bytes={2 * (pack.size // 3)}-"]
    assert [chunk.number for chunk, _ in whole] == [3, 1, 0, 2, 4]


async def test_a_hot_pack_of_other_bytes_gives_no_wrong_chunk(tmp_path: Path) -> None:
    """Another pack of the same size in its place: refused at the first chunk that is not what the index says."""
    one = await host(tmp_path / "a", MINE)
    pack = write_hot_pack(await one.boot(3, 1, at=1, id="a"), one.layers, tmp_path / "hot")
    assert pack is not None
    data = bytearray((tmp_path / "hot").read_bytes())
    data[-100] ^= 1
    registry = HostileRegistry()
    registry.put(f"/v2/team/app/blobs/{pack.digest}", Document(bytes(data), "application/octet-stream"))
    async with registry.running() as at, connected(at, "team/app") as client:
        with pytest.raises(CastoffError):
            await asyncio.wait_for(stream(client, Blob(pack.digest, pack.size), one), 10)


def test_annotations_are_read_as_they_were_written() -> None:
    """And only as they are written: no other form of a number or a signature (space around a key means nothing)."""
    data = b"{}"
    made = sign_profile(MINE, image=SUBJECT.digest, blob=Blob(Digest.of(data), 2), hot_pack=HOT, boots=3, recorded=77)
    assert made.holds()
    assert read_profile_referrer(made.annotations()) == made
    assert not replace(made, boots=4).holds()
    for name, text in made.annotations().items():
        spaced = () if name.endswith(".key") else (f" {text}", f"{text} ", f"{text}\n")
        for odd in ("", "0", text.upper() + "x", *spaced):
            with pytest.raises(CastoffError):
                read_profile_referrer({**made.annotations(), name: odd})
        with pytest.raises(CastoffError):
            read_profile_referrer({other: value for other, value in made.annotations().items() if other != name})
