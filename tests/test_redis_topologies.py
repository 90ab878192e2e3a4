"""Redis over TLS, on a Unix socket, watched by Sentinel and as a Cluster: real ones, whose parts fail one by one."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import subprocess
import sys
import time
import traceback
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import gevent
import gevent.socket
import pytest
import redis as redis_py
from redis._parsers import _RESP2Parser
from redis.crc import key_slot
from redis.credentials import CredentialProvider

import django_websocket.pubsub.cluster as redis_cluster_broker
import django_websocket.pubsub.redis as redis_broker
from django_websocket import pubsub
from django_websocket.exceptions import BrokerError, MessagesMissed
from django_websocket.pubsub import pipeline, publish, subscribe
from django_websocket.pubsub.redis_address import Host, RedisAddress
from django_websocket.pubsub.sentinel import SentinelBroker

from .support.brokers import connections_to, in_use
from .support.certificates import Authority
from .support.clients import RawClient, fetch
from .support.fixtures import SITE, Connect, Raw, StartSite
from .support.frames import frame
from .support.servers import (
    Cluster,
    Sentinel,
    Server,
    executable,
    free_port,
    redis_cluster,
    redis_sentinel,
    redis_server,
)
from .support.waiting import eventually, until

pytestmark = [pytest.mark.slow, pytest.mark.covers]

MISSED = object()
BACK = 10.0  # seconds until messages arrive again, once there is a server to send them
SETTLED = 60.0  # seconds until there is one; a sentinel that was stopped does nothing for 30


@pytest.fixture
def cooperative(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make redis-py's sockets cooperative, as they are in a patched worker."""
    monkeypatch.setattr(redis_py.connection, "socket", gevent.socket)


