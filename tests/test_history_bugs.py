"""What went wrong with histories and resuming elsewhere, each named by the report of it, tried with a real Redis."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gevent
import gevent.server
import gevent.socket
import pytest
import redis as redis_py

import django_websocket.pubsub.catching_up as catching_up
from django_websocket.exceptions import BrokerError, MessagesMissed
from django_websocket.pubsub import history, position, publish, subscribe

from .support.brokers import in_use
from .support.fixtures import SITE
from .support.mishaps import Mishaps
from .support.servers import Server, redis_server
from .support.waiting import until

CHANNEL = "bugs"
HISTORY = {"*": {"messages": 1000, "seconds": 3600}}
DAY = 24 * 3600


@pytest.fixture(scope="module")
def own_redis() -> Iterator[Server]:
    """A Redis that these tests may flush and limit."""
    with redis_server() as server:
        yield server


@pytest.fixture
def admin(own_redis: Server) -> Iterator[redis_py.Redis]:
    """A client of Redis itself, which finds it empty."""
    with redis_py.Redis("127.0.0.1", own_redis.port, protocol=2) as client:
        client.flushall()
        yield client


@pytest.fixture
def broker(own_redis: Server, key: str) -> Mapping[str, Any]:
    """The setting for that Redis."""
    return {"url": f"redis://{own_redis.address}/0", "prefix": f"{key}:"}


@pytest.fixture
def channels(broker: Mapping[str, Any], admin: redis_py.Redis, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Channels with history, in this process, with sockets as in a patched worker."""
    monkeypatch.setattr(redis_py.connection, "socket", gevent.socket)
    with in_use(broker, WEBSOCKET_HISTORY=HISTORY):
        yield


def key_of(admin: redis_py.Redis) -> bytes:
    """Return the key of the channel."""
    found: Any = admin.keys(f"*{CHANNEL}")
    (name,) = found
    return bytes(name)


def published(*messages: str) -> list[str]:
    """Publish messages, and return the positions behind them."""
    positions = []
    for message in messages:
        publish(CHANNEL, message)
        positions.append(position(CHANNEL))
    return positions


def texts(since: str | None = None) -> list[str | bytes]:
    """Return the messages that are kept behind a position."""
    return [kept.message for kept in history(CHANNEL, since=since)]


def check_missed(since: str) -> None:
    """Check that no way to go on behind a position claims that nothing is missing."""
    with pytest.raises(MessagesMissed):
        history(CHANNEL, since=since)
    with subscribe(CHANNEL, since=since) as subscription:
        with pytest.raises(MessagesMissed):
            subscription.get(timeout=10)
        publish(CHANNEL, "it goes on")
        assert subscription.get(timeout=10) == "it goes on"


# --- keys that are gone, or cut --------------------------------------------------------------------------------------


def test_publishing_works_after_the_key_was_evicted(channels: None, admin: redis_py.Redis) -> None:
    """centrifugo#888: an evicted meta key broke publishing for ever."""
    before = published("a", "b")
    with subscribe(CHANNEL) as subscription:
        admin.delete(key_of(admin))
        after = published("c", "d")
        assert texts() == ["c", "d"]
        assert texts(after[0]) == ["d"]
        with pytest.raises(MessagesMissed):  # the process had the position of the stream that is gone
            subscription.get(timeout=10)
        published("e")
        while subscription.get(timeout=10) != "e":
            pass
    check_missed(before[0])


@pytest.mark.parametrize("kind", ["nothing", "no message", "text", "hash"])
def test_publishing_works_after_something_else_was_put_in_its_place(
    channels: None, admin: redis_py.Redis, kind: str
) -> None:
    (before,) = published("a")
    key = key_of(admin)
    if kind != "no message":
        admin.delete(key)
    if kind == "no message":
        admin.rpush(key, "nonsense")
    elif kind == "text":
        admin.set(key, "nonsense")
    elif kind == "hash":
        admin.hset(key, "s", "1")
    if kind in ("text", "hash"):  # somebody else's
        with pytest.raises(BrokerError, match="WRONGTYPE"):
            publish(CHANNEL, "b")
        admin.delete(key)
    published("c")
    assert texts() == ["c"]
    check_missed(before)


