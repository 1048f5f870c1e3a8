"""Progress on stderr."""

import io
import os
import pty
import time
from collections.abc import Callable

from castoff.cli.progress import Progress, label
from castoff.timeline import Timeline, recording, step


def _until(condition: Callable[[], bool], timeout: float = 10) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_short_steps_show_nothing() -> None:
    """What takes no second leaves no trace."""
    stream = io.StringIO()
    with Progress(stream) as progress, recording(Timeline(observers=[progress])), step("layers.convert", total=100) as work:
        work.advance(100)
    assert stream.getvalue() == ""


def test_long_steps_tell_share_rate_and_remaining_time_in_lines() -> None:
    """Without a terminal: whole lines, none of them with escapes."""
    stream = io.StringIO()
    layer = "sha256:" + "ab" * 32
    with (
        Progress(stream) as progress,
        recording(Timeline(observers=[progress])),
        step("layers.convert", total=200_000_000, layer=layer) as work,
    ):
        work.advance(50_000_000)
        _until(lambda: "\n" in stream.getvalue())
    line = stream.getvalue().splitlines()[0]
    assert line.startswith("castoff: layers.convert abababababab: 25 %, 50.0 MB of 200 MB, ")
    assert "MB/s, " in line and line.endswith(" left") and "\x1b" not in line


def test_steps_without_a_total_are_no_progress() -> None:
    """There is nothing to tell of them but that they run."""
    stream = io.StringIO()
    with Progress(stream) as progress, recording(Timeline(observers=[progress])), step("image.registry"):
        time.sleep(1.3)
    assert stream.getvalue() == ""


def test_a_step_around_others_leaves_the_telling_to_them() -> None:
    """Their sum beside them would be told twice."""
    stream = io.StringIO()
    with (
        Progress(stream) as progress,
        recording(Timeline(observers=[progress])),
        step("rootfs.conversion", total=100),
        step("between"),
        step("layers.convert", total=100) as work,
    ):
        work.advance(10)
        _until(lambda: "\n" in stream.getvalue())
    assert "layers.convert" in stream.getvalue() and "rootfs.conversion" not in stream.getvalue()


def test_a_step_inside_that_has_just_begun_is_waited_for() -> None:
    """The first line is due when the outer step is a second old; the inner one is not yet."""
    stream = io.StringIO()
    with Progress(stream) as progress, recording(Timeline(observers=[progress])), step("rootfs.conversion", total=100):
        time.sleep(0.5)
        with step("layers.convert", total=100) as work:
            work.advance(10)
            _until(lambda: "\n" in stream.getvalue())
    assert stream.getvalue().startswith("castoff: layers.convert: 10 %")


def test_quiet_is_quiet() -> None:
    """Also for long steps."""
    stream = io.StringIO()
    with Progress(stream, quiet=True) as progress, recording(Timeline(observers=[progress])), step("a", total=10) as work:
        work.advance(1)
        time.sleep(1.3)
    assert stream.getvalue() == ""


def test_bars_are_drawn_on_a_terminal_and_cleared() -> None:
    """The bar names its step, tells rate and time, obeys no markup of a name, and is gone when the command goes on."""
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as stream, os.fdopen(leader, "rb", buffering=0) as screen:
        os.set_blocking(leader, False)
        seen = bytearray()

        def shows(text: bytes) -> bool:
            seen.extend(screen.read() or b"")
            return text in seen

        with (
            Progress(stream) as progress,
            recording(Timeline(observers=[progress])),
            step("layers.convert", total=1000, layer="[red]x") as work,
        ):
            work.advance(300)
            _until(lambda: shows(b"[red]x"))
        _until(lambda: shows(b"\x1b[2K"))


def test_stopping_early_ends_all_drawing() -> None:
    """After `stop`, which a machine's output follows, nothing more is written."""
    stream = io.StringIO()
    with Progress(stream) as progress, recording(Timeline(observers=[progress])), step("a", total=100):
        _until(lambda: stream.getvalue() != "")
        progress.stop()
        before = stream.getvalue()
        with step("b", total=100):
            time.sleep(1.2)
    assert stream.getvalue() == before


def test_a_label_names_what_the_step_works_on() -> None:
    """Digests are cut to what tells them apart."""
    timeline = Timeline()
    assert label(timeline.begin("layers.convert", layer="sha256:" + "0123456789abcdef" * 4)) == "layers.convert 0123456789ab"
    assert label(timeline.begin("disk.copy", path="/a/b")) == "disk.copy /a/b"
    assert label(timeline.begin("x")) == "x"


def test_no_name_steers_the_terminal() -> None:
    """Names come from images and registries."""
    with recording(Timeline()), step("image.tar_files", path="/x\x1b]0;owned\x07") as work:
        assert label(work) == "image.tar_files /x\\x1b]0;owned\\x07"
