"""Who is connected and what they are doing, in all processes: `django_websocket.monitoring`."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, connections
from django.test import override_settings
from redis import Redis

from django_websocket import monitoring
from django_websocket.handler import orders
from django_websocket.handler.observing import matches_pattern
from django_websocket.handler.sealing import opened, sealed
from django_websocket.handler.whereabouts import place_among
from django_websocket.management.commands import websockets
from django_websocket.transport.connection import Connection
from django_websocket.transport.culprits import PROJECT, kind_of

from .support.brokers import forward, in_use
from .support.clients import RawClient
from .support.documentation import Project
from .support.fixtures import SITE, Raw, StartSite
from .support.frames import frame
from .support.servers import Cluster, Sentinel, Server
from .support.waiting import eventually, until
from .support.wire import Pairs
from .test_logins import get_id, log_in

SOURCE = (SITE / "testsite" / "monitored.py").read_text().splitlines()
QUIET = {"WEBSOCKET_LOGIN_CHECK_INTERVAL": 60.0, "WEBSOCKET_URLCONF": "testsite.monitored"}
LAYER = {"default": {"BACKEND": "django_websocket.channels.ChannelLayer"}}


def line(comment: str) -> str:
    """Return where the test site's views have a comment, as `Connection.where` says it."""
    [number] = [number for number, text in enumerate(SOURCE, 1) if text.endswith(f"# {comment}")]
    return f"testsite/monitored.py:{number}"


@pytest.fixture(scope="module")
def server(start_site: StartSite, redis_url: str) -> Iterator[Server]:
    """A site with two processes; this one asks from outside."""
    broker = {"url": redis_url, "prefix": "monitored:"}
    settings = {**QUIET, "WEBSOCKET_BROKER": broker, "CHANNEL_LAYERS": LAYER}
    with start_site(settings, args=["--workers", "2", "--graceful-timeout", "1"]) as server, in_use(broker):
        yield server


def only(connections: monitoring.Connections) -> monitoring.Connection:
    [found] = connections
    return found


def seen(count: int, **which: Any) -> monitoring.Connections:
    """Wait until so many connections are seen, and return them."""
    found = monitoring.Connections()

    def are_there() -> bool:
        nonlocal found
        found = monitoring.connections(**which)
        return len(found) == count

    assert eventually(are_there), found
    return found


def test_connection_tells_who_it_is_and_what_it_does(server: Server, raw: Raw, key: str) -> None:
    client = raw(server)
    client.open(f"/room/{key}/?secret=1", {**log_in(server, key), "X-Forwarded-For": "203.0.113.7"})
    assert client.frame().text == "welcome"
    found = only(seen(1, path=f"/room/{key}/"))
    assert found.user == str(get_id(server, key))
    assert (found.user_model, found.database, found.tenant) == ("auth.User", "default", "")
    assert (found.path, found.view) == (f"/room/{key}/", "testsite.monitored.room")
    assert found.channels == ("news", f"room:{key}") and found.more_channels == 0
    assert (found.where, found.function) == (line("here waits the room"), "wait_in_a_helper")
    assert 0 < found.age < 60 and found.latency is None and found.outbox == 0
    assert (found.received_messages, found.sent_messages) == (0, 1)
    assert (found.received_bytes, found.sent_bytes) == (0, 9)
    assert len(found.id) == 32 and found.pid > 0 and found.host
    assert only(monitoring.connections(id=found.id)).id == found.id
    sessionid = log_in(server, key)["Cookie"].partition("=")[2]
    for secret in ("secret=1", sessionid):
        assert secret not in repr(found)


