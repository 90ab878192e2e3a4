"""Channels' consumers on this server: in WEBSOCKET_URLCONF, and in a project's asgi.py."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote

import pytest
from django.core.checks import run_checks
from django.test import override_settings
from redis import Redis

from .support.clients import RawClient, Response, fetch, fetch_json, notes, request
from .support.fixtures import SITE, Raw, StartPostgreSQL, StartSite
from .support.frames import BINARY, PING, PONG, close_frame, frame
from .support.postgres import Database, settings_of
from .support.servers import Server, redis_server
from .support.waiting import DEADLINE, eventually
from .test_logins import SOON, log_in

OURS = "django_websocket.channels.ChannelLayer"
APPS = {"urlconf": "testsite.wsgi:application", "asgi.py": "testsite.consumers:application"}
CAPACITY = 50
PLAIN = ["sync", "async"]
WAYS = ["own-call", "own-dispatch", "called", "class", "function", "base", "send"]
ALL = [*PLAIN, *(f"{kind}-{way}" for way in WAYS for kind in PLAIN)]


def settings(how: str, redis_url: str, **changes: Any) -> dict[str, Any]:
    """Return the settings of a server with consumers."""
    # channels_redis has Redis wait 5 seconds for a message, and redis-py 8 gives up after as many
    theirs = {"hosts": [{"address": redis_url, "socket_timeout": 60}]}
    from testsite import settings

    return {
        "WEBSOCKET_URLCONF": "testsite.consumers" if how == "urlconf" else "",
        "WEBSOCKET_BROKER": redis_url,
        "WEBSOCKET_CLOSE_TIMEOUT": 0.3,
        "MIDDLEWARE": ["testsite.consumers.pages", *settings.MIDDLEWARE],
        "CHANNEL_LAYERS": {
            "default": {"BACKEND": OURS, "CONFIG": {"capacity": CAPACITY}},
            "core": {"BACKEND": "channels_redis.core.RedisChannelLayer", "CONFIG": theirs},
            "pubsub": {"BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer", "CONFIG": theirs},
            "theirs": {"BACKEND": "channels.layers.InMemoryChannelLayer"},
        },
        **SOON,
        **changes,
    }


@pytest.fixture(scope="module")
def in_urlconf(start_site: StartSite, redis_url: str) -> Iterator[Server]:
    with start_site(settings("urlconf", redis_url), app=APPS["urlconf"]) as server:
        yield server


@pytest.fixture(scope="module")
def in_asgi(start_site: StartSite, redis_url: str) -> Iterator[Server]:
    with start_site(settings("asgi.py", redis_url), app=APPS["asgi.py"]) as server:
        yield server


@pytest.fixture(params=list(APPS))
def server(request: pytest.FixtureRequest) -> Server:
    """Either way of serving consumers."""
    found: Server = request.getfixturevalue("in_urlconf" if request.param == "urlconf" else "in_asgi")
    return found


@pytest.fixture(params=PLAIN)
def kind(request: pytest.FixtureRequest) -> str:
    """Whether the consumer is synchronous."""
    found: str = request.param
    return found


@pytest.fixture
def asked(redis: Server) -> Iterator[Redis]:
    with Redis(port=redis.port) as client:
        yield client


def where(kind: str, key: str, **steps: Sequence[Any]) -> str:
    """Return the path of a consumer that takes these steps on its events."""
    more = "".join(f"&{event}={quote(json.dumps(listed))}" for event, listed in steps.items())
    return f"/{kind}/?key={key}{more}"


def take(client: RawClient, *steps: Any) -> None:
    """Have the consumer take these steps in `receive`."""
    client.send(frame(json.dumps(steps)))


def ask(client: RawClient, *steps: Any) -> str:
    """Have the consumer take these steps; return the message that comes next."""
    take(client, *steps)
    return client.frame().text.removesuffix("!")


def refused(server: Server, raw: Raw, path: str) -> Response:
    client = raw(server)
    client.send(request(path))
    return client.response()


def said(text: str) -> dict[str, str]:
    return {"type": "said", "text": text}


def noted(server: Server, key: str, count: int) -> list[str]:
    """Return the notes, once there are as many, without those of the ways in which a consumer is called."""
    found: list[str] = []

    def enough() -> bool:
        found[:] = [note for note in notes(server.port, key, 0) if note not in ("called", "dispatch")]
        return len(found) >= count

    eventually(enough)
    return found


def settled(server: Server) -> str:
    """Return the log, once what the tests before have caused stands there."""
    log = server.log
    time.sleep(0.05)
    while log != (log := server.log):
        time.sleep(0.05)
    return log


def lines_since(server: Server, before: str) -> list[str]:
    """Return what was logged since, without notes and without the counts of what earlier tests have caused."""
    lines = settled(server)[len(before) :].splitlines()
    return [line for line in lines if line and not re.match(r"note |\d+ more in 60 seconds: ", line)]


# --- messages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["sync", "async", "sync-keyword", "async-keyword", "sync-bare", "async-bare"])
def test_consumer_of_each_kind_echoes(server: Server, raw: Raw, key: str, way: str) -> None:
    client = raw(server)
    client.open(f"/echo/{way}/?key={key}")
    for message in ("hello", "", "Grüße", b"\0\xff", b"", "x" * 100_000):
        client.send(frame(message))
        received = client.frame()
        assert received.payload == (message if isinstance(message, bytes) else message.encode())
        assert (received.opcode == BINARY) == isinstance(message, bytes)
    client.send(close_frame(4321))
    assert client.closing()[0] == 4321
    if way.endswith("bare"):
        assert notes(server.port, key) == ["4321"]


def test_json_consumer_echoes(server: Server, raw: Raw, kind: str) -> None:
    client = raw(server)
    client.open(f"/json/{kind}/", behind=frame('{"a": [1, "é"]}'))
    assert json.loads(client.frame().text) == {"said": {"a": [1, "é"]}}
    client.send(frame(b"x"))
    assert client.closing()[0] == 1011


@pytest.mark.parametrize("way", ALL)
def test_consumer_may_be_called_in_any_way(server: Server, raw: Raw, key: str, way: str) -> None:
    client = raw(server)
    client.open(where(way, key, connect=[["add", key], ["accept"]]))
    assert ask(client, ["send", "hello"]) == "hello"
    assert ask(client, ["group_send", key, said("to all")]) == "to all"
    take(client, ["name"])
    name = client.frame().text.removesuffix("!")
    assert ask(client, ["layer_send", name, {"type": "chat.message", "text": "to me"}]) == "chat.message to me"
    assert ask(client, ["layer_send", name, {"type": "message", "text": "to me"}]) == "message to me"
    assert ask(client, ["count"]).endswith("notes")
    first, second = ask(client, ["layer"]).split()
    assert first == second
    client.send(close_frame(4001))
    assert client.closing()[0] == 4001
    assert noted(server, key, 2) == ["said to all", "disconnect 4001"]


@pytest.mark.parametrize("way", [way for way in ALL if way.rpartition("-")[2] in ("class", "function", "base", "send")])
def test_middleware_adds_to_the_scope(server: Server, raw: Raw, key: str, way: str) -> None:
    client = raw(server)
    client.open(where(way, key))
    assert json.loads(ask(client, ["scope"]))["middleware"] == way.rpartition("-")[2]


def test_wrapped_send_changes_what_is_sent(server: Server, raw: Raw, key: str, kind: str) -> None:
    client = raw(server)
    client.open(where(f"{kind}-send", key))
    take(client, ["send", "hello"])
    assert client.frame().text == "hello!"


@pytest.mark.parametrize("way", ["sync-own-call", "async-own-call", "sync-own-dispatch", "async-own-dispatch"])
def test_methods_that_a_consumer_overrides_are_called(server: Server, raw: Raw, key: str, way: str) -> None:
    client = raw(server)
    client.open(where(way, key))
    assert ask(client, ["send", "hello"]) == "hello"
    assert notes(server.port, key, 1)[0] in ("called", "dispatch")


def test_all_consumers_of_a_process_have_one_layer(server: Server, raw: Raw, key: str) -> None:
    found = set()
    for way in ("sync", "async", "sync", "async-own-call", "sync-called"):
        client = raw(server)
        client.open(where(way, key))
        found |= set(ask(client, ["layer"]).split())
    assert len(found) == 1


# --- one after the other ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["sync", "async", "sync-own-call", "async-own-call", "sync-own-dispatch"])
def test_nothing_is_handled_while_a_handler_waits(server: Server, raw: Raw, key: str, way: str) -> None:
    client, other = raw(server), raw(server)
    client.open(where(way, key, connect=[["add", key], ["accept"]]))
    other.open(where("async", f"{key}-other"))
    take(client, ["note", "begin"], ["wait", key], ["note", "end"])
    assert noted(server, key, 1) == ["begin"]
    take(client, ["note", "of the client"])
    take(other, ["group_send", key, said("of the layer")], ["send", "done"])
    assert other.frame().text == "done"
    client.send(frame("", PING))
    assert client.frame().opcode == PONG
    assert noted(server, key, 1) == ["begin"]
    fetch(server.port, f"/gate/{key}/")
    found = noted(server, key, 4)
    assert found[:2] == ["begin", "end"]
    assert sorted(found[2:]) == ["of the client", "said of the layer"]


def test_connect_is_over_before_anything_else_is_handled(server: Server, raw: Raw, key: str, kind: str) -> None:
    client, other = raw(server), raw(server)
    connect = [["add", key], ["accept"], ["send", "accepted"], ["wait", key], ["note", "connected"]]
    client.open(where(kind, key, connect=connect), behind=frame('[["note", "of the client"]]'))
    assert client.frame().text == "accepted"
    other.open(where(kind, f"{key}-other"))
    assert ask(other, ["group_send", key, said("of the layer")], ["send", "done"]) == "done"
    assert noted(server, key, 0) == []
    fetch(server.port, f"/gate/{key}/")
    assert noted(server, key, 3)[0] == "connected"


def test_task_or_thread_sends_while_a_handler_waits(server: Server, raw: Raw, key: str, kind: str) -> None:
    client = raw(server)
    client.open(where(kind, key))
    assert ask(client, ["background", [["send", "meanwhile"]]], ["wait", key], ["send", "end"]) == "meanwhile"
    fetch(server.port, f"/gate/{key}/")
    assert client.frame().text == "end"
    assert ask(client, ["background", [["sleep", 0.05], ["send", "later"]]]) == "later"


@pytest.mark.parametrize("way", ["sync", "async", "sync-own-call", "async-own-call"])
def test_order_holds_across_groups_and_direct_messages(server: Server, raw: Raw, key: str, way: str) -> None:
    client, sender = raw(server), raw(server)
    groups = [f"{key}-{number}" for number in range(3)]
    client.open(where(way, key, connect=[*(["add", group] for group in groups), ["accept"]]))
    name = ask(client, ["name"])
    sender.open(where("async", f"{key}-sender"))
    for begin in range(0, 200, 40):  # fewer at once than the capacity
        steps: list[Any] = []
        for number in range(begin, begin + 40):
            which = number * 7 % 4
            target = ["layer_send", name] if which == 3 else ["group_send", groups[which]]
            steps.append([*target, said(str(number))])
        take(sender, *steps)
        assert [client.frame().text for _ in range(40)] == [str(number) for number in range(begin, begin + 40)]
    assert noted(server, f"{key}-sender", 0) == []


# --- handlers --------------------------------------------------------------------------------------------------------


def test_any_method_may_be_called_by_a_message(server: Server, raw: Raw, key: str, kind: str) -> None:
    client = raw(server)
    client.open(where(f"{kind}-json", key, connect=[["add", key], ["accept"]]))
    assert json.loads(ask(client, ["group_send", key, {"type": "send_json", "a": [1]}])) == {
        "type": "send_json",
        "a": [1],
    }
    take(client, ["group_send", key, {"type": "steps", "steps": [["close", {"code": 4000}]]}])
    assert client.closing()[0] == 4000


@pytest.mark.parametrize("way", ["sync", "async", "sync-own-call", "async-own-call", "sync-own-dispatch"])
def test_message_without_a_handler_is_an_error(server: Server, raw: Raw, key: str, way: str) -> None:
    client = raw(server)
    client.open(where(way, key, connect=[["add", key], ["accept"]]))
    take(client, ["group_send", key, {"type": f"missing.{key}"}])
    assert client.closing()[0] == 1011
    line = f"ValueError: No handler for message type missing.{key}"
    assert eventually(lambda: line in server.log)
    assert settled(server).count(line) == 1
    assert noted(server, key, 0) == []  # disconnect is not called


def test_values_arrive_as_they_were_sent(server: Server, raw: Raw, key: str, kind: str) -> None:
    client = raw(server)
    client.open(where(kind, key, connect=[["add", key], ["accept"]]))
    value = {"a": [1, 2.5, None, True, "é", {"b": []}], "big": 2**60}
    take(client, ["group_send", key, {"type": "shown", "value": value}])
    assert client.frame().text == repr(value)


# --- the handshake ---------------------------------------------------------------------------------------------------

CORE = ["sync", "async", "sync-own-call", "async-own-call"]


@pytest.mark.parametrize("way", CORE)
@pytest.mark.parametrize("step", [["close"], ["close", {"code": 4000}], ["raise", "DenyConnection"]])
def test_close_before_the_acceptance_is_a_403(server: Server, raw: Raw, key: str, way: str, step: list[Any]) -> None:
    assert refused(server, raw, where(way, key, connect=[step])).status == 403
    assert noted(server, key, 1) == ["disconnect 1006"]


@pytest.mark.parametrize("way", CORE)
def test_accept_may_be_asked_for_by_an_exception(server: Server, raw: Raw, key: str, way: str) -> None:
    client = raw(server)
    client.open(where(way, key, connect=[["raise", "AcceptConnection"]]))
    assert ask(client, ["send", "hello"]) == "hello"


@pytest.mark.parametrize("way", CORE)
def test_exception_before_the_acceptance_is_a_500(server: Server, raw: Raw, key: str, way: str) -> None:
    path = where(way, key, connect=[["add", key], ["raise", "ValueError", f"raised for {key}"]])
    assert refused(server, raw, path).status == 500
    line = f"ValueError: raised for {key}"
    assert eventually(lambda: line in server.log)
    assert settled(server).count(line) == 1
    assert noted(server, key, 0) == []


@pytest.mark.parametrize("way", CORE)
@pytest.mark.parametrize("where_raised", ["connect", "receive", "layer"])
def test_exception_after_the_acceptance_closes_with_1011(
    server: Server, raw: Raw, key: str, way: str, where_raised: str
) -> None:
    client, other = raw(server), raw(server)
    other.open(where("async", f"{key}-other"))
    wrong = ["raise", "ValueError", f"raised for {key}"]
    connect = [["add", key], ["accept"], *([wrong] if where_raised == "connect" else [])]
    client.open(where(way, key, connect=connect))
    if where_raised == "receive":
        take(client, wrong)
    elif where_raised == "layer":
        take(client, ["group_send", key, {"type": "steps", "steps": [wrong]}])
    assert client.closing()[0] == 1011
    assert ask(other, ["send", "still here"]) == "still here"
    line = f"ValueError: raised for {key}"
    assert eventually(lambda: line in server.log)
    assert settled(server).count(line) == 1
    assert noted(server, key, 0) == []  # disconnect is not called


@pytest.mark.parametrize("way", CORE)
def test_subprotocol_and_headers_travel_with_the_acceptance(server: Server, raw: Raw, key: str, way: str) -> None:
    for offered, asked, chosen in (("news, chat", "chat", "chat"), ("news, chat", "other", None), (None, "chat", None)):
        accept = ["accept", {"subprotocol": asked, "headers": [["x-a", "1"], ["set-cookie", "c=d; Path=/"]]}]
        client = raw(server)
        response = client.open(where(way, key, connect=[accept]), {"Sec-WebSocket-Protocol": offered})
        assert response.headers.get("sec-websocket-protocol") == chosen
        assert response.headers["x-a"] == "1"
        assert response.cookies["c"] == "d"
        assert ask(client, ["send", "hello"]) == "hello"


def test_foreign_page_is_refused(server: Server, raw: Raw, key: str, kind: str) -> None:
    client = raw(server)
    client.send(request(where(kind, key), {"Origin": "https://evil.example"}))
    assert client.response().status == 403
    assert noted(server, key, 0) == []


# --- the end ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", CORE)
@pytest.mark.parametrize("code", [1000, 1001, 4321, 1006])
def test_disconnect_is_told_the_code(server: Server, raw: Raw, key: str, way: str, code: int) -> None:
    client = raw(server)
    client.open(where(way, key))
    assert ask(client, ["send", "hello"]) == "hello"
    if code == 1006:
        client.reset()
    else:
        client.send(close_frame(code))
    assert noted(server, key, 1) == [f"disconnect {code}"]


@pytest.mark.parametrize("way", CORE)
def test_what_disconnect_sends_is_dropped_in_silence(server: Server, raw: Raw, key: str, way: str) -> None:
    last = [["send", "x"], ["close"], ["group_send", f"{key}-all", said("left")], ["note", "end"]]
    other = raw(server)
    other.open(where("async", f"{key}-other", connect=[["add", f"{key}-all"], ["accept"]]))
    before = settled(server)
    for leave in ("close", "reset"):
        client = raw(server)
        client.open(where(way, f"{key}-{leave}", disconnect=last))
        if leave == "close":
            client.send(close_frame(1001))
            client.closing()
        else:
            client.reset()
        found = noted(server, f"{key}-{leave}", 2)
        assert found == [f"disconnect {1001 if leave == 'close' else 1006}", "end"]
        assert other.frame().text == "left"
    assert lines_since(server, before) == []


@pytest.mark.parametrize("way", CORE)
def test_wrong_calls_raise(server: Server, raw: Raw, key: str, way: str) -> None:
    client = raw(server)
    client.open(where(way, key, connect=[["send", "early"], ["accept"], ["accept"], ["send", "accepted"]]))
    assert client.frame().text == "accepted"
    take(client, ["close", {"code": 4000, "reason": "enough"}], ["send", "late"], ["close"], ["note", "end"])
    assert client.closing() == (4000, "enough")
    found = noted(server, key, 5)
    assert [note.partition(":")[0] for note in found[:4]] == ["RuntimeError"] * 4
    assert found[4] == "end"
    client.send(close_frame(4000))
    assert noted(server, key, 6)[5].startswith("disconnect ")


@pytest.mark.parametrize("way", CORE)
def test_handler_goes_on_although_its_client_has_left(server: Server, raw: Raw, key: str, way: str) -> None:
    client, other = raw(server), raw(server)
    group = f"{key}-all"
    other.open(where("async", f"{key}-other", connect=[["add", group], ["accept"]]))
    client.open(where(way, key))
    before = settled(server)
    steps = [["wait", key], ["send", "dropped"], ["group_send", group, said("goes on")], ["note", "end"]]
    client.send(frame(json.dumps(steps)), close_frame(1001))
    assert client.closing()[0] == 1001  # the server has seen that it leaves
    fetch(server.port, f"/gate/{key}/")
    assert other.frame().text == "goes on"
    assert noted(server, key, 2) == ["end", "disconnect 1001"]
    assert lines_since(server, before) == []


@pytest.mark.parametrize("way", CORE)
def test_stop_consumer_ends_the_connection(server: Server, raw: Raw, key: str, way: str) -> None:
    client = raw(server)
    client.open(where(way, key))
    take(client, ["raise", "StopConsumer"])
    assert client.closing()[0] == 1000
    assert noted(server, key, 0) == []


@pytest.mark.parametrize("way", CORE)
def test_client_that_closes_at_the_consumers_wish(server: Server, raw: Raw, key: str, way: str) -> None:
    client = raw(server)
    client.open(where(way, key))
    take(client, ["close"])
    assert client.closing()[0] == 1000
    client.send(close_frame(1000))
    assert noted(server, key, 1) == ["disconnect 1000"]


# --- groups ----------------------------------------------------------------------------------------------------------


def channels_of(asked: Redis) -> dict[bytes, int]:
    """Return how many processes are subscribed to each channel of this package."""
    names = asked.pubsub_channels("*")
    return (
        {
            name.encode() if isinstance(name, str) else name: int(count)
            for name, count in asked.pubsub_numsub(*names)
            if count
        }
        if names
        else {}
    )


@pytest.mark.parametrize("way", CORE)
@pytest.mark.parametrize("how", ["close", "reset", "exception", "stop", "refused", "exception in connect"])
def test_memberships_end_with_the_connection(
    server: Server, raw: Raw, asked: Redis, key: str, way: str, how: str
) -> None:
    sender = raw(server)
    sender.open(where("async", f"{key}-sender"))
    groups = [["add", f"{key}-{number}"] for number in range(3)]
    if how in ("refused", "exception in connect"):
        last = ["close"] if how == "refused" else ["raise", "ValueError", f"raised for {key}"]
        assert refused(server, raw, where(way, key, connect=[*groups, last])).status in (403, 500)
    else:
        client = raw(server)
        client.open(where(way, key, connect=[["accept"], *groups, ["send", "ready"]]))
        assert client.frame().text == "ready"
        assert sum(key.encode() in name for name in channels_of(asked)) == len(groups)
        if how == "close":
            client.send(close_frame())
            client.closing()
        elif how == "reset":
            client.reset()
        elif how == "exception":
            take(client, ["raise", "ValueError", f"raised for {key}"])
            assert client.closing()[0] == 1011
        else:
            take(client, ["raise", "StopConsumer"])
            assert client.closing()[0] == 1000
    left: dict[bytes, int] = {}

    def gone() -> bool:
        left.clear()
        left.update((name, count) for name, count in channels_of(asked).items() if key.encode() in name)
        return not left

    assert eventually(gone), left
    if "exception" in how:  # it is logged when the client has its close frame already
        assert eventually(lambda: f"ValueError: raised for {key}" in server.log)
    log = settled(server)
    for number in range(3):
        assert ask(sender, ["group_send", f"{key}-{number}", said("nobody")], ["send", "done"]) == "done"
    assert lines_since(server, log) == []
    assert not any(note.startswith("said") for note in noted(server, key, 0))


def test_message_to_a_channel_that_has_ended_is_dropped_in_silence(
    in_urlconf: Server, in_asgi: Server, raw: Raw, key: str, kind: str
) -> None:
    names = []
    for server in (in_urlconf, in_asgi):
        client = raw(server)
        client.open(where(kind, f"{key}-{server.port}"))
        names.append(ask(client, ["name"]))
        client.send(close_frame())
        assert noted(server, f"{key}-{server.port}", 1) == ["disconnect 1000"]
    sender = raw(in_urlconf)
    sender.open(where(kind, key))
    before = [settled(server) for server in (in_urlconf, in_asgi)]
    steps: list[Any] = [["layer_send", name, said(str(number))] for name in names for number in range(3)]
    steps += [["add", key, name] for name in names] + [["group_send", key, said("x")]]
    assert ask(sender, *steps, ["send", "done"]) == "done"
    assert noted(in_urlconf, key, 0) == []
    for server, log in zip((in_urlconf, in_asgi), before, strict=True):
        assert lines_since(server, log) == []


@pytest.mark.parametrize("way", PLAIN)
def test_class_with_groups_is_in_them_when_it_accepts(server: Server, raw: Raw, key: str, way: str) -> None:
    client, sender = raw(server), raw(server)
    client.open(f"/in-group/{way}/{key}/?key={key}")
    sender.open(where("async", f"{key}-sender"))
    take(sender, ["group_send", key, said("hello")])
    assert client.frame().text == "hello"


def test_what_a_consumer_says_before_it_joins_does_not_reach_it(server: Server, raw: Raw, key: str, kind: str) -> None:
    member, client = raw(server), raw(server)
    member.open(where(kind, f"{key}-member", connect=[["add", key], ["accept"]]))
    for number in range(20):
        steps = [["accept"], ["group_send", key, said(f"joins {number}")], ["add", key]]
        client = raw(server)
        client.open(where(kind, f"{key}-{number}", connect=steps))
        assert member.frame().text == f"joins {number}"
        assert ask(client, ["group_send", key, said("hello")]) == "hello"
        assert member.frame().text == "hello"
        take(client, ["discard", key], ["send", "left"])
        assert client.frame().text == "left"


def test_group_reaches_all_servers(in_urlconf: Server, in_asgi: Server, raw: Raw, key: str) -> None:
    clients = [raw(server) for server in (in_urlconf, in_asgi) for _ in PLAIN]
    for client, way in zip(clients, PLAIN * 2, strict=True):
        client.open(where(way, key, connect=[["add", key], ["accept"]]))
    take(clients[0], ["group_send", key, said("hello")])
    assert [client.frame().text for client in clients] == ["hello"] * 4
    name = ask(clients[3], ["name"])
    for client in clients[:3]:
        take(client, ["layer_send", name, said("direct")])
        assert clients[3].frame().text == "direct"
    take(clients[0], ["discard", key, name], ["group_send", key, said("without one")])
    assert [client.frame().text for client in clients[:3]] == ["without one"] * 3
    take(clients[0], ["add", key, name], ["group_send", key, said("with all")])
    assert [client.frame().text for client in clients] == ["with all"] * 4


@pytest.mark.parametrize("how", ["page", "thread", "loop"])
def test_page_sends_to_a_group(server: Server, raw: Raw, key: str, kind: str, how: str) -> None:
    client = raw(server)
    client.open(where(kind, key, connect=[["add", key], ["accept"]]))
    for _ in range(3):
        assert fetch(server.port, f"/said/?group={key}&how={how}").body == how.encode()
        assert client.frame().text == how


@pytest.mark.parametrize("way", CORE)
def test_member_that_falls_behind_loses_messages_and_the_log_says_so(
    in_urlconf: Server, raw: Raw, key: str, way: str
) -> None:
    client, sender = raw(in_urlconf), raw(in_urlconf)
    client.open(where(way, key, connect=[["add", key], ["accept"]]))
    sender.open(where("async", f"{key}-sender"))
    take(client, ["wait", key])
    before = settled(in_urlconf)
    steps = [["group_send", key, said(str(number))] for number in range(CAPACITY * 3)]
    assert ask(sender, *steps, ["send", "sent"]) == "sent"
    assert eventually(lambda: lines_since(in_urlconf, before))
    (line,) = lines_since(in_urlconf, before)
    assert "capacity" in line
    fetch(in_urlconf.port, f"/gate/{key}/")
    took = [client.frame().text for _ in range(CAPACITY)]
    assert took == [str(number) for number in range(CAPACITY)]
    assert noted(in_urlconf, f"{key}-sender", 0) == []


@pytest.mark.parametrize("way", CORE)
def test_direct_message_over_the_capacity_raises(server: Server, raw: Raw, key: str, way: str) -> None:
    client, sender = raw(server), raw(server)
    client.open(where(way, key))
    name = ask(client, ["name"])
    take(client, ["wait", key])
    sender.open(where("async", f"{key}-sender"))
    steps = [["layer_send", name, said(str(number))] for number in range(CAPACITY + 5)]
    assert ask(sender, *steps, ["send", "sent"]) == "sent"
    found = noted(server, f"{key}-sender", 0)
    assert 4 <= len(found) <= 5  # the message that was asked for waits in a place of its own or not
    assert all(note.startswith("ChannelFull") for note in found)
    fetch(server.port, f"/gate/{key}/")
    assert [client.frame().text for _ in range(CAPACITY)] == [str(number) for number in range(CAPACITY)]


# --- the scope -------------------------------------------------------------------------------------------------------


def test_scope_says_who_asks_for_what(server: Server, raw: Raw, key: str, kind: str) -> None:
    client = raw(server)
    client.open(
        f"/rooms/lobby/7/{kind}/?key={key}&a=%C3%A9",
        {**log_in(server, key), "Sec-WebSocket-Protocol": "chat, news", "X-Thing": "1, 2"},
    )
    scope = json.loads(ask(client, ["scope"]))
    assert scope["type"] == "websocket"
    assert scope["path"] == f"/rooms/lobby/7/{kind}/"
    assert scope["query_string"] == f"key={key}&a=%C3%A9"
    assert scope["headers"]["x-thing"] == "1, 2"
    assert scope["url_route"]["kwargs"] == {"room": "lobby", "number": 7, "default": "of the route"}
    assert scope["subprotocols"] == ["chat", "news"]
    assert "sessionid" in scope["cookies"]
    assert scope["client"] == ["127.0.0.1", client.sock.getsockname()[1]]
    assert (scope["user type"], scope["username"], scope["authenticated"]) == ("UserLazyObject", key, True)
    assert "_auth_user_id" in scope["session keys"]


@pytest.mark.parametrize("way", CORE)
def test_scope_belongs_to_a_connection(server: Server, raw: Raw, key: str, way: str) -> None:
    for _ in range(2):
        client = raw(server)
        client.open(where(way, key))
        first = json.loads(ask(client, ["scope"]))
        assert (first["mark"], first["user type"], first["username"]) == (None, "UserLazyObject", "")
        assert not first["authenticated"]
        assert json.loads(ask(client, ["scope"]))["mark"] == "set before"


@pytest.mark.parametrize(
    ("path", "kwargs"),
    [
        ("/nested/lobby/deeper/7/{kind}/", {"room": "lobby", "number": 7}),
        ("/nested/lobby/ann/async/", {"room": "lobby", "name": "ann", "default": "of the inner route"}),
    ],
)
def test_routers_may_be_nested(in_asgi: Server, raw: Raw, key: str, kind: str, path: str, kwargs: Any) -> None:
    client = raw(in_asgi)
    client.open(path.format(kind=kind) + f"?key={key}")
    scope = json.loads(ask(client, ["scope"]))
    assert scope["url_route"]["kwargs"] == kwargs
    assert scope["path"] == path.format(kind=kind)


@pytest.mark.parametrize("path", ["/nothing/", "/nested/lobby/nothing/", "/nested/lobby/deeper/seven/sync/"])
def test_unknown_path_is_a_404(server: Server, raw: Raw, key: str, path: str) -> None:
    before = settled(server)
    client = raw(server)
    client.send(request(f"{path}?key={key}"))
    assert client.response().status == 404
    lines = lines_since(server, before)
    assert len(lines) == 1
    assert path in lines[0]


# --- logins ----------------------------------------------------------------------------------------------------------


def test_connection_ends_with_the_login_of_its_user(server: Server, raw: Raw, key: str, kind: str) -> None:
    mine, others = log_in(server, key), log_in(server, f"{key}-other")
    client, stays, stranger = raw(server), raw(server), raw(server)
    client.open(where(kind, key), mine)
    stays.open(where(kind, f"{key}-other"), others)
    stranger.open(where(kind, f"{key}-stranger"))
    fetch(server.port, "/leave/", mine)
    assert client.closing() == (4401, "logged out")
    assert noted(server, key, 1) == ["disconnect 4401"]
    for client in (stays, stranger):
        assert ask(client, ["send", "still here"]) == "still here"


def test_user_may_be_disconnected(server: Server, raw: Raw, key: str, kind: str) -> None:
    client, stays = raw(server), raw(server)
    client.open(where(kind, key), log_in(server, key))
    stays.open(where(kind, f"{key}-other"), log_in(server, f"{key}-other"))
    fetch(server.port, f"/change/disconnect/?name={key}")
    assert client.closing() == (4401, "go away")
    assert noted(server, key, 1) == ["disconnect 4401"]
    assert ask(stays, ["send", "still here"]) == "still here"


# --- other layers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["core", "pubsub", "theirs"])
def test_layers_of_others_work(server: Server, raw: Raw, key: str, kind: str, layer: str) -> None:
    clients = [raw(server) for _ in range(2)]
    for client in clients:
        client.open(where(f"{kind}-{layer}", key, connect=[["add", key], ["accept"]]))
    name = ask(clients[0], ["name"])
    for number in range(3):
        take(clients[1], ["group_send", key, said(str(number))])
        assert [client.frame().text for client in clients] == [str(number)] * 2
    assert ask(clients[0], ["layer_send", name, said("to me")]) == "to me"
    assert len(set(ask(clients[0], ["layer"]).split())) == 2  # and not the default
    for client in clients:
        client.send(close_frame())
        client.closing()
    assert noted(server, key, 9)[-2:] == ["disconnect 1000"] * 2


# --- other processes -------------------------------------------------------------------------------------------------

OTHER_PROCESS = """
import asyncio, sys, threading
import django
django.setup()
from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer

