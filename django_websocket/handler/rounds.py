"""A greenlet that makes its rounds while there are connections that it is needed for."""

from __future__ import annotations

import gevent
from gevent.event import Event

from django_websocket import conf


class Rounds:
    """Runs a greenlet while `needed()`, with a round every `WEBSOCKET_LOGIN_CHECK_INTERVAL` seconds.

    A subclass says what that means, and calls `changed()` whenever `needed()` may have changed.
    """

    def __init__(self) -> None:
        self._not_needed = Event()
        self._running = False

    def needed(self) -> bool:
        """Return whether there is anything to look after."""
        raise NotImplementedError

    def begin(self) -> None:
        """Do what comes before the first interval."""

    def round(self) -> None:
        """Do what comes after each interval."""
        raise NotImplementedError

    def end(self) -> None:
        """Do what comes when there is nothing left to look after."""

    def changed(self) -> None:
        """Start the greenlet, or let it end, without waiting for it."""
        if not self.needed():
            self._not_needed.set()
            return
        self._not_needed.clear()
        if not self._running:
            self._running = True
            gevent.spawn(self._run)

    def _run(self) -> None:
        try:
            self.begin()
            while self.needed():
                if not self._not_needed.wait(conf.current().login_check_interval):
                    self.round()
        finally:
            self._running = False
            self.end()
