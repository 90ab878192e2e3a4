"""What is done to the servers of a stage: each fault is written down with its time and with what it may cost."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import redis
from redis.crc import key_slot

from ..support.mishaps import Mishaps
from ..support.servers import Cluster, Sentinel, Server, redis_cluster, redis_sentinel, redis_server
from ..support.waiting import eventually
from .checker import ROUNDING, Fault, Rule

PREFIX = "torture:"
SETTLED = 60.0  # seconds until servers have agreed on a master
SMALL_JUMP, LARGE_JUMP = 60, 8 * 3600  # seconds
FILLING = "x" * 5000
EVICTED = 30  # keys


class Publishing(Protocol):
    """Lets publishers pause."""

    def hold(self) -> None:
        """Return when nothing is being published any more."""

    def go(self) -> None:
        """Let them go on."""


@dataclass
class Log:
    """The faults of a stage."""

    random: random.Random
    faults: list[Fault] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)  # faults that could not be caused

    @contextmanager
    def fault(
        self,
        kind: str,
        *,
        resets: bool = False,
        loses: bool = False,
        cuts: bool = False,
        channels: Sequence[str] | None = None,
    ) -> Iterator[None]:
        """Write down that the block is a fault; see `Fault`."""
        begin = time.monotonic()
        try:
            yield
        finally:
            affected = None if channels is None else frozenset(channels)
            self.faults.append(Fault(kind, begin, time.monotonic(), resets, loses, cuts, affected))

    def pause(self, least: float, most: float) -> None:
        """Wait for a random time in seconds."""
        time.sleep(self.random.uniform(least, most))


class Topology(AbstractContextManager["Topology"]):
    """The servers of a stage, and the faults that they can have."""

    name: str
    longest_pause = 6.0  # seconds

    def __init__(self, log: Log, rules: Mapping[str, Rule], publishing: Publishing) -> None:
        self.log = log
        self.rules = rules
        self.publishing = publishing
        self.stack = ExitStack()

    def __exit__(self, *exc_info: Any) -> None:
        self.stack.close()

    @property
    def broker(self) -> dict[str, Any]:
        """The value of `WEBSOCKET_BROKER`."""
        raise NotImplementedError

    @property
    def faults(self) -> Mapping[Callable[[], None], int]:
        """The faults, each with its weight."""
        raise NotImplementedError

    def server_of(self, channel: str) -> Server:
        """Return the server that has a channel now."""
        raise NotImplementedError

    def ask(self, server: Server, *words: Any) -> Any:
        """Send a command to a server."""
        raise NotImplementedError

    def channels_of(self, server: Server) -> list[str]:
        """Return the channels that a server has now."""
        return [channel for channel in self.rules if self.server_of(channel) is server]

    def any_server(self) -> Server:
        """Return a server that has channels, at random."""
        return self.server_of(self.log.random.choice([*self.rules]))

    # --- faults of any server ------------------------------------------------------------------------------------

    def subscribers_killed(self) -> None:
        """End the connections of all subscribers."""
        server = self.any_server()
        with self.log.fault("CLIENT KILL TYPE pubsub", cuts=True):
            killed = eventually(lambda: self.ask(server, "CLIENT", "KILL", "TYPE", "pubsub") > 0)
            assert killed, "there are no subscribers"

    def clients_killed(self) -> None:
        """End all other connections."""
        server = self.any_server()
        with self.log.fault("CLIENT KILL TYPE normal", cuts=True):
            self.ask(server, "CLIENT", "KILL", "TYPE", "normal")

    def scripts_forgotten(self) -> None:
        """Have the server forget the scripts that were loaded."""
        server = self.any_server()
        with self.log.fault("SCRIPT FLUSH"):
            self.ask(server, "SCRIPT", "FLUSH")

    def paused(self) -> None:
        """Let a server hang for a while."""
        server = self.any_server()
        with self.log.fault("pause", cuts=True):
            server.send_signal(signal.SIGSTOP)
            try:
                self.log.pause(0.3, self.longest_pause)
            finally:
                server.send_signal(signal.SIGCONT)

    def flushed(self) -> None:
        """Delete everything that a server has."""
        server = self.any_server()
        with self.log.fault("FLUSHALL", resets=True, channels=self.channels_of(server)):
            self.ask(server, "FLUSHALL")

    def trimmed(self) -> None:
        """Cut the histories of some channels by hand, delete them, or put something into them that is no message."""
        how = self.log.random.choice(["LTRIM", "DEL", "RPUSH"])
        channels = self.log.random.sample([*self.rules], 4)
        with self.log.fault(how, resets=True, channels=channels):
            for channel in channels:
                server = self.server_of(channel)
                for key in self.keys(server, channel):
                    words = {"LTRIM": (-self.log.random.randint(1, 5), -1), "DEL": (), "RPUSH": ("something else",)}
                    self.ask(server, how, key, *words[how])

    def keys(self, server: Server, channel: str) -> list[bytes]:
        """Return the keys of a channel."""
        found = self.ask(server, "KEYS", f"*:{channel}")
        assert isinstance(found, list)
        return found

    def evicted(self) -> None:
        """Have a server short of memory evict keys."""
        server = self.any_server()
        policy = self.log.random.choice(["allkeys-random", "volatile-lru"])
        with self.log.fault(f"eviction ({policy})", resets=True, channels=self.channels_of(server)):
            before = self.info(server, "evicted_keys")
            self.ask(server, "CONFIG", "SET", "maxmemory-policy", policy)
            self.ask(server, "CONFIG", "SET", "maxmemory", self.info(server, "used_memory") + 200_000)
            try:
                for number in range(2000):
                    with suppress(redis.ResponseError):
                        self.fill(server, number)
                    if self.info(server, "evicted_keys") >= before + EVICTED:
                        break
                else:
                    self.log.failures.append(f"no keys were evicted ({policy})")
            finally:
                self.ask(server, "CONFIG", "SET", "maxmemory", 0)
                self.ask(server, "CONFIG", "SET", "maxmemory-policy", "noeviction")
        self.unfill(server)

    def fill(self, server: Server, number: int) -> None:
        """Set a key that needs memory."""
        self.ask(server, "SET", f"filling:{number}", FILLING, "EX", 60)

    def unfill(self, server: Server) -> None:
        """Delete those keys."""
        for key in self.ask(server, "KEYS", "filling:*"):
            self.ask(server, "DEL", key)

    def info(self, server: Server, name: str) -> int:
        """Return a number that the server knows of itself."""
        lines = self.ask(server, "INFO", "everything").splitlines()
        return next(int(line.partition(b":")[2]) for line in lines if line.startswith(f"{name}:".encode()))

    def out_of_memory(self) -> None:
        """Have a server refuse everything that needs memory."""
        server = self.any_server()
        with self.log.fault("out of memory"):
            self.ask(server, "CONFIG", "SET", "maxmemory", 1)
            try:
                self.log.pause(1, 3)
            finally:
                self.ask(server, "CONFIG", "SET", "maxmemory", 0)

    @property
    def common_faults(self) -> Mapping[Callable[[], None], int]:
        """The faults that servers have in every topology."""
        return {
            self.subscribers_killed: 6,
            self.clients_killed: 3,
            self.scripts_forgotten: 2,
            self.flushed: 1,
            self.trimmed: 2,
            self.evicted: 1,
            self.out_of_memory: 2,
        }


# --- a single Redis --------------------------------------------------------------------------------------------------


class Single(Topology):
    """One Redis that writes everything to its disk before it answers."""

    name = "single"

    def __enter__(self) -> Single:
        directory = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.data = directory / "data"
        self.data.mkdir()
        self.mishaps = Mishaps(directory / "mishaps")
        self.clock = 0  # seconds by which it is off
        args = ["--dir", str(self.data), "--appendonly", "yes", "--appendfsync", "always"]
        self.server = self.stack.enter_context(redis_server(args=args))
        self.server.env |= self.mishaps.env
        self.server.stop()
        self.server.start()
        return self

    @property
    def broker(self) -> dict[str, Any]:
        return {"url": f"redis://{self.server.address}/0", "prefix": PREFIX}

    @property
    def faults(self) -> Mapping[Callable[[], None], int]:
        own = {self.restarted: 6, self.restarted_empty: 1, self.paused: 5, self.clock_jumped: 2}
        return {**self.common_faults, **own}

    def server_of(self, channel: str) -> Server:
        return self.server

    def ask(self, server: Server, *words: Any) -> Any:
        return ask(server, words)

    def restarted(self) -> None:
        """Kill or end the server, and start it again with its data."""
        how = self.log.random.choice([signal.SIGKILL, signal.SIGTERM])
        with self.log.fault("restart with its data", cuts=True):
            self.server.stop(how)
            self.log.pause(0, 3)
            self.server.start()

    def restarted_empty(self) -> None:
        """Kill the server, and start it again without its data."""
        with self.log.fault("restart without its data", resets=True, cuts=True):
            self.server.stop(signal.SIGKILL)
            shutil.rmtree(self.data)
            self.data.mkdir()
            self.log.pause(0, 3)
            self.server.start()

    def clock_jumped(self) -> None:
        """Set the server's clock forward or backward."""
        others = [seconds for seconds in (-SMALL_JUMP, 0, SMALL_JUMP, LARGE_JUMP) if seconds != self.clock]
        self.set_clock(self.log.random.choice(others))

    def set_clock(self, seconds: int) -> None:
        """Let the server's clock be off by some seconds."""
        jump, self.clock = seconds - self.clock, seconds
        expired = [channel for channel, rule in self.rules.items() if jump > rule.seconds - ROUNDING]
        kind = f"clock set {'forward' if jump > 0 else 'back'}"
        with self.log.fault(kind, resets=bool(expired), channels=expired or None):
            self.mishaps.happen(seconds=seconds)


