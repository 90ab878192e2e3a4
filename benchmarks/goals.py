"""The goals of each run: ratios to other servers, and sizes."""

from dataclasses import dataclass

OURS = "django_websocket"
CHANNELS = ("channels-uvicorn", "channels-uvicorn-core")  # the better of its two Redis layers counts


@dataclass(frozen=True)
class Goal:
    """The ratio to the best of `others` under the load must be at least `least`, or at most `most`.

    Without others, `most` is in the load's unit. `load_of_others` names their load if it differs from ours.
    """

    load: str
    others: tuple = ()
    least: float | None = None
    most: float | None = None
    server: str = OURS
    load_of_others: str | None = None


GOALS = [
    Goal("echo", ("asgi-uvicorn",), 1.9),
    Goal("echo", ("channels-uvicorn",), 8),
    Goal("echo", ("picows",), 0.88),
    Goal("echo_p16", ("picows",), 4),
    Goal("echo_64k", ("asgi-uvicorn",), 1.6),
    Goal("echo_64k", ("picows",), 0.95),
    Goal("echo_64k", ("channels-uvicorn",), 3),
    Goal("echo_64k", ("gevent-websocket",), 100),
    Goal("connect", ("channels-uvicorn",), 3),
    Goal("connect", ("asgi-uvicorn",), 0.9),
    Goal("connect", ("gevent-websocket",), 1),
    Goal("connect_login", ("channels-uvicorn",), 1.8),
    Goal("lookup", ("channels-uvicorn",), 1.4),
    Goal("lookup", ("gevent-websocket",), 1),
    Goal("fanout200", CHANNELS, 12),
    Goal("fanout1000", CHANNELS, 25),
    *(Goal(load, ("asgi-uvicorn",), 1.2) for load in ("fanout200", "fanout1000")),
    *(Goal(load, ("picows",), 1) for load in ("fanout200", "fanout1000")),
    *(Goal(load, (f"{OURS}-bare-loop",), 0.85) for load in ("fanout200", "fanout1000")),
    *(
        Goal(load, (OURS,), 0.95, server=f"{OURS}-history")
        for load in ("fanout200", "fanout1000", "redis200", "redis1000")
    ),
    Goal("select200", ("asgi-uvicorn",), 0.8, load_of_others="fanout200"),
    Goal("echo_deflate", ("asgi-uvicorn",), 1),
    Goal("redis1000_x10", (OURS,), 2, load_of_others="redis1000"),
    Goal("latency", ("asgi-uvicorn",), most=1.1),
    Goal("echo", (OURS,), 0.7, server=f"{OURS}-async"),
    Goal("echo", (OURS,), 0.55, server=f"{OURS}-channels"),
    Goal("echo", (OURS,), 0.8, server=f"{OURS}-channels-sync"),
    Goal("echo", ("channels-uvicorn",), 6, server=f"{OURS}-channels"),
    Goal("echo", ("channels-uvicorn-sync",), 12, server=f"{OURS}-channels-sync"),
    Goal("fanout200", CHANNELS, 6, server=f"{OURS}-channels"),
    Goal("fanout200", ("channels-uvicorn-sync",), 6, server=f"{OURS}-channels-sync"),
    Goal("idle2000", most=13),
    Goal("idle2000", most=10, server=f"{OURS}-async"),
    Goal("members2000", most=1.5, server=f"{OURS}-listen"),
]