group, *names = sys.argv[1:]
layer = get_channel_layer()

def say(text):
    async_to_sync(layer.group_send)(group, {"type": "said", "text": text})

say("from a program")
thread = threading.Thread(target=say, args=["from its thread"])
thread.start()
thread.join()
asyncio.run(layer.group_send(group, {"type": "said", "text": "from a loop"}))
asyncio.run(layer.group_send(group, {"type": "said", "text": "from another"}))

async def change():
    for name in names:
        await layer.group_discard(group, name)
    await layer.group_send(group, {"type": "said", "text": "to nobody"})
    for name in names:
        await layer.send(name, {"type": "said", "text": "to one"})
    for name in names:
        await layer.group_add(group, name)
    await layer.group_send(group, {"type": "said", "text": "to all"})

asyncio.run(change())
"""


def test_another_process_sends_and_changes_groups(
    in_urlconf: Server, in_asgi: Server, raw: Raw, asked: Redis, redis_url: str, key: str
) -> None:
    clients = [raw(server) for server in (in_urlconf, in_asgi) for _ in PLAIN]
    names = []
    for client, way in zip(clients, PLAIN * 2, strict=True):
        client.open(where(way, key, connect=[["add", key], ["accept"]]))
        names.append(ask(client, ["name"]))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", OTHER_PROCESS, key, *names],
        cwd=SITE,
        env={**os.environ, "TESTSITE_SETTINGS": json.dumps(settings("", redis_url))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    expected = ["from a program", "from its thread", "from a loop", "from another", "to one", "to all"]
    for client in clients:
        assert [client.frame().text for _ in expected] == expected
        client.reset()
    assert eventually(lambda: not any(key.encode() in channel for channel in channels_of(asked)))


def test_groups_work_again_after_an_outage_of_redis(start_site: StartSite, raw: Raw, key: str) -> None:
    with redis_server() as redis, start_site(settings("urlconf", f"redis://{redis.address}/0")) as server:
        members = [raw(server) for _ in PLAIN]
        for way, member in zip(PLAIN, members, strict=True):
            member.open(where(way, key, connect=[["add", key], ["accept"]]))
        sender = raw(server)
        sender.open(where("async", f"{key}-sender"))
        take(sender, ["group_send", key, said("before")])
        assert [member.frame().text for member in members] == ["before"] * 2
        redis.stop()
        assert ask(sender, ["group_send", key, said("meanwhile")], ["send", "done"]) == "done"
        assert noted(server, f"{key}-sender", 1)  # it raises
        for member in members:
            assert ask(member, ["send", "still here"]) == "still here"
        redis.start()

        def arrives(member: RawClient) -> bool:
            assert ask(sender, ["group_send", key, said("after")], ["send", "done"]) == "done"
            member.sock.settimeout(0.2)
            try:
                return member.frame().text == "after"
            except TimeoutError:
                return False
            finally:
                member.sock.settimeout(DEADLINE)

        for member in members:
            assert eventually(lambda member=member: arrives(member), 20)  # type: ignore[misc]
        newcomer = raw(server)
        newcomer.open(where("async", key, connect=[["add", key], ["accept"]]))
        take(sender, ["group_send", key, said("all")])
        assert newcomer.frame().text == "all"
        for member in members:
            while member.frame().text != "all":
                pass
        assert server.log.count("Traceback") == 0


def test_consumers_need_no_redis(start_site: StartSite, raw: Raw, key: str) -> None:
    with start_site(settings("urlconf", "memory://")) as server:
        clients = [raw(server) for _ in CORE]
        for way, client in zip(CORE, clients, strict=True):
            client.open(where(way, key, connect=[["add", key], ["accept"]]))
        for client in clients:
            take(client, ["group_send", key, said("hello")])
            assert [member.frame().text for member in clients] == ["hello"] * len(CORE)
        fetch(server.port, f"/said/?group={key}&how=page")
        assert [member.frame().text for member in clients] == ["page"] * len(CORE)
        name = ask(clients[0], ["name"])
        take(clients[1], ["layer_send", name, said("to one")])
        assert clients[0].frame().text == "to one"


# --- databases -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow(
    start_site: StartSite, start_postgresql: StartPostgreSQL, redis_url: str
) -> Iterator[tuple[Server, Database]]:
    """A server whose PostgreSQL takes few clients."""
    with start_postgresql("-c", "max_connections=50") as postgres:
        databases = {"default": settings_of(postgres, "consumers")}
        more = {"DATABASES": databases, "WEBSOCKET_PING_INTERVAL": 300.0}  # longer than hundreds take to connect
        database = Database(postgres)
        with start_site(settings("urlconf", redis_url, **more)) as server:
            yield server, database
        database.close()


@pytest.mark.parametrize(("way", "count"), [("sync", 300), ("async", 100), ("sync-own-call", 60)])
def test_hundreds_of_consumers_query_at_once(
    narrow: tuple[Server, Database], raw: Raw, key: str, way: str, count: int
) -> None:
    server, database = narrow
    clients = [raw(server) for _ in range(count)]
    for client in clients:
        client.sock.settimeout(60)  # PostgreSQL starts a process for each query of hundreds
        client.open(where(way, key, connect=[["add", key], ["accept"]]))
    for _ in range(2):
        take(clients[0], ["group_send", key, {"type": "steps", "steps": [["count"]]}])
        for client in clients:
            assert client.frame().text == "0 notes"
        assert eventually(lambda: database.held("consumers") == 0)
    assert noted(server, key, 0) == []
    assert "Traceback" not in server.log


def test_no_connection_stays_behind_a_handler(narrow: tuple[Server, Database], raw: Raw, key: str, kind: str) -> None:
    server, database = narrow
    client = raw(server)
    client.open(where(kind, key, connect=[["accept"], ["count"]], disconnect=[["count"], ["note", "end"]]))
    assert client.frame().text == "0 notes"
    assert eventually(lambda: database.held("consumers") == 0)
    assert ask(client, ["count"]) == "0 notes"
    assert eventually(lambda: database.held("consumers") == 0)
    client.send(close_frame())
    assert noted(server, key, 2) == ["disconnect 1000", "end"]
    assert eventually(lambda: database.held("consumers") == 0)


def test_idle_synchronous_consumers_hold_no_greenlet(server: Server, raw: Raw, key: str) -> None:
    before = fetch_json(server.port, "/state/")["greenlets"]
    clients = [raw(server) for _ in range(200)]
    for client in clients:
        client.open(where("sync", key, connect=[["add", key], ["accept"]]))
        assert ask(client, ["send", "hello"]) == "hello"
    take(clients[0], ["group_send", key, said("to all")])
    assert [client.frame().text for client in clients] == ["to all"] * 200
    after = fetch_json(server.port, "/state/")["greenlets"]
    assert after - before < 50, f"{after - before} more greenlets"


# --- bounds ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hasty(start_site: StartSite, redis_url: str) -> Iterator[Server]:
    bounds = {"WEBSOCKET_HANDSHAKE_TIMEOUT": 2.0, "WEBSOCKET_SEND_TIMEOUT": 5.0, "WEBSOCKET_SEND_BUFFER_SIZE": 1000}
    with start_site(settings("urlconf", redis_url, **bounds)) as server:
        yield server


def test_consumer_that_does_not_accept_is_a_500(hasty: Server, raw: Raw, key: str) -> None:
    ways = [("sync", "hangs"), ("async", "hangs"), ("async-own-call", "hangs"), *((way, "returns") for way in CORE)]
    clients = [raw(hasty) for _ in ways]
    for (way, how), client in zip(ways, clients, strict=True):
        client.send(request(where(way, f"{key}-{way}-{how}", connect=[["hang"]] if how == "hangs" else [])))
    for (way, how), client in zip(ways, clients, strict=True):
        assert client.response().status == 500
        if how == "hangs":
            assert noted(hasty, f"{key}-{way}-{how}", 1)[0] == "interrupted"


def test_consumer_that_catches_its_interruption_is_over_all_the_same(hasty: Server, raw: Raw, key: str) -> None:
    assert refused(hasty, raw, where("sync", key, connect=[["add", key], ["cling"]])).status == 500
    assert noted(hasty, key, 1)[0] == "interrupted"
    assert eventually(lambda: not fetch_json(hasty.port, "/census/").get("testsite.consumers.Sync"))


def test_clients_that_do_not_read_hold_up_nobody_and_are_given_up(hasty: Server, raw: Raw, key: str) -> None:
    ways = ["sync"] * 40 + ["async"] * 5  # there may be 32 synchronous handlers at once
    clients = [raw(hasty, receive_buffer=4096) for _ in ways]
    for way, client in zip(ways, clients, strict=True):
        client.open(f"/{way}-floods/?key={key}")
    other = raw(hasty)
    other.open(where("sync", f"{key}-other", connect=[["accept"], ["count"]]))
    other.frame()
    before = settled(hasty)
    for client in clients:
        client.send(frame("go"))
    assert noted(hasty, key, len(ways)) == ["begins"] * len(ways)  # and nobody was given up yet
    for _ in range(3):
        assert ask(other, ["count"]).endswith("notes")
    assert "disconnect 1008" not in noted(hasty, key, 0)
    assert noted(hasty, key, 2 * len(ways)) == ["begins"] * len(ways) + ["disconnect 1008"] * len(ways)
    assert {line.rpartition(": ")[2] for line in lines_since(hasty, before)} == {"1008 does not read"}


@pytest.mark.parametrize("how", list(APPS))
def test_server_that_ends_tells_its_consumers(
    start_site: StartSite, redis_url: str, raw: Raw, key: str, how: str
) -> None:
    with start_site(settings(how, redis_url), app=APPS[how]) as server:
        clients = [raw(server) for _ in CORE]
        for way, client in zip(CORE, clients, strict=True):
            client.open(where(way, key, connect=[["add", key], ["accept"]], disconnect=[["note", "end"]]))
        server.send_signal(signal.SIGTERM)
        for client in clients:
            assert client.closing()[0] == 1012
        assert server.wait() == 0
        assert server.log.count("disconnect 1012") == server.log.count(": end") == len(CORE)
        assert "Traceback" not in server.log


# --- wrong use -------------------------------------------------------------------------------------------------------

WRONG = """
import os
import django
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "testsite.settings")
django.setup()
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.urls import path

