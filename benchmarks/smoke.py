"""Does every load still run, and does every message arrive, once, whole and in order? Nothing is measured."""

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

from bench import Bench
from loads import faults, smoke_loads
from servers import C_EPOLL, STOCK


def run(bin_directory, ours):
    """0 if all is well, else 1. `ours` are our servers; beside them, those that need nothing else are tried."""
    servers = [*ours, STOCK, C_EPOLL]
    with ThreadPoolExecutor(len(servers)) as threads:
        return max(threads.map(lambda server: try_one(bin_directory, server), servers))


def try_one(bin_directory, server):
    """Each has a Redis of its own, in which nobody else uses the same channels."""
    with tempfile.TemporaryDirectory() as logs:
        bench = Bench(bin_directory, logs, seconds=0.4, idle_seconds=0.1, smoke=True)
        with bench.services():
            return measure(bench, server)


def measure(bench, server):
    failed = 0
    for load in smoke_loads():
        if not server.takes(load) or load.name in server.skips:
            continue
        wrong = faults(bench.measure(server, load))
        print(f"{server.name:26} {load.name:14} {wrong or 'ok'}", flush=True)
        failed = failed or bool(wrong)
    if failed and bench.log(server).exists():
        print(f"what {server.name} said:\n{bench.log(server).read_text(errors='replace')[-10000:]}", file=sys.stderr)
    return int(failed)
