"""Events, their catalogue of types, and the record that carries one through a broker.

A record is one JSON line saying who may see the event, a newline, and the JSON envelope the
browser gets. The first line never leaves the server.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Iterable
from contextlib import suppress
from datetime import date, datetime, timezone
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from typing import Any, NamedTuple
from uuid import UUID

from .errors import EventError, PayloadTooLarge, UnknownTypeError

CATALOGUE = (
    "automation.completed",
    "automation.started",
    "incident.created",
    "incident.status.changed",
    "incident.updated",
    "log.added",
    "notification.sent",
    "server.status.changed",
)
INVALIDATE = "coalesce.invalidate"
ROLLOUT = "stream.rollout"

NOTICES = {
    "stream.disconnect": "disconnected",
    "stream.refresh": "refresh",
    "stream.evict": "evicted",
    INVALIDATE: None,
    ROLLOUT: None,
}
"""Records that no stream shows, and the reason given by those that end a user's streams: they
travel in the log, so that what was emitted after one is never seen by the streams it ends."""

RESERVED = ("stream.open", "stream.reset", "stream.close", "heartbeat", *NOTICES)

_TYPE = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)+", re.ASCII)
_TYPE_LIMIT = 128


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """Describe something that happened, and who may see it.

    :param type: dotted lower-case words, for example ``"incident.created"``.
    :param data: anything JSON can hold; dates, UUIDs, decimals, enums and dataclasses are
        converted.
    :param timestamp: an aware time; naive times are refused because browsers would read them
        in their own zone.
    :param permissions: visible to a stream holding any of them; None is visible to all.
    :param user_id: visible to this user only.
    :raises EventError: naming the field that is wrong.
    """

    type: str
    data: Any
    timestamp: datetime
    permissions: tuple[str, ...] | None = None
    user_id: str | None = None

    def __post_init__(self) -> None:
        check_type(self.type)
        _stamp(self.type, self.timestamp)
        object.__setattr__(self, "permissions", _permissions(self.permissions))
        _check_user(self.user_id)

    def envelope(self, max_bytes: int) -> bytes:
        """Encode what the browser gets: ``{type, data, timestamp}`` as one line of UTF-8 JSON.

        :raises EventError: naming the key path of a value JSON cannot hold.
        :raises PayloadTooLarge: when it exceeds *max_bytes*.
        """
        return _envelope(self.type, self.data, _stamp(self.type, self.timestamp), max_bytes)

    def record(self, max_bytes: int) -> bytes:
        """Encode the event for a broker; `Rule.parse` and the envelope read it back."""
        return _header(self.type, self.permissions, self.user_id) + self.envelope(max_bytes)


class Details(NamedTuple):
    """What an event may have besides its type and data; see `Event`.

    :ivar timestamp: now unless given.
    """

    permissions: Collection[str] | None = None
    user_id: str | None = None
    timestamp: datetime | None = None


def record_of(type: str, data: Any, details: Details, max_bytes: int) -> bytes:
    """Encode an event for a broker as `Event.record` does, without the object in between.

    :param type: one that `check_type` has returned.
    :raises EventError: as `Event` does.
    """
    permissions, user_id, timestamp = details
    _check_user(user_id)
    header = _header(type, _permissions(permissions), user_id)
    stamp = _text(datetime.now(timezone.utc)) if timestamp is None else _stamp(type, timestamp)
    return header + _envelope(type, data, stamp, max_bytes)


def _envelope(type: str, data: Any, stamp: str, max_bytes: int) -> bytes:
    try:
        text = _encoder.encode(data)
        # A type and a stamp hold nothing that JSON escapes. In an f-string an enum is not its
        # value, and markup escapes what it is added to.
        line = "".join(('{"type":"', type, '","data":', text, ',"timestamp":"', stamp, '"}'))
        body = line.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise _not_json({"data": data}, error) from error
    if len(body) > max_bytes:
        raise PayloadTooLarge(
            f"The event {type!r} takes {len(body)} bytes and the limit is {max_bytes}. "
            "Send a reference the browser can fetch, or raise NOC_REALTIME_MAX_EVENT_BYTES."
        )
    return body


def _stamp(type: str, timestamp: datetime) -> str:
    if not isinstance(timestamp, datetime):
        raise EventError(f"The timestamp of {type!r} is {timestamp!r:.80}; pass a datetime.")
    # A zone may have no offset either, and astimezone would take the server's.
    if timestamp.utcoffset() is None:
        raise EventError(
            f"The timestamp of {type!r} has no time zone; "
            "pass datetime.now(timezone.utc) or leave it out."
        )
    return _text(timestamp.astimezone(timezone.utc))


def _text(utc: datetime) -> str:
    return utc.isoformat(timespec="microseconds")[:-6] + "Z"


def _check_user(user_id: str | None) -> None:
    if user_id is not None and not (isinstance(user_id, str) and user_id):
        raise EventError(f"user_id is {user_id!r}; pass a non-empty str, or None for every user.")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """Say who may see an event. Interned: compared and hashed by identity."""

    type: str
    permissions: frozenset[str] | None
    user_id: str | None
    general: Rule | None = dataclasses.field(default=None, repr=False)
    """The same rule without its user, where it has one: there are fewer of these to remember."""


def notice(type: str, about: str) -> bytes:
    """Encode the record of a notice.

    :param type: one of `NOTICES`.
    :param about: the user whose streams end, the lease of the one that is evicted, the
        generations that move on, with spaces between, or the rollout.
    """
    return _header(type, None, about) + b"{}"


@lru_cache(maxsize=4096)
def _header(type: str, permissions: tuple[str, ...] | None, user_id: str | None) -> bytes:
    """Encode a record's first line; few events have one of their own."""
    return json.dumps([type, permissions, user_id], separators=(",", ":")).encode() + b"\n"


