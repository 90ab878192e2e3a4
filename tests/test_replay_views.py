"""The past of a channel and snapshots, as the clients of real workers see them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from .support.clients import RawClient, fetch, fetch_json, notes, request
from .support.fixtures import Raw, StartSite
from .support.frames import BINARY, PING, PONG, Frame, close_frame, frame, text
from .support.servers import Server
from .support.waiting import eventually

LIMIT = 50_000
EACH = {"messages": 500, "seconds": 3600}
SETTINGS = {"WEBSOCKET_HISTORY": {"kept:*": {"messages": 10, "seconds": 3600}, "long:*": EACH}}


@pytest.fixture(scope="module")
def server(start_site: StartSite) -> Iterator[Server]:
    with start_site({**SETTINGS, "WEBSOCKET_OUTBOX_SIZE": LIMIT}) as server:
        yield server
        assert "Traceback" not in server.log


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    """Whether the view is a function or a coroutine function."""
    return str(request.param)


def address(kind: str, method: str, channel: str, key: str, **options: Any) -> str:
    return f"/pasts/{kind}/{method}/{quote(channel)}/?key={key}&options={quote(json.dumps(options))}"


def opened(raw: Raw, server: Server, path: str, **options: Any) -> RawClient:
    client = raw(server, **options)
    client.open(path)
    return client


def position(server: Server, channel: str) -> str:
    found: str = fetch_json(server.port, f"/pasts/ends/{quote(channel)}/")["position"]
    return found


def publish(server: Server, channel: str, message: str) -> None:
    assert fetch(server.port, f"/publish/{quote(channel)}/?text={quote(message)}").status == 200


def publish_numbers(server: Server, channel: str, first: int, last: int, size: int = 0) -> list[str]:
    """Publish numbers by a page, and return the messages."""
    page = f"/pasts/numbers/{quote(channel)}/{first}/{last}/?size={size}"
    assert fetch(server.port, page).status == 200
    return [f"{number} ".ljust(size, ".") for number in range(first, last)]


def texts(client: RawClient, count: int) -> list[str]:
    return [client.frame().text for _ in range(count)]


# --- the past --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["subscribes", "listens"])
def test_a_client_gets_its_past_and_then_what_is_live(
    server: Server, raw: Raw, key: str, kind: str, method: str
) -> None:
    channel = f"kept:{key}"
    begin = position(server, channel)
    expected = publish_numbers(server, channel, 0, 5)
    clients = [
        opened(raw, server, address(kind, method, channel, key, **options))
        for options in ({"since": begin}, {"since": {channel: begin}}, {"last": 5}, {"last": 3}, {})
    ]
    publish(server, channel, "live")
    for client, count in zip(clients, (5, 5, 5, 3, 0), strict=True):
        assert texts(client, count + 1) == [*expected[5 - count :], "live"]


def test_a_client_that_comes_back_goes_on_where_it_left(server: Server, raw: Raw, key: str, kind: str) -> None:
    channel = f"long:{key}"
    since = position(server, channel)
    got: list[str] = []
    number = 0
    for _ in range(5):
        client = opened(raw, server, address(kind, "subscribes", channel, key, since=since))
        got += texts(client, number - len(got))
        publish_numbers(server, channel, number, number + 3)
        number += 3
        got += texts(client, 3)
        since = position(server, channel)
        client.send(frame("leave"))
        assert client.frame() == text("left")
        publish_numbers(server, channel, number, number + 3)
        number += 3
    assert got == [f"{each} " for each in range(27)]


def test_several_channels_have_their_own_past(server: Server, raw: Raw, key: str, kind: str) -> None:
    channels = [f"kept:{key}", f"kept:{key}-2"]
    since = {channel: position(server, channel) for channel in channels}
    for channel in channels:
        publish(server, channel, f"of {channel}")
    path = address(kind, "subscribes", channels[0], key, since=since, **{"and": channels[1:]})
    client = opened(raw, server, path)
    assert sorted(texts(client, 2)) == [f"of {channel}" for channel in channels]


# --- a past with a gap -----------------------------------------------------------------------------------------------

SINCE: dict[str, Any] = {"empty": "", "of no channel": "1.AAAAAAAAAAA", "number": 5, "lists": [[]]}


@pytest.mark.parametrize("method", ["subscribes", "listens"])
@pytest.mark.parametrize("gap", [*SINCE, "trimmed", "too large"])
def test_a_view_may_answer_the_handshake_of_a_client_that_has_missed_too_much(
    server: Server, raw: Raw, key: str, kind: str, method: str, gap: str
) -> None:
    channel = f"kept:{key}"
    since = SINCE.get(gap, position(server, channel))
    publish_numbers(server, channel, 0, 11 if gap == "trimmed" else 9, size=8000 if gap == "too large" else 0)
    client = raw(server)
    client.send(request(address(kind, method, channel, key, since=since)))
    response = client.response()
    assert (response.status, response.body) == (410, b"load the present state")
    assert notes(server.port, key)[0] == "missed"
    told = opened(raw, server, address(kind, method, channel, key, since=since, on_missed={"missed": True}))
    publish(server, channel, "live")
    assert texts(told, 2) == ['{"missed":true}', "live"]
    shown = opened(raw, server, address(kind, method, channel, key, since=since, on_missed="missed", snapshot="text"))
    publish(server, channel, "live")
    assert texts(shown, 2) == ["state", "live"]


def test_a_past_without_a_gap_replaces_the_snapshot(server: Server, raw: Raw, key: str, kind: str) -> None:
    channel = f"kept:{key}"
    begin = position(server, channel)
    expected = publish_numbers(server, channel, 0, 10)
    path = address(kind, "subscribes", channel, key, since=begin, on_missed="missed", snapshot="raises")
    client = opened(raw, server, path)
    publish(server, channel, "live")
    assert texts(client, 11) == [*expected, "live"]


# --- snapshots -------------------------------------------------------------------------------------------------------

GENERATED = [text("one"), Frame(BINARY, b"\xff\0"), text('{"three":3}')]
SNAPSHOTS = {
    "text": [text("state")],
    "bytes": [Frame(BINARY, b"\xff\0")],
    "dict": [text('{"state":[1,null]}')],
    "none": [],
    "generator": GENERATED,
    "publishes": [text("state"), text("by the snapshot")],
    "plain": [text("state")],
    "plain generator": GENERATED,
}


@pytest.mark.parametrize("method", ["subscribes", "listens"])
@pytest.mark.parametrize("channel", ["kept", "plain"])
def test_a_snapshot_comes_first(server: Server, raw: Raw, key: str, kind: str, method: str, channel: str) -> None:
    channel = f"{channel}:{key}"
    for name, frames in SNAPSHOTS.items():
        if kind == "sync" and name.startswith("plain"):
            continue
        client = opened(raw, server, address(kind, method, channel, key, snapshot=name))
        if method == "subscribes":
            client.send(frame("live"))
        else:
            client.send(frame(b"?", PING))
            received = [client.frame() for _ in range(len(frames) + 1)]
            received.remove(Frame(PONG, b"?"))
            assert received == frames
            publish(server, channel, "live")
            frames = []
        assert [client.frame() for _ in range(len(frames) + 1)] == [*frames, text("live")], name
        client.send(close_frame(1000))
        assert client.closing()[0] == 1000


@pytest.mark.parametrize("method", ["subscribes", "listens"])
@pytest.mark.parametrize("channel", ["kept", "plain"])
@pytest.mark.parametrize("snapshot", ["slow", "slow generator"])
def test_what_is_published_during_a_slow_snapshot_follows_it(
    server: Server, raw: Raw, key: str, kind: str, method: str, channel: str, snapshot: str
) -> None:
    channel = f"{channel}:{key}"
    client = opened(raw, server, address(kind, method, channel, key, snapshot=snapshot))
    assert notes(server.port, key)[0] == "snapshot"
    expected = publish_numbers(server, channel, 0, 50)
    client.send(frame(b"here?", PING))
    parts = ["part 1"] if snapshot == "slow generator" else []
    received = [client.frame() for _ in range(len(parts) + 1)]
    received.remove(Frame(PONG, b"here?"))
    assert received == [*map(text, parts)]
    fetch(server.port, f"/gate/{key}/")
    expected += publish_numbers(server, channel, 50, 60)
    parts = ["part 2"] if snapshot == "slow generator" else ["state"]
    assert texts(client, len(parts) + 60) == [*parts, *expected]


@pytest.mark.parametrize("channel", ["kept", "plain"])
@pytest.mark.parametrize("on_missed", ["missed", None])
def test_a_client_is_told_if_too_much_is_published_during_a_snapshot(
    server: Server, raw: Raw, key: str, kind: str, channel: str, on_missed: str | None
) -> None:
    channel = f"{channel}:{key}"
    options = {"on_missed": on_missed} if on_missed else {}
    client = opened(raw, server, address(kind, "subscribes", channel, key, snapshot="slow", **options))
    assert notes(server.port, key)[0] == "snapshot"
    witness = opened(raw, server, address(kind, "subscribes", f"plain:{key}-end", f"{key}-end"))
    publish_numbers(server, channel, 0, 200, size=1000)
    publish(server, f"plain:{key}-end", "everything has been delivered")
    witness.frame()
    fetch(server.port, f"/gate/{key}/")
    if on_missed:
        assert "subscribed" in notes(server.port, key, 2)
        publish(server, channel, "live")
        received = [client.frame().text]
        while received[-1] != "live":
            received.append(client.frame().text)
        assert "missed" in received
    else:
        assert client.closing()[0] == 1012


def test_a_client_may_leave_during_a_snapshot(server: Server, raw: Raw, key: str, kind: str) -> None:
    channel = f"kept:{key}"
    client = opened(raw, server, address(kind, "subscribes", channel, key, snapshot="slow"))
    assert notes(server.port, key)[0] == "snapshot"
    client.reset()
    publish_numbers(server, channel, 0, 3)
    fetch(server.port, f"/gate/{key}/")
    assert "closed" in notes(server.port, key, 2)[1]

    def nothing_is_left() -> bool:
        census = fetch_json(server.port, "/census/")
        return bool(census["views"] == 0 and census["channels"] <= 1)  # one is the worker's own

    assert eventually(nothing_is_left)


def test_a_snapshot_that_raises_is_an_error_of_the_view(start_site: StartSite, raw: Raw, key: str, kind: str) -> None:
    with start_site(SETTINGS) as server:
        client = raw(server)
        client.send(request(address(kind, "subscribes", f"kept:{key}", key, snapshot="raises")))
        response = client.response()
        if response.status == 101:
            assert client.closing()[0] == 1011
        else:
            assert response.status == 500
        assert eventually(lambda: "KeyError: 'the database is away'" in server.log)
        assert fetch_json(server.port, "/census/")["views"] == 0


# --- clients that read slowly ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["subscribes", "listens"])
def test_a_slow_client_gets_its_past_and_what_follows(
    server: Server, raw: Raw, key: str, kind: str, method: str
) -> None:
    channel = f"long:{key}"
    begin = position(server, channel)
    expected = publish_numbers(server, channel, 0, 45, size=1000)
    path = address(kind, method, channel, key, since=begin)
    client = opened(raw, server, path, receive_buffer=2048, segment=536)
    expected += publish_numbers(server, channel, 45, 90, size=1000)
    assert texts(client, 90) == expected
    publish(server, channel, "live")
    assert client.frame() == text("live")
