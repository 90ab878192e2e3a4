"""What a channel keeps: entries, positions between them, and whether all entries behind a position are there.

A position is an offset and a tag. Offsets count the messages of a channel; the tag is random, and new for each message.
An entry has its own position and the tag of the entry before it, so that a chain of entries shows whether one is
missing, whatever has happened to the broker: two streams with the same offsets never have the same tags.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, TypeGuard

from .broker import Broker
from .channels import RESERVED

READ_SIZE = 4 * 1024 * 1024  # bytes that a process reads at once
KEPT = b"\xfe"  # precedes an entry on the wire: UTF-8 text never contains it, and binary messages begin with FF
UNREADABLE = KEPT  # stands for a payload that cannot be decrypted
TAG_SIZE = 8  # bytes
# Seconds before a page was made from which it gets messages, as far as they are kept: one may have been published in a
# transaction that its queries did not see yet. And the clocks of a Cluster's nodes may differ.
MARGIN = 5
TAGS = 64  # that are made at once
REMEMBERED = 10_000  # names of channels whose rule was looked up


class Rule(NamedTuple):
    """How much a channel keeps: the newest messages, as many as `messages`, each for `seconds`."""

    messages: int
    seconds: float

    @property
    def life(self) -> float:
        """For how many seconds after the last use it is known where a channel ends: a client may sleep for a while."""
        return 2 * self.seconds + 60

    def oldest(self, now: float) -> float:
        """Return when a message must have come that is not too old. Brokers note no fractions of a second."""
        return now - self.seconds - 1


class Rules:
    """The rules of a site by the patterns of channels' names, the first that fits first."""

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        self._rules = dict(rules)
        self.find = lru_cache(REMEMBERED)(self._find)

    def __bool__(self) -> bool:
        return bool(self._rules)

    def _find(self, channel: str) -> Rule | None:
        """Return the rule for a channel; None if it keeps nothing."""
        if channel.startswith(RESERVED):
            return None
        return next((rule for pattern, rule in self._rules.items() if fnmatchcase(channel, pattern)), None)


NO_RULES = Rules({})


def check_keeps(channel: str, rules: Rules) -> None:
    """Raise ValueError for a channel without history."""
    if rules.find(channel) is None:
        raise ValueError(
            f"The channel {channel!r} has no history: add a pattern that matches it to WEBSOCKET_HISTORY, such as "
            f'{{"{channel}": {{"messages": 100, "seconds": 3600}}}}'
        )


def no_history(channel: str) -> str:
    """Return what is wrong with a channel that is to have a history which its broker cannot keep."""
    return (
        f"WEBSOCKET_HISTORY gives the channel {channel!r} a history, which the broker of WEBSOCKET_BROKER does not "
        f"keep: use Redis or memory://, or remove the pattern."
    )


def checked_count(number: Any) -> int:
    """Return a number of messages. Raises TypeError or ValueError for what is none."""
    if not isinstance(number, int) or isinstance(number, bool):
        raise TypeError(f"last= must be a number of messages, not {number!r}")
    if number < 0:
        raise ValueError(f"last= is a number of messages, and must not be negative: {number}")
    return number


class Position(NamedTuple):
    """A place in a channel: behind the message with this number and tag, or at the beginning, with number 0."""

    offset: int
    tag: bytes

    def __str__(self) -> str:
        return f"{self.offset}.{self.tag.decode(errors='replace')}"


NOWHERE = Position(-1, b"")  # fits no channel


POSITION = re.compile(r"([0-9]{1,18})\.([A-Za-z0-9_-]{11}-?)")  # a number and a tag; keeping.PUBLISH adds the minus


def position_from(text: object) -> Position:
    """Return the position that `str()` has written; `NOWHERE` for anything else: it may come from a client."""
    if isinstance(text, Position):
        return text
    match = POSITION.fullmatch(text) if isinstance(text, str) else None
    return NOWHERE if match is None else Position(int(match[1]), match[2].encode())


class Entry(NamedTuple):
    """A kept message: its place, the tag before it, when the broker has taken it (seconds since the epoch), itself."""

    offset: int
    tag: bytes
    before: bytes
    time: int
    payload: bytes

    @property
    def position(self) -> Position:
        """The place behind it."""
        return Position(self.offset, self.tag)

    @property
    def start(self) -> Position:
        """The place before it."""
        return Position(self.offset - 1, self.before)

    def to_wire(self) -> bytes:
        """Return the entry as brokers carry and keep it."""
        return b"%b%d:%b:%b:%d:%b" % (KEPT, *self)


