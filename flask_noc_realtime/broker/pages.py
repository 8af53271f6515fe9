"""Results that all workers share through Redis, and leases on working one out.

Whoever holds a lease works the result out; all others wait until it landed or the lease lapsed.
A lease is for efficiency only: a result is kept just if the generations are still those that
its leader saw, and its lease is still the leader's own.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, NamedTuple

LANDED, FAILED, ALONE = "landed", "failed", "alone"

# What others put in the place of a hash goes: a script that fails looks like Redis being away.
_READ = """
local function read(key, ...)
  local found = redis.pcall('HMGET', key, ...)
  if not found.err then return found end
  redis.call('DEL', key)
  return {}
end
"""
# A node that takes no writes tells nothing: events are emitted elsewhere, or will be.
# A generation that Redis lost gets a name it never had: the old one could come back with it.
NAMES = (
    _READ
    + """
local function names_of(key, patterns)
  if #patterns == 0 then return {} end
  local names = read(key, unpack(patterns))
  redis.call('HDEL', key, '')
  for i, pattern in ipairs(patterns) do
    if not names[i] or string.find(names[i], '[^!-~]') then
      local time = redis.call('TIME')
      names[i] = 'from-' .. time[1] .. '-' .. time[2]
      redis.call('HSET', key, pattern, names[i])
    end
  end
  return names
end
"""
)
_LOOK_UP = (
    NAMES
    + """
local page, flight, token, lease, due = KEYS[2], KEYS[3], ARGV[1], ARGV[2], tonumber(ARGV[3])
local names = names_of(KEYS[1], {unpack(ARGV, 4)})
local seen = table.concat(names, ' ')
local kept = read(page, 'names', 'value')
if kept[1] == seen and kept[2] then
  local left = redis.call('PTTL', page)
  if token == '' or left > due or read(flight, 'names')[1] == seen then
    return {names, 'kept', left, kept[2]}
  end
elseif kept[1] == 'alone' then
  return {names, 'alone', 0}
elseif token == '' then
  return {names, 'none', 0}
end
local held = read(flight, 'token', 'names')
if held[1] and held[1] ~= token and held[2] == seen then
  return {names, 'wait', redis.call('PTTL', flight)}
end
redis.call('HSET', flight, 'token', token, 'names', seen)
redis.call('PEXPIRE', flight, lease)
return {names, 'lead', 0}
"""
)
_COMMIT = (
    NAMES
    + """
local page, flight, channel = KEYS[2], KEYS[3], KEYS[4]
local token, name, outcome, ttl, seen, value = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
if read(flight, 'token')[1] ~= token then return 0 end
redis.call('DEL', flight)
local stored = 0
if outcome == 'alone' then
  redis.call('DEL', page)
  redis.call('HSET', page, 'names', 'alone')
  redis.call('PEXPIRE', page, ttl)
elseif tonumber(ttl) > 0 then
  if table.concat(names_of(KEYS[1], {unpack(ARGV, 7)}), ' ') == seen then
    redis.call('DEL', page)
    redis.call('HSET', page, 'names', seen, 'value', value)
    redis.call('PEXPIRE', page, ttl)
    stored = 1
  end
end
redis.call('PUBLISH', channel, name .. ' ' .. outcome)
return stored
"""
)
_RENEW = (
    _READ
    + """
local held = {}
for i, flight in ipairs(KEYS) do
  held[i] = 0
  if read(flight, 'token')[1] == ARGV[i + 1] then
    held[i] = redis.call('PEXPIRE', flight, ARGV[1])
  end
