"""Judges what subscribers of channels with history were sent: in order, none twice, none missing without being told.

The checker knows nothing of the package. It compares what publishers say they published with what subscribers say they
got, and with what was done to the servers meanwhile. All times are those of time.monotonic(), which the processes of a
machine share.

What it relies on, for two messages of a channel, is only this: if publishing one of them had ended before publishing
the other began, the broker has them in this order. A message that somebody has seen was published by then, whatever its
publisher was told.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

COST = 100  # bytes that a waiting message costs beside its own
ROUNDING = 1.5  # seconds; Redis' time in the history is in whole ones
SLACK = 1.0  # seconds between the moment in which a server tells of a gap and the one in which the client reads it
RECOVERY = 10.0  # seconds that a process may need to connect after a fault is over
RECENT = 3  # a process may learn of a cause from the message after it; this many messages back it must have learned


class Key(NamedTuple):
    """What identifies a message: who published it, and the how manieth of the publisher's it is."""

    publisher: str
    number: int


NOBODY = Key("", 0)


@dataclass(frozen=True)
class Sent:
    """A message, and what its publisher learned of it.

    "certain": `publish` returned. "perhaps": it raised BrokerError, so it was published once or not at all. "refused":
    the error said that the broker does not take it for want of memory.
    """

    channel: str
    key: Key
    begin: float
    end: float
    outcome: Literal["certain", "perhaps", "refused"]
    size: int = 0  # bytes


@dataclass(frozen=True)
class Rule:
    """What the history of a channel keeps."""

    messages: int
    seconds: float


@dataclass(frozen=True)
class Fault:
    """Something that was done to the servers.

    Attributes:
        resets: Whether it may cost history, so that subscribers must be told.
        loses: Whether what is published meanwhile may be lost although `publish` returns.
        cuts: Whether it may cut a process off, so that this learns later of what has happened.
        channels: The channels that it affects; None for all.
    """

    kind: str
    begin: float
    end: float
    resets: bool = False
    loses: bool = False
    cuts: bool = False
    channels: frozenset[str] | None = None

    def meets(self, begin: float, end: float) -> bool:
        """Whether it happened between two moments."""
        return self.begin <= end and self.end >= begin

    def affects(self, channel: str, begin: float, end: float) -> bool:
        """Whether it happened to the channel between two moments."""
        return self.meets(begin, end) and (self.channels is None or channel in self.channels)


# --- the life of a subscriber ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Behind:
    """A start behind a position: one that the subscriber had with a message, or one that it had asked for."""

    position: str
    asked: tuple[float, float] | None = None  # the moments between which the position was the last one


@dataclass(frozen=True)
class Last:
    """A start with at most that many of the last messages."""

    count: int


@dataclass(frozen=True)
class Live:
    """A start with what is published next."""


Start = Behind | Last | Live


@dataclass(frozen=True)
class Opened:
    """The subscriber's connection was opened: it was asked for at `begin`, and the subscription existed at `end`."""

    begin: float
    end: float
    starts: Mapping[str, Start]  # by channel


@dataclass(frozen=True)
class Got:
    """A message arrived."""

    time: float
    channel: str
    key: Key
    position: str | None = None  # behind this message, if the subscriber was told


@dataclass(frozen=True)
class At:
    """The subscriber was told its position in a channel when it had no message yet."""

    time: float
    channel: str
    position: str


@dataclass(frozen=True)
class Told:
    """The subscriber was told that messages may be missing; afterwards it goes on with what is published next."""

    time: float
    channels: Sequence[str]  # in one of them at least


@dataclass(frozen=True)
class Quiet:
    """The subscriber was connected at the end, when all had been delivered that would be."""

    time: float


Event = Opened | Got | At | Told | Quiet


@dataclass
class Life:
    """All that happened to a subscriber, over all its connections."""

    name: str
    events: list[Event] = field(default_factory=list)


# --- the verdict -----------------------------------------------------------------------------------------------------


