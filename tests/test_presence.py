"""Who is in a channel: what views say and are told, and what their clients are told, on every broker."""

from __future__ import annotations

import datetime
import gc
import json
import select as standard
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from decimal import Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from django.test import override_settings
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy
from gevent.hub import get_hub
from redis import Redis

from django_websocket import pubsub
from django_websocket.exceptions import BrokerError
from django_websocket.protocol.deflate import Agreement
from django_websocket.pubsub import count, history, present, publish, room, subscribe, watch
from django_websocket.pubsub.memory import MemoryBroker
from django_websocket.pubsub.presence import Presence, presence_of
from django_websocket.pubsub.process import current_hub
from django_websocket.pubsub.room import INTERVAL
from django_websocket.select import select
from django_websocket.transport import log
from django_websocket.transport.limits import Limits
from django_websocket.transport.waiting import services

from .support.brokers import delivered, in_use
from .support.presence import (
    ANN,
    BOB,
    ENCRYPTION_KEY,
    EVE,
    NEVER,
    ROOM,
    Client,
    Elsewhere,
    all_leave,
    broker_setting,
    by_id,
    crowd,
    each_kind,
    every_broker,
    on_redis,
    there,
    until_there,
)
from .support.servers import Cluster
from .support.waiting import DEADLINE, at_once, until
from .support.wire import Pairs

if TYPE_CHECKING:
    from django_websocket.pubsub.watching import Watch


@pytest.fixture
def setting(request: pytest.FixtureRequest, key: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A `WEBSOCKET_BROKER` of the kind that the parameter names, whose channels no other test uses."""
    return broker_setting(request, key, monkeypatch)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have those who watch told more often than twice a second, for which these tests would wait most of the time."""
    monkeypatch.setattr(room, "INTERVAL", 0.02)


@pytest.fixture
def true_pace(often: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "INTERVAL", INTERVAL)


@pytest.fixture(autouse=True)
def broker(setting: Any, pairs: Pairs) -> Iterator[None]:
    with in_use(setting):
        yield
        all_leave(pairs)


@pytest.fixture
def elsewhere(broker: None) -> Iterator[Elsewhere]:
    """What the broker takes for another process."""
    with Elsewhere() as elsewhere:
        yield elsewhere


def change(changes: Watch, timeout: float = DEADLINE) -> tuple[list[Any], list[Any], int]:
    """Return the next change: who has joined, who has left, and how many are there."""
    found = changes.get(timeout)
    return found.joined, found.left, found.count


# --- being there -----------------------------------------------------------------------------------------------------


@every_broker
def test_basics(pairs: Pairs) -> None:
    assert present(ROOM) == []
    assert count(ROOM) == 0
    with watch(ROOM) as changes:
        assert change(changes) == ([], [], 0)
        ann = Client(pairs, "a")
        with ann.subscribe(ROOM, present=ANN) as presence:
            assert present(ROOM) == [ANN]
            assert count(ROOM) == 1
            assert change(changes) == ([ANN], [], 1)
            bob = Client(pairs, "b")
            with bob.subscribe(ROOM, present=BOB):
                assert change(changes) == ([BOB], [], 2)
                presence.update_present({**ANN, "typing": True})
                assert change(changes) == ([{**ANN, "typing": True}], [], 2)
                bob.until_it_knows({**ANN, "typing": True}, BOB)
                ann.until_it_knows({**ANN, "typing": True}, BOB)
            assert change(changes) == ([], [BOB], 1)
            assert count(ROOM) == 1
        assert change(changes) == ([], [{**ANN, "typing": True}], 0)
    assert present(ROOM) == []
    assert count(ROOM) == 0


@every_broker
def test_a_client_is_there_for_every_process_when_subscribe_has_returned(pairs: Pairs, elsewhere: Elsewhere) -> None:
    for number in range(5):
        user = {"id": number}
        with Client(pairs).subscribe(ROOM, present=user):
            assert elsewhere.call(there) == there() == by_id([user])
    until_there()
    guest = elsewhere.guest(ANN)
    assert there() == by_id([ANN])
    elsewhere.call(guest.close)
    until_there()


@every_broker
def test_with_several_channels_the_client_is_in_each(pairs: Pairs) -> None:
    with Client(pairs).subscribe("a", "b", "c", present=ANN), Client(pairs).subscribe("b", present=BOB):
        assert there("a") == there("c") == by_id([ANN])
        assert there("b") == by_id([ANN, BOB])
        assert there("d") == {}
    for channel in "abc":
        until_there(channel=channel)


@each_kind
def test_listen_has_the_client_be_there_until_it_leaves(pairs: Pairs) -> None:
    client = Client(pairs)
    client.websocket.listen(ROOM, "room:2", present=ANN)
    assert there() == there("room:2") == by_id([ANN])
    client.until_it_knows(ANN)
    client.close()
    until_there()
    until_there(channel="room:2")


def test_a_plain_client_is_there_and_is_told_nothing(pairs: Pairs) -> None:
    plain, other = Client(pairs, plain=True), Client(pairs)
    with plain.subscribe(ROOM, present=ANN), other.subscribe(ROOM, present=BOB):
        assert there() == by_id([ANN, BOB])
        other.until_it_knows(ANN, BOB)
        publish(ROOM, "the end")
        until(lambda: "the end" in plain.messages())
    assert plain.messages() == ["the end"]


def test_whoever_watches_is_not_there(pairs: Pairs) -> None:
    client = Client(pairs)
    with client.subscribe(ROOM, present="watch"), watch(ROOM) as changes:
        assert change(changes) == ([], [], 0)
        client.until_it_knows()
        with Client(pairs).subscribe(ROOM, present=ANN):
            client.until_it_knows(ANN)
            assert there() == by_id([ANN])
        client.until_it_knows()


def test_a_client_that_watches_may_be_there_later(pairs: Pairs) -> None:
    client = Client(pairs)
    with client.subscribe(ROOM, present="watch"):
        client.until_it_knows()
    with client.subscribe(ROOM, present=ANN):
        assert there() == by_id([ANN])
        client.until_it_knows(ANN)


def test_a_client_may_be_in_a_channel_for_a_while_and_come_again(pairs: Pairs) -> None:
    client = Client(pairs, "s")
    for _ in range(3):
        with client.subscribe(ROOM, present=ANN):
            assert there() == by_id([ANN])
        until_there()
    assert client.connection.connected


@every_broker
def test_the_channel_goes_on_as_it_was(pairs: Pairs, setting: Any) -> None:
    """Presence is no message: subscribers and histories see nothing of it."""
    with override_settings(WEBSOCKET_HISTORY={"kept:*": {"messages": 100, "seconds": 60}}):
        for channel in ("kept:1", "plain:1"):
            plain = Client(pairs, plain=True)
            with subscribe(channel) as subscription, plain.subscribe(channel):
                client = Client(pairs)
                with client.subscribe(channel, present=ANN) as presence:
                    presence.update_present({**ANN, "typing": True})
                    client.until_it_knows({**ANN, "typing": True}, channel=channel)
                until_there(channel=channel)
                assert publish(channel, "the end") == 1
                assert subscription.get(timeout=DEADLINE) == "the end"
                until(lambda: plain.messages())  # noqa: B023
                assert plain.messages() == ["the end"]
        assert [kept.message for kept in history("kept:1")] == ["the end"]


@pytest.mark.parametrize("call", [present, count, watch])
def test_channels_of_the_package_and_what_is_no_name_are_refused(call: Callable[[Any], Any]) -> None:
    for name in ("django_websocket.present.room:1", "django_websocket."):
        with pytest.raises(ValueError, match="reserved"):
            call(name)
    for nothing in ("", None, 7, b"room:1", ["room:1"]):
        with pytest.raises(TypeError):
            call(nothing)
    with pytest.raises(ValueError):
        call("\ud800")


# --- what present= takes ---------------------------------------------------------------------------------------------


def is_refused(pairs: Pairs, wrong: Any, *errors: type[Exception]) -> str:
    """Check that a view cannot give this as present=, and that nothing is left of the attempt; return the error."""
    text = ""
    for plain in (True, False):
        client = Client(pairs, plain=plain)
        for call in (client.websocket.subscribe, client.websocket.listen):
            with pytest.raises(errors) as raised:
                call(ROOM, present=wrong)
            text = str(raised.value)
        assert there() == {}
        assert pubsub.process.current_hub().channels == {}
        assert client.connection.close_code is None
    return text


@pytest.mark.parametrize("wrong", [7, True, 1.5, b"watch", "ann", "", ["id"], [("id", 1)], {"id"}, object], ids=repr)
def test_present_is_a_mapping_or_watch(pairs: Pairs, wrong: Any) -> None:
    assert "present=" in is_refused(pairs, wrong, TypeError)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"name": "ann"},
        {"ID": 1},
        *[{"id": value} for value in (None, True, False, 1.0, 1.5, float("nan"), [], [1], {}, {"id": 1}, (1,), b"1")],
        *[{"id": value} for value in ({1}, object, float("inf"))],
    ],
    ids=repr,
)
def test_the_id_is_a_text_or_an_integer(pairs: Pairs, wrong: Any) -> None:
    is_refused(pairs, wrong, TypeError, ValueError)


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": 1, "what": {1, 2}},
        {"id": 1, "what": object},
        {"id": 1, "what": b"bytes"},
        {"id": 1, "what": float("nan")},
        {"id": 1, "what": [float("-inf")]},
        {"id": "\ud800"},
        {"id": 1, "name": "\udfff"},
        {"id": 1, "\ud83d": "key"},
        {"id": 2**53},  # browsers would round it
        {"id": -(2**53)},
        {"id": 10**4000},
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_what_is_told_must_be_json(pairs: Pairs, wrong: Any) -> None:
    is_refused(pairs, wrong, TypeError, ValueError)