def found_behind(since: str) -> list[str | bytes] | None:
    """Return the messages behind a position; None if some are said to be missing."""
    try:
        return texts(since)
    except MessagesMissed:
        return None


@pytest.mark.parametrize("more", [[], ["c", "d", "e"]])
@pytest.mark.parametrize("left", [0, 1, 3])
def test_a_history_whose_beginning_is_gone_does_not_claim_that_it_is_complete(
    channels: None, admin: redis_py.Redis, left: int, more: list[str]
) -> None:
    """centrifugo#230: what was left was "recovered". Mercure said "caught up" with nothing replayed."""
    before = ["0", "1", "2", "3", "4"]
    positions = [position(CHANNEL), *published(*before)]
    if left:
        admin.ltrim(key_of(admin), -left, -1)
    else:
        admin.delete(key_of(admin))
    published(*more)
    for count, since in enumerate(positions):
        there = left and count >= len(before) - left
        assert found_behind(since) == ([*before[count:], *more] if there else None), f"behind {count}"
    check_missed(positions[0])


@pytest.mark.parametrize("more", [[], ["c", "d", "e"]])
def test_a_position_behind_an_end_that_is_gone_is_unknown(
    channels: None, admin: redis_py.Redis, more: list[str]
) -> None:
    """Whoever knows what was lost is told. Nothing tells the others of it, as on a replica that lags."""
    before = ["0", "1", "2", "3", "4"]
    positions = published(*before)
    admin.ltrim(key_of(admin), 0, -3)
    published(*more)
    assert [found_behind(since) for since in positions] == [["1", "2", *more], ["2", *more], more, None, None]
    check_missed(positions[-1])


# --- positions of other streams --------------------------------------------------------------------------------------


def test_no_part_of_a_position_may_be_missing(channels: None, admin: redis_py.Redis) -> None:
    """centrifuge-go#159: an empty epoch skipped the check."""
    (since,) = published("a")
    offset, _, tag = since.partition(".")
    for part in (
        "",
        ".",
        offset,
        f"{offset}.",
        f".{tag}",
        tag,
        "0",
        "0.",
        "-1.",
        f"-{since}",
        f"{since}.",
        f" {since}",
    ):
        check_missed(part)


def test_the_place_before_the_first_message_belongs_to_its_stream_alone(channels: None, admin: redis_py.Redis) -> None:
    """The same in another guise: a place before which there is nothing must not fit all streams."""
    publish(CHANNEL, "a")  # nobody has asked for the position before
    with subscribe(CHANNEL, last=10) as subscription:
        begin = subscription.position()
        assert subscription.get(timeout=10) == "a"
    assert texts(begin) == ["a"]
    admin.flushall()
    publish(CHANNEL, "b")
    check_missed(begin)


def test_an_offset_with_the_tag_of_another_stream_fits_nothing(channels: None, admin: redis_py.Redis) -> None:
    """centrifuge-go#160: a new epoch with an old offset served another stream."""
    old = published("a", "b", "c")
    admin.flushall()
    new = published("d", "e", "f")
    for mine, other in zip(old, new, strict=True):
        assert mine.partition(".")[0] == other.partition(".")[0]
        check_missed(mine)
    for mine, other in zip(new, (*new[1:], new[0]), strict=True):
        check_missed(f"{mine.partition('.')[0]}.{other.partition('.')[2]}")