@lru_cache(maxsize=4096)
def parse_rule(header: bytes) -> Rule:
    """Read a record's first line; equal lines usually give the same object.

    :raises ValueError: when it is not a line `Event.record` writes.
    """
    fields = json.loads(header)
    if not isinstance(fields, list) or len(fields) != 3:
        raise ValueError("not a list of type, permissions and user_id")
    type, permissions, user_id = fields
    if type not in NOTICES:
        check_type(type)
    # Rules reach sets and dicts while every stream is served: one odd record must not end that.
    if permissions is not None and not (isinstance(permissions, list) and _names(permissions)):
        raise ValueError("permissions are not a list of names")
    if user_id is not None and not _names([user_id]):
        raise ValueError("user_id is not a name")
    held = None if permissions is None else frozenset(permissions)
    general = _general(type, held)
    return general if user_id is None else Rule(type, held, user_id, general)


@lru_cache(maxsize=4096)
def _general(type: str, permissions: frozenset[str] | None) -> Rule:
    return Rule(type, permissions, None)


def split_record(record: bytes) -> tuple[Rule, bytes]:
    """Split a record into its rule and its envelope.

    :raises EventError: when the bytes are not a record of ours.
    """
    header, newline, envelope = record.partition(b"\n")
    try:
        rule = parse_rule(header)
    except (ValueError, RecursionError) as error:
        raise EventError(f"Not an event record: {record[:80]!r}") from error
    if not newline or b"\n" in envelope or b"\r" in envelope:
        raise EventError(f"Not an event record: {record[:80]!r}")
    return rule, envelope


class Catalogue:
    """The event types an app may emit."""

    def __init__(self, types: Iterable[str] = CATALOGUE, *, strict: bool = True) -> None:
        self._types = set(types)
        self.strict = strict

    def register(self, type: str) -> None:
        """Add a type of the app's own.

        :raises EventError: when it is malformed or reserved for the stream itself.
        """
        self._types.add(check_type(type))

    def __contains__(self, type: object) -> bool:
        return type in self._types

    def check(self, type: str) -> None:
        """Refuse a type nobody registered.

        :raises UnknownTypeError: listing the known types.
        """
        if type.__class__ is str and type in self._types:
            return
        check_type(type)
        if self.strict and type not in self._types:
            raise UnknownTypeError(
                f"Unknown event type {type!r}. Known types: {', '.join(self.types())}. "
                f"Register your own with realtime.register_type({type!r}), or set "
                "NOC_REALTIME_STRICT_TYPES = False."
            )

    def types(self) -> tuple[str, ...]:
        """Return the known types in alphabetical order."""
        return tuple(sorted(self._types))


