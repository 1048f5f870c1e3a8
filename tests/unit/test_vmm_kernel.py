"""Kernels: unpacked from what distributions ship, with the modules that a guest needs, once and whole."""

from __future__ import annotations

import asyncio
import bz2
import contextlib
import gzip
import json
import lzma
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lz4.block
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from castoff.errors import CastoffError, Invalid, LimitExceeded, NotFound, Unsupported
from castoff.vmm.bzimage import extract_vmlinux, kernel_version
from castoff.vmm.initramfs import base_initramfs
from castoff.vmm.kernel import KnownKernels, find_kernel
from castoff.vmm.modules import modinfo, needed_modules, unpack_module, without_signature, without_types
from castoff.vmm.settings import KernelSettings, VmmSettings
from daemons import own_mounts

VMLINUX = b"\x7fELF\x02\x01\x01" + bytes(57) + b"Linux version 9.8.7-test (me@here) #1\0" + os.urandom(1 << 20)


def lz4_legacy(data: bytes) -> bytes:
    blocks = [lz4.block.compress(data[at : at + (8 << 20)], store_size=False) for at in range(0, len(data), 8 << 20)]
    return b"\x02\x21\x4c\x18" + b"".join(struct.pack("<I", len(block)) + block for block in blocks)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "lz4": lz4_legacy,
    "zstd": zstandard.ZstdCompressor().compress,
    "gzip": gzip.compress,
    "xz": lambda data: lzma.compress(data, lzma.FORMAT_XZ),
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
}


def bzimage(payload: bytes, unpacked: int, *, version: bytes = b"9.8.7-test (me@here) #1") -> bytes:
    """A bzImage with one setup sector besides the boot sector, the version in it, and a payload after 32 bytes of code."""
    head = bytearray(1024)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x20E, 0x100)
    head[0x300 : 0x300 + len(version)] = version
    whole = payload + struct.pack("<I", unpacked)
    struct.pack_into("<II", head, 0x248, 32, len(whole))
    return bytes(head) + bytes(32) + whole + b"trailing"


@pytest.mark.parametrize("packer", PACKERS)
def test_the_elf_in_a_bzimage_is_found(packer: str) -> None:
    """Every compression that kernels are built with but LZO."""
    image = bzimage(PACKERS[packer](VMLINUX), len(VMLINUX))
    vmlinux = extract_vmlinux(image)
    assert vmlinux == VMLINUX
    assert kernel_version(image, vmlinux) == "9.8.7-test"


def test_an_elf_kernel_is_taken_as_it_is() -> None:
    """Its version is in its own banner."""
    assert extract_vmlinux(VMLINUX) is VMLINUX
    assert kernel_version(VMLINUX, VMLINUX) == "9.8.7-test"


