"""The checker of the history's torture: it finds each fault that is planted in an account without any."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from .history.checker import (
    At,
    Behind,
    Event,
    Fault,
    Got,
    Key,
    Last,
    Life,
    Live,
    Opened,
    Quiet,
    Rule,
    Sent,
    Told,
    check,
)

CHANNEL = "long:1"
RULES = {CHANNEL: Rule(1000, 3600.0), "short:1": Rule(5, 3.0)}
END = 1000.0  # seconds; the publishers end far earlier


class World:
    """A channel with three publishers, as a broker without faults would have it."""

    def __init__(self, seed: int, count: int = 200) -> None:
        self.random = random.Random(seed)
        self.sent: list[Sent] = []  # in the order of the broker
        numbers = dict.fromkeys("abc", 0)
        free = dict.fromkeys("abc", 0.0)
        for number in range(count):
            publisher = self.random.choice("abc")
            done = number / 10 + 1  # when the broker has it
            begin = max(free[publisher], done - self.random.random())
            free[publisher] = end = done + self.random.random() / 10
            key = Key(publisher, numbers[publisher])
            numbers[publisher] += 1
            self.sent.append(Sent(CHANNEL, key, begin, end, "certain", 100))

    def position(self, count: int) -> str:
        return f"{count}.tag{count}"

    def got(self, index: int, positions: bool = True, late: float = 0.0) -> Got:
        time = index / 10 + 1.05 + late
        return Got(time, CHANNEL, self.sent[index].key, self.position(index + 1) if positions else None)

    def life(self, first: int = 0, positions: bool = True) -> Life:
        """A subscriber that comes and goes, and gets all messages from the one with index `first` on."""
        begin = first / 10 + 0.99
        asked = Behind(self.position(first), (begin - 0.001, begin))
        events: list[Event] = [Opened(begin + 0.001, begin + 0.002, {CHANNEL: asked})]
        while first < len(self.sent):
            until = min(first + self.random.randint(1, 30), len(self.sent))
            events += [self.got(index, positions) for index in range(first, until)]
            behind = Behind(self.position(until if positions else 0))
            if not positions:  # such a subscriber begins again where it knew its position
                break
            first = until
            time = until / 10 + 0.99
            events.append(Opened(time, time + 0.01, {CHANNEL: behind}))
        if not positions:
            events += [self.got(index, positions) for index in range(until, len(self.sent))]
        return Life(f"from {first}", [*events, Quiet(END)])

    def lives(self) -> list[Life]:
        return [self.life(self.random.randint(0, 100), positions) for positions in (True, False, True)]


Plant = Callable[[World, list[Event], int], None]


def leave_out(world: World, events: list[Event], at: int) -> None:
    del events[at]


def leave_out_the_rest(world: World, events: list[Event], at: int) -> None:
    del events[at:-1]


def send_twice(world: World, events: list[Event], at: int) -> None:
    events.insert(at + 1, events[at])


def send_again_much_later(world: World, events: list[Event], at: int) -> None:
    events.insert(-1, events[at])


def exchange_with_a_later_one(world: World, events: list[Event], at: int) -> None:
    there = [index for index in range(at + 1, len(events)) if isinstance(events[index], Got)][20]
    events[at], events[there] = events[there], events[at]


def send_what_nobody_published(world: World, events: list[Event], at: int) -> None:
    events.insert(at, Got(0.0, CHANNEL, Key("nobody", 1)))


def send_what_was_published_elsewhere(world: World, events: list[Event], at: int) -> None:
    world.sent.append(Sent("short:1", Key("d", 0), 0.5, 0.6, "certain"))
    events.insert(at, Got(1.0, CHANNEL, Key("d", 0)))


def send_what_was_refused(world: World, events: list[Event], at: int) -> None:
    got = events[at]
    assert isinstance(got, Got)
    index = [message.key for message in world.sent].index(got.key)
    world.sent[index] = replace(world.sent[index], outcome="refused")


def tell_without_a_cause(world: World, events: list[Event], at: int) -> None:
    got = events[at]
    assert isinstance(got, Got)
    events.insert(at, Told(got.time, [CHANNEL]))


PLANTS: Mapping[Plant, set[str]] = {
    leave_out: {"missing", "positions left out"},
    leave_out_the_rest: {"missing"},
    send_twice: {"twice"},
    send_again_much_later: {"twice"},
    exchange_with_a_later_one: {"out of order", "positions left out"},
    send_what_nobody_published: {"never published"},
    send_what_was_published_elsewhere: {"never published"},
    send_what_was_refused: {"refused and delivered"},
    tell_without_a_cause: {"unexplained reset"},
}


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_found_where_nothing_is_wrong(seed: int) -> None:
    world = World(seed)
    lives = world.lives()
    verdict = check(world.sent, lives, [], RULES)
    assert verdict.violations == []
    assert verdict.delivered == sum(isinstance(event, Got) for life in lives for event in life.events)
    assert verdict.compared > len(world.sent)


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("number", range(3))
def test_each_fault_is_found(plant: Plant, seed: int, number: int) -> None:
    world = World(seed)
    lives = world.lives()
    events = lives[number].events
    found = [index for index, event in enumerate(events) if isinstance(event, Got)]
    plant(world, events, found[len(found) // 3])
    assert PLANTS[plant] <= {*check(world.sent, lives, [], RULES).kinds}


def test_positions_that_contradict_each_other_are_found() -> None:
    world = World(1)
    for change in ("70.tag70", "70.other"):
        lives = [world.life(0), world.life(0)]
        index = next(
            index for index, event in enumerate(lives[1].events) if getattr(event, "key", None) == world.sent[60].key
        )
        got = lives[1].events[index]
        assert isinstance(got, Got)
        lives[1].events[index] = replace(got, position=change)
        assert "contradiction" in check(world.sent, lives, [], RULES).kinds


@pytest.mark.parametrize("number", range(2))
def test_a_message_is_missed_although_no_position_is_known(number: int) -> None:
    """Only the times of publishing tell that it must have come."""
    world = World(number)
    life = world.life(10, positions=False)
    del life.events[30]
    assert {*check(world.sent, [life], [], RULES).kinds} == {"missing"}


def test_a_start_with_what_comes_next_owes_what_is_published_once_it_exists() -> None:
    world = World(1)
    opened = Opened(5.0, 5.5, {CHANNEL: Live()})
    owed = next(index for index, message in enumerate(world.sent) if message.begin > 5.5)
    everything = [world.got(index) for index in range(owed, len(world.sent))]
    assert check(world.sent, [Life("x", [opened, *everything, Quiet(END)])], [], RULES).violations == []
    less = Life("x", [opened, *everything[1:], Quiet(END)])
    assert {*check(world.sent, [less], [], RULES).kinds} == {"missing"}
    placed = At(5.5, CHANNEL, world.position(owed - 1))
    assert {*check(world.sent, [Life("x", [opened, placed, *everything])], [], RULES).kinds} == {"positions left out"}


def test_a_start_with_the_last_ones_has_at_most_that_many() -> None:
    world = World(1)
    opened = Opened(5.0, 5.001, {CHANNEL: Last(10)})
    first = next(index for index, message in enumerate(world.sent) if message.end > 5.0)
    for more, kinds in ((0, set()), (3, {"more than the last ones"})):
        got = [world.got(index) for index in range(first - 10 - more, len(world.sent))]
        life = Life("x", [opened, *got, Quiet(END)])
        assert {*check(world.sent, [life], [], RULES).kinds} == kinds
        assert check(world.sent, [life], [Fault("pause", 3.0, 4.0, cuts=True)], RULES).violations == []
    gap = [world.got(index) for index in range(first - 10, len(world.sent)) if index != first + 2]
    assert "missing" in check(world.sent, [Life("x", [opened, *gap])], [], RULES).kinds


def test_a_subscriber_may_be_told_again_that_too_much_has_come_since_the_place_that_it_was_told_of() -> None:
    world = World(1)
    asked = Behind(world.position(0), (0.0, 0.1))
    witness = Life("w", [Opened(0.1, 0.2, {CHANNEL: asked}), *(world.got(index) for index in range(len(world.sent)))])
    events: list[Event] = [
        Opened(0.1, 0.2, {CHANNEL: asked}),
        Told(8.0, [CHANNEL]),
        At(8.0, CHANNEL, world.position(20)),
        Opened(9.0, 9.1, {CHANNEL: Behind(world.position(20))}),
        Told(9.1, [CHANNEL]),
    ]
    for outbox_size, kinds in ((9_000, set()), (14_000, {"told twice", "unexplained reset"})):
        found = check(world.sent, [witness, Life("x", events)], [], RULES, outbox_size).kinds
        assert {*found} <= kinds
        assert bool(found) == bool(kinds)


def test_a_place_before_all_places_is_no_position() -> None:
    world = World(1)
    life = Life("x", [Opened(0.1, 0.2, {CHANNEL: Live()}), At(0.2, CHANNEL, "-1.")])
    assert {*check(world.sent, [life], [], RULES).kinds} == {"no position"}


def test_a_start_behind_a_position_has_nothing_older() -> None:
    world = World(1)
    opened = Opened(6.0, 6.1, {CHANNEL: Behind(world.position(50), (5.999, 6.0))})
    got = [world.got(index, positions=False) for index in range(len(world.sent))]
    assert check(world.sent, [Life("x", [opened, *got[50:]])], [], RULES).violations == []
    assert {*check(world.sent, [Life("x", [opened, *got[40:]])], [], RULES).kinds} == {"older than its start"}


def test_a_subscriber_that_resumes_further_back_gets_the_same_again() -> None:
    world = World(1)
    got = [world.got(index) for index in range(60)]
    opened = Opened(0.1, 0.2, {CHANNEL: Behind(world.position(0), (0.0, 0.1))})
    again = Opened(7.0, 7.1, {CHANNEL: Behind(world.position(30))})
    rest = [world.got(index, late=10) for index in range(30, len(world.sent))]
    assert check(world.sent, [Life("x", [opened, *got, again, *rest, Quiet(END)])], [], RULES).violations == []
    verdict = check(world.sent, [Life("x", [opened, *got, again, *rest[1:], Quiet(END)])], [], RULES)
    assert "missing" in verdict.kinds
    verdict = check(world.sent, [Life("x", [opened, *got[:40], *got[45:], again, *rest, Quiet(END)])], [], RULES)
    assert "missing" in verdict.kinds


def told(world: World, count: int = 50, until: int = 80, pause: float = 0.0) -> list[Event]:
    """A subscriber that has got `count` messages, is away until another was published, and is told of a gap then."""
    begin = world.got(until).time + pause
    return [
        Opened(0.1, 0.2, {CHANNEL: Behind(world.position(0), (0.0, 0.1))}),
        *(world.got(index) for index in range(count)),
        Opened(begin, begin + 0.01, {CHANNEL: Behind(world.position(count))}),
        Told(begin + 0.02, [CHANNEL]),
        *(world.got(index) for index in range(until + 1, len(world.sent))),
        Quiet(END),
    ]


def test_resets_are_explained_by_what_was_done_since_the_last_message() -> None:
    world = World(1)
    last, until = world.sent[49], world.got(80).time
    life = Life("x", told(world))
    for fault, kinds in (
        (Fault("flush", 7.0, 7.1, resets=True), set()),
        (Fault("flush", last.begin, last.begin + 0.1, resets=True), set()),
        (Fault("trim", 7.0, 7.1, resets=True, channels=frozenset({CHANNEL})), set()),
        (Fault("trim", 7.0, 7.1, resets=True, channels=frozenset({"short:1"})), {"unexplained reset"}),
        (Fault("flush", 2.0, 2.1, resets=True), {"unexplained reset"}),
        (Fault("flush", until + 3, until + 3.1, resets=True), {"unexplained reset"}),
        (Fault("pause", 7.0, 7.1), {"unexplained reset"}),
    ):
        verdict = check(world.sent, [life], [fault], RULES)
        assert {*verdict.kinds} == kinds, fault
        assert dict(verdict.resets) == ({} if kinds else {fault.kind: 1})


def test_resets_are_explained_by_the_limits_of_the_history() -> None:
    world = World(1)
    life = Life("x", told(world))
    for rule, outbox_size, reasons in (
        (Rule(20, 3600.0), math.inf, ["more messages than the history keeps"]),
        (Rule(1000, 3.0), math.inf, ["history older than it is kept"]),
        (Rule(1000, 3600.0), 4000, ["replay larger than the outbox"]),
        (Rule(60, 30.0), 20_000, []),
    ):
        verdict = check(world.sent, [life], [], {CHANNEL: rule}, outbox_size)
        assert [*verdict.resets] == reasons
        assert {*verdict.kinds} == (set() if reasons else {"unexplained reset"})


def test_the_limits_of_the_history_do_not_explain_that_a_connected_subscriber_is_told() -> None:
    world = World(1)
    idle: list[Event] = [Opened(0.1, 0.2, {CHANNEL: Behind(world.position(0), (0.0, 0.1))}), world.got(0)]
    life = Life("x", [*idle, Told(40.0, [CHANNEL])])
    rules = {CHANNEL: Rule(20, 3.0)}
    assert {*check(world.sent, [life], [], rules).kinds} == {"unexplained reset"}
    assert (
        check(world.sent, [life], [Fault("pause", 5.0, 6.0, cuts=True)], rules).violations == []
    )  # the process was interrupted


def test_a_reset_does_not_hide_what_was_missing_before_it_or_after_it() -> None:
    world = World(1)
    flush = Fault("flush", 7.0, 7.1, resets=True)
    for left_out in (20, 80):
        events = told(world)
        del events[left_out]
        assert "missing" in check(world.sent, [Life("x", events)], [flush], RULES).kinds


def test_messages_come_neither_again_nor_late_after_a_reset() -> None:
    world = World(1)
    flush = Fault("flush", 7.0, 7.1, resets=True)
    for index, kind in ((30, "twice"), (None, "older than what came before a gap")):
        events = told(world)
        after = [isinstance(event, Told) for event in events].index(True) + 1
        if index is None:
            world.sent.append(Sent(CHANNEL, Key("d", 0), 1.0, 1.1, "certain"))
            events.insert(after, Got(20.0, CHANNEL, Key("d", 0)))
        else:
            events.insert(after, events[index])
        assert kind in check(world.sent, [Life("x", events)], [flush], RULES).kinds


def test_what_may_be_lost_with_a_server_need_not_arrive() -> None:
    world = World(1)
    life = world.life(0)
    index = [isinstance(event, Got) for event in life.events].index(True) + 30
    while not isinstance(life.events[index], Got):
        index += 1
    got = life.events[index]
    assert isinstance(got, Got)
    del life.events[index]
    for offset in (0.0, 20.0):
        window = Fault("failover", got.time - 1 + offset, got.time + 1 + offset, resets=True, loses=True)
        verdict = check(world.sent, [life], [window], RULES)
        assert ("missing" in verdict.kinds) == bool(offset)


def test_a_message_that_was_perhaps_published_is_owed_once_somebody_saw_it() -> None:
    world = World(1)
    world.sent[60] = replace(world.sent[60], outcome="perhaps")
    unseen, seeing = world.life(0, positions=False), world.life(0, positions=False)
    unseen.events = [event for event in unseen.events if getattr(event, "key", None) != world.sent[60].key]
    assert check(world.sent, [unseen], [], RULES).violations == []
    assert {*check(world.sent, [unseen, seeing], [], RULES).kinds} == {"missing"}


def test_a_cause_that_a_process_notices_with_the_next_message_explains_a_reset_of_those_who_came_meanwhile() -> None:
    world = World(1)
    flush = Fault("flush", 9.0, 9.01, resets=True)
    sent = [message for message in world.sent if message.end < 9.0 or message.begin > 30.0]
    late = [Sent(CHANNEL, Key("d", number), 40.0 + number, 40.1 + number, "certain") for number in range(5)]
    pause = Fault("pause", 38.0, 43.0, cuts=True)
    for number, faults, kinds in ((0, [], set()), (4, [], {"unexplained reset"}), (4, [pause], set())):
        events: list[Event] = [Opened(39.0, 39.1, {CHANNEL: Live()}), Told(late[number].end, [CHANNEL])]
        verdict = check([*sent, *late], [Life("x", events)], [flush, *faults], RULES)
        assert {*verdict.kinds} == kinds
        assert [*verdict.resets] == ([] if kinds else ["flush, noticed later"])


def test_a_subscriber_that_is_told_twice_of_the_same_is_found() -> None:
    world = World(1)
    flush = Fault("flush", 7.0, 7.1, resets=True)
    events = told(world)
    at = [isinstance(event, Told) for event in events].index(True) + 1
    events.insert(at, Told(20.0, [CHANNEL]))
    kinds = check(world.sent, [Life("x", events)], [flush], RULES).kinds
    assert "told twice" in kinds
    del events[at + 1 :]
    events += [world.got(100), Told(20.5, [CHANNEL])]
    assert "unexplained reset" in check(world.sent, [Life("x", events)], [flush], RULES).kinds


def test_a_start_with_the_last_ones_may_be_too_large() -> None:
    world = World(1)
    life = Life("x", [Opened(15.0, 15.1, {CHANNEL: Last(10)}), Told(15.1, [CHANNEL])])
    for outbox_size, kinds in ((1000, set()), (3000, {"unexplained reset"})):
        assert {*check(world.sent, [life], [], RULES, outbox_size).kinds} == kinds


def test_a_gap_in_one_of_several_channels_says_nothing_of_the_others() -> None:
    world = World(1)
    other = "long:2"
    rules = {**RULES, other: Rule(1000, 3600.0)}
    sent = [*world.sent, Sent(other, Key("d", 0), 1.0, 1.1, "certain"), Sent(other, Key("d", 1), 15.5, 15.6, "certain")]
    flush = Fault("flush", 7.0, 7.1, resets=True)
    starts = {CHANNEL: Behind("0.tag0", (0.0, 0.1)), other: Behind("0.other", (0.0, 0.1))}
    events: list[Event] = [Opened(0.1, 0.2, starts), Got(1.2, other, Key("d", 0), "1.other")]
    events += [world.got(index) for index in range(50)]
    events += [Told(8.0, [CHANNEL, other]), Told(16.0, [CHANNEL, other])]
    assert check(sent, [Life("x", events)], [flush], rules).violations == []
    for channels, kinds in (([CHANNEL], set()), ([CHANNEL], {"told twice"})):  # both are told for sure now
        events.append(Told(40.0, channels))
        assert {*check(sent, [Life("x", events)], [flush], rules).kinds} == kinds
