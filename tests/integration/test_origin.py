"""Is an artifact what its image's layers give? Artifacts that are, and some that a trusted key signed and that are not."""

from __future__ import annotations

import dataclasses
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import daemons
from castoff.artifact.keys import host_key
from castoff.artifact.publish import publish_artifact
from castoff.config import Config
from castoff.create import opened
from castoff.host import Host
from castoff.image.image import Layer
from castoff.image.push import RegistryWriter
from castoff.image.reference import RegistryReference, parse_reference
from castoff.layers.index import LayerIndex
from castoff.layers.pack import Pack
from castoff.layers.packing import write_pack
from castoff.layers.toc import CHUNK
from castoff.store.settings import StoreSettings
from layer_reader import convert_bytes
from oci_builder import LayerTar, build_image, write_layout


def _tar(seed: int, name: str = "data", chunks: int = 5) -> bytes:
    return LayerTar().file(name, random.Random(seed).randbytes(chunks * CHUNK)).file("end", b"end").bytes()


Lie = Callable[[LayerIndex], LayerIndex]


@dataclasses.dataclass
class Packer:
    """Packs what it says the layers are."""

    directory: Path
    tars: dict[str, bytes]
    lie: Lie = lambda index: index

    async def __call__(self, layer: Layer, target: Path) -> tuple[LayerIndex, Pack]:
        directory = self.directory / layer.diff_id.hex
        made = await convert_bytes(directory, self.tars[str(layer.diff_id)])
        index = self.lie(dataclasses.replace(made, diff_id=layer.diff_id))
        return index, write_pack(directory / "segment", made, target)


def _other_mode(index: LayerIndex) -> LayerIndex:
    """Every file may be run as root by everybody."""
    return dataclasses.replace(index, toc=dataclasses.replace(index.toc, mode=index.toc.mode | 0o4111))


@pytest.mark.parametrize(
    ("name", "second", "lie", "told"),
    [
        ("true", _tar(2), lambda index: index, ""),
        ("content", _tar(3), lambda index: index, "5 of 6 chunks are not what its origin gives, the first is 0"),
        ("size", _tar(2, chunks=6), lambda index: index, "in the artifact, and its origin gives"),
        ("name", _tar(2, name="dato"), lambda index: index, "its table of contents is not what its origin gives"),
        ("mode", _tar(2), _other_mode, "its table of contents is not what its origin gives"),
    ],
)
async def test_an_artifact_is_compared_with_its_origin(
    registry: daemons.Registry, tmp_path: Path, name: str, second: bytes, lie: Lie, told: str
) -> None:
    """Of two layers the first is as it should be; whatever the second says that is not so is found."""
    built = build_image([_tar(1), _tar(2)], cmd=["true"])
    layout = write_layout(tmp_path / "layout", {"v1": built})
    reference = f"{registry.host}/origin/{name}:v1"
    command = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", "--preserve-digests"]
    subprocess.run([*command, f"oci:{layout}:v1", f"docker://{reference}"], check=True, timeout=60)
    config = Config(state=tmp_path / "state", store=StoreSettings(backing="native"))
    tars = dict(zip(built.diff_ids, [_tar(1), second], strict=True))
    (tmp_path / "liar").mkdir()
    async with Host.open(config=config) as host:
        parsed = parse_reference(reference)
        assert isinstance(parsed, RegistryReference)
        writer = RegistryWriter(parsed, config.image)
        packer = Packer(tmp_path / "liar", tars)
        if lie is _other_mode:
            packer.lie = lambda index: lie(index) if str(index.diff_id) == built.diff_ids[1] else index
        try:
            async with opened(reference, None, config=config, store=host.store) as (_, image):
                await publish_artifact(image, writer, store=host.store.root, packer=packer, key=host_key(host.store.state))
        finally:
            await writer.close()
        first, last = await host.verify_origin(reference)
        assert list((host.store.root / "tmp").iterdir()) == []
    assert (first.problem, first.note) == ("", "")
    assert told in last.problem if told else last.problem == ""
    assert (first.name, last.name) == built.diff_ids
