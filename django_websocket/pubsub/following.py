"""How a process follows a channel with history: what has come, what is missing, and what has been a moment ago."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence

from gevent.event import Event

from .entries import KEPT, Entry, Position, Rule, entries_of_page, entry_from
from .publication import Publication

RING_SIZE = 8 * 1024 * 1024  # bytes of entries of all channels of a loop that are at hand for those who resume
MAX_HELD = 1024 * 1024  # bytes of a channel that wait while it is read; more of them are read again
OVERHEAD = 400  # bytes that an entry costs in addition to its payload

Arrived = tuple[bytes, Position | None]  # a payload, and the place behind it; None for one that is not kept


class Rings:
    """The rings of a loop, of which those that got nothing for longest lose entries when there are too many bytes."""

    def __init__(self) -> None:
        self._rings: OrderedDict[Ring, None] = OrderedDict()
        self.size = 0

    def use(self, ring: Ring) -> None:
        """Note that a ring has got something."""
        self._rings[ring] = None
        self._rings.move_to_end(ring)
        while self.size > RING_SIZE:
            oldest = next(iter(self._rings))
            if oldest:
                oldest.drop()
                oldest.whole = False
            else:
                del self._rings[oldest]

    def forget(self, ring: Ring) -> None:
        """Drop a ring."""
        if ring in self._rings:
            del self._rings[ring]
            ring.clear()


class Slot:
    """An entry in a ring, when it is too old, as time.monotonic() has it, and what it is for clients, once it is."""

    __slots__ = ("end", "entry", "publication")
    publication: Publication | None

    def __init__(self, entry: Entry, end: float) -> None:
        self.entry = entry
        self.end = end
        self.publication = None


class Ring:
    """The last entries of a channel that were handed out, without a gap, each encoded once for all who resume."""

    __slots__ = ("_ahead", "_name", "_rings", "_rule", "_slots", "whole")

    def __init__(self, name: str, rule: Rule, rings: Rings) -> None:
        self._name = name
        self._rule = rule
        self._rings = rings
        self._slots: list[Slot] = []  # an empty deque takes ten times the memory
        self.whole = False  # whether the channel has no entry that is missing here
        self._ahead = 0.0  # seconds of the broker's clock before time.monotonic(), if this is whole

    def __bool__(self) -> bool:
        return bool(self._slots)

    def append(self, entries: Sequence[Entry], now: float | None = None) -> None:
        """Append entries, of which the first follows the last one here; `now` is the broker's time, if it is known."""
        if not entries:
            return
        messages, seconds = self._rule
        end = time.monotonic() + seconds
        for entry in entries[-messages:]:
            self._slots.append(Slot(entry, end if now is None else end - max(0.0, now - entry.time)))
            self._rings.size += _cost(entry)
        self._drop(len(self._slots) - messages)
        self._rings.use(self)

    def append_one(self, entry: Entry) -> None:
        """Append the entry that follows the last one here, which has just come."""
        messages, seconds = self._rule
        slots = self._slots
        rings = self._rings
        slots.append(Slot(entry, time.monotonic() + seconds))
        rings.size += 2 * len(entry.payload) + OVERHEAD
        if len(slots) > messages:
            rings.size -= _cost(slots.pop(0).entry)
        rings.use(self)

    def load(self, entries: Sequence[Entry], now: float) -> None:
        """Have all entries that the channel has in place of those that are here."""
        self.clear()
        self.whole = True
        self._ahead = now - time.monotonic()
        self.append(entries, now)

    def drop(self) -> None:
        """Drop the oldest entry."""
        self._drop(1)

    def clear(self) -> None:
        """Drop all entries."""
        self._drop(len(self._slots))
        self.whole = False

    def has(self, position: Position) -> bool:
        """Whether the entry before a position is here."""
        return self._slot(position) is not None

    def between(self, since: Position, end: Position) -> list[Entry] | None:
        """Return the entries behind one position up to another; None if not all are here."""
        if since == end:
            return []
        entries = self._last(end, end.offset - since.offset)
        return entries if entries and entries[0].start == since else None

    def before(self, end: Position, count: int) -> list[Entry] | None:
        """Return the last `count` entries up to a position, or all there are; None if they are not all here."""
        self._drop_old()
        if self.whole:
            first = self._slots[0].entry.offset if self._slots else end.offset + 1
            count = min(count, end.offset + 1 - first)
            if count <= 0:
                return []
        return self._last(end, count)

    def from_time(self, end: Position, begin: int) -> Sequence[Entry] | None:
        """Return the entries up to a position, those from `MARGIN` before `begin` on; None if not all are here."""
        self._drop_old()
        slots = self._slots
        if slots:
            now = slots[-1].entry.time + self._rule.seconds - (slots[-1].end - time.monotonic())
        else:
            now = time.monotonic() + self._ahead
        if begin < self._rule.oldest(now):
            return None
        unlimited = self.whole and len(slots) < self._rule.messages  # so that none was dropped but for its age
        if not self.has(end):  # it may be the place before the first entry here
            before = not slots or slots[0].entry.start == end
            return [] if before and self.whole and (unlimited or not end.offset) else None
        there = [slot.entry for slot in slots if slot.entry.offset <= end.offset]
        return entries_of_page(there, begin, nothing_before=unlimited)

    def publication(self, entry: Entry) -> Publication:
        """Return an entry as it is sent to clients: the same object for all of them, as long as the entry is here."""
        slot = self._slot(entry.position)
        if slot is None:
            return publication_of(self._name, entry)
        if slot.publication is None:
            slot.publication = publication_of(self._name, entry)
        return slot.publication

    def _slot(self, position: Position) -> Slot | None:
        if self._slots:
            index = position.offset - self._slots[0].entry.offset
            if 0 <= index < len(self._slots) and self._slots[index].entry.tag == position.tag:
                return self._slots[index]
        return None

    def _last(self, end: Position, count: int) -> list[Entry] | None:
        """Return the last `count` entries up to a position; None if they are not all here."""
        self._drop_old()
        if count <= 0 or not self.has(end):
            return None
        behind = end.offset + 1 - self._slots[0].entry.offset
        return [slot.entry for slot in self._slots[behind - count : behind]] if count <= behind else None

    def _drop_old(self) -> None:
        now = time.monotonic()
        self._drop(next((index for index, slot in enumerate(self._slots) if slot.end >= now), len(self._slots)))

    def _drop(self, count: int) -> None:
        """Drop the oldest entries."""
        if count > 0:
            self._rings.size -= sum(_cost(slot.entry) for slot in self._slots[:count])
            del self._slots[:count]


