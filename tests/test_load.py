"""Many clients: nothing is lost or duplicated, and nothing stays once they have left."""

from __future__ import annotations

import resource
import selectors
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from .support.clients import RawClient
from .support.fixtures import StartSite
from .support.frames import PING, TEXT, close_frame, frame
from .support.processes import descriptors, memory, processor_time, worker_of
from .support.servers import NOT_MEASURED, ROOT, Server, gunicorn, unavailable
from .support.waiting import eventually

pytestmark = pytest.mark.slow

# Beside other tests, so many clients would wait so long that the server closes them.
many_clients = pytest.mark.alone

MEMBERS, MESSAGES = 300, 10
CLIENTS, OF_THEM_SELECTING = 2000, 500


def receive_from_all(clients: Sequence[RawClient], count: int, within: float = 60) -> list[tuple[str, ...]]:
    """Receive `count` short texts of the same length from each, in any order of clients."""
    received = {client: bytearray() for client in clients}
    deadline = time.monotonic() + within
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client.sock, selectors.EVENT_READ, client)
        while selector.get_map():
            left = deadline - time.monotonic()
            assert left > 0, f"{len(selector.get_map())} clients still wait for something"
            time.sleep(0.2)  # clients that wake for each frame would cost the server more than anything else
            for selected, _ in selector.select(left):
                client, data = selected.data, selected.data.sock.recv(65536)
                assert data, "the server closed the connection"
                received[client] += data
                # All texts have the same length: compute the total instead of parsing a million frames.
                enough = len(received[client]) >= count * (2 + received[client][1])
                if enough and len(texts_of(received[client])) >= count:
                    selector.unregister(client.sock)
    distinct = {data: tuple(texts_of(data)) for data in {bytes(data) for data in received.values()}}
    return [distinct[bytes(data)] for data in received.values()]


def texts_of(data: bytes | bytearray) -> list[str]:
    """The texts of the short frames that make up `data`, without pings."""
    texts = []
    position = 0
    while position + 2 <= len(data):
        opcode, length = data[position] & 0x7F, data[position + 1]
        assert opcode in (TEXT, PING), f"a frame that begins with {data[position]:#x}"
        assert length < 126
        end = position + 2 + length
        if opcode == TEXT and end <= len(data):
            texts.append(data[position + 2 : end].decode())
        position = end
    return texts


