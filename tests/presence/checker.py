"""Judges what observers of channels with presence have seen: who is there, each user once, and nobody flaps.

The checker knows nothing of the package. It compares what clients say they did with what observers say they saw, and
with what was done to the servers meanwhile. All times are those of time.monotonic(), which the processes of a machine
share.

What clients did says of each user in each room when it must be there, and when it may be. It must be there from the
moment in which a client of it knew that it was, until that client began to end; if that client may come back, for as
long as the package waits for it. It may be there from the moment in which a client began to connect, until nothing of
it can be left, even of a worker that was killed. In between, both is right.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

MARGIN = 1.5  # seconds by which the clocks of a worker and of a client may differ in what they take for an end
UNSURE = 1.0  # seconds between two statements of which nobody can say which is newer
AFTER_FAULT = 20.0  # seconds for which what is told may be late, behind a fault
CHANGES = 5.0  # seconds around a fault in which what is written may be lost with it


@dataclass(frozen=True)
class Timing:
    """How long things take. The first three are the package's, the others what observers are granted."""

    grace: float = 15.0  # for a client to come back
    lease: float = 25.0
    renewal: float = 10.0
    poll: float = 1.0  # until a leave is seen by those who ask
    news: float = 2.0  # until anything is seen by those who are told
    slack: float = 9.0  # beyond what the package takes until nothing is left of a process that was killed
    late: float = 5.0  # until then, a leave that is told may be of an absence that is over
    late_after_fault: float = 15.0

    @property
    def dead(self) -> float:
        """Seconds until nothing is left of a process that was killed."""
        return self.lease + 1.1 * self.renewal + self.slack

    @property
    def restored(self) -> float:
        """Seconds until everybody is there again that was lost, although nobody has noticed."""
        return 3.3 * self.renewal + 5.0

    def held(self, how: End) -> float:
        """Return for how long a user must stay there whose client has ended so."""
        if how == "killed":  # its process may have been about to renew its lease
            return max(0.0, self.lease - 1.1 * self.renewal - MARGIN)
        return self.grace - MARGIN


TIMING = Timing()

# How a connection ended: by 1000, or the end of its view; otherwise, with a session, or with 1012; without a close
# frame, which may mean that the worker was killed; without both a session and 1012; before the client was there.
End = Literal["there", "clean", "held", "killed", "gone", "refused"]


class Said(NamedTuple):
    """What a client has told of its user, as JSON; that was taken between two moments."""

    begin: float
    end: float
    info: str


@dataclass
class Stay:
    """A connection of a client that is in rooms."""

    tab: str  # the client, over its connections with the same session
    user: str  # the id, as JSON
    rooms: tuple[str, ...]
    began: float
    said: list[Said]
    session: bool = True
    entered: float = math.inf  # when the client knew that it was there
    ended: float = math.inf  # when its end began
    gone: float = math.inf  # when it was over, for the client
    how: End = "there"
    opened: float = math.inf  # when the handshake was over
    why: str = ""  # what ended it, in words

    @property
    def confirmed(self) -> bool:
        """Whether the client was there for sure."""
        return self.entered < math.inf


@dataclass(frozen=True)
class Disturbance:
    """Something that was done to servers or workers.

    `wipes` says that what was known of the rooms may be lost, `loses` that changes may be. No `rooms` means all.
    """

    kind: str
    begin: float
    end: float
    wipes: bool = False
    loses: bool = False
    rooms: frozenset[str] | None = None

    def affects(self, room: str) -> bool:
        """Whether it has happened to a room."""
        return self.rooms is None or room in self.rooms


@dataclass(frozen=True)
class Seen:
    """What an observer was told of a room: everybody, or who has left and who has joined; and how many there are.

    Those who ask have a `begin` of the asking. A list whose `count` is None came without it.
    """

    time: float
    observer: str
    room: str
    everybody: Sequence[Any] | None = None
    left: Sequence[Any] = ()  # ids
    joined: Sequence[Any] = ()
    count: int | None = None
    begin: float | None = None


