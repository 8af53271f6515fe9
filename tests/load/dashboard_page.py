"""The dashboard's page in browsers: what it shows, and what it costs on the wire."""

from __future__ import annotations

import json
import random
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from typing import Any

import gevent
from gevent import socket

from tests.load.dashboard_app import PANELS, SNAPSHOT, STATS, STREAM

Row = dict[str, Any]

INCIDENTS, STATISTICS, SERVERS = PANELS
SHOWN = 60
"""Incidents on the page: as many as the legacy service lists."""

_HEADERS = """\
Host: noc.example.net
Connection: keep-alive
User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) \
Chrome/126.0.0.0 Safari/537.36
Accept: */*
Referer: https://noc.example.net/
Accept-Encoding: gzip, deflate, br, zstd
Accept-Language: en-GB,en;q=0.9
"""
"""What a browser of today sends with each request, besides its cookies."""

_TIMEOUT = 120.0
_RETRY = 1.0
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.I)
_ETAG = re.compile(rb"\r\netag: ([^\r]+)", re.I)
_POSITION = re.compile(rb"\r\nx-noc-position: ([^\r]+)", re.I)
_POSITION_IN_DOCUMENT = re.compile(rb'data-position="([^"]+)"')


@dataclass
class Meter:
    """What all pages did.

    :ivar waits: seconds from each request to its last byte; a stream's are to its head.
    :ivar ages: how old each new incident was when a page first showed it.
    """

    requests: int = 0
    bytes: int = 0
    failures: int = 0
    resets: int = 0
    waits: list[float] = field(default_factory=list)
    ages: list[float] = field(default_factory=list)

    def now(self) -> Meter:
        """Return a copy, to count from with `since`."""
        return replace(self, waits=[*self.waits], ages=[*self.ages])

    def since(self, begun: Meter) -> Meter:
        """Return what was added to *begun*."""
        return Meter(
            self.requests - begun.requests,
            self.bytes - begun.bytes,
            self.failures - begun.failures,
            self.resets - begun.resets,
            self.waits[len(begun.waits) :],
            self.ages[len(begun.ages) :],
        )


class Refused(Exception):
    """The server answered with something else than the page asked for."""


@dataclass(frozen=True)
class Answer:
    """What the server sent.

    :ivar body: None where the one from before is still right.
    """

    body: bytes | None
    etag: bytes | None
    position: bytes | None


class Connection:
    """One HTTP/1.1 connection of a browser, its bytes counted in both directions."""

    def __init__(self, port: int, cookie: str, meter: Meter) -> None:
        self._meter = meter
        self._head = f"{_HEADERS}Cookie: {cookie}\n".replace("\n", "\r\n")
        self._rest = b""
        self._socket = socket.create_connection(("127.0.0.1", port), _TIMEOUT)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()

    def get(self, path: str, etag: bytes | None = None) -> Answer:
        """Return what is at *path*, without its body where it is still the one of *etag*."""
        begun = time.monotonic()
        head = self._ask(path, b"If-None-Match: %b\r\n" % etag if etag else b"")
        length = _LENGTH.search(head)
        body = self._take(int(length[1])) if length else b""
        self._meter.waits.append(time.monotonic() - begun)
        fresh = head[9:12] == b"304" and etag is not None
        if not fresh and head[9:12] != b"200":
            raise Refused(f"{path}: {head.decode()}")
        found, position = _ETAG.search(head), _POSITION.search(head)
        return Answer(None if fresh else body, found and found[1], position and position[1])

    def stream(self, path: str) -> Iterator[bytes]:
        """Yield the chunks of a body that does not end by itself."""
        begun = time.monotonic()
        head = self._ask(path, b"Cache-Control: no-cache\r\n")
        self._meter.waits.append(time.monotonic() - begun)
        if head[9:12] != b"200" or b"chunked" not in head:
            raise Refused(f"{path}: {head.decode()}")
        while size := int(self._until(b"\r\n"), 16):
            yield self._take(size)
            self._take(2)

    def _ask(self, path: str, header: bytes) -> bytes:
        request = f"GET {path} HTTP/1.1\r\n{self._head}".encode() + header + b"\r\n"
        self._meter.requests += 1
        self._meter.bytes += len(request)
        self._socket.sendall(request)
        return self._until(b"\r\n\r\n")

    def _until(self, end: bytes) -> bytes:
        while (at := self._rest.find(end)) < 0:
            self._receive()
        found, self._rest = self._rest[:at], self._rest[at + len(end) :]
        return found

    def _take(self, size: int) -> bytes:
        while len(self._rest) < size:
            self._receive()
        found, self._rest = self._rest[:size], self._rest[size:]
        return found

    def _receive(self) -> None:
        data = self._socket.recv(65536)
        if not data:
            raise EOFError("the server closed the connection")
        self._meter.bytes += len(data)
        self._rest += data


