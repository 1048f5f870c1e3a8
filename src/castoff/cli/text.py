"""How figures and tables look: sizes, durations, ages, columns. Plain text, no colours of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["columns", "duration", "rate", "size"]

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def size(amount: float) -> str:
    """Bytes for people, in powers of 1000 as disks and registries count: ``1.27 GB``."""
    value = float(amount)
    for unit in _UNITS:
        if abs(value) < 999.5 or unit == _UNITS[-1]:
            break
        value /= 1000
    if unit == "B":
        return f"{value:.0f} B"
    return f"{value:.{_digits(value)}f} {unit}"


def rate(bytes_per_second: float) -> str:
    """A transfer rate: ``212 MB/s``."""
    return f"{size(bytes_per_second)}/s"


def duration(seconds: float) -> str:
    """A time for people: ``0.3 ms``, ``42 ms``, ``1.27 s``, ``3 min 12 s``, ``2 h 05 min``."""
    milliseconds = seconds * 1000
    if milliseconds < 9.95:
        return f"{milliseconds:.1f} ms"
    if milliseconds < 999.5:
        return f"{milliseconds:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.{_digits(seconds)}f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def columns(rows: Iterable[Sequence[str]], *, heads: Sequence[str] = (), right: Sequence[int] = ()) -> str:
    """A table in columns two spaces apart, without lines; the last column is not padded.

    Args:
        rows: Cells of each row.
        heads: The columns' names, in capitals by custom.
        right: Indexes of columns that are figures and lean right.
    """
    table = [list(heads), *map(list, rows)] if heads else [list(row) for row in rows]
    if not table:
        return ""
    widths = [max(len(row[index]) for row in table) for index in range(len(table[0]))]
    lines = []
    for row in table:
        cells = [
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _digits(value: float) -> int:
    """Decimals for three significant digits."""
    return 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
