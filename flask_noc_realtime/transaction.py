"""Events that wait until the transaction they belong to is committed."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction, scoped_session

from .errors import ConfigError

if TYPE_CHECKING:
    from .extension import State

_logger = logging.getLogger("flask_noc_realtime")

_KEY = "noc_realtime"


def bind(session: Session | scoped_session[Any], state: State, record: bytes) -> None:
    """Publish *record* when the transaction of *session* is committed.

    A transaction begins if there is none, as with any statement. What is bound inside a
    savepoint is dropped with it.
    """
    if isinstance(session, scoped_session):
        session = session()
    if not isinstance(session, Session):
        raise ConfigError(f"on_commit is {session!r:.80}; pass a SQLAlchemy session.")
    if not event.contains(Session, "after_commit", _committed):
        # The app's own listeners may raise, and nobody after them is called.
        event.listen(Session, "after_commit", _committed, insert=True)
        event.listen(Session, "after_transaction_end", _ended, insert=True)
    if not session.in_transaction():
        session.begin()
    waiting = session.info.get(_KEY)
    if waiting is None:
        waiting = session.info[_KEY] = Waiting()
    waiting.add(session.get_nested_transaction(), state, record)


class Waiting:
    """The events of one transaction, in their order; as little thread-safe as its session.

    Savepoints end in the reverse of the order they began in, so that the events of each are the
    last there are when it ends.
    """

    def __init__(self) -> None:
        self._events: list[tuple[State, bytes]] = []
        self._starts: dict[SessionTransaction, int] = {}
        self._committed = False

    def add(self, savepoint: SessionTransaction | None, state: State, record: bytes) -> None:
        """Append an event of a savepoint, or of the transaction itself."""
        around = savepoint
        while around is not None and around not in self._starts:
            if around.nested:
                self._starts[around] = len(self._events)
            around = around.parent
        self._events.append((state, record))

    def keep(self, savepoint: SessionTransaction) -> None:
        """Give what a savepoint holds to what is around it."""
        self._starts.pop(savepoint, None)

    def drop(self, savepoint: SessionTransaction) -> None:
        """Forget what a savepoint holds, unless it was kept."""
        start = self._starts.pop(savepoint, None)
        if start is not None:
            del self._events[start:]

    def commit(self) -> None:
        """Publish all, and what comes until the end."""
        self._committed = True
        self._publish()

    def end(self) -> None:
        """Publish what came after the commit; without one, forget all."""
        if self._committed:
            self._publish()

    def _publish(self) -> None:
        events, self._events = self._events, []
        failures = []
        for state, record in events:
            try:
                state.publish(record)
            except Exception as error:
                failures.append(error)
        if failures:
            # Raising would leave the session in the middle of a commit that has happened.
            _logger.error(
                "%d of %d events of a committed transaction were not published.",
                len(failures),
                len(events),
                exc_info=failures[0],
            )


def _committed(session: Session) -> None:
    waiting = session.info.get(_KEY)
    if waiting is not None:
        savepoint = session.get_nested_transaction()
        if savepoint is None:
            waiting.commit()
        else:
            waiting.keep(savepoint)


def _ended(session: Session, transaction: SessionTransaction) -> None:
    waiting = session.info.get(_KEY)
    if waiting is None:
        return
    if transaction.parent is None:
        del session.info[_KEY]
        waiting.end()
    elif transaction.nested:
        waiting.drop(transaction)
