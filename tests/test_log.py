"""One line for each connection that was refused or failed; many that failed alike are counted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import gevent
import pytest
from gevent.hub import get_hub

from django_websocket import log
from django_websocket.log import report

from .clients import RawClient, close_frame, eventually, frame, request
from .conftest import StartSite
from .servers import Server
from .wire import until

Raw = Callable[..., RawClient]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    caplog.set_level(logging.INFO, logger="django_websocket")
    yield lambda: [record.getMessage() for record in caplog.records]


def test_line_has_who_code_cause_and_detail(lines, caplog):
    report("192.0.2.1 /chat/", 1002, "a frame is not masked")
    report("192.0.2.1 /chat/", 403, "another site", "https://evil.example")
    report("192.0.2.1", None, "the client vanished", level=logging.INFO)
    assert lines() == [
        "192.0.2.1 /chat/: 1002 a frame is not masked",
        "192.0.2.1 /chat/: 403 another site: https://evil.example",
        "192.0.2.1: the client vanished",
    ]
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING", "INFO"]


def test_nothing_of_a_client_begins_a_line_of_its_own(lines):
    report("192.0.2.1 /\r\nforged\x1b[2J\x85\u2028", 403, "another site", "\nforged")
    (line,) = lines()
    assert line == r"192.0.2.1 /\r\nforged\x1b[2J\x85\u2028: 403 another site: \nforged"


def test_causes_that_repeat_are_counted_and_summed_up(lines, monkeypatch):
    monkeypatch.setattr(log, "WINDOW", 0.05)
    for number in range(1000):
        report(f"192.0.2.{number}", 1002, "a frame is not masked")
    report("192.0.2.1", 1009, "a message is too big")
    assert len(lines()) == log.LINES + 1
    until(lambda: len(lines()) > log.LINES + 1)
    assert lines()[-1] == "990 more in 0 seconds: 1002 a frame is not masked"
    report("192.0.2.1", 1002, "a frame is not masked")  # a new window
    assert lines()[-1] == "192.0.2.1: 1002 a frame is not masked"


def test_causes_that_never_repeat_are_counted_too(lines):
    for number in range(1000):
        report("192.0.2.1", None, f"cause {number}")
    assert len(lines()) == log.CAUSES + log.LINES
    assert len(log._counts) == log.CAUSES + 1


def test_logging_never_runs_in_the_hub(caplog):
    caplog.set_level(logging.INFO, logger="django_websocket")
    greenlets = []

    class Blocking(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            gevent.sleep(0)  # as one that sends the record somewhere
            greenlets.append(gevent.getcurrent())

    handler = Blocking()
    logger = logging.getLogger("django_websocket")
    logger.addHandler(handler)
    try:
        for number in range(3):
            get_hub().loop.run_callback(report, "192.0.2.1", 1002, f"cause {number}")
        until(lambda: len(greenlets) == 3)
    finally:
        logger.removeHandler(handler)
    assert get_hub() not in greenlets
    assert [record.getMessage()[-1] for record in caplog.records] == ["0", "1", "2"]


# --- against a running server ----------------------------------------------------------------------------------------

SECRET = "tell-nobody"


@pytest.fixture(scope="module")
def talkative(start_site: StartSite) -> Iterator[Server]:
    """A server that logs what it has to say from INFO on."""
    logging_settings = {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"console": {"class": "logging.StreamHandler"}},
        "loggers": {"django_websocket": {"handlers": ["console"], "level": "INFO"}, "django": {"handlers": []}},
    }
    settings = {"LOGGING": logging_settings, "WEBSOCKET_PING_INTERVAL": 0.5, "WEBSOCKET_PING_TIMEOUT": 0.5}
    with start_site(settings) as server:
        yield server


@pytest.mark.parametrize(
    ("path", "headers", "line"),
    [
        ("/nowhere/", {}, "/nowhere/: 404 Not Found"),
        ("/refuse/403/", {}, "/refuse/403/: 403 Forbidden"),
        ("/echo/", {"Origin": "https://evil.example"}, "/echo/: 403 the page that asked is of another site: https://"),
        ("/echo/", {"Sec-WebSocket-Key": "short"}, "/echo/: 400 Sec-WebSocket-Key must be 16 bytes in base64."),
        ("/echo/", {"Sec-WebSocket-Version": "8"}, "/echo/: 426 Only WebSocket version 13 is spoken here."),
        ("/%0d%0aforged%1b[2J/", {}, r"/\r\nforged\x1b[2J/: 404 Not Found"),
    ],
)
def test_refused_handshake(talkative: Server, raw: Raw, path: str, headers: dict[str, str | None], line: str) -> None:
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
def test_failed_connection(talkative: Server, raw: Raw, sent: bytes | None, line: str) -> None:
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


def test_connection_that_ends_well_is_not_in_the_log(talkative: Server, raw: Raw) -> None:
    begin = len(talkative.log)
    client = raw(talkative)
    client.open("/listen/x/")
    client.send(close_frame(1000))
    assert client.rest() != b""
    client = raw(talkative)
    client.send(request("/nowhere/"))  # behind it, so that whatever was logged is there
    client.response()
    assert eventually(lambda: "404" in talkative.log[begin:])
    assert talkative.log[begin:].count("\n") == 1


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
