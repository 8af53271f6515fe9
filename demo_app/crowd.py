"""Virtual viewers: as many pages that poll as pages that stream, on real connections.

They do what a page does, and draw nothing. A process of its own, so that the server's loop does not
do its clients' work; it shares the machine with the server all the same. It is told by an event how
many viewers there are to be, and reports each second through the signed webhook.
"""

from __future__ import annotations

from gevent import monkey

if __name__ == "__main__":
    monkey.patch_all()

import hashlib
import hmac
import json
import logging
import os
import random
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from http.client import HTTPConnection, HTTPException
from socket import create_connection, socket
from urllib.parse import urlencode

import gevent

VIEWERS = "compare.viewers"
SAMPLE = "compare.sample"

MOST = 200
"""Viewers of each kind: what two cores can do, being server, clients and browser at once."""

POLL = 5.0
"""Seconds between two polls of a page, as in the legacy script."""

STAY = 300.0
"""Seconds after which a viewer opens its page anew, on average."""

ACCOUNT = "alex"
"""Not the one most people try first, whose logout ends all streams of the account."""

PANELS = ("incidents", "servers", "logs", "automations")

_FORGOTTEN = 15.0
_PATIENCE = 30.0
_ARRIVALS = 50
_STREAM = "/api/v1/events/stream"

_logger = logging.getLogger(__name__)


@dataclass
class Meter:
    """What viewers of one kind have cost so far: requests, statements, bytes both ways."""

    viewers: int = 0
    requests: int = 0
    queries: int = 0
    bytes: int = 0
    failures: int = 0


