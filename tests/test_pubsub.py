"""Publish and subscribe, with the same tests for every broker, and what happens when Redis goes away."""

from __future__ import annotations

import contextlib
import gc
import inspect
import itertools
import json
import logging
import os
import resource
import select as standard
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import gevent
import gevent.pool
import gevent.server
import gevent.socket
import pytest
import redis
import redis.connection
from django.db import connections, transaction
from django.http import HttpResponse
from django.test import override_settings
from django.utils.safestring import mark_safe
from django.utils.translation import gettext_lazy, override
from gevent.event import Event
from redis._parsers import _RESP2Parser

import django_websocket.pubsub.redis as redis_broker
from django_websocket import pubsub
from django_websocket.exceptions import BrokerError, ConnectionClosed, HandshakeFailed, MessagesMissed
from django_websocket.pubsub import hub, pipeline, publish, subscribe
from django_websocket.pubsub.entries import Rule
from django_websocket.pubsub.factory import broker_from
from django_websocket.pubsub.publication import Publication
from django_websocket.pubsub.subscription import Subscription
from django_websocket.select import select
from django_websocket.transport import log, turns
from django_websocket.transport.connection import Connection
from django_websocket.transport.limits import Limits
from django_websocket.transport.turns import let_others_run
from django_websocket.transport.waiting import ViewGreenlet
from django_websocket.websocket import WebSocket

from .support.brokers import CLOSE_WAIT, connections_to, forward, in_use
from .support.documentation import blocks
from .support.frames import BINARY, CLOSE, Frame, close, text
from .support.servers import ROOT, Cluster, Sentinel, Server, executable, free_port, redis_server
from .support.waiting import at_once, until
from .support.wire import Pairs, packet_pair

SITE = ROOT / "tests" / "site"


MANY = 1000  # members of one channel


