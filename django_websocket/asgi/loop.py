"""An asyncio event loop in a greenlet, on gevent's own loop: coroutines and greenlets share one thread, and neither
notices the other.

`HubLoop` is asyncio's own `SelectorEventLoop`, so transports, TLS, subprocesses and tasks are the standard library's.
Its selector has no system call of its own: it waits in gevent's hub, and everything else goes on meanwhile.

asyncio keeps track of the running loop by thread, and greenlets share theirs. So `LoopHub` takes the loop out of the
thread whenever the greenlet that runs it lets others run, for whatever reason, and puts it back afterwards: no other
greenlet ever sees a running loop, which would have its queries fail with SynchronousOnlyOperation, and its own
`asyncio.run()` with a RuntimeError.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context
from selectors import EVENT_READ, EVENT_WRITE, SelectorKey, SelectSelector
from typing import Any

import gevent
from gevent import getcurrent
from gevent.hub import Hub, get_hub
from gevent.threadpool import ThreadPoolExecutor

from django_websocket.compat import naming
from django_websocket.transport.culprits import culprit_of
from django_websocket.transport.shared import CROWD, Shared, shared_if_any
from django_websocket.transport.stalls import LONGEST, watch_of_loop
from django_websocket.transport.turns import turns_of_loop

from .executors import do

with naming("asyncio"):
    from asyncio.events import _get_running_loop, _set_running_loop

    from gevent.monkey import get_original

    native_ident: Callable[[], int] = get_original("_thread", "get_ident")
    if sys.version_info >= (3, 14):  # where the current task belongs to the thread, and no more to the loop
        from asyncio.tasks import _swap_current_task
    else:

        def _swap_current_task(loop: Any, task: Any) -> Any:
            return None


__all__ = ["HubLoop", "hide_running_loops", "shared_loop"]

READ_WRITE = EVENT_READ | EVENT_WRITE  # the values are libev's, too
logger = logging.getLogger("django_websocket")

PAUSE = 0.01  # seconds until the shared loop goes on after something has left it
HELD = "all coroutines of this process had to wait"
SHORTEST = 0.0001  # seconds; shorter timers make libev go round without waiting


class LoopHub(Hub):
    """gevent's hub, which lets no greenlet see the asyncio loop that another one runs.

    Whoever blocks calls `switch()`, also a greenlet that a step of a coroutine has begun, and it returns when this
    greenlet goes on.
    """

    __slots__ = ()

    def switch(self) -> Any:
        """Let the hub run, and all that waits for it."""
        loop = _get_running_loop()
        if loop is None:
            return super().switch()
        task = _swap_current_task(loop, None)  # as long as this is the running loop
        hooks = sys.get_asyncgen_hooks()
        _set_running_loop(None)
        sys.set_asyncgen_hooks(None, None)
        held_since = time.monotonic() if getattr(loop, "is_held", False) else None
        try:
            return super().switch()
        finally:
            if held_since is not None and (seconds := time.monotonic() - held_since) >= LONGEST:
                watch_of_loop().log(HELD, seconds, culprit_of(inspect.currentframe()))
            _set_running_loop(loop)
            sys.set_asyncgen_hooks(*hooks)
            if task is not None:
                _swap_current_task(loop, task)


def hide_running_loops() -> None:
    """Have the hub of the running thread be a `LoopHub`."""
    hub = get_hub()
    if type(hub) is Hub:
        hub.__class__ = LoopHub


class HubSelector(SelectSelector):
    """Waits for files by watchers of gevent's loop."""

    def __init__(self) -> None:
        super().__init__()
        self.wait: Callable[[float | None], None] = lambda timeout: None
        self.wake: Callable[[], None] = lambda: None
        self.round_begins: Callable[[], None] = lambda: None
        self.round_ends: Callable[[], None] = lambda: None
        self._io = get_hub().loop.io
        self._watchers: dict[int, Any] = {}
        self._fired: dict[int, int] = {}  # what has happened since the last call of `select()`

    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        """See `selectors.BaseSelector.register`."""
        key = super().register(fileobj, events, data)
        watcher = self._watchers[key.fd] = self._io(key.fd, events)
        watcher.start(self._on_event, key.fd, pass_events=True)
        return key

    def unregister(self, fileobj: Any) -> SelectorKey:
        """See `selectors.BaseSelector.unregister`."""
        key = super().unregister(fileobj)
        watcher = self._watchers.pop(key.fd)
        watcher.stop()
        watcher.close()
        self._fired.pop(key.fd, None)
        return key

    def _on_event(self, events: int, fd: int) -> None:
        """Take note, in the hub. Until the loop has seen it, which a step that blocks may delay, it happens no more."""
        self._watchers[fd].stop()
        self._fired[fd] = events if events > 0 else READ_WRITE
        self.wake()

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """Let the hub run until a file is ready, `wake()` is called or `timeout` seconds are over."""
        self.round_ends()
        if not self._fired:
            self.wait(timeout)
        elif timeout == 0:
            self.wait(0)
        fired, self._fired = self._fired, {}
        ready = []
        for fd, events in fired.items():
            key = self.get_key(fd)
            ready.append((key, events & key.events))
            self._watchers[fd].start(self._on_event, fd, pass_events=True)
        self.round_begins()
        return ready

    def close(self) -> None:
        """See `selectors.BaseSelector.close`."""
        for watcher in self._watchers.values():
            watcher.stop()
            watcher.close()
        self._watchers.clear()
        super().close()


