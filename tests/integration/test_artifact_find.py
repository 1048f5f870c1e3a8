"""Artifacts are found where they count, and whatever does not count is refused with its reason."""

from __future__ import annotations

import json
import random
from typing import Literal

import pytest

import daemons
from artifacts import MINE, STRANGER, Published, artifact_of, as_image, built, referrer, signature_of, trusting, upload
from castoff.artifact.artifact import Artifact
from castoff.artifact.find import MAX_NOTES, find_artifact
from castoff.artifact.trust import Trust
from castoff.errors import Invalid
from castoff.image.digest import Digest
from castoff.image.media import OCI_INDEX, OCI_MANIFEST
from castoff.image.reference import RegistryReference, parse_reference
from castoff.image.settings import ImageSettings
from hostile_registry import HostileRegistry, answer, break_after, only
from oci_builder import Blob, BuiltImage, build_index

QUICK = ImageSettings(retries=1, retry_delay=0.01, read_timeout=2.0, connect_timeout=2.0)
IMAGE = built("base", "app")
OTHER = built("base", "another")


async def find(
    host: str, image: BuiltImage = IMAGE, trust: Trust | None = None, *, tag: str = "v1", repositories: tuple[str, ...] = ()
) -> tuple[Artifact | None, list[str]]:
    """Looks in ``team/app`` of the registry, trusting MINE."""
    reference = parse_reference(f"{host}/team/app:{tag}")
    trust = trusting(MINE) if trust is None else trust
    return await find_artifact(as_image(image, str(reference)), reference, QUICK, trust, repositories=repositories, timeout=5)


def good(image: BuiltImage = IMAGE) -> Published:
    """What `castoff publish` leaves."""
    artifact = artifact_of(image)
    return Published(image).add(artifact, signature_of(image, artifact))


async def refused(published: Published, *reasons: str, trust: Trust | None = None, image: BuiltImage = IMAGE) -> list[str]:
    """Nothing is found in a registry that has this, and the one note has all ``reasons`` in it."""
    registry = HostileRegistry()
    published.put_on(registry, "team/app")
    async with registry.running() as host:
        artifact, notes = await find(host, image, trust)
    assert artifact is None
    assert len(notes) == 1, notes
    assert all(reason in notes[0] for reason in reasons), notes
    assert "\n" not in notes[0]
    return notes


@pytest.mark.parametrize("kept_by", ["registry", "clients"])
async def test_a_signed_artifact_is_found(kept_by: Literal["registry", "clients"]) -> None:
    """By the referrers API, or where there is none by the tag schema; in two requests, three with the fallback."""
    registry = HostileRegistry()
    good().put_on(registry, "team/app", kept_by=kept_by)
    async with registry.running() as host:
        artifact, notes = await find(host)
    assert artifact is not None and notes == []
    assert artifact.repository == f"{host}/team/app"
    assert artifact.image == Digest.parse(IMAGE.digest)
    assert artifact.digest == Digest.parse(artifact_of(IMAGE).digest)
    assert [layer.diff_id for layer in artifact.layers] == [Digest.parse(text) for text in IMAGE.diff_ids]
    assert artifact.signer == str(MINE.public)
    assert len(registry.requests) == (2 if kept_by == "registry" else 3)


async def test_a_real_registry_without_the_api(registry: daemons.Registry) -> None:
    """docker-registry 2.8: artifact and signature are pushed, listed under the tag, and found."""
    upload(registry.host, "team/app", good())
    artifact, notes = await find(registry.host)
    assert artifact is not None and notes == []
    nothing, notes = await find(registry.host, OTHER)
    assert nothing is None and notes == []


async def test_a_real_registry_with_strangers_artifacts(registry: daemons.Registry) -> None:
    """What a stranger pushed there is told of, with the words that would trust it, and is not there."""
    image = built("of a stranger")
    artifact = artifact_of(image)
    upload(registry.host, "strange/app", Published(image).add(artifact, signature_of(image, artifact, STRANGER)))
    reference = parse_reference(f"{registry.host}/strange/app")
    found, notes = await find_artifact(as_image(image), reference, QUICK, trusting(MINE))
    assert found is None and len(notes) == 1 and f"castoff trust add {STRANGER.public}" in notes[0]
    found, notes = await find_artifact(as_image(image), reference, QUICK, trusting(MINE, STRANGER))
    assert found is not None and found.signer == str(STRANGER.public) and notes == []


