"""Opens the source that a reference names."""

from __future__ import annotations

from pathlib import Path

from castoff.errors import NotFound
from castoff.image.known import KnownImages
from castoff.image.reference import LayoutReference, Reference
from castoff.image.settings import ImageSettings
from castoff.image.source import ImageSource

__all__ = ["open_source"]


def open_source(reference: Reference, settings: ImageSettings, cache: Path, known: KnownImages | None = None) -> ImageSource:
    """The source of a reference's image; nothing is fetched yet, and no network library imported.

    Args:
        reference: From ``parse_reference``.
        settings: How to fetch.
        cache: A directory, made when needed, that keeps manifests and configs by their digests.
        known: What this process has resolved already.

    Raises:
        NotFound, Invalid: The path of an image on disk is not there, or is no layout or archive.
    """
    # Each source's module is imported when it is the one: a warm `castoff run` pays for nothing else.
    if not isinstance(reference, LayoutReference):
        from castoff.image.registry import RegistrySource

        return RegistrySource(reference, settings, cache, known)
    if reference.kind == "docker-archive":
        from castoff.image.docker_archive import DockerArchiveSource
        from castoff.image.tar_files import TarFiles

        return DockerArchiveSource(reference, TarFiles(reference.path, settings, cache), settings)
    from castoff.image.layout import LayoutSource

    if reference.kind == "oci-archive":
        from castoff.image.tar_files import TarFiles

        return LayoutSource(reference, TarFiles(reference.path, settings, cache), settings, known)
    from castoff.image.files import DirectoryFiles

    if not reference.path.is_dir():
        raise NotFound(f"{reference.path} is not a directory", hint="oci: names an OCI layout; oci-archive: a tar of one")
    return LayoutSource(reference, DirectoryFiles(reference.path), settings, known)
