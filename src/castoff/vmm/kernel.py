"""The guests' kernel: found once, made ready (an ELF vmlinux and unpacked modules), then read from the cache.

    CACHE/<key>/vmlinux, modules/*.ko, kernel.json

``key`` names where the kernel came from, so that a changed file or a newer package gives a new directory. A directory
appears by rename, whole; two processes that want the same one each make it, and the second to finish throws its own away.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from castoff.errors import CastoffError, Invalid, NotFound, Unavailable, Unsupported
from castoff.timeline import step
from castoff.vmm.modules import ModuleFile
from castoff.vmm.settings import KernelSettings, VmmSettings

__all__ = ["Kernel", "KnownKernels", "find_kernel"]


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel ready to boot.

    Attributes:
        path: ELF vmlinux.
        version: As ``uname -r`` has it.
        modules: What the guest init loads, in order; empty where everything is built in.
        digest: Of the modules and their order; changes when the initramfs must.
        directory: The cache directory of this kernel.
    """

    path: Path
    version: str
    modules: tuple[ModuleFile, ...]
    digest: str
    directory: Path


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """kernel.json."""

    version: str
    digest: str
    modules: tuple[tuple[str, str], ...]


async def find_kernel(settings: VmmSettings, cache: Path) -> Kernel:
    """The kernel that guests boot: the file that the settings name, or the first of the sources that has one.

    Args:
        settings: The machines' settings.
        cache: A directory for kernels; made when missing.

    Raises:
        NotFound: No source has a kernel; the message tells why of each.
        Invalid: The file that the settings name is no kernel.
        Unsupported: The kernel lacks what a guest needs.
    """
    with step("vmm.kernel") as current:
        if settings.kernel.file is not None:
            kernel = await _from_file(settings.kernel.file, settings.kernel.modules, cache)
        else:
            kernel = await _from_sources(settings.kernel, cache)
        current.attributes["version"] = kernel.version
        return kernel


class KnownKernels:
    """The kernel of the settings that were used last, as long as nothing has changed where it came from."""

    def __init__(self) -> None:
        self._last: tuple[object, Kernel] | None = None

    async def find(self, settings: VmmSettings, cache: Path) -> Kernel:
        """As :func:`find_kernel`."""
        mark = _mark(settings.kernel, cache)
        if self._last is not None and self._last[0] == mark:
            with step("vmm.kernel", version=self._last[1].version):
                return self._last[1]
        kernel = await find_kernel(settings, cache)
        self._last = (_mark(settings.kernel, cache), kernel)
        return kernel


def _mark(settings: KernelSettings, cache: Path) -> object:
    """Changes when a kernel comes to the cache or goes from it (its directory's time does), and with the file that is asked for
    or the host boots."""
    image = settings.file or Path("/boot") / f"vmlinuz-{os.uname().release}"
    found: list[tuple[int, ...] | None] = []
    for path in (cache, image):
        try:
            status = path.stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size))
    return settings, cache, *found


async def _from_sources(settings: KernelSettings, cache: Path) -> Kernel:
    problems: list[str] = []
    for source in settings.sources:
        try:
            found = await {"debian": _from_debian, "host": _from_host}[source](settings, cache)
        except (Unavailable, Unsupported, Invalid) as error:
            problems.append(f"{source}: {error.what}")
            continue
        if found is not None:
            return found
        problems.append(
            {"debian": "debian: this host has no apt", "host": "host: /boot has no readable kernel with modules"}[source]
        )
    raise NotFound(f"no kernel for guests ({'; '.join(problems)})", hint="give one with --kernel (a vmlinux or vmlinuz)")


async def _from_debian(settings: KernelSettings, cache: Path) -> Kernel | None:
    """Debian's cloud kernel; the newest that is here already is used as it is, so a host is offline after its first time."""
    from castoff.vmm.debian import download_kernel  # here: a kernel that is cached needs none of it

    prefix = f"{settings.package}:"
    if ready := _newest(cache, prefix):
        return ready

    async def fill(work: Path) -> tuple[Path, Path | None]:
        root = await download_kernel(settings, work)
        if root is None:
            raise Unsupported("this host has no apt")
        images = sorted(root.glob("boot/vmlinuz-*"))
        trees = sorted(path for base in ("lib/modules", "usr/lib/modules") for path in root.glob(f"{base}/*"))
        if len(images) != 1 or len(trees) != 1:
            raise Unavailable("the kernel's package holds no kernel where Debian's do")
        return images[0], trees[0]

    return await _prepare(cache, prefix, fill)


async def _from_host(settings: KernelSettings, cache: Path) -> Kernel | None:
    release = os.uname().release
    image = Path("/boot") / f"vmlinuz-{release}"
    modules = Path("/lib/modules") / release
    if not (os.access(image, os.R_OK) and modules.is_dir()):
        return None
    return await _from_file(image, modules, cache)


