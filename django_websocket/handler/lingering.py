"""Database connections that views keep for a moment while they wait, so that a client that talks need not reconnect.

A connection is kept only if a new one would do the same: no cursor is open on it, and nothing was changed for the
database session. It goes to no other conversation.
"""

from __future__ import annotations

import re
import select
import time
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

import gevent
from django.db import connections
from django.db.backends.utils import CursorWrapper
from gevent import monkey
from gevent.event import Event

from django_websocket.compat import naming
from django_websocket.transport.log import report
from django_websocket.transport.loops import PerLoop

with naming("application"):
    from django.db.backends.base.base import BaseDatabaseWrapper

MOST = 20  # connections that the waiting views of a process keep; a database server has a hundred by default
PAUSES = (0.01, 0.02, 0.05, 0.1)  # seconds between attempts to connect, after the connections that are kept were closed
CURSORS = 100  # of a connection that are noted before those that have ended are forgotten
REMEMBERED = 1000  # statements whose kind was looked up
LONG = 4000  # characters of a statement that is not remembered

# What leaves nothing behind in the database session but what ends with the transaction.
ORDINARY = re.compile(
    r"\s*(?:SELECT|INSERT|UPDATE|DELETE|WITH|SAVEPOINT|RELEASE|ROLLBACK|BEGIN|COMMIT|EXPLAIN)\b", re.I
)
# What does so all the same: settings and locks of the session, temporary tables, variables of MySQL.
LEAVES_SOMETHING = re.compile(
    r"set_config|setseed|advisory_lock|get_lock|dblink|load_extension|\binto\s+(?:temp|@)|:=", re.I
)


def leaves_nothing(sql: object) -> bool:
    """Whether a statement certainly changes nothing for the later ones of its database session."""
    if not isinstance(sql, str):  # an object of the driver's
        return False
    return _leaves_nothing(sql) if len(sql) > LONG else _remembered(sql)


def _leaves_nothing(sql: str) -> bool:
    return ORDINARY.match(sql) is not None and LEAVES_SOMETHING.search(sql) is None


_remembered = lru_cache(REMEMBERED)(_leaves_nothing)


class WatchedCursor(CursorWrapper):
    """A cursor of Django's that notes what is executed, and whether it was closed."""

    def __init__(self, cursor: Any, db: BaseDatabaseWrapper, watch: Watch) -> None:
        super().__init__(cursor, db)
        self.watch = watch
        self.ended = False
        watch.cursors.append(weakref.ref(self))

    def execute(self, sql: Any, params: Any = None) -> Any:
        """Execute a statement."""
        self.watch.note(sql)
        return super().execute(sql, params)

    def executemany(self, sql: Any, param_list: Any) -> Any:
        """Execute a statement several times."""
        self.watch.note(sql)
        return super().executemany(sql, param_list)

    def callproc(self, procname: Any, params: Any = None, kparams: Any = None) -> Any:
        """Call a stored procedure, which may do anything."""
        self.watch.changed = True
        return super().callproc(procname, params, kparams)

    def close(self) -> None:
        """Close the cursor."""
        self.ended = True
        self.cursor.close()


class Watch:
    """Makes the cursors of a database's wrapper, in place of its `make_cursor`, and knows what was done with them."""

    __slots__ = ("_wrapper", "changed", "cursors")

    def __init__(self, wrapper: BaseDatabaseWrapper) -> None:
        self._wrapper = weakref.ref(wrapper)  # which refers to this
        self.changed = False  # whether the database session differs from a new one
        self.cursors: list[weakref.ref[WatchedCursor]] = []

    def __call__(self, cursor: Any) -> WatchedCursor:
        if len(self.cursors) > CURSORS:
            self._forget_ended()
        return WatchedCursor(cursor, self.wrapper, self)

    def note(self, sql: object) -> None:
        """Note a statement that is executed."""
        if not leaves_nothing(sql):
            self.changed = True

    @property
    def wrapper(self) -> BaseDatabaseWrapper:
        """The database's wrapper, which calls this."""
        wrapper = self._wrapper()
        assert wrapper is not None
        return wrapper

    def connect(self) -> None:
        """Connect, in place of the wrapper's `connect`. If the database refuses, it is given back what is kept."""
        wrapper = self.wrapper
        self.changed = False
        connect = type(wrapper).connect
        refused = wrapper.Database.Error  # type: ignore[attr-defined]  # the driver's
        try:
            connect(wrapper)
            return
        except refused:
            if not lingering_of_loop.get().give_back_all():
                raise
        for pause in PAUSES:
            gevent.sleep(pause)  # it takes the server a moment to notice
            with suppress(refused):
                connect(wrapper)
                return
        connect(wrapper)

    def _forget_ended(self) -> None:
        self.cursors = [ref for ref in self.cursors if (cursor := ref()) is not None and not cursor.ended]

    def is_idle(self) -> bool:
        """Whether no cursor is open, and nothing was changed for the session."""
        self._forget_ended()
        return not self.cursors and not self.changed


