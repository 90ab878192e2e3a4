"""The scripts by which Redis keeps the messages of a channel: a list of entries, and a hash with where they end."""

from __future__ import annotations

import binascii
import math
from collections.abc import Callable
from functools import cache
from hashlib import sha1
from itertools import product
from typing import Any, NamedTuple

import redis
from redis.exceptions import NoScriptError

from .entries import LONGER, NOWHERE, Entry, Position, Rule, Stretch, entry_from, new_tag

SLOTS = 16384  # of a Redis Cluster
POSITION, HISTORY = "django_websocket:position:", "django_websocket:history:"  # begin the keys

Call = Callable[..., Any]  # sends the words of a command, and returns its reply


class Script:
    """A Lua script, which Redis knows by its digest once it has seen the text."""

    def __init__(self, text: str) -> None:
        self._text = text.encode()
        self._digest = sha1(self._text, usedforsecurity=False).hexdigest().encode()

    def __call__(self, call: Call, keys: Keys, *arguments: bytes) -> Any:
        """Run it, and return its reply. Raises what `call` raises."""
        words = b"2", *keys, *arguments
        try:
            return call(b"EVALSHA", self._digest, *words)
        except redis.ResponseError as error:
            if not isinstance(error, NoScriptError) and not str(error).startswith("NOSCRIPT"):
                raise
        return call(b"EVAL", self._text, *words)  # the first attempt has run nothing


# In both scripts, KEYS[1] is a hash, with the offset `s` and the tag `t` of the last entry, and KEYS[2] the list. If
# the hash is gone, whatever the list has belongs to a stream that nobody knows any more. The place before the first
# entry has a tag as well: without one, it would fit every stream.

# ARGV: payload, tag, entries, channel, seconds until both keys are given their time to live again, milliseconds of it
# for the list, and for the hash. `e` is when that was done last. Each call of a command takes more time than all else,
# so that the list, too, is trimmed only when it is a tenth too long.
PUBLISH = """
local m = redis.call('HMGET', KEYS[1], 's', 't', 'e')
local now = redis.call('TIME')[1]
local s = 1
local before = ARGV[2] .. '-'
if m[1] then
    s = m[1] + 1
    before = m[2]
else
    redis.call('DEL', KEYS[2])
end
local entry = '\\254' .. s .. ':' .. ARGV[2] .. ':' .. before .. ':' .. now .. ':' .. ARGV[1]
if m[3] and math.abs(now - m[3]) < tonumber(ARGV[5]) then
    redis.call('HSET', KEYS[1], 's', s, 't', ARGV[2])
else
    redis.call('HSET', KEYS[1], 's', s, 't', ARGV[2], 'e', now)
    redis.call('PEXPIRE', KEYS[1], ARGV[7])
    m[3] = nil
end
local length = redis.call('RPUSH', KEYS[2], entry)
if length == 1 or not m[3] then redis.call('PEXPIRE', KEYS[2], ARGV[6]) end
if length > ARGV[3] * 1.1 then redis.call('LTRIM', KEYS[2], -ARGV[3], -1) end
return redis.call('%s', ARGV[4], entry)
"""
PUBLISHING = {name: Script(PUBLISH % name) for name in ("PUBLISH", "SPUBLISH")}

# ARGV: a new tag, milliseconds for the hash, the number of entries that is wanted, an offset (then all behind it are
# wanted, or none if they are not all there) or -1
READING = Script("""
local m = redis.call('HMGET', KEYS[1], 's', 't')
if not m[1] then
    m = {'0', ARGV[1]}
    redis.call('DEL', KEYS[2])
    redis.call('HSET', KEYS[1], 's', m[1], 't', m[2])
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
local count = tonumber(ARGV[3])
local since = tonumber(ARGV[4])
if since >= 0 then
    count = tonumber(m[1]) - since
    if count > redis.call('LLEN', KEYS[2]) then count = 0 end
end
local entries = {}
if count > 0 then entries = redis.call('LRANGE', KEYS[2], -count, -1) end
return {m[1], m[2], redis.call('TIME')[1], entries}
""")


class Keys(NamedTuple):
    """The keys of a channel."""

    position: bytes
    history: bytes


def keys_of(prefix: str, channel: str, tag: str = "") -> Keys:
    """Return the keys of a channel. On a Cluster, `tag` puts them where the channel is."""
    first = f"{{{tag}}}" if tag else ""
    return Keys(*(f"{first}{prefix}{kind}{channel}".encode() for kind in (POSITION, HISTORY)))


def publish_kept(call: Call, command: str, keys: Keys, channel: bytes, payload: bytes, rule: Rule) -> int:
    """Publish a message with `command`, and keep it; return the number of subscribers that Redis reports."""
    pause = max(1.0, rule.seconds / 10)
    living = rule.seconds + pause, rule.seconds + pause + LONGER
    numbers = [b"%d" % math.ceil(pause), *(b"%d" % math.ceil(1000 * seconds) for seconds in living)]
    number = b"%d" % rule.messages
    return int(PUBLISHING[command](call, keys, payload, new_tag(), number, channel, *numbers))


def read(call: Call, keys: Keys, rule: Rule, count: int, since: int | None = None) -> Stretch:
    """Return the last entries, as `KeepingBroker.read` does."""
    numbers = [
        b"%d" % number for number in (round((rule.seconds + LONGER) * 1000), count, -1 if since is None else since)
    ]
    offset, tag, time, entries = READING(call, keys, new_tag(), *numbers)
    return Stretch(Position(int(offset), bytes(tag)), int(time), [entry_from(each) or GAP for each in entries])


GAP = Entry(*NOWHERE, b"", 0, b"")  # in place of what is no entry: no other one is before it or behind it


@cache
def tags() -> dict[int, str]:
    """Return a short text for each slot of a Cluster; the same in all processes.

    The CRC that makes a slot of a text is linear, so that the sixteen letters from @ to O, which differ in four bits,
    make all slots, each four times.
    """
    texts = ("".join(letters) for letters in product("@ABCDEFGHIJKLMNO", repeat=4))
    return {binascii.crc_hqx(text.encode(), 0) % SLOTS: text for text in texts}