class HubLoop(asyncio.SelectorEventLoop):
    """An asyncio loop that runs in whatever greenlet calls `run_forever()`, and lets gevent's hub wait for it.

    Its methods may be called from all greenlets of the thread, as if they were callbacks of the loop itself.
    """

    _check_closed: Callable[[], None]  # of asyncio's own, like the next
    _ready: deque[asyncio.Handle]

    def __init__(self) -> None:
        self.hub = get_hub()
        self._native_ident = native_ident()
        self._waiting: Any = None  # the greenlet that runs the loop, while it waits for something to do
        self._idle = False  # whether it waits, and nobody has woken it
        self._timer: Any = None
        self._timer_at = 0.0  # when it fires, by time.monotonic()
        self._from_threads: Any = self.hub.loop.async_(ref=False)
        selector = HubSelector()
        super().__init__(selector)
        selector.wait = self._wait
        selector.wake = self._wake
        selector.round_begins = self._begin_round
        selector.round_ends = self._end_round
        self._shared: Shared | None = None
        self.is_for_all = False  # whether the coroutines of all clients run in it
        self._from_threads.start(self._wake)

    @property
    def is_held(self) -> bool:
        """Whether no coroutine of any client goes on if the greenlet that runs this waits now."""
        return self.is_for_all and self._waiting is None

    def run_forever(self) -> None:
        """Run until `stop()` is called, in the running greenlet."""
        hide_running_loops()
        self._from_threads.ref = True  # another thread may call: gevent must not end because it waits for nothing else
        try:
            super().run_forever()
        finally:
            self._from_threads.ref = False

    def _begin_round(self) -> None:
        """Have what several tasks answer leave together."""
        shared = self._shared = self._shared or shared_if_any()
        if shared is not None:
            shared.holding = len(self._ready) >= CROWD

    def _end_round(self) -> None:
        shared = self._shared
        if shared is not None:
            shared.holding = False
            shared.send_all()

    def _wait(self, timeout: float | None) -> None:
        """Let the hub run, for up to `timeout` seconds; with 0, if the time of its turn is over."""
        if timeout == 0:
            turns = turns_of_loop()
            if not turns.spent():
                return
            self._waiting = getcurrent()
            turns.postpone(self._go_on)
        else:
            self._waiting = getcurrent()
            self._idle = True
            if timeout is not None:
                self._set_timer(timeout)
        try:
            self.hub.switch()
        finally:
            self._waiting = None
            self._idle = False

    def _set_timer(self, timeout: float) -> None:
        timer, at = self._timer, time.monotonic() + timeout
        if timer is not None:
            if self._timer_at <= at:  # it fires too early at worst, and asyncio waits for the rest
                return
            timer.close()
        self._timer_at = at
        self._timer = timer = self.hub.loop.timer(max(timeout, SHORTEST))
        timer.start(self._on_timer, update=True)

    def _on_timer(self) -> None:
        self._timer.close()
        self._timer = None
        self._wake()

    def _wake(self) -> None:
        """Have the loop go on soon, if it waits. For any greenlet of the thread."""
        if self._idle:
            self._idle = False
            self.hub.loop.run_callback(self._go_on)

    def _go_on(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:  # it has not been woken, or interrupted, by something else
            waiting.switch()

    # --- what asyncio's own does for one thread without greenlets ------------------------------------------------

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:  # type: ignore[override]
        """See `asyncio.loop.call_soon`; also for other greenlets of the thread.

        In place of asyncio's own, which takes twice as long.
        """
        if self.get_debug():
            handle = super().call_soon(callback, *args, context=context)
        else:
            self._check_closed()
            handle = asyncio.Handle(callback, args, self, context)
            self._ready.append(handle)
        if self._idle:
            self._wake()
        return handle

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> asyncio.TimerHandle:  # type: ignore[override]
        """See `asyncio.loop.call_at`; also for other greenlets of the thread."""
        handle = super().call_at(when, callback, *args, context=context)
        if self._idle:
            self._wake()
        return handle

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """See `asyncio.loop.run_in_executor`; `executor` may be one of gevent's, for native threads."""
        if executor is None:
            return super().run_in_executor(None, do, func, *args)
        if not isinstance(executor, ThreadPoolExecutor):
            return super().run_in_executor(executor, func, *args)
        future = self.create_future()

        def done(outcome: Any) -> None:
            if not future.cancelled():
                try:
                    result = outcome.result()
                except Exception as error:
                    future.set_exception(error)
                else:
                    future.set_result(result)

        executor.submit(func, *args).add_done_callback(lambda outcome: self.call_soon(done, outcome))
        return future

    def add_signal_handler(self, sig: int, callback: Any, *args: Any) -> None:  # type: ignore[override]
        """Raise NotImplementedError: signals are the server's. `gevent.signal_handler` takes one."""
        raise NotImplementedError(
            "This loop has no signal handlers, because signals belong to the server. Use gevent.signal_handler()."
        )

    def _make_self_pipe(self) -> None:
        """Nothing: the hub wakes the loop."""

    def _close_self_pipe(self) -> None:
        self._from_threads.stop()
        self._from_threads.close()
        if self._timer is not None:
            self._timer.close()
            self._timer = None

    def _write_to_self(self) -> None:
        if native_ident() == self._native_ident:
            self._wake()
        else:
            self._from_threads.send()

    def _check_thread(self) -> None:
        """Compare threads, where asyncio would compare greenlets: in debug mode."""
        if native_ident() != self._native_ident:
            raise RuntimeError("Non-thread-safe operation invoked on an event loop other than the current one")


class SharedLoop:
    """A loop that runs for good, in a greenlet of its own: for all asynchronous code that makes no loop for itself."""

    def __init__(self) -> None:
        self.loop = HubLoop()
        self.loop.is_for_all = True
        gevent.spawn(self._run)

    def _run(self) -> None:
        while not self.loop.is_closed():
            try:
                self.loop.run_forever()
            except BaseException:  # SystemExit in a task, say: the others go on
                logger.exception("An exception left the asyncio loop, which continues to run")
            gevent.sleep(PAUSE)


def shared_loop() -> HubLoop:
    """Return the loop that all asynchronous code of the running thread shares."""
    attributes = vars(get_hub())  # which both end with their thread
    shared = attributes.get("asyncio")
    if shared is None:
        shared = attributes["asyncio"] = SharedLoop()
    loop: HubLoop = shared.loop
    return loop
