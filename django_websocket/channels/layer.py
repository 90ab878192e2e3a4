"""`ChannelLayer`: groups and channels, as Channels' code knows them, on the project's broker."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable, Mapping
from types import NoneType
from typing import Any

from channels.exceptions import ChannelFull, MessageTooLarge
from channels.layers import BaseChannelLayer
from django.core.exceptions import ImproperlyConfigured
from gevent.hub import Hub as Loop

from django_websocket.asgi.belongings import owner
from django_websocket.pubsub.asking import ask
from django_websocket.pubsub.broker import to_wire
from django_websocket.pubsub.hub import closed_error
from django_websocket.pubsub.memory import TESTS
from django_websocket.pubsub.process import NamesBroker, broker_for, current_settings, hub_for

from .config import own_broker
from .exchange import ADD, DISCARD, Exchange, Stamps, begin_of
from .mailboxes import Mailbox, Message, pack
from .places import LoopWaiter, Place, place

__all__ = ["ChannelLayer"]

WORKERS = (
    "{!r} is the name of a channel for workers (manage.py runworker), which share its messages. "
    "django_websocket.channels.ChannelLayer does not support this: it {}. Use a task queue such as Celery for work, "
    "and a group to send a message to many."
)


class ChannelLayer(BaseChannelLayer):  # type: ignore[misc]
    """The backend of `CHANNEL_LAYERS` that uses the project's broker (`WEBSOCKET_BROKER`), whichever it is.

    It may be used in every process and thread, in every asyncio loop: `async_to_sync(get_channel_layer().group_send)`
    in a page, a task or the shell, `await` in a coroutine. Delivery is at most once, and each consumer gets what is
    sent to its groups and to its channel in the order of the broker.

    `CONFIG` may have the options of other backends. `prefix` separates layers that share a broker. `capacity` and, by
    patterns, `channel_capacity` limit the number of messages that may wait for a consumer. Messages that have waited
    for `expiry` seconds are dropped if no consumer is there to take them. `hosts`, one address of Redis, takes the
    place of the project's broker, and `symmetric_encryption_keys` encrypts the messages. Raises ImproperlyConfigured
    for an option that is not supported.
    """

    extensions = ["groups", "flush"]
    # Channels' own let a line break pass at the end, and digits beyond ASCII.
    channel_name_regex = re.compile(r"[A-Za-z0-9_.-]+(![A-Za-z0-9_.-]*)?\Z")
    group_name_regex = re.compile(r"[A-Za-z0-9_.-]+\Z")

    def __init__(
        self,
        expiry: float = 60,
        capacity: int = 100,
        channel_capacity: Mapping[Any, int] | None = None,
        prefix: str = "asgi",
        hosts: Iterable[Any] | None = None,
        symmetric_encryption_keys: Iterable[str] | None = None,
        **unknown: Any,
    ) -> None:
        if not isinstance(channel_capacity, (Mapping, NoneType)):
            raise ImproperlyConfigured(
                "The channel_capacity of CHANNEL_LAYERS must be a dict that maps patterns to numbers"
            )
        super().__init__(expiry=expiry, capacity=capacity, channel_capacity=channel_capacity)
        self.channel_capacity: Any = self.compile_capacities(channel_capacity or {})
        self.prefix = prefix
        self._begin = begin_of(prefix)
        self._own = own_broker(hosts, symmetric_encryption_keys, unknown)
        self._exchanges: dict[tuple[int, str, Loop], Exchange] = {}  # by process, broker and loop
        self._by_name: dict[str, Exchange] = {}  # in the names of channels
        self._stamps_of = os.getpid(), Stamps()

    # --- channels ------------------------------------------------------------------------------------------------

    async def new_channel(self, prefix: str = "specific.") -> str:
        """Return the name of a new channel, for `receive` in this process. Raises BrokerError.

        The channel of a consumer ends with its connection. Any other channel ends when its messages have not been asked
        for within `expiry` seconds.
        """
        exchange = await self._exchange()
        exchange.sweep(self.expiry)
        box = self._new_box(exchange, exchange.new_name(prefix))
        conversation = owner.get()
        box.kept = conversation is not None and conversation.own(box)
        return box.name

    async def send(self, channel: str, message: Message) -> None:
        """Send a message to one channel. Raises BrokerError, and TypeError for a message that cannot be sent.

        Raises ChannelFull if as many messages as the capacity allows wait in this process.
        """
        payload = self._packed(message)
        self.require_valid_channel_name(channel)
        box = self._box(channel)
        if box is not None and box.full:
            raise ChannelFull(channel)
        if "!" not in channel:
            received = await self._publish(self._general(channel), self._stamps.stamped(payload))
            if received == 0:
                raise NotImplementedError(WORKERS.format(channel, "keeps no message for a receiver that comes later"))
            return
        if box is not None:
            box.on_its_way += 1
        try:
            await self._publish(self._process_of(channel), channel.encode() + b"\n" + payload)
        except BaseException:
            if box is not None:
                box.on_its_way = max(0, box.on_its_way - 1)
            raise

    async def receive(self, channel: str) -> Message:
        """Return the next message of a channel of this process. A call that is cancelled has taken none.

        A message for a general channel, whose name was not made by `new_channel()`, goes to every process that receives
        from it. Raises BrokerError when the broker was closed in this process.
        """
        self.require_valid_channel_name(channel)
        box = self._box(channel)
        if box is None:
            box = await self._box_again(channel)
        try:
            while not box.items:
                if box.closed:
                    raise closed_error()
                waiter = LoopWaiter()
                box.waiters.append(waiter)
                try:
                    if not (box.items or box.closed):  # another thread may have put one there just now
                        await waiter
                finally:
                    box.waiters.remove(waiter)
            return box.take()
        finally:
            box.seen = time.monotonic()
            if box.items:  # for another call that waits
                box.wake_next()

    # --- groups --------------------------------------------------------------------------------------------------

    async def group_add(self, group: str, channel: str) -> None:
        """Let a channel receive what is sent to a group after this has returned. Raises BrokerError.

        The channel may belong to another process.
        """
        name = self._group(group, channel)
        box = self._box(channel)
        if box is None and "!" not in channel:
            box = await self._box_again(channel)
        if box is None:
            await self._ask(ADD, name, channel)
        elif not (box.exchange.place.here and box.exchange.add_at_once(box, name)):
            await box.exchange.place.run(box.exchange.add, box, name)

    async def group_discard(self, group: str, channel: str) -> None:
        """Undo `group_add`. Raises BrokerError."""
        name = self._group(group, channel)
        box = self._box(channel)
        if box is not None:
            exchange = box.exchange
            if exchange.place.here:
                exchange.discard(box, name)
            else:
                await exchange.place.run(exchange.discard, box, name)
        elif "!" in channel:
            await self._ask(DISCARD, name, channel)

    async def group_send(self, group: str, message: Message) -> None:
        """Send a message to all channels of a group. Raises BrokerError, and TypeError for one that cannot be sent."""
        payload = self._packed(message)
        self.require_valid_group_name(group)
        await self._publish(f"{self._begin}group.{group}", self._stamps.stamped(payload))

    # --- the end -------------------------------------------------------------------------------------------------

    async def flush(self) -> None:
        """Forget the groups and the messages of this process."""
        for exchange in tuple(self._exchanges.values()):
            if exchange.pid == os.getpid():
                await exchange.place.run(exchange.flush)

    async def close(self) -> None:
        """Do the same as `flush`."""
        await self.flush()

    def mailbox(self, channel: str) -> Mailbox:
        """Return what waits for a channel of this process. For the package itself."""
        box = self._box(channel)
        assert box is not None
        return box

    # --- inside --------------------------------------------------------------------------------------------------

    def _packed(self, message: Message) -> bytes:
        payload = pack(message)
        limit = current_settings().limits.outbox_size
        if len(payload) > limit:
            raise MessageTooLarge(
                f"The message has {len(payload)} bytes, more than the {limit} of WEBSOCKET_OUTBOX_SIZE. Send the "
                f"place from which it can be fetched, or raise the setting."
            )
        return payload

    def _group(self, group: str, channel: str) -> str:
        """Return the broker's channel for a group, once both names are valid."""
        self.require_valid_group_name(group)
        self.require_valid_channel_name(channel)
        return f"{self._begin}group.{group}"

    def _general(self, channel: str) -> str:
        """Return the broker's channel for a general one."""
        return f"{self._begin}channel.{channel}"

    def _process_of(self, channel: str) -> str:
        """Return the broker's channel for the process that made a channel."""
        return self._begin + maker_of(channel)

    @property
    def _stamps(self) -> Stamps:
        """The stamps of this process."""
        if self._stamps_of[0] != os.getpid():
            self._stamps_of = os.getpid(), Stamps()
        return self._stamps_of[1]

    def _box(self, channel: str) -> Mailbox | None:
        """Return what waits for a channel; None if there is nothing in this process."""
        exchange = self._by_name.get(maker_of(channel))
        if exchange is not None:
            return exchange.boxes.get(channel) if exchange.pid == os.getpid() else None
        if "!" not in channel:
            for exchange in tuple(self._exchanges.values()):
                if exchange.pid == os.getpid() and channel in exchange.boxes:
                    return exchange.boxes[channel]
        return None

    async def _box_again(self, channel: str) -> Mailbox:
        """Return what will wait for a general channel, or for one at which nobody has looked for long."""
        if "!" in channel:
            exchange = self._by_name.get(maker_of(channel))
            if exchange is None or exchange.pid != os.getpid():
                raise ValueError(
                    f"The channel {channel!r} belongs to another process: receive in the process that called "
                    f"new_channel(), or send to a group"
                )
            return self._new_box(exchange, channel)
        if "channels.worker" in sys.modules:  # which manage.py runworker imports, and nothing else
            raise NotImplementedError(WORKERS.format(channel, "would give every message to every worker"))
        exchange = await self._exchange()
        exchange.sweep(self.expiry)
        box = self._new_box(exchange, channel)
        try:
            await exchange.place.run(exchange.general, box, self._general(channel))
        except BaseException:
            box.close()
            raise
        return box

    def _new_box(self, exchange: Exchange, channel: str) -> Mailbox:
        box = exchange.boxes[channel] = Mailbox(exchange, channel, self.get_capacity(channel))
        return box

    def _settings(self) -> NamesBroker:
        settings = current_settings()
        return settings if self._own is None or settings.broker_key == TESTS else self._own

    async def _exchange(self) -> Exchange:
        """Return what hands out the messages for channels that the running coroutine makes."""
        here, settings = place(), self._settings()
        key = os.getpid(), settings.broker_key, here.loop
        exchange = self._exchanges.get(key)
        if exchange is None or exchange.ended:
            exchange = await here.run(self._new_exchange, key, settings, here)
        if not exchange.begun:
            await here.run(exchange.begin)
        return exchange

    def _new_exchange(self, key: tuple[int, str, Loop], settings: NamesBroker, here: Place) -> Exchange:
        found = self._exchanges.get(key)
        if found is not None and not found.ended:  # another coroutine was faster
            return found
        for old, ended in tuple(self._exchanges.items()):
            if ended.ended or old[0] != os.getpid() or old[2].loop is None:
                del self._exchanges[old], self._by_name[ended.name]
        exchange = Exchange(hub_for(settings), self._begin, settings, here, self._stamps)
        self._exchanges[key] = self._by_name[exchange.name] = exchange
        return exchange

    async def _publish(self, channel: str, payload: bytes) -> int | None:
        """Publish, and return how many processes receive it; None if the broker cannot tell."""
        return await place().do(broker_for(self._settings()).publish, channel, to_wire(payload))

    async def _ask(self, verb: str, group: str, channel: str) -> None:
        """Have another process do something with one of its channels; nothing happens if it has none of this name."""
        await place().do(
            ask, self._process_of(channel), lambda answers: "\n".join((verb, answers, group, channel)), self._settings()
        )


def maker_of(channel: str) -> str:
    """Return what in the name of a channel says which process has made it."""
    return channel.partition("!")[0].rpartition(".")[2]
