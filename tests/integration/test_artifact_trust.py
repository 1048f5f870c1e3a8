"""From one host's publish to another host's trust, over a real registry."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import daemons
from castoff.artifact.artifact import Artifact
from castoff.artifact.find import find_artifact
from castoff.artifact.keys import host_key
from castoff.artifact.trust import distrust, load_trust, trust_key
from castoff.config import Config
from castoff.host import Host
from castoff.image.image import Image
from castoff.image.reference import parse_reference
from castoff.image.settings import ImageSettings
from castoff.store.settings import StoreSettings
from oci_builder import LayerTar, build_image, write_layout

FLAT = StoreSettings(backing="native")


def push(tmp_path: Path, target: str) -> None:
    """An image that no other test has."""
    image = build_image([LayerTar().file("a", os.urandom(5000)), LayerTar().file("b", os.urandom(300_000))])
    source = f"oci:{write_layout(tmp_path / 'layout', {'v1': image})}:v1"
    command = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", source, f"docker://{target}"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


async def publish(state: Path, name: str) -> Image:
    async with Host.open(config=Config(state=state, store=FLAT)) as host:
        return (await host.publish(name)).image


async def find(state: Path, image: Image, name: str) -> tuple[Artifact | None, list[str]]:
    return await find_artifact(image, parse_reference(name), ImageSettings(), load_trust(state))


async def test_what_one_host_published_counts_on_another_once_it_is_trusted(registry: daemons.Registry, tmp_path: Path) -> None:
    """Not before, which a line tells with the words that change it; and no longer when it is distrusted."""
    name = f"{registry.host}/trust/app:v1"
    here, there = tmp_path / "here", tmp_path / "there"
    push(tmp_path, name)
    image = await publish(there, name)
    key = host_key(there).public
    found, notes = await find(here, image, name)
    assert found is None and len(notes) == 1 and notes[0].endswith(f"castoff trust add {key}")
    trust_key(here, key, "there")
    found, notes = await find(here, image, name)
    assert found is not None and notes == []
    assert found.signer == str(key) and found.image == image.digest
    assert [layer.diff_id for layer in found.layers] == [layer.diff_id for layer in image.layers]
    assert (await find(there, image, name))[0] == found
    distrust(here, "there")
    assert (await find(here, image, name))[0] is None


async def test_two_hosts_publish_the_same_artifact(registry: daemons.Registry, tmp_path: Path) -> None:
    """Its bytes follow from the image: one artifact with two signatures, each enough for those who trust its signer."""
    name = f"{registry.host}/trust/twice:v1"
    push(tmp_path, name)
    hosts = [tmp_path / "one", tmp_path / "two"]
    images = [await publish(state, name) for state in hosts]
    found = [(await find(state, image, name))[0] for state, image in zip(hosts, images, strict=True)]
    assert found[0] is not None and found[1] is not None
    assert found[0].digest == found[1].digest and found[0].signer != found[1].signer
