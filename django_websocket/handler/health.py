"""Answers those who ask whether the process works: a load balancer, systemd, Kubernetes.

They are answered before Django sees the request: such a client names no host of `ALLOWED_HOSTS`, and asks too often for
a log.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from django_websocket.pubsub.process import broker_state
from django_websocket.transport.shared import shared_of_loop

from .upgrade import Unlogged

__all__ = ["PATHS", "answer"]

LIVE, READY = "/healthz", "/readyz"
PATHS = frozenset((LIVE, READY))
METHODS = ("GET", "HEAD")


def answer(environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer a request for one of `PATHS`, as a WSGI application.

    The state of the broker never makes an answer fail: all processes would be taken away if it is gone for a moment.
    """
    method = environ["REQUEST_METHOD"]
    headers = []
    if method not in METHODS:
        status, text = "405 Method Not Allowed", "Only GET and HEAD are allowed."
        headers.append(("Allow", ", ".join(METHODS)))
    else:
        ready = not shared_of_loop().draining
        status = "200 OK" if ready or environ["PATH_INFO"] == LIVE else "503 Service Unavailable"
        text = json.dumps({"ready": ready, "broker": broker_state()})
    body = f"{text}\n".encode()
    kind = "application/json" if text.startswith("{") else "text/plain"
    headers += [("Content-Type", kind), ("Content-Length", str(len(body))), ("Cache-Control", "no-store")]
    start_response(status, headers)
    return Unlogged([] if method == "HEAD" else [body])
