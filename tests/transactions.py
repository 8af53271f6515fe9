"""Random transactions, run on a real database and, beside it, on a model of what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from hypothesis import strategies as st
from sqlalchemy import Engine, event, select
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, SessionTransaction, mapped_column

from flask_noc_realtime import NocRealtime

TAKEN = "taken"

Event = tuple[str, Any]
Op = tuple[Any, ...]


class Base(DeclarativeBase):
    """The table of this file."""


class Item(Base):
    """A row; the one without a number is there from the start and is never touched."""

    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(unique=True)
    value: Mapped[int]


WATCHED = {
    "created": "item.created",
    "updated": "item.updated",
    "deleted": "item.deleted",
    "value": "item.value.changed",
    "data": ["id", "value"],
}

values = st.integers(0, 3)
picks = st.integers(0, 9)
ops = st.one_of(
    # Without rows and savepoints, nothing else does anything.
    st.tuples(st.just("add"), values),
    st.tuples(st.just("add"), values),
    st.tuples(st.just("savepoint")),
    st.tuples(st.just("change"), picks, values),
    st.tuples(st.just("remove"), picks),
    st.tuples(st.just("emit"), values),
    st.tuples(st.just("flush")),
    st.tuples(st.just("savepoint")),
    st.tuples(st.just("release"), picks),
    st.tuples(st.just("back"), picks),
    st.tuples(st.just("clash")),
)


class Script(NamedTuple):
    """One transaction.

    :ivar ops: what is done in it.
    :ivar failures: where each attempt but the last fails as in a deadlock: at a statement, by its
        number, at the first phase of the commit, or at the commit.
    :ivar end: how it ends.
    """

    ops: Sequence[Op]
    failures: Sequence[int | str]
    end: str


scripts = st.lists(
    st.builds(
        Script,
        st.lists(ops, max_size=14),
        st.lists(st.sampled_from([0, 1, 2, 4, "prepare", "commit"]), max_size=2),
        st.sampled_from(["commit", "commit", "commit", "rollback", "close"]),
    ),
    min_size=1,
    max_size=5,
)


class Deadlock(OperationalError):
    """What a database says to the loser."""

    def __init__(self) -> None:
        super().__init__("", None, Exception("deadlock detected"))


class Rows:
    """What a session means: rows, those not flushed yet, and the events of its transaction."""

    def __init__(self) -> None:
        self.committed: list[Event] = []
        self.stored: dict[int, int] = {}
        self._begin()

    def _begin(self) -> None:
        self.flushed = dict(self.stored)
        self.now = dict(self.stored)
        self.removed: dict[int, int] = {}
        self.events: list[Event] = []
        self.savepoints: list[tuple[dict[int, int], int]] = []

    def flush(self) -> None:
        """Tell the new rows as they were added, then the changed and the deleted by their key."""

        def tell(type: str, id: int, value: int) -> None:
            self.events.append((type, {"id": id, "value": value}))

        for id in self.now:
            if id not in self.flushed:
                tell("item.created", id, self.now[id])
        for id, old in sorted(self.flushed.items()):
            if self.now.get(id, old) != old:
                tell("item.updated", id, self.now[id])
                tell("item.value.changed", id, self.now[id])
        for id in sorted(self.flushed):
            if id not in self.now:
                tell("item.deleted", id, self.removed[id])
        self.flushed = dict(self.now)

    def remove(self, id: int) -> None:
        """Remove a row, which is told with what the session held, be it stored or not."""
        self.removed[id] = self.now.pop(id)

    def savepoint(self) -> None:
        """Begin one."""
        self.flush()
        self.savepoints.append((dict(self.flushed), len(self.events)))

    def release(self, index: int) -> None:
        """End a savepoint, and those within."""
        self.flush()
        del self.savepoints[index:]

    def back(self, index: int) -> None:
        """Undo a savepoint, and those within."""
        rows, length = self.savepoints[index]
        self.flushed, self.now = dict(rows), dict(rows)
        del self.events[length:]
        del self.savepoints[index:]

    def commit(self) -> None:
        """End the transaction."""
        self.flush()
        self.stored = self.flushed
        self.committed += self.events
        self._begin()

    def rollback(self) -> None:
        """Undo the transaction."""
        self._begin()


class Run:
    """Runs scripts on a database, in one session, and on the model."""

    def __init__(self, engine: Engine, realtime: NocRealtime, *, twophase: bool) -> None:
        self.rows = Rows()
        self._engine = engine
        self._realtime = realtime
        self._session = Session(engine, autoflush=False, twophase=twophase)
        self._savepoints: list[SessionTransaction] = []
        self._expunged = False
        self._next = 1
        self._fail: int | str | None = None
        self._statements = 0
        event.listen(engine, "before_cursor_execute", self._at_statement)
        event.listen(engine, "commit", self._at_commit)
        # Where there are prepared transactions, one would stay, with its locks.
        self._phases = engine.dialect.name == "sqlite"
        if self._phases:
            event.listen(engine, "prepare_twophase", self._at_prepare)
            event.listen(engine, "commit_twophase", self._at_commit)

    def close(self) -> None:
        """Leave the engine as it was."""
        self._session.close()
        event.remove(self._engine, "before_cursor_execute", self._at_statement)
        event.remove(self._engine, "commit", self._at_commit)
        if self._phases:
            event.remove(self._engine, "prepare_twophase", self._at_prepare)
            event.remove(self._engine, "commit_twophase", self._at_commit)

    def run(self, script: Script) -> None:
        """Run a transaction until it ends, as a service does that retries after a deadlock."""
        for failure in [*script.failures, None]:
            self._fail, self._statements = failure, 0
            try:
                for op in script.ops:
                    getattr(self, f"_{op[0]}")(*op[1:])
                self._end(script.end)
                return
            except Deadlock:
                self._end("rollback")

    def stored(self) -> dict[int, int]:
        """Return what the database holds."""
        with self._engine.connect() as connection:
            found = connection.execute(select(Item.id, Item.value).where(Item.name != TAKEN))
            return {row.id: row.value for row in found}

    def _end(self, how: str) -> None:
        getattr(self._session, how)()
        self._savepoints.clear()
        (self.rows.commit if how == "commit" else self.rows.rollback)()

    def _add(self, value: int) -> None:
        if self._expunged:
            # SQLAlchemy numbers what is pending by how much there is: two would have one number,
            # and either could be inserted first.
            self._expunged = False
            self._flush()
        id, self._next = self._next, self._next + 1
        self._session.add(Item(id=id, name=f"{id}", value=value))
        self.rows.now[id] = value

    def _change(self, pick: int, value: int) -> None:
        item = self._pick(pick)
        if item is not None:
            item.value = self.rows.now[item.id] = value

    def _remove(self, pick: int) -> None:
        item = self._pick(pick)
        if item is not None:
            self.rows.remove(item.id)
            if item in self._session.new:
                self._session.expunge(item)
                self._expunged = True
            else:
                self._session.delete(item)

    def _pick(self, pick: int) -> Item | None:
        if not self.rows.now:
            return None
        id = sorted(self.rows.now)[pick % len(self.rows.now)]
        new = [item for item in self._session.new if item.id == id]
        return new[0] if new else self._session.get_one(Item, id)

    def _emit(self, value: int) -> None:
        self._realtime.emit("log.added", value, on_commit=self._session)
        self.rows.events.append(("log.added", value))

    def _flush(self) -> None:
        self._session.flush()
        self.rows.flush()

    def _savepoint(self) -> None:
        self._savepoints.append(self._session.begin_nested())
        self.rows.savepoint()

    def _release(self, pick: int) -> None:
        if self._savepoints:
            index = pick % len(self._savepoints)
            self._savepoints[index].commit()
            del self._savepoints[index:]
            self.rows.release(index)

    def _back(self, pick: int) -> None:
        if self._savepoints:
            index = pick % len(self._savepoints)
            self._savepoints[index].rollback()
            del self._savepoints[index:]
            self.rows.back(index)

    def _clash(self) -> None:
        """Fail a flush; go on from the savepoint, if there is one, or from the start."""
        self._session.add(Item(id=-self._next, name=TAKEN, value=0))
        try:
            self._session.flush()
        except IntegrityError:
            if self._savepoints:
                self._back(len(self._savepoints) - 1)
            else:
                self._end("rollback")

    def _at_statement(self, *args: Any) -> None:
        if args[2].startswith(("INSERT", "UPDATE", "DELETE")):
            if self._fail == self._statements:
                raise Deadlock
            self._statements += 1

    def _at_prepare(self, *args: Any) -> None:
        if self._fail == "prepare":
            raise Deadlock

    def _at_commit(self, *args: Any) -> None:
        if self._fail == "commit":
            raise Deadlock


def replay(events: Sequence[Event]) -> dict[int, int]:
    """Return the rows that somebody has who knows nothing but the events."""
    rows: dict[int, int] = {}
    for type, data in events:
        if type in ("item.created", "item.updated"):
            assert (data["id"] in rows) == (type == "item.updated")
            rows[data["id"]] = data["value"]
        elif type == "item.deleted":
            del rows[data["id"]]
    return rows