@lru_cache(maxsize=4096)
def patterns_of(type: str) -> tuple[str, ...]:
    """Return every pattern that *type* matches: itself, ``prefix.*`` for each prefix, ``*``.

    A notice is no event: it matches none.
    """
    if type in NOTICES:
        return ()
    words = type.split(".")
    prefixes = (".".join(words[:count]) for count in range(1, len(words)))
    return (type, *(f"{prefix}.*" for prefix in prefixes), "*")


def generations_of(rule: Rule) -> tuple[str, ...]:
    """Return the names of the generations that move on when a record with *rule* is published."""
    if rule.type == INVALIDATE:
        return tuple((rule.user_id or "").split())
    return patterns_of(rule.type)


def check_type(type: str) -> str:
    """Return *type* if it is dotted lower-case words and not a control event.

    :raises EventError: otherwise.
    """
    if not isinstance(type, str) or len(type) > _TYPE_LIMIT or not _TYPE.fullmatch(type):
        raise EventError(
            f"{type!r:.160} is not an event type; use dotted lower-case words such as "
            f"'incident.created', at most {_TYPE_LIMIT} characters."
        )
    if type in RESERVED:
        raise EventError(f"{type!r} is a control event of the stream itself; choose another name.")
    return type


def encode_json(value: Any) -> bytes:
    """Encode *value* as one line of compact UTF-8 JSON.

    :raises EventError: naming the key path of what JSON cannot hold.
    """
    try:
        return _encoder.encode(value).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise _not_json(value, error) from error


def _not_json(value: Any, error: Exception) -> EventError:
    path, reason = _culprit(value, error)
    return EventError(f"The event is not JSON: {path} {reason}.")


def _convert(value: Any) -> Any:
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, (UUID, Decimal)):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


_encoder = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_convert
)


_HALF = "holds half a surrogate pair, which UTF-8 cannot carry"


def _culprit(value: Any, error: Exception) -> tuple[str, str]:
    """Find the innermost part of *value* that fails on its own."""
    if isinstance(error, RecursionError) or "Circular" in str(error):
        return "it", "contains itself, or is nested too deeply"
    path: list[str] = []
    while True:
        for name, part in _parts(value):
            try:
                _encoder.encode(part).encode()
            except (TypeError, ValueError):
                path.append(name)
                value = part
                break
        else:
            break
    where = "".join(path).lstrip(".") or "it"
    # The path may hold such halves too, and no log could then write the message.
    where = where.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        if any(_is_half(key) for key in value):
            return where, f"has a key that {_HALF}"
        return where, "has a key that is not a string"
    if isinstance(value, str):
        return where, _HALF
    if isinstance(value, float):
        return where, f"is {value}, which JSON does not have; send null instead"
    return where, f"is a {type(value).__name__}; convert it to str, int, float, list or dict"


def _is_half(text: Any) -> bool:
    return isinstance(text, str) and any("\ud800" <= letter <= "\udfff" for letter in text)


def _parts(value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict):
        return [(f".{key}", part) for key, part in value.items()]
    if isinstance(value, (list, tuple)):
        return [(f"[{index}]", part) for index, part in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _parts(_convert(value))
    return []


def _names(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) and value for value in values)


def _permissions(value: Collection[str] | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    if value.__class__ is list or value.__class__ is tuple:
        with suppress(TypeError):
            known = _sorted(tuple(value))
            if known:
                return known
    # A generator would be empty after the check, and the event visible to nobody.
    if not isinstance(value, Collection) or isinstance(value, str) or not _names(value):
        raise EventError(
            f"permissions is {value!r}; pass a list of non-empty strings, or None for everyone."
        )
    if not value:
        # An empty list computed by mistake must not become "visible to everyone".
        raise EventError("permissions is empty, so nobody could see the event; pass None for all.")
    return _sorted(tuple(value))


@lru_cache(maxsize=4096)
def _sorted(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return names in order and once each; nothing, where they are no names."""
    return tuple(sorted(set(names))) if _names(names) else ()