@contextmanager
def open_files(limit: int | None = None) -> Iterator[None]:
    """Limit this process and its children to `limit` descriptors; by default to the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < CLIENTS + 1000:
        unavailable(f"{CLIENTS} clients need a higher limit of open files than {hard}: ulimit -Hn")
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit or hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- one chat --------------------------------------------------------------------------------------------------------


@many_clients
@pytest.mark.parametrize("with_redis", [False, True], ids=["one worker", "three workers of two gunicorns"])
def test_every_member_of_a_large_chat_gets_each_message_once_and_in_order(
    request: pytest.FixtureRequest, with_redis: bool
) -> None:
    with open_files(), ExitStack() as stack:
        if with_redis:
            environment = {"REDIS_URL": request.getfixturevalue("redis_url"), **NOT_MEASURED}
            servers = [stack.enter_context(gunicorn(env=environment, args=["-w", number])) for number in ("1", "2")]
        else:
            servers = [stack.enter_context(gunicorn(env=NOT_MEASURED))]
        members = [stack.enter_context(RawClient(servers[number % len(servers)].port)) for number in range(MEMBERS)]
        for member in members:
            member.open("/chat/")
        # The senders take turns; some of their messages share a segment, others travel alone.
        sent = [[f"{sender:03}:{number}" for number in range(MESSAGES)] for sender in range(MEMBERS)]
        for begin, end in ((0, 4), (4, 5), (5, 6), (6, MESSAGES)):
            for member, texts in zip(members, sent, strict=True):
                member.send(*map(frame, texts[begin:end]))
        received = receive_from_all(members, MEMBERS * MESSAGES)
        members[0].send(frame("end"))
        assert receive_from_all(members, 1) == [("end",)] * MEMBERS  # comes right after the last message
        orders = {*received}
        for order in orders:
            assert len(order) == MEMBERS * MESSAGES
            assert sorted(order) == sorted(text for texts in sent for text in texts)
            for sender in range(MEMBERS):
                assert [text for text in order if text.startswith(f"{sender:03}:")] == sent[sender]
        assert len(orders) == 1  # all members see the same order, that of the broker


# --- many clients ----------------------------------------------------------------------------------------------------


def visit(server: Server, stack: ExitStack) -> list[RawClient]:
    """Open all connections, the selecting ones last, so that their descriptors are beyond 1023."""
    clients = []
    for number in range(CLIENTS):
        client = stack.enter_context(RawClient(server.port))
        client.open("/echo/" if number < CLIENTS - OF_THEM_SELECTING else "/chat/")
        clients.append(client)
    return clients


def leave(clients: Sequence[RawClient]) -> None:
    """Close half of the connections properly, and reset the others."""
    for client in clients[::2]:
        client.send(close_frame(1000))
    for client in clients[::2]:
        assert client.closing()[0] == 1000
    for client in clients[1::2]:
        client.reset()


@many_clients
def test_one_worker_serves_two_thousand_clients_with_the_settings_of_the_deployment() -> None:
    arguments: list[str | Path] = ["-c", ROOT / "deploy" / "websocket.conf.py"]
    with ExitStack() as servers:
        with open_files(1024):  # a shell's usual limit; the worker raises it
            server = servers.enter_context(gunicorn(args=arguments, env=NOT_MEASURED))
        servers.enter_context(open_files())
        worker = worker_of(server)
        before = descriptors(worker), memory(worker)
        after: list[int] = []
        for _ in range(2):
            with ExitStack() as stack:
                clients = visit(server, stack)
                assert descriptors(worker) > CLIENTS
                assert (memory(worker) - before[1]) / CLIENTS < 100  # KiB per client
                echoing, selecting = clients[:-OF_THEM_SELECTING], clients[-OF_THEM_SELECTING:]
                for number, client in enumerate(echoing):
                    client.send(frame(f"{number}"), frame("second"))
                for number, client in enumerate(echoing):
                    assert [client.frame().text, client.frame().text] == [f"{number}", "second"]
                for sender in (selecting[0], selecting[-1]):
                    sender.send(frame("one"), frame("two"))
                    for client in selecting:
                        assert [client.frame().text, client.frame().text] == ["one", "two"]
                leave(clients)
                assert eventually(lambda: descriptors(worker) < before[0] + 10), descriptors(worker)
                after.append(memory(worker))
        # The second round reuses the first one's memory; if clients leaked, it would take 40 MiB more.
        assert after[1] - after[0] < 24 * 1024, after
        assert "Traceback" not in server.log


def test_worker_does_nothing_while_its_clients_are_idle(start_site: StartSite) -> None:
    with start_site({"WEBSOCKET_PING_INTERVAL": 2.0}, env=NOT_MEASURED) as server, ExitStack() as stack:
        worker = worker_of(server)
        clients = [stack.enter_context(RawClient(server.port)) for _ in range(30)]
        for number, client in enumerate(clients):
            # Neither half a frame nor a whole ping may keep select() from sleeping.
            behind = (b"", frame("half")[:5], frame(b"", PING))[number % 3]
            client.open(("/echo/", "/selects/x/", "/listen/x/")[number // 3 % 3], behind=behind)
        begin, computed = time.monotonic(), processor_time(worker)
        while clients[-1].frame().opcode != PING:
            pass
        assert (processor_time(worker) - computed) / (time.monotonic() - begin) < 0.25


def test_connections_that_come_and_go_leave_nothing() -> None:
    with gunicorn(env=NOT_MEASURED) as server:
        worker = worker_of(server)

        def come_and_go(times: int) -> None:
            for number in range(times):
                with RawClient(server.port) as client:
                    client.open(("/echo/", "/ping/", "/chat/")[number % 3], behind=frame("ping"))
                    assert client.frame().opcode == TEXT
                    if number % 2:
                        client.send(close_frame(1000))
                        client.closing()

        begin = memory(worker)
        come_and_go(300)
        assert eventually(lambda: descriptors(worker) < 50)
        before = descriptors(worker), memory(worker)
        come_and_go(2700)
        assert eventually(lambda: descriptors(worker) <= before[0] + 2)
        assert memory(worker) - before[1] < 8 * 1024
        assert memory(worker) - begin < 24 * 1024
