"""What the background makes of the kernel's counts of processor pressure."""

from __future__ import annotations

from pathlib import Path

import pytest

from castoff.hydrate.pressure import CPU, Pressure, rest


class Host:
    """Its clock, and what its kernel tells."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = 100.0
        self.waited = 7.0
        self.write()

    def write(self) -> None:
        some = f"some avg10=0.00 avg60=0.00 avg300=0.00 total={int(self.waited * 1e6)}\n"
        self.path.write_text(some + "full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")

    def go_on(self, seconds: float, waited: float) -> None:
        self.now += seconds
        self.waited += waited
        self.write()


def test_the_share_is_that_of_the_time_since_the_last_look(tmp_path: Path) -> None:
    """And of half a second at least: looks between give what was known."""
    host = Host(tmp_path / "cpu")
    pressure = Pressure(host.path, lambda: host.now)
    assert pressure.share() == 0.0
    host.go_on(2.0, 1.5)
    assert pressure.share() == pytest.approx(0.75)
    host.go_on(0.1, 0.0)
    assert pressure.share() == pytest.approx(0.75)
    host.go_on(0.9, 0.1)
    assert pressure.share() == pytest.approx(0.1)


def test_a_kernel_that_does_not_count_means_no_pressure(tmp_path: Path) -> None:
    """No file, one that cannot be read now (PSI is switched off: EOPNOTSUPP), or another text."""
    now = [0.0]
    for path in (tmp_path / "none", tmp_path):
        pressure = Pressure(path, lambda: now[0])
        now[0] += 5.0
        assert pressure.share() == 0.0
    (tmp_path / "odd").write_text("full avg10=0.00 total=1\n")
    assert Pressure(tmp_path / "odd").share() == 0.0


@pytest.mark.skipif(not CPU.exists(), reason="this kernel does not count pressure")
def test_this_kernel_is_understood() -> None:
    """Its file has what is looked for."""
    now = [0.0]
    pressure = Pressure(CPU, lambda: now[0])
    now[0] = 1e-3
    assert pressure.share() == 0.0
    now[0] = 1e9
    assert 0.0 <= pressure.share() < 1e-3


def test_it_rests_the_longer_the_more_waits_and_never_for_good() -> None:
    """Not at all up to half of the time; nine times as long as it worked at worst."""
    assert rest(2.0, 0.0) == rest(2.0, 0.5) == 0.0
    assert rest(2.0, 0.75) == pytest.approx(2.0)
    assert rest(2.0, 1.0) == pytest.approx(18.0)
    rests = [rest(1.0, share / 100) for share in range(101)]
    assert rests == sorted(rests)
