"""Who is there while Redis is away, full, emptied or forbidden, and when it is back."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import gevent.socket
import pytest
import redis as redis_py
import redis.connection

from django_websocket import pubsub
from django_websocket.exceptions import BrokerError
from django_websocket.pubsub import count, present, publish, watch
from django_websocket.pubsub.roster import Claim, PresenceBroker

from .support.brokers import in_use
from .support.presence import ANN, BOB, EVE, ROOM, Client, Elsewhere, all_leave, by_id, there, until_there
from .support.servers import Server, redis_server
from .support.waiting import DEADLINE, at_once, until
from .support.wire import Pairs

if TYPE_CHECKING:
    from django_websocket.pubsub.watching import Watch

ROSTER = "django_websocket:present:"
LEASES = "django_websocket:processes"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A Redis whose settings a test may change, if it restores them."""
    with redis_server() as server:
        yield server


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have sockets as in a patched worker, and processes that look after their members thirty times as often."""
    monkeypatch.setattr(redis.connection, "socket", gevent.socket)
    monkeypatch.setattr("django_websocket.pubsub.presence.RENEWAL", 0.3)
    monkeypatch.setattr("django_websocket.pubsub.presence.RETRY", 0.1)


@pytest.fixture
def admin(server: Server, pairs: Pairs) -> Iterator[Any]:
    """A client of Redis, such as any other program may have."""
    with redis_py.Redis(port=server.port) as client:
        client.ping()
        yield client


@contextmanager
def using(server: Server, pairs: Pairs, key: str) -> Iterator[str]:
    with in_use(f"redis://{server.address}?prefix={key}:"):
        yield f"{key}:"
        all_leave(pairs)


@pytest.fixture
def prefix(server: Server, admin: Any, pairs: Pairs, key: str) -> Iterator[str]:
    """Put the Redis into the settings; return the prefix of its keys and channels."""
    with using(server, pairs, key) as prefix:
        yield prefix


@pytest.fixture
def elsewhere(prefix: str) -> Iterator[Elsewhere]:
    """What the broker takes for another process."""
    with Elsewhere() as elsewhere:
        yield elsewhere


class Members:
    """Ann in this process and Bob in another one, who see each other, and a view that watches."""

    def __init__(self, pairs: Pairs, elsewhere: Elsewhere, stack: ExitStack) -> None:
        self.pairs = pairs
        self.elsewhere = elsewhere
        self.ann = Client(pairs, "a")
        self.ann.subscribe(ROOM, present=ANN, on_missed="missed")
        bob = self.bob = elsewhere.client("b")
        elsewhere.call(lambda: bob.subscribe(ROOM, present=BOB, on_missed="missed"))
        self.changes: Watch = stack.enter_context(watch(ROOM))
        self.all_know(ANN, BOB)
        users: list[Any] = []
        while by_id(users) != by_id([ANN, BOB]):
            users += self.changes.get(DEADLINE).joined

    def all_know(self, *users: Any) -> None:
        self.ann.until_it_knows(*users)
        self.elsewhere.call(lambda: self.bob.until_it_knows(*users))

    def nothing_was_told(self) -> None:
        """Check that of all this, nobody was told before Eve comes."""
        until_there(ANN, BOB)
        with Client(self.pairs).subscribe(ROOM, present=EVE):
            self.all_know(ANN, BOB, EVE)
            change = self.changes.get(DEADLINE)
            assert (change.joined, change.left, change.count) == ([EVE], [], 3)
        for client in (self.ann, self.bob):
            assert [control.get("leave") for control in client.controls() if "leave" in control] in (
                [],
                [{ROOM: [EVE["id"]]}],
            )


@pytest.fixture
def members(pairs: Pairs, elsewhere: Elsewhere) -> Iterator[Members]:
    with ExitStack() as stack:
        yield Members(pairs, elsewhere, stack)


# --- what Redis has lost ---------------------------------------------------------------------------------------------


def test_after_everything_was_flushed_all_are_there_again_and_nobody_has_left(admin: Any, members: Members) -> None:
    admin.flushall()
    members.nothing_was_told()


def test_after_the_roster_was_deleted_all_are_there_again_and_nobody_has_left(
    admin: Any, prefix: str, members: Members
) -> None:
    assert admin.delete(f"{prefix}{ROSTER}{ROOM}") == 1
    members.nothing_was_told()


def test_after_the_leases_were_deleted_nobody_has_left(admin: Any, prefix: str, members: Members) -> None:
    assert admin.delete(f"{prefix}{LEASES}") == 1
    members.nothing_was_told()


def test_whoever_leaves_after_a_loss_has_left(admin: Any, members: Members, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be told a little later, when the processes have had their time to put their users back."""
    for name in ("presence", "room"):
        monkeypatch.setattr(f"django_websocket.pubsub.{name}.GRACE", 0.5)
    admin.flushall()
    members.elsewhere.call(members.bob.close)
    until_there(ANN)
    members.ann.until_it_knows(ANN)
    assert [user["id"] for user in members.changes.get(DEADLINE).left] == [BOB["id"]]


