"""What a subscriber wants of the past of its channels."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from django_websocket.transport.counts import counts

from .backlog import cost
from .entries import NOWHERE, Entry, Position, Rules, check_keeps, checked_count, position_from
from .hub import Hub
from .publication import Publication

Since = str | Mapping[str, str] | None  # a position, or one for each channel; None for no past
OrRefused = Since | Literal[False]  # False for no past even if the client asks for it


class Wanted(NamedTuple):
    """What is wanted of which channels: what is behind a position; without one, the last messages, or those of a time.

    `time` is in seconds since the epoch, by the broker's clock; it has a meaning if `last` is 0.
    """

    channels: Collection[str]
    since: Mapping[str, Position]
    last: int = 0
    time: int | None = None


def wanted(channels: Sequence[str], since: Since, last: int | None, rules: Rules) -> Wanted | None:
    """Return what is wanted of `channels`; None for nothing. Raises TypeError or ValueError for what makes no sense."""
    if since is None and last is None:
        return None
    if since is not None and last is not None:
        raise TypeError("Use either since= or last=, not both")
    for channel in channels:
        check_keeps(channel, rules)
    if since is None:
        return Wanted(channels, {}, checked_count(last))
    if isinstance(since, Mapping):  # one without a channel may come from a client, as everything in it may
        return Wanted(channels, {channel: position_from(since.get(channel)) for channel in channels})
    if len(channels) > 1:
        raise TypeError("With several channels, since= must be a dict with the position of each")
    return Wanted(channels, {channels[0]: position_from(since)})


def resumed(
    wish: Wanted | None,
    channels: Sequence[str],
    positions: Mapping[str, str | None],
    time: int | None,
    rules: Rules,
    *,
    has_snapshot: bool,
) -> Wanted | None:
    """Return what a client gets that has said from which positions it goes on; None for nothing of the past.

    Where it has said none, it gets what the view wishes for it; without such a wish, what came since `time`, when its
    page was made, unless it was subscribed before. A snapshot is the state of all channels, so that there must be a
    position for each of them to do without.
    """
    kept = [channel for channel in channels if rules.find(channel) is not None]
    since = {channel: position_from(positions[channel]) for channel in kept if positions.get(channel) is not None}
    if wish is not None:
        since = {**wish.since, **since}
    if has_snapshot:
        return Wanted(kept, since) if since.keys() >= {*channels} else None
    if wish is not None:
        return Wanted(kept, since, wish.last)
    new = [channel for channel in kept if channel not in positions]
    if time is None or not new:
        return Wanted(list(since), since) if since else None
    return Wanted([*since, *new], since, time=time)


class Resuming(Protocol):
    """A subscriber that holds what comes until its past is there."""

    channels: Sequence[str]

    def begin_anew(self, names: Collection[str]) -> None:
        """Drop what it holds of these channels, and forget that messages were missed if it has no others."""


class Past(NamedTuple):
    """What a subscriber gets of the past, None if not all of it is kept; each channel's positions before and after."""

    publications: Sequence[Publication] | None
    starts: Mapping[str, Position]
    ends: Mapping[str, Position]


def past_of(hub: Hub, member: Resuming, starts: Mapping[str, Position], wish: Wanted, limit: float) -> Past:
    """Return what is wanted of what came before `starts`, up to `limit` bytes. Raises BrokerError."""
    catching_up = hub.catching_up
    assert catching_up is not None
    # A channel may have been joined before it had a history.
    known = starts.keys() >= {*wish.channels} and NOWHERE not in wish.since.values()
    ahead = {name: since for name, since in wish.since.items() if name in starts and since.offset > starts[name].offset}
    if known and ahead:  # the client was connected to a process that has received more than this one
        known = all(catching_up.reach(name, since) for name, since in ahead.items())
        starts = begin_anew(hub, member, starts)
    if not known:
        counts.add("resumes", "incomplete", "memory")
    publications: list[Publication] = []
    begins: dict[str, Position] = {}
    size = 0
    for name, end in starts.items() if known else ():
        since = wish.since.get(name)
        entries: Sequence[Entry] | None = ()
        if since is not None:
            entries = catching_up.behind(name, end, since)
        elif wish.last:
            entries = catching_up.last(name, end, wish.last) or ()
        elif wish.time is not None and name in wish.channels:
            entries = catching_up.from_time(name, end, wish.time)
        if entries is None:
            known = False
            break
        found = entries
        begins[name] = found[0].start if found else end
        for entry in found:
            publication = hub.publication(name, entry)
            publications.append(publication)
            size += sum(map(cost, publication.messages))
            if size > limit:
                break
    if known and size <= limit:
        return Past(publications, begins, starts)
    # Whoever is told that messages are missing now need not be told of those before now.
    starts = begin_anew(hub, member, starts)
    return Past(None, starts, starts)


def begin_anew(hub: Hub, member: Resuming, starts: Mapping[str, Position]) -> Mapping[str, Position]:
    """Have a member begin where its channels are now; return their positions."""
    with hub.in_turn:
        member.begin_anew(starts)
        return hub.positions(starts)
