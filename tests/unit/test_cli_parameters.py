"""Words of the command line with a form of their own."""

from pathlib import Path

import click
import pytest

from castoff.cli.parameters import environment, parse_platform, parse_port, parse_size
from castoff.image.image import Platform
from castoff.vmm.vmm import PortForward


@pytest.mark.parametrize(
    ("text", "amount"),
    [("512M", 512 << 20), ("8G", 8 << 30), ("1.5GiB", 3 << 29), ("4096", 4096), ("16t", 16 << 40), ("10 kB", 10240)],
)
def test_sizes_are_powers_of_1024(text: str, amount: int) -> None:
    """As qemu-img, docker and fallocate read them."""
    assert parse_size(text) == amount


@pytest.mark.parametrize("text", ["", "M", "-1G", "1e9", "8X", "0x10", "1.2.3G", "1" * 40])
def test_other_words_are_no_sizes(text: str) -> None:
    """A slip is refused, not guessed at."""
    with pytest.raises(click.BadParameter):
        parse_size(text)


def test_ports_take_an_address_and_a_protocol() -> None:
    """Loopback and TCP unless said otherwise: nothing is opened to the world by default."""
    assert parse_port("8080:80") == PortForward(8080, 80, "127.0.0.1", "tcp")
    assert parse_port("0.0.0.0:53:5353/udp") == PortForward(53, 5353, "0.0.0.0", "udp")
    assert parse_port("[::1]:80:80") == PortForward(80, 80, "::1", "tcp")


@pytest.mark.parametrize("text", ["80", "0:80", "80:65536", "80:80/sctp", "a:b", "host:80:80", "80:80,hostfwd=x"])
def test_other_words_are_no_ports(text: str) -> None:
    """What ends in a VMM's option is checked to the last character."""
    with pytest.raises(click.BadParameter):
        parse_port(text)


def test_platforms() -> None:
    """An architecture alone means Linux."""
    assert parse_platform("arm64") == Platform("linux", "arm64")
    assert parse_platform("Linux/ARM/v6") == Platform("linux", "arm", "v6")
    assert parse_platform("linux/x86_64") == parse_platform("amd64")
    for text in ("", "a/b/c/d", "linux/", "linux/am d64"):
        with pytest.raises(click.BadParameter):
            parse_platform(text)


def test_variables_come_from_flags_files_and_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags win over files; a name alone takes this process's value, and nothing where there is none."""
    monkeypatch.setenv("HERE", "from here")
    monkeypatch.delenv("NOWHERE", raising=False)
    file = tmp_path / "env"
    file.write_text("# comment\n\nA=1\nB=two words # kept\n  C='quotes kept'\nHERE\n")
    found = environment(("A=2", "NOWHERE", "EMPTY="), (file,))
    assert set(found) == {"A=2", "B=two words # kept", "C='quotes kept'", "HERE=from here", "EMPTY="}


def test_broken_variables_are_refused(tmp_path: Path) -> None:
    """Neither a nameless variable nor a file that is none passes."""
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    for pairs, files in ((("=x",), ()), (("A=\0",), ()), ((), (tmp_path / "missing",)), ((), (binary,))):
        with pytest.raises(click.UsageError):
            environment(pairs, files)


def test_values_of_a_file_are_what_stands_between_line_feeds(tmp_path: Path) -> None:
    """Form feeds and Unicode's line separators are values; a mark at the file's start and carriage returns are not."""
    file = tmp_path / "env"
    file.write_bytes("\ufeffA=one\x0ctwo\u2028three\r\nB=\x85\n".encode())
    assert environment((), (file,)) == ("A=one\x0ctwo\u2028three", "B=\x85")