def test_a_replica_that_lags_hands_out_no_position_again(channels: None, admin: redis_py.Redis) -> None:
    """Centrifugo uses offsets again under the same epoch when such a replica becomes the master, and fails back."""
    shared = published("a", "b")

    def state() -> dict[bytes, Any]:
        return {key_of(admin): admin.dump(key_of(admin))}

    def fail_over(state: Mapping[bytes, Any]) -> None:
        for name, dump in state.items():
            admin.restore(name, 3_600_000, dump, replace=True)

    replica = state()
    (lost,) = published("c")
    master = state()
    with subscribe(CHANNEL) as subscription:
        fail_over(replica)
        (other,) = published("d")
        with pytest.raises(MessagesMissed):
            subscription.get(timeout=10)
    assert lost.partition(".")[0] == other.partition(".")[0]
    assert texts(shared[1]) == ["d"]
    with pytest.raises(MessagesMissed):
        history(CHANNEL, since=lost)
    fail_over(master)
    assert texts(shared[1]) == ["c"]
    assert texts(lost) == []
    check_missed(other)


@pytest.mark.parametrize("later", [[], ["c", "d"]])
def test_a_client_may_know_more_than_the_process_that_it_comes_to(
    channels: None, admin: redis_py.Redis, later: list[str]
) -> None:
    """It has seen the last messages in another process, while this one was cut off."""
    with subscribe(CHANNEL) as member:
        published("a")
        assert member.get(timeout=10) == "a"
        assert admin.client_kill_filter(_type="pubsub") == 1
        (since,) = published("b")
        published(*later)
        with subscribe(CHANNEL, since=since) as subscription:
            assert subscription.position() == since
            published("e")
            assert [subscription.get(timeout=10) for _ in (*later, "e")] == [*later, "e"]
            assert [member.get(timeout=10) for _ in ("b", *later, "e")] == ["b", *later, "e"]


# --- offsets ---------------------------------------------------------------------------------------------------------


def test_a_refused_message_leaves_no_gap(channels: None, admin: redis_py.Redis) -> None:
    """centrifugo#549: a suppressed publish raised the offset."""
    with subscribe(CHANNEL) as subscription:
        (before,) = published("a")
        admin.config_set("maxmemory", 1)
        try:
            for _ in range(3):
                with pytest.raises(BrokerError, match="maxmemory"):
                    publish(CHANNEL, "refused")
            assert position(CHANNEL) == before
        finally:
            admin.config_set("maxmemory", 0)
        with pytest.raises(ValueError, match="WEBSOCKET_OUTBOX_SIZE"):
            publish(CHANNEL, "x" * 10_000_000)
        assert position(CHANNEL) == before
        (after,) = published("b")
        assert int(after.partition(".")[0]) == int(before.partition(".")[0]) + 1
        assert [subscription.get(timeout=10), subscription.get(timeout=10)] == ["a", "b"]
        assert texts(before) == ["b"]


def test_a_channel_has_a_position_before_its_first_message(channels: None) -> None:
    """socket.io#4888: a client that had got no message yet had no offset, and missed the first ones."""
    begin = position(CHANNEL)
    with subscribe(CHANNEL) as subscription:
        assert subscription.position() == begin
    published("a", "b")
    assert texts(begin) == ["a", "b"]
    with subscribe(CHANNEL, since=begin) as subscription:
        assert [subscription.get(timeout=10), subscription.get(timeout=10)] == ["a", "b"]


def process(code: str, broker: Mapping[str, Any], **environment: str) -> subprocess.Popen[str]:
    """Run code in a process without gevent, as a task is."""
    settings = {"WEBSOCKET_BROKER": dict(broker), "WEBSOCKET_HISTORY": HISTORY}
    return subprocess.Popen(
        [sys.executable, "-c", f"import django; django.setup()\nfrom django_websocket.pubsub import publish\n{code}"],
        cwd=SITE,
        env={**os.environ, "TESTSITE_SETTINGS": json.dumps(settings), **environment},
        text=True,
    )


def test_what_is_committed_late_is_not_left_out(channels: None, broker: Mapping[str, Any]) -> None:
    """Cursors of the kind `id > last_id`, as solid_cable's, lose what another publisher commits late."""
    since = position(CHANNEL)
    publishers = [process(f"for n in range(300): publish('{CHANNEL}', f'{name} {{n}}')", broker) for name in "ab"]
    got: list[str] = []
    deadline = time.monotonic() + 60
    while len(got) < 600 and time.monotonic() < deadline:
        for kept in history(CHANNEL, since=since):
            got.append(str(kept.message))
            since = kept.position
        gevent.sleep(0)
    assert [one.wait(30) for one in publishers] == [0, 0]
    for name in "ab":
        assert [message for message in got if message[0] == name] == [f"{name} {number}" for number in range(300)]


