"""Who is there through several workers: when one is killed, stops or reloads, and when clients go to another one."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import gevent.socket
import pytest
import redis as redis_py
import redis.connection

from django_websocket.pubsub import count, present, watch

from .support.brokers import in_use
from .support.clients import RawClient, fetch, fetch_json
from .support.fixtures import Raw, StartSite
from .support.frames import CLOSE, PING, PONG, TEXT, close_frame, frame
from .support.resuming import OFFER
from .support.servers import Server
from .support.waiting import DEADLINE, until
from .support.wire import Pairs

if TYPE_CHECKING:
    from django_websocket.pubsub.watching import Watch

ANN, BOB, EVE = {"id": 1, "name": "ann"}, {"id": 2, "name": "bob"}, {"id": 3, "name": "eve"}
# About a fourth of the true times. A lease must be shorter than two times the grace, and the grace than two leases.
BRIEF = {"GRACE": 6.0, "LEASE": 4.0, "RENEWAL": 0.8, "RETRY": 0.2}


def workers_of(server: Server) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()]


def opened(
    raw: Raw, server: Server, channel: str, present: Any, session: str | None, view: str = "sync/stays"
) -> RawClient:
    """Return a client that is there."""
    client = raw(server)
    hello = frame(json.dumps({"hello": {} if session is None else {"session": session}}))
    client.open(f"/presence/{view}/{channel}/?present={quote(json.dumps(present))}", OFFER, hello)
    while "sub" not in client.frame().text:
        pass
    return client


def leave_of(client: RawClient) -> Any:
    """Wait until a client is told that somebody has left; return what it is told of that."""
    while (received := client.frame()).opcode != TEXT or "leave" not in received.text:
        if received.opcode == PING:
            client.send(frame(received.payload, PONG))
    return json.loads(received.text)["leave"]


@pytest.fixture
def setting(redis_url: str, key: str) -> dict[str, str]:
    return {"url": redis_url, "prefix": f"{key}:"}


@pytest.fixture
def process(setting: dict[str, str], pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have this process see what the workers do, and look after rosters as often as they."""
    monkeypatch.setattr(redis.connection, "socket", gevent.socket)
    for name in ("LEASE", "RENEWAL", "RETRY"):
        monkeypatch.setattr(f"django_websocket.pubsub.presence.{name}", BRIEF[name])
    with in_use(setting):
        yield


def start(start_site: StartSite, setting: dict[str, str], *args: str, times: dict[str, float] | None = BRIEF) -> Server:
    env = {} if times is None else {"TESTSITE_PRESENCE": json.dumps(times)}
    return start_site({"WEBSOCKET_BROKER": setting}, args=args, env=env)


def told(changes: Watch) -> tuple[list[Any], list[Any], int]:
    change = changes.get(DEADLINE)
    return change.joined, change.left, change.count


# Here, two workers are mostly two servers of one worker each, so that a client can choose its own.


def test_clients_of_two_workers_see_each_other(
    start_site: StartSite, setting: dict[str, str], process: None, raw: Raw, key: str
) -> None:
    with start(start_site, setting) as one, start(start_site, setting) as other, watch(key) as changes:
        assert told(changes) == ([], [], 0)
        ann = opened(raw, one, key, ANN, "a")
        assert told(changes) == ([ANN], [], 1)
        bob = opened(raw, other, key, BOB, "b")
        assert told(changes) == ([BOB], [], 2)
        for server in (one, other):
            found = fetch_json(server.port, f"/presence/{key}/")
            assert (sorted(user["id"] for user in found["present"]), found["count"]) == ([1, 2], 2)
        while "present" not in bob.frame().text:
            pass  # the list may come some time after the subscription
        ann.send(close_frame(1000))
        assert told(changes) == ([], [ANN], 1)
        assert leave_of(bob) == {key: [1]}


def test_a_session_that_comes_back_to_the_other_worker_leaves_there_at_once(
    start_site: StartSite, setting: dict[str, str], process: None, raw: Raw, key: str
) -> None:
    patient = {**BRIEF, "GRACE": 10_000.0}
    with (
        start(start_site, setting, times=patient) as one,
        start(start_site, setting, times=patient) as other,
        watch(key) as changes,
    ):
        assert told(changes) == ([], [], 0)
        opened(raw, one, key, ANN, "a session").reset()
        assert told(changes) == ([ANN], [], 1)
        for server in (other, one, other):
            client = opened(raw, server, key, ANN, "a session")
            client.reset()
        client = opened(raw, one, key, ANN, "a session")
        client.send(close_frame(1000))
        assert told(changes) == ([], [ANN], 0)


