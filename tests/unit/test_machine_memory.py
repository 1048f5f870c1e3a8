"""Memory that a machine cannot have."""

import os

import pytest

from castoff.errors import Invalid
from castoff.machine.memory import check_memory


def test_what_boots_and_fits_is_let_through() -> None:
    """From 32 MiB to all of the host's."""
    check_memory(32 << 20)
    check_memory(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


@pytest.mark.parametrize(("memory", "why"), [(0, "cannot boot"), ((32 << 20) - 1, "cannot boot"), (1 << 60, "does not fit")])
def test_what_cannot_be_is_refused_in_one_line(memory: int, why: str) -> None:
    """Before anything is fetched, with the figure."""
    with pytest.raises(Invalid, match=why):
        check_memory(memory)
