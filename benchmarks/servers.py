"""The servers that are compared. Each is one process (and its master, where it has one) on 127.0.0.1."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from environment import APPS

INSTALLED = "installed"

GUNICORN = (
    *("gunicorn", "-w", "1", "-b", "127.0.0.1:{port}", "--worker-connections", "20000", "--backlog", "2048"),
    *("--graceful-timeout", "1", "--log-level", "warning", "--no-control-socket"),
)
# It does not count conversations as requests, and needs time to tell its clients that it stops.
OUR_WORKER = (
    *("-k", "django_websocket.worker.GeventWebSocketWorker"),
    *("--worker-connections", "1000", "--graceful-timeout", "10"),
)
UVICORN = (
    *("uvicorn", "--host", "127.0.0.1", "--port", "{port}", "--loop", "uvloop", "--ws", "websockets-sansio"),
    *("--no-access-log", "--log-level", "warning"),
)
H11, HTTPTOOLS = ("--http", "h11"), ("--http", "httptools")  # uvicorn's default HTTP parser, and that of an extra
GRANIAN = (
    *("granian", "--interface", "asgi", "--host", "127.0.0.1", "--port", "{port}", "--loop", "uvloop"),
    *("--backlog", "2048", "--backpressure", "20000", "--no-access-log", "--log-level", "warning"),
)
DAPHNE = ("daphne", "-b", "127.0.0.1", "-p", "{port}", "-v", "0")
ASGI_WORKER = ("-k", "asgi", "--asgi-loop", "uvloop")
STOCK_WORKER = ("-k", "geventwebsocket.gunicorn.workers.GeventWebSocketWorker")

CHANNELS_ASGI = "djangosite.channels_asgi:application"
OUR_LAYER = "django_websocket.channels.ChannelLayer"

# Every server has an echo here, whatever else is measured.
ECHO = "/echo/"
CONSUMERS = {"echo": ECHO, "lookup": "/lookup/", "chat": "/chat/"}
SYNC_CONSUMERS = {"echo": "/echo-sync/", "chat": "/chat-sync/"}


@dataclass(frozen=True)
class Server:
    """`paths` has a path for each kind of load that the server can take: other loads are not measured.

    If `publisher` is given, members of its chat only listen, and `publisher` is the path of the one who publishes. The
    server takes part in `rounds` rounds, or in all if that is None. `only` is the mode of the loads that it is there
    for, None for all. `skips` says why the server cannot take some loads.
    """

    name: str
    command: tuple  # {port} is replaced; a bare first word is a program of the environment
    paths: dict = field(default_factory=lambda: {"echo": ECHO, "chat": "/chat/"})
    publisher: str | None = None
    raw_channel: bool = True  # whether messages that any program publishes in Redis reach its chat
    keeps: bool = False  # whether messages are kept, so that who publishes them uses the package's script
    environ: dict = field(default_factory=dict)
    many: bool = False  # whether it is measured with very many clients
    rounds: int | None = None
    only: str | None = None
    skips: dict = field(default_factory=dict)

    def takes(self, load):
        """Whether the load can be put on it."""
        if load.many and not self.many or self.only not in (None, load.mode):
            return False
        return load.path in self.paths and (self.raw_channel or not load.redis)

    def command_line(self, bin_directory, port):
        program, *arguments = (word.replace("{port}", str(port)) for word in self.command)
        return [program if "/" in program else bin_directory / program, *arguments]


def ours(directory, name):
    """Our package from a checkout (a pathlib.Path), or as the environment has it (INSTALLED).

    It is measured with its chat in views, with views that have returned `listen()`, with sends in a bare loop, with a
    chat that is kept, with its echo in views that are coroutines and in an ASGI function, and with the consumers of
    `channels()`.
    """
    path = [str(APPS)] if directory == INSTALLED else [str(APPS), str(directory)]
    in_views = Server(
        name,
        (*GUNICORN, *OUR_WORKER, "djangosite.ours_wsgi:application"),
        paths={
            "echo": ECHO,
            "lookup": "/lookup/",
            "chat": "/chat/",
            "chat_select": "/chat-select/",
            "room": "/room/",
        },
        environ={"PYTHONPATH": os.pathsep.join(path), "EXTRA_APPS": "django_websocket"},
        many=True,
    )
    listening = replace(in_views, name=f"{name}-listen", paths={"chat": "/listen/"}, publisher="/chat/")
    bare_loop = replace(
        in_views,
        name=f"{name}-bare-loop",
        paths={"chat": "/bare-loop/"},
        raw_channel=False,
        many=False,
        skips={"members2000": "only there to compare fan-outs"},
    )
    kept = replace(
        in_views,
        name=f"{name}-history",
        paths={"chat": "/chat/"},
        keeps=True,
        environ=in_views.environ | {"HISTORY": "100"},
        many=False,
    )
    coroutines = replace(
        in_views,
        name=f"{name}-async",
        paths={"echo": ECHO},
        environ=in_views.environ | {"WEBSOCKET_URLCONF": "djangosite.ours_async"},
        many=False,
    )
    function = replace(coroutines, name=f"{name}-asgi", paths={"echo": "/asgi/"}, rounds=2)
    consumers = replace(
        in_views,
        name=f"{name}-channels",
        command=(*GUNICORN, *OUR_WORKER, CHANNELS_ASGI),
        paths=CONSUMERS,
        raw_channel=False,
        environ=in_views.environ | {"EXTRA_APPS": "django_websocket channels", "CHANNEL_LAYER": OUR_LAYER},
        many=False,
    )
    synchronous = replace(consumers, name=f"{consumers.name}-sync", paths=SYNC_CONSUMERS)
    return [in_views, listening, bare_loop, kept, coroutines, function, consumers, synchronous]


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


def channels(name, *command, rounds=None):
    """Channels on a server: everything with the better of its Redis layers, the chat with the other one as well.

    Its synchronous consumers have a server of their own.
    """
    pubsub = Server(
        name,
        (*command, CHANNELS_ASGI),
        paths=CONSUMERS,
        raw_channel=False,
        environ={"EXTRA_APPS": "channels"},
        rounds=rounds,
    )
    return [
        pubsub,
        replace(pubsub, name=f"{name}-core", paths={"chat": "/chat-core/"}),
        replace(pubsub, name=f"{name}-sync", paths=SYNC_CONSUMERS),
    ]


STOCK = Server(
    "gevent-websocket",
    (*GUNICORN, *STOCK_WORKER, "djangosite.stock_wsgi:application"),
    paths={"echo": ECHO, "lookup": "/lookup/", "chat": "/chat/", "chat_select": "/chat/"},
    skips=dict.fromkeys(
        ("fanout1000", "fanout5000", "redis1000", "redis1000_x10", "members2000", "members15000"),
        "select() takes no descriptor above 1023: about 500 members",
    )
    | {
        "redis200_x10": "of messages that arrive together, all but the first wait in redis-py, where select() sees none"
    },
)
C_EPOLL = Server("c-epoll", (str(APPS / "c_echo"), "{port}"), raw_channel=False)

BARE_ASGI = "bare_asgi:application"
ASGI_UVICORN = Server("asgi-uvicorn", (*UVICORN, *H11, BARE_ASGI), many=True)

PEERS = [
    ASGI_UVICORN,
    *channels("channels-uvicorn", *UVICORN, *H11),
    replace(ASGI_UVICORN, name="asgi-uvicorn-httptools", command=(*UVICORN, *HTTPTOOLS, BARE_ASGI), only="connect"),
    replace(
        channels("channels-uvicorn-httptools", *UVICORN, *HTTPTOOLS)[0],
        only="connect",  # the parsers matter in handshakes only
    ),
    STOCK,
    Server("picows", ("python", "picows_server.py", "{port}")),
    C_EPOLL,
    Server("asgi-granian", (*GRANIAN, BARE_ASGI), rounds=1),
    *channels("channels-daphne", *DAPHNE, rounds=1),
    Server("asgi-gunicorn", (*GUNICORN, *ASGI_WORKER, BARE_ASGI), rounds=1),
    *channels("channels-gunicorn", *GUNICORN, *ASGI_WORKER, rounds=1),
    Server("flask-sock", (*GUNICORN, "-k", "gevent", "flask_app:application"), rounds=1),
]