class WrongConsumer(AsyncWebsocketConsumer):
    pass

urlpatterns = [path("wrong/", WrongConsumer)]
application = ProtocolTypeRouter({"websocket": URLRouter([path("deeper/", URLRouter(urlpatterns))])})
"""


def test_class_in_a_urlconf_is_found_by_the_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("wrong_consumers")
    exec(WRONG, module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with override_settings(WEBSOCKET_URLCONF=module.__name__):
        (found,) = [message for message in run_checks(tags=["websocket"]) if message.id == "websocket.E009"]
    assert "WrongConsumer" in f"{found.msg} {found.hint}"
    assert "as_asgi()" in f"{found.msg} {found.hint}"


def test_class_in_a_router_is_an_error_at_the_start(start_site: StartSite, tmp_path: Path) -> None:
    (tmp_path / "wrong_consumers.py").write_text(WRONG)
    server = start_site({"WEBSOCKET_URLCONF": ""}, app="wrong_consumers:application", env={"PYTHONPATH": str(tmp_path)})
    with pytest.raises(RuntimeError) as error, server:
        pass
    (line,) = {line for line in str(error.value).splitlines() if "ImproperlyConfigured: " in line}
    assert "WrongConsumer" in line


UNSERVED = """
import os
import django
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "testsite.settings")
django.setup()
from channels.generic.http import AsyncHttpConsumer
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ChannelNameRouter, ProtocolTypeRouter, URLRouter
from django.urls import path

application = ProtocolTypeRouter(
    {
        "http": URLRouter([path("page/", AsyncHttpConsumer.as_asgi())]),
        "websocket": URLRouter([path("echo/", AsyncWebsocketConsumer.as_asgi())]),
        "channel": ChannelNameRouter({}),
    }
)
"""


def test_log_names_what_of_an_application_is_not_called(start_site: StartSite, raw: Raw, tmp_path: Path) -> None:
    (tmp_path / "unserved.py").write_text(UNSERVED)
    env = {"PYTHONPATH": str(tmp_path)}
    with start_site({"WEBSOCKET_URLCONF": ""}, app="unserved:application", env=env) as server:
        assert raw(server).open("/echo/").status == 101
        assert "URLRouter for HTTP" in server.log
        assert "manage.py runworker" in server.log
