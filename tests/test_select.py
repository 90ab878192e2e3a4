"""select() over everything that can be waited for: it works like the standard library's, without its limit."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import resource
import select as standard
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from django.http import HttpResponse

from django_websocket.pubsub.hub import Hub
from django_websocket.pubsub.memory import MemoryBroker
from django_websocket.pubsub.subscription import Subscription
from django_websocket.select import select
from django_websocket.transport.limits import Limits
from django_websocket.transport.waiting import ViewGreenlet
from django_websocket.websocket import WebSocket

from .support.frames import close_frame, frame
from .support.waiting import until
from .support.wire import Pairs, Peer, descriptors

Lists = list[tuple[list[Any], ...]]  # arguments of select


class Channel:
    """A subscription, and the means to publish to it."""

    def __init__(self) -> None:
        self._broker = MemoryBroker()
        self.subscription = Subscription(Hub(self._broker), ["news"], 1 << 20)

    def publish(self, *texts: str) -> None:
        for text in texts:
            self._broker.publish("news", text.encode())
        until(lambda: self.subscription.ready())


@pytest.fixture
def channel(pairs: Pairs) -> Iterator[Channel]:
    channel = Channel()
    yield channel
    channel.subscription.close()


@pytest.fixture
def pipe(pairs: Pairs) -> Iterator[tuple[int, int]]:
    """The two ends of a pipe: one to read from, one to write to."""
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def websocket(pairs: Pairs, **options: Any) -> tuple[WebSocket, Peer]:
    connection, peer = pairs(**options)
    return WebSocket({"PATH_INFO": "/"}, HttpResponse(), lambda subprotocol: connection), peer


def readable(fd: int) -> bool:
    """Ask the kernel, and let no other greenlet run."""
    poller = standard.poll()
    poller.register(fd, standard.POLLIN)
    return bool(poller.poll(0))


def selecting(*lists: Any) -> gevent.Greenlet[..., Any]:
    """Start a greenlet that waits in select()."""
    greenlet = gevent.spawn(select, *lists)
    gevent.sleep(0)
    gevent.sleep(0)
    return greenlet


# --- what can be waited for -------------------------------------------------------------------------------------


def test_everything_may_be_mixed_and_is_returned_as_it_was_given(
    pairs: Pairs, channel: Channel, pipe: tuple[int, int]
) -> None:
    ws, peer = websocket(pairs)
    left, right = socket.socketpair()
    with left, right, tempfile.TemporaryFile() as file, os.fdopen(os.dup(pipe[0]), "rb") as reader:
        everything = [ws, ws.fileno(), ws.handler.socket, channel.subscription, left, left.fileno(), pipe[0], reader]
        assert select(everything, [], [], 0) == ([], [], [])
        assert select([*everything, file], [], [], 0) == ([file], [], [])  # a plain file is always ready
        os.write(pipe[1], b"x")
        assert select(everything, [], []) == ([pipe[0], reader], [], [])
        right.send(b"x")
        channel.publish("x")
        peer.text("x")
        until(ws.readiness.ready)
        ready, _, _ = select(everything, [right], [])
        assert set(map(id, ready)) == set(map(id, everything))


@pytest.mark.parametrize("kind", ["websocket", "its number", "its handler's socket", "subscription", "pipe", "socket"])
def test_each_source_wakes_the_greenlet(pairs: Pairs, channel: Channel, pipe: tuple[int, int], kind: str) -> None:
    ws, peer = websocket(pairs)
    left, right = socket.socketpair()
    with left, right:
        things: dict[str, tuple[Any, Callable[[], object]]] = {
            "websocket": (ws, lambda: peer.text("x")),
            "its number": (ws.fileno(), lambda: peer.text("x")),
            "its handler's socket": (ws.handler.socket, lambda: peer.text("x")),
            "subscription": (channel.subscription, lambda: channel.publish("x")),
            "pipe": (pipe[0], lambda: os.write(pipe[1], b"x")),
            "socket": (left, lambda: right.send(b"x")),
        }
        thing, wake = things[kind]
        others = [other for name, (other, _) in things.items() if not name.startswith(("web", "its")) and name != kind]
        waiting = selecting([thing, *others], [], [])
        assert not waiting.ready()
        wake()
        assert waiting.get(timeout=5) == ([thing], [], [])


def test_sources_that_become_ready_together_are_all_returned(pairs: Pairs, channel: Channel) -> None:
    ws, peer = websocket(pairs)
    peer.text("x")
    channel.publish("y")
    until(ws.readiness.ready)
    assert select([ws, channel.subscription], [], []) == ([ws, channel.subscription], [], [])
    assert (ws.receive(), channel.subscription.get()) == ("x", "y")
    assert select([ws, channel.subscription], [], [], 0) == ([], [], [])


def test_descriptors_beyond_1023_are_taken(pairs: Pairs) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 1200:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1200, hard))
    try:
        left, right = socket.socketpair()
        with left, right, socket.socket(fileno=fcntl.fcntl(left, fcntl.F_DUPFD_CLOEXEC, 1100)) as high:
            assert high.fileno() > 1023
            assert select([high.fileno()], [high], [], 5) == ([], [high], [])
            waiting = selecting([high], [], [])
            right.send(b"x")
            assert waiting.get(timeout=5) == ([high], [], [])
            with pytest.raises(ValueError):  # the standard library's
                standard.select([high], [], [], 0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_lists_may_be_any_iterables(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"x")
    assert select(iter([pipe[0]]), (), set()) == ([pipe[0]], [], [])


# --- readiness has one meaning ----------------------------------------------------------------------------------


def test_a_ping_and_half_a_frame_wake_nobody(pairs: Pairs) -> None:
    ws, peer = websocket(pairs)
    fd = ws.fileno()
    waiting = selecting([ws], [], [])
    whole = frame("whole")
    for number, part in enumerate((b"", whole[:1], whole[1:7]), 1):
        if part == b"" or number == 1:
            peer.ping()
        if part:
            peer.write(part)
    peer.until_frames(1)
    assert ws.connection is not None
    engine = ws.connection._engine
    until(lambda: engine._data or engine._missing)
    assert not waiting.ready() and not readable(fd)
    peer.write(whole[7:])
    assert waiting.get(timeout=5) == ([ws], [], [])
    assert readable(fd)
    assert ws.receive(timeout=0) == "whole"
    assert not readable(fd)


def test_a_pong_wakes_nobody(pairs: Pairs) -> None:
    ws, peer = websocket(pairs)
    fd = ws.fileno()
    peer.write(frame(b"", 10) + frame(b"", 9))
    peer.until_frames(1)
    assert not readable(fd)
    assert select([ws], [], [], 0) == ([], [], [])


def test_the_descriptor_is_readable_while_a_message_waits(pairs: Pairs) -> None:
    ws, peer = websocket(pairs)
    fd = ws.fileno()
    peer.text("a", "b", "c")
    until(lambda: readable(fd))
    for text in "abc":
        assert readable(fd)
        assert select([ws], [], [], 0) == ([ws], [], [])
        assert ws.receive() == text
    assert not readable(fd)


def test_the_descriptor_is_readable_while_a_message_waits_beyond_the_inbox(pairs: Pairs) -> None:
    ws, peer = websocket(pairs, limits=Limits(inbox_messages=2))
    fd = ws.fileno()
    peer.text("a", "b", "c", "d", "e")
    until(lambda: readable(fd))
    for text in "abcde":
        assert readable(fd), f"{text!r} is still in memory"
        assert ws.receive() == text
    assert not readable(fd)


def test_select_wakes_for_each_message_beyond_the_inbox(pairs: Pairs) -> None:
    ws, peer = websocket(pairs, limits=Limits(inbox_messages=2))
    peer.text(*map(str, range(100)))
    got: list[str | bytes | None] = []
    while len(got) < 100:
        assert select([ws], [], [], 5) == ([ws], [], [])
        got.append(ws.receive(timeout=0))
    assert got == list(map(str, range(100)))


def test_a_descriptor_made_late_shows_a_waiting_message(pairs: Pairs) -> None:
    ws, peer = websocket(pairs)
    peer.text("a")
    until(ws.readiness.ready)
    assert readable(ws.fileno())
    ws.receive()
    assert not readable(ws.fileno())


@pytest.mark.parametrize("how", ["client closes", "client vanishes", "failure", "we close"])
def test_the_end_is_readable_and_stays_so(pairs: Pairs, how: str) -> None:
    ws, peer = websocket(pairs)
    fd = ws.fileno()
    waiting = selecting([ws], [], [])
    if how == "client closes":
        peer.close_frame()
    elif how == "client vanishes":
        peer.sock.close()
    elif how == "failure":
        peer.write(b"\xff\xff")
    else:
        ws.close()
    assert waiting.get(timeout=5) == ([ws], [], [])
    for _ in range(3):
        assert readable(fd)
        assert select([ws], [], []) == ([ws], [], [])
        assert ws.receive(timeout=0) is None


def test_a_message_and_a_close_in_one_segment_are_both_seen_by_a_loop(pairs: Pairs) -> None:
    ws, peer = websocket(pairs)
    peer.write(frame("last") + close_frame(1000))
    seen = []
    while not ws.closed:
        ready, _, _ = select([ws], [], [], 5)
        assert ready
        seen.append(ws.receive())
    assert seen == ["last"]


def test_discarded_input_is_never_ready(pairs: Pairs) -> None:
    ws, peer = websocket(pairs, discard=True)
    fd = ws.fileno()
    peer.text("a", "b")
    peer.ping()
    peer.until_frames(1)
    assert not readable(fd)
    assert select([ws], [], [], 0) == ([], [], [])
    peer.close_frame()
    assert select([ws], [], [], 5) == ([ws], [], [])


def test_dropping_the_input_makes_the_descriptor_unreadable(pairs: Pairs) -> None:
    ws, peer = websocket(pairs)
    fd = ws.fileno()
    peer.text("a", "b")
    until(lambda: readable(fd))
    assert ws.connection is not None
    ws.connection.drop_input()
    assert not readable(fd)


def test_a_subscription_is_ready_exactly_while_a_message_waits(channel: Channel) -> None:
    fd = channel.subscription.fileno()
    assert not readable(fd)
    channel.publish("a", "b")
    for text in "ab":
        assert readable(fd)
        assert select([channel.subscription], [], [], 0) == ([channel.subscription], [], [])
        assert channel.subscription.get(timeout=0) == text
    assert not readable(fd)
    waiting = selecting([channel.subscription], [], [])
    channel.subscription.close()
    assert waiting.get(timeout=5) == ([channel.subscription], [], [])
    assert channel.subscription.get() is None


# --- time -------------------------------------------------------------------------------------------------------


def test_a_timeout_of_zero_does_not_wait(pairs: Pairs, pipe: tuple[int, int]) -> None:
    ws, peer = websocket(pairs)
    assert select([ws, pipe[0]], [], [], 0) == ([], [], [])
    peer.text("a")
    until(lambda: select([ws, pipe[0]], [], [], 0) == ([ws], [], []))  # each look lets the loop run
    assert select([], [], [], 0) == ([], [], [])


def test_a_timeout_ends_the_wait_with_three_empty_lists(pairs: Pairs, pipe: tuple[int, int]) -> None:
    ws, _ = websocket(pairs)
    for rlist in ([ws], [pipe[0]], [ws, pipe[0]], []):
        begun = time.monotonic()
        assert select(rlist, [], [], 0.05) == ([], [], [])
        assert 0.04 < time.monotonic() - begun < 2


def test_a_descriptor_that_becomes_ready_in_time_is_returned(pipe: tuple[int, int]) -> None:
    gevent.spawn_later(0.01, os.write, pipe[1], b"x")
    assert select([pipe[0]], [], [], 5) == ([pipe[0]], [], [])


def test_several_greenlets_may_wait_for_one_descriptor(pipe: tuple[int, int]) -> None:
    waiting = [selecting([pipe[0]], [], []) for _ in range(3)]
    os.write(pipe[1], b"x")
    assert [greenlet.get(timeout=5) for greenlet in waiting] == [([pipe[0]], [], [])] * 3


def test_a_negative_timeout_is_an_error(pipe: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="timeout"):
        select([pipe[0]], [], [], -1)
    with pytest.raises(ValueError, match="timeout"):
        select([], [], [], -0.001)


def test_nan_as_a_timeout_is_an_error_and_all_timers_go_on(
    pairs: Pairs, channel: Channel, pipe: tuple[int, int]
) -> None:
    nan = float("nan")
    ws, _ = websocket(pairs)
    for call in (
        lambda: select([ws], [], [], nan),
        lambda: select([pipe[0]], [], [], nan),
        lambda: ws.receive(timeout=nan),
        lambda: ws.receive_json(timeout=nan),
        lambda: channel.subscription.get(timeout=nan),
    ):
        with pytest.raises(ValueError, match="NaN"), gevent.Timeout(5):
            call()
    gevent.sleep(0.001)


def test_a_gevent_timeout_leaves_nothing_behind(pairs: Pairs, pipe: tuple[int, int]) -> None:
    ws, peer = websocket(pairs)
    ws.fileno()
    before = descriptors()
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
        select([ws, pipe[0]], [], [])
    os.write(pipe[1], b"x")
    peer.text("a")
    gevent.sleep(0.01)  # a greenlet that still waited would be switched to now
    until(ws.readiness.ready)
    assert select([ws, pipe[0]], [], []) == ([ws, pipe[0]], [], [])
    assert not descriptors() - before


# --- writing and exceptional conditions -------------------------------------------------------------------------


def test_select_waits_until_it_is_possible_to_write(pairs: Pairs) -> None:
    left, right = socket.socketpair()
    with left, right:
        assert select([], [left, left.fileno()], []) == ([], [left, left.fileno()], [])
        left.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                left.send(b"x" * 65536)
        assert select([left], [left], [], 0) == ([], [], [])
        waiting = selecting([left], [left], [])
        assert not waiting.ready()
        right.send(b"y")
        assert waiting.get(timeout=5) == ([left], [], [])
        left.recv(1)
        waiting = selecting([left], [left], [])
        right.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                right.recv(1 << 20)
        until(waiting.ready)
        assert waiting.get() == ([], [left], [])
        right.send(b"y")
        assert select([left], [left], []) == ([left], [left], [])


def test_a_hang_up_is_readable(pipe: tuple[int, int]) -> None:
    reader, writer = os.pipe()
    try:
        waiting = selecting([reader], [], [])
        os.close(writer)
        assert waiting.get(timeout=5) == ([reader], [], [])
    finally:
        os.close(reader)


def test_a_pipe_without_a_reader_is_writable() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert select([], [writer], [], 5) == ([], [writer], [])
    finally:
        os.close(writer)


def test_urgent_data_is_exceptional(pairs: Pairs) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with client, server:
        assert select([server], [], [server], 0) == ([], [], [])
        client.send(b"!", socket.MSG_OOB)
        until(lambda: select([], [], [server], 0) == ([], [], [server]))


# --- errors -----------------------------------------------------------------------------------------------------


def test_a_closed_descriptor_is_an_error(pairs: Pairs, pipe: tuple[int, int]) -> None:
    ws, _ = websocket(pairs)
    closed = os.dup(pipe[0])
    os.close(closed)
    os.write(pipe[1], b"x")
    wrong: Lists = [([closed], []), ([], [closed]), ([ws, closed], []), ([pipe[0], closed], []), ([closed], [pipe[1]])]
    for read, write in wrong:
        for timeout in (0, 5, None):
            with pytest.raises(OSError) as error:
                select(read, write, [], timeout)
            assert error.value.errno == errno.EBADF
    with pytest.raises(OSError):
        select([], [], [closed], 0)


def test_a_negative_descriptor_is_an_error(pairs: Pairs) -> None:
    ws, _ = websocket(pairs)
    sock = socket.socket()
    sock.close()
    wrong: Lists = [([-1], [], []), ([], [-1], []), ([], [], [-1]), ([sock], [], []), ([ws, -1], [], [])]
    for read, write, errors in wrong:
        with pytest.raises(ValueError, match="negative"):
            select(read, write, errors, 0)


class Odd:
    def fileno(self) -> Any:
        return "1"


def test_an_object_without_a_descriptor_is_an_error(pairs: Pairs) -> None:
    ws, _ = websocket(pairs)
    for thing in (object(), "1", None, 1.5, Odd()):
        wrong: Lists = [([thing], [], []), ([], [thing], []), ([], [], [thing]), ([ws, thing], [], [])]
        for read, write, errors in wrong:
            with pytest.raises(TypeError, match="fileno"):
                select(read, write, errors, 0)


def test_two_greenlets_cannot_wait_for_one_websocket(pairs: Pairs, pipe: tuple[int, int]) -> None:
    ws, peer = websocket(pairs)
    first = gevent.spawn(ws.receive)
    gevent.sleep(0)
    for rlist in ([ws], [ws, pipe[0]], [ws.fileno()]):
        with pytest.raises(RuntimeError, match="(?i)another greenlet"):
            select(rlist, [], [], 5)
    peer.text("a")
    assert first.get(timeout=5) == "a"
    waiting = selecting([ws, pipe[0]], [], [])
    with pytest.raises(RuntimeError):
        ws.receive()
    os.write(pipe[1], b"x")
    assert waiting.get(timeout=5) == ([pipe[0]], [], [])
    peer.text("b")
    assert ws.receive(timeout=5) == "b"


# --- views ------------------------------------------------------------------------------------------------------


def test_a_view_releases_what_it_holds_before_it_waits(pairs: Pairs, pipe: tuple[int, int]) -> None:
    ws, peer = websocket(pairs)
    calls = []

    class View(ViewGreenlet):
        def _run(self) -> None:
            for rlist in ([ws], [ws, pipe[0]]):
                select(rlist, [], [])
                ws.receive()

    view = View()
    view.before_waiting = lambda for_files: calls.append(for_files)
    view.start()
    until(lambda: len(calls) == 1)
    peer.text("a")
    until(lambda: len(calls) == 2)
    peer.text("b")
    view.get(timeout=5)
    assert calls == [False, True]


def test_a_loop_over_a_source_that_is_always_ready_lets_others_run(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"x")
    others = []
    gevent.spawn(lambda: others.append(1))
    deadline = time.monotonic() + 5
    while not others and time.monotonic() < deadline:
        assert select([pipe[0]], [], []) == ([pipe[0]], [], [])
    assert others


def test_a_busy_source_does_not_starve_the_other(pairs: Pairs, channel: Channel) -> None:
    ws, peer = websocket(pairs)
    channel.publish(*map(str, range(5000)))
    peer.text("hello")
    seen: list[Any] = []
    while len(seen) < 5001:
        ready, _, _ = select([ws, channel.subscription], [], [])
        if ws in ready:
            seen.append(ws.receive())
        if channel.subscription in ready:
            seen.append(channel.subscription.get())
    assert seen.index("hello") < 4000


def test_a_greenlet_that_selects_many_times_leaves_nothing(
    pairs: Pairs, channel: Channel, pipe: tuple[int, int]
) -> None:
    ws, peer = websocket(pairs)
    channel.subscription.fileno(), ws.fileno()
    gevent.sleep(0.001)
    before = descriptors()
    for number in range(300):
        gevent.spawn(os.write, pipe[1], b"x")
        assert select([ws, channel.subscription, pipe[0]], [], [], 5) == ([pipe[0]], [], [])
        os.read(pipe[0], 10)
        if number % 50 == 0:
            assert select([ws, pipe[0]], [], [], 0.001) == ([], [], [])
    gc.collect()
    assert not descriptors() - before
