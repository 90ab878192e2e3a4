"""Views that are `async def`: they have all that others have, and their clients notice no difference."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis

from .support.clients import ACCEPT, RawClient, fetch, fetch_json, notes, request, undisturbed
from .support.fixtures import STOCK_WORKER, Connect, Raw, StartSite
from .support.frames import PING, PONG, Frame, close_frame, frame
from .support.postgres import Database, settings_of
from .support.servers import WORKER, Server, redis_server
from .support.waiting import DEADLINE, at_once, eventually
from .test_logins import SOON, log_in


@pytest.fixture(scope="module")
def ours(start_site: StartSite) -> Iterator[Server]:
    with start_site({"WEBSOCKET_CLOSE_TIMEOUT": 0.3, **SOON}) as server:
        yield server


@pytest.fixture(scope="module")
def stock(start_site: StartSite) -> Iterator[Server]:
    with start_site({"WEBSOCKET_CLOSE_TIMEOUT": 0.3, **SOON}, worker=STOCK_WORKER) as server:
        yield server


@pytest.fixture(params=["ours", "stock"])
def server(request: pytest.FixtureRequest) -> Server:
    """The test site under either worker."""
    found: Server = request.getfixturevalue(request.param)
    return found


def call(client: RawClient, name: str, *more: bytes) -> Any:
    """Have the view call something, and return what came of it."""
    client.send(frame(name), *more)
    return json.loads(client.frame().text)


# --- messages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/asynchronous/echo/", "hello"),
        ("/asynchronous/undecorated/", "hello"),
        ("/asynchronous/class/ann/", "ann: hello"),
        ("/asynchronous/loop/ann/", "ann: hello"),
    ],
)
def test_view_of_each_kind_answers(server: Server, raw: Raw, path: str, answer: str) -> None:
    client = raw(server)
    assert client.open(path, behind=frame("hello") * 2).headers["sec-websocket-accept"] == ACCEPT
    with at_once():
        assert [client.frame().text for _ in range(2)] == [answer] * 2
        client.send(frame("hello") * 3)
        assert [client.frame().text for _ in range(3)] == [answer] * 3
    client.send(close_frame(1000))
    assert client.closing() == (1000, "")
    assert client.rest() == b""


def test_messages_of_all_kinds_and_sizes_come_back(server: Server, connect: Connect) -> None:
    client = connect(server, "/asynchronous/echo/")
    for message in ("", b"", "Grüße", b"\0\xff", "x" * 300_000, b"y" * 300_000):
        assert client.ask(message) == message


def test_close_code_of_the_client_reaches_the_view(server: Server, raw: Raw, key: str) -> None:
    client = raw(server)
    client.open(f"/asynchronous/echo/?key={key}")
    client.send(close_frame(4321, "bye"))
    assert client.closing() == (4321, "bye")
    assert notes(server.port, key) == ["4321 bye"]


def test_receiving_may_time_out(server: Server, raw: Raw) -> None:
    client = raw(server)
    client.open("/asynchronous/calls/", behind=frame("receives_within"))
    assert client.frame().text == "timed out"
    client.send(frame("late"))
    assert json.loads(client.frame().text) == "late"


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("receives_nan", "ValueError: A timeout must be a number of seconds, not NaN"),
        ("receives_twice", "RuntimeError: "),
        ("queries_synchronously", "SynchronousOnlyOperation: "),
        ("closes_wrongly", "ValueError: "),
        ("sends_no_message", "TypeError: A message must be a str or bytes, not dict"),
    ],
)
def test_wrong_call_is_an_error_and_the_view_can_go_on(server: Server, raw: Raw, name: str, error: str) -> None:
    client = raw(server)
    client.open("/asynchronous/calls/")
    for _ in range(2):
        assert call(client, name).startswith(error)
    assert call(client, "receives_json", frame("1"), frame('"two"')) == [1, "two"]


def test_text_that_is_no_json_is_an_error(server: Server, raw: Raw) -> None:
    client = raw(server)
    client.open("/asynchronous/calls/")
    assert "Error" in call(client, "receives_json", frame("{"))


def test_websocket_tells_about_itself(server: Server, raw: Raw) -> None:
    first, second = raw(server), raw(server)
    for client in (first, second):
        client.open("/asynchronous/calls/")
    told = call(first, "tells_about_itself")
    assert (told["closed"], told["code"], told["reason"], told["latency"]) == (False, None, "", None)
    assert told["path"] == "/asynchronous/calls/"
    assert told["id"] == call(first, "tells_about_itself")["id"] != call(second, "tells_about_itself")["id"]


def test_receive_that_is_given_up_again_and_again_loses_no_message(server: Server, raw: Raw) -> None:
    client = raw(server)
    client.open("/asynchronous/waits-again-and-again/")
    for number in range(200):
        client.send(frame(f"{number}a"), frame(f"{number}b"))
        if number % 3 == 0:
            time.sleep(0.001)  # so that messages come at all moments of the view's wait
    assert [client.frame().text for _ in range(400)] == [f"{number}{half}" for number in range(200) for half in "ab"]
    client.send(frame("end"))
    assert int(client.frame().text) > 0


@pytest.mark.parametrize("size", [10, 100_000])
def test_tasks_of_a_view_may_send_at_once(server: Server, raw: Raw, size: int) -> None:
    client = raw(server, receive_buffer=4096)
    client.open(f"/asynchronous/sends-in-tasks/{size}/", behind=frame("go"))
    received = [client.frame().text.rstrip("x").split() for _ in range(100)]
    for task in range(5):
        assert [int(number) for name, number in received if name == str(task)] == list(range(20))
    assert client.closing()[0] == 1000


def test_view_that_leaves_its_message_again_and_again_ends_with_an_error(ours: Server, raw: Raw) -> None:
    client = raw(ours)
    client.open("/asynchronous/leaves-its-message/", behind=frame("hello"))
    assert client.closing() == (1011, "internal error")
    assert eventually(lambda: "leaves_its_message was called for a message, but did not receive it" in ours.log)


# --- the handshake ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "chosen"), [("first", "v2.example"), ("v1.example", "v1.example")])
def test_101_has_subprotocol_header_and_cookie(ours: Server, raw: Raw, how: str, chosen: str) -> None:
    client = raw(ours)
    response = client.open(
        f"/asynchronous/subprotocols/{how}/", {"Sec-WebSocket-Protocol": "v1.example, v2.example, v3.example"}
    )
    assert response.headers["sec-websocket-protocol"] == chosen
    assert (response.headers["x-header"], response.headers["x-marked"]) == ("set", "101")
    assert response.cookies["flavour"] == "oat"
    assert client.frame().text == "accepted"


def test_subprotocol_that_was_not_offered_is_an_error(ours: Server, raw: Raw) -> None:
    client = raw(ours)
    client.send(request("/asynchronous/subprotocols/v1.example/"))
    assert client.response().status == 500


@pytest.mark.parametrize(
    ("how", "status"), [("403", 403), ("404", 404), ("denied", 403), ("raise", 500), ("exit", 500), ("cancel", 500)]
)
def test_answer_before_acceptance_goes_through_the_middleware(ours: Server, raw: Raw, how: str, status: int) -> None:
    client = raw(ours)
    client.send(request(f"/asynchronous/refuse/{how}/"))
    response = client.response()
    assert (response.status, response.headers["x-marked"]) == (status, str(status))
    assert raw(ours).open("/asynchronous/echo/").status == 101


@pytest.mark.parametrize(("how", "code"), [("403", 4403), ("404", 4404), ("denied", 4403), ("raise", 4500)])
def test_refusal_becomes_a_close_code(stock: Server, ours: Server, raw: Raw, how: str, code: int) -> None:
    for server, path in ((stock, "refuse"), (stock, "refuse-by-closing"), (ours, "refuse-by-closing")):
        client = raw(server)
        client.open(f"/asynchronous/{path}/{how}/", behind=frame("hello"))
        assert client.closing()[0] == code


def test_view_that_returns_nothing_accepts(server: Server, raw: Raw) -> None:
    client = raw(server)
    client.open("/asynchronous/refuse/return/")
    assert client.closing() == (1000, "")


def test_foreign_origin_is_refused(ours: Server, raw: Raw) -> None:
    client = raw(ours)
    client.send(request("/asynchronous/small/", {"Origin": "http://evil.example"}))
    assert client.response().status == 403
    raw(ours).open("/asynchronous/small/", {"Origin": "https://partner.example"})


@pytest.mark.parametrize(("how", "status"), [("replace", 409), ("raise", 500)])
def test_view_ends_when_a_middleware_replaces_the_101(ours: Server, raw: Raw, key: str, how: str, status: int) -> None:
    client = raw(ours)
    client.send(request(f"/asynchronous/echo/?key={key}&interfere={how}"))
    assert client.response().status == status
    assert notes(ours.port, key) == ["None"]


def test_plain_view_under_a_decorator_that_makes_it_asynchronous_says_so(ours: Server, raw: Raw, key: str) -> None:
    client = raw(ours)
    client.send(request(f"/asynchronous/misplaced/?key={key}"))
    assert client.response().status == 500
    assert eventually(
        lambda: "misplaced is a plain def, but a decorator above @websocket makes it async def" in ours.log
    )
    assert notes(ours.port, key, 0) == []


def test_view_that_neither_accepts_nor_answers_is_cancelled(start_site: StartSite, raw: Raw, key: str) -> None:
    with start_site({"WEBSOCKET_HANDSHAKE_TIMEOUT": 0.3}) as server:
        client = raw(server)
        client.send(request(f"/asynchronous/never-accepts/?key={key}"))
        assert client.response().status == 500
        assert notes(server.port, key) == ["finally"]
        assert eventually(lambda: "neither accepted the WebSocket nor answered within 0.3 seconds" in server.log)


def test_view_learns_that_its_client_has_vanished(ours: Server, raw: Raw, key: str) -> None:
    client = raw(ours)
    client.open(f"/asynchronous/echo/?key={key}")
    client.reset()
    assert notes(ours.port, key) == ["1006"]


# --- the end ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "code"),
    [("return", 1000), ("raise", 1011), ("exit", 1011), ("404", 4404), ("denied", 4403), ("cancel", 1012)],
)
def test_end_of_the_view_closes(server: Server, raw: Raw, key: str, how: str, code: int) -> None:
    other = raw(server)
    other.open("/asynchronous/echo/")
    client = raw(server)
    client.open(f"/asynchronous/end/{how}/?key={key}", behind=frame("go"))
    assert client.closing()[0] == code
    assert notes(server.port, key) == ["finally"]
    other.send(frame("still here"))
    assert other.frame().text == "still here"


def test_error_of_a_view_is_logged_once_with_its_traceback(start_site: StartSite, raw: Raw) -> None:
    with start_site() as server:
        before = fetch_json(server.port, "/state/")["signals"].get("exception", 0)
        client = raw(server)
        client.open("/asynchronous/end/raise/", behind=frame("go"))
        assert client.closing() == (1011, "internal error")
        assert eventually(lambda: "ValueError: raised by a view" in server.log)
        assert server.log.count("Error in the WebSocket view of /asynchronous/end/raise/") == 1
        assert server.log.count("Traceback") == 1
        assert "asynchronous.py" in server.log
        assert fetch_json(server.port, "/state/")["signals"]["exception"] == before + 1


def test_sentry_is_told_of_an_error_once_and_with_its_request(start_site: StartSite, raw: Raw) -> None:
    with start_site(app="testsite.sentry:application") as server:
        client = raw(server)
        client.open("/asynchronous/end/raise/", behind=frame("go"))
        assert client.closing()[0] == 1011

        def events() -> list[Any]:
            whole = server.log.rpartition("\n")[0].splitlines()  # the last line may not be whole yet
            lines = [line.removeprefix("sentry ") for line in whole if line.startswith("sentry ")]
            return [found for found in map(json.loads, lines) if found.get("type", "event") == "event"]

        assert eventually(lambda: "ValueError: raised by a view" in server.log and events())
        (event,) = events()
        (error,) = event["exception"]["values"]
        assert (error["type"], error["value"]) == ("ValueError", "raised by a view")
        assert event["request"]["url"] == "http://localhost/asynchronous/end/raise/"


def test_view_closes_with_a_code_and_a_reason(server: Server, raw: Raw, key: str) -> None:
    client = raw(server)
    client.open(f"/asynchronous/calls/?key={key}", behind=frame("closes"))
    assert client.closing() == (4321, "bye")
    client.send(close_frame(4321, "bye"))
    assert notes(server.port, key, 2) == ["ConnectionClosed", "None 4321 bye"]


@pytest.mark.parametrize("how", ["close", "reset"])
def test_view_that_waits_for_something_else_is_cancelled_when_its_client_leaves(
    server: Server, raw: Raw, key: str, how: str
) -> None:
    client = raw(server)
    client.open(f"/asynchronous/busy/?key={key}")
    assert client.frame().text == "busy"
    begin = time.monotonic()
    if how == "close":
        client.send(close_frame(1001))
    else:
        client.reset()
    found = notes(server.port, key, 2)
    assert found[0] == ("cancelled 1001" if how == "close" else "cancelled 1006")
    assert found[1].startswith("finally ")
    assert 0.25 < time.monotonic() - begin < 3  # WEBSOCKET_CLOSE_TIMEOUT


def test_pings_are_answered_while_the_view_waits_for_something_else(server: Server, raw: Raw) -> None:
    client = raw(server)
    client.open("/asynchronous/busy/")
    assert client.frame().text == "busy"
    with at_once():
        client.send(frame(b"alive?", PING))
        assert client.frame() == Frame(PONG, b"alive?")


def test_message_that_is_too_big_closes(server: Server, raw: Raw) -> None:
    client = raw(server)
    client.open("/asynchronous/small/", behind=frame("x" * 101))
    assert client.closing()[0] == 1009


def test_what_a_client_sends_to_a_view_that_only_sends_is_dropped(server: Server, raw: Raw, key: str) -> None:
    client = raw(server)
    client.open(f"/asynchronous/sends-only/?key={key}", behind=frame("dropped") * 100)
    assert client.frame().text == "only this"
    client.send(frame(b"?", PING))
    assert client.frame() == Frame(PONG, b"?")
    client.send(close_frame(1000))
    assert client.closing()[0] == 1000
    assert notes(server.port, key) == ["over"]


def test_slow_reader_is_closed_and_disturbs_nobody(start_site: StartSite, raw: Raw, key: str) -> None:
    with start_site({"WEBSOCKET_SEND_TIMEOUT": 0.5}) as server, undisturbed(server.port):
        client = raw(server, receive_buffer=4096)
        client.open(f"/asynchronous/floods/?key={key}")
        assert notes(server.port, key) == ["ConnectionClosed"]
        assert eventually(lambda: "1008" in server.log)


def test_dead_client_is_noticed(start_site: StartSite, raw: Raw, key: str) -> None:
    with start_site({"WEBSOCKET_PING_INTERVAL": 0.3, "WEBSOCKET_PING_TIMEOUT": 0.3}) as server:
        client = raw(server)
        client.open(f"/asynchronous/echo/?key={key}")
        assert client.closing()[0] == 1011
        assert notes(server.port, key)[0].startswith("1011")


# --- the end of the worker -------------------------------------------------------------------------------------------


def test_views_tidy_up_when_the_service_ends(start_site: StartSite, raw: Raw, key: str) -> None:
    with start_site(args=["--graceful-timeout", "10"]) as server:
        clients = [raw(server) for _ in range(20)]
        for client in clients:
            client.open(f"/asynchronous/tidies-up/?key={key}")
        begin = time.monotonic()
        server.send_signal(signal.SIGTERM)
        for client in clients:
            assert client.closing()[0] == 1012
            client.send(close_frame(1012))
        server.wait()
        assert time.monotonic() - begin < 5
        assert server.log.count(f"note {key}: tidy 1012") == 20
        assert "Traceback" not in server.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_client_that_waits_for_its_subscription_is_told_to_come_back_when_the_worker_ends(
    start_site: StartSite, raw: Raw, key: str, number: signal.Signals
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(DEADLINE)
        settings = {"WEBSOCKET_BROKER": f"redis://127.0.0.1:{silent.getsockname()[1]}"}
        with start_site(settings, args=["--graceful-timeout", "2"]) as server:
            client = raw(server)
            client.send(request(f"/asynchronous/subscribed/{key}/"))
            with silent.accept()[0]:
                server.send_signal(number)
                response = client.response()
                assert (response.status, response.headers["retry-after"]) == (503, "5")
                assert client.rest() == b""
            assert eventually(lambda: "Worker exiting" in server.log)
            assert "Error" not in server.log and "Traceback" not in server.log


def test_client_that_no_view_has_accepted_is_told_to_come_back_when_the_worker_ends(
    start_site: StartSite, raw: Raw, key: str
) -> None:
    logging = {"version": 1, "handlers": {"all": {"class": "logging.StreamHandler"}}}
    logging |= {"loggers": {"django_websocket": {"handlers": ["all"], "level": "INFO"}}}
    settings = {"WEBSOCKET_HANDSHAKE_TIMEOUT": 60.0, "LOGGING": logging}
    with start_site(settings, args=["--graceful-timeout", "2"]) as server:
        client = raw(server)
        client.send(request(f"/asynchronous/never-accepts/?key={key}"))
        assert eventually(lambda: fetch_json(server.port, "/asynchronous/tasks/"))
        server.send_signal(signal.SIGTERM)
        assert client.response().status == 503
        server.wait()
        assert f"note {key}: finally" in server.log
        why = "503 the process stopped before the view had accepted or answered"
        assert server.log.count(f"127.0.0.1 /asynchronous/never-accepts/: {why}\n") == 1
        assert "Traceback" not in server.log


def test_views_that_do_not_end_are_cancelled_when_the_service_ends(start_site: StartSite, raw: Raw, key: str) -> None:
    settings = {"WEBSOCKET_CLOSE_TIMEOUT": 60.0}
    with start_site(settings, args=["--graceful-timeout", "4"]) as server:
        busy, stubborn = raw(server), raw(server)
        busy.open(f"/asynchronous/busy/?key={key}")
        stubborn.open(f"/asynchronous/stubborn/?key={key}")
        assert (busy.frame().text, stubborn.frame().text) == ("busy", "stubborn")
        begin = time.monotonic()
        server.send_signal(signal.SIGTERM)
        assert (busy.closing()[0], stubborn.closing()[0]) == (1012, 1012)
        server.wait()
        assert time.monotonic() - begin < 5
        assert f"note {key}: cancelled 1012" in server.log
        assert f"note {key}: finally 0" in server.log
        assert "SIGKILL" not in server.log


# --- logins ----------------------------------------------------------------------------------------------------------


def test_decorators_of_django_stand_above_the_view(ours: Server, raw: Raw, key: str) -> None:
    client = raw(ours)
    client.send(request("/asynchronous/members/"))
    assert client.response().status == 302
    client = raw(ours)
    client.open("/asynchronous/members/", log_in(ours, key))
    assert client.frame().text == f"hello {key}"


@pytest.mark.parametrize("what", ["leave", "password", "deactivate", "disconnect"])
def test_conversation_ends_with_its_login(ours: Server, raw: Raw, key: str, what: str) -> None:
    headers = log_in(ours, key)
    client, other = raw(ours), raw(ours)
    client.open("/asynchronous/members/", headers)
    other.open("/asynchronous/members/", log_in(ours, f"{key}-other"))
    for each in (client, other):
        assert each.frame().text.startswith("hello ")
    fetch(ours.port, "/leave/" if what == "leave" else f"/change/{what}/?name={key}", headers)
    assert client.closing() == (4401, "go away" if what == "disconnect" else "logged out")
    other.send(frame("still here"))
    assert other.frame().text == "still here"


@pytest.mark.parametrize("what", ["deactivate", "disconnect"])
def test_login_by_a_first_message_is_the_users(ours: Server, raw: Raw, key: str, what: str) -> None:
    log_in(ours, key)
    client = raw(ours)
    client.open("/asynchronous/knows-by-first-message/", behind=frame(key))
    client.send(frame("hi"))
    assert client.frame().text == f"{key}: hi"
    fetch(ours.port, f"/change/{what}/?name={key}")
    assert client.closing() == (4401, "go away" if what == "disconnect" else "logged out")


@pytest.mark.parametrize("what", ["leave", "password", "deactivate", "disconnect"])
def test_login_is_watched_from_the_first_use_of_the_user(ours: Server, raw: Raw, key: str, what: str) -> None:
    headers = log_in(ours, key)
    client, unseen = raw(ours), raw(ours)
    client.open("/asynchronous/looks-later/", headers)
    unseen.open("/asynchronous/looks-later/", headers)
    for _ in range(2):
        client.send(frame("I am"))
        assert client.frame().text == f"'I am' {key}"
    fetch(ours.port, "/leave/" if what == "leave" else f"/change/{what}/?name={key}", headers)
    assert client.closing() == (4401, "go away" if what == "disconnect" else "logged out")
    unseen.send(frame("I am"))
    assert unseen.frame().text == f"'I am' {key if what == 'disconnect' else ''}"


# --- channels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", ["forward", "subscribed"])
def test_subscribed_client_gets_what_is_published_until_it_ends(server: Server, raw: Raw, key: str, view: str) -> None:
    client, other = raw(server), raw(server)
    client.open(f"/asynchronous/{view}/{key}/")
    other.open(f"/asynchronous/forward/{key}/")
    other.send(frame("one"))
    assert (client.frame().text, other.frame().text) == ("one", "one")
    client.send(frame("leave"))
    assert client.frame().text == "left"
    other.send(frame("two"))
    assert other.frame().text == "two"
    with at_once():
        client.send(frame(b"?", PING))
        assert client.frame() == Frame(PONG, b"?")


def test_subscribing_that_is_cancelled_leaves_no_subscription(start_site: StartSite, raw: Raw, key: str) -> None:
    with redis_server() as redis, start_site({"WEBSOCKET_BROKER": f"redis://{redis.address}/0"}) as server:
        impatient, patient = raw(server), raw(server)
        with Redis(port=redis.port) as asked:
            redis.send_signal(signal.SIGSTOP)
            impatient.open(f"/asynchronous/loses-patience/{key}/")
            assert impatient.frame().text == "gave up"
            redis.send_signal(signal.SIGCONT)
            patient.open(f"/asynchronous/forward/{key}-2/?key={key}")
            assert notes(server.port, key) == ["subscribed"]  # behind the other one, on the same connection
            assert eventually(
                lambda: asked.pubsub_numsub(key, f"{key}-2") == [(key.encode(), 0), (f"{key}-2".encode(), 1)]
            )


def test_view_may_end_and_leave_its_client_listening(server: Server, raw: Raw, key: str) -> None:
    listener, publisher = raw(server), raw(server)
    listener.open(f"/asynchronous/listen/{key}/?key={key}")
    assert notes(server.port, key) == ["over"]
    publisher.open(f"/asynchronous/calls/?channel={key}")
    call(publisher, "publishes")
    assert listener.frame().text == "published"
    listener.send(frame("dropped"), close_frame(1000))
    assert listener.closing() == (1000, "")
    assert listener.rest() == b""


def test_client_is_told_to_come_back_when_the_broker_is_away(start_site: StartSite, raw: Raw, key: str) -> None:
    with redis_server() as redis:
        settings = {"WEBSOCKET_BROKER": f"redis://{redis.address}"}
        with start_site(settings) as server:
            client = raw(server)
            client.open(f"/asynchronous/forward/{key}/")
            client.send(frame("hello"))
            assert client.frame().text == "hello"
            redis.stop()
            client.send(frame("nobody hears this"))
            assert client.closing()[0] in (1012, 1013)
            late = raw(server)
            late.send(request(f"/asynchronous/forward/{key}/"))
            assert late.response().status == 503


def test_receivers_are_called_and_may_use_the_database(server: Server, raw: Raw, key: str) -> None:
    client = raw(server)
    client.open(f"/asynchronous/observed/?key={key}", behind=frame("hello"))
    assert client.frame().text == "hello"
    client.send(close_frame(4321, "bye"))
    assert client.closing()[0] == 4321
    client.sock.close()
    assert sorted(notes(server.port, key, 3)) == ["4321 bye", "4321 bye 1 1", "connected"]


# --- databases -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("worker", ["ours", "stock"])
def test_each_query_gives_its_connection_back(
    start_site: StartSite, postgres: Server, database: Database, raw: Raw, worker: str
) -> None:
    name = f"asynchronous-{worker}"
    settings = {"DATABASES": {"default": settings_of(postgres, name, CONN_MAX_AGE=None, ATOMIC_REQUESTS=True)}}
    with start_site(settings, worker=STOCK_WORKER if worker == "stock" else WORKER) as server:
        clients = [raw(server) for _ in range(40)]  # more than PostgreSQL takes
        for client in clients:
            client.open("/asynchronous/calls/")
            assert call(client, "in_atomic") is False
            assert call(client, "queries")[0] > 0
        assert eventually(lambda: database.held(name) == 0)
        refused = raw(server)
        refused.send(request("/asynchronous/refuse/403/"))
        refused.response()
        assert eventually(lambda: database.held(name) == 0)
        for client in clients:
            client.sock.close()


def test_tenant_and_time_zone_that_middleware_has_set_hold_in_the_view(
    start_site: StartSite, postgres: Server, database: Database, raw: Raw
) -> None:
    from testsite import settings as site

    middleware = ["testsite.hooks.tenant", "testsite.hooks.local_time", *site.MIDDLEWARE]
    settings = {"DATABASES": {"default": settings_of(postgres, "tenants", ENGINE="testsite.tenants")}}
    with start_site({**settings, "MIDDLEWARE": middleware}) as server:
        clients = {name: raw(server) for name in ("one", "three")}
        for name, client in clients.items():
            client.open(f"/asynchronous/calls/?tenant={name}&zone=Etc/GMT-{len(name)}")
        for _ in range(2):
            for name, client in clients.items():
                assert call(client, "search_paths") == [name, name]
                told = call(client, "tells_about_itself")
                assert (told["tenant"], told["zone"]) == (name, f"+0{len(name)}")
        assert eventually(lambda: database.held("tenants") == 0)


def test_language_of_the_request_holds_in_the_view(server: Server, raw: Raw) -> None:
    clients = {language: raw(server) for language in ("de", "en")}
    for language, client in clients.items():
        client.open(f"/asynchronous/calls/?tenant={language}", {"Accept-Language": language})
    for _ in range(2):
        for language, client in clients.items():
            told = call(client, "tells_about_itself")
            assert (told["language"], told["tenant"]) == (language, language)


# --- what a client costs ---------------------------------------------------------------------------------------------


def test_idle_client_has_no_greenlet_and_nothing_is_left_of_it(ours: Server, raw: Raw, key: str) -> None:
    def come_and_go(count: int) -> None:
        ends = [close_frame(1000), frame("x", fin=False) + close_frame(1002), b""]
        for number in range(count):
            with RawClient(ours.port) as client:
                client.open(f"/asynchronous/{('echo', 'busy', f'forward/{key}', 'calls')[number % 4]}/")
                if number % 4 == 3:
                    assert call(client, "queries")[0] > 0
                client.send(ends[number % 3])

    def held() -> dict[str, int]:
        assert eventually(lambda: fetch_json(ours.port, "/asynchronous/tasks/") <= 0)
        found = fetch_json(ours.port, "/census/")
        found["greenlets"] = fetch_json(ours.port, "/state/")["greenlets"]
        return {name: count for name, count in found.items() if name.split(".")[-1] in COUNTED}

    come_and_go(20)
    before = held()
    with_clients = [raw(ours) for _ in range(50)]
    for client in with_clients:
        client.open("/asynchronous/echo/", behind=frame("hello"))
        assert client.frame().text == "hello"
    assert fetch_json(ours.port, "/state/")["greenlets"] <= before["greenlets"] + 3
    for client in with_clients:
        client.sock.close()
    for _ in range(3):
        come_and_go(200)
        after = held()
        if all(after.get(name, 0) <= before.get(name, 0) + 3 for name in after):
            break
        before = after
    assert all(after.get(name, 0) <= before.get(name, 0) + 3 for name in after), (before, after)


@pytest.mark.parametrize("path", ["/asynchronous/echo/", "/asynchronous/keeps-its-context/"])
def test_nothing_is_left_of_clients_that_leave_behind_their_messages(ours: Server, path: str) -> None:
    """A client that leaves while its view runs has a timer made in the context of the view."""

    def conversations() -> int:
        found: dict[str, int] = fetch_json(ours.port, "/census/")
        return found.get("django_websocket.handler.coroutine.CoroutineConversation", 0)

    before = conversations()
    for _ in range(20):
        with RawClient(ours.port) as client:
            client.open(path)
            client.send(frame("x" * 2000) * 3, close_frame(1000))
            assert client.closing() == (1000, "")
    assert eventually(lambda: conversations() <= before)


COUNTED = {
    "greenlets",
    "open connections",
    "descriptors",
    "open databases",
    "channels",
    "Task",
    "Future",
    "TimerHandle",
    "Handle",
    "Connection",
    "AsyncWebSocket",
    "CoroutineConversation",
    "WSGIRequest",
    "Context",
    "coroutine",
    "SerialExecutor",
    "DatabaseWrapper",
}
