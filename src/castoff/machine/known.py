"""What a process that makes many machines looks up once."""

from __future__ import annotations

from dataclasses import dataclass, field

from castoff.image.known import KnownImages
from castoff.vmm.kernel import KnownKernels

__all__ = ["Known"]


@dataclass(frozen=True, slots=True)
class Known:
    """Images by their digests, and the kernel for the settings. A command that makes one machine has none."""

    images: KnownImages = field(default_factory=KnownImages)
    kernels: KnownKernels = field(default_factory=KnownKernels)