@pytest.fixture
def cooperative(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make redis-py's sockets cooperative, as they are in a patched worker."""
    monkeypatch.setattr(redis.connection, "socket", gevent.socket)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make turns so short that even a little work takes several."""
    monkeypatch.setattr(turns, "BUDGET", 0.0001)


class Broker:
    """The configured broker, and what other programs could do with its Redis."""

    def __init__(self, setting: str | dict[str, Any], prefix: str) -> None:
        self.url = setting if isinstance(setting, str) else ""
        self.prefix = prefix

    @property
    def hub(self) -> hub.Hub:
        return pubsub.process.current_hub()

    def publish_raw(self, channel: str, payload: bytes) -> None:
        """Publish the bytes as they are, as another program may."""
        pubsub.process.current_broker().publish(channel, payload)

    def publish_together(self, channel: str, *messages: str) -> None:
        """Publish in such a way that the subscriber gets all messages at once."""
        if self.url.startswith("memory"):
            for message in messages:
                publish(channel, message)
        else:
            together = self.redis.pipeline(transaction=True)
            for message in messages:
                together.publish(self.prefix + channel, message)
            together.execute()

    def publish_in_one_write(self, *publications: tuple[str, str | bytes]) -> None:
        """Publish messages on several channels so that the subscriber gets all of them at once."""
        if self.url.startswith("memory"):
            for channel, message in publications:
                self.publish_raw(channel, message.encode() if isinstance(message, str) else message)
        else:
            together = self.redis.pipeline(transaction=True)
            for channel, message in publications:
                together.publish(self.prefix + channel, message)
            together.execute()

    @cached_property
    def redis(self) -> redis.Redis:
        """A client of Redis itself, which adds no prefix."""
        return redis.Redis.from_url(self.url.partition("?")[0])

    def subscribers(self, channel: str) -> int:
        """How many connections are subscribed to a channel, according to Redis."""
        return dict(self.redis.pubsub_numsub(self.prefix + channel))[(self.prefix + channel).encode()]


@contextlib.contextmanager
def using(setting: str | dict[str, Any], prefix: str = "", **settings: Any) -> Iterator[Broker]:
    """Put a broker into the settings, and release its connections afterwards; by then nobody may be subscribed."""
    if prefix:
        setting = f"{setting}?prefix={prefix}"
    with in_use(setting, **settings):
        broker = Broker(setting, prefix)
        try:
            yield broker
        finally:
            if "redis" in vars(broker):
                broker.redis.close()


PLAIN = ["memory", "redis", "redis without hiredis"]
every_broker = pytest.mark.parametrize(
    "broker", [*PLAIN, "encrypted", "sentinel", "cluster", "documented"], indirect=True
)


@pytest.fixture
def sentinel(sentinel: Sentinel) -> dict[str, Any]:
    """A broker that is found through Sentinel."""
    return sentinel.broker()


@pytest.fixture
def cluster(cluster: Cluster) -> dict[str, Any]:
    """A broker of several nodes."""
    return {"url": f"redis+cluster://{cluster.nodes[0].address}"}


@pytest.fixture
def encrypted(redis_url: str) -> dict[str, Any]:
    """Redis with encrypted messages."""
    return {"url": redis_url, "encryption_keys": ["a key that has not less than 32 characters"]}


@pytest.fixture
def documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs: Pairs) -> dict[str, Any]:
    """The custom broker of the documentation."""
    (block,) = [block for block in blocks("docs/brokers.md") if block.file == "chat/broker.py"]
    module: Any = ModuleType("documented_broker")
    exec(block.code, vars(module))
    module.socket = gevent.socket  # as in a patched worker
    monkeypatch.setitem(sys.modules, "documented_broker", module)
    return {"class": "documented_broker.DirectoryBroker", "directory": tmp_path}


@pytest.fixture(params=PLAIN)
def broker(
    request: pytest.FixtureRequest, key: str, cooperative: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Broker]:
    """Each broker in turn, made anew for each test."""
    setting: str | dict[str, Any] = f"memory://{key}"
    prefix = ""
    if request.param in PLAIN[1:]:
        setting, prefix = request.getfixturevalue("redis_url"), f"{key}:"
    elif request.param != "memory":
        setting = request.getfixturevalue(request.param)
    request.getfixturevalue("pairs")  # after the shared servers, whose descriptors it must not count
    with using(setting, prefix) as broker:
        if request.param == "redis without hiredis":
            monkeypatch.setattr(pipeline, "hiredis", None)
            pubsub.process.current_broker().address.arguments["parser_class"] = _RESP2Parser  # type: ignore[attr-defined]
        yield broker


@pytest.fixture
def memory(key: str, pairs: Pairs) -> Iterator[Broker]:
    with using(f"memory://{key}") as broker:
        yield broker


@pytest.fixture
def on_redis(redis_url: str, key: str, cooperative: None, pairs: Pairs) -> Iterator[Broker]:
    with using(redis_url, f"{key}:") as broker:
        yield broker


def taken(subscription: Subscription, count: int) -> list[Any]:
    return [subscription.get(timeout=10) for _ in range(count)]


def nothing_more(*subscriptions: Subscription) -> None:
    """Check that no other message arrives before one that is published now."""
    for number, subscription in enumerate(subscriptions):
        publish(subscription.channels[0], f"the end {number}")
    for number, subscription in enumerate(subscriptions):
        got: list[Any] = []
        while got[-1:] != [f"the end {number}"]:
            got.append(subscription.get(timeout=10))
        assert [message for message in got if str(message)[:7] != "the end"] == []


def listen(connection: Connection, *channels: str) -> None:
    """Forward them until the client leaves."""
    WebSocket({}, HttpResponse(), lambda subprotocol: connection).listen(*channels)


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


# --- what every broker does -------------------------------------------------------------------------------------


@every_broker
def test_a_subscription_is_in_force_when_subscribe_returns(broker: Broker) -> None:
    for number in range(1000):
        with subscribe("always" if number % 2 else f"once-{number}") as subscription:
            publish(subscription.channels[0], str(number))
            assert subscription.get(timeout=10) == str(number)
            assert not subscription.ready()


@every_broker
@pytest.mark.parametrize(
    "message",
    ["text", "", "\u00e9\U0001f600\u2028", "\0", "x" * 500_000, b"bytes", b"", b"\xff", b"\xff\xfe\0", b"x" * 500_000],
    ids=lambda message: f"{type(message).__name__} {ascii(message[:3])} {len(message)}",
)
def test_messages_keep_their_type_and_content(broker: Broker, message: Any) -> None:
    with subscribe("news") as subscription:
        publish("news", message)
        assert taken(subscription, 1) == [message]
        nothing_more(subscription)


@pytest.mark.parametrize(
    "message, text",
    [
        ({"text": "\u00e9\u2028", "to": ["a", None, True, 1.5]}, '{"text":"\u00e9\u2028","to":["a",null,true,1.5]}'),
        (["a", ("b",)], '["a",["b"]]'),
        (None, "null"),
        (42, "42"),
        ({"price": Decimal("1.10")}, '{"price":"1.10"}'),
        ({"at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)}, '{"at":"2026-01-02T03:04:05Z"}'),
        (UUID(int=5), '"00000000-0000-0000-0000-000000000005"'),
        ([gettext_lazy("Yes")], '["Ja"]'),
        (gettext_lazy("Yes"), "Ja"),  # text, like any str
        ('{"already": "json"}', '{"already": "json"}'),
        (mark_safe("<b>"), "<b>"),
    ],
    ids=ascii,
)
def test_other_types_are_published_as_json(memory: Broker, message: Any, text: str) -> None:
    with subscribe("news") as subscription:
        with override("de"):
            publish("news", message)
        assert taken(subscription, 1) == [text]


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_bytes_like_objects_are_binary(memory: Broker, kind: type[bytearray] | type[memoryview]) -> None:
    with subscribe("news") as subscription:
        publish("news", kind(b"\xffa"))
        assert taken(subscription, 1) == [b"\xffa"]


@every_broker
def test_every_member_gets_each_message_of_its_channels_once_and_in_order(broker: Broker) -> None:
    channels = ["a", "b", "c"]
    members = [subscribe(*names) for names in (["a"], ["b"], ["a", "b"], ["c", "a", "b"], ["a"])]
    expected: dict[str, list[str]] = {channel: [] for channel in channels}
    for number in range(300):
        channel = channels[number % 7 % 3]
        expected[channel].append(f"{channel}{number}")
        publish(channel, f"{channel}{number}")
    for member in members:
        got = taken(member, sum(len(expected[channel]) for channel in member.channels))
        for channel in member.channels:
            assert [message for message in got if message[0] == channel] == expected[channel]
    nothing_more(*members)
    for member in members:
        member.close()


@every_broker
def test_messages_of_each_of_many_publishers_keep_their_order(broker: Broker) -> None:
    with subscribe("news") as subscription:

        def publisher(name: str) -> None:
            for number in range(50):
                publish("news", f"{name}{number}")
                gevent.sleep(0)

        publishers = [gevent.spawn(publisher, name) for name in "abcde"]
        got = taken(subscription, 250)
        for name in "abcde":
            assert [message for message in got if message[0] == name] == [f"{name}{number}" for number in range(50)]
        gevent.joinall(publishers, raise_error=True)


@every_broker
def test_all_subscribers_see_the_same_order_whoever_publishes(broker: Broker, pairs: Pairs) -> None:
    connection, peer = pairs()
    with subscribe("news") as one, subscribe("other", "news") as two, forward(connection, "news"):

        def publisher(name: str) -> None:
            for number in range(40):
                publish("news", f"{name}{number}")
                gevent.sleep(0)

        publishers = [gevent.spawn(publisher, name) for name in "abcde"]
        order = taken(one, 200)
        gevent.joinall(publishers, raise_error=True)
        assert taken(two, 200) == order
        assert peer.until_frames(200) == [text(str(message)) for message in order]
        nothing_more(one)


@every_broker
def test_a_channel_named_twice_delivers_once(broker: Broker) -> None:
    with subscribe("news", "news") as subscription:
        publish("news", "a")
        assert taken(subscription, 1) == ["a"]
        nothing_more(subscription)


@every_broker
def test_messages_of_other_channels_do_not_arrive(broker: Broker) -> None:
    with subscribe("news") as subscription:
        for channel in ("new", "newsletter", "News", "n*", "ne?s", "[n]ews", "news "):
            publish(channel, "not this")
        publish("news", "this")
        assert taken(subscription, 1) == ["this"]
        nothing_more(subscription)


@every_broker
@pytest.mark.parametrize("channel", ["a b", "\u00e9\U0001f600", "a\r\nb", "*", "x" * 1000, "user:42", "\0"])
def test_any_text_can_be_the_name_of_a_channel(broker: Broker, channel: str) -> None:
    with subscribe(channel) as subscription:
        publish(channel, "here")
        assert taken(subscription, 1) == ["here"]


@every_broker
def test_a_channel_can_be_left_and_joined_again_at_once(broker: Broker) -> None:
    for number in range(200):
        subscription = subscribe("news")
        subscription.close()
        with subscribe("news") as again:
            publish("news", str(number))
            assert taken(again, 1) == [str(number)]
            assert subscription.get() is None


@every_broker
def test_a_member_that_leaves_does_not_end_the_subscription_of_one_that_joins(broker: Broker) -> None:
    """Leaving does not wait, yet its command must reach the broker before that of a member who joins."""
    keeper = subscribe("other")
    for number in range(100):
        leaving = subscribe("news")
        joining = gevent.spawn(subscribe, "news")
        leaving.close()
        joined = joining.get(timeout=10)
        publish("news", str(number))
        assert taken(joined, 1) == [str(number)]
        joined.close()
    keeper.close()


@every_broker
def test_many_members_can_join_a_new_channel_at_once(broker: Broker) -> None:
    joining = [gevent.spawn(subscribe, "news", f"own-{number}") for number in range(50)]
    gevent.joinall(joining, timeout=10, raise_error=True)
    publish("news", "to all")
    for number, greenlet in enumerate(joining):
        publish(f"own-{number}", str(number))
        assert sorted(taken(greenlet.get(), 2)) == sorted(["to all", str(number)])
    for greenlet in joining:
        greenlet.get().close()


@every_broker
def test_others_can_join_after_a_member_was_interrupted_while_joining(broker: Broker) -> None:
    interrupted = gevent.spawn(subscribe, "news")
    gevent.sleep(0)
    interrupted.kill()
    if isinstance(interrupted.value, Subscription):  # memory:// joins without waiting
        interrupted.value.close()
    begun = time.monotonic()
    with subscribe("news") as subscription:
        publish("news", "a")
        assert taken(subscription, 1) == ["a"]
    assert time.monotonic() - begun < 3


@every_broker
def test_a_member_is_subscribed_although_another_was_interrupted_while_joining(broker: Broker) -> None:
    interrupted = gevent.spawn(subscribe, "news")
    joining = gevent.spawn(subscribe, "news")
    gevent.sleep(0)
    interrupted.kill()
    if isinstance(interrupted.value, Subscription):
        interrupted.value.close()
    with joining.get(timeout=10) as subscription:
        publish("news", "a")
        assert taken(subscription, 1) == ["a"]


@every_broker
def test_undecodable_messages_are_dropped_and_logged(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    with subscribe("news") as subscription, caplog.at_level(logging.WARNING, logger="django_websocket"):
        broker.publish_raw("news", b"\xc3\x28 broken")
        broker.publish_raw("news", b"\x80")
        broker.publish_raw("news", "\u00e9".encode())
        broker.publish_raw("news", b"\xff\x80")
        assert taken(subscription, 2) == ["\u00e9", b"\x80"]
        until(lambda: [record.levelname for record in caplog.records] == ["WARNING"] * 2)
        assert "news" in caplog.text and "broken" not in caplog.text


@every_broker
def test_many_undecodable_messages_are_logged_a_few_times_and_counted(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    with subscribe("news") as subscription, caplog.at_level(logging.WARNING, logger="django_websocket"):
        for _ in range(100):
            broker.publish_raw("news", b"\x80")
        nothing_more(subscription)
        until(lambda: len(caplog.records) == log.LINES)
        log._sum_up(log._counts)
        until(lambda: caplog.records[-1].getMessage().startswith(f"{100 - log.LINES} more"))


@every_broker
def test_bad_messages_do_not_affect_good_ones_that_came_with_them(broker: Broker, pairs: Pairs) -> None:
    connection, peer = pairs()
    forwarding = pubsub.forward(["news"]).attach(connection)
    for payload in (b"a", b"\x80", b"b"):
        broker.publish_raw("news", payload)
    assert peer.until_frames(2) == [text("a"), text("b")]
    forwarding.close()


# --- publishing when a transaction commits ----------------------------------------------------------------------


@pytest.fixture
def second_database(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    settings = {**connections.databases["default"], "NAME": str(tmp_path / "second.sqlite3")}
    monkeypatch.setitem(connections.databases, "second", settings)
    yield "second"
    connections["second"].close()
    del connections["second"]


def test_on_commit_sends_when_the_transaction_commits(broker: Broker) -> None:
    with subscribe("news") as subscription:
        message = {"number": 1}
        with transaction.atomic():
            with transaction.atomic():
                publish("news", message, on_commit=True)
            message["number"] = 2  # after the message was encoded
            publish("news", "at once")
            assert taken(subscription, 1) == ["at once"]
        assert taken(subscription, 1) == ['{"number":1}']
        nothing_more(subscription)


def test_on_commit_sends_nothing_after_a_rollback(broker: Broker) -> None:
    with subscribe("news") as subscription:
        with pytest.raises(KeyError), transaction.atomic():
            publish("news", "never", on_commit=True)
            raise KeyError
        with transaction.atomic():
            publish("news", "a", on_commit=True)
            with pytest.raises(KeyError), transaction.atomic():
                publish("news", "nor this", on_commit=True)
                raise KeyError
            publish("news", "b", on_commit=True)
        assert taken(subscription, 2) == ["a", "b"]
        nothing_more(subscription)


def test_on_commit_outside_a_transaction_sends_at_once(broker: Broker) -> None:
    with subscribe("news") as subscription:
        publish("news", "a", on_commit=True)
        assert taken(subscription, 1) == ["a"]


def test_on_commit_follows_the_given_database(memory: Broker, second_database: str) -> None:
    with subscribe("news") as subscription:
        with transaction.atomic(), transaction.atomic(using=second_database):
            publish("news", "second", on_commit=True, using=second_database)
            publish("news", "default", on_commit=True)
            publish("news", "too", on_commit=True, using="default")
        assert taken(subscription, 3) == ["second", "default", "too"]
    with pytest.raises(TypeError, match="on_commit"):
        publish("news", "a", using=second_database)


def test_on_commit_logs_a_broker_failure_and_runs_the_other_callbacks(
    nowhere: str, caplog: pytest.LogCaptureFixture
) -> None:
    done = []
    with transaction.atomic():
        publish("news", "a", on_commit=True)
        transaction.on_commit(lambda: done.append("the next"))
    publish("news", "a", on_commit=True)
    assert done == ["the next"]
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 2
    for record in caplog.records:
        assert "news" in record.getMessage() and nowhere in record.getMessage()


@pytest.mark.parametrize("broker", [*PLAIN, "encrypted", "sentinel", "cluster"], indirect=True)
def test_publish_returns_how_many_processes_received_the_message(broker: Broker) -> None:
    assert publish("news", "a") == 0
    with subscribe("news", "other"), subscribe("news") as messages:
        assert publish("news", "b") == 1
        assert taken(messages, 1) == ["b"]
    until(lambda: publish("news", "c") == 0)


def test_publish_counts_every_process(on_redis: Broker) -> None:
    with subscribe("news"), on_redis.redis.pubsub() as other:  # type: ignore[no-untyped-call]
        other.subscribe(on_redis.prefix + "news")
        until(lambda: on_redis.subscribers("news") == 2)
        assert publish("news", "a") == 2


@pytest.mark.parametrize("broker", ["documented"], indirect=True)
def test_publish_returns_none_where_the_broker_cannot_tell(broker: Broker) -> None:
    with subscribe("news"):
        assert publish("news", "a") is None


def test_what_waits_for_a_commit_has_reached_an_unknown_number(memory: Broker) -> None:
    with subscribe("news") as messages:
        assert publish("news", "at once", on_commit=True) is None
        with transaction.atomic():
            assert publish("news", "later", on_commit=True) is None
        assert taken(messages, 2) == ["at once", "later"]


# --- the order across channels ----------------------------------------------------------------------------------

MIXED = [("a", "0"), ("b", "1"), ("a", "2"), ("b", "3"), ("a", "4"), ("c", "5"), ("b", "6")]


def test_a_subscription_to_several_channels_gets_the_order_of_the_broker(broker: Broker) -> None:
    with subscribe("a", "b") as both, subscribe("c", "a", "b", "d") as all_of_them, subscribe("a") as one:
        broker.publish_in_one_write(*MIXED)
        assert taken(both, 6) == list("012346")
        assert taken(all_of_them, 7) == list("0123456")
        assert taken(one, 3) == list("024")
        nothing_more(both, all_of_them, one)


@pytest.mark.parametrize("on_slow", ["close", "drop_oldest", "latest"])
def test_a_client_of_several_channels_gets_the_order_of_the_broker_in_one_segment(
    broker: Broker, pairs: Pairs, on_slow: str
) -> None:
    connection, peer = pairs(sockets=packet_pair)
    other, other_peer = pairs(sockets=packet_pair)
    with forward(connection, "a", "b", on_slow=on_slow), forward(other, "b", on_slow=on_slow):
        broker.publish_in_one_write(*MIXED)
        assert peer.until_frames(6) == list(map(text, "012346"))
        assert other_peer.until_frames(3) == list(map(text, "136"))
        if vars(pipeline)["hiredis"] is not None:  # without it, Redis is read one message at a time
            assert len(peer.segments) == 1


def test_a_client_that_is_subscribed_twice_gets_the_order_of_the_broker(broker: Broker, pairs: Pairs) -> None:
    connection, peer = pairs()
    with forward(connection, "a") as first, forward(connection, "b"), forward(connection, "c", "b"):
        broker.publish_in_one_write(*MIXED)
        got = [frame.payload.decode() for frame in peer.until_frames(10)]
        assert list(dict.fromkeys(got)) == list("0123456")
        assert sorted(got) == sorted("0123456" + "136")
        first.close()
        broker.publish_in_one_write(*MIXED)
        got = [frame.payload.decode() for frame in peer.until_frames(17)[10:]]
        assert sorted(got) == sorted("1365" + "136")


def test_a_message_that_is_dropped_changes_no_order(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    with subscribe("a", "b") as both:
        broker.publish_in_one_write(("a", "0"), ("b", b"\xc3"), ("b", "1"), ("a", b"\xc3"), ("a", "2"), ("b", "3"))
        assert taken(both, 4) == list("0123")
        nothing_more(both)


def test_a_subscription_says_the_channel_of_each_message(broker: Broker) -> None:
    with subscribe("a", "b", "c") as subscription:
        broker.publish_in_one_write(*MIXED)
        assert [subscription.get_with_channel(timeout=10) for _ in MIXED] == MIXED
        with pytest.raises(TimeoutError):
            subscription.get_with_channel(timeout=0)
        subscription.missed()
        with pytest.raises(MessagesMissed):
            subscription.get_with_channel()
    assert subscription.get_with_channel() is None


def test_the_channel_of_the_newest_message_is_said_where_only_that_is_kept(broker: Broker) -> None:
    with subscribe("a", "b", on_slow="latest") as subscription, subscribe("a", "b") as every:
        broker.publish_in_one_write(*MIXED[:5])
        assert taken(every, 5) == list("01234")
        assert [subscription.get_with_channel(timeout=10) for _ in range(2)] == [("b", "3"), ("a", "4")]


# --- a subscription ---------------------------------------------------------------------------------------------


def test_get_waits_for_its_timeout_and_loses_nothing(broker: Broker) -> None:
    with subscribe("news") as subscription:
        for timeout in (0, 0.01):
            with pytest.raises(TimeoutError):
                subscription.get(timeout=timeout)
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
            subscription.get()
        waiting = gevent.spawn(subscription.get)
        gevent.sleep(0)
        waiting.kill()
        publish("news", "a")
        assert subscription.get() == "a"


def test_iteration_ends_when_the_subscription_is_closed(broker: Broker) -> None:
    subscription = subscribe("news")
    got: list[str | bytes] = []
    reader = gevent.spawn(got.extend, subscription)
    publish("news", "a")
    publish("news", "")
    publish("news", b"")
    until(lambda: not subscription._queue and subscription._waiter is not None and reader.started)
    with subscribe("news") as later:
        publish("news", "b")
        taken(later, 1)
    gevent.sleep(0.001)
    subscription.close()
    reader.get(timeout=5)
    assert got == ["a", "", b"", "b"]
    assert subscription.get() is None
    assert list(subscription) == []
    subscription.close()


def test_nothing_arrives_after_close(broker: Broker) -> None:
    with subscribe("news") as keeper:
        subscription = subscribe("news")
        subscription.close()
        publish("news", "a")
        assert taken(keeper, 1) == ["a"]
        assert subscription.get() is None


def test_a_second_reader_gets_an_error_and_the_first_its_message(broker: Broker) -> None:
    with subscribe("news") as subscription:
        first = gevent.spawn(subscription.get)
        gevent.sleep(0)
        with pytest.raises(RuntimeError, match="(?i)another greenlet"):
            subscription.get()
        publish("news", "a")
        assert first.get(timeout=5) == "a"


def test_an_unread_subscription_drops_messages_and_reports_it(broker: Broker) -> None:
    with override_settings(WEBSOCKET_OUTBOX_SIZE=5000), subscribe("news") as slow, subscribe("news") as quick:
        for number in range(200):
            publish("news", f"{number:03}" + "." * 100)
            assert taken(quick, 1)[0][:3] == f"{number:03}"
        assert slow._queue._size <= 5000
        with pytest.raises(MessagesMissed):
            slow.get()
        rest = []
        with contextlib.suppress(TimeoutError):
            while True:
                rest.append(int(str(slow.get(timeout=0))[:3]))
        assert rest == list(range(200))[200 - len(rest) :]
        nothing_more(slow)


def test_wide_texts_are_counted_by_the_memory_that_they_take(memory: Broker) -> None:
    """A single emoji makes a text take four bytes per character in Python."""
    with override_settings(WEBSOCKET_OUTBOX_SIZE=100_000), subscribe("c", on_slow="drop_oldest") as subscription:
        with subscribe("c") as quick:
            for number in range(20):
                publish("c", f"{number}" + "x" * 10_000 + "\U0001f600")
                quick.get(timeout=5)
            publish("c", "last")
            quick.get(timeout=5)
        kept = [str(message).partition("x")[0] for message in iter(lambda: subscription.get(timeout=5), "last")]
        assert kept == ["18", "19"]


def test_small_messages_are_counted_with_their_overhead(broker: Broker) -> None:
    with override_settings(WEBSOCKET_OUTBOX_SIZE=5000), subscribe("news") as subscription:
        with subscribe("news") as quick:
            for _ in range(1000):
                publish("news", "")
                quick.get(timeout=5)
        with pytest.raises(MessagesMissed):
            subscription.get()
        assert len(subscription._queue) < 1000


def test_a_view_learns_that_its_client_has_left_while_it_waits_for_a_channel(broker: Broker) -> None:
    stages: list[Any] = []

    def function() -> None:
        subscription = subscribe("news")
        stages.append(subscription)
        assert subscription.get() == "a"
        stages.append("waits again")
        with pytest.raises(ConnectionClosed) as closed:
            subscription.get()
        assert (closed.value.code, closed.value.reason) == (1001, "bye")
        with pytest.raises(ConnectionClosed):
            subscription.get(timeout=5)
        publish("news", "b")
        until(subscription.ready)
        assert subscription.get() == "b"

    view = View(function)
    view.start()
    until(lambda: stages)
    publish("news", "a")
    until(lambda: len(stages) == 2 and stages[0]._waiter is not None)
    view.client_left(1001, "bye")
    view.get(timeout=5)


def test_a_select_over_a_channel_alone_ends_when_the_client_has_left(memory: Broker) -> None:
    """get() would raise at once, so select() must return."""

    def function() -> None:
        subscription = subscribe("news")
        assert select([subscription], [], [], 5) == ([subscription], [], [])
        with pytest.raises(ConnectionClosed):
            subscription.get()

    view = View(function)
    view.start()
    until(lambda: view._dependents)
    gevent.sleep(0.001)
    view.client_left(1001, "bye")
    view.get(timeout=8)


def test_a_reader_learns_that_its_client_has_left_although_another_tried_to_read(memory: Broker) -> None:
    subscriptions = []

    def function() -> None:
        subscriptions.append(subscribe("news"))
        with pytest.raises(ConnectionClosed):
            subscriptions[0].get()

    view = View(function)
    view.start()
    until(lambda: subscriptions and subscriptions[0]._waiter is not None)
    with pytest.raises(RuntimeError):
        subscriptions[0].get()
    view.client_left(1001, "bye")
    view.get(timeout=5)


def test_a_view_leaves_its_channels_when_it_ends(broker: Broker) -> None:
    def function() -> None:
        subscribe("news")
        kept.append(subscribe("weather"))

    kept: list[Subscription] = []
    view = View(function)
    view.start()
    view.get(timeout=10)
    assert broker.hub.channels == {}
    assert kept[0].get() is None


def test_the_descriptor_follows_the_messages(broker: Broker) -> None:
    with subscribe("news") as subscription:
        fd = subscription.fileno()
        poller = standard.poll()
        poller.register(fd, standard.POLLIN)
        assert not poller.poll(0)
        publish("news", "a")
        publish("news", "b")
        until(lambda: len(subscription._queue) == 2)
        for message in "ab":
            assert poller.poll(0)
            assert select([subscription], [], [], 5) == ([subscription], [], [])
            assert subscription.get(timeout=0) == message
        assert not poller.poll(0)
    assert select([subscription], [], [], 5) == ([subscription], [], [])  # get() returns None at once


def in_a_thread(call: Callable[[], Any]) -> Any:
    """Call in a thread of a pool, as a view does that has something slow to do."""

    def outcome() -> tuple[Any, BaseException | None]:  # the pool reports exceptions to the loop as well
        try:
            return call(), None
        except BaseException as error:
            return None, error
        finally:
            gevent.get_hub().destroy(destroy_loop=True)

    result, error = gevent.get_hub().threadpool.apply(outcome)
    if error is not None:
        raise error
    return result


@pytest.mark.parametrize("timeout", [None, 5])
def test_waiting_in_a_thread_of_a_pool_is_an_error_that_says_where_to_wait(
    memory: Broker, pairs: Pairs, timeout: float | None
) -> None:
    connection, peer = pairs()
    ws = WebSocket({}, HttpResponse(), lambda subprotocol: connection)
    ws.accept()
    with subscribe("news") as subscription:
        for call in (
            lambda: subscription.get(timeout),
            lambda: subscription.get_with_channel(timeout),
            lambda: next(iter(subscription)),
            lambda: ws.receive(timeout),
            lambda: next(iter(ws)),
            lambda: select([ws, subscription], [], [], timeout),
        ):
            with pytest.raises(RuntimeError, match=r"(?s)another thread.*gevent\.spawn"), at_once():
                in_a_thread(call)
        publish("news", "a")
        peer.text("b")
        assert subscription.get(timeout=5) == "a"
        assert ws.receive(timeout=5) == "b"


def test_a_thread_can_wait_for_a_subscription_of_its_own(memory: Broker) -> None:
    joined = threading.Event()

    def call() -> Any:
        with subscribe("news") as subscription:
            joined.set()
            got = subscription.get(timeout=10)
        memory.hub.close()
        gevent.get_hub().destroy(destroy_loop=True)
        return got

    reader = gevent.get_hub().threadpool.spawn(call)
    until(joined.is_set)
    publish("news", "a")
    assert reader.get(timeout=10) == "a"


# --- a subscription in a helper greenlet of a view ------------------------------------------------------------------


def reading(got: list[Any], *, levels: int = 0) -> Any:
    """Start a greenlet, directly or through others, that takes what is published until its subscription ends."""

    def read() -> None:
        if levels:
            reading(got, levels=levels - 1).join()
        else:
            with subscribe("news") as messages:
                got.extend(messages)

    return gevent.spawn(read)


@pytest.mark.parametrize("levels", [0, 2])
def test_a_subscription_in_a_greenlet_that_a_view_started_ends_with_the_view(broker: Broker, levels: int) -> None:
    got: list[Any] = []
    helpers: list[Any] = []
    leave = Event()

    def view() -> None:
        helpers.append(reading(got, levels=levels))
        leave.wait()

    running = View(view)
    running.start()
    until(lambda: publish("news", "a"))
    until(lambda: got)
    leave.set()
    helpers[0].join(10)
    assert helpers[0].successful()
    until(lambda: broker.hub.channels == {})
    assert set(got) == {"a"}


@pytest.mark.parametrize("levels", [0, 2])
def test_a_subscription_in_a_greenlet_that_a_view_started_ends_when_the_client_leaves(
    broker: Broker, levels: int
) -> None:
    got: list[Any] = []
    helpers: list[Any] = []

    def view() -> None:
        helpers.append(reading(got, levels=levels))
        Event().wait()

    running = View(view)
    running.start()
    until(lambda: publish("news", "a"))
    running.client_left(1001, "")
    helpers[0].join(10)
    assert helpers[0].successful()
    assert broker.hub.channels == {}
    running.kill()


def test_a_greenlet_that_outlives_its_view_cannot_wait_for_ever(broker: Broker) -> None:
    go_on = Event()
    got: list[Any] = []

    def late() -> None:
        go_on.wait()
        got.extend(subscribe("news"))

    helpers: list[Any] = []
    view = View(lambda: helpers.append(gevent.spawn(late)))
    view.start()
    view.join(10)
    go_on.set()
    helpers[0].join(10)
    assert helpers[0].successful()
    assert broker.hub.channels == {}


def test_a_subscription_in_a_greenlet_that_no_view_started_stays(broker: Broker) -> None:
    got: list[Any] = []
    helper = reading(got)
    view = View(lambda: until(lambda: publish("news", "a")))
    view.start()
    view.join(10)
    until(lambda: publish("news", "b"))
    until(lambda: "b" in got)
    helper.kill()


# --- forwarding to a client -------------------------------------------------------------------------------------


def test_published_messages_are_pushed_unchanged(broker: Broker, pairs: Pairs) -> None:
    connection, peer = pairs()
    with pubsub.forward(["news", "weather"]).attach(connection) as forwarding:
        publish("news", "a")
        publish("weather", b"b")
        publish("news", "\u00e9" * 1000)
        assert set(peer.until_frames(3)) == {text("a"), Frame(BINARY, b"b"), text("\u00e9" * 1000)}
    publish("news", "c")
    forwarding.close()
    with subscribe("news") as other:
        publish("news", "d")
        assert "d" in iter(lambda: taken(other, 1)[0], None)
    connection.send("behind")
    assert peer.until_frames(4)[3:] == [text("behind")]


@pytest.mark.parametrize("broker", ["memory", "redis"], indirect=True)
def test_messages_that_arrived_together_leave_in_one_segment(broker: Broker, pairs: Pairs) -> None:
    clients = [pairs(sockets=packet_pair) for _ in range(3)]
    forwardings = [pubsub.forward(["news"]).attach(connection) for connection, _ in clients]
    broker.publish_together("news", "a", "b", "c")
    for _, peer in clients:
        assert peer.until_frames(3) == [text("a"), text("b"), text("c")]
        assert len(peer.segments) == 1
    for forwarding in forwardings:
        forwarding.close()


def test_every_client_gets_everything_in_order(broker: Broker, pairs: Pairs) -> None:
    clients = [pairs() for _ in range(20)]
    forwardings = [pubsub.forward(["news"]).attach(connection) for connection, _ in clients]
    messages = [str(number) for number in range(200)]
    for message in messages:
        publish("news", message)
    for _, peer in clients:
        assert peer.until_frames(200) == list(map(text, messages))
    for forwarding in forwardings:
        forwarding.close()


def test_messages_published_during_acceptance_reach_the_client(broker: Broker, pairs: Pairs) -> None:
    """The client may publish as soon as it knows that it is connected."""
    connection, peer = pairs()

    def accept(subprotocol: str | None) -> Connection:
        publish("news", "early")
        publish("news", "bird")
        with subscribe("news") as other:
            publish("news", "now")
            while other.get(timeout=10) != "now":
                pass
        return connection

    with WebSocket({}, HttpResponse(), accept).subscribe("news"):
        publish("news", "late")
        assert peer.until_frames(4) == [text("early"), text("bird"), text("now"), text("late")]


def test_a_failed_handshake_leaves_no_subscription(broker: Broker) -> None:
    def refuse(subprotocol: str | None) -> Connection:
        raise HandshakeFailed("the client has left")

    for call in (WebSocket.subscribe, WebSocket.listen):
        with pytest.raises(HandshakeFailed):
            call(WebSocket({}, HttpResponse(), refuse), "news")
        assert broker.hub.channels == {}


def test_forwarding_ends_with_the_connection(broker: Broker, pairs: Pairs) -> None:
    connection, peer = pairs()
    pubsub.forward(["news", "weather"], for_good=True).attach(connection)
    assert set(broker.hub.channels) == {"news", "weather"}
    peer.close_frame()
    peer.until_end()
    assert broker.hub.channels == {}
    assert connection.on_end == ()


def test_forwarding_to_a_client_that_has_left_leaves_nothing(broker: Broker, pairs: Pairs) -> None:
    connection, peer = pairs()
    peer.sock.close()
    until(lambda: not connection.connected)
    with contextlib.suppress(ConnectionClosed):
        pubsub.forward(["news"], for_good=True).attach(connection)
    left = dict(broker.hub.channels)
    broker.hub.channels.clear()
    assert left == {}


def test_a_client_that_leaves_while_it_joins_leaves_nothing(broker: Broker, pairs: Pairs) -> None:
    connection, peer = pairs()
    joining = gevent.spawn(listen, connection, "news")
    gevent.sleep(0)
    connection._close_socket()
    joining.join(timeout=10)
    left = dict(broker.hub.channels)
    broker.hub.channels.clear()
    assert left == {}


def test_a_connection_does_not_keep_a_closed_forwarding(broker: Broker, pairs: Pairs) -> None:
    connection, _ = pairs()
    for _ in range(3):
        with pubsub.forward(["news"]).attach(connection):
            pass
    assert connection.on_end == ()


def test_a_slow_client_is_closed_and_holds_up_nobody(broker: Broker, pairs: Pairs) -> None:
    limits = Limits(outbox_size=100_000)
    slow, _ = pairs(narrow=True, limits=limits)
    quick, quick_peer = pairs(limits=limits)
    forwardings = [pubsub.forward(["news"]).attach(connection) for connection in (slow, quick)]
    for number in range(30):
        publish("news", f"{number:02}" + "." * 20_000)
        assert quick_peer.until_frames(number + 1)[number].payload[:2] == b"%02d" % number
    assert slow.close_code == 1013
    assert quick.close_code is None
    for forwarding in forwardings:
        forwarding.close()


def test_a_client_that_only_listens_costs_less_than_four_kibibytes(broker: Broker, pairs: Pairs) -> None:
    """Every client has a channel of its own; the kernel's memory for its socket is not counted."""
    package = [tracemalloc.Filter(True, str(Path(hub.__file__).parents[1] / "*"))]

    clients = []

    def more(names: range) -> None:
        for number in names:
            clients.append(pairs())
            listen(clients[-1][0], f"user:{number}")

    more(range(20))
    coverage = sys.gettrace()  # tracemalloc charges what a tracer allocates to the traced lines
    sys.settrace(None)
    tracemalloc.start()
    try:
        more(range(20, 220))
        gevent.sleep(0)
        gc.collect()
        used = sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces(package).traces)
    finally:
        tracemalloc.stop()
        sys.settrace(coverage)
        for _, peer in clients:
            peer.sock.close()
        until(lambda: not any(connection.connected for connection, _ in clients))
    assert used / 200 < 4096