@dataclass(frozen=True)
class Gap:
    """An observer's connection has ended, or has yet to begin: it knows nothing."""

    time: float
    observer: str


@dataclass(frozen=True)
class Look:
    """A moment in which nobody has come or gone for long: what each observer saw then of each room, as JSON by id.

    `keys` are the rooms of which Redis keeps something. `lasted` is for how long it was waited for this.
    """

    time: float
    seen: Mapping[str, Mapping[str, Mapping[str, str]]]  # by observer and room
    keys: frozenset[str]
    lasted: float = 0.0


class Wrong(NamedTuple):
    """Something that must not be."""

    kind: str
    time: float
    room: str
    user: str
    observer: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.time:.3f} {self.room} user {self.user} {self.observer}: {self.text}"


@dataclass
class Verdict:
    """What a check has found."""

    wrong: list[Wrong] = field(default_factory=list)
    checks: Counter[str] = field(default_factory=Counter)
    excused: Counter[str] = field(default_factory=Counter)

    @property
    def kinds(self) -> Counter[str]:
        """How much of each kind is wrong."""
        return Counter(one.kind for one in self.wrong)


Span = tuple[float, float]


def merged(spans: Iterable[Span]) -> list[Span]:
    """Return spans of time without overlaps, in order."""
    found: list[Span] = []
    for begin, end in sorted(span for span in spans if span[0] < span[1]):
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((begin, end))
    return found


def overlap(one: Span, other: Span) -> Span:
    """Return what two spans share; its end is before its begin if that is nothing."""
    return max(one[0], other[0]), min(one[1], other[1])


def sharing(spans: Sequence[Span], begin: float, end: float) -> list[Span]:
    """Return the spans that share some time with another one; their ends are in order. A long run has thousands."""
    first = bisect_left(spans, begin, key=lambda span: span[1])
    return [span for span in spans[first:] if span[0] < end]


def covers(spans: Iterable[Span], begin: float, end: float) -> bool:
    """Whether one of these spans has all of that time."""
    return any(first <= begin and end <= last for first, last in spans)


def id_of(member: Any) -> str:
    """Return what tells users apart, of a member or an id."""
    return json.dumps(member["id"] if isinstance(member, dict) else member)


def text_of(member: Any) -> str:
    """Return what is told of a user as it can be compared."""
    return json.dumps(member, sort_keys=True)


# --- what is true ----------------------------------------------------------------------------------------------------


