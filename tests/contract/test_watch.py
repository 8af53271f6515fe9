"""Watched models: what a session commits is emitted, and nothing else."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import FetchedValue, ForeignKey, String, create_engine, event, func, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    load_only,
    mapped_column,
    relationship,
    scoped_session,
    sessionmaker,
)

from flask_noc_realtime import ConfigError, EventError, NocRealtime, transaction
from tests.emitted import emitted, told


class Base(DeclarativeBase):
    """The tables of this file."""


class Site(Base):
    """Where incidents are."""

    __tablename__ = "site"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String, unique=True)
    incidents: Mapped[list[Incident]] = relationship(back_populates="site")


class Incident(Base):
    """What is watched; `Outage` is one."""

    __tablename__ = "incident"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(default="incident")
    title: Mapped[str] = mapped_column(default="")
    status: Mapped[str] = mapped_column("state", default="open")
    seen: Mapped[int] = mapped_column(default=0)
    since: Mapped[str] = mapped_column(server_default="today", server_onupdate=FetchedValue())
    site_id: Mapped[int | None] = mapped_column(ForeignKey("site.id"))
    site: Mapped[Site | None] = relationship(back_populates="incidents")
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "incident"}  # noqa: RUF012

    def summary(self) -> str:
        """Return what a list shows."""
        return f"{self.id} {self.title}: {self.status}"


class Outage(Incident):
    """A kind of incident."""

    __mapper_args__ = {"polymorphic_identity": "outage"}  # noqa: RUF012


EVENTS = {
    "created": "incident.created",
    "updated": "incident.updated",
    "deleted": "incident.deleted",
    "status": "incident.status.changed",
}


class Database:
    """A SQLite database, an app, and what it has emitted."""

    def __init__(self, app: Flask, realtime: NocRealtime) -> None:
        self.app = app
        self.realtime = realtime
        self.engine = create_engine("sqlite://")
        Base.metadata.create_all(self.engine)
        self.sessions = sessionmaker(self.engine)
        self._watches: list[Any] = []

    def watch(self, model: type[Any] = Incident, **options: Any) -> Any:
        """Watch a model until the test ends."""
        self._watches.append(self.realtime.watch(model, **options))
        return self._watches[-1]

    def told(self) -> list[tuple[str, Any]]:
        """Return the types and data of the events so far."""
        return told(self.app)

    def close(self) -> None:
        """Watch nothing."""
        for watch in self._watches:
            watch.stop()
        self.engine.dispose()


@pytest.fixture
def database() -> Iterator[Database]:
    """Return a database of which nothing is watched yet."""
    app = Flask("watch")
    app.config["NOC_REALTIME_STRICT_TYPES"] = False
    database = Database(app, NocRealtime(app))
    yield database
    database.close()
    app.extensions["noc_realtime"].process().close()


def test_changes_are_emitted_after_the_commit_in_their_order(database: Database) -> None:
    """Without data of the app's own, by primary key, and with the new value of the column."""
    database.watch(**EVENTS)
    with database.sessions() as session:
        incident = Incident(title="down")
        session.add(incident)
        session.flush()
        incident.title = "link down"
        session.flush()
        incident.status = "closed"
        session.flush()
        session.delete(incident)
        session.flush()
        assert database.told() == []
        session.commit()
    assert database.told() == [
        ("incident.created", {"id": 1}),
        ("incident.updated", {"id": 1}),
        ("incident.updated", {"id": 1}),
        ("incident.status.changed", {"id": 1, "status": "closed"}),
        ("incident.deleted", {"id": 1}),
    ]


def test_the_commit_has_happened_when_its_events_come(database: Database) -> None:
    """A browser that refetches at once must see the change."""
    database.watch(created="incident.created")
    came = []

    @event.listens_for(database.engine, "commit")
    def committed(connection: Any) -> None:
        came.append(database.told())

    with database.sessions.begin() as session:
        session.add(Incident())
    assert came == [[]]
    assert database.told() == [("incident.created", {"id": 1})]


def test_the_data_is_what_was_flushed(database: Database) -> None:
    """Attributes by name, with what the database filled in, or anything a function returns."""
    database.watch(created="incident.created", data=["id", "status", "since"])
    database.watch(created="log.added", data=Incident.summary)
    with database.sessions.begin() as session:
        session.add(incident := Incident(title="down"))
        session.flush()
        incident.status = "closed"
    assert database.told() == [
        ("incident.created", {"id": 1, "status": "open", "since": "today"}),
        ("log.added", "1 down: open"),
    ]


