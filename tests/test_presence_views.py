"""Who is there through the views of a real worker, synchronous and asynchronous, and how long after which end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from .support.clients import RawClient, fetch_json, notes, request
from .support.fixtures import Raw, StartSite
from .support.frames import close_frame, frame
from .support.resuming import OFFER
from .support.servers import Server
from .support.waiting import DEADLINE, eventually

GRACE = 1.0
ANN, BOB = {"id": 1, "name": "ann"}, {"id": 2, "name": "bob"}
SESSION = frame(json.dumps({"hello": {"session": "a session"}}))


@pytest.fixture(scope="module")
def brief(start_site: StartSite) -> Iterator[Server]:
    """A site whose clients have little time to come back."""
    with start_site(env={"TESTSITE_PRESENCE": json.dumps({"GRACE": GRACE})}) as server:
        yield server


@pytest.fixture(scope="module")
def patient(start_site: StartSite) -> Iterator[Server]:
    """A site whose clients have more time to come back than any test takes."""
    with start_site(env={"TESTSITE_PRESENCE": json.dumps({"GRACE": 10_000.0})}) as server:
        yield server


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    """Whether the view is a function or a coroutine function."""
    return str(request.param)


def there(server: Server, channel: str) -> list[Any]:
    """Return who is there, after a check that this is how many are counted."""
    found = fetch_json(server.port, f"/presence/{quote(channel)}/")
    assert len(found["present"]) == found["count"]
    users: list[Any] = found["present"]
    return users


def path(view: str, channel: str, present: Any = ANN) -> str:
    return f"/presence/{view}/{quote(channel)}/?present={quote(json.dumps(present))}"


def opened(raw: Raw, server: Server, view: str, channel: str, present: Any = ANN, hello: bytes = SESSION) -> RawClient:
    """Return a client that is there; without a hello, a plain one."""
    client = raw(server)
    client.open(path(view, channel, present), OFFER if hello else None, hello)
    assert eventually(lambda: present in there(server, channel))
    return client


def finish(client: RawClient, code: int) -> None:
    """Be closed by the server with a code, and answer that."""
    assert client.closing()[0] == code
    client.send(close_frame(code))


STAYS = ["stays", "stays-in-a-block"]


@pytest.mark.parametrize("view", STAYS)
@pytest.mark.parametrize("word", ["return", "leave", "close 1000", "close 4401", "close 4403", "close 4404"])
def test_what_the_view_ends_is_told_at_once(
    patient: Server, raw: Raw, key: str, kind: str, view: str, word: str
) -> None:
    client = opened(raw, patient, f"{kind}/{view}", key)
    client.send(frame(word))
    assert eventually(lambda: there(patient, key) == [])


@pytest.mark.parametrize("view", [*STAYS, "listens"])
def test_a_client_that_closes_leaves_at_once(patient: Server, raw: Raw, key: str, kind: str, view: str) -> None:
    client = opened(raw, patient, f"{kind}/{view}", key)
    client.send(close_frame(1000))
    finish(client, 1000)
    assert eventually(lambda: there(patient, key) == [])


@pytest.mark.parametrize("view", [*STAYS, "listens"])
@pytest.mark.parametrize("how", ["vanishes", "resets", "goes away"])
def test_a_plain_client_leaves_at_once_however_it_ends(
    patient: Server, raw: Raw, key: str, kind: str, view: str, how: str
) -> None:
    client = opened(raw, patient, f"{kind}/{view}", key, hello=b"")
    leave(client, how)
    assert eventually(lambda: there(patient, key) == [])


def leave(client: RawClient, how: str) -> None:
    if how == "goes away":
        client.send(close_frame(1001))
    elif how == "vanishes":
        client.sock.close()
    elif how == "resets":
        client.reset()
    else:
        client.send(frame(how))


def comes_back_in_time(server: Server, client: RawClient, key: str, how: str) -> None:
    begin = time.monotonic()
    leave(client, how)
    assert eventually(lambda: there(server, key) == [])
    assert time.monotonic() - begin > GRACE * 0.95


@pytest.mark.parametrize("view", [*STAYS, "listens"])
@pytest.mark.parametrize("how", ["vanishes", "resets", "goes away"])
def test_a_client_with_a_session_may_come_back(
    brief: Server, raw: Raw, key: str, kind: str, view: str, how: str
) -> None:
    comes_back_in_time(brief, opened(raw, brief, f"{kind}/{view}", key), key, how)


@pytest.mark.parametrize("view", STAYS)
@pytest.mark.parametrize("word", ["raise", "close 4429", "close 1011", "close 1012"])
def test_the_client_may_come_back_after_what_the_view_has_done(
    brief: Server, raw: Raw, key: str, kind: str, view: str, word: str
) -> None:
    comes_back_in_time(brief, opened(raw, brief, f"{kind}/{view}", key), key, word)


@pytest.mark.parametrize("view", STAYS)
def test_a_view_updates_what_is_told(patient: Server, raw: Raw, key: str, kind: str, view: str) -> None:
    client = opened(raw, patient, f"{kind}/{view}", key)
    client.send(frame("update " + json.dumps({**ANN, "typing": True})))
    assert eventually(lambda: there(patient, key) == [{**ANN, "typing": True}])
    client.send(close_frame(1000))
    assert eventually(lambda: there(patient, key) == [])


def test_one_who_reloads_is_there_all_the_time(patient: Server, raw: Raw, key: str, kind: str) -> None:
    watcher = raw(patient)
    watcher.open(f"/presence/watches/{key}/")
    assert json.loads(watcher.frame().text) == [[], [], 0]
    client = opened(raw, patient, f"{kind}/stays", key)
    assert json.loads(watcher.frame().text) == [[ANN], [], 1]
    for how in ("goes away", "vanishes", "resets"):
        leave(client, how)
        client = opened(raw, patient, f"{kind}/stays", key)
    client.send(close_frame(1000))
    assert json.loads(watcher.frame().text) == [[], [ANN], 0]
    assert there(patient, key) == []


def test_a_view_that_watches_hears_that_its_client_has_left(patient: Server, raw: Raw, key: str) -> None:
    watcher = raw(patient)
    watcher.open(f"/presence/watches/{key}/?key={key}")
    assert json.loads(watcher.frame().text) == [[], [], 0]
    watcher.send(close_frame(1000))
    assert notes(patient.port, key) == ["closed 1000"]


def test_nothing_is_left_of_views_that_have_watched(patient: Server, raw: Raw, key: str) -> None:
    for number in range(5):
        watcher = raw(patient)
        watcher.open(f"/presence/watches/{key}/?key={key}")
        assert json.loads(watcher.frame().text) == [[], [], 0]
        watcher.reset()
        assert len(notes(patient.port, key, number + 1)) == number + 1
    assert eventually(lambda: fetch_json(patient.port, "/census/")["channels"] == 0, DEADLINE)


@pytest.mark.parametrize(
    "wrong", [{"name": "ann"}, {"id": None}, {"id": 1, "x": "x" * 1000}, "ann"], ids=["no id", "None", "large", "text"]
)
def test_a_view_that_gives_a_wrong_present_fails_as_other_views_do(
    patient: Server, raw: Raw, key: str, kind: str, wrong: Any
) -> None:
    client = raw(patient)
    client.send(request(path(f"{kind}/stays", key, wrong), OFFER))
    assert client.response().status == 500
    assert there(patient, key) == []
