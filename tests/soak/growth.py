"""Judges whether something grows that should not: memory, descriptors, greenlets, connections of databases, keys.

What a process holds rises and falls with its clients, and each number has noise. So everybody leaves now and then, and
only these lulls are compared, in which nobody is connected: what is left then was left behind. Of a process that was
replaced, each generation is judged by itself.

A number grows if two things are true. It rises more often than it falls, which Kendall's test tells without a notion of
what the noise is like. And the rise, by the median of all slopes between two lulls (Theil and Sen), is more than the
number may have: a little for the process, for caches that fill and memory in pieces, and a little for each connection
that it has had meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from statistics import median
from typing import NamedTuple

WARM_UP = 1 / 3  # of a process's life: caches fill, memory is cut into pieces, and histories reach their limits
LULLS = 8  # that are needed behind it; of fewer, Kendall's test is never sure enough
CERTAIN = 2.33  # standard deviations: of a hundred numbers that do not grow, one is taken for growing


class Limit(NamedTuple):
    """What a number may grow by, without being a leak: for the process, and for each connection in the meantime."""

    process: float
    connection: float


# One object for each connection is several times what is allowed, and shows in ten minutes. A piece of memory, or a
# kibibyte in whatever pieces, is two to three times of it in two hours: memory itself is the coarsest measure. A
# descriptor or a greenlet may be there for a moment more, but each client would leave one.
LIMITS: Mapping[str, Limit] = {
    "memory": Limit(3072.0, 0.25),  # KiB; allocators take and return a mebibyte or two at once, at the busiest moments
    "blocks": Limit(1000.0, 0.25),  # pieces of memory that Python has given to objects
    "objects": Limit(200.0, 0.1),  # that the garbage collector knows
    "descriptors": Limit(3.0, 0.0),
    "greenlets": Limit(3.0, 0.0),
    "databases": Limit(0.5, 0.0),  # open files of it
    "channels": Limit(1.0, 0.0),
    "clients": Limit(2.0, 0.0),  # connections of Redis
    "keys": Limit(4.0, 0.0),
}

# What must be gone in each lull, whatever it was before, and the word for one of them.
NOTHING_LEFT = {"connections": "connection", "views": "view", "databases": "database connection"}


class Lull(NamedTuple):
    """What a process held while nobody was connected; `connections` is how many it has had before."""

    time: float
    connections: float
    values: Mapping[str, float]


class Trend(NamedTuple):
    """How a number of a process has developed."""

    process: str
    name: str
    first: float  # median of the lulls in the first half, behind the warm-up
    last: float
    rise: float  # over all of them, by the median slope
    limit: float
    certainty: float  # standard deviations from what would be by chance
    lulls: int
    connections: float
    seconds: float

    @property
    def grows(self) -> bool:
        """Whether this is a leak."""
        return self.rise > self.limit and self.certainty > CERTAIN


def kendall(values: Sequence[float]) -> float:
    """Return by how many standard deviations the values rise more often than they fall, with regard to ties."""
    score = sum((later > earlier) - (later < earlier) for earlier, later in combinations(values, 2))
    count = len(values)
    ties = [values.count(value) for value in set(values)]
    variance = (count * (count - 1) * (2 * count + 5) - sum(tie * (tie - 1) * (2 * tie + 5) for tie in ties)) / 18
    return (score - math.copysign(1, score)) / math.sqrt(variance) if score and variance > 0 else 0.0


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the median of the slopes between all points."""
    return median((y - x) / (end - begin) for (begin, x), (end, y) in combinations(points, 2) if end > begin)


def trends_of(process: str, lulls: Sequence[Lull], began: float) -> list[Trend]:
    """Return how the numbers of a process that began at a moment have developed; none if that cannot be told."""
    if not lulls:
        return []
    warm = began + (lulls[-1].time - began) * WARM_UP
    lulls = [lull for lull in lulls if lull.time >= warm]
    if len(lulls) < LULLS:
        return []
    seconds = lulls[-1].time - lulls[0].time
    connections = lulls[-1].connections - lulls[0].connections
    trends = []
    for name, limit in LIMITS.items():
        points = [(lull.time, lull.values[name]) for lull in lulls if name in lull.values]
        if len(points) < LULLS:
            continue
        values = [value for _, value in points]
        half = len(values) // 2
        trends.append(
            Trend(
                process,
                name,
                median(values[:half]),
                median(values[-half:]),
                slope(points) * seconds,
                limit.process + limit.connection * connections,
                kendall(values),
                len(points),
                connections,
                seconds,
            )
        )
    return trends


def what_grows(trends: Iterable[Trend]) -> list[str]:
    """Return a sentence for each number that grows."""
    return [
        f"grows: {trend.name} of {trend.process}: by {trend.rise:.0f} in {trend.seconds:.0f} s and "
        f"{trend.connections:.0f} connections; up to {trend.limit:.0f} would be no leak"
        for trend in trends
        if trend.grows
    ]


def what_is_left(process: str, lulls: Iterable[Lull]) -> list[str]:
    """Return a sentence for each lull in which a process held something of clients that had all left."""
    return [
        f"left behind: {process} at {lull.time:.3f}: {lull.values[name]:.0f} {word}{'s' * (lull.values[name] != 1)}"
        for lull in lulls
        for name, word in NOTHING_LEFT.items()
        if lull.values.get(name)
    ]
