"""Composing: the tables of an image's layers become the metadata of one ext4 filesystem of a given size.

    tables of the layers -> tree (merge, replay) -> numbers and links -> directories -> geometry -> groups -> superblock

A pure function: the same layers and size give the same bytes on every host. The contents of files are never touched: whoever
calls places each layer's segment in the rootfs file where ``placements`` says (by FICLONERANGE, or by copying).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from castoff import timeline
from castoff.errors import Invalid, NoSpace
from castoff.ext4.checksum import raw_crc
from castoff.ext4.composition import Composition, Placement
from castoff.ext4.directories import DirectoryBlocks, lay_out_directories
from castoff.ext4.geometry import MAX_SIZE, Contents, Geometry, comfortable_size, geometry, minimum_blocks
from castoff.ext4.merge import NeedsReplay, Tree, empty_tree, merge, recorded
from castoff.ext4.numbering import Numbering, number, with_lost_and_found
from castoff.ext4.replay import replay
from castoff.ext4.special import Specials, find_specials
from castoff.ext4.stack import Stack
from castoff.ext4.structures import BLOCK_SIZE
from castoff.ext4.superblock import derived_uuid
from castoff.ext4.tables import LayerTables
from castoff.image.digest import Digest
from castoff.layers.budget import give_back

__all__ = ["Composition", "Placement", "compose", "minimum_size"]

_CHUNK = 64
"""Blocks in a chunk."""


@dataclass(frozen=True, slots=True, eq=False)
class _Applied:
    """An image whose layers are applied and whose directories are laid out; only its size is open."""

    stack: Stack
    numbering: Numbering
    directories: DirectoryBlocks
    specials: Specials
    contents: Contents


def compose(layers: Sequence[tuple[Digest, LayerTables]], *, size: int | None = None) -> Composition:
    """Composes the image that has ``layers``, the lowest first.

    Args:
        layers: Each layer's diffID and tables. None at all gives an empty filesystem.
        size: Bytes of the filesystem; None: what the image needs, an eighth more, and 64 MiB.

    Raises:
        Invalid: A layer contradicts those below it, or the size is none that ext4 has.
        NoSpace: The image does not fit; the error has the bytes it needs.
    """
    with timeline.step("ext4.compose", layers=len(layers)):
        applied = _apply(layers)
        wanted = comfortable_size(applied.contents) if size is None else size
        if not 0 < wanted <= MAX_SIZE:
            raise Invalid(f"a filesystem of {wanted} bytes is not possible", hint="choose a size of up to 16 TiB")
        layout = geometry(wanted, applied.contents)
        if layout is None:
            needed = minimum_blocks(applied.contents) * BLOCK_SIZE
            error = NoSpace("the image's root filesystem", needed=needed, available=wanted)
            error.hint = f"give the machine a disk of at least {needed} bytes"
            raise error
        return _composition(applied, layout, wanted, derived_uuid([digest for digest, _ in layers], wanted))


def minimum_size(layers: Sequence[tuple[Digest, LayerTables]]) -> int:
    """Bytes of the least filesystem that holds the image.

    Raises:
        Invalid: A layer contradicts those below it.
    """
    return minimum_blocks(_apply(layers).contents) * BLOCK_SIZE


def _apply(layers: Sequence[tuple[Digest, LayerTables]]) -> _Applied:
    stack = Stack([tables for _, tables in layers])
    with timeline.step("ext4.merge"):
        tree = empty_tree(stack)
        for index, (digest, _) in enumerate(layers, start=1):
            try:
                tree = _with_layer(stack, tree, index)
            except Invalid as error:
                raise Invalid(f"layer {index} ({digest}): {error.what}", hint=error.hint) from error
        tree = with_lost_and_found(stack, tree)
        give_back(len(stack))
        numbering = number(stack, tree)
        del tree
        give_back(len(stack))
    directories = lay_out_directories(stack, numbering)
    specials = find_specials(stack, numbering)
    segments = tuple(
        -(-tables.segment_blocks // _CHUNK) * _CHUNK if index + 1 < len(layers) else tables.segment_blocks
        for index, (_, tables) in enumerate(layers)
    )
    contents = Contents(len(numbering.item) + len(specials.values), directories.count + specials.blocks, segments)
    return _Applied(stack, numbering, directories, specials, contents)


def _with_layer(stack: Stack, tree: Tree, index: int) -> Tree:
    try:
        return merge(stack, tree, recorded(stack, index, tree))
    except NeedsReplay:
        return merge(stack, tree, replay(stack, index, tree))


def _composition(applied: _Applied, layout: Geometry, size: int, uuid: bytes) -> Composition:
    placements = tuple(
        Placement(layer, 0, start * BLOCK_SIZE, tables.segment_blocks * BLOCK_SIZE)
        for layer, (start, tables) in enumerate(zip(layout.segments, applied.stack.layers[1:], strict=False))
        if tables.segment_blocks
    )
    return Composition(
        stack=applied.stack,
        numbering=applied.numbering,
        directories=applied.directories,
        specials=applied.specials,
        layout=layout,
        uuid_bytes=uuid,
        seed=raw_crc(0xFFFFFFFF, uuid),
        size=size,
        placements=placements,
    )