@pytest.mark.parametrize("filling", ["x", "\u00e9", "\U0001f600"])
def test_what_is_told_has_at_most_1000_bytes(pairs: Pairs, filling: str) -> None:
    room = 1000 - len('{"id":1,"x":""}')
    each = len(filling.encode())
    fits = {"id": 1, "x": filling * (room // each) + "y" * (room % each)}
    with Client(pairs).subscribe(ROOM, present=fits) as presence:
        assert present(ROOM) == [fits]
        with pytest.raises(ValueError, match="1000"):
            presence.update_present({**fits, "x": fits["x"] + "z"})  # type: ignore[operator]
        assert present(ROOM) == [fits]
    until_there()
    assert "1000" in is_refused(pairs, {**fits, "x": f"{fits['x']}z"}, ValueError)


def test_a_deeply_nested_value_is_refused_or_told(pairs: Pairs) -> None:
    nested: Any = []
    for _ in range(400):
        nested = [nested]
    try:
        with Client(pairs).subscribe(ROOM, present={"id": 1, "x": nested}):
            assert present(ROOM) == [{"id": 1, "x": nested}]
    except ValueError:
        assert there() == {}


PK = uuid.UUID(int=7)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"id": 0}, {"id": 0}),
        ({"id": -1}, {"id": -1}),
        ({"id": 2**53 - 1}, {"id": 2**53 - 1}),
        ({"id": ""}, {"id": ""}),
        ({"id": PK}, {"id": str(PK)}),
        ({"id": gettext_lazy("Ann")}, {"id": "Ann"}),
        ({"id": 1, "name": gettext_lazy("Ann")}, {"id": 1, "name": "Ann"}),
        ({"id": Decimal("1.50")}, {"id": "1.50"}),
        ({"id": datetime.date(2026, 1, 2)}, {"id": "2026-01-02"}),
        (MappingProxyType({"id": 1}), {"id": 1}),
        (
            {"id": 1, "x": {"y": [None, True, 1.5, "\u00e9"], "": {}}},
            {"id": 1, "x": {"y": [None, True, 1.5, "\u00e9"], "": {}}},
        ),
        ({"name": "first", "id": 1}, {"name": "first", "id": 1}),
    ],
    ids=repr,
)
def test_what_json_expresses_is_told_as_it_is(pairs: Pairs, given: Any, told: Any) -> None:
    client = Client(pairs)
    with client.subscribe(ROOM, present=given), watch(ROOM) as changes:
        assert present(ROOM) == [told]
        assert change(changes) == ([told], [], 1)
        client.until_it_knows(told)
    until_there()


def test_lazy_translations_are_in_the_language_of_the_view(pairs: Pairs) -> None:
    from django.utils import translation

    name: Promise = gettext_lazy("Monday")
    with translation.override("de"):
        presence = Client(pairs).subscribe(ROOM, present={"id": 1, "day": name})
    with presence:
        assert present(ROOM) == [{"id": 1, "day": "Montag"}]


def test_a_dict_that_the_view_changes_later_is_not_told(pairs: Pairs) -> None:
    user: dict[str, Any] = {"id": 1, "names": ["ann"]}
    with Client(pairs).subscribe(ROOM, present=user):
        user["id"] = 2
        user["names"].append("eve")
        assert present(ROOM) == [{"id": 1, "names": ["ann"]}]


@every_broker
def test_ids_of_text_and_of_integers_differ(pairs: Pairs) -> None:
    client = Client(pairs)
    with client.subscribe(ROOM, present={"id": 1}), Client(pairs).subscribe(ROOM, present={"id": "1"}) as other:
        assert there() == by_id([{"id": 1}, {"id": "1"}])
        client.until_it_knows({"id": 1}, {"id": "1"})
        other.close()
        client.until_it_knows({"id": 1})
        assert there() == by_id([{"id": 1}])


# --- several tabs of a user ------------------------------------------------------------------------------------------


@every_broker
@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_user_with_two_tabs_is_there_once(pairs: Pairs, elsewhere: Elsewhere, where: str) -> None:
    watcher = Client(pairs)
    with watcher.subscribe(ROOM, present="watch"), watch(ROOM) as changes:
        assert change(changes) == ([], [], 0)
        first = Client(pairs, "tab 1")
        first.subscribe(ROOM, present=ANN)
        assert change(changes) == ([ANN], [], 1)
        if where == "here":
            second = Client(pairs, "tab 2")
            second.subscribe(ROOM, present=ANN)
        else:
            second = elsewhere.guest(ANN, "tab 2")
        assert there() == by_id([ANN])
        first.close()
        with Client(pairs).subscribe(ROOM, present=BOB):
            assert change(changes) == ([BOB], [], 2)  # and nothing of the other
        assert change(changes) == ([], [BOB], 1)
        if where == "here":
            second.close()
        else:
            elsewhere.call(second.close)
        assert change(changes) == ([], [ANN], 0)
    assert [control.get("leave") for control in watcher.controls() if "leave" in control][:1] == [{ROOM: [2]}]


@each_kind
def test_tabs_may_leave_in_any_order(pairs: Pairs) -> None:
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        tabs = [Client(pairs, str(number)) for number in range(3)]
        for number, tab in enumerate(tabs):
            tab.subscribe(ROOM, present={**ANN, "tab": number})
            assert there() == by_id([{**ANN, "tab": number}])
        left = [0, 1, 2]
        for number in order:
            tabs[number].close()
            left.remove(number)
            until_there(*[{**ANN, "tab": left[-1]}] if left else [])


@every_broker
def test_the_newest_information_of_tabs_in_two_processes_counts(pairs: Pairs, elsewhere: Elsewhere) -> None:
    with watch(ROOM) as changes:
        assert change(changes) == ([], [], 0)
        first = Client(pairs, "tab 1")
        presence = first.subscribe(ROOM, present={**ANN, "tab": 1})
        assert change(changes) == ([{**ANN, "tab": 1}], [], 1)
        second = elsewhere.guest({**ANN, "tab": 2}, "tab 2")
        assert there() == by_id([{**ANN, "tab": 2}])
        assert change(changes) == ([{**ANN, "tab": 2}], [], 1)
        presence.update_present({**ANN, "tab": 1, "again": True})
        assert change(changes) == ([{**ANN, "tab": 1, "again": True}], [], 1)
        first.close()
        assert change(changes) == ([{**ANN, "tab": 2}], [], 1)
        elsewhere.call(second.close)
        assert change(changes) == ([], [{**ANN, "tab": 2}], 0)