def test_a_message_as_large_as_an_outbox_closes_no_client(broker: Broker, pairs: Pairs) -> None:
    """A message that publish() accepts must not close a client that reads."""
    connection, peer = pairs()
    with pubsub.forward(["news"]).attach(connection):
        limit = connection.limits.outbox_size
        for message in ("x" * limit, b"x" * limit):
            publish("news", message)
            until(lambda: peer.pump() and False or connection.close_code or peer.frames)
            assert connection.close_code is None
            assert peer.frames.pop().payload == (message.encode() if isinstance(message, str) else message)


def test_a_large_audience_is_served_in_slices_that_let_others_run(memory: Broker, impatient: None) -> None:
    members = [subscribe("news") for _ in range(MANY)]
    seen = []

    def other() -> None:
        while not members[-1].ready():
            seen.append(sum(member.ready() for member in members))
            let_others_run()

    publish("news", "a")
    gevent.spawn(other).get(timeout=5)
    assert any(0 < turn < len(members) for turn in seen)
    assert all(member.get(timeout=5) == "a" for member in members)
    for member in members:
        member.close()


class Faulty:
    """A member that fails at everything."""

    def deliver(self, publication: Publication) -> None:
        raise ValueError("this one is broken")

    def missed(self) -> None:
        raise ValueError("this one is broken")

    def broker_closed(self) -> None:
        raise ValueError("this one is broken")


