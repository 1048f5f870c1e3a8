"""A layer from another host: what is believed of it, and what that host may do wrong."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from castoff.agent.peers.indexes import Indexes
from castoff.artifact.keys import HostKey, decode_signature, encode_signature, host_key
from castoff.errors import CastoffError, Invalid, LimitExceeded, NotFound, Unauthorized, Unavailable
from castoff.image.digest import Digest
from castoff.layers.published import publish_index
from castoff.layers.settings import Limits
from castoff.peers.indexes import SignedIndex
from castoff.peers.settings import PeerSettings
from castoff.peers.wire import KEY_HEADER, SIGNATURE_HEADER, parse_chunks
from castoff.rootfs.context import ProviderContext
from castoff.rootfs.handover import take_layer
from castoff.store.settings import StoreSettings
from castoff.store.store import Store
from fleet_authority import Authority
from fleet_hosts import share_key
from packed_layer import PackedLayer, random_files
from peer_hosts import put, real_pack, sharing

KEY = bytes(range(32))
MINE, STRANGER = HostKey.of(KEY), HostKey.of(bytes(range(1, 33)))
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture(name="layer")
async def _layer(tmp_path: Path) -> PackedLayer:
    return await real_pack(tmp_path / "layer", random_files(7, chunks=6))


@pytest.fixture(name="context")
def _context(scratch_xfs: Path) -> ProviderContext:
    """A host that takes layers, and trusts the key that it has itself."""
    store = Store.open(scratch_xfs / "taker", StoreSettings(backing="native"))
    share_key(store.state, KEY)
    return ProviderContext(store)


def signed(layer: PackedLayer, key: HostKey = MINE, *, for_layer: Digest | None = None) -> SignedIndex:
    unsigned = SignedIndex(publish_index(layer.index), str(key.public), "")
    return replace(unsigned, signature=encode_signature(key.sign(unsigned.statement(for_layer or layer.index.diff_id))))


@contextlib.asynccontextmanager
async def impostor(index: Answer | SignedIndex, chunks: Answer | None = None) -> AsyncIterator[str]:
    """Something at a host's place."""

    async def answers(request: web.Request) -> web.StreamResponse:
        if not request.path.endswith("/index"):
            return await chunks(request) if chunks is not None else web.Response(status=404)
        if not isinstance(index, SignedIndex):
            return await index(request)
        return web.Response(body=index.data, headers={KEY_HEADER: index.key, SIGNATURE_HEADER: index.signature})

    app = web.Application()
    app.router.add_get("/{rest:.*}", answers)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_a_layer_is_taken_whole_over_the_fleet_s_tls(
    scratch_xfs: Path, tmp_path: Path, layer: PackedLayer, context: ProviderContext
) -> None:
    """From a host that has the segment and no pack; byte for byte, and pinned."""
    authority = Authority(tmp_path, "fleet")
    share_key(scratch_xfs / "giver", KEY)
    async with sharing(scratch_xfs / "giver", [layer], authority.settings("giver", "127.0.0.1:0")) as host:
        trusted = replace(context, peers=authority.settings("taker"))
        taken = await take_layer(layer.index.diff_id, host.url, trusted, within=30)
        assert taken.complete
        assert taken.segment.read_bytes() == bytes(layer.segment)
        taken.pin.close()
        with pytest.raises(CastoffError):  # a host without a certificate
            await take_layer(Digest.of(b"another"), host.url, replace(context, peers=PeerSettings()), within=5)


async def test_an_index_is_made_once_and_says_where_frames_would_be(scratch_xfs: Path, layer: PackedLayer) -> None:
    """The index of a converted layer has no places: they are those of the pack that nobody keeps."""
    store = Store.open(scratch_xfs / "giver", StoreSettings(backing="native"))
    await put(store, layer)
    indexes = Indexes(store)
    found = await indexes.get(layer.index.diff_id, 20.0)
    assert found is not None
    assert found.data == publish_index(layer.index)
    assert await indexes.get(layer.index.diff_id, 0.0) is found
    key = host_key(store.state).public
    assert found.key == str(key)
    assert key.verifies(decode_signature(found.signature), found.statement(layer.index.diff_id))
    with pytest.raises(NotFound):
        await indexes.get(Digest.of(b"another"), 20.0)
    assert list((store.root / "tmp").iterdir()) == []
    await indexes.close()


