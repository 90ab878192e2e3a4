"""How a greenlet waits for what the hub brings: in a call that blocks, or in select() over a file descriptor."""

from __future__ import annotations

import math
import os
import sys
import weakref
from collections import deque
from collections.abc import Callable, Collection, Container
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import gevent
from gevent import Greenlet, getcurrent, monkey
from gevent.hub import Hub, get_hub
from greenlet import greenlet

from django_websocket.compat import naming

from .loops import PerLoop
from .turns import turns_of_loop

with naming("asyncio"):
    from asyncio.events import _get_running_loop

__all__ = ["Readable", "ViewGreenlet", "close_at_end", "readable_with", "wait"]

SECOND_WAITER = (
    "Another greenlet or task already waits for this. Let one of them receive, and pass the messages on, for "
    "example through a gevent.queue.Queue or an asyncio.Queue."
)
OTHER_THREAD = (
    "This belongs to another thread, and only greenlets of that thread can wait for it. Receive in the view and pass "
    "the message to the thread, or use a greenlet, made with gevent.spawn(), instead of the thread."
)
NOT_PATCHED = (
    "fileno() is for select() and similar functions. Here they would block the whole process and the client in it, "
    "because gevent has not patched them, as in tests. Use django_websocket.select.select, which works everywhere, and "
    "give it the WebSocket or the subscription itself instead of a number."
)


class Service(Protocol):
    """What serves all clients of a process, and ends after them."""

    def stop(self) -> None:
        """Begin to end; it leaves `services` when it has."""


services: set[Service] = set()
unfinished: set[object] = set()  # what still goes on beside the greenlets of views; it may have a `cancel()`


class Waiter(Protocol):
    """Who waits for a `Readable`: a greenlet, or what stands for a coroutine."""

    def switch(self) -> object:
        """Go on. Called in the hub."""


class Dependent(Protocol):
    """Something that a view opens for its client, and may leave open."""

    def client_left(self, code: int, reason: str) -> None:
        """Learn that the client has left, with the close code and reason."""

    def close(self) -> None:
        """End it."""


if TYPE_CHECKING:
    from .connection import Connection

    PlainGreenlet = Greenlet[[], None]
else:
    PlainGreenlet = Greenlet  # gevent knows no type arguments


class Untracked:
    """Lets a greenlet be made that does not know which one made it, nor where: a tenth of a handshake's time.

    Greenlets that a project makes know it, so that what they open ends with their view.
    """

    def __init__(self) -> None:
        setting = "track_greenlet_tree"
        self._tracked = getattr(gevent.config, setting)
        # To set `gevent.config.track_greenlet_tree` itself takes six times as long.
        self._setting: Any = getattr(gevent.config, "settings", {}).get(setting, SimpleNamespace())

    def __enter__(self) -> None:
        self._setting.value = False

    def __exit__(self, *error: object) -> None:
        self._setting.value = self._tracked


untracked = Untracked()


class ViewGreenlet(PlainGreenlet):
    """The greenlet in which a view runs, with the hooks by which Django's side hears what the view waits for.

    `before_taking` is called when the view asks for a message, whether one is there or not; it may raise.
    `message_is_there` is true while it is called because there is one. `before_waiting` is called when the view has to
    wait for a message; it may give things back meanwhile, or raise. It is told whether the view waits for other files,
    too. If it is still set then, `after_waiting` is called when the view goes on. `close_all` closes what
    `close_at_end` was given.
    `running` has the greenlets that have begun and not ended; it is maintained by the subclass.
    """

    __slots__ = (
        "_dependents",
        "_ended",
        "_left",
        "_with_fileno",
        "before_taking",
        "before_waiting",
        "connection",
        "message_is_there",
    )

    running: ClassVar[set[ViewGreenlet]] = set()

    def __init__(self) -> None:
        with untracked:
            super().__init__()
        self.connection: Connection | None = None  # the view's, once there is one
        self.before_taking: Callable[[], None] | None = None
        self.message_is_there = False
        self.before_waiting: Callable[[bool], None] | None = None
        self._left: tuple[int, str] | None = None
        self._ended = False
        self._with_fileno: weakref.WeakSet[Readable] | None = None
        self._dependents: weakref.WeakSet[Dependent] | None = None

    def close_all(self) -> None:
        """Close what the view has left open, and the descriptors that it asked for."""
        self._ended = True
        for readable in tuple(self._with_fileno or ()):
            readable.close_fileno()
        for dependent in tuple(self._dependents or ()):
            dependent.close()

    def dependents(self) -> tuple[Dependent, ...]:
        """Return what the view has opened for its client, and not closed."""
        return tuple(self._dependents or ())

    def has_opened_one_of(self, dependents: Container[object]) -> bool:
        """Whether the view has opened one of these for its client."""
        return any(dependent in dependents for dependent in self.dependents())

    def after_waiting(self) -> None:
        """Take back what `before_waiting` may have given back."""

    def client_left(self, code: int, reason: str) -> None:
        """Tell everything that the view has opened, or will open, that its client has left."""
        self._left = code, reason
        for dependent in tuple(self._dependents or ()):
            dependent.client_left(code, reason)