async def test_a_layer_that_stands_twice_in_the_image_stands_once_in_the_artifact() -> None:
    """diffIDs are compared without repetitions."""
    image = built("same", "other", "same")
    registry = HostileRegistry()
    good(image).put_on(registry, "team/app")
    async with registry.running() as host:
        artifact, notes = await find(host, image)
    assert artifact is not None and len(artifact.layers) == 2 and notes == []


async def test_without_any_signature_it_is_not_there() -> None:
    """Whoever may push could have made it."""
    await refused(Published(IMAGE).add(artifact_of(IMAGE)), artifact_of(IMAGE).digest, "has no signature: refused")


async def test_a_strangers_signature_is_not_enough() -> None:
    """One line, however many artifacts the stranger signed."""
    first, second = artifact_of(IMAGE), artifact_of(IMAGE, diff_ids=OTHER.diff_ids)
    signatures = [signature_of(IMAGE, artifact, STRANGER) for artifact in (first, second)]
    await refused(Published(IMAGE).add(first, second, *signatures), STRANGER.public.fingerprint, "castoff trust add")


async def test_a_host_that_trusts_nobody_finds_nothing() -> None:
    """Not even what it would like."""
    await refused(good(), "not trusted here", trust=Trust())


async def test_a_strangers_signature_beside_a_trusted_one_is_nobodys_concern() -> None:
    """The trusted one counts, and nothing is said."""
    artifact = artifact_of(IMAGE)
    registry = HostileRegistry()
    Published(IMAGE).add(artifact, signature_of(IMAGE, artifact, STRANGER), signature_of(IMAGE, artifact)).put_on(
        registry, "team/app"
    )
    async with registry.running() as host:
        found, notes = await find(host)
    assert found is not None and found.signer == str(MINE.public) and notes == []


async def test_an_artifact_of_another_image_is_refused() -> None:
    """Artifact and signature of OTHER, pushed as referrers of IMAGE: the signature names its image."""
    theirs = good(OTHER)
    await refused(Published(IMAGE).add(*theirs.documents), "is for the image", OTHER.digest, "refused")


async def test_a_signature_that_was_rewritten_for_another_image_is_refused() -> None:
    """It says IMAGE, and was made for OTHER."""
    artifact = artifact_of(OTHER)
    document = json.loads(signature_of(OTHER, artifact).data)
    document["annotations"]["vnd.castoff.signature.image"] = IMAGE.digest
    forged = Blob(json.dumps(document).encode(), artifact.media_type)
    await refused(Published(IMAGE).add(artifact, forged), "claims that", MINE.public.fingerprint, "did not: refused")


async def test_an_older_tags_artifact_does_not_pass_for_the_new_one() -> None:
    """The tag moved from OTHER to IMAGE, and somebody replays OTHER's artifact with its true signature, its subject rewritten."""
    old = artifact_of(OTHER)
    rewritten = Blob(old.data.replace(OTHER.digest.encode(), IMAGE.digest.encode()), old.media_type)
    registry = HostileRegistry()
    Published(IMAGE).add(rewritten, signature_of(OTHER, old)).put_on(registry, "team/app")
    registry.put(f"/v2/team/app/manifests/{old.digest}", old)
    async with registry.running() as host:
        found, notes = await find(host)
    assert found is None and len(notes) == 2
    assert f"is for the image {OTHER.digest} and not for {IMAGE.digest}: refused" in notes[0]
    assert f"{rewritten.digest} of {host}/team/app:v1 in {host}/team/app has no signature: refused" in notes[1]


async def test_a_signature_for_another_digest_is_refused() -> None:
    """It was made for one artifact and is shown for another."""
    artifact, other = artifact_of(IMAGE), artifact_of(IMAGE, diff_ids=OTHER.diff_ids)
    document = json.loads(signature_of(IMAGE, other).data)
    document["annotations"]["vnd.castoff.signature.artifact"] = artifact.digest
    forged = Blob(json.dumps(document).encode(), artifact.media_type)
    await refused(Published(IMAGE).add(artifact, forged), "claims that", artifact.digest, "did not: refused")


