"""Boot profiles as bytes, and in the store: ``STATE/store/profiles/<image digest hex>.json`` (docs/formats.md, "Boot profile").

The same bytes are published (castoff.artifact.profiles), so they are read as strictly as anything from elsewhere.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from castoff.errors import Invalid, Unavailable
from castoff.hydrate.profile import BOOTS, MAX_CHUNKS, Boot, ChunkId, Profile
from castoff.image.digest import Digest
from castoff.store.durable import replace_file
from castoff.store.locks import lock

if TYPE_CHECKING:
    from castoff.store.store import Store

__all__ = ["LIMIT", "decode_profile", "encode_profile", "load_profile", "profile_path", "read_profile", "update_profile"]

LIMIT: Final = 4 << 20
"""Bytes of a profile: of a boot of ``MAX_CHUNKS`` scattered chunks, about one MiB."""
KEPT: Final = 4096
"""Profiles in the store; the ones that were written longest ago go first."""

_VERSION: Final = 1
_CHUNK: Final = 256 * 1024
_MAX_LAYERS: Final = 1 << 16
_MAX_NUMBER: Final = (1 << 44) // _CHUNK  # a segment has at most 2^44 bytes

_Count = Annotated[int, msgspec.Meta(ge=1, le=_MAX_NUMBER)]
_Number = Annotated[int, msgspec.Meta(ge=0, lt=_MAX_NUMBER)]
_Layer = Annotated[int, msgspec.Meta(ge=0, lt=_MAX_LAYERS)]


class _Boot(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
    recorded: Annotated[int, msgspec.Meta(ge=0, lt=1 << 40)]
    runs: Annotated[list[tuple[_Layer, _Number, _Count]], msgspec.Meta(min_length=1, max_length=MAX_CHUNKS)]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    version: int
    image: str
    chunk_size: int
    layers: Annotated[list[str], msgspec.Meta(max_length=_MAX_LAYERS)]
    boots: Annotated[list[_Boot], msgspec.Meta(max_length=BOOTS)]


class _Version(msgspec.Struct, frozen=True):
    version: int


def encode_profile(profile: Profile) -> bytes:
    """The file's bytes; the same for the same profile, always. Where they are over LIMIT, the oldest boots are left out."""
    boots = profile.boots
    while True:
        data = _encode(profile.image, boots)
        if len(data) <= LIMIT or len(boots) == 1:
            return data
        boots = boots[1:]


def _encode(image: Digest, boots: tuple[Boot, ...]) -> bytes:
    layers = sorted({chunk.diff_id for boot in boots for chunk in boot.chunks})
    numbers = {diff_id: number for number, diff_id in enumerate(layers)}
    rows = [_Boot(id=boot.id, recorded=boot.recorded, runs=_runs(boot.chunks, numbers)) for boot in boots]
    return msgspec.json.encode(
        _File(version=_VERSION, image=str(image), chunk_size=_CHUNK, layers=[str(layer) for layer in layers], boots=rows)
    )


def _runs(chunks: tuple[ChunkId, ...], numbers: dict[Digest, int]) -> list[tuple[int, int, int]]:
    """``(layer, first chunk, count)``: what is read is mostly read on."""
    runs: list[tuple[int, int, int]] = []
    for chunk in chunks:
        layer = numbers[chunk.diff_id]
        if runs and (runs[-1][0], runs[-1][1] + runs[-1][2]) == (layer, chunk.number):
            runs[-1] = (layer, runs[-1][1], runs[-1][2] + 1)
        else:
            runs.append((layer, chunk.number, 1))
    return runs


