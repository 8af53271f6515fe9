"""A blocking SSE client on a plain socket that shows everything the server sent.

It reads only when asked, so a test decides how slow a client is.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

_LINE_END = re.compile(rb"\r\n|\r|\n")


@dataclass(frozen=True)
class ServerEvent:
    """One dispatched event. `id` is the last event id at that moment, as in a browser."""

    type: str
    data: str
    id: str

    @property
    def json(self) -> Any:
        """The data, decoded."""
        return json.loads(self.data)


class EventParser:
    """Turns the bytes of a body into events: WHATWG HTML, section 9.2.6."""

    def __init__(self) -> None:
        self.last_event_id = ""
        self.retry: int | None = None
        self.comments: list[str] = []
        self._rest = b""
        self._begun = False
        self._data: list[str] = []
        self._type = ""
        self._id = ""

    def feed(self, body: bytes) -> list[ServerEvent]:
        """Return the events that *body* completes."""
        self._rest += body
        if not self._begun:
            if b"\xef\xbb\xbf".startswith(self._rest[:3]) and len(self._rest) < 3:
                return []
            self._begun = True
            self._rest = self._rest.removeprefix(b"\xef\xbb\xbf")
        events = []
        at = 0
        for end in _LINE_END.finditer(self._rest):
            if end.group() == b"\r" and end.end() == len(self._rest):
                break  # its LF may be on the way
            event = self._line(self._rest[at : end.start()].decode("utf-8", "replace"))
            at = end.end()
            if event is not None:
                events.append(event)
        self._rest = self._rest[at:]
        return events

    def _line(self, line: str) -> ServerEvent | None:
        if not line:
            return self._dispatch()
        name, colon, value = line.partition(":")
        value = value.removeprefix(" ")
        if not name and colon:
            self.comments.append(value)
        elif name == "event":
            self._type = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and re.fullmatch("[0-9]+", value):
            self.retry = int(value)
        return None

    def _dispatch(self) -> ServerEvent | None:
        self.last_event_id = self._id
        data, type = self._data, self._type
        self._data, self._type = [], ""
        if not data:
            return None
        return ServerEvent(type or "message", "\n".join(data), self.last_event_id)


class _Dechunker:
    """Takes the chunks of RFC 9112, section 7.1 apart."""

    def __init__(self) -> None:
        self.ended = False
        self._rest = b""
        self._left = 0
        self._last = False

    def feed(self, wire: bytes) -> bytes:
        self._rest += wire
        body = b""
        while self._rest and not self.ended:
            if self._left == 0:
                line, end, rest = self._rest.partition(b"\r\n")
                if not end:
                    break
                self._left = int(line.partition(b";")[0], 16) + 2
                self._rest = rest
                self._last = self._left == 2
            if self._left > 2:
                part = self._rest[: self._left - 2]
                body += part
                self._left -= len(part)
                self._rest = self._rest[len(part) :]
            if self._left <= 2:
                if len(self._rest) < self._left:
                    break
                if self._rest[: self._left] != b"\r\n":
                    raise ValueError(f"a chunk ends with {self._rest[:8]!r}")
                self._rest = self._rest[self._left :]
                self._left = 0
                self.ended = self._last
        return body


class SSEClient:
    """One connection: it is made, and the response head read, on construction.

    :param address: ``(host, port)``, or the path of a Unix socket.
    :param path: path and query of the request.
    :param last_event_id: sent as ``Last-Event-ID``.
    :param headers: added to the request, or replacing its own.
    :param version: ``"1.1"`` or ``"1.0"``.
    :param tls: the context for HTTPS.
    :param receive_buffer: bytes of SO_RCVBUF, small for a client that is soon full.
    :param timeout: seconds for the connection and the head.
    """

    def __init__(
        self,
        address: tuple[str, int] | str,
        path: str = "/api/v1/events/stream",
        *,
        last_event_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        version: str = "1.1",
        tls: ssl.SSLContext | None = None,
        receive_buffer: int | None = None,
        timeout: float = 10.0,
    ) -> None:
        self.status = 0
        self.reason = ""
        self.headers: dict[str, str] = {}
        self.raw = bytearray()
        """Everything received, the response head included."""
        self.body = bytearray()
        """The body without chunk framing."""
        self.ended = False
        """Whether the body has ended."""
        self.truncated = False
        """Whether the connection ended before the body did."""
        self._parser = EventParser()
        self._events: deque[ServerEvent] = deque()
        self._dechunker: _Dechunker | None = None
        self._length: int | None = None
        host = "localhost" if isinstance(address, str) else f"{address[0]}:{address[1]}"
        sent = {"Host": host, "Accept": "text/event-stream"}
        if last_event_id is not None:
            sent["Last-Event-ID"] = last_event_id
        sent.update(headers or {})
        lines = [f"GET {path} HTTP/{version}", *(f"{k}: {v}" for k, v in sent.items())]
        deadline = time.monotonic() + timeout
        self.socket = _connect(address, tls, receive_buffer, timeout)
        try:
            self.socket.sendall("\r\n".join([*lines, "", ""]).encode())
            self._read_head(deadline)
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self) -> SSEClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def last_event_id(self) -> str:
        """What a browser would send when it reconnects."""
        return self._parser.last_event_id

    @property
    def retry(self) -> int | None:
        """The newest ``retry:``, in milliseconds."""
        return self._parser.retry

    @property
    def comments(self) -> list[str]:
        """Comment lines seen so far."""
        return self._parser.comments

    def next_event(self, timeout: float = 5.0) -> ServerEvent:
        """Return the next event, control events and heartbeats included.

        :raises TimeoutError: when none comes within *timeout* seconds.
        :raises EOFError: when the body ends first.
        """
        deadline = time.monotonic() + timeout
        while not self._events:
            self._receive(deadline)
        return self._events.popleft()

    def events_until(
        self, predicate: Callable[[ServerEvent], bool], timeout: float = 5.0
    ) -> list[ServerEvent]:
        """Return events up to and with the first that satisfies *predicate*.

        :raises TimeoutError: and EOFError, both showing what came instead.
        """
        deadline = time.monotonic() + timeout
        events: list[ServerEvent] = []
        while not events or not predicate(events[-1]):
            try:
                events.append(self.next_event(deadline - time.monotonic()))
            except (TimeoutError, EOFError) as error:
                raise type(error)(f"{error}; {len(events)} events before: {events[-5:]}") from None
        return events

    def until_end(self, timeout: float = 5.0) -> list[ServerEvent]:
        """Return the remaining events once the body has ended; see `truncated`.

        :raises TimeoutError: when it does not end within *timeout* seconds.
        """
        deadline = time.monotonic() + timeout
        while not self.ended:
            try:
                self._receive(deadline)
            except EOFError:
                break
        events = list(self._events)
        self._events.clear()
        return events

    def problem(self, timeout: float = 5.0) -> Any:
        """Return the JSON body of a response that is no stream."""
        self.until_end(timeout)
        return json.loads(self.body)

    def silent_for(self, seconds: float) -> bool:
        """Tell whether no event comes within *seconds*; one that comes is kept."""
        deadline = time.monotonic() + seconds
        try:
            while not self._events:
                self._receive(deadline)
        except TimeoutError:
            return True
        return False

    def close(self) -> None:
        """Close the connection, as a closed tab does."""
        self.socket.close()

    def reset(self) -> None:
        """Close the connection with a TCP reset, as a crashed machine's kernel does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()

    def _read_head(self, deadline: float) -> None:
        while b"\r\n\r\n" not in self.raw:
            wire = self._recv(deadline)
            if not wire:
                raise EOFError(f"the connection ended within the head: {bytes(self.raw)!r}")
        head, _, rest = bytes(self.raw).partition(b"\r\n\r\n")
        first, *fields = head.decode("latin-1").split("\r\n")
        _, status, self.reason = [*first.split(" ", 2), ""][:3]
        self.status = int(status)
        for field in fields:
            name, _, value = field.partition(":")
            name = name.lower()
            before = f"{self.headers[name]}, " if name in self.headers else ""
            self.headers[name] = before + value.strip()
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            self._dechunker = _Dechunker()
        elif "content-length" in self.headers:
            self._length = int(self.headers["content-length"])
        self._take(rest)

    def _receive(self, deadline: float) -> None:
        if self.ended:
            raise EOFError("the body has ended")
        wire = self._recv(deadline)
        if wire:
            self._take(wire)
        else:
            self.ended = True
            self.truncated = self._dechunker is not None or self._length is not None

    def _take(self, wire: bytes) -> None:
        if self._dechunker is not None:
            body = self._dechunker.feed(wire)
            self.ended = self._dechunker.ended
        else:
            body = wire
        self.body += body
        if self._length is not None:
            self.ended = len(self.body) >= self._length
        self._events.extend(self._parser.feed(body))

    def _recv(self, deadline: float) -> bytes:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("nothing came before the deadline")
        self.socket.settimeout(left)
        try:
            wire = self.socket.recv(65536)
        except TimeoutError:
            raise TimeoutError("nothing came before the deadline") from None
        except (ConnectionResetError, ssl.SSLEOFError):
            wire = b""
        self.raw += wire
        return wire


def _connect(
    address: tuple[str, int] | str,
    tls: ssl.SSLContext | None,
    receive_buffer: int | None,
    timeout: float,
) -> socket.socket:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    sock = socket.socket(family)
    try:
        sock.settimeout(timeout)
        if receive_buffer is not None:
            # The window is offered with the SYN, so it must be small before that.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.connect(address)
        if tls is not None:
            assert not isinstance(address, str)
            return tls.wrap_socket(sock, server_hostname=address[0])
        return sock
    except BaseException:
        sock.close()
        raise
