"""Hands out what the broker brings for the channels and groups of one process."""

from __future__ import annotations

import itertools
import os
import sys
import time
from uuid import uuid4

import gevent

from django_websocket.exceptions import BrokerError
from django_websocket.pubsub.asking import answer
from django_websocket.pubsub.channels import RESERVED
from django_websocket.pubsub.hub import GLANCE, Hub
from django_websocket.pubsub.process import NamesBroker
from django_websocket.pubsub.publication import Publication
from django_websocket.transport.turns import let_others_run, turns_of_loop

from .mailboxes import Mailbox
from .places import Place

SENDER, NUMBER = 8, 6  # bytes of a stamp: who has sent a message, by a random number, and which of its messages it is
GROUP_EXPIRY = 86400.0  # seconds; that of Channels' own layers
ADD, DISCARD = "group_add", "group_discard"  # what another process may ask for


class Stamps:
    """What says of a message to a group whether this process has sent it, and after which others.

    Who joins a group does not get what this process has sent to it before, although that may arrive later.
    """

    def __init__(self) -> None:
        self._sender = os.urandom(SENDER)
        self.last = 0  # the number of the last message

    def stamped(self, payload: bytes) -> bytes:
        """Return a message with its stamp."""
        self.last += 1
        return self._sender + self.last.to_bytes(NUMBER, "big") + payload

    def split(self, message: bytes) -> tuple[int, bytes]:
        """Return the number of a message, more than any of this process's for one of another, and the message alone."""
        begin = SENDER + NUMBER
        own = message[:SENDER] == self._sender
        return int.from_bytes(message[SENDER:begin], "big") if own else sys.maxsize, message[begin:]


class Exchange:
    """The mailboxes of a channel layer on one loop, as one member of the channels of the hub.

    There is one subscription for each group that has members here, and one for all that is sent to single channels.
    What they bring is handed out in the order of the broker.
    """

    def __init__(self, hub: Hub, begin: str, settings: NamesBroker, place: Place, stamps: Stamps) -> None:
        self._hub = hub
        self._settings = settings
        self._count = itertools.count(1)
        self._groups: dict[str, dict[Mailbox, int]] = {}  # by the broker's channels; with the last message before
        self.name = uuid4().hex  # in the names of channels
        self._stamps = stamps
        self._own = begin + self.name
        self.boxes: dict[str, Mailbox] = {}
        self.place = place
        self.pid = os.getpid()
        self.ended = False
        self._swept = 0.0

    # --- what may wait for the broker ----------------------------------------------------------------------------

    def begin(self) -> None:
        """Have what is sent to single channels come here. Raises BrokerError."""
        self._hub.join(self, [self._own], with_others=True)

    def add(self, box: Mailbox, group: str) -> None:
        """Have what is sent to a group come to a mailbox; return once it does. Raises BrokerError."""
        if box.closed:
            return
        new = group not in box.groups
        self._groups.setdefault(group, {}).setdefault(box, self._stamps.last)
        box.groups.add(group)
        try:
            self._hub.join(self, [group], with_others=True)
        except BaseException:
            if new:
                self.discard(box, group)
            raise
        if box.closed:  # meanwhile
            self.discard(box, group)

    # --- what never waits ----------------------------------------------------------------------------------------

    def general(self, box: Mailbox, channel: str) -> None:
        """Have what is sent to a general channel come to a mailbox; return once it does. Raises BrokerError."""
        box.own = channel
        self.add(box, channel)

    def new_name(self, prefix: str) -> str:
        """Return the name of a new channel."""
        return f"{prefix}{self.name}!{next(self._count):x}"

    @property
    def begun(self) -> bool:
        """Whether what is sent to single channels comes here."""
        return self._receives(self._own)

    def _receives(self, name: str) -> bool:
        channel = self._hub.channels.get(name)
        return channel is not None and self in channel.members and channel.joined is None

    def add_at_once(self, box: Mailbox, group: str) -> bool:
        """Do what `add` does if nobody has to be asked; return whether it is done."""
        if not self._receives(group):
            return False
        self._groups[group].setdefault(box, self._stamps.last)
        box.groups.add(group)
        return True

    def discard(self, box: Mailbox, group: str) -> None:
        """Undo `add`."""
        box.groups.discard(group)
        members = self._groups.get(group)
        if members is not None and members.pop(box, None) is not None and not members:
            del self._groups[group]
            self._hub.leave(self, [group])

    def close(self, box: Mailbox) -> None:
        """Forget a mailbox."""
        box.closed = True
        for group in tuple(box.groups):
            self.discard(box, group)
        self.boxes.pop(box.name, None)
        box.wake()

    def flush(self) -> None:
        """Forget all groups and messages."""
        for box in tuple(self.boxes.values()):
            box.items.clear()
            for group in box.groups - {box.own}:
                self.discard(box, group)

    # --- for the hub ---------------------------------------------------------------------------------------------

    def deliver(self, publication: Publication) -> None:
        """Hand out messages, in as many turns of the loop as it takes."""
        turns = turns_of_loop()
        handed = 0
        own = self._own
        for channel, message in zip(publication.channels(), publication.messages, strict=False):
            if isinstance(message, str):
                if channel == own:
                    gevent.spawn(self._obey, message)
            elif channel == own:
                name, _, payload = message.partition(b"\n")
                box = self.boxes.get(name.decode())
                if box is not None:
                    box.on_its_way = max(0, box.on_its_way - 1)
                    box.put(payload)
            else:
                number, payload = self._stamps.split(message)
                for box, last in tuple(self._groups.get(channel, {}).items()):
                    if number > last and not box.closed:
                        box.put(payload)
                    handed += 1
                    if not handed % GLANCE and turns.spent():
                        let_others_run()

    def _obey(self, order: str) -> None:
        """Do what another process asks for."""
        verb, place, group, name = order.split("\n")
        box = self.boxes.get(name)
        done = 0
        if box is not None:
            if verb == ADD:
                try:
                    self.add(box, group)
                except BrokerError:
                    return  # which the broker has logged; there is nobody to answer to, either
            else:
                self.discard(box, group)
            done = 1
        answer(place, str(done), self._settings)

    def missed(self) -> None:
        """Note that messages may have been lost. Consumers are not told, as Channels promises at most one delivery."""
        for box in self.boxes.values():
            box.on_its_way = 0

    def broker_closed(self) -> None:
        """End all mailboxes."""
        self.ended = True
        for box in tuple(self.boxes.values()):
            self.close(box)

    # --- mailboxes that nobody closes ----------------------------------------------------------------------------

    def sweep(self, age: float) -> None:
        """Forget the mailboxes at which nobody has looked for `age` seconds, or for a day if a group may bring some.

        Returns at once if that was done less than `age` seconds ago.
        """
        now = time.monotonic()
        if now - self._swept < age:
            return
        self._swept = now
        for box in tuple(self.boxes.values()):
            unseen = 0.0 if box.kept or box.waiters else now - box.seen
            if unseen > age and (box.items or box.idle or unseen > GROUP_EXPIRY):
                box.close()


def begin_of(prefix: str) -> str:
    """Return what begins the names of the broker's channels of a layer."""
    return f"{RESERVED}layers.{prefix}."