def test_views_of_every_kind_are_seen_where_they_are(server: Server, raw: Raw, key: str) -> None:
    clients: dict[str, RawClient] = {}
    for path in ("/coroutine/", "/works/", "/idles/", f"/listen/{key}/"):
        clients[path] = raw(server)
        clients[path].open(path)
    for path in ("/works/", "/idles/"):
        assert only(seen(1, path=path)).where == ""  # it waits for a message, in no code of the project
        clients[path].send(frame("go"))
    for path in ("/coroutine/", "/works/", "/idles/"):
        assert clients[path].frame().text in ("welcome", "working")
    for path, what in (("/coroutine/", "coroutine"), ("/idles/", "coroutine"), ("/works/", "consumer")):
        place = line(f"here waits the {what}")
        assert eventually(
            lambda: [each.where for each in monitoring.connections(path=path)] == [place]  # noqa: B023
        ), path
    found = {each.path: each for each in monitoring.connections()}
    assert found["/works/"].view == "testsite.monitored.Works" and found["/works/"].channels == ("workers",)
    assert found["/idles/"].view == "testsite.monitored.Idles" and found["/idles/"].channels == ("idlers",)
    assert found["/works/"].received_messages == found["/works/"].sent_messages == 1
    assert found[f"/listen/{key}/"].where == "" and found[f"/listen/{key}/"].channels == (key,)


def test_filters_and_counts(server: Server, raw: Raw, key: str) -> None:
    ann, ben = log_in(server, f"{key}-ann"), log_in(server, f"{key}-ben")
    for cookie, path in (
        (ann, f"/room/{key}-1/"),
        (ann, f"/room/{key}-2/"),
        (ben, f"/room/{key}-1/"),
        (ann, "/stays/"),
    ):
        raw(server).open(path, cookie)
    user = get_id(server, f"{key}-ann")
    assert {each.path for each in seen(3, user=user)} == {f"/room/{key}-1/", f"/room/{key}-2/", "/stays/"}
    assert len(seen(2, user=user, path="/room/*")) == 2
    assert len(seen(2, channel=f"room:{key}-1")) == len(seen(2, channel=f"*{key}-1")) == 2
    assert len(seen(3, channel=f"room:{key}*", view="*.monitored.room")) == 3
    assert monitoring.connections(path=f"/room/{key}", view="*") == []
    found = monitoring.connections(path=f"/room/{key}*", limit=1)
    assert len(found) == 1 and found.total == 3 and found.silent == 0
    assert sum(process.connections for process in found.processes) >= 4
    assert len({(process.host, process.pid) for process in found.processes}) == len(found.processes) <= 2
    assert sum(process.sent_messages for process in found.processes) >= 3
    assert monitoring.connections(path=f"/room/{key}*", limit=0).total == 3


def test_connections_are_closed_by_filters(server: Server, raw: Raw, key: str) -> None:
    clients = {path: raw(server) for path in (f"/room/{key}-1/", f"/room/{key}-2/", f"/listen/{key}/", "/stays/")}
    for path, client in clients.items():
        client.open(path, log_in(server, key))
    seen(2, path=f"/room/{key}-*")
    assert monitoring.disconnect(path=f"/room/{key}-*", view="*.room", code=4444, reason="closed") == 2
    for path in (f"/room/{key}-1/", f"/room/{key}-2/"):
        assert clients[path].closing() == (4444, "closed")
    assert monitoring.disconnect(channel=f"{key[:10]}*") == 1
    assert clients[f"/listen/{key}/"].closing() == (4401, "")
    assert monitoring.disconnect(user=get_id(server, key), path="/room/*") == 0
    assert monitoring.disconnect(user=get_id(server, key)) == 1  # also of a view that goes on after the logout
    assert clients["/stays/"].closing() == (4401, "")
    seen(0, path=f"/room/{key}*")


def test_hostile_texts_arrive_as_they_are_and_long_ones_are_cut(server: Server, raw: Raw) -> None:
    client = raw(server)
    client.open("/any/" + "%3Cscript%3E%00%0A%22*%C3%BC" + "x" * 3000)
    found = only(seen(1, path="/any/*xxx"))
    assert found.path.startswith('/any/<script>\0\n"*üxxx') and len(found.path) == 300
    assert only(monitoring.connections(path="/any/<script>*")).id == found.id


