"""How greenlets wait: one for each source, nothing is lost, and no greenlet is woken that no longer waits."""

from __future__ import annotations

import gc
import os
import select
import socket
import sys
import weakref
from asyncio.events import _get_running_loop
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from django.http import HttpResponse
from gevent import monkey
from gevent.hub import get_hub

from django_websocket.asgi.loop import HubLoop
from django_websocket.select import select as wait_for
from django_websocket.transport.clients import ClientGreenlet
from django_websocket.transport.connection import Connection
from django_websocket.transport.waiting import Readable, Signal, ViewGreenlet, close_at_end, readable_with, wait
from django_websocket.websocket import WebSocket

from .support.waiting import until
from .support.wire import Pairs, descriptors


@pytest.fixture(params=["eventfd", "pipe"])
def signal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Signal]:
    if request.param == "pipe":
        monkeypatch.setattr(sys, "platform", "somewhere else")
    elif not hasattr(os, "eventfd"):
        pytest.skip("this system has no eventfd")
    gc.collect()  # other tests may have left it something
    before = descriptors()
    signal = Signal()
    yield signal
    signal.close()
    assert not descriptors() - before


def readable(fd: int) -> bool:
    """Ask the kernel."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(0))


class Box(Readable):
    """A source of things to take."""

    def __init__(self) -> None:
        super().__init__()
        self.things: list[Any] = []

    def ready(self) -> bool:
        return bool(self.things)

    def put(self, thing: Any) -> None:
        self.things.append(thing)
        self._changed()

    def take(self, timeout: float | None = None) -> Any:
        while not self.things:
            if not wait((self,), timeout):
                raise TimeoutError
        return self.things.pop(0)


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend to be in a worker, where the standard library's select() is ours."""
    monkeypatch.setitem(monkey.saved, "select", {})  # type: ignore[attr-defined]


