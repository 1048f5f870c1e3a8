"""The initramfs and the settings in it, read back as the kernel and the guest init read them."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castoff.errors import Invalid
from castoff.vmm.guest import GuestFile, GuestSettings, encode_settings
from castoff.vmm.initramfs import Entry, assemble, cpio, guest_init
from castoff.vmm.kernel import Kernel, find_kernel
from castoff.vmm.settings import VmmSettings


def read_cpio(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Name to mode and data, by the kernel's rules (init/initramfs.c): several archives, zeros between them."""
    found, at = dict[str, tuple[int, bytes]](), 0
    while at < len(archive):
        if archive[at] == 0:
            at += 4 - at % 4 if archive[at : at + 4] == bytes(4) else 1
            continue
        assert archive[at : at + 6] == b"070701" and at % 4 == 0
        fields = [int(archive[at + 6 + 8 * index : at + 14 + 8 * index], 16) for index in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        at += 110 + name_size
        at += -at % 4
        if name != "TRAILER!!!":
            found[name] = (mode, archive[at : at + size])
        at += size + -size % 4
    return found


def read_records(data: bytes) -> list[tuple[int, bytes]]:
    """Tag and value, with the checks of guest/settings.c."""
    found, at = [], 0
    while at < len(data):
        tag, length = struct.unpack_from("<BI", data, at)
        assert data[at + 5 + length] == 0
        found.append((tag, data[at + 5 : at + 5 + length]))
        at += 6 + length
    return found


@given(st.dictionaries(st.from_regex(r"[a-z]{1,30}(/[a-z]{1,30})?", fullmatch=True), st.binary(max_size=100), max_size=8))
def test_an_archive_reads_back(files: dict[str, bytes]) -> None:
    """Names and contents of any length, padded as the format wants it; whole archives can follow each other."""
    archive = cpio(Entry(name, data, 0o640) for name, data in files.items())
    assert len(archive) % 512 == 0
    assert read_cpio(archive) == {name: (0o100640, data) for name, data in files.items()}
    assert read_cpio(archive + cpio([Entry("more", None)])) == read_cpio(archive) | {"more": (0o040755, b"")}


@pytest.fixture(name="kernel", scope="module")
def _kernel(kernels: Path) -> Kernel:
    return asyncio.run(find_kernel(VmmSettings(), kernels))


def test_a_machines_initramfs_is_the_kernels_base_and_its_own_settings(tmp_path: Path, kernel: Kernel) -> None:
    """Init, modules in order, settings; nobody else may read it, since an environment holds secrets."""
    guest = GuestSettings(argv=("sh", "-c", "exit"), env=("SECRET=1",))
    path = assemble(kernel, guest, tmp_path / "initramfs")
    assert path.stat().st_mode & 0o777 == 0o600
    found = read_cpio(path.read_bytes())
    assert found["init"] == (0o100755, guest_init().read_bytes())
    assert found["castoff/settings"] == (0o100600, encode_settings(guest))
    listed = [line.split() for line in found["castoff/modules"][1].decode().splitlines()]
    assert [(group, name) for group, name in listed] == [(module.group, module.path.name) for module in kernel.modules]
    assert {name.removeprefix("castoff/") for name in found if name.endswith(".ko")} == {name for _, name in listed}
    names = [name.split("-", 1)[1] for _, name in listed]
    assert names.index("virtio_mmio.ko") < names.index("virtio_net.ko")  # virtio itself is built in from Linux 6.12 on
    assert names.index("failover.ko") < names.index("net_failover.ko") < names.index("virtio_net.ko")


def test_settings_hold_what_was_asked_for() -> None:
    """Each part under its tag; bytes that are no UTF-8 survive."""
    guest = GuestSettings(
        argv=("run", "", "a\udcff"),
        env=("A=1", "B="),
        cwd="/w",
        user="u:g",
        hostname="h",
        tty=True,
        rows=5,
        columns=70000,
        stdin=True,
        stop_signal=3,
        linger=1.5,
        rlimits=((7, 1, 2),),
        files=(GuestFile("/f", b"\0x", 0o600, 1, 2),),
    )
    assert read_records(encode_settings(guest)) == [
        (1, b"run"),
        (1, b""),
        (1, b"a\xff"),
        (2, b"A=1"),
        (2, b"B="),
        (3, b"/w"),
        (4, b"u:g"),
        (5, b"h"),
        (6, struct.pack("<I", 3)),
        (7, struct.pack("<HH", 5, 65535)),
        (10, struct.pack("<I", 3)),
        (11, struct.pack("<I", 1500)),
        (8, struct.pack("<IQQ", 7, 1, 2)),
        (9, struct.pack("<IIIH", 0o600, 1, 2, 2) + b"/f\0x"),
    ]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"argv": ()}, "no command"),
        ({"argv": ("",)}, "no command"),
        ({"argv": ("a\0b",)}, "NUL"),
        ({"env": ("A=\0",)}, "NUL"),
        ({"argv": ("x" * 131072,)}, "131072 bytes"),
        ({"env": ("x" * 131071,) * 70}, "are [0-9]+ bytes"),
        ({"hostname": ""}, "1 to 64"),
        ({"hostname": "h" * 65}, "1 to 64"),
        ({"rlimits": ((1, 1, 1),) * 17}, "17 resource limits"),
        ({"files": (GuestFile("relative", b""),)}, "not an absolute path"),
        ({"files": (GuestFile("/" + "n" * 4096, b""),)}, "not an absolute path"),
    ],
)
def test_what_no_process_can_be_given_is_refused(settings: dict[str, object], why: str) -> None:
    """On the host, with a reason, instead of in the guest."""
    with pytest.raises(Invalid, match=why):
        encode_settings(GuestSettings(**({"argv": ("x",)} | settings)))  # type: ignore[arg-type]
