"""Processes forked by views and pages: the worker's clients notice nothing, and the child can do plain work."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from .support.clients import RawClient, fetch, notes, request
from .support.fixtures import Raw, StartSite
from .support.frames import close_frame, frame
from .support.processes import worker_of
from .support.servers import Server
from .support.waiting import eventually


def sockets(pid: int) -> set[str]:
    """The sockets of a process, as /proc names them: by inode."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.add(os.readlink(entry))
        except FileNotFoundError:  # closed in the meantime
            continue
    return {name for name in found if name.startswith("socket:")}


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def fork(server: Server, key: str, where: str, how: str, client: RawClient) -> int:
    """Have a page or a view start a child; return its process id once the child has reported that it runs."""
    if where == "page":
        client.send(f"GET /forks/{how}/?key={key} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    else:
        client.open(f"/forks/{how}/?key={key}")
    return int(notes(server.port, key)[0])


@pytest.mark.parametrize("where", ["page", "view"])
@pytest.mark.parametrize("how", ["process", "exit", "raise", "return"])
def test_clients_of_the_worker_do_not_notice_a_child(site: Server, raw: Raw, key: str, where: str, how: str) -> None:
    clients = [raw(site) for _ in range(20)]
    for client in clients:
        client.open(f"/echo/?key={key}-echo")
    forking = raw(site)
    child = fork(site, key, where, how, forking)
    assert sockets(child) & sockets(worker_of(site)) == set()
    for number in range(50):  # meanwhile, the child lets its own loop run
        for client in clients:
            client.send(frame(f"{number}"))
        assert [client.frame().text for client in clients] == [f"{number}"] * 20
    fetch(site.port, f"/gate/{key}/")
    assert eventually(lambda: not alive(child))
    for client in clients:
        client.send(frame("still here"), close_frame(1000))
        assert client.frame().text == "still here"
        assert client.closing() == (1000, "")
    assert notes(site.port, f"{key}-echo", 20) == ["1000"] * 20
    # Django turns an exception in a page into a response.
    status = {"process": 0, "exit": 3, "raise": int(where == "view"), "return": 0}[how]
    assert notes(site.port, key, 2)[1:] == [f"status {status}"]
    if where == "view":
        forking.send(frame("and the view goes on"))
        assert forking.frame().text == "and the view goes on"


def test_child_ends_when_it_is_terminated(site: Server, raw: Raw, key: str) -> None:
    client = raw(site)
    client.open(f"/forks/terminate/?key={key}")
    assert notes(site.port, key, 2)[1:] == [f"status {-signal.SIGTERM}"]
    client.send(frame("hello"))
    assert client.frame().text == "hello"


@pytest.fixture(params=["plain", "tls"])
def copied_from(
    request: pytest.FixtureRequest, site: Server, start_site: StartSite, certificate: tuple[Path, Path]
) -> Iterator[tuple[Server, bool]]:
    """A server, and whether it speaks TLS."""
    if request.param == "plain":
        yield site, False
    else:
        with start_site(args=["--certfile", certificate[0], "--keyfile", certificate[1]], probe=b"") as server:
            yield server, True


def test_connection_ends_although_its_descriptor_was_duplicated(
    copied_from: tuple[Server, bool], raw: Raw
) -> None:  # RFC 6455, section 7.1.1
    server, tls = copied_from
    page = b"GET /keeps-a-copy/ HTTP/1.1\r\nHost: localhost\r\n"

    closed = raw(server, tls=tls)
    closed.open("/keeps-a-copy/", behind=close_frame(1000))
    assert closed.closing()[0] == 1000

    failed = raw(server, tls=tls)
    failed.open("/keeps-a-copy/", behind=b"\x81\x00")
    assert failed.closing()[0] == 1002

    refused = raw(server, tls=tls)
    refused.send(request("/keeps-a-copy/?interfere=replace"))
    assert refused.response().status == 409

    read = raw(server, tls=tls)
    read.send(page, b"Connection: close\r\n\r\n")
    assert read.response().body == b"kept"

    left = raw(server, tls=tls)
    left.send(page, b"\r\n", b"no request\r\n\r\n")
    assert left.response().body == b"kept"
    assert left.response().status == 400

    for client in (closed, failed, refused, read, left):
        assert client.rest() == b""  # the end of the stream; TLS was closed too, or reading would have failed


def test_child_can_do_plain_work(site: Server, raw: Raw, key: str) -> None:
    client = raw(site)
    client.open(f"/forks/work/?key={key}")
    assert notes(site.port, key) == ["a thread, a program, another child, a pool, an event"]