def test_nothing_is_loaded_for_an_event_after_the_commit(database: Database) -> None:
    """Neither by the event nor in its transaction, if what it holds is known."""
    database.watch(**EVENTS, data=["id", "title", "status"])
    statements = []
    with database.sessions() as session:
        session.add(incident := Incident(title="down"))
        session.flush()
        event.listen(
            database.engine, "before_cursor_execute", lambda *args: statements.append(args[2])
        )
        incident.status = "closed"
        session.commit()
    assert [statement.split()[0] for statement in statements] == ["UPDATE"]
    assert len(database.told()) == 3


def test_the_audience_may_follow_from_the_row(database: Database) -> None:
    """As anywhere else."""
    database.watch(created="log.added", permissions=["logs.read"], user_id="7")
    database.watch(
        created="incident.created",
        permissions=lambda row: [f"kinds.{row.kind}"],
        user_id=lambda row: row.title or None,
    )
    with database.sessions.begin() as session:
        session.add(Incident())
    rules = [(event.rule.permissions, event.rule.user_id) for event in emitted(database.app)]
    assert rules == [({"logs.read"}, "7"), ({"kinds.incident"}, None)]


def test_a_rollback_emits_nothing(database: Database) -> None:
    """By hand, by an exception, and by closing the session."""
    database.watch(created="incident.created")
    with database.sessions() as session:
        session.add(Incident())
        session.flush()
        session.rollback()
        with pytest.raises(LookupError), session.begin():
            session.add(Incident())
            session.flush()
            raise LookupError
        session.add(Incident())
        session.flush()
    session.commit()
    assert database.told() == []
    with database.sessions.begin() as session:
        session.add(Incident(title="later"))
    assert database.told() == [("incident.created", {"id": 1})]


def test_a_savepoint_that_is_rolled_back_drops_its_own_events_only(database: Database) -> None:
    """Whatever was released within it."""
    database.watch(created="incident.created", data=["title"])

    def add(title: str) -> None:
        session.add(Incident(title=title))
        session.flush()

    with database.sessions.begin() as session:
        add("before")
        outer = session.begin_nested()
        with session.begin_nested():
            add("released, then lost")
        add("lost")
        outer.rollback()
        add("between")
        with session.begin_nested():
            add("kept")
            lost = session.begin_nested()
            add("lost, too")
            session.begin_nested()
            add("lost, as it is within")
            lost.rollback()
            add("kept as well")
        session.begin_nested()
        add("never released by hand")
    titles = [data["title"] for _, data in database.told()]
    assert titles == ["before", "between", "kept", "kept as well", "never released by hand"]


def test_a_flush_that_fails_emits_nothing_of_its_transaction(database: Database) -> None:
    """And nothing of its savepoint only, if it was in one; a retry is as good as new."""
    database.watch(Site, created="site.created", data=["name"])
    with database.sessions.begin() as session:
        session.add(Site(name="north"))
        with pytest.raises(IntegrityError), session.begin_nested():
            session.add_all([Site(name="east"), Site(name="north")])
        session.add(Site(name="south"))
    assert database.told() == [
        ("site.created", {"name": "north"}),
        ("site.created", {"name": "south"}),
    ]
    with database.sessions() as session:
        for name in ("north", "west"):
            session.add_all([Site(name="mid"), Site(name=name)])
            try:
                session.commit()
            except IntegrityError:
                session.rollback()
    assert database.told()[2:] == [
        ("site.created", {"name": "mid"}),
        ("site.created", {"name": "west"}),
    ]


def test_a_commit_that_the_database_refuses_emits_nothing(database: Database) -> None:
    """As with a deferred constraint, or a serialization failure."""
    database.watch(created="incident.created")
    with database.sessions() as session:
        session.add(Incident())
        session.flush()

        @event.listens_for(database.engine, "commit")
        def refuse(connection: Any) -> None:
            raise IntegrityError("COMMIT", None, Exception("deferred"))

        with pytest.raises(IntegrityError):
            session.commit()
        event.remove(database.engine, "commit", refuse)
        session.rollback()
        session.commit()
    assert database.told() == []


