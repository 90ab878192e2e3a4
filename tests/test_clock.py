"""A clock that jumps and a process that stands still for a while: a live client notices neither."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import gevent
import pytest

from django_websocket.transport.limits import Limits

from .support.clients import RawClient, fetch
from .support.fixtures import Connect, Raw, StartSite
from .support.frames import PING, PONG, Frame, frame
from .support.mishaps import Mishaps
from .support.processes import worker_of
from .support.waiting import until
from .support.wire import Pairs
from .test_logins import SOON, log_in, talks

HOUR = 3600
SHORT = 0.5  # seconds, the shortest deadline that works here


def next_ping(client: RawClient) -> Frame:
    while (received := client.frame()).opcode != PING:
        pass
    return received


def until_answered(client: RawClient) -> None:
    client.send(frame("still here"))
    while (received := client.frame()).payload != b"still here":
        assert received.opcode == PING


def test_a_jump_of_the_time_of_day_ends_nothing(
    start_site: StartSite, connect: Connect, raw: Raw, key: str, tmp_path: Path
) -> None:
    """Keepalive, deadlines, the checks of logins and gunicorn's heartbeat do not depend on the time of day."""
    mishaps = Mishaps(tmp_path / "mishaps")
    settings = {
        **SOON,
        "WEBSOCKET_PING_INTERVAL": SHORT,
        "WEBSOCKET_PING_TIMEOUT": 20 * SHORT,
        "WEBSOCKET_HANDSHAKE_TIMEOUT": 2 * SHORT,
    }
    with start_site(settings, env=mishaps.env) as server:
        worker = worker_of(server)
        client = raw(server)
        client.open("/echo/")
        names = f"{key}-first", f"{key}-second"
        members = {name: connect(server, "/members/", additional_headers=log_in(server, name)) for name in names}
        for seconds, (name, member) in zip((HOUR, -HOUR), members.items(), strict=True):
            mishaps.happen(seconds=seconds)
            silent = raw(server)  # its request has a deadline
            client.send(frame(next_ping(client).payload, PONG))
            assert fetch(server.port, f"/change/deactivate/?name={name}").status == 200
            assert member.closing() == (4401, "logged out")
            assert silent.response().status == 408
        until_answered(client)
        assert worker_of(server) == worker
        assert "Traceback" not in server.log


@pytest.mark.parametrize("engine", ["db", "signed_cookies"])
def test_sessions_expire_by_the_time_of_day(
    start_site: StartSite, raw: Raw, key: str, tmp_path: Path, engine: str
) -> None:
    """The expiry of sessions depends on the time of day, as in Django."""
    mishaps = Mishaps(tmp_path / "mishaps")
    settings = {
        **SOON,
        "SESSION_ENGINE": f"django.contrib.sessions.backends.{engine}",
        "SESSION_COOKIE_AGE": HOUR,
    }
    with start_site(settings, env=mishaps.env) as server:
        client = raw(server)
        client.open("/members/", log_in(server, key))
        mishaps.happen(seconds=HOUR // 2)
        time.sleep(2 * SOON["WEBSOCKET_LOGIN_CHECK_INTERVAL"])  # enough to notice an expired session
        assert talks(client)
        mishaps.happen(seconds=HOUR + 60)
        assert client.closing() == (4401, "logged out")


def test_client_that_answered_while_the_process_was_stopped_stays(start_site: StartSite, raw: Raw) -> None:
    """This happens when a machine sleeps: input from that time is read before a client is judged."""
    settings = {"WEBSOCKET_PING_INTERVAL": SHORT, "WEBSOCKET_PING_TIMEOUT": 3 * SHORT}
    with start_site(settings, args=["--timeout", "0"]) as server:
        worker = worker_of(server)
        client = raw(server)
        client.open("/echo/")
        for _ in range(2):
            ping = next_ping(client)
            os.kill(worker, signal.SIGSTOP)
            client.send(frame(ping.payload, PONG))
            time.sleep(4 * SHORT)
            os.kill(worker, signal.SIGCONT)
        until_answered(client)


def test_slow_reader_is_not_blamed_for_time_in_which_the_process_stood_still(pairs: Pairs) -> None:
    connection, peer = pairs(narrow=True, limits=Limits(send_buffer_size=10_000, send_timeout=2 * SHORT))
    view = gevent.spawn(connection.send, "x" * 100_000)
    until(lambda: connection._drained is not None)
    time.sleep(3 * SHORT)  # the whole process stands still
    peer.pump()
    peer.until_frames(1)
    view.get(timeout=5)
    assert not connection.at_end
