"""Ingest: what Alertmanager and signed webhooks post, read whole before anything is emitted."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from .errors import ParameterError

_STATUSES = ("firing", "resolved")


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert of an Alertmanager webhook, version 4."""

    status: str
    fingerprint: str
    starts_at: str
    ends_at: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    generator_url: str

    @property
    def key(self) -> str:
        """What every delivery of the same alert in the same state has in common."""
        parts = json.dumps([self.fingerprint, self.status, self.starts_at])
        return "alert-" + hashlib.sha256(parts.encode()).hexdigest()


def read_alerts(body: bytes) -> list[Alert]:
    """Read an Alertmanager webhook body.

    :raises ParameterError: naming the first part that is wrong.
    """
    payload = _object(_load(body), "The body")
    if payload.get("version") != "4":
        raise ParameterError("version is not '4', the version of Alertmanager's webhook.")
    alerts = payload.get("alerts")
    if not isinstance(alerts, list):
        raise ParameterError("alerts is not a list.")
    return [_alert(_object(one, f"alerts[{i}]"), f"alerts[{i}]") for i, one in enumerate(alerts)]


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
    right = sign(secret, timestamp, body).encode()
    # As bytes: compare_digest raises on text that is not ASCII.
    same = hmac.compare_digest(right, signature.encode("utf-8", "surrogatepass"))
    return same and abs(now - int(timestamp)) <= window


def _load(body: bytes) -> Any:
    try:
        return json.loads(body.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise ParameterError("The body is not JSON.") from None


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)


def _alert(alert: Mapping[str, Any], where: str) -> Alert:
    status = _text(alert, "status", where)
    if status not in _STATUSES:
        raise ParameterError(f"{where}.status is neither firing nor resolved.")
    fingerprint, starts_at = _text(alert, "fingerprint", where), _text(alert, "startsAt", where)
    if not fingerprint or not starts_at:
        raise ParameterError(f"{where} has no fingerprint or no startsAt.")
    return Alert(
        status,
        fingerprint,
        starts_at,
        _text(alert, "endsAt", where),
        _texts(alert, "labels", where),
        _texts(alert, "annotations", where),
        _text(alert, "generatorURL", where),
    )


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ParameterError(f"{where} is not an object.")
    return value


def _text(part: Mapping[str, Any], name: str, where: str) -> str:
    value = part.get(name, "")
    if not _is_text(value):
        raise ParameterError(f"{where}.{name} is not a string of Unicode text.")
    return str(value)


def _texts(part: Mapping[str, Any], name: str, where: str) -> Mapping[str, str]:
    pairs = _object(part.get(name, {}), f"{where}.{name}")
    if not all(_is_text(key) and _is_text(value) for key, value in pairs.items()):
        raise ParameterError(f"{where}.{name} does not map text to text.")
    return pairs


def _is_text(value: Any) -> bool:
    # JSON can escape half a surrogate pair, which no event can carry.
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)