async def test_a_signed_artifact_whose_subject_is_another_image_is_refused() -> None:
    """Even if the signer himself was wrong."""
    artifact = artifact_of(IMAGE, subject=OTHER)
    await refused(Published(IMAGE).add(artifact, signature_of(IMAGE, artifact)), "is of the image", OTHER.digest, "refused")


@pytest.mark.parametrize(
    "diff_ids", [OTHER.diff_ids, IMAGE.diff_ids[::-1], IMAGE.diff_ids[:1], (*IMAGE.diff_ids, "sha256:" + "0" * 64)]
)
async def test_a_signed_artifact_of_other_layers_is_refused(diff_ids: tuple[str, ...]) -> None:
    """Others, in another order, too few, too many."""
    artifact = artifact_of(IMAGE, diff_ids=diff_ids)
    await refused(Published(IMAGE).add(artifact, signature_of(IMAGE, artifact)), "they differ from layer", "refused")


@pytest.mark.parametrize("at", [5, 100, -3])
async def test_one_bit_changed_in_the_manifest_is_refused(at: int) -> None:
    """What comes under the signed digest is other bytes."""
    published = good()
    registry = HostileRegistry()
    published.put_on(registry, "team/app")
    artifact = published.documents[0]
    changed = bytearray(artifact.data)
    changed[at] ^= 1
    registry.put(f"/v2/team/app/manifests/{artifact.digest}", Blob(bytes(changed), artifact.media_type))
    async with registry.running() as host:
        found, notes = await find(host)
    assert found is None
    assert len(notes) == 1 and f"should be {artifact.digest}" in notes[0] and notes[0].endswith("refused")


async def test_any_one_bit_changed_on_its_way_makes_nothing_else_of_it() -> None:
    """In the list or in the manifest, anywhere: either the very artifact is found, or none; never another, never a failure."""
    published = good()
    registry = HostileRegistry()
    published.put_on(registry, "team/app")
    chance = random.Random(4)
    sound = {f"referrers/{IMAGE.digest}": published.index(), f"manifests/{artifact_of(IMAGE).digest}": artifact_of(IMAGE).data}
    lost = 0
    async with registry.running() as host:
        expected, _ = await find(host)
        for _ in range(150):
            path, data = chance.choice(list(sound.items()))
            bit = chance.randrange(8 * len(data))
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            registry.put(f"/v2/team/app/{path}", Blob(bytes(changed), OCI_INDEX))
            found, notes = await find(host)
            assert found in (expected, None), (path, bit)
            lost += found is None
            assert all(note.isprintable() for note in notes)
            registry.put(f"/v2/team/app/{path}", Blob(data, OCI_INDEX))
    assert lost > 75


async def test_after_a_broken_artifact_a_whole_one_is_taken() -> None:
    """And the line about the broken one stays: somebody tampers."""
    whole, gone = artifact_of(IMAGE), artifact_of(IMAGE, diff_ids=OTHER.diff_ids)
    registry = HostileRegistry()
    Published(IMAGE).add(gone, signature_of(IMAGE, gone), whole, signature_of(IMAGE, whole)).put_on(registry, "team/app")
    registry.faults.append(only(gone.digest, answer(404)))
    async with registry.running() as host:
        found, notes = await find(host)
    assert found is not None and found.digest == Digest.parse(whole.digest)
    assert len(notes) == 1 and gone.digest in notes[0]


async def test_a_list_that_leaves_annotations_out_costs_a_request_more() -> None:
    """The signature's own manifest has them."""
    registry = HostileRegistry()
    good().put_on(registry, "team/app", annotations=False)
    async with registry.running() as host:
        found, notes = await find(host)
    assert found is not None and notes == []
    assert len(registry.requests) == 3


async def test_signatures_that_cannot_be_read_are_told() -> None:
    """Of the right type, and with nothing in them."""
    artifact = artifact_of(IMAGE)
    document = json.loads(signature_of(IMAGE, artifact).data)
    document["annotations"]["vnd.castoff.signature.value"] = "AAAA"
    broken = Blob(json.dumps(document).encode(), artifact.media_type)
    registry = HostileRegistry()
    Published(IMAGE).add(broken).put_on(registry, "team/app")
    async with registry.running() as host:
        found, notes = await find(host)
    assert found is None
    assert notes == [
        f"the signature {broken.digest} in {host}/team/app cannot be read: 'AAAA' is not an Ed25519 signature: refused"
    ]