def test_recorded_or_forged_answers_are_not_believed(server: Server, raw: Raw, redis: Server, key: str) -> None:
    client = raw(server)
    client.open(f"/room/{key}/")
    seen(1, path=f"/room/{key}/")
    told: list[bytes] = []
    with Redis(port=redis.port) as other, other.pubsub() as recorder:
        recorder.psubscribe(**{"monitored:django_websocket.answers.*": lambda message: told.append(message["data"])})
        thread = recorder.run_in_thread(sleep_time=0.005)
        try:
            assert eventually(lambda: other.pubsub_numpat() >= 1)
            assert len(monitoring.connections(path=f"/room/{key}/")) == 1
            assert eventually(lambda: told)
            with pytest.raises(ValueError, match="does not match"):
                opened(told[0].decode(), "django_websocket.answers.another")
        finally:
            thread.stop()
            thread.join()


def test_answer_that_comes_again_does_not_stand_for_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[bool] = []

    def put(channel: str, question: Callable[[str], str], take: Callable[[str, str], bool]) -> None:
        for process, reached in (("one", 2), ("one", 2), ("another", 3)):
            counted.append(take(sealed([process, reached], "place"), "place"))

    monkeypatch.setattr(orders, "put", put)
    assert orders.disconnect(orders.Order({"channel": ("news",)}, 4401, "")) == 5
    assert counted == [True, False, True]


