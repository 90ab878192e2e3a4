"""Closing brokers: no connection is left, nothing is published afterwards, and all subscribers are told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import gevent
import gevent.socket
import gevent.threadpool
import pytest
import redis as redis_py
from django.http import HttpResponse

import django_websocket.pubsub.redis as redis_broker
from django_websocket import logins, pubsub
from django_websocket.exceptions import BrokerError
from django_websocket.handler import orders, users
from django_websocket.pubsub import publish, subscribe
from django_websocket.pubsub.broker import Broker, Listener
from django_websocket.pubsub.closing import Closed
from django_websocket.pubsub.encryption import EncryptedBroker
from django_websocket.pubsub.factory import broker_from
from django_websocket.pubsub.hub import Hub
from django_websocket.pubsub.memory import MemoryBroker
from django_websocket.pubsub.pipeline import Call, Queue, pack
from django_websocket.pubsub.redis_address import RedisAddress
from django_websocket.pubsub.subscription import Subscription
from django_websocket.select import select
from django_websocket.transport.connection import Connection
from django_websocket.websocket import WebSocket

from .support.brokers import connections_to, in_use
from .support.fixtures import SITE
from .support.frames import text
from .support.servers import Cluster, Sentinel, Server, redis_server
from .support.waiting import until
from .support.wire import Pairs

CLOSED = "was closed in this process"
CHANNELS = [f"news {number}" for number in range(20)]  # on all nodes of a Cluster


class Backend:
    """A broker, and what its servers know of its connections."""

    def __init__(self, setting: dict[str, Any], ask: Callable[..., Any] | None, servers: Sequence[Server]) -> None:
        self.setting = setting
        self.broker: Broker = broker_from(setting)
        self._ask = ask
        self.servers = servers

    def connected(self) -> int:
        """Count the servers' connections that bear this broker's name."""
        name = f" name={self.setting.get('client_name')} ".encode()
        assert self._ask is not None or not self.servers
        return sum(self._ask(server, "CLIENT", "LIST").count(name) for server in self.servers if self._ask)

    def descriptors(self) -> list[str]:
        """Return the states of this process's connections to the servers."""
        return [state for server in self.servers for state in connections_to(server.port)]


def ask_redis(server: Server, *words: str) -> Any:
    """Send a command to a server."""
    with redis_py.Redis(port=server.port) as client:
        return client.execute_command(*words)