class Truth:
    """Who was where, as far as that can be said; see the module."""

    def __init__(
        self, stays: Iterable[Stay], disturbances: Sequence[Disturbance] = (), timing: Timing = TIMING
    ) -> None:
        self.timing = timing
        self.disturbances = disturbances
        self.stays: dict[tuple[str, str], list[Stay]] = {}  # by room and user
        for stay in stays:
            for room in stay.rooms:
                self.stays.setdefault((room, stay.user), []).append(stay)
        self.must: dict[tuple[str, str], list[Span]] = {}
        self.may: dict[tuple[str, str], list[Span]] = {}  # where no process was killed
        self.at_most: dict[tuple[str, str], list[Span]] = {}  # where processes may have been killed
        self.users: dict[str, list[str]] = {}  # by room
        self.away: dict[tuple[str, str], list[Span]] = {}  # the times between those of `may`
        self.gone: dict[tuple[str, str], list[Span]] = {}  # the times between those of `at_most`
        for key, found in self.stays.items():
            self.users.setdefault(key[0], []).append(key[1])
            self.must[key] = merged((stay.entered, self._held_until(stay, found)) for stay in found)
            self.may[key] = merged((stay.began, self._left_at(stay, found)) for stay in found)
            self.at_most[key] = merged((stay.began, stay.gone + timing.dead) for stay in found)
            self.away[key] = absences(self.may[key])
            self.gone[key] = absences(self.at_most[key])

    def _held_until(self, stay: Stay, stays: Sequence[Stay]) -> float:
        """Return until when a user must be there by this connection."""
        if stay.how in ("there", "clean", "gone", "refused"):
            return stay.ended
        until = stay.ended + self.timing.held(stay.how)
        later = [one.ended for one in stays if self._follows(one, stay) and one.how == "clean"]
        return min([until, *later])

    def _left_at(self, stay: Stay, stays: Sequence[Stay]) -> float:
        """Return until when a user may be there by this connection, if no process was killed."""
        if stay.how in ("there", "clean", "gone"):
            return stay.gone
        later = [one.entered for one in stays if self._follows(one, stay)]
        return max(stay.gone, min([stay.gone + self.timing.grace, *later]))

    def _follows(self, later: Stay, stay: Stay) -> bool:
        return later.tab == stay.tab and later.session and later.began > stay.began

    def expected(self, room: str, moment: float) -> dict[str, set[str]]:
        """Return what may be told of each user that is in a room at a quiet moment."""
        found = {}
        for user in self.users.get(room, ()):
            stays = self.stays[room, user]
            there = [stay for stay in stays if stay.entered <= moment < stay.ended]
            if there:
                found[user] = self._infos(room, user, there, stays, moment)
        return found

    def _infos(self, room: str, user: str, there: Sequence[Stay], stays: Sequence[Stay], moment: float) -> set[str]:
        """The newest information counts; if its client has left, that of any other; and any, behind a loss."""
        current = {id(stay): [said for said in stay.said if said.begin < moment][-1] for stay in there}
        every = {said.info for said in current.values()}
        newest = max((said for stay in stays for said in stay.said if said.begin < moment), key=lambda said: said.begin)
        if any(one.affects(room) and (one.wipes or one.loses) and one.end > newest.begin for one in self.disturbances):
            return every
        if all(said is not newest for said in current.values()):
            return every
        return {said.info for said in current.values() if said.end + UNSURE > newest.begin}

    def excuse(self, room: str, user: str, moment: float) -> str | None:
        """Return what explains that a user is missing somewhere, that must be there."""
        for one in self.disturbances:
            if one.affects(room) and one.begin <= moment <= one.end + self.timing.restored:
                if one.wipes:
                    return one.kind
                if one.loses and self._changed(room, user, one):
                    return one.kind
        return None

    def _changed(self, room: str, user: str, one: Disturbance) -> bool:
        begin, end = one.begin - CHANGES, one.end + CHANGES
        moments = [
            moment
            for stay in self.stays.get((room, user), ())
            for moment in (stay.began, stay.entered, stay.ended, stay.gone, stay.ended + self.timing.grace)
        ]
        return any(begin <= moment <= end for moment in moments)

    def disturbed(self, begin: float, end: float) -> bool:
        """Whether there was any fault between two moments."""
        return any(one.begin <= end and one.end >= begin for one in self.disturbances)

    def late(self, moment: float) -> float:
        """Return for how long what is told may be of something that is over."""
        timing = self.timing
        return timing.late_after_fault if self.disturbed(moment - AFTER_FAULT, moment) else timing.late

    def around(self, room: str, user: str, moment: float) -> str:
        """Return what the user's clients did around a moment, for those who look for a cause."""
        parts = [
            f"{stay.tab} {stay.began - moment:+.2f}/{stay.opened - moment:+.2f}/{stay.entered - moment:+.2f} to "
            f"{stay.ended - moment:+.2f}/{stay.gone - moment:+.2f} {stay.how} ({stay.why})"
            for stay in self.stays.get((room, user), ())
            if stay.began - 5 < moment < stay.gone + 60
        ]
        faults = [
            f"{one.kind} {one.begin - moment:+.1f} to {one.end - moment:+.1f}"
            for one in self.disturbances
            if one.begin - 5 < moment < one.end + 60 and one.affects(room)
        ]
        return f"clients (seconds from then): {'; '.join(parts) or 'none'}; faults: {', '.join(faults) or 'none'}"


# --- the verdict -----------------------------------------------------------------------------------------------------