def test_asking_works_in_a_process_of_its_own(server: Server, raw: Raw, key: str) -> None:
    client = raw(server)
    client.open(f"/room/{key}/")
    code = "import django; django.setup()\nfrom django_websocket import monitoring\n"
    code += f"print([each.path for each in monitoring.connections(path='/room/{key}/')])"
    env = {**server.env, "DJANGO_SETTINGS_MODULE": "testsite.settings", "PYTHONPATH": str(SITE)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == f"['/room/{key}/']\n"


def clients_of_both_processes(server: Server, raw: Raw, path: str) -> list[RawClient]:
    """Open clients until both processes have some: the quicker one may get many."""
    clients: list[RawClient] = []

    def both_have_some() -> bool:
        clients.append(raw(server))
        clients[-1].open(path)
        return len({each.pid for each in monitoring.connections(path=path)}) == 2

    assert eventually(both_have_some)
    return clients


def test_process_that_hangs_is_reported_as_silent(server: Server, raw: Raw) -> None:
    clients = clients_of_both_processes(server, raw, "/hangs/")
    clients[0].send(frame("hang"))
    assert clients[0].frame().text == "hanging"
    begin = time.monotonic()
    found = monitoring.connections(path="/hangs/")
    assert 0.9 < time.monotonic() - begin < 2
    assert found.silent == 1 and len(found.processes) == 1 and 0 < len(found) < len(clients)


# --- the command ------------------------------------------------------------------------------------------------------


class Ran(NamedTuple):
    """What a command has printed."""

    out: str
    err: str

    @property
    def rows(self) -> list[list[str]]:
        """The cells of the table, without those of its head."""
        lines = self.out.splitlines()[:-1]
        return [re.split(r" {2,}", line) for line in lines[1:]]


def run(*args: str, **options: Any) -> Ran:
    """Run `manage.py websockets`."""
    out, err = io.StringIO(), io.StringIO()
    call_command("websockets", *args, stdout=out, stderr=err, **options)
    return Ran(out.getvalue(), err.getvalue())


@pytest.fixture
def users(server: Server) -> Iterator[None]:
    """The database of the server, for this process, too."""
    with override_settings(SESSION_ENGINE="django.contrib.sessions.backends.cache"):
        wrapper = connection.copy()
        wrapper.settings_dict = {**wrapper.settings_dict, "NAME": server.env["DATABASE_NAME"]}
        before, connections["default"] = connections["default"], wrapper
        try:
            yield
        finally:
            wrapper.close()
            connections["default"] = before


def test_command_lists_connections(server: Server, raw: Raw, key: str, users: None) -> None:
    clients = [raw(server) for _ in range(3)]
    clients[0].open(f"/room/{key}/", log_in(server, key))
    clients[1].open(f"/any/{key[:20]}%1B%5B31m%E2%80%AE")
    clients[2].open(f"/listen/{key}/")
    seen(3, path=f"/*/{key[:20]}*")
    ran = run(f"--path=/*/{key[:20]}*")
    assert ran.out.endswith("3 WebSockets in 2 processes\n") or ran.out.endswith("3 WebSockets in 1 process\n")
    cells = {row[1]: row for row in ran.rows}
    user, _, age, received, sent, outbox, latency, place, channels, process, id = cells[f"/room/{key}/"]
    assert (user, received, sent, outbox, latency) == (key, "0", "1", "0 B", "-")
    assert place == line("here waits the room") and channels == f"news room:{key}"
    assert re.fullmatch(r"\d+ s", age) and re.fullmatch(r".+:\d+", process) and len(id) == 32
    assert cells[f"/any/{key[:20]}\\x1b[31m\\u202e"][0] == "-"  # nobody gives orders to the terminal
    for option, value in (
        ("user", key),
        ("user", str(get_id(server, key))),
        ("id", id),
        ("channel", f"room:{key}"),
        ("path", f"/room/{key}/"),
    ):
        assert [row[-1] for row in run(f"--{option}", value).rows] == [id]
    assert len(run("--view", "*.monitored.anonymous", "--path", f"*{key[:20]}*").rows) == 2
    limited = run("--path", f"/*/{key[:20]}*", "--limit", "1")
    assert len(limited.rows) == 1 and "the first 1 of 3 WebSockets" in limited.out
    [told] = map(json.loads, run("--json", "--id", id).out.splitlines())
    assert told["total"] == 1 and told["silent"] == 0 and told["processes"]
    assert told["connections"][0]["where"] == line("here waits the room")
    assert told["connections"][0]["channels"] == ["news", f"room:{key}"]


def test_command_watches_until_it_is_interrupted(
    server: Server, raw: Raw, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw(server).open(f"/room/{key}/")
    seen(1, path=f"/room/{key}/")
    pauses = iter([1.5, 1.5])

    def sleep(seconds: float) -> None:
        if next(pauses, None) != seconds:
            raise KeyboardInterrupt

    monkeypatch.setattr("django_websocket.management.commands.websockets.time.sleep", sleep)
    assert run(f"--path=/room/{key}/", "--watch=1.5").out.count("1 WebSocket in ") == 3


def test_command_asks_before_it_disconnects(
    server: Server, raw: Raw, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = [raw(server) for _ in range(2)]
    for client in clients:
        client.open(f"/room/{key}/")
    seen(2, path=f"/room/{key}/")
    asked: list[str] = []

    def answer(text: str) -> Callable[[str], str]:
        return lambda question: asked.append(question) or text  # type: ignore[func-returns-value]

    for text in ("", "n", "no", "what?"):
        monkeypatch.setattr("builtins.input", answer(text))
        with pytest.raises(CommandError, match="Nobody was disconnected"):
            run("--kick", "--path", f"/room/{key}/")

    def nobody(question: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", nobody)
    with pytest.raises(CommandError, match="--no-input"):
        run("--kick", "--path", f"/room/{key}/")
    assert set(asked) == {"Disconnect 2 WebSockets? [y/N] "}
    assert run("--kick", "--path", "/room/nobody/").out == f"0 WebSockets in {processes()}\n"
    monkeypatch.setattr("builtins.input", answer("y"))
    ran = run("--kick", "--path", f"/room/{key}/", "--code", "4000", "--reason", "by hand")
    assert ran.out.endswith("2 WebSockets were disconnected.\n")
    for client in clients:
        assert client.closing() == (4000, "by hand")
    assert run("--kick", "--path", f"/room/{key}/", "--no-input").out == "0 WebSockets were disconnected.\n"


def processes() -> str:
    count = len(monitoring.connections().processes)
    return f"{count} process{'' if count == 1 else 'es'}"


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["--kick"], "at least one filter"),
        (["--kick", "--id=1", "--watch"], "no --watch"),
        (["--limit=-1"], "positive"),
        (["--watch=0"], "positive"),
        (["--watch=nan"], "positive"),
        (["--path="], "path= is empty"),
        (["--kick", "--id=1", "--no-input", "--code=999"], "999"),
    ],
)
def test_command_says_what_is_wrong(args: list[str], error: str) -> None:
    with pytest.raises(CommandError, match=error):
        run(*args)


def test_command_prints_the_metrics_of_the_server_here(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CommandError, match="WEBSOCKET_METRICS"):
        run("--metrics")
    monkeypatch.setattr("django_websocket.metrics.fetch", lambda: "django_websocket_connections 1.0\n")
    assert run("--metrics").out == "django_websocket_connections 1.0\n"


def test_command_knows_no_such_user(server: Server, users: None) -> None:
    for name in ("nobody", "999999", "9" * 30, "\0"):
        with pytest.raises(CommandError, match="There is no user"):
            run("--user", name)


@pytest.mark.parametrize("strange", ["service-7", str(2**70)])
def test_names_are_found_beside_users_of_another_kind(server: Server, key: str, users: None, strange: str) -> None:
    log_in(server, key)
    own: dict[str, Any] = {"user_model": "auth.User", "database": "default", "tenant": ""}
    nothing: dict[str, Any] = dict.fromkeys(field.name for field in fields(monitoring.Connection))
    found = [
        monitoring.Connection(**{**nothing, **own, "id": id, "user": user})
        for id, user in (("1", str(get_id(server, key))), ("2", strange))  # a middleware may have made up the second
    ]
    assert monitoring.usernames(found) == {"1": key}


def test_command_works_without_a_database_or_a_broker(server: Server, raw: Raw, key: str) -> None:
    client = raw(server)
    client.open(f"/room/{key}/", log_in(server, key))
    seen(1, path=f"/room/{key}/")
    assert run("--path", f"/room/{key}/").rows[0][0] == str(get_id(server, key))  # here, there are no tables
    with in_use("redis://127.0.0.1:1/0"), pytest.raises(CommandError, match="cannot be used"):
        run()
    with in_use("memory://alone"):
        assert "memory://" in run().err


# --- in this process --------------------------------------------------------------------------------------------------


@pytest.fixture
def here(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], list[Connection]]]:
    """Makes connections in this process, which tells of two in each part, and of two parts at a time."""
    monkeypatch.setattr(orders, "PART", 2)
    monkeypatch.setattr(orders, "PARTS", 2)
    listening = orders.orders()
    with in_use("memory://monitored"):

        def make(count: int) -> list[Connection]:
            made = [pairs()[0] for _ in range(count)]
            for number, connection in enumerate(made):
                connection.who = f"unix /{number}/"
                listening.add(connection)
            until(lambda: listening._hub is not None)
            return made

        yield make
        for connection, peer in pairs.made:
            connection.drop_input()
            peer.sock.close()
        until(lambda: listening._hub is None)


