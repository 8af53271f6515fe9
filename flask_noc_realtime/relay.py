"""The relay: carries what is committed from an outbox to the broker, in order and once.

It takes rows by their number, which is taken while the transaction holds the locks of what it
changed: of two that change the same row, the later one has the higher number. It keeps no number
from which to go on, so that a transaction which takes a low one and commits late loses nothing.
"""

from __future__ import annotations

import hashlib
import logging
import math
import secrets
import signal
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from flask import current_app
from flask.cli import with_appcontext
from sqlalchemy import Engine, Table, delete, func, select, update
from sqlalchemy.exc import SQLAlchemyError

from . import emit
from .blueprint import EXTENSION
from .broker import Claim, Terms
from .errors import BrokerUnavailable, ConfigError, EventError
from .event import split_record

if TYPE_CHECKING:
    from .process import Process

_BATCH_EVENTS = 200
_BATCH_BYTES = 1024 * 1024
_BACKOFF = (0.05, 0.1, 0.2, 0.5, 1.0)
_GOODBYE = 2.0
_CLOCKS = 60.0
"""Seconds that the clocks of two relays may be apart."""

_logger = logging.getLogger("flask_noc_realtime")


class Row(NamedTuple):
    """An event of the outbox.

    :ivar attempted: when a relay first tried to publish it, in milliseconds, or None.
    """

    id: int
    key: str
    record: bytes
    attempted: int | None


class Relay:
    """Publishes the rows of one outbox while it holds the lease on that.

    Each row is marked before it is published and removed after, each in a transaction of its own.
    So a row that is marked may have been published: it is published again with its key, by which
    the broker recognises it.

    The lease is for efficiency only. Whoever takes rows takes all that are left from the first
    one on, so that several who publish them at once do so in the same order.
    """

    def __init__(self, table: Table, engine: Engine, process: Process, interval: float) -> None:
        self._table = table
        self._engine = engine
        self._broker = process.broker
        self._emitter = process.emitter
        self._interval = interval
        self._seconds = process.lease_seconds
        self._worker = secrets.token_hex(6)
        # No user is called so.
        self._claim = Claim(f"\0relay {_address(engine)} {table.name}", f"{self._worker}:relay")
        self._held_at = -math.inf
        self._complained = False
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Relay in a thread from now on."""
        thread = threading.Thread(target=self.run, name="noc-realtime-relay", daemon=True)
        thread.start()
        self._thread = thread

    def run(self) -> None:
        """Relay until `close`."""
        failures = 0
        while not self._closing.is_set():
            try:
                if not self.leads():
                    self._closing.wait(self._seconds / 3)
                    continue
                more = self.deliver()
            except (BrokerUnavailable, SQLAlchemyError) as error:
                self._complain(error)
            except Exception:
                _logger.exception("The relay stumbled; it goes on.")
            else:
                failures = 0
                self._recover()
                if not more:
                    self._closing.wait(self._interval)
                continue
            self._closing.wait(_BACKOFF[min(failures, len(_BACKOFF) - 1)])
            failures += 1

    def drain(self, timeout: float) -> None:
        """Return when nothing that is committed is left.

        :raises TimeoutError: when there still is after *timeout* seconds.
        """
        deadline = time.monotonic() + timeout
        while not self._closing.is_set():
            leads = self.leads()
            if leads and self.deliver():
                continue
            if not self.waiting():
                return
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{self.waiting()} events are still in {self._table.name} after {timeout} s."
                )
            if not leads:
                self._closing.wait(self._interval)

    def close(self) -> None:
        """Stop, and let another relay go on at once."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(_GOODBYE)
        if self._held_at > -math.inf:
            try:
                self._broker.lease(self._terms(0.0), released=[self._claim])
            except BrokerUnavailable:
                pass  # It lapses.

    def waiting(self) -> int:
        """Return how many events wait in the table."""
        with self._engine.connect() as connection:
            return connection.execute(select(func.count()).select_from(self._table)).scalar_one()

    def leads(self) -> bool:
        """Tell whether this is the one active relay, and take or renew the lease on that.

        :raises BrokerUnavailable: when it is not known.
        """
        now = time.monotonic()
        if now < self._held_at + self._seconds / 3:
            return True
        leased = self._broker.lease(self._terms(self._seconds), [self._claim])
        self._held_at = -math.inf if leased.refused else now
        return not leased.refused

    def deliver(self) -> bool:
        """Publish what one round trip takes; return whether there may be more.

        :raises BrokerUnavailable: and what of it is published shows with the next attempt.
        """
        rows = self.take()
        if not rows:
            return False
        if time.monotonic() > self._held_at + self._seconds:
            return True  # Held up for so long that another may lead.
        self.publish(rows)
        self.remove(rows)
        return True

    def take(self) -> list[Row]:
        """Return the next rows, marked as attempted."""
        table = self._table
        rows: list[Row] = []
        room = _BATCH_BYTES
        query = select(table.c.id, table.c.key, table.c.record, table.c.attempted)
        query = query.order_by(table.c.id).limit(_BATCH_EVENTS).with_for_update()
        with self._engine.begin() as connection:
            for found in connection.execute(query):
                row = Row(*found)
                room -= len(row.record)
                if rows and room < 0:
                    break
                rows.append(row)
            fresh = [row.id for row in rows if row.attempted is None]
            if fresh:
                mark = update(table).where(table.c.id.in_(fresh), table.c.attempted.is_(None))
                marked = connection.execute(mark.values(attempted=round(time.time() * 1000)))
                if marked.rowcount != len(fresh):
                    # SQLite locks no rows, and another relay has taken some.
                    connection.rollback()
                    return []
        return rows

    def publish(self, rows: list[Row]) -> None:
        """Publish rows, those that may have been already only if they were not."""
        events = [(row.record, f"outbox-{row.key}") for row in rows if _sound(row)]
        first = min((row.attempted for row in rows if row.attempted is not None), default=None)
        if first is None:
            positions = self._broker.publish_all(events, again=False)
        else:
            age = max(0.0, time.time() - first / 1000) + _CLOCKS
            positions = self._broker.publish_all(events, again=True, age=age)
        for (record, _), position in zip(events, positions, strict=True):
            for observe in emit.observers:
                observe(self._emitter, record, position)

    def remove(self, rows: list[Row]) -> None:
        """Forget rows that are published."""
        with self._engine.begin() as connection:
            ids = [row.id for row in rows]
            connection.execute(delete(self._table).where(self._table.c.id.in_(ids)))

    def _terms(self, seconds: float) -> Terms:
        return Terms(self._worker, seconds, 1)

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            _logger.error("The relay of %s waits, and nothing is lost: %s", self._table.name, error)

    def _recover(self) -> None:
        if self._complained:
            self._complained = False
            _logger.warning("The relay of %s goes on.", self._table.name)