def check(
    stays: Iterable[Stay],
    seen: Iterable[Seen | Gap],
    looks: Iterable[Look],
    disturbances: Sequence[Disturbance] = (),
    calm: Sequence[Span] = (),
    timing: Timing = TIMING,
) -> Verdict:
    """Return what is wrong; `calm` is when there was no fault, and none had an effect any more."""
    truth = Truth(stays, disturbances, timing)
    verdict = Verdict()
    judges: dict[tuple[str, str], Judge] = {}
    last = 0.0
    for one in sorted(seen, key=lambda one: one.time):
        last = one.time
        if isinstance(one, Gap):
            for (observer, _), judge in judges.items():
                if observer == one.observer:
                    judge.forget(one.time)
        elif one.begin is not None:
            _judge_answer(truth, verdict, one, calm)
        else:
            key = one.observer, one.room
            if key not in judges:
                judges[key] = Judge(truth, verdict, calm, *key)
            judges[key].take(one)
    for judge in judges.values():
        judge.forget(last)
    for look in looks:
        _judge_look(truth, verdict, look)
    verdict.wrong.sort(key=lambda one: one.time)
    return verdict


class Judge:
    """Follows what one observer knows of one room."""

    def __init__(self, truth: Truth, verdict: Verdict, calm: Sequence[Span], observer: str, room: str) -> None:
        self.truth = truth
        self.verdict = verdict
        self.calm = calm
        self.observer = observer
        self.room = room
        self.known: dict[str, str] | None = None
        self._since: dict[str, float] = {}  # when each user was seen
        self._missing: dict[str, float] = {}  # since when each user is not, that was once there
        self._began = 0.0

    def wrong(self, kind: str, time: float, user: str, text: str, about: float | None = None) -> None:
        """Note something wrong."""
        text = f"{text}; {self.truth.around(self.room, user, time if about is None else about)}"
        self.verdict.wrong.append(Wrong(kind, time, self.room, user, self.observer, text))

    def take(self, seen: Seen) -> None:
        """Take what the observer was told."""
        self.verdict.checks["told"] += 1
        now = seen.time
        if seen.everybody is not None:
            self._take_list(seen)
        elif self.known is None:
            self.wrong("malformed", now, "-", "there was no list before this change")
            return
        else:
            for member in seen.left:
                self._leave(id_of(member), now)
            for member in seen.joined:
                self._join(member, now)
        assert self.known is not None
        if seen.count is None or seen.count != len(self.known):
            self.wrong("count", now, "-", f"the count is {seen.count}, the list has {len(self.known)}")

    def _take_list(self, seen: Seen) -> None:
        now, before = seen.time, self.known
        assert seen.everybody is not None
        users = {id_of(member): text_of(member) for member in seen.everybody}
        if len(users) != len(seen.everybody):
            self.wrong("twice", now, "-", f"a list has {len(seen.everybody)} members, but {len(users)} users")
        for member in seen.everybody:
            self._look_at(member, now)
        self.known = users
        if before is None:
            self._began = now
            self._since = dict.fromkeys(users, now)
            self._missing = {}
        else:
            for user in before.keys() - users.keys():
                self._vanish(user, now)
            for user in users.keys() - before.keys():
                self._appear(user, now)
        for user in self.truth.users.get(self.room, ()):
            if user not in users and (before is None or user in before):
                self._judge_missing(user, now, "a list lacks it")
            if user not in users and before is None:
                self._missing[user] = now

    def _leave(self, user: str, now: float) -> None:
        assert self.known is not None
        if user not in self.known:
            self.wrong("contradiction", now, user, "has left, but was not there")
            return
        del self.known[user]
        self._vanish(user, now)
        self._judge_missing(user, now, "was told as left")

    def _join(self, member: Any, now: float) -> None:
        assert self.known is not None
        user, text = id_of(member), text_of(member)
        self._look_at(member, now)
        if self.known.get(user) == text:
            self.wrong("contradiction", now, user, f"joins, but was there with {text}")
        if user not in self.known:
            self._appear(user, now)
        self.known[user] = text

    def _look_at(self, member: Any, now: float) -> None:
        _judge_member(self.truth, self.verdict, self.observer, self.room, member, now)

    def _judge_missing(self, user: str, now: float, what: str) -> None:
        self.verdict.checks["missing"] += 1
        truth = self.truth
        if covers(truth.must.get((self.room, user), ()), now - truth.late(now), now):
            _blame(truth, self.verdict, Wrong("flapped", now, self.room, user, self.observer, what))

    def _appear(self, user: str, now: float) -> None:
        self._since[user] = now
        begin = self._missing.pop(user, None)
        if begin is not None:
            self._judge_absence(user, begin, now)

    def _vanish(self, user: str, now: float) -> None:
        self._missing[user] = now
        self._judge_presence(user, self._since.pop(user, self._began), now)

    def forget(self, now: float) -> None:
        """Judge what there was until now; then the observer knows nothing."""
        if self.known is None:
            return
        for user in self.truth.users.get(self.room, ()):
            if user in self.known:
                self._judge_presence(user, self._since.get(user, self._began), now)
            else:
                self._judge_absence(user, self._missing.get(user, self._began), now)
        self.known = None

    def _judge_absence(self, user: str, begin: float, end: float) -> None:
        """In calm times, whoever is there is soon seen; and at all times, after a while."""
        timing, truth = self.truth.timing, self.truth
        for must in sharing(truth.must.get((self.room, user), ()), begin, end):
            there = overlap((begin, end), must)
            for calm in sharing(self.calm, *there):
                first, last = overlap(there, calm)
                if first < last:
                    self.verdict.checks["join in time"] += 1
                if last - first > timing.news:
                    self.wrong("join late", first, user, f"was not seen from then for {last - first:.2f} s")
            first, last = there
            if last - first > timing.restored + timing.late_after_fault:
                self.wrong("not seen", first, user, f"was not seen from then for {last - first:.2f} s")

    def _judge_presence(self, user: str, begin: float, end: float) -> None:
        """In calm times, whoever has left is soon seen no more; and at all times, after a while."""
        timing, truth = self.truth.timing, self.truth
        for absent in sharing(truth.away.get((self.room, user), ()), begin, end):
            gone = overlap((begin, end), absent)
            for calm in sharing(self.calm, *gone):
                first, last = overlap(gone, calm)
                if first < last:
                    self.verdict.checks["leave in time"] += 1
                if last - first > timing.news:
                    self.wrong("leave late", first, user, f"was seen from then for {last - first:.2f} s")
        for absent in sharing(truth.gone.get((self.room, user), ()), begin, end):
            first, last = overlap((begin, end), absent)
            if last - first > timing.late and truth.excuse(self.room, user, first) is None:
                self.wrong("ghost", first, user, f"was seen from then for {last - first:.2f} s")


