"""The servers that are compared. Each is one process (and its master, where it has one) on 127.0.0.1."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from environment import APPS

INSTALLED = "installed"

GUNICORN = (
    *("gunicorn", "-w", "1", "-b", "127.0.0.1:{port}", "--worker-connections", "20000", "--backlog", "2048"),
    *("--graceful-timeout", "1", "--log-level", "warning", "--no-control-socket"),
)
UVICORN = (
    *("uvicorn", "--host", "127.0.0.1", "--port", "{port}", "--loop", "uvloop", "--ws", "websockets-sansio"),
    *("--no-access-log", "--log-level", "warning"),
)


@dataclass(frozen=True)
class Server:
    name: str
    command: tuple  # {port} is replaced; a bare first word is a program of the environment
    paths: dict = field(default_factory=lambda: {"echo": "/echo/", "chat": "/chat/"})
    environ: dict = field(default_factory=dict)
    skips: dict = field(default_factory=dict)  # load -> why this server cannot take it

    def command_line(self, bin_directory, port):
        program, *arguments = (word.replace("{port}", str(port)) for word in self.command)
        return [program if "/" in program else bin_directory / program, *arguments]


def ours(directory, name):
    """Our package from a checkout (a pathlib.Path), or as the environment has it (INSTALLED)."""
    path = [str(APPS)] if directory == INSTALLED else [str(APPS), str(directory)]
    return Server(
        name,
        (*GUNICORN, "-k", "django_websocket.worker.GeventWebSocketWorker", "djangosite.ours_wsgi:application"),
        paths={"echo": "/echo/", "chat": "/chat/", "chat_select": "/chat-select/"},
        environ={"PYTHONPATH": os.pathsep.join(path), "EXTRA_APPS": "django_websocket"},
    )


def parse_ours(text):
    """`DIR`, `DIR=NAME` or `installed`, as --ours takes it: directory and name."""
    directory, equals, name = text.rpartition("=")
    if not equals:
        directory, name = text, ""
    if directory == INSTALLED:
        return INSTALLED, name or "django_websocket"
    path = Path(directory).resolve()
    if not (path / "django_websocket").is_dir():
        raise SystemExit(f"--ours {text}: there is no django_websocket in {path}")
    return path, name or path.name


STOCK = "geventwebsocket.gunicorn.workers.GeventWebSocketWorker"

PEERS = [
    Server("asgi-uvicorn", (*UVICORN, "bare_asgi:application")),
    Server("channels-uvicorn", (*UVICORN, "djangosite.channels_asgi:application"), environ={"EXTRA_APPS": "channels"}),
    Server(
        "gevent-websocket",
        (*GUNICORN, "-k", STOCK, "djangosite.stock_wsgi:application"),
        paths={"echo": "/echo/", "chat": "/chat/", "chat_select": "/chat/"},  # its chat is a select loop
        skips={"fanout1000": "select() takes no descriptor above 1023: about 500 members"},
    ),
    Server("picows", ("python", "picows_server.py", "{port}")),
    Server("c-epoll", (str(APPS / "c_echo"), "{port}")),
]
