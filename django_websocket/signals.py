"""Signals about WebSockets: a client has connected, a connection has ended.

`sender` is the view of the urlconf. Receivers run in a greenlet, where they may use the database. What they raise is
logged and has no other effect.
"""

from __future__ import annotations

import logging
from typing import Any

from django.dispatch import Signal

__all__ = ["websocket_connected", "websocket_disconnected"]

logger = logging.getLogger("django_websocket")

websocket_connected = Signal()
"""The handshake was answered with 101. Arguments: `request`, `websocket`. Sent before the view goes on."""

websocket_disconnected = Signal()
"""The connection has ended, for whatever reason.

Arguments: `request`, `websocket`, `code` (a close code; 1006 if the client vanished), `reason`, `duration` (seconds
since the handshake), `received` and `sent` (messages that the view took, and that it sent itself).
"""


def send(signal: Signal, sender: object, **arguments: Any) -> None:
    """Send a signal. What a receiver raises, `sys.exit()` included, is logged and goes no further."""
    try:
        signal.send_robust(sender, **arguments)
    except (Exception, SystemExit, KeyboardInterrupt):  # a gevent.Timeout may be the view's, and passes
        logger.exception("A receiver of a signal ended with an error")
