"""Encrypted messages: a broker around another one, which sees the names of channels, but not what is said there."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Sequence
from typing import Any, Protocol

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from django_websocket.transport.log import report
from django_websocket.transport.turns import let_others_run_if_any

from .broker import Broker, Listener, Receiver, Subscriber
from .closing import close
from .entries import KEPT, UNREADABLE, Entry, KeepingBroker, Rule, Stretch, entry_from
from .roster import PRESENT, Claim, Leases, PresenceBroker, Roster, RosterEvent, event_from

SHORTEST_KEY = 32  # characters


class EncryptedBroker:
    """Encrypts what goes to `broker` with the first of `keys`, and decrypts what comes from it with any of them.

    A key is a string of at least 32 characters that nobody can guess. Raises ValueError for what is none.
    """

    def __init__(self, broker: Broker, keys: Any) -> None:
        if not isinstance(keys, (list, tuple)) or not keys or not all(isinstance(key, str) for key in keys):
            raise ValueError("The option 'encryption_keys' of WEBSOCKET_BROKER must be a list with at least one string")
        if min(map(len, keys)) < SHORTEST_KEY:
            raise ValueError(
                f"One of the 'encryption_keys' of WEBSOCKET_BROKER is shorter than {SHORTEST_KEY} characters. Make one "
                f"at random: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
            )
        self._broker = broker
        self._fernet = MultiFernet([Fernet(_derived(key)) for key in keys])
        self.secret = _derived(keys[0])  # of the keys of users in rosters, so that nobody can guess whose they are

    def publish(self, channel: str, payload: bytes) -> int | None:
        """Publish `payload`, readable only with one of the keys."""
        return self._broker.publish(channel, self._fernet.encrypt(_bound(channel) + payload))

    def subscriber(self, listener: Listener) -> Subscriber:
        """Return the broker's subscriber, which delivers decrypted messages to `listener`."""
        return self._broker.subscriber(Decrypting(self._fernet, listener))

    def receiver(self, channel: str) -> Receiver | None:
        """Return a receiver for a thread without a loop; None if the broker has none. Raises BrokerError."""
        receiver = getattr(self._broker, "receiver", None)
        return None if receiver is None else DecryptingReceiver(self._fernet, channel, receiver(channel))

    def close(self) -> None:
        """Close the other broker."""
        close(self._broker)


class EncryptedKeepingBroker(EncryptedBroker):
    """The same around a broker that keeps messages."""

    _broker: KeepingBroker

    def publish_kept(self, channel: str, payload: bytes, rule: Rule) -> int | None:
        """Publish `payload` and keep it, readable only with one of the keys."""
        return self._broker.publish_kept(channel, self._fernet.encrypt(_bound(channel) + payload), rule)

    def clock(self, timeout: float) -> float:
        """Return the broker's time; see `KeepingBroker.clock`. Raises BrokerError."""
        return self._broker.clock(timeout)

    def read(self, channel: str, rule: Rule, count: int, since: int | None = None, size: int | None = None) -> Stretch:
        """Return what is kept, decrypted."""
        stretch = self._broker.read(channel, rule, count, since, size)
        entries = []
        for entry in stretch.entries:
            entries.append(_readable(self._fernet, channel, entry))
            let_others_run_if_any()
        return Stretch(stretch.top, stretch.time, entries, stretch.cut)


class CompleteBroker(KeepingBroker, PresenceBroker, Protocol):
    """A broker that keeps messages and rosters."""


class EncryptedPresenceBroker(EncryptedKeepingBroker):
    """The same around a broker that also keeps rosters: it sees how many users there are, but not which."""

    _broker: CompleteBroker

    def change_roster(
        self, channel: str, process: bytes, claims: Sequence[Claim], *, gone: bool = False
    ) -> RosterEvent | None:
        """Take what a process says of users, readable only with one of the keys."""
        hidden = [self._hidden(channel, claim) for claim in claims]
        event = self._broker.change_roster(channel, process, hidden, gone=gone)
        return None if event is None else _shown(self._fernet, channel, event)

    def read_roster(self, channel: str, limit: int | None = None, *, prolong: bool = False) -> Roster:
        """Return who is there, decrypted."""
        roster = self._broker.read_roster(channel, limit, prolong=prolong)
        users = {}
        for key, lines in roster.users.items():
            users[key] = {process: _info(self._fernet, channel, token) for process, token in lines.items()}
            let_others_run_if_any()
        return Roster(roster.number, roster.processes, roster.size, users)

    def renew_lease(self, process: bytes, seconds: float) -> Leases:
        """Renew a lease; see `PresenceBroker.renew_lease`. Raises BrokerError."""
        return self._broker.renew_lease(process, seconds)

    def _hidden(self, channel: str, claim: Claim) -> Claim:
        info = self._fernet.encrypt(_bound(channel) + claim.info) if claim.info else b""
        return Claim(claim.key, claim.session, info)


