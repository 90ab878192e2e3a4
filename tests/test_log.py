"""One log line for each refused or failed connection; when many fail alike, the rest are only counted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gevent
import pytest
from gevent.hub import get_hub

from django_websocket.transport import log
from django_websocket.transport.connection import Connection
from django_websocket.transport.log import report

from .support.clients import RawClient, request
from .support.fixtures import Raw, StartSite
from .support.frames import close_frame, frame
from .support.servers import Server
from .support.waiting import eventually, until
from .support.wire import unix_pair


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    caplog.set_level(logging.INFO, logger="django_websocket")

    def written() -> list[str]:
        until(lambda: not log.lines_of_loop().writing)
        return [record.getMessage() for record in caplog.records]

    yield written


def test_line_names_client_code_and_cause(lines: Callable[[], list[str]], caplog: pytest.LogCaptureFixture) -> None:
    report("192.0.2.1 /chat/", 1002, "a frame is not masked")
    report("192.0.2.1 /chat/", 403, "another site", "https://evil.example")
    report("192.0.2.1", None, "the client vanished", level=logging.INFO)
    assert lines() == [
        "192.0.2.1 /chat/: 1002 a frame is not masked",
        "192.0.2.1 /chat/: 403 another site: https://evil.example",
        "192.0.2.1: the client vanished",
    ]
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING", "INFO"]


def test_client_cannot_begin_a_line_of_its_own(lines: Callable[[], list[str]]) -> None:
    report("192.0.2.1 /\r\nforged\x1b[2J\x85\u2028", 403, "another site", "\nforged")
    (line,) = lines()
    assert line == r"192.0.2.1 /\r\nforged\x1b[2J\x85\u2028: 403 another site: \nforged"


def test_repeated_causes_are_counted_and_summed_up(
    lines: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "WINDOW", 0.5)
    for number in range(1000):
        report(f"192.0.2.{number}", 1002, "a frame is not masked")
    report("192.0.2.1", 1009, "a message is too big")
    assert len(lines()) == log.LINES + 1
    until(lambda: len(lines()) > log.LINES + 1)
    assert lines()[-1] == "990 more in 0 seconds: 1002 a frame is not masked"
    report("192.0.2.1", 1002, "a frame is not masked")  # a new window
    assert lines()[-1] == "192.0.2.1: 1002 a frame is not masked"


def test_window_that_was_reset_is_not_summed_up_and_does_not_end_the_next(
    lines: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "WINDOW", 0.05)
    for _ in range(2 * log.LINES):
        report("192.0.2.1", 1002, "a frame is not masked")
    lines()
    log.begin_anew()
    monkeypatch.setattr(log, "WINDOW", 60.0)
    before = len(lines())
    report("192.0.2.1", 1002, "a frame is not masked")
    gevent.sleep(0.1)
    for _ in range(2 * log.LINES):
        report("192.0.2.1", 1002, "a frame is not masked")
    assert lines()[before:] == ["192.0.2.1: 1002 a frame is not masked"] * log.LINES


def test_window_that_was_summed_up_early_is_summed_up_only_once(
    lines: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "WINDOW", 0.05)
    for _ in range(2 * log.LINES):
        report("192.0.2.1", 1002, "a frame is not masked")
    log._sum_up(log._counts)
    gevent.sleep(0.1)
    assert len([line for line in lines() if "more in" in line]) == 1


def test_causes_that_never_repeat_are_counted_too(lines: Callable[[], list[str]]) -> None:
    for number in range(1000):
        report("192.0.2.1", None, f"cause {number}")
    assert len(lines()) == log.CAUSES + log.LINES
    assert len(log._counts) == log.CAUSES + 1


def test_client_cannot_make_a_line_long(lines: Callable[[], list[str]]) -> None:
    report("192.0.2.1 /" + "x" * 4000, 403, "another site", "\xff" * 8000)
    (line,) = lines()
    assert line.startswith("192.0.2.1 /xxx") and ": 403 another site: " in line
    assert len(line) < 5 * log.LENGTH + 100


@contextmanager
def handler(emit: Callable[[logging.LogRecord], None]) -> Iterator[None]:
    """Pass the logger's records to `emit` as well."""
    added = logging.Handler()
    added.emit = emit  # type: ignore[method-assign, assignment]
    logging.getLogger("django_websocket").addHandler(added)
    try:
        yield
    finally:
        logging.getLogger("django_websocket").removeHandler(added)