@dataclass
class Verdict:
    """What a check has found."""

    violations: list[str] = field(default_factory=list)
    resets: Counter[str] = field(default_factory=Counter)  # by what explains them
    delivered: int = 0
    compared: int = 0  # how often it was verified that a message had arrived which had to

    @property
    def kinds(self) -> Counter[str]:
        """The violations by their first words."""
        return Counter(violation.partition(":")[0] for violation in self.violations)


def check(
    sent: Iterable[Sent],
    lives: Sequence[Life],
    faults: Sequence[Fault],
    rules: Mapping[str, Rule],
    outbox_size: float = math.inf,
) -> Verdict:
    """Return what is wrong with `lives`; `rules` has the history of each channel."""
    truth = Truth(sent, lives, faults, rules, outbox_size)
    verdict = Verdict(list(truth.contradictions))
    for life in lives:
        Judge(truth, life, verdict).judge()
    return verdict


def offset_of(position: str) -> int:
    """Return the offset in a position."""
    return int(position.partition(".")[0])


class Truth:
    """What was published, in each channel, and what happened to the servers meanwhile."""

    def __init__(
        self,
        sent: Iterable[Sent],
        lives: Sequence[Life],
        faults: Sequence[Fault],
        rules: Mapping[str, Rule],
        outbox_size: float,
    ) -> None:
        self.faults = faults
        self.rules = rules
        self.outbox_size = outbox_size
        self.contradictions: list[str] = []
        self.sent = {message.key: message for message in sent}
        self.by_begin: dict[str, list[Sent]] = {channel: [] for channel in rules}
        for message in sorted(self.sent.values(), key=lambda message: message.begin):
            self.by_begin.setdefault(message.channel, []).append(message)
        self._begins = {channel: [one.begin for one in messages] for channel, messages in self.by_begin.items()}
        self._seen: dict[Key, float] = {}  # when somebody saw it first
        self.positions: dict[Key, str] = {}
        self.messages: dict[tuple[str, str], Key] = {}  # by channel and position
        self._collect(lives)
        lossy = [fault for fault in faults if fault.loses]
        self.losable = {
            key
            for key, message in self.sent.items()
            if any(fault.affects(message.channel, message.begin, message.end) for fault in lossy)
        }

    def _collect(self, lives: Sequence[Life]) -> None:
        """Learn from all subscribers when messages existed, and which positions they have."""
        messages = self.messages
        for life in lives:
            for event in life.events:
                if isinstance(event, Got):
                    self._seen[event.key] = min(event.time, self._seen.get(event.key, math.inf))
                    if event.position is not None:
                        other = self.positions.setdefault(event.key, event.position)
                        if other != event.position:
                            self._contradict(event, f"{event.key} is at {event.position} and at {other}")
                        before = messages.setdefault((event.channel, event.position), event.key)
                        if before != event.key:
                            self._contradict(event, f"at {event.position} are {event.key} and {before}")

    def _contradict(self, event: Got, text: str) -> None:
        self.contradictions.append(f"contradiction: {event.channel} at {event.time:.3f}: {text}")

    def known(self, message: Sent) -> float:
        """Return when a message was published at the latest; never, if nobody knows that it was."""
        end = message.end if message.outcome == "certain" else math.inf
        return min(end, self._seen.get(message.key, math.inf))

    def between(self, channel: str, begin: float, end: float = math.inf) -> Sequence[Sent]:
        """Return the channel's messages of which publishing began between two moments."""
        begins = self._begins.get(channel, [])
        return self.by_begin.get(channel, [])[bisect_right(begins, begin) : bisect_right(begins, end)]

    def explain(self, channel: str, since: float, told: float, interrupted: bool) -> str | None:
        """Return what explains that a subscriber is told of a gap.

        Args:
            channel: Where it is.
            since: When the last message of which the subscriber knows began to be published.
            told: When it was told.
            interrupted: Whether it had to read what it missed, since its own connection was new.
        """
        for fault in self.faults:
            if fault.resets and fault.affects(channel, since - SLACK, told):
                return fault.kind
        rule = self.rules[channel]
        interrupted = interrupted or bool(self.cutting(channel, since - RECOVERY, told))
        behind = [
            message
            for message in self.between(channel, -math.inf, told)
            if message.outcome != "refused" and self.known(message) > since
        ]
        if sum(message.size + COST for message in behind) > self.outbox_size:
            return "replay larger than the outbox"
        if interrupted and len(behind) > rule.messages:
            return "more messages than the history keeps"
        if interrupted and told - since > rule.seconds - ROUNDING:
            return "history older than it is kept"
        connected = self._connected(channel, told)
        recent = [message for message in self.between(channel, -math.inf, connected) if message.outcome == "certain"]
        learned = recent[-RECENT].begin if len(recent) >= RECENT else -math.inf
        for fault in self.faults:
            if fault.resets and fault.affects(channel, min(since, learned), told):
                return f"{fault.kind}, noticed later"
        return None

    def cutting(self, channel: str, begin: float, end: float) -> list[Fault]:
        """Return what may have cut a process off between two moments."""
        return [fault for fault in self.faults if fault.cuts and fault.affects(channel, begin, end)]

    def _connected(self, channel: str, moment: float) -> float:
        """Return when a process was last connected for sure, up to a moment: no fault had cut it off."""
        while cutting := self.cutting(channel, moment - RECOVERY, moment):
            earlier = min(fault.begin for fault in cutting) - 0.001
            if earlier >= moment:
                break
            moment = earlier
        return moment

    def explain_last(self, channel: str, count: int, told: float) -> str | None:
        """Return what explains that a subscriber who wants the last messages is told of a gap instead."""
        certain = [message for message in self.between(channel, -math.inf, told) if self.known(message) < told]
        size = sum(message.size + COST for message in certain[-min(count, self.rules[channel].messages) :])
        return "replay larger than the outbox" if size > self.outbox_size else None


