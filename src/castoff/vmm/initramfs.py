"""The initramfs of a machine: what its kernel needs (init and modules, the same for all), then its own settings.

The kernel unpacks several cpio archives one after another, so a machine's initramfs is the base of its kernel, copied
(by reference where the filesystem can), and a small archive that holds only ``castoff/settings``.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from castoff.errors import NoSpace, Unavailable, Unsupported
from castoff.timeline import step
from castoff.vmm.guest import GuestSettings, encode_settings
from castoff.vmm.kernel import Kernel

__all__ = ["Entry", "GuestSettings", "assemble", "base_initramfs", "cpio", "guest_init"]

_ALIGNMENT: Final = 512
_BLOCK: Final = 4096
"""What the base is a multiple of: the settings behind it then begin a block of their own. In a block that is shared with the base
they would have to be copied on write, in the middle of a create."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a cpio archive; a directory when it has no data."""

    name: str
    data: bytes | None
    mode: int = 0o755


def cpio(entries: Iterable[Entry]) -> bytes:
    """A cpio archive in the "newc" format (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).

    Owners are root and times zero, so the same entries give the same bytes.
    """
    pieces = [_member(number, entry) for number, entry in enumerate(entries, 1)]
    pieces.append(_member(0, Entry("TRAILER!!!", b"", 0)))
    archive = b"".join(pieces)
    return archive + bytes(-len(archive) % _ALIGNMENT)


def _member(number: int, entry: Entry) -> bytes:
    data = entry.data or b""
    kind = 0 if not number else 0o040000 if entry.data is None else 0o100000
    name = entry.name.encode() + b"\0"
    # ino, mode, uid, gid, nlink, mtime, size, device and special device (major, minor each), name size, check
    fields = (number, kind | entry.mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return header + bytes(-len(header) % 4) + data + bytes(-len(data) % 4)


def guest_init() -> Path:
    """The static init that the wheel carries.

    Raises:
        Unsupported: This installation has none.
    """
    path = Path(__file__).with_name("guest-init")
    if not path.exists():
        raise Unsupported(
            f"{path} is missing: castoff was installed without its guest init", hint="run `make setup`, or install again"
        )
    return path


def base_initramfs(kernel: Kernel) -> Path:
    """The part of the initramfs that all machines of ``kernel`` share; made once, then found by what it holds."""
    init = guest_init()
    status = init.stat()
    key = _base_key(kernel.digest, init, (status.st_ino, status.st_mtime_ns, status.st_size))
    path = kernel.directory / f"initramfs-{key}.cpio"
    if path.exists():
        return path
    order = "".join(f"{module.group} {module.path.name}\n" for module in kernel.modules)
    entries = [Entry("init", init.read_bytes()), Entry("castoff", None), Entry("castoff/modules", order.encode(), 0o644)]
    entries += [Entry(f"castoff/{module.path.name}", module.path.read_bytes(), 0o644) for module in kernel.modules]
    base = cpio(entries)
    _write_once(path, base + bytes(-len(base) % _BLOCK))
    return path


@functools.lru_cache(maxsize=4)
def _base_key(kernel: str, init: Path, stamp: tuple[int, ...]) -> str:
    """Names a base by what is in it; read once, as long as the init's ``stamp`` is the same."""
    import hashlib  # here: a warm `castoff run` reads one small file and pays for nothing else

    return hashlib.blake2b(kernel.encode() + init.read_bytes() + b"%d" % _BLOCK, digest_size=16).hexdigest()


def _write_once(path: Path, data: bytes) -> None:
    """Writes a file that is whole or absent; of two processes the later wins, with the same bytes."""
    import tempfile  # here: not needed where the base is there

    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)
            Path(file.name).rename(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def assemble(kernel: Kernel, guest: GuestSettings, out: Path) -> Path:
    """Writes a machine's initramfs to ``out`` (new, mode 0600: an environment holds secrets).

    Args:
        kernel: The machine's kernel.
        guest: Its command.
        out: The file to write, in the machine's own directory.

    Raises:
        Invalid: Settings that no process can be given.
        NoSpace, Unavailable: The file cannot be written.
    """
    with step("vmm.initramfs"):
        settings = cpio([Entry("castoff/settings", encode_settings(guest), 0o600)])
        base = base_initramfs(kernel)
        try:
            _join(base, settings, out)
        except OSError as error:
            import errno

            if error.errno == errno.ENOSPC:
                raise NoSpace(str(out.parent), needed=base.stat().st_size + len(settings), available=0) from error
            raise Unavailable(f"{out} cannot be written: {error.strerror}") from error
    return out


def _join(base: Path, settings: bytes, out: Path) -> None:
    source = os.open(base, os.O_RDONLY | os.O_CLOEXEC)
    try:
        target = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            left = os.fstat(source).st_size
            while left:
                copied = _copy(source, target, left)
                if not copied:
                    raise OSError(0, f"{base} became shorter")
                left -= copied
            while settings:
                settings = settings[os.write(target, settings) :]
        finally:
            os.close(target)
    finally:
        os.close(source)


def _copy(source: int, target: int, count: int) -> int:
    try:
        return os.copy_file_range(source, target, count)
    except OSError:  # EXDEV before Linux 5.3, EOPNOTSUPP and EINVAL on filesystems that have none
        return os.write(target, os.read(source, min(count, 1 << 20)))
