"""What channels keep: positions, the past of a channel, and subscriptions that begin with it, on every broker."""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.socket
import pytest
import redis
import redis.connection
from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.test import override_settings

from django_websocket import conf
from django_websocket.exceptions import BrokerError, MessagesMissed
from django_websocket.pubsub import Kept, history, position, publish, subscribe
from django_websocket.pubsub.subscription import Subscription
from django_websocket.select import select
from django_websocket.testing import Client, captured_messages

from .support.brokers import in_use
from .support.servers import Cluster, Sentinel
from .support.waiting import at_once, until

ENCRYPTION_KEY = "a key that has not less than 32 characters"
HISTORY: dict[str, dict[str, float]] = {
    "kept:*": {"messages": 5, "seconds": 3600},
    "long:*": {"messages": 10_000, "seconds": 3600},
    "brief:*": {"messages": 100, "seconds": 1},
}


@pytest.fixture
def setting(request: pytest.FixtureRequest, key: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A `WEBSOCKET_BROKER` of the kind that the parameter names, whose channels no other test uses."""
    if request.param == "memory":
        return f"memory://{key}"
    monkeypatch.setattr(redis.connection, "socket", gevent.socket)  # as in a patched worker
    if request.param == "sentinel":
        sentinel: Sentinel = request.getfixturevalue("sentinel")
        return {**sentinel.broker(), "prefix": f"{key}:"}
    if request.param == "cluster":
        cluster: Cluster = request.getfixturevalue("cluster")
        return {"url": f"redis+cluster://{cluster.nodes[0].address}", "prefix": f"{key}:"}
    url: str = request.getfixturevalue("redis_url")
    keys = {"encryption_keys": [ENCRYPTION_KEY]} if request.param == "encrypted" else {}
    return {"url": url, "prefix": f"{key}:", **keys}


@pytest.fixture
def broker(setting: Any) -> Iterator[None]:
    """Put it into the settings, with channels that keep messages."""
    with in_use(setting, WEBSOCKET_HISTORY=HISTORY):
        yield


@pytest.fixture
def memory(key: str) -> Iterator[None]:
    """The same in the memory of this process."""
    with in_use(f"memory://{key}", WEBSOCKET_HISTORY=HISTORY):
        yield


every_broker = pytest.mark.parametrize(
    "setting", ["memory", "redis", "encrypted", "sentinel", "cluster"], indirect=True
)
each_kind = pytest.mark.parametrize("setting", ["memory", "redis"], indirect=True)


def contents(channel: str, **options: Any) -> list[str | bytes]:
    """Return the messages that a channel has kept."""
    return [kept.message for kept in history(channel, **options)]


def publish_numbers(channel: str, *numbers: int) -> list[str]:
    """Publish numbers, and return the positions behind each."""
    positions = []
    for number in numbers:
        publish(channel, str(number))
        positions.append(position(channel))
    return positions


def taken(subscription: Subscription, count: int) -> list[Any]:
    return [subscription.get(timeout=10) for _ in range(count)]


# --- the setting -----------------------------------------------------------------------------------------------------


def rule(**changes: Any) -> dict[str, Any]:
    return {"chat:*": {"messages": 100, "seconds": 3600, **changes}}


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        "chat:*",
        ["chat:*"],
        {"chat:*"},
        {"chat:*": None},
        {"chat:*": 100},
        {"chat:*": (100, 3600)},
        {"chat:*": {}},
        {"chat:*": {"messages": 100}},
        {"chat:*": {"seconds": 3600}},
        {1: {"messages": 100, "seconds": 3600}},
        {b"chat:*": {"messages": 100, "seconds": 3600}},
        {**rule(), "news": {"messages": 0, "seconds": 1}},
        rule(size=1),
        *[rule(messages=value) for value in (0, -1, 1.5, True, None, "100", float("inf"))],
        *[rule(seconds=value) for value in (0, -1, True, None, "3600", float("inf"), float("nan"))],
    ],
    ids=ascii,
)
def test_a_malformed_setting_is_refused_with_an_example(value: Any) -> None:
    with override_settings(WEBSOCKET_HISTORY=value):
        with pytest.raises(ImproperlyConfigured, match="WEBSOCKET_HISTORY") as raised:
            conf.current()
        assert json.dumps(rule()) in str(raised.value)
        with pytest.raises(ImproperlyConfigured, match="WEBSOCKET_HISTORY"):
            publish("chat:1", "hello")


def test_a_channel_keeps_what_the_first_pattern_says_that_fits(key: str) -> None:
    patterns = {
        "news": {"messages": 1, "seconds": 60},
        "news*": {"messages": 2, "seconds": 60.5},
        "*:[ab]": {"messages": 3, "seconds": 60},
        "News*": {"messages": 4, "seconds": 60},
        "?:*": {"messages": 5, "seconds": 60},
    }
    counts = {"news": 1, "newspaper": 2, "news:a": 2, "x:a": 3, "xyz:b": 3, "Newspaper": 4, "x:c": 5}
    with in_use(f"memory://{key}", WEBSOCKET_HISTORY=patterns):
        for channel, count in counts.items():
            publish_numbers(channel, *range(7))
            assert len(history(channel)) == count, channel
        for channel in ("NEWS", "my-news", "xyz:c", "X:", "nothing", "\nnews", "xy:A"):
            publish(channel, "not kept")
            if channel != "X:":
                with pytest.raises(ValueError):
                    history(channel)
        assert contents("X:") == ["not kept"]


@pytest.mark.parametrize("channel", ["django_websocket.", "django_websocket.orders", "django_websocket.layer:x"])
@pytest.mark.parametrize("pattern", ["*", "django_websocket.*", "django*"])
def test_reserved_channels_never_keep_anything(key: str, pattern: str, channel: str) -> None:
    with in_use(f"memory://{key}", WEBSOCKET_HISTORY={pattern: {"messages": 5, "seconds": 60}}):
        with pytest.raises(ValueError):
            history(channel)
        with pytest.raises(ValueError):
            position(channel)
        with pytest.raises(ValueError):
            publish(channel, "x")


@each_kind
def test_the_channel_layer_is_as_before_when_every_channel_keeps_messages(setting: Any, key: str) -> None:
    layers = {"default": {"BACKEND": "django_websocket.channels.ChannelLayer"}}
    everything = {"*": {"messages": 5, "seconds": 60}}
    with in_use(setting, WEBSOCKET_HISTORY=everything), override_settings(CHANNEL_LAYERS=layers):
        layer = get_channel_layer()

        async def conversation() -> list[Any]:
            name = await layer.new_channel()
            await layer.group_add(key, name)
            for number in range(20):
                await layer.group_send(key, {"type": "said", "number": number})
            await layer.send(name, {"type": "said", "number": 20, "data": b"\xfe1:x"})
            return [await layer.receive(name) for _ in range(21)]

        messages = async_to_sync(conversation)()
        assert [message["number"] for message in messages] == [*range(21)]
        assert messages[-1]["data"] == b"\xfe1:x"


# --- messages and positions ------------------------------------------------------------------------------------------

MESSAGES: list[Any] = [
    "text",
    "",
    "1:2:3:",
    "::a\nb\r\n\0\t",
    "\u00e9\U0001f600\u2028",
    b"",
    b"\xfe",
    b"\xfe1:AAAAAAAAAAA::1700000000:text",
    b"\xff",
    b"\xff\xfe\0:\n",
    "x" * 200_000,
    b"\xff" * 200_000,
]


@every_broker
def test_what_is_kept_has_its_type_and_content(broker: None) -> None:
    begin = position("long:a")
    with subscribe("long:a") as live:
        for message in MESSAGES:
            assert publish("long:a", message) == 1
        publish("long:a", {"text": "\u2028", "to": [None, 1.5]})
        expected = [*MESSAGES, '{"text":"\u2028","to":[null,1.5]}']
        assert taken(live, len(expected)) == expected
        assert not live.ready()
    for messages in (contents("long:a"), contents("long:a", since=begin), contents("long:a", last=100)):
        assert messages == expected
        assert [type(message) for message in messages] == [type(message) for message in expected]
    with subscribe("long:a", since=begin) as replayed:
        assert taken(replayed, len(expected)) == expected
        assert not replayed.ready()


@every_broker
def test_publish_returns_what_it_does_for_other_channels(broker: None) -> None:
    assert publish("kept:a", "a") == 0
    with subscribe("kept:a", "other"), subscribe("kept:a") as messages:
        assert publish("kept:a", "b") == 1
        assert taken(messages, 1) == ["b"]
        assert publish("kept:a", "c", on_commit=True) is None
        assert taken(messages, 1) == ["c"]


@every_broker
def test_positions_are_text_that_counts_messages_and_says_which(broker: None) -> None:
    positions = [position("kept:a"), position("kept:a"), *publish_numbers("kept:a", *range(4))]
    assert positions[0] == positions[1]  # asking changes nothing
    assert [text.partition(".")[0] for text in positions[1:]] == ["0", "1", "2", "3", "4"]
    assert len(set(positions)) == 5  # each has a tag of its own
    for text in positions:
        assert type(text) is str
        assert json.loads(json.dumps(text)) == text
        assert text.isascii() and text.isprintable() and " " not in text
    kept = history("kept:a")
    assert [each.position for each in kept] == positions[2:]
    assert [each.message for each in kept] == ["0", "1", "2", "3"]
    assert all(type(each) is Kept and isinstance(each, tuple) for each in kept)
    assert all(abs(each.time - time.time()) < 60 for each in kept)


@every_broker
def test_history_is_all_of_it_the_last_ones_or_what_lies_behind_a_position(broker: None) -> None:
    begin = position("kept:a")
    assert history("kept:a") == history("kept:a", since=begin) == history("kept:a", last=3) == []
    positions = publish_numbers("kept:a", 0, 1, 2, 3)
    everything = history("kept:a")
    assert [kept.message for kept in everything] == ["0", "1", "2", "3"]
    assert history("kept:a", since=begin) == everything
    for number, since in enumerate(positions, 1):
        assert history("kept:a", since=since) == everything[number:]
    assert history("kept:a", last=1) == everything[-1:]
    assert history("kept:a", last=3) == everything[1:]
    assert history("kept:a", last=1000) == everything


@every_broker
def test_only_so_many_messages_are_kept(broker: None) -> None:
    begin = position("kept:a")
    positions = publish_numbers("kept:a", *range(12))
    assert contents("kept:a") == ["7", "8", "9", "10", "11"]
    assert contents("kept:a", since=positions[7]) == ["8", "9", "10", "11"]  # that of the oldest that is kept
    for since in (begin, *positions[:6]):
        with pytest.raises(MessagesMissed):
            history("kept:a", since=since)
        with subscribe("kept:a", since=since) as subscription:
            with pytest.raises(MessagesMissed):
                subscription.get(timeout=10)
            assert not subscription.ready()
    with subscribe("kept:a", since=positions[7]) as subscription:
        assert taken(subscription, 4) == ["8", "9", "10", "11"]
        assert subscription.position() == positions[11]


@every_broker
def test_messages_are_kept_for_so_many_seconds(broker: None) -> None:
    begin = position("brief:a")
    published = time.monotonic()
    publish_numbers("brief:a", 1, 2)

    def expired() -> bool:
        gevent.sleep(0.05)  # asking costs more than waiting does
        return contents("brief:a") == []

    until(expired)
    assert time.monotonic() - published >= 1
    with pytest.raises(MessagesMissed):
        history("brief:a", since=begin)
    assert contents("brief:a", last=5) == []
    top = position("brief:a")
    assert top.startswith("2.")  # a channel goes on counting
    assert history("brief:a", since=top) == []
    with subscribe("brief:a", since=top) as subscription:
        publish("brief:a", "3")
        assert taken(subscription, 1) == ["3"]
        assert subscription.position() == position("brief:a")


@every_broker
def test_on_commit_keeps_what_was_committed(broker: None) -> None:
    with transaction.atomic():
        publish("kept:a", "committed", on_commit=True)
        assert history("kept:a") == []
    with pytest.raises(KeyError), transaction.atomic():
        publish("kept:a", "rolled back", on_commit=True)
        raise KeyError
    publish("kept:a", "at once", on_commit=True)
    assert contents("kept:a") == ["committed", "at once"]


@every_broker
def test_channels_are_kept_apart(broker: None) -> None:
    names = ["kept:a", "kept:A", "kept:a ", "kept:", "kept:a:", "kept:\u00e9", "kept:e\u0301", "kept:a\0", "kept:a\n"]
    for name in names:
        publish(name, ascii(name))
    assert [contents(name) for name in names] == [[ascii(name)] for name in names]
    for name in names:
        for other in names:
            if other != name:
                with pytest.raises(MessagesMissed):
                    history(name, since=position(other))
                with subscribe(name, since=position(other)) as subscription, pytest.raises(MessagesMissed):
                    subscription.get(timeout=10)


@pytest.mark.parametrize("setting", ["cluster"], indirect=True)
def test_any_name_of_a_channel_works_on_a_cluster(setting: Any) -> None:
    """Redis takes what stands between the first braces of a key for the part that chooses the node."""
    forms = ["a}b%d", "{}x%d", "%d", "{%d", "x{y}z%d", "}{%d", "{{a}}%d", "\U0001f600{\u00e9}%d", " %d\r\n", "{%d}"]
    names = [form % number for number in range(100) for form in forms]
    names += ["{}x", "{", "}", "{}", "a}b", "x{y}z", "{a}", "\0", "*", "?", "[a]", "long" * 5000, "{" + "y" * 9000]
    names = [*dict.fromkeys(names)]
    assert len(names) > 1000
    with in_use(setting, WEBSOCKET_HISTORY={"*": {"messages": 5, "seconds": 3600}}):
        begin = {name: position(name) for name in names}
        for name in names:
            publish(name, f"1 {name}")
        with subscribe(*names, since=begin) as subscription:
            for name in names:
                publish(name, f"2 {name}")
            got: dict[str, list[Any]] = {name: [] for name in names}
            for _ in range(2 * len(names)):
                pair = subscription.get_with_channel(timeout=10)
                assert pair is not None
                got[pair[0]].append(pair[1])
            assert got == {name: [f"1 {name}", f"2 {name}"] for name in names}
            assert not subscription.ready()
        for name in names[::20] + names[-13:]:
            assert contents(name) == got[name]
            assert history(name)[-1].position == subscription.position(name) == position(name)


# --- positions that lead nowhere -------------------------------------------------------------------------------------

MALFORMED: list[Any] = [
    *["", "abc", "5", "5.", ".x", ".", "-1.x", "+1.x", " 1.x", "1_0.x", "1.5.x", "0x1.x", "1e3.x", "1:x", "1.x\r\n"],
    *["9" * 50 + ".x", "9" * 5000 + ".x", "9" * 100_000, "1." + "x" * 100_000],
    *["\uff11.x", "\u00b2.x", "1.\u00e9", "1.\0", "\0", "1.\ud800", "1.x*", "1.{0}", "1.%s", "1. OR 1=1", "\n"],
    *["18446744073709551616.x", "9223372036854775808.x", "9007199254740993.x", "00.x", "NaN.x", "inf.x", "-0.x"],
    *[b"", b"1.x", 0, 1, -1, 1.5, True, False, float("nan"), [], ["1.x"], {}, {"1": "x"}, (1, "x"), object()],
]


@each_kind
def test_a_malformed_position_is_one_whose_messages_were_missed(broker: None) -> None:
    publish_numbers("kept:a", 1, 2)
    for since in MALFORMED:
        with pytest.raises(MessagesMissed):
            history("kept:a", since=since)
        with subscribe("kept:a", since={"kept:a": since}) as subscription, pytest.raises(MessagesMissed):
            subscription.get(timeout=10)
        if not isinstance(since, dict):
            with subscribe("kept:a", since=since) as subscription, pytest.raises(MessagesMissed):
                subscription.get(timeout=10)


@every_broker
def test_a_position_that_was_altered_is_one_whose_messages_were_missed(broker: None) -> None:
    positions = publish_numbers("kept:a", 1, 2, 3)
    offset, tag = positions[1].split(".")
    altered = [f"{number}.{tag}" for number in (0, 1, 3, 4, 2**31, 2**63, 2**64 + 2, "9" * 5000, "+2", " 2", "")]
    altered += [f"{offset}{end}" for end in ("", ".", f".{tag[:-1]}", f".{tag}A", f".{tag} ", f".{tag.swapcase()}")]
    altered += [f"{offset}.{tag}\n", f"{offset}.{tag}:", f"{offset}.{tag}\0", f"{offset}:{tag}", f" {offset}.{tag}"]
    altered += [f"4.{positions[2].split('.')[1]}", f"3.{tag}", positions[0] + positions[1]]
    for since in altered:
        with pytest.raises(MessagesMissed):
            history("kept:a", since=since)
        with subscribe("kept:a", since=since) as subscription, pytest.raises(MessagesMissed):
            subscription.get(timeout=10)
    assert contents("kept:a", since=positions[1]) == ["3"]


@every_broker
def test_a_channel_without_a_message_has_a_position(broker: None) -> None:
    begin = position("kept:new")
    assert begin.startswith("0.")
    with subscribe("kept:new", since=begin) as early:
        assert not early.ready()
        assert early.position() == begin
        publish_numbers("kept:new", 1, 2)
        assert taken(early, 2) == ["1", "2"]
    assert contents("kept:new", since=begin) == ["1", "2"]
    with subscribe("kept:new", since=begin) as late:
        assert taken(late, 2) == ["1", "2"]
    other = position("kept:other")
    assert other.startswith("0.") and other != begin
    publish("kept:other", "1")
    for since in (begin, "0.", "0.AAAAAAAAAAA"):
        with pytest.raises(MessagesMissed):
            history("kept:other", since=since)
    with subscribe("kept:nobody-asked") as first:
        begin = first.position()
        assert begin.startswith("0.") and len(begin) > 5
        publish("kept:nobody-asked", "1")
        assert contents("kept:nobody-asked", since=begin) == ["1"]


@every_broker
def test_an_empty_tag_fits_nothing(broker: None) -> None:
    """Without a tag, messages of another channel, or of this one in another life, would seem to be what was missed."""
    publish("kept:a", "1")  # before anybody has asked for a position
    for since in ("0.", "0", "1.", "."):
        with pytest.raises(MessagesMissed):
            history("kept:a", since=since)


@every_broker
def test_nothing_follows_the_newest_position(broker: None) -> None:
    publish_numbers("kept:a", 1, 2)
    top = position("kept:a")
    assert history("kept:a", since=top) == []
    with subscribe("kept:a", since=top) as subscription:
        assert not subscription.ready()
        publish("kept:a", "3")
        assert taken(subscription, 1) == ["3"]


# --- mistakes of the caller ------------------------------------------------------------------------------------------


MISTAKES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: history("plain"), ValueError, "WEBSOCKET_HISTORY"),
    (lambda: history("plain", since="1.x"), ValueError, "WEBSOCKET_HISTORY"),
    (lambda: history("plain", last=1), ValueError, "WEBSOCKET_HISTORY"),
    (lambda: position("plain"), ValueError, "WEBSOCKET_HISTORY"),
    (lambda: subscribe("plain", since="1.x"), ValueError, "WEBSOCKET_HISTORY"),
    (lambda: subscribe("plain", last=1), ValueError, "WEBSOCKET_HISTORY"),
    (lambda: subscribe("kept:a", "plain", last=1), ValueError, "WEBSOCKET_HISTORY"),
    (lambda: subscribe("kept:a", "plain", since={"kept:a": "1.x", "plain": "1.x"}), ValueError, "WEBSOCKET_HISTORY"),
    (lambda: history("kept:a", since="1.x", last=1), TypeError, "since"),
    (lambda: subscribe("kept:a", since="1.x", last=1), TypeError, "since"),
    (lambda: subscribe("kept:a", "kept:b", since="1.x"), TypeError, "dict"),
]


@pytest.mark.parametrize("number", range(len(MISTAKES)))
def test_a_mistake_is_named(memory: None, number: int) -> None:
    call, kind, word = MISTAKES[number]
    with pytest.raises(kind) as raised:
        call()
    assert type(raised.value) is kind
    assert word in str(raised.value)
    if word == "WEBSOCKET_HISTORY":
        assert "plain" in str(raised.value)


@pytest.mark.parametrize("last", [-1, 1.5, "5", True])
def test_a_number_of_last_messages_that_is_none_is_refused(memory: None, last: Any) -> None:
    publish_numbers("kept:a", 1, 2)
    for call in (lambda: history("kept:a", last=last), lambda: subscribe("kept:a", last=last)):
        with pytest.raises((TypeError, ValueError), match="last"):
            call()


def test_a_subscription_says_which_channels_it_has_positions_of(memory: None) -> None:
    with subscribe("kept:a", "kept:b", "plain") as subscription:
        assert subscription.position("kept:a") == position("kept:a")
        with pytest.raises(TypeError, match="several"):
            subscription.position()
        for channel in ("plain", "kept:c"):
            with pytest.raises(ValueError, match=channel):
                subscription.position(channel)
    with subscribe("plain") as subscription, pytest.raises(ValueError, match="history"):
        subscription.position()


# --- subscriptions ---------------------------------------------------------------------------------------------------


@every_broker
def test_a_subscription_begins_with_the_last_messages(broker: None) -> None:
    with subscribe("kept:a", last=3) as empty:
        assert not empty.ready()
        publish("kept:a", "0")
        assert taken(empty, 1) == ["0"]
    publish_numbers("kept:a", *range(1, 8))
    with subscribe("kept:a", last=3) as three, subscribe("kept:a", last=1000) as five:
        publish("kept:a", "8")
        assert taken(three, 4) == ["5", "6", "7", "8"]
        assert taken(five, 6) == ["3", "4", "5", "6", "7", "8"]
        assert not three.ready() and not five.ready()


@every_broker
def test_a_position_follows_what_was_taken(broker: None) -> None:
    begin = position("kept:a")
    first = publish_numbers("kept:a", 1, 2)
    with subscribe("kept:a", since=begin) as subscription, subscribe("kept:a") as live:
        assert (subscription.position(), live.position()) == (begin, first[-1])
        second = publish_numbers("kept:a", 3, 4)
        for number, behind in enumerate(first + second, 1):
            assert taken(subscription, 1) == [str(number)]
            assert subscription.position() == subscription.position("kept:a") == behind
        assert live.position() == first[-1]
        assert taken(live, 2) == ["3", "4"]
        assert live.position() == second[-1]
    assert subscription.position() == second[-1]  # a view that ends may store it
    with subscribe("kept:a", last=2) as subscription:
        assert subscription.position() == first[-1]  # from here, nothing would come twice
        assert taken(subscription, 1) == ["3"]
        assert subscription.position() == second[0]


@every_broker
def test_whoever_resumes_gets_everything_once_and_in_order(broker: None) -> None:
    """Publish without a pause, while a reader leaves and comes back in the middle of what waits for it."""
    count, dice = 400, random.Random(7)
    since = position("long:a")

    def publish_all() -> None:
        for number in range(count):
            publish("long:a", str(number))
            if number % 7 == 0:
                gevent.sleep(0.001)

    publisher = gevent.spawn(publish_all)
    got: list[Any] = []
    visits = 0
    try:
        while len(got) < count:
            with subscribe("long:a", since=since) as subscription:
                visits += 1
                for _ in range(dice.randrange(20)):
                    if len(got) < count:
                        got.append(subscription.get(timeout=10))
                since = subscription.position()
    finally:
        publisher.kill()
    assert got == [str(number) for number in range(count)]
    assert visits > 20
    assert since == position("long:a")


@each_kind
def test_many_that_come_at_once_get_the_same_past(broker: None) -> None:
    begin = position("long:a")
    positions = [begin, *publish_numbers("long:a", *range(30))]
    got: dict[int, list[Any]] = {}

    def read(skip: int) -> None:
        with subscribe("long:a", since=positions[skip]) as subscription:
            got[skip] = taken(subscription, 40 - skip)

    readers = [gevent.spawn(read, skip) for skip in range(31)]
    gevent.sleep(0)
    for number in range(30, 40):
        publish("long:a", str(number))
    gevent.joinall(readers, timeout=20, raise_error=True)
    assert got == {skip: [str(number) for number in range(skip, 40)] for skip in range(31)}


@every_broker
def test_several_channels_each_have_their_past(broker: None) -> None:
    channels = ["kept:a", "kept:b", "kept:c"]
    since = {channel: position(channel) for channel in channels}
    for number in range(3):
        for channel in channels[:2]:
            publish(channel, f"{channel} {number}")
    since["kept:b"] = history("kept:b")[1].position
    with subscribe(*channels, since={**since, "elsewhere": "1.x"}) as subscription:
        publish("kept:c", "live")
        got: dict[str, list[Any]] = {channel: [] for channel in channels}
        for _ in range(5):
            pair = subscription.get_with_channel(timeout=10)
            assert pair is not None
            got[pair[0]].append(pair[1])
        assert got == {
            "kept:a": ["kept:a 0", "kept:a 1", "kept:a 2"],
            "kept:b": ["kept:b 2"],
            "kept:c": ["live"],
        }
        assert [subscription.position(channel) for channel in channels] == [*map(position, channels)]
    with subscribe(*channels, last=1) as subscription:
        assert sorted(taken(subscription, 3)) == ["kept:a 2", "kept:b 2", "live"]


@each_kind
def test_one_channel_with_a_gap_is_a_gap_of_the_subscription(broker: None) -> None:
    since = {channel: position(channel) for channel in ("kept:a", "kept:b")}
    publish("kept:a", "0")
    publish_numbers("kept:b", *range(9))
    with subscribe("kept:a", "kept:b", since=since) as subscription:
        with pytest.raises(MessagesMissed):
            subscription.get(timeout=10)
        publish("kept:b", "live")
        got = [subscription.get(timeout=10)]
        while got[-1] != "live":
            got.append(subscription.get(timeout=10))
        assert not subscription.ready()


@each_kind
def test_after_a_gap_a_subscription_goes_on_and_has_a_position(broker: None) -> None:
    publish_numbers("kept:a", *range(9))
    with subscribe("kept:a", since="1.AAAAAAAAAAA") as subscription:
        assert subscription.ready()
        with pytest.raises(MessagesMissed):
            subscription.get()
        assert not subscription.ready()
        since = subscription.position()
        assert since == position("kept:a")
        publish("kept:a", "live")
        assert taken(subscription, 1) == ["live"]
    assert contents("kept:a", since=since) == ["live"]


@each_kind
def test_select_knows_of_the_past(broker: None) -> None:
    begin = position("kept:a")
    with subscribe("kept:a", since=begin) as subscription:
        assert select([subscription], [], [], 0)[0] == []
        fd = subscription.fileno()
        assert select([fd], [], [], 0)[0] == []
    publish_numbers("kept:a", 1, 2)
    with subscribe("kept:a", since=begin) as subscription:
        for number in ("1", "2"):
            with at_once():
                assert select([subscription], [], [], 10)[0] == [subscription]
                assert select([subscription.fileno()], [], [], 10)[0] == [subscription.fileno()]
            assert subscription.get() == number
        assert select([subscription], [], [], 0)[0] == []
    with subscribe("kept:a", since="x") as subscription:
        with at_once():
            assert select([subscription], [], [], 10)[0] == [subscription]
        with pytest.raises(MessagesMissed):
            subscription.get()
        assert select([subscription], [], [], 0)[0] == []


@each_kind
def test_a_subscription_may_be_closed_amid_its_past(broker: None) -> None:
    begin = position("kept:a")
    publish_numbers("kept:a", 1, 2, 3)
    subscription = subscribe("kept:a", since=begin)
    assert subscription.get() == "1"
    subscription.close()
    subscription.close()
    assert subscription.get() is None
    assert contents("kept:a", since=subscription.position()) == ["2", "3"]
    with subscribe("kept:a", since=begin) as subscription:
        for message in subscription:
            if message == "3":
                subscription.close()
    assert subscription.position() == position("kept:a")


# --- more than a view may let wait -----------------------------------------------------------------------------------

LIMIT = 20_000


@each_kind
def test_a_past_that_is_too_large_is_a_gap(setting: Any) -> None:
    with in_use(setting, WEBSOCKET_HISTORY=HISTORY, WEBSOCKET_OUTBOX_SIZE=LIMIT):
        begin = position("long:a")
        for number in range(30):
            publish("long:a", f"{number:03}" * 500)
        with subscribe("long:a", since=begin) as subscription:
            with pytest.raises(MessagesMissed):
                subscription.get(timeout=10)
            publish("long:a", "live")
            assert taken(subscription, 1) == ["live"]
            assert subscription.position() == position("long:a")
        since = history("long:a")[20].position
        with subscribe("long:a", since=since) as subscription:
            assert taken(subscription, 10) == [f"{number:03}" * 500 for number in range(21, 30)] + ["live"]
        assert len(history("long:a", since=begin)) == 31  # which nobody has to send


@each_kind
def test_a_past_that_is_too_large_loses_its_oldest_messages_if_it_may(setting: Any) -> None:
    with in_use(setting, WEBSOCKET_HISTORY=HISTORY, WEBSOCKET_OUTBOX_SIZE=LIMIT):
        for number in range(30):
            publish("long:a", f"{number:03}" * 500)
        with subscribe("long:a", last=30, on_slow="drop_oldest") as subscription:
            publish("long:a", "live")
            got = [subscription.get(timeout=10)]
            while got[-1] != "live":
                got.append(subscription.get(timeout=10))
            assert got[:-1] == [f"{number:03}" * 500 for number in range(31 - len(got), 30)]
            assert len(got) > 10
            assert subscription.position() == position("long:a")


@each_kind
def test_latest_takes_the_newest_of_the_past(broker: None) -> None:
    begin = position("kept:a")
    publish_numbers("kept:a", 1, 2, 3)
    for options in ({"since": begin}, {"last": 3}):
        with subscribe("kept:a", on_slow="latest", **options) as subscription:
            assert taken(subscription, 1) == ["3"]
            assert not subscription.ready()
            assert subscription.position() == position("kept:a")


@each_kind
def test_messages_that_pile_up_can_be_had_again(setting: Any) -> None:
    """A view that was too slow knows where it stopped."""
    with in_use(setting, WEBSOCKET_HISTORY=HISTORY, WEBSOCKET_OUTBOX_SIZE=LIMIT), subscribe("long:a") as slow:
        publish("long:a", "first")
        assert taken(slow, 1) == ["first"]
        since = slow.position()
        expected = [f"{number:03}" * 500 for number in range(30)]
        with subscribe("the end") as end:
            for message in expected:
                publish("long:a", message)
            publish("the end", "")
            end.get(timeout=10)
        with pytest.raises(MessagesMissed):
            while True:
                slow.get(timeout=10)
        assert contents("long:a", since=since) == expected


# --- tests of projects -----------------------------------------------------------------------------------------------


def test_a_project_tests_its_history_in_memory(test_runner: None, key: str) -> None:
    channel = f"kept:{key}"
    with override_settings(WEBSOCKET_HISTORY=HISTORY, WEBSOCKET_URLCONF="testsite.websocket_urls"):
        client = Client()
        with captured_messages() as messages:
            publish(channel, "text")
            publish(channel, b"\xff\0")
            with client.websocket(f"/forward/{channel}/") as ws:
                publish(channel, {"a": 1})
                assert ws.receive() == '{"a":1}'
            assert messages == [(channel, "text"), (channel, b"\xff\0"), (channel, '{"a":1}')]
        assert contents(channel) == ["text", b"\xff\0", '{"a":1}']


def test_a_broker_that_is_away_is_an_error_that_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(redis.connection, "socket", gevent.socket)
    caplog.set_level(logging.ERROR)
    with in_use("redis://127.0.0.1:1", WEBSOCKET_HISTORY=HISTORY):
        calls: list[Callable[[], Any]] = [
            lambda: publish("kept:a", "x"),
            lambda: position("kept:a"),
            lambda: history("kept:a"),
            lambda: subscribe("kept:a", last=1),
            lambda: subscribe("kept:a", since="1.x"),
        ]
        for call in calls:
            with pytest.raises(BrokerError, match="WEBSOCKET_BROKER"):
                call()
