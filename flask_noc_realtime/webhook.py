"""The routes that take alerts and events from outside, of apps that configure them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from flask import Blueprint, Response, current_app, jsonify, request
from werkzeug.wsgi import get_input_stream

from . import emit
from .blueprint import EXTENSION, add_route
from .broker import Change
from .errors import (
    BodyError,
    BodyTooLarge,
    BrokerUnavailable,
    EventError,
    IdentityError,
    ReplayError,
)
from .ingest import Alert, news, read_alerts, read_events, same, signed

if TYPE_CHECKING:
    from .extension import State

_BATCH_EVENTS = 200
_BATCH_BYTES = 1024 * 1024
_BREATH = 0.001
_ATTEMPTS = 5
_MEMORY = 5 * 24 * 3600.0
"""Seconds an incident is known for: as long as Alertmanager itself knows it, by default."""

_logger = logging.getLogger("flask_noc_realtime")

T = TypeVar("T")


def add_ingest(blueprint: Blueprint, state: State) -> None:
    """Add the routes that the app has secrets for."""
    config = state.config
    for secret, path, view in (
        (config.ingest_alertmanager_token, "/ingest/alertmanager", ingest_alertmanager),
        (config.ingest_secret, "/ingest/webhook", ingest_webhook),
    ):
        if secret:
            add_route(blueprint, path, "POST", view, config.ingest_max_bytes)


def ingest_alertmanager() -> Response:
    """Publish what a notification of Alertmanager says that was not said before."""
    state = _state()
    if not same(state.config.ingest_alertmanager_token, _shown()):
        raise IdentityError(
            "Send NOC_REALTIME_INGEST_ALERTMANAGER_TOKEN as a bearer token, or as a password."
        )
    alerts = [alert for part in _parts(read_alerts(_body(state))) for alert in part]
    delivery = Delivery(state)
    for part in _parts(alerts):
        delivery.tell(part)
    return delivery.answer(len(alerts))


def ingest_webhook() -> Response:
    """Publish the events of a signed webhook, once."""
    state = _state()
    config = state.config
    body = _body(state)
    timestamp = request.headers.get("X-Noc-Timestamp", "")
    signature = request.headers.get("X-Noc-Signature", "").removeprefix("sha256=")
    secret, window = config.ingest_secret.encode(), config.ingest_window
    if not signed(secret, timestamp, body, signature, time.time(), window):
        raise IdentityError(
            "X-Noc-Signature is not sha256= and the HMAC-SHA256 of X-Noc-Timestamp, a dot and the "
            f"body; or that time, in seconds since 1970, is more than {window:.0f} seconds off."
        )
    changes = [
        Change(f"webhook-{signature}-{where}", None, b"published", _event(state, where, event))
        for part in _parts(read_events(body).items())
        for where, event in part
    ]
    delivery = Delivery(state)
    for batch in _parts(changes):
        # A timestamp may be as far ahead as it may be behind.
        delivery.publish(batch, 2 * window + 60)
    if not delivery.published and not state.muted:
        raise ReplayError("This webhook was accepted before; sign another with a new timestamp.")
    return delivery.answer(len(changes))


class Delivery:
    """Publishes what one request brought.

    The broker knows what was said of each incident, and learns it in the step that publishes
    it. So whoever sends the same again after a failure, to whichever worker, has exactly that
    published which was not.
    """

    def __init__(self, state: State) -> None:
        self.published = 0
        self._failed = 0
        self._state = state
        self._process = state.process()

    def tell(self, alerts: Sequence[Alert]) -> None:
        """Publish those that are news, in order.

        :raises BrokerUnavailable: when it is not known whether all are published.
        """
        rest = alerts
        for _ in range(_ATTEMPTS):
            told = self._news(rest)
            positions = self.publish([change for _, change in told], _MEMORY)
            # Of these another worker has said something in the meantime.
            rest = [
                alert
                for (alert, _), position in zip(told, positions, strict=True)
                if position is None
            ]
            if not rest or self._state.muted:
                return
        raise BrokerUnavailable("Several workers are told of the same alerts at once; try again.")

    def publish(self, changes: Sequence[Change], seconds: float) -> list[str | None]:
        """Publish changes as a broker does, unless the extension is muted.

        :raises BrokerUnavailable: when it is not known whether all are published.
        """
        if self._state.muted:
            return [None] * len(changes)
        positions: list[str | None] = []
        for batch in _loads(changes):
            positions += self._process.broker.publish_changes(batch, seconds)
            for change, position in zip(batch, positions[-len(batch) :], strict=True):
                if position is not None:
                    self.published += 1
                    for observe in emit.observers:
                        observe(self._process.emitter, change.record, position)
        return positions

    def answer(self, accepted: int) -> Response:
        """Return the answer to the request, which brought so many alerts or events."""
        if self._failed > 1:
            _logger.error("%d alerts were not emitted; the first is above.", self._failed)
        response = jsonify(accepted=accepted, published=self.published, failed=self._failed)
        response.status_code = 202
        response.headers["Cache-Control"] = "no-store"
        return response

    def _news(self, alerts: Sequence[Alert]) -> list[tuple[Alert, Change]]:
        """Return the alerts that are news, and what they change."""
        now = time.time()
        keys = [alert.key for alert in alerts]
        said = dict(zip(keys, self._process.broker.recall(keys), strict=True))
        told = []
        for key, alert in zip(keys, alerts, strict=True):
            found = news(alert, said[key], now, self._state.config.ingest_repeat)
            record = None if found is None else self._map(found[0])
            if found is not None and record is not None:
                told.append((alert, Change(key, said[key], found[1], record)))
                said[key] = found[1]
        return told

    def _map(self, alert: Alert) -> bytes | None:
        """Return the record of the alert's event; None when it is to have none."""
        try:
            event = self._state.map_alert(alert)
            return None if event is None else _encode(self._state, event)
        except Exception:
            # The sender can mend nothing, and would send the whole again and again.
            self._failed += 1
            if self._state.config.emit_errors == "raise":
                raise
            if self._failed == 1:
                _logger.exception("No %r of %r was emitted.", alert.type, alert.fingerprint)
            return None


