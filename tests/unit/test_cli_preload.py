"""`castoff preload`'s command line: images from words and files, rates; what cannot be read is refused before anything begins."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from castoff.cli import main
from castoff.cli.parameters import parse_rate
from castoff.cli.preload import images_of
from castoff.errors import Invalid


@pytest.mark.parametrize(("text", "rate"), [("50M/s", 50 << 20), ("1.5G", 3 << 29), (" 4096/s ", 4096), ("50MB/s", 50 << 20)])
def test_a_rate_is_a_size_a_second(text: str, rate: int) -> None:
    """Powers of 1024, as sizes."""
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["0", "0M/s", "fast", "10M/h", ""])
def test_what_is_no_rate(text: str) -> None:
    """Nothing a second is none."""
    with pytest.raises(click.BadParameter):
        parse_rate(text)


def test_a_file_names_an_image_a_line(tmp_path: Path) -> None:
    """Comments and empty lines are for people; an image that is named twice is one."""
    (tmp_path / "a").write_text("# all of it\n\nalpine:3  # small\r\n  team/app@sha256:12\n")
    (tmp_path / "b").write_text("debian:13\nalpine:3")
    assert images_of(("first",), (tmp_path / "a", tmp_path / "b")) == ["first", "alpine:3", "team/app@sha256:12", "debian:13"]


@pytest.mark.parametrize("data", [None, b"\xff\xfe", b"a\n" * (3 << 20)])
def test_a_file_that_is_no_list_is_refused(tmp_path: Path, data: bytes | None) -> None:
    """Missing, no UTF-8, too large."""
    if data is not None:
        (tmp_path / "list").write_bytes(data)
    with pytest.raises(Invalid, match="list"):
        images_of((), (tmp_path / "list",))


def test_no_image_at_all_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of comments is as good as none."""
    (tmp_path / "list").write_text("# nothing\n")
    assert main(["--state", str(tmp_path / "state"), "preload", "--file", str(tmp_path / "list")]) == 2
    assert "no image is named" in capsys.readouterr().err
    assert not (tmp_path / "state").exists()