class Decrypting:
    """Decrypts what a subscriber receives, for `listener`."""

    def __init__(self, fernet: MultiFernet, listener: Listener) -> None:
        self._fernet = fernet
        self._listener = listener
        self.lost = listener.lost
        self.missed = listener.missed
        self.closed = listener.closed
        refused = getattr(listener, "refused", None)
        if refused is not None:
            self.refused = refused

    def deliver(self, batch: Sequence[tuple[str, bytes]]) -> None:
        """Hand on the messages that can be decrypted, and drop the others."""
        readable = []
        for channel, token in batch:
            entry = entry_from(token) if token[:1] == KEPT else None
            payload: bytes | None
            if channel.startswith(PRESENT):
                event = event_from(token)
                payload = event and _shown(self._fernet, channel[len(PRESENT) :], event).to_wire()
            elif entry is None:
                payload = _decrypted(self._fernet, channel, token)
            else:
                payload = _readable(self._fernet, channel, entry).to_wire()
            if payload is not None:
                readable.append((channel, payload))
        if readable:
            self._listener.deliver(readable)


class DecryptingReceiver:
    """Receives from one channel, decrypted."""

    def __init__(self, fernet: MultiFernet, channel: str, receiver: Receiver) -> None:
        self._fernet = fernet
        self._channel = channel
        self._receiver = receiver
        self.close = receiver.close

    def receive(self, timeout: float) -> list[bytes]:
        """Return the next payloads that can be decrypted. Raises OSError; after `timeout` seconds, TimeoutError."""
        payloads = [_decrypted(self._fernet, self._channel, token) for token in self._receiver.receive(timeout)]
        return [payload for payload in payloads if payload is not None]


def _decrypted(fernet: MultiFernet, channel: str, token: bytes) -> bytes | None:
    """Return the decrypted payload, or None and log a line if no key opens it."""
    bound = _bound(channel)
    try:
        payload = fernet.decrypt(token)
    except InvalidToken:
        payload = b""
    if payload.startswith(bound):
        return payload[len(bound) :]
    report(
        f"Channel {channel}",
        None,
        "a message was dropped because none of the encryption_keys of WEBSOCKET_BROKER decrypts it: the process that "
        "published it has other keys, or none",
    )
    return None


def _readable(fernet: MultiFernet, channel: str, entry: Entry) -> Entry:
    """Return an entry with its payload decrypted. One that no key opens keeps its place, since others are behind it."""
    payload = _decrypted(fernet, channel, entry.payload)
    return Entry(*entry[:-1], UNREADABLE if payload is None else payload)


def _shown(fernet: MultiFernet, channel: str, event: RosterEvent) -> RosterEvent:
    """Return a change of a roster with what it tells of users decrypted."""
    news = [(kind, Claim(key, session, _info(fernet, channel, info))) for kind, (key, session, info) in event.news]
    return RosterEvent(event.number, event.before, event.process, news)


def _info(fernet: MultiFernet, channel: str, token: bytes) -> bytes:
    """Return what is told of a user, decrypted; nothing if no key opens it."""
    return token and (_decrypted(fernet, channel, token) or b"")


def _derived(key: str) -> bytes:
    """Return the key in Fernet's form, derived so that it reveals nothing about other uses of the same string."""
    return base64.urlsafe_b64encode(hmac.digest(key.encode(), b"django_websocket.pubsub", "sha256"))


def _bound(channel: str) -> bytes:
    """Return the prefix that binds a payload to its channel."""
    name = channel.encode()
    return len(name).to_bytes(4, "big") + name
