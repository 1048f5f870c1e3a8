"""How the hydrator is asked: its socket, in this process, over a real fanotify front."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from castoff.errors import Invalid, NotFound
from castoff.fakes.chunk_source import FakeChunkSource
from castoff.hydrate import client, descriptors
from castoff.hydrate.channel import Channel
from castoff.hydrate.doors import open_doors
from castoff.hydrate.record import CLONE, LOG
from hydrator_host import Host, eventually
from packed_layer import random_files


async def test_attach_hands_over_descriptors_and_progress_tells_how_far_it_is(scratch_xfs: Path) -> None:
    """The fill descriptor is the clone's; both are close-on-exec; once detached nothing is served."""
    host = await Host.make(scratch_xfs, [random_files(1, chunks=6)])
    directory, state = host.machine("m1", background=False), host.store.state
    async with host.hydrator(FakeChunkSource(host.packs)) as hydrator, open_doors(state, hydrator):
        attached = await client.attach(state, directory)
        group, fill = attached.descriptors
        assert os.path.samestat(os.fstat(fill), (directory / CLONE).stat())
        assert (os.get_inheritable(group), os.get_inheritable(fill)) == (False, False)
        again = await client.attach(state, directory)  # as one whose answer was lost
        assert os.path.samestat(os.fstat(again.descriptors[1]), os.fstat(fill))
        again.close()
        hydrator.prefetch("m1", [0, 1])
        served = hydrator.served("m1")
        assert served is not None
        await eventually(lambda: served.progress.present == 2)
        found = await client.progress(state, "m1")
        assert found is not None
        assert (found.present, found.rows, found.misses, found.waiting) == (2, len(served.map), 0, 0)
        assert found.fetched > 0
        assert await client.progress(state, "m2") is None
        attached.close()
        attached.close()
        await client.detach(state, "m1")
        assert await client.progress(state, "m1") is None
        await client.ready(state, "m1")  # of a machine that is gone: nothing


async def test_errors_come_back_as_what_they_are(scratch_xfs: Path) -> None:
    """With class, message and hint; what is no question is refused, and the connection lives."""
    host = await Host.make(scratch_xfs, [random_files(1, chunks=6)])
    state = host.store.state
    async with host.hydrator(FakeChunkSource(host.packs)) as hydrator, open_doors(state, hydrator):
        with pytest.raises(NotFound, match="has no lazy rootfs"):
            await client.attach(state, host.store.machines / "nobody")
        channel = Channel(descriptors.connect(client.socket_path(state)))
        for question in ({}, {"do": "dance"}, {"do": "attach"}, {"do": "ready", "machine": "m1", "when": "now"}):
            await channel.send(question)
            found = await channel.receive()
            assert found is not None
            assert found[0]["error"]["code"] == Invalid.code.value
        channel.close()


async def test_who_goes_before_it_has_the_descriptors_leaves_nothing_served(scratch_xfs: Path) -> None:
    """No VMM can ever be started on them."""
    host = await Host.make(scratch_xfs, [random_files(1, chunks=6)])
    directory, state = host.machine("m1", background=False), host.store.state
    async with host.hydrator(FakeChunkSource(host.packs)) as hydrator, open_doors(state, hydrator) as doors:
        channel = Channel(descriptors.connect(client.socket_path(state)))
        await channel.send({"do": "attach", "directory": str(directory)})
        channel.close()
        await eventually(lambda: (directory / LOG).exists())  # it was heard
        await eventually(lambda: not (doors.is_busy or hydrator.served("m1")))
        attached = await client.attach(state, directory)  # the next one finds it as it was
        attached.close()


async def test_a_hydrator_that_is_just_ending_is_asked_again(scratch_xfs: Path) -> None:
    """Idle hydrators end at any moment: whoever comes then is answered by the next one."""
    host = await Host.make(scratch_xfs, [random_files(1, chunks=6)])
    directory, state = host.machine("m1", background=False), host.store.state
    listener = descriptors.listen(client.socket_path(state))
    listener.setblocking(False)

    async def hang_up() -> None:
        connection, _ = await asyncio.get_running_loop().sock_accept(listener)
        connection.close()

    ending = asyncio.create_task(hang_up())
    async with host.hydrator(FakeChunkSource(host.packs)) as hydrator:
        asking = asyncio.create_task(client.attach(state, directory))
        await ending
        async with open_doors(state, hydrator):
            (await asking).close()
            assert hydrator.served("m1") is not None
    listener.close()