class Connection:
    """One keep-alive connection to the server, whose every byte is counted."""

    def __init__(self, port: int, cookie: str, meter: Meter) -> None:
        self._port = port
        self._head = f" HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nCookie: {cookie}\r\n"
        self._meter = meter
        self._socket: socket | None = None

    def get(self, path: str) -> dict[str, str]:
        """Return the head of the answer once all of it is there.

        :raises OSError: when it does not come, or is no success.
        """
        head, rest = self.open(path)
        left = int(head.get("content-length", 0)) - len(rest)
        while left > 0:
            left -= len(self.read())
        if head["status"] != "200":
            raise OSError(f"{path} answered {head['status']}")
        return head

    def open(self, path: str) -> tuple[dict[str, str], bytes]:
        """Return the head of the answer, and what came with it."""
        self._meter.requests += 1
        request = f"GET {path}{self._head}Accept: */*\r\n\r\n".encode()
        got = b""
        # The server ends what is idle; a browser then asks again, and so does this.
        if self._socket is not None:
            with suppress(OSError):
                got = self._exchange(request)
        if not got:
            self.close()
            self._socket = create_connection(("127.0.0.1", self._port), timeout=_PATIENCE)
            got = self._exchange(request)
        while b"\r\n\r\n" not in got:
            got += self.read()
        head, _, rest = got.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.partition(": ") for line in lines)
        fields = {name.lower(): value for name, _, value in pairs}
        fields["status"] = first.split(" ")[1]
        self._meter.queries += int(fields.get("x-demo-queries", 0))
        return fields, rest

    def read(self) -> bytes:
        """Return what comes next.

        :raises OSError: when nothing does.
        """
        assert self._socket is not None
        got = self._socket.recv(65536)
        if not got:
            raise ConnectionResetError("the server has ended the connection")
        self._meter.bytes += len(got)
        return got

    def close(self) -> None:
        """End it."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _exchange(self, request: bytes) -> bytes:
        assert self._socket is not None
        self._socket.sendall(request)
        got = self.read()
        self._meter.bytes += len(request)
        return got


def poll(connection: Connection) -> None:
    """Do what the legacy page does until it is opened anew."""
    gevent.sleep(random.uniform(0, POLL))
    until = time.monotonic() + random.expovariate(1 / STAY)
    while time.monotonic() < until:
        begun = time.monotonic()
        for panel in PANELS:
            connection.get(f"/before/api/{panel}")
        gevent.sleep(max(0, begun + POLL - time.monotonic()))


def stream(connection: Connection) -> None:
    """Do what the live page does until it is opened anew."""
    position = ""
    for panel in PANELS:
        head = connection.get(f"/api/{panel}")
        position = position or head["x-noc-position"]
    head, _ = connection.open(f"{_STREAM}?last_event_id={position}")
    if head["status"] != "200":
        raise OSError(f"the stream answered {head['status']}")
    with gevent.Timeout(random.expovariate(1 / STAY), False):
        while True:
            connection.read()


class Kind:
    """The viewers of one kind."""

    def __init__(self, does: Callable[[Connection], None], port: int) -> None:
        self.meter = Meter()
        self._does = does
        self._port = port
        self._viewers: list[gevent.Greenlet] = []

    def be(self, count: int, cookie: str) -> None:
        """Have as many as *count*, soon."""
        for _ in range(min(count - len(self._viewers), _ARRIVALS)):
            self._viewers.append(gevent.spawn(self._view, cookie))
        for viewer in self._viewers[count:]:
            viewer.kill(block=False)
        del self._viewers[count:]
        self.meter.viewers = len(self._viewers)

    def _view(self, cookie: str) -> None:
        while True:
            connection = Connection(self._port, cookie, self.meter)
            try:
                self._does(connection)
            except OSError:
                self.meter.failures += 1
                gevent.sleep(random.uniform(1, 3))
            finally:
                connection.close()


class Crowd:
    """All viewers, and the two who speak with the server."""

    def __init__(self, port: int, secret: str, account: tuple[str, str]) -> None:
        self._port = port
        self._secret = secret.encode()
        self._account = account
        self._kinds = {"polling": Kind(poll, port), "streams": Kind(stream, port)}
        self._cookie = ""
        self._wanted = 0
        self._until = 0.0

    def run(self) -> None:
        """Go on for as long as the process that started this one does."""
        parent = os.getppid()
        gevent.spawn(self._listen)
        while os.getppid() == parent:
            gevent.sleep(1)
            wanted = self._wanted if time.monotonic() < self._until else 0
            for kind in self._kinds.values():
                kind.be(wanted, self._cookie)
            if time.monotonic() < self._until:
                with suppress(OSError, HTTPException):
                    self._report()

    def _listen(self) -> None:
        while True:
            try:
                self._cookie = self._log_in()
                self._follow()
            except (OSError, HTTPException) as error:
                _logger.debug("The crowd hears nothing: %s", error)
            gevent.sleep(1)

    def _log_in(self) -> str:
        form = urlencode(dict(zip(("name", "password"), self._account, strict=True)))
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        connection = HTTPConnection("127.0.0.1", self._port, timeout=_PATIENCE)
        connection.request("POST", "/login", form, headers)
        cookie = connection.getresponse().headers["Set-Cookie"] or ""
        connection.close()
        return cookie.partition(";")[0]

    def _follow(self) -> None:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=_PATIENCE)
        connection.request("GET", f"{_STREAM}?types={VIEWERS}", headers={"Cookie": self._cookie})
        for line in connection.getresponse():
            if line.startswith(b"data: {"):
                data = json.loads(line[6:]).get("data")
                if isinstance(data, dict) and "viewers" in data:
                    self._wanted = min(data["viewers"], MOST)
                    self._until = time.monotonic() + _FORGOTTEN
        connection.close()

    def _report(self) -> None:
        data = {name: asdict(kind.meter) for name, kind in self._kinds.items()}
        event = {"type": SAMPLE, "data": {**data, "at": time.time()}}
        body, now = json.dumps(event).encode(), str(int(time.time()))
        signature = hmac.new(self._secret, now.encode() + b"." + body, hashlib.sha256).hexdigest()
        headers = {
            "Content-Type": "application/json",
            "X-Noc-Timestamp": now,
            "X-Noc-Signature": f"sha256={signature}",
        }
        connection = HTTPConnection("127.0.0.1", self._port, timeout=_PATIENCE)
        connection.request("POST", "/api/v1/events/ingest/webhook", body, headers)
        connection.getresponse().read()
        connection.close()


if __name__ == "__main__":
    from demo_app.legacy.users import ACCOUNTS

    try:
        Crowd(
            int(sys.argv[1]),
            os.environ["NOC_REALTIME_INGEST_SECRET"],
            (ACCOUNT, ACCOUNTS[ACCOUNT][1]),
        ).run()
    except KeyboardInterrupt:
        pass
