"""Publish/subscribe between everything that runs the project: views, tasks, commands, the shell.

    from django_websocket.pubsub import publish
    publish("news", "hello")        # to every client that is subscribed to "news", in every process

Delivery is at most once. A client that was away gets what channels with history have kept; these are the channels whose
names match a pattern of `WEBSOCKET_HISTORY`. The broker is the one that the setting `WEBSOCKET_BROKER` names.

This module and `broker` are public; the other modules of this folder are private to the package.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from django_websocket.exceptions import BrokerError, MessagesMissed
from django_websocket.transport.counts import counts
from django_websocket.transport.turns import let_others_run_if_any
from django_websocket.transport.waiting import close_at_end

from .broker import BINARY, Broker, from_wire, to_wire
from .channels import check_channel, check_channels
from .entries import NOWHERE, Entry, KeepingBroker, Rule, check_keeps, checked_count, keeps, no_history, position_from
from .json_text import as_json
from .process import broker_for, current_hub, current_settings

if TYPE_CHECKING:
    from .forwarding import Forwarding
    from .presence import Present
    from .replay import OrRefused, Since
    from .subscription import Subscription
    from .watching import Watch

__all__ = ["Kept", "count", "history", "position", "present", "publish", "subscribe", "watch"]

NOT_ALL_THERE = (
    "Some messages since that position are no longer kept: fetch the present state from where it is stored, or use "
    "snapshot=."
)

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
    settings = current_settings()
    limit = settings.limits.outbox_size
    size = len(payload) - payload.startswith(BINARY)  # a view may publish whatever a client may send
    if size > limit:
        raise ValueError(
            f"The message has {size} bytes, more than the {limit} of WEBSOCKET_OUTBOX_SIZE that may wait for a "
            f"client. Publish the place from which it can be fetched, or raise the setting."
        )
    if on_commit:
        from django.db import transaction

        transaction.on_commit(lambda: _publish_or_log(channel, payload), using=using)
        return None
    if using is not None:
        raise TypeError("using= names the database of a transaction, and is allowed only with on_commit=True")
    rule = settings.rules.find(channel) if settings.history else None
    return _publish(channel, payload, rule, broker_for(settings))


class Kept(NamedTuple):
    """A message that a channel has kept.

    `position` is the position after it, as `since` takes it; `time` is when the broker got it, in seconds since the
    epoch by the broker's clock.
    """

    message: str | bytes
    position: str
    time: int


def position(channel: str) -> str:
    """Return where a channel with history ends now, to be passed as `since` later: a str to be kept unchanged.

    Raises ValueError for a channel without history, and BrokerError.
    """
    rule, broker = _rule_and_broker(channel)
    return str(broker.read(channel, rule, 0).top)


def history(channel: str, *, since: str | None = None, last: int | None = None) -> list[Kept]:
    """Return what a channel has kept, the oldest message first: all, the `last` ones, or all after a position.

    Raises `MessagesMissed` if some of the messages after `since` are no longer kept, or if it is not a position of this
    channel; ValueError for a channel without history; BrokerError.
    """
    if since is not None and last is not None:
        raise TypeError("Use either since= or last=, not both")
    rule, broker = _rule_and_broker(channel)
    if since is None:
        count = rule.messages if last is None else min(checked_count(last), rule.messages)
        entries = broker.read(channel, rule, count).last(count, rule)
    else:
        place = position_from(since)
        found = None if place == NOWHERE else broker.read(channel, rule, 0, place.offset).behind(place, rule)
        if found is None:
            raise MessagesMissed(NOT_ALL_THERE)
        entries = found
    return [*_messages(entries)]


def subscribe(
    *channels: str,
    on_slow: Literal["raise", "drop_oldest", "latest"] = "raise",
    since: Since = None,
    last: int | None = None,
) -> Subscription:
    """Subscribe the running view to `channels`; nothing that is published after this returns is missed.

    The subscription ends with `close()`, its `with` block or the view. In a greenlet that a view has started, it ends
    with that view or its client, and then `get` returns None. `on_slow` says what happens when more than
    `WEBSOCKET_OUTBOX_SIZE` bytes wait for the view: "raise" drops all waiting messages and `get` raises
    `MessagesMissed`; "drop_oldest" drops as many as needed. "latest" always keeps only the newest message of each
    channel. Raises `BrokerError` if the broker cannot be reached.

    From channels with history, `get` first returns the `last` messages, or all messages after the position `since`: a
    position that `position` or `Subscription.position` has returned, or, for several channels, a dict with one for
    each. If some of them are no longer kept, the first `get` raises `MessagesMissed`. Raises ValueError for a channel
    without history.
    """
    from .replay import wanted
    from .subscription import Subscription

    check_channels(channels)
    _check_option("on_slow", on_slow, ("raise", "drop_oldest", "latest"))
    settings = current_settings()
    wish = wanted(channels, since, last, settings.rules)
    subscription = Subscription(current_hub(), channels, settings.limits.outbox_size, on_slow, wish)
    subscription.end_with_view()
    return subscription


def present(channel: str) -> list[Any]:
    """Return who is in a channel, as the views have given it in present=: each id once, and at most 1,000 users.

    Works in every kind of process. Raises BrokerError.
    """
    from .presence import checked, users_in

    check_channel(channel)
    return users_in(checked(broker_for(current_settings())), channel)


def count(channel: str) -> int:
    """Return how many users are in a channel, each once. Works in every kind of process. Raises BrokerError."""
    from .presence import checked, count_of

    check_channel(channel)
    return count_of(checked(broker_for(current_settings())), channel)


def watch(channel: str) -> Watch:
    """Let the running view learn who joins a channel and who leaves it.

    The first `get` returns at once, with all who are there. It ends with `close()`, its `with` block or the view, as a
    `Subscription` does. Raises BrokerError if the broker cannot be reached.
    """
    from .presence import presence_of
    from .watching import Watch

    check_channel(channel)
    watch = Watch(presence_of(current_hub()), channel)
    watch.end_with_view()
    return watch


def forward(
    channels: Sequence[str],
    *,
    on_slow: str = "close",
    on_missed: Any = None,
    since: OrRefused = None,
    last: int | None = None,
    present: Present | None = None,
    has_snapshot: bool = False,
    for_good: bool = False,
    later: bool = False,
) -> Forwarding:
    """Return a forwarding of `channels`, to be attached to a connection.

    See `WebSocket.subscribe` and, with `for_good`, `WebSocket.listen`. If the client has yet to say where it goes on,
    the past is read `later`, by `resume`.
    """
    from .forwarding import Forwarding, LossyForwarding
    from .presence import user_from
    from .replay import wanted

    check_channels(channels)
    _check_option("on_slow", on_slow, ("close", "drop_oldest", "latest"))
    notice = None if on_missed is None else _text_or_bytes(on_missed)
    settings = current_settings()
    wish = wanted(channels, None if since is False else since, last, settings.rules)
    user = None if present is None else user_from(present)
    if has_snapshot and last is not None:
        raise TypeError("Use either last= or snapshot=, not both")
    limit = settings.limits.outbox_size
    forwarding: Forwarding
    if on_slow == "close":
        forwarding = Forwarding(current_hub(), channels, limit, notice, wish, later=later)
    else:
        latest = on_slow == "latest"
        forwarding = LossyForwarding(current_hub(), channels, limit, notice, wish, later=later, latest=latest)
    _check_told(forwarding, otherwise=has_snapshot)
    if present is not None:
        try:
            forwarding.open_rooms(user)
        except BaseException:
            forwarding.close()
            raise
    if not for_good:
        close_at_end(forwarding)
    return forwarding


def resume(
    forwarding: Forwarding,
    positions: Mapping[str, str | None],
    time: int | None,
    *,
    has_snapshot: bool,
    tells_reset: bool,
) -> None:
    """Read what a client gets of the past that has said from which `positions` it goes on.

    `time` is when its page was made, as `Wanted` has it, None if that is not known. Raises BrokerError, and
    MessagesMissed if something is missing and nobody would be told.
    """
    from .replay import resumed

    rules = current_settings().rules
    wish, channels = forwarding.wish, forwarding.channels
    forwarding.wish = resumed(wish, channels, positions, time, rules, has_snapshot=has_snapshot)
    forwarding.read_past()
    _check_told(forwarding, otherwise=has_snapshot or tells_reset)


def _check_told(forwarding: Forwarding, *, otherwise: bool) -> None:
    """Raise MessagesMissed if something is missing and the client is told neither by a notice nor `otherwise`."""
    if not (forwarding.complete or forwarding.tells_missed or otherwise):
        forwarding.close()
        raise MessagesMissed(NOT_ALL_THERE)


def messages_of(snapshot: Any) -> Iterator[str | bytes]:
    """Yield the messages that a snapshot consists of: what a generator yields, or the value itself; none for None."""
    if isinstance(snapshot, Iterator):
        yield from map(_text_or_bytes, snapshot)
    elif snapshot is not None:
        yield _text_or_bytes(snapshot)


def _messages(entries: Sequence[Entry]) -> Iterator[Kept]:
    for entry in entries:
        with suppress(UnicodeDecodeError):  # one that no key opens, which the log says
            yield Kept(from_wire(entry.payload), str(entry.position), entry.time)
        let_others_run_if_any()


def _rule_and_broker(channel: str) -> tuple[Rule, KeepingBroker]:
    """Return the rule of a channel, and the broker. Raises ValueError if there is no rule, and BrokerError."""
    check_channel(channel)
    settings = current_settings()
    check_keeps(channel, settings.rules)
    rule, broker = settings.rules.find(channel), broker_for(settings)
    assert rule is not None
    if not keeps(broker):
        raise BrokerError(no_history(channel))
    return rule, broker


def _publish(channel: str, payload: bytes, rule: Rule | None, broker: Broker) -> int | None:
    if not counts.wanted:
        return _publish_uncounted(channel, payload, rule, broker)
    begin = perf_counter()
    try:
        reached = _publish_uncounted(channel, payload, rule, broker)
    except BrokerError:
        counts.publishing_failed = monotonic()
        counts.add("published", "failed")
        raise
    counts.publishing_failed = -math.inf
    counts.add("published", "ok")
    counts.observe("publish_duration_seconds", perf_counter() - begin)
    return reached


def _publish_uncounted(channel: str, payload: bytes, rule: Rule | None, broker: Broker) -> int | None:
    if rule is None:
        return broker.publish(channel, payload)
    if not keeps(broker):
        raise BrokerError(no_history(channel))
    return broker.publish_kept(channel, payload, rule)


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
        settings = current_settings()
        _publish(channel, payload, settings.rules.find(channel), broker_for(settings))
    except BrokerError as error:
        logger.error("A message for channel %r, to be published after a commit, is lost: %s", channel, error)


def _check_option(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(map(repr, known))}")
