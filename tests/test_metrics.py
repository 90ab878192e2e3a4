"""The metrics: they agree with what clients have seen, whatever becomes of the workers, and not all may read them."""

from __future__ import annotations

import gc
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import gevent
import gevent.socket
import promql_parser
import pytest
import redis as redis_py
import redis.connection
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as from_openmetrics
from prometheus_client.parser import text_string_to_metric_families as from_text

from django_websocket import checks, conf, metrics
from django_websocket.exceptions import BrokerError, MessagesMissed
from django_websocket.handler.asgi import Mounted
from django_websocket.handler.counting import label_of
from django_websocket.handler.figures import Figures, OwnSlot, added, from_json, gather
from django_websocket.handler.sampling import Sampling
from django_websocket.handler.scraping import ATTEMPTS, Port
from django_websocket.pubsub import position, publish, subscribe
from django_websocket.transport import slots
from django_websocket.transport.counts import MAX_LABELS, OTHER, Counts, Histogram, counts
from django_websocket.transport.liveness import Liveness

from .support.brokers import delivered, forward, in_use
from .support.clients import RawClient, Response, fetch, request
from .support.documentation import Project
from .support.fixtures import StartSite
from .support.frames import close_frame, frame
from .support.servers import ROOT, Server, free_port, redis_server
from .support.waiting import STARTS, eventually, until
from .support.wire import Pairs
from .test_contributing import yaml

TOKEN = "of-those-who-may-read"
PREFIX = "django_websocket_"
CARRIED = ["received_messages", "sent_messages", "received_bytes", "sent_bytes"]

# --- a server ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def port() -> int:
    """Where the metrics can be read, beside the path of the application."""
    return free_port()


@pytest.fixture(scope="module")
def server(start_site: StartSite, redis_url: str, port: int) -> Iterator[Server]:
    exposed = {"path": "/metrics", "bind": f"127.0.0.1:{port}", "token": TOKEN, "allow": ["127.0.0.1"]}
    # Clients of a worker that stops answer one after the other.
    settings = {"WEBSOCKET_METRICS": exposed, "WEBSOCKET_BROKER": redis_url, "WEBSOCKET_CLOSE_TIMEOUT": 20.0}
    with start_site(settings, args=["--workers", "2"]) as server:
        yield server


Values = dict[str, float]  # by name, without the prefix, and labels: 'closes_total{code="1000",by="client"}'


def parsed(text: str) -> Values:
    found: Values = {}
    for family in from_text(text):
        for name, labels, value, *_ in family.samples:
            inside = ",".join(f"{label}={labels[label]}" for label in sorted(labels))
            found[name.removeprefix(PREFIX) + (f"{{{inside}}}" if labels else "")] = value
    return found


