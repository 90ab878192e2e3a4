"""What a process counts besides the messages and bytes of each connection: numbers in memory, without locks.

Nothing is counted until somebody wants the figures. `handler/figures.py` gathers them, and `metrics.py` says what each
of them means.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence

__all__ = ["BOUNDS", "NO_VIEW", "Counts", "Histogram", "count_refusal", "counts"]

MAX_LABELS = 200  # sets of labels of one counter; further ones count as one, since a client may make some up
OTHER = "other"
NO_VIEW = "none"
SHORT = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LONG = (1.0, 10.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 24 * 3600.0)

# The histograms, with the upper bounds of their buckets in seconds.
BOUNDS: Mapping[str, Sequence[float]] = {
    "handshake_duration_seconds": SHORT,
    "connection_duration_seconds": LONG,
    "ping_rtt_seconds": SHORT,
    "publish_duration_seconds": SHORT,
    "delivery_lag_seconds": SHORT,
    "hub_lag_seconds": SHORT,
}


class Histogram:
    """How many values were up to each bound, above the one before it, and how many above the last; and their sum."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value


class Counts:
    """What this process has counted. Nothing here waits or raises, so that the hub may call it.

    `totals` has, by the name of a counter, the number for each set of labels; `open` the connections of each view.
    `wanted` says whether anybody wants to know: until then, nothing is counted.
    """

    def __init__(self) -> None:
        self.wanted = False
        self.begin()

    def begin(self) -> None:
        """Begin at zero."""
        self.totals: dict[str, dict[tuple[str, ...], int]] = {}
        self.histograms = {name: Histogram(bounds) for name, bounds in BOUNDS.items()}
        self.open: dict[str, int] = {}
        self.publishing_failed = -math.inf  # when the last attempt did, in seconds of time.monotonic()
        self.listens = False  # whether this process answers for all at the port of their own

    def add(self, name: str, *labels: str, by: int = 1) -> None:
        """Count something `by` times. Each label is one of a few texts, or is bounded here."""
        if not self.wanted:
            return
        numbers = self.totals.setdefault(name, {})
        if labels not in numbers and len(numbers) >= MAX_LABELS:
            labels = (OTHER,) * len(labels)
        numbers[labels] = numbers.get(labels, 0) + by

    def observe(self, name: str, seconds: float) -> None:
        """Count a value in a histogram."""
        if self.wanted:
            self.histograms[name].observe(seconds)

    def opened(self, view: str) -> str:
        """Count a connection of a view; return the label under which it counts."""
        if view not in self.open and len(self.open) >= MAX_LABELS:
            view = OTHER
        self.open[view] = self.open.get(view, 0) + 1
        return view

    def closed(self, label: str) -> None:
        """Count that such a connection has ended."""
        if label in self.open:  # else it is of an earlier server of the same process, in a test
            self.open[label] -= 1


def count_refusal(status: int) -> None:
    """Count a handshake that was refused before there was a view."""
    counts.add("handshakes", NO_VIEW, str(status))


counts = Counts()