def absences(spans: Sequence[Span]) -> list[Span]:
    """Return the times between spans, behind the first."""
    ends = [end for _, end in spans]
    begins = [*(begin for begin, _ in spans[1:]), math.inf]
    return list(zip(ends, begins, strict=True))


def _blame(truth: Truth, verdict: Verdict, wrong: Wrong) -> None:
    """Note something wrong with a user that is missing, unless there is an excuse."""
    excuse = truth.excuse(wrong.room, wrong.user, wrong.time)
    if excuse is not None:
        verdict.excused[f"{wrong.kind}: {excuse}"] += 1
    else:
        around = truth.around(wrong.room, wrong.user, wrong.time)
        verdict.wrong.append(wrong._replace(text=f"{wrong.text}; {around}"))


def _judge_member(truth: Truth, verdict: Verdict, observer: str, room: str, member: Any, now: float) -> None:
    """Only what was said of users that were there can be told."""
    user = id_of(member)
    text = text_of(member)
    stays = [stay for stay in truth.stays.get((room, user), ()) if stay.began <= now]
    if not stays:
        verdict.wrong.append(Wrong("never there", now, room, user, observer, text))
    elif all(said.info != text for stay in reversed(stays) for said in stay.said if said.begin <= now):
        verdict.wrong.append(Wrong("never said", now, room, user, observer, text))


