"""Who is in a channel when things happen at once, late, twice or wrongly: faults that were found, and stay mended."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count as numbers
from typing import Any

import gevent
import pytest

from django_websocket import pubsub
from django_websocket.exceptions import BrokerError, ConnectionClosed
from django_websocket.pubsub import present, room, watch
from django_websocket.pubsub.enrolment import BATCH
from django_websocket.pubsub.hub import Hub
from django_websocket.pubsub.presence import Presence, presence_of
from django_websocket.pubsub.process import current_broker, current_hub
from django_websocket.pubsub.roster import ANYBODY, Claim, Leases, PresenceBroker, Roster, keeps_rosters

from .support.brokers import delivered, in_use
from .support.presence import (
    ANN,
    BOB,
    EVE,
    NEVER,
    ROOM,
    Client,
    Elsewhere,
    Told,
    all_leave,
    broker_setting,
    by_id,
    crowd,
    each_kind,
    own_process,
    there,
    until_there,
)
from .support.waiting import DEADLINE, until
from .support.wire import Pairs

PRESENCE = "django_websocket.pubsub.presence"
DEAD = b"the-dead-one"  # the name of a process whose part a test plays
KEY = b"k" * 16  # of a user of that process


@pytest.fixture
def setting(request: pytest.FixtureRequest, key: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A `WEBSOCKET_BROKER` of the kind that the parameter names, whose channels no other test uses."""
    return broker_setting(request, key, monkeypatch)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have those who watch told more often than twice a second, for which these tests would wait most of the time."""
    monkeypatch.setattr(room, "INTERVAL", 0.02)


@pytest.fixture(autouse=True)
def broker(setting: Any, pairs: Pairs) -> Iterator[None]:
    with in_use(setting):
        yield
        all_leave(pairs)


@pytest.fixture
def elsewhere(broker: None) -> Iterator[Elsewhere]:
    """What the broker takes for another process."""
    with Elsewhere() as elsewhere:
        yield elsewhere


@pytest.fixture
def told(broker: None, monkeypatch: pytest.MonkeyPatch) -> Told:
    """What the broker is told."""
    return Told(monkeypatch)


@pytest.fixture
def grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the time that clients have to come back."""
    monkeypatch.setattr(f"{PRESENCE}.GRACE", 0.3)


def rosters() -> PresenceBroker:
    """Return the broker."""
    broker = current_broker()
    assert keeps_rosters(broker)
    return broker


def presence() -> Presence:
    """Return the presence of the running loop."""
    return presence_of(current_hub())


def living() -> frozenset[bytes]:
    """Return which processes count as alive."""
    return rosters().renew_lease(b"", 0).living


# --- sessions that have ended before they were told -------------------------------------------------------------------


@pytest.fixture
def comes_to_an_end(pairs: Pairs, elsewhere: Elsewhere) -> Callable[[], None]:
    """Waits until the other process has nothing to tell any more of a client that vanished there before."""

    def wait() -> None:
        bob = elsewhere.guest(BOB, "of Bob")
        elsewhere.call(lambda: bob.close(1006))
        until_there(ANN, within=3)  # he leaves behind her old connection, or together with it
        alone = Client(pairs, plain=True)
        alone.subscribe(ROOM, present=EVE)
        until_there(ANN, EVE, within=3)

    return wait


@each_kind
def test_a_session_whose_announcement_failed_is_not_announced_when_it_has_gone_to_another_process(
    pairs: Pairs, elsewhere: Elsewhere, told: Told, grace: None, comes_to_an_end: Callable[[], None]
) -> None:
    watcher, other = elsewhere.client(), elsewhere.call(own_process)
    elsewhere.call(lambda: watcher.subscribe(ROOM, present="watch"))
    told.failing.add(other)
    old = elsewhere.client("a session")
    with pytest.raises(BrokerError):
        elsewhere.call(lambda: old.subscribe(ROOM, present=ANN))
    new = Client(pairs, "a session")
    new.subscribe(ROOM, present=ANN)
    assert there() == by_id([ANN])
    told.failing.clear()
    comes_to_an_end()
    assert new.connection.connected