def close_at_end(dependent: Dependent) -> None:
    """Close `dependent` when the running view ends, if a view runs and `dependent` still exists then."""
    current = getcurrent()
    if isinstance(current, ViewGreenlet):
        _depend(dependent, current)


def view_of_helper() -> ViewGreenlet | None:
    """Return the view that started the running greenlet, directly or through others; None if there is none.

    None also for a greenlet that is a view itself, and where those in between have been collected.
    """
    current: Any = getcurrent()
    if isinstance(current, ViewGreenlet):
        return None
    while current is not None and not isinstance(current, ViewGreenlet):
        spawner = getattr(current, "spawning_greenlet", None)  # a weak reference
        current = None if spawner is None else spawner()
    return current


def close_with(view: ViewGreenlet, dependent: Dependent) -> None:
    """Close `dependent` when `view` ends, or now if it has ended. For a greenlet that the view has started."""
    if view._ended:
        dependent.close()
    else:
        _depend(dependent, view)


def _depend(dependent: Dependent, view: ViewGreenlet) -> None:
    if view._dependents is None:
        view._dependents = weakref.WeakSet()
    view._dependents.add(dependent)
    if view._left is not None:
        dependent.client_left(*view._left)


class Signal:
    """A file descriptor that is readable while it is set: an eventfd, or a pipe where the system has none."""

    __slots__ = ("_read", "_set", "_write")

    def __init__(self) -> None:
        self._set = False
        if sys.platform == "linux":
            self._read = self._write = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self._read, self._write = os.pipe()

    def fileno(self) -> int:
        return self._read

    def set(self, value: bool) -> None:
        if value is self._set:
            return
        self._set = value
        if value:
            os.write(self._write, b"\0\0\0\0\0\0\0\1" if sys.byteorder == "big" else b"\1\0\0\0\0\0\0\0")
        else:
            os.read(self._read, 8)

    def close(self) -> None:
        os.close(self._read)
        if self._write != self._read:
            os.close(self._write)


_with_signal: dict[int, Readable] = {}  # by file descriptor


def readable_with(fd: int) -> Readable | None:
    """Return the `Readable` that gave out `fd`, if one did."""
    return _with_signal.get(fd)


def leave_to_parent() -> None:
    """Close, in a child process, the descriptors that the parent's greenlets wait for."""
    for readable in tuple(_with_signal.values()):
        readable.close_fileno()


class Readable:
    """Something from which a greenlet takes what the hub puts there.

    Readiness has one meaning: a call that takes would return at once. Code that changes what `ready()` returns calls
    `_changed()`. Waiting is useless for one that is `abandoned`: a call would raise at once.
    """

    __slots__ = ("__weakref__", "_loop", "_signal", "_waiter")

    abandoned = False

    def __init__(self) -> None:
        self._loop = get_hub()  # of the thread whose greenlets can wait for this
        self._signal: Signal | None = None
        self._waiter: Waiter | None = None

    @property
    def readiness(self) -> Readable:
        """What `select()` waits for when it is given this object."""
        return self

    def ready(self) -> bool:
        """Whether there is something to take, or the end has come."""
        raise NotImplementedError

    def fileno(self) -> int:
        """Return a file descriptor that is readable exactly while a call would return. Wait for it, do not read it.

        Raises RuntimeError in a view of a process that gevent has not patched: to wait for it there would never end.
        """
        if self._signal is None:
            current = getcurrent()
            if isinstance(current, ViewGreenlet) and not monkey.is_module_patched("select"):
                raise RuntimeError(NOT_PATCHED)
            self._signal = Signal()
            self._signal.set(self.ready() or self.abandoned)
            _with_signal[self._signal.fileno()] = self
            if isinstance(current, ViewGreenlet):
                if current._with_fileno is None:
                    current._with_fileno = weakref.WeakSet()
                current._with_fileno.add(self)
        return self._signal.fileno()

    def close_fileno(self) -> None:
        """Close the descriptor, if there is one; nobody may use its number from now on."""
        if self._signal is not None:
            del _with_signal[self._signal.fileno()]
            self._signal.close()
            self._signal = None

    def claim(self, waiter: Waiter) -> None:
        """Have `waiter` go on when this may be ready. Raises RuntimeError if there is another one."""
        if self._waiter is not None:
            raise RuntimeError(SECOND_WAITER)
        self._waiter = waiter

    def release(self) -> None:
        """Undo `claim`."""
        self._waiter = None

    def disclaim(self, waiter: Waiter) -> None:
        """Undo `claim`, if it was by this waiter."""
        if self._waiter is waiter:
            self._waiter = None

    def _wait(self) -> None:
        """Let the running greenlet wait until this may be ready: `wait()` in a form for the path of each message."""
        current: Any = getcurrent()
        loop = get_hub()
        if (
            (isinstance(current, ViewGreenlet) and current.before_waiting is not None)
            or loop is not self._loop
            or type(loop) is not Hub
            or self._waiter is not None
        ):
            wait((self,))
            return
        self._waiter = current
        try:
            greenlet.switch(loop)  # the hub's own method would first look for a hook of this greenlet
        finally:  # also when an exception is thrown into this greenlet: a later switch to it would fail
            self._waiter = None

    def _changed(self) -> None:
        """Show a new readiness to the greenlet that waits. Call it from any greenlet in the thread of the loop."""
        if self._signal is not None:
            self._signal.set(self.ready() or self.abandoned)
        if self._waiter is not None:
            woken_of_loop().add(self)

    def _wake(self) -> None:
        """Go on with the greenlet that waits: now, or in a later turn if this one's time is over. In the hub only."""
        if self._waiter is not None:
            turns = turns_of_loop()
            if turns.spent():
                turns.postpone(self._go_on_with_waiter)
            else:
                self._go_on_with_waiter()

    def _go_on_with_waiter(self) -> None:
        waiter = self._waiter
        if waiter is not None and (self.ready() or self.abandoned):
            waiter.switch()