def test_many_connections_are_told_in_parts(here: Callable[[int], list[Connection]], pairs: Pairs) -> None:
    made = here(23)
    for limit, expected in ((None, 23), (10, 10), (3, 3), (0, 0)):
        found = monitoring.connections(limit=limit)
        assert len(found) == len({each.id for each in found}) == expected and found.total == 23
    assert [each.path for each in monitoring.connections(limit=None)] == [f"/{number}/" for number in range(23)]
    made[4].send("hello")
    [process] = monitoring.connections(limit=0).processes
    assert process.connections == 23
    made[4].close(4000)
    found = monitoring.connections(limit=None)
    assert len(found) == 22 and found.processes[0].sent_messages == process.sent_messages
    pairs.made[4][1].sock.close()
    until(lambda: not made[4].connected)
    assert monitoring.connections().processes[0].sent_messages == process.sent_messages  # they only ever grow
    assert monitoring.connections(path="/1*").total == 11


def test_channels_beyond_the_first_twenty_are_counted(here: Callable[[int], list[Connection]]) -> None:
    [connection] = here(1)
    with forward(connection, *(f"channel:{number:02}" for number in range(25))):
        found = only(monitoring.connections(channel="channel:24"))
        assert len(found.channels) == 20 and found.more_channels == 5


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"user": None}, ValueError),
        ({"user": ""}, ValueError),
        ({"path": ""}, ValueError),
        ({"path": None}, TypeError),
        ({"view": 5}, TypeError),
        ({"channel": "\ud800"}, ValueError),
        ({"id": b"1"}, TypeError),
        ({"path": "x" * 20_000}, ValueError),
    ],
)
def test_filter_that_says_nothing_is_refused(arguments: dict[str, Any], error: type[Exception]) -> None:
    for function in (monitoring.connections, monitoring.disconnect):
        with pytest.raises(error):
            function(**arguments)