class Reader:
    """Reads the metrics again and again; no counter may become less."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._last: Values = {}

    def read(self) -> Values:
        """What any worker says."""
        values = parsed(fetch(self._server.port, "/metrics").body.decode())
        for name, before in self._last.items():
            if re.search(r"_total|_count|_bucket|_sum", name) and "process_" not in name:
                assert values.get(name, 0) >= before, name
        self._last = values
        return values

    def until(self, **expected: float) -> Values:
        """Read until the metrics have these values, and return them all."""

        def as_expected() -> bool:
            try:
                values.update(self.read())
            except OSError:  # of a worker that stops
                return False
            return all(values.get(name) == value for name, value in expected.items())

        values: Values = {}
        eventually(as_expected, STARTS)  # a new worker may have to start
        assert {name: values.get(name) for name in expected} == expected
        return values


class Talker(RawClient):
    """A client that knows what it has sent and got."""

    def __init__(self, server: Server, path: str) -> None:
        super().__init__(server.port)
        self.counted = dict.fromkeys(CARRIED, 0)
        self.open(path)
        self.counted["sent_bytes"] = len(self._received)  # behind the response

    def say(self, *messages: str) -> None:
        data = b"".join(map(frame, messages))
        self.send(data)
        self.counted["received_bytes"] += len(data)
        self.counted["received_messages"] += len(messages)

    def hear(self, count: int) -> None:
        for _ in range(count):
            assert self.frame().text
            self.counted["sent_messages"] += 1

    def leave(self) -> int:
        """Answer the close frame of the server; return its code."""
        code = self.closing()[0]
        data = close_frame(code)
        self.send(data)
        self.counted["received_bytes"] += len(data)
        assert self.rest() == b""
        self.sock.close()
        return code

    def _receive(self) -> None:
        before = len(self._received)
        super()._receive()
        self.counted["sent_bytes"] += len(self._received) - before

    @property
    def has_lost_its_server(self) -> bool:
        self.sock.settimeout(0)
        try:
            return self.sock.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True
        finally:
            self.sock.settimeout(10)


def connections_in(values: Values) -> float:
    return sum(value for name, value in values.items() if name.startswith("connections{"))


@pytest.fixture
def counting() -> Iterator[None]:
    """Count in this process."""
    counts.begin()
    counts.wanted = True
    yield
    counts.wanted = False
    counts.begin()


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def workers_of(server: Server) -> list[int]:
    return children_of(server.pid)


def talk(server: Server, channel: str) -> list[Talker]:
    """Six clients that publish three messages each to all of them, and four that get each of five messages back."""
    members = [Talker(server, f"/forward/{channel}/") for _ in range(6)]  # each is subscribed when it is connected
    for member in members:
        member.say("one", "two", "three")
    for member in members:
        member.hear(3 * len(members))
    echoes = [Talker(server, "/echo/") for _ in range(4)]
    for echo in echoes:
        echo.say(*"hello")
        echo.hear(5)
    return members + echoes


def total(talkers: list[Talker]) -> Values:
    return {f"{name}_total": sum(talker.counted[name] for talker in talkers) for name in CARRIED}


def test_figures_agree_with_what_clients_saw_although_workers_are_killed_and_replaced(server: Server, key: str) -> None:
    reader = Reader(server)
    talkers = talk(server, key)
    views = {f"connections{{view=testsite.views.{name}}}": count for name, count in (("forward", 6), ("echo", 4))}
    answered = {f"handshakes_total{{status=101,view=testsite.views.{name}}}": n for name, n in (("forward", 6),)}
    published = sum(talker.counted["received_messages"] for talker in talkers[:6])
    delivered = sum(talker.counted["sent_messages"] for talker in talkers[:6])
    reader.until(
        **total(talkers),
        **views,
        **answered,
        **{"published_total{result=ok}": published, "publish_duration_seconds_count": published},
        delivered_total=delivered,
        processes=2,
        broker_up=1,
        subscriptions=6,
    )
    killed = workers_of(server)[0]
    os.kill(killed, signal.SIGKILL)
    assert eventually(lambda: killed not in workers_of(server) and len(workers_of(server)) == 2)
    left = [talker for talker in talkers if not talker.has_lost_its_server]
    of_view = {f"connections{{view=testsite.views.{name}}}": 0.0 for name in ("forward", "echo")}
    for talker in left:
        of_view[f"connections{{view=testsite.views.{'forward' if talker in talkers[:6] else 'echo'}}}"] += 1
    present = {name: count for name, count in of_view.items() if count}
    reader.until(**total(talkers), **present, processes=2, delivered_total=delivered)  # nothing is lost
    more = talk(server, f"{key}-again")
    reader.until(**total([*talkers, *more]))
    server.send_signal(signal.SIGHUP)
    assert {talker.leave() for talker in (*left, *more)} == {1012}
    ended = {"closes_total{by=server,code=1012}": float(len(left) + len(more))}
    values = reader.until(
        **total([*talkers, *more]), **ended, processes=2, connection_duration_seconds_count=len(left + more)
    )
    assert connections_in(values) == 0
    assert sum(value for name, value in values.items() if name.startswith("handshakes_total{status=101")) == 20
    for talker in talkers:
        talker.sock.close()


# --- who may read -----------------------------------------------------------------------------------------------------


def ask(port: int, path: str = "/metrics", **headers: str) -> Response:
    return fetch(port, path, {name.replace("_", "-"): value for name, value in headers.items()})


def test_the_token_or_the_address_is_needed(server: Server, port: int) -> None:
    for at in (server.port, port):
        assert ask(at).status == 200
        assert ask(at, Authorization=f"Bearer {TOKEN}").status == 200
        assert ask(at, Authorization=f"bearer  {TOKEN} ", X_Forwarded_For="192.0.2.1").status == 200
        assert ask(at, Authorization="Bearer of-somebody-else").status == 403
        for proxied in ("X-Forwarded-For", "Forwarded", "Via", "X-Real-IP", "X-Forwarded-Proto"):
            refused = ask(at, **{proxied: "127.0.0.1"})
            assert (refused.status, refused.body) == (403, b"Not allowed here.\n"), proxied
    assert "127.0.0.1 /metrics: 403 not allowed to read the metrics" in server.log


def test_the_path_is_that_of_the_metrics_alone(server: Server, port: int) -> None:
    assert ask(server.port, "/metrics/").status == 404  # it is not among the pages
    assert ask(server.port, "/metrics?of=no-interest").status == 200
    with RawClient(server.port) as client:
        client.send(b"HEAD /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        head, _, body = client.rest().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK") and not body
    with RawClient(server.port) as client:
        client.send(b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
        assert client.response().status == 405


def test_the_form_is_what_is_asked_for(server: Server, port: int) -> None:
    plain = ask(server.port)
    assert plain.headers["content-type"].startswith("text/plain") and plain.headers["cache-control"] == "no-store"
    assert parsed(plain.body.decode())["processes"] >= 1
    openmetrics = ask(port, Accept="application/openmetrics-text; version=1.0.0")
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert {f"{PREFIX}handshakes", f"{PREFIX}hub_lag_seconds"} <= {
        family.name
        for family in from_openmetrics(openmetrics.body.decode())  # type: ignore[no-untyped-call]
    }


def test_refused_handshakes_and_errors_of_views_count(server: Server) -> None:
    reader = Reader(server)
    before = reader.read()

    def more(name: str, by: int = 1) -> dict[str, float]:
        return {name: before.get(name, 0) + by}

    for sent in (close_frame(4321), close_frame(1001), b""):
        with RawClient(server.port) as client:
            client.open("/echo/")
            client.send(sent)
            if sent:
                client.closing()
    for path in ("/nowhere/", "/refuse/404/", "/end/raise/"):
        with RawClient(server.port) as client:
            client.send(request(path))
            if client.response().status == 101:
                client.send(frame("go"))
                assert client.closing()[0] == 1011
                client.send(close_frame(1011))
                client.rest()
    with RawClient(server.port) as client:
        client.send(request("/echo/").replace(b"Version: 13", b"Version: 7"))
        assert client.response().status == 426
    reader.until(
        **more("handshakes_total{status=404,view=none}"),
        **more("handshakes_total{status=404,view=testsite.views.refuse}"),
        **more("handshakes_total{status=426,view=none}"),
        **more("closes_total{by=server,code=1011}"),
        **more("closes_total{by=client,code=4xxx}"),
        **more("closes_total{by=client,code=1001}"),
        **more("closes_total{by=nobody,code=1006}"),
        **more("view_errors_total"),
    )
    assert eventually(lambda: connections_in(reader.read()) == connections_in(before))


def test_another_worker_takes_the_port_over(server: Server, port: int, key: str) -> None:
    """Even if the one that had it has a child, which runs on."""
    assert eventually(lambda: any(listens(pid, port) for pid in workers_of(server)))
    (listening,) = (pid for pid in workers_of(server) if listens(pid, port))
    clients: list[RawClient] = []
    children: list[int] = []
    try:
        while not (children := children_of(listening)):  # another client may come to the other worker
            clients.append(RawClient(server.port))
            clients[-1].open(f"/forks/process/?key={key}")
        os.kill(listening, signal.SIGKILL)
        assert eventually(lambda: any(listens(pid, port) for pid in workers_of(server) if pid != listening))
        assert ask(port).status == 200
        assert not listens(children[0], port)
        for _ in range(10):  # in both workers, if views wait in the other one
            fetch(server.port, f"/gate/{key}/")
    finally:
        for client in clients:
            client.sock.close()
        for child in children:
            os.kill(child, signal.SIGKILL)
    Reader(server).until(processes=2)
    assert "cannot be read" not in server.log


def listens(pid: int, port: int) -> bool:
    """Whether a process has a socket that listens on a port."""
    links = set()
    with suppress(OSError):  # it has just ended
        for number in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):  # the descriptor of the listing itself
                links.add(os.readlink(f"/proc/{pid}/fd/{number}"))
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(f"socket:[{row[9]}]" in links for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}"))


def test_the_command_reads_what_the_server_says(server: Server, port: int) -> None:
    exposed = {"bind": f"0.0.0.0:{port}", "token": TOKEN}
    with override_settings(WEBSOCKET_METRICS=exposed):
        assert parsed(metrics.fetch())["processes"] >= 1
    with (
        override_settings(WEBSOCKET_METRICS={**exposed, "token": "of-somebody-else"}),
        pytest.raises(ValueError, match="answered with 403 Forbidden: Not allowed here"),
    ):
        metrics.fetch()
    nobody = {"bind": f"127.0.0.1:{free_port()}"}
    with override_settings(WEBSOCKET_METRICS=nobody), pytest.raises(ValueError, match="is it running"):
        metrics.fetch()
    with override_settings(WEBSOCKET_METRICS={"path": "/m", "token": TOKEN}), pytest.raises(ValueError, match='"bind"'):
        metrics.fetch()


def test_a_worker_that_stops_leaves_the_port_at_once(counting: None) -> None:
    """Its conversations may last for half a minute more."""
    with override_settings(WEBSOCKET_METRICS={"bind": f"127.0.0.1:{(port := free_port())}"}):
        exposed = conf.current().exposed
    assert exposed is not None and exposed.address is not None
    stopping, other = Sampling(exposed, None), Port(exposed.address)
    stopping.start()
    until(stopping.sockets)
    other.listen()
    assert other.sockets() == []
    stopping.leave_port()
    assert stopping.sockets() == []
    other.listen()
    assert listens(os.getpid(), port)
    other.close()
    stopping.stop()
    assert not listens(os.getpid(), port)


def test_a_fault_is_logged_and_not_the_end_of_all_figures(
    counting: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("django_websocket.handler.sampling.INTERVAL", 0.001)
    with override_settings(WEBSOCKET_METRICS={"path": "/metrics", "token": TOKEN}):
        exposed = conf.current().exposed
    assert exposed is not None
    sampling = Sampling(exposed, None)
    with patch.object(sampling, "_own") as own:
        own.refresh.side_effect = itertools.chain([ZeroDivisionError("of a test")], itertools.repeat(None))
        sampling.start()
        until(lambda: own.refresh.call_count >= 3)
        sampling.stop()
    assert caplog.messages[0] == "metrics: the figures could not be gathered: ZeroDivisionError('of a test')"
    assert sum(counts.histograms["hub_lag_seconds"].counts) >= 2


def test_a_port_that_another_program_has_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as program:
        address = program.getsockname()
        port = Port(address)
        for _ in range(2 * ATTEMPTS):
            port.listen()
        assert port.sockets() == []
    (line,) = caplog.messages
    assert line.startswith(f"The metrics cannot be read at 127.0.0.1 port {address[1]}: ")


@pytest.mark.slow
def test_two_servers_on_a_machine_do_not_mix_nor_do_the_two_of_an_upgrade(
    start_site: StartSite, server: Server
) -> None:
    """gunicorn's own upgrade, by SIGUSR2, starts a second master, which inherits the sockets and nothing else."""
    settings = {"WEBSOCKET_METRICS": {"path": "/metrics", "allow": ["127.0.0.0/8"]}}
    with start_site(settings) as other, RawClient(other.port) as client:
        client.open("/echo/")
        client.send(frame("hello"))
        client.frame()
        assert parsed(fetch(other.port, "/metrics").body.decode())["received_messages_total"] == 1
        (old,) = workers_of(other)
        other.send_signal(signal.SIGUSR2)
        assert eventually(lambda: len(workers_of(other)) == 2)
        (master,) = {*workers_of(other)} - {old}
        try:
            seen: set[tuple[float, float]] = set()

            def both_answered() -> bool:
                values = parsed(fetch(other.port, "/metrics").body.decode())
                seen.add((values["received_messages_total"], values["processes"]))
                return len(seen) == 2

            assert eventually(both_answered, STARTS)
            assert seen == {(1, 1), (0, 1)}
        finally:
            os.kill(master, signal.SIGTERM)
            assert eventually(lambda: master not in workers_of(other))


