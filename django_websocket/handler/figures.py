"""The figures of this process and of its whole server: what was counted, and what there is at the moment."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from math import fsum
from typing import Any, NamedTuple

from gevent.lock import Semaphore

from django_websocket.pubsub import process
from django_websocket.pubsub.channels import RESERVED
from django_websocket.transport.connection import Connection
from django_websocket.transport.counts import BOUNDS, counts
from django_websocket.transport.log import report
from django_websocket.transport.shared import open_connections
from django_websocket.transport.slots import shared
from django_websocket.transport.state import CLOSED
from django_websocket.transport.turns import let_others_run_if_spent

from .counting import CARRIED

__all__ = ["Figures", "gather", "of_server"]

PIECE = 64  # connections or channels between two looks at the clock
RECENT = 60.0  # seconds for which a broker counts as unusable that has failed to publish, if nobody tries it again

Totals = dict[str, dict[tuple[str, ...], float]]  # by name and labels


class Figures(NamedTuple):
    """What can be known of one process, or of several.

    `totals` and `gauges` have the number for each set of labels. `histograms` have the sum, and the number of values in
    each bucket. `processes` are those whose gauges are in it.
    """

    totals: Totals
    histograms: dict[str, tuple[float, list[int]]]
    gauges: Totals
    processes: tuple[int, ...] = ()

    def to_json(self) -> Any:
        """Return it in a form that JSON can express."""
        return [_listed(self.totals), self.histograms, _listed(self.gauges)]

    def without_gauges(self) -> Figures:
        """Return what stays when the process has ended."""
        return Figures(self.totals, self.histograms, {})


NONE = Figures({}, {}, {})


def from_json(value: Any, process: int) -> Figures:
    """Return what `to_json` has made, of a process, which is 0 if it has ended."""
    totals, histograms, gauges = value
    found = Figures(
        {name: {tuple(labels): number for labels, number in listed} for name, listed in totals.items()},
        {name: (total, numbers) for name, (total, numbers) in histograms.items()},
        {name: {tuple(labels): number for labels, number in listed} for name, listed in gauges.items()},
        (process,),
    )
    return found if process else found.without_gauges()


def _listed(totals: Totals) -> dict[str, list[tuple[tuple[str, ...], float]]]:
    return {name: list(numbers.items()) for name, numbers in totals.items()}


def added(all_figures: Iterable[Figures]) -> Figures:
    """Return the sum of figures, in whatever order they come. Of `broker_up`, the least."""
    totals: Totals = {}
    gauges: Totals = {}
    histograms: dict[str, tuple[float, list[int]]] = {}
    sums: dict[str, list[float]] = {}
    processes: list[int] = []
    for figures in all_figures:
        for result, more in ((totals, figures.totals), (gauges, figures.gauges)):
            for name, numbers in more.items():
                of_name = result.setdefault(name, {})
                for labels, number in numbers.items():
                    before = of_name.get(labels)
                    if before is None:
                        of_name[labels] = number
                    else:
                        of_name[labels] = min(before, number) if name == "broker_up" else before + number
        for name, (value, buckets) in figures.histograms.items():
            sums.setdefault(name, []).append(value)
            _, buckets_before = histograms.get(name, (0.0, [0] * len(buckets)))
            # Added one by one, the same sums would differ in the last digit from worker to worker, and a counter that
            # becomes less is a restart to Prometheus.
            histograms[name] = fsum(sums[name]), [a + b for a, b in zip(buckets_before, buckets, strict=False)]
        processes += figures.processes
    return Figures(totals, histograms, gauges, tuple(processes))


def gather(before: Figures = NONE) -> Figures:
    """Return what this process has counted, and what there is in it; for a greenlet, since others run meanwhile.

    No total is less than in `before`, the figures of a moment ago: what ends while this looks is counted the next time.
    """
    totals: Totals = {name: dict(numbers) for name, numbers in counts.totals.items()}
    histograms = {name: (histogram.sum, list(histogram.counts)) for name, histogram in counts.histograms.items()}
    received = sent = received_bytes = sent_bytes = unsent = 0
    connections = tuple(open_connections())
    for first in range(0, len(connections), PIECE):
        for connection in connections[first : first + PIECE]:
            if isinstance(connection, Connection) and connection.state is not CLOSED:  # else it was counted at its end
                more_received, more_sent, more_received_bytes, more_sent_bytes = connection.carried
                received += more_received
                sent += more_sent
                received_bytes += more_received_bytes
                sent_bytes += more_sent_bytes
                unsent += connection.unsent_bytes
        let_others_run_if_spent()
    for name, number in zip(CARRIED, (received, sent, received_bytes, sent_bytes), strict=True):
        numbers = totals.setdefault(name, {})
        known = before.totals.get(name, {}).get((), 0)
        numbers[()] = max(known, numbers.get((), 0) + number)
    gauges: Totals = {"connections": {(view,): number for view, number in counts.open.items()}}
    gauges["outbox_bytes"] = {(): unsent}
    if counts.listens:
        gauges["listens"] = {(): 1}
    gauges.update({name: {(): number} for name, number in _of_brokers().items()})
    return Figures(totals, histograms, gauges, (os.getpid(),))


def _of_brokers() -> Mapping[str, float]:
    """Return what there is of channels, and whether the brokers can be used."""
    channels = subscriptions = members = 0
    up = time.monotonic() - counts.publishing_failed > RECENT
    for (pid, _, _), hub in tuple(process.hubs.items()):
        if pid != os.getpid():
            continue
        of_hub = tuple(hub.channels.items())
        for first in range(0, len(of_hub), PIECE):
            for name, channel in of_hub[first : first + PIECE]:
                up = up and not channel.away
                if not name.startswith(RESERVED):
                    channels += 1
                    subscriptions += len(channel.members)
            let_others_run_if_spent()
        members += 0 if hub.presence is None else hub.presence.members
    return {"channels": channels, "subscriptions": subscriptions, "presence_members": members, "broker_up": int(up)}


class OwnSlot:
    """This process's place among the workers of its server; it goes on counting where another one has ended.

    `number` is that of its slot, None if it has none.
    """

    def __init__(self, number: int | None) -> None:
        self.number = number
        slots = shared()
        left = None if slots is None or number is None else slots.read(number)
        self._inherited = NONE if left is None else from_json(left.figures, 0)
        self._last = NONE
        self._gathering = Semaphore()  # a look that began earlier must not replace a later one

    def refresh(self, *, last: bool = False) -> Figures:
        """Return the figures of this process and of those that had its slot before, as the others now find them there.

        What one worker has told nobody learns later from another one as if it had not happened. The `last` time, only
        what was counted stays.
        """
        with self._gathering:
            self._last = gather(self._last)
            figures = added((self._inherited, self._last))
            slots = shared()
            if slots is not None and self.number is not None:
                if last:
                    fits = slots.leave(self.number, figures.without_gauges().to_json())
                else:
                    fits = slots.write(self.number, figures.to_json())
                if not fits:
                    report("metrics", None, "the figures of this worker are too large for the others to see them")
            return figures


own = OwnSlot(None)  # until the worker has its own


def begin(number: int | None) -> OwnSlot:
    """Begin to count in a worker that has this slot, None for a server that has only this process."""
    global own
    counts.begin()
    counts.wanted = True
    own = OwnSlot(number)
    return own


def of_server() -> Figures:
    """Return the figures of all workers of this server: this one's own of now, the others' of up to a second ago."""
    slots = shared()
    others = [] if slots is None else slots.read_all(without=own.number)
    return added((own.refresh(), *(from_json(left.figures, left.process) for left in others)))


def bounds_of(name: str) -> Iterable[float]:
    """Return the upper bounds of a histogram's buckets."""
    return BOUNDS[name]
