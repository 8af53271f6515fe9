"""Events through Redis: a capped stream is the order and the history, pub/sub the live path."""

from __future__ import annotations

import inspect
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.connection import Connection
from redis.retry import Retry

from ..errors import BrokerUnavailable, EventError
from ..event import generations_of, split_record
from ..eventlog import Entry
from . import MAX_GENERATIONS, Change, Claim, Leased, Sink, Terms
from .address import Address, said_by
from .census import SCRIPTS as CENSUS_SCRIPTS
from .census import Answers, Census
from .command import AWAY, ONCE, Call, NoConnection, Script, ask_primary
from .pages import NAMES, Pages
from .pages import SCRIPTS as PAGES_SCRIPTS

# One entry that carries no event opens every log, so that a position can always be found.
# Each message names its predecessor: a hole shows with the next message, whatever made it.
# Only records of more than an even share can take the log past its bytes. Redis has to look at
# all of it to tell, so it does that in one millisecond of sixteen.
_APPEND = """
local log, channel, generations = KEYS[1], KEYS[2], KEYS[3]
local cap, bytes = ARGV[1], tonumber(ARGV[2])
local function trim()
  local used = redis.pcall('MEMORY', 'USAGE', log, 'SAMPLES', 0)
  if type(used) == 'number' and used > bytes then
    local kept = math.floor(redis.call('XLEN', log) * bytes / used)
    redis.call('XTRIM', log, 'MAXLEN', '~', math.max(1, kept))
  end
end
local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
local before = last and last[1] or redis.call('XADD', log, '*', 'r', '', 'k', '')
local function append(record, key, patterns)
  local position = redis.call('XADD', log, 'MAXLEN', '~', cap, '*', 'r', record, 'k', key)
  local moved = {}
  for pattern in string.gmatch(patterns, '%S+') do
    moved[#moved + 1] = pattern
    moved[#moved + 1] = position
  end
  if #moved > 0 and redis.call('HSET', generations, unpack(moved)) > 0
     and redis.call('HLEN', generations) > MAX_GENERATIONS then
    redis.call('DEL', generations)
  end
  if #record * cap > bytes and string.match(position, '%d+') % 16 == 0 then trim() end
  redis.call('PUBLISH', channel, before .. ' ' .. position .. '\\n' .. record)
  before = position
  return position
end
""".replace("MAX_GENERATIONS", str(MAX_GENERATIONS))
# A second attempt looks for the first in the log, only as far back as it can be: all of a large
# history takes longer than any timeout, and the outage would never end. It leaves its own key
# where a first one that was merely late finds it.
_PUBLISH = (
    _APPEND
    + """
local retried, age = KEYS[4], ARGV[3]
local published = {}
if age ~= '' then
  local since = '-'
  if age ~= 'inf' then
    local now = redis.call('TIME')
    since = string.format('%.0f', math.max(0, now[1] * 1000 - age))
  end
  for _, entry in ipairs(redis.call('XREVRANGE', log, '+', since, 'COUNT', cap)) do
    published[entry[2][4]] = entry[1]
  end
end
local positions = {}
for i = 4, #ARGV, 3 do
  local key = ARGV[i + 1]
  local position = published[key] or redis.call('HGET', retried, key)
  if not position then
    position = append(ARGV[i], key, ARGV[i + 2])
    if age ~= '' then
      redis.call('HSET', retried, key, position)
      redis.call('EXPIRE', retried, 600)
    end
  end
  positions[#positions + 1] = position
end
return table.concat(positions, ' ')
"""
)
_CHANGE = (
    _APPEND
    + """
local positions = {}
for i = 4, #KEYS do
  local said, at = KEYS[i], 4 + 4 * (i - 4)
  if (redis.call('GET', said) or '') == ARGV[at] then
    positions[#positions + 1] = append(ARGV[at + 2], said, ARGV[at + 3])
    redis.call('SET', said, ARGV[at + 1], 'PX', ARGV[3])
  else
    positions[#positions + 1] = ''
  end
end
return positions
"""
)
# What stands is given to every worker that starts, when the log has long forgotten it.
_STAND = (
    _APPEND
    + """
redis.call('SET', KEYS[4], ARGV[3])
return append(ARGV[3], ARGV[4], ARGV[5])
"""
)
_FOUND = """
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('XADD', KEYS[1], '*', 'r', '', 'k', '') end
return 1
"""

