"""Load on a running app: many streams, and many who ask for one page at once.

It measures from outside, as browsers do, in one thread; how late that thread was itself is part
of the result.
"""

from __future__ import annotations

import asyncio
import math
import re
import resource
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, NamedTuple

from .answer import CACHE
from .errors import ConfigError, ParameterError
from .target import Target
from .visit import Frame, Frames

_OTHER_FILES = 64
_BYTES = 64 * 1024
_KEPT = 100_000
_PROBE = 0.05
_FAILURES = (
    OSError,
    EOFError,
    ValueError,
    asyncio.TimeoutError,
    asyncio.LimitOverrunError,
)
_CONTROL = ("", "heartbeat", "stream.open", "stream.reset", "stream.close")


@dataclass(frozen=True, slots=True)
class Ramp:
    """How streams are opened.

    :ivar streams: how many.
    :ivar seconds: in which they are begun, evenly.
    :ivar hold: seconds for which they are read once all were tried.
    :ivar timeout: seconds each may take to open.
    """

    streams: int = 1000
    seconds: float = 10.0
    hold: float = 10.0
    timeout: float = 10.0


@dataclass(frozen=True, slots=True)
class Herd:
    """Who asks for a page at once.

    :ivar path: of the page, after that of the app.
    :ivar callers: how many.
    :ivar timeout: seconds an answer may take.
    :raises ParameterError: when the path is none.
    """

    path: str
    callers: int = 500
    timeout: float = 30.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"/[!-~]*", self.path):
            raise ParameterError(f"{self.path!r} is no path: it begins with '/', percent-encoded.")


class Times:
    """Durations in seconds, and what is told of them; of very many it keeps a part."""

    def __init__(self) -> None:
        self._kept: list[float] = []
        self._longest = 0.0
        self._count = 0
        self._stride = 1

    def add(self, seconds: float) -> None:
        """Add one."""
        self._longest = max(self._longest, seconds)
        if self._count % self._stride == 0:
            self._kept.append(seconds)
        self._count += 1
        if len(self._kept) > _KEPT:
            del self._kept[1::2]
            self._stride *= 2

    def milliseconds(self) -> dict[str, float] | None:
        """Return the median, the 99th percentile and the longest; None of nothing."""
        ordered = sorted(self._kept)
        if not ordered:
            return None
        p50, p99 = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.99))
        named = {"p50": p50, "p99": p99, "max": self._longest}
        return {name: round(1000 * seconds, 1) for name, seconds in named.items()}


@dataclass
class Streamed:
    """How the streams were.

    :ivar failed: those that did not open, by reason.
    :ivar lost: those that ended before they were closed here, by reason.
    :ivar opening: from the request until ``stream.open``.
    :ivar latency: of events, by the clocks of both machines.
    :ivar resets: streams that were told to fetch everything again.
    :ivar took: seconds until all were tried.
    :ivar late: seconds by which this client was behind at most.
    """

    asked: int
    connected: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    opening: Times = field(default_factory=Times)
    events: int = 0
    latency: Times = field(default_factory=Times)
    resets: int = 0
    took: float = 0.0
    late: float = 0.0

    @property
    def sound(self) -> bool:
        """Whether every stream opened and lasted."""
        return not self.failed and not self.lost

    def body(self) -> dict[str, Any]:
        """Return what JSON shows; times are in milliseconds, durations in seconds."""
        return {
            "asked": self.asked,
            "connected": self.connected,
            "failed": dict(self.failed),
            "lost": dict(self.lost),
            "seconds": round(self.took, 2),
            "opening_ms": self.opening.milliseconds(),
            "events": self.events,
            "latency_ms": self.latency.milliseconds(),
            "resets": self.resets,
            "client_late_ms": round(1000 * self.late, 1),
        }


@dataclass
class Answered:
    """How the herd was answered.

    :ivar statuses: how many had which.
    :ivar failed: those that had no answer, by reason.
    :ivar shared: how `coalesce` answered: ``worked out``, ``joined``, ``kept``, or ``not
        coalesced`` where it did not.
    :ivar took: seconds from the first request to the last answer.
    """

    path: str
    asked: int
    statuses: Counter[int] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    shared: Counter[str] = field(default_factory=Counter)
    times: Times = field(default_factory=Times)
    took: float = 0.0

    @property
    def sound(self) -> bool:
        """Whether everybody had an answer, and none of them says that something failed."""
        return not self.failed and all(status < 400 for status in self.statuses)

    def body(self) -> dict[str, Any]:
        """Return what JSON shows; times are in milliseconds, durations in seconds."""
        return {
            "path": self.path,
            "asked": self.asked,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "failed": dict(self.failed),
            "shared": dict(self.shared),
            "answer_ms": self.times.milliseconds(),
            "seconds": round(self.took, 2),
        }


