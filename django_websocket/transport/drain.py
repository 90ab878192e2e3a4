"""The end of a worker: its clients are told that the service restarts, and what they began may end."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection

import gevent

from .clients import ClientGreenlet
from .shared import open_connections, shared_of_loop
from .slow import WorkerStops
from .waiting import ViewGreenlet, services, unfinished

MARGIN = 2.0  # seconds before gunicorn's graceful_timeout at which the worker is gone; half of a shorter one
STEPS = 20  # groups in which clients are told
HEAD_GRACE = 1.0  # seconds in which a request may still begin
CANCELLATION = 1.0  # seconds for the `finally` blocks of coroutines; the margin has room for it
LOOK = 0.05  # seconds between two looks at what goes on
PAUSE = 1.0  # seconds after which clients may come back: by then, the next process usually listens
COMEBACKS = 500  # clients that may come back in a second; it could be four times as many, but they will ask for much


def drain_time(graceful_timeout: float) -> float:
    """Return the seconds that conversations have to end, of those after which gunicorn kills the worker."""
    return graceful_timeout - min(MARGIN, graceful_timeout / 2)


class Drain:
    """Ends all that a worker has begun, within `seconds`: neither a stuck view nor a dead client holds it up.

    `window` is the time in seconds over which clients are told, so that they do not come back all at once; it may be
    changed while the drain runs. `serving` are the clients whose requests are being served. `notify` is called again
    and again, to show that the worker lives.
    """

    def __init__(
        self, serving: Collection[ClientGreenlet], seconds: float, window: float, notify: Callable[[], object]
    ) -> None:
        self._serving = serving
        self._seconds = seconds
        self._notify = notify
        self._comeback = 2.0  # seconds over which clients are to come back
        self.window = window

    def run(self) -> None:
        """Tell the clients (1012), and return when all is over or the time is."""
        begin = time.monotonic()
        end = begin + self._seconds
        shared_of_loop().draining = True
        self._tell()
        while self._something_goes_on() and time.monotonic() < end:
            for connection in tuple(open_connections()):  # one may have opened meanwhile
                connection.restart(PAUSE, self._comeback)
            if time.monotonic() > begin + HEAD_GRACE:
                for client in tuple(self._serving):
                    if client.waits_for_head:
                        client.kill(WorkerStops(), block=False)
            self._notify()
            gevent.sleep(LOOK)
        self._cancel()
        self._stop_services()

    def _cancel(self) -> None:
        """Cancel the coroutines that have not ended, and give them a moment for their `finally` blocks."""
        end = time.monotonic() + CANCELLATION
        coroutines = {each for each in unfinished if hasattr(each, "cancel")}
        for each in coroutines:
            each.cancel()
        while coroutines & unfinished and time.monotonic() < end:
            self._notify()
            gevent.sleep(LOOK)

    def _stop_services(self) -> None:
        """Give what has served all clients a moment to end."""
        end = time.monotonic() + CANCELLATION
        for service in tuple(services):
            service.stop()
        while services and time.monotonic() < end:
            self._notify()
            gevent.sleep(LOOK)

    def _tell(self) -> None:
        connections = list(open_connections())
        random.shuffle(connections)
        self._comeback = max(self._comeback, len(connections) / COMEBACKS)
        for number, connection in enumerate(connections, 1):
            connection.restart(PAUSE, self._comeback)
            if number * STEPS // len(connections) != (number - 1) * STEPS // len(connections):
                self._notify()
                gevent.sleep(min(self.window, self._seconds / 2) / STEPS * random.uniform(0.5, 1.0))

    def _something_goes_on(self) -> bool:
        return bool(open_connections() or ViewGreenlet.running or self._serving or unfinished)