@each_kind
def test_a_new_tab_counts_although_an_older_one_of_its_process_tells_the_same(
    pairs: Pairs, elsewhere: Elsewhere
) -> None:
    Client(pairs, "tab 1").subscribe(ROOM, present={**ANN, "page": "home"})
    elsewhere.guest({**ANN, "page": "chat"}, "tab 2")
    until_there({**ANN, "page": "chat"})
    Client(pairs, "tab 3").subscribe(ROOM, present={**ANN, "page": "home"})
    assert there() == by_id([{**ANN, "page": "home"}])


@each_kind
@pytest.mark.parametrize("session", [None, "a session"])
def test_two_subscriptions_of_a_connection_are_one_user(pairs: Pairs, session: str | None) -> None:
    client, watcher = Client(pairs, session), Client(pairs)
    with watcher.subscribe(ROOM, present="watch"):
        first = client.subscribe(ROOM, present={**ANN, "number": 1})
        second = client.subscribe(ROOM, present={**ANN, "number": 2})
        assert there() == by_id([{**ANN, "number": 2}])
        second.close()
        until_there({**ANN, "number": 1})
        watcher.until_it_knows({**ANN, "number": 1})
        first.close()
        until_there()
        watcher.until_it_knows()


# --- update_present() ------------------------------------------------------------------------------------------------


@every_broker
def test_an_update_is_told_everywhere_in_all_channels(pairs: Pairs, elsewhere: Elsewhere) -> None:
    other = elsewhere.client()
    elsewhere.call(lambda: other.subscribe("a", "b", present="watch"))
    client = Client(pairs)
    with client.subscribe("a", "b", present=ANN) as presence:
        for number in range(3):
            with at_once():
                presence.update_present({**ANN, "number": number})
        newest = {**ANN, "number": 2}
        for channel in "ab":
            client.until_it_knows(newest, channel=channel)
            elsewhere.call(lambda: other.until_it_knows(newest, channel=channel))  # noqa: B023
            assert there(channel) == by_id([newest])


@pytest.mark.parametrize(
    "wrong", [{"id": "1"}, {"id": 2}, {**BOB}, {"name": "ann"}, {"id": True}, {"id": None}], ids=repr
)
def test_an_update_cannot_change_the_id(pairs: Pairs, wrong: Any) -> None:
    client = Client(pairs)
    with client.subscribe(ROOM, present=ANN) as presence, watch(ROOM) as changes:
        assert change(changes) == ([ANN], [], 1)
        with pytest.raises(ValueError):
            presence.update_present(wrong)
        presence.update_present({**ANN, "last": True})
        assert change(changes) == ([{**ANN, "last": True}], [], 1)
    assert not any("leave" in control for control in client.controls())


def test_an_update_is_checked_as_present_is(pairs: Pairs) -> None:
    with Client(pairs).subscribe(ROOM, present=ANN) as presence:
        for wrong in (7, "ann", [("id", 1)], None, "watch"):
            with pytest.raises(TypeError):
                presence.update_present(wrong)  # type: ignore[arg-type]
        for too_much in ({**ANN, "x": "x" * 1000}, {**ANN, "x": float("nan")}, {**ANN, "x": "\ud800"}):
            with pytest.raises(ValueError):
                presence.update_present(too_much)
        assert there() == by_id([ANN])


def test_whoever_is_not_present_cannot_update(pairs: Pairs) -> None:
    watcher, subscriber = Client(pairs), Client(pairs)
    with watcher.subscribe(ROOM, present="watch") as watching, subscriber.subscribe(ROOM) as subscribed:
        for forwarding in (watching, subscribed):
            with pytest.raises(RuntimeError):
                forwarding.update_present(ANN)
        assert there() == {}


def test_after_the_end_an_update_does_nothing(pairs: Pairs) -> None:
    by_close, by_client = Client(pairs), Client(pairs)
    ended = by_close.subscribe(ROOM, present=ANN)
    ended.close()
    left = by_client.subscribe(ROOM, present=BOB)
    by_client.close()
    until_there()
    with watch(ROOM) as changes:
        assert changes.get(DEADLINE).count == 0
        for forwarding, user in ((ended, ANN), (left, BOB)):  # the view cannot know that the client has just vanished
            forwarding.update_present(user)
        with Client(pairs).subscribe(ROOM, present=EVE):
            assert changes.get(DEADLINE).joined == [EVE]


def test_an_update_to_the_same_is_not_told_again(pairs: Pairs) -> None:
    client = Client(pairs)
    with client.subscribe(ROOM, present=ANN) as presence:
        client.until_it_knows(ANN)
        before = len(client.controls())
        presence.update_present({**ANN})
        with Client(pairs).subscribe(ROOM, present=BOB):
            client.until_it_knows(ANN, BOB)
            assert client.controls()[before:] == [{"join": {ROOM: [BOB]}, "count": {ROOM: 2}}]


# --- watch() ---------------------------------------------------------------------------------------------------------


@every_broker
def test_the_first_get_returns_at_once_all_who_are_there(pairs: Pairs, elsewhere: Elsewhere) -> None:
    elsewhere.guest(EVE)
    Client(pairs).subscribe(ROOM, present=ANN)
    Client(pairs).subscribe(ROOM, present=BOB)
    assert there() == by_id([ANN, BOB, EVE])
    with watch(ROOM) as changes:
        assert changes.ready()
        first = changes.get(0)
        assert by_id(first.joined) == by_id([ANN, BOB, EVE])
        assert (first.left, first.count) == ([], 3)


def test_the_first_get_of_an_empty_channel_returns_at_once_too() -> None:
    with watch(ROOM) as changes:
        assert change(changes, 0) == ([], [], 0)
        with pytest.raises(TimeoutError):
            changes.get(0.01)


InStep = Callable[[], tuple["Watch", Callable[[], Any]]]


@pytest.fixture
def in_step(broker: None) -> Iterator[InStep]:
    """Makes a watch that has taken what is there, and a function that waits until a later change has been told."""
    with ExitStack() as stack:

        def begin() -> tuple[Watch, Callable[[], Any]]:
            lagging, sync = stack.enter_context(watch(ROOM)), stack.enter_context(watch(ROOM))
            lagging.get(DEADLINE)
            sync.get(DEADLINE)
            return lagging, lambda: sync.get(DEADLINE)

        yield begin


def test_who_has_joined_and_left_between_two_gets_is_not_told(pairs: Pairs, in_step: InStep) -> None:
    lagging, told = in_step()
    with Client(pairs).subscribe(ROOM, present=ANN):
        assert told().joined == [ANN]
    assert told().left == [ANN]
    with Client(pairs).subscribe(ROOM, present=BOB):
        assert told().joined == [BOB]
        assert change(lagging) == ([BOB], [], 1)


def test_get_waits_for_a_change_if_who_has_joined_has_left_again(pairs: Pairs, in_step: InStep) -> None:
    lagging, told = in_step()
    with Client(pairs).subscribe(ROOM, present=ANN):
        assert told().joined == [ANN]
    assert told().left == [ANN]
    with pytest.raises(TimeoutError):
        lagging.get(0)
    assert not lagging.ready()


def test_who_has_changed_and_left_between_two_gets_has_left(pairs: Pairs, in_step: InStep) -> None:
    ann = Client(pairs)
    presence = ann.subscribe(ROOM, present=ANN)
    lagging, told = in_step()
    presence.update_present({**ANN, "typing": True})
    assert told().joined == [{**ANN, "typing": True}]
    ann.close()
    assert told().left
    joined, left, number = change(lagging)
    assert (joined, [user["id"] for user in left], number) == ([], [ANN["id"]], 0)