def open_streams(targets: Sequence[Target], prefix: str, ramp: Ramp) -> Streamed:
    """Open streams, read them for a while, and close them.

    :param targets: the app, once for each user; they take turns.
    :param prefix: the path of the blueprint.
    :raises ConfigError: when this process may not open as many files.
    """
    _make_room(ramp.streams)
    return asyncio.run(_ramp(targets, prefix, ramp))


def send_herd(targets: Sequence[Target], herd: Herd) -> Answered:
    """Have many ask for a page at once, on connections that are there already.

    :param targets: the app, once for each user; they take turns.
    :raises ConfigError: when this process may not open as many files.
    """
    _make_room(herd.callers)
    return asyncio.run(_stampede(targets, herd))


def _make_room(connections: int) -> None:
    needed = connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise ConfigError(
            f"{connections} connections need {needed} open files, and a process here may have "
            f"{hard}; raise `ulimit -Hn`, or ask for fewer."
        )
    if soft != resource.RLIM_INFINITY and needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


# Streams.


async def _ramp(targets: Sequence[Target], prefix: str, ramp: Ramp) -> Streamed:
    found = Streamed(ramp.streams)
    clients = [_Client(target) for target in targets]
    probe = asyncio.create_task(_measure_lateness(found))
    begun = time.monotonic()
    tried = [asyncio.Event() for _ in range(ramp.streams)]
    tasks = []
    for number, event in enumerate(tried):
        due = begun + ramp.seconds * number / ramp.streams
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        stream = _Stream(clients[number % len(clients)], f"{prefix}/stream", found)
        tasks.append(asyncio.create_task(stream.run(ramp.timeout, event)))
    for event in tried:
        await event.wait()
    found.took = time.monotonic() - begun
    await asyncio.sleep(ramp.hold if found.connected else 0.0)
    for task in (*tasks, probe):
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome
    return found


async def _measure_lateness(found: Streamed) -> None:
    while True:
        begun = time.monotonic()
        await asyncio.sleep(_PROBE)
        found.late = max(found.late, time.monotonic() - begun - _PROBE)


class _Stream:
    """One stream, and what it adds to what is found."""

    def __init__(self, client: _Client, path: str, found: Streamed) -> None:
        self._client = client
        self._path = path
        self._found = found
        self._closing = ""

    async def run(self, timeout: float, tried: asyncio.Event) -> None:
        """Open it within *timeout* seconds, and read it until it ends or this is cancelled."""
        connection: _Connection | None = None
        begun = time.monotonic()
        try:
            connection = await asyncio.wait_for(self._client.connect(), timeout)
            left = begun + timeout - time.monotonic()
            await asyncio.wait_for(self._open(connection), left)
        except (_Refused, *_FAILURES) as error:
            self._found.failed[_reason(error)] += 1
            if connection is not None:
                connection.close()
            return
        finally:
            tried.set()
        self._found.connected += 1
        self._found.opening.add(time.monotonic() - begun)
        try:
            await self._read(connection)
        finally:
            connection.close()

    async def _open(self, connection: _Connection) -> None:
        answer = await connection.ask(self._path, {"Accept": "text/event-stream"})
        if answer.status != 200:
            raise _Refused(f"HTTP {answer.status}")
        if not answer.headers.get("content-type", "").startswith("text/event-stream"):
            raise _Refused("no event stream")
        self._body = answer.body
        self._frames = Frames(answer.headers.get("content-encoding", ""))
        async for wire in self._body:
            frames = self._frames.feed(wire)
            for frame in frames:
                self._take(frame)
            if frames:
                return
        raise _Refused("it ended at once")

    async def _read(self, connection: _Connection) -> None:
        try:
            async for wire in self._body:
                for frame in self._frames.feed(wire):
                    self._take(frame)
        except _FAILURES:
            pass
        self._found.lost[self._closing or "cut off"] += 1

    def _take(self, frame: Frame) -> None:
        if frame.type not in _CONTROL:
            self._found.events += 1
            happened = _time_of(frame.data.get("timestamp"))
            if happened is not None:
                # Clocks of two machines differ.
                self._found.latency.add(max(0.0, time.time() - happened))
        elif frame.type == "stream.reset":
            self._found.resets += 1
        elif frame.type == "stream.close":
            self._closing = f"ended by the app: {frame.data.get('reason')}"