# --- Sentinel --------------------------------------------------------------------------------------------------------


class Watched(Topology):
    """Two Redis servers, a master and a replica, and three sentinels."""

    name = "sentinel"

    def __enter__(self) -> Watched:
        self.sentinel: Sentinel = self.stack.enter_context(redis_sentinel())
        return self

    @property
    def broker(self) -> dict[str, Any]:
        return {**self.sentinel.broker(), "prefix": PREFIX}

    @property
    def faults(self) -> Mapping[Callable[[], None], int]:
        own = {
            self.paused: 3,
            self.failed_over: 4,
            self.failed_over_to_a_lagging_replica: 2,
            self.failed_over_while_it_hung: 1,
            self.partitioned: 2,
        }
        return {**self.common_faults, **own}

    def server_of(self, channel: str) -> Server:
        return self.master()

    def ask(self, server: Server, *words: Any) -> Any:
        return ask(server, words, password=Sentinel.password, db=1 if server in self.sentinel.servers else 0)

    def master(self) -> Server:
        """Return the master; wait until all agree on it."""
        assert eventually(lambda: self.sentinel.master() is not None, SETTLED), "there is no master"
        master = self.sentinel.master()
        assert master is not None
        return master

    def pair(self) -> tuple[Server, Server]:
        """Return the master and its replica."""
        master = self.master()
        (replica,) = [server for server in self.sentinel.servers if server is not master]
        return master, replica

    def settle(self) -> None:
        """Wait until the replica follows the master again."""
        assert eventually(self.sentinel.complete, SETTLED), "the sentinels do not settle"

    @contextmanager
    def hurry(self) -> Iterator[None]:
        """Have the sentinels replace a master that is away for a second."""
        self.sentinel.hurry()
        try:
            yield
        finally:
            for sentinel in self.sentinel.sentinels:
                name = "down-after-milliseconds"
                self.sentinel.ask(sentinel, "SENTINEL", "SET", Sentinel.service, name, 60_000)

    def failed_over(self) -> None:
        """Exchange master and replica while nothing is published, so that nothing can be lost."""
        master, replica = self.pair()
        self.publishing.hold()
        try:
            with self.log.fault("failover without loss", cuts=True):
                assert eventually(lambda: self.ask(master, "WAIT", 1, 1000) == 1, SETTLED)
                self.promote(replica)
        finally:
            self.publishing.go()

    def promote(self, replica: Server) -> None:
        """Have the sentinels make the replica the master."""

        def promoted() -> bool:
            with suppress(redis.ResponseError):  # not yet, or in progress
                self.sentinel.ask(self.sentinel.sentinels[0], "SENTINEL", "FAILOVER", Sentinel.service)
            return eventually(lambda: self.sentinel.master() is replica, 10)

        assert eventually(promoted, SETTLED), "no failover"
        self.settle()

    @contextmanager
    def lagging(self, master: Server, replica: Server) -> Iterator[None]:
        """Have the replica not follow the master."""
        self.ask(replica, "CONFIG", "SET", "masterauth", "wrong")
        try:
            self.ask(master, "CLIENT", "KILL", "TYPE", "replica")
            self.log.pause(1, 3)
            yield
        finally:
            self.ask(replica, "CONFIG", "SET", "masterauth", Sentinel.password)

    def failed_over_to_a_lagging_replica(self) -> None:
        """Kill the master when the replica has not got all that was published."""
        master, replica = self.pair()
        fault = self.log.fault("failover to a lagging replica", resets=True, cuts=True, loses=True)
        with fault, self.lagging(master, replica), self.hurry():
            master.stop(signal.SIGKILL)
            assert eventually(lambda: self.ask(replica, "ROLE")[0] == b"master", SETTLED), "no failover"
            self.master()
        master.start()
        self.settle()

    def failed_over_while_it_hung(self) -> None:
        """Let the master hang until it is replaced; it goes on until it learns of that."""
        master, replica = self.pair()
        with self.log.fault("failover of a master that hangs", resets=True, cuts=True, loses=True), self.hurry():
            master.send_signal(signal.SIGSTOP)
            try:
                assert eventually(lambda: self.ask(replica, "ROLE")[0] == b"master", SETTLED), "no failover"
            finally:
                master.send_signal(signal.SIGCONT)
            assert eventually(lambda: self.ask(master, "ROLE")[0] == b"slave", SETTLED), "it stays the master"
        self.settle()

    def name_master(self, server: Server, sentinels: Sequence[Server]) -> None:
        """Have sentinels forget what they know, and take a server for the master."""
        options = {"auth-pass": Sentinel.password, "down-after-milliseconds": 60_000, "failover-timeout": 2000}
        for sentinel in sentinels:  # all of them first: they would tell each other
            self.sentinel.ask(sentinel, "SENTINEL", "REMOVE", Sentinel.service)
        for sentinel in sentinels:
            self.sentinel.ask(sentinel, "SENTINEL", "MONITOR", Sentinel.service, "127.0.0.1", server.port, 2)
            for name, value in options.items():
                self.sentinel.ask(sentinel, "SENTINEL", "SET", Sentinel.service, name, value)

    def partitioned(self) -> None:
        """Have two masters for a while, of which clients find one or the other; then fail back to the first."""
        master, replica = self.pair()
        sentinel = self.sentinel
        with self.log.fault("partition", resets=True, cuts=True, loses=True):
            with self.lagging(master, replica):
                self.ask(replica, "REPLICAOF", "NO", "ONE")
                self.name_master(replica, self.log.random.sample(sentinel.sentinels, 1))
                self.log.pause(0.2, 1.5)  # the others still name the old one
                self.name_master(replica, sentinel.sentinels)
                self.log.pause(0.5, 2)
            self.ask(master, "REPLICAOF", "127.0.0.1", replica.port)
            assert eventually(lambda: self.ask(master, "ROLE")[0] == b"slave", SETTLED), "it stays the master"
        self.settle()
        self.log.pause(0, 3)
        self.failed_over()