def test_who_has_left_and_come_and_left_between_two_gets_has_left(pairs: Pairs, in_step: InStep) -> None:
    ann = Client(pairs)
    ann.subscribe(ROOM, present=ANN)
    lagging, told = in_step()
    ann.close()
    assert told().left == [ANN]
    with Client(pairs).subscribe(ROOM, present=ANN):
        assert told().joined == [ANN]
    assert told().left == [ANN]
    assert change(lagging) == ([], [ANN], 0)


def test_who_has_left_and_come_back_between_two_gets_is_no_change(pairs: Pairs, in_step: InStep) -> None:
    ann = Client(pairs)
    ann.subscribe(ROOM, present=ANN)
    lagging, told = in_step()
    ann.close()
    assert told().left == [ANN]
    Client(pairs).subscribe(ROOM, present=ANN)
    assert told().joined == [ANN]
    Client(pairs).subscribe(ROOM, present=BOB)
    assert told().joined == [BOB]
    assert change(lagging) == ([BOB], [], 2)


def test_who_has_left_and_come_back_as_another_is_told_as_joined(pairs: Pairs, in_step: InStep) -> None:
    ann = Client(pairs)
    ann.subscribe(ROOM, present=ANN)
    lagging, told = in_step()
    ann.close()
    assert told().left == [ANN]
    Client(pairs).subscribe(ROOM, present={**ANN, "name": "Ann"})
    assert told().joined == [{**ANN, "name": "Ann"}]
    assert change(lagging) == ([{**ANN, "name": "Ann"}], [], 1)


def test_who_has_changed_to_and_fro_between_two_gets_is_told_with_the_last(pairs: Pairs, in_step: InStep) -> None:
    presence = Client(pairs).subscribe(ROOM, present=ANN)
    lagging, told = in_step()
    for typing in (True, False):
        presence.update_present({**ANN, "typing": typing})
        assert told().joined == [{**ANN, "typing": typing}]
    assert change(lagging) == ([{**ANN, "typing": False}], [], 1)


