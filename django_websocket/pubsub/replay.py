"""What a subscriber wants of the past of its channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from .backlog import cost
from .entries import NOWHERE, Entry, Position, Rules, check_keeps, checked_count, position_from
from .hub import Hub
from .publication import Publication

Since = str | Mapping[str, str] | None  # a position, or one for each channel; None for no past


class Wanted(NamedTuple):
    """What is wanted: for each channel what is behind a position, or the last messages."""

    since: Mapping[str, Position]
    last: int


def wanted(channels: Sequence[str], since: Since, last: int | None, rules: Rules) -> Wanted | None:
    """Return what is wanted of `channels`; None for nothing. Raises TypeError or ValueError for what makes no sense."""
    if since is None and last is None:
        return None
    if since is not None and last is not None:
        raise TypeError("Say either since= or last=")
    for channel in channels:
        check_keeps(channel, rules)
    if since is None:
        return Wanted({}, checked_count(last))
    if isinstance(since, Mapping):  # one without a channel may come from a client, as everything in it may
        return Wanted({channel: position_from(since.get(channel)) for channel in channels}, 0)
    if len(channels) > 1:
        raise TypeError("With several channels, since= is a dict with the position of each")
    return Wanted({channels[0]: position_from(since)}, 0)


class Resuming(Protocol):
    """A subscriber that holds what comes until its past is there."""

    channels: Sequence[str]

    def begin_anew(self) -> None:
        """Drop what it holds, and forget that messages were missed."""


class Past(NamedTuple):
    """What a subscriber gets of the past, None if not all of it is kept; and the position of each channel before it."""

    publications: Sequence[Publication] | None
    starts: Mapping[str, Position]


def past_of(hub: Hub, member: Resuming, starts: Mapping[str, Position], wish: Wanted, limit: float) -> Past:
    """Return what is wanted of what came before `starts`, up to `limit` bytes. Raises BrokerError."""
    catching_up = hub.catching_up
    assert catching_up is not None
    # A channel may have been joined before it had a history.
    known = starts.keys() >= {*member.channels} and NOWHERE not in wish.since.values()
    ahead = {name: since for name, since in wish.since.items() if name in starts and since.offset > starts[name].offset}
    if known and ahead:  # the client was connected to a process that has received more than this one
        known = all(catching_up.reach(name, since) for name, since in ahead.items())
        starts = begin_anew(hub, member, starts)
    publications: list[Publication] = []
    begins: dict[str, Position] = {}
    size = 0
    for name, end in starts.items() if known else ():
        since = wish.since.get(name)
        entries = catching_up.entries(name, end, since=since, last=wish.last) if wish.since or wish.last else []
        if entries is None and since is not None:
            known = False
            break
        found: Sequence[Entry] = entries or ()
        begins[name] = found[0].start if found else end
        for entry in found:
            publication = hub.publication(name, entry)
            publications.append(publication)
            size += sum(map(cost, publication.messages))
            if size > limit:
                break
    # Whoever is told that messages are missing now need not be told of those before now.
    return Past(publications, begins) if known and size <= limit else Past(None, begin_anew(hub, member, starts))


def begin_anew(hub: Hub, member: Resuming, starts: Mapping[str, Position]) -> Mapping[str, Position]:
    """Have a member begin where its channels are now; return their positions."""
    with hub.in_turn:
        member.begin_anew()
        return hub.positions(starts)
