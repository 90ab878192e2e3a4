"""What becomes of a channel's history while Redis is away, full, emptied or forbidden, and beside other programs."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import quote

import gevent
import gevent.socket
import gevent.threadpool
import pytest
import redis as redis_py
import redis.connection

from django_websocket.exceptions import BrokerError, MessagesMissed
from django_websocket.pubsub import history, position, publish, subscribe
from django_websocket.pubsub.subscription import Subscription

from .support.brokers import forward, in_use
from .support.clients import RawClient, fetch, request
from .support.fixtures import SITE, Raw, StartSite
from .support.frames import CLOSE, TEXT, frame, text
from .support.servers import Server, redis_server
from .support.waiting import DEADLINE, eventually, until
from .support.wire import Pairs, Peer

KEPT = {"messages": 50, "seconds": 3600}
HISTORY = {"kept:*": KEPT}
ENTRY = re.compile(rb"\xfe(\d+):([\w-]{11}):([\w-]*):(\d+):(.*)", re.DOTALL)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A Redis whose settings a test may change, if it restores them."""
    with redis_server() as server:
        yield server


@pytest.fixture(autouse=True)
def cooperative(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make redis-py's sockets cooperative, as they are in a patched worker."""
    monkeypatch.setattr(redis.connection, "socket", gevent.socket)


@pytest.fixture
def admin(server: Server, pairs: Pairs) -> Iterator[Any]:
    """A client of Redis, such as any other program may have."""
    with redis_py.Redis(port=server.port) as client:
        client.ping()
        yield client


@pytest.fixture
def prefix(server: Server, admin: Any, key: str) -> Iterator[str]:
    """Put the Redis into the settings; return the prefix of its keys and channels."""
    with in_use(f"redis://{server.address}?prefix={key}:", WEBSOCKET_HISTORY=HISTORY):
        yield f"{key}:"


def contents(channel: str, **options: Any) -> list[str | bytes]:
    return [kept.message for kept in history(channel, **options)]


def taken(subscription: Subscription, count: int) -> list[Any]:
    return [subscription.get(timeout=DEADLINE) for _ in range(count)]


def received(peer: Peer, last: str) -> list[str]:
    """Let the client read until a certain text arrives or the connection is closed; return all texts."""

    def came() -> bool:
        peer.pump()
        return bool(peer.frames) and (text(last) in peer.frames or peer.frames[-1].opcode == CLOSE)

    until(came)
    return [frame.payload.decode() for frame in peer.frames if frame.opcode == TEXT]


def closed(peer: Peer) -> int:
    """Return the code with which the client is closed."""
    until(lambda: peer.pump() and peer.frames and peer.frames[-1].opcode == CLOSE)
    return peer.frames[-1].close[0]


# --- beside other programs -------------------------------------------------------------------------------------------


def test_a_bare_message_is_delivered_and_not_kept(admin: Any, prefix: str, pairs: Pairs) -> None:
    publish("kept:a", "1")
    before, top = history("kept:a"), position("kept:a")
    connection, peer = pairs()
    with subscribe("kept:a") as subscription, forward(connection, "kept:a"):
        for payload in (b"bare", b"", b"5:x:y:1:z", b"\xff\0"):
            assert admin.publish(f"{prefix}kept:a", payload) == 1
        assert taken(subscription, 4) == ["bare", "", "5:x:y:1:z", b"\0"]
        assert (history("kept:a"), position("kept:a"), subscription.position()) == (before, top, top)
        publish("kept:a", "2")
        admin.publish(f"{prefix}kept:a", "bare again")
        publish("kept:a", "3")
        assert taken(subscription, 3) == ["2", "bare again", "3"]
        assert received(peer, "3") == ["bare", "", "5:x:y:1:z", "2", "bare again", "3"]
        assert subscription.position() == position("kept:a")
    assert contents("kept:a", since=top) == ["2", "3"]


def test_redis_has_what_the_documentation_says(admin: Any, prefix: str) -> None:
    """A process without this version sees the same; it drops such messages, since they begin with no UTF-8."""
    channel = f"{prefix}kept:a"
    messages: list[str | bytes] = ["1:2:3", "", "\u00e9\n", b"", b"\xff\xfe1:"]
    with admin.pubsub() as watcher:
        watcher.subscribe(channel)
        watcher.get_message(timeout=DEADLINE)
        begin = position("kept:a")
        for message in messages:
            publish("kept:a", message)
        payloads = [watcher.get_message(timeout=DEADLINE)["data"] for _ in messages]
    tags = [begin.split(".")[1].encode()]  # that of the place before the first message
    seconds = admin.time()[0]
    for number, (payload, message) in enumerate(zip(payloads, messages, strict=True), 1):
        found = ENTRY.fullmatch(payload)
        assert found is not None, payload
        offset, tag, before, time, bare = found.groups()
        assert int(offset) == number
        assert before == tags[-1]
        assert tag not in tags
        tags.append(tag)
        assert 0 <= seconds - int(time) < 60
        assert bare == (message.encode() if isinstance(message, str) else b"\xff" + message)
    name = f"{prefix}django_websocket:history:kept:a"
    placeholder, *kept = admin.lrange(name, 0, -1)
    assert kept == payloads
    assert placeholder.startswith(b"\xfe0:" + tags[0] + b"::") and placeholder.endswith(b":")
    assert KEPT["seconds"] < admin.ttl(name) <= 2 * KEPT["seconds"] + 60


def test_a_process_without_the_setting_delivers_what_others_keep(
    server: Server, admin: Any, prefix: str, key: str
) -> None:
    with admin.pubsub() as watcher:
        watcher.subscribe(f"{prefix}kept:a")
        watcher.get_message(timeout=DEADLINE)
        for message in ("text", "", b"\xff\0"):
            publish("kept:a", message)
        payloads = [watcher.get_message(timeout=DEADLINE)["data"] for _ in range(3)]
    with in_use(f"redis://{server.address}?prefix={key}-2:", WEBSOCKET_HISTORY={}), subscribe("kept:a") as subscription:
        for payload in payloads:
            admin.publish(f"{key}-2:kept:a", payload)
        assert taken(subscription, 3) == ["text", "", b"\xff\0"]


@pytest.mark.parametrize("channel", ["kept:a", "plain"])
def test_what_only_resembles_a_kept_message_is_dropped(
    admin: Any, prefix: str, channel: str, caplog: pytest.LogCaptureFixture
) -> None:
    with subscribe(channel) as subscription:
        for payload in (
            *[b"\xfe", b"\xfe1", b"\xfe:::", b"\xfe1:AAAAAAAAAAA:", b"\xfe\xfd no UTF-8", b"\xfe::::"],
            *[b"\xfex:A::1:", b"\xfe1:A::x:", b"\xfe" + b"9" * 5000 + b":A::1:"],
        ):
            admin.publish(prefix + channel, payload)
        for message in ("fine", "fine as well"):
            publish(channel, message)
            while (got := subscription.get(timeout=DEADLINE)) == "":  # where nothing is kept, only colons are counted
                assert channel == "plain"
            assert got == message
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    assert any(channel in record.getMessage() for record in caplog.records)


def test_a_process_without_gevent_keeps_messages_too(server: Server, prefix: str) -> None:
    code = (
        "import django, json, threading; django.setup()\n"
        "from gevent import monkey\n"
        "from django_websocket.pubsub import history, position, publish, subscribe\n"
        "assert not monkey.is_module_patched('socket')\n"
        "begin = position('kept:a')\n"
        "publish('kept:a', 'from a task')\n"
        "thread = threading.Thread(target=publish, args=('kept:a', b'\\xff from a thread'))\n"
        "thread.start(); thread.join()\n"
        "with subscribe('kept:a', since=begin) as messages:\n"
        "    assert [messages.get(timeout=10) for _ in range(2)] == ['from a task', b'\\xff from a thread']\n"
        "assert len(history('kept:a', since=begin)) == 2\n"
        "found = []\n"
        "thread = threading.Thread(target=lambda: found.append(position('kept:a')))\n"
        "thread.start(); thread.join()\n"
        "assert found == [position('kept:a')]\n"
        "print(json.dumps(begin))\n"
    )
    settings = {"WEBSOCKET_BROKER": f"redis://{server.address}?prefix={prefix}", "WEBSOCKET_HISTORY": HISTORY}
    with subscribe("kept:a") as subscription:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=SITE,
            env={**os.environ, "TESTSITE_SETTINGS": json.dumps(settings)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert taken(subscription, 2) == ["from a task", b"\xff from a thread"]
    assert contents("kept:a", since=json.loads(done.stdout)) == ["from a task", b"\xff from a thread"]


def test_a_thread_publishes_beside_greenlets(prefix: str) -> None:
    threads = set()

    def publish_in_thread(number: int) -> int | None:
        threads.add(str(threading.get_native_id()))
        return publish("kept:a", f"by a thread {number}")

    pool = gevent.threadpool.ThreadPool(10)
    with subscribe("kept:a") as subscription:
        results = [pool.spawn(publish_in_thread, number) for number in range(20)]
        for number in range(20):
            publish("kept:a", f"by a greenlet {number}")
        got = taken(subscription, 40)
        assert [result.get(timeout=DEADLINE) for result in results] == [1] * 20
        assert contents("kept:a") == got
    pool.kill()
    # A thread closes its loop's descriptors only after the pool has forgotten it.
    until(lambda: not threads & set(os.listdir("/proc/self/task")))


# --- Redis forgets, is full, or forbids ------------------------------------------------------------------------------


def test_forgotten_scripts_are_sent_again(admin: Any, prefix: str) -> None:
    begin = position("kept:a")
    with subscribe("kept:a") as subscription:
        calls: list[Callable[[], Any]] = [
            lambda: publish("kept:a", "1"),
            lambda: contents("kept:a"),
            lambda: contents("kept:a", since=begin),
            lambda: contents("kept:a", last=3),
            lambda: position("kept:a").split(".")[0],
        ]
        results = []
        for call in calls:
            admin.script_flush()
            results.append(call())
        assert results == [1, ["1"], ["1"], ["1"], "1"]
        assert taken(subscription, 1) == ["1"]
        admin.script_flush()
        with subscribe("kept:a", since=begin) as other:
            assert taken(other, 1) == ["1"]


def test_a_redis_that_is_full_takes_nothing_and_delivers_nothing(admin: Any, prefix: str, pairs: Pairs) -> None:
    publish("kept:a", "1")
    top = position("kept:a")
    connection, peer = pairs()
    with subscribe("kept:a") as subscription, forward(connection, "kept:a"):
        admin.config_set("maxmemory", "100kb")
        try:
            with pytest.raises(BrokerError, match="maxmemory"):
                publish("kept:a", "2" * 10_000)
            assert position("kept:a") == top
            assert contents("kept:a") == ["1"]
            publish("plain", "needs no memory")
        finally:
            admin.config_set("maxmemory", "0")
        publish("kept:a", "3")
        assert taken(subscription, 1) == ["3"]
        assert received(peer, "3") == ["3"]
        assert contents("kept:a", since=top) == ["3"]


def test_a_redis_that_is_full_takes_no_first_message_either(admin: Any, prefix: str) -> None:
    """Redis looks at its memory only for the first command of a script that writes, and some need none."""
    with subscribe("kept:new") as subscription:
        admin.config_set("maxmemory", "100kb")
        try:
            for channel in ("kept:new", "kept:unheard-of"):
                with pytest.raises(BrokerError, match="maxmemory"):
                    publish(channel, "x")
        finally:
            admin.config_set("maxmemory", "0")
        publish("kept:new", "1")
        assert taken(subscription, 1) == ["1"]


def test_a_user_who_may_not_run_scripts_is_told_so(server: Server, admin: Any, key: str) -> None:
    admin.acl_setuser(
        "weak", enabled=True, nopass=True, keys="*", channels="*", commands=["+@all", "-eval", "-evalsha"]
    )
    try:
        with in_use(f"redis://weak:any@{server.address}?prefix={key}:", WEBSOCKET_HISTORY=HISTORY):
            calls: list[Callable[[], Any]] = [
                lambda: publish("kept:a", "1"),
                lambda: position("kept:a"),
                lambda: history("kept:a"),
            ]
            for call in calls:
                with pytest.raises(BrokerError) as raised:
                    call()
                assert re.search(r"\bevalsha\b", str(raised.value)), raised.value
                assert "ACL" in str(raised.value)
            publish("plain", "needs no script")
    finally:
        admin.acl_deluser("weak")


def test_keys_of_another_kind_are_an_error_of_the_broker(admin: Any, prefix: str) -> None:
    admin.set(f"{prefix}django_websocket:history:kept:a", "something else")
    calls: list[Callable[[], Any]] = [
        lambda: publish("kept:a", "1"),
        lambda: position("kept:a"),
        lambda: history("kept:a"),
    ]
    for call in calls:
        with pytest.raises(BrokerError):
            call()
    publish("kept:b", "others are not affected")
    assert contents("kept:b") == ["others are not affected"]


@pytest.mark.parametrize("lost", ["everything", "the channel"])
def test_a_history_that_is_gone_is_told(admin: Any, prefix: str, pairs: Pairs, lost: str) -> None:
    begin = position("kept:a")
    for number in range(3):
        publish("kept:a", str(number))
    since = position("kept:a")
    told, shown = pairs(), pairs()
    with (
        subscribe("kept:a") as subscription,
        forward(told[0], "kept:a"),
        forward(shown[0], "kept:a", on_missed="missed"),
    ):
        if lost == "everything":
            admin.flushall()
        else:
            admin.delete(f"{prefix}django_websocket:history:kept:a")  # as Redis does when it evicts
        for number in range(3):  # so that the numbers are the same as before
            publish("kept:a", f"other {number}")
        with pytest.raises(MessagesMissed):
            subscription.get(timeout=DEADLINE)
        publish("kept:a", "live")
        assert received(shown[1], "live")[0] == "missed"
        assert closed(told[1]) == 1012
        got = taken(subscription, 1)
        while got[-1] != "live":
            got += taken(subscription, 1)
        assert got == ["other 0", "other 1", "other 2", "live"][-len(got) :]
        assert subscription.position() == position("kept:a")
    for old in (begin, since):
        with pytest.raises(MessagesMissed):
            history("kept:a", since=old)
    assert contents("kept:a") == ["other 0", "other 1", "other 2", "live"]


@pytest.mark.parametrize("use", [lambda: publish("kept:a", "2"), lambda: position("kept:a")], ids=["publish", "read"])
def test_a_list_that_is_used_lives_on(admin: Any, prefix: str, use: Callable[[], Any]) -> None:
    publish("kept:a", "1")
    second = admin.time()[0]
    name = f"{prefix}django_websocket:history:kept:a"
    admin.expire(name, 5)
    assert eventually(lambda: admin.time()[0] > second)  # a publish renews it once a second
    use()
    assert admin.ttl(name) > KEPT["seconds"]


def test_a_list_that_ends_with_something_else_begins_anew(admin: Any, prefix: str) -> None:
    publish("kept:a", "1")
    admin.rpush(f"{prefix}django_websocket:history:kept:a", "written by another program")
    publish("kept:a", "2")
    assert contents("kept:a") == ["2"]
    admin.rpush(f"{prefix}django_websocket:history:kept:a", b"\xfe17:broken")
    assert contents("kept:a") == []
    publish("kept:a", "3")
    assert contents("kept:a") == ["3"]


# --- Redis is away ---------------------------------------------------------------------------------------------------


@contextmanager
def cut_off(admin: Any) -> Iterator[None]:
    """Cut the connection on which this process listens, and let it make no other, while its publisher's stays."""
    before = admin.config_get("maxclients")["maxclients"]
    admin.config_set("maxclients", 1)
    try:
        assert admin.client_kill_filter(_type="pubsub") >= 1
        yield
    finally:
        admin.config_set("maxclients", before)


class Members:
    """A subscription and clients of "kept:a" and "plain"."""

    def __init__(self, pairs: Pairs, stack: ExitStack, **options: Any) -> None:
        self.kept = stack.enter_context(subscribe("kept:a"))
        self.plain = stack.enter_context(subscribe("plain"))
        (connection, self.client), (other, self.plain_client) = pairs(), pairs()
        stack.enter_context(forward(connection, "kept:a", **options))
        stack.enter_context(forward(other, "plain"))
        publish("kept:a", "before")
        publish("plain", "before")
        assert taken(self.kept, 1) == taken(self.plain, 1) == ["before"]

    def plain_ones_are_told(self) -> None:
        with pytest.raises(MessagesMissed):
            self.plain.get(timeout=DEADLINE)
        assert closed(self.plain_client) == 1012


def test_only_clients_without_history_notice_that_redis_was_away(admin: Any, prefix: str, pairs: Pairs) -> None:
    with ExitStack() as stack:
        members = Members(pairs, stack)
        expected = [str(number) for number in range(40)]
        with cut_off(admin):
            for message in expected[:30]:
                publish("kept:a", message)
            publish("plain", "nobody hears this")
            gevent.sleep(0.3)  # the process tries in vain to connect
            for message in expected[30:]:
                publish("kept:a", message)
        publish("kept:a", "after")
        assert taken(members.kept, 41) == [*expected, "after"]
        assert received(members.client, "after") == ["before", *expected, "after"]
        assert members.kept.position() == position("kept:a")
        members.plain_ones_are_told()
        publish("plain", "again")
        assert taken(members.plain, 1) == ["again"]
        assert not members.kept.ready()


def test_a_process_catches_up_although_nothing_is_published_later(admin: Any, prefix: str, pairs: Pairs) -> None:
    with ExitStack() as stack:
        members = Members(pairs, stack)
        with cut_off(admin):
            publish("kept:a", "the last")
        assert taken(members.kept, 1) == ["the last"]
        assert received(members.client, "the last") == ["before", "the last"]


def test_a_connection_that_is_killed_again_and_again_loses_nothing(admin: Any, prefix: str, pairs: Pairs) -> None:
    connection, peer = pairs()
    with subscribe("kept:a") as subscription, forward(connection, "kept:a"):
        expected = []
        for number in range(3):
            for part in range(8):
                publish("kept:a", f"{number} {part}")
                expected.append(f"{number} {part}")
                if part == number * 3:
                    admin.client_kill_filter(_type="pubsub")
            got_now = taken(subscription, 8)
            assert got_now == expected[-8:]
        assert received(peer, expected[-1]) == expected
        assert subscription.position() == position("kept:a")


@pytest.mark.parametrize("how", ["trimmed", "flushed"])
def test_clients_are_told_if_the_history_does_not_reach_back(admin: Any, prefix: str, pairs: Pairs, how: str) -> None:
    with ExitStack() as stack:
        members = Members(pairs, stack)
        connection, peer = pairs()
        stack.enter_context(forward(connection, "kept:a", on_missed="missed"))
        with cut_off(admin):
            if how == "flushed":
                admin.flushall()
            for number in range(60):
                publish("kept:a", str(number))
        with pytest.raises(MessagesMissed):
            members.kept.get(timeout=DEADLINE)
        assert closed(members.client) == 1012
        publish("kept:a", "live")
        texts = received(peer, "live")
        assert texts[0] == "missed"
        got = taken(members.kept, 1)
        while got[-1] != "live":
            got += taken(members.kept, 1)
        assert got == [*map(str, range(60)), "live"][-len(got) :]
        assert members.kept.position() == position("kept:a")


def test_a_redis_that_hangs_and_goes_on_is_not_noticed(
    admin: Any, server: Server, prefix: str, pairs: Pairs, caplog: pytest.LogCaptureFixture
) -> None:
    with ExitStack() as stack:
        members = Members(pairs, stack)
        server.send_signal(signal.SIGSTOP)
        try:
            until(lambda: any("Redis" in message for message in caplog.messages), 20)
            with pytest.raises(BrokerError):
                publish("kept:a", "not taken, or late")
        finally:
            server.send_signal(signal.SIGCONT)

        def published() -> bool:
            try:
                return publish("kept:a", "after") is not None
            except BrokerError:
                return False

        until(published)
        got = taken(members.kept, 1)
        while got[-1] != "after":
            got += taken(members.kept, 1)
        assert got in (["after"], ["not taken, or late", "after"])
        assert received(members.client, "after") == ["before", *got]
        assert contents("kept:a") == ["before", *got]
        members.plain_ones_are_told()


def test_a_redis_that_restarts_empty_is_told(pairs: Pairs, key: str) -> None:
    with (
        redis_server() as own,
        in_use(f"redis://{own.address}", WEBSOCKET_HISTORY=HISTORY),
        subscribe("kept:a") as subscription,
    ):
        connection, peer = pairs()
        with forward(connection, "kept:a", on_missed="missed"):
            for number in range(3):
                publish("kept:a", str(number))
            assert taken(subscription, 3) == ["0", "1", "2"]
            since = subscription.position()
            own.stop(signal.SIGKILL)
            with pytest.raises(BrokerError):
                publish("kept:a", "lost")
            own.start()

            def published() -> bool:
                try:
                    return publish("kept:a", "new") is not None
                except BrokerError:
                    return False

            until(published)
            with pytest.raises(MessagesMissed):
                subscription.get(timeout=DEADLINE)
            for message in ("a", "b", "live"):
                publish("kept:a", message)
            assert "missed" in received(peer, "live")
            with pytest.raises(MessagesMissed):
                history("kept:a", since=since)


# --- workers ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(start_site: StartSite, server: Server) -> Iterator[Server]:
    """The test site, each of whose channels keeps messages as far as that may be."""
    settings = {"WEBSOCKET_BROKER": f"redis://{server.address}", "WEBSOCKET_HISTORY": {"*": KEPT}}
    with start_site(settings) as site:
        yield site


@pytest.fixture
def other(site: Server, server: Server, admin: Any) -> Iterator[None]:
    """Have this process publish to the site."""
    with in_use(f"redis://{server.address}", WEBSOCKET_HISTORY={"*": KEPT}):
        yield


def listening(raw: Raw, site: Server, channel: str, **options: Any) -> RawClient:
    client = raw(site)
    client.open(f"/pasts/sync/listens/{quote(channel)}/?options={quote(json.dumps(options))}")
    return client


def test_clients_of_a_worker_do_not_notice_that_redis_was_away(
    site: Server, other: None, raw: Raw, admin: Any, key: str
) -> None:
    clients = [listening(raw, site, key) for _ in range(3)]
    publish(key, "before")
    assert [client.frame().text for client in clients] == ["before"] * 3
    with cut_off(admin):
        for number in range(20):
            publish(key, str(number))
    publish(key, "after")
    for client in clients:
        assert [client.frame().text for _ in range(21)] == [*map(str, range(20)), "after"]


def test_many_that_come_back_at_once_cost_one_read(site: Server, other: None, raw: Raw, admin: Any, key: str) -> None:
    since = position(key)
    expected = [f"{number} ".ljust(1000, ".") for number in range(40)]
    for message in expected:
        publish(key, message)
    listening(raw, site, f"{key}-other").sock.close()  # the worker has its connections
    handshake = request(f"/pasts/sync/listens/{key}/?options={quote(json.dumps({'since': since}))}")
    clients = [raw(site) for _ in range(300)]

    def scripts() -> int:
        return int(admin.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"])

    before = scripts()
    for client in clients:
        client.send(handshake)
    for client in clients:
        assert client.response().status == 101
        assert [client.frame().text for _ in expected] == expected
    assert scripts() - before <= 10
    publish(key, "live")
    assert {client.frame().text for client in clients} == {"live"}


def test_logins_end_although_every_channel_keeps_messages(site: Server, raw: Raw, key: str) -> None:
    """What a worker is told on channels of the package's own is for those who are there."""
    page = fetch(site.port, f"/enter/?name={key}")
    headers = {"Cookie": f"sessionid={page.cookies['sessionid']}"}
    client = raw(site)
    client.open("/asynchronous/members/", headers)
    assert client.frame().text == f"hello {key}"
    fetch(site.port, f"/change/disconnect/?name={key}", headers)
    assert client.closing() == (4401, "go away")
    again = raw(site)
    page = fetch(site.port, f"/enter/?name={key}")
    again.open("/asynchronous/members/", {"Cookie": f"sessionid={page.cookies['sessionid']}"})
    assert again.frame().text == f"hello {key}"
    again.send(frame("still here"))
    assert again.frame().text == "still here"


def test_nothing_is_kept_of_the_packages_own_channels(site: Server, admin: Any, key: str) -> None:
    fetch(site.port, f"/enter/?name={key}")
    assert fetch(site.port, f"/end/?user={key}").status == 200
    fetch(site.port, f"/publish/{key}/?text=kept")
    names = [name.decode() for name in admin.scan_iter("django_websocket:*")]
    assert f"django_websocket:history:{key}" in names
    assert not [name for name in names if ":django_websocket." in name]