def test_watch_can_be_called_by_its_full_name_again_and_again() -> None:
    """The first call must not put something else in its place."""
    code = """
from django.conf import settings
settings.configure(WEBSOCKET_BROKER="memory://")
from django_websocket import pubsub
for number in range(3):
    with pubsub.watch("room") as changes:
        print(changes.get(timeout=10).count)
from django_websocket.pubsub import watch
print(all(callable(getattr(pubsub, name)) for name in pubsub.__all__))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (run.stdout.split(), run.returncode) == (["0", "0", "0", "True"], 0), run.stderr


def test_get_waits_no_longer_than_asked() -> None:
    with watch(ROOM) as changes:
        changes.get(0)
        begin = time.monotonic()
        with pytest.raises(TimeoutError), at_once():
            changes.get(0.05)
        assert time.monotonic() - begin > 0.04
        with pytest.raises(ValueError):
            changes.get(float("nan"))


def test_get_returns_none_after_close() -> None:
    changes = watch(ROOM)
    changes.close()
    assert changes.get() is None
    assert changes.get(0) is None
    changes.close()


def test_close_wakes_whoever_waits() -> None:
    with watch(ROOM) as changes:
        changes.get(0)
        waiting = gevent.spawn(changes.get)
        gevent.sleep(0)
        changes.close()
        assert waiting.get(timeout=DEADLINE) is None


def test_iteration_yields_changes_until_the_watch_is_closed(pairs: Pairs) -> None:
    got: list[Any] = []
    with watch(ROOM) as changes:
        reader = gevent.spawn(lambda: got.extend((one.joined, one.left, one.count) for one in changes))
        with Client(pairs).subscribe(ROOM, present=ANN):
            until(lambda: ([ANN], [], 1) in got)
        until(lambda: ([], [ANN], 0) in got)
    reader.join(DEADLINE)
    assert reader.ready()
    assert got == [([], [], 0), ([ANN], [], 1), ([], [ANN], 0)]


def test_select_tells_exactly_when_get_would_return(pairs: Pairs) -> None:
    with watch(ROOM) as changes:
        number = changes.fileno()
        for _ in range(2):
            assert standard.select([number], [], [], 0)[0] == [number]
            assert select([changes], [], [], 0)[0] == [changes]
        changes.get(0)
        assert standard.select([number], [], [], 0)[0] == []
        assert select([changes], [], [], 0)[0] == []
        with Client(pairs).subscribe(ROOM, present=ANN):
            assert select([changes], [], [], DEADLINE)[0] == [changes]
            assert standard.select([number], [], [], 0)[0] == [number]
            assert change(changes, 0) == ([ANN], [], 1)
            assert select([changes], [], [], 0)[0] == []
        assert select([changes, number], [], [], DEADLINE)[0] == [changes, number]
        assert change(changes, 0) == ([], [ANN], 0)
        changes.close()
        assert select([changes], [], [], 0)[0] == [changes]


@every_broker
def test_two_watches_are_told_the_same(pairs: Pairs, elsewhere: Elsewhere) -> None:
    with watch(ROOM) as one, watch(ROOM) as other:
        assert change(one) == change(other) == ([], [], 0)
        guest = elsewhere.guest(ANN)
        assert change(one) == change(other) == ([ANN], [], 1)
        one.close()
        elsewhere.call(guest.close)
        assert change(other) == ([], [ANN], 0)


def test_a_watch_that_has_ended_is_told_nothing(pairs: Pairs) -> None:
    with watch(ROOM) as other:
        other.get(0)
        changes = watch(ROOM)
        changes.close()
        with Client(pairs).subscribe(ROOM, present=ANN):
            assert change(other) == ([ANN], [], 1)
        assert changes.get(0) is None


@each_kind
def test_a_watch_learns_that_the_broker_was_closed(pairs: Pairs) -> None:
    changes, waits = watch(ROOM), watch(ROOM)
    changes.get(0)
    waits.get(0)
    waiting = gevent.spawn(waits.get)
    gevent.sleep(0)
    client = Client(pairs)
    client.subscribe(ROOM, present=ANN)
    assert changes.get(DEADLINE).joined == [ANN]
    assert waiting.get(timeout=DEADLINE).joined == [ANN]
    waiting = gevent.spawn(waits.get)
    gevent.sleep(0)
    with at_once():
        pubsub.process.close_all()
        with pytest.raises(BrokerError):
            changes.get(DEADLINE)
        with pytest.raises(BrokerError):
            waiting.get(timeout=DEADLINE)
    changes.close()
    waits.close()
    client.peer.close_frame(1012)
    until(lambda: not client.connection.connected)
    assert client.connection.close_code == 1012
    with watch(ROOM) as again:  # a new broker is made when it is needed
        assert again.get(DEADLINE).left == []


# --- what clients are told -------------------------------------------------------------------------------------------


@every_broker
def test_the_list_comes_behind_the_subscription_and_changes_behind_it(pairs: Pairs, elsewhere: Elsewhere) -> None:
    guest = elsewhere.guest(EVE)
    client = Client(pairs)
    with client.subscribe(ROOM, present=ANN):
        client.until_it_knows(ANN, EVE)
        elsewhere.call(guest.close)
        client.until_it_knows(ANN)
    kinds = [next(iter(control.keys() - {"count"})) for control in client.all_controls()]
    assert kinds[:2] == ["sub", "present"]
    assert set(kinds[2:]) <= {"join", "leave", "unsub"}
    assert all(control["count"].keys() == {ROOM} for control in client.controls())


def test_the_list_has_all_who_are_there_when_the_client_comes(pairs: Pairs) -> None:
    Client(pairs).subscribe(ROOM, present=BOB)
    Client(pairs).subscribe(ROOM, present=EVE)
    client = Client(pairs)
    client.subscribe(ROOM, present="watch")
    until(client.controls)
    assert by_id(client.controls()[0]["present"][ROOM]) == by_id([BOB, EVE])
    assert client.controls()[0]["count"] == {ROOM: 2}


def test_leaving_is_told_by_the_id_and_joining_by_the_member(pairs: Pairs) -> None:
    client = Client(pairs)
    with client.subscribe(ROOM, present=ANN):
        for user in (BOB, {"id": "\u2028 \u00e9\"'<"}, {"id": 1 - 2**53}):
            client.until_it_knows(ANN)
            before = len(client.controls())
            with Client(pairs).subscribe(ROOM, present=user):
                client.until_it_knows(ANN, user)
            client.until_it_knows(ANN)
            assert client.controls()[before:] == [
                {"join": {ROOM: [user]}, "count": {ROOM: 2}},
                {"leave": {ROOM: [user["id"]]}, "count": {ROOM: 1}},
            ]


@each_kind
def test_changes_come_at_most_twice_a_second_and_together(pairs: Pairs, true_pace: None) -> None:
    client = Client(pairs)
    with client.subscribe(ROOM, present="watch"), ExitStack() as stack:
        client.until_it_knows()
        before, begin = len(client.controls()), time.monotonic()
        users = [{"id": number} for number in range(60)]
        for user in users:
            [forwarding] = crowd(ROOM, [user])
            stack.enter_context(forwarding)
            gevent.sleep(0.01)
        client.until_it_knows(*users)
        news = client.controls()[before:]
        took = time.monotonic() - begin
    assert len(news) <= 2 + took / 0.5
    assert sum(len(control["join"][ROOM]) for control in news) == 60


def test_a_watch_that_begins_while_somebody_changes_for_a_moment_has_what_is_told_last(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(pairs)
    with client.subscribe(ROOM, present=ANN) as presence, Client(pairs).subscribe(ROOM, present=BOB) as other:
        client.until_it_knows(ANN, BOB)
        monkeypatch.setattr(room, "INTERVAL", 2.0)
        presence.update_present({**ANN, "typing": True})  # told at once, and the rest two seconds later
        client.until_it_knows({**ANN, "typing": True}, BOB)
        other.update_present({**BOB, "typing": True})
        until_there({**ANN, "typing": True}, {**BOB, "typing": True})
        until(lambda: presence_of(current_hub())._rooms[ROOM]._new)
        with watch(ROOM) as changes:
            known = by_id(changes.get(DEADLINE).joined)
            assert known == by_id([{**ANN, "typing": True}, {**BOB, "typing": True}])
            other.update_present(BOB)
            change = changes.get(DEADLINE)
            assert (change.joined, change.left, change.count) == ([BOB], [], 2)


def test_who_comes_and_goes_between_two_pieces_of_news_is_not_told(pairs: Pairs, true_pace: None) -> None:
    client = Client(pairs)
    with client.subscribe(ROOM, present="watch"), watch(ROOM) as changes:
        client.until_it_knows()
        changes.get(DEADLINE)
        for _ in range(3):  # one of them lies between two pieces, unless the machine is very slow
            with Client(pairs).subscribe(ROOM, present=ANN):
                pass
            until_there()
        with Client(pairs).subscribe(ROOM, present=BOB):
            client.until_it_knows(BOB)
    joined = [user for control in client.controls() for user in control.get("join", {}).get(ROOM, ())]
    assert joined.count(ANN) < 3


def test_clients_of_views_without_present_are_told_nothing(pairs: Pairs) -> None:
    client = Client(pairs)
    with client.subscribe(ROOM), Client(pairs).subscribe(ROOM, present=ANN), watch(ROOM) as changes:
        assert changes.get(DEADLINE).count == 1
        publish(ROOM, "the end")
        until(lambda: any("the end" in str(message) for message in client.messages()))
    assert client.controls() == []


def test_a_client_is_told_only_of_the_channels_with_present(pairs: Pairs) -> None:
    client = Client(pairs)
    with client.subscribe("with", present=ANN), client.subscribe("without"):
        with Client(pairs).subscribe("without", "with", present=BOB):
            client.until_it_knows(ANN, BOB, channel="with")
        client.until_it_knows(ANN, channel="with")
    assert not any("without" in control["count"] for control in client.controls())


def test_a_client_is_told_nothing_when_its_subscription_has_ended(pairs: Pairs) -> None:
    client, other = Client(pairs), Client(pairs)
    with client.subscribe(ROOM, present=ANN):
        client.until_it_knows(ANN)
    other.subscribe(ROOM, present=BOB)
    other.until_it_knows(BOB)
    with Client(pairs).subscribe(ROOM, present=EVE):
        other.until_it_knows(BOB, EVE)
    client.websocket.send("the end")
    until(lambda: client.messages()[-1] == "sthe end")
    kinds = [next(iter(control)) for control in client.all_controls()]
    assert kinds[-1] == "unsub"


@pytest.mark.parametrize(
    "agreement",
    [Agreement(), Agreement(takeover=True), Agreement(window_bits=9), Agreement(takeover=True, peer_takeover=True)],
    ids=repr,
)
def test_compressed_clients_are_told_the_same(pairs: Pairs, agreement: Agreement) -> None:
    others = [{"id": f"user {number}", "text": "much the same " * 20} for number in range(30)]
    client, plain = Client(pairs, agreement=agreement), Client(pairs)
    with client.subscribe(ROOM, present=ANN), plain.subscribe(ROOM, present=BOB):
        with ExitStack() as stack:
            for forwarding in crowd(ROOM, others):
                stack.enter_context(forwarding)
            client.websocket.send("own " * 300)
            late = Client(pairs, agreement=agreement)
            with late.subscribe(ROOM, present="watch"):
                for each in (client, plain, late):
                    each.until_it_knows(ANN, BOB, *others)
        client.until_it_knows(ANN, BOB)
    assert "s" + "own " * 300 in client.messages()
    if agreement.plain_below < 5000:
        assert any(frame.rsv for frame in client.peer.frames)


# --- clients that do not read ----------------------------------------------------------------------------------------


def stuck(pairs: Pairs, **options: Any) -> Client:
    """Return a client that reads only when the test does, and for which few bytes may wait."""
    return Client(pairs, narrow=True, limits=Limits(outbox_size=50_000), **options)


@pytest.fixture
def few_bytes_wait() -> Iterator[None]:
    with override_settings(WEBSOCKET_OUTBOX_SIZE=50_000):
        yield


def large(number: int, text: str = ".") -> dict[str, Any]:
    return {"id": number, "text": text * 900}


@pytest.mark.parametrize("on_slow", ["close", "drop_oldest", "latest"])
def test_a_client_that_does_not_read_gets_the_whole_list_when_it_does(
    pairs: Pairs, few_bytes_wait: None, on_slow: Any
) -> None:
    client = stuck(pairs)
    with client.subscribe(ROOM, present=ANN, on_slow=on_slow), watch(ROOM) as changes:
        known: dict[Any, Any] = {}

        def until_told(*users: Any) -> None:
            expected = by_id([ANN, *users])

            def told() -> bool:
                if changes.ready():
                    one = changes.get(0)
                    for user in one.left:
                        known.pop(json.dumps(user["id"]), None)
                    known.update(by_id(one.joined))
                return known == expected

            until(told)

        guests = crowd(ROOM, [large(number) for number in range(200)])
        until_told(*[large(number) for number in range(200)])
        for text in "abc":
            for number, guest in enumerate(guests):
                guest.update_present(large(number, text))
            until_told(*[large(number, text) for number in range(200)])
        for guest in guests[100:]:
            guest.close()
        until_told(*[large(number, "c") for number in range(100)])
        assert client.connection.close_code is None
        client.until_it_knows(ANN, *[large(number, "c") for number in range(100)])
        assert client.connection.close_code is None
        for guest in guests:
            guest.close()
        client.until_it_knows(ANN)


def test_many_who_come_at_once_do_not_close_a_client_that_does_not_read(pairs: Pairs, few_bytes_wait: None) -> None:
    client = stuck(pairs)
    with client.subscribe(ROOM, present=ANN), watch(ROOM) as changes:
        client.until_it_knows(ANN)
        changes.get(DEADLINE)
        guests = crowd(ROOM, [large(number) for number in range(300)])
        seen = 0
        while seen < 300:
            seen += len(changes.get(DEADLINE).joined)
        assert client.connection.close_code is None
        client.until_it_knows(ANN, *[large(number) for number in range(300)])
        for guest in guests:
            guest.close()


def test_the_first_list_does_not_close_a_client_although_it_is_large(pairs: Pairs, few_bytes_wait: None) -> None:
    guests = crowd(ROOM, [large(number) for number in range(300)])
    client = stuck(pairs)
    with client.subscribe(ROOM, present="watch"):
        publish(ROOM, "the end")
        delivered()
        assert client.connection.close_code is None
        client.until_it_knows(*[large(number) for number in range(300)])
        assert any("the end" in str(message) for message in client.messages())
    for guest in guests:
        guest.close()


# --- many users ------------------------------------------------------------------------------------------------------


@every_broker
def test_of_more_than_1000_users_1000_are_told_and_all_are_counted(pairs: Pairs) -> None:
    users = [{"id": number} for number in range(1100)]
    early, late = Client(pairs), Client(pairs)
    with early.subscribe(ROOM, present="watch"), watch(ROOM) as changes:
        changes.get(DEADLINE)
        guests = crowd(ROOM, users)
        assert count(ROOM) == 1100
        listed = present(ROOM)
        assert len(listed) == len(by_id(listed)) == 1000
        assert by_id(listed).items() <= by_id(users).items()
        joined: list[Any] = []
        while len(joined) < 1100:
            one = changes.get(DEADLINE)
            joined += one.joined
        assert one.count == 1100
        assert by_id(joined) == by_id(users)
        with late.subscribe(ROOM, present="watch"):
            until(late.controls)
            [first] = late.controls()
            assert first["count"] == {ROOM: 1100}
            assert len(by_id(first["present"][ROOM])) == len(first["present"][ROOM]) == 1000
            for guest in guests[:200]:
                guest.close()
            until(lambda: late.controls()[-1]["count"] == early.controls()[-1]["count"] == {ROOM: 900})
        assert len(there()) == 900
        for guest in guests[200:]:
            guest.close()
        until(lambda: early.controls()[-1]["count"] == {ROOM: 0})
    until_there()


# --- hostile names ---------------------------------------------------------------------------------------------------

HOSTILE = [
    " ",
    "a b\n- c d\r\n",
    "\n",
    "\0",
    "u",
    "'\"\\",
    "\u2028\u2029",
    "\U0001f600",
    "</script>",
    "*",
    "room:{1}",
    "{",
    "}{",
    "{}",
    "{a}{b}",
    "%s %d",
    "__proto__",
    "x" * 4000,
]


@every_broker
def test_channels_may_have_any_name(pairs: Pairs, elsewhere: Elsewhere) -> None:
    watcher = elsewhere.client()
    elsewhere.call(lambda: watcher.subscribe(*HOSTILE, present="watch"))
    client = Client(pairs)
    with client.subscribe(*HOSTILE, present=ANN):
        for channel in HOSTILE:
            assert there(channel) == by_id([ANN])
            client.until_it_knows(ANN, channel=channel)
            elsewhere.call(lambda: watcher.until_it_knows(ANN, channel=channel))  # noqa: B023
    for channel in HOSTILE:
        until_there(channel=channel)
        elsewhere.call(lambda: watcher.until_it_knows(channel=channel))  # noqa: B023


@each_kind
def test_a_channel_may_have_a_very_long_name(pairs: Pairs) -> None:
    long = "x" * 65536
    client = Client(pairs)
    with client.subscribe(long, present=ANN), watch(long) as changes:
        assert there(long) == by_id([ANN])
        assert change(changes) == ([ANN], [], 1)
        client.until_it_knows(ANN, channel=long)
    until_there(channel=long)


@every_broker
def test_ids_and_names_may_be_any_text(pairs: Pairs, elsewhere: Elsewhere) -> None:
    users = [{"id": text[:300], "name": text[:300], text[:300]: 1} for text in HOSTILE]
    watcher = elsewhere.client()
    elsewhere.call(lambda: watcher.subscribe(ROOM, present="watch"))
    with ExitStack() as stack:
        client = Client(pairs)
        stack.enter_context(client.subscribe(ROOM, present="watch"))
        guests = crowd(ROOM, users)
        assert there() == by_id(users)
        client.until_it_knows(*users)
        elsewhere.call(lambda: watcher.until_it_knows(*users))
        for guest in guests:
            guest.close()
        client.until_it_knows()
        elsewhere.call(watcher.until_it_knows)


# --- sessions, and who comes back ------------------------------------------------------------------------------------


@pytest.fixture
def grace(monkeypatch: pytest.MonkeyPatch) -> float:
    """Shorten the time that clients have to come back; return it in seconds."""
    monkeypatch.setattr("django_websocket.pubsub.presence.GRACE", 0.3)
    return 0.3


@pytest.fixture
def no_end_of_grace(broker: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have only those leave who leave at once."""
    monkeypatch.setattr("django_websocket.pubsub.presence.GRACE", NEVER)
    yield
    for hub in pubsub.process.hubs.values():  # those who are held all the same after a test that has failed
        if hub.here and hub.presence is not None:
            for _, room, guest in hub.presence._held:
                room.enrolment.leave(guest)


