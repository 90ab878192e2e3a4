"""The loads that servers are put under, and the generator that makes them (wsload.c)."""

import json
import subprocess
from dataclasses import dataclass, replace

from environment import HERE
from processes import pinned_to

WSLOAD = HERE / "wsload"
LOWER_BOUND = 0.9  # above this share of its core, the generator may have limited the figure instead of the server
REACHED = 0.97  # below this share of the rate that was asked for, the server was overloaded


@dataclass(frozen=True)
class Load:
    """`path` is the key in Server.paths: a server without it is not put under this load.

    `value` is the key of the figure that matters in the result. With `login` the clients are logged in; with `redis`
    the generator publishes in Redis itself; with `rated` messages come at the same fixed rate for all servers. The load
    is measured in `rounds` rounds, or in all if that is None. `many` means so many clients that only some servers are
    tried. `curve` and `at` place it in a plot.
    """

    name: str
    what: str
    mode: str  # the mode of wsload
    path: str
    clients: int
    options: tuple = ()
    value: str = "rate"
    unit: str = "messages/s"
    factor: float = 1  # turns `value` into `unit`
    login: bool = False
    redis: bool = False
    rated: bool = False
    many: bool = False
    rounds: int | None = None
    curve: str = ""
    at: int = 0

    @property
    def measures_memory(self):
        return self.value == "kib_per_client"

    @property
    def less_is_better(self):
        return self.value != "rate"

    @property
    def arguments(self):
        return ("-c", self.clients, *self.options)

    def figure(self, result):
        """The figure that matters: None if the load failed."""
        value = result.get(self.value)
        return None if value is None else value * self.factor


def echo(name, what, clients, *options, **more):
    return Load(name, f"echo, {what}", "echo", "echo", clients, options, **more)


def fanout(name, what, clients, *options, **more):
    more = {"unit": "deliveries/s"} | more
    return Load(name, what, "fanout", "chat", clients, ("-s", 128, *options), **more)


def rooms(count, members):
    options = ("--channels", count, "--window", 10)
    load = fanout("", f"{count:,} channels with {members} members each", count * members, *options, redis=True)
    return replace(load, path="room")


def memory(clients, **more):
    more = {"value": "kib_per_client", "unit": "KiB for a client"} | more
    return [
        Load(f"idle{clients}", f"memory, {clients:,} silent clients", "idle", "echo", clients, **more),
        fanout(f"members{clients}", f"memory, {clients:,} subscribed clients", clients, **more),
    ]


def curve(name, points, make):
    """A load at several sizes, for a plot of what each message costs."""
    shared = {"value": "cpu_per_message", "unit": "µs of CPU", "factor": 1e6, "many": True, "rounds": 1, "curve": name}
    return [replace(make(point), name=f"{name}-{point}", at=point, **shared) for point in points]


SIZES = (1, 10, 100, 1000, 5000, 15000)
GROWTH = [
    *curve("clients", SIZES, lambda n: echo("", f"{n:,} clients", n)),
    *curve("members", SIZES, lambda n: fanout("", f"{n:,} in a channel", n, "--window", 4, redis=True)),
    *curve("channels", (1, 10, 100, 1000), lambda n: rooms(n, members=10)),
]

# Each round has this order. --quick leaves out loads that are measured in one round only.
LOADS = [
    *memory(2000, rounds=2),
    *memory(15000, rounds=1, many=True),
    Load("connect", "handshakes, anonymous", "connect", "echo", 50, unit="handshakes/s"),
    Load("connect_login", "handshakes, logged in", "connect", "lookup", 50, unit="handshakes/s", login=True),
    echo("echo1", "64 B, 1 client", 1, rounds=1),
    echo("echo1_p16", "64 B, 1 client, 16 in flight", 1, "-p", 16, rounds=1),
    echo("echo", "64 B, 100 clients", 100, rounds=4),
    echo("echo_p16", "64 B, 100 clients, 16 in flight each", 100, "-p", 16, rounds=4),
    echo("echo1000", "64 B, 1,000 clients", 1000, rounds=1),
    echo("echo1000_p16", "64 B, 1,000 clients, 16 in flight each", 1000, "-p", 16, rounds=1),
    echo("echo_64k", "64 KiB, 20 clients", 20, "-s", 65536, rounds=3),
    echo("echo_deflate", "4 KiB of JSON, compressed, 100 clients", 100, "-s", 4096, "--json", "--deflate", rounds=2),
    replace(echo("lookup", "", 20, "--json", "-s", 128, rounds=2), path="lookup", what="JSON and a query, 20 clients"),
    replace(
        echo("latency", "64 B, 100 clients, at one rate", 100),
        **{"value": "p99_us", "unit": "ms, p99", "factor": 1e-3, "rated": True},
    ),
    fanout("fanout200", "fan-out to 200", 200),
    fanout("fanout1000", "fan-out to 1,000", 1000),
    fanout("fanout5000", "fan-out to 5,000", 5000, rounds=1),
    fanout("redis200", "fan-out to 200, published from outside", 200, redis=True, rounds=3),
    fanout("redis200_x10", "fan-out to 200, 10 messages together", 200, "--together", 10, redis=True, rounds=1),
    fanout("redis1000", "fan-out to 1,000, published from outside", 1000, redis=True, rounds=3),
    fanout("redis1000_x10", "fan-out to 1,000, 10 messages together", 1000, "--together", 10, redis=True, rounds=3),
    replace(fanout("select200", "fan-out to 200, in views that wait with select()", 200, rounds=1), path="chat_select"),
    *GROWTH,
]


def smoke_loads():
    """Each load, small and short, not to measure but to see that every message arrives; without repetitions."""
    small = {}
    for load in LOADS:
        if not load.curve or load.at == 10:
            key = load.mode, load.path, load.login, load.redis, load.rated, load.measures_memory, load.options
            small.setdefault(key, replace(load, clients=min(load.clients, 20)))
    binary = echo("echo_binary", "binary", 4, "-s", 200, "-p", 4, "--binary")
    return [*small.values(), binary]


def run_wsload(mode, arguments, *, core=None, on_open=None):
    """Return the generator's result, or `{"failed": why}`. It ends by itself: each of its waits has a limit.

    `on_open` is called with the number of open clients when an idle load has opened all of them.
    """
    command = [str(word) for word in (WSLOAD, mode, *arguments)]
    with pinned_to(core):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    result = None
    with process:
        try:
            for line in process.stdout:
                if line.startswith("{"):
                    result = json.loads(line)
                elif line.startswith("OPEN ") and on_open:
                    on_open(int(line.split()[1]))
            complaint = process.stderr.read().strip()
        finally:
            process.kill()  # has no effect if it has ended
    return result or {"failed": complaint[-200:] or "no result"}


def faults(result):
    """What went wrong, as text; empty if every message came back once, whole and in order."""
    if "failed" in result:
        return result["failed"]
    counts = {name: count for name, count in result["errors"].items() if count}
    counts |= {name: result[name] for name in ("lost", "dup", "ack_timeouts", "bad") if result.get(name)}
    if "ready" in result and result["ready"] != result["open"]:
        counts["subscribed"] = f"{result['ready']}/{result['open']}"
    if not result["msgs"]:
        counts["messages"] = 0
    text = " ".join(f"{name}={count}" for name, count in counts.items())
    return f"{text} ({result['first_error'][:60]})" if text and result["first_error"] else text


def generator_bound(result):
    return result.get("gen_cpu_frac", 0) > LOWER_BOUND


def overloaded(result):
    """Whether the server failed to keep up with the rate that was asked for."""
    return result.get("rate", 0) < REACHED * result.get("asked", 0)