class Progress:
    """How far a subscriber has come in a channel."""

    def __init__(self, channel: str) -> None:
        self.channel = channel
        self.line: list[Sent] = []  # the messages since the start or the last gap
        self.latest: list[float] = []  # for each of them, when the latest one so far began to be published
        self.places: dict[str, int] = {}  # how many messages of the line each position has before it
        self.ever: set[Key] = set()
        self.before_gaps = -math.inf  # when the latest message before the last gap began to be published
        self.began = -math.inf  # the moment of the start, or of the last gap
        self.before_gap: float | None = None  # what `since` was before the line began with a gap
        self.lower = math.inf  # what was published after this must arrive
        self.too_old = -math.inf  # what was published before this must not
        self.first_offset: int | None = None  # of the first message of the line, if that is known
        self.misplaced: str | None = None  # a position that the subscriber was told, although it was elsewhere

    def begin(self, began: float, lower: float, too_old: float, first_offset: int | None) -> None:
        """Begin a new line."""
        self.before_gaps = max([self.before_gaps, *self.latest[-1:]])
        self.line, self.latest, self.places = [], [], {}
        self.began, self.lower, self.too_old, self.first_offset = began, lower, too_old, first_offset
        self.misplaced = self.before_gap = None

    def shorten(self, count: int) -> list[Sent]:
        """Go back to the first messages of the line, and return the others."""
        dropped = self.line[count:]
        del self.line[count:], self.latest[count:]
        self.ever.difference_update(message.key for message in dropped)
        return dropped

    def told_again(self, truth: Truth, told: float) -> bool:
        """Whether what was told before, without a message since, explains that the subscriber is told once more."""
        before = self.before_gap
        return not self.line and before is not None and truth.explain(self.channel, before, told, True) is not None

    @property
    def since(self) -> float:
        """When the last message began to be published, or the start was."""
        return self.line[-1].begin if self.line else self.began