class Woken:
    """What may be ready in this loop, so that the greenlets that wait for it go on, one after the other."""

    __slots__ = ("_asked", "_readables", "_run_callback", "_turns")

    def __init__(self) -> None:
        self._run_callback = get_hub().loop.run_callback
        self._turns = turns_of_loop()
        self._readables: deque[Readable] = deque()
        self._asked = False  # whether the loop will call `_run`

    def add(self, readable: Readable) -> None:
        """Have the greenlet that waits for `readable` go on, from any greenlet of this loop."""
        self._readables.append(readable)
        if not self._asked:
            self._asked = True
            self._run_callback(self._run)

    def _run(self) -> None:
        """Go on with them: now, or in a later turn if this one's time is over. In the hub."""
        readables, spent = self._readables, self._turns.spent
        self._asked = False
        try:
            while readables and not spent():
                readables.popleft()._go_on_with_waiter()
        finally:
            if readables and not self._asked:
                self._asked = True
                self._turns.postpone(self._run)


woken_of_loop = PerLoop(Woken).get


def check_before_taking() -> None:
    """Call the hook by which the running view may refuse to take a message now."""
    hook = getattr(getcurrent(), "before_taking", None)
    if hook is not None:
        hook()


def check_timeout(timeout: float | None) -> None:
    """Raise ValueError for a NaN, which would keep all other timers of the loop from firing."""
    if timeout is not None and math.isnan(timeout):
        raise ValueError("A timeout must be a number of seconds, not NaN")


def wait(
    sources: Collection[Readable], timeout: float | None = None, *, for_message: bool = True, for_files: bool = False
) -> bool:
    """Let the running greenlet wait until one of `sources` may be ready, and give back what it need not hold meanwhile.

    Returns False if `timeout` seconds have passed. Raises ValueError if that is NaN, and RuntimeError if another
    greenlet waits for one of the sources. Without `for_message` nothing is given back: it may be a library that waits,
    in the middle of something. `for_files` says that one of the sources stands for other files.
    """
    check_timeout(timeout)
    current: Any = getcurrent()
    hook = getattr(current, "before_waiting", None) if for_message else None
    if hook is None:
        return _wait(sources, timeout)
    hook(for_files)
    try:
        # The hook may have let others run.
        return any(source.ready() or source.abandoned for source in sources) or _wait(sources, timeout)
    finally:
        if current.before_waiting is not None:
            current.after_waiting()


def _wait(sources: Collection[Readable], timeout: float | None) -> bool:
    if timeout is None:
        _switch_to_hub(sources)
        return True
    timer = gevent.Timeout.start_new(timeout)
    try:
        _switch_to_hub(sources)
    except gevent.Timeout as expired:
        if expired is not timer:
            raise
        return False
    finally:
        timer.close()
    return True


def _switch_to_hub(sources: Collection[Readable]) -> None:
    current: Any = getcurrent()
    loop = get_hub()
    for source in sources:
        if source._loop is not loop:
            raise RuntimeError(OTHER_THREAD)
        if source._waiter is not None:
            raise RuntimeError(SECOND_WAITER)
    try:
        for source in sources:
            source._waiter = current
        if type(loop) is Hub or _get_running_loop() is None:
            greenlet.switch(loop)  # the hub's own method would first look for a hook of this greenlet
        else:  # it hides the loop of a coroutine that waits here from all other greenlets
            loop.switch()
    finally:  # also when an exception is thrown into this greenlet: a later switch to it would fail
        for source in sources:
            source._waiter = None
