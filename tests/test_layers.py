"""Imports point down: each layer, in a fresh interpreter, brings along nothing that stands above it."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

DJANGO = ["django", "asgiref"]
PUBSUB = ["django_websocket.pubsub", "redis"]

# What a module may not bring along. In the order of the layers, the lowest one first.
ABSENT = {
    "django_websocket": ["gevent", "geventwebsocket", "gunicorn", "redis", "websockets", *DJANGO],
    "django_websocket.protocol": ["gevent", "geventwebsocket", "gunicorn", "redis", "socket", "select", *DJANGO],
    "django_websocket.protocol.frames": ["gevent", "geventwebsocket", "gunicorn", "redis", *DJANGO],
    "django_websocket.protocol.handshake": ["gevent", "geventwebsocket", "gunicorn", "redis", *DJANGO],
    "django_websocket.protocol.engine": ["gevent", "geventwebsocket", "gunicorn", "redis", *DJANGO],
    "django_websocket.exceptions": ["gunicorn", "redis", *DJANGO],
    "django_websocket.select": ["gunicorn", *PUBSUB, *DJANGO],
    "django_websocket.transport.connection": ["gunicorn", *PUBSUB, *DJANGO],
    "django_websocket.pubsub": ["gunicorn", "redis", *DJANGO],
    "django_websocket.pubsub.broker": ["gunicorn", "redis", *DJANGO],
    "django_websocket.pubsub.factory": ["gunicorn", "redis", *DJANGO],
    "django_websocket.pubsub.hub": ["gunicorn", "redis", *DJANGO],
    "django_websocket.pubsub.forwarding": ["gunicorn", "redis", *DJANGO],
    "django_websocket.pubsub.subscription": ["gunicorn", "redis", *DJANGO],
    "django_websocket.pubsub.json_text": ["gunicorn", "redis", *DJANGO],
    "django_websocket.pubsub.memory": ["gunicorn", "redis", *DJANGO],
    "django_websocket.pubsub.pipeline": ["gunicorn", *DJANGO],
    "django_websocket.pubsub.encryption": ["gunicorn", "redis", *DJANGO],
    "django_websocket.pubsub.redis_address": ["gunicorn", *DJANGO],
    "django_websocket.pubsub.redis": ["gunicorn", *DJANGO],
    "django_websocket.pubsub.sentinel": ["gunicorn", *DJANGO],
    "django_websocket.pubsub.cluster": ["gunicorn", *DJANGO],
    "django_websocket.websocket": ["gunicorn", "redis", *DJANGO],
    "django_websocket.worker": [*PUBSUB, *DJANGO],
    "django_websocket.management.server": [*PUBSUB, *DJANGO],
    "django_websocket.conf": ["gunicorn", *PUBSUB],
}


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", ABSENT)
def test_module_brings_along_nothing_from_above(module: str) -> None:
    loaded = python(
        f"import sys; present = {{*sys.modules}}; import {module}; print(*{{*sys.modules}} - present)"
    ).split()
    assert module in loaded
    unwanted = tuple(f"{name}." for name in ABSENT[module])
    assert [name for name in sorted(loaded) if f"{name}.".startswith(unwanted)] == []


def test_importing_changes_nothing_in_the_standard_library() -> None:
    code = "import socket, select, threading; before = socket.socket, select.select, threading.Thread.start\n"
    code += f"import {', '.join(ABSENT)}\n"
    code += "assert before == (socket.socket, select.select, threading.Thread.start)"
    python(code)


def modules() -> dict[str, ast.Module]:
    """The source of all modules of the package as it is installed."""
    found = importlib.util.find_spec("django_websocket")
    assert found is not None and found.origin is not None
    folder = Path(found.origin).parent
    return {str(path.relative_to(folder)): ast.parse(path.read_text()) for path in folder.rglob("*.py")}


def imported(module: ast.Module) -> set[str]:
    """The full names that a module imports, at its top or anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_settings_are_read_in_one_place() -> None:
    readers = {name for name, module in modules().items() if "django.conf" in imported(module)}
    assert readers <= {"conf.py"}


def test_ready_made_servers_use_public_names_only() -> None:
    for name, module in modules().items():
        if name.startswith("servers/"):
            for node in ast.walk(module):
                if isinstance(node, ast.Attribute):
                    assert not node.attr.startswith("_"), f"{name}: {node.attr}"
            public = {"decorators", "pubsub", "select", "websocket", "exceptions"}
            ours = {full.split(".")[1] for full in imported(module) if full.startswith("django_websocket.")}
            assert ours <= public, name