# A worker's leases hold while its own entry among the workers does, so that renewing ten
# thousand of them is renewing that one. Times are Redis's: workers' clocks may differ.
_LEASE = """
local workers = KEYS[1]
local worker, limit, evict, released = ARGV[1], tonumber(ARGV[3]), ARGV[4] == '1', ARGV[5] + 0
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local alive, renewed = {}, 0
local entries = redis.call('HGETALL', workers)
for i = 1, #entries, 2 do
  if tonumber(entries[i + 1]) > now then
    alive[entries[i]] = true
  else
    redis.call('HDEL', workers, entries[i])
  end
end
if alive[worker] then renewed = 1 end
alive[worker] = true
redis.call('HSET', workers, worker, string.format('%.0f', now + ARGV[2]))
for i = 1, released do redis.call('HDEL', KEYS[1 + i], ARGV[5 + i]) end
local refused, evicted = {}, {}
for i = released + 1, #KEYS - 1 do
  local user, lease = KEYS[1 + i], ARGV[5 + i]
  local held, oldest, oldest_at = 0, nil, nil
  local leases = redis.call('HGETALL', user)
  local mine = false
  for j = 1, #leases, 2 do
    local at = tonumber(leases[j + 1])
    if leases[j] == lease then
      mine = true
    elseif not alive[string.match(leases[j], '^[^:]*')] then
      redis.call('HDEL', user, leases[j])
    else
      held = held + 1
      if not oldest or at < oldest_at then oldest, oldest_at = leases[j], at end
    end
  end
  if held >= limit and not mine and not evict then
    refused[#refused + 1] = lease
  else
    if held >= limit and not mine then
      redis.call('HDEL', user, oldest)
      evicted[#evicted + 1] = oldest
    end
    if not mine then
      redis.call('HSET', user, lease, string.format('%.0f', (time[1] * 1000000 + time[2]) + i))
    end
    redis.call('EXPIRE', user, 7200)
  end
end
return {renewed, refused, evicted}
"""
_TAKE = """
local values = redis.call('MGET', unpack(KEYS))
redis.call('DEL', unpack(KEYS))
return values
"""

_GENERATIONS = NAMES + "return names_of(KEYS[1], ARGV)"

_SCRIPTS = {
    name: Script(text)
    for name, text in {
        "publish": _PUBLISH,
        "change": _CHANGE,
        "generations": _GENERATIONS,
        "lease": _LEASE,
        "recall": "return redis.call('MGET', unpack(KEYS))",
        "stand": _STAND,
        "take": _TAKE,
        **CENSUS_SCRIPTS,
        **PAGES_SCRIPTS,
    }.items()
}

_PAGE = 500
_QUIET = 3.0
_IDLE_CHECK = 15.0
_GLANCE = 0.001
_SLICE = 0.001
_TIMED = "timeout" in inspect.signature(Connection.read_response).parameters
_WINDOW_MARGIN = 5.0
_BACKOFF = (0.05, 0.1, 0.25, 0.5, 1.0)

_logger = logging.getLogger("flask_noc_realtime")


@dataclass(frozen=True, slots=True)
class RedisOptions:
    """How a broker uses Redis.

    :param namespace: prefix of the keys and the channel.
    :param history_events: entries Redis keeps, about, and a process loads at most.
    :param history_bytes: bytes of records Redis keeps, about, and a process loads at most.
    :param timeout: seconds to connect, and to wait for an answer.
    """

    namespace: str = "noc"
    history_events: int = 10_000
    history_bytes: int = 64 * 1024 * 1024
    timeout: float = 1.0