def publication_of(name: str, entry: Entry) -> Publication:
    """Return an entry as it is sent to clients."""
    return Publication(name, [entry.payload], [entry.position])


def _cost(entry: Entry) -> int:
    return 2 * len(entry.payload) + OVERHEAD  # it may be encoded, too


class Track:
    """Where a process is in a channel. What comes while the broker is asked for what is missing waits in `held`."""

    __slots__ = (
        "_held_size",
        "_lost_bare",
        "again",
        "awaited",
        "away",
        "first",
        "held",
        "position",
        "reading",
        "ring",
        "rule",
        "unseen",
    )

    def __init__(self, name: str, rule: Rule, rings: Rings) -> None:
        self.rule = rule
        self.position: Position | None = None  # behind what was handed out; None until the broker has said it
        self.first: Position | None = None  # what it was at first
        self.ring = Ring(name, rule, rings)
        self.held: list[bytes] | None = []  # None while nothing is missing
        self.away = False  # whether the channel is not received for now
        self.reading = True  # whether a greenlet reads what is missing, or is about to: at first, where the channel is
        self.again = False  # whether that has to be done again
        self.unseen: bytes | None = None  # the tag of the last entry that was read before it has come
        self.awaited: Sequence[Event] = ()  # set when the process has caught up
        self._held_size = 0
        self._lost_bare = False  # whether a message that is not kept found no room

    def hold(self) -> None:
        """Have what comes wait."""
        if self.held is None:
            self.held = []

    def arrive(self, payloads: Sequence[bytes]) -> list[Arrived | None]:
        """Take what has come; return, for each payload, what can be handed out of it now.

        From where something is missing, all is put into `held`, which is a list then.
        """
        if self.held is not None:
            self._keep(payloads)
            return [None] * len(payloads)
        assert self.position is not None
        position = self.position
        arrived: list[Arrived | None] = []
        entries: list[Entry] = []
        for index, payload in enumerate(payloads):
            entry = entry_from(payload) if payload[:1] == KEPT else None
            if entry is None:  # what is malformed is dropped later, with a line in the log
                arrived.append((payload, None))
            elif entry.before == position.tag and entry.offset == position.offset + 1:
                position = entry.position
                entries.append(entry)
                arrived.append((entry.payload, position))
            elif self._is_known(entry, entries):
                arrived.append(None)
            else:
                self.held = []
                self._keep(payloads[index:])
                arrived += [None] * (len(payloads) - index)
                break
        if entries:
            self.ring.append(entries)
            self.position = position
        return arrived

    def take(self, payload: bytes) -> Arrived | None:
        """Take the entry that follows what was handed out; None if it is something else, which is for `arrive`."""
        position = self.position
        entry = entry_from(payload) if self.held is None and payload[:1] == KEPT else None
        if entry is None or position is None:
            return None
        offset, tag, before, _, message = entry
        if before != position.tag or offset != position.offset + 1:
            return None
        self.position = position = Position(offset, tag)
        self.ring.append_one(entry)
        return message, position

    def _is_known(self, entry: Entry, entries: Sequence[Entry]) -> bool:
        """Whether an entry was read before it came."""
        if entry.tag == self.unseen:
            self.unseen = None
        return self.ring.has(entry.position) or any(entry.tag == other.tag for other in entries)

    def knows(self, top: Position) -> bool:
        """Whether all up to a position was handed out."""
        return top == self.position or self.ring.has(top)

    def _keep(self, payloads: Sequence[bytes]) -> None:
        assert self.held is not None
        for payload in payloads:
            if self._held_size > MAX_HELD:
                self._lost_bare = self._lost_bare or payload[:1] != KEPT
                self.again = True
                self.unseen = None
            else:
                self.held.append(payload)
                self._held_size += len(payload) + OVERHEAD

    def take_over(self, entries: Sequence[Entry], now: float) -> list[Arrived]:
        """Go on behind entries that were read at the broker's time `now`; return them as they are handed out."""
        if entries:
            self.ring.append(entries, now)
            self.position = entries[-1].position
        return [(entry.payload, entry.position) for entry in entries]

    def begin(self, top: Position, now: float) -> None:
        """Go on at the first position that the broker has named, at its time `now`."""
        self.position = self.first = top
        if not top.offset:
            self.ring.load((), now)

    def restart(self, top: Position) -> None:
        """Go on at a position that has nothing to do with the one before."""
        self.ring.clear()
        self.position = top

    def release(self, covered: int) -> tuple[list[Arrived], bool]:
        """Take what was held, of which the first `covered` had come before the broker was asked.

        Return what can be handed out, and whether messages are lost that the broker does not have. If something is
        missing again, `held` is a list.
        """
        assert self.held is not None and self.position is not None
        held, self.held = self.held, None
        self._held_size = 0
        lost, self._lost_bare = self._lost_bare, False
        arrived: list[Arrived] = []
        for index, payload in enumerate(held):
            if self.held is not None:
                self._keep((payload,))
                continue
            arrived += filter(None, self.arrive((payload,)))
            if self.held is not None and index < covered:
                # What was read has everything that had come. What is ahead of that belongs to a stream that has ended.
                entry = entry_from(payload)
                lost = lost or (entry is not None and entry.offset > self.position.offset)
                self.held = None
                self._held_size = 0
        return arrived, lost