@each_kind
def test_a_session_that_goes_to_another_process_while_it_is_announced_is_there(
    pairs: Pairs, elsewhere: Elsewhere, told: Told, grace: None, comes_to_an_end: Callable[[], None]
) -> None:
    watcher, other = elsewhere.client(), elsewhere.call(own_process)
    elsewhere.call(lambda: watcher.subscribe(ROOM, present="watch"))
    told.late_answers[other] = 0.2
    old = elsewhere.client("a session")

    def subscribe() -> None:
        with suppress(ConnectionClosed, BrokerError):
            old.subscribe(ROOM, present=ANN)

    entering = elsewhere.call(lambda: gevent.spawn(subscribe))
    until(lambda: any(process == other for process, _ in told.calls))
    elsewhere.call(lambda: old.close(1001))  # the page is loaded again
    new = Client(pairs, "a session")
    new.subscribe(ROOM, present=ANN)
    told.late_answers.clear()
    until(lambda: entering.dead)
    comes_to_an_end()
    assert new.connection.connected
    new.close()
    until_there(EVE, within=3)


@each_kind
@pytest.mark.parametrize("code", [1000, 1001])
def test_sessions_that_have_ended_before_the_broker_was_back_are_not_announced(
    pairs: Pairs, told: Told, grace: None, code: int
) -> None:
    with Client(pairs, "the first").subscribe(ROOM, present=ANN):
        told.failing.add(own_process())
        for number in range(100):
            client = Client(pairs, f"session {number}")
            with pytest.raises(BrokerError):
                client.subscribe(ROOM, present=ANN)
            client.close(code)
        told.failing.clear()
        told.calls.clear()
        with Client(pairs, "the last").subscribe(ROOM, present=ANN):
            assert there() == by_id([ANN])
        until_there(ANN)
        assert sum(len(claims) for _, claims in told.calls) < 10


# --- processes that are taken for dead --------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("turn", [1, 2, 3, 4])
def test_what_a_process_tells_that_comes_back_is_kept_although_it_was_about_to_be_removed(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch, turn: int
) -> None:
    """`turn` says before which call of the broker it comes back: those that look, and those that remove."""
    broker = rosters()
    kind: Any = type(broker)
    reads, renews, changes = kind.read_roster, kind.renew_lease, kind.change_roster
    calls = numbers(1)

    def come_back() -> None:
        if next(calls) == turn:
            renews(broker, DEAD, 60)
            changes(broker, ROOM, DEAD, [Claim(b"b" * 16, ANYBODY, b'{"id": 2, "name": "bob"}')])

    def read_roster(broker: PresenceBroker, *args: Any, **options: Any) -> Any:
        come_back()
        return reads(broker, *args, **options)

    def renew_lease(broker: PresenceBroker, *args: Any) -> Any:
        come_back()
        return renews(broker, *args)

    def change_roster(broker: PresenceBroker, *args: Any, **options: Any) -> Any:
        come_back()
        return changes(broker, *args, **options)

    with Client(pairs).subscribe(ROOM, present=ANN):
        broker.change_roster(ROOM, DEAD, [Claim(KEY, ANYBODY, b'{"id": 3, "name": "eve"}')])
        with monkeypatch.context() as patched:
            patched.setattr(kind, "read_roster", read_roster)
            patched.setattr(kind, "renew_lease", renew_lease)
            patched.setattr(kind, "change_roster", change_roster)
            presence()._rooms[ROOM].remove_dead()  # as after each renewal of the lease
            for _ in range(turn):  # it has fewer calls, perhaps
                come_back()
        found = by_id(present(ROOM))
        assert [found.get("1"), found.get("2")] == [ANN, BOB]


