"""Signals about WebSockets: a client has come, a client has gone.

`sender` is the view, as it stands in the urlconf. Receivers run in a greenlet, where they may use the database; what
they raise is logged, and touches nobody.
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
    """Send a signal. What a receiver raises, `sys.exit()` included, is logged and reaches nobody else."""
    try:
        signal.send_robust(sender, **arguments)
    except (Exception, SystemExit, KeyboardInterrupt):  # no timeout of gevent, which may be the view's
        logger.exception("A receiver of a signal ended with an error")
