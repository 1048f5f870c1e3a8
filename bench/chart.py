"""The results as one SVG, written by hand so that nobody needs a plotting library to read or to make it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from bench.results import Row, figure

__all__ = ["svg"]

_WIDTH = 1060
_LEFT = 520
_ROW = 24
_COLOURS = {"castoff": "#0b7285", "tree": "#adb5bd", "mke2fs": "#dee2e6", "met": "#2b8a3e", "missed": "#c92a2a"}


def svg(rows: Sequence[Row]) -> str:
    """Two panels: seconds from reference to bootable rootfs, and each target with how far it is met."""
    body: list[str] = []
    bottom = 0
    for panel in (_contenders(rows), _targets(rows)):
        height, parts = panel
        body.append(f'<g transform="translate(0,{bottom})">{"".join(parts)}</g>')
        bottom += height
    style = "text{font:13px system-ui,sans-serif;fill:#212529}.t{font-size:16px;font-weight:600}.s{fill:#495057;font-size:12px}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {bottom}" width="{_WIDTH}" height="{bottom}" role="img">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>{"".join(body)}</svg>\n'
    )


def _text(x: float, y: float, text: str, *, css: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{f" class={css!r}" if css else ""}>{escape(text)}</text>'


def _bar(x: float, y: float, width: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="{_ROW - 8}" fill="{colour}"/>'


def _contenders(rows: Sequence[Row]) -> tuple[int, list[str]]:
    """A bar a contender, from the first row that measured them."""
    found = next((row.measured["contenders"] for row in rows if "contenders" in row.measured), None)
    if found is None:
        return 0, []
    longest = max(tree + mke2fs for tree, mke2fs in found.values())
    scale = (_WIDTH - _LEFT - 90) / longest
    parts = [_text(20, 34, "Image reference to bootable rootfs, cold, seconds (light: mke2fs -d)", css="t")]
    for number, (name, (tree, mke2fs)) in enumerate(sorted(found.items(), key=lambda item: sum(item[1]))):
        y = 52 + number * _ROW
        parts.append(_text(_LEFT - 10, y + 13, name, anchor="end"))
        parts.append(_bar(_LEFT, y, tree * scale, _COLOURS["castoff" if name == "castoff" else "tree"]))
        if mke2fs:
            parts.append(_bar(_LEFT + tree * scale, y, mke2fs * scale, _COLOURS["mke2fs"]))
        parts.append(_text(_LEFT + (tree + mke2fs) * scale + 6, y + 13, f"{tree + mke2fs:.1f}", css="s"))
    return 60 + len(found) * _ROW + 10, parts


def _lines(rows: Sequence[Row]) -> Iterator[tuple[str, float, str, str]]:
    for row in rows:
        if row.target is not None:
            figures = f"{figure(row.value, row.unit)} ({row.target.want} {figure(row.target.figure, row.unit)})"
            yield row.name, row.target.share(row.value), row.verdict, figures


def _targets(rows: Sequence[Row]) -> tuple[int, list[str]]:
    """A bar a target; the line is where it is met, and bars end at four times as good."""
    lines = list(_lines(rows))
    if not lines:
        return 0, []
    unit = (_WIDTH - _LEFT - 190) / 4
    bottom = 52 + len(lines) * _ROW
    parts = [_text(20, 34, "Each target: how many times as good (line: just met)", css="t")]
    for number, (name, share, verdict, figures) in enumerate(lines):
        y = 52 + number * _ROW
        width = min(share, 4) * unit
        parts.append(_text(_LEFT - 10, y + 13, name, anchor="end", css="s"))
        parts.append(_bar(_LEFT, y, width, _COLOURS[verdict]))
        parts.append(_text(_LEFT + max(width, unit) + 6, y + 13, figures, css="s"))  # right of the line, which it would cross
    parts.append(
        f'<line x1="{_LEFT + unit:.1f}" x2="{_LEFT + unit:.1f}" y1="46" y2="{bottom}" stroke="#212529" stroke-dasharray="3 3"/>'
    )
    return bottom + 16, parts
