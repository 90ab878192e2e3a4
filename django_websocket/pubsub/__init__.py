"""Publish/subscribe between everything that runs the project: views, tasks, commands, the shell.

    from django_websocket.pubsub import publish
    publish("news", "hello")        # to every client that is subscribed to "news", in every process

Delivery is at most once. The broker is the one that the setting `WEBSOCKET_BROKER` names.

This module and `broker` are public; the other modules of this folder are private to the package.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from django_websocket.exceptions import BrokerError
from django_websocket.transport.waiting import close_at_end

from .broker import BINARY, to_wire
from .channels import check_channel, check_channels
from .json_text import as_json
from .process import current_broker, current_hub, current_settings

if TYPE_CHECKING:
    from .forwarding import Forwarding
    from .subscription import Subscription

__all__ = ["publish", "subscribe"]

logger = logging.getLogger("django_websocket")


def publish(channel: str, message: Any, *, on_commit: bool = False, using: str | None = None) -> int | None:
    """Send `message` to all subscribers of `channel`; return when the broker has taken it.

    Returns how many processes received it; 0 means that nobody is subscribed. None with `on_commit`, and if the broker
    cannot tell.

    Text and bytes are sent unchanged, a lazy translation as text in the current language, anything else as JSON text.
    Works in every kind of process, with gevent or without.

    With `on_commit`, the message is sent when the current transaction on the database `using` (an alias; by default,
    "default") commits, never after a rollback, and at once if there is no transaction; see Django's
    `transaction.on_commit`. The message is encoded when this is called.

    Raises `BrokerError` if the broker cannot be reached: the message was delivered once or not at all, never twice.
    With `on_commit`, that is logged instead, since the commit stands. Raises TypeError or ValueError for a message that
    JSON cannot express, and ValueError for a message larger than `WEBSOCKET_OUTBOX_SIZE`, which could not be sent to
    any client, and for a channel whose name begins with "django_websocket.".
    """
    check_channel(channel)
    payload = to_wire(_text_or_bytes(message))
    limit = current_settings().limits.outbox_size
    size = len(payload) - payload.startswith(BINARY)  # a view may publish whatever a client may send
    if size > limit:
        raise ValueError(
            f"The message has {size} bytes, more than the {limit} of WEBSOCKET_OUTBOX_SIZE that may wait for a "
            f"client. Publish where it can be fetched instead, or raise the setting."
        )
    if on_commit:
        from django.db import transaction

        transaction.on_commit(lambda: _publish_or_log(channel, payload), using=using)
        return None
    if using is not None:
        raise TypeError("using= names the database of a transaction, and is allowed with on_commit=True only")
    return current_broker().publish(channel, payload)


def subscribe(*channels: str, on_slow: Literal["raise", "drop_oldest", "latest"] = "raise") -> Subscription:
    """Subscribe the running view to `channels`; nothing that is published after this returns is missed.

    The subscription ends with `close()`, its `with` block or the view; in a greenlet that a view has started, with that
    view or its client, and `get` returns None then. `on_slow` says what happens when more than
    `WEBSOCKET_OUTBOX_SIZE` bytes wait for the view: "raise" drops all waiting messages and `get` raises
    `MessagesMissed`; "drop_oldest" drops as many as needed. "latest" always keeps only the newest message of each
    channel. Raises `BrokerError` if the broker cannot be reached.
    """
    from .subscription import Subscription

    check_channels(channels)
    _check_option("on_slow", on_slow, ("raise", "drop_oldest", "latest"))
    subscription = Subscription(current_hub(), channels, current_settings().limits.outbox_size, on_slow)
    subscription.end_with_view()
    return subscription


def forward(
    channels: Sequence[str], *, on_slow: str = "close", on_missed: Any = None, for_good: bool = False
) -> Forwarding:
    """Return a forwarding of `channels`, to be attached to a connection.

    See `WebSocket.subscribe` and, with `for_good`, `WebSocket.listen`.
    """
    from .forwarding import Forwarding, LossyForwarding

    check_channels(channels)
    _check_option("on_slow", on_slow, ("close", "drop_oldest", "latest"))
    notice = None if on_missed is None else _text_or_bytes(on_missed)
    limit = current_settings().limits.outbox_size
    forwarding: Forwarding
    if on_slow == "close":
        forwarding = Forwarding(current_hub(), channels, limit, notice)
    else:
        forwarding = LossyForwarding(current_hub(), channels, limit, notice, latest=on_slow == "latest")
    if not for_good:
        close_at_end(forwarding)
    return forwarding


def _text_or_bytes(message: Any) -> str | bytes:
    if isinstance(message, (str, bytes)):
        return message
    if isinstance(message, (bytearray, memoryview)):
        return bytes(message)
    from django.utils.functional import Promise

    return str(message) if isinstance(message, Promise) else as_json(message)


def _publish_or_log(channel: str, payload: bytes) -> None:
    """Publish after a commit. An error is only logged: the commit stands, and other callbacks still have to run."""
    try:
        current_broker().publish(channel, payload)
    except BrokerError as error:
        logger.error("A message for channel %r, to be published after a commit, is lost: %s", channel, error)


def _check_option(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(map(repr, known))}")
