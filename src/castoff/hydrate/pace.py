"""How fast a source is, and so how far ahead of a miss it pays to read.

A miss that is alone costs the round trip and its own bytes. While it is under way the link could carry round trip times
rate bytes more: that is how much is worth fetching behind it. Without a round trip it would only fill the link.
"""

from __future__ import annotations

from collections import deque

__all__ = ["Pace"]

_SAMPLES = 32


class Pace:
    """Estimates round trip and rate from what requests took."""

    def __init__(self) -> None:
        self._single: deque[tuple[int, float]] = deque(maxlen=_SAMPLES)
        self._rate: deque[float] = deque(maxlen=_SAMPLES)
        self._chunk = 0.0

    def took(self, size: int, chunks: int, seconds: float) -> None:
        """A request for ``chunks`` chunks of ``size`` bytes in the pack took so long, to the last byte."""
        if seconds <= 0 or not chunks:
            return
        self._chunk += (size / chunks - self._chunk) * (0.1 if self._chunk else 1.0)
        self._single.append((size, seconds))
        self._rate.append(size / seconds)

    @property
    def rate(self) -> float:
        """Bytes a second of the best request of late, its round trip included: too low rather than too high."""
        return max(self._rate, default=0.0)

    @property
    def round_trip(self) -> float:
        """Seconds of a request that are not its bytes: from the two extremes of size and time of late."""
        if len(self._single) < 4:
            return 0.0
        sizes = sorted(self._single)
        small, large = sizes[: len(sizes) // 2], sizes[len(sizes) // 2 :]
        size_a, time_a = min(small, key=lambda sample: sample[1])
        size_b, time_b = min(large, key=lambda sample: sample[1])
        if size_b <= size_a or time_b <= time_a:
            return min(time_a, time_b)
        slope = (time_b - time_a) / (size_b - size_a)
        return max(time_a - slope * size_a, 0.0)

    def ahead(self, most: int) -> int:
        """Chunks after a miss that are worth fetching with it."""
        if not self._chunk or not most:
            return 0
        return min(int(self.round_trip * self.rate / self._chunk), most)
