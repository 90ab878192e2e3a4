"""Deadlines that share one timer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import gevent
import pytest
from gevent.exceptions import LoopExit
from gevent.hub import get_hub

from django_websocket.transport.deadlines import TICK, Deadline, sweep_of_loop
from django_websocket.transport.limits import Limits
from django_websocket.transport.state import CLOSED

from .support.waiting import until
from .support.wire import Pairs


class Late(Exception):
    """The exception of all deadlines in this file."""


def test_deadline_raises_in_the_greenlet_that_set_it() -> None:
    begin = time.monotonic()
    Deadline(0.2, Late())
    with pytest.raises(Late):
        gevent.sleep(10)
    assert 0.2 <= time.monotonic() - begin < 0.2 + 4 * TICK


def test_deadline_keeps_the_loop_running_until_it_is_closed() -> None:
    def in_a_loop_with_nothing_else() -> None:
        try:
            Deadline(0.2, Late())
            with pytest.raises(Late):
                get_hub().switch()  # only the deadline can end this
            Deadline(0.2, Late()).close()
            with pytest.raises(LoopExit):
                get_hub().switch()
        finally:
            get_hub().destroy(destroy_loop=True)

    with ThreadPoolExecutor(1) as thread:
        thread.submit(in_a_loop_with_nothing_else).result()


def test_deadline_that_was_closed_even_at_its_own_tick_raises_nothing() -> None:
    happened: list[str] = []
    deadlines: list[Deadline] = []

    def waits() -> None:
        deadlines.append(Deadline(0.2, Late()))
        try:
            gevent.sleep(8 * TICK)
        except Late:
            happened.append("late")
            for deadline in deadlines:
                deadline.close()
        else:
            happened.append("in time")

    closed = Deadline(0.2, Late())
    closed.close()
    closed.close()
    gevent.joinall([gevent.spawn(waits), gevent.spawn(waits)], raise_error=True)
    assert sorted(happened) == ["in time", "late"]


class Clock:
    """Notes when each tick comes."""

    def __init__(self) -> None:
        self.due = 0
        self.times: list[float] = []
        sweep_of_loop().look_at(self, sweep_of_loop().now + 1)

    def on_due(self) -> None:
        self.times.append(time.monotonic())
        sweep_of_loop().look_at(self, sweep_of_loop().now + 1)

    def wait(self) -> None:
        """Wait for the next tick."""
        number = len(self.times)
        until(lambda: len(self.times) > number)

    def stop(self) -> None:
        """Note no more."""
        sweep_of_loop().forget(self)


@pytest.fixture
def clock() -> Iterator[Clock]:
    clock = Clock()
    yield clock
    clock.stop()


@pytest.mark.parametrize("late", [0.1, 0.2, 0.3, 0.6])
def test_tick_behind_a_late_one_does_not_come_too_soon(clock: Clock, late: float) -> None:
    clock.wait()
    time.sleep(TICK + late)  # stops the whole process
    begin = time.monotonic()
    Deadline(TICK, Late())
    with pytest.raises(Late):
        gevent.sleep(10)
    assert time.monotonic() - begin >= TICK
    assert all(after - before >= TICK for before, after in pairwise(clock.times))


@pytest.mark.parametrize("seconds", [0.4, 0.5, 0.6, 1.2])
def test_deadline_that_is_set_right_before_a_tick_leaves_all_its_time(clock: Clock, seconds: float) -> None:
    clock.wait()
    gevent.sleep(0.9 * TICK)
    begin = time.monotonic()
    Deadline(seconds, Late())
    with pytest.raises(Late):
        gevent.sleep(10)
    assert time.monotonic() - begin >= seconds


@pytest.mark.parametrize("seconds", [0.4, 1.0, 1.2])
def test_client_gets_all_of_the_close_timeout_if_a_tick_comes_right_behind_the_close(
    pairs: Pairs, clock: Clock, seconds: float
) -> None:
    connection, _ = pairs(limits=Limits(close_timeout=seconds))
    clock.wait()
    gevent.sleep(0.9 * TICK)
    begin = time.monotonic()
    connection.close()
    until(lambda: connection.state is CLOSED)
    assert time.monotonic() - begin >= seconds


def test_time_in_which_the_process_stood_still_does_not_count() -> None:
    sweep_of_loop()
    gevent.sleep(0)
    time.sleep(3 * TICK)  # stops the whole process
    begin = time.monotonic()
    Deadline(0.1, Late())
    with pytest.raises(Late):
        gevent.sleep(10)
    assert time.monotonic() - begin >= 0.1


def test_what_gets_a_later_deadline_while_it_is_due_is_looked_at_at_the_later_one() -> None:
    looks: list[int] = []
    sweep = sweep_of_loop()

    class Rival:
        """Puts off the deadline of the other one."""

        due = 0
        other: Rival

        def on_due(self) -> None:
            looks.append(sweep.now)
            if len(looks) == 1:
                sweep.look_at(self.other, sweep.now + 2)

    one, two = Rival(), Rival()
    one.other, two.other = two, one
    sweep.look_at(one, sweep.now + 2)
    sweep.look_at(two, sweep.now + 2)
    until(lambda: len(looks) == 2)
    assert looks[1] == looks[0] + 2
