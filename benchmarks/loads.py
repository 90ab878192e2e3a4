"""The loads that servers are put under, and the generator that does it (wsload.c)."""

import json
import subprocess
from dataclasses import dataclass

from environment import HERE
from processes import pinned_to

WSLOAD = HERE / "wsload"
LOWER_BOUND = 0.9  # share of its core above which the generator, not the server, may have set the figure


@dataclass(frozen=True)
class Load:
    name: str
    mode: str  # of wsload
    path: str  # key in Server.paths: a server without it is not put under this load
    arguments: tuple
    unit: str

    @property
    def measures_memory(self):
        return self.mode == "idle"

    def value(self, result):
        """The figure that matters: None if the load failed."""
        return result.get("kib_per_client" if self.measures_memory else "rate")


def echo(name, *arguments):
    return Load(name, "echo", "echo", arguments, "messages/s")


def fanout(name, path, members):
    return Load(name, "fanout", path, ("-c", members, "-s", 128), "deliveries/s")


# In this order for each server: memory first, as long as it is fresh.
LOADS = [
    Load("idle2000", "idle", "echo", ("-c", 2000), "KiB a client"),
    Load("connect", "connect", "echo", ("-k", 50), "handshakes/s"),
    echo("echo", "-c", 100, "-s", 64),
    echo("echo_p16", "-c", 100, "-s", 64, "-p", 16),
    echo("echo_64k", "-c", 20, "-s", 65536),
    fanout("fanout200", "chat", 200),
    fanout("fanout1000", "chat", 1000),
    fanout("select200", "chat_select", 200),
]

# Not to measure: to see that everything still works.
SHORT = ("--warm", 0, "--connect-timeout", 5)
SMOKE_LOADS = [
    echo("echo", "-c", 20, "-s", 64, "-p", 16, *SHORT),
    echo("echo_64k", "-c", 4, "-s", 65536, *SHORT),
    echo("echo_binary", "-c", 4, "-s", 200, "-p", 4, "--binary", *SHORT),
    Load("chat", "fanout", "chat", ("-c", 20, "-s", 128, "--window", 4, *SHORT), "deliveries/s"),
    Load("chat_select", "fanout", "chat_select", ("-c", 20, "-s", 128, "--window", 4, *SHORT), "deliveries/s"),
]


def run_wsload(mode, arguments, *, core=None, on_open=None):
    """The generator's result; `{"failed": why}` without one. It ends by itself: each of its waits has a limit.

    `on_open` is called with the number of clients when those of an idle load are open.
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
            process.kill()  # nothing, if it has ended
    return result or {"failed": complaint[-200:] or "no result"}


def faults(result):
    """What went wrong, as text; empty if every message came back once, whole and in order."""
    if "failed" in result:
        return result["failed"]
    counts = {name: count for name, count in result["errors"].items() if count}
    counts |= {name: result[name] for name in ("lost", "dup", "ack_timeouts", "bad") if result.get(name)}
    if "ready" in result and result["ready"] != result["open"] - 1:
        counts["subscribed"] = f"{result['ready']}/{result['open'] - 1}"
    if not result["msgs"]:
        counts["messages"] = 0
    text = " ".join(f"{name}={count}" for name, count in counts.items())
    return f"{text} ({result['first_error'][:60]})" if text and result["first_error"] else text


def generator_bound(result):
    return result.get("gen_cpu_frac", 0) > LOWER_BOUND
