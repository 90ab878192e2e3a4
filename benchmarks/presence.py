"""What presence costs: a room with many members, which others join and leave all the time.

    .venv-bench/bin/python benchmarks/presence.py --members 10000 --joins 100

One server process and one Redis. Every member is told who joins and leaves; some of them note how long that takes.
"""

import argparse
import json
import resource
import select
import socket
import statistics
import struct
import sys
import tempfile
import time
from collections import deque
from dataclasses import replace
from pathlib import Path

from bench import Bench
from processes import cpu_ticks, memory, pick_cores
from run import raise_open_files
from servers import ours

HERE = Path(__file__).resolve().parent
OBSERVERS = 20  # members that look at what they are told
AT_ONCE = 200  # handshakes that have not been answered
TICKS = 100  # of the kernel in a second
CLOSE = b"\x88\x82\0\0\0\0" + struct.pack("!H", 1000)


class Member:
    """A client's socket. It says hello with the handshake, and reads all that comes."""

    def __init__(self, address, user):
        self.user = user
        self.sock = socket.create_connection(address)
        hello = json.dumps({"hello": {"session": f"session {user}"}}).encode()
        head = (
            f"GET /presence/{user}/ HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            "Sec-WebSocket-Protocol: django-websocket.1\r\n\r\n"
        )
        self.sock.sendall(head.encode() + bytes([0x81, 0x80 | len(hello)]) + bytes(4) + hello)
        self.sock.setblocking(False)
        self.received = 0  # bytes
        self.buffer = None  # of an observer
        self.present = False

    def leave(self):
        self.sock.sendall(CLOSE)


class Room:
    """The members, and when each of those who come and go has been seen by the observers."""

    def __init__(self, address):
        self.address = address
        self.poll = select.epoll()
        self.members = {}
        self.asked = {}  # when each user has asked to join
        self.delays = []  # seconds from that until an observer knew
        self.messages = 0  # to the observers
        self.waiting = 0  # members that have not been told who is there

    def add(self, user, *, observes=False):
        member = Member(self.address, user)
        member.buffer = b"" if observes else None
        self.members[member.sock.fileno()] = member
        self.asked[user] = time.monotonic()
        self.waiting += 1
        self.poll.register(member.sock.fileno(), select.EPOLLIN)
        return member

    def read(self, seconds):
        """Take what comes for so many seconds; return early if nobody waits for the list, given 0."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            for descriptor, _ in self.poll.poll(left):
                self.take(self.members[descriptor])

    def take(self, member):
        try:
            data = member.sock.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.poll.unregister(member.sock.fileno())
            del self.members[member.sock.fileno()]
            member.sock.close()
            return
        member.received += len(data)
        if (ping := data.find(b"\x89")) >= 0:  # there is no such byte in texts that are ASCII
            payload = data[ping + 2 : ping + 2 + data[ping + 1]]
            member.sock.sendall(bytes([0x8A, 0x80 | len(payload)]) + bytes(4) + payload)
        if not member.present and b'"present"' in data:
            member.present = True
            self.waiting -= 1
        if member.buffer is not None:
            member.buffer += data
            self.observe(member)

    def observe(self, member):
        if b"\r\n\r\n" in member.buffer[:500] and member.buffer.startswith(b"HTTP"):
            member.buffer = member.buffer.partition(b"\r\n\r\n")[2]
        now = time.monotonic()
        while len(member.buffer) > 10:
            size, start = member.buffer[1], 2
            if size == 126:
                size, start = struct.unpack("!H", member.buffer[2:4])[0], 4
            elif size == 127:
                size, start = struct.unpack("!Q", member.buffer[2:10])[0], 10
            if len(member.buffer) < start + size:
                return
            text, member.buffer = member.buffer[start : start + size], member.buffer[start + size :]
            if text.startswith(b'{"') and b'"count"' in text and b'"present"' not in text:
                self.messages += 1
                users = json.loads(text).get("join", {}).get("room", ())
                self.delays += [now - self.asked[user["id"]] for user in users if user["id"] in self.asked]


def measure(options):
    raise_open_files()
    [server] = [one for one in ours(HERE.parent, "django_websocket") if one.name == "django_websocket"]
    server = replace(server, environ=server.environ | {"WEBSOCKET_URLCONF": "djangosite.ours_presence"})
    server = replace(server, command=tuple("20000" if word == "1000" else word for word in server.command))
    with tempfile.TemporaryDirectory() as logs:
        bench = Bench(Path(sys.executable).parent, logs, cores=pick_cores())
        bench.make_database()
        with bench.services():
            process, port = bench.start(server)
            room = Room(("127.0.0.1", port))
            print(f"{options.members} members join ...", flush=True)
            begin = time.monotonic()
            for user in range(options.members):
                room.add(user, observes=user < OBSERVERS)
                while room.waiting > AT_ONCE:
                    room.read(0.01)
            while room.waiting:
                room.read(0.05)
            print(f"  in {time.monotonic() - begin:.1f} s; the server has {memory(process.pids(), 'Pss') // 1024} MiB")
            room.read(3)
            if len(room.members) < options.members:
                raise SystemExit(f"only {len(room.members)} stayed: {process.last_words(5)}")
            quiet = usage(room, bench, process, options.seconds, churn=lambda: room.read(options.seconds))
            print(f"nobody comes or goes: {quiet}")
            room.delays.clear()
            busy = usage(room, bench, process, options.seconds, churn=lambda: come_and_go(room, options))
            print(f"{options.joins} join and leave each second: {busy}")
            if len(room.members) < options.members:
                raise SystemExit(f"only {len(room.members)} stayed: {process.last_words(5)}")
            delays = sorted(room.delays)
            print(
                f"  a join is known after {statistics.median(delays):.2f} s, 99 % after "
                f"{delays[int(len(delays) * 0.99)]:.2f} s ({len(delays)} seen)"
            )


def come_and_go(room, options):
    present = deque()
    begin = time.monotonic()
    for number in range(options.joins * options.seconds):
        present.append(room.add(options.members + number))
        if len(present) > 2 * options.joins:
            present.popleft().leave()
        room.read(max(0.0, begin + (number + 1) / options.joins - time.monotonic()))


def usage(room, bench, process, seconds, churn):
    """What the processes use, and what a member gets, while `churn` runs."""
    before = cpu_ticks(process.pids()), cpu_ticks(bench.redis.pids()), room.messages, resource.getrusage(0).ru_utime
    received = {id(member): member.received for member in room.members.values()}
    begin = time.monotonic()
    churn()
    took = time.monotonic() - begin
    server = (cpu_ticks(process.pids()) - before[0]) / TICKS / took
    redis = (cpu_ticks(bench.redis.pids()) - before[1]) / TICKS / took
    stayed = [m.received - received[id(m)] for m in room.members.values() if id(m) in received]
    return (
        f"server {server:.1%} of a core, Redis {redis:.1%}; each member gets "
        f"{(room.messages - before[2]) / OBSERVERS / took:.2f} messages and {sum(stayed) / len(stayed) / took:.0f} "
        f"bytes a second ({took:.1f} s)"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=10_000)
    parser.add_argument("--joins", type=int, default=100, help="and leaves, each second")
    parser.add_argument("--seconds", type=int, default=20)
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
