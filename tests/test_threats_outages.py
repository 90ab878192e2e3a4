"""What goes wrong around a running server: Redis, clients that are slow or gone, views that keep a process busy.

test_threats.py has the list of all threats.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import ExitStack

import pytest
import redis as redis_py

from .support.clients import RawClient, fetch, request, undisturbed
from .support.fixtures import Connect, Raw, StartSite
from .support.frames import PING, close_frame, frame
from .support.processes import descriptors, forget_peak, memory, peak_memory, processor_time, worker_of
from .support.servers import NOT_MEASURED, Server, redis_server
from .support.waiting import DEADLINE, at_once, eventually

pytestmark = pytest.mark.slow


def selecting(stack: ExitStack, server: Server, channel: str) -> RawClient:
    """Connect to the view that uses select(); return the subscribed client."""
    client = stack.enter_context(RawClient(server.port))
    client.open(f"/selects/{channel}/")
    client.frame()
    assert client.frame().text == "subscribed"
    return client


# --- Redis -----------------------------------------------------------------------------------------------------------


def test_messages_published_once_the_client_is_accepted_reach_it(start_site: StartSite, key: str) -> None:
    """The 101 is sent once Redis has confirmed the subscription, however long that takes."""
    with (
        redis_server() as redis,
        start_site({"WEBSOCKET_BROKER": f"redis://{redis.address}/0"}) as server,
        redis_py.Redis(port=redis.port) as publisher,
        ExitStack() as stack,
    ):
        selecting(stack, server, key)  # from now on the process has a subscriber
        clients = [stack.enter_context(RawClient(server.port)) for _ in range(2)]
        redis.send_signal(signal.SIGSTOP)
        try:
            for view, client in zip(("listen", "forward"), clients, strict=True):
                client.send(request(f"/{view}/{key}-{view}/"))
            with RawClient(server.port) as later:
                later.open("/echo/", behind=frame("hello"))
                assert later.frame().text == "hello"
            for client in clients:
                client.sock.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    client.sock.recv(1)
                client.sock.settimeout(DEADLINE)
        finally:
            redis.send_signal(signal.SIGCONT)
        for view, client in zip(("listen", "forward"), clients, strict=True):
            assert client.response().status == 101
            publisher.publish(f"{key}-{view}", "hello")
            assert client.frame().text == "hello"


def test_subscription_that_redis_ended_because_it_was_not_read_is_noticed(start_site: StartSite, key: str) -> None:
    with (
        redis_server(args=["--client-output-buffer-limit", "pubsub 262144 0 0"]) as redis,
        start_site({"WEBSOCKET_BROKER": f"redis://{redis.address}/0"}) as server,
        redis_py.Redis(port=redis.port) as publisher,
        ExitStack() as stack,
    ):
        client = selecting(stack, server, key)
        worker = worker_of(server)
        os.kill(worker, signal.SIGSTOP)
        try:
            assert eventually(lambda: not publisher.publish(key, "x" * 500_000))  # nobody is subscribed any more
        finally:
            os.kill(worker, signal.SIGCONT)
        while client.frame().text != "MessagesMissed":
            pass
        assert eventually(lambda: publisher.publish(key, "again") == 1)
        while client.frame().text != "again":
            pass


def test_redis_without_free_connections_is_reported_and_used_again_later(start_site: StartSite, key: str) -> None:
    with (
        redis_server(args=["--maxclients", "10"]) as redis,
        start_site({"WEBSOCKET_BROKER": f"redis://{redis.address}/0"}) as server,
        ExitStack() as stack,
    ):
        with ExitStack() as others:
            taken = time.monotonic()  # when Redis last had room; it may still count a connection that was closed
            while time.monotonic() < taken + 0.5:
                other = RawClient(redis.port)
                other.send(b"PING\r\n")
                if other.sock.recv(100) == b"+PONG\r\n":
                    others.enter_context(other)
                    taken = time.monotonic()
                else:
                    other.sock.close()
            stack.enter_context(undisturbed(server.port))  # not before: its client would have the server connect
            client = stack.enter_context(RawClient(server.port))
            with at_once():
                client.send(request(f"/listen/{key}/"))
                assert client.response().status == 503
            assert eventually(lambda: "max number of clients reached" in server.log)
            assert "Traceback" not in server.log
        client = stack.enter_context(RawClient(server.port))
        client.open(f"/forward/{key}/", behind=frame("hello"))
        assert client.frame().text == "hello"


def test_redis_that_hangs_does_not_delay_clients_that_do_not_need_it(start_site: StartSite, key: str) -> None:
    """More views publish than there are connections to publish on."""
    with (
        redis_server() as redis,
        start_site({"WEBSOCKET_BROKER": f"redis://{redis.address}/0"}) as server,
        undisturbed(server.port),
        ExitStack() as stack,
    ):
        clients = [stack.enter_context(RawClient(server.port)) for _ in range(40)]
        for client in clients:
            client.open(f"/forward/{key}/")
        clients[0].send(frame("hello"))
        assert [client.frame().text for client in clients] == ["hello"] * 40
        redis.send_signal(signal.SIGSTOP)
        try:
            for client in clients:
                client.send(frame("hello?"))
                client.sock.settimeout(15)
            late = stack.enter_context(RawClient(server.port))
            late.send(request(f"/listen/late-{key}/"))
            assert late.response().status == 503
            assert [client.closing()[0] for client in clients] == [1013] * 40
        finally:
            redis.send_signal(signal.SIGCONT)
        again = stack.enter_context(RawClient(server.port))
        again.open(f"/forward/{key}/", behind=frame("hello"))
        while again.frame().text != "hello":  # the delayed messages may still be published
            pass
        assert "Traceback" not in server.log


def test_message_that_no_client_could_take_is_refused_by_publish(site: Server, raw: Raw, key: str) -> None:
    client = raw(site)
    client.open(f"/listen/{key}/")
    assert fetch(site.port, f"/publish/{key}/?text=x&times=1048577").status == 500
    assert fetch(site.port, f"/publish/{key}/?text=fine").status == 200
    assert client.frame().text == "fine"


# --- clients that are slow or gone -----------------------------------------------------------------------------------


def test_slow_readers_take_no_more_than_an_outbox_each(start_site: StartSite, key: str) -> None:
    with start_site(env=NOT_MEASURED) as server, undisturbed(server.port), ExitStack() as stack:
        worker = worker_of(server)
        files = descriptors(worker)
        begin = memory(worker)
        forget_peak(worker)
        for number in range(10):  # each on a channel of its own, so that they share no waiting messages
            client = stack.enter_context(RawClient(server.port, receive_buffer=4096))
            client.open(f"/listen/{key}-{number}/")
            for _ in range(40):
                assert fetch(server.port, f"/publish/{key}-{number}/?text=x&times=500000").status == 200
        assert peak_memory(worker) - begin < 20 * 1024  # KiB
        assert eventually(lambda: descriptors(worker) <= files)  # they were closed


def test_worker_does_nothing_for_clients_that_are_gone_or_not_read(start_site: StartSite, key: str) -> None:
    """A descriptor that is readable or at its end must wake nobody while nobody reads it."""
    settings = {"WEBSOCKET_PING_INTERVAL": 3.0, "WEBSOCKET_PING_TIMEOUT": 60.0, "WEBSOCKET_CLOSE_TIMEOUT": 60.0}
    with start_site(settings, env=NOT_MEASURED) as server, ExitStack() as stack:
        worker = worker_of(server)
        clock = stack.enter_context(RawClient(server.port))
        for number in range(30):
            client = stack.enter_context(RawClient(server.port, receive_buffer=4096))
            client.open((f"/busy/?key={key}", f"/selects/{key}/", "/flood/")[number % 3])
            how = number // 3 % 5
            if how == 0:  # more than its view receives
                client.send(*(frame("x" * 10_000) for _ in range(40)))
            elif how == 1:  # a message, a close frame, and the end of the stream
                client.send(frame("x"), close_frame(1000))
                client.sock.shutdown(socket.SHUT_WR)
            elif how == 2:  # a protocol error, and no reading of the answer
                client.send(b"\x81\x00", frame("x") * 1000)
            elif how == 3:  # half a frame, and the end of the stream
                client.send(frame("x" * 100)[:50])
                client.sock.shutdown(socket.SHUT_WR)
            else:  # a close frame, and then nothing
                client.send(close_frame(1000))
        clock.open("/echo/")
        begin, computed = time.monotonic(), processor_time(worker)
        while clock.frame().opcode != PING:
            pass
        assert (processor_time(worker) - computed) / (time.monotonic() - begin) < 0.25
        fetch(server.port, f"/gate/{key}/")


# --- views that keep the process busy --------------------------------------------------------------------------------


def test_worker_that_a_view_keeps_busy_is_replaced(start_site: StartSite, connect: Connect) -> None:
    with start_site(args=["--timeout", "4"]) as server:
        before = worker_of(server)
        other = connect(server, "/echo/")
        connect(server, "/computes/").send("go")
        assert other.closing()[0] in (1006, 1012)
        assert "WORKER TIMEOUT" in server.log
        assert connect(server, "/echo/").ask("hello") == "hello"
        assert worker_of(server) != before