async def test_a_signature_that_is_not_what_the_list_says_is_not_read() -> None:
    """A true one, under another digest than it has: the registry, or somebody before it, is not to be believed."""
    published = good()
    registry = HostileRegistry()
    published.put_on(registry, "team/app", annotations=False)
    signature = published.documents[1]
    registry.put(f"/v2/team/app/manifests/{signature.digest}", Blob(signature.data + b" ", signature.media_type))
    async with registry.running() as host:
        found, notes = await find(host)
    assert found is None and len(notes) == 2 and f"the signature {signature.digest} in" in notes[0]


async def test_this_hosts_own_artifact_comes_first() -> None:
    """Whatever the order of the list."""
    theirs, mine = artifact_of(IMAGE), Blob(artifact_of(IMAGE).data.replace(b"1.5.7", b"1.5.6"), OCI_MANIFEST)
    registry = HostileRegistry()
    Published(IMAGE).add(theirs, signature_of(IMAGE, theirs, STRANGER), mine, signature_of(IMAGE, mine)).put_on(
        registry, "team/app"
    )
    async with registry.running() as host:
        found, _ = await find(host, trust=trusting(MINE, STRANGER))
        assert found is not None and found.digest == Digest.parse(mine.digest)
        found, _ = await find(host, trust=trusting(STRANGER, MINE))
        assert found is not None and found.digest == Digest.parse(theirs.digest)


async def test_notes_are_few() -> None:
    """Whoever may push must not be able to fill a terminal."""
    registry = HostileRegistry()
    unsigned = [artifact_of(IMAGE, diff_ids=IMAGE.diff_ids * n + (f"sha256:{n:064x}",)) for n in range(50)]
    Published(IMAGE).add(*unsigned).put_on(registry, "team/app")
    async with registry.running() as host:
        found, notes = await find(host)
    assert found is None and len(notes) == MAX_NOTES


async def test_thousands_of_strangers_hide_nothing() -> None:
    """The one that counts stands last, after as many as a list may have; notes stay few."""
    artifact = artifact_of(IMAGE)
    rows = [referrer(signature_of(IMAGE, artifact, STRANGER)) for _ in range(4094)]
    rows += [referrer(artifact), referrer(signature_of(IMAGE, artifact))]
    registry = HostileRegistry()
    registry.put(f"/v2/team/app/referrers/{IMAGE.digest}", Blob(json.dumps({"manifests": rows}).encode(), OCI_INDEX))
    registry.put(f"/v2/team/app/manifests/{artifact.digest}", artifact)
    async with registry.running() as host:
        found, notes = await find(host)
    assert found is not None and notes == []


async def test_central_repositories_come_after_the_images_own() -> None:
    """Both have it: the image's own is taken. Only the central one has it: that one."""
    registry = HostileRegistry()
    good().put_on(registry, "central/artifacts")
    async with registry.running() as host:
        central = (f"{host}/empty", f"{host}/central/artifacts")
        found, notes = await find(host, repositories=central)
        assert found is not None and found.repository == f"{host}/central/artifacts" and notes == []
        good().put_on(registry, "team/app")
        found, notes = await find(host, repositories=central)
        assert found is not None and found.repository == f"{host}/team/app" and notes == []


async def test_an_image_on_disk_has_artifacts_in_central_repositories() -> None:
    """It has no repository of its own."""
    registry = HostileRegistry()
    good().put_on(registry, "central")
    async with registry.running() as host:
        reference = parse_reference("oci:/nowhere/layout")
        found, notes = await find_artifact(as_image(IMAGE), reference, QUICK, trusting(MINE), repositories=[f"{host}/central"])
        assert found is not None and notes == []
        assert await find_artifact(as_image(IMAGE), reference, QUICK, trusting(MINE)) == (None, [])


