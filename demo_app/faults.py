"""A switch that breaks the connections of one page, in the ways networks and servers break.

A page that asks under ``/line/<its name>/`` has a line of its own, and only what comes over that is
broken. The switch is a file, so that the page may turn it at any worker.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

LINE = re.compile(r"/line/([0-9a-f]{8,32})(/.*)")
FAULTS = ("503", "hang", "cut", "half-open", "kill", "overflow")

_LOOK = 0.05
# What is done once, by the worker that has the stream; the others last.
_ONCE = ("cut", "half-open", "kill", "overflow")
_AT_MOST = 200
_SILENCE = 30.0
_ESTABLISHED = 1  # <netinet/tcp.h>

WSGI = Callable[[dict[str, Any], Any], Iterable[bytes]]


class Switch:
    """Which line is broken, how, and until when.

    :param directory: where it is kept; the workers share it.
    :param seconds: how long a fault lasts that lasts.
    """

    def __init__(self, directory: Path, seconds: float) -> None:
        self.seconds = seconds
        self._directory = directory
        directory.mkdir(exist_ok=True)

    def turn(self, line: str, fault: str) -> None:
        """Break *line*.

        :raises OverflowError: when too many are broken already.
        """
        if sum(1 for _ in self._directory.iterdir()) >= _AT_MOST:
            raise OverflowError("too many lines are broken")
        file = self._directory / line
        scratch = file.with_suffix(".new")
        scratch.write_text(json.dumps([fault, time.time() + self.seconds]))
        scratch.rename(file)

    def look(self, line: str) -> str | None:
        """Return how *line* is broken now."""
        try:
            fault, until = json.loads((self._directory / line).read_text())
        except FileNotFoundError:
            return None
        if time.time() < until:
            return str(fault)
        self.mend(line)
        return None

    def mend(self, line: str) -> None:
        """Let *line* be as it was."""
        (self._directory / line).unlink(missing_ok=True)


class Flood(NamedTuple):
    """What it takes to overflow a stream.

    :ivar drop: emits an event that the stream carries.
    :ivar pour: emits more than the history holds, none of which it carries.
    """

    drop: Callable[[], None]
    pour: Callable[[], None]


def gone(client: socket.socket | None) -> bool:
    """Tell whether the peer has ended the connection (Linux; elsewhere it is never told)."""
    kind = getattr(socket, "TCP_INFO", None)
    if client is None or kind is None:
        return False
    try:
        return client.getsockopt(socket.IPPROTO_TCP, kind, 1)[0] != _ESTABLISHED
    except OSError:
        return True


class Lines:
    """The app with lines that can be broken."""

    def __init__(self, app: WSGI, switch: Switch, flood: Flood) -> None:
        self._app = app
        self._switch = switch
        self._flood = flood

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer over a line, or as the app does."""
        found = LINE.fullmatch(environ["PATH_INFO"])
        if found is None:
            return self._app(environ, start_response)
        line, path = found.groups()
        client = environ.get("gunicorn.socket")
        while (fault := self._switch.look(line)) == "hang" and not gone(client):
            time.sleep(_LOOK)
        if fault == "503":
            start_response(
                "503 Service Unavailable", [("Retry-After", "1"), ("Content-Length", "0")]
            )
            return []
        # A stream that left the server could not be held back.
        inside = {name: value for name, value in environ.items() if name != "gunicorn.socket"}
        body = self._app(inside | {"PATH_INFO": path}, start_response)
        if not path.endswith("/stream") or client is None:
            return body
        return _Stream(body, client, line, self._switch, self._flood)


class _Stream(Iterator[bytes]):
    """A stream over a line, and the thread that breaks it."""

    def __init__(
        self,
        body: Iterable[bytes],
        client: socket.socket,
        line: str,
        switch: Switch,
        flood: Flood,
    ) -> None:
        self._body = body
        self._chunks = iter(body)
        self._client = client
        self._line = line
        self._switch = switch
        self._flood = flood
        self._held = threading.Event()
        self._goes_on = threading.Event()
        self._goes_on.set()
        self._closed = False
        threading.Thread(target=self._watch, name="line", daemon=True).start()

    def __next__(self) -> bytes:
        chunk = next(self._chunks)
        if not self._goes_on.is_set():
            self._held.set()
            self._goes_on.wait(_SILENCE)
        return chunk

    def close(self) -> None:
        """End it; the server does when the client is gone."""
        self._closed = True
        self._goes_on.set()
        close = getattr(self._body, "close", None)
        if close is not None:
            close()

    def _watch(self) -> None:
        # The fault is meant for the stream that took the place of one whose client has left.
        while not self._closed and not gone(self._client):
            fault = self._switch.look(self._line)
            if fault is None:
                time.sleep(_LOOK)
                continue
            if fault in _ONCE:
                self._switch.mend(self._line)
            if fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "half-open":
                self._goes_on.clear()
                self._wait_for_the_end()
                return
            if fault == "overflow":
                self._overflow()
                continue
            with suppress(OSError):
                self._client.shutdown(socket.SHUT_RDWR)
            return

    def _wait_for_the_end(self) -> None:
        """Let the server find out that the client has given up: it does when it writes."""
        while not self._closed and not gone(self._client):
            time.sleep(_LOOK)
        self._goes_on.set()

    def _overflow(self) -> None:
        """Keep an event back until those after it have left the history."""
        self._held.clear()
        self._goes_on.clear()
        self._flood.drop()
        if self._held.wait(_SILENCE / 2):
            self._flood.pour()
        self._goes_on.set()
