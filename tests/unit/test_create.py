"""What a create refuses, and when: before it has done what it would have to throw away."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from castoff.config import Config
from castoff.create import create
from castoff.errors import CastoffError
from castoff.machine.model import MachineRequest
from castoff.machine.records import MachineRecords
from castoff.rootfs.context import ProviderContext
from castoff.store.settings import StoreSettings
from castoff.store.store import Store
from hostile_registry import HostileRegistry, break_after, only
from oci_builder import LayerTar, build_image, write_layout


async def _refused(request: MachineRequest, state: Path) -> str:
    """Why a create fails; nothing of it is left."""
    store = Store.open(state, StoreSettings(backing="native"))
    records = MachineRecords(store.machines)
    with pytest.raises(CastoffError) as caught:
        await create(request, config=Config(), store=store, providers=ProviderContext(store), records=records)
    assert list(records) == []
    return str(caught.value)


@pytest.mark.parametrize("memory", [0, 1, (32 << 20) - 1])
async def test_too_little_memory_is_no_default(tmp_path: Path, memory: int) -> None:
    """0 is what was asked for, not nothing."""
    assert "32M or more" in await _refused(MachineRequest(image="alpine", memory=memory), tmp_path)


async def test_a_kernel_that_is_missing_is_told_while_the_image_still_comes(tmp_path: Path) -> None:
    """Nobody waits for a gigabyte to be told of a slip."""
    registry = HostileRegistry()
    image = build_image([LayerTar().file("big", os.urandom(100_000))], cmd=["true"])
    registry.add("team/app", image)
    registry.faults.append(only("/blobs/" + image.layers[0].digest, break_after(100, stall=60)))
    async with registry.running() as host, asyncio.timeout(20):
        request = MachineRequest(image=f"{host}/team/app", kernel=tmp_path / "missing")
        assert "missing cannot be read" in await _refused(request, tmp_path)


def test_the_platform_is_this_hosts(tmp_path: Path) -> None:
    """Not the one that castoff was written on: under a 32-bit personality an image for amd64 is for others."""
    write_layout(tmp_path / "image", {"latest": build_image([LayerTar()], cmd=["true"])})
    code = """
import asyncio, sys
from pathlib import Path
from castoff.config import Config
from castoff.create import opened
from castoff.store.settings import StoreSettings
from castoff.store.store import Store

async def main():
    store = Store.open(Path(sys.argv[1]), StoreSettings(backing="native"))
    async with opened(f"oci:{sys.argv[1]}/image:latest", None, config=Config(), store=store) as (_, image):
        print(image.platform)

asyncio.run(main())
"""
    done = subprocess.run(
        ["setarch", "linux32", sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert "no image for linux/386: it has linux/amd64" in done.stderr