class Judge:
    """Goes through the life of one subscriber."""

    def __init__(self, truth: Truth, life: Life, verdict: Verdict) -> None:
        self._truth = truth
        self._life = life
        self._verdict = verdict
        self._channels: dict[str, Progress] = {}
        self._last: dict[str, tuple[Last, Opened]] = {}
        self._older: Counter[str] = Counter()  # messages from before a start with the last ones
        self._opened = -math.inf

    def judge(self) -> None:
        """Add what is wrong to the verdict."""
        for event in self._life.events:
            if isinstance(event, Opened):
                self._open(event)
            elif isinstance(event, Got):
                self._get(event)
            elif isinstance(event, At):
                self._place(event)
            elif isinstance(event, Told):
                self._tell(event)
            else:
                for progress in self._channels.values():
                    self._complete(progress, progress.line, progress.lower, event.time, "at the end")
                return
        for progress in self._channels.values():
            self._finish(progress)

    def _violation(self, kind: str, channel: str, time: float, text: str) -> None:
        self._verdict.violations.append(f"{kind}: {self._life.name} in {channel} at {time:.3f}: {text}")

    # --- events --------------------------------------------------------------------------------------------------

    def _open(self, event: Opened) -> None:
        self._opened = event.begin
        for channel in [*self._channels]:
            if channel not in event.starts:
                self._finish(self._channels.pop(channel))
        for channel, start in event.starts.items():
            progress = self._channels.setdefault(channel, Progress(channel))
            self._last.pop(channel, None)
            if isinstance(start, Behind) and start.position in progress.places:
                self._go_back(progress, start.position)
                continue
            self._finish(progress)
            if isinstance(start, Behind):
                begin, end = start.asked or (event.begin, event.end)  # or it came with a message that was wrong
                progress.begin(begin, end, begin, offset_of(start.position) + 1)
                progress.places[start.position] = 0
            else:  # a process may hand out what is somewhat older, and so it is not compared with the start
                progress.begin(event.begin, event.end, -math.inf, None)
                if isinstance(start, Last):
                    self._last[channel] = start, event
                    self._older[channel] = 0

    def _go_back(self, progress: Progress, position: str) -> None:
        """Resume behind an earlier message: what came after it has been checked, and has to come again."""
        count = progress.places[position]
        if count < len(progress.line):
            lower = self._truth.known(progress.line[count - 1]) if count else progress.lower
            again = progress.line[count:]
            self._complete(progress, again, lower, max(message.begin for message in again), "before it resumed")
            progress.shorten(count)

    def _place(self, event: At) -> None:
        progress = self._channels[event.channel]
        if offset_of(event.position) < 0:
            self._violation("no position", event.channel, event.time, f"was said to be at {event.position}")
        expected = progress.places.get(event.position, len(progress.line))
        progress.misplaced = event.position if expected != len(progress.line) else None
        progress.places[event.position] = len(progress.line)
        if not progress.line:
            progress.first_offset = offset_of(event.position) + 1
            message = self._truth.sent.get(self._truth.messages.get((event.channel, event.position), NOBODY))
            if message is not None:  # behind a gap, a process may go on where it was, although that is long ago
                progress.began = min(progress.began, message.begin)

    def _get(self, event: Got) -> None:
        self._verdict.delivered += 1
        truth, channel = self._truth, event.channel
        message = truth.sent.get(event.key)
        if message is None or message.channel != channel:
            self._violation("never published", channel, event.time, str(event.key))
            return
        if message.outcome == "refused":
            self._violation("refused and delivered", channel, event.time, str(event.key))
        progress = self._channels[channel]
        if event.key in progress.ever:
            self._violation("twice", channel, event.time, str(event.key))
            return
        if progress.misplaced is not None:
            self._violation("misplaced", channel, event.time, f"was said to be at {progress.misplaced}")
            progress.misplaced = None
        known = truth.known(message)
        latest = progress.latest[-1] if progress.latest else -math.inf
        if known < latest:
            self._violation("out of order", channel, event.time, f"{event.key} comes {latest - known:.3f} s too late")
        elif event.key in truth.losable:
            pass  # one of two masters may be behind the other
        elif known < progress.before_gaps:
            self._violation("older than what came before a gap", channel, event.time, str(event.key))
        elif known < progress.too_old:
            self._violation("older than its start", channel, event.time, str(event.key))
        if channel in self._last:
            start, opened = self._last[channel]
            # A process that was cut off hands out what it has missed as what is new.
            self._older[channel] += known < opened.begin and not truth.cutting(
                channel, opened.begin - RECOVERY, event.time
            )
            if self._older[channel] > start.count:
                self._violation("more than the last ones", channel, event.time, f"more than {start.count}")
        self._compare_positions(progress, event)
        if not progress.line:
            progress.began = min(progress.began, message.begin)  # a start with the last ones is before them
        progress.ever.add(event.key)
        progress.line.append(message)
        progress.latest.append(max(latest, message.begin))
        if event.position is not None:
            progress.places[event.position] = len(progress.line)

    def _compare_positions(self, progress: Progress, event: Got) -> None:
        """Check that no position lies between a message and the one before it, as far as their positions are known."""
        position = self._truth.positions.get(event.key)
        if position is None:
            return
        offset, expected = offset_of(position), progress.first_offset
        if progress.line:
            before = self._truth.positions.get(progress.line[-1].key)
            expected = None if before is None else offset_of(before) + 1
        if expected is not None and offset != expected:
            text = f"{event.key} is at {position}, and the one before it at {expected - 1}"
            self._violation("positions left out", event.channel, event.time, text)

    def _tell(self, event: Told) -> None:
        truth = self._truth
        reasons = []
        for channel in event.channels:
            progress = self._channels[channel]
            interrupted = self._opened >= progress.since
            reason = truth.explain(channel, progress.since, event.time, interrupted)
            if reason is None and channel in self._last and not progress.line:
                reason = truth.explain_last(channel, self._last[channel][0].count, event.time)
            reasons.append(reason)
        found = [reason for reason in reasons if reason is not None]
        if found:
            self._verdict.resets[min(found, key=lambda reason: reason.endswith("later"))] += 1
        elif any(self._channels[channel].told_again(truth, event.time) for channel in event.channels):
            self._violation("told twice", " ".join(event.channels), event.time, "of the same")
        else:
            since = ", ".join(f"{self._channels[channel].since:.3f}" for channel in event.channels)
            self._violation(
                "unexplained reset", " ".join(event.channels), event.time, f"nothing happened since {since}"
            )
        for channel in event.channels:
            progress = self._channels[channel]
            self._finish(progress)
            # Among several channels, there may be no gap in this one, and what has cost its history is yet to be told.
            before = progress.since
            began = event.time if len(event.channels) == 1 else before
            progress.begin(began, event.time, -math.inf, None)
            progress.before_gap = before
            progress.ever -= truth.losable  # behind this gap they may come again, from the other one of two masters

    # --- completeness --------------------------------------------------------------------------------------------

    def _finish(self, progress: Progress) -> None:
        """Check a line that does not go on."""
        if progress.line:
            self._complete(progress, progress.line, progress.lower, progress.latest[-1], "before its last message")

    def _complete(self, progress: Progress, line: Sequence[Sent], lower: float, upper: float, when: str) -> None:
        """Check that everything has arrived that was certainly published between the start and `upper`."""
        truth = self._truth
        there = {message.key for message in line}
        lower = min([lower, *(truth.known(message) for message in line)])
        missing = []
        for message in truth.between(progress.channel, lower, upper):
            if truth.known(message) < upper and message.key not in truth.losable:
                self._verdict.compared += 1
                if message.key not in there:
                    missing.append(message)
        if missing:
            text = f"{len(missing)} {when}, the first is {missing[0].key}, published at {missing[0].begin:.3f}"
            self._violation("missing", progress.channel, upper, f"{text}; {len(line)} had come")
