"""Who is in a channel: its roster, the changes of it, and what a broker does that keeps rosters.

Each user, by its key, has a line for each process that has a client of this user there, with what that process tells of
it; the last line counts. A roster says in which processes its users may be, since only the leases of processes are
renewed, not the lines: those of a process whose lease has ended are as good as gone.

Each change of a roster has a number, greater than the one before, and is published with both on a channel of its own.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeGuard

from .broker import Broker
from .channels import RESERVED

PRESENT = RESERVED + "present."  # begins the name of the channel on which the changes of a channel's roster are told
LIFE = 300  # seconds after which a roster ends whose processes were all killed; living ones look after theirs
LEASE = 25.0  # seconds for which a process counts as alive: if one renewal fails, the next one comes in time
LIMIT = 1000  # users that a list has

HERE, LEFT, AGAIN = b"+", b"-", b"="  # what a change says of a user: that it is there, has left, or has another client
NOBODY, ANYBODY = b"-", b"!"  # in place of the key of a session


class Claim(NamedTuple):
    """What a process says of a user: `info`, as JSON, or b"" if it has no client of it any more.

    `session` is the key of a client's session that has just begun there, `ANYBODY` for a client without one and for one
    that tells something new. With either, this is the newest that is told of the user. With `NOBODY`, it takes the
    place of what the process has told before, or the oldest place.
    """

    key: bytes
    session: bytes = NOBODY
    info: bytes = b""


class RosterEvent(NamedTuple):
    """A change of a roster by a process: its number and the one before, 0 if nobody was there; what is new of whom."""

    number: int
    before: int
    process: bytes
    news: Sequence[tuple[bytes, Claim]]

    def to_wire(self) -> bytes:
        """Return the event as brokers carry it."""
        lines = [b"%b %b %b %b\n" % (kind, *claim) for kind, claim in self.news]
        return b"%d %d %b\n" % (self.number, self.before, self.process) + b"".join(lines)


def event_from(data: bytes) -> RosterEvent | None:
    """Return the event that `data` holds; None for anything else."""
    head, *lines = data.split(b"\n")[:-1] or [b""]
    try:
        number, before, process = head.split(b" ")
        news = [(kind, Claim(*rest)) for kind, *rest in (line.split(b" ", 3) for line in lines)]
        return RosterEvent(int(number), int(before), process, news)
    except (ValueError, TypeError):
        return None


class Roster(NamedTuple):
    """Who is in a channel at a moment.

    `number` is that of the last change, 0 if nobody is there. `size` is the number of users, those of dead processes
    included. `users` has the lines of each, or of some of them, by process; the last line is the newest.
    """

    number: int
    processes: frozenset[bytes]
    size: int
    users: Mapping[bytes, Mapping[bytes, bytes]]

    def without(self, dead: Collection[bytes]) -> dict[bytes, bytes]:
        """Return what is told of each user, without the lines of dead processes."""
        found = {}
        for key, lines in self.users.items():
            living = [info for process, info in lines.items() if info and process not in dead]
            if living:
                found[key] = living[-1]
        return found


EMPTY = Roster(0, frozenset(), 0, {})


class Leases(NamedTuple):
    """Which processes are alive; `held` says whether the asking one was, without a gap, when it renewed its lease."""

    held: bool
    living: frozenset[bytes]


class PresenceBroker(Broker, Protocol):
    """A broker that keeps rosters."""

    def change_roster(
        self, channel: str, process: bytes, claims: Sequence[Claim], *, gone: bool = False
    ) -> RosterEvent | None:
        """Take what a process says of users, and publish what is new; return that, None if nothing is.

        `gone` says that the process has nobody there any more. Raises `BrokerError`.
        """

    def read_roster(self, channel: str, limit: int | None = None, *, prolong: bool = False) -> Roster:
        """Return who is there: all users, or some if there are more than `limit`. Raises `BrokerError`.

        `prolong` says that a process asks that looks after the roster: its life begins anew.
        """

    def renew_lease(self, process: bytes, seconds: float) -> Leases:
        """Have a process count as alive for so many seconds, 0 for no longer, and return which ones do.

        Without a name of a process, only return which ones do. Raises `BrokerError`.
        """


def keeps_rosters(broker: Broker) -> TypeGuard[PresenceBroker]:
    """Whether a broker keeps rosters."""
    return hasattr(broker, "change_roster") and hasattr(broker, "read_roster")


def told_on(channel: str) -> str:
    """Return the channel on which the changes of a channel's roster are told."""
    return PRESENT + channel


def key_of(channel: str, text: str, secret: bytes = b"") -> bytes:
    """Return the key of a user or a session in a channel: short, without spaces, not to be guessed by a secret."""
    digest = hmac.digest(secret, channel.encode() + b"\0" + text.encode(errors="surrogatepass"), "sha256")
    return base64.urlsafe_b64encode(digest[:12])