@pytest.fixture
def cooperative(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let redis-py's sockets yield to other greenlets, as they do in a worker, where everything is patched."""
    monkeypatch.setattr(redis_py.connection, "socket", gevent.socket)


@pytest.fixture(params=["memory", "redis", "encrypted", "sentinel", "cluster"])
def backend(request: pytest.FixtureRequest, key: str) -> Iterator[Backend]:
    """Each broker in turn, with real servers."""
    kind = request.param
    setting: dict[str, Any] = {"client_name": key, "prefix": f"{key}:"}
    if kind == "memory":
        backend = Backend({"url": f"memory://{key}"}, None, [])
    elif kind == "sentinel":
        sentinel: Sentinel = request.getfixturevalue("sentinel")
        servers = [*sentinel.servers, *sentinel.sentinels]
        backend = Backend({**setting, **sentinel.broker()}, sentinel.ask, servers)
    elif kind == "cluster":
        cluster: Cluster = request.getfixturevalue("cluster")
        url = f"redis+cluster://{cluster.nodes[0].address}"
        backend = Backend({**setting, "url": url}, cluster.ask, cluster.nodes)
    else:
        redis: Server = request.getfixturevalue("redis")
        if kind == "encrypted":
            setting["encryption_keys"] = ["a key that has not less than 32 characters"]
        backend = Backend({**setting, "url": f"redis://{redis.address}"}, ask_redis, [redis])
    yield backend
    backend.broker.close()
    assert backend.descriptors() == []


@pytest.fixture
def own_redis(cooperative: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A Redis to kill and to pause, with a shorter timeout in the broker."""
    monkeypatch.setattr(redis_broker, "TIMEOUT", 1.0)
    with redis_server() as server:
        yield server


class Told:
    """A listener that counts how often it is told of the end."""

    def __init__(self) -> None:
        self.received: list[tuple[str, bytes]] = []
        self.ends = 0

    def deliver(self, batch: Sequence[tuple[str, bytes]]) -> None:
        self.received += batch

    def lost(self, channels: Sequence[str]) -> None:
        assert list(channels) == []

    def missed(self, channels: Sequence[str]) -> None:
        raise AssertionError

    def closed(self) -> None:
        self.ends += 1


def publish_everywhere(broker: Broker) -> None:
    for channel in CHANNELS:
        broker.publish(channel, b"hello")


def publish_until_refused(broker: Broker, outcomes: list[str]) -> None:
    try:
        while True:
            broker.publish("news", b"hello")
    except BrokerError as error:
        outcomes.append(str(error))


def nothing_is_left(backend: Backend) -> None:
    assert backend.descriptors() == []
    until(lambda: backend.connected() == 0)


def nothing_works_any_more(backend: Backend) -> None:
    begun = time.monotonic()
    for channel in CHANNELS[:3]:
        with pytest.raises(BrokerError, match=CLOSED):
            backend.broker.publish(channel, b"too late")
    with pytest.raises(BrokerError, match=CLOSED):
        backend.broker.subscriber(Told())
    assert time.monotonic() - begun < 1
    nothing_is_left(backend)


def test_publishing_tells_how_many_subscribers_it_reaches(backend: Backend, cooperative: None) -> None:
    subscribers = [backend.broker.subscriber(Told()) for _ in range(2)]
    assert [backend.broker.publish(channel, b"hello") for channel in CHANNELS[:3]] == [0, 0, 0]
    subscribers[0].subscribe(CHANNELS[:2])
    subscribers[1].subscribe(CHANNELS[1:3])
    assert [backend.broker.publish(channel, b"hello") for channel in CHANNELS[:4]] == [1, 2, 1, 0]
    subscribers[0].unsubscribe([CHANNELS[1]])
    until(lambda: backend.broker.publish(CHANNELS[1], b"hello") == 1)
    backend.broker.close()  # while the subscribers can go on: afterwards it would wait for them in vain


def test_thread_without_a_loop_receives_from_one_channel(backend: Backend) -> None:
    if not backend.servers:
        assert not hasattr(backend.broker, "receiver")  # memory:// delivers to loops only
        return
    for channel in CHANNELS[:3]:
        receiver = backend.broker.receiver(channel)  # type: ignore[attr-defined]  # not every broker has it
        assert [backend.broker.publish(name, b"\xff hello") for name in (channel, CHANNELS[3])] == [1, 0]
        assert receiver.receive(5.0) == [b"\xff hello"]
        with pytest.raises(TimeoutError):
            receiver.receive(0.01)
        receiver.close()
        until(lambda: backend.broker.publish(channel, b"too late") == 0)  # noqa: B023


# --- connections -----------------------------------------------------------------------------------------------------


def test_a_broker_that_was_never_used_is_closed(backend: Backend) -> None:
    backend.broker.close()
    nothing_works_any_more(backend)


def test_connections_of_greenlets_are_closed(backend: Backend, cooperative: None) -> None:
    told = Told()
    subscriber = backend.broker.subscriber(told)
    subscriber.subscribe(CHANNELS)
    gevent.joinall([gevent.spawn(publish_everywhere, backend.broker) for _ in range(5)], raise_error=True)
    until(lambda: len(told.received) == 5 * len(CHANNELS))
    if backend.servers:
        assert backend.connected() >= 2
        assert len(backend.descriptors()) >= 2
    backend.broker.close()
    nothing_is_left(backend)
    nothing_works_any_more(backend)
    until(lambda: told.ends)
    with pytest.raises(BrokerError, match=CLOSED):
        subscriber.subscribe(["more"])
    backend.broker.close()
    subscriber.close()
    nothing_works_any_more(backend)
    gevent.sleep(0)
    assert told.ends == 1
    assert len(told.received) == 5 * len(CHANNELS)


def test_connections_of_threads_without_a_loop_are_closed(backend: Backend) -> None:
    start = threading.Barrier(4)

    def publisher() -> None:
        start.wait(timeout=10)
        publish_everywhere(backend.broker)

    threads = [threading.Thread(target=publisher) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if backend.servers:
        assert backend.connected()
    backend.broker.close()
    nothing_is_left(backend)
    nothing_works_any_more(backend)
    backend.broker.close()


@pytest.mark.parametrize("ended", [False, True], ids=["that run", "that have ended"])
def test_connections_of_threads_with_a_loop_are_closed(backend: Backend, cooperative: None, ended: bool) -> None:
    """Their loops do not run while they wait for work, so they cannot close anything."""
    pool = gevent.threadpool.ThreadPool(2)
    try:
        for task in [pool.spawn(publish_everywhere, backend.broker) for _ in range(2)]:
            task.get(timeout=10)
        if ended:
            pool.kill()
        elif backend.servers:
            assert backend.connected()
        backend.broker.close()
        nothing_is_left(backend)
        if not ended:
            with pytest.raises(BrokerError, match=CLOSED):
                pool.spawn(backend.broker.publish, "news", b"too late").get(timeout=10)
            nothing_is_left(backend)
    finally:
        pool.kill()


def test_another_thread_closes_the_broker(backend: Backend, cooperative: None) -> None:
    """The subscriber ends in its own loop, which is running meanwhile."""
    told = Told()
    backend.broker.subscriber(told).subscribe(CHANNELS)
    publish_everywhere(backend.broker)
    until(lambda: len(told.received) == len(CHANNELS))
    thread = gevent.threadpool.ThreadPool(1)
    try:
        thread.spawn(backend.broker.close).get(timeout=10)
    finally:
        thread.kill()
    nothing_is_left(backend)
    until(lambda: told.ends)
    nothing_works_any_more(backend)


def test_a_subscriber_is_closed_by_itself(backend: Backend, cooperative: None) -> None:
    told, others = Told(), Told()
    subscriber = backend.broker.subscriber(told)
    subscriber.subscribe(CHANNELS)
    backend.broker.subscriber(others).subscribe(CHANNELS)
    subscriber.close()
    until(lambda: told.ends)
    publish_everywhere(backend.broker)
    until(lambda: len(others.received) == len(CHANNELS))
    assert (told.received, others.ends) == ([], 0)
    backend.broker.close()  # while the other subscriber can go on


# --- while something is under way ------------------------------------------------------------------------------------


def test_publishes_under_way_finish(own_redis: Server) -> None:
    broker = broker_from(f"redis://{own_redis.address}")
    told = Told()
    listening = broker_from(f"redis://{own_redis.address}")
    listening.subscriber(told).subscribe(["news"])
    broker.publish("news", b"before")
    own_redis.send_signal(signal.SIGSTOP)
    try:
        publishers = [gevent.spawn(broker.publish, "news", b"under way") for _ in range(10)]
        gevent.sleep(0)  # now all of them are waiting
        closing = gevent.spawn(broker.close)
        gevent.sleep(0)
        with pytest.raises(BrokerError, match=CLOSED):
            broker.publish("news", b"too late")
        assert not closing.ready()
    finally:
        own_redis.send_signal(signal.SIGCONT)
    gevent.joinall(publishers, timeout=10, raise_error=True)
    closing.get(timeout=10)
    until(lambda: len(told.received) == 11)
    listening.close()
    assert told.received == [("news", b"before")] + [("news", b"under way")] * 10
    assert connections_to(own_redis.port) == []


@pytest.mark.parametrize("connected", [True, False], ids=["connected", "connecting"])
def test_a_server_that_does_not_answer_delays_the_end_within_bounds(own_redis: Server, connected: bool) -> None:
    broker = broker_from(f"redis://{own_redis.address}")
    told = Told()
    subscriber = broker.subscriber(told)
    if connected:
        broker.publish("news", b"before")
        subscriber.subscribe(["news"])
    own_redis.send_signal(signal.SIGSTOP)
    try:
        publishers = [gevent.spawn(broker.publish, "news", b"in doubt") for _ in range(10)]
        joining = gevent.spawn(subscriber.subscribe, ["weather"])
        gevent.sleep(0)
        begun = time.monotonic()
        broker.close()
        assert time.monotonic() - begun < redis_broker.TIMEOUT + 0.5
        waiting: list[gevent.Greenlet[..., Any]] = [*publishers, joining]
        gevent.joinall(waiting, timeout=1)
        assert [type(one.exception) for one in waiting] == [BrokerError] * 11
        until(lambda: told.ends)
        until(lambda: not connections_to(own_redis.port))  # close() does not wait for ever for a silent server
    finally:
        own_redis.send_signal(signal.SIGCONT)


def test_threads_without_a_loop_publish_while_the_broker_is_closed(redis: Server) -> None:
    """Each call succeeds or raises, and no connection is made behind the back of close()."""
    for _ in range(20):
        broker = broker_from(f"redis://{redis.address}")
        outcomes: list[str] = []
        threads = [threading.Thread(target=publish_until_refused, args=(broker, outcomes)) for _ in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: connections_to(redis.port))
        broker.close()
        for thread in threads:
            thread.join()
        assert [CLOSED in outcome for outcome in outcomes] == [True] * 4
        assert connections_to(redis.port) == []


def test_publishing_while_another_thread_closes_the_connection_fails_at_once(redis: Server) -> None:
    """At that time no greenlet makes the calls and none can be started, so the caller would wait for ever."""
    address = RedisAddress(f"redis://{redis.address}", {})
    closing, go_on = threading.Event(), threading.Event()

    def connect(timeout: float) -> redis_py.Connection:
        connection = address.connect(timeout)
        disconnect: Callable[[], None] = connection.disconnect

        def slowly() -> None:
            closing.set()
            go_on.wait(10)
            disconnect()

        monkeypatch.setattr(connection, "disconnect", slowly)
        return connection

    with pytest.MonkeyPatch.context() as monkeypatch:
        queue = Queue(connect)
        call = Call(pack(b"PING"))
        queue.make(call, 10)
        assert call.get(timeout=0) in (b"PONG", "PONG")
        thread = threading.Thread(target=queue.lines.close)
        thread.start()
        try:
            assert closing.wait(10)
            begun = time.monotonic()
            with pytest.raises(Closed):
                queue.make(Call(pack(b"PING")), 10)
            assert time.monotonic() - begun < 5
        finally:
            go_on.set()
            thread.join()
    assert queue.lines.ended
    assert connections_to(redis.port) == []


def test_a_broker_whose_server_is_away_is_closed_at_once(own_redis: Server) -> None:
    broker = broker_from(f"redis://{own_redis.address}")
    hub = Hub(broker)
    subscription = Subscription(hub, ["news"], 1000)
    broker.publish("news", b"before")
    assert subscription.get(timeout=10) == "before"
    own_redis.stop(signal.SIGKILL)
    with pytest.raises(BrokerError):
        broker.publish("news", b"lost")
    begun = time.monotonic()
    broker.close()
    assert time.monotonic() - begun < redis_broker.TIMEOUT
    own_redis.start()
    with pytest.raises(BrokerError, match="was closed"):
        subscription.get(timeout=10)
    with pytest.raises(BrokerError, match=CLOSED):
        broker.publish("news", b"too late")
    subscription.close()
    assert connections_to(own_redis.port) == []


# --- subscribers -----------------------------------------------------------------------------------------------------


def test_views_that_are_subscribed_are_told(backend: Backend, cooperative: None) -> None:
    with in_use(backend.setting):
        waiting, busy, left = subscribe("news"), subscribe("news", "weather"), subscribe("news")
        left.close()
        receiver = gevent.spawn(waiting.get)
        publish("weather", "sun")
        until(busy.ready)
        pubsub.process.close_all()
        with pytest.raises(BrokerError, match="was closed"):
            receiver.get(timeout=10)
        assert select([busy, waiting, left], [], [], 10)[0] == [busy, waiting, left]
        assert busy.get() == "sun"
        for subscription in (busy, waiting, busy):
            with pytest.raises(BrokerError, match="was closed"):
                subscription.get(timeout=10)
        with pytest.raises(BrokerError, match="was closed"):
            list(waiting)
        busy.close()
        waiting.close()
        assert [busy.get(), waiting.get(), left.get()] == [None, None, None]
        nothing_is_left(backend)

        with subscribe("news") as subscription:  # made by a new broker
            publish("news", "again")
            assert subscription.get(timeout=10) == "again"
    nothing_is_left(backend)


def accepted(connection: Connection, subprotocol: str | None) -> Connection:
    return connection


@pytest.mark.parametrize(
    "options", [{}, {"on_missed": "reload"}, {"on_slow": "latest", "on_missed": "reload"}], ids=str
)
def test_clients_of_subscribe_and_listen_are_told_to_reconnect(key: str, pairs: Pairs, options: dict[str, Any]) -> None:
    with in_use(f"memory://{key}"):
        clients = [pairs() for _ in range(2)]
        for (connection, _), method in zip(clients, (WebSocket.subscribe, WebSocket.listen), strict=True):
            method(WebSocket({}, HttpResponse(), partial(accepted, connection)), "news", **options)
        publish("news", "before")
        for _, peer in clients:
            assert peer.until_frames(1) == [text("before")]
        pubsub.process.close_all()
        for _, peer in clients:
            assert peer.until_frames(2)[1].payload[:2] == (1012).to_bytes(2, "big")
            peer.close_frame()
            peer.until_end()


def test_a_client_that_is_just_being_accepted_is_told_to_reconnect(key: str, pairs: Pairs) -> None:
    connection, peer = pairs()

    def accept(subprotocol: str | None) -> Any:
        pubsub.process.close_all()
        return connection

    with in_use(f"memory://{key}"):
        WebSocket({}, HttpResponse(), accept).subscribe("news", on_missed="reload").close()
        assert peer.until_frames(1)[0].payload[:2] == (1012).to_bytes(2, "big")


def test_subscribing_while_the_broker_is_closed_fails(own_redis: Server) -> None:
    with in_use(f"redis://{own_redis.address}"):
        own_redis.send_signal(signal.SIGSTOP)
        try:
            joining = [gevent.spawn(subscribe, "news") for _ in range(3)]
            gevent.sleep(0)
            begun = time.monotonic()
            pubsub.process.close_all()
            gevent.joinall(joining, timeout=10)
            assert time.monotonic() - begun < redis_broker.TIMEOUT + 0.5
            assert [type(one.exception) for one in joining] == [BrokerError] * 3
        finally:
            own_redis.send_signal(signal.SIGCONT)


def test_subscriptions_in_the_loops_of_other_threads_are_told(key: str) -> None:
    outcomes: list[Exception] = []
    subscribed = threading.Event()

    def reader() -> None:
        with subscribe("news") as subscription:
            subscribed.set()
            try:
                subscription.get(timeout=10)
            except Exception as error:
                outcomes.append(error)
        gevent.get_hub().destroy()

    with in_use(f"memory://{key}"):
        thread = threading.Thread(target=reader)
        thread.start()
        assert subscribed.wait(10)
        pubsub.process.close_all()
        thread.join(10)
        assert [type(error) for error in outcomes] == [BrokerError]


def test_connections_that_wait_for_orders_move_to_the_next_broker(key: str, pairs: Pairs) -> None:
    connection, peer = pairs()
    connection.id = key
    with in_use(f"memory://{key}", WEBSOCKET_LOGIN_CHECK_INTERVAL=0.05):
        orders.Orders().add(connection)
        until(lambda: pubsub.process.current_hub().channels)
        pubsub.process.close_all()
        until(lambda: pubsub.process.current_hub().channels)
        assert logins.disconnect(connection=key) == 1
        assert peer.until_frames(1)[0].payload[:2] == users.LOGGED_OUT.to_bytes(2, "big")
        peer.close_frame()
        peer.until_end()
        until(lambda: not pubsub.process.current_hub().channels)


# --- other brokers, other processes ----------------------------------------------------------------------------------


class Plain:
    """A user's broker from before there was `close()`; its subscriber has none either."""

    def __init__(self) -> None:
        self.published: list[tuple[str, bytes]] = []

    def publish(self, channel: str, payload: bytes) -> None:
        self.published.append((channel, payload))

    def subscriber(self, listener: Listener) -> PlainSubscriber:
        return PlainSubscriber()


class PlainSubscriber:
    def subscribe(self, channels: Sequence[str]) -> None:
        pass

    def unsubscribe(self, channels: Sequence[str]) -> None:
        pass


def test_a_broker_without_a_close_method_can_be_closed() -> None:
    with in_use({"class": f"{__name__}.Plain"}):
        subscription = subscribe("news")
        pubsub.process.close_all()
        with pytest.raises(BrokerError, match="was closed"):
            subscription.get(timeout=10)
        subscription.close()
    encrypted = EncryptedBroker(Plain(), ["a key that has not less than 32 characters"])  # type: ignore[arg-type]
    encrypted.close()


def test_only_the_broker_that_the_setting_names_is_closed(key: str) -> None:
    with in_use(f"memory://{key}"), subscribe("news") as outer:
        with in_use(f"memory://{key}-other"):
            publish("news", "elsewhere")
        publish("news", "here")
        assert outer.get(timeout=10) == "here"


def test_refused_messages_are_not_observed() -> None:
    broker = MemoryBroker()
    observed: list[tuple[str, bytes]] = []
    broker.observers.append(lambda channel, payload: observed.append((channel, payload)))
    broker.publish("news", b"before")
    broker.close()
    with pytest.raises(BrokerError, match=CLOSED):
        broker.publish("news", b"too late")
    assert observed == [("news", b"before")]


FORK = """
from gevent import monkey; monkey.patch_all()
import gevent, os, sys
import django; django.setup()
import redis
from django_websocket import pubsub
from django_websocket.pubsub import publish, subscribe

def connections():
    with redis.Redis(port=int(sys.argv[1])) as admin:
        return sorted(client["id"] for client in admin.client_list() if client["name"] == "forking")

with subscribe("news") as messages:
    publish("news", "before")
    assert messages.get(timeout=10) == "before"
    before = connections()
    assert len(before) >= 2, before
    brokers, hubs = list(pubsub.process.brokers.values()), list(pubsub.process.hubs.values())
    gevent.get_hub().loop.install_sigchld()  # gevent's first fork() does so behind it: a quick child would be missed
    child = os.fork()
    if not child:
        try:
            pubsub.process.close_all()
            for part in (*hubs, *brokers):
                part.close()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    publish("news", "after")
    assert messages.get(timeout=10) == "after"
    assert connections() == before
pubsub.process.close_all()
assert connections() == []
"""


@pytest.mark.parametrize("backend", ["redis"], indirect=True)
def test_a_child_process_leaves_the_connections_of_its_parent_alone(backend: Backend) -> None:
    (server,) = backend.servers
    setting = {**backend.setting, "client_name": "forking"}
    subprocess.run(
        [sys.executable, "-W", "error", "-c", FORK, str(server.port)],
        cwd=SITE,
        env={**os.environ, "TESTSITE_SETTINGS": json.dumps({"WEBSOCKET_BROKER": setting})},
        check=True,
        timeout=60,
    )