def _time_of(timestamp: object) -> float | None:
    try:
        moment = datetime.fromisoformat(str(timestamp).removesuffix("Z"))
    except ValueError:
        return None
    return moment.replace(tzinfo=timezone.utc).timestamp()


# The herd.


async def _stampede(targets: Sequence[Target], herd: Herd) -> Answered:
    found = Answered(herd.path, herd.callers)
    clients = [_Client(target) for target in targets]
    connecting = [
        asyncio.wait_for(clients[number % len(clients)].connect(), herd.timeout)
        for number in range(herd.callers)
    ]
    connected: list[_Connection] = []
    for outcome in await asyncio.gather(*connecting, return_exceptions=True):
        if isinstance(outcome, _Connection):
            connected.append(outcome)
        else:
            found.failed[_reason(outcome)] += 1
    begun = time.monotonic()
    await asyncio.gather(*(_call(connection, herd, found) for connection in connected))
    found.took = time.monotonic() - begun
    return found


async def _call(connection: _Connection, herd: Herd, found: Answered) -> None:
    begun = time.monotonic()
    try:
        answer = await asyncio.wait_for(_read_whole(connection, herd.path), herd.timeout)
    except _FAILURES as error:
        found.failed[_reason(error)] += 1
        return
    finally:
        connection.close()
    found.times.add(time.monotonic() - begun)
    found.statuses[answer.status] += 1
    found.shared[how_shared(answer.headers.get("cache-status", ""))] += 1


async def _read_whole(connection: _Connection, path: str) -> _Answer:
    answer = await connection.ask(path, {"Connection": "close"})
    async for _ in answer.body:
        pass
    return answer


def how_shared(cache_status: str) -> str:
    """Return how `coalesce` answered, by a ``Cache-Status`` header (RFC 9211)."""
    for member in cache_status.split(","):
        name, *parameters = (part.strip() for part in member.split(";"))
        if name == CACHE:
            if "hit" in parameters:
                return "kept"
            return "joined" if "collapsed" in parameters else "worked out"
    return "not coalesced"


# HTTP/1.1, as far as it is needed.


class _Refused(Exception):
    """An answer is no stream; the text says what it is."""


class _Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: AsyncIterator[bytes]


class _Client:
    """Connects to a target. TLS is set up once: reading the certificates takes a while."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._tls = target.tls("http/1.1")

    async def connect(self) -> _Connection:
        target = self._target
        name = target.host if self._tls else None
        reader, writer = await asyncio.open_connection(
            target.host, target.port, ssl=self._tls, server_hostname=name
        )
        return _Connection(target, reader, writer)


class _Connection:
    """A connection, for one request."""

    def __init__(
        self, target: Target, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._target = target
        self._reader = reader
        self._writer = writer

    async def ask(self, path: str, headers: Mapping[str, str]) -> _Answer:
        """Send a GET, and read the head of its answer.

        :raises ValueError: when it is none of HTTP.
        """
        target = self._target
        given = (("Host", target.host_header), *headers.items(), *target.headers)
        # Two of a name, however they are written, are refused.
        sent = {name.lower(): f"{name}: {value}" for name, value in given}
        lines = [f"GET {target.path}{path} HTTP/1.1", *sent.values()]
        self._writer.write("\r\n".join([*lines, "", ""]).encode())
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *fields = head.rstrip().split("\r\n")
        found = {
            name.strip().lower(): value.strip()
            for name, _, value in (each.partition(":") for each in fields)
        }
        _, status, *_ = first.split(" ", 2)
        return _Answer(int(status), found, self._body(found))

    def close(self) -> None:
        """Close it at once, as a tab that is closed does."""
        with suppress(OSError, ssl.SSLError):
            self._writer.close()

    async def _body(self, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
        reader = self._reader
        if headers.get("transfer-encoding", "").lower() == "chunked":
            # RFC 9112, section 7.1.
            while size := int((await reader.readline()).partition(b";")[0], 16):
                yield (await reader.readexactly(size + 2))[:-2]
        elif "content-length" in headers:
            yield await reader.readexactly(int(headers["content-length"]))
        else:
            while wire := await reader.read(_BYTES):
                yield wire


def _reason(error: BaseException) -> str:
    if isinstance(error, _Refused):
        return str(error)
    if isinstance(error, (asyncio.TimeoutError, TimeoutError)):
        return "no answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted here: {error.verify_message}"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    return type(error).__name__
