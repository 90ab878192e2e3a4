"""A client's socket: for gunicorn, which waits, and for the WebSocket, which does not."""

from __future__ import annotations

import _socket
import contextlib
import errno
import socket
from collections.abc import Iterator

import gevent
import gevent.socket
import pytest

from django_websocket.transport.sockets import ClientSocket, accept

from .support.wire import Pairs, unix_pair

Ends = tuple[ClientSocket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """The server's socket for a client, and the client's own end."""
    with Pairs():  # checks that no descriptor is left
        server, client = unix_pair()
        client.settimeout(5)
        sock = ClientSocket(_socket.socket(server.family, server.type, server.proto, server.detach()))
        yield sock, client
        client.close()
        sock.close()


def is_gevents(sock: ClientSocket) -> bool:
    return isinstance(sock._sock, gevent.socket.socket)


def test_waiting_bytes_are_received_without_gevent(ends: Ends) -> None:
    sock, client = ends
    client.sendall(b"request")
    assert sock.recv(100) == b"request"
    assert not is_gevents(sock)
    assert sock.send(b"answer") == 6
    assert client.recv(100) == b"answer"


def test_recv_waits_for_bytes_while_others_run(ends: Ends) -> None:
    sock, client = ends
    sock.setblocking(True)  # gunicorn calls it first on every socket
    assert not is_gevents(sock)
    receiving = gevent.spawn(sock.recv, 100)
    gevent.sleep(0)
    assert not receiving.ready()
    client.sendall(b"late")
    assert receiving.get(timeout=5) == b"late"
    assert is_gevents(sock)


def test_send_waits_for_room_while_others_run(ends: Ends) -> None:
    sock, client = ends
    for _ in range(100):
        sending = gevent.spawn(sock.send, bytes(100_000))
        gevent.sleep(0.01)
        if not sending.ready():
            break
    assert not sending.ready()
    client.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while client.recv(1 << 20):
            pass
    assert sending.get(timeout=5) > 0


def test_all_other_attributes_are_those_of_gevents_socket(ends: Ends) -> None:
    sock, _ = ends
    sock.settimeout(0.01)
    with pytest.raises(TimeoutError):
        sock.recv(1)
    assert (sock.family, sock.gettimeout()) == (socket.AF_UNIX, 0.01)
    with pytest.raises(AttributeError):
        _ = sock.no_such_thing


def test_a_non_blocking_socket_does_not_wait(ends: Ends) -> None:
    sock, _ = ends
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv(1)
    sock.setblocking(True)
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
        sock.recv(1)


@pytest.mark.parametrize("waited", [False, True])
def test_a_socket_that_was_given_away_belongs_to_the_taker(ends: Ends, waited: bool) -> None:
    sock, client = ends
    if waited:
        sock.cooperative()
    taken = sock.give_away()
    assert type(taken) is _socket.socket
    assert taken.gettimeout() == 0
    sock.close()
    assert sock.fileno() == -1
    for attempt in (lambda: sock.recv(1), lambda: sock.send(b"."), lambda: sock.sendall(b"."), lambda: sock.family):
        with pytest.raises(OSError, match=r".") as error:
            attempt()
        assert error.value.errno == errno.EBADF
    taken.send(b"mine")
    assert client.recv(100) == b"mine"
    taken.close()


@pytest.mark.parametrize("waited", [False, True])
def test_a_closed_socket_stays_closed(ends: Ends, waited: bool) -> None:
    sock, client = ends
    if waited:
        sock.cooperative()
    sock.close()
    sock.close()
    assert client.recv(1) == b""
    with pytest.raises(OSError, match=r".") as error:
        sock.recv(1)
    assert error.value.errno == errno.EBADF


def test_a_client_is_accepted_with_its_address() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()) as client,
    ):
        sock, address = accept(listening, (listening.family, listening.type, listening.proto))
        assert address == client.getsockname()
        assert sock.getpeername() == address
        sock.close()
