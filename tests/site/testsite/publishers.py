"""A process whose threads, or greenlets, publish numbered messages and write down what became of each.

    python -m testsite.publishers '{"name": "a", "threads": 3, "gevent": false, "seed": 1, "rate": 10, "log": "a.log",
                                    "channels": {"long:1": [10, 100]}}'

`rate` is how many messages a thread publishes in a second, and the numbers of a channel are the least and the greatest
size. It obeys lines of standard input: `hold` has it finish what it publishes and answer `held`; `go` lets it go on;
`keep` writes down all that the histories have, for as long as the broker has them; at the end of the input it ends.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any

if __name__ == "__main__":
    CONFIGURATION: dict[str, Any] = json.loads(sys.argv[1])
    if CONFIGURATION["gevent"]:
        from gevent import monkey

        monkey.patch_all()

    import django

    django.setup()

from django_websocket.exceptions import BrokerError
from django_websocket.pubsub import history, position, publish

PATIENCE = 0.1  # seconds until the next attempt after a failure


class Publishers:
    """The threads of this process, which share a log."""

    def __init__(self, configuration: dict[str, Any]) -> None:
        self.channels: dict[str, tuple[int, int]] = configuration["channels"]
        self.rate: float = configuration["rate"]
        self.log = open(configuration["log"], "w", buffering=1)  # noqa: SIM115 (the threads use it until the end)
        self.over = threading.Event()
        self.going = threading.Event()
        self.going.set()
        self.busy = threading.Semaphore(configuration["threads"])
        self.count: int = configuration["threads"]
        self.lines: Iterable[str] = sys.stdin
        if configuration["gevent"]:
            from gevent.fileobject import FileObject

            self.lines = FileObject(sys.stdin.fileno(), "r", closefd=False)
        names = [f"{configuration['name']}{number}" for number in range(self.count)]
        self.threads = [
            threading.Thread(target=self.publish, args=(name, random.Random(f"{configuration['seed']} {name}")))
            for name in names
        ]

    def publish(self, name: str, choices: random.Random) -> None:
        """Publish to channels at random until the end."""
        numbers = dict.fromkeys(self.channels, 0)
        while not self.over.wait(choices.expovariate(self.rate)):
            self.going.wait()
            with self.busy:
                if not self.going.is_set():
                    continue
                channel = choices.choice([*self.channels])
                numbers[channel] += 1
                filling = "x" * choices.randint(*self.channels[channel])
                text = json.dumps({"c": channel, "p": f"{name}/{channel}", "n": numbers[channel], "x": filling})
                begin, error = time.monotonic(), ""
                try:
                    publish(channel, text)
                except BrokerError as problem:
                    error = str(problem)
                row = [channel, f"{name}/{channel}", numbers[channel], begin, time.monotonic(), len(text), error]
                self.log.write(f"{json.dumps(row)}\n")
            if error:
                self.over.wait(PATIENCE)

    def hold(self) -> None:
        """Have nothing published until `going` is set; return when that is so."""
        self.going.clear()
        for _ in range(self.count):
            self.busy.acquire()
        for _ in range(self.count):
            self.busy.release()

    def keep(self) -> dict[str, Any]:
        """Return what the histories have: by channel, the last position, and the kept messages with theirs."""
        kept = {}
        for channel in self.channels:
            begin = time.monotonic()
            messages = [(str(one.message), one.position, one.time) for one in history(channel)]
            kept[channel] = begin, time.monotonic(), position(channel), messages
        return kept

    def run(self) -> None:
        """Publish until standard input ends."""
        for thread in self.threads:
            thread.start()
        for line in self.lines:
            if line == "hold\n":
                self.hold()
                print("held", flush=True)
            elif line == "go\n":
                self.going.set()
            elif line == "keep\n":
                print(json.dumps(self.keep()), flush=True)
        self.over.set()
        self.going.set()
        for thread in self.threads:
            thread.join()
        self.log.close()


if __name__ == "__main__":
    Publishers(CONFIGURATION).run()