def _address(engine: Engine) -> str:
    """Name a database: two apps that share a Redis need not share that."""
    url = engine.url
    parts = [url.get_backend_name(), url.host, url.port, url.database]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _sound(row: Row) -> bool:
    """Tell whether a row is an event; one that is not would hold up all that follow."""
    try:
        split_record(row.record)
    except EventError as error:
        _logger.error("Dropped row %d of the outbox: %s", row.id, error)
        return False
    return True


@click.command("relay")
@click.option("--once", is_flag=True, help="End when nothing is left, instead of waiting for more.")
@click.option("--timeout", default=60.0, show_default=True, help="Seconds --once may take.")
@with_appcontext
def relay_command(once: bool, timeout: float) -> None:
    """Publish the events of the app's outboxes; run as many as you like, one is active."""
    state: Any = current_app.extensions.get(EXTENSION)
    outboxes = [] if state is None else state.outboxes
    if not outboxes:
        raise ConfigError(f"{current_app.name!r} has no outbox; see realtime.outbox().")
    process = state.process()
    relays = [outbox.relay(process) for outbox in outboxes]
    ended = threading.Event()
    previous = signal.signal(signal.SIGTERM, lambda *_: ended.set())
    try:
        for relay in relays:
            relay.drain(timeout) if once else relay.start()
        if not once:
            click.echo(f"Relaying {', '.join(outbox.table.name for outbox in outboxes)}.")
            ended.wait()
    except KeyboardInterrupt:
        pass
    finally:
        for relay in relays:
            relay.close()
        signal.signal(signal.SIGTERM, previous)
