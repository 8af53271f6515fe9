"""Server-sent event framing, and the chunk framing of HTTP/1.1.

WHATWG HTML, section 9.2.6: lines end in CRLF, CR or LF and in nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timezone
from functools import lru_cache
from typing import Any

from .errors import EventError
from .event import encode_json

LAST_CHUNK = b"0\r\n\r\n"

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BREAKS_FIELD = re.compile(rb"[\r\n\0]")
_HAPPENED = re.compile(rb'"timestamp":"([0-9T:.-]+)Z"\}$')


def frame(
    data: bytes, *, type: str | None = None, id: str | None = None, retry: int | None = None
) -> bytes:
    """Encode one event.

    :param data: UTF-8; every line becomes a ``data:`` field, and empty data still dispatches.
    :param type: the event name.
    :param id: what the browser sends back as ``Last-Event-ID``.
    :param retry: milliseconds until the browser reconnects.
    :raises EventError: when *id* or *type* holds CR, LF or NUL, which would forge fields.
    """
    parts = []
    if retry is not None:
        parts.append(b"retry: %d\n" % retry)
    if id is not None:
        parts.append(b"id: %b\n" % _field("id", id))
    if type is not None:
        parts.append(_event_field(type))
    lines = (data,) if _LINE_END.search(data) is None else _LINE_END.split(data)
    parts += [b"data: %b\n" % line for line in lines]
    parts.append(b"\n")
    return b"".join(parts)


def event_frame(data: bytes, *, type: str, id: str) -> bytes:
    """Encode an event whose *data* is one line, as `frame` does, in half the time."""
    return b"id: %b\n%bdata: %b\n\n" % (_field("id", id), _event_field(type), data)


def unframe(frames: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the id and the data of each of several events, whose data is one line each."""
    for part in frames.split(b"\n\n")[:-1]:
        lines = part.split(b"\n")
        yield lines[0].removeprefix(b"id: ").decode(), lines[-1].removeprefix(b"data: ")


def count_frames(frames: bytes) -> int:
    """Return how many events these are."""
    return frames.count(b"\n\n")


def happened(frames: bytes) -> float | None:
    """Return when the first event says it happened, in seconds since 1970 (UTC).

    None when it does not say.
    """
    found = _HAPPENED.search(frames, 0, max(0, frames.find(b"\n\n")))
    if found is None:
        return None
    try:
        moment = datetime.fromisoformat(found[1].decode())
    except ValueError:
        return None
    return moment.replace(tzinfo=timezone.utc).timestamp()


def control(
    type: str, data: dict[str, Any], *, id: str | None = None, retry: int | None = None
) -> bytes:
    """Encode a control event of the stream itself, such as ``stream.open``."""
    return frame(encode_json(data), type=type, id=id, retry=retry)


def chunk(body: bytes) -> bytes:
    """Wrap *body* as one chunk (RFC 9112, section 7.1); empty bodies give no chunk.

    An empty chunk would end the response.
    """
    return b"%x\r\n%b\r\n" % (len(body), body) if body else b""


@lru_cache(maxsize=1024)
def _event_field(type: str) -> bytes:
    return b"event: %b\n" % _field("event type", type)


def _field(name: str, value: str) -> bytes:
    encoded = value.encode()
    if _BREAKS_FIELD.search(encoded):
        raise EventError(f"The {name} {value!r:.80} holds CR, LF or NUL; remove it.")
    return encoded
