"""What went on in the server: views leave notes, and pages (urls.py) show them to the tests."""

from __future__ import annotations

import gc
import os
import sys
import threading
import urllib.parse
from collections import Counter, defaultdict
from typing import Any

from django.core.signals import got_request_exception, request_finished, request_started
from django.db.backends.base.base import BaseDatabaseWrapper
from django.http import HttpRequest
from gevent.hub import get_hub
from greenlet import greenlet

from django_websocket import pubsub
from django_websocket.transport import waiting
from django_websocket.transport.shared import open_connections
from django_websocket.transport.waiting import ViewGreenlet

WAIT = 10.0  # seconds that a page waits for a note, and a view for its gate

_notes: defaultdict[str, list[str]] = defaultdict(list)
_changed = threading.Condition()
_gates: defaultdict[str, threading.Event] = defaultdict(threading.Event)
databases: dict[str, Any] = {}  # a view's database connection
signals: Counter[str] = Counter()


def note(request: HttpRequest, text: str) -> None:
    """Write a note under `key`, a parameter of the request's query; without a key, do nothing."""
    key = request.GET.get("key")
    if key:
        with _changed:
            _notes[key].append(text)
            _changed.notify_all()
        print(f"note {key}: {text}", file=sys.stderr, flush=True)  # the log outlives the process


def notes(key: str, count: int) -> list[str]:
    """Return the notes under `key` as soon as there are `count`, or after `WAIT` those that are there."""
    with _changed:
        _changed.wait_for(lambda: len(_notes[key]) >= count, WAIT)
        return list(_notes[key])


def wait_at_gate(request: HttpRequest) -> None:
    """Wait, without using the WebSocket, until a test opens the gate of the request's `key`."""
    _gates[request.GET["key"]].wait(WAIT)


def is_open(request: HttpRequest) -> bool:
    """Whether the gate of the request's `key` is open, for views that must not block."""
    return _gates[request.GET["key"]].is_set()


def open_gate(key: str) -> None:
    """Let the view go on."""
    _gates[key].set()


def state() -> dict[str, Any]:
    """Return what the process holds."""
    gc.collect()
    return {
        "pid": os.getpid(),
        "greenlets": sum(isinstance(thing, greenlet) and not thing.dead for thing in gc.get_objects()),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "signals": signals,
    }


def census() -> dict[str, Any]:
    """Count what the process holds: anything that a connection leaves behind makes one of the numbers grow."""
    gc.collect()
    urllib.parse.clear_cache()  # type: ignore[attr-defined] # of parsed addresses
    sys._clear_type_cache()  # it keeps thousands of recently looked-up names
    things = gc.get_objects()
    types = Counter(map(type, things))
    wrappers = tuple(kind for kind in types if issubclass(kind, BaseDatabaseWrapper))
    databases = [thing for thing in things if type(thing) in wrappers] if wrappers else []
    names: Counter[str] = Counter()
    for kind, count in types.items():
        names[f"{kind.__module__}.{kind.__qualname__}"] += count
    return {
        "open connections": len(open_connections()),
        "views": len(ViewGreenlet.running),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "descriptors of readables": len(waiting._with_signal),
        "active watchers": get_hub().loop.activecnt,
        "open databases": sum(database.connection is not None for database in databases),
        "channels": sum(len(hub.channels) for hub in pubsub.process.hubs.values()),
        "allocated blocks": sys.getallocatedblocks(),
        **names,
    }


def _count(name: str) -> Any:
    def count(**kwargs: Any) -> None:
        signals[name] += 1

    return count


for _name, _signal in (
    ("started", request_started),
    ("finished", request_finished),
    ("exception", got_request_exception),
):
    _signal.connect(_count(_name), weak=False)