def test_whoever_was_in_a_worker_that_was_killed_is_gone_in_time(
    start_site: StartSite, setting: dict[str, str], process: None, raw: Raw, key: str, redis_url: str
) -> None:
    with start(start_site, setting) as one, start(start_site, setting) as other, watch(key) as changes:
        assert told(changes) == ([], [], 0)
        opened(raw, one, key, ANN, "a")
        opened(raw, one, key, EVE, "e")
        bob = opened(raw, other, key, BOB, "b")
        seen: list[Any] = []
        while len(seen) < 3:
            seen += told(changes)[0]
        os.kill(workers_of(one)[0], signal.SIGKILL)
        opened(raw, other, key, ANN, "a")  # who comes back has never left
        assert told(changes) == ([], [EVE], 2)
        until(lambda: count(key) == 2)
        assert sorted(user["id"] for user in present(key)) == [1, 2]
        assert leave_of(bob) == {key: [3]}
        with redis_py.Redis.from_url(redis_url) as admin:
            [roster] = [name for name in admin.keys(f"{setting['prefix']}*") if name.endswith(key.encode())]
            until(lambda: len([field for field in admin.hkeys(roster) if field[:1] == b"u"]) == 2)


def test_whoever_was_in_a_worker_that_was_killed_is_gone_within_45_seconds(
    start_site: StartSite, setting: dict[str, str], process: None, raw: Raw, key: str
) -> None:
    """With the true times, for clients, for this process, and for those who only ask."""
    with start(start_site, setting, times=None) as one, start(start_site, setting, times=None) as other:
        opened(raw, one, key, ANN, "a")
        bob = opened(raw, other, key, BOB, "b")
        bob.sock.settimeout(60)
        assert count(key) == 2
        os.kill(workers_of(one)[0], signal.SIGKILL)
        begin = time.monotonic()
        assert leave_of(bob) == {key: [1]}
        took = time.monotonic() - begin
        until(lambda: (present(key), count(key)) == ([BOB], 1))
        assert took < 45 + 5, "the machine may be slow, but not that slow"


class Page(threading.Thread):
    """A page that is there, and connects again a moment after its connection has ended."""

    def __init__(self, port: int, channel: str, number: int) -> None:
        super().__init__()
        self.port = port
        self.user = {"id": number}
        self.path = f"/presence/sync/stays/{channel}/?present={quote(json.dumps(self.user))}"
        self.over = threading.Event()
        self.visits = 0
        self.left_at: float | None = None
        self.away = 0.0  # the longest time from the end of a visit to the next, in seconds
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.over.is_set():
                before = self.visits
                with suppress(OSError, EOFError):
                    self.visit()
                if self.visits > before:
                    self.left_at = time.monotonic()
                self.over.wait(random.uniform(0.05, 0.3))
        except BaseException as error:
            self.error = error

    def visit(self) -> None:
        hello = frame(json.dumps({"hello": {"session": f"session {self.user['id']}"}}))
        with RawClient(self.port) as client:
            client.open(self.path, OFFER, hello)
            client.sock.settimeout(0.2)
            counted = False
            while not self.over.is_set():
                with suppress(TimeoutError):
                    received = client.frame()
                    if received.opcode == CLOSE:
                        client.send(close_frame(received.close[0]))
                        return
                    if not counted and '"sub"' in received.text:
                        if self.left_at is not None:
                            self.away = max(self.away, time.monotonic() - self.left_at)
                        self.visits += 1
                        counted = True
            client.send(close_frame(1000))
            client.sock.settimeout(DEADLINE)
            client.closing()


