"""How long those who talk wait while very many others connect, as after a restart.

    .venv-bench/bin/python benchmarks/wave.py --clients 10000

A hundred clients talk at a fixed rate. Meanwhile the others connect as fast as the server lets them: half are served by
a view that waits, half only listen, where a server can tell the two apart. One server process at a time.
"""

import argparse
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from bench import Bench
from environment import compile_programs
from loads import WSLOAD
from processes import memory, pick_cores
from run import raise_open_files
from servers import PEERS, parse_ours
from servers import ours as servers_of

TALKERS = 100
RATE = 1000  # messages a second of all talkers together
TEXT = bytes([0x81, 0x80 | 64]) + bytes(4) + b"x" * 64
QUIET = 2.0  # seconds before the wave, and after it


def handshake(port, path):
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Origin: http://127.0.0.1:{port}\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
    )
    head = b""
    while b"\r\n\r\n" not in head:
        head += sock.recv(4096)
    if b" 101 " not in head[:40]:
        raise SystemExit(f"no WebSocket at {path}: {head[:60]!r}")
    sock.setblocking(False)
    return sock


class Talkers:
    """Clients of an echo, each of which has one message on its way at most; how long the answers take."""

    def __init__(self, port, path):
        self.socks = [handshake(port, path) for _ in range(TALKERS)]
        self.poll = select.epoll()
        self.by_descriptor = {sock.fileno(): sock for sock in self.socks}
        for sock in self.socks:
            self.poll.register(sock.fileno(), select.EPOLLIN)
        self.due = {}  # when the message on its way of each was to be sent
        self.latencies = []  # (when, seconds)

    def run(self, until):
        """Talk until `until()`. A message that could not be sent in time, since the last was not answered, is late."""
        begin = time.monotonic()
        number = 0
        while not until():
            now = time.monotonic()
            due = begin + number / RATE
            if due <= now:
                sock = self.socks[number % TALKERS]
                if sock.fileno() in self.due:
                    self.read(0.05)
                    continue
                sock.send(TEXT)
                self.due[sock.fileno()] = due
                number += 1
            else:
                self.read(due - now)

    def read(self, seconds):
        for descriptor, _ in self.poll.poll(seconds):
            data = self.by_descriptor[descriptor].recv(4096)
            if not data:
                raise SystemExit("a client that talks was disconnected")
            if data[:1] == b"\x89":  # a ping; it is answered late, which the server may know from the data that follow
                continue
            now = time.monotonic()
            self.latencies.append((now, now - self.due.pop(descriptor, now)))


def silent(port, path, clients, core):
    """Have silent clients connect and stay; whoever asked for them kills the process."""
    command = [WSLOAD, "idle", "--port", port, "--path", path, "-c", clients, "-t", 120, "--connect-timeout", 60]
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True)
    if core is not None:
        os.sched_setaffinity(process.pid, {core})
    return process


def percentile(values, share):
    return values[min(len(values) - 1, int(len(values) * share))]


def measure(server, bench, clients):
    process, port = bench.start(server)
    try:
        talkers = Talkers(port, server.paths["echo"])
        halves = [
            server.paths["echo"],
            "/listen/" if "lookup" in server.paths and server.many else server.paths["echo"],
        ]
        state = {"begin": None, "open": None, "done": False}

        def others():
            time.sleep(QUIET)
            state["begin"] = time.monotonic()
            found = [silent(port, path, clients // 2, bench.load_core) for path in halves]
            for one in found:
                for line in one.stdout:
                    if line.startswith("OPEN"):
                        state["open"] = time.monotonic()
                        state["memory"] = memory(process.pids(), "Pss") // 1024
                        break
            time.sleep(QUIET)
            for one in found:
                with one:
                    one.kill()
            state["done"] = True

        thread = threading.Thread(target=others)
        thread.start()
        talkers.run(lambda: state["done"])
        thread.join()
        report(server, clients, state, talkers.latencies)
    finally:
        process.stop()


def report(server, clients, state, latencies):
    before = sorted(took for when, took in latencies if when < state["begin"])
    during = sorted(took for when, took in latencies if state["begin"] <= when <= state["open"])
    seconds = state["open"] - state["begin"]
    shares = [percentile(before, 0.99), *(percentile(during, share) for share in (0.5, 0.99, 0.999)), during[-1]]
    cells = [server.name, f"{seconds:.1f}", f"{clients / seconds:,.0f}", f"{state['memory']}"]
    print(" | ".join(["", *cells, *(f"{share * 1e3:.1f}" for share in shares), ""]).strip(), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", action="append", help="DIR=NAME, as run.py has it")
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--peers", default="asgi-uvicorn,channels-uvicorn", help="names of other servers, or nothing")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    raise_open_files()
    compile_programs()
    chosen = [servers_of(*parse_ours(text))[0] for text in options.ours or [str(Path(__file__).parents[1])]]
    chosen += [peer for peer in PEERS if peer.name in options.peers.split(",")]
    with tempfile.TemporaryDirectory() as logs:
        bench = Bench(Path(sys.executable).parent, logs, cores=pick_cores())
        bench.make_database()
        with bench.services():
            print("| server | s | handshakes/s | MiB | p99 before, ms | p50, ms | p99, ms | p99.9, ms | longest, ms |")
            print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
            for _ in range(options.rounds):
                for server in chosen:
                    measure(server, bench, options.clients)


if __name__ == "__main__":
    main()
