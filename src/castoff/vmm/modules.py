"""The kernel modules that a guest needs, in the order in which they must be loaded.

The packages' own ``modules.dep`` is made only when a kernel is installed, and castoff installs none, so dependencies are
read where depmod reads them: in each module's ``.modinfo`` section.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from castoff.errors import Invalid, Unsupported

__all__ = ["MODULES", "ModuleFile", "modinfo", "needed_modules", "unpack_module", "without_signature", "without_types"]

MODULES: Final = (
    # crc32c is what ext4 asks for through the crypto API, by no symbol that depmod could see
    ("drive", ("crc32c_generic", "virtio_mmio", "virtio_blk", "ext4")),
    ("overlay", ("overlay",)),
    ("serial", ("virtio_console",)),
    ("vsock", ("vmw_vsock_virtio_transport",)),
    ("network", ("virtio_net",)),
)
"""What the guest init loads, by the group that it loads them in."""

_REQUIRED: Final = frozenset({"virtio_mmio", "virtio_blk", "ext4"})
_MAX_MODULE: Final = 64 << 20
_SIGNED: Final = b"~Module signature appended~\n"


@dataclass(frozen=True, slots=True)
class ModuleFile:
    """One module, unpacked: ``group`` says when the guest init loads it."""

    group: str
    path: Path


def needed_modules(directory: Path) -> list[tuple[str, str, Path]]:
    """What to load of the modules in ``directory`` (like /lib/modules/VERSION): (group, name, file as it lies there).

    Raises:
        Unsupported: A module that no guest can do without is neither there nor built in.
    """
    files = {_name(path.name): path for path in directory.rglob("*.ko*") if path.is_file()}
    builtin = _builtin(directory)
    chosen: dict[str, tuple[str, str, Path]] = {}
    for group, names in MODULES:
        for name in names:
            if name in _REQUIRED and name not in files and name not in builtin:
                raise Unsupported(
                    f"the kernel of {directory} has no module {name}", hint="use Debian's cloud kernel, or another with --kernel"
                )
            for dependency in _closure(name, files, ()):
                chosen.setdefault(dependency, (group, dependency, files[dependency]))
    return list(chosen.values())


def _closure(name: str, files: dict[str, Path], above: tuple[str, ...]) -> Iterator[str]:
    """``name`` after all that it depends on; what has no file is built in."""
    if name in above or name not in files:
        return
    for dependency in modinfo(unpack_module(files[name])).get("depends", "").split(","):
        if dependency:
            yield from _closure(_name(dependency), files, (*above, name))
    yield name


def _name(file: str) -> str:
    return file.partition(".ko")[0].replace("-", "_")


def _builtin(directory: Path) -> set[str]:
    path = directory / "modules.builtin"
    if not path.exists():
        return set()
    return {_name(line.rpartition("/")[2]) for line in path.read_text().splitlines()}


def unpack_module(path: Path) -> bytes:
    """A module's ELF bytes: Debian 13 and Fedora keep modules as .ko.xz, others as .ko.zst or .ko.gz.

    Raises:
        Invalid: The file is broken.
    """
    data = path.read_bytes()
    try:
        if path.suffix == ".xz":
            import lzma

            data = lzma.LZMADecompressor().decompress(data, _MAX_MODULE)
        elif path.suffix == ".gz":
            import zlib

            data = zlib.decompressobj(31).decompress(data, _MAX_MODULE)
        elif path.suffix == ".zst":
            import zstandard

            data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    except Exception as error:  # each library has a class of its own for "corrupt", and no common base
        raise Invalid(f"the kernel module {path} cannot be unpacked: {error}", hint="fetch the kernel again") from error
    if not data.startswith(b"\x7fELF"):
        raise Invalid(f"the kernel module {path} is no ELF file", hint="fetch the kernel again")
    return data


def without_signature(module: bytes) -> bytes:
    """A module without the signature that the distribution appended to it.

    It came with the kernel from one verified package, or from the host's own /lib/modules, and a guest checks nothing by
    checking it again: that only costs 8 ms a module under emulation. (include/linux/module_signature.h: the signature,
    12 bytes whose last four are its length, the marker.)
    """
    if not module.endswith(_SIGNED) or len(module) < len(_SIGNED) + 12:
        return module
    end = len(module) - len(_SIGNED) - 12
    (length,) = struct.unpack_from(">I", module, end + 8)
    return module[: end - length] if length <= end else module


def without_types(module: bytes) -> bytes:
    """A module whose BTF (types for tracers) the kernel no longer finds: its section loses its name, nothing moves.

    Reading it costs 2 to 10 ms a module under emulation, and no guest of ours traces its drivers. (kernel/module/main.c
    looks sections up by name.)

    Raises:
        Invalid: The ELF file is broken.
    """
    try:
        header = next((at for at, name, _, _ in _sections(module) if name == b".BTF"), None)
    except (struct.error, IndexError, ValueError) as error:
        raise _broken() from error
    return module if header is None else module[:header] + bytes(4) + module[header + 4 :]  # name 0 is the empty one


def modinfo(module: bytes) -> dict[str, str]:
    """The ``key=value`` strings of a module's ``.modinfo`` section (the last of each key).

    Raises:
        Invalid: The ELF file is broken.
    """
    try:
        return dict(
            text.decode("utf-8", "replace").split("=", 1) for text in _section(module, b".modinfo").split(b"\0") if b"=" in text
        )
    except (struct.error, IndexError, ValueError) as error:
        raise _broken() from error


def _broken() -> Invalid:
    return Invalid("a kernel module is broken: it is no whole ELF file", hint="fetch the kernel again")


def _section(elf: bytes, wanted: bytes) -> bytes:
    """The first section of that name; empty when there is none."""
    return next((elf[offset : offset + length] for _, name, offset, length in _sections(elf) if name == wanted), b"")


def _sections(elf: bytes) -> Iterator[tuple[int, bytes, int, int]]:
    """A 64-bit little-endian ELF file's sections (System V ABI, gABI chapter 4): where the header is, name, offset, length."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names_index = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + size * index) for index in range(count)]
    names = headers[names_index][4]
    for index, (name, _, _, _, offset, length) in enumerate(headers):
        yield table + size * index, elf[names + name : elf.index(b"\0", names + name)], offset, length