def test_whoever_comes_after_a_loss_is_seen_beside_the_others(admin: Any, members: Members, pairs: Pairs) -> None:
    admin.flushall()
    with Client(pairs).subscribe(ROOM, present=EVE):
        members.all_know(ANN, BOB, EVE)
        until_there(ANN, BOB, EVE)
    members.all_know(ANN, BOB)


def test_a_user_whose_process_has_ended_during_a_loss_is_gone_in_the_end(
    admin: Any, prefix: str, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those who are yet to be put back are waited for, but not for ever."""
    monkeypatch.setattr("django_websocket.pubsub.room.GRACE", 0.5)
    monkeypatch.setattr("django_websocket.pubsub.presence.GRACE", 0.5)
    client = Client(pairs)
    client.subscribe(ROOM, present=ANN)
    broker: Any = pubsub.process.current_broker()
    broker.renew_lease(b"ended", 100)
    broker.change_roster(ROOM, b"ended", [Claim(b"somebody", info=b'{"id":2,"name":"bob"}')])
    client.until_it_knows(ANN, BOB)
    admin.flushall()
    client.until_it_knows(ANN)
    until_there(ANN)


@pytest.mark.parametrize("kind", ["text", "list"])
def test_a_key_of_another_kind_is_an_error_of_the_broker(admin: Any, prefix: str, pairs: Pairs, kind: str) -> None:
    name = f"{prefix}{ROSTER}{ROOM}"
    if kind == "text":
        admin.set(name, "something else")
    else:
        admin.rpush(name, "something else")
    calls: list[Callable[[], Any]] = [
        lambda: present(ROOM),
        lambda: count(ROOM),
        lambda: watch(ROOM),
        lambda: Client(pairs).subscribe(ROOM, present=ANN),
    ]
    for call in calls:
        with pytest.raises(BrokerError):
            call()
    with Client(pairs).subscribe("room:2", present=ANN):
        assert there("room:2") == by_id([ANN])
    admin.delete(name)
    with Client(pairs).subscribe(ROOM, present=ANN):
        assert there() == by_id([ANN])


JUNK = [
    b"",
    b"junk",
    b"1 2\n",
    b"\xff\0",
    b"999999999999999999 0 x\n+ a - {\n",
    b"1 0 p\n+ k - {}\n",
    b"-1 -1 p\n",
    b"x y z\n- k - \n",
]


@pytest.mark.parametrize("junk", JUNK, ids=ascii)
def test_whatever_else_comes_on_the_channel_does_no_lasting_harm(
    admin: Any, prefix: str, members: Members, pairs: Pairs, junk: bytes
) -> None:
    assert admin.publish(f"{prefix}django_websocket.present.{ROOM}", junk) == 2
    with Client(pairs).subscribe(ROOM, present=EVE):
        until_there(ANN, BOB, EVE)
        members.all_know(ANN, BOB, EVE)


# --- processes that have ended ---------------------------------------------------------------------------------------


def test_users_of_a_process_that_was_killed_are_not_there(admin: Any, prefix: str, pairs: Pairs) -> None:
    broker: Any = pubsub.process.current_broker()
    broker.renew_lease(b"killed", 100)
    broker.change_roster(ROOM, b"killed", [Claim(b"somebody", info=b'{"id":2,"name":"bob"}')])
    assert there() == by_id([BOB])
    client = Client(pairs)
    with client.subscribe(ROOM, present=ANN):
        client.until_it_knows(ANN, BOB)
        broker.renew_lease(b"killed", 0.5)  # the last one
        client.until_it_knows(ANN)
        until_there(ANN)
        until(lambda: b"usomebody" not in admin.hkeys(f"{prefix}{ROSTER}{ROOM}"))


def test_a_roster_whose_processes_were_all_killed_is_empty_for_everybody(admin: Any, prefix: str, pairs: Pairs) -> None:
    broker: Any = pubsub.process.current_broker()
    claims = [Claim(b"user%d" % number, info=b'{"id":%d}' % number) for number in range(1500)]
    broker.change_roster(ROOM, b"killed", claims)
    assert (present(ROOM), count(ROOM)) == ([], 0)
    assert 0 < admin.ttl(f"{prefix}{ROSTER}{ROOM}") <= 300
    with watch(ROOM) as changes:
        change = changes.get(DEADLINE)
        assert (change.joined, change.count) == ([], 0)
        until(lambda: not admin.exists(f"{prefix}{ROSTER}{ROOM}"))


def test_a_process_that_was_taken_for_dead_puts_its_users_back(
    admin: Any, prefix: str, members: Members, pairs: Pairs
) -> None:
    """As one that was stopped for longer than its lease, while another one has removed its users."""
    hub = pubsub.process.current_hub()
    assert hub.presence is not None
    mine = hub.presence.process
    broker: PresenceBroker = hub.presence.broker
    admin.zrem(f"{prefix}{LEASES}", mine)
    keys = [key for key, lines in broker.read_roster(ROOM).users.items() if mine in lines]
    broker.change_roster(ROOM, mine, [Claim(key) for key in keys], gone=True)
    until_there(ANN, BOB)
    with Client(pairs).subscribe(ROOM, present=EVE):
        members.all_know(ANN, BOB, EVE)


def test_a_lease_is_renewed_while_somebody_is_there(
    admin: Any, prefix: str, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_websocket.pubsub.presence.LEASE", 1.0)
    with Client(pairs).subscribe(ROOM, present=ANN):
        [(process, first)] = admin.zrange(f"{prefix}{LEASES}", 0, -1, withscores=True)
        until(lambda: admin.zscore(f"{prefix}{LEASES}", process) > first + 2000)
        assert there() == by_id([ANN])
        until(lambda: admin.ttl(f"{prefix}{ROSTER}{ROOM}") > 290)
        admin.expire(f"{prefix}{ROSTER}{ROOM}", 20)
        until(lambda: admin.ttl(f"{prefix}{ROSTER}{ROOM}") > 290)


# --- Redis is away ---------------------------------------------------------------------------------------------------


@contextmanager
def cut_off(admin: Any) -> Iterator[None]:
    """Cut the connections on which events come, and let no other be made, while the others stay."""
    before = admin.config_get("maxclients")["maxclients"]
    admin.config_set("maxclients", 1)
    try:
        assert admin.client_kill_filter(_type="pubsub") >= 1
        yield
    finally:
        admin.config_set("maxclients", before)


def test_nobody_flaps_when_events_did_not_come_for_a_while(admin: Any, members: Members) -> None:
    with cut_off(admin):
        gevent.sleep(0.3)  # the processes try in vain to connect
    members.nothing_was_told()


def test_who_has_come_and_gone_while_no_events_came_is_told_later(admin: Any, members: Members, pairs: Pairs) -> None:
    with cut_off(admin):
        members.elsewhere.call(members.bob.close)
        until_there(ANN)
        broker: Any = pubsub.process.current_broker()
        broker.renew_lease(b"other", 100)
        broker.change_roster(ROOM, b"other", [Claim(b"eve", info=b'{"id":3,"name":"eve"}')])
    members.ann.until_it_knows(ANN, EVE)


def leaves_meanwhile(members: Members) -> None:
    """Have Ann's client close, and an update be made, without waiting for Redis."""
    with at_once():
        members.ann.peer.close_frame(1000)
        until(lambda: not members.ann.connection.connected)


def test_leaving_does_not_wait_for_redis_and_is_told_when_it_goes_on(server: Server, members: Members) -> None:
    server.send_signal(signal.SIGSTOP)
    try:
        leaves_meanwhile(members)
    finally:
        server.send_signal(signal.SIGCONT)
    until_there(BOB)
    members.elsewhere.call(lambda: members.bob.until_it_knows(BOB))


def test_an_update_does_not_wait_for_redis_and_is_told_when_it_goes_on(
    server: Server, prefix: str, pairs: Pairs
) -> None:
    client = Client(pairs)
    presence = client.subscribe(ROOM, present=ANN)
    server.send_signal(signal.SIGSTOP)
    try:
        with at_once():
            for number in range(3):
                presence.update_present({**ANN, "number": number})
    finally:
        server.send_signal(signal.SIGCONT)
    until_there({**ANN, "number": 2})
    client.until_it_knows({**ANN, "number": 2})


def error_of(call: Callable[[], Any]) -> Exception | None:
    try:
        call()
    except Exception as error:
        return error
    return None


def test_a_redis_that_hangs_is_an_error_of_the_broker_and_no_harm(server: Server, members: Members) -> None:
    server.send_signal(signal.SIGSTOP)
    try:
        client = Client(members.pairs)
        calls: list[Callable[[], Any]] = [
            lambda: present(ROOM),
            lambda: count(ROOM),
            lambda: watch("another"),
            lambda: client.subscribe(ROOM, present=EVE),
            lambda: client.subscribe("another", present="watch"),
        ]
        waiting: list[Any] = [gevent.spawn(error_of, call) for call in calls]
        until(lambda: all(each.ready() for each in waiting), 20)
        assert [type(each.value) for each in waiting] == [BrokerError] * len(calls)
    finally:
        server.send_signal(signal.SIGCONT)
    members.nothing_was_told()


# --- a Redis that restarts -------------------------------------------------------------------------------------------


def came_back(own: Server) -> None:
    """Start Redis, and wait until this process uses it again."""
    own.start()

    def publishes() -> bool:
        try:
            return publish("anything", "") is not None
        except BrokerError:
            return False

    until(publishes)


def test_after_a_restart_of_an_empty_redis_nobody_has_left(pairs: Pairs, key: str) -> None:
    with redis_server() as own, using(own, pairs, key), Elsewhere() as elsewhere, ExitStack() as stack:
        members = Members(pairs, elsewhere, stack)
        own.stop(signal.SIGKILL)
        for call in (present, count):
            with pytest.raises(BrokerError):
                call(ROOM)
        came_back(own)
        members.nothing_was_told()


def test_whoever_leaves_while_redis_is_down_is_gone_when_it_is_back_with_its_data(pairs: Pairs, key: str) -> None:
    args = ["--appendonly", "yes", "--appendfsync", "always"]
    with redis_server(args=args) as own, using(own, pairs, key):
        stays, leaves = Client(pairs), Client(pairs)
        presence = stays.subscribe(ROOM, present=ANN, on_missed="missed")
        leaves.subscribe(ROOM, present=BOB, on_missed="missed")
        until_there(ANN, BOB)
        own.stop(signal.SIGKILL)
        with at_once():
            leaves.close()
            presence.update_present({**ANN, "late": True})
        own.start()
        until_there({**ANN, "late": True})
        stays.until_it_knows({**ANN, "late": True})


def test_whoever_subscribes_while_redis_is_down_is_told_and_can_do_so_later(pairs: Pairs, key: str) -> None:
    """That the first attempt failed leaves nothing behind, here or in Redis."""
    with redis_server() as own, using(own, pairs, key):
        own.stop(signal.SIGKILL)
        client = Client(pairs)
        for _ in range(2):
            for call in (
                lambda: client.subscribe(ROOM, present=ANN),
                lambda: client.subscribe(ROOM, present="watch"),
                lambda: watch(ROOM),
            ):
                with pytest.raises(BrokerError, match="Redis"):
                    call()
        came_back(own)
        assert there() == {}
        with client.subscribe(ROOM, present=ANN), watch(ROOM) as changes:
            assert changes.get(DEADLINE).joined == [ANN]
            assert there() == by_id([ANN])
        until_there()
        hub = pubsub.process.current_hub()
        until(lambda: not hub.channels)
        assert hub.presence is None or not hub.presence._rooms
        with redis_py.Redis(port=own.port) as client_of_redis:
            until(lambda: not client_of_redis.keys("*"))


def test_many_leave_while_redis_is_down_and_all_are_gone_afterwards(pairs: Pairs, key: str) -> None:
    args = ["--appendonly", "yes", "--appendfsync", "always"]
    with redis_server(args=args) as own, using(own, pairs, key):
        clients = [Client(pairs) for _ in range(20)]
        for number, client in enumerate(clients):
            client.subscribe(f"room:{number % 3}", "all", present={"id": number})
        assert count("all") == 20
        own.stop(signal.SIGKILL)
        for client in clients:
            client.close()
        own.start()
        with redis_py.Redis(port=own.port) as admin:
            until(lambda: not admin.keys("*"), 2 * DEADLINE)


# --- Redis refuses ---------------------------------------------------------------------------------------------------


def test_a_redis_that_is_full_takes_nobody_and_lets_everybody_leave(
    admin: Any, prefix: str, members: Members, pairs: Pairs
) -> None:
    client = Client(pairs)
    admin.config_set("maxmemory", "100kb")
    try:
        for _ in range(2):
            with pytest.raises(BrokerError, match="maxmemory"):
                client.subscribe(ROOM, present=EVE)
        assert there() == by_id([ANN, BOB])
        members.elsewhere.call(members.bob.close)
        members.ann.until_it_knows(ANN)
    finally:
        admin.config_set("maxmemory", "0")
    until_there(ANN)
    with client.subscribe(ROOM, present=EVE):
        members.ann.until_it_knows(ANN, EVE)


@pytest.mark.parametrize(
    ("rules", "word"),
    [
        ({"commands": ["+@all", "-eval", "-evalsha"]}, "evalsha"),
        ({"keys": ["other:*"]}, "key"),
        ({"channels": ["other:*"]}, "channel"),
    ],
    ids=["scripts", "keys", "channels"],
)
def test_a_user_who_may_not_do_this_is_told_so(
    server: Server, admin: Any, pairs: Pairs, key: str, rules: dict[str, Any], word: str
) -> None:
    allowed: dict[str, Any] = {"keys": ["*"], "channels": ["*"], "commands": ["+@all"], **rules}
    admin.acl_setuser("weak", enabled=True, nopass=True, **allowed)
    try:
        with in_use(f"redis://weak:any@{server.address}?prefix={key}:"):
            client = Client(pairs)
            calls: list[Callable[[], Any]] = [
                lambda: client.subscribe(ROOM, present=ANN),
                lambda: watch(ROOM),
                lambda: client.subscribe(ROOM, present="watch"),
            ]
            if word != "channel":
                calls += [lambda: present(ROOM), lambda: count(ROOM)]
            for call in calls:
                with pytest.raises(BrokerError, match="ACL") as raised:
                    call()
                assert word in str(raised.value)
            hub = pubsub.process.current_hub()
            until(lambda: not hub.channels)
            if hub.presence is not None:
                until(lambda: hub.presence and not hub.presence._rooms)
        assert admin.keys(f"{key}:*") == []
    finally:
        admin.acl_deluser("weak")