def test_reporting_does_not_wait_for_the_log(lines: Callable[[], list[str]]) -> None:
    emitted = []

    def emit(record: logging.LogRecord) -> None:
        gevent.sleep(0)  # like a handler that sends the record over the network
        emitted.append(gevent.getcurrent())

    with handler(emit):
        for number in range(3):
            get_hub().loop.run_callback(report, "192.0.2.1", 1002, f"cause {number}")
        until(lambda: len(emitted) == 3)
        report("192.0.2.1", 1002, "cause 3")
        assert len(emitted) == 3
        until(lambda: len(emitted) == 4)
    assert get_hub() not in emitted and gevent.getcurrent() not in emitted
    assert [line[-1] for line in lines()] == ["0", "1", "2", "3"]


def test_log_goes_on_after_a_handler_has_failed(lines: Callable[[], list[str]]) -> None:
    def emit(record: logging.LogRecord) -> None:
        if "cause 0" in record.getMessage():
            raise OSError("no space left on device")

    with handler(emit):
        for number in range(3):
            report("192.0.2.1", 1002, f"cause {number}")
        assert lines() == []
        report("192.0.2.1", 1002, "cause 3")
        assert [line[-1] for line in lines()] == ["1", "2", "3"]


def test_no_greenlet_sees_a_half_closed_connection_while_the_log_blocks(lines: Callable[[], list[str]]) -> None:
    server, client = unix_pair()
    connection = Connection(server)
    client.close()
    other = gevent.spawn(connection.push, b"\x81\x00")
    with handler(lambda record: gevent.sleep(0.01)):
        connection.push(b"\x81\x00")  # finds that the client has vanished
        other.get(timeout=5)
        assert lines() == [": 1006 the client vanished"]


# --- against a running server ----------------------------------------------------------------------------------------

SECRET = "tell-nobody"


@pytest.fixture(scope="module")
def talkative(start_site: StartSite) -> Iterator[Server]:
    """A server that logs from level INFO up."""
    logging_settings = {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"console": {"class": "logging.StreamHandler"}},
        "loggers": {"django_websocket": {"handlers": ["console"], "level": "INFO"}, "django": {"handlers": []}},
    }
    settings = {"LOGGING": logging_settings, "WEBSOCKET_PING_INTERVAL": 1.0, "WEBSOCKET_PING_TIMEOUT": 1.0}
    with start_site(settings) as server:
        yield server


@pytest.mark.parametrize(
    ("path", "headers", "line"),
    [
        ("/nowhere/", {}, "/nowhere/: 404 Not Found"),
        ("/refuse/403/", {}, "/refuse/403/: 403 Forbidden"),
        ("/refuse/302/", {}, "/refuse/302/: 302 Found"),
        ("/members/", {}, "/members/: 302 Found"),
        ("/refuse/200/", {}, "/refuse/200/: 200 OK"),
        ("/echo/", {"Origin": "https://evil.example"}, "/echo/: 403 the page is from another site: https://"),
        ("/echo/", {"Host": "evil.example"}, "/echo/: 400 Bad Request"),
        ("/echo/", {"Sec-WebSocket-Key": "short"}, "/echo/: 400 Sec-WebSocket-Key must be 16 bytes in base64."),
        ("/echo/", {"Sec-WebSocket-Version": "8"}, "/echo/: 426 This server supports only WebSocket version 13."),
        ("/%0d%0aforged%1b[2J/", {}, r"/\r\nforged\x1b[2J/: 404 Not Found"),
    ],
)
def test_refused_handshake_is_logged_on_one_line(
    talkative: Server, raw: Raw, path: str, headers: dict[str, str | None], line: str
) -> None:
    begin = len(talkative.log)
    client = raw(talkative)
    client.send(request(f"{path}?{SECRET}", {"Cookie": f"sessionid={SECRET}", **headers}))
    assert client.response().status != 101
    assert eventually(lambda: f"127.0.0.1 {line}" in talkative.log[begin:])
    new = talkative.log[begin:]
    assert new.count("\n") == 1, new
    assert SECRET not in new