@each_kind
@pytest.mark.parametrize("session", ["a session", None])
def test_a_user_who_comes_back_when_the_only_process_was_killed_is_seen(
    pairs: Pairs, elsewhere: Elsewhere, session: str | None
) -> None:
    """The broker tells no change then: it knows the user in the dead process, with the same name."""
    with Client(pairs).subscribe(ROOM, present=ANN):
        [(key, lines)] = rosters().read_roster(ROOM).users.items()
    until_there()
    rosters().change_roster(ROOM, DEAD, [Claim(key, ANYBODY, *lines.values())])
    watching = Client(pairs)
    with watching.subscribe(ROOM, present="watch"):
        assert present(ROOM) == []
        client = Client(pairs, session)
        with client.subscribe(ROOM, present=ANN):
            for each in (client, watching):
                each.until_it_knows(ANN)
            other = Client(pairs)
            with other.subscribe(ROOM, present=BOB):
                for each in (client, watching, other):
                    each.until_it_knows(ANN, BOB)
            until(lambda: [*rosters().read_roster(ROOM).processes] == [own_process()])
        watching.until_it_knows()
    until_there()


@each_kind
def test_a_process_whose_users_were_removed_by_another_puts_them_back(pairs: Pairs, elsewhere: Elsewhere) -> None:
    client = Client(pairs)
    with client.subscribe(ROOM, present=ANN):
        client.until_it_knows(ANN)
        [key] = rosters().read_roster(ROOM).users
        mine = own_process()
        elsewhere.call(lambda: rosters().change_roster(ROOM, mine, [Claim(key)]))
        until_there(ANN, within=2)
        with Client(pairs).subscribe(ROOM, present=BOB):
            client.until_it_knows(ANN, BOB)
            until_there(ANN, BOB)
    until_there()


@each_kind
def test_a_user_of_whom_another_removed_one_of_two_tabs_is_there_until_both_have_left(
    pairs: Pairs, elsewhere: Elsewhere
) -> None:
    client, watcher = Client(pairs), Client(pairs)
    with client.subscribe(ROOM, present=ANN), watcher.subscribe(ROOM, present="watch"):
        tab = elsewhere.guest(ANN)
        [key] = rosters().read_roster(ROOM).users
        rosters().change_roster(ROOM, own_process(), [Claim(key)])
        elsewhere.call(tab.close)
        delivered()
        until_there(ANN, within=2)
        watcher.until_it_knows(ANN)
    until_there()


# --- leases -----------------------------------------------------------------------------------------------------------


