"""Real servers for tests: gunicorn, Redis, nginx and PostgreSQL as child processes on free loopback ports.

Each is a context manager, started when the block begins and ended when the block is left.

    with gunicorn(args=["--workers", "2"]) as server:
        connect(f"ws://127.0.0.1:{server.port}/echo/")
"""

from __future__ import annotations

import fcntl
import itertools
import math
import os
import pwd
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn
from urllib.parse import quote

import pytest
import redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS

from .waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
TEST_PROJECT = ROOT / "test_project"
WORKER = "django_websocket.worker.GeventWebSocketWorker"
HTTP_PROBE = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"

MASTERS = 3  # of a Redis Cluster
# Variables that a developer's shell may have and a server under test must not see.
NOT_INHERITED = (
    "ALLOWED_HOSTS",
    "DATABASE_NAME",
    "DEBUG",
    "DJANGO_SETTINGS_MODULE",
    "FORWARDED_ALLOW_IPS",
    "GUNICORN_CMD_ARGS",
    "REDIS_URL",
    "SECRET_KEY",
    "STATIC_ROOT",
    "WEBSOCKET_ALLOWED_ORIGINS",
    "WEBSOCKET_SERVER",
    "WEB_CONCURRENCY",
)

NOT_MEASURED = {"COVERAGE_PROCESS_CONFIG": ""}  # coverage would cost four times what the test measures


PORTS = range(20000, 32768)  # below the range from which the kernel takes ports for outgoing connections
SHARES = 32  # how many processes can run tests on one machine at once