# --- Cluster ---------------------------------------------------------------------------------------------------------


class Clustered(Topology):
    """Three masters that share the slots, and a replica of the first."""

    name = "cluster"

    def __enter__(self) -> Clustered:
        self.cluster: Cluster = self.stack.enter_context(redis_cluster())
        return self

    @property
    def broker(self) -> dict[str, Any]:
        hosts = ",".join(node.address for node in self.cluster.nodes[1:3])
        return {"url": f"redis+cluster://{hosts}/", "prefix": PREFIX}

    @property
    def faults(self) -> Mapping[Callable[[], None], int]:
        own = {
            self.paused: 3,
            self.slots_moved: 12,
            self.failed_over: 4,
            self.failed_over_after_a_crash: 2,
            self.restarted_empty: 1,
        }
        return {**self.common_faults, **own}

    def server_of(self, channel: str) -> Server:
        found: list[Server] = []

        def known() -> bool:
            owner = self.cluster.owner(self.slot(channel))
            found.extend([] if owner is None else [owner])
            return owner is not None

        assert eventually(known, SETTLED), "the nodes do not agree"
        return found[0]

    def channels_of(self, server: Server) -> list[str]:
        ranges = [line[:2] for line in self.ask(server, "CLUSTER", "SLOTS") if line[2][1] == server.port]
        slots = {channel: self.slot(channel) for channel in self.rules}
        return [name for name, slot in slots.items() if any(first <= slot <= last for first, last in ranges)]

    def slot(self, channel: str) -> int:
        """Return the slot of a channel."""
        return int(key_slot(f"{PREFIX}{channel}".encode()))

    def ask(self, server: Server, *words: Any) -> Any:
        return ask(server, words)

    def fill(self, server: Server, number: int) -> None:
        with suppress(redis.ResponseError):  # the slot is elsewhere
            super().fill(server, number)

    def settle(self) -> None:
        """Wait until all nodes are there and agree."""
        assert eventually(self.cluster.complete, SETTLED), "the nodes do not settle"

    @contextmanager
    def hurry(self, milliseconds: int = 1000) -> Iterator[None]:
        """Have a master replaced that is away for that long, and the others vote again after twice the time."""
        self.set_timeout(milliseconds)
        try:
            yield
        finally:
            self.set_timeout(60_000)

    def set_timeout(self, milliseconds: int) -> None:
        """Set the time after which a node counts as failing."""
        for node in self.cluster.nodes:
            if node.running:
                self.ask(node, "CONFIG", "SET", "cluster-node-timeout", milliseconds)

    def slots_moved(self) -> None:
        """Move the slots of some channels to another node, with their keys, while they are published to."""
        for channel in self.log.random.sample([*self.rules], 3):
            source = self.server_of(channel)
            target = self.log.random.choice([node for node in self.cluster.masters() if node is not source])
            with self.log.fault("slot moved", cuts=True):
                self.move(self.slot(channel), source, target)

    def move(self, slot: int, source: Server, target: Server) -> None:
        """Move a slot with its keys, as `redis-cli --cluster reshard` does, but slowly."""
        ids = dict(zip(self.cluster.nodes, self.cluster.ids, strict=True))
        self.ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
        self.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
        while keys := self.ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 10):
            for key in keys:
                self.ask(source, "MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
                self.log.pause(0, 0.5)
        self.log.pause(0, 1)
        for node in dict.fromkeys([target, source, *self.cluster.masters()]):
            self.ask(node, "CLUSTER", "SETSLOT", slot, "NODE", ids[target])
        self.server_of_slot(slot, target)

    def server_of_slot(self, slot: int, server: Server) -> None:
        assert eventually(lambda: self.cluster.owner(slot) is server, SETTLED), "the nodes do not agree"

    def pair(self) -> tuple[Server, Server]:
        """Return the master that has a replica, and that replica."""
        roles = {node: self.ask(node, "ROLE") for node in self.cluster.nodes}
        (replica,) = [node for node, role in roles.items() if role[0] == b"slave"]
        (master,) = [node for node in roles if node.port == roles[replica][2]]
        return master, replica

    def failed_over(self) -> None:
        """Have master and replica agree to change places: the master waits until the replica has everything."""
        master, replica = self.pair()
        with self.log.fault("failover without loss", cuts=True), self.hurry(5000):
            assert any(self.took_over(replica) for _ in range(6)), "no failover"
        self.settle()

    def took_over(self, replica: Server) -> bool:
        """Have a replica change places with its master; return whether that was done within the time Redis gives it."""
        with suppress(redis.ResponseError):  # it is the master already
            self.ask(replica, "CLUSTER", "FAILOVER")
        return eventually(lambda: self.ask(replica, "ROLE")[0] == b"master", 7)

    def failed_over_after_a_crash(self) -> None:
        """Kill the master that has a replica; what it has not passed on is lost."""
        master, replica = self.pair()
        channels = self.channels_of(master)
        with (
            self.log.fault("failover after a crash", resets=True, cuts=True, loses=True, channels=channels),
            self.hurry(),
        ):
            master.stop(signal.SIGKILL)
            assert eventually(lambda: self.ask(replica, "ROLE")[0] == b"master", SETTLED), "no failover"
        master.start()
        self.settle()

    def restarted_empty(self) -> None:
        """Kill a master without a replica, and start it again without its data."""
        node = self.log.random.choice([node for node in self.cluster.masters() if node is not self.pair()[0]])
        with self.log.fault("restart without its data", resets=True, cuts=True, channels=self.channels_of(node)):
            node.stop(signal.SIGKILL)
            self.log.pause(0, 2)
            node.start()
        self.settle()


# --- gunicorn --------------------------------------------------------------------------------------------------------


class Workers:
    """The processes of the site."""

    def __init__(self, log: Log, site: Server) -> None:
        self.log = log
        self.site = site

    @property
    def faults(self) -> Mapping[Callable[[], None], int]:
        """The faults, each with its weight."""
        return {self.killed: 3, self.reloaded: 1, self.paused: 1}

    def pids(self) -> list[int]:
        """Return the process ids of the workers."""
        return [int(word) for word in Path(f"/proc/{self.site.pid}/task/{self.site.pid}/children").read_text().split()]

    def killed(self) -> None:
        """Kill a worker; gunicorn starts another."""
        with self.log.fault("worker killed"), suppress(ProcessLookupError, IndexError):
            os.kill(self.log.random.choice(self.pids()), signal.SIGKILL)

    def reloaded(self) -> None:
        """Have gunicorn replace all workers."""
        with self.log.fault("reload"):
            self.site.send_signal(signal.SIGHUP)

    def paused(self) -> None:
        """Let a worker hang for a while."""
        with self.log.fault("worker paused", cuts=True), suppress(ProcessLookupError, IndexError):
            pid = self.log.random.choice(self.pids())
            os.kill(pid, signal.SIGSTOP)
            try:
                self.log.pause(0.5, 3)
            finally:
                os.kill(pid, signal.SIGCONT)


# --- asking ----------------------------------------------------------------------------------------------------------


def ask(server: Server, words: Sequence[Any], **options: Any) -> Any:
    """Send a command on a connection of its own; repeat it if a fault has ended that."""
    for attempt in range(3):
        try:
            with redis.Redis("127.0.0.1", server.port, protocol=2, socket_timeout=10, **options) as client:
                client.response_callbacks.clear()
                return client.execute_command(*words)
        except redis.ConnectionError:
            if attempt == 2:
                raise
            time.sleep(0.3)
    raise AssertionError


TOPOLOGIES: Mapping[str, type[Topology]] = {kind.name: kind for kind in (Single, Watched, Clustered)}