@pytest.fixture(params=["with hiredis", "without hiredis"])
def any_reader(request: pytest.FixtureRequest, cooperative: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test with hiredis and without it."""
    if request.param == "without hiredis":
        monkeypatch.setattr(pipeline, "hiredis", None)
        original = RedisAddress.connect
        monkeypatch.setattr(
            RedisAddress,
            "connect",
            lambda *args, **options: original(*args, parser_class=_RESP2Parser, **options),
        )


class Reader:
    """Collects all messages of some channels in order, with `MISSED` where some may be missing."""

    def __init__(self, *channels: str) -> None:
        self.got: list[Any] = []
        self.told: list[float] = []  # when messages were reported as missed
        self._subscription = subscribe(*channels)
        self._greenlet = gevent.spawn(self._read)

    def _read(self) -> None:
        while True:
            try:
                message = self._subscription.get()
            except MessagesMissed:
                self.got.append(MISSED)
                self.told.append(time.monotonic())
            else:
                if message is None:
                    return
                self.got.append(message)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._subscription.close()
        self._greenlet.get(timeout=5)

    def until(self, *wanted: Any) -> None:
        """Wait until exactly these messages have arrived since the last call."""
        until(lambda: len(self.got) >= len(wanted), BACK)
        got, self.got = self.got, []
        assert got == list(wanted)


def published(channel: str, message: str) -> None:
    """Publish as soon as that succeeds; until then, each failure must be quick and name the setting."""

    def succeeds() -> bool:
        begun = time.monotonic()
        try:
            publish(channel, message)
        except BrokerError as error:
            assert "WEBSOCKET_BROKER" in str(error)
            assert time.monotonic() - begun < redis_broker.TIMEOUT + 0.5
            gevent.sleep(0.05)
            return False
        return True

    until(succeeds, BACK)


def admin(server: Server, **options: Any) -> redis_py.Redis:
    """A Redis client, such as another program may have."""
    return redis_py.Redis("127.0.0.1", server.port, **{"protocol": 2, **options})


def subscribed(raw: Raw, server: Server, channel: str) -> RawClient:
    """Connect to the view that uses select(); return the subscribed client."""
    client = raw(server)
    client.open(f"/selects/{channel}/")
    client.frame()
    assert client.frame().text == "subscribed"
    return client


# --- a server, TLS, logins -------------------------------------------------------------------------------------------


def run(code: str, broker: Any) -> subprocess.CompletedProcess[str]:
    """Run code in a process with the test site's settings."""
    environment = {**os.environ, "TESTSITE_SETTINGS": json.dumps({"WEBSOCKET_BROKER": broker}, default=str)}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=SITE, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def publish_in_a_process(broker: Any, channel: str, message: str) -> str:
    """Publish from a process without gevent, and return what it writes to standard error."""
    code = (
        f"import django; django.setup()\nfrom django_websocket.pubsub import publish\npublish({channel!r}, {message!r})"
    )
    return run(code, broker).stderr


def output_of_a_round_trip(broker: Any) -> str:
    """Publish and receive in a patched process, as a worker is; return what arrived."""
    code = (
        "from gevent import monkey; monkey.patch_all()\n"
        "import django; django.setup()\n"
        "from django_websocket.pubsub import publish, subscribe\n"
        "with subscribe('news') as messages:\n"
        "    publish('news', 'hello')\n"
        "    print(messages.get(timeout=10))\n"
    )
    return run(code, broker).stdout


def test_redis_works_over_tls_with_a_client_certificate(
    start_site: StartSite, raw: Raw, tls_redis: Server, authority: Authority, key: str
) -> None:
    options = authority.redis_options("site")
    url = f"rediss://:s3cret@{tls_redis.address}/0?{urlencode(options)}"
    with (
        start_site({"WEBSOCKET_BROKER": url}) as server,
        admin(tls_redis, password="s3cret", ssl=True, **options) as redis,
    ):
        client = subscribed(raw, server, key)
        assert fetch(server.port, f"/publish/{key}/?text=page").status == 200
        assert client.frame().text == "page"
        in_a_dict = authority.redis_options("task", ssl_password="for the key", url=f"rediss://{tls_redis.address}")
        assert publish_in_a_process({**in_a_dict, "password": "s3cret"}, key, "task") == ""
        assert client.frame().text == "task"
        # Silence is not a failure: the subscriber pings and stays.
        assert eventually(lambda: [c["cmd"] for c in redis.client_list() if c["sub"] != "0"] == ["ping"])
        redis.publish(key, "other program")
        assert client.frame().text == "other program"
        assert "Redis" not in server.log


def test_misconfigured_tls_is_refused(tls_redis: Server, authority: Authority, tmp_path: Path, key: str) -> None:
    url = f"rediss://:s3cret@{tls_redis.address}"
    fits = authority.redis_options("fits", url=url)
    for broker, words in (
        ({"url": url, "ssl_ca_certs": authority.certificate}, []),  # Redis ends the connection at one point or another
        ({**fits, "ssl_ca_certs": Authority(tmp_path).certificate}, ["CERTIFICATE_VERIFY_FAILED"]),
        ({**fits, "url": url.replace("127.0.0.1", "localhost")}, ["Hostname mismatch", "localhost"]),
        ({**fits, "password": "wr0ng"}, ["invalid username-password pair"]),
    ):
        error = publish_in_a_process(broker, key, "x").splitlines()
        assert "BrokerError: Redis at rediss://" in error[-1]
        for word in [*words, "WEBSOCKET_BROKER"]:
            assert word in error[-1]
        assert not [line for line in error if "s3cret" in line or "wr0ng" in line]


def test_sentinels_and_cluster_nodes_work_over_tls(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.sign("servers")
    options = {name: str(path) for name, path in authority.redis_options("client").items()}
    port, bus = free_port(), free_port()
    tls = {
        "tls-port": port,
        "port": 0,
        "tls-cert-file": certificate,
        "tls-key-file": key,
        "tls-ca-cert-file": authority.certificate,
        "tls-replication": "yes",
        "tls-cluster": "yes",
    }
    args = [word for name, value in tls.items() for word in (f"--{name}", str(value))]
    (tmp_path / "nodes.conf").write_text(
        f"{'a' * 40} 127.0.0.1:{port}@{bus} myself,master - 0 0 1 connected 0-16383\n"
        f"vars currentEpoch 1 lastVoteEpoch 0\n"
    )
    node = ["--cluster-enabled", "yes", "--cluster-port", str(bus), "--dir", str(tmp_path)]
    with redis_server(port, [*args, *node], probe=b""):
        broker = {"url": f"rediss+cluster://127.0.0.1:{port}", **options}
        assert eventually(lambda: output_of_a_round_trip(broker) == "hello\n")
    with redis_server(port, args, probe=b""):
        watcher = free_port()
        configuration = tmp_path / "sentinel.conf"
        lines = [f"{name} {watcher if name == 'tls-port' else value}" for name, value in tls.items()]
        configuration.write_text("\n".join([*lines, f"dir {tmp_path}", f"sentinel monitor main 127.0.0.1 {port} 1"]))
        with Server([executable("redis-server"), configuration, "--sentinel"], port=watcher):
            broker = {"url": f"rediss+sentinel://127.0.0.1:{watcher}/main", **options}
            assert output_of_a_round_trip(broker) == "hello\n"


def test_a_unix_socket_works_with_a_login_and_a_database(cooperative: None, tmp_path: Path, key: str) -> None:
    path = tmp_path / "redis.sock"
    with redis_server(args=["--unixsocket", str(path), "--requirepass", "s3cret"]):
        for broker in (
            f"unix://:s3cret@{path}?db=3",
            f"unix://{path}?db=3&password=s3cret&client_name=site",
            {"url": f"unix://{path}", "db": 3, "password": "s3cret"},
        ):
            with (
                in_use(broker),
                Reader(key) as reader,
                redis_py.Redis(unix_socket_path=str(path), password="s3cret") as redis,
            ):
                publish(key, "hello")
                reader.until("hello")
                (client,) = [client for client in redis.client_list() if client["sub"] == "1"]
                assert client["db"] == "3"
                assert client["name"] == ("site" if "client_name" in broker else "")


def test_each_connection_asks_for_the_current_login(redis: Server, cooperative: None, key: str) -> None:
    """Clouds change their tokens, which redis-py's providers fetch."""

    class Provider(CredentialProvider):
        asked = 0

        def get_credentials(self) -> tuple[str, str]:
            self.asked += 1
            return "default", "any"

    provider = Provider()
    with in_use({"url": f"redis://{redis.address}", "credential_provider": provider}), Reader(key) as reader:
        publish(key, "hello")
        reader.until("hello")
    assert provider.asked == 2


NOBODY = {
    "redis://user:s3cret@{}": "redis://{}",
    "rediss://user:s3cret@{}/1": "rediss://{}",
    "unix://user:s3cret@/nowhere/redis.sock": "unix:///nowhere/redis.sock",
    "redis+sentinel://user:s3cret@{}/main?sentinel_username=user&sentinel_password=s3cret": "redis+sentinel://{}/main",
    "redis+cluster://user:s3cret@{}": "redis+cluster://{}",
}


@pytest.mark.parametrize("url", NOBODY)
def test_the_error_names_a_missing_server_without_the_login(
    url: str, cooperative: None, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    caplog.set_level(logging.DEBUG)
    address = f"127.0.0.1:{free_port()}"
    with in_use(url.format(address)):
        for attempt in (lambda: publish(key, "x"), lambda: subscribe(key)):
            with pytest.raises(BrokerError) as raised:
                attempt()
            assert NOBODY[url].format(address) in str(raised.value)
            assert "WEBSOCKET_BROKER" in str(raised.value)
            said = "".join(traceback.format_exception(raised.value)) + caplog.text
            assert "s3cret" not in said.replace(url, "")  # the traceback quotes this test's own line
            assert "user" not in str(raised.value) + caplog.text


# --- Sentinel --------------------------------------------------------------------------------------------------------

SENTINELS, CLUSTERS = 5, 4  # one for each test that breaks something


@pytest.fixture(scope="module")
def topologies() -> Iterator[tuple[list[Sentinel], list[Cluster]]]:
    """One for each test that needs its own. They start together: each takes seconds, mostly of waiting."""
    with ExitStack() as stack, ThreadPoolExecutor(SENTINELS + CLUSTERS) as threads:
        sentinels = [threads.submit(stack.enter_context, redis_sentinel()) for _ in range(SENTINELS)]
        clusters = [threads.submit(stack.enter_context, redis_cluster()) for _ in range(CLUSTERS)]
        yield [future.result() for future in sentinels], [future.result() for future in clusters]


@pytest.fixture
def own_sentinel(topologies: tuple[list[Sentinel], list[Cluster]]) -> Sentinel:
    """A Sentinel for one test alone, which notices failures soon."""
    sentinel = topologies[0].pop()
    sentinel.hurry()
    return sentinel


def sentinel_broker(sentinel: Sentinel, *first: str) -> dict[str, str]:
    return {**sentinel.broker(*first), "prefix": "site1:"}


class Stream:
    """Publishes one number after another while its block runs."""

    def __init__(self, channel: str) -> None:
        self.sent: dict[int, float] = {}  # the numbers that the broker took, and when each was published
        self.failures: list[str] = []
        self._channel = channel
        self._greenlet = gevent.Greenlet(self._run)

    def __enter__(self) -> Stream:
        self._greenlet.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._greenlet.kill()

    def _run(self) -> None:
        for number in range(1_000_000):
            begun = time.monotonic()
            try:
                publish(self._channel, str(number))
                self.sent[number] = begun
            except BrokerError as error:
                self.failures.append(str(error))
            gevent.sleep(0.005)

    def until_heard(self, reader: Reader) -> None:
        """Wait until the newest number has arrived."""
        until(lambda: reader.got[-1] is not MISSED and int(reader.got[-1]) == [*self.sent][-1])

    def check(self, reader: Reader) -> None:
        """Check that numbers arrived in order and once each, and that the reader was told of those that did not."""
        numbers = [int(message) for message in reader.got if message is not MISSED]
        assert numbers == sorted({*numbers})
        missing = [number for number in self.sent if number not in numbers and number < numbers[-1]]
        assert [number for number in missing if self.sent[number] > max(reader.told, default=0.0)] == []


def test_the_master_is_found_although_some_sentinels_are_away(sentinel: Sentinel, any_reader: None, key: str) -> None:
    master = sentinel.master()
    assert master is not None
    sentinel.sentinels[0].send_signal(signal.SIGSTOP)
    try:
        with in_use(sentinel_broker(sentinel, f"127.0.0.1:{free_port()}")), Reader(key) as reader:
            publish(key, "a")
            reader.until("a")
            with admin(master, password=sentinel.password) as redis:
                redis.publish(f"site1:{key}", "from another program")
                reader.until("from another program")
                assert "1" in {client["db"] for client in redis.client_list() if client["sub"] == "1"}
    finally:
        sentinel.sentinels[0].send_signal(signal.SIGCONT)


def test_a_server_that_denies_being_the_master_is_not_used(
    sentinel: Sentinel, cooperative: None, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentinels may not have noticed yet."""
    master = sentinel.master()
    assert master is not None
    (replica,) = [server for server in sentinel.servers if server is not master]
    with in_use(sentinel_broker(sentinel)):
        monkeypatch.setattr(SentinelBroker, "master", lambda self, timeout: Host("127.0.0.1", replica.port))
        with pytest.raises(BrokerError, match="no longer the master"):
            publish(key, "a")
        with pytest.raises(BrokerError, match="no longer the master"):
            subscribe(key)


def test_the_sentinels_are_believed_where_the_role_may_not_be_asked_for(
    sentinel: Sentinel, cooperative: None, key: str
) -> None:
    for server in sentinel.servers:
        allowed = ("allchannels", "+publish", "+subscribe", "+unsubscribe", "+ping", "+select")
        sentinel.ask(server, "ACL", "SETUSER", "modest", "on", ">s3cret", *allowed)
    with in_use({**sentinel_broker(sentinel), "username": "modest", "password": "s3cret"}), Reader(key) as reader:
        publish(key, "a")
        reader.until("a")


def test_a_manual_failover_is_followed(sentinel: Sentinel, cooperative: None, key: str) -> None:
    old = sentinel.master()
    with in_use(sentinel_broker(sentinel)), Reader(key) as reader:
        with Stream(key) as stream:
            until(lambda: reader.got)
            sentinel.ask(sentinel.sentinels[0], "SENTINEL", "FAILOVER", sentinel.service)
            until(lambda: sentinel.master() not in (old, None), SETTLED)
            until(lambda: MISSED in reader.got, BACK)
            stream.until_heard(reader)
        stream.check(reader)
        assert reader.got.count(MISSED) == 1


def test_a_master_that_is_killed_is_replaced(own_sentinel: Sentinel, cooperative: None, key: str) -> None:
    with in_use(sentinel_broker(own_sentinel)), Reader(key) as reader:
        publish(key, "a")
        reader.until("a")
        own_sentinel.servers[0].stop(signal.SIGKILL)
        begun = time.monotonic()
        with pytest.raises(BrokerError, match="WEBSOCKET_BROKER"):
            publish(key, "b")
        assert time.monotonic() - begun < redis_broker.TIMEOUT
        until(lambda: own_sentinel.master() is own_sentinel.servers[1], SETTLED)
        reader.until(MISSED)
        publish(key, "c")
        reader.until("c")


def test_a_master_that_hangs_is_replaced(own_sentinel: Sentinel, cooperative: None, key: str) -> None:
    with in_use(sentinel_broker(own_sentinel)), Reader(key) as reader:
        publish(key, "a")
        reader.until("a")
        own_sentinel.servers[0].send_signal(signal.SIGSTOP)
        try:
            until(lambda: own_sentinel.ask(own_sentinel.servers[1], "ROLE")[0] == b"master", SETTLED)
            reader.until(MISSED)
            publish(key, "b")
            reader.until("b")
        finally:
            own_sentinel.servers[0].send_signal(signal.SIGCONT)


def test_a_master_that_the_sentinels_forgot_is_left(own_sentinel: Sentinel, cooperative: None, key: str) -> None:
    """No connection ends, but nobody else would hear what is published there."""
    service, password = own_sentinel.service, own_sentinel.password
    old, new = own_sentinel.servers
    with in_use(sentinel_broker(own_sentinel)), Reader(key) as reader:
        publish(key, "a")
        reader.until("a")
        own_sentinel.ask(new, "REPLICAOF", "NO", "ONE")
        for server in own_sentinel.sentinels:
            own_sentinel.ask(server, "SENTINEL", "REMOVE", service)
            own_sentinel.ask(server, "SENTINEL", "MONITOR", service, "127.0.0.1", new.port, 2)
            own_sentinel.ask(server, "SENTINEL", "SET", service, "auth-pass", password)
        reader.until(MISSED)
        publish(key, "b")
        reader.until("b")
        with admin(old, password=password) as redis:
            assert redis.publish(f"site1:{key}", "too late") == 0
        with admin(new, password=password) as redis:
            assert redis.publish(f"site1:{key}", "c") == 1
        reader.until("c")


def test_close_waits_for_a_publish_to_a_former_master(
    own_sentinel: Sentinel, cooperative: None, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_broker, "TIMEOUT", BACK + SETTLED)  # the publish must still wait when the broker closes
    old, new = own_sentinel.servers
    broker = SentinelBroker(**sentinel_broker(own_sentinel))
    broker.publish(key, b"a")
    old.send_signal(signal.SIGSTOP)
    try:
        publisher = gevent.spawn(broker.publish, key, b"b")
        until(lambda: broker.master(1).port == new.port, SETTLED)
        assert not publisher.ready()
        closing = gevent.spawn(broker.close)
        closing.join(timeout=0.2)
        assert not closing.ready()
    finally:
        old.send_signal(signal.SIGCONT)
    closing.get(timeout=BACK)
    assert [connections_to(server.port) for server in (old, new, *own_sentinel.sentinels)] == [[]] * 5
    publisher.join(timeout=BACK)
    assert publisher.ready()
    if not publisher.successful():  # the old master may have ended its connections when it learned of the new one
        assert isinstance(publisher.exception, BrokerError)


def test_the_error_names_what_is_wrong_with_the_sentinels(sentinel: Sentinel, cooperative: None, key: str) -> None:
    broker = sentinel_broker(sentinel)
    for changes, words in (
        ({"url": broker["url"].replace("/main", "/other")}, "know no master 'other'"),
        ({"sentinel_password": "wr0ng"}, "invalid username-password pair"),
        ({"password": "wr0ng"}, "invalid username-password pair"),
    ):
        with in_use({**broker, **changes}), pytest.raises(BrokerError, match=words) as raised:
            publish(key, "a")
        assert "wr0ng" not in str(raised.value)
        assert sentinel.password not in str(raised.value)


def test_clients_follow_the_master(
    start_site: StartSite, raw: Raw, connect: Connect, own_sentinel: Sentinel, key: str
) -> None:
    with start_site({"WEBSOCKET_BROKER": sentinel_broker(own_sentinel)}, args=["--workers", "2"]) as server:
        client = subscribed(raw, server, key)
        listening = connect(server, f"/listen/{key}/?key={key}")
        own_sentinel.servers[0].stop(signal.SIGKILL)
        assert eventually(lambda: own_sentinel.master() is own_sentinel.servers[1], SETTLED)
        assert client.frame().text == "MessagesMissed"
        assert listening.closing()[0] == 1012
        assert "Traceback" not in server.log  # a page that publishes too early would log one
        assert eventually(lambda: fetch(server.port, f"/publish/{key}/?text=page").status == 200)
        assert client.frame().text == "page"
        client.send(frame("view"))
        assert client.frame().text == "view"


# --- Cluster ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_cluster(topologies: tuple[list[Sentinel], list[Cluster]]) -> Cluster:
    """A cluster for one test alone, which notices failures soon."""
    cluster = topologies[1].pop()
    cluster.hurry()
    return cluster


def cluster_broker(cluster: Cluster, *first: str) -> str:
    """A URL of one node, after the addresses in `first`, where no nodes are."""
    return f"redis+cluster://{','.join([*first, cluster.nodes[1].address])}/?prefix=site1:"


def channels_of(node: int, count: int, key: str) -> list[str]:
    """Channels in different slots that belong to the given node at the start."""
    names = {slot(name): name for name in (f"{key}:{number}" for number in range(1000))}
    return [name for number, name in names.items() if number in Cluster.slots_of(node)][:count]


def slot(channel: str) -> int:
    return key_slot(f"site1:{channel}".encode())


def subscriber_connections(cluster: Cluster) -> list[int]:
    """How many connections with sharded subscriptions each node has."""
    return [
        len(
            [
                line
                for line in cluster.ask(node, "CLIENT", "LIST", "TYPE", "PUBSUB").splitlines()
                if b"ssub=0" not in line
            ]
        )
        for node in cluster.nodes
    ]


def test_each_node_has_one_subscriber_for_its_channels(cluster: Cluster, any_reader: None, key: str) -> None:
    channels = [channels_of(node, 30, key) for node in range(3)]
    with in_use(cluster_broker(cluster, f"127.0.0.1:{free_port()}")):
        with Reader(*channels[0], *channels[2]) as first:
            assert subscriber_connections(cluster) == [1, 0, 1, 0]
            with Reader(*channels[1], *channels[2]) as second:
                assert subscriber_connections(cluster) == [1, 1, 1, 0]
                for channel in (*channels[0], *channels[1], *channels[2]):
                    publish(channel, channel)
                until(lambda: len(first.got) == len(second.got) == 60)
                assert sorted(first.got) == sorted([*channels[0], *channels[2]])
                assert sorted(second.got) == sorted([*channels[1], *channels[2]])
                for node, (channel, *_) in zip(cluster.nodes, channels, strict=False):
                    assert cluster.ask(node, "SPUBLISH", f"site1:{channel}", "from another program") == 1
                until(lambda: len(first.got) == len(second.got) == 62)
        assert cluster.ask(cluster.nodes[0], "PUBSUB", "SHARDCHANNELS") == []


def test_a_broker_is_freed_although_not_all_nodes_answered(
    cluster: Cluster, cooperative: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference counting must suffice."""
    monkeypatch.setattr("random.sample", lambda hosts, count: hosts)  # the missing node is asked first
    broker = redis_cluster_broker.ClusterBroker(f"redis+cluster://127.0.0.1:{free_port()},{cluster.nodes[0].address}")
    gc.disable()
    try:
        broker.learn(time.monotonic() + BACK)
        broker.close()
        there = weakref.ref(broker)
        del broker
        assert there() is None
    finally:
        gc.enable()


def test_channels_follow_a_slot_that_moves(cluster: Cluster, any_reader: None, key: str) -> None:
    moving, staying = channels_of(0, 2, key)
    with in_use(cluster_broker(cluster)), Reader(moving) as reader, Reader(staying) as undisturbed:
        with Stream(moving) as stream:
            until(lambda: reader.got)
            for count, target in enumerate((1, 2, 0), 1):
                publish(staying, str(target))
                cluster.move(slot(moving), cluster.nodes[target])
                until(lambda count=count: reader.got.count(MISSED) == count)  # type: ignore[misc]
                stream.until_heard(reader)
                undisturbed.until(str(target))
        stream.check(reader)
        assert stream.failures == []


@pytest.fixture(params=["unknown-endpoint", "hostname"])
def nameless_cluster(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster whose nodes announce no address, or only a hostname that was never set."""
    for node in cluster.nodes:
        cluster.ask(node, "CONFIG", "SET", "cluster-preferred-endpoint-type", request.param)
    yield cluster
    for node in cluster.nodes:
        cluster.ask(node, "CONFIG", "SET", "cluster-preferred-endpoint-type", "ip")


def test_nodes_that_announce_no_address_are_found(nameless_cluster: Cluster, any_reader: None, key: str) -> None:
    """Their address is missing in the list of slots and in redirections (`MOVED 1234 :7001`, `MOVED 1234 ?:7001`)."""
    cluster, (channel, *_) = nameless_cluster, channels_of(0, 1, key)
    with in_use(cluster_broker(cluster)), Reader(channel) as reader:
        for count, target in enumerate((1, 2, 0), 1):
            cluster.move(slot(channel), cluster.nodes[target])
            publish(channel, str(target))  # before the list of slots is read again
            until(lambda count=count: reader.got.count(MISSED) == count)  # type: ignore[misc]
            publish(channel, f"to {target}")
            until(lambda target=target: f"to {target}" in reader.got)  # type: ignore[misc]
        nodes: dict[Host, Any] = pubsub.process.current_broker()._nodes  # type: ignore[attr-defined]
        assert set(nodes) <= {Host("127.0.0.1", node.port) for node in cluster.nodes}


def test_a_slot_may_move_while_its_channel_is_left(cluster: Cluster, any_reader: None, key: str) -> None:
    """The node ends the subscription, then rejects the command that leaves it: two answers to one command."""
    (left, other), (neighbour,) = channels_of(0, 2, key), channels_of(1, 1, key)
    node, target = cluster.nodes[:2]
    ids = dict(zip(cluster.nodes, cluster.ids, strict=True))
    with in_use(cluster_broker(cluster)), ExitStack() as stack:
        leaving = stack.enter_context(Reader(left))
        (subscriber,) = pubsub.process.current_hub()._subscriber._subscribers.values()  # type: ignore[attr-defined]
        cluster.ask(target, "CLUSTER", "SETSLOT", slot(left), "IMPORTING", ids[node])
        cluster.ask(node, "CLUSTER", "SETSLOT", slot(left), "MIGRATING", ids[target])
        cluster.ask(target, "CLUSTER", "SETSLOT", slot(left), "NODE", ids[target])
        with gevent.socket.create_connection(("127.0.0.1", node.port)) as order:
            node.send_signal(signal.SIGSTOP)
            try:  # the node will read what arrives meanwhile in this order
                order.sendall(f"CLUSTER SETSLOT {slot(left)} NODE {ids[target]}\r\n".encode())
                stack.close()
                assert leaving.got == []
                joining = gevent.spawn(Reader, other)
                until(lambda: len(subscriber._in_flight) == 2 and not subscriber._writing)  # both commands were sent
            finally:
                node.send_signal(signal.SIGCONT)
            with joining.get(timeout=BACK) as reader, Reader(left, neighbour) as again:
                for number in range(3):
                    publish(other, str(number))
                    publish(left, str(number))
                reader.until("0", "1", "2")
                again.until("0", "1", "2")
        cluster.move(slot(left), node)


def test_many_slots_may_move_while_clients_come_and_go(cluster: Cluster, cooperative: None, key: str) -> None:
    channels = channels_of(0, 20, key)
    with in_use(cluster_broker(cluster)), ExitStack() as stack:

        def move() -> None:
            for target in (1, 2, 0):
                for channel in channels:
                    cluster.move(slot(channel), cluster.nodes[target])

        moves = gevent.spawn(move)
        readers: list[Reader] = []
        while not moves.ready():
            try:
                for channel in channels[::7]:
                    with Reader(channel, channels[0]), Reader(channels[-1]):
                        gevent.sleep(0.001)
                if len(readers) < 5:
                    readers.append(stack.enter_context(Reader(*channels)))
            except BrokerError as error:  # the slot had moved at each attempt
                assert "slot" in str(error)
        moves.get()
        assert len(readers) == 5

        def heard() -> bool:
            for channel in channels:
                publish(channel, channel)
            return all({*channels} <= {*reader.got} for reader in readers)

        until(heard)
        for channel in channels:
            publish(channel, f"last {channel}")
        lasts = [f"last {channel}" for channel in channels]
        until(lambda: all({*lasts} <= {*reader.got} for reader in readers))
        for reader in readers:
            assert sorted(message for message in reader.got if message in lasts) == sorted(lasts)  # none twice
    assert cluster.complete()


def test_a_node_that_is_killed_is_replaced(own_cluster: Cluster, cooperative: None, key: str) -> None:
    cluster = own_cluster
    with in_use(cluster_broker(cluster)):
        (hit,), (other,) = channels_of(0, 1, key), channels_of(2, 1, key)
        with Reader(hit) as reader, Reader(other) as undisturbed, Reader(hit, other) as both:
            publish(hit, "a")
            reader.until("a")
            both.until("a")
            cluster.nodes[0].stop(signal.SIGKILL)
            begun = time.monotonic()
            with pytest.raises(BrokerError, match="WEBSOCKET_BROKER"):
                publish(hit, "b")
            assert time.monotonic() - begun < redis_broker.TIMEOUT
            until(lambda: cluster.owner(slot(hit)) is cluster.nodes[3], SETTLED)
            reader.until(MISSED)
            both.until(MISSED)
            published(hit, "c")
            reader.until("c")
            publish(other, "d")
            undisturbed.until("d")
            both.until("c", "d")

            cluster.nodes[0].start()  # a replica now, until it is told to take over
            cluster.hurry()  # or it would wait four minutes before it asks for votes again
            until(cluster.complete, SETTLED)
            with Stream(hit) as stream:
                until(cluster.taking_over(cluster.nodes[0], slot(hit)), SETTLED)
                until(lambda: MISSED in reader.got, BACK)
                stream.until_heard(reader)
            stream.check(reader)
            publish(other, "e")
            undisturbed.until("e")


def test_a_node_that_hangs_is_replaced(
    own_cluster: Cluster, cooperative: None, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = own_cluster
    with in_use(cluster_broker(cluster)):
        (channel,) = channels_of(0, 1, key)
        with Reader(channel) as reader:
            publish(channel, "a")
            reader.until("a")
            monkeypatch.setattr(redis_cluster_broker, "NODE_TIMEOUT", 0.3)
            cluster.nodes[0].send_signal(signal.SIGSTOP)
            try:
                until(lambda: cluster.ask(cluster.nodes[3], "ROLE")[0] == b"master", SETTLED)
                reader.until(MISSED)
                published(channel, "b")
                reader.until("b")
                for node in cluster.nodes[1:]:
                    node.send_signal(signal.SIGSTOP)
            finally:
                cluster.nodes[0].send_signal(signal.SIGCONT)
            try:  # The node wakes up alone, unaware of the failover, and is not believed.
                until(lambda: b"cluster_state:fail" in cluster.ask(cluster.nodes[0], "CLUSTER", "INFO"), SETTLED)
                assert cluster.ask(cluster.nodes[0], "SPUBLISH", f"site1:{channel}", "to nobody") == 0
                broker: Any = pubsub.process.current_broker()
                broker.learn(time.monotonic() + 10)
                assert broker.owner(channel, time.monotonic()).port == cluster.nodes[3].port
            finally:
                for node in cluster.nodes[1:]:
                    node.send_signal(signal.SIGCONT)
            published(channel, "d")
            until(lambda: reader.got[-1:] == ["d"] or MISSED in reader.got)


def test_losing_a_node_without_a_replica_affects_only_its_own_channels(
    own_cluster: Cluster, cooperative: None, key: str
) -> None:
    cluster = own_cluster
    with in_use(cluster_broker(cluster)):
        (here, beside), (there,) = channels_of(1, 2, key), channels_of(2, 1, key)
        with Reader(here) as reader:
            cluster.nodes[2].stop(signal.SIGKILL)
            until(lambda: b"cluster_state:fail" in cluster.ask(cluster.nodes[1], "CLUSTER", "INFO"), SETTLED)
            for _ in range(2):
                with pytest.raises(BrokerError, match="refused"):
                    publish(there, "a")
                with pytest.raises(BrokerError, match="refused"):
                    subscribe(there)
                with Reader(beside) as neighbour:
                    publish(beside, "a")
                    publish(here, "a")
                    neighbour.until("a")
                    reader.until("a")
        with in_use(cluster_broker(cluster) + "&client_name=new"), Reader(here) as reader:  # made during the outage
            publish(here, "b")
            reader.until("b")
        cluster.nodes[2].start()
        published(there, "b")
        with Reader(there) as reader:
            publish(there, "c")
            reader.until("c")


def test_clients_follow_their_channels(
    start_site: StartSite, raw: Raw, connect: Connect, own_cluster: Cluster, key: str
) -> None:
    cluster = own_cluster
    (hit,), (other,) = channels_of(0, 1, key), channels_of(2, 1, key)
    with start_site({"WEBSOCKET_BROKER": cluster_broker(cluster)}, args=["--workers", "2"]) as server:
        client, undisturbed = subscribed(raw, server, hit), subscribed(raw, server, other)
        listening = connect(server, f"/listen/{hit}/?key={key}")
        cluster.nodes[0].stop(signal.SIGKILL)
        assert eventually(lambda: cluster.owner(slot(hit)) is cluster.nodes[3], SETTLED)
        assert client.frame().text == "MessagesMissed"
        assert listening.closing()[0] == 1012
        assert "Traceback" not in server.log  # a page that publishes too early would log one
        assert eventually(lambda: fetch(server.port, f"/publish/{hit}/?text=page").status == 200)
        assert client.frame().text == "page"
        client.send(frame("view"))
        assert client.frame().text == "view"
        assert publish_in_a_process(cluster_broker(cluster), other, "task") == ""
        assert undisturbed.frame().text == "task"
