"""Publish/subscribe between everything that runs the project: views, tasks, commands, the shell.

    from django_websocket.pubsub import publish
    publish("news", "hello")        # to every client that is subscribed to "news", in every process

Delivery is at most once. The broker is the one that the setting `WEBSOCKET_BROKER` names.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from gevent.hub import Hub as Loop
from gevent.hub import get_hub

from django_websocket.exceptions import BrokerError
from django_websocket.transport.waiting import close_at_end

from .broker import BINARY, Broker, broker_from, to_wire
from .closing import close

if TYPE_CHECKING:
    from django_websocket.conf import Settings

    from .hub import Forwarding, Hub, Subscription

__all__ = ["publish", "subscribe"]

MAX_NESTING = (
    100  # as Ruby's JSON has it; what handles a value, str() for one, fails where it is nested a thousand times
)
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # as JSON escapes it
RESERVED = "django_websocket."  # begins the names of the channels on which processes of this package talk

logger = logging.getLogger("django_websocket")

_brokers: dict[tuple[int, str], Broker] = {}  # by process, since a fork shares nothing, and by what is set
_hubs: dict[tuple[int, str, Loop], Hub] = {}  # and by loop, of which each thread has its own


def publish(channel: str, message: Any, *, on_commit: bool = False, using: str | None = None) -> None:
    """Send `message` to everybody who is subscribed to `channel`; return when the broker has taken it.

    Text and bytes go as they are, a lazy translation as text in the current language, and anything else as the text of
    its JSON. Works in every kind of process, with gevent or without.

    With `on_commit`, the message is sent when the transaction that runs on the database `using` (its alias, without it
    the default) commits, never after a rollback, and at once if none runs; see `transaction.on_commit` of Django. The
    message is what it was when this was called.

    Raises `BrokerError` if the broker cannot be reached: then the message is lost, or it was delivered once; it is
    never sent twice. With `on_commit` that is logged instead, since what was committed stays. Raises TypeError or
    ValueError for what JSON has no form for, and ValueError for a message larger than `WEBSOCKET_OUTBOX_SIZE`, which no
    client could be sent, and for a channel whose name begins with "django_websocket.".
    """
    check_channel(channel)
    payload = to_wire(_text_or_bytes(message))
    limit = _settings().limits.outbox_size
    size = len(payload) - payload.startswith(BINARY)  # what a client may send, a view may publish
    if size > limit:
        raise ValueError(
            f"The message has {size} bytes, more than the {limit} of WEBSOCKET_OUTBOX_SIZE that may wait for a "
            f"client. Publish where it can be fetched instead, or raise the setting."
        )
    if on_commit:
        from django.db import transaction

        transaction.on_commit(lambda: _publish_or_log(channel, payload), using=using)
    elif using is not None:
        raise TypeError("using= names the database of a transaction, and has a meaning with on_commit=True only")
    else:
        _broker().publish(channel, payload)


def publish_reserved(channel: str, text: str) -> int | None:
    """Publish on a channel of this package itself, which `publish` refuses; raises `BrokerError` as it does.

    Returns how many processes it went to, None if the broker does not know.
    """
    return _broker().publish(channel, to_wire(text))


def subscribe(*channels: str, on_slow: Literal["raise", "drop_oldest", "latest"] = "raise") -> Subscription:
    """Subscribe the running view to `channels`; nothing that is published after this returns is missed.

    The subscription ends with `close()`, its `with` block or the view. `on_slow` says what becomes of messages when
    more than `WEBSOCKET_OUTBOX_SIZE` wait for the view: "raise" drops them all and has `get` raise `MessagesMissed`,
    "drop_oldest" drops as many as needed, and "latest" keeps only the newest of each channel that the view has not
    taken, however few they are. Raises `BrokerError` if the broker cannot be reached.
    """
    from .hub import Subscription

    _check_channels(channels)
    _check_option("on_slow", on_slow, ("raise", "drop_oldest", "latest"))
    subscription = Subscription(_hub(), channels, _settings().limits.outbox_size, on_slow)
    close_at_end(subscription)
    return subscription


def forward(
    channels: Sequence[str], *, on_slow: str = "close", on_missed: Any = None, for_good: bool = False
) -> Forwarding:
    """Have the hub keep what is published to `channels` for a client, to which it is attached then.

    See `WebSocket.subscribe` and, with `for_good`, `WebSocket.listen`.
    """
    from .hub import Forwarding, LossyForwarding

    _check_channels(channels)
    _check_option("on_slow", on_slow, ("close", "drop_oldest", "latest"))
    notice = None if on_missed is None else _text_or_bytes(on_missed)
    limit = _settings().limits.outbox_size
    forwarding: Forwarding
    if on_slow == "close":
        forwarding = Forwarding(_hub(), channels, limit, notice)
    else:
        forwarding = LossyForwarding(_hub(), channels, limit, notice, latest=on_slow == "latest")
    if not for_good:
        close_at_end(forwarding)
    return forwarding


def as_json(value: Any) -> str:
    """Return the text of `value` in JSON, with the types that Django knows: dates, decimals, UUIDs, lazy translations.

    Raises TypeError or ValueError for what JSON has no form for, NaN for one, and for what is nested too deeply. Half a
    character (a lone surrogate) becomes an error, a ValueError too, when the text is encoded.
    """
    from django.core.serializers.json import DjangoJSONEncoder

    try:
        return json.dumps(value, cls=DjangoJSONEncoder, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except RecursionError:
        raise ValueError("The value is nested too deeply for JSON.") from None


def from_json(message: str | bytes) -> Any:
    """Return what a message says in JSON: nothing that `as_json` would not take.

    Raises ValueError for what is no JSON (RFC 8259), NaN and Infinity included, for numbers too large for a float, for
    half a character (a lone surrogate), and for what is nested more than `MAX_NESTING` times.
    """
    text = message if isinstance(message, str) else message.decode(json.detect_encoding(message))
    try:
        value = json.loads(text, parse_float=_finite, parse_constant=_refuse_constant)
    except RecursionError:
        raise _too_deep() from None
    if text.count("[") + text.count("{") > MAX_NESTING and _nesting_exceeds(value, MAX_NESTING):
        raise _too_deep()
    if SURROGATE.search(text):  # of a pair, mostly
        as_json(value).encode()
    return value


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise ValueError("A number in the JSON is too large.")
    return number


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON.")


def _too_deep() -> ValueError:
    return ValueError(f"The JSON is nested more than {MAX_NESTING} times.")


def _nesting_exceeds(value: Any, limit: int) -> bool:
    """Whether lists and dicts stand in one another more than `limit` times."""
    level = [value]
    for _ in range(limit + 1):
        level = [thing for thing in level if type(thing) in (list, dict)]
        if not level:
            return False
        level = [inner for thing in level for inner in (thing.values() if type(thing) is dict else thing)]
    return True


def _text_or_bytes(message: Any) -> str | bytes:
    if isinstance(message, (str, bytes)):
        return message
    if isinstance(message, (bytearray, memoryview)):
        return bytes(message)
    from django.utils.functional import Promise

    return str(message) if isinstance(message, Promise) else as_json(message)


def _publish_or_log(channel: str, payload: bytes) -> None:
    """Publish when a transaction has committed: whoever committed it cannot undo it, and others wait for their turn."""
    try:
        _broker().publish(channel, payload)
    except BrokerError as error:
        logger.error("What was to be published on %r after a commit is lost: %s", channel, error)


def _check_option(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(map(repr, known))}")


def _check_channels(channels: Sequence[str]) -> None:
    if not channels:
        raise TypeError("Name at least one channel to subscribe to")
    for channel in channels:
        check_channel(channel)


def check_channel(channel: str) -> None:
    """Raise TypeError or ValueError for what is not the name of a channel of the project."""
    if not isinstance(channel, str) or not channel:
        raise TypeError(f"A channel's name is a str that is not empty, not {channel!r}")
    if channel.startswith(RESERVED):
        raise ValueError(
            f"The channel {channel!r} is reserved: names that begin with {RESERVED!r} belong to the package itself. "
            f"Choose another name, and put a prefix of your own before names that clients choose."
        )
    channel.encode()  # raises UnicodeEncodeError, a ValueError, for what no broker could carry


def _settings() -> Settings:
    from django_websocket import conf  # here, since the rest of this package knows no Django

    return conf.for_publishing()


def _broker() -> Broker:
    settings = _settings()
    key = os.getpid(), settings.broker_key
    broker = _brokers.get(key)
    if broker is None:
        broker = _brokers[key] = broker_from(settings.broker)
    return broker


def _hub() -> Hub:
    from .hub import Hub

    key = os.getpid(), _settings().broker_key, get_hub()
    hub = _hubs.get(key)
    if hub is None:
        for ended in [key for key in list(_hubs) if key[2].loop is None]:
            del _hubs[ended]
        hub = _hubs[key] = Hub(_broker())
    return hub


def _close_hub() -> None:
    """End what the running thread's loop is subscribed to, and its connection."""
    hub = _hubs.pop((os.getpid(), _settings().broker_key, get_hub()), None)
    if hub is not None:
        hub.close()


def _close(setting: str | None = None) -> None:
    """Close the brokers of this process, and its subscriptions in all loops; whoever is subscribed is told.

    With a `setting`, the `broker_key` of settings, only what it names. What publishes or subscribes later connects
    anew. May be called from any thread or greenlet, but not from a callback of the loop. What the parent of a process
    has is left alone.
    """
    pid = os.getpid()
    # Forget all of them before the first one is closed, which may take a while: whoever comes then gets new ones.
    brokers = [_brokers.pop(key) for key in list(_brokers) if key[0] == pid and setting in (None, key[1])]
    hubs = [_hubs.pop(key) for key in list(_hubs) if key[0] == pid and setting in (None, key[1])]
    for hub in hubs:
        if hub.here:
            hub.close()
        else:
            hub.end()
    for broker in brokers:
        close(broker)