class RedisBroker:
    """Publishes with one atomic script, and follows with one subscription per process.

    :param url: ``redis://``, ``rediss://``, ``unix://``,
        ``redis+sentinel://host:port,host:port/service/db`` or
        ``redis+cluster://host:port,host:port`` (``rediss+...`` for TLS).
    :raises ConfigError: when the URL is of none of these forms. Nothing is connected yet.
    """

    shared = True

    def __init__(self, url: str, options: RedisOptions) -> None:
        self._options = options
        # The name in braces puts every key on one slot of a Redis Cluster.
        self._log_key = f"{{{options.namespace}}}:log"
        self._channel = f"{{{options.namespace}}}:events"
        self._generations_key = f"{{{options.namespace}}}:generations"
        self._retried_key = f"{{{options.namespace}}}:retried"
        self._keys = (self._log_key, self._channel, self._generations_key)
        self._publish = Call(
            _SCRIPTS["publish"],
            (*self._keys, self._retried_key),
            (str(options.history_events), str(options.history_bytes)),
        )
        self._standing_key = f"{{{options.namespace}}}:standing"
        self._bounds = (options.history_events, options.history_bytes)
        self._said_key = f"{{{options.namespace}}}:said:"
        self._workers_key = f"{{{options.namespace}}}:workers"
        self._user_key = f"{{{options.namespace}}}:streams:"
        self._kept_key = f"{{{options.namespace}}}:kept:"
        self._address = Address(url, options.timeout, self._log_key)
        self._timeout = self._address.timeout
        self._client = self._address.connect(ONCE)
        self._reader = self._address.connect(Retry(ExponentialWithJitterBackoff(0.2, 0.01), 2))
        self._reaching = _Reaching(self._unavailable)
        self.pages = Pages(self._run, options.namespace)
        self.census = Census(
            self._client, self._run, options.namespace, countable=not self._address.clustered
        )
        self._sink: Sink | None = None
        self._thread: threading.Thread | None = None
        self._newest: str | None = None
        self._closed = threading.Event()
        self._pubsub: Any | None = None
        self._down = False
        self._away_since: float | None = None
        self._stumbled = False
        self._failures = 0
        self._check_at = 0.0

    def publish(self, record: bytes, key: str) -> str:
        events = [(record, key)]
        begun = time.monotonic()
        try:
            return self._run_script(events, None)[0]
        except AWAY as error:
            first = self._unavailable(error)
            # A connection Redis closed meanwhile says nothing about Redis now. What took longer
            # than that shows would hold up the caller once more.
            if time.monotonic() - begun > self._timeout / 2:
                raise first from error
        try:
            return self.publish_all(events, again=True, age=self._timeout)[0]
        except BrokerUnavailable as error:
            error.uncertain |= first.uncertain
            raise

    def publish_all(
        self, events: Sequence[tuple[bytes, str]], *, again: bool, age: float = math.inf
    ) -> list[str]:
        with self._reaching:
            return self._run_script(events, age if again else None)

    def publish_changes(self, changes: Sequence[Change], seconds: float) -> list[str | None]:
        keys = [*self._keys, *(self._said_key + change.key for change in changes)]
        arguments: list[bytes | str | int] = [*self._bounds, round(seconds * 1000)]
        for _, before, after, record in changes:
            arguments += (before or b"", after, record, _generations_of(record))
        positions = self._run("change", keys, arguments) if changes else []
        return [position.decode() or None for position in positions]

    def recall(self, keys: Sequence[str]) -> list[bytes | None]:
        return self._run_each("recall", self._said_key, keys)

    def generations(self, patterns: Sequence[str], *, at_once: bool = False) -> tuple[str, ...]:
        names = self._read_fields(self._generations_key, patterns, at_once=at_once)
        try:
            return tuple([str(name, "ascii") for name in names])
        except (TypeError, UnicodeDecodeError):  # There is none, or one that is not of ours.
            names = self._run("generations", [self._generations_key], patterns)
        return tuple([str(name, "ascii") for name in names])

    def follows(self, position: str, other: str) -> bool:
        return _order(position) > _order(other)

    def ping(self) -> None:
        with self._reaching:
            self._client.ping()

    def away(self) -> float:
        since = self._away_since
        return 0.0 if since is None else time.monotonic() - since

    def stand(self, record: bytes, key: str) -> str:
        keys = [*self._keys, self._standing_key]
        arguments = [*self._bounds, record, key, _generations_of(record)]
        position: bytes = self._run("stand", keys, arguments)
        return position.decode()

    def standing(self) -> bytes | None:
        with self._reaching:
            record: bytes | None = self._client.get(self._standing_key)
        return record

    def lease(
        self, terms: Terms, claims: Sequence[Claim] = (), released: Sequence[Claim] = ()
    ) -> Leased:
        both = (*released, *claims)
        keys = [self._workers_key, *(self._user_key + claim.user_id for claim in both)]
        milliseconds = round(terms.seconds * 1000)
        arguments = [terms.worker, milliseconds, terms.limit, int(terms.evict), len(released)]
        arguments += [claim.lease for claim in both]
        renewed, refused, evicted = self._run("lease", keys, arguments)
        return Leased(
            bool(renewed),
            frozenset(lease.decode() for lease in refused),
            tuple(lease.decode() for lease in evicted),
        )

    def put(self, key: str, value: bytes, seconds: float) -> None:
        with self._reaching:
            self._client.set(self._kept_key + key, value, px=round(seconds * 1000))

    def take(self, keys: Sequence[str]) -> list[bytes | None]:
        return self._run_each("take", self._kept_key, keys)

    def start(self, sink: Sink) -> None:
        self._sink = sink
        self._away_since = time.monotonic()
        thread = threading.Thread(
            target=self._subscribe, name="noc-realtime-subscription", daemon=True
        )
        thread.start()
        self._thread = thread

    def close(self) -> None:
        self._closed.set()
        pubsub = self._pubsub
        if pubsub is not None and not self._down:
            try:
                pubsub.unsubscribe()
            except (*AWAY, RuntimeError):
                pass
        if self._thread is not None:
            self._thread.join(self._timeout)
        _close(self._client)

    def survey(self, seconds: float) -> Answers:
        """Ask every worker for its report, and return what comes within *seconds*.

        :raises BrokerUnavailable: when none can be asked.
        """
        with self._reaching:
            return self.census.ask(seconds)

    def newest(self) -> str | None:
        """Return the newest position in the log, or None when there is no log.

        :raises BrokerUnavailable: when it cannot be known.
        """
        with self._reaching:
            rows = self._client.xrevrange(self._log_key, count=1)
        return rows[0][0].decode() if rows else None

    def _run_script(self, events: Sequence[tuple[bytes, str]], age: float | None) -> list[str]:
        arguments = [_window(age)]
        for record, key in events:
            arguments += (record, key.encode(), _generations_of(record).encode())
        positions: bytes = self._publish.run(self._client, arguments)
        return positions.decode().split()

    def _run(
        self, name: str, keys: Sequence[str], arguments: Sequence[Any], *, at_once: bool = False
    ) -> Any:
        with self._reaching:
            return _SCRIPTS[name].run(self._client, keys, arguments, at_once=at_once)

    def _run_each(self, name: str, prefix: str, keys: Sequence[str]) -> list[bytes | None]:
        """Run a script that returns a value for each key."""
        values: list[bytes | None] = []
        for first in range(0, len(keys), _PAGE):
            page = [prefix + key for key in keys[first : first + _PAGE]]
            values += self._run(name, page, [])
        return values

    def _read_fields(self, key: str, fields: Sequence[str], *, at_once: bool) -> Any:
        with self._reaching:
            try:
                return ask_primary(self._client, key, "HMGET", key, *fields, at_once=at_once)
            except redis.ResponseError as error:
                if not str(error).startswith("WRONGTYPE"):
                    raise
                return [None] * len(fields)

    def _unavailable(self, error: Exception) -> BrokerUnavailable:
        reason = error.reason if isinstance(error, NoConnection) else error
        said = f"{type(reason).__name__}: {said_by(reason)}"
        return BrokerUnavailable(
            f"Redis at {self._address.shown} does not answer ({said}); "
            "check that it runs and that NOC_REALTIME_URL is right",
            uncertain=reason is error,
        )

    # The subscription.

    def _subscribe(self) -> None:
        while not self._closed.is_set():
            try:
                self._follow()
            except Exception as error:
                self._log_down(error)
            if self._away_since is None:
                self._away_since = time.monotonic()
            self._closed.wait(_BACKOFF[min(self._failures, len(_BACKOFF) - 1)])
            self._failures += 1
        _close(self._reader)

    def _follow(self) -> None:
        """Subscribe and deliver until the connection breaks.

        Whatever redis-py reconnects by itself shows as one more confirmation of the
        subscription, and every confirmation reads what was missed before going on.
        """
        with self._reader.pubsub() as pubsub:
            self._pubsub = pubsub
            takers: dict[bytes, Callable[[bytes], None]] = {
                self._channel.encode(): self._take,
                self.pages.channel.encode(): self.pages.take,
            }
            if self.census.report is not None:
                takers[self.census.channel.encode()] = self.census.answer
            pubsub.subscribe(*takers)
            turned = asked = time.monotonic()
            self._check_at = asked + _IDLE_CHECK
            while not self._closed.is_set():
                message = self._next(pubsub) or self._probe(pubsub)
                turned = _give_way(turned, asked)
                if message["type"] == "message":
                    takers[message["channel"]](message["data"])
                elif message["channel"] == self.pages.channel.encode():
                    self.pages.wake_all()
                elif (
                    message["type"] == "subscribe" and message["channel"] == self._channel.encode()
                ):
                    self._catch_up()
                    self._log_up()
                asked = time.monotonic()

    def _next(self, pubsub: Any) -> Any:
        """Return the next message, or None where none came for a while.

        It reads at once: `get_message` of redis-py 8 asks first, and again, whether there is
        something to be read, which under gevent is a turn of the event loop each time.
        """
        if not _TIMED:
            return pubsub.get_message(timeout=_QUIET)
        connection = pubsub.connection
        try:
            response = connection.read_response(
                disconnect_on_error=False, push_request=True, timeout=_QUIET
            )
        except redis.TimeoutError:
            return None
        except (redis.ConnectionError, OSError):
            connection.disconnect()
            # It connects and subscribes again.
            return pubsub.get_message(timeout=_QUIET)
        return pubsub.handle_message(response)

    def _probe(self, pubsub: Any) -> Any:
        """Return the next message, where none has come for a while.

        A connection that ended without a word would be waited on for ever.

        :raises redis.RedisError: when the subscription is dead.
        """
        missed = False
        if time.monotonic() >= self._check_at:
            self._check_at = time.monotonic() + _IDLE_CHECK
            missed = self._catch_up()
        pubsub.ping()
        # The second look is for a process that was held up until the time was over.
        message = pubsub.get_message(timeout=self._timeout) or pubsub.get_message(timeout=_GLANCE)
        if message is None:
            raise redis.TimeoutError("the subscription is silent")
        if missed and message["type"] == "pong":
            raise redis.ConnectionError("the subscription leaves events out")
        return message

    def _log_down(self, error: Exception) -> None:
        expected = isinstance(error, AWAY)
        if self._closed.is_set() or (self._down if expected else self._stumbled):
            return
        if expected:
            self._down = True
            _logger.error(
                "%s. The app serves on; streams get what they miss when Redis is back.",
                self._unavailable(error),
            )
        else:
            self._stumbled = True
            _logger.error("The subscription stumbled; it starts again.", exc_info=error)

    def _log_up(self) -> None:
        self._failures = 0
        self._away_since = None
        self._stumbled = False
        if self._down:
            self._down = False
            _logger.warning("Redis at %s answers again.", self._address.shown)

    def _take(self, message: bytes) -> None:
        head, _, record = message.partition(b"\n")
        before, _, position = head.decode("ascii", "replace").partition(" ")
        if self._newest is not None and _order(position) <= _order(self._newest):
            return
        if before != self._newest:
            self._catch_up()
            return
        self._newest = position
        self._deliver([(position, record)])

    def _catch_up(self) -> bool:
        """Read what follows the newest entry, or all there is when that one is gone.

        :return: whether there was anything.
        """
        found = False
        while self._newest is not None:
            rows = self._range(self._newest, "+", _PAGE)
            if not rows or rows[0][0] != self._newest:
                break
            self._newest = rows[-1][0]
            self._deliver(rows[1:])
            found = found or len(rows) > 1
            if len(rows) < _PAGE:
                return found
        self._load()
        return True

    def _load(self) -> None:
        """Replace the history by what Redis has, newest first up to the bounds."""
        assert self._sink is not None
        self._reader.eval(_FOUND, 1, self._log_key)
        # First: what stands later comes with the rows, or after them.
        standing = self._reader.get(self._standing_key) or b""
        rows: list[tuple[str, bytes]] = []
        room = self._options.history_bytes
        while len(rows) <= self._options.history_events and room > 0:
            page = self._range(f"({rows[-1][0]}" if rows else "+", "-", _PAGE, reverse=True)
            for row in page:
                rows.append(row)
                room -= len(row[1])
                if room <= 0:
                    break
            if len(page) < _PAGE:
                break
        rows = rows[: self._options.history_events + 1]
        rows.reverse()
        if not rows:
            raise redis.ConnectionError("the event log vanished while it was read")
        self._newest = rows[-1][0]
        base = rows[0][0]
        self._sink.restart(base, list(_entries([(base, standing), *rows[1:]])))

    def _range(
        self, first: str, last: str, limit: int, *, reverse: bool = False
    ) -> list[tuple[str, bytes]]:
        read = self._reader.xrevrange if reverse else self._reader.xrange
        rows = read(self._log_key, first, last, limit)
        return [(position.decode(), fields.get(b"r", b"")) for position, fields in rows]

    def _deliver(self, rows: list[tuple[str, bytes]]) -> None:
        assert self._sink is not None
        entries = list(_entries(rows))
        if entries:
            self._sink.deliver(entries)