@pytest.mark.parametrize("how", ["reload", "one worker stops"])
def test_nobody_flaps_when_workers_end_and_pages_come_back(
    start_site: StartSite, setting: dict[str, str], process: None, key: str, how: str
) -> None:
    with start(start_site, setting, "-w", "2") as server, watch(key) as changes:
        assert told(changes) == ([], [], 0)
        pages = [Page(server.port, key, number) for number in range(12)]
        left: list[Any] = []

        def look() -> None:
            while changes.ready():
                left.extend(changes.get(0).left)

        for page in pages:
            page.start()
        try:
            for turn in range(1, 3):
                until(lambda: all(page.visits >= turn for page in pages) and count(key) == 12, 30)  # noqa: B023
                look()
                before = workers_of(server)
                if how == "reload":
                    server.send_signal(signal.SIGHUP)
                    until(lambda: not {*workers_of(server)} & {*before}, 30)  # noqa: B023
                else:
                    for worker in before:
                        os.kill(worker, signal.SIGTERM)
                        until(lambda: worker not in workers_of(server), 30)  # noqa: B023
            until(lambda: all(page.visits >= 3 for page in pages), 30)
            # Those who were held for clients that are back elsewhere are let go of, and their leases end.
            begin = time.monotonic()
            until(lambda: time.monotonic() - begin > BRIEF["GRACE"] + 3 * BRIEF["RENEWAL"], 30)
            look()
            # A busy machine may start workers for so long that a page rightly counts as gone.
            overdue = {page.user["id"] for page in pages if page.away > BRIEF["GRACE"] / 2}
            assert [user for user in left if user["id"] not in overdue] == []
            assert count(key) == 12
        finally:
            for page in pages:
                page.over.set()
            until(lambda: not any(page.is_alive() for page in pages), 30)
        assert [page.error for page in pages if page.error] == []
        until(lambda: count(key) == 0, 30)
        assert "Traceback" not in server.log


def test_whoever_does_not_come_back_after_a_restart_is_gone(
    start_site: StartSite, setting: dict[str, str], process: None, raw: Raw, key: str
) -> None:
    with start(start_site, setting) as one, start(start_site, setting) as other, watch(key) as changes:
        assert told(changes) == ([], [], 0)
        for user, session in ((ANN, "a"), (EVE, None)):
            client = opened(raw, one, key, user, session)
            assert told(changes)[0] == [user]
        begin = time.monotonic()
        one.stop()
        again = opened(raw, other, key, ANN, "a")
        assert told(changes) == ([], [EVE], 1)
        assert time.monotonic() - begin > BRIEF["GRACE"] * 0.9
        again.send(close_frame(1000))
        assert told(changes) == ([], [ANN], 0)
        client.sock.close()


def test_nothing_stays_in_redis_of_workers_that_have_stopped(
    start_site: StartSite, setting: dict[str, str], raw: Raw, key: str, redis_url: str
) -> None:
    with redis_py.Redis.from_url(redis_url) as admin, start(start_site, setting) as one:
        for number in range(5):
            opened(raw, one, key, {"id": number}, None).send(close_frame(1000))
        until(lambda: fetch_json(one.port, f"/presence/{key}/")["count"] == 0)
        until(lambda: not admin.keys(f"{setting['prefix']}*"))


def test_a_worker_with_clients_that_are_there_stops_as_soon_as_others(
    start_site: StartSite, setting: dict[str, str], raw: Raw, key: str
) -> None:
    with start(start_site, setting) as one:
        client = opened(raw, one, key, ANN, "a")
        one.send_signal(signal.SIGTERM)
        assert client.closing()[0] == 1012
        client.send(close_frame(1012))
        assert one.wait(DEADLINE) == 0
        assert "Traceback" not in one.log


@pytest.mark.parametrize("how", ["process", "exit"])
def test_a_child_of_a_worker_leaves_nobody_out(
    start_site: StartSite, setting: dict[str, str], process: None, raw: Raw, key: str, how: str
) -> None:
    """A view that forks: the parent's users stay, whatever becomes of the child."""
    with start(start_site, setting) as one, watch(key) as changes:
        assert told(changes) == ([], [], 0)
        opened(raw, one, key, ANN, "a")
        assert told(changes) == ([ANN], [], 1)
        forking = raw(one)
        forking.open(f"/forks/{how}/?key={key}")
        fetch_json(one.port, f"/notes/{key}/1/")
        fetch(one.port, f"/gate/{key}/")
        assert len(fetch_json(one.port, f"/notes/{key}/2/")) == 2
        opened(raw, one, key, BOB, "b")
        assert told(changes) == ([BOB], [], 2)
        assert sorted(user["id"] for user in present(key)) == [1, 2]