BY_CLIENT = [1000, 1001, 1006, 1011, 4401, 4403, 4404, 4429]
BY_SERVER = [1000, 1001, 1011, 1012, 4401, 4403, 4404, 4429]
AT_ONCE = {1000, 4401, 4403, 4404}
ENDS = [*[("by the client", code) for code in BY_CLIENT], *[("by the server", code) for code in BY_SERVER]]


def end(client: Client, how: str, code: int) -> None:
    (client.close if how == "by the client" else client.be_closed)(code)


CLEAN = [("by the client", 1000), *[("by the server", code) for code in BY_SERVER if code in AT_ONCE]]


@pytest.mark.parametrize(("how", "code"), CLEAN)
def test_a_clean_end_is_told_at_once(pairs: Pairs, no_end_of_grace: None, how: str, code: int) -> None:
    client = Client(pairs, "a session")
    client.subscribe(ROOM, present=ANN)
    end(client, how, code)
    until_there()


@pytest.mark.parametrize(("how", "code"), [each for each in ENDS if each[1] not in AT_ONCE])
def test_a_client_with_a_session_has_time_to_come_back(pairs: Pairs, grace: float, how: str, code: int) -> None:
    client = Client(pairs, "a session")
    client.subscribe(ROOM, present=ANN)
    with watch(ROOM) as changes:
        assert change(changes) == ([ANN], [], 1)
        begin = time.monotonic()
        end(client, how, code)
        assert change(changes) == ([], [ANN], 0)
        assert time.monotonic() - begin > grace * 0.95
    assert there() == {}


@pytest.mark.parametrize(("how", "code"), [each for each in ENDS if each[1] != 1012])
@pytest.mark.parametrize("kind", ["plain", "no session"])
def test_without_a_session_the_leave_is_told_at_once(
    pairs: Pairs, no_end_of_grace: None, kind: str, how: str, code: int
) -> None:
    client = Client(pairs, plain=kind == "plain")
    client.subscribe(ROOM, present=ANN)
    end(client, how, code)
    until_there()


@pytest.mark.parametrize("options", [{"plain": True}, {}, {"session": "s"}], ids=repr)
def test_a_restart_gives_everybody_time_to_come_back(pairs: Pairs, grace: float, options: dict[str, Any]) -> None:
    client = Client(pairs, **options)
    client.subscribe(ROOM, present=ANN)
    begin = time.monotonic()
    client.be_closed(1012)
    until_there()
    assert time.monotonic() - begin > grace * 0.95


@pytest.mark.parametrize("session", ["", 7, True, ["s"], {"s": 1}, "x" * 65, "x" * 10_000], ids=repr)
def test_what_is_no_session_counts_as_none(pairs: Pairs, no_end_of_grace: None, session: Any) -> None:
    client = Client(pairs, session)
    client.subscribe(ROOM, present=ANN)
    client.until_it_knows(ANN)
    client.close(1006)
    until_there()