class _Reaching:
    """Raises `BrokerUnavailable` for what redis-py raises; a generator takes ten times as long."""

    def __init__(self, unavailable: Callable[[Exception], BrokerUnavailable]) -> None:
        self._unavailable = unavailable

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, AWAY):
            raise self._unavailable(error) from error


def _give_way(turned: float, asked: float) -> float:
    """Let others run if it is time; return when they last did.

    While messages keep coming, no read waits, and under gevent that is all who serve requests.

    :param turned: when they last did.
    :param asked: when the read began that has just ended.
    """
    now = time.monotonic()
    if now - asked > _SLICE:
        return now
    if now - turned <= _SLICE:
        return turned
    # Not 0: fifty such turns pass before gevent's loop looks at its sockets.
    time.sleep(_SLICE / 10)
    return time.monotonic()


def _close(client: Any) -> None:
    """Close *client*, and what a sentinel leaves to the garbage collector."""
    manager = getattr(client.connection_pool, "sentinel_manager", None)
    for each in (client, *(manager.sentinels if manager else ())):
        each.close()


def _entries(rows: list[tuple[str, bytes]]) -> Iterator[Entry]:
    """Turn rows of the log into entries, passing over what is no event of ours."""
    for position, record in rows:
        if not record:
            continue
        try:
            yield Entry.from_record(position, record)
        except EventError as error:
            _logger.error("Passed over %s in the event log: %s", position, error)


def _generations_of(record: bytes) -> str:
    """Return the names of the generations that move on with a record, with spaces between."""
    return " ".join(generations_of(split_record(record)[0]))


def _window(age: float | None) -> bytes:
    """Return the milliseconds to look back as the script takes them, with room for doubt."""
    if age is None:
        return b""
    return b"inf" if math.isinf(age) else b"%d" % round((age + _WINDOW_MARGIN) * 1000)


def _order(position: str) -> tuple[int, int]:
    """Return the order of a Redis stream id."""
    milliseconds, _, number = position.partition("-")
    try:
        return int(milliseconds), int(number)
    except ValueError:
        return -1, -1
