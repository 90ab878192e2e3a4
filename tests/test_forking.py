"""Processes that views and pages fork: the worker's clients notice nothing, and the child can do plain work."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from .support.clients import RawClient, fetch, notes
from .support.fixtures import Raw
from .support.frames import close_frame, frame
from .support.processes import worker_of
from .support.servers import Server
from .support.waiting import eventually


def sockets(pid: int) -> set[str]:
    """The sockets of a process, by their inodes."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.add(os.readlink(entry))
        except FileNotFoundError:  # closed meanwhile
            continue
    return {name for name in found if name.startswith("socket:")}


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def fork(server: Server, key: str, where: str, how: str, client: RawClient) -> int:
    """Have a page or a view start a child; return its process id once it has said that it runs."""
    if where == "page":
        client.send(f"GET /forks/{how}/?key={key} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    else:
        client.open(f"/forks/{how}/?key={key}")
    return int(notes(server.port, key)[0])


@pytest.mark.parametrize("where", ["page", "view"])
@pytest.mark.parametrize("how", ["process", "exit", "raise", "return"])
def test_clients_of_the_worker_notice_nothing_of_a_child(
    site: Server, raw: Raw, key: str, where: str, how: str
) -> None:
    clients = [raw(site) for _ in range(20)]
    for client in clients:
        client.open(f"/echo/?key={key}-echo")
    forking = raw(site)
    child = fork(site, key, where, how, forking)
    assert sockets(child) & sockets(worker_of(site)) == set()
    for number in range(50):  # the child lets its own loop run meanwhile
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
    # Django makes a response of the exception of a page.
    status = {"process": 0, "exit": 3, "raise": int(where == "view"), "return": 0}[how]
    assert notes(site.port, key, 2)[1:] == [f"status {status}"]
    if where == "view":
        forking.send(frame("and the view goes on"))
        assert forking.frame().text == "and the view goes on"


def test_child_ends_when_it_is_told_to(site: Server, raw: Raw, key: str) -> None:
    client = raw(site)
    client.open(f"/forks/terminate/?key={key}")
    assert notes(site.port, key, 2)[1:] == [f"status {-signal.SIGTERM}"]
    client.send(frame("hello"))
    assert client.frame().text == "hello"


def test_child_can_do_plain_work(site: Server, raw: Raw, key: str) -> None:
    client = raw(site)
    client.open(f"/forks/work/?key={key}")
    assert notes(site.port, key) == ["a thread, a program, another child, a pool, an event"]
