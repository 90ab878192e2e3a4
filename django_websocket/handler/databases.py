"""The databases of a view: shared with the middleware around it, given back while it waits, closed when it ends."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Sequence
from typing import Any

import gevent
from django.db import connections
from django.db.backends.signals import connection_created
from gevent import getcurrent, monkey

from django_websocket import conf
from django_websocket.compat import naming

from .lingering import close, lingering_of_loop, may_linger

with naming("application"):
    from django.db.backends.base.base import BaseDatabaseWrapper

NONE: dict[str, int] = {}  # one for all views without a database
# Attributes of a database's wrapper that refer back to it, each with the name of the reference.
BACK = {
    **dict.fromkeys(("client", "creation", "features", "introspection", "ops", "validation"), "connection"),
    "wrap_database_errors": "wrapper",
}

# Databases that another thread uses at the same time, so that a transaction may be that thread's: a test shares those
# in memory with its live server.
used_elsewhere: set[BaseDatabaseWrapper] = set()


class Databases:
    """The database wrappers of one view.

    `shared` are those that the chain of middleware had when the view began: the view uses the same objects, so that
    what middleware has set on them holds in it. `used` is false as long as the view has no database at all, which
    saves the look at all of them.
    """

    __slots__ = ("_depths", "_outer", "_waited", "shared", "used")

    def __init__(self) -> None:
        """Note the wrappers of the running greenlet, the chain's."""
        self.shared: Sequence[BaseDatabaseWrapper] = connections.all(initialized_only=True) or ()
        self.used = bool(self.shared)
        self._outer = {each.alias: n for each in self.shared if (n := len(each.execute_wrappers))} or NONE
        self._waited = -math.inf  # since when, at last, with an open connection
        self.note_transactions()

    def note_transactions(self) -> None:
        """Note how many atomic blocks the chain has entered: those that the view enters later are its own."""
        self._depths = {wrapper.alias: len(wrapper.atomic_blocks) for wrapper in self.shared} or NONE

    def share(self) -> None:
        """Let another greenlet use the wrappers of the chain."""
        for wrapper in self.shared:
            wrapper.inc_thread_sharing()

    def adopt(self) -> None:
        """Make the shared wrappers those of the running greenlet."""
        for wrapper in self.shared:
            connections[wrapper.alias] = wrapper

    def unshare(self) -> None:
        """Undo `share`."""
        for wrapper in self.shared:
            wrapper.dec_thread_sharing()

    def here(self) -> Sequence[BaseDatabaseWrapper]:
        """Return the wrappers of the running greenlet, the view's."""
        return connections.all(initialized_only=True) if self.used else ()

    def check_no_atomic(self, what: str, wrappers: Sequence[BaseDatabaseWrapper] | None = None) -> None:
        """Raise RuntimeError, which says `what` is impossible, if the view is in a transaction of its own."""
        for wrapper in self.here() if wrappers is None else wrappers:
            if wrapper not in used_elsewhere and (
                len(wrapper.atomic_blocks) > self._depths.get(wrapper.alias, 0) or lacks_autocommit(wrapper)
            ):
                raise RuntimeError(
                    f"{what} inside a transaction, which would stay open for as long as the client does: "
                    f'first end the atomic() block of the database "{wrapper.alias}", or the transaction that '
                    f"set_autocommit(False) has begun."
                )

    def take_execute_wrappers(self) -> list[tuple[BaseDatabaseWrapper, list[Any]]]:
        """Take out what the view has wrapped around its queries by `execute_wrapper()`, and return it.

        The chain is going to end: its blocks each take out the last one, which must be their own.
        """
        taken = []
        for wrapper in self.shared:
            begin = self._outer.get(wrapper.alias, 0)
            if len(wrapper.execute_wrappers) > begin:
                taken.append((wrapper, wrapper.execute_wrappers[begin:]))
                del wrapper.execute_wrappers[begin:]
        return taken

    def release(self) -> bool:
        """Give back the connections of the view, and return whether it still holds one."""
        held = False
        for wrapper in self.here():
            if not wrapper.in_atomic_block:
                wrapper.close()
            held = held or wrapper.connection is not None  # a test's, in whose transaction the view runs
        return held

    def linger(self, seconds: float) -> bool:
        """Keep the connections for some seconds of waiting, if that may be; return whether it does so.

        `go_on` undoes it.
        """
        return self._keep(self.here(), seconds)

    def _keep(self, wrappers: Sequence[BaseDatabaseWrapper], seconds: float) -> bool:
        """Keep what is open, for a client that has talked in the last seconds.

        Thousands that make one query each hold nothing.
        """
        connected = [wrapper for wrapper in wrappers if wrapper.connection is not None]
        if not connected:
            return False
        before, self._waited = self._waited, time.monotonic()
        if self._waited - before > seconds or not all(map(may_linger, connected)):
            return False
        return lingering_of_loop.get().keep(self, connected, seconds)

    def go_on(self) -> None:
        """Take back what lingers: the view goes on."""
        lingering_of_loop.get().take_back(self)

    def enter(self) -> None:
        """Have the running greenlet, which works for somebody else next, use the shared wrappers, and what was kept."""
        self.adopt()
        for wrapper in lingering_of_loop.get().take_back(self):
            connections[wrapper.alias] = wrapper

    def leave(self) -> bool:
        """Undo `enter`, and close what the running greenlet has used.

        If the client talks, this is kept for a moment, as by `linger`, and True is returned: `enter` is needed.
        """
        seconds = conf.current().database_linger
        wrappers = connections.all(initialized_only=True)
        if not seconds or not self._keep(wrappers, seconds):
            give_back_databases(self.shared)
            return False
        for wrapper in wrappers:
            del connections[wrapper.alias]
            if not wrapper.allow_thread_sharing:
                wrapper.inc_thread_sharing()
                untie_database(wrapper)
        return True

    def close_kept(self) -> None:
        """Close what `leave` has kept."""
        for wrapper in lingering_of_loop.get().take_back(self):
            close(wrapper)

    def close(self, *, accepted: bool) -> None:
        """Close what the ending view has used; unless it has `accepted`, the chain still needs the shared wrappers."""
        for wrapper in self.here():
            own = wrapper not in self.shared
            if (accepted or own) and not wrapper.in_atomic_block:
                wrapper.close()
                if own and monkey.is_module_patched("threading"):  # else it is the thread's
                    untie_database(wrapper)