end
return held
"""
)
_DROP = "return redis.call('DEL', KEYS[1])"

SCRIPTS = {
    "pages.look_up": _LOOK_UP,
    "pages.commit": _COMMIT,
    "pages.renew": _RENEW,
    "pages.drop": _DROP,
}


class Look(NamedTuple):
    """What there is of a key.

    :ivar names: the generations at that moment.
    :ivar state: ``kept`` comes with a value; ``alone`` means that callers do not wait for each
        other; ``lead`` that the lease is the caller's; ``wait`` that it is another's; ``none``
        that there is no value, and no lease was asked for.
    :ivar seconds: how long the value, or the other's lease, lasts.
    """

    names: tuple[str, ...]
    state: str
    seconds: float
    value: bytes | None


class Pages:
    """The shared results of one namespace. Thread-safe.

    :param run: runs a script by name with keys and arguments.
    :param namespace: prefix of the keys.
    """

    def __init__(self, run: Callable[..., Any], namespace: str) -> None:
        self.channel = f"{{{namespace}}}:landed"
        self._run = run
        self._generations_key = f"{{{namespace}}}:generations"
        self._page_key = f"{{{namespace}}}:page:"
        self._flight_key = f"{{{namespace}}}:flight:"
        self._worker = secrets.token_hex(8)
        self._numbers = count(1)
        self._lock = threading.RLock()
        self._waiters: dict[str, list[Waiter]] = {}

    def token(self) -> str:
        """Return what names a lease; no other has ever had it."""
        return f"{self._worker}-{next(self._numbers)}"

    def look_up(
        self,
        name: str,
        patterns: Sequence[str],
        token: str = "",
        lease: float = 0.0,
        due: float = 0.0,
    ) -> Look:
        """Look for a result, and take the lease on working it out when *token* is given.

        :param due: how many seconds before its end a result is worked out anew, by one.
        :raises BrokerUnavailable: when it cannot be known.
        """
        keys = [self._generations_key, self._page_key + name, self._flight_key + name]
        arguments = [token, round(lease * 1000), round(due * 1000), *patterns]
        # Who finds nothing here works it out, and all others wait for that.
        reply = self._run("pages.look_up", keys, arguments, at_once=True)
        names = tuple([str(each, "ascii") for each in reply[0]])
        value = reply[3] if len(reply) > 3 else None
        return Look(names, reply[1].decode(), max(0, reply[2]) / 1000, value)

    def commit(
        self,
        name: str,
        token: str,
        outcome: str,
        look: Look,
        patterns: Sequence[str],
        value: bytes = b"",
        ttl: float = 0.0,
    ) -> bool:
        """Give the lease back, keep *value* if it still holds, and tell who waits.

        :param look: what the leader saw before it read anything.
        :return: whether the value is kept.
        :raises BrokerUnavailable: when it is not known.
        """
        keys = [self._generations_key, self._page_key + name, self._flight_key + name]
        seen = " ".join(look.names)
        arguments = [token, name, outcome, round(ttl * 1000), seen, value, *patterns]
        return bool(self._run("pages.commit", [*keys, self.channel], arguments))

    def renew(self, held: Sequence[tuple[str, str]], lease: float) -> list[bool]:
        """Prolong leases, given as names and tokens; return which of them still held.

        :raises BrokerUnavailable: when it is not known.
        """
        keys = [self._flight_key + name for name, _ in held]
        tokens = [token for _, token in held]
        return [
            bool(each) for each in self._run("pages.renew", keys, [round(lease * 1000), *tokens])
        ]

    def drop(self, name: str) -> None:
        """Forget a result.

        :raises BrokerUnavailable: when that is not known to have happened.
        """
        self._run("pages.drop", [self._page_key + name], [])

    def expect(self, name: str) -> Waiter:
        """Return what notices that *name* landed from now on. Close it."""
        waiter = Waiter(self, name)
        with self._lock:
            self._waiters.setdefault(name, []).append(waiter)
        return waiter

    def forget(self, waiter: Waiter) -> None:
        """Notice nothing more."""
        with self._lock:
            waiters = self._waiters.get(waiter.name, [])
            if waiter in waiters:
                waiters.remove(waiter)
            if not waiters:
                self._waiters.pop(waiter.name, None)

    def take(self, message: bytes) -> None:
        """Take what came through the subscription."""
        name, _, outcome = message.decode("ascii", "replace").partition(" ")
        with self._lock:
            waiters = list(self._waiters.get(name, ()))
        for waiter in waiters:
            waiter.wake(outcome)

    def wake_all(self) -> None:
        """Have everybody look again: messages may have been lost."""
        with self._lock:
            waiters = [waiter for each in self._waiters.values() for waiter in each]
        for waiter in waiters:
            waiter.wake(LANDED)


class Waiter:
    """Waits until a result landed."""

    def __init__(self, pages: Pages, name: str) -> None:
        self.name = name
        self._pages = pages
        self._event = threading.Event()
        self._outcome = ""

    def wake(self, outcome: str) -> None:
        """End the wait."""
        self._outcome = outcome
        self._event.set()

    def wait(self, seconds: float) -> str:
        """Return how it ended, or nothing when it did not within *seconds*.

        Look again afterwards: what comes from now on ends the next wait.
        """
        if not self._event.wait(seconds):
            return ""
        outcome = self._outcome
        self._event.clear()
        return outcome

    def close(self) -> None:
        """Stop noticing."""
        self._pages.forget(self)
