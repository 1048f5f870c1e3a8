"""Figures and tables as people read them."""

import pytest

from castoff.cli.exits import printable
from castoff.cli.text import columns, duration, size


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (999_499, "999 kB"),
        (999_999, "1.00 MB"),
        (1_270_000_000, "1.27 GB"),
        (-1500, "-1.50 kB"),
        (3e18, "3000 PB"),
    ],
)
def test_sizes_have_three_digits_and_a_unit(amount: int, text: str) -> None:
    """A size never shows four digits before its unit grows, save beyond the last unit."""
    assert size(amount) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0003, "0.3 ms"),
        (0.00996, "10 ms"),
        (0.9996, "1.00 s"),
        (59.96, "1 min 00 s"),
        (192, "3 min 12 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_change_their_unit_where_people_do(seconds: float, text: str) -> None:
    """A duration rounds before it chooses its unit, so that no `1000 ms` and no `60 s` appears."""
    assert duration(seconds) == text


def test_columns_line_up_and_figures_lean_right() -> None:
    """Each column is as wide as its widest cell; nothing trails."""
    table = columns([("a", "1", "x"), ("bbb", "22", "")], heads=("NAME", "SIZE", "NOTE"), right=(1,))
    assert table.splitlines() == ["NAME  SIZE  NOTE", "a        1  x", "bbb     22"]


def test_a_table_without_rows_is_its_heads() -> None:
    """An empty answer still says what it would have held; without heads it is nothing."""
    assert columns([], heads=("NAME", "SIZE")) == "NAME  SIZE"
    assert columns([]) == ""


def test_control_characters_of_strangers_are_written_out() -> None:
    """An image's name can neither start a new line nor steer the terminal."""
    assert printable("a\x1b[31m\nb\u202ec") == "a\\x1b[31m\\nb\\u202ec"
