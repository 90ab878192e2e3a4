"""The checker of the torture of presence: it finds each fault that is planted in an account without any."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from .presence.checker import (
    Disturbance,
    Gap,
    Look,
    Said,
    Seen,
    Span,
    Stay,
    Timing,
    Truth,
    Verdict,
    check,
    converged,
    text_of,
)

ROOM, EMPTY = "room:1", "room:2"
ANN, BOB, EVE = {"id": 1, "name": "ann"}, {"id": 2, "name": "bob"}, {"id": "2", "name": "eve"}
NEW_BOB = {**BOB, "n": 1}
CALM = (80.0, 200.0)
TIMING = Timing()


def stay(member: dict[str, Any], entered: float, ended: float, how: Any = "clean", **more: Any) -> Stay:
    """A connection whose client needs a tenth of a second for everything."""
    user = json.dumps(member["id"])
    said = [Said(entered - 0.1, entered, text_of(member))]
    fields = {"tab": f"tab of {user}", "gone": ended + 0.1, **more}
    return Stay(
        user=user, rooms=(ROOM,), began=entered - 0.1, said=said, entered=entered, ended=ended, how=how, **fields
    )


class Account:
    """Ann is there all the time, although she reloads twice; Bob comes, says something else and leaves; Eve vanishes.

    A client, a view and somebody who asks see it all; at the end Ann is alone.
    """

    def __init__(self) -> None:
        self.stays = [
            stay(ANN, 10.0, 40.0, "held"),
            stay(ANN, 42.0, 90.0, "held"),
            stay(ANN, 93.0, 300.0),
            stay(BOB, 100.0, 120.0),
            stay(EVE, 130.0, 140.0, "held"),
        ]
        self.stays[3].said.append(Said(110.0, 110.1, text_of(NEW_BOB)))
        self.seen: list[Seen | Gap] = []
        for observer in ("client", "view"):
            self.seen += [
                Seen(50.0, observer, ROOM, [ANN], count=1),
                Seen(100.5, observer, ROOM, joined=[BOB], count=2),
                Seen(110.5, observer, ROOM, joined=[NEW_BOB], count=2),
                Seen(120.5, observer, ROOM, left=[2], count=1),
                Seen(130.5, observer, ROOM, joined=[EVE], count=2),
                Seen(155.5, observer, ROOM, left=["2"], count=1),
                Gap(290.0, observer),
            ]
        for begin, members in ((50.0, [ANN]), (101.0, [ANN, BOB]), (111.0, [NEW_BOB, ANN]), (122.0, [ANN])):
            self.seen.append(Seen(begin + 0.1, "asker", ROOM, members, begin=begin))
            self.seen.append(Seen(begin + 0.2, "asker", ROOM, count=len(members), begin=begin + 0.1))
        self.seen.append(Seen(290.0, "asker", ROOM, [ANN], begin=289.0))
        everybody = {ROOM: {"1": text_of(ANN)}}
        self.looks = [Look(250.0, {"client": everybody, "asker": {**everybody, EMPTY: {}}}, frozenset({ROOM}))]
        self.disturbances: list[Disturbance] = []
        self.calm: Sequence[Span] = [CALM]

    def verdict(self) -> Verdict:
        return check(self.stays, self.seen, self.looks, self.disturbances, self.calm, TIMING)

    def of(self, observer: str) -> list[int]:
        """Return the indexes of what an observer saw."""
        return [index for index, one in enumerate(self.seen) if one.observer == observer]

    def change(self, observer: str, number: int, **changes: Any) -> None:
        index = self.of(observer)[number]
        self.seen[index] = replace(self.seen[index], **changes)

    def drop(self, observer: str, number: int) -> None:
        del self.seen[self.of(observer)[number]]


def test_nothing_is_wrong_with_what_is_right() -> None:
    verdict = Account().verdict()
    assert verdict.wrong == []
    for name in ("told", "missing", "answers", "quiet lists", "keys", "join in time", "leave in time"):
        assert verdict.checks[name] > 0


def stranger(account: Account) -> None:
    account.change("client", 1, joined=[BOB, {"id": 3}], count=3)


def before_it_came(account: Account) -> None:
    account.change("asker", 0, everybody=[ANN, BOB])


def invented(account: Account) -> None:
    account.change("client", 1, joined=[{**BOB, "name": "rob"}])


def too_early(account: Account) -> None:
    account.change("client", 1, joined=[NEW_BOB])


def wrong_count(account: Account) -> None:
    account.change("view", 2, count=3)


def no_count(account: Account) -> None:
    account.change("view", 2, count=None)


def wrong_count_of_a_list(account: Account) -> None:
    account.change("client", 0, count=0)


def negative(account: Account) -> None:
    account.change("asker", 1, count=-1)


def too_few(account: Account) -> None:
    account.change("asker", 3, count=1)


def too_many(account: Account) -> None:
    account.change("asker", 1, count=2)


def twice(account: Account) -> None:
    account.change("client", 0, everybody=[ANN, ANN], count=1)


def twice_in_an_answer(account: Account) -> None:
    account.change("asker", 0, everybody=[ANN, ANN])


def left_before(account: Account) -> None:
    account.change("client", 5, left=["2", 2])


def joins_again(account: Account) -> None:
    account.change("client", 3, joined=[ANN])


def no_list(account: Account) -> None:
    account.change("client", 0, everybody=None, joined=[ANN])


def flapped(account: Account) -> None:
    account.seen.append(Seen(91.0, "client", ROOM, left=[1], count=0))
    account.seen.append(Seen(91.5, "client", ROOM, joined=[ANN], count=1))


def flapped_without_a_connection(account: Account) -> None:
    flapped(account)
    account.calm = []
    account.stays[2] = stay(ANN, 104.0, 300.0)


def missing_in_a_list(account: Account) -> None:
    account.seen.append(Seen(80.0, "client", ROOM, [], count=0))
    account.seen.append(Seen(80.1, "client", ROOM, [ANN], count=1))


def missing_in_the_first_list(account: Account) -> None:
    account.change("client", 0, everybody=[], count=0)
    account.seen.append(Seen(50.1, "client", ROOM, joined=[ANN], count=1))


def missing_in_an_answer(account: Account) -> None:
    account.change("asker", 2, everybody=[ANN])


def still_in_an_answer(account: Account) -> None:
    account.change("asker", 6, everybody=[ANN, NEW_BOB])


def in_an_answer_for_too_long(account: Account) -> None:
    account.calm = []
    account.change("asker", -1, everybody=[ANN, EVE])


def join_late(account: Account) -> None:
    account.change("client", 1, time=102.5)


def leave_late(account: Account) -> None:
    account.change("client", 3, time=122.5)


def vanished_for_too_long(account: Account) -> None:
    account.change("client", 5, time=158.0)


def ghost(account: Account) -> None:
    account.calm = []
    account.change("client", 5, time=215.0)


def never_seen(account: Account) -> None:
    account.calm = []
    account.stays[3].ended = account.stays[3].gone = 190.0
    account.change("client", 1, joined=[], count=1)
    account.change("client", 2, joined=[], count=1)
    account.change("client", 3, time=189.0, left=[], joined=[NEW_BOB], count=2)
    account.drop("client", 4)
    account.drop("client", 4)


def stays_in_a_list(account: Account) -> None:
    account.looks.append(Look(260.0, {"view": {ROOM: {"1": text_of(ANN), "2": text_of(BOB)}}}, frozenset()))


def lacks_in_a_list(account: Account) -> None:
    account.looks.append(Look(260.0, {"view": {ROOM: {}}}, frozenset()))


def other_information(account: Account) -> None:
    account.looks.append(Look(115.0, {"view": {ROOM: {"1": text_of(ANN), "2": text_of(BOB)}}}, frozenset()))


def key(account: Account) -> None:
    account.looks.append(Look(260.0, {}, frozenset({EMPTY})))


@pytest.mark.parametrize(
    ("plant", "kind"),
    [
        (stranger, "never there"),
        (before_it_came, "never there"),
        (invented, "never said"),
        (too_early, "never said"),
        (wrong_count, "count"),
        (no_count, "count"),
        (wrong_count_of_a_list, "count"),
        (negative, "count"),
        (too_few, "count"),
        (too_many, "count"),
        (twice, "twice"),
        (twice_in_an_answer, "twice"),
        (left_before, "contradiction"),
        (joins_again, "contradiction"),
        (no_list, "malformed"),
        (flapped, "flapped"),
        (flapped_without_a_connection, "flapped"),
        (missing_in_a_list, "flapped"),
        (missing_in_the_first_list, "flapped"),
        (missing_in_an_answer, "not in answer"),
        (still_in_an_answer, "left in answer"),
        (in_an_answer_for_too_long, "left in answer"),
        (join_late, "join late"),
        (leave_late, "leave late"),
        (vanished_for_too_long, "leave late"),
        (ghost, "ghost"),
        (never_seen, "not seen"),
        (stays_in_a_list, "not converged"),
        (lacks_in_a_list, "not converged"),
        (other_information, "information"),
        (key, "key"),
    ],
)
def test_each_fault_is_found(plant: Callable[[Account], None], kind: str) -> None:
    account = Account()
    plant(account)
    verdict = account.verdict()
    assert kind in verdict.kinds, verdict.wrong
    assert all(str(one).startswith(f"{one.kind}: {one.time:.3f} room:") for one in verdict.wrong)


@pytest.mark.parametrize("plant", [flapped, missing_in_a_list, missing_in_an_answer])
@pytest.mark.parametrize("wipes", [True, False])
def test_a_loss_excuses_who_is_missing_for_a_while(plant: Callable[[Account], None], wipes: bool) -> None:
    for begin, room, excused in ((78.0, ROOM, True), (78.0, EMPTY, False), (20.0, ROOM, False)):
        account = Account()
        account.calm = []
        plant(account)
        account.disturbances = [
            Disturbance("lost", begin, begin + 10, wipes=wipes, loses=not wipes, rooms=frozenset({room}))
        ]
        verdict = account.verdict()
        # What only loses changes excuses those of whom something changed meanwhile: Ann's reload, and Bob has not come.
        if excused and (wipes or plant is not missing_in_an_answer):
            assert verdict.wrong == []
            assert sum(verdict.excused.values()) == 1
        else:
            assert len(verdict.wrong) == 1


def test_a_kill_leaves_less_time_to_come_back_and_more_until_all_is_over() -> None:
    for how, returns, left, found in (
        ("held", 52.0, 53.0, {"flapped"}),
        ("killed", 52.0, 51.0, {"flapped"}),
        ("killed", 54.0, 53.5, set()),
        ("gone", 54.0, 42.0, set()),
    ):
        account = Account()
        account.calm = []
        account.stays[0].how = how  # type: ignore[assignment]
        account.stays[1] = stay(ANN, returns, 90.0, "held")
        account.seen[:] = [
            Seen(20.0, "client", ROOM, [ANN], count=1),
            Seen(left, "client", ROOM, left=[1], count=0),
            Seen(left + 2, "client", ROOM, joined=[ANN], count=1),
        ]
        assert {*account.verdict().kinds} == found, (how, returns)


def test_a_clean_leave_counts_for_the_whole_session() -> None:
    account = Account()
    account.stays = [
        stay(ANN, 100.0, 120.0, "held", tab="a"),
        stay(ANN, 122.0, 125.0, "clean", tab="a"),
        stay(BOB, 100.0, 120.0, "held", tab="b"),
        stay(BOB, 122.0, 125.0, "clean", tab="another"),
    ]
    truth = Truth(account.stays)
    assert truth.must[ROOM, "1"] == [(100.0, 125.0)]
    assert truth.may[ROOM, "1"] == [(99.9, 125.1)]
    assert truth.must[ROOM, "2"] == [(100.0, 133.5)]
    assert truth.may[ROOM, "2"] == [(99.9, 135.1)]


def test_the_newest_information_counts_until_its_client_leaves() -> None:
    tabs = [
        stay({**ANN, "tab": name}, entered, ended, tab=name)
        for name, entered, ended in (("a", 10.0, 200.0), ("b", 20.0, 200.0), ("c", 30.0, 100.0))
    ]
    a, b, c = (text_of({**ANN, "tab": name}) for name in "abc")
    assert Truth(tabs).expected(ROOM, 50.0) == {"1": {c}}
    assert Truth(tabs).expected(ROOM, 150.0) == {"1": {a, b}}
    lost = Disturbance("lost", 40.0, 41.0, wipes=True)
    assert Truth(tabs, [lost]).expected(ROOM, 50.0) == {"1": {a, b, c}}
    tabs[0].said.append(Said(60.0, 60.1, text_of({**ANN, "tab": "a", "n": 1})))
    assert Truth(tabs).expected(ROOM, 50.0) == {"1": {c}}
    assert Truth(tabs, [lost]).expected(ROOM, 70.0) == {"1": {text_of({**ANN, "tab": "a", "n": 1})}}
    assert Truth(tabs).expected(EMPTY, 70.0) == {}


def test_a_look_has_converged_when_nothing_is_wrong_with_it() -> None:
    account = Account()
    truth = Truth(account.stays)
    assert converged(truth, account.looks[0])
    assert not converged(truth, replace(account.looks[0], time=115.0))
    assert not converged(truth, replace(account.looks[0], keys=frozenset({EMPTY})))