def test_everybody_is_not_disconnected_by_mistake() -> None:
    with pytest.raises(TypeError, match=r'path="\*"'):
        monitoring.disconnect()


@pytest.mark.parametrize("topology", ["sentinel", "cluster"])
def test_asking_works_behind_sentinels_and_in_a_cluster(
    start_site: StartSite, request: pytest.FixtureRequest, raw: Raw, topology: str
) -> None:
    found: Sentinel | Cluster = request.getfixturevalue(topology)
    broker: Any = found.broker() if isinstance(found, Sentinel) else f"redis+cluster://{found.nodes[0].address}"
    with start_site({**QUIET, "WEBSOCKET_BROKER": broker}) as server, in_use(broker):
        client = raw(server)
        client.open("/room/1/")
        assert only(seen(1)).path == "/room/1/"
        assert monitoring.disconnect(path="/room/*") == 1
        assert client.closing() == (4401, "")


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("/chat/", ["/chat/"], ["/chat", "/chat/1/", ""]),
        ("*", ["", "/", "*"], []),
        ("/chat/*", ["/chat/", "/chat/1/"], ["/chat", "x/chat/"]),
        ("*/1/", ["/1/", "/chat/1/"], ["/1", "/1/2/"]),
        ("a*a", ["aa", "aba", "aaa"], ["a", "ab", "ba"]),
        ("a*b*c", ["abc", "a-b-b-c"], ["acb", "ac", "bc"]),
        ("a*bc*bc", ["abcbc"], ["abc", "abbc"]),
        ("[a]?", ["[a]?"], ["a", "ab"]),
    ],
)
def test_asterisk_stands_for_any_text(pattern: str, matching: list[str], others: list[str]) -> None:
    assert [text for text in (*matching, *others) if matches_pattern(text, pattern)] == matching


def test_pattern_takes_no_longer_for_a_hostile_path() -> None:
    begin = time.monotonic()
    assert not matches_pattern("a" * 8000, "*a" * 100 + "b*")
    assert time.monotonic() - begin < 0.5


def test_project_is_known_from_libraries(tmp_path: Path) -> None:
    assert kind_of("/srv/mysite/chat/views.py") == PROJECT
    for file in (json.__file__, pytest.__file__, monitoring.__file__, "<frozen importlib._bootstrap>", "<string>"):
        assert kind_of(file) != PROJECT, file
    frames = [sys._getframe()]
    assert place_among(frames, "elsewhere").file.endswith("test_monitoring.py")
    assert place_among([], "elsewhere").file == ""


def test_installed_project_is_known_by_the_package_of_its_view() -> None:
    found = []

    class Encoder(json.JSONEncoder):
        def default(self, o: object) -> str:
            frame = sys._getframe().f_back
            while frame is not None and "json" in frame.f_code.co_filename:
                found.append(frame)
                frame = frame.f_back
            return ""

    json.dumps([object()], cls=Encoder, indent=1)
    assert place_among(found[::-1], "json.views").function.endswith("iterencode_list") or found
    assert place_among(found[::-1], "elsewhere").file == ""


def test_examples_of_the_page_pass(readme: Project, tmp_path: Path) -> None:
    copy = readme.copy(tmp_path / "mysite")
    copy.put("docs/monitoring.md")
    assert "Ran 1 test" in copy.run("python manage.py test chat.tests_monitoring", errors=True)


def test_a_database_that_is_away_is_an_error_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise DatabaseError("the database is away")

    monkeypatch.setattr(websockets, "named", fail)
    with pytest.raises(CommandError, match="the database is away"):
        call_command("websockets", user="ann")