def test_a_row_that_did_not_change_is_not_updated(database: Database) -> None:
    """The same value again is no change, be the row loaded or expired."""
    database.watch(**EVENTS)
    with database.sessions() as session:
        session.add(incident := Incident(title="down", status="open"))
        session.commit()
        incident.status = "open"
        session.commit()
        assert incident.title == "down"
        incident.title = "down"
        session.commit()
        incident.status = "closed"
        incident.status = "open"
        session.commit()
    assert database.told() == [("incident.created", {"id": 1})]


def test_what_the_database_computes_is_a_change(database: Database) -> None:
    """The attribute holds an expression until the flush, and nothing after it."""
    database.watch(updated="incident.updated", status="incident.status.changed", data=["seen"])
    with database.sessions() as session:
        session.add(incident := Incident())
        session.commit()
        incident.seen = Incident.seen + 1
        session.commit()
        incident.status = func.upper("closed")
        session.commit()
    assert database.told() == [
        ("incident.updated", {"seen": 1}),
        ("incident.updated", {"seen": 1}),
        ("incident.status.changed", {"seen": 1}),
    ]


def test_what_a_listener_of_the_app_changes_is_seen(database: Database) -> None:
    """Many set a timestamp, or derive a status, just before the update."""
    database.watch(status="incident.status.changed")

    def derive(mapper: Any, connection: Any, incident: Incident) -> None:
        incident.status = "named"

    event.listen(Incident, "before_update", derive)
    try:
        with database.sessions.begin() as session:
            session.add(incident := Incident())
            session.flush()
            incident.title = "x"
    finally:
        event.remove(Incident, "before_update", derive)
    assert database.told() == [("incident.status.changed", {"id": 1, "status": "named"})]


def test_a_relationship_changes_the_column_that_carries_it(database: Database) -> None:
    """On the side of the row that has the column, and not on the other."""
    database.watch(site_id="incident.moved")
    database.watch(Site, updated="site.updated")
    with database.sessions() as session:
        session.add_all([incident := Incident(), site := Site(name="north")])
        session.commit()
        site.incidents.append(incident)
        session.commit()
    assert database.told() == [("incident.moved", {"id": 1, "site_id": 1})]


def test_a_subclass_is_watched_with_its_base(database: Database) -> None:
    """The other way round it is not."""
    database.watch(Incident, created="incident.created", status="incident.status.changed")
    database.watch(Outage, created="outage.created")
    with database.sessions() as session:
        session.add(Incident(title="a"))
        session.commit()
        session.add(outage := Outage(title="b"))
        session.commit()
        outage.status = "closed"
        session.commit()
    assert database.told() == [
        ("incident.created", {"id": 1}),
        ("incident.created", {"id": 2}),
        ("outage.created", {"id": 2}),
        ("incident.status.changed", {"id": 2, "status": "closed"}),
    ]


def test_a_row_that_was_never_loaded_in_full_is_deleted_with_its_data(database: Database) -> None:
    """It is read while it is still there."""
    database.watch(deleted="incident.deleted", data=["id", "title"])
    with database.sessions.begin() as session:
        session.add(Incident(title="down"))
    with database.sessions.begin() as session:
        session.delete(session.get_one(Incident, 1, options=[load_only(Incident.id)]))
    assert database.told() == [("incident.deleted", {"id": 1, "title": "down"})]


def test_statements_and_bulk_operations_are_not_seen(database: Database) -> None:
    """As the documentation says; an event may be bound to their transaction by hand."""
    database.watch(**EVENTS)
    with database.sessions.begin() as session:
        session.execute(Incident.__table__.insert().values(title="a"))
        session.bulk_save_objects([Incident(title="b")])
        session.execute(update(Incident).values(status="closed"))
        database.realtime.emit("incident.updated", {"all": True}, on_commit=session)
    assert database.told() == [("incident.updated", {"all": True})]


def test_an_event_by_hand_takes_its_place_in_the_transaction(database: Database) -> None:
    """It shares the fate of what is flushed around it."""
    database.watch(created="incident.created")
    emit = database.realtime.emit
    with database.sessions() as session:
        emit("log.added", "lost", on_commit=session)
        session.rollback()
        emit("log.added", "first", on_commit=session)
        session.add(Incident())
        session.flush()
        data = {"state": "when it was emitted"}
        assert emit("log.added", data, on_commit=session) is None
        data["state"] = "later"
        with session.begin_nested() as savepoint:
            emit("log.added", "lost", on_commit=session)
            savepoint.rollback()
        assert database.told() == []
        emit("log.added", "at once")
        session.commit()
        session.commit()
    assert [data for _, data in database.told()] == [
        "at once",
        "first",
        {"id": 1},
        {"state": "when it was emitted"},
    ]


