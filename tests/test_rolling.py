"""New code for a site with clients: each way to replace processes loses no client that connects again.

A hundred clients talk all the time. Told of a restart, they come back at once, which is harder for the server than
what client.js does. Any other end, a refusal, or an answer that is missing is an error.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from .support.clients import RawClient
from .support.fixtures import StartSite
from .support.frames import CLOSE, close_frame, frame
from .support.fronts import haproxy
from .support.servers import NOT_MEASURED, ROOT, Server, free_port
from .support.waiting import DEADLINE, eventually

pytestmark = [pytest.mark.slow, pytest.mark.alone]  # a hundred clients talk, and wait for processes that start

CLIENTS = 100
PACE = 0.1  # seconds between two messages of a client
PATIENCE = 40.0  # seconds for processes to be replaced, on a machine that is busy with other tests
QUICK = {"WEBSOCKET_DRAIN_WINDOW": 1.0, "WEBSOCKET_HEALTH": True}
CONFIGURED: list[str | Path] = ["-c", ROOT / "deploy" / "websocket.conf.py"]


class Persistent(threading.Thread):
    """A client that talks all the time, and connects again when it is told of a restart.

    `workers` has the process ids of its workers in turn.
    """

    def __init__(self, port: int, over: threading.Event) -> None:
        super().__init__()
        self.port = port
        self.over = over
        self.workers: list[str] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.over.is_set():
                self.visit()
        except BaseException as error:
            self.error = error

    def visit(self) -> None:
        with RawClient(self.port) as client:
            client.open(f"/selects/{id(self)}/")
            self.workers.append(client.frame().text)
            assert client.frame().text == "subscribed"
            number = 0
            while not self.over.wait(PACE):
                client.send(frame(f"{number}"))
                answer = client.frame()
                if answer.opcode == CLOSE:
                    assert answer.close[0] == 1012
                    with suppress(OSError):  # a balancer may have closed both ends already
                        client.send(close_frame(1012))
                    return
                assert answer.text == f"{number}"
                number += 1


class Crowd:
    """Many clients of one port."""

    def __init__(self, clients: list[Persistent]) -> None:
        self.clients = clients

    def workers(self) -> set[str]:
        """The process ids of the workers that the clients have now."""
        return {client.workers[-1] if client.workers else "" for client in self.clients}

    def all_have(self, condition: Callable[[Persistent], bool], within: float = PATIENCE) -> bool:
        """Wait until a condition holds for each client; raise what one of them has met."""

        def done() -> bool:
            self.check()
            return all(condition(client) for client in self.clients)

        return eventually(done, within)

    def all_move_from(self, workers: set[str]) -> bool:
        """Wait until no client has one of these workers any more."""
        return self.all_have(lambda client: client.workers[-1] not in workers)

    def check(self) -> None:
        """Raise what a client has met, if that is not as it should be."""
        for client in self.clients:
            if client.error is not None:
                raise AssertionError(f"a client of the workers {client.workers} was lost") from client.error


@contextmanager
def crowd(port: int, size: int = CLIENTS) -> Iterator[Crowd]:
    """Let many clients talk while the block runs, and check at the end that none was lost."""
    over = threading.Event()
    clients = [Persistent(port, over) for _ in range(size)]
    for client in clients:
        client.start()
    try:
        found = Crowd(clients)
        assert found.all_have(lambda client: bool(client.workers))
        yield found
    finally:
        over.set()
        for client in clients:
            client.join(DEADLINE)
    found.check()


def test_reload_and_new_master_lose_no_client(start_site: StartSite, tmp_path: Path) -> None:
    pid = tmp_path / "gunicorn.pid"
    new = 0
    with start_site(QUICK, args=[*CONFIGURED, "-w", "2", "--pid", pid], env=NOT_MEASURED) as server:
        try:
            with crowd(server.port) as clients:
                first = clients.workers()
                server.send_signal(signal.SIGHUP)
                assert clients.all_move_from(first)
                second = clients.workers()
                server.send_signal(signal.SIGUSR2)
                beside = pid.with_name("gunicorn.pid.2")
                assert eventually(lambda: beside.exists() and beside.read_text().strip(), PATIENCE)
                new = int(beside.read_text())
                assert eventually(lambda: booted(server) == 6, PATIENCE)
                server.send_signal(signal.SIGTERM)
                assert clients.all_move_from(first | second)
                server.wait()
                assert eventually(lambda: pid.exists() and int(pid.read_text()) == new)
        finally:
            if new:
                os.kill(new, signal.SIGTERM)
                assert eventually(lambda: not pid.exists())
        assert "Traceback" not in server.log


def booted(server: Server) -> int:
    """How many workers have been started in all."""
    return server.log.count("Booting worker with pid")


def test_workers_that_have_served_their_requests_lose_no_client(start_site: StartSite) -> None:
    args = [*CONFIGURED, "-w", "2", "--max-requests", "40", "--max-requests-jitter", "10"]
    with start_site(QUICK, args=args, env=NOT_MEASURED) as server:
        with crowd(server.port) as clients:
            assert clients.all_have(lambda client: len(client.workers) > 1)
            # The first worker may have had them all before the second one was there.
            assert eventually(lambda: booted(server) > 2, PATIENCE)
        assert "Traceback" not in server.log


# --- pods, played by processes ----------------------------------------------------------------------------------------


class Balancer:
    """A HAProxy whose list of servers is changed from outside, as Kubernetes changes that of a service."""

    def __init__(self, control: Path) -> None:
        self._control = control

    def ask(self, command: str) -> str:
        """Send a command, and return the answer."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(DEADLINE)
            sock.connect(str(self._control))
            sock.sendall(f"{command}\n".encode())
            return b"".join(iter(lambda: sock.recv(4096), b"")).decode()

    def state(self, name: str) -> str:
        """The state of a server: "UP" if it gets clients, "DRAIN" if it keeps those that it has, "DOWN"."""
        lines = [line.split(",") for line in self.ask("show stat").splitlines()]
        (state,) = [line[17] for line in lines if line[:2] == ["websockets", name]]
        return state.partition(" ")[0]

    def forget(self, name: str) -> None:
        """Send no more clients to a server; those that it has stay."""
        self.ask(f"set server websockets/{name} state drain")

    def add(self, name: str) -> None:
        """Send clients to a server when it says that it is ready."""
        self.ask(f"set server websockets/{name} state ready")