@pytest.mark.parametrize("packer", PACKERS)
def test_broken_kernels_are_refused(packer: str) -> None:
    """Cut off, longer than it says, or holding something else."""
    packed = PACKERS[packer](VMLINUX)
    other = b"no ELF" * 100
    for payload, size in (
        (packed[: len(packed) // 2], len(VMLINUX)),
        (packed, len(VMLINUX) + 1),
        (PACKERS[packer](other), len(other)),
    ):
        with pytest.raises(Invalid):
            extract_vmlinux(bzimage(payload, size))


@given(st.binary(max_size=2000))
def test_no_bytes_crash_the_reader_of_kernels(data: bytes) -> None:
    """Raw, and as the payload of a bzImage."""
    for image in (data, bzimage(data, 1000), bzimage(PACKERS["lz4"](data), len(data))):
        with contextlib.suppress(CastoffError):
            extract_vmlinux(image)


def test_a_kernel_that_claims_to_be_huge_is_refused() -> None:
    """Before a byte of it is unpacked."""
    with pytest.raises(LimitExceeded):
        extract_vmlinux(bzimage(PACKERS["gzip"](VMLINUX), (1 << 30) + 1))


def elf_module(info: bytes, *, name: bytes = b".modinfo") -> bytes:
    """An ELF file that has a section of that name and the section names."""
    names = b"\0" + name + b"\0.shstrtab\0"
    offset_info, offset_names = 64, 64 + len(info)
    table = offset_names + len(names)
    header = bytearray(64)
    header[:7] = b"\x7fELF\x02\x01\x01"
    struct.pack_into("<Q", header, 0x28, table)
    struct.pack_into("<HHH", header, 0x3A, 64, 3, 2)
    sections = [(0, 0, 0, 0, 0, 0), (1, 1, 0, 0, offset_info, len(info)), (2 + len(name), 3, 0, 0, offset_names, len(names))]
    return bytes(header) + info + names + b"".join(struct.pack("<IIQQQQ", *row) + bytes(24) for row in sections)


def module_tree(directory: Path, modules: dict[str, str], *, suffix: str = ".ko", builtin: str = "") -> Path:
    """A directory like /lib/modules/VERSION: modules by name, with what they depend on."""
    (directory / "kernel/drivers").mkdir(parents=True)
    packers = {".ko": bytes, ".ko.xz": lzma.compress, ".ko.gz": gzip.compress, ".ko.zst": zstandard.ZstdCompressor().compress}
    for name, depends in modules.items():
        data = elf_module(f"license=GPL\0depends={depends}\0name={name}\0".encode())
        (directory / "kernel/drivers" / f"{name}{suffix}").write_bytes(packers[suffix](data))
    (directory / "modules.builtin").write_text(builtin)
    return directory


USUAL = {"virtio": "", "virtio-ring": "virtio", "virtio_mmio": "virtio,virtio_ring", "virtio_blk": "virtio_ring", "other": ""}
BUILTIN = "kernel/fs/ext4/ext4.ko\n"


@pytest.mark.parametrize("suffix", [".ko", ".ko.xz", ".ko.gz", ".ko.zst"])
def test_modules_come_after_what_they_depend_on(tmp_path: Path, suffix: str) -> None:
    """However distributions pack them, with dashes or underscores in their names; nothing else comes along."""
    found = needed_modules(module_tree(tmp_path / "m", USUAL, suffix=suffix, builtin=BUILTIN))
    assert [(group, name) for group, name, _ in found] == [
        ("drive", "virtio"),
        ("drive", "virtio_ring"),
        ("drive", "virtio_mmio"),
        ("drive", "virtio_blk"),
    ]
    assert all(unpack_module(path).startswith(b"\x7fELF") for _, _, path in found)


def test_a_kernel_without_what_a_guest_needs_is_refused(tmp_path: Path) -> None:
    """The module is named; a dependency in a circle is no endless loop."""
    with pytest.raises(Unsupported, match="no module ext4"):
        needed_modules(module_tree(tmp_path / "a", USUAL))
    circle = USUAL | {"virtio": "virtio_blk"}
    assert len(needed_modules(module_tree(tmp_path / "b", circle, builtin=BUILTIN))) == 4


@given(st.binary(max_size=400))
def test_broken_modules_are_refused(data: bytes) -> None:
    """An ELF file of any bytes."""
    for module in (b"\x7fELF" + data, elf_module(data)):
        with contextlib.suppress(Invalid):
            assert isinstance(modinfo(module), dict)
        with contextlib.suppress(Invalid):
            assert len(without_types(module)) == len(module)


def test_a_signature_is_taken_off_and_nothing_else() -> None:
    """Also where the length in it is nonsense."""
    module = elf_module(b"depends=\0")
    marker = b"~Module signature appended~\n"
    signed = module + b"S" * 681 + bytes(8) + struct.pack(">I", 681) + marker
    assert without_signature(signed) == module
    assert without_signature(module) == module
    nonsense = module + bytes(8) + struct.pack(">I", 1 << 31) + marker
    assert without_signature(nonsense) == nonsense
    assert without_signature(marker) == marker


def test_types_are_hidden_and_nothing_moves() -> None:
    """One field of one section header differs; a module without them is left alone."""
    module = elf_module(b"types", name=b".BTF")
    hidden = without_types(module)
    assert len(hidden) == len(module) and sum(a != b for a, b in zip(module, hidden, strict=True)) == 1
    assert without_types(hidden) == hidden
    plain = elf_module(b"depends=\0")
    assert without_types(plain) == plain


def file_settings(kernel: Path, modules: Path | None) -> VmmSettings:
    return VmmSettings(kernel=KernelSettings(file=kernel, modules=modules))


async def test_a_kernel_file_is_made_ready_once(tmp_path: Path) -> None:
    """By two processes at the same time too; a changed file is another kernel; the cache holds nothing half made."""
    image = tmp_path / "vmlinuz"
    image.write_bytes(bzimage(PACKERS["zstd"](VMLINUX), len(VMLINUX)))
    modules = module_tree(tmp_path / "modules", USUAL, builtin=BUILTIN)
    cache = tmp_path / "cache"
    first, second = await asyncio.gather(*(find_kernel(file_settings(image, modules), cache) for _ in range(2)))
    assert first == second
    assert first.version == "9.8.7-test" and first.path.read_bytes() == VMLINUX
    assert [module.path.name for module in first.modules] == [
        "00-virtio.ko",
        "01-virtio_ring.ko",
        "02-virtio_mmio.ko",
        "03-virtio_blk.ko",
    ]
    assert len(list(cache.iterdir())) == 1
    image.write_bytes(bzimage(PACKERS["gzip"](VMLINUX), len(VMLINUX)))
    assert (await find_kernel(file_settings(image, modules), cache)).directory != first.directory
    assert base_initramfs(first) == base_initramfs(second)


async def test_a_kernel_that_was_found_is_found_again_without_a_look_at_it(tmp_path: Path) -> None:
    """Until its file changes, other settings come, or its place in the cache is gone."""
    image, other = tmp_path / "vmlinuz", tmp_path / "other"
    image.write_bytes(bzimage(PACKERS["zstd"](VMLINUX), len(VMLINUX)))
    other.write_bytes(bzimage(PACKERS["xz"](VMLINUX), len(VMLINUX)))
    cache, known = tmp_path / "cache", KnownKernels()
    first = await known.find(file_settings(image, None), cache)
    assert await known.find(file_settings(image, None), cache) is first
    assert (await known.find(file_settings(other, None), cache)).directory != first.directory
    image.write_bytes(bzimage(PACKERS["gzip"](VMLINUX), len(VMLINUX)))
    changed = await known.find(file_settings(image, None), cache)
    assert changed.directory != first.directory
    shutil.rmtree(changed.directory)
    again = await known.find(file_settings(image, None), cache)
    assert again == changed and again is not changed and again.path.exists()


async def test_a_kernel_with_everything_built_in_needs_no_modules(tmp_path: Path) -> None:
    """An ELF file alone, as Firecracker's own are."""
    image = tmp_path / "vmlinux"
    image.write_bytes(VMLINUX)
    kernel = await find_kernel(file_settings(image, None), tmp_path / "cache")
    assert kernel.modules == () and kernel.path.read_bytes() == VMLINUX


_OF_THE_HOST = """
set -e
mount --bind "$1/boot" /boot
mount -t overlay overlay -o "lowerdir=$1/lib:/lib" /lib
exec "$2" -c '
import asyncio, sys
from pathlib import Path
from castoff.vmm.kernel import find_kernel
from castoff.vmm.settings import KernelSettings, VmmSettings
kernel = asyncio.run(find_kernel(VmmSettings(kernel=KernelSettings(sources=("host",))), Path(sys.argv[1])))
print(kernel.version, *(module.path.name for module in kernel.modules))
' "$1/cache"
"""


def test_the_hosts_own_kernel_is_taken_with_its_modules(tmp_path: Path) -> None:
    """In a mount namespace whose /boot and /lib have one for the running release."""
    assert os.geteuid() == 0, "only root can mount"
    release = os.uname().release
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot" / f"vmlinuz-{release}").write_bytes(bzimage(PACKERS["gzip"](VMLINUX), len(VMLINUX)))
    module_tree(tmp_path / "lib/modules" / release, USUAL, builtin=BUILTIN)
    command = [*own_mounts(), "sh", "-c", _OF_THE_HOST, "sh", str(tmp_path), sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["9.8.7-test", "00-virtio.ko", "01-virtio_ring.ko", "02-virtio_mmio.ko", "03-virtio_blk.ko"]


async def test_no_kernel_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is not there or no kernel; sources that have none."""
    with pytest.raises(NotFound, match="cannot be read"):
        await find_kernel(file_settings(tmp_path / "nothing", None), tmp_path / "cache")
    (tmp_path / "text").write_text("no kernel")
    with pytest.raises(Invalid, match="neither an ELF file nor a bzImage"):
        await find_kernel(file_settings(tmp_path / "text", None), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    nowhere = VmmSettings(kernel=KernelSettings(sources=("debian",)))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotFound, match=r"no kernel for guests \(debian: this host has no apt\); give one with --kernel"):
        await find_kernel(nowhere, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("apt", "why"),
    [
        ("echo 'E: No packages found' >&2; exit 100", "failed: E: No packages found"),
        ("echo 'Depends: something-else'", "depends on no kernel"),
        ("[ $0 != ${0%apt-cache} ] && echo 'Depends: linux-image-9-cloud-amd64 (= 9)'; exit 0", "left 0 packages"),
        ("sleep 100", "took longer than 1 s"),
    ],
)
async def test_what_apt_says_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apt: str, why: str) -> None:
    """A host whose apt finds nothing, offers nothing, brings nothing or hangs; nothing is left of the attempt."""
    for name in ("apt-get", "apt-cache", "dpkg-deb"):
        (tmp_path / name).write_text(f"#!/bin/sh\n{apt}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    settings = VmmSettings(kernel=KernelSettings(sources=("debian",), download_seconds=1))
    with pytest.raises(NotFound, match=why):
        await find_kernel(settings, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


async def test_a_broken_cache_is_told(tmp_path: Path) -> None:
    """With what to do about it."""
    image = tmp_path / "vmlinux"
    image.write_bytes(VMLINUX)
    kernel = await find_kernel(file_settings(image, None), tmp_path / "cache")
    record = kernel.directory / "kernel.json"
    record.write_text(json.dumps({"version": 3}))
    with pytest.raises(Invalid, match="is broken"):
        await find_kernel(file_settings(image, None), tmp_path / "cache")