def test_an_event_bound_by_a_listener_to_the_commit_itself_comes_with_it(
    database: Database,
) -> None:
    """The transaction is not over before its listeners are."""
    with database.sessions() as session:
        event.listen(
            session,
            "after_commit",
            lambda session: database.realtime.emit("log.added", "last", on_commit=session),
        )
        database.realtime.emit("log.added", "first", on_commit=session)
        session.commit()
    assert [data for _, data in database.told()] == ["first", "last"]


def test_a_listener_of_the_app_that_raises_does_not_hold_events_back(database: Database) -> None:
    """The data is committed; it may have been there before anybody watched."""

    def fail(session: Session) -> None:
        raise LookupError

    if event.contains(Session, "after_commit", transaction._committed):
        event.remove(Session, "after_commit", transaction._committed)
        event.remove(Session, "after_transaction_end", transaction._ended)
    event.listen(Session, "after_commit", fail)
    try:
        with database.sessions() as session:
            database.realtime.emit("log.added", 1, on_commit=session)
            with pytest.raises(LookupError):
                session.commit()
    finally:
        event.remove(Session, "after_commit", fail)
    assert database.told() == [("log.added", 1)]


def test_a_mistake_in_an_event_by_hand_is_raised_where_it_is_made(database: Database) -> None:
    """Not at the commit."""
    with database.sessions() as session:
        with pytest.raises(EventError, match="is a object"):
            database.realtime.emit("log.added", object(), on_commit=session)
        assert not session.in_transaction()
        with pytest.raises(ConfigError, match="pass a SQLAlchemy session"):
            database.realtime.emit("log.added", on_commit=database.engine)  # type: ignore[arg-type]


def test_a_scoped_session_stands_for_its_session(database: Database) -> None:
    """As `db.session` of Flask-SQLAlchemy does."""
    registry = scoped_session(database.sessions)
    database.realtime.emit("log.added", 1, on_commit=registry)
    registry.commit()
    database.realtime.emit("log.added", 2, on_commit=registry)
    registry.remove()
    registry.commit()
    registry.remove()
    assert database.told() == [("log.added", 1)]