def entry_from(data: bytes) -> Entry | None:
    """Return the entry in `data`, which begins with `KEPT`; None if it is malformed."""
    try:
        offset, tag, before, time, payload = data[1:].split(b":", 4)
        return Entry(int(offset), tag, before, int(time), payload)
    except ValueError:
        return None


_tags: list[bytes] = []  # that no message has yet; the system is asked for many at once
os.register_at_fork(after_in_child=_tags.clear)


def new_tag() -> bytes:
    """Return a tag that no other message has: without a colon, which separates, nor a dot."""
    try:
        return _tags.pop()
    except IndexError:
        random = os.urandom(TAG_SIZE * TAGS)
        tags = [base64.urlsafe_b64encode(random[begin : begin + TAG_SIZE]) for begin in range(0, len(random), TAG_SIZE)]
        _tags.extend(tag.rstrip(b"=") for tag in tags)
        return new_tag()


class Stretch(NamedTuple):
    """What a broker had at a moment: where the channel ended, the broker's time in seconds, and the last entries.

    With `cut`, there was more than was wanted at once: the channel goes on behind `top`, or, if the last entries were
    asked for, before the first one here.
    """

    top: Position
    time: int
    entries: Sequence[Entry]
    cut: bool = False

    def last(self, count: int, rule: Rule) -> Sequence[Entry]:
        """Return the last entries: at most `count`, none too old, and none before one that is missing."""
        begin = len(self.entries)
        follower = self.top
        while begin and count > 0:
            entry = self.entries[begin - 1]
            if entry.position != follower or entry.time < rule.oldest(self.time):
                break
            follower = entry.start
            begin -= 1
            count -= 1
        return self.entries[begin:]

    def from_time(self, begin: int, rule: Rule) -> Sequence[Entry] | None:
        """Return the entries that the broker got `MARGIN` before `begin` or later; None if some may be missing."""
        oldest = rule.oldest(self.time)
        if begin < oldest:
            return None
        entries = self.last(rule.messages, rule)
        if len(entries) < min(rule.messages, sum(entry.time >= oldest for entry in self.entries)):
            return None  # one is missing between them
        return entries_of_page(entries, begin, nothing_before=not self.cut)

    def until(self, end: Position) -> Stretch | None:
        """Return what there was when the channel ended at `end`; None if that is not a place in it."""
        beyond = self.top.offset - end.offset
        if not 0 <= beyond <= len(self.entries):
            return None
        begin = len(self.entries) - beyond
        place = self.entries[begin].start if beyond else self.top
        return Stretch(end, self.time, self.entries[:begin], self.cut) if place == end else None

    def behind(self, since: Position, rule: Rule) -> Sequence[Entry] | None:
        """Return the entries behind a position; None if one is missing or too old."""
        count = self.top.offset - since.offset
        if count < 0 or count > len(self.entries):
            return None
        entries = self.last(count, rule)
        start = entries[0].start if entries else self.top
        return entries if start == since else None


def entries_of_page(entries: Sequence[Entry], begin: int, *, nothing_before: bool) -> Sequence[Entry] | None:
    """Return those of a row of entries that a page made at `begin` gets; None if some may be missing.

    `nothing_before` says that none was dropped before them, but for those that are too old. Times are whole seconds,
    and a clock may have been set back.
    """
    if not (nothing_before or (entries and (entries[0].time < begin or entries[0].offset == 1))):
        return None
    first = next((index for index, entry in enumerate(entries) if entry.time >= begin - MARGIN), len(entries))
    return entries[first:]


class KeepingBroker(Broker, Protocol):
    """A broker that keeps messages."""

    def publish_kept(self, channel: str, payload: bytes, rule: Rule) -> int | None:
        """Do what `publish` does, and keep `payload` in the same step. Subscribers get it as an entry."""

    def read(self, channel: str, rule: Rule, count: int, since: int | None = None, size: int | None = None) -> Stretch:
        """Return the last `count` entries at most, or all behind the offset `since`, or none if not all are there.

        If they have many more bytes than `size`, return as many of the last, or of the first behind `since`. A channel
        that has kept nothing gets a place to begin at. Raises `BrokerError`.
        """

    def clock(self, timeout: float) -> float:
        """Return the time of entries, in seconds since the epoch, within `timeout` seconds. Raises `BrokerError`."""


def keeps(broker: Broker) -> TypeGuard[KeepingBroker]:
    """Whether a broker keeps messages."""
    return hasattr(broker, "publish_kept") and hasattr(broker, "read")
