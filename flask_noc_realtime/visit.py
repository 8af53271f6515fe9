"""A visit to a running app: one stream, read as a browser would, and when what came of it."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from .target import Target

_BYTES = 64 * 1024
_SLACK = 2.0
_CONNECTS = 8
_LONGEST = 120.0
"""Seconds for which nobody who has not asked for it waits for a heartbeat."""

_EVENT = re.compile(rb"^event: ([^\n]*)$", re.M)
_DATA = re.compile(rb"^data: ([^\n]*)$", re.M)


class Frame(NamedTuple):
    """An event as it came: its type, and its data where that is an object."""

    type: str
    data: Mapping[str, Any]


@dataclass
class Visit:
    """What a stream was like, from outside.

    :ivar error: why there is no answer at all.
    :ivar headers: those of the response, with their names in lower case.
    :ivar version: of HTTP, such as ``1.1``.
    :ivar offers_h2: whether the server would speak HTTP/2; None without TLS.
    :ivar opened: seconds until ``stream.open`` came, or None.
    :ivar heartbeat: seconds between heartbeats, as the app says.
    :ivar arrivals: when something came after that, in seconds since ``stream.open``.
    :ivar watched: seconds from ``stream.open`` to the end of the visit.
    :ivar ended: whether the stream was ended by somebody else.
    :ivar closing: the reason in its ``stream.close``, if there was one.
    :ivar workers: which worker answered, for each of several connections.
    :ivar health: what the app says of itself, or None.
    :ivar health_status: the status of that, 0 for no answer.
    """

    error: str = ""
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    version: str = ""
    offers_h2: bool | None = None
    opened: float | None = None
    heartbeat: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    watched: float = 0.0
    ended: bool = False
    closing: str = ""
    workers: list[str] = field(default_factory=list)
    health: Mapping[str, Any] | None = None
    health_status: int = 0


def visit(target: Target, prefix: str, *, patience: float, wait: float) -> Visit:
    """Open a stream and watch it.

    :param prefix: the path of the blueprint.
    :param patience: seconds for an answer, and for ``stream.open``.
    :param wait: seconds to watch; at least until a heartbeat is due, or for two minutes.
    """
    found = Visit()
    try:
        found.offers_h2 = _offers_h2(target, patience)
        found.health_status, found.health = _ask_health(target, prefix, "?deep=1", patience)
        for _ in range(_CONNECTS if found.health else 0):
            _, health = _ask_health(target, prefix, "", patience)
            found.workers.append(str((health or {}).get("worker", "")))
        _open(target, prefix, patience, wait, found)
    except ssl.SSLCertVerificationError as error:
        found.error = f"its certificate is not trusted here: {error.verify_message}"
    except TimeoutError:
        found.error = f"no answer within {patience:g} s"
    except (OSError, http.client.HTTPException) as error:
        found.error = str(error) or type(error).__name__
    return found


def _connect(target: Target, patience: float) -> http.client.HTTPConnection:
    context = target.tls("http/1.1")
    if context is None:
        return http.client.HTTPConnection(target.host, target.port, timeout=patience)
    return http.client.HTTPSConnection(target.host, target.port, timeout=patience, context=context)


def _offers_h2(target: Target, patience: float) -> bool | None:
    context = target.tls("h2", "http/1.1")
    if context is None:
        return None
    with socket.create_connection((target.host, target.port), patience) as plain:
        with context.wrap_socket(plain, server_hostname=target.host) as sock:
            return sock.selected_alpn_protocol() == "h2"


def _ask_health(
    target: Target, prefix: str, query: str, patience: float
) -> tuple[int, Mapping[str, Any] | None]:
    """Return the status, and what the app says of itself; None for a page of somebody else."""
    connection = _connect(target, patience)
    try:
        path = f"{target.path}{prefix}/health{query}"
        connection.request("GET", path, headers=_sent(target) | {"Connection": "close"})
        response = connection.getresponse()
        # A page of somebody else may have no end.
        ours = response.headers.get_content_type() == "application/json"
        status, text = response.status, response.read(_BYTES) if ours else b""
    finally:
        connection.close()
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    return status, body if isinstance(body, dict) and "status" in body else None


def _open(target: Target, prefix: str, patience: float, wait: float, found: Visit) -> None:
    # What a browser takes: a proxy compresses for nobody else.
    asked = _sent(target) | {"Accept": "text/event-stream", "Accept-Encoding": "gzip"}
    connection = _connect(target, patience)
    begun = time.monotonic()
    try:
        connection.request("GET", f"{target.path}{prefix}/stream", headers=asked)
        sock = connection.sock
        response = connection.getresponse()
        found.status = response.status
        found.version = "1.0" if response.version == 10 else "1.1"
        found.headers = {
            name.lower(): ", ".join(response.headers.get_all(name, ())) for name in response.headers
        }
        if response.status == 200 and _is_stream(found):
            _watch(response, sock, begun, patience, wait, found)
    finally:
        connection.close()


def _watch(
    response: http.client.HTTPResponse,
    sock: socket.socket,
    begun: float,
    patience: float,
    wait: float,
    found: Visit,
) -> None:
    frames = Frames(found.headers.get("content-encoding", ""))
    until = begun + patience
    opened = begun
    while not found.ended and (left := until - time.monotonic()) > 0:
        sock.settimeout(left)
        try:
            wire = response.read1(_BYTES)
        except TimeoutError:
            break
        except (OSError, http.client.HTTPException):
            wire = b""
        now = time.monotonic()
        found.ended = not wire
        if wire and found.opened is not None:
            found.arrivals.append(now - opened)
        for type, data in frames.feed(wire):
            if type == "stream.open" and found.opened is None:
                opened, found.opened = now, now - begun
                found.heartbeat = data.get("heartbeat", 0) / 1000
                until = now + max(wait, min(1.5 * found.heartbeat + _SLACK, _LONGEST))
            elif type == "stream.close":
                found.closing = str(data.get("reason", "unknown"))
            elif type == "heartbeat":
                # One shows that they come; whoever waits for longer says so.
                until = min(until, max(opened + wait, now))
    if found.opened is not None:
        found.watched = time.monotonic() - opened


class Frames:
    """Takes apart what we framed, which proxies may have compressed but not changed.

    :param encoding: the ``Content-Encoding`` of the response.
    """

    def __init__(self, encoding: str = "") -> None:
        compressed = encoding.lower() in ("gzip", "deflate")
        self._inflate = zlib.decompressobj(wbits=47) if compressed else None
        self._rest = b""

    def feed(self, wire: bytes) -> list[Frame]:
        """Return the frames that *wire* completes."""
        try:
            body = wire if self._inflate is None else self._inflate.decompress(wire)
        except zlib.error:
            return []
        *frames, self._rest = (self._rest + body).split(b"\n\n")
        return [_parse(frame) for frame in frames]


# Streams of one audience are sent the same bytes.
@lru_cache(maxsize=1024)
def _parse(frame: bytes) -> Frame:
    type, data = _EVENT.search(frame), _DATA.search(frame)
    try:
        content = json.loads(data[1]) if data else {}
    except ValueError:
        content = {}
    known = content if isinstance(content, dict) else {}
    return Frame(type[1].decode("utf-8", "replace") if type else "", known)


def _is_stream(found: Visit) -> bool:
    return found.headers.get("content-type", "").startswith("text/event-stream")


def _sent(target: Target) -> dict[str, str]:
    return dict(target.headers)