def watch_databases() -> None:
    """Have every wrapper that is made in this process from now on know what is done with its connection."""
    make = connections.create_connection

    def create_connection(alias: str) -> BaseDatabaseWrapper:
        wrapper = make(alias)
        if closes_as_django(type(wrapper)) and not wrapper.settings_dict["OPTIONS"].get("pool"):
            watch = Watch(wrapper)
            wrapper.make_cursor = watch  # type: ignore[method-assign]
            wrapper.connect = watch.connect  # type: ignore[method-assign]
        return wrapper

    connections.create_connection = create_connection  # type: ignore[method-assign]


def closes_as_django(kind: type[BaseDatabaseWrapper]) -> bool:
    """Whether wrappers of this class close connections as Django does: others may give them back to a pool."""
    return all(getattr(kind, name).__module__.startswith("django.") for name in ("close", "_close"))


def may_linger(wrapper: BaseDatabaseWrapper) -> bool:
    """Whether the open connection of a waiting view may be kept for a moment."""
    watch = vars(wrapper).get("make_cursor")
    return (
        isinstance(watch, Watch)
        and watch.is_idle()
        and not wrapper.in_atomic_block
        and not wrapper.queries_logged  # by cursors of another kind, which are not watched
        and (wrapper.vendor == "sqlite" or hasattr(wrapper.connection, "fileno"))
    )


class Lingering:
    """The views of a loop that wait and keep connections meanwhile, the one that has waited longest first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[object, tuple[float, Sequence[BaseDatabaseWrapper]]] = OrderedDict()
        self._count = 0  # of these connections
        self._closing: dict[object, Event] = {}
        self._running = False

    def keep(self, view: object, wrappers: Sequence[BaseDatabaseWrapper], seconds: float) -> bool:
        """Close the connections of `view` in some seconds, unless it takes them back before.

        Return False if there are too many already. To give the oldest ones back instead would be worse: where more
        clients talk than there is room for, each would find its own gone.
        """
        if self._count + len(wrappers) > MOST or view in self._kept:  # of another function of its view, just now
            return False
        self._kept[view] = time.monotonic() + seconds, wrappers
        self._count += len(wrappers)
        if not self._running:
            self._running = True
            gevent.spawn(self._run)
        return True

    def give_back_all(self) -> int:
        """Close all connections that are kept, and return how many there were."""
        count = self._count
        while self._kept:
            self._close(next(iter(self._kept)))
        return count

    def take_back(self, view: object) -> Sequence[BaseDatabaseWrapper]:
        """Leave the connections of `view` to it, which goes on. Those that the server has closed are closed here."""
        if view in self._kept:
            wrappers = self._take(view)
            for wrapper in wrappers:
                if has_hung_up(wrapper.connection):
                    close(wrapper)
            return wrappers
        if view in self._closing:
            self._closing[view].wait()
        return ()

    def _take(self, view: object) -> Sequence[BaseDatabaseWrapper]:
        _, wrappers = self._kept.pop(view)
        self._count -= len(wrappers)
        return wrappers

    def _run(self) -> None:
        try:
            while self._kept:
                view, (deadline, _) = next(iter(self._kept.items()))
                pause = deadline - time.monotonic()
                if pause > 0:
                    gevent.sleep(pause)
                else:
                    self._close(view)
        finally:
            self._running = False

    def _close(self, view: object) -> None:
        """Close the connections of a waiting view, which may go on meanwhile."""
        wrappers = self._take(view)
        closed = self._closing[view] = Event()
        try:
            for wrapper in wrappers:
                wrapper.inc_thread_sharing()
                try:
                    close(wrapper)
                finally:
                    wrapper.dec_thread_sharing()
        finally:
            del self._closing[view]
            closed.set()


lingering_of_loop = PerLoop(Lingering)


def close(wrapper: BaseDatabaseWrapper) -> None:
    """Close a connection. Does not raise: a driver may, when its server has ended the connection."""
    try:
        wrapper.close()
    except Exception as error:
        report("databases", None, "closing a connection failed", repr(error))


def has_hung_up(connection: Any) -> bool:
    """Whether the server of a database has closed a connection, or has said something that nobody has asked for."""
    fileno = getattr(connection, "fileno", None)
    if fileno is None:  # sqlite
        return False
    poll = monkey.get_original("select", "poll")()
    try:
        poll.register(fileno(), select.POLLIN)
        return bool(poll.poll(0))
    except Exception:  # the driver's own, for a connection that it knows to be lost
        return True