@pytest.mark.parametrize(
    ("sent", "line"),
    [
        (b"\x81\x00", "1002 a frame is not masked"),
        (frame(b"\xff", 1), "1007 text is not UTF-8"),
        (b"\x82\xff" + (1 << 40).to_bytes(8, "big"), "1009 a message is larger than 1048576 bytes"),
        (None, "1006 the client vanished"),
        (b"", "1011 no answer to a ping"),
    ],
)
def test_failed_connection_is_logged_on_one_line(talkative: Server, raw: Raw, sent: bytes | None, line: str) -> None:
    begin = len(talkative.log)
    client = raw(talkative)
    client.open(f"/listen/x/?{SECRET}", {"Cookie": f"sessionid={SECRET}"})
    if sent is None:
        client.reset()
    else:
        client.send(sent)
    assert eventually(lambda: f"127.0.0.1 /listen/x/: {line}\n" in talkative.log[begin:]), talkative.log[begin:]
    new = talkative.log[begin:]
    assert new.count("\n") == 1, new
    assert SECRET not in new


def test_handshake_that_is_sent_to_https_is_in_the_log(start_site: StartSite, raw: Raw) -> None:
    with start_site(
        {"MIDDLEWARE": ["django.middleware.security.SecurityMiddleware"], "SECURE_SSL_REDIRECT": True}
    ) as site:
        client = raw(site)
        client.send(request(f"/echo/?{SECRET}"))
        assert client.response().status == 301
        assert eventually(lambda: "127.0.0.1 /echo/: 301 Moved Permanently\n" in site.log)
        assert SECRET not in site.log


def test_bad_header_of_the_response_is_not_logged_as_a_mistake_of_the_client(talkative: Server, raw: Raw) -> None:
    begin = len(talkative.log)
    client = raw(talkative)
    client.send(request("/refuse/header/"))
    assert client.response().status == 500
    assert "Error handling request GET /refuse/header/" in talkative.log[begin:]
    assert "No Name" in talkative.log[begin:]


def test_connection_that_ends_normally_is_not_logged(talkative: Server, raw: Raw) -> None:
    def refused(path: str) -> None:
        """Provoke a line in the log, so that everything logged earlier stands before it."""
        client = raw(talkative)
        client.send(request(path))
        client.response()
        assert eventually(lambda: f"{path}: 404 Not Found\n" in talkative.log)

    refused("/before/")
    client = raw(talkative)
    client.open("/listen/x/")
    client.send(close_frame(1000))
    assert client.rest() != b""
    refused("/after/")
    between = talkative.log.partition("/before/: 404 Not Found\n")[2]
    assert between == "127.0.0.1 /after/: 404 Not Found\n"


def test_client_that_varies_causes_does_not_silence_others(start_site: StartSite, raw: Raw) -> None:
    with start_site() as server:
        for code in range(120):
            client = raw(server)
            client.open("/echo/", behind=close_frame(code))
            assert client.closing()[0] == 1002
        refused = raw(server)
        refused.send(request("/echo/", {"Origin": "https://evil.example"}))
        assert refused.response().status == 403
        assert eventually(lambda: "403 the page is from another site: https://evil.example" in server.log)


def test_attack_does_not_fill_the_disk(start_site: StartSite) -> None:
    with start_site() as server:
        for _ in range(300):
            with RawClient(server.port) as client:
                client.send(request("/echo/", {"Origin": "null"}))
                assert client.response().status == 403
            with RawClient(server.port) as client:
                client.send(b"NONSENSE\r\n\r\n")
                assert client.response().status == 400
            with RawClient(server.port) as client:
                client.open("/echo/", behind=b"\x81\x00")
                client.rest()
        assert len(server.log) < 12_000
