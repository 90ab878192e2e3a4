"""Publish/subscribe through a real Redis: between processes, with other programs, and while Redis is away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis as redis_py

from .support.clients import RawClient, fetch, fetch_json, notes, request
from .support.fixtures import SITE, STOCK_WORKER, Connect, Raw, StartSite
from .support.frames import BINARY, TEXT, Frame, frame
from .support.servers import WORKER, Server, free_port, gunicorn, redis_server
from .support.waiting import at_once, eventually

NOBODY = "redis://127.0.0.1:{}/0"


@pytest.fixture(scope="module")
def redis_site(start_site: StartSite, redis_url: str) -> Iterator[Server]:
    """The test site with Redis and two workers."""
    with start_site({"WEBSOCKET_BROKER": redis_url}, args=["--workers", "2"]) as server:
        all_answer(server, 2)
        yield server


@pytest.fixture(scope="module")
def stock_redis_site(start_site: StartSite, redis_url: str) -> Iterator[Server]:
    """The same site under a single worker of gevent-websocket."""
    with start_site({"WEBSOCKET_BROKER": redis_url}, worker=STOCK_WORKER) as server:
        yield server


def all_answer(server: Server, workers: int) -> None:
    """Wait until each worker has answered a request."""
    seen: set[int] = set()

    def have() -> bool:
        seen.add(fetch_json(server.port, "/state/")["pid"])
        return len(seen) == workers

    assert eventually(have, 30)


@pytest.fixture
def publisher(redis_url: str) -> Iterator[Any]:
    """A Redis client, such as any other program may have."""
    client = redis_py.Redis.from_url(redis_url)
    yield client
    client.close()


def selecting(raw: Raw, server: Server, channel: str) -> tuple[RawClient, str]:
    """Connect to the view that uses select(); return the subscribed client and its worker's process id."""
    client = raw(server)
    client.open(f"/selects/{channel}/")
    pid = client.frame().text
    assert client.frame().text == "subscribed"
    return client, pid