async def test_a_registry_that_does_not_answer_stops_nothing() -> None:
    """A line says so, and the next one is taken; one that falls silent costs no more than the time limit."""
    registry, silent = HostileRegistry(), HostileRegistry()
    good().put_on(registry, "central")
    good().put_on(silent, "team/app")
    silent.faults.append(break_after(10, stall=30))
    async with registry.running() as host, silent.running() as other:
        reference = parse_reference(f"{other}/team/app:v1")
        more = [f"127.0.0.1:{daemons.free_port()}/nobody", f"{host}/central"]
        found, notes = await find_artifact(as_image(IMAGE), reference, QUICK, trusting(MINE), repositories=more, timeout=0.5)
    assert found is not None and found.repository == f"{host}/central"
    assert len(notes) == 2
    assert notes[0] == f"{other}/team/app was not asked for an artifact: {other} did not answer within 0.5 s"
    assert notes[1].startswith(f"{more[0]} was not asked for an artifact: ")


async def test_a_registry_that_refuses_is_told() -> None:
    """It may want a login."""
    registry = HostileRegistry()
    registry.faults.append(only("/", answer(403, errors=[{"code": "DENIED", "message": "no"}])))
    async with registry.running() as host:
        found, notes = await find(host)
    assert found is None and len(notes) == 1 and "refuses" in notes[0]


async def test_a_mirror_stands_for_its_registry() -> None:
    """The artifact's repository is then the mirror's, where its blobs are."""
    mirror = HostileRegistry()
    good().put_on(mirror, "prefix/team/app")
    async with mirror.running() as host:
        settings = ImageSettings(mirrors={"registry.invalid": (f"http://{host}/prefix",)}, retries=0)
        reference = RegistryReference("registry.invalid", "team/app", "v1")
        found, notes = await find_artifact(as_image(IMAGE), reference, settings, trusting(MINE))
    assert found is not None and notes == []
    assert found.repository == f"{host}/prefix/team/app"


@pytest.mark.parametrize(
    "text", ["", "host/x:tag", "host:5000", "host/x@sha256:" + "0" * 64, "oci:/dir", "https://host/x", "a b"]
)
async def test_a_central_repository_that_is_none_is_an_error(text: str) -> None:
    """A misspelt setting is no registry that does not answer."""
    with pytest.raises(Invalid):
        await find_artifact(as_image(IMAGE), parse_reference("oci:/x"), QUICK, trusting(MINE), repositories=[text])


@pytest.mark.parametrize("named_by", ["tag", "digest"])
async def test_an_index_that_lists_artifact_and_signature_pins_them(named_by: str) -> None:
    """As `skopeo copy --all` leaves it: no referrers, the image's name leads to the index; of two images the right one's."""
    artifact, others = artifact_of(IMAGE), artifact_of(OTHER)
    documents = [others, signature_of(OTHER, others), artifact, signature_of(IMAGE, artifact)]
    pinned = build_index([OTHER, IMAGE], extra=[referrer(document) for document in documents])
    registry = HostileRegistry()
    registry.add("team/app", pinned, tag="v1")
    for document in documents:
        registry.put(f"/v2/team/app/manifests/{document.digest}", document)
    async with registry.running() as host:
        if named_by == "digest":
            registry.put(f"/v2/team/app/manifests/{pinned.digest}", Blob(pinned.manifest.data + b" ", OCI_INDEX))
            named = parse_reference(f"{host}/team/app@{pinned.digest}")
            assert await find_artifact(as_image(IMAGE), named, QUICK, trusting(MINE)) == (None, [])  # another than was named
            registry.put(f"/v2/team/app/manifests/{pinned.digest}", pinned.manifest)
        name = f"{host}/team/app:v1" if named_by == "tag" else f"{host}/team/app@{pinned.digest}"
        found, notes = await find_artifact(as_image(IMAGE), parse_reference(name), QUICK, trusting(MINE))
        assert found is not None and notes == []
        assert found.digest == Digest.parse(artifact.digest)
        found, notes = await find_artifact(as_image(IMAGE), parse_reference(name), QUICK, trusting(STRANGER))
        assert found is None and len(notes) == 1 and "not trusted here" in notes[0]


async def test_broken_files_of_trusted_keys_are_told() -> None:
    """They make nobody trusted."""
    registry = HostileRegistry()
    async with registry.running() as host:
        assert await find(host, trust=Trust((), ("a file is broken",))) == (None, ["a file is broken"])
