#!/usr/bin/env python
"""Runs the demonstration: `demonstrate.py [ADDRESS:PORT]`. scripts/demo prepares the environment for it.

It starts the site's server, and starts it again after the site's button has stopped it. If a Redis is installed, it
starts one for this site alone, so that this process can publish while the server is stopped. Ctrl-C ends all of them,
in order: each has a session of its own, so that the terminal sends the signal to this process alone.
"""

import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

DOWN = 1  # second for which the server stays stopped; it then takes about another one to start
HERE = Path(__file__).resolve().parent

signals = queue.SimpleQueue()


@contextmanager
def private_redis():
    """Start a Redis that listens on a socket in a directory of its own, and keeps nothing on disk; give its URL.

    Without a program to start, the URL is empty.
    """
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        yield ""
        return
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "redis.sock")
        options = ["--port", "0", "--unixsocket", path, "--unixsocketperm", "700", "--save", "", "--dir", directory]
        redis = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            while not path.exists():
                if redis.poll() is not None:
                    sys.exit(f"{program} does not start.")
                time.sleep(0.02)
            yield f"unix://{path}"
        finally:
            redis.terminate()
            redis.wait()


def start(address):
    """Start the site's server: runserver, with WebSockets."""
    command = [sys.executable, HERE / "manage.py", "runwebsocket", address]
    return subprocess.Popen(command, cwd=HERE, start_new_session=True)


def stop(server):
    server.terminate()  # it tells all its clients to connect again
    return server.wait()


def speak(text):
    """Say something in every room: this process is not the server."""
    from demo.rooms.rooms import ROOMS, say

    for room in ROOMS:
        say(room, {"id": "robot", "name": "Robot"}, text)


@contextmanager
def ticking(is_up):
    """Feed the dashboard from this process."""
    from demo.dashboard.ticker import tick

    end = threading.Event()
    ticker = threading.Thread(target=tick, args=[is_up, end])
    ticker.start()
    try:
        yield
    finally:
        end.set()
        ticker.join()


def supervise(address, can_speak):
    """Run the server until a signal ends all, and start it again when a page has asked for that; return its status."""
    server = start(address)
    was_down = False  # since the last question, between which it may have started again

    def is_up():
        nonlocal was_down
        missed, was_down = was_down, False
        return server.poll() is None and not missed

    with ticking(is_up) if can_speak else nullcontext():
        while (number := signals.get()) in (signal.SIGUSR1, signal.SIGCHLD):
            if number == signal.SIGUSR1:
                print("A page has stopped the server. It starts again in a few seconds.", flush=True)
                stop(server)
                was_down = True
                if can_speak:
                    speak("The server is down. I'm a different process, so I can still talk.")
                time.sleep(DOWN)
                server = start(address)
            elif server.poll() is not None:  # it could not start, and has said why
                return server.returncode
        return stop(server)


def main(address="127.0.0.1:8000"):
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD):
        signal.signal(number, lambda number, frame: signals.put(number))
    with private_redis() as broker:
        os.environ |= {"DJANGO_SETTINGS_MODULE": "demo.settings", "REDIS_URL": broker, "SUPERVISOR": str(os.getpid())}

        import django
        from django.core.management import call_command

        django.setup()
        call_command("migrate", verbosity=0)
        return supervise(address, can_speak=bool(broker))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
