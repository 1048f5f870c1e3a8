"""A bootable kernel file: its version, and the ELF vmlinux inside a bzImage.

Released Firecracker boots nothing but ELF on x86-64, and QEMU's microvm boots it 0.3 s sooner, since nothing is left to
decompress. Source: Linux, Documentation/arch/x86/boot.rst (setup header), arch/x86/boot/compressed/Makefile (payload).
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from typing import Final

from castoff.errors import Invalid, LimitExceeded

__all__ = ["extract_vmlinux", "kernel_version"]

_MAX_VMLINUX: Final = 1 << 30
_ELF: Final = b"\x7fELF"


def extract_vmlinux(image: bytes) -> bytes:
    """The ELF vmlinux in ``image``, which is one already or a bzImage.

    Raises:
        Invalid: It is neither, or broken, or packed in a way that castoff cannot unpack.
    """
    if image.startswith(_ELF):
        return image
    if len(image) < 0x250 or image[0x202:0x206] != b"HdrS":
        raise Invalid("the kernel is neither an ELF file nor a bzImage", hint="give --kernel a vmlinux or a vmlinuz")
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    if length < 8 or start + length > len(image):
        raise Invalid("the bzImage's payload lies outside of the file", hint="the file is truncated; fetch it again")
    # The build appends the unpacked size to every payload (size_append), and mkpiggy counts it in.
    (unpacked,) = struct.unpack_from("<I", image, start + length - 4)
    if unpacked > _MAX_VMLINUX:
        raise LimitExceeded("the unpacked kernel", limit=_MAX_VMLINUX, setting="vmm.kernel.file")
    vmlinux = _decompress(image[start : start + length - 4], unpacked)
    if not vmlinux.startswith(_ELF):
        raise Invalid("the bzImage holds no ELF kernel", hint="give --kernel another one")
    return vmlinux


def _decompress(payload: bytes, size: int) -> bytes:
    try:
        data = _unpacker(payload)(payload, size)
    except Invalid:
        raise
    except Exception as error:  # six libraries, each with its own class for "corrupt", and no common base
        raise Invalid(f"the kernel cannot be unpacked: {error}", hint="the file is broken; fetch it again") from error
    if len(data) != size:
        raise Invalid(f"the kernel unpacks to {len(data)} bytes instead of {size}", hint="the file is broken; fetch it again")
    return data


def _unpacker(payload: bytes) -> Callable[[bytes, int], bytes]:
    """What unpacks a payload, of at most so many bytes, by its first bytes (Linux, lib/decompress.c)."""
    # Imported here: a kernel that is ready needs none of them.
    if payload.startswith(b"\x02\x21\x4c\x18"):
        return lambda data, size: _lz4_legacy(data[4:], size)
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        import zstandard

        return lambda data, size: zstandard.ZstdDecompressor(max_window_size=1 << 31).stream_reader(data).read(size)
    if payload.startswith(b"\x1f\x8b"):
        return lambda data, size: zlib.decompressobj(31).decompress(data, size)
    if payload.startswith((b"\xfd7zXZ\x00", b"\x5d\x00\x00")):
        import lzma

        return lambda data, size: lzma.LZMADecompressor().decompress(data, size)
    if payload.startswith(b"BZh"):
        import bz2

        return lambda data, size: bz2.BZ2Decompressor().decompress(data, size)
    raise Invalid(
        f"the kernel is packed in an unknown way (it begins with {payload[:6].hex()})", hint="give --kernel an ELF vmlinux"
    )


def _lz4_legacy(data: bytes, size: int) -> bytes:
    """The "legacy frame" of lz4: blocks of 8 MiB unpacked, each after its packed length, without any checksum."""
    import lz4.block

    pieces = []
    at = done = 0
    while at + 4 <= len(data) and done < size:
        (length,) = struct.unpack_from("<I", data, at)
        if length > len(data) - at - 4:
            raise ValueError("a block reaches past the end")
        piece = lz4.block.decompress(data[at + 4 : at + 4 + length], uncompressed_size=8 << 20)
        pieces.append(piece)
        at += 4 + length
        done += len(piece)
    return b"".join(pieces)


def kernel_version(image: bytes, vmlinux: bytes) -> str:
    """The release of a kernel, as ``uname -r`` has it.

    Args:
        image: The kernel file.
        vmlinux: The ELF in it.

    Raises:
        Invalid: It does not say.
    """
    if image[0x202:0x206] == b"HdrS":
        (at,) = struct.unpack_from("<H", image, 0x20E)
        text = image[at + 0x200 : at + 0x200 + 200].split(b"\0", 1)[0]
        match = re.match(rb"([\w.+~-]{1,80}) ", text)
    else:
        match = re.search(rb"Linux version ([\w.+~-]{1,80}) \(", vmlinux)
    if match is None:
        raise Invalid("the kernel does not say which version it is", hint="give --kernel another one")
    return match[1].decode("ascii")