async def _from_file(image: Path, modules: Path | None, cache: Path) -> Kernel:
    key = _file_key(image, modules)
    if ready := _load(cache / key):
        return ready

    async def fill(work: Path) -> tuple[Path, Path | None]:
        return image, modules

    return await _prepare(cache, key, fill)


def _file_key(image: Path, modules: Path | None) -> str:
    try:
        status = image.stat()
    except OSError as error:
        raise NotFound(f"the kernel {image} cannot be read: {error.strerror}", hint="give --kernel an existing file") from error
    return f"file:{status.st_dev:x}.{status.st_ino:x}.{status.st_mtime_ns:x}.{status.st_size:x}.{modules or ''}".replace("/", "%")


def _newest(cache: Path, prefix: str) -> Kernel | None:
    found = sorted((path for path in cache.glob(f"{prefix}*")), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return next((kernel for path in found if (kernel := _load(path))), None)


def _load(directory: Path) -> Kernel | None:
    try:
        record = msgspec.json.decode((directory / "kernel.json").read_bytes(), type=_Record)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise Invalid(f"{directory} is broken: {error}", hint="delete it; it is made again") from error
    modules = tuple(ModuleFile(group, directory / "modules" / name) for group, name in record.modules)
    return Kernel(directory / "vmlinux", record.version, modules, record.digest, directory)


async def _prepare(cache: Path, key: str, fill: Callable[[Path], Awaitable[tuple[Path, Path | None]]]) -> Kernel:
    """Makes a kernel's directory. A key that ends with a colon gets the kernel's version appended."""
    import shutil

    work = _work_directory(cache)
    try:
        image, modules = await fill(work)
        ready = work / "ready"
        version = await asyncio.to_thread(_make_ready, image, modules, ready)
        directory = cache / (key + version if key.endswith(":") else key)
        try:
            ready.rename(directory)
        except OSError as error:
            if _load(directory) is None:  # else another process was sooner
                raise Unavailable(f"{directory} cannot be made: {error.strerror}") from error
    finally:
        await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)
    kernel = _load(directory)
    if kernel is None:
        raise Unavailable(f"{directory} disappeared", hint="try again")
    return kernel


def _work_directory(cache: Path) -> Path:
    import tempfile

    try:
        cache.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=cache, prefix=".new-"))
    except OSError as error:
        raise Unavailable(f"{cache} cannot be written: {error.strerror}", hint="choose another with --state") from error


def _make_ready(image: Path, modules: Path | None, ready: Path) -> str:
    """Fills ``ready`` with the vmlinux, the modules and the record; the kernel's version."""
    import hashlib

    from castoff.vmm.bzimage import extract_vmlinux, kernel_version
    from castoff.vmm.modules import needed_modules, unpack_module, without_signature, without_types

    try:
        data = image.read_bytes()
        try:
            vmlinux = extract_vmlinux(data)
            version = kernel_version(data, vmlinux)
        except Invalid as error:
            raise Invalid(f"{image}: {error.what}", hint=error.hint) from error
        if modules is None and (found := Path("/lib/modules") / version).is_dir():
            modules = found
        (ready / "modules").mkdir(parents=True)
        enforced = _enforces_signatures(image, version)
        digest = hashlib.blake2b(digest_size=16)
        listed = []
        for number, (group, name, source) in enumerate(needed_modules(modules) if modules else []):
            file = f"{number:02}-{name}.ko"
            unpacked = unpack_module(source)
            if not enforced:
                unpacked = without_types(without_signature(unpacked))
            digest.update(f"{group} {file} {len(unpacked)}\n".encode() + unpacked)
            (ready / "modules" / file).write_bytes(unpacked)
            listed.append((group, file))
        (ready / "vmlinux").write_bytes(vmlinux)
        record = _Record(version, digest.hexdigest(), tuple(listed))
        (ready / "kernel.json").write_bytes(msgspec.json.encode(record))
        _sync_tree(ready)
    except CastoffError:
        raise
    except OSError as error:
        raise Unavailable(f"the kernel {image} cannot be made ready: {error}") from error
    return version


def _enforces_signatures(image: Path, version: str) -> bool:
    """Whether the kernel refuses modules without a signature, as far as its configuration lies beside it."""
    try:
        return "CONFIG_MODULE_SIG_FORCE=y" in image.with_name(f"config-{version}").read_text(errors="replace")
    except OSError:
        return False


def _sync_tree(directory: Path) -> None:
    """Files before names: after a crash a directory that is there is whole."""
    for path in [*directory.rglob("*"), directory]:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