@pytest.mark.parametrize("session", ["x", "x" * 64, "\U0001f600" * 64, " \n\0", "-", "\ud800"], ids=ascii)
def test_any_text_of_64_characters_is_a_session(pairs: Pairs, grace: float, session: str) -> None:
    client = Client(pairs, session)
    client.subscribe(ROOM, present=ANN)
    begin = time.monotonic()
    client.close(1006)
    until_there()
    assert time.monotonic() - begin > grace * 0.95


@every_broker
def test_a_reload_is_not_told(pairs: Pairs, no_end_of_grace: None) -> None:
    watcher = Client(pairs)
    with watcher.subscribe(ROOM, present=BOB), watch(ROOM) as changes:
        assert changes.get(DEADLINE).count == 1
        for code in (1001, 1006):
            client = Client(pairs, "a session")
            client.subscribe(ROOM, present=ANN)
            client.close(code)
            assert there() == by_id([ANN, BOB])
        client = Client(pairs, "a session")
        client.subscribe(ROOM, present=ANN)
        assert change(changes) == ([ANN], [], 2)
        watcher.until_it_knows(ANN, BOB)
        client.close()
        until_there(BOB)
        assert change(changes) == ([], [ANN], 1)
    assert sum("leave" in control for control in watcher.controls()) == 1


@every_broker
def test_a_session_that_has_come_back_elsewhere_leaves_at_once(
    pairs: Pairs, elsewhere: Elsewhere, no_end_of_grace: None
) -> None:
    with watch(ROOM) as changes:
        assert change(changes) == ([], [], 0)
        client = Client(pairs, "a session")
        client.subscribe(ROOM, present=ANN)
        assert change(changes) == ([ANN], [], 1)
        client.close(1006)
        again = elsewhere.guest(ANN, "a session")
        with Client(pairs).subscribe(ROOM, present=BOB):
            assert change(changes) == ([BOB], [], 2)
        assert change(changes) == ([], [BOB], 1)
        elsewhere.call(again.close)
        assert change(changes) == ([], [ANN], 0)
    assert there() == {}


@every_broker
def test_a_session_that_tells_something_else_elsewhere_leaves_at_once_too(
    pairs: Pairs, elsewhere: Elsewhere, no_end_of_grace: None
) -> None:
    client = Client(pairs, "a session")
    client.subscribe(ROOM, present=ANN)
    client.close(1001)
    again = elsewhere.guest({**ANN, "page": 2}, "a session")
    assert there() == by_id([{**ANN, "page": 2}])
    elsewhere.call(again.close)
    until_there()


@each_kind
@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_session_whose_old_connection_has_not_ended_yet_leaves_at_once(
    pairs: Pairs, elsewhere: Elsewhere, no_end_of_grace: None, where: str
) -> None:
    """A phone that changes from one network to another has a new connection long before the old one is found dead."""
    old = Client(pairs, "a session")
    old.subscribe(ROOM, present=ANN)
    if where == "here":
        new = Client(pairs, "a session")
        new.subscribe(ROOM, present=ANN)
        new.close()
    else:
        new = elsewhere.guest(ANN, "a session")
        elsewhere.call(new.close)
    assert old.connection.connected
    until_there()


@each_kind
@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_an_old_connection_that_ends_after_the_new_one_has_begun_is_not_waited_for(
    pairs: Pairs, elsewhere: Elsewhere, no_end_of_grace: None, where: str
) -> None:
    old = Client(pairs, "a session")
    old.subscribe(ROOM, present=ANN)
    with watch(ROOM) as changes:
        assert change(changes) == ([ANN], [], 1)
        if where == "here":
            new = Client(pairs, "a session")
            new.subscribe(ROOM, present={**ANN, "new": True})
        else:
            new = elsewhere.guest({**ANN, "new": True}, "a session")
        assert change(changes) == ([{**ANN, "new": True}], [], 1)  # so that the other process knows it
        old.close(1006)
        assert there() == by_id([{**ANN, "new": True}])
        if where == "here":
            new.close()
        else:
            elsewhere.call(new.close)
        until_there()


@each_kind
def test_two_tabs_of_a_user_that_come_back_elsewhere_at_once_leave_at_once(
    pairs: Pairs, elsewhere: Elsewhere, no_end_of_grace: None
) -> None:
    """As when a worker ends, and all its clients connect again."""
    for session in ("tab 1", "tab 2"):
        client = Client(pairs, session)
        client.subscribe(ROOM, present=ANN)
        client.be_closed(1012)
    tabs = [elsewhere.client(session) for session in ("tab 1", "tab 2")]

    def come_back() -> None:
        coming = [gevent.spawn(tab.subscribe, ROOM, present=ANN) for tab in tabs]
        gevent.joinall(coming, raise_error=True)

    elsewhere.call(come_back)
    assert there() == by_id([ANN])
    for tab in tabs:
        elsewhere.call(tab.close)
    until_there()