def untie_database(wrapper: BaseDatabaseWrapper) -> None:
    """Undo the circles of a wrapper whose greenlet ends. What still has it, such as a pool, can go on using it."""
    attributes = vars(wrapper)
    weak = weakref.proxy(wrapper)
    for name, back in BACK.items():
        helper = attributes.get(name)
        if getattr(helper, back, None) is wrapper:
            setattr(helper, back, weak)


def lacks_autocommit(wrapper: BaseDatabaseWrapper) -> bool:
    """Return whether a transaction was begun without `atomic()`."""
    if wrapper.in_atomic_block or wrapper.connection is None:
        return False
    return wrapper.settings_dict["AUTOCOMMIT"] and not wrapper.autocommit


def close_databases() -> None:
    """Close the running greenlet's connections outside of transactions, whatever `CONN_MAX_AGE` says."""
    for wrapper in connections.all(initialized_only=True):
        if not wrapper.in_atomic_block:
            wrapper.close()


def databases_here() -> dict[str, Any] | None:
    """Return where the databases of the running greenlet are, the same dict as long as it lives; None if not known."""
    storage = getattr(connections._connections, "_storage", None)  # type: ignore[attr-defined]
    return None if storage is None else vars(storage)


def give_back_databases(kept: Sequence[BaseDatabaseWrapper] = ()) -> None:
    """Close the databases of the running greenlet, which works for somebody else next, and take them from it.

    Those `kept` by others only are taken. Where gevent has not patched `threading`, they are the thread's, and stay.
    Does not raise: a driver may, when its server has ended the connection.
    """
    for wrapper in connections.all(initialized_only=True):
        try:
            if not wrapper.in_atomic_block:
                close(wrapper)
        finally:
            if monkey.is_module_patched("threading"):
                del connections[wrapper.alias]
                if wrapper not in kept:
                    untie_database(wrapper)


def holds_database() -> bool:
    """Whether the running greenlet is connected to a database."""
    return any(wrapper.connection is not None for wrapper in connections.all(initialized_only=True))


def databases_are_separate() -> bool:
    """Return whether each greenlet has its own connections; not if Django was imported before gevent patched."""
    local: Any = connections._connections  # type: ignore[attr-defined]
    local.of_this_greenlet = True
    try:
        return not gevent.spawn(hasattr, local, "of_this_greenlet").get()
    finally:
        del local.of_this_greenlet


def _note_database(**kwargs: Any) -> None:
    note = getattr(getcurrent(), "note_database", None)  # of a view's greenlet, or of a client's
    if note is not None:
        note()


connection_created.connect(_note_database)