# --- clocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skew", [-DAY, DAY])
def test_no_clock_but_that_of_redis_is_used(
    channels: None, broker: Mapping[str, Any], admin: redis_py.Redis, tmp_path: Path, skew: int
) -> None:
    """AnyCable: resuming by the clocks of clients loses what lies within their difference."""
    mishaps = Mishaps(tmp_path / "mishaps")
    mishaps.happen(seconds=skew)
    (since,) = published("a")
    assert process(f"publish('{CHANNEL}', 'from another time')", broker, **mishaps.env).wait(60) == 0
    published("b")
    (other, last) = history(CHANNEL, since=since)
    assert (other.message, last.message) == ("from another time", "b")
    now = admin.time()[0]
    assert now - 60 < other.time <= last.time <= now


# --- many at once ----------------------------------------------------------------------------------------------------

MANY = 200


def reads(admin: redis_py.Redis) -> int:
    """Return how often a script has run."""
    statistics: Any = admin.info("commandstats")
    return sum(statistics.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("eval", "evalsha"))


def test_a_channel_is_read_once_however_many_resume_at_once(channels: None, admin: redis_py.Redis) -> None:
    """After a restart everybody resumes in the same second."""
    since = position(CHANNEL)
    wanted = [str(number) for number in range(50)]
    published(*wanted)
    before = reads(admin)

    def resume() -> list[Any]:
        with subscribe(CHANNEL, since=since) as subscription:
            return [subscription.get(timeout=10) for _ in wanted]

    greenlets = [gevent.spawn(resume) for _ in range(MANY)]
    for greenlet in gevent.joinall(greenlets, timeout=30, raise_error=True):
        assert greenlet.get(block=False) == wanted
    assert reads(admin) - before <= 2  # where the channel is, and what it has


def test_each_channel_is_read_once_when_redis_is_back(channels: None, admin: redis_py.Redis) -> None:
    names = [f"{CHANNEL}:{number}" for number in range(20)]
    subscriptions = [subscribe(name) for name in names for _ in range(10)]
    try:
        before = reads(admin)
        admin.client_kill_filter(_type="pubsub")
        for name in names:
            publish(name, "while it was away")
        for subscription in subscriptions:
            assert subscription.get(timeout=10) == "while it was away"
        assert reads(admin) - before <= 2 * len(names)  # as many were published, by a script as well
    finally:
        for subscription in subscriptions:
            subscription.close()


def test_whoever_waits_for_several_channels_is_told_that_one_has_failed_meanwhile(
    channels: None, admin: redis_py.Redis, own_redis: Server
) -> None:
    """Its failure is over when another one, for which the subscriber has waited first, is received."""
    publish(f"broken {CHANNEL}", "a")
    key = key_of(admin)
    admin.delete(key)
    admin.set(key, "of another program")
    own_redis.send_signal(signal.SIGSTOP)
    try:
        broken = gevent.spawn(subscribe, f"broken {CHANNEL}")
        gevent.sleep(0.1)
        sound = gevent.spawn(subscribe, CHANNEL)
        both = gevent.spawn(subscribe, CHANNEL, f"broken {CHANNEL}")
        gevent.sleep(0.1)
    finally:
        own_redis.send_signal(signal.SIGCONT)
    try:
        for greenlet in (broken, both):
            with pytest.raises(BrokerError):
                greenlet.get(timeout=10)
    finally:
        for greenlet in gevent.joinall([sound, both]):
            if greenlet.value is not None:
                greenlet.value.close()


# --- a Redis that answers, and delivers nothing ----------------------------------------------------------------------