class Page:
    """What one user sees."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._incidents: dict[int, Row] = {}
        self._servers: dict[str, Row] = {}
        self._statistics: Row = {}
        self._newest: int | None = None

    def show(self, panel: str, data: Any) -> None:
        """Replace a panel by what was fetched."""
        if panel == INCIDENTS:
            self._incidents = {row["id"]: row for row in data}
            for row in data:
                self._see(row)
            self._newest = max(self._incidents, default=0)
        elif panel == SERVERS:
            self._servers = {row["name"]: row for row in data}
        else:
            self._statistics = data

    def apply(self, type: str, data: Any) -> None:
        """Change what an event says."""
        if type == STATS:
            self._statistics = data
        elif type == "server.status.changed":
            self._servers[data["name"]] = data
        elif type.startswith("incident."):
            self._see(data)
            self._newest = max(self._newest or 0, data["id"])
            self._incidents[data["id"]] = data
            while len(self._incidents) > SHOWN:
                del self._incidents[min(self._incidents)]

    def shows(self, panels: Mapping[str, Any]) -> bool:
        """Whether all of it is what the database has."""
        return (
            [self._incidents[number] for number in sorted(self._incidents, reverse=True)],
            list(self._servers.values()),
            self._statistics,
        ) == (panels[INCIDENTS], panels[SERVERS], panels[STATISTICS])

    def _see(self, row: Row) -> None:
        if self._newest is not None and row["id"] > self._newest:
            self._meter.ages.append(time.time() - _seconds(row["opened_at"]))


class User:
    """Somebody with a login and one page, opened and closed as a browser does.

    :param cookie: shows the login.
    :param every: the shortest and the longest time between two polls, in seconds.
    :ivar whole: load all panels as one snapshot, with a position of its own.
    :ivar ready: whether the page has come to the point from which it stays.
    """

    def __init__(self, cookie: str, port: int, meter: Meter, every: tuple[float, float]) -> None:
        self.whole = self.ready = False
        self.page = Page(meter)
        self._every = every
        self._port = port
        self._meter = meter
        self._cookie = cookie
        self._etags: dict[str, bytes | None] = {}
        self._life: gevent.Greenlet | None = None

    def open(self, *, again: bool = True) -> None:
        """Load the page, or load it again; *again* is False in the morning."""
        self.close()
        self._life = gevent.spawn(self._live, again)

    def close(self) -> None:
        """Close the page."""
        if self._life is not None:
            self._life.kill()

    def load(self) -> bytes | None:
        """Load document and panels, and return the position the document has, if any."""
        with self._connect() as connection:
            document = self._get(connection, "/").body
            self._fetch(connection)
        position = _POSITION_IN_DOCUMENT.search(document or b"")
        return position and position[1]

    def refresh(self) -> None:
        """Fetch the panels."""
        with self._connect() as connection:
            self._fetch(connection)

    def stay(self, again: bool) -> None:
        """Do what the page does as long as it is open."""
        raise NotImplementedError

    def _connect(self) -> Connection:
        return Connection(self._port, self._cookie, self._meter)

    def _get(self, connection: Connection, path: str) -> Answer:
        answer = connection.get(path, self._etags.get(path))
        self._etags[path] = answer.etag
        return answer

    def _fetch(self, connection: Connection) -> None:
        for panel in PANELS:
            body = self._get(connection, panel).body
            if body is not None:
                self.page.show(panel, json.loads(body))

    def _live(self, again: bool) -> None:
        while True:
            try:
                self.stay(again)
            except (OSError, EOFError, Refused) as error:
                self._meter.failures += 1
                print(f"{error!r}", file=sys.stderr)
            gevent.sleep(_RETRY)


class Polling(User):
    """The page before: a timer fetches its panels."""

    def stay(self, again: bool) -> None:
        """Load and poll; in the morning, as if it had been doing so for long."""
        self.load()
        self.ready = True
        shortest, longest = self._every
        wait = random.uniform(shortest, longest)
        if not again:
            # A moment falls into a long wait more often than into a short one.
            wait = random.random() * random.uniform(shortest**2, longest**2) ** 0.5
        while True:
            gevent.sleep(wait)
            self.refresh()
            wait = random.uniform(shortest, longest)


class Streaming(User):
    """The page after: it applies events, and loads only when it is opened or reset."""

    def load_whole(self) -> bytes | None:
        """Load document and snapshot, and return the position of the snapshot."""
        with self._connect() as connection:
            self._get(connection, "/")
            answer = self._get(connection, SNAPSHOT)
        for panel, data in json.loads(answer.body or b"{}").items():
            self.page.show(panel, data)
        return answer.position

    def stay(self, again: bool) -> None:
        """Load, and follow the stream from the position the page has."""
        position = (self.load_whole() if self.whole else self.load()) or b""
        with self._connect() as connection:
            rest = b""
            for chunk in connection.stream(f"{STREAM}&last_event_id={position.decode()}"):
                *frames, rest = (rest + chunk).split(b"\n\n")
                for frame in frames:
                    type, data = _event(frame)
                    self.ready = True
                    if type == "stream.reset":
                        self._meter.resets += 1
                        return
                    self.page.apply(type, data)
        raise EOFError("the stream ended")


@lru_cache(1024)
def _event(frame: bytes) -> tuple[str, Any]:
    fields = dict(line.split(b": ", 1) for line in frame.split(b"\n") if b": " in line)
    if b"data" not in fields:
        return "", None  # a comment or a retry: browsers dispatch nothing
    return fields[b"event"].decode(), json.loads(fields[b"data"]).get("data")


@lru_cache(1024)
def _seconds(iso: str) -> float:
    return datetime.fromisoformat(iso).timestamp()