def test_a_failing_member_does_not_affect_the_others(memory: Broker, caplog: pytest.LogCaptureFixture) -> None:
    memory.hub.join(Faulty(), ["news"])
    member = subscribe("news")
    publish("news", "a")
    assert member.get(timeout=5) == "a"
    memory.hub.lost(["news"])
    memory.hub.missed(["news"])
    with pytest.raises(MessagesMissed):
        member.get(timeout=5)
    memory.hub.close()
    with pytest.raises(BrokerError):
        member.get(timeout=5)
    until(lambda: caplog.text.count("this one is broken") == 3)


def test_members_that_leave_during_a_large_fan_out_get_nothing(memory: Broker, pairs: Pairs, impatient: None) -> None:
    connection, peer = pairs()
    members = [subscribe("news") for _ in range(MANY)]
    last = subscribe("news")
    forwarding = pubsub.forward(["news"]).attach(connection)

    def leave() -> None:
        while not members[0].ready():
            let_others_run()
        assert not last.ready(), "the slice is larger than this test assumes"
        last.close()
        forwarding.close()
        connection.send("left")

    leaving = gevent.spawn(leave)
    publish("news", "too late")
    leaving.get(timeout=5)
    gevent.sleep(0.001)
    assert last.get() is None
    connection.send("end")
    assert peer.until_frames(2) == [text("left"), text("end")]
    for member in members:
        member.close()


# --- wrong use --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channel", ["", None, 5, b"news", ["news"]])
def test_a_wrong_channel_name_is_the_callers_error(broker: Broker, pairs: Pairs, channel: Any) -> None:
    connection, _ = pairs()
    with pytest.raises(TypeError, match="channel"):
        publish(channel, "a")
    with pytest.raises(TypeError, match="channel"):
        subscribe(channel)
    with pytest.raises(TypeError, match="channel"):
        subscribe("fine", channel)
    with pytest.raises(TypeError, match="channel"):
        pubsub.forward([channel]).attach(connection)
    with subscribe("fine") as subscription:
        publish("fine", "a")
        assert taken(subscription, 1) == ["a"]


def test_no_channel_is_the_callers_error(broker: Broker, pairs: Pairs) -> None:
    connection, _ = pairs()
    with pytest.raises(TypeError, match="channel"):
        subscribe()
    with pytest.raises(TypeError, match="channel"):
        pubsub.forward([]).attach(connection)


@pytest.mark.parametrize("message", [object(), {"a": object()}, [b"bytes"], {("a",): 1}, float("nan"), [1e999]])
@pytest.mark.parametrize("on_commit", [False, True])
def test_a_message_without_a_json_form_is_the_callers_error(memory: Broker, message: Any, on_commit: bool) -> None:
    with subscribe("news") as subscription:
        with transaction.atomic(), pytest.raises((TypeError, ValueError)):
            publish("news", message, on_commit=on_commit)
        nothing_more(subscription)


def test_text_without_a_utf8_form_is_the_callers_error(broker: Broker) -> None:
    for channel, message in (("news", "\ud800"), ("\ud800", "a")):
        with pytest.raises(ValueError):
            publish(channel, message)
    with pytest.raises((ValueError, TypeError)):
        subscribe("\ud800").close()  # the name may have come from a client's JSON
    with subscribe("news") as subscription:
        publish("news", "a")
        assert taken(subscription, 1) == ["a"]


def test_a_message_too_large_for_an_outbox_is_refused(broker: Broker) -> None:
    with override_settings(WEBSOCKET_OUTBOX_SIZE=1000), subscribe("news") as subscription:
        for message in ("x" * 1001, b"x" * 1001, "\u20ac" * 334):
            with pytest.raises(ValueError, match="WEBSOCKET_OUTBOX_SIZE"):
                publish("news", message)
        publish("news", "x" * 800)
        assert taken(subscription, 1) == ["x" * 800]


@pytest.mark.parametrize("url", ["kafka://localhost", "localhost:6379", "", "http://localhost"])
def test_the_error_for_an_unknown_broker_lists_the_known_ones(url: str) -> None:
    with pytest.raises(ValueError, match="WEBSOCKET_BROKER") as error:
        broker_from(url)
    for name in ("memory://", "redis://", "rediss://", "unix://"):
        assert name in str(error.value)


# --- memory:// --------------------------------------------------------------------------------------------------