# --- the parts --------------------------------------------------------------------------------------------------------


class Owner:
    """Stands for a worker."""


def test_a_slot_is_given_away_once_until_its_owner_is_gone() -> None:
    shared = slots.Slots()
    owners = [Owner() for _ in range(slots.SLOTS)]
    assert [shared.reserve(owner) for owner in owners] == list(range(slots.SLOTS))
    assert shared.reserve(one_more := Owner()) is None
    del owners[7]
    gc.collect()
    assert shared.reserve(one_more) == 7


OTHER_PROCESS = """
import os, signal, time
from django_websocket.transport.slots import Slots

shared = Slots()
assert shared.read(3) is None and list(shared.read_all()) == []
child = os.fork()
if not child:
    for number in range(10**9):
        shared.write(3, [str(number)] * 1000)
try:
    deadline = time.monotonic() + 10
    while (left := shared.read(3)) is None:
        assert time.monotonic() < deadline
    seen = set()
    reads = 0
    while (reads := reads + 1) <= 3000 or len(seen) < 2:
        assert time.monotonic() < deadline + 10
        left = shared.read(3)
        assert left.process == child and len(set(left.figures)) == 1, (left.process, set(left.figures))
        seen.add(left.figures[0])
finally:
    os.kill(child, signal.SIGKILL)  # in the middle of writing, most likely
    os.waitpid(child, 0)
left = shared.read(3)
assert left.process == 0 and len(left.figures) == 1000 and len(set(left.figures)) == 1
assert list(shared.read_all()) == [left] and list(shared.read_all(without=3)) == []
print(len(seen) > 1)
"""