@each_kind
def test_a_process_whose_lease_has_expired_renews_it_before_its_next_client_is_there(
    pairs: Pairs, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that was paused."""
    monkeypatch.setattr(f"{PRESENCE}.LEASE", 0.5)
    Client(pairs).subscribe(ROOM, present=ANN)
    until(lambda: own_process() not in living())
    monkeypatch.setattr(f"{PRESENCE}.LEASE", 60.0)
    Client(pairs).subscribe(ROOM, present=BOB)
    assert own_process() in living()
    assert elsewhere.call(lambda: by_id(present(ROOM))) == by_id([ANN, BOB])


@each_kind
def test_a_room_that_is_closed_at_once_leaves_no_lease_that_nobody_renews(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "random", lambda: 0.01)  # seconds until the users of dead processes are removed
    rosters().change_roster(ROOM, DEAD, [Claim(KEY, ANYBODY, b'{"id": 3}')])
    watch(ROOM).close()
    until(lambda: own_process() not in living())
    gevent.sleep(0.2)
    assert own_process() not in living()
    monkeypatch.setattr(f"{PRESENCE}.LEASE", 1.0)
    monkeypatch.setattr(f"{PRESENCE}.RENEWAL", 0.1)
    with Client(pairs).subscribe(ROOM, present=ANN):
        assert by_id(present(ROOM)) == by_id([ANN])
        rosters().renew_lease(own_process(), 0.001)
        until(lambda: own_process() in living(), within=2)
    until(lambda: own_process() not in living())


@each_kind
def test_an_error_that_nobody_expects_does_not_end_the_renewals_of_the_lease(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(f"{PRESENCE}.RENEWAL", 0.02)
    monkeypatch.setattr(f"{PRESENCE}.RETRY", 0.02)
    renewals: list[bytes] = []
    kind: Any = type(rosters())
    renew = kind.renew_lease

    def renew_lease(broker: PresenceBroker, process: bytes, seconds: float) -> Leases:
        renewals.append(process)
        if 2 <= len(renewals) < 5:
            raise ValueError("not enough values to unpack")
        leases: Leases = renew(broker, process, seconds)
        return leases

    monkeypatch.setattr(kind, "renew_lease", renew_lease)
    with Client(pairs).subscribe(ROOM, present=ANN):
        until(lambda: len(renewals) > 10, within=2)
    assert until(lambda: "not enough values to unpack" in caplog.text)


def test_an_error_that_nobody_expects_ends_no_other_job_of_a_reader(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(f"{PRESENCE}.READERS", 1)
    done: list[int] = []

    def fail() -> None:
        raise ValueError("a job that fails")

    presence().do(fail)
    presence().do(lambda: done.append(1))
    until(lambda: done == [1], within=2)
    presence().do(lambda: done.append(2))
    until(lambda: done == [1, 2], within=2)
    assert until(lambda: "a job that fails" in caplog.text)


# --- reads ------------------------------------------------------------------------------------------------------------


@each_kind
def test_a_lease_that_is_found_lost_while_a_room_is_opened_does_no_harm(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The room is read for both reasons at once."""
    monkeypatch.setattr(f"{PRESENCE}.RENEWAL", 0.03)
    kind: Any = type(rosters())
    read, join = kind.read_roster, Hub.join
    reading: list[str] = []
    with Client(pairs).subscribe("another", present=ANN):

        def slow_read(broker: PresenceBroker, channel: str, *args: Any, **options: Any) -> Roster:
            reading.append(channel)
            gevent.sleep(0.2)
            roster: Roster = read(broker, channel, *args, **options)
            return roster

        def slow_join(*args: Any) -> Any:
            found = join(*args)
            with suppress(AssertionError):  # not yet, perhaps
                until(lambda: ROOM in reading, within=0.3)
            gevent.sleep(0.05)
            return found

        monkeypatch.setattr(kind, "read_roster", slow_read)
        monkeypatch.setattr(Hub, "join", slow_join)
        opening = gevent.spawn(watch, ROOM)
        gevent.sleep(0.01)
        rosters().renew_lease(own_process(), 0)
        with opening.get(timeout=DEADLINE) as changes:
            assert changes.get(DEADLINE).count == 0
            monkeypatch.setattr(kind, "read_roster", read)
            monkeypatch.setattr(Hub, "join", join)
            with Client(pairs).subscribe(ROOM, present=BOB):
                assert changes.get(DEADLINE).joined == [BOB]


# --- watches ----------------------------------------------------------------------------------------------------------


def test_the_first_get_returns_at_once_although_those_who_were_there_have_left(pairs: Pairs) -> None:
    forwarding = Client(pairs).subscribe(ROOM, present=ANN)
    with watch(ROOM) as changes, watch(ROOM) as other:
        assert other.get(DEADLINE).joined == [ANN]
        forwarding.close()
        assert other.get(DEADLINE).left == [ANN]
        first = changes.get(0)
        assert (first.joined, first.left, first.count) == ([], [], 0)
        with pytest.raises(TimeoutError):
            changes.get(0)


def test_get_returns_none_after_a_close_in_the_middle_of_a_piece_of_news(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    with watch(ROOM) as first, watch(ROOM) as second:
        watches = [first, second]
        for each in watches:
            each.get(DEADLINE)
        monkeypatch.setattr(room, "let_others_run_if_spent", lambda: second.close())
        with Client(pairs).subscribe(ROOM, present=ANN):
            assert first.get(DEADLINE).joined == [ANN]
            assert second.get(0) is None
            assert second.get() is None


# --- channels with many users -----------------------------------------------------------------------------------------


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> int:
    """Have lists end early; return with how many users."""
    for module in ("room", "presence"):
        monkeypatch.setattr(f"django_websocket.pubsub.{module}.LIMIT", 20)
    return 20


def as_a_page_knows(client: Client, limit: int) -> tuple[int, dict[Any, Any]]:
    """Return how many are there, and who, to a page that remembers no more than `limit`."""
    users: dict[Any, Any] = {}
    number = 0
    for control in client.controls():
        if ROOM in control.get("present", {}):
            users = {user["id"]: user for user in control["present"][ROOM]}
        for left in control.get("leave", {}).get(ROOM, ()):
            users.pop(left, None)
        for user in control.get("join", {}).get(ROOM, ()):
            if user["id"] in users or len(users) < limit:
                users[user["id"]] = user
        number = control["count"][ROOM]
    return number, users


@each_kind
@pytest.mark.parametrize("leaving", ["first", "last"])
def test_a_page_knows_all_when_no_more_are_there_than_a_list_has(pairs: Pairs, limit: int, leaving: str) -> None:
    users = [{"id": number} for number in range(3 * limit)]
    client = Client(pairs)
    with client.subscribe(ROOM, present="watch"):
        guests = crowd(ROOM, users)
        until(lambda: as_a_page_knows(client, limit)[0] == len(users))
        assert len(as_a_page_knows(client, limit)[1]) == limit
        rest = {user["id"]: user for user in (users[-limit // 2 :] if leaving == "first" else users[: limit // 2])}
        for guest, user in zip(guests, users, strict=True):
            if user["id"] not in rest:
                guest.close()
        until(lambda: as_a_page_knows(client, limit)[0] == len(rest))
        until(lambda: as_a_page_knows(client, limit) == (len(rest), rest), within=2)


# --- one client, and its updates --------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("order", ["the first ends first", "the second ends first"])
def test_a_client_with_a_session_is_there_until_both_of_its_subscriptions_have_ended(pairs: Pairs, order: str) -> None:
    client, watcher = Client(pairs, "a session"), Client(pairs)
    with watcher.subscribe(ROOM, present="watch"):
        first = client.subscribe(ROOM, present={**ANN, "number": 1})
        second = client.subscribe(ROOM, present={**ANN, "number": 2})
        assert there() == by_id([{**ANN, "number": 2}])
        first.update_present({**ANN, "number": 3})
        until_there({**ANN, "number": 3}, within=2)
        ends, stays = (first, second) if order == "the first ends first" else (second, first)
        ends.close()
        stays.update_present({**ANN, "number": 4})
        until_there({**ANN, "number": 4}, within=2)
        watcher.until_it_knows({**ANN, "number": 4})
        stays.close()
        until_there(within=2)
        watcher.until_it_knows()


@each_kind
def test_two_subscriptions_of_a_client_with_a_session_both_end_when_it_has_vanished(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{PRESENCE}.GRACE", 2.0)  # not over before all of them have been asked who is there
    client = Client(pairs, "a session")
    client.subscribe(ROOM, present={**ANN, "number": 1})
    client.subscribe(ROOM, present={**ANN, "number": 2})
    client.close(1006)
    assert there() == by_id([{**ANN, "number": 2}])
    until_there(within=4)


@pytest.mark.parametrize("session", [None, "a session"])
def test_an_update_of_a_client_that_has_vanished_does_nothing(pairs: Pairs, grace: None, session: str | None) -> None:
    client = Client(pairs, session)
    with client.subscribe(ROOM, present=ANN) as forwarding:
        client.close(1006)
        forwarding.update_present({**ANN, "typing": True})
        assert not any("typing" in user for user in present(ROOM))
    until_there(within=2)


@each_kind
def test_updates_in_a_loop_are_told_together_and_the_last_one_is_there(pairs: Pairs, told: Told) -> None:
    with Client(pairs).subscribe(ROOM, present=ANN) as forwarding:
        told.calls.clear()
        begin = time.monotonic()
        number = 0
        while time.monotonic() < begin + 0.5:
            number += 1
            forwarding.update_present({**ANN, "number": number})
            gevent.sleep(0)
        until_there({**ANN, "number": number})
        took = time.monotonic() - begin
        assert number > 20
        assert len(told.calls) <= 2 + 15 * took


@each_kind
def test_whoever_leaves_while_something_else_is_told_waits_for_no_pause(
    pairs: Pairs, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_websocket.pubsub.enrolment.PAUSE", NEVER)
    bob = Client(pairs).subscribe(ROOM, present=BOB)
    with Client(pairs).subscribe(ROOM, present=ANN):
        told.calls.clear()
        told.late_answers[own_process()] = 0.1
        with Client(pairs).subscribe(ROOM, present=EVE):
            told.calls.clear()
        until(lambda: told.calls)
        bob.close()  # while the broker is told that Eve has left
        until_there(ANN)


@each_kind
def test_many_sessions_of_one_user_are_told_in_calls_that_are_not_large(pairs: Pairs, told: Told) -> None:
    told.delays[own_process()] = 0.001
    forwardings = [pubsub.forward([ROOM], present=ANN, for_good=True) for _ in range(2000)]
    try:
        entering = [gevent.spawn(each.enter, f"session {number}") for number, each in enumerate(forwardings)]
        gevent.joinall(entering, raise_error=True)
        assert there() == by_id([ANN])
        until(lambda: len({session for _, claims in told.calls for _, session, _ in claims}) == 2000)
    finally:
        for forwarding in forwardings:
            forwarding.close()
    until_there()
    assert max(len(claims) for _, claims in told.calls) <= BATCH


# --- information that nobody should have told -------------------------------------------------------------------------


MALFORMED = [
    b"",
    b"not json",
    b"[1]",
    b'"text"',
    b"7",
    b"null",
    b'{"name":"eve"}',
    b'{"id":null}',
    b'{"id":[]}',
    b"\xff",
]


@each_kind
@pytest.mark.parametrize("moment", ["before anybody looks", "while they look"])
def test_malformed_information_is_told_to_nobody(pairs: Pairs, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    monkeypatch.setattr(room, "PATIENCE", 0.1)  # seconds until a change that cannot be read counts as lost
    claims = [Claim(b"%016d" % number, ANYBODY, info) for number, info in enumerate(MALFORMED)]
    broker = rosters()
    broker.renew_lease(DEAD, 60)
    if moment == "before anybody looks":
        broker.change_roster(ROOM, DEAD, claims)
    early, late = Client(pairs), Client(pairs)
    with early.subscribe(ROOM, present=EVE), watch(ROOM) as changes:
        assert changes.get(DEADLINE).joined == [EVE]
        if moment == "while they look":
            broker.change_roster(ROOM, DEAD, claims)
        with Client(pairs).subscribe(ROOM, present=ANN):
            assert by_id(present(ROOM)) == by_id([ANN, EVE])
            early.until_it_knows(ANN, EVE)
            change = changes.get(DEADLINE)
            assert (change.joined, change.left, change.count) == ([ANN], [], 2)
            with late.subscribe(ROOM, present="watch"):
                late.until_it_knows(ANN, EVE)
            broker.change_roster(ROOM, DEAD, [Claim(claim.key) for claim in claims])
        change = changes.get(DEADLINE)
        assert (change.joined, change.left, change.count) == ([], [ANN], 1)
        early.until_it_knows(EVE)


@each_kind
def test_a_user_of_whom_malformed_information_is_told_then_has_left(pairs: Pairs) -> None:
    """Another process, which nobody can trust any more, tells of the same user."""
    broker = rosters()
    broker.renew_lease(DEAD, 60)
    client = Client(pairs)
    with client.subscribe(ROOM, present=EVE):
        broker.change_roster(ROOM, DEAD, [Claim(KEY, ANYBODY, b'{"id":1,"name":"ann"}')])
        client.until_it_knows(ANN, EVE)
        broker.change_roster(ROOM, DEAD, [Claim(KEY, ANYBODY, b"[]")])
        client.until_it_knows(EVE)
        assert present(ROOM) == [EVE]
        broker.change_roster(ROOM, DEAD, [Claim(KEY)])