class Newcomer(threading.Thread):
    """Opens one WebSocket after the other, each for one message."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port = port
        self.over = threading.Event()
        self.visits = 0
        self.error: BaseException | None = None

    def visits_go_on(self) -> bool:
        """Wait until some more clients have come and gone."""
        enough = self.visits + 5
        return eventually(lambda: self.visits >= enough or self.error is not None)

    def run(self) -> None:
        try:
            while not self.over.wait(PACE / 10):
                with RawClient(self.port) as client:
                    client.open("/echo/", behind=frame("hello"))
                    answer = client.frame()
                    assert answer.opcode == CLOSE or answer.text == "hello"
                self.visits += 1
        except BaseException as error:
            self.error = error


@contextmanager
def newcomers(port: int) -> Iterator[Newcomer]:
    """Let clients come and go while the block runs, and check at the end that all were served."""
    newcomer = Newcomer(port)
    newcomer.start()
    try:
        yield newcomer
    finally:
        newcomer.over.set()
        newcomer.join(DEADLINE)
    assert newcomer.error is None, newcomer.error


def test_rolling_update_behind_a_balancer_loses_no_client(start_site: StartSite, tmp_path: Path) -> None:
    ports = {"one": free_port(), "two": free_port()}
    control = tmp_path / "haproxy.sock"
    changes = {
        "hard-stop-after 10m": f"hard-stop-after 10m\n    stats socket {control} level admin",
        "# server two 10.0.0.2:8001": f"server two 127.0.0.1:{ports['two']}",
    }

    def pod(name: str) -> Server:
        return start_site(QUICK, args=CONFIGURED, env=NOT_MEASURED, port=ports[name])

    with ExitStack() as stack:  # the pods end after the clients
        pods = {"one": stack.enter_context(pod("one"))}
        front = stack.enter_context(haproxy(ports["one"], ports["one"], changes))
        balancer = Balancer(control)

        def becomes(name: str, state: str) -> bool:
            return eventually(lambda: balancer.state(name) == state, PATIENCE)

        assert becomes("one", "UP") and becomes("two", "DOWN")
        with crowd(front.port, CLIENTS // 2) as clients, newcomers(front.port) as newcomer:
            for old, new, pause in (("one", "two", True), ("two", "one", False)):
                before = clients.workers()
                balancer.add(new)
                pods[new] = stack.enter_context(pod(new))
                assert becomes(new, "UP")
                if pause:
                    # Kubernetes ends a pod: preStop begins, and the balancers forget it a while later. Until then it
                    # gets clients, and must serve them.
                    assert newcomer.visits_go_on()
                    balancer.forget(old)
                    assert becomes(old, "DRAIN")
                # Without a pause, the balancer still chooses it, is refused, and sends the client to another one.
                pods[old].send_signal(signal.SIGTERM)
                assert clients.all_move_from(before)
                pods[old].wait(DEADLINE)
                assert becomes(old, "DOWN")