async def test_a_layer_that_is_not_whole_is_not_given(scratch_xfs: Path, layer: PackedLayer) -> None:
    store = Store.open(scratch_xfs / "giver", StoreSettings(backing="native"))
    await put(store, layer, layer.packed[:2])
    indexes = Indexes(store)
    with pytest.raises(NotFound, match="not whole"):
        await indexes.get(layer.index.diff_id, 20.0)
    await indexes.close()


@pytest.mark.parametrize("wrong", ["stranger", "another layer's", "no signature", "no key", "other bytes", "forged places"])
async def test_what_no_trusted_key_signed_is_not_believed(
    tmp_path: Path, layer: PackedLayer, context: ProviderContext, wrong: str
) -> None:
    """Nothing of it is in the store afterwards."""
    offered = signed(layer)
    if wrong == "stranger":
        offered = signed(layer, STRANGER)
    elif wrong == "another layer's":
        offered = signed(layer, for_layer=Digest.of(b"another"))
    elif wrong == "no signature":
        offered = replace(offered, signature="")
    elif wrong == "no key":
        offered = replace(offered, key="")
    elif wrong == "other bytes":
        offered = replace(offered, data=offered.data + b"x")
    else:
        places = replace(layer.index.locations, length=layer.index.locations.length * 0)
        offered = signed(PackedLayer(replace(layer.index, locations=places), layer.segment, layer.pack, layer.tar))
    async with impostor(offered) as url:
        with pytest.raises(Unauthorized if wrong == "stranger" else Invalid):
            await take_layer(layer.index.diff_id, url, context, within=20)
    assert context.store.layer(layer.index.diff_id) is None


async def test_another_layer_s_true_index_is_refused(tmp_path: Path, layer: PackedLayer, context: ProviderContext) -> None:
    """Also where a trusted key signed that it is this layer's."""
    other = await real_pack(tmp_path / "other", random_files(8, chunks=2))
    async with impostor(signed(other, for_layer=layer.index.diff_id)) as url:
        with pytest.raises(Invalid, match="is that of"):
            await take_layer(layer.index.diff_id, url, context, within=20)


async def test_wrong_chunks_do_not_make_a_layer(layer: PackedLayer, context: ProviderContext) -> None:
    """The index is true and its host sends rubbish: the layer is not whole, and its next builder replaces it."""

    async def rubbish(request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/have"):
            return web.Response(body=b"\xff" * -(-len(layer.index.zero) // 8))
        return web.Response(body=bytes(sum(length for _, length in parse_chunks(request.query["of"]))))

    async with impostor(signed(layer), rubbish) as url:
        with pytest.raises(CastoffError):
            await take_layer(layer.index.diff_id, url, context, within=10)
    found = context.store.layer(layer.index.diff_id)
    assert found is None or not found.complete


async def test_a_host_that_never_ends_is_left(layer: PackedLayer, context: ProviderContext) -> None:
    """It says for ever that it makes the index; or it sends more than an index may have."""

    async def later(request: web.Request) -> web.StreamResponse:
        return web.Response(status=202)

    async def endless(request: web.Request) -> web.StreamResponse:
        return web.Response(body=bytes(200_000))

    async with impostor(later) as url:
        with pytest.raises(Unavailable, match="did not come"):
            await take_layer(layer.index.diff_id, url, context, within=0.5)
    async with impostor(endless) as url:
        with pytest.raises(LimitExceeded):
            await take_layer(layer.index.diff_id, url, replace(context, limits=Limits(max_entries=1000)), within=20)
