"""Messages on their way to clients: decoded once, and encoded once for all clients that agreed on the same."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import count, islice, repeat

from django_websocket.protocol.deflate import Agreement, encode_compressed
from django_websocket.protocol.frames import encode_message
from django_websocket.transport.log import report
from django_websocket.transport.shared import shared_of_loop
from django_websocket.transport.subprotocol import from_channel

from .backlog import Waiting, cost
from .broker import from_wire
from .channels import RESERVED
from .entries import KEPT, UNREADABLE, Position, entry_from

Compressed = tuple[int, int] | None  # window bits and threshold; None is without

_variants: dict[tuple[int, int], tuple[int, int]] = {}


class Framed:
    """How messages are encoded for clients that speak the package's subprotocol: with channel and position.

    `numbers` has the number by which the clients know each channel.
    """

    __slots__ = ("_numbers", "compressed")

    def __init__(self, numbers: Mapping[str, int], compressed: Compressed) -> None:
        self._numbers = numbers
        self.compressed = compressed

    def messages(self, channel: str, messages: Sequence[str | bytes], positions: Iterable[object]) -> list[str | bytes]:
        """Return messages of a channel as these clients get them."""
        number = self._numbers.get(channel, 0)  # its last member may have left
        return [from_channel(number, position, message) for message, position in zip(messages, positions, strict=False)]


Variant = Compressed | Framed


class Publication:
    """Messages of one channel that arrived together; decoded once, and encoded once for all receivers of a kind.

    `positions` has the place behind each payload in the channel's history; None for one that is not kept. `late`
    says that many come together since they come late: no client is too slow for that. `count` is how many messages
    there are, `encoded` what `frames` has returned so far; it stays empty if they come late.
    """

    def __init__(
        self,
        channel: str,
        payloads: Sequence[bytes],
        positions: Sequence[Position | None] | None = None,
        *,
        late: bool = False,
    ) -> None:
        self.late = late
        self.messages: list[str | bytes] = []
        self.dropped: list[int] = []  # the places of payloads that are not messages
        for payload in payloads:
            try:
                self.messages.append(from_wire(payload))
            except UnicodeDecodeError:
                self._take_other(channel, payload)
        self.count = len(self.messages)
        self._channel = channel
        self._positions = positions
        self._single: dict[Variant, list[bytes]] = {}
        self.encoded: dict[Variant, bytes] = {}
        self._frames: dict[Variant, bytes] = {} if late else self.encoded
        self._waiting: list[Waiting[str | bytes]] | None = None

    def _take_other(self, channel: str, payload: bytes) -> None:
        """Take a payload that is no message by itself: one that another process keeps, although this one does not."""
        entry = entry_from(payload) if payload[:1] == KEPT else None
        try:
            self.messages.append(from_wire(payload if entry is None else entry.payload))
        except UnicodeDecodeError:
            self.dropped.append(len(self.messages) + len(self.dropped))
            if UNREADABLE not in (payload, entry and entry.payload):
                report(
                    f"Channel {channel}",
                    None,
                    "a message was dropped that is neither UTF-8 nor marked as binary by a first byte FF",
                )

    @property
    def reserved(self) -> bool:
        """Whether processes of this package talk to each other."""
        return self._channel.startswith(RESERVED)

    def waiting(self) -> list[Waiting[str | bytes]]:
        """Return the messages as they wait in the backlogs of views, made once for all of them."""
        if self._waiting is None:
            found = zip(self.channels(), self.messages, self.positions(), map(cost, self.messages), strict=False)
            self._waiting = list(found)
        return self._waiting

    def channels(self) -> Iterable[str]:
        """Return the channel of each message, in the order of `messages`; possibly more."""
        return repeat(self._channel)

    def without(self, names: Collection[str]) -> Iterable[Publication]:
        """Return what is not of these channels."""
        return () if self._channel in names else (self,)

    def positions(self) -> Iterable[Position | None]:
        """Return the place behind each message in its channel's history, if it has one; possibly more."""
        if self._positions is None:
            return repeat(None)
        if not self.dropped:
            return self._positions
        return [position for index, position in enumerate(self._positions) if index not in self.dropped]

    def places(self) -> Iterator[int | None]:
        """Return, for each payload, the index of its message; None if it was dropped."""
        indexes = iter(range(len(self.messages)))
        return (None if position in self.dropped else next(indexes) for position in count())

    def frames(self, variant: Variant) -> bytes:
        """Return all messages as one piece for clients of this `variant`, encoded once for all of them."""
        frames = self._frames.get(variant)
        if frames is None:
            frames = self._frames[variant] = b"".join(self.single_frames(variant))
        return frames

    def single_frames(self, variant: Variant) -> list[bytes]:
        """Return the frame of each message for clients of this `variant`."""
        frames = self._single.get(variant)
        if frames is None:
            frames = self._single[variant] = self._encoded(variant)
        return frames

    def _encoded(self, variant: Variant) -> list[bytes]:
        messages: Sequence[str | bytes] = self.messages
        if isinstance(variant, Framed):
            messages = variant.messages(self._channel, messages, self.positions())
            variant = variant.compressed
        if variant is None:
            return list(map(encode_message, messages))
        allowance = shared_of_loop().encoder.allowance
        return [encode_compressed(message, *variant, allowance) for message in messages]


class Mixture(Publication):
    """Messages of several channels that arrived together, in their order; `publications` have encoded them.

    `arrived` has the channel of each payload.
    """

    def __init__(self, arrived: Iterable[str], publications: Mapping[str, Publication]) -> None:
        super().__init__("", ())
        places = {name: publication.places() for name, publication in publications.items()}
        found = [(name, next(places[name])) for name in arrived if name in places]
        self._publications = publications
        self._places = [(name, place) for name, place in found if place is not None]
        self.messages = [publications[name].messages[place] for name, place in self._places]
        self.count = len(self.messages)

    def channels(self) -> Iterable[str]:
        """Return the channel of each message."""
        return [name for name, _ in self._places]

    def without(self, names: Collection[str]) -> Iterable[Publication]:
        """Return what is not of these channels, by channel."""
        return [publication for name, publication in self._publications.items() if name not in names]

    def positions(self) -> Iterable[Position | None]:
        """Return the place behind each message in its channel's history, if it has one."""
        known = {name: [*islice(one.positions(), len(one.messages))] for name, one in self._publications.items()}
        return [known[name][place] for name, place in self._places]

    def _encoded(self, variant: Variant) -> list[bytes]:
        frames = {name: publication.single_frames(variant) for name, publication in self._publications.items()}
        return [frames[name][place] for name, place in self._places]


def variant_for(agreement: Agreement | None) -> Compressed:
    """Return how a client's frames are encoded: the same object for all clients with an equal agreement."""
    return None if agreement is None else _variants.setdefault(v := (agreement.window_bits, agreement.threshold), v)
