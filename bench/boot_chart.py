"""A lazy boot as a picture, one SVG: which chunk of the disk came when, and what the machine did meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

__all__ = ["Came", "decode", "encode", "svg"]

_WIDTH, _HEIGHT = 1060, 470
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 30, 78, 52
_BEFORE, _AFTER = "#0b7285", "#adb5bd"


@dataclass(frozen=True, slots=True)
class Came:
    """Neighbours that were seen to be here for the first time at once."""

    milliseconds: int
    """From the command line."""
    first: int
    """The first one's number, in the order of the disk, among the chunks that the image wants."""
    count: int


def encode(came: list[Came]) -> str:
    """As results.json has them: one line, however many they are."""
    return " ".join(f"{one.milliseconds}:{one.first}+{one.count}" for one in came)


def decode(text: str) -> list[Came]:
    """What :func:`encode` made."""
    words = (word.replace("+", ":").split(":") for word in text.split())
    return [Came(int(at), int(first), int(count)) for at, first, count in words]


def svg(measured: dict[str, Any]) -> str:
    """The picture.

    Args:
        measured: Of the row that ``bench.boots`` made: ``came``, ``chunks`` in all, and seconds from the command line:
            ``vmm``, ``ready``, ``complete``.
    """
    style = "text{font:13px system-ui,sans-serif;fill:#212529}.t{font-size:16px;font-weight:600}.s{fill:#495057;font-size:12px}"
    body = "".join([*_axes(measured), *_dots(measured), *_instants(measured)])
    size = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>{body}</svg>\n'
    )


def _x(seconds: float, measured: dict[str, Any]) -> float:
    return float(_LEFT + (_WIDTH - _LEFT - _RIGHT) * seconds / (measured["complete"] * 1.02))


def _y(chunk: float, measured: dict[str, Any]) -> float:
    return float(_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * chunk / measured["chunks"])


def _text(x: float, y: float, text: str, *, css: str = "s", anchor: str = "start", turn: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}"{turn}>{escape(text)}</text>'


def _axes(measured: dict[str, Any]) -> Iterator[str]:
    yield _text(20, 28, "A boot on a host that has nothing: each chunk of 256 KiB, where on the disk and when it came", css="t")
    bottom, middle = _HEIGHT - _BOTTOM, (_TOP + _HEIGHT - _BOTTOM) / 2
    yield f'<path d="M{_LEFT} {_TOP}V{bottom}H{_WIDTH - _RIGHT}" fill="none" stroke="#212529"/>'
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if measured["complete"] / step <= 12)
    for second in range(0, int(measured["complete"]) + 1, step):
        yield _text(_x(second, measured), bottom + 18, f"{second}", anchor="middle")
    yield _text((_LEFT + _WIDTH) / 2, bottom + 40, "seconds since the command line", anchor="middle")
    turn = f' transform="rotate(-90 24 {middle:.0f})"'
    yield _text(24, middle, f"place on the disk, {measured['chunks']:,} chunks", anchor="middle", turn=turn)


def _dots(measured: dict[str, Any]) -> Iterator[str]:
    """One path a colour: thousands of elements would make a browser slow."""
    ready = measured["ready"] * 1000
    for colour, wanted in ((_BEFORE, True), (_AFTER, False)):
        path = [
            f"M{_x(one.milliseconds / 1000, measured):.1f} {_y(one.first, measured):.1f}"
            f"v{min(_y(one.first + one.count, measured) - _y(one.first, measured), -0.8):.1f}"
            for one in decode(measured["came"])
            if (one.milliseconds <= ready) is wanted
        ]
        yield f'<path d="{"".join(path)}" stroke="{colour}" stroke-width="2.4" fill="none"/>'


def _instants(measured: dict[str, Any]) -> Iterator[str]:
    before = sum(one.count for one in decode(measured["came"]) if one.milliseconds <= measured["ready"] * 1000)
    words = {
        "vmm": f"VMM starts, {measured['vmm']:.1f} s",
        "ready": f"ready, {measured['ready']:.1f} s: {before:,} chunks are here",
        "complete": f"all is here, {measured['complete']:.1f} s",
    }
    for number, (name, text) in enumerate(words.items()):
        x = _x(measured[name], measured)
        yield f'<path d="M{x:.1f} {_TOP - 8}V{_HEIGHT - _BOTTOM}" stroke="#c92a2a" stroke-dasharray="3 3" fill="none"/>'
        yield _text(x, _TOP - 14 - 14 * (number == 0), text, anchor=("start", "start", "end")[number])
