"""The scripts by which Redis keeps the messages of a channel, in a list of entries.

The last entry stays as long as the list, however old it is: it says where the channel ends. A list begins with an entry
that is no message, with the number 0, if somebody asked where the channel is before there was a message.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from hashlib import sha1
from typing import Any

import redis
from redis.exceptions import NoScriptError

from .entries import NOWHERE, Entry, Position, Rule, Stretch, entry_from, new_tag

HISTORY = "django_websocket:history:"  # begins the keys

Call = Callable[..., Any]  # sends the words of a command, and returns its reply
What = tuple[Rule, int, int | None, int | None]  # what is to be read; see `KeepingBroker.read`


class Script:
    """A Lua script, which Redis knows by its digest once it has seen the text."""

    def __init__(self, text: str) -> None:
        self._text = text.encode()
        self._digest = sha1(self._text, usedforsecurity=False).hexdigest().encode()

    def __call__(self, call: Call, key: bytes, *arguments: bytes) -> Any:
        """Run it, and return its reply. Raises what `call` raises."""
        words = b"1", key, *arguments
        try:
            return call(b"EVALSHA", self._digest, *words)
        except redis.ResponseError as error:
            if not isinstance(error, NoScriptError) and not str(error).startswith("NOSCRIPT"):
                raise
        return call(b"EVAL", self._text, *words)  # the first attempt has run nothing


# A list that ends with something else counts as none.
LAST = """
local function last()
    local entry = redis.call('LINDEX', KEYS[1], -1)
    if not entry then return end
    local offset, tag, time = string.match(entry, '^\\254(%d+):([^:]+):[^:]*:(%d+):')
    if not offset then redis.call('DEL', KEYS[1]) end
    return offset, tag, time
end
local now = redis.call('TIME')[1]
local offset, tag, time = last()
"""

# ARGV: payload, tag, the number of entries, milliseconds to live, channel. The place before the first entry has a tag
# as well: without one, it would fit every channel. Calling commands takes most of the time, so that the list is trimmed
# only when it is a tenth too long, and given its time to live once a second.
PUBLISH = (
    LAST
    + """
local before = tag or ARGV[2] .. '-'
local entry = '\\254' .. (offset or 0) + 1 .. ':' .. ARGV[2] .. ':' .. before .. ':' .. now .. ':' .. ARGV[1]
local length = redis.call('RPUSH', KEYS[1], entry)
if now ~= time then redis.call('PEXPIRE', KEYS[1], ARGV[4]) end
if length > ARGV[3] * 1.1 + 1 then redis.call('LTRIM', KEYS[1], -ARGV[3], -1) end
"""
)
DELIVER = "return redis.call('%s', ARGV[5], entry)"
PUBLISHING = {name: Script(PUBLISH + DELIVER % name) for name in ("PUBLISH", "SPUBLISH")}
KEEPING = Script(PUBLISH + "return entry")

# ARGV: a new tag, milliseconds to live, seconds until a message is too old, the number of entries that is wanted, an
# offset (then all behind it are wanted, or none if they are not all there) or -1, and how many bytes are enough, or -1.
READING = Script(
    LAST
    + """
if not offset then
    offset, tag = '0', ARGV[1]
    redis.call('RPUSH', KEYS[1], '\\2540:' .. tag .. '::' .. now .. ':')
elseif now - time > tonumber(ARGV[3]) then
    redis.call('LTRIM', KEYS[1], -1, -1)
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
local length = redis.call('LLEN', KEYS[1])
local count = math.min(tonumber(ARGV[4]), length)
local since = tonumber(ARGV[5])
if since >= 0 then
    count = offset - since
    if count > length then count = 0 end
end
local enough = tonumber(ARGV[6])
local parts = {}
local size = 0
local taken = 0
while taken < count and (enough < 0 or size < enough) do
    local step = math.min(count - taken, 32)
    local part
    if since >= 0 then
        part = redis.call('LRANGE', KEYS[1], taken - count, taken - count + step - 1)
        parts[#parts + 1] = part
    else
        part = redis.call('LRANGE', KEYS[1], -taken - step, -taken - 1)
        table.insert(parts, 1, part)
    end
    for _, entry in ipairs(part) do size = size + #entry end
    taken = taken + step
end
return {offset, tag, now, taken < count and 1 or 0, parts}
"""
)


def key_of(prefix: str, channel: str, tag: str = "") -> bytes:
    """Return the key of a channel. On a Cluster, `tag` puts it where the channel is."""
    return named(prefix, HISTORY + channel, tag)


def named(prefix: str, name: str, tag: str = "") -> bytes:
    """Return the key with this name; see `key_of` for `tag`."""
    first = f"{{{tag}}}" if tag else ""
    return f"{first}{prefix}{name}".encode()


def publish_kept(call: Call, command: str, key: bytes, channel: bytes, payload: bytes, rule: Rule) -> int:
    """Publish a message with `command`, and keep it; return the number of subscribers that Redis reports."""
    return int(PUBLISHING[command](call, key, payload, new_tag(), *bounds(rule), channel))


def keep(call: Call, key: bytes, payload: bytes, rule: Rule) -> bytes:
    """Keep a message, and return it as an entry, which is yet to be published."""
    entry: bytes = KEEPING(call, key, payload, new_tag(), *bounds(rule))
    return entry


def read(call: Call, key: bytes, rule: Rule, count: int, since: int | None = None, size: int | None = None) -> Stretch:
    """Return the last entries, as `KeepingBroker.read` does."""
    wanted = math.ceil(rule.seconds) + 1, count, -1 if since is None else since, -1 if size is None else size
    offset, tag, now, cut, parts = READING(
        call, key, new_tag(), bounds(rule)[1], *(b"%d" % number for number in wanted)
    )
    entries = [entry for part in parts for each in part if (entry := entry_from(each) or GAP).offset]
    top = entries[-1].position if cut and since is not None else Position(int(offset), bytes(tag))
    return Stretch(top, int(now), entries, bool(cut))


@lru_cache
def bounds(rule: Rule) -> tuple[bytes, bytes]:
    """Return how many entries Redis is to keep, and for how many milliseconds."""
    return b"%d" % rule.messages, b"%d" % math.ceil(1000 * rule.life)


GAP = Entry(*NOWHERE, b"", 0, b"")  # stands for something malformed in a list, and fits neither neighbour
