"""Ingest: what Alertmanager and signed webhooks post, read whole before anything is emitted."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from .errors import BodyError

_TYPES = {"firing": "incident.created", "resolved": "incident.status.changed"}
_EVENT_FIELDS = {"type", "data", "permissions", "user_id"}

_encoder = json.JSONEncoder(sort_keys=True)


@dataclass(frozen=True, slots=True)
class Alert:
    """Tell what an alert of Alertmanager's webhook, version 4, says, and what event that is.

    :ivar type: ``incident.created`` when it fires for the first time, ``incident.updated`` when
        it fires on, ``incident.status.changed`` when it is resolved, or fires again after that.
    :ivar status: ``firing`` or ``resolved``.
    :ivar fingerprint: names the alert by its labels.
    :ivar starts_at: RFC 3339, as it came.
    :ivar ends_at: RFC 3339, as it came; the year 1 while it fires.
    :ivar labels: by name.
    :ivar annotations: by name.
    :ivar generator_url: what caused it.
    """

    type: str
    status: str
    fingerprint: str
    starts_at: str
    ends_at: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    generator_url: str

    @property
    def data(self) -> dict[str, Any]:
        """The data of its event, unless the app says otherwise."""
        return {
            "fingerprint": self.fingerprint,
            "status": self.status,
            "severity": self.labels.get("severity"),
            "labels": self.labels,
            "annotations": self.annotations,
            "startsAt": self.starts_at,
            "endsAt": self.ends_at if self.status == "resolved" else None,
            "generatorURL": self.generator_url,
        }

    @property
    def key(self) -> str:
        """What every notification of the same incident has in common."""
        return "alert-" + _digest([self.fingerprint, self.starts_at])


def read_alerts(body: bytes) -> Iterator[Alert]:
    """Read an Alertmanager webhook body.

    https://prometheus.io/docs/alerting/latest/configuration/#webhook_config

    :raises BodyError: naming the first part that is wrong.
    """
    payload = _object(_load(body), "The body")
    if payload.get("version") != "4":
        raise BodyError("version is not '4', the version of Alertmanager's webhook.")
    alerts = payload.get("alerts")
    if not isinstance(alerts, list):
        raise BodyError("alerts is not a list.")
    for i, alert in enumerate(alerts):
        where = f"alerts[{i}]"
        yield _alert(_object(alert, where), where)


def read_events(body: bytes) -> dict[str, Mapping[str, Any]]:
    """Read the body of a signed webhook, an event or a list of them; return each by its place.

    :raises BodyError: naming the first part that is wrong.
    """
    payload = _load(body)
    if isinstance(payload, list):
        events = {f"[{i}]": event for i, event in enumerate(payload)}
    else:
        events = {"The body": payload}
    if not events:
        raise BodyError("The body has no event.")
    for where, event in events.items():
        _check_event(_object(event, where), where)
    return events


def news(alert: Alert, said: bytes | None, now: float, repeat: float) -> tuple[Alert, bytes] | None:
    """Return an alert as the event it is, and what that says; None when it is no news.

    :param said: what the newest event of the same incident said.
    :param now: seconds on a clock all workers share.
    :param repeat: seconds in which the same is not said again.
    """
    # Not the generator's URL: of two Prometheus that watch the same, each names its own.
    content = _digest(dict(alert.annotations))[:16]
    saying = f"{alert.status} {content} {int(now)}".encode()
    if said is None:
        return alert, saying
    status, content_then, then = said.decode().split()
    if status != alert.status:
        return replace(alert, type="incident.status.changed"), saying
    if status == "resolved" or (content == content_then and now - int(then) < repeat):
        return None
    return replace(alert, type="incident.updated"), saying


def sign(secret: bytes, timestamp: str, body: bytes) -> str:
    """Return the signature of a webhook: HMAC-SHA256 over the timestamp, a dot and the body."""
    return hmac.new(secret, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def signed(
    secret: bytes, timestamp: str, body: bytes, signature: str, now: float, window: float
) -> bool:
    """Tell whether *signature* is right and *timestamp* within *window* seconds of *now*."""
    # int() also takes signs, blanks and digits of other scripts: one moment, many spellings.
    if not (timestamp.isascii() and timestamp.isdecimal() and len(timestamp) <= 12):
        return False
    right = sign(secret, timestamp, body)
    return same(right, signature) and abs(now - int(timestamp)) <= window


def same(secret: str, shown: str) -> bool:
    """Tell whether two texts are the same, in a time that tells nothing of the first."""
    # As bytes: compare_digest raises on text that is not ASCII.
    return hmac.compare_digest(secret.encode(), shown.encode("utf-8", "surrogatepass"))


def _load(body: bytes) -> Any:
    try:
        return json.loads(body.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise BodyError("The body is not JSON.") from None


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)


def _digest(value: Any) -> str:
    return hashlib.sha256(_encoder.encode(value).encode()).hexdigest()


def _alert(alert: Mapping[str, Any], where: str) -> Alert:
    status = _text(alert, "status", where)
    if status not in _TYPES:
        raise BodyError(f"{where}.status is neither firing nor resolved.")
    fingerprint, starts_at = _text(alert, "fingerprint", where), _text(alert, "startsAt", where)
    if not fingerprint or not starts_at:
        raise BodyError(f"{where} has no fingerprint or no startsAt.")
    return Alert(
        _TYPES[status],
        status,
        fingerprint,
        starts_at,
        _text(alert, "endsAt", where),
        _texts(alert, "labels", where),
        _texts(alert, "annotations", where),
        _text(alert, "generatorURL", where),
    )


def _check_event(event: Mapping[str, Any], where: str) -> None:
    for name in ("type", "data"):
        if name not in event:
            raise BodyError(f"{where} has no {name}.")
    unknown = sorted(event.keys() - _EVENT_FIELDS)
    if unknown:
        raise BodyError(f"{where} has {unknown[0]!a:.80}; use {', '.join(sorted(_EVENT_FIELDS))}.")
    # A mapping would count as the collection of its keys.
    if not isinstance(event.get("permissions"), list | None):
        raise BodyError(f"{where}.permissions is not a list.")


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BodyError(f"{where} is not an object.")
    return value


def _text(part: Mapping[str, Any], name: str, where: str) -> str:
    value = part.get(name, "")
    if not _is_text(value):
        raise BodyError(f"{where}.{name} is not a string of Unicode text.")
    return str(value)


def _texts(part: Mapping[str, Any], name: str, where: str) -> Mapping[str, str]:
    pairs = _object(part.get(name, {}), f"{where}.{name}")
    for key, value in pairs.items():
        if not (_is_text(key) and _is_text(value)):
            raise BodyError(f"{where}.{name} does not map text to text.")
    return pairs


def _is_text(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        # JSON can escape half a surrogate pair, which no event can carry.
        return False
    return True