class Proxy:
    """Stands between a process and Redis, and can withhold what is published from those who are connected."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.wedged: set[gevent.socket.socket] = set()  # to whom nothing published is passed on
        self.subscribers: list[gevent.socket.socket] = []
        self.withheld = 0
        self._server = gevent.server.StreamServer(("127.0.0.1", 0), self._serve)

    def __enter__(self) -> Proxy:
        self._server.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.stop()

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self._server.server_port}"

    def _serve(self, client: gevent.socket.socket, address: object) -> None:
        redis = gevent.socket.create_connection(("127.0.0.1", self._port))
        back = gevent.spawn(self._back, redis, client)
        try:
            while data := client.recv(65536):
                if b"SUBSCRIBE" in data and client not in self.subscribers:
                    self.subscribers.append(client)
                redis.sendall(data)
        except OSError:
            pass
        finally:
            back.kill()
            redis.close()

    def _back(self, redis: gevent.socket.socket, client: gevent.socket.socket) -> None:
        """Pass on what Redis sends, reply by reply."""
        rest = b""
        try:
            while data := redis.recv(65536):
                rest += data
                if client not in self.wedged:
                    client.sendall(rest)
                    rest = b""
                    continue
                while (size := size_of_reply(rest)) is not None:
                    if b"$7\r\nmessage\r\n" in rest[:size]:
                        self.withheld += 1
                    else:
                        client.sendall(rest[:size])
                    rest = rest[size:]
            client.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def size_of_reply(data: bytes) -> int | None:
    """Return how many bytes the first reply in `data` has; None if it is not complete."""
    line, end, _ = data.partition(b"\r\n")
    if not end:
        return None
    size, number = len(line) + 2, line[1:]
    if line[:1] == b"$":
        size += max(int(number), -2) + 2
        return size if len(data) >= size else None
    for _ in range(int(number) if line[:1] in b"*>" else 0):
        more = size_of_reply(data[size:])
        if more is None:
            return None
        size += more
    return size


def test_a_redis_that_answers_and_delivers_nothing_is_noticed(
    admin: redis_py.Redis, own_redis: Server, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """centrifugo#1189: a wedged node answered PING."""
    monkeypatch.setattr(redis_py.connection, "socket", gevent.socket)
    monkeypatch.setattr(catching_up, "CHECK_INTERVAL", 0.3)
    monkeypatch.setattr(catching_up, "PATH_TIMEOUT", 0.3)
    with Proxy(own_redis.port) as proxy:
        broker = {"url": f"redis://{proxy.address}/0", "prefix": f"{key}:"}
        with in_use(broker, WEBSOCKET_HISTORY=HISTORY), subscribe(CHANNEL) as subscription:
            publish(CHANNEL, "a")
            assert subscription.get(timeout=10) == "a"
            (wedged,) = proxy.subscribers
            proxy.wedged.add(wedged)
            publish(CHANNEL, "b")
            assert subscription.get(timeout=10) == "b"
            assert proxy.withheld == 1
            until(lambda: len(proxy.subscribers) == 2)  # it has connected anew
            publish(CHANNEL, "c")
            assert subscription.get(timeout=10) == "c"
            until(lambda: len(proxy.subscribers) == 2)


def test_a_quiet_channel_is_no_reason_to_connect_anew(
    admin: redis_py.Redis, own_redis: Server, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setattr(redis_py.connection, "socket", gevent.socket)
    monkeypatch.setattr(catching_up, "CHECK_INTERVAL", 0.05)
    monkeypatch.setattr(catching_up, "PATH_TIMEOUT", 0.05)
    with Proxy(own_redis.port) as proxy:
        broker = {"url": f"redis://{proxy.address}/0", "prefix": f"{key}:"}
        with in_use(broker, WEBSOCKET_HISTORY=HISTORY), subscribe(CHANNEL) as subscription:
            for number in range(20):
                publish(CHANNEL, str(number))
                assert subscription.get(timeout=10) == str(number)
                gevent.sleep(0.02)
            assert len(proxy.subscribers) == 1
