"""The scripts by which Redis keeps rosters: a hash for each channel that has somebody, and one set of leases.

A field `u<key>` of the hash has a user's lines, each with a process, a space and what it tells. `s` has the number of
the last change, `p` the processes that may have users there, with a space around each.
The hash ends with its last user.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from django_websocket.transport.turns import let_others_run_if_any

from .keeping import Script
from .roster import EMPTY, LEASE, LIFE, Claim, Leases, Roster, RosterEvent, event_from

ROSTER = "django_websocket:present:"  # begins the keys
LEASES = "django_websocket:processes"  # a sorted set: until when each process counts as alive, in ms of Redis' time
FORGOTTEN = 600  # seconds for which an ended lease is remembered; the rosters have ended by then

Run = Callable[..., Any]  # runs a script with arguments, and returns its reply

# ARGV: process, milliseconds to live, whether the process has gone, channel; then key, session and info of each user.
# Numbers are microseconds of Redis' time, so that they grow although a hash has ended meanwhile.
CHANGING = """
local key, process = KEYS[1], ARGV[1]
local known = redis.call('HMGET', key, 's', 'p')
local before, processes = known[1] or '0', known[2] or ' '
local news = {}
for i = 5, #ARGV, 3 do
    local field, session, info = 'u' .. ARGV[i], ARGV[i + 1], ARGV[i + 2]
    local own, last, newest
    local older, newer = '', ''
    for who, what in string.gmatch(redis.call('HGET', key, field) or '', '(%S+) ([^\\n]*)\\n') do
        last = what
        if who == process then
            own = what
        else
            newest = what
            local line = who .. ' ' .. what .. '\\n'
            if own then newer = newer .. line else older = older .. line end
        end
    end
    local lines = older .. newer
    if info ~= '' then
        local line = process .. ' ' .. info .. '\\n'
        if session ~= '-' or lines == '' or (own and newer == '') then
            lines = lines .. line
            newest = info
        else
            lines = own and older .. line .. newer or line .. lines
            newest = last
        end
    end
    if lines == '' then
        if own then
            redis.call('HDEL', key, field)
            news[#news + 1] = '- ' .. ARGV[i] .. ' - \\n'
        end
    else
        if own ~= info or newer ~= '' then redis.call('HSET', key, field, lines) end
        if newest ~= last then
            news[#news + 1] = '+ ' .. ARGV[i] .. ' ' .. session .. ' ' .. newest .. '\\n'
        elseif session ~= '-' and session ~= '!' then
            news[#news + 1] = '= ' .. ARGV[i] .. ' ' .. session .. ' \\n'
        end
    end
    if info ~= '' and not string.find(processes, ' ' .. process .. ' ', 1, true) then
        processes = processes .. process .. ' '
        redis.call('HSET', key, 'p', processes)
    end
end
if ARGV[3] == '1' then
    local first, last = string.find(processes, ' ' .. process .. ' ', 1, true)
    if first then
        processes = string.sub(processes, 1, first) .. string.sub(processes, last + 1)
        redis.call('HSET', key, 'p', processes)
    end
end
local event = ''
if #news > 0 then
    local now = redis.call('TIME')
    local number = string.format('%.0f', math.max(now[1] * 1000000 + now[2], before + 1))
    redis.call('HSET', key, 's', number)
    event = number .. ' ' .. before .. ' ' .. process .. '\\n' .. table.concat(news)
end
if redis.call('HLEN', key) <= 2 then redis.call('DEL', key) else redis.call('PEXPIRE', key, ARGV[2]) end
"""
DELIVER = "if event ~= '' then redis.call('%s', ARGV[4], event) end return event"
TELLING = {name: Script(CHANGING + DELIVER % name) for name in ("PUBLISH", "SPUBLISH")}
SILENT = Script(CHANGING + "return event")

# ARGV: how many users are wanted at least, or -1 for all, and milliseconds to live, or 0 to leave that as it is.
READING = Script(
    """
local known = redis.call('HMGET', KEYS[1], 's', 'p')
if not known[1] then return {} end
if ARGV[2] ~= '0' then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
local wanted = tonumber(ARGV[1])
local parts = {}
if wanted < 0 then
    parts[1] = redis.call('HGETALL', KEYS[1])
elseif wanted > 0 then
    local cursor, found = '0', 0
    repeat
        local reply = redis.call('HSCAN', KEYS[1], cursor, 'COUNT', 100)
        cursor = reply[1]
        parts[#parts + 1] = reply[2]
        found = found + #reply[2] / 2
    until cursor == '0' or found >= wanted + 2
end
return {known[1], known[2] or ' ', redis.call('HLEN', KEYS[1]) - 2, parts}
"""
)

# ARGV: process, or nothing; for how many ms it is to count as alive, and an end is remembered; the length of most
# leases, since one that ends much later is from before the clock was set back.
RENEWING = Script(
    """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local held = 0
if ARGV[1] ~= '' then
    held = redis.call('ZSCORE', KEYS[1], ARGV[1])
    held = held and tonumber(held) > now and 1 or 0
    if ARGV[2] == '0' then
        redis.call('ZREM', KEYS[1], ARGV[1])
    else
        redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
        redis.call('PEXPIRE', KEYS[1], ARGV[3])
        for _, other in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], now + 2 * ARGV[4], '+inf')) do
            redis.call('ZADD', KEYS[1], now + ARGV[4], other)
        end
    end
    redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[3])
end
return {held, redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf')}
"""
)


def roster_key(channel: str) -> str:
    """Return the key of a channel's roster, without what a broker puts before it."""
    return ROSTER + channel


def arguments_of(process: bytes, channel: bytes, claims: Sequence[Claim], *, gone: bool) -> list[bytes]:
    """Return the arguments of the scripts that change a roster; `channel` is where that is told."""
    words = [word for claim in claims for word in claim]
    return [process, b"%d" % (1000 * LIFE), b"%d" % gone, channel, *words]


def event_of(reply: bytes) -> RosterEvent | None:
    """Return what a script that has changed a roster has told."""
    return event_from(bytes(reply)) if reply else None


def read(run: Run, limit: int | None, *, prolong: bool) -> Roster:
    """Return a roster, as `PresenceBroker.read_roster` does."""
    reply = run(READING, b"%d" % (-1 if limit is None else limit), b"%d" % (1000 * LIFE if prolong else 0))
    if not reply:
        return EMPTY
    number, processes, count, parts = reply
    users = {}
    for part in parts:
        for index in range(0, len(part), 2):
            field, value = part[index], part[index + 1]
            if field[:1] == b"u":
                lines = (line.partition(b" ") for line in value.split(b"\n")[:-1])
                users[bytes(field[1:])] = {process: info for process, _, info in lines}
            if not index % 1000:
                let_others_run_if_any()
    return Roster(int(number), frozenset(processes.split()), int(count), users)


def renew(run: Run, process: bytes, seconds: float) -> Leases:
    """Renew a lease, as `PresenceBroker.renew_lease` does."""
    times = (b"%d" % (1000 * each) for each in (seconds, FORGOTTEN, LEASE))
    held, living = run(RENEWING, process, *times)
    return Leases(bool(held), frozenset(map(bytes, living)))