def test_a_reader_sees_figures_that_are_whole_while_they_are_replaced() -> None:
    done = subprocess.run([sys.executable, "-c", OTHER_PROCESS], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_each_header_lies_where_its_bytes_are_copied_in_one_step() -> None:
    assert slots.HEADER.size == 8 and slots.SIZE % 8 == 0


def test_a_worker_that_is_killed_while_it_writes_leaves_the_figures_before(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = slots.Slots()
    for last in range(3):
        shared.write(0, f"figures {last}")
        kill = Mock(side_effect=InterruptedError)  # before it says that the new ones count
        with monkeypatch.context() as patched, suppress(InterruptedError):
            header = slots.HEADER
            patched.setattr(slots, "HEADER", Mock(size=header.size, unpack_from=header.unpack_from, pack=kill))
            shared.write(0, "what nobody sees")
        assert kill.called
        assert shared.read(0) == slots.Left(f"figures {last}", os.getpid())


def test_figures_that_are_too_large_are_not_written() -> None:
    shared = slots.Slots()
    assert shared.write(0, "small")
    assert not shared.write(0, os.urandom(slots.HALF).hex())
    assert shared.read(0) == slots.Left("small", os.getpid())
    assert shared.leave(0, "the last")
    assert shared.read(0) == slots.Left("the last", 0)


def test_figures_of_another_version_of_the_package_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = slots.Slots()
    assert shared.write(0, "figures")
    monkeypatch.setattr(slots, "FORMAT", slots.FORMAT + 1)
    assert shared.read(0) is None
    assert shared.write(0, "newer figures")
    assert shared.read(0) == slots.Left("newer figures", os.getpid())


def test_a_number_that_another_program_has_since_is_not_taken_for_a_worker() -> None:
    shared = slots.Slots()
    with patch("time.monotonic", return_value=time.monotonic() - 2 * slots.STALE):
        shared.write(0, "of a process that is long gone")
    assert shared.read(0) == slots.Left("of a process that is long gone", 0)
    assert slots.runs(1)  # another user's, perhaps
    assert not slots.runs(0)


def test_labels_are_bounded() -> None:
    counts = Counts()
    counts.add("closes", "1000", "client")
    assert counts.totals == {}  # nobody wants to know
    counts.wanted = True
    for number in range(MAX_LABELS + 50):
        counts.add("closes", str(number), "server")
        assert counts.opened(f"view {number}") == (f"view {number}" if number < MAX_LABELS else OTHER)
    assert len(counts.totals["closes"]) == MAX_LABELS + 1
    assert counts.totals["closes"][OTHER, OTHER] == 50
    assert counts.open[OTHER] == 50
    counts.closed(OTHER)
    assert counts.open[OTHER] == 49


def test_a_value_is_in_the_bucket_whose_bound_it_does_not_exceed() -> None:
    histogram = Histogram((0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 1.0, 7.0):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1]
    assert histogram.sum == pytest.approx(8.65)


def test_figures_add_up_and_survive_their_process() -> None:
    one = Figures({"missed": {(): 1}}, {"x": (0.5, [1, 0])}, {"channels": {(): 2}, "broker_up": {(): 1}}, (1,))
    two = Figures({"missed": {(): 2}, "gaps": {("no",): 1}}, {"x": (1.5, [0, 1])}, {"broker_up": {(): 0}}, (2,))
    assert added((one, two)) == Figures(
        {"missed": {(): 3}, "gaps": {("no",): 1}},
        {"x": (2.0, [1, 1])},
        {"channels": {(): 2}, "broker_up": {(): 0}},
        (1, 2),
    )
    tenths = [Figures({}, {"x": (number / 10, [1])}, {}) for number in (1, 2, 3)]
    assert added(tenths) == added(tenths[::-1])  # whichever worker is asked: a counter may not become less
    sent = json.loads(json.dumps(two.to_json()))
    assert added([from_json(sent, 2)]) == two
    assert from_json(sent, 0) == from_json(two.without_gauges().to_json(), 0)


def test_a_worker_goes_on_where_the_last_one_in_its_slot_has_ended() -> None:
    with patch.object(slots, "_shared", slots.Slots()):
        shared = slots.share()
        shared.write(0, Figures({"missed": {(): 7}}, {"x": (0.5, [1])}, {"channels": {(): 2}}).to_json())
        for _ in range(2):  # also after a second worker that has counted nothing
            figures = OwnSlot(0).refresh(last=True)
            assert (figures.totals["missed"], figures.histograms["x"]) == ({(): 7}, (0.5, [1]))
            left = shared.read(0)
            assert left is not None and from_json(left.figures, left.process).gauges == {}


def test_totals_never_become_less() -> None:
    """A connection that ends while a worker looks at its connections is in neither sum of that moment."""
    before = gather()._replace(totals={"received_messages": {(): 100}})
    assert gather(before).totals["received_messages"] == {(): 100}


def test_a_registry_of_the_project_can_have_the_figures() -> None:
    registry = CollectorRegistry()
    registry.register(metrics.Collector())
    names = {family.name for family in registry.collect()}
    assert {f"{PREFIX}{each.name.removesuffix('_total')}" for each in metrics.METRICS} <= names
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(metrics.Collector())


# --- publishing -------------------------------------------------------------------------------------------------------


def totals(name: str) -> dict[tuple[str, ...], float]:
    return gather().totals.get(name, {})


def gauge(name: str) -> float:
    return gather().gauges[name][()]


def test_an_outage_of_the_broker_is_seen(counting: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_py.connection, "socket", gevent.socket)  # as in a patched worker
    history = {"kept:*": {"messages": 10, "seconds": 3600}}
    with (
        redis_server() as server,
        in_use(f"redis://{server.address}/0", WEBSOCKET_HISTORY=history),
        subscribe("kept:a") as kept,
        subscribe("news") as news,
    ):
        publish("kept:a", "one")
        assert kept.get(timeout=10) == "one"
        assert (gauge("broker_up"), gauge("channels"), gauge("subscriptions")) == (1, 2, 2)
        with redis_py.Redis(port=server.port) as client:
            client.client_kill_filter(_type="pubsub")
        publish("kept:a", "two")
        assert kept.get(timeout=10) == "two"
        with pytest.raises(MessagesMissed):
            news.get(timeout=10)
        assert totals("gaps") == {("yes",): 1}
        assert totals("broker_reconnects") == totals("missed") == {(): 1}
        server.stop()
        until(lambda: gauge("broker_up") == 0)
        with pytest.raises(BrokerError):
            publish("news", "lost")
        assert totals("published") == {("ok",): 2, ("failed",): 1}
        server.start()  # it has forgotten everything
        with pytest.raises(MessagesMissed):
            kept.get(timeout=10)
        publish("news", "three")
        assert totals("gaps") == {("yes",): 1, ("no",): 1}
        assert gauge("broker_up") == 1
    assert sum(counts.histograms["publish_duration_seconds"].counts) == 3
    assert sum(counts.histograms["delivery_lag_seconds"].counts) > 0


@pytest.mark.parametrize("on_slow", ["drop_oldest", "latest", "raise"])
def test_messages_that_a_slow_subscriber_loses_count(counting: None, key: str, on_slow: Any) -> None:
    with (
        override_settings(WEBSOCKET_BROKER=f"memory://{key}", WEBSOCKET_OUTBOX_SIZE=5000),
        subscribe("news", on_slow=on_slow) as messages,
    ):
        for number in range(20):
            publish("news", f"{number}".ljust(900))
        delivered()
        got = 0
        with suppress(TimeoutError):
            while True:
                try:
                    messages.get(timeout=0)
                    got += 1
                except MessagesMissed:
                    assert on_slow == "raise"
        assert totals("dropped_messages") == {(on_slow,): 20 - got}
        assert totals("delivered") == {(): 20 + 1}  # the helper's own
        assert 0 < got < 20


def test_those_who_ask_for_the_past_count(counting: None, key: str) -> None:
    history = {"kept:*": {"messages": 2, "seconds": 3600}}
    with in_use(f"memory://{key}", WEBSOCKET_HISTORY=history):
        publish("kept:a", "one")
        first = position("kept:a")
        for message in ("two", "three", "four"):
            publish("kept:a", message)
        with subscribe("kept:a", last=2) as one, subscribe("kept:a", last=1) as two:
            assert (one.get(timeout=10), two.get(timeout=10)) == ("three", "four")
            assert totals("resumes") == {("whole", "broker"): 1, ("whole", "memory"): 1}
            with subscribe("kept:a", since=first) as late, pytest.raises(MessagesMissed):
                late.get(timeout=10)
            (more,) = totals("resumes").keys() - {("whole", "broker"), ("whole", "memory")}
            assert more[0] == "incomplete"


def test_users_who_are_present_count(counting: None, key: str, pairs: Pairs) -> None:
    with in_use(f"memory://{key}"):
        connection, _ = pairs()
        with forward(connection, "room", present={"id": 1}):
            assert (gauge("presence_members"), gauge("channels"), gauge("subscriptions")) == (1, 1, 1)


def test_pongs_tell_the_latency(counting: None) -> None:
    liveness = Liveness(0)
    payload = liveness.ping(1)
    liveness.pong(b"another")
    liveness.pong(payload)
    assert sum(counts.histograms["ping_rtt_seconds"].counts) == 1


async def application(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI application in place of a urlconf."""


@pytest.mark.parametrize("view", [application, Mounted(application)])
def test_an_asgi_application_counts_as_one_view(view: Any) -> None:
    assert label_of(view) == f"{__name__}.application"


def test_nothing_is_counted_for_nobody(key: str) -> None:
    with override_settings(WEBSOCKET_BROKER=f"memory://{key}"), subscribe("news") as messages:
        publish("news", "hello")
        assert messages.get(timeout=10) == "hello"
    assert (counts.totals, sum(counts.histograms["publish_duration_seconds"].counts)) == ({}, 0)


# --- the page, the dashboard and the alerts ---------------------------------------------------------------------------

PAGE = ROOT / "docs" / "metrics.md"
DASHBOARD = ROOT / "deploy" / "grafana-dashboard.json"
ALERTS = ROOT / "deploy" / "prometheus-alerts.yml"
LABELS = {
    **{f"{PREFIX}{metric.name}": {*metric.labels} for metric in metrics.METRICS},
    **{
        f"{PREFIX}{metric.name}{ending}": {*metric.labels, "le"} if ending == "_bucket" else {*metric.labels}
        for metric in metrics.METRICS
        for ending in ("_bucket", "_sum", "_count")
        if metric.kind == "histogram"
    },
    **{
        f"{PREFIX}process_{name}": set()
        for name in ("resident_memory_bytes", "cpu_seconds_total", "open_fds", "max_fds", "virtual_memory_bytes")
    },
}


def test_the_page_has_every_metric() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (gauge|counter|histogram) \| (.*?) \|", PAGE.read_text(), re.MULTILINE)
    documented = [(name, kind, re.findall(r"`(\w+)`", labels)) for name, kind, labels in rows]
    assert documented == [(name, kind, [*labels]) for name, kind, labels, _ in metrics.METRICS]


def expressions_of_the_dashboard() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    targets = [target for panel in panels for target in panel.get("targets", [])]
    return [target["expr"].replace("$__rate_interval", "5m") for target in targets]


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml(ALERTS.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def selectors(node: Any) -> Iterator[Any]:
    """Yield the selectors of an expression."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
        part = getattr(node, name, None)
        if part is not None and not isinstance(part, (str, float)):
            yield from selectors(part)
    for part in getattr(node, "args", ()):
        yield from selectors(part)


def grouped(expression: str) -> set[str]:
    return {label.strip() for inside in re.findall(r"by \(([^)]*)\)", expression) for label in inside.split(",")}


@pytest.mark.parametrize("expression", [*expressions_of_the_dashboard(), *(alert["expr"] for alert in alerts())])
def test_expressions_are_promql_about_metrics_that_exist(expression: str) -> None:
    found = list(selectors(promql_parser.parse(expression)))
    assert len(found) == expression.count(PREFIX)
    known: set[str] = set()
    for selector in found:
        assert selector.name in LABELS, selector.name
        assert not selector.name.endswith(("_total", "_bucket")) or f"{selector.name}{{" in expression.replace("[", "{")
        assert {matcher.name for matcher in selector.matchers.matchers} <= LABELS[selector.name] | {"job"}
        known |= LABELS[selector.name]
    assert grouped(expression) <= known | {"job"}


def test_the_dashboard_has_a_panel_for_every_metric() -> None:
    shown = " ".join(expressions_of_the_dashboard())
    assert [metric.name for metric in metrics.METRICS if f"{PREFIX}{metric.name}" not in shown] == []


def test_the_server_exposes_what_the_dashboard_and_the_alerts_name(server: Server) -> None:
    text = fetch(server.port, "/metrics").body.decode()
    told = re.findall(r"^# TYPE (\w+)", text, re.MULTILINE)
    assert {name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum") for name in LABELS} == {*told}


def test_alerts_say_what_to_do() -> None:
    for alert in alerts():
        assert alert["labels"]["severity"] in ("page", "ticket")
        assert {*alert["annotations"]} == {"summary", "description"}
    assert len({alert["alert"] for alert in alerts()}) == len(alerts())


def test_examples_of_the_page_work(readme: Project, tmp_path: Path) -> None:
    project = readme.copy(tmp_path / "mysite")
    port = free_port()
    project.put("docs/metrics.md", {"0.0.0.0:9101": f"127.0.0.1:{port}"})
    assert "OK" in project.run("python manage.py test chat.test_metrics", errors=True)
    code = "from mysite.monitoring import registry; print(*(metric.name for metric in registry.collect()))"
    assert f"{PREFIX}connections" in project.shell(code).split()
    line = "gunicorn -k django_websocket.worker.GeventWebSocketWorker mysite.wsgi:websocket"
    with project.gunicorn(line) as server, RawClient(server.port) as client:
        client.open("/chat/lobby/")
        values: Values = {}
        assert eventually(
            lambda: values.update(parsed(ask(port, "/").body.decode())) or values["connections{view=chat.views.chat}"]
        )
        assert values["processes"] == 1


# --- the setting ------------------------------------------------------------------------------------------------------

READABLE: dict[str, Any] = {"path": "/metrics", "token": TOKEN}


@pytest.mark.parametrize(
    ("value", "exposed"),
    [
        ({}, None),
        (READABLE, ("/metrics", None, TOKEN, [])),
        ({"bind": "127.0.0.1:9101"}, ("", ("127.0.0.1", 9101), "", ["127.0.0.0/8", "::1/128"])),
        ({"bind": "[::]:9101", "allow": ["10.0.0.0/8"]}, ("", ("::", 9101), "", ["10.0.0.0/8"])),
        ({**READABLE, "allow": ["::1"]}, ("/metrics", None, TOKEN, ["::1/128"])),
    ],
)
def test_the_setting_says_where_and_for_whom(value: Any, exposed: Any) -> None:
    with override_settings(WEBSOCKET_METRICS=value):
        found = conf.current().exposed
        assert (found and (*found[:3], [*map(str, found.networks)])) == exposed
        assert TOKEN not in repr(conf.current())


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("/metrics", "must be a dict"),
        ({**READABLE, "port": 9101}, "but not 'port'"),
        ({"path": 1}, "must be strings"),
        ({"token": TOKEN}, "nowhere"),
        ({"path": "metrics", "token": TOKEN}, "must begin with a slash"),
        ({"path": "/metrics?", "token": TOKEN}, "must begin with a slash"),
        ({"bind": "9101"}, "an address and a port"),
        ({"bind": "localhost:99999"}, "an address and a port"),
        ({"path": "/metrics", "token": "guess-me"}, "so that nobody can guess it"),
        ({"path": "/metrics"}, "open to everybody"),
        ({"path": "/metrics", "allow": []}, "open to everybody"),
        ({"path": "/metrics", "allow": "10.0.0.0/8"}, "must be a list"),
        ({"path": "/metrics", "allow": ["10.0.0.1/8"]}, "has host bits set"),
    ],
)
def test_a_mistake_in_the_setting_is_named(value: Any, said: str) -> None:
    with override_settings(WEBSOCKET_METRICS=value):
        with pytest.raises(ImproperlyConfigured, match=said):
            conf.current()
        assert [message.id for message in checks.check()] == ["websocket.E001"]


def test_a_check_asks_for_the_library() -> None:
    with override_settings(WEBSOCKET_METRICS=READABLE):
        assert checks.check() == []
        with patch.dict("sys.modules", {"prometheus_client": None}):
            (message,) = checks.check()
    assert (message.id, message.hint) == (
        "websocket.E012",
        'Install it: pip install "django-gevent-websocket[metrics]"',
    )