def shares() -> Iterator[int]:
    """Yield a share of the ports that no other process gets that runs tests here, while this generator is there."""
    for share in range(SHARES):
        with Path(tempfile.gettempdir(), f"django_websocket-tests-{os.getuid()}-{share}.lock").open("wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield share
    raise RuntimeError(f"{SHARES} processes run tests here already, and there are no ports for another")


_shares = shares()
_ports = itertools.cycle(PORTS[next(_shares) :: SHARES])  # now, since tests look for files that they leave open
_ports_lock = threading.Lock()  # some tests start several servers at once


def free_port() -> int:
    """Return a port on which nothing listens; it is not reused before all other ports of this process."""
    for _ in range(len(PORTS) // SHARES):
        with _ports_lock:
            port = next(_ports)
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("something listens on all ports of this process")


def unavailable(reason: str) -> NoReturn:
    """Skip the test, which cannot run on this machine; with CI in the environment, fail it."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def executable(name: str) -> str:
    """Return the path of a system program on which the test depends."""
    # Debian keeps PostgreSQL's programs in a directory for each version.
    places = [os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"]
    places += sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")))
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        unavailable(f"{name} is not installed; scripts/test installs it")
    return found


class Server:
    """A child process that listens on a port of 127.0.0.1.

    Args:
        args: The command line.
        port: Where it will listen.
        probe: A request that the server answers once it serves. Without one, an accepted connection is enough, which
            gunicorn grants before its workers have loaded the application.
        host: The address at which it is probed.
        cwd: The directory it runs in.
        env: Environment variables on top of this process's own, without `NOT_INHERITED`.
        user: The user it runs as, by default this process's.
        pass_fds: Descriptors of this process that it inherits.
        start_timeout, stop_timeout: Deadlines in seconds.
    """

    def __init__(
        self,
        args: Sequence[str | Path],
        *,
        port: int,
        probe: bytes = b"",
        host: str = "127.0.0.1",
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        pass_fds: Sequence[int] = (),
        start_timeout: float = 30,
        stop_timeout: float = 15,
    ) -> None:
        self.args = [str(arg) for arg in args]
        self.port = port
        self.probe = probe
        self.host = host
        self.cwd = cwd
        self.env = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED} | dict(env or {})
        self.user = user
        self.pass_fds = pass_fds
        self.start_timeout = start_timeout
        self.stop_timeout = stop_timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (one log for the server's life, restarts included)

    @property
    def address(self) -> str:
        """Host and port, as in a Host header or a URL."""
        return f"127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        """Whether it was started and has not been stopped since."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """The process id while it runs."""
        assert self._process is not None, "the server does not run"
        return self._process.pid

    @property
    def log(self) -> str:
        """What it has written to standard output and error so far."""
        # pread, because the child writes through the same file position
        return os.pread(self._log.fileno(), os.fstat(self._log.fileno()).st_size, 0).decode(errors="replace")

    def start(self) -> None:
        """Start it and wait until it serves.

        Raises:
            RuntimeError: It ended, or did not serve in time; the message has the end of its log.
        """
        # It has a session of its own, so that a Ctrl-C meant for the tests does not reach it and its children can be
        # killed with it.
        self._process = subprocess.Popen(
            self.args,
            cwd=self.cwd,
            env=self.env,
            user=self.user,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            pass_fds=self.pass_fds,
            start_new_session=True,
        )
        deadline = time.monotonic() + self.start_timeout
        while not self._answers():
            try:
                status = self._process.wait(0.05)
            except subprocess.TimeoutExpired:
                if time.monotonic() < deadline:
                    continue
                self.stop()
                problem = f"does not serve port {self.port} after {self.start_timeout} s"
            else:
                self._process = None
                problem = f"ended with status {status}"
            raise RuntimeError(f"{' '.join(self.args)} {problem}; its log ends:\n{self.log[-4000:]}")

    def _answers(self) -> bool:
        try:
            with socket.create_connection((self.host, self.port), self.start_timeout) as sock:
                if not self.probe:
                    return True
                sock.sendall(self.probe)
                return sock.recv(1) != b""
        except OSError:
            return False

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process itself, not to its children."""
        os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended for whatever reason, and return its status.

        Raises:
            subprocess.TimeoutExpired: It is still running after `timeout` seconds (default: `stop_timeout`).
        """
        assert self._process is not None, "the server does not run"
        status = self._process.wait(self.stop_timeout if timeout is None else timeout)
        self._process = None
        return status

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int | None:
        """Ask it to end, and kill it and its children if it does not do so in time.

        Returns its status, or None if it was not running.
        """
        if self._process is None:
            return None
        self.send_signal(number)
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            return self.wait()

    def __enter__(self) -> Server:
        try:
            self.start()
        except BaseException:
            self.stop()
            self._log.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        if error is not None:
            print(f"--- log of {' '.join(self.args)}\n{self.log[-8000:]}")  # pytest shows it with the failed test
        self._log.close()


def gunicorn(
    app: str = "project.wsgi:websocket",
    worker: str = WORKER,
    *,
    cwd: Path = TEST_PROJECT,
    env: Mapping[str, str] | None = None,
    args: Sequence[str | Path] = (),
    port: int | None = None,
    probe: bytes = HTTP_PROBE,
) -> Server:
    """This environment's gunicorn; it serves once a worker has answered a request, with any status.

    For TLS pass `probe=b""`, since the request is not encrypted.
    """
    port = port or free_port()
    binary = Path(sys.executable).parent / "gunicorn"
    command = [str(binary), "--no-control-socket", "-b", f"127.0.0.1:{port}", "-k", worker]
    return Server([*command, *args, app], port=port, probe=probe, cwd=cwd, env=env)


@contextmanager
def redis_server(port: int | None = None, args: Sequence[str] = (), probe: bytes = b"PING\r\n") -> Iterator[Server]:
    """A Redis of its own that keeps nothing on disk."""
    port = port or free_port()
    with tempfile.TemporaryDirectory() as directory:
        command = [executable("redis-server"), "--bind", "127.0.0.1", "--port", str(port), "--dir", directory]
        with Server([*command, "--save", "", *args], port=port, probe=probe) as server:
            yield server


class Sentinel:
    """Two Redis servers, the first of which is the master at the start, and the three sentinels that watch them."""

    service = "main"
    password = "of-the-servers"  # the sentinels' is this one twice

    def __init__(self, servers: Sequence[Server], sentinels: Sequence[Server]) -> None:
        self.servers = servers
        self.sentinels = sentinels

    def broker(self, *first: str) -> dict[str, str]:
        """Return a `WEBSOCKET_BROKER` whose URL names the hosts in `first` before the sentinels."""
        hosts = ",".join([*first, *(server.address for server in self.sentinels)])
        return {
            "url": f"redis+sentinel://:{quote(self.password)}@{hosts}/{self.service}/1",
            "sentinel_password": self.password * 2,
        }

    def ask(self, server: Server, *words: object) -> Any:
        """Send a command to a server or a sentinel."""
        password = self.password * (1 + (server in self.sentinels))
        with redis.Redis("127.0.0.1", server.port, password=password, protocol=2) as client:
            return client.execute_command(*words)

    def master(self) -> Server | None:
        """Return the master, if all running sentinels agree on it and it agrees with them."""
        question = "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service
        answers = {int(self.ask(sentinel, *question)[1]) for sentinel in self.sentinels if sentinel.running}
        for server in self.servers:
            if {server.port} == answers and server.running and self.ask(server, "ROLE")[0] == b"master":
                return server
        return None

    def hurry(self) -> None:
        """Have failures noticed within a second; until now the deadline was longer, to be safe on a busy machine."""
        for sentinel in self.sentinels:
            self.ask(sentinel, "SENTINEL", "SET", self.service, "down-after-milliseconds", 1000)

    def complete(self) -> bool:
        """Whether all servers run and know each other, and the replica follows the master."""
        master = self.master()
        if master is None or len(self.ask(master, "ROLE")[2]) != 1:
            return False
        for sentinel in self.sentinels:
            words = self.ask(sentinel, "SENTINEL", "MASTER", self.service)
            state = dict(zip(words[::2], words[1::2], strict=True))
            if (state[b"num-other-sentinels"], state[b"num-slaves"]) != (b"2", b"1") or state[b"flags"] != b"master":
                return False
        return True


@contextmanager
def redis_sentinel() -> Iterator[Sentinel]:
    """A Redis with a replica and sentinels, all with passwords."""
    ports = [free_port(), free_port()]
    login = ["--requirepass", Sentinel.password, "--masterauth", Sentinel.password, "--repl-diskless-sync-delay", "0"]
    with ExitStack() as stack:
        servers = [
            stack.enter_context(redis_server(ports[0], login)),
            stack.enter_context(redis_server(ports[1], [*login, "--replicaof", "127.0.0.1", str(ports[0])])),
        ]
        sentinels = []
        for _ in range(3):
            port = free_port()
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            configuration = directory / "sentinel.conf"  # a file for each, since a sentinel writes to it
            configuration.write_text(
                f"port {port}\n"
                f"bind 127.0.0.1\n"
                f"dir {directory}\n"
                f'requirepass "{Sentinel.password * 2}"\n'
                f"sentinel monitor {Sentinel.service} 127.0.0.1 {ports[0]} 2\n"
                f'sentinel auth-pass {Sentinel.service} "{Sentinel.password}"\n'
                f"sentinel down-after-milliseconds {Sentinel.service} 60000\n"
                f"sentinel failover-timeout {Sentinel.service} 2000\n"
            )
            command: list[str | Path] = [executable("redis-server"), configuration, "--sentinel"]
            sentinels.append(stack.enter_context(Server(command, port=port, probe=b"PING\r\n")))
        sentinel = Sentinel(servers, sentinels)
        assert eventually(sentinel.complete, 20)
        yield sentinel


class Cluster:
    """Nodes that share the slots of a Redis Cluster, followed by one replica of the first."""

    def __init__(self, nodes: Sequence[Server], ids: Sequence[str]) -> None:
        self.nodes = nodes
        self.ids = ids

    def ask(self, node: Server, *words: object) -> Any:
        """Send a command to a node."""
        with redis.Redis("127.0.0.1", node.port, protocol=2) as client:
            return client.execute_command(*words)

    @staticmethod
    def slots_of(master: int) -> range:
        """Return the slots that a master has at the start."""
        return range(master * REDIS_CLUSTER_HASH_SLOTS // MASTERS, (master + 1) * REDIS_CLUSTER_HASH_SLOTS // MASTERS)

    def masters(self) -> list[Server]:
        """Return the running nodes that may have slots."""
        return [node for node in self.nodes if node.running and self.ask(node, "ROLE")[0] == b"master"]

    def owner(self, slot: int) -> Server | None:
        """Return the node that has a slot, if all masters agree on it and find the cluster healthy."""
        found = set()
        for node in self.masters():
            if b"cluster_state:ok" not in self.ask(node, "CLUSTER", "INFO"):
                return None
            ranges = self.ask(node, "CLUSTER", "SLOTS")
            found |= {int(address[1]) for first, last, address, *_ in ranges if first <= slot <= last} or {0}
        return next((node for node in self.nodes if found == {node.port}), None)

    def complete(self) -> bool:
        """Whether all nodes run, and the replica follows its master."""
        if not all(self.owner(slot) for slot in (0, 8000, 16383)):
            return False
        roles = [self.ask(node, "ROLE") for node in self.nodes]
        return sorted(role[0] for role in roles) == [b"master"] * (len(roles) - 1) + [b"slave"] and all(
            role[3] == b"connected" for role in roles if role[0] == b"slave"
        )

    def hurry(self) -> None:
        """Have failures noticed within a second; until now the deadline was longer, to be safe on a busy machine."""
        for node in self.nodes:
            self.ask(node, "CONFIG", "SET", "cluster-node-timeout", 1000)

    def move(self, slot: int, target: Server) -> None:
        """Give a slot to another node, as `redis-cli --cluster reshard` does."""
        source = self.owner(slot)
        assert source is not None
        if source is not target:
            ids = dict(zip(self.nodes, self.ids, strict=True))
            self.ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
            self.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
            for node in dict.fromkeys([target, source, *self.masters()]):
                self.ask(node, "CLUSTER", "SETSLOT", slot, "NODE", ids[target])

    def taking_over(self, replica: Server, slot: int) -> Callable[[], bool]:
        """Return a function that has a replica take over a slot; call it until it returns true."""
        asked = -math.inf

        def done() -> bool:
            nonlocal asked
            if self.owner(slot) is replica:
                return True
            if time.monotonic() - asked > 6:  # Redis gives up after five if the others did not vote
                asked = time.monotonic()
                with suppress(redis.ResponseError):  # it is the master already, but not all know
                    self.ask(replica, "CLUSTER", "FAILOVER", "FORCE")
            return False

        return done


@contextmanager
def redis_cluster() -> Iterator[Cluster]:
    """A Redis Cluster whose nodes know each other from the start, since introducing them would take seconds."""
    version = subprocess.run(
        [executable("redis-server"), "--version"], capture_output=True, text=True, check=True
    ).stdout
    major, minor = map(int, version.partition(" v=")[2].split(".")[:2])
    if major < 7:
        unavailable("redis-server is older than 7.0, and knows no sharded publish/subscribe")
    ids = [os.urandom(20).hex() for _ in range(MASTERS + 1)]
    # From 7.2 on, and in Valkey, a master and its replicas share an id, without which SPUBLISH crashes the server.
    shards = ["" if (major, minor) < (7, 2) else f",,shard-id={ids[number % MASTERS]}" for number in range(len(ids))]
    ports = [(free_port(), free_port()) for _ in ids]
    with ExitStack() as stack:
        nodes: list[Server] = []
        for own in ids:
            lines = [f"vars currentEpoch {MASTERS} lastVoteEpoch 0"]
            for number, (id, (port, bus)) in enumerate(zip(ids, ports, strict=True)):
                myself = "myself," if id == own else ""
                line = f"{id} 127.0.0.1:{port}@{bus}{shards[number]} {myself}"
                if number < MASTERS:
                    slots = Cluster.slots_of(number)
                    line += f"master - 0 0 {number + 1} connected {slots[0]}-{slots[-1]}"
                else:
                    line += f"slave {ids[0]} 0 0 1 connected"
                lines.insert(0, line)
            port, bus = ports[len(nodes)]
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            Path(directory, "nodes.conf").write_text("\n".join([*lines, ""]))
            options = [
                *("--cluster-enabled", "yes", "--cluster-port", str(bus), "--cluster-node-timeout", "60000"),
                *("--repl-diskless-sync-delay", "0", "--dir", str(directory)),
            ]
            nodes.append(stack.enter_context(redis_server(port, options)))
        cluster = Cluster(nodes, ids)
        assert eventually(cluster.complete, 20)
        yield cluster


@contextmanager
def nginx(configuration: str, port: int) -> Iterator[Server]:
    """An nginx with this configuration, which must have it listen on `port` and log errors to stderr."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "nginx.conf")
        path.write_text(configuration)
        command = [executable("nginx"), "-p", directory, "-c", str(path), "-e", "stderr", "-g", "daemon off;"]
        with Server(command, port=port) as server:
            yield server


TEMPORARY_FILES = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@contextmanager
def configured_nginx(
    django: int, websockets: int, static: Path, changes: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Run nginx with deploy/nginx.conf; change only ports, paths, the user, and the lines in `changes`."""
    port = free_port()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    text = (ROOT / "deploy" / "nginx.conf").read_text()
    for old, new in {
        **(changes or {}),
        "user www-data;": f"user {pwd.getpwuid(os.getuid()).pw_name};",
        "pid /run/nginx.pid;": "pid nginx.pid;",
        "error_log /var/log/nginx/error.log;": "error_log stderr;",
        "access_log /var/log/nginx/access.log short;": "access_log access.log short;",
        "server 127.0.0.1:8000;": f"server 127.0.0.1:{django};",
        "server 127.0.0.1:8001;": f"server 127.0.0.1:{websockets};",
        "listen 80;": f"listen 127.0.0.1:{port};",
        "alias /srv/example/static/;": f"alias {static}/;",
        # Only root may exceed the hard limit, and write where the packaged nginx keeps its temporary files.
        "worker_rlimit_nofile 65536;": f"worker_rlimit_nofile {min(65536, hard) if hard > 0 else 65536};",
        "http {": "http {" + "".join(f"{kind}_temp_path {kind};" for kind in TEMPORARY_FILES),
    }.items():
        assert old in text, f"deploy/nginx.conf has no line {old!r}"
        text = text.replace(old, new, 1)
    with nginx(text, port) as server:
        yield server


class PostgreSQL(Server):
    """A PostgreSQL that counts as serving once it lets clients in, and ends without waiting for them to leave."""

    def __init__(self, data: Path, port: int, args: Sequence[str], user: str | None) -> None:
        command: list[str | Path] = [
            executable("postgres"),
            "-D",
            data,
            "-F",
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
            "-k",
            "",
        ]
        super().__init__([*command, *args], port=port, user=user, cwd=data.parent)
        self.data = data

    def __enter__(self) -> PostgreSQL:
        super().__enter__()
        return self

    def _answers(self) -> bool:
        command = [
            executable("pg_isready"),
            "-q",
            "-h",
            "127.0.0.1",
            "-p",
            str(self.port),
            "-U",
            "test",
            "-d",
            "postgres",
        ]
        return subprocess.run(command, check=False).returncode == 0

    def stop(self, number: signal.Signals = signal.SIGINT) -> int | None:
        return super().stop(number)


def copy_data(source: Path, target: Path) -> None:
    """Copy the data of a PostgreSQL that is stopped; they stay its user's."""
    subprocess.run(["cp", "-a", source, target], check=True, timeout=60)


@contextmanager
def postgresql(args: Sequence[str] = (), data: Path | None = None) -> Iterator[PostgreSQL]:
    """A PostgreSQL of its own that syncs nothing to the disk; its user `test` needs no password and may do anything.

    It begins with a copy of `data`, which costs much less than to make a new database.
    """
    port = free_port()
    user = "postgres" if os.geteuid() == 0 else None  # root may not run it; its package makes this user
    with tempfile.TemporaryDirectory() as directory:
        if user is not None:
            shutil.chown(directory, user)
        own = Path(directory, "data")
        if data is not None:
            copy_data(data, own)
        else:
            options = ["-U", "test", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]
            command: list[str | Path] = [executable("initdb"), "-D", own, *options]
            subprocess.run(command, cwd=directory, user=user, check=True, capture_output=True, timeout=60)
        with PostgreSQL(own, port, args, user) as server:
            yield server