def decode_profile(data: bytes, image: Digest) -> Profile:
    """Reads a profile of ``image``.

    Raises:
        Invalid: It is damaged, forged, of another image or of another version.
    """
    if len(data) > LIMIT:
        raise Invalid(f"the boot profile of {image} has {len(data)} bytes; {LIMIT} are allowed")
    try:
        version = msgspec.json.decode(data, type=_Version).version
        if version != _VERSION:
            raise Invalid(f"the boot profile of {image} is of version {version}; this castoff reads version {_VERSION}")
        file = msgspec.json.decode(data, type=_File)
    except msgspec.MsgspecError as error:
        raise Invalid(f"the boot profile of {image} cannot be read: {error}") from error
    if file.image != str(image) or file.chunk_size != _CHUNK:
        raise Invalid(f"a boot profile of {file.image[:80]}, in chunks of {file.chunk_size}, stands where {image}'s should")
    layers = [Digest.parse(text) for text in file.layers]
    return Profile.of(image, [Boot(boot.recorded, boot.id, _chunks(boot, layers)) for boot in file.boots])


def _chunks(boot: _Boot, layers: list[Digest]) -> tuple[ChunkId, ...]:
    total = sum(count for _, _, count in boot.runs)
    if total > MAX_CHUNKS or any(layer >= len(layers) or first + count > _MAX_NUMBER for layer, first, count in boot.runs):
        raise Invalid(f"boot {boot.id} of a boot profile names chunks that cannot be")
    chunks = tuple(ChunkId(layers[layer], number) for layer, first, count in boot.runs for number in range(first, first + count))
    if len(set(chunks)) != total:
        raise Invalid(f"boot {boot.id} of a boot profile names a chunk twice")
    return chunks


def profile_path(root: Path, image: Digest) -> Path:
    """Where the profile of an image is, or would be; ``root`` is the store's."""
    return root / "profiles" / f"{image.hex}.json"


def load_profile(store: Store, image: Digest) -> Profile | None:
    """The profile of an image that this host has; None where it has none. Reads a file of a few KiB.

    Raises:
        Invalid, Unavailable: As :func:`read_profile`.
    """
    return read_profile(store.root, image)


def read_profile(root: Path, image: Digest) -> Profile | None:
    """The profile of an image in the store at ``root``; None where there is none.

    Raises:
        Invalid: It is damaged, or another version's. The next boot that records replaces it.
        Unavailable: It cannot be read.
    """
    path = profile_path(root, image)
    try:
        with path.open("rb") as file:
            data = file.read(LIMIT + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error
    try:
        return decode_profile(data, image)
    except Invalid as error:
        raise Invalid(f"{path}: {error.what}", hint="remove it: the next lazy boot of the image records it anew") from error


async def update_profile(root: Path, image: Digest, change: Callable[[Profile | None], Profile | None]) -> Profile | None:
    """Replaces the profile of an image by what ``change`` makes of it, whole or not at all, one change at a time.

    Args:
        root: The store's directory.
        image: The image's manifest.
        change: Given the profile that is there (None: none, or one that cannot be read); None leaves it as it is.

    Returns:
        The profile that is there in the end.

    Raises:
        Unavailable: It cannot be written.
    """
    import asyncio

    async with lock(root / "locks" / f"profile-{image.hex}"):
        return await asyncio.to_thread(_update, root, image, change)


def _update(root: Path, image: Digest, change: Callable[[Profile | None], Profile | None]) -> Profile | None:
    path = profile_path(root, image)
    try:
        before = read_profile(root, image)
    except Invalid:
        before = None  # recorded anew: that is what its hint promises
    after = change(before)
    if after is None or after == before:
        return before
    try:
        path.parent.mkdir(mode=0o711, exist_ok=True)
        replace_file(path, encode_profile(after))
        if before is None:
            _keep(path.parent)
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error
    return after


def _keep(directory: Path) -> None:
    """Removes what is over ``KEPT``, the longest untouched first."""
    with os.scandir(directory) as entries:
        found = [entry for entry in entries if entry.name.endswith(".json")]
    if len(found) <= KEPT:
        return
    for entry in sorted(found, key=lambda entry: entry.stat().st_mtime)[: len(found) - KEPT]:
        with contextlib.suppress(FileNotFoundError):  # another process keeps order too
            Path(entry).unlink()
