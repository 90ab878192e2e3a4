"""Sees what holds a loop: while it is held, every client of the process waits.

A native thread watches the loop, since nothing else runs meanwhile. Ten times a second it looks whether the loop has
begun another round; if not, it looks at what the loop's thread is in the middle of. What it finds is logged by the loop
itself, once that goes on.

Such a look costs some ten microseconds, and the path of a message has nothing for it. When hardly anything happens, the
thread sleeps, until the loop has something to do that may take long: then a watcher of the loop wakes it. Timers that
are known to be harmless do not.

Time for which the process could not have run does not count: while it was stopped, or the machine was suspended or had
no processor for it. `Watch._lost_since_look` says how that is known.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from types import CodeType
from typing import Any

from gevent import monkey
from gevent.hub import Hub, get_hub

from .counts import counts
from .culprits import Culprit, culprit_of
from .log import report
from .loops import PerLoop

__all__ = ["LONGEST", "Watch", "watch_of_loop"]

LONGEST = 0.1  # seconds for which code may hold the loop; people notice that, and deadlines count in half seconds
PERIOD = 0.1  # seconds from one look to the next; as every round has its time, each that is too long is seen
RARELY = 1.0  # seconds between looks, at most, when something holds the loop for long
IDLE_LOOKS = 5  # looks in a row that found the loop idle; then the thread sleeps
IDLE_ROUNDS = 8  # of the loop from one look to the next, in an idle process: a few timers need them
PATIENCE = 1.0  # seconds for the thread to end
CAUSE = "all clients of this process had to wait"

start_native_thread: Callable[..., int] = monkey.get_original("_thread", "start_new_thread")
native_lock: Callable[[], Any] = monkey.get_original("_thread", "allocate_lock")
native_ident: Callable[[], int] = monkey.get_original("_thread", "get_ident")
native_id: Callable[[], int] = monkey.get_original("_thread", "get_native_id")


class Stall:
    """One time for which the loop is held, since `begin`, of which `lost` does not count.

    `culprits` is where the thread of the loop was each time that somebody looked.
    """

    def __init__(self, begin: float) -> None:
        self.begin = begin
        self.lost = 0.0
        self.culprits: Counter[Culprit] = Counter()

    @property
    def culprit(self) -> Culprit:
        """Where the thread was most of the time."""
        return self.culprits.most_common(1)[0][0]


class Watch:
    """Watches one loop, from `start()` to `stop()`.

    `count` is how many times something has held it for longer than `LONGEST`. `lag` is the time in seconds by which the
    loop was late when it was measured last: it has served a timer so much later than it should have.
    `asleep` says whether the thread waits until the loop has something to do.
    """

    def __init__(self) -> None:
        self.count = 0
        self.lag = 0.0
        self.asleep = False
        self._harmless: list[Any] = []  # timers
        self._running = False
        self._begun = False  # whether `start` was ever called
        self._sleepy = False  # whether the thread wants to sleep
        self._armed = False  # whether the loop is to wake the thread
        self._stall: Stall | None = None  # that goes on
        self._ended: Any = None  # a lock, held as long as the thread runs

    def harmless(self, *timers: Any) -> None:
        """Have the thread sleep on when nothing but one of `timers` fires."""
        self._harmless += timers

    def start(self) -> None:
        """Begin to watch the loop of the running thread, if that has not begun."""
        if self._running:
            return
        self._running = True
        if not self._begun:
            self._begun = True
            self._prepare()
        self._begin_thread()

    def stop(self) -> None:
        """End watching."""
        if not self._running:
            return
        self._running = False
        ended, self._ended = self._ended, None
        self._stopping = True
        if self._armed:
            self._activity.stop()
            self._armed = False
        self._awake()
        ended.acquire(True, PATIENCE)

    def _prepare(self) -> None:
        loop: Any = get_hub().loop
        self._loop = loop
        self._counts_rounds = loop.iteration >= 0  # libuv does not
        self._clock = time.time if self._counts_rounds else time.monotonic  # that of `loop.now()`
        self._idle_codes = idle_codes(loop)
        self._ident = native_ident()
        self._waits = open_waits(native_id())
        self._wake_up = native_lock()
        self._wake_up.acquire()
        priority = loop.MAXPRI if self._counts_rounds else None  # libuv knows no priorities
        self._from_thread: Any = loop.async_(ref=False, priority=priority)
        self._activity: Any = loop.check(ref=False, priority=priority)
        self._from_thread.start(self._on_thread)

    # --- in the thread of the loop -------------------------------------------------------------------------------

    def log(self, cause: str, seconds: float, culprit: Culprit) -> None:
        """Count, and log, that something has kept others from going on."""
        self.count += 1
        counts.add("hub_stalls")
        report(culprit.client or "the worker", None, cause, f"{seconds:.2f} seconds {culprit}")

    def wake(self) -> None:
        """Have the thread look: the loop is about to do something that may take long, because of a harmless timer."""
        if self._armed:
            self._disarm()

    def _on_activity(self) -> None:
        """Wake the thread at the beginning of a round, unless all that it has is a harmless timer."""
        if self._loop.pendingcnt > 1 or not any(timer.pending for timer in self._harmless):
            self._disarm()

    def _disarm(self) -> None:
        self._activity.stop()
        self._armed = False
        self._begin_anew()  # here: what comes next may keep the thread from running
        self._awake()

    def _awake(self) -> None:
        if self._wake_up.locked():  # only the thread locks it
            self._wake_up.release()

    def _on_thread(self) -> None:
        """Do what the thread has asked for: log what it has found, and watch for activity while it sleeps."""
        stall, self._stall = self._stall, None
        if stall is not None:
            now = time.monotonic()
            seconds = now - stall.begin - stall.lost - self._lost_since_look(now)
            if seconds >= LONGEST:
                self.lag = seconds
                self.log(CAUSE, seconds, stall.culprit)
        if self._sleepy and self._running and self._counts_rounds and not self._armed:
            self._sleepy = False
            self._armed = True
            self._activity.start(self._on_activity)

    def _begin_anew(self) -> None:
        """Take the present moment as that in which a round begins, and in which the thread has looked last."""
        self._begin = self._looked = time.monotonic()
        self._round = self._rounds()
        self._lost = 0.0
        self._cpu, self._waited = time.process_time(), self._waits()
        self._asked = PERIOD

    def _begin_thread(self) -> None:
        self._ended = native_lock()
        self._ended.acquire()
        self._stopping = False
        self._sleepy = self._armed = False
        self._begin_anew()
        start_native_thread(self._run, (self._ended,))

    # --- in the native thread, which may use nothing of gevent's -------------------------------------------------

    def _run(self, ended: Any) -> None:
        idle = 0
        before = self._round
        try:
            while True:
                self.asleep = self._armed and idle >= IDLE_LOOKS
                woken = self._wake_up.acquire(True, -1 if self.asleep else self._asked)
                if self._stopping:
                    return
                busy = self._look()
                quiet = not busy and self._round - before <= IDLE_ROUNDS
                before = self._round
                idle = idle + 1 if quiet and not woken else 0
                if idle == IDLE_LOOKS:
                    self._sleepy = True
                    self._from_thread.send()
        except ValueError:
            pass  # the loop was destroyed
        finally:
            ended.release()

    def _look(self) -> bool:
        """Look at the loop; return whether its thread is in the middle of something."""
        now = time.monotonic()
        current = self._rounds()
        lost = self._lost_since_look(now)
        if current != self._round:
            age = min(max(0.0, self._clock() - self._loop.now()), now - self._looked)
            self._round = current
            self._begin = now - age
            self._lost = min(lost, age)
        else:
            self._lost += lost
        self._looked = now
        self._cpu, self._waited = time.process_time(), self._waits()
        self._asked = PERIOD
        frame = sys._current_frames().get(self._ident)
        if frame is None or frame.f_code in self._idle_codes:
            return False
        held = now - self._begin - self._lost
        if held < LONGEST:
            self._asked = LONGEST - held
            return True
        stall = self._stall or Stall(self._begin)
        stall.lost = self._lost
        stall.culprits[culprit_of(frame)] += 1
        if self._stall is None:
            self._stall = stall
            self._from_thread.send()
        self._asked = min(max(PERIOD, held / 10), RARELY)
        return True

    # --- in both -------------------------------------------------------------------------------------------------

    def _rounds(self) -> float:
        """Return a number that differs from one round of the loop to the next."""
        number: float = self._loop.iteration if self._counts_rounds else self._loop.now()
        return number

    def _lost_since_look(self, now: float) -> float:
        """Return the seconds since the last look in which the process could not have run.

        Either the thread of the loop was ready and got no processor, as the system counts it. Or this look is late
        although no code of the process, which might have kept the watching thread from running, used the time.
        """
        starved = self._waits() - self._waited
        late = now - self._looked - self._asked - (time.process_time() - self._cpu)
        if late > LONGEST:  # the process was stopped, perhaps just behind the last look: nobody can know
            late += self._asked
        return max(0.0, starved, late)


def idle_codes(loop: Any) -> frozenset[CodeType]:
    """Return the code in the middle of which a thread is when its loop waits."""
    methods: tuple[Any, ...] = (Hub.run, type(loop).run)  # Python's code, or C's
    return frozenset(method.__code__ for method in methods if hasattr(method, "__code__"))


def open_waits(thread: int) -> Callable[[], float]:
    """Return what tells for how many seconds a thread was ready and had no processor: always 0 if nobody knows."""
    try:
        file = os.open(f"/proc/self/task/{thread}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        return lambda: int(os.pread(file, 100, 0).split()[1]) / 1e9
    except OSError:  # Linux alone has it
        return lambda: 0.0


watch_of_loop = PerLoop(Watch).get