def plain_python(code: str, redis_url: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own with the test site's settings, like a task or a command."""
    environment = {**os.environ, "TESTSITE_SETTINGS": f'{{"WEBSOCKET_BROKER": "{redis_url}"}}'}
    return subprocess.run(
        [sys.executable, "-c", "import django; django.setup()\n" + code],
        cwd=SITE,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# --- one chat for all ------------------------------------------------------------------------------------------------


def test_workers_and_a_second_gunicorn_share_one_chat(
    redis_site: Server, stock_redis_site: Server, raw: Raw, key: str
) -> None:
    members: dict[str, RawClient] = {}
    for _ in range(200):  # the kernel chooses which worker accepts
        client, pid = selecting(raw, redis_site, key)
        members.setdefault(pid, client)
        if len(members) == 2:
            break
    assert len(members) == 2
    member, pid = selecting(raw, stock_redis_site, key)
    members[pid] = member
    for number, client in enumerate(members.values()):
        client.send(frame(f"message {number}"))
        assert [other.frame().text for other in members.values()] == [f"message {number}"] * 3


def test_chat_of_the_project_is_shared(redis_url: str, raw: Raw) -> None:
    environment = {"REDIS_URL": redis_url}
    with ExitStack() as stack:
        first = stack.enter_context(gunicorn(env=environment, args=["-w", "2"]))
        second = stack.enter_context(gunicorn(env=environment))
        third = stack.enter_context(gunicorn(env=environment, worker=STOCK_WORKER))
        members = [stack.enter_context(RawClient(server.port)) for server in (first, second, third) for _ in range(5)]
        for number, member in enumerate(members):
            member.open("/chat/")
            # gevent-websocket sends the 101 before the view has subscribed: a member that hears itself has subscribed.
            member.send(frame(f"here {number}"))
            while member.frame().text != f"here {number}":
                pass
        for number, member in enumerate(members[:-1]):
            for later in range(number + 1, len(members)):
                assert member.frame().text == f"here {later}"
        for number, member in enumerate(members):
            with at_once():
                member.send(frame(f"first {number}"), frame(f"second {number}"))
                for other in members:
                    assert [other.frame().text, other.frame().text] == [f"first {number}", f"second {number}"]


@pytest.mark.parametrize("server", ["redis_site", "stock_redis_site"])
def test_chat_of_the_original_documentation_works(
    request: pytest.FixtureRequest, raw: Raw, publisher: Any, server: str
) -> None:
    site: Server = request.getfixturevalue(server)
    assert eventually(lambda: publisher.pubsub_numsub("OLD")[0][1] == 0)  # the clients of the other site have left
    members = [raw(site) for _ in range(3)]
    for number, member in enumerate(members, 1):
        member.open("/as-in-2017/")
        assert eventually(lambda number=number: publisher.pubsub_numsub("OLD")[0][1] == number)  # type: ignore[misc]
    all_answer(site, 2 if server == "redis_site" else 1)  # by then the views have read that they are subscribed
    # One message at a time: redis-py may buffer a second one, which select() does not see.
    for number, member in enumerate(members):
        member.send(frame(f"message {number}"))
        assert [other.frame().text for other in members] == [f"message {number}"] * 3


# --- other programs --------------------------------------------------------------------------------------------------


def test_messages_of_any_program_reach_the_clients(
    redis_site: Server, connect: Connect, publisher: Any, key: str
) -> None:
    clients = [connect(redis_site, f"/{view}/{key}/?key={key}") for view in ("listen", "forward", "selects")]
    clients[2].recv()
    clients[2].recv()
    assert eventually(lambda: publisher.pubsub_numsub(key)[0][1] > 0)
    assert len(set(notes_of_any_worker(redis_site, key, 2))) == 2
    for payload, message in (
        (b"hello", "hello"),
        ("Grüße ☺".encode(), "Grüße ☺"),
        (b"\xff\x00\x01\xfe", b"\x00\x01\xfe"),  # marked as binary
        (b"\xff", b""),
        (b"", ""),
    ):
        publisher.publish(key, payload)
        assert [client.recv() for client in clients] == [message] * 3


def notes_of_any_worker(server: Server, key: str, count: int) -> list[str]:
    """The notes of all workers, from the log: a page shows only those of the worker that answers."""
    found: dict[str, list[str]] = {}

    def complete() -> bool:
        pid = str(fetch_json(server.port, "/state/")["pid"])
        found[pid] = [line.rpartition(": ")[2] for line in server.log.splitlines() if f"note {key}: " in line]
        return any(len(lines) >= count for lines in found.values())

    assert eventually(complete)
    return max(found.values(), key=len)


def test_payload_that_is_neither_text_nor_binary_is_dropped_and_logged(
    redis_site: Server, raw: Raw, publisher: Any, key: str
) -> None:
    client, _ = selecting(raw, redis_site, key)
    publisher.publish(key, b"\xfe\xfd no UTF-8")
    publisher.publish(key, b"\xc3")
    publisher.publish(key, b"fine")
    assert client.frame() == Frame(TEXT, b"fine")
    dropped = [line for line in redis_site.log.splitlines() if key in line and "note" not in line]
    assert len(dropped) == 2
    assert "UTF-8" in dropped[0]


def test_plain_process_can_publish(redis_site: Server, raw: Raw, redis_url: str, key: str) -> None:
    client, _ = selecting(raw, redis_site, key)
    done = plain_python(
        "from django_websocket.pubsub import publish\n"
        "from gevent import monkey\n"
        "import threading\n"
        "assert not monkey.is_module_patched('socket')\n"
        f"publish({key!r}, 'from a task')\n"
        f"publish({key!r}, b'\\x00\\xff')\n"
        f"thread = threading.Thread(target=publish, args=({key!r}, 'from a thread'))\n"
        "thread.start(); thread.join()\n",
        redis_url,
    )
    assert done.returncode == 0, done.stderr
    assert client.frame() == Frame(TEXT, b"from a task")
    assert client.frame() == Frame(BINARY, b"\x00\xff")
    assert client.frame() == Frame(TEXT, b"from a thread")


def test_prefix_of_the_broker_keeps_sites_apart(
    start_site: StartSite, redis_url: str, raw: Raw, publisher: Any, key: str
) -> None:
    with start_site({"WEBSOCKET_BROKER": f"{redis_url}?prefix=site1:"}) as server, RawClient(server.port) as client:
        client.open(f"/selects/{key}/")
        client.frame()
        assert client.frame().text == "subscribed"
        publisher.publish(key, "for others")
        publisher.publish(f"site1:{key}", "for this one")
        assert client.frame().text == "for this one"


def test_worker_subscribes_to_a_channel_once_and_leaves_it_with_the_last_member(
    start_site: StartSite, redis_url: str, raw: Raw, publisher: Any, key: str
) -> None:
    with start_site({"WEBSOCKET_BROKER": redis_url}) as server:
        with ExitStack() as stack:
            before = publisher.info("clients")["connected_clients"]
            for _ in range(30):
                client = stack.enter_context(RawClient(server.port))
                client.open(f"/selects/{key}/")
                client.frame()
                client.frame()
            assert publisher.pubsub_numsub(key)[0][1] == 1
            assert publisher.info("clients")["connected_clients"] <= before + 2
        assert eventually(lambda: publisher.pubsub_numsub(key)[0][1] == 0)


# --- Redis is missing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("worker", [WORKER, STOCK_WORKER])
def test_chat_without_redis_is_refused_and_the_log_names_the_remedy(raw: Raw, worker: str) -> None:
    place = NOBODY.format(free_port())
    with gunicorn(worker=worker, env={"REDIS_URL": place}) as server, RawClient(server.port) as client, at_once():
        client.send(request("/chat/"))
        response = client.response()
        if worker == WORKER:
            assert response.status == 503
            assert int(response.headers["retry-after"]) > 0
        else:
            assert client.closing()[0] == 4503
        assert eventually(lambda: "Redis" in server.log)
        lines = [line for line in server.log.splitlines() if "Redis" in line]
        for line in lines:
            assert place.removesuffix("/0") in line
            assert "Start it" in line
            assert "WEBSOCKET_BROKER" in line
        assert "Traceback" not in server.log


def test_publishing_without_redis_raises_an_error_that_names_the_remedy() -> None:
    place = NOBODY.format(free_port())
    done = plain_python("from django_websocket.pubsub import publish\npublish('news', 'hello')", place)
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert error.startswith("django_websocket.exceptions.BrokerError: ")
    assert place.removesuffix("/0") in error
    assert "Start it" in error
    assert "WEBSOCKET_BROKER" in error


def test_views_and_pages_fail_soon_without_redis(start_site: StartSite, raw: Raw, connect: Connect, key: str) -> None:
    with start_site({"WEBSOCKET_BROKER": NOBODY.format(free_port())}) as server:
        for view in ("forward", "listen"):  # these views have not accepted yet
            with at_once(), RawClient(server.port) as client:
                client.send(request(f"/{view}/{key}/"))
                assert client.response().status == 503
        with at_once(), connect(server, f"/selects/{key}/") as accepted:
            assert accepted.closing()[0] == 1013
        assert "Traceback" not in server.log
        with at_once():
            assert fetch(server.port, f"/publish/{key}/?text=x").status == 500  # like any other error in a page
        assert eventually(lambda: "BrokerError" in server.log)


# --- Redis goes away and comes back ----------------------------------------------------------------------------------


def test_restart_of_redis_is_noticed_by_everybody_and_messages_flow_again(
    start_site: StartSite, raw: Raw, connect: Connect, key: str
) -> None:
    with redis_server() as redis, start_site({"WEBSOCKET_BROKER": f"redis://{redis.address}/0"}) as server:
        with ExitStack() as stack:
            selects = stack.enter_context(RawClient(server.port))
            selects.open(f"/selects/{key}/")
            selects.frame()
            assert selects.frame().text == "subscribed"
            forwarded = [
                stack.enter_context(connect(server, f"/{view}/{key}/?key={key}")) for view in ("listen", "forward")
            ]
            assert len(notes(server.port, key, 2)) == 2

            redis.stop(signal.SIGKILL)
            redis.start()
            with redis_py.Redis(port=redis.port) as publisher:
                assert eventually(lambda: publisher.pubsub_numsub(key)[0][1] > 0, 10)
                assert selects.frame().text == "MessagesMissed"
                assert [client.closing()[0] for client in forwarded] == [1012, 1012]
                publisher.publish(key, "again")
                assert selects.frame().text == "again"
            selects.send(frame("published by a view"))
            assert selects.frame().text == "published by a view"
            again = stack.enter_context(connect(server, f"/listen/{key}/?key=again"))
            assert notes(server.port, "again") == ["over"]
            assert fetch(server.port, f"/publish/{key}/?text=news").status == 200
            assert again.recv() == "news"
            assert selects.frame().text == "news"
        assert eventually(lambda: "Redis" in server.log)
        assert "Traceback" not in server.log


def test_killed_subscription_is_noticed(start_site: StartSite, key: str) -> None:
    with (
        redis_server() as redis,
        start_site({"WEBSOCKET_BROKER": f"redis://{redis.address}/0"}) as server,
        RawClient(server.port) as client,
        redis_py.Redis(port=redis.port) as publisher,
    ):
        client.open(f"/selects/{key}/")
        client.frame()
        assert client.frame().text == "subscribed"
        publisher.client_kill_filter(_type="pubsub")
        assert client.frame().text == "MessagesMissed"
        publisher.publish(key, "again")
        assert client.frame().text == "again"


def test_redis_that_hangs_is_noticed(start_site: StartSite, key: str) -> None:
    with (
        redis_server() as redis,
        start_site({"WEBSOCKET_BROKER": f"redis://{redis.address}/0"}) as server,
        RawClient(server.port) as client,
        redis_py.Redis(port=redis.port) as publisher,
    ):
        client.open(f"/selects/{key}/")
        client.frame()
        assert client.frame().text == "subscribed"
        redis.send_signal(signal.SIGSTOP)
        try:
            assert eventually(lambda: "Redis" in server.log)
        finally:
            redis.send_signal(signal.SIGCONT)
        assert client.frame().text == "MessagesMissed"
        publisher.publish(key, "again")
        assert client.frame().text == "again"