def test_other_threads_publish_to_the_loop(memory: Broker) -> None:
    with subscribe("news") as subscription:

        def publisher(name: str) -> None:
            for number in range(500):
                publish("news", f"{name}{number}")

        threads = [threading.Thread(target=publisher, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        got = taken(subscription, 1500)
        for thread in threads:
            thread.join()
        for name in "abc":
            assert [message for message in got if message[0] == name] == [f"{name}{number}" for number in range(500)]


def test_a_thread_wakes_a_sleeping_loop(memory: Broker) -> None:
    with subscribe("news") as subscription:
        threading.Timer(0.05, publish, ("news", "a")).start()
        assert subscription.get(timeout=5) == "a"


def test_a_greenlet_that_publishes_many_messages_lets_the_loop_deliver(memory: Broker) -> None:
    with override_settings(WEBSOCKET_OUTBOX_SIZE=1 << 24), subscribe("news") as subscription:
        for number in range(20_000):
            publish("news", str(number))
        got: list[Any] = []
        while subscription.ready():
            got.append(subscription.get())
        assert len(got) > 10_000
        assert [*got, *taken(subscription, 20_000 - len(got))] == [str(number) for number in range(20_000)]


WARNS = """
import logging
logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
from django_websocket.pubsub import publish
for _ in range(3):
    publish("news", "a")
"""


@pytest.mark.parametrize("patched", [True, False])
def test_publishing_in_a_process_without_clients_warns_once(patched: bool) -> None:
    (line,) = child(WARNS, "memory://", patched=patched).splitlines()
    assert line.startswith("WARNING")
    assert "memory://" in line and "WEBSOCKET_BROKER" in line


def test_publishing_in_a_process_with_clients_does_not_warn(
    memory: Broker, pairs: Pairs, caplog: pytest.LogCaptureFixture
) -> None:
    pairs()
    publish("nobody is subscribed to this", "a")
    assert not caplog.records


def test_publishing_after_a_subscription_does_not_warn(memory: Broker, caplog: pytest.LogCaptureFixture) -> None:
    subscribe("news").close()
    publish("news", "a")
    assert not caplog.records


# --- Redis ------------------------------------------------------------------------------------------------------


def child(source: str, url: str, *, first: str = "pass", patched: bool = False, arguments: tuple[str, ...] = ()) -> str:
    """Run Python code in a process of its own with the broker at `url`; return what it prints.

    `first` comes before Django is set up.
    """
    patch = "from gevent import monkey; monkey.patch_all()\n" if patched else ""
    code = f"{patch}import sys, django; {first}; django.setup()\n{source}"
    path = os.pathsep.join(filter(None, [str(SITE), os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        env={
            **os.environ,
            "PYTHONPATH": path,
            "DJANGO_SETTINGS_MODULE": "testsite.settings",
            "TESTSITE_SETTINGS": json.dumps({"WEBSOCKET_BROKER": url}),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_another_process_publishes_without_gevents_patches(on_redis: Broker) -> None:
    source = """
from django_websocket.pubsub import publish
for number in range(100):
    publish("news", str(number))
publish("news", b"\\xffbytes")
"""
    with subscribe("news") as subscription:
        child(source, on_redis.url)
        assert taken(subscription, 101) == [*map(str, range(100)), b"\xffbytes"]


def test_redis_cli_can_publish(on_redis: Broker) -> None:
    with subscribe("news") as subscription:
        port = str(urlsplit(on_redis.url).port)
        command = [executable("redis-cli"), "-p", port, "PUBLISH", f"{on_redis.prefix}news", "hello \u00e9"]
        assert subprocess.run(command, capture_output=True, check=True, timeout=30).stdout.strip() == b"1"
        assert taken(subscription, 1) == ["hello \u00e9"]


IN_A_PATCHED_PROCESS = """
import gevent, os, threading, time
from django_websocket import pubsub
from django_websocket.pubsub import publish, subscribe

longest, last = 0, time.monotonic()

def tick():
    global longest, last
    while True:
        gevent.sleep(0.005)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()

gevent.spawn(tick)
with subscribe("news") as subscription:
    def publisher(name):
        for number in range(20):
            publish("news", f"{name} {number}")
    greenlets = [gevent.spawn(publisher, name) for name in range(60)]
    threads = [threading.Thread(target=publisher, args=(name,)) for name in range(60, 64)]
    for thread in threads:
        thread.start()
    got = [subscription.get(timeout=20).split() for _ in range(64 * 20)]
    gevent.joinall(greenlets, raise_error=True)
    for name in range(64):
        assert [int(n) for who, n in got if who == str(name)] == list(range(20)), name
    import redis
    print(len(redis.Redis.from_url(sys.argv[1]).client_list()))
assert longest < 2, longest
"""


FORKS = """
import os
import gevent
from django_websocket.pubsub import publish
publish("news", "before")
gevent.get_hub().loop.install_sigchld()  # gevent's first fork() does so behind it: a quick child would be missed
pid = os.fork()
if pid == 0:
    for number in range(100):
        publish("news", "child")
    os._exit(0)
for number in range(100):
    publish("news", "parent")
assert os.waitpid(pid, 0) == (pid, 0)  # not os.wait(): gevent waits for children, too
"""


@pytest.mark.parametrize("patched", [True, False])
def test_a_forked_process_publishes_on_connections_of_its_own(on_redis: Broker, patched: bool) -> None:
    with subscribe("news") as subscription:
        child(FORKS, on_redis.url, patched=patched)
        assert sorted(taken(subscription, 201)) == ["before", *["child"] * 100, *["parent"] * 100]
        nothing_more(subscription)


@pytest.mark.alone
@pytest.mark.parametrize("reader", ["with hiredis", "without hiredis"])
def test_greenlets_and_threads_of_a_patched_process_publish_at_once(on_redis: Broker, reader: str) -> None:
    """Sixty greenlets and some threads share one connection, and the loop runs meanwhile."""
    first = "pass" if reader == "with hiredis" else "sys.modules['hiredis'] = None"
    arguments = (on_redis.url.partition("?")[0],)
    before = len(on_redis.redis.client_list())
    connections = int(child(IN_A_PATCHED_PROCESS, on_redis.url, first=first, patched=True, arguments=arguments))
    assert connections - before == 3  # the subscriber's, the publisher's, and that of the code that counts


def test_prefixes_keep_sites_apart(redis_url: str, key: str, cooperative: None, pairs: Pairs) -> None:
    with using(redis_url, f"one-{key}:"), subscribe("news") as one:
        with using(redis_url, f"two-{key}:"), subscribe("news") as two:
            publish("news", "for two")
            assert taken(two, 1) == ["for two"]
        publish("news", "for one")
        assert taken(one, 1) == ["for one"]
        nothing_more(one)


def test_without_a_prefix_the_channel_keeps_its_name_in_redis(
    redis_url: str, key: str, cooperative: None, pairs: Pairs
) -> None:
    with using(redis_url) as broker, subscribe(key) as subscription:
        broker.redis.publish(key, "bare")
        assert taken(subscription, 1) == ["bare"]


def test_a_prefix_works_with_other_options_of_the_url(
    redis_url: str, key: str, cooperative: None, pairs: Pairs
) -> None:
    with using(f"{redis_url}?prefix={key}%3A&client_name=site") as broker, subscribe("news") as subscription:
        broker.redis.publish(f"{key}:news", "a")
        assert taken(subscription, 1) == ["a"]


def test_messages_pass_through_a_unix_socket(key: str, cooperative: None, pairs: Pairs, tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    with redis_server(args=["--unixsocket", str(path)]), using(f"unix://{path}"), subscribe("news") as subscription:
        publish("news", "a")
        assert taken(subscription, 1) == ["a"]


def test_a_process_has_one_subscriber_for_the_channels_of_all_members(on_redis: Broker, pairs: Pairs) -> None:
    connection, peer = pairs()
    subscriptions = [subscribe(f"c{number}", "all") for number in range(30)]
    forwarding = pubsub.forward(["all", "c0", "forwarded"]).attach(connection)
    for channel in ("c0", "c29", "all", "forwarded"):
        assert on_redis.subscribers(channel) == 1
    for subscription in subscriptions[1:]:
        subscription.close()
    until(lambda: on_redis.subscribers("c29") == 0)
    assert on_redis.subscribers("all") == 1
    subscriptions[0].close()
    assert on_redis.subscribers("c0") == 1
    forwarding.close()
    until(lambda: on_redis.subscribers("all") == on_redis.subscribers("c0") == 0)


@pytest.fixture
def nowhere(cooperative: None, pairs: Pairs) -> Iterator[str]:
    port = free_port()
    with using(f"redis://user:secret@127.0.0.1:{port}/0"):
        yield f"127.0.0.1:{port}"


def test_the_error_for_a_missing_redis_comes_at_once_and_names_the_remedy(
    nowhere: str, pairs: Pairs, caplog: pytest.LogCaptureFixture
) -> None:
    connection, _ = pairs()
    begun = time.monotonic()
    for call in (
        lambda: publish("news", "a"),
        lambda: subscribe("news"),
        lambda: pubsub.forward(["news"]).attach(connection),
        lambda: subscribe("news"),
    ):
        with pytest.raises(BrokerError) as error:
            call()
        assert nowhere in str(error.value) and "WEBSOCKET_BROKER" in str(error.value)
        assert "secret" not in str(error.value)
    assert time.monotonic() - begun < 1
    assert "secret" not in caplog.text
    assert connection.on_end == ()


def test_all_members_that_join_together_learn_that_redis_is_missing(nowhere: str) -> None:
    joining = [gevent.spawn(subscribe, "news") for _ in range(5)]
    for greenlet in joining:
        with pytest.raises(BrokerError):
            greenlet.get(timeout=5)


def test_the_error_for_a_wrong_password_does_not_contain_it(
    redis_url: str, cooperative: None, pairs: Pairs, caplog: pytest.LogCaptureFixture
) -> None:
    port = urlsplit(redis_url).port
    with using(f"redis://:very-secret@127.0.0.1:{port}/0"):
        for call in (lambda: publish("news", "a"), lambda: subscribe("news")):
            with pytest.raises(BrokerError) as error:
                call()
            assert "very-secret" not in str(error.value)
    assert "very-secret" not in caplog.text


# --- publishing to Redis from many at once ----------------------------------------------------------------------


def together(function: Callable[[int], Any], count: int) -> list[Any]:
    """Call a function in `count` greenlets at once; return the result or the exception of each."""

    def call(number: int) -> Any:
        try:
            return function(number)
        except Exception as error:
            return error

    return [greenlet.get(timeout=20) for greenlet in [gevent.spawn(call, number) for number in range(count)]]


def test_messages_that_many_greenlets_publish_at_once_leave_in_one_write(proxy: Proxy) -> None:
    with subscribe("news") as subscription:
        assert together(lambda number: publish("news", str(number)), 200) == [1] * 200
        assert taken(subscription, 200) == list(map(str, range(200)))
        assert together(lambda number: publish("news", str(number)), 200) == [1] * 200
        assert proxy.writes == [200, 200]
        assert proxy.server.pool is not None and len(proxy.server.pool) == 2  # one of them is the subscriber's


def test_many_large_messages_published_at_once_arrive(on_redis: Broker) -> None:
    messages = [str(number % 10) * 300_000 for number in range(40)]
    with subscribe("news") as subscription, override_settings(WEBSOCKET_OUTBOX_SIZE=1 << 24):
        subscription._queue._limit = 1 << 30
        assert together(lambda number: publish("news", messages[number]), 40) == [1] * 40
        assert taken(subscription, 40) == messages


def test_each_publisher_has_its_own_outcome(own_redis: Server, any_reader: None) -> None:
    with redis.Redis(port=own_redis.port) as admin:
        admin.execute_command("ACL", "SETUSER", "default", "resetchannels", "&allowed")
    with subscribe("allowed") as subscription:
        outcomes = together(lambda number: publish("forbidden" if number % 3 else "allowed", str(number)), 30)
        assert [type(outcome) for outcome in outcomes] == [int, BrokerError, BrokerError] * 10
        assert taken(subscription, 10) == [str(number) for number in range(0, 30, 3)]


def test_interrupting_a_publisher_loses_no_messages_of_others(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    with subscribe("news") as subscription:
        publish("news", "before")
        proxy.swallow = "and stay"
        first = gevent.spawn(publish, "news", "sent already")
        until(lambda: proxy.writes == [1, 1])
        monkeypatch.setattr(redis_broker, "TIMEOUT", 5.0)  # else they would give up just when their turn comes
        waiting = [gevent.spawn(publish, "news", str(number)) for number in range(4)]
        gevent.sleep(0)
        first.kill()
        waiting[1].kill()  # before its turn, which never comes
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.001):
            publish("news", "nor the turn of this")
        proxy.swallow = ""
        until(lambda: all(greenlet.ready() for greenlet in waiting))
        publish("news", "after")
        got = taken(subscription, 2)
        while got[-1] != "after":
            got += taken(subscription, 1)
        assert got[:2] == ["before", "sent already"]
        sent = [str(number) for number in (0, 2, 3) if waiting[number].exception is None]
        assert got[2:-1] == sent
        nothing_more(subscription)


def test_no_message_is_lost_when_an_idle_connection_has_ended(own_redis: Server, any_reader: None) -> None:
    with redis.Redis(port=own_redis.port) as admin, admin.pubsub() as listener:
        listener.subscribe("news")
        publish("news", "a")
        admin.client_kill_filter(_type="normal", skipme=True)
        until(lambda: CLOSE_WAIT in connections_to(own_redis.port))
        publish("news", "b")
        assert [listener.get_message(timeout=10)["data"] for _ in range(3)] == [1, b"a", b"b"]


THREADS = """
import threading
from gevent._hub_local import get_hub_if_exists
from django_websocket.exceptions import BrokerError
from django_websocket.pubsub import publish

def publisher(name):
    for number in range(50):
        publish("news", f"{name} {number}")
    assert get_hub_if_exists() is None, "a thread has made a loop for itself"

threads = [threading.Thread(target=publisher, args=(name,)) for name in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""

NATIVE_THREADS = """
import gevent
from django_websocket.pubsub import publish

def publisher(name):
    for number in range(50):
        publish("news", f"{name} {number}")

pool = gevent.get_hub().threadpool
gevent.joinall([pool.spawn(publisher, name) for name in range(7)], raise_error=True)
publisher(7)
"""


@pytest.mark.parametrize("source", [THREADS, NATIVE_THREADS], ids=["without gevent", "beside gevent's loop"])
def test_messages_of_each_thread_keep_their_order(on_redis: Broker, source: str) -> None:
    with subscribe("news") as subscription:
        child(source, on_redis.url, patched=source is NATIVE_THREADS)
        got = [message.split() for message in taken(subscription, 400)]
        for name in "01234567":
            assert [int(number) for who, number in got if who == name] == list(range(50))
        nothing_more(subscription)


@pytest.mark.parametrize("patched", [False, True], ids=["without gevent", "with gevent"])
def test_threads_of_gevent_find_all_imported_and_other_processes_do_not_wait_for_that(
    redis_url: str, patched: bool
) -> None:
    """Where gevent has patched the locks of Python's imports, two native threads that import may wait for ever."""
    needed = "{f'django_websocket.pubsub.{name}' for name in ('redis', 'presence', 'replay', 'subscription', 'hub')}"
    printed = child(f"print(len({needed} - sys.modules.keys()))", redis_url, patched=patched)
    assert int(printed) == (0 if patched else 5)
    if patched:  # in Python 3.10, to import what is there waits for a lock, too
        code = "from django_websocket.pubsub import factory, publish\nfactory.import_module = None"
        child(f"{code}\npublish('news', 'nobody is there')", redis_url, patched=True)


WITHOUT_GEVENT = (
    f"import os\n{inspect.getsource(connections_to)}"
    + """
import signal, time
import redis as redis_py
from django_websocket import pubsub
from django_websocket.exceptions import BrokerError
from django_websocket.pubsub import publish, redis

redis.TIMEOUT = 1.0

def attempt(message, fails=False):
    begun = time.monotonic()
    try:
        publish("news", message)
    except BrokerError as error:
        assert fails, error
    else:
        assert not fails, message
    assert time.monotonic() - begun < 2, message

port = int(sys.argv[1])
with redis_py.Redis(port=port) as admin:
    attempt("a")
    admin.client_kill_filter(_type="normal", skipme=True)
    while sys.argv[3] not in connections_to(port):
        time.sleep(0.001)
    attempt("b")
    os.kill(int(sys.argv[2]), signal.SIGSTOP)
    attempt("in doubt", fails=True)
    attempt("not sent, since no connection could be made", fails=True)
    os.kill(int(sys.argv[2]), signal.SIGCONT)
    attempt("c")
    deadline = time.monotonic() + 10
    while len(connections_to(port)) != 2:  # the publisher's and this code's own; others may be just about to end
        assert time.monotonic() < deadline, connections_to(port)
        time.sleep(0.01)
"""
)


def test_publishing_without_gevent_has_the_same_deadlines_and_outcomes(own_redis: Server) -> None:
    with redis.Redis(port=own_redis.port) as admin, admin.pubsub() as listener:
        listener.subscribe("news")
        child(
            WITHOUT_GEVENT,
            f"redis://{own_redis.address}",
            arguments=(str(own_redis.port), str(own_redis.pid), CLOSE_WAIT),
        )
        got = [listener.get_message(timeout=10)["data"] for _ in range(4)]
        if got[-1] == b"in doubt":
            got = [*got[:-1], listener.get_message(timeout=10)["data"]]
        assert got == [1, b"a", b"b", b"c"]
        assert listener.get_message(timeout=0.1) is None


# --- Redis goes away --------------------------------------------------------------------------------------------


@pytest.fixture
def own_redis(cooperative: None, pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A Redis that the test may kill and pause, with shorter deadlines."""
    monkeypatch.setattr(redis_broker, "PING_INTERVAL", 0.3)
    monkeypatch.setattr(redis_broker, "TIMEOUT", 1.0)
    with redis_server() as server, using(f"redis://{server.address}"):
        yield server


@pytest.fixture(params=["with hiredis", "without hiredis"])
def any_reader(request: pytest.FixtureRequest, own_redis: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "without hiredis":
        monkeypatch.setattr(pipeline, "hiredis", None)
        pubsub.process.current_broker().address.arguments["parser_class"] = _RESP2Parser  # type: ignore[attr-defined]


def restart(server: Server) -> None:
    server.stop(signal.SIGKILL)
    server.start()


def kill_clients(server: Server) -> None:
    port = str(server.port)
    for kind in ("pubsub", "normal"):
        command = [executable("redis-cli"), "-p", port, "CLIENT", "KILL", "TYPE", kind]
        subprocess.run(command, capture_output=True, check=True, timeout=30)


@pytest.mark.parametrize("outage", [restart, kill_clients])
def test_after_an_outage_everybody_is_told_once_and_messages_flow_again(
    own_redis: Server,
    any_reader: None,
    pairs: Pairs,
    caplog: pytest.LogCaptureFixture,
    outage: Callable[[Server], None],
) -> None:
    connection, peer = pairs()
    subscriptions = [subscribe("news", "weather"), subscribe("news")]
    pubsub.forward(["news"], for_good=True).attach(connection)
    publish("news", "before")
    assert [taken(subscription, 1) for subscription in subscriptions] == [["before"]] * 2
    assert peer.until_frames(1) == [text("before")]
    waiting = gevent.spawn(subscriptions[1].get)
    gevent.sleep(0)

    outage(own_redis)

    with pytest.raises(MessagesMissed):
        subscriptions[0].get(timeout=10)
    with pytest.raises(MessagesMissed):
        waiting.get(timeout=10)
    publish("news", "after")  # the connections for publishing are new as well
    publish("weather", "too")
    assert taken(subscriptions[0], 2) == ["after", "too"]
    assert taken(subscriptions[1], 1) == ["after"]
    nothing_more(*subscriptions)
    for subscription in subscriptions:
        subscription.close()
    # clients with a forwarding are disconnected, so that they connect again
    frames = peer.until_frames(2)
    assert frames[1].opcode == CLOSE and frames[1].payload[:2] == (1012).to_bytes(2, "big")
    assert connection.close_code == 1012
    assert sum(record.levelno >= logging.ERROR for record in caplog.records) == 1
    peer.close_frame()
    peer.until_end()


def test_a_client_that_missed_messages_during_acceptance_is_disconnected(own_redis: Server, pairs: Pairs) -> None:
    connection, peer = pairs()

    def accept(subprotocol: str | None) -> Connection:
        with subscribe("news") as other:
            kill_clients(own_redis)
            with pytest.raises(MessagesMissed):
                other.get(timeout=10)
        return connection

    WebSocket({}, HttpResponse(), accept).subscribe("news").close()
    assert peer.until_frames(1)[0].payload[:2] == (1012).to_bytes(2, "big")


@pytest.mark.parametrize("on_slow", ["close", "drop_oldest", "latest"])
@pytest.mark.parametrize("method", [WebSocket.subscribe, WebSocket.listen], ids=["subscribe", "listen"])
def test_a_client_that_missed_messages_gets_on_missed_and_stays(
    own_redis: Server, pairs: Pairs, method: Callable[..., Any], on_slow: Any
) -> None:
    connection, peer = pairs()
    ws = WebSocket({}, HttpResponse(), lambda subprotocol: connection)
    method(ws, "news", "weather", on_slow=on_slow, on_missed={"type": "reload"})
    publish("news", "before")
    assert peer.until_frames(1) == [text("before")]
    for number in range(1, 4):
        kill_clients(own_redis)
        assert peer.until_frames(2 * number)[2 * number - 1] == text('{"type":"reload"}')
        publish("weather", "after")
        assert peer.until_frames(2 * number + 1)[2 * number] == text("after")
    connection.close()
    assert peer.until_frames(8)[7] == close(1000)
    peer.close_frame()
    peer.until_end()


def test_on_missed_comes_first_for_a_client_that_missed_messages_during_acceptance(
    own_redis: Server, pairs: Pairs
) -> None:
    connection, peer = pairs()

    def accept(subprotocol: str | None) -> Connection:
        with subscribe("news") as other:
            publish("news", "in doubt as well")
            assert taken(other, 1) == ["in doubt as well"]
            kill_clients(own_redis)
            with pytest.raises(MessagesMissed):
                other.get(timeout=10)
            publish("news", "after")
            assert taken(other, 1) == ["after"]
        return connection

    with WebSocket({}, HttpResponse(), accept).subscribe("news", on_missed=b"reload"):
        assert peer.until_frames(2) == [Frame(BINARY, b"reload"), text("after")]


def test_a_stuck_client_gets_on_missed_instead_of_its_backlog(memory: Broker, pairs: Pairs) -> None:
    connection, peer = pairs(narrow=True)
    with (
        forward(connection, "news", on_slow="drop_oldest", on_missed="reload") as forwarding,
        subscribe("news") as other,
    ):
        for number in range(100):
            publish("news", f"{number}".ljust(1000))
        taken(other, 100)  # by then the forwarding has got all of them, too
        until(lambda: forwarding._backlog.waiting)  # type: ignore[attr-defined]
        forwarding.missed()
        publish("news", "after")
        until(lambda: peer.pump() and text("after") in peer.frames)
    assert peer.frames[-2:] == [text("reload"), text("after")]
    assert len(peer.frames) < 50


def test_a_large_audience_learns_of_an_outage_in_slices_that_let_others_run(own_redis: Server, impatient: None) -> None:
    members = [subscribe("news") for _ in range(MANY)]
    seen = []

    def other() -> None:
        while not members[-1].ready():
            seen.append(sum(member.ready() for member in members))
            let_others_run()

    watching = gevent.spawn(other)
    kill_clients(own_redis)
    watching.get(timeout=10)
    assert any(0 < turn < len(members) for turn in seen)
    for member in members:
        with pytest.raises(MessagesMissed):
            member.get(timeout=5)
        member.close()


@pytest.mark.parametrize("on_missed", [object(), float("nan")])
def test_an_on_missed_that_cannot_be_sent_is_refused_at_once(memory: Broker, pairs: Pairs, on_missed: Any) -> None:
    connection, _ = pairs()
    with pytest.raises((TypeError, ValueError)):
        forward(connection, "news", on_missed=on_missed)
    assert memory.hub.channels == {}


def test_while_redis_is_away_publish_and_subscribe_fail_soon(
    own_redis: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with subscribe("news") as subscription:
        own_redis.stop(signal.SIGKILL)
        begun = time.monotonic()
        with pytest.raises(BrokerError):
            publish("news", "lost")
        assert time.monotonic() - begun < 1
        for _ in range(3):
            begun = time.monotonic()
            with pytest.raises(BrokerError):
                subscribe("weather")
            assert time.monotonic() - begun < 5
        own_redis.start()
        with pytest.raises(MessagesMissed):
            subscription.get(timeout=10)
        with subscribe("weather") as weather:
            publish("weather", "a")
            assert taken(weather, 1) == ["a"]
        publish("news", "b")
        assert taken(subscription, 1) == ["b"]
        assert sum(record.levelno >= logging.ERROR for record in caplog.records) == 1  # one for the whole outage


def test_subscribing_succeeds_after_it_failed_during_an_outage(own_redis: Server) -> None:
    own_redis.stop(signal.SIGKILL)
    with pytest.raises(BrokerError):
        subscribe("news")
    own_redis.start()
    with subscribe("news") as subscription:
        publish("news", "a")
        assert taken(subscription, 1) == ["a"]
        with pytest.raises(TimeoutError):
            subscription.get(timeout=0)


def outage_noticed(caplog: pytest.LogCaptureFixture) -> bool:
    """Whether the subscriber has lost its connection, which it logs."""
    return any(record.levelno >= logging.ERROR for record in caplog.records)


def test_a_subscription_may_be_closed_during_the_outage(own_redis: Server, caplog: pytest.LogCaptureFixture) -> None:
    closed, kept = subscribe("news"), subscribe("weather")
    own_redis.stop(signal.SIGKILL)
    until(lambda: outage_noticed(caplog))
    closed.close()
    own_redis.start()
    with pytest.raises(MessagesMissed):
        kept.get(timeout=10)
    client = redis.Redis(port=own_redis.port)
    assert dict(client.pubsub_numsub("news", "weather")) == {b"news": 0, b"weather": 1}
    client.close()
    kept.close()


@pytest.mark.parametrize("channel", ["news", "weather"], ids=["with others", "alone"])
def test_a_member_that_joins_during_an_outage_misses_nothing_from_then_on(
    own_redis: Server, any_reader: None, caplog: pytest.LogCaptureFixture, channel: str
) -> None:
    with subscribe("news") as before:
        own_redis.stop(signal.SIGKILL)
        until(lambda: outage_noticed(caplog))
        own_redis.start()  # before the next attempt to connect
        with subscribe(channel) as late:
            publish(channel, "a")
            assert taken(late, 1) == ["a"]
        with pytest.raises(MessagesMissed):
            before.get(timeout=10)


def test_a_channel_that_redis_refuses_does_not_affect_others(
    own_redis: Server, any_reader: None, caplog: pytest.LogCaptureFixture
) -> None:
    admin: Any = redis.Redis(port=own_redis.port)
    admin.execute_command("ACL", "SETUSER", "default", "resetchannels", "&allowed*")
    admin.close()
    with subscribe("allowed") as subscription:
        for _ in range(2):
            with pytest.raises(BrokerError):
                subscribe("forbidden")
            with pytest.raises(BrokerError):
                publish("forbidden", "a")
        with pytest.raises(BrokerError):
            subscribe("allowed too", "forbidden")
        with subscribe("allowed too") as other:
            publish("allowed", "a")
            publish("allowed too", "b")
            assert taken(subscription, 1) == ["a"]  # without MessagesMissed
            assert taken(other, 1) == ["b"]


def test_a_paused_redis_is_noticed_within_the_deadline(
    own_redis: Server, any_reader: None, caplog: pytest.LogCaptureFixture
) -> None:
    with subscribe("news") as subscription:
        own_redis.send_signal(signal.SIGSTOP)
        try:
            begun = time.monotonic()
            until(lambda: outage_noticed(caplog))
            assert time.monotonic() - begun < 2 * redis_broker.PING_INTERVAL + 0.5
            begun = time.monotonic()
            with pytest.raises(BrokerError):
                publish("news", "nobody knows")
            assert time.monotonic() - begun < redis_broker.TIMEOUT + 1
        finally:
            own_redis.send_signal(signal.SIGCONT)
        with pytest.raises(MessagesMissed):
            subscription.get(timeout=10)
        publish("news", "after")
        got = taken(subscription, 1)
        if got == ["nobody knows"]:  # late, but only once
            got = taken(subscription, 1)
        assert got == ["after"]


def test_each_outage_and_its_end_are_logged(own_redis: Server, caplog: pytest.LogCaptureFixture) -> None:
    with subscribe("news") as subscription:
        for number in range(1, 4):
            kill_clients(own_redis)
            with pytest.raises(MessagesMissed):
                subscription.get(timeout=10)
            assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"] * number


FLOOD = """
from django_websocket.pubsub import publish
for _ in range(2000):
    publish("news", "x" * 10_000)  # Valkey 9 hardly counts larger messages
"""


def test_members_are_told_when_redis_disconnects_a_process_that_does_not_read(
    own_redis: Server, any_reader: None
) -> None:
    with redis.Redis(port=own_redis.port) as admin, override_settings(WEBSOCKET_OUTBOX_SIZE=1 << 28):
        admin.config_set("client-output-buffer-limit", "pubsub 1mb 0 0")
        with subscribe("news") as subscription:
            child(FLOOD, f"redis://{own_redis.address}")  # blocks the loop of this process meanwhile
            got = []
            with pytest.raises(MessagesMissed):
                while True:
                    got.append(subscription.get(timeout=10))
            assert len(got) < 2000
            publish("news", "after")
            assert taken(subscription, 1) == ["after"]


def test_a_process_without_free_descriptors_can_end_a_connection(own_redis: Server, cooperative: None) -> None:
    broker = redis_broker.RedisBroker(f"redis://{own_redis.address}")
    link = pipeline.Link(broker.connect(redis_broker.TIMEOUT))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        link.hang_up()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with pytest.raises((ConnectionError, redis.ConnectionError)):
        link.receive(redis_broker.TIMEOUT)
    link.close()


def test_a_partly_sent_command_ends_the_connection(
    own_redis: Server, any_reader: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis would take anything sent afterwards for the rest of that command."""
    monkeypatch.setattr(redis_broker, "PING_INTERVAL", 30)
    with subscribe("news") as subscription:
        own_redis.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(BrokerError):
                subscribe(*[f"{number}".ljust(200_000) for number in range(60)])
            until(lambda: outage_noticed(caplog))
        finally:
            own_redis.send_signal(signal.SIGCONT)
        with pytest.raises(MessagesMissed):
            subscription.get(timeout=10)
        with subscribe("weather") as weather:
            publish("weather", "sun")
            assert taken(weather, 1) == ["sun"]
        nothing_more(subscription)


def test_publishers_learn_in_time_that_redis_is_paused_and_nothing_arrives_twice(
    own_redis: Server, any_reader: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with override_settings(WEBSOCKET_OUTBOX_SIZE=1 << 26), subscribe("news") as subscription:
        publish("news", "before")
        own_redis.send_signal(signal.SIGSTOP)
        try:
            begun = time.monotonic()
            outcomes = together(lambda number: publish("news", f"{number:03}" * 100_000), 60)  # more than buffers hold
            assert [type(outcome) for outcome in outcomes] == [BrokerError] * 60
            outcomes = together(lambda number: publish("news", str(number)), 60)
            assert [type(outcome) for outcome in outcomes] == [BrokerError] * 60
            assert time.monotonic() - begun < 2 * redis_broker.TIMEOUT + 1
        finally:
            own_redis.send_signal(signal.SIGCONT)
        got: list[Any] = []
        with pytest.raises(MessagesMissed):
            while True:
                got.append(subscription.get(timeout=10))
        monkeypatch.setattr(redis_broker, "TIMEOUT", 2.5)  # a busy machine may take one to connect and to answer
        publish("news", "after")
        while got[-1:] != ["after"]:
            got += taken(subscription, 1)
        assert len(set(got)) == len(got)
        nothing_more(subscription)


def test_everybody_is_subscribed_within_ten_seconds_of_the_return_of_redis(cooperative: None, pairs: Pairs) -> None:
    """With the real delays and deadlines, after an outage so long that attempts have become rare."""
    with redis_server() as server, using(f"redis://{server.address}"), subscribe("news") as subscription:
        server.stop(signal.SIGKILL)
        attempts: list[float] = []
        nobody = gevent.server.StreamServer(("127.0.0.1", server.port), lambda *_: attempts.append(time.monotonic()))
        nobody.start()
        until(lambda: len(attempts) > 1 and attempts[-1] - attempts[-2] > redis_broker.LONGEST_DELAY / 2, 20)
        nobody.stop()
        server.start()
        begun = time.monotonic()
        with pytest.raises(MessagesMissed):
            subscription.get(timeout=10)
        assert time.monotonic() - begun < 10
        publish("news", "a")
        assert taken(subscription, 1) == ["a"]


def test_silence_is_not_an_outage(own_redis: Server, any_reader: None, caplog: pytest.LogCaptureFixture) -> None:
    with subscribe("news") as subscription:
        client = redis.Redis(port=own_redis.port)
        until(lambda: client.info("commandstats").get("cmdstat_ping", {}).get("calls", 0) >= 3)
        client.close()
        publish("news", "a")
        assert taken(subscription, 1) == ["a"]
        nothing_more(subscription)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


class Proxy:
    """A proxy between this process and the Redis at `port`.

    It withholds replies to PUBLISH while `swallow` is set, and passes nothing on for connections that are `frozen`.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.swallow = ""
        self.frozen: set[gevent.socket.socket] = set()
        self.passes = 0  # bytes of replies that still pass while `swallow` is set
        self.writes: list[int] = []  # the number of PUBLISH commands in each
        self.open: set[gevent.socket.socket] = set()
        self.hangs_up = ""  # when somebody subscribes: "at once", or "after the reply"
        self.hung_up: list[float] = []  # when it did, in the seconds of time.monotonic()
        self.asked = 0  # how often somebody subscribed or unsubscribed
        self.cuts: list[bytes] = []  # the commands at which it hangs up next, once for each
        self.server = gevent.server.StreamServer(("127.0.0.1", 0), self._serve, spawn=gevent.pool.Pool())

    def freeze(self) -> None:
        """Pass nothing on for the present connections any more, and do not end them either."""
        self.frozen |= self.open

    def hang_up(self, when: str) -> None:
        """End the present connections, and each later one when somebody subscribes on it."""
        self.hangs_up = when
        for client in tuple(self.open):
            client.shutdown(2)

    def _serve(self, client: gevent.socket.socket, address: Any) -> None:
        with client, gevent.socket.create_connection(("127.0.0.1", self.port)) as upstream:
            publisher = False
            self.open.add(client)

            def back() -> None:
                while data := upstream.recv(65536):
                    if publisher and self.swallow:
                        data, self.passes = data[: self.passes], max(0, self.passes - len(data))
                        client.sendall(data)
                        if self.swallow == "and close":
                            client.shutdown(2)
                            return
                        continue
                    if client not in self.frozen:
                        client.sendall(data)

            replies = gevent.spawn(back)
            try:
                while data := client.recv(1 << 20):
                    if b"PUBLISH" in data:
                        publisher = True
                        self.writes.append(data.count(b"PUBLISH"))
                    self.asked += b"SUBSCRIBE" in data
                    if b"SUBSCRIBE" in data and self.hangs_up:
                        if self.hangs_up == "after the reply":
                            upstream.sendall(data)
                            gevent.socket.wait_read(upstream.fileno())
                            gevent.sleep(0)
                        self.hung_up.append(time.monotonic())
                        return
                    if self.cuts and self.cuts[0] in data:
                        del self.cuts[0]
                        return
                    if client not in self.frozen:
                        upstream.sendall(data)
            except OSError:
                pass
            finally:
                replies.kill()
                self.open.discard(client)


@pytest.fixture
def proxy(redis: Server, key: str, cooperative: None, pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setattr(redis_broker, "TIMEOUT", 0.5)
    proxy = Proxy(redis.port)
    proxy.server.start()
    try:
        with using(f"redis://127.0.0.1:{proxy.server.server_port}", f"{key}:"):
            yield proxy
    finally:
        proxy.server.stop(timeout=1)


@pytest.fixture
def patient(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give replies more time, for a test whose replies come."""
    monkeypatch.setattr(redis_broker, "TIMEOUT", 2.5)


@pytest.mark.parametrize("when", ["at once", "after the reply"])
def test_a_redis_that_hangs_up_on_subscribers_is_tried_less_and_less_often(
    proxy: Proxy, caplog: pytest.LogCaptureFixture, when: str
) -> None:
    with subscribe("news") as subscription:
        proxy.hang_up(when)
        until(lambda: len(proxy.hung_up) == 6)
        gaps = [later - earlier for earlier, later in itertools.pairwise(proxy.hung_up)]
        assert gaps[-1] > 0.05 * 2**5 * 0.5 * 0.9
        lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        if when == "at once":  # it was never back
            assert len(lines) == 1
        proxy.hangs_up = ""
        until(lambda: publish("news", "a"))
        with pytest.raises(MessagesMissed):
            subscription.get(timeout=10)
        with contextlib.suppress(MessagesMissed):  # one after the reply that was the last one
            subscription.get(timeout=10)
        publish("news", "b")
        while subscription.get(timeout=10) != "b":
            pass
        assert caplog.records[-1].getMessage().endswith(" is back")


@pytest.fixture(params=["of a new connection", "beside others"])
def any_connection(request: pytest.FixtureRequest, patient: None) -> Iterator[None]:
    """A connection to Redis that is made for the test's subscription, or one that has others already."""
    with contextlib.ExitStack() as stack:
        if request.param == "beside others":
            stack.enter_context(subscribe("other"))
        yield


def test_a_subscription_outlives_its_connection(proxy: Proxy, any_connection: None) -> None:
    proxy.cuts = [b"SUBSCRIBE"]
    with subscribe("news") as subscription:
        assert proxy.cuts == []
        publish("news", "a")
        assert subscription.get(timeout=10) == "a"
        nothing_more(subscription)


def test_a_subscription_fails_if_the_next_connection_is_cut_too(proxy: Proxy, any_connection: None) -> None:
    proxy.cuts = [b"SUBSCRIBE"] * 2
    with pytest.raises(BrokerError, match="closed the connection|Connection reset|Broken pipe"):
        subscribe("news")
    assert proxy.cuts == []
    with subscribe("news") as subscription:
        publish("news", "a")
        assert subscription.get(timeout=10) == "a"


@pytest.mark.usefixtures("patient")
def test_a_caller_that_has_left_takes_no_reply_on_the_next_connection(proxy: Proxy) -> None:
    with subscribe("other"):
        proxy.freeze()
        caller = gevent.spawn(subscribe, "news")
        until(lambda: proxy.asked > 1)
        caller.kill()
        proxy.hang_up("")
        with subscribe("news") as subscription:
            publish("news", "a")
            assert subscription.get(timeout=10) == "a"


@pytest.mark.usefixtures("patient")
def test_what_is_kept_is_read_again_if_the_connection_is_cut(proxy: Proxy) -> None:
    broker: Any = pubsub.process.current_broker()
    rule = Rule(messages=10, seconds=60)
    broker.publish_kept("news", b"a", rule)
    proxy.cuts = [b"EVAL"]
    assert [entry.payload for entry in broker.read("news", rule, 10).entries] == [b"a"]
    proxy.cuts = [b"EVAL"] * 2
    with pytest.raises(BrokerError):
        broker.read("news", rule, 10)
    proxy.cuts = [b"EVAL"]
    with pytest.raises(BrokerError):  # it may have been kept
        broker.publish_kept("news", b"b", rule)
    assert proxy.cuts == []
    assert [entry.payload for entry in broker.read("news", rule, 10).entries] == [b"a"]


def answering(line: bytes) -> gevent.server.StreamServer:
    """A Redis that answers every command, or every part of one, with the same line; after connecting, that is."""

    def serve(client: gevent.socket.socket, address: Any) -> None:
        with client, contextlib.suppress(OSError):
            while data := client.recv(65536):
                greeting = b"CLIENT" in data or b"HELLO" in data
                client.sendall(b"+OK\r\n" * data.count(b"SETINFO") if greeting else line)

    server = gevent.server.StreamServer(("127.0.0.1", 0), serve, spawn=gevent.pool.Pool())
    server.start()
    return server


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        (b"-NOAUTH Authentication required.\r\n", "username and password"),
        (b"-WRONGPASS invalid username-password pair or user is disabled.\r\n", "username and password"),
        (b"-NOPERM User app has no permissions to access the 'news' channel\r\n", "ACL"),
        (b"-OOM command not allowed when used memory > 'maxmemory'.\r\n", "maxmemory"),
        (b"-LOADING Redis is loading the dataset in memory\r\n", "loaded"),
        (b"-READONLY You can't write against a read only replica.\r\n", "master"),
        (b"-ERR max number of clients reached\r\n", "maxclients"),
    ],
    ids=lambda value: value[1:].split()[0].decode() if isinstance(value, bytes) else "",
)
@pytest.mark.parametrize("reader", ["with hiredis", "without hiredis"])
def test_what_redis_refuses_comes_with_the_right_advice(
    key: str, cooperative: None, monkeypatch: pytest.MonkeyPatch, line: bytes, advice: str, reader: str
) -> None:
    if reader == "without hiredis":
        monkeypatch.setattr(pipeline, "hiredis", None)
    server = answering(line)
    try:
        with using(f"redis://127.0.0.1:{server.server_port}", f"{key}:"):
            if reader == "without hiredis":
                address = pubsub.process.current_broker().address  # type: ignore[attr-defined]
                address.arguments["parser_class"] = _RESP2Parser
            for attempt in (lambda: publish("news", "a"), lambda: subscribe("news")):
                with pytest.raises(BrokerError) as raised:
                    attempt()
                assert advice in str(raised.value)
                assert "Start it" not in str(raised.value)
                assert line[1:].split(b" ", 1)[1].rstrip(b".\r\n").decode() in str(raised.value)
    finally:
        server.stop(timeout=1)


def test_a_redis_that_does_not_answer_is_said_not_to_have_in_round_seconds(
    key: str, cooperative: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_broker, "TIMEOUT", 2.5)  # a busy machine may take one to connect
    server = answering(b"")
    try:
        with using(f"redis://127.0.0.1:{server.server_port}", f"{key}:"):
            for attempt in (lambda: publish("news", "a"), lambda: subscribe("news")):
                with pytest.raises(BrokerError, match=r"no reply within 2\.5 seconds"):
                    attempt()
    finally:
        server.stop(timeout=1)


@pytest.mark.parametrize("swallow", ["and close", "and stay"])
def test_a_publish_whose_reply_is_lost_is_delivered_once(proxy: Proxy, swallow: str) -> None:
    with subscribe("news") as subscription:
        publish("news", "before")
        proxy.swallow = swallow
        begun = time.monotonic()
        with pytest.raises(BrokerError):
            publish("news", "reply lost")
        assert time.monotonic() - begun < 2
        proxy.swallow = ""
        publish("news", "after")
        assert taken(subscription, 3) == ["before", "reply lost", "after"]
        assert proxy.writes == [1, 1, 1]
        nothing_more(subscription)


@pytest.mark.parametrize("swallow", ["and close", "and stay"])
def test_publishes_whose_replies_are_lost_fail_but_are_delivered_once(proxy: Proxy, swallow: str) -> None:
    with subscribe("news") as subscription:
        publish("news", "before")
        proxy.swallow, proxy.passes = swallow, 12  # bytes of three replies
        outcomes = together(lambda number: publish("news", str(number)), 50)
        assert [type(outcome) for outcome in outcomes] == [int] * 3 + [BrokerError] * 47
        proxy.swallow = ""
        publish("news", "after")
        assert taken(subscription, 52) == ["before", *map(str, range(50)), "after"]
        assert proxy.writes == [1, 50, 1]
        nothing_more(subscription)


def test_a_frozen_connection_is_noticed(proxy: Proxy, pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_broker, "PING_INTERVAL", 0.3)
    connection, peer = pairs()
    forward(connection, "news", on_missed="reload")
    with subscribe("news") as subscription:
        publish("news", "before")
        assert taken(subscription, 1) == ["before"]
        proxy.freeze()
        begun = time.monotonic()
        with pytest.raises(MessagesMissed):
            subscription.get(timeout=10)
        assert time.monotonic() - begun < 2
        begun = time.monotonic()
        with pytest.raises(BrokerError):
            publish("news", "lost")
        assert time.monotonic() - begun < 1
        publish("news", "after")
        assert taken(subscription, 1) == ["after"]
        nothing_more(subscription)
    assert peer.until_frames(3)[:3] == [text("before"), text("reload"), text("after")]
    peer.sock.close()
    until(lambda: not connection.connected)


def test_a_redis_that_takes_over_the_address_is_used(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    with redis_server() as other, subscribe("news") as subscription:
        publish("news", "before")
        assert taken(subscription, 1) == ["before"]
        proxy.port = other.port
        for client in list(proxy.open):
            client.shutdown(2)
        with pytest.raises(MessagesMissed):
            subscription.get(timeout=10)
        publish("news", "after")
        assert taken(subscription, 1) == ["after"]
        nothing_more(subscription)


def test_a_message_that_arrives_in_pieces_is_whole(redis: Server, key: str, cooperative: None, pairs: Pairs) -> None:
    """A large message takes many reads."""
    with using(f"redis://{redis.address}", f"{key}:"), subscribe("news") as subscription:
        messages = [str(number) * 100_000 for number in range(9)]
        for message in messages:
            publish("news", message)
        assert taken(subscription, 9) == messages


def test_the_close_after_missed_messages_says_why(pairs: Pairs, memory: Broker) -> None:
    connection, peer = pairs()
    forwarding = pubsub.forward(["news"]).attach(connection)
    forwarding.missed()
    assert peer.until_frames(1)[0] == close(1012, connection.close_reason)
    forwarding.close()