class View(ViewGreenlet):
    """A greenlet that runs a function as if it were a view."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__()
        self.function = function

    def _run(self) -> Any:
        try:
            return self.function()
        finally:
            self.close_all()


# --- the descriptor ---------------------------------------------------------------------------------------------


def test_a_signal_is_readable_while_it_is_set(signal: Signal) -> None:
    assert not readable(signal.fileno())
    for value in (True, True, False, False, True):
        signal.set(value)
        assert readable(signal.fileno()) is value


def test_setting_a_signal_never_blocks(signal: Signal) -> None:
    for _ in range(100_000):
        signal.set(True)
    signal.set(False)
    assert not readable(signal.fileno())


def test_the_descriptor_is_made_on_demand_and_stays_the_same() -> None:
    get_hub()  # the loop has descriptors of its own
    gc.collect()  # other tests may have left it something
    before = descriptors()
    box = Box()
    assert not descriptors() - before
    number = box.fileno()
    assert box.fileno() == number
    assert [each.split()[0] for each in descriptors() - before] == [f"{number}"]
    assert readable_with(number) is box
    box.close_fileno()
    box.close_fileno()
    assert not descriptors() - before
    assert readable_with(number) is None


def test_a_new_descriptor_shows_whether_something_is_there() -> None:
    box = Box()
    box.put(1)
    assert readable(box.fileno())
    box.take()
    box._changed()
    assert not readable(box.fileno())
    box.close_fileno()


def test_the_descriptor_is_not_inherited() -> None:
    box = Box()
    assert not os.get_inheritable(box.fileno())
    box.close_fileno()


# --- waiting ----------------------------------------------------------------------------------------------------


def test_a_waiting_greenlet_gets_what_arrives() -> None:
    box = Box()
    taker = gevent.spawn(box.take)
    gevent.sleep(0)
    assert not taker.ready()
    box.put("thing")
    assert taker.get(timeout=5) == "thing"


def test_nothing_is_lost_with_a_greenlet_that_was_killed_while_it_waited() -> None:
    box = Box()
    taker = gevent.spawn(box.take)
    gevent.sleep(0)
    taker.kill(block=False)
    box.put("thing")  # both happen in the next round of the loop
    gevent.sleep(0.001)
    assert taker.ready()
    assert box.take(timeout=5) == "thing"


@pytest.mark.parametrize("timeout", [None, 5])
def test_a_second_waiter_gets_an_error_that_says_what_to_do(timeout: float | None) -> None:
    box = Box()
    taker = gevent.spawn(box.take, timeout)
    gevent.sleep(0)
    with pytest.raises(RuntimeError, match="Queue"):
        box.take(timeout=5)
    box.put(1)
    assert taker.get(timeout=5) == 1


def test_a_second_waiter_releases_the_sources_that_it_had_claimed() -> None:
    taken, free = Box(), Box()
    taker = gevent.spawn(taken.take)
    gevent.sleep(0)
    with pytest.raises(RuntimeError):
        wait((free, taken))
    other = gevent.spawn(free.take)
    gevent.sleep(0)
    free.put(1)
    taken.put(2)
    assert (other.get(timeout=5), taker.get(timeout=5)) == (1, 2)


def test_waiting_ends_after_its_timeout_and_only_then() -> None:
    box = Box()
    assert wait((box,), 0) is False
    assert wait((box,), 0.01) is False
    assert wait((), 0) is False
    gevent.spawn_later(0.01, box.put, 1)
    assert wait((box,), 5) is True


def test_a_gevent_timeout_of_the_caller_passes_through() -> None:
    box = Box()
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
        wait((box,), 5)
    with gevent.Timeout(0.01, False):  # type: ignore[arg-type]
        wait((box,), None)
    with pytest.raises(KeyError), gevent.Timeout(0.01, KeyError):
        wait((box,))
    assert box._waiter is None


def test_a_source_does_not_wake_a_greenlet_that_an_exception_took_away() -> None:
    """A switch to a greenlet that waits for something else by now would be an error in the hub, or worse."""
    box = Box()
    log = []

    def view() -> None:
        try:
            box.take()
        except ZeroDivisionError:
            log.append("thrown")
            gevent.sleep(0.01)
            log.append("slept")

    running = gevent.spawn(view)
    gevent.sleep(0)
    get_hub().loop.run_callback(running.throw, ZeroDivisionError)
    box.put(2)
    until(lambda: log)
    box.put(3)
    running.get(timeout=5)
    assert log == ["thrown", "slept"]
    assert (box.take(), box.take()) == (2, 3)


def test_one_source_may_be_given_twice() -> None:
    box = Box()
    gevent.spawn_later(0.001, box.put, 1)
    assert wait((box, box), 5)
    assert box._waiter is None


def test_the_first_of_several_sources_ends_the_wait() -> None:
    boxes = [Box() for _ in range(5)]
    gevent.spawn_later(0.001, boxes[3].put, 1)
    assert wait(boxes, 5)
    assert [box.ready() for box in boxes] == [False, False, False, True, False]


# --- views ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "way", [lambda box: wait([box]), lambda box: wait([box], 5.0), lambda box: box._wait()], ids=["any", "5 s", "one"]
)
def test_no_greenlet_sees_the_asyncio_loop_of_a_coroutine_that_waits_without_await(way: Callable[[Box], Any]) -> None:
    seen: list[object] = []
    box = Box()

    def look() -> None:
        seen.append(_get_running_loop())
        box.put("thing")

    async def wait_for_the_box() -> None:
        gevent.spawn(look)
        way(box)
        seen.append(_get_running_loop())

    loop = HubLoop()
    try:
        loop.run_until_complete(wait_for_the_box())
    finally:
        loop.close()
    assert seen == [None, loop]


def test_before_waiting_is_called_before_each_wait(pairs: Pairs) -> None:
    connection, peer = pairs()
    calls = []

    def function() -> list[str | bytes | None]:
        return [connection.receive(), connection.receive(timeout=5), connection.receive()]

    view = View(function)
    view.before_waiting = lambda for_files: calls.append(len(calls))
    view.start()
    for number, text in enumerate("abc", 1):
        until(lambda number=number: len(calls) == number and connection._waiter is not None)  # type: ignore[misc]
        peer.text(text)
    assert view.get(timeout=5) == ["a", "b", "c"]
    assert calls == [0, 1, 2]


def test_after_waiting_is_called_as_long_as_before_waiting_is_set(pairs: Pairs) -> None:
    connection, peer = pairs()
    calls: list[str] = []

    class Keeping(View):
        def after_waiting(self) -> None:
            calls.append("after")

    def before_waiting(for_files: bool) -> None:
        calls.append("before, with files" if for_files else "before")
        if len(calls) > 6:
            view.before_waiting = None

    def function() -> None:
        connection.receive()
        wait_for([connection, ours], [], [], 5)
        connection.receive(timeout=5)
        with pytest.raises(TimeoutError):
            connection.receive(timeout=0.01)
        connection.receive()
        connection.receive()

    ours, theirs = socket.socketpair()
    with ours, theirs:
        view = Keeping(function)
        view.before_waiting = before_waiting
        view.start()
        for number in (1, 3, 7, 7):
            until(lambda number=number: len(calls) == number and connection._waiter is not None)  # type: ignore[misc]
            peer.text("x")
        view.get(timeout=5)
    assert calls == ["before", "after", "before, with files", "after", "before", "after", "before"]


def test_before_waiting_is_not_called_without_a_wait(pairs: Pairs) -> None:
    connection, peer = pairs()
    peer.text("a", "b")
    until(lambda: connection.inbox)
    view = View(lambda: [connection.receive(), connection.receive(timeout=5)])
    view.before_waiting = lambda for_files: pytest.fail("called")
    view.start()
    assert view.get(timeout=5) == ["a", "b"]


@pytest.mark.parametrize("timeout", [None, 5])
def test_an_exception_of_before_waiting_reaches_the_view(pairs: Pairs, timeout: float | None) -> None:
    connection, peer = pairs()

    def refuse(for_files: bool) -> None:
        raise RuntimeError("inside a transaction")

    def function() -> str | bytes | None:
        with pytest.raises(RuntimeError, match="transaction"):
            connection.receive(timeout)
        view.before_waiting = None
        return connection.receive(timeout)

    view = View(function)
    view.before_waiting = refuse
    view.start()
    gevent.sleep(0)
    peer.text("a")
    assert view.get(timeout=5) == "a"


@pytest.mark.parametrize("timeout", [None, 5])
def test_a_message_that_comes_during_before_waiting_is_noticed(pairs: Pairs, timeout: float | None) -> None:
    connection, peer = pairs()

    def give_back(for_files: bool) -> None:
        peer.text("came meanwhile")
        until(lambda: connection.inbox)

    view = View(lambda: connection.receive(timeout))
    view.before_waiting = give_back
    view.start()
    assert view.get(timeout=5) == "came meanwhile"


class Opened:
    def __init__(self) -> None:
        self.closed = 0
        self.left: list[tuple[int, str]] = []

    def client_left(self, code: int, reason: str) -> None:
        self.left.append((code, reason))

    def close(self) -> None:
        self.closed += 1


def test_what_a_view_opened_is_closed_however_it_ends() -> None:
    for failure in (None, ValueError, gevent.GreenletExit):
        opened = [Opened(), Opened()]

        def function(opened: list[Opened] = opened, failure: type[BaseException] | None = failure) -> None:
            for thing in opened:
                close_at_end(thing)
            gevent.sleep(0)
            assert opened[0].closed == 0
            if failure is not None:
                raise failure

        view = View(function)
        view.start()
        view.join(timeout=5)
        assert [thing.closed for thing in opened] == [1, 1]


def test_what_a_view_opened_learns_that_the_client_has_left() -> None:
    opened = Opened()

    def function() -> None:
        close_at_end(opened)
        gevent.sleep(0.001)
        view.client_left(1001, "bye")

    view = View(function)
    view.start()
    view.get(timeout=5)
    assert opened.left == [(1001, "bye")]


def test_what_a_view_opened_is_not_kept_alive_until_its_end() -> None:
    def function() -> None:
        opened = Opened()
        close_at_end(opened)
        reference = weakref.ref(opened)
        del opened
        gc.collect()
        assert reference() is None

    view = View(function)
    view.start()
    view.get(timeout=5)


def test_outside_a_view_nothing_is_closed() -> None:
    opened = Opened()
    close_at_end(opened)
    gevent.spawn(close_at_end, opened).get(timeout=5)
    assert opened.closed == 0


def test_the_descriptor_of_a_websocket_lives_until_the_view_returns_and_no_longer(pairs: Pairs, patched: None) -> None:
    connection, peer = pairs()
    before = descriptors()
    [own] = [each for each in before if each.startswith(f"{connection._sock.fileno()} ")]
    numbers = []

    def function() -> None:
        websocket = WebSocket({}, HttpResponse(), lambda subprotocol: connection)
        numbers.append(websocket.fileno())
        peer.close_frame()
        while websocket.receive() is not None:
            pass
        until(lambda: not connection.connected)
        gevent.sleep(0.001)
        assert readable(numbers[0])  # views keep the number
        assert readable_with(numbers[0]) is connection

    view = View(function)
    view.start()
    view.get(timeout=10)
    assert readable_with(numbers[0]) is None
    left = descriptors()
    assert own not in left and not left - before


def test_a_connection_with_a_descriptor_is_not_kept_for_ever(pairs: Pairs, patched: None) -> None:
    """A thousand clients of a view with a select loop would otherwise stay in memory."""

    def function() -> weakref.ref[Connection]:
        connection, peer = pairs()
        WebSocket({}, HttpResponse(), lambda subprotocol: connection).fileno()
        peer.sock.close()
        until(lambda: not connection.connected)
        pairs.made.clear()
        return weakref.ref(connection)

    view = View(function)
    view.start()
    reference: Any = view.get(timeout=10)
    del view
    gc.collect()
    assert reference() is None


def test_a_view_is_told_that_select_would_block_a_process_that_is_not_patched(pairs: Pairs) -> None:
    connection, peer = pairs()
    before = descriptors()
    view = View(WebSocket({}, HttpResponse(), lambda subprotocol: connection).fileno)
    view.start()
    with pytest.raises(RuntimeError, match=r"Use django_websocket\.select\.select"):
        view.get(timeout=10)
    assert not descriptors() - before


def test_greenlets_of_views_and_clients_do_not_know_who_made_them_but_those_of_projects_do() -> None:
    class View(ViewGreenlet):
        def _run(self) -> None:
            pass

    def serve(*args: Any) -> None:
        pass

    client: Any = object()
    for made in (View(), ClientGreenlet(serve, None, client, None)):
        assert made.spawning_stack is None
    assert gevent.Greenlet(serve).spawning_stack is not None
