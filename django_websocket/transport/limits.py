"""What one connection may use."""

from __future__ import annotations

from dataclasses import dataclass

from django_websocket.protocol.engine import MAX_MESSAGE_SIZE, MAX_QUEUED_BYTES, MAX_QUEUED_MESSAGES

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """What one connection may use. Sizes are in bytes, times in seconds; `conf.py` says what each is for.

    The defaults are those of the settings.
    """

    max_message_size: int = MAX_MESSAGE_SIZE
    inbox_messages: int = MAX_QUEUED_MESSAGES
    inbox_size: int = MAX_QUEUED_BYTES
    outbox_size: int = 1024 * 1024
    send_buffer_size: int = 64 * 1024
    send_timeout: float = 20.0
    ping_interval: float = 20.0
    ping_timeout: float = 20.0
    close_timeout: float = 5.0
