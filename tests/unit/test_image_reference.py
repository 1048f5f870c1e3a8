"""References are read as Docker and skopeo read them, and bad ones end in one clear line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from castoff.errors import Invalid
from castoff.image.digest import Digest
from castoff.image.reference import LayoutReference, RegistryReference, parse_reference

DIGEST = Digest("ab" * 32)


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3", "docker.io/library/alpine:3"),
        ("team/app", "docker.io/team/app:latest"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("index.docker.io/alpine", "docker.io/library/alpine:latest"),
        ("docker.io/library/alpine:3", "docker.io/library/alpine:3"),
        ("docker://alpine:3", "docker.io/library/alpine:3"),
        ("localhost/x", "localhost/x:latest"),
        ("localhost:5000/x", "localhost:5000/x:latest"),
        ("localhost:5000", "docker.io/library/localhost:5000"),  # surprising, and what Docker does
        ("ghcr.io/a/b/c:v1.2", "ghcr.io/a/b/c:v1.2"),
        ("Registry/x", "Registry/x:latest"),  # upper case alone makes it a host
        ("GHCR.io/x", "ghcr.io/x:latest"),
        ("[::1]:5000/x", "[::1]:5000/x:latest"),
        ("[2001:db8::1]/x:1", "[2001:db8::1]/x:1"),
        ("127.0.0.1:5000/a__b/c-d.e", "127.0.0.1:5000/a__b/c-d.e:latest"),
        (f"alpine@{DIGEST}", f"docker.io/library/alpine@{DIGEST}"),
        (f"alpine:3@{DIGEST}", f"docker.io/library/alpine:3@{DIGEST}"),
        (f"localhost:5000/team/app@{DIGEST}", f"localhost:5000/team/app@{DIGEST}"),
    ],
)
def test_registry_references_follow_dockers_rules(text: str, whole: str) -> None:
    """Default registry, `library/`, default tag; a digest takes the place of the default tag."""
    reference = parse_reference(text)
    assert isinstance(reference, RegistryReference)
    assert str(reference) == whole
    assert parse_reference(whole) == reference


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "empty"),
        ("a" * 9000, "too long"),
        ("Alpine", "lower case"),
        ("alpine:", "not a tag"),
        ("alpine:-x", "not a tag"),
        (f"alpine:{'x' * 129}", "not a tag"),
        ("alpine@", "not a sha256 digest"),
        ("alpine@sha256:abc", "not a sha256 digest"),
        (f"alpine@sha512:{'a' * 128}", "not a sha256 digest"),
        (f"alpine@{DIGEST}x", "not a sha256 digest"),
        ("al pine", "character"),
        ("alpine\n", "character"),
        ("alpine\0", "character"),
        ("älpine", "character"),
        ("https://ghcr.io/x", "URL"),
        ("./layout", "oci:./layout"),
        ("/layout", "oci:/layout"),
        ("a//b", "not a repository"),
        ("a/../b", "not a repository"),
        ("-a", "not a repository"),
        ("a_-b", "not a repository"),
        ("host.example/", "not a repository"),
        ("ho_st.example/x", "not a registry's host"),
        ("host.example:99999/x", "port 99999"),
        ("host.example:/x", "not a registry's host"),
        ("[::g]/x", "not a registry's host"),
        ("[1:2]/x", "not an IPv6 address"),
        ("a" * 64, None),
        ("0" * 64, "image id"),
        (f"ghcr.io/{'a' * 250}", "has 258 characters"),
        ("oci:", "names no path"),
        ("oci::tag", "names no path"),
        ("oci:dir:", "not a tag"),
        ("oci:a\0b", "NUL"),
        (f"oci:dir:{'t' * 600}", "not a tag"),
    ],
)
def test_bad_references_say_which_part_is_bad(text: str, word: str | None) -> None:
    """One line, with the part that is wrong and what to write."""
    with pytest.raises(Invalid) as caught:
        parse_reference(text)
    assert "\n" not in str(caught.value)
    assert word is None or word in str(caught.value)


@pytest.mark.parametrize("kind", ["oci", "oci-archive", "docker-archive"])
def test_paths_on_disk_may_hold_colons(tmp_path: Path, kind: str) -> None:
    """The longest prefix that exists is the path."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a:b").mkdir()
    base = str(tmp_path)
    assert parse_reference(f"{kind}:{base}/a") == LayoutReference(kind, tmp_path / "a")  # type: ignore[arg-type]
    assert parse_reference(f"{kind}:{base}/a:b") == LayoutReference(kind, tmp_path / "a:b")  # type: ignore[arg-type]
    assert parse_reference(f"{kind}:{base}/a:c") == LayoutReference(kind, tmp_path / "a", "c")  # type: ignore[arg-type]
    assert parse_reference(f"{kind}:{base}/a:b:c") == LayoutReference(kind, tmp_path / "a:b", "c")  # type: ignore[arg-type]
    name = "docker.io/library/alpine:3"
    assert parse_reference(f"{kind}:{base}/a:{name}") == LayoutReference(kind, tmp_path / "a", name)  # type: ignore[arg-type]


def test_a_path_that_does_not_exist_ends_at_the_last_colon() -> None:
    """Nothing on disk decides, so the usual reading does."""
    assert parse_reference("oci:/no/such:tag") == LayoutReference("oci", Path("/no/such"), "tag")
    assert parse_reference("oci:/no:such/dir") == LayoutReference("oci", Path("/no:such/dir"))


def test_a_layout_can_be_asked_for_a_digest(tmp_path: Path) -> None:
    """`oci:DIR@sha256:...` names a manifest that needs no tag."""
    assert parse_reference(f"oci:{tmp_path}@{DIGEST}") == LayoutReference("oci", tmp_path, None, DIGEST)
    assert parse_reference(f"oci:{tmp_path}:v1@{DIGEST}") == LayoutReference("oci", tmp_path, "v1", DIGEST)


def test_paths_that_no_kernel_takes_are_not_there() -> None:
    """Too long a path is no failure of castoff's own."""
    with pytest.raises(Invalid, match="not a sha256 digest"):
        parse_reference(f"oci:{'a' * 5000}@sha256:00")


def test_a_path_of_any_bytes_is_shown_as_text() -> None:
    """Records and answers are JSON, which has no bytes."""
    reference = parse_reference(os.fsdecode(b"oci:/im\xffage:v1"))
    assert str(reference) == "oci:/im\ufffdage:v1"
    assert isinstance(reference, LayoutReference) and os.fsencode(reference.path) == b"/im\xffage"