def _state() -> State:
    state: State = current_app.extensions[EXTENSION]
    return state


def _shown() -> str:
    """Return the bearer token or the password the sender shows."""
    shown = request.authorization
    if shown is None:
        return ""
    return {"bearer": shown.token, "basic": shown.password}.get(shown.type) or ""


def _body(state: State) -> bytes:
    """Return the body, also one that does not say how long it is.

    :raises BodyTooLarge: when it is longer than the app allows here.
    """
    limit = state.config.ingest_max_bytes
    # MAX_CONTENT_LENGTH is about the uploads of the app's own views. One byte more, since at its
    # limit the stream just ends.
    request.stream = get_input_stream(request.environ, max_content_length=limit + 1)
    body = request.get_data(cache=False)
    if len(body) > limit:
        raise BodyTooLarge(f"The body exceeds {limit} bytes.")
    return body


def _event(state: State, where: str, event: Mapping[str, Any]) -> bytes:
    try:
        return _encode(state, event)
    except EventError as error:
        raise BodyError(f"{where}: {error}") from error


def _encode(state: State, event: Mapping[str, Any]) -> bytes:
    permissions = event.get("permissions")
    if permissions is None:
        permissions = state.config.ingest_permissions or None
    return state.encode(**{**event, "permissions": permissions})


def _parts(items: Iterable[T]) -> Iterator[list[T]]:
    """Yield some items at a time, and let others have a turn in between."""
    rest = iter(items)
    part = list(islice(rest, _BATCH_EVENTS))
    while part:
        yield part
        part = list(islice(rest, _BATCH_EVENTS))
        if part:
            # Not 0: gevent would serve those that can go on, and look at no socket.
            time.sleep(_BREATH)


def _loads(changes: Sequence[Change]) -> Iterator[list[Change]]:
    """Yield what one round trip takes at a time."""
    load: list[Change] = []
    room = _BATCH_BYTES
    for change in changes:
        room -= len(change.record)
        if load and room < 0:
            yield load
            load, room = [], _BATCH_BYTES - len(change.record)
        load.append(change)
    if load:
        yield load