@each_kind
def test_the_same_user_by_another_tab_keeps_the_leave_from_being_told(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_websocket.pubsub.presence.GRACE", 2.0)  # the other tab comes within it
    with watch(ROOM) as changes:
        changes.get(DEADLINE)
        first = Client(pairs, "tab 1")
        first.subscribe(ROOM, present=ANN)
        assert change(changes) == ([ANN], [], 1)
        first.close(1006)
        Client(pairs, plain=True).subscribe(ROOM, present=ANN)
        other = Client(pairs, "other")
        other.subscribe(ROOM, present=BOB)
        assert change(changes) == ([BOB], [], 2)
        other.close(1006)  # whose grace ends after that of the first one
        assert change(changes) == ([], [BOB], 1)
        assert there() == by_id([ANN])


def test_a_user_is_there_while_one_of_its_tabs_may_come_back(pairs: Pairs, grace: float) -> None:
    first, second = Client(pairs, "tab 1"), Client(pairs, "tab 2")
    first.subscribe(ROOM, present={**ANN, "tab": 1})
    second.subscribe(ROOM, present={**ANN, "tab": 2})
    begin = time.monotonic()
    first.close(1006)
    second.close(1000)
    until_there()
    assert time.monotonic() - begin > grace * 0.95


def test_sessions_of_other_users_make_no_difference(pairs: Pairs, grace: float) -> None:
    """Whoever guesses or takes over a session cannot have another user leave."""
    client = Client(pairs, "a session")
    client.subscribe(ROOM, present=ANN)
    begin = time.monotonic()
    client.close(1006)
    thief = Client(pairs, "a session")
    thief.subscribe(ROOM, present=BOB)
    thief.close(1000)
    until_there()
    assert time.monotonic() - begin > grace * 0.95


def test_the_end_of_a_block_is_told_at_once_while_the_connection_goes_on(pairs: Pairs, no_end_of_grace: None) -> None:
    client = Client(pairs, "a session")
    with client.subscribe(ROOM, present=ANN):
        assert there() == by_id([ANN])
    until_there()
    forwarding = client.subscribe(ROOM, present=ANN)
    forwarding.close()
    until_there()
    assert client.connection.connected


def test_a_client_that_has_left_before_it_was_there_is_not_there(pairs: Pairs) -> None:
    from django_websocket.exceptions import ConnectionClosed

    client = Client(pairs, "a session")
    client.close()
    with pytest.raises(ConnectionClosed):
        client.subscribe(ROOM, present=ANN)
    until_there()


@each_kind
def test_each_channel_of_a_client_that_vanishes_has_its_grace(pairs: Pairs, grace: float) -> None:
    client = Client(pairs, "a session")
    client.subscribe("a", "b", present=ANN)
    client.subscribe("c", present=BOB)
    begin = time.monotonic()
    client.close(1006)
    for channel in "abc":
        until_there(channel=channel)
    assert time.monotonic() - begin > grace * 0.95


# --- Redis -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def admin(redis_url: str, setting: Any) -> Iterator[Any]:
    """A client of the Redis that all tests have."""
    with Redis.from_url(redis_url) as client:
        yield client


def keys_of(admin: Any, setting: Mapping[str, Any]) -> list[bytes]:
    return sorted(admin.scan_iter(f"*{setting['prefix']}*"))


@pytest.mark.parametrize("setting", ["redis", "encrypted"], indirect=True)
def test_nothing_stays_in_redis_of_a_room_that_is_empty(
    pairs: Pairs, elsewhere: Elsewhere, setting: Any, admin: Any, grace: float
) -> None:
    with watch("watched"):
        for channel in (ROOM, "a b\n"):
            here = Client(pairs, "s")
            here.subscribe(channel, present=ANN)
            there = elsewhere.guest(BOB, "s", channel)
            assert len(keys_of(admin, setting)) == 2  # the roster and the leases
            here.close(1006)
            elsewhere.call(there.close)
            until_there(channel=channel)
            assert len(keys_of(admin, setting)) == 1
    until(lambda: not keys_of(admin, setting))


@pytest.mark.parametrize("setting", ["cluster"], indirect=True)
def test_nothing_stays_in_a_cluster_of_a_room_that_is_empty(pairs: Pairs, setting: Any, cluster: Cluster) -> None:
    def names() -> set[bytes]:
        found = set()
        for node in cluster.nodes:  # replicas among them
            with Redis(port=node.port) as client:
                found |= set(keys_of(client, setting))
        return found

    channels = [ROOM, "{1}", "}{", "room:{}"]
    with Client(pairs).subscribe(*channels, present=ANN):
        assert len(names()) == len(channels) + 1
    until(lambda: not names())


@on_redis
def test_keys_end_by_themselves(pairs: Pairs, setting: Any, admin: Any) -> None:
    with Client(pairs).subscribe(ROOM, present=ANN):
        names = keys_of(admin, setting)
        assert len(names) == 2
        for name in names:
            assert 0 < admin.ttl(name) <= 600, name
        [roster] = [name for name in names if ROOM.encode() in name]
        assert 60 < admin.ttl(roster) <= 300


@pytest.mark.parametrize("setting", ["encrypted"], indirect=True)
def test_with_encryption_nobody_can_read_who_is_there(
    pairs: Pairs, elsewhere: Elsewhere, setting: Any, admin: Any
) -> None:
    secret = "very-secret"
    user = {"id": f"{secret}-id", "name": f"{secret}-name"}
    told: list[Any] = []
    with admin.pubsub() as listener:
        listener.psubscribe(f"*{setting['prefix']}*")
        listener.get_message(timeout=DEADLINE)
        guest = elsewhere.guest({**user, "tab": 2}, f"{secret}-other-session")
        client = Client(pairs, f"{secret}-session")
        with client.subscribe(ROOM, present=user) as presence:
            presence.update_present({**user, "typing": f"{secret}-text"})
            client.until_it_knows({**user, "typing": f"{secret}-text"})
            dumped = [(name, admin.type(name), contents(admin, name)) for name in keys_of(admin, setting)]
            assert len(dumped) == 2
        until_there({**user, "tab": 2})
        elsewhere.call(guest.close)
        until_there()
        while (message := listener.get_message(timeout=0.1)) is not None:
            told.append(message)
    assert len(told) >= 3
    assert secret not in str(dumped) + str(told)


def contents(admin: Any, name: bytes) -> Any:
    """Return what a key holds."""
    return admin.hgetall(name) if admin.type(name) == b"hash" else admin.zrange(name, 0, -1)


@pytest.mark.parametrize("setting", ["encrypted"], indirect=True)
def test_with_encryption_ids_cannot_be_guessed(pairs: Pairs, setting: Any, admin: Any) -> None:
    """The keys of users are the same in no two rooms, nor with another encryption key, so that nobody can try ids."""
    found = []
    for number, options in enumerate([setting, {**setting, "encryption_keys": [ENCRYPTION_KEY[::-1]]}]):
        with override_settings(WEBSOCKET_BROKER=options):
            for channel in (f"a{number}", f"b{number}"):
                [guest] = crowd(channel, [ANN])
                [name] = [name for name in keys_of(admin, setting) if name.endswith(channel.encode())]
                found += [field for field in admin.hkeys(name) if field not in (b"s", b"p")]
                guest.close()
                until_there(channel=channel)
            until(lambda: not pubsub.process.current_hub().channels)
            pubsub.process.close_all()
    assert len(found) == len(set(found)) == 4


@pytest.mark.parametrize("setting", ["encrypted"], indirect=True)
def test_a_user_is_there_once_while_encryption_keys_are_replaced(
    pairs: Pairs, elsewhere: Elsewhere, setting: Any
) -> None:
    """Some processes have the new key first, and others have it behind the old one. Only the number may be too high."""
    old, new = setting["encryption_keys"][0], "another key that has not less than 32 characters"
    with override_settings(WEBSOCKET_BROKER={**setting, "encryption_keys": [old, new]}):
        client = Client(pairs)
        client.subscribe(ROOM, present=ANN)
        assert there() == by_id([ANN])
    with override_settings(WEBSOCKET_BROKER={**setting, "encryption_keys": [new, old]}):
        other = Client(pairs)
        other.subscribe(ROOM, present=ANN)
        try:
            assert present(ROOM) == [ANN]
            assert count(ROOM) == 2
        finally:
            for each in (client, other):
                each.close()
            until(lambda: not [name for hub in pubsub.process.hubs.values() for name in hub.channels])
            pubsub.process.close_all()


# --- brokers of a site's own -----------------------------------------------------------------------------------------


class SimpleBroker(MemoryBroker):
    """A broker that only publishes and subscribes, as those are that were written before there were rosters."""

    change_roster = read_roster = renew_lease = property()


def test_a_broker_without_rosters_is_an_error_that_names_the_remedy(pairs: Pairs) -> None:
    with in_use({"class": f"{__name__}.SimpleBroker", "url": "memory://"}):
        client = Client(pairs)
        for call in (
            lambda: present(ROOM),
            lambda: count(ROOM),
            lambda: watch(ROOM),
            lambda: client.subscribe(ROOM, present=ANN),
            lambda: client.subscribe(ROOM, present="watch"),
            lambda: client.websocket.listen(ROOM, present=ANN),
        ):
            with pytest.raises(BrokerError, match="Redis") as raised:
                call()
            assert "WEBSOCKET_BROKER" in str(raised.value)
        with client.subscribe(ROOM):
            assert publish(ROOM, "still works") == 1


# --- nothing is left -------------------------------------------------------------------------------------------------


def greenlets() -> list[str]:
    """Return what the greenlets of this loop do that have not ended, apart from those that sum up the log."""
    gc.collect()
    found = [thing for thing in gc.get_objects() if type(thing) is gevent.Greenlet and not thing.dead]
    runs = [getattr(each, "_run", None) for each in found if each.parent is get_hub()]
    return sorted(repr(run) for run in runs if run is not log._sum_up)


@every_broker
def test_nothing_is_left_of_many_who_have_come_and_gone(pairs: Pairs, grace: float) -> None:
    hub = pubsub.process.current_hub()
    kept = [f"keeps the connections {number}" for number in range(20)]  # to each node of a Cluster
    with subscribe(*kept), Client(pairs).subscribe(*kept, present=ANN):
        present(ROOM)
    with subscribe(*kept):
        presence = hub.presence
        assert isinstance(presence, Presence)
        until(lambda: presence not in services)
        before = greenlets()
        for turn in range(3):
            for number in range(15):
                client = Client(pairs, f"{number % 4}", plain=number % 3 == 0)
                client.subscribe(f"room:{turn}", f"room:{number % 2}", present={"id": number})
                if number % 5 == 0:
                    with watch(f"room:{turn}") as changes:
                        changes.get(DEADLINE)
                client.close([1000, 1006, 1001][number % 3])
        until(lambda: not presence._rooms)
        until(lambda: presence not in services)
        assert not presence._held
        assert list(hub.channels) == kept
        with suppress(AssertionError):
            until(lambda: {*greenlets()} <= {*before})
        assert {*greenlets()} - {*before} == set()