def _judge_answer(truth: Truth, verdict: Verdict, seen: Seen, calm: Sequence[Span]) -> None:
    """Judge what somebody got that has asked who, or how many, are in a room."""
    assert seen.begin is not None
    timing, room = truth.timing, seen.room
    verdict.checks["answers"] += 1
    is_calm = covers(calm, seen.begin - timing.poll, seen.time)
    must, may = [], []
    for user in truth.users.get(room, ()):
        if covers(truth.must[room, user], seen.begin, seen.time):
            must.append(user)
        spans = truth.may[room, user] if is_calm else truth.at_most[room, user]
        if any(first <= seen.time and seen.begin - timing.poll <= last for first, last in spans):
            may.append(user)
    if seen.everybody is None:
        if seen.count is None or seen.count < 0:
            verdict.wrong.append(Wrong("count", seen.time, room, "-", seen.observer, f"it is {seen.count}"))
            return
        for bad, user in ((seen.count < len(must), next(iter(must), "-")), (seen.count > len(may), "-")):
            if bad:
                text = f"the count is {seen.count}, but {len(must)} to {len(may)} users are there"
                _blame_all(truth, verdict, Wrong("count", seen.time, room, user, seen.observer, text))
        return
    users = {id_of(member) for member in seen.everybody}
    if len(users) != len(seen.everybody):
        text = f"a list has {len(seen.everybody)} members, but {len(users)} users"
        verdict.wrong.append(Wrong("twice", seen.time, room, "-", seen.observer, text))
    for member in seen.everybody:
        _judge_member(truth, verdict, seen.observer, room, member, seen.time)
    for user in must:
        if user not in users:
            text = "was not in an answer" + (", in calm" if is_calm else "")
            _blame(truth, verdict, Wrong("not in answer", seen.time, room, user, seen.observer, text))
    for user in users.intersection(truth.users.get(room, ())).difference(may):
        text = "was in an answer" + (", in calm" if is_calm else "")
        _blame(truth, verdict, Wrong("left in answer", seen.time, room, user, seen.observer, text))


def _blame_all(truth: Truth, verdict: Verdict, wrong: Wrong) -> None:
    """Note something wrong with a whole room, unless there is an excuse."""
    found = [one for one in truth.disturbances if one.affects(wrong.room) and (one.wipes or one.loses)]
    for one in found:
        if one.begin <= wrong.time <= one.end + truth.timing.restored:
            verdict.excused[f"{wrong.kind}: {one.kind}"] += 1
            return
    verdict.wrong.append(wrong)


def _judge_look(truth: Truth, verdict: Verdict, look: Look) -> None:
    """Everybody sees exactly who is there."""
    for observer, rooms in look.seen.items():
        for room, users in rooms.items():
            verdict.checks["quiet lists"] += 1
            expected = truth.expected(room, look.time)
            for user in sorted(expected.keys() | users.keys()):
                text = difference(expected.get(user), users.get(user))
                if text:
                    around = truth.around(room, user, look.time)
                    kind = "information" if user in expected and user in users else "not converged"
                    text = f"after {look.lasted:.1f} s of quiet, {text}; {around}"
                    verdict.wrong.append(Wrong(kind, look.time, room, user, observer, text))
    for room in sorted(look.keys):
        verdict.checks["keys"] += 1
        if not truth.expected(room, look.time):
            verdict.wrong.append(
                Wrong("key", look.time, room, "-", "-", f"is empty, but Redis has a key, after {look.lasted:.1f} s")
            )


def difference(expected: set[str] | None, told: str | None) -> str:
    """Return in what an observer differs, of a user; nothing if it does not."""
    if expected is None:
        return f"seen with {told}, but not there"
    if told is None:
        return "there, but not seen"
    return "" if told in expected else f"seen with {told}, but it is {' or '.join(sorted(expected))}"


def converged(truth: Truth, look: Look) -> bool:
    """Whether everybody sees exactly who is there."""
    verdict = Verdict()
    _judge_look(truth, verdict, look)
    return not verdict.wrong
