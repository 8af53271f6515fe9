"""The outbox: events as rows that commit, or vanish, with the data they tell of."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from flask import Flask
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    insert,
)
from sqlalchemy.orm import Session, scoped_session

from .errors import ConfigError
from .relay import Relay

if TYPE_CHECKING:
    from .extension import NocRealtime
    from .process import Process

# MySQL's plain BLOB holds less than an event.
_BLOB = LargeBinary(2**24 - 1)

_logger = logging.getLogger("flask_noc_realtime")

Bind = Engine | Callable[[], Engine]


class Outbox:
    """Emits events within a database transaction; `NocRealtime.outbox` returns one.

    :ivar table: the table, on the app's own metadata.
    """

    def __init__(
        self,
        realtime: NocRealtime,
        database: Any,
        bind: Bind | None = None,
        *,
        name: str = "noc_realtime_outbox",
        relay: bool = True,
        interval: float = 0.1,
    ) -> None:
        metadata = getattr(database, "metadata", database)
        if not isinstance(metadata, MetaData):
            raise ConfigError(
                f"An outbox was given {type(database).__name__}; pass the MetaData of your tables "
                "and your Engine, or your SQLAlchemy() of Flask-SQLAlchemy."
            )
        if bind is None and not hasattr(type(database), "engine"):
            raise ConfigError(
                "An outbox needs the database to read its rows from: pass your Engine, or a "
                "function that returns it, as in realtime.outbox(Base.metadata, engine)."
            )
        self.table = outbox_table(name, metadata)
        self._realtime = realtime
        self._bind = (lambda: database.engine) if bind is None else bind
        self._in_workers = relay
        self._interval = interval
        self._lock = threading.Lock()
        self._served: weakref.WeakSet[Process] = weakref.WeakSet()

    def emit(
        self,
        session: Session | scoped_session[Any] | Connection,
        type: str,
        data: Any = None,
        *,
        permissions: Collection[str] | None = None,
        user_id: str | None = None,
    ) -> None:
        """Emit an event if, and once, the transaction of *session* commits.

        Call it after the change it tells of. The session is flushed first, so that events about
        the same row come in the order in which its changes commit.

        :param type: as for `NocRealtime.emit`, as is all that follows.
        :raises EventError: when the event itself is wrong; the transaction is as before.
        """
        if not isinstance(session, (Session, scoped_session, Connection)):
            raise ConfigError(
                f"An event was to be written with {session!r:.80}; pass the Session or the "
                "Connection of the transaction (of an AsyncSession, its sync_session)."
            )
        record = self._realtime._state().encode(type, data, permissions, user_id)
        if not isinstance(session, Connection):
            session.flush()
        self.write(session, record)

    def write(self, session: Session | scoped_session[Any] | Connection, record: bytes) -> None:
        """Write the record of an event, unless the extension is muted."""
        if not self._realtime._mutes:
            session.execute(insert(self.table).values(key=uuid4().hex, record=record))

    def drain(self, timeout: float = 5.0) -> None:
        """Publish what is committed, and return when nothing is left; for tests and scripts.

        :raises TimeoutError: when there still is after *timeout* seconds.
        """
        relay = self.relay(self._realtime._state().process())
        try:
            relay.drain(timeout)
        finally:
            relay.close()

    def relay(self, process: Process) -> Relay:
        """Return a new relay of *process*. Close it."""
        bind = self._bind if isinstance(self._bind, Engine) else self._bind()
        return Relay(self.table, bind, process, self._interval)

    def serve(self, app: Flask, process: Process) -> None:
        """Have a worker relay, from its first request on."""
        if process in self._served or not self._in_workers or app.testing:
            return
        with self._lock:
            if process in self._served:
                return
            self._served.add(process)
        try:
            relay = self.relay(process)
            relay.start()
        except Exception:
            # The request that happens to be the first has nothing to do with it.
            _logger.exception("This worker does not relay %s.", self.table.name)
            return
        process.relays.append(relay)


def outbox_table(name: str, metadata: MetaData) -> Table:
    """Return the table of an outbox, as Alembic finds it on the metadata."""
    return Table(
        name,
        metadata,
        Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
        Column("key", String(32), nullable=False),
        Column("record", LargeBinary().with_variant(_BLOB, "mysql", "mariadb"), nullable=False),
        Column("attempted", BigInteger),
        # A number that is used again could be removed by a relay that was late.
        sqlite_autoincrement=True,
    )