@pytest.mark.parametrize("how", ["log", "raise"])
def test_what_fails_about_an_event_is_logged_or_fails_the_flush(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With "raise" the transaction is not committed; otherwise it is as if nobody watched."""
    app = Flask("watch")
    app.config["NOC_REALTIME_EMIT_ERRORS"] = how
    database = Database(app, NocRealtime(app))
    database.watch(created="incident.created", data=lambda row: 1 / 0)
    with database.sessions() as session:
        session.add(Incident())
        if how == "log":
            session.commit()
            assert "No 'incident.created' was emitted." in caplog.text
        else:
            with pytest.raises(ZeroDivisionError):
                session.commit()
            session.rollback()
        assert session.query(Incident).count() == (how == "log")
    assert database.told() == []
    database.close()


@pytest.mark.parametrize("how", ["log", "raise"])
def test_an_outage_does_not_reach_a_commit(how: str, caplog: pytest.LogCaptureFixture) -> None:
    """It has happened; the events come later, or the log says how many are lost."""
    app = Flask("watch")
    app.config["NOC_REALTIME_EMIT_ERRORS"] = how
    database = Database(app, NocRealtime(app))
    database.watch(created="incident.created")
    process = app.extensions["noc_realtime"].process()
    process.broker.cut()
    with database.sessions.begin() as session:
        session.add_all([Incident(), Incident()])
    process.broker.heal()
    assert process.emitter.flush(20)
    lost = [r.getMessage() for r in caplog.records if "committed transaction" in r.getMessage()]
    if how == "log":
        assert [data["id"] for _, data in database.told()] == [1, 2]
        assert lost == []
    else:
        assert database.told() == []
        assert lost == ["2 of 2 events of a committed transaction were not published."]
    process.close()
    database.close()


def test_a_watch_that_is_stopped_emits_no_more(database: Database) -> None:
    """Others go on."""
    database.watch(created="incident.created")
    watch = database.watch(**EVENTS)
    watch.stop()
    watch.stop()
    with database.sessions() as session:
        session.add(incident := Outage())
        session.commit()
        incident.status = "closed"
        session.commit()
        session.delete(incident)
        session.commit()
    assert database.told() == [("incident.created", {"id": 1})]


def test_nothing_is_emitted_while_muted(database: Database) -> None:
    """What counts is the commit."""
    database.watch(created="incident.created")
    with database.sessions() as session:
        session.add(Incident())
        session.flush()
        with database.realtime.muted():
            session.commit()
        session.add(Incident())
        session.commit()
    assert database.told() == [("incident.created", {"id": 2})]


def test_changes_are_emitted_by_the_app_in_whose_context_they_are_flushed(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """And in no context, by the only app there is."""
    other, plain = Flask("other"), Flask("plain")
    NocRealtime(other)
    database.watch(created="incident.created")
    database.realtime.init_app(second := Flask("second"))
    for app in (other, plain, second, database.app):
        with app.app_context(), database.sessions() as session:
            session.add(Incident(title=app.name))
            session.commit()
    assert caplog.records == []
    with database.sessions.begin() as session:
        session.add(Incident())
    assert "There is no application context, and 2 apps use this NocRealtime" in caplog.text
    assert (told(second), told(other)) == ([("incident.created", {"id": 3})], [])
    assert database.told() == [("incident.created", {"id": 4})]


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (Incident, {}, "Say what to emit when a Incident changes"),
        (Incident, {"stauts": "incident.status.changed"}, "no column 'stauts'; it has: id, kind"),
        (Incident, {"created": "incident.created", "data": ["titel"]}, "pass a list of its"),
        (Incident, {"created": "incident.created", "data": "title"}, "pass a list of its"),
        (Incident, {"created": "Incident Created"}, "is not an event type"),
        (Base, {"created": "incident.created"}, "cannot be watched; pass a mapped class"),
        (dict, {"created": "incident.created"}, "cannot be watched; pass a mapped class"),
    ],
)
def test_a_watch_that_cannot_work_is_refused_at_once(
    database: Database, model: Any, options: Any, message: str
) -> None:
    """With what to do instead."""
    with pytest.raises((ConfigError, EventError), match=message):
        database.watch(model, **options)


def test_failed_updates_leave_nothing_behind(database: Database) -> None:
    """Between the two listeners of an update, a failure may come."""
    watch = database.watch(Site, updated="site.updated")
    with database.sessions() as session:
        session.add_all([site := Site(name="north"), Site(name="south")])
        session.commit()
        site.name = "south"
        with pytest.raises(IntegrityError):
            session.commit()
        session.rollback()
        assert "noc_realtime" not in session.info
    del site, session
    gc.collect()
    assert len(watch._altered) == 0
    assert database.told() == []


def test_a_watch_before_the_mappers_are_complete_does_not_complete_them(
    database: Database,
) -> None:
    """Other modules of the app are yet to be imported."""

    class Own(DeclarativeBase):
        pass

    class Alarm(Own):
        __tablename__ = "alarm"
        id: Mapped[int] = mapped_column(primary_key=True)
        of: Mapped[int] = mapped_column(ForeignKey("probe.id"))
        probe: Mapped[Any] = relationship("Probe")

    database.watch(Alarm, created="alarm.created", of="alarm.moved")

    class Probe(Own):
        __tablename__ = "probe"
        id: Mapped[int] = mapped_column(primary_key=True)

    Own.metadata.create_all(database.engine)
    with database.sessions.begin() as session:
        session.add(Alarm(probe=Probe()))
    assert database.told() == [("alarm.created", {"id": 1})]


def test_flask_sqlalchemy_is_watched_like_plain_sqlalchemy(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Its sessions are of a class of their own, and end with the request."""
    from flask_sqlalchemy import SQLAlchemy

    app = database.app
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    db = SQLAlchemy(app)

    class Ticket(db.Model):  # type: ignore[name-defined, misc]
        id = db.Column(db.Integer, primary_key=True)

    database.watch(Ticket, created="ticket.created")

    @app.post("/<int:commit>")
    def create(commit: int) -> str:
        db.session.add(Ticket())
        db.session.flush()
        database.realtime.emit("log.added", commit, on_commit=db.session)
        if commit:
            db.session.commit()
        return "done"

    with app.app_context():
        db.create_all()
    client = app.test_client()
    assert [client.post(path).text for path in ("/0", "/1", "/0")] == ["done"] * 3
    assert database.told() == [("ticket.created", {"id": 1}), ("log.added", 1)]
    with app.app_context():
        for engine in db.engines.values():
            engine.dispose()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
