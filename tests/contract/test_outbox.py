"""The outbox: its rows commit with the data, and the relay publishes each once and in order."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import Engine, MetaData, String, create_engine, insert, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session
from sqlalchemy.orm import sessionmaker as session_factory

from flask_noc_realtime import ConfigError, EventError, NocRealtime
from flask_noc_realtime.outbox import Outbox
from flask_noc_realtime.relay import Relay, relay_command
from flask_noc_realtime.testing import capture, cut, process_of, stream_client
from tests.conftest import RedisFactory
from tests.postgres_server import PostgresServer
from tests.processes import wait_until

ROOT = Path(__file__).resolve().parent.parent.parent


class Site:
    """An app with incidents in a database."""

    def __init__(self, engine: Engine, url: str = "memory://", **config: Any) -> None:
        class Base(DeclarativeBase):
            pass

        class Incident(Base):
            __tablename__ = "incident"
            id: Mapped[int] = mapped_column(primary_key=True)
            status: Mapped[str] = mapped_column(String(20))

        self.Incident: Any = Incident
        self.engine = engine
        self.metadata = Base.metadata
        self.app = Flask("site")
        self.app.testing = True
        self.app.config.update(NOC_REALTIME_URL=url, NOC_REALTIME_ALLOW_ANONYMOUS=True)
        self.app.config.update({f"NOC_REALTIME_{key}": value for key, value in config.items()})
        self.realtime = NocRealtime(self.app)
        self.outbox: Outbox = self.realtime.outbox(self.metadata, engine)
        self.app.add_url_rule("/", "index", lambda: "")
        self.metadata.drop_all(engine)
        self.metadata.create_all(engine)
        self.relays: list[Relay] = []

    def session(self) -> Session:
        """Return a session."""
        return Session(self.engine)

    def emit(self, *numbers: int) -> None:
        """Commit events, each in a transaction of its own."""
        for number in numbers:
            with self.engine.begin() as connection:
                self.outbox.emit(connection, "log.added", number)

    def relay(self) -> Relay:
        """Return one more relay, closed when the test is over."""
        self.relays.append(self.outbox.relay(process_of(self.app)))
        return self.relays[-1]

    def published(self) -> list[Any]:
        """Return the data of what the outbox still has to give, once it is given."""
        with capture() as events:
            self.outbox.drain(20.0)
        return [event.data for event in events]

    def close(self) -> None:
        """End all."""
        for relay in self.relays:
            relay.close()
        process_of(self.app).close()
        self.metadata.drop_all(self.engine)


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """Return a database of each kind."""
    if request.param == "sqlite":
        engine = create_engine(f"sqlite:///{tmp_path}/app.db")
    else:
        server: PostgresServer = request.getfixturevalue("postgres_server")
        engine = create_engine(server.url)
    yield engine
    engine.dispose()


@pytest.fixture
def postgres(postgres_server: PostgresServer) -> Iterator[Engine]:
    """Return PostgreSQL only, for what SQLite does not do."""
    engine = create_engine(postgres_server.url)
    yield engine
    engine.dispose()


@pytest.fixture
def site(engine: Engine) -> Iterator[Site]:
    """Return an app with each database."""
    site = Site(engine)
    yield site
    site.close()


@pytest.fixture
def redis_site(engine: Engine, redis_server: RedisFactory) -> Iterator[Site]:
    """Return an app with each database, and Redis."""
    site = Site(engine, redis_server().url, LEASE=1.0)
    yield site
    site.close()


def test_an_event_commits_with_its_data(site: Site) -> None:
    """Not before, and what is committed is there when the process is gone."""
    with site.session() as session:
        session.add(site.Incident(id=7, status="open"))
        site.outbox.emit(session, "incident.created", {"id": 7}, permissions=["a"], user_id="u")
        if site.engine.dialect.name != "sqlite":  # There, nobody else reads meanwhile.
            assert site.published() == []
        session.commit()
    with capture() as events:
        site.outbox.drain()
    event = events.one("incident.created")
    assert (event.data, event.permissions, event.user_id) == ({"id": 7}, {"a"}, "u")
    assert event.position == site.realtime.position()
    assert site.published() == []


def test_what_is_rolled_back_is_not_emitted(site: Site) -> None:
    """Neither with the transaction, nor with the savepoint it was emitted in."""
    with site.session() as session:
        site.outbox.emit(session, "log.added", 1)
        session.rollback()
        site.outbox.emit(session, "log.added", 2)
        with session.begin_nested():
            site.outbox.emit(session, "log.added", 3)
        nested = session.begin_nested()
        site.outbox.emit(session, "log.added", 4)
        nested.rollback()
        site.outbox.emit(session, "log.added", 5)
        session.commit()
    assert site.published() == [2, 3, 5]


def test_two_phase_transactions_emit_with_the_second(postgres: Engine) -> None:
    """What is only prepared may still be rolled back."""
    site = Site(postgres)
    with Session(site.engine, twophase=True) as session:
        site.outbox.emit(session, "log.added", 1)
        session.prepare()
        assert site.published() == []
        session.commit()
    assert site.published() == [1]
    site.close()


def test_every_kind_of_transaction_is_taken(site: Site) -> None:
    """And what is none says what to pass."""
    sessions = scoped_session(session_factory(site.engine))
    site.outbox.emit(sessions, "log.added", 1)
    sessions.commit()
    sessions.remove()
    site.emit(2)
    assert site.published() == [1, 2]
    with pytest.raises(ConfigError, match="pass the Session"):
        site.outbox.emit(site.engine, "log.added", 3)  # type: ignore[arg-type]


def test_a_wrong_event_leaves_the_transaction_as_it_was(site: Site) -> None:
    """It raises what emit raises, before the database is asked."""
    with site.session() as session:
        for type, data in (("unknown.type", 1), ("log.added", object())):
            with pytest.raises(EventError):
                site.outbox.emit(session, type, data)
        assert not session.in_transaction()


def test_what_is_muted_writes_no_row(site: Site) -> None:
    """As nothing is emitted then."""
    with site.realtime.muted():
        site.emit(1)
    site.emit(2)
    assert site.published() == [2]


def test_watched_models_write_into_the_outbox(site: Site) -> None:
    """In the order of the flush, with the transaction and its savepoints."""
    watch = site.realtime.watch(
        site.Incident,
        created="incident.created",
        status="incident.status.changed",
        deleted="incident.updated",
        outbox=site.outbox,
    )
    with site.session() as session:
        incident = site.Incident(id=7, status="open")
        session.add(incident)
        session.commit()
        incident.status = "closed"
        with capture() as events:
            session.commit()
        assert events.types == [], "it waits for the relay"
        session.begin_nested()
        incident.status = "open"
        session.flush()
        session.get_nested_transaction().rollback()  # type: ignore[union-attr]
        session.delete(incident)
        session.rollback()
    watch.stop()
    assert site.published() == [{"id": 7}, {"id": 7, "status": "closed"}]


def test_the_change_is_written_before_its_event_is(site: Site) -> None:
    """So that the event takes its number while the transaction holds the row."""
    with site.session() as session:
        incident = site.Incident(status="open")
        session.add(incident)
        site.outbox.emit(session, "incident.created", 1)
        assert incident.id is not None
        session.commit()


def test_events_about_one_row_come_in_the_order_of_the_commits(postgres: Engine) -> None:
    """Also when the later transaction began first, and waits for the row."""
    site = Site(postgres)
    with postgres.begin() as connection:
        connection.execute(insert(site.Incident).values(id=1, status="open"))
    with site.session() as late, site.session() as early:
        late.execute(select(site.Incident)).all()
        early.get(site.Incident, 1).status = "acknowledged"  # type: ignore[union-attr]
        site.outbox.emit(early, "incident.updated", "acknowledged")

        def resolve() -> None:
            late.get(site.Incident, 1).status = "resolved"  # type: ignore[union-attr]
            site.outbox.emit(late, "incident.updated", "resolved")
            late.commit()

        thread = threading.Thread(target=resolve)
        thread.start()
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        with postgres.connect() as connection:
            connection = connection.execution_options(isolation_level="AUTOCOMMIT")
            wait_until(lambda: connection.exec_driver_sql(waits).scalar(), 20.0, "it waits")
        early.commit()
        thread.join(20.0)
    assert site.published() == ["acknowledged", "resolved"]
    site.close()


def test_a_transaction_that_commits_late_loses_nothing(postgres: Engine) -> None:
    """Its numbers are lower than some that were published already."""
    site = Site(postgres)
    with site.session() as late:
        site.outbox.emit(late, "log.added", 1)
        site.emit(2)
        assert site.published() == [2]
        late.commit()
    assert site.published() == [1]
    site.close()


def test_a_backlog_is_published_in_order(site: Site) -> None:
    """By the batch, of as many events and bytes as one round trip takes."""
    with site.engine.begin() as connection:
        for number in range(450):
            site.outbox.emit(connection, "log.added", number)
        for number in range(450, 470):
            site.outbox.emit(connection, "log.added", [number, "x" * 200_000])
    published = site.published()
    assert published[:450] == list(range(450))
    assert [number for number, _ in published[450:]] == list(range(450, 470))


@pytest.mark.parametrize("killed", ["before", "after"])
def test_a_relay_that_died_is_made_up_for_once(redis_site: Site, killed: str) -> None:
    """Whether it was killed before or after it published what it had taken."""
    site = redis_site
    site.emit(1, 2, 3)
    with stream_client(site.app, timeout=20.0) as stream:
        dead = site.outbox.relay(process_of(site.app))
        rows = dead.take()
        if killed == "after":
            dead.publish(rows)
        site.emit(4)
        site.outbox.drain(20.0)
        assert [next(stream).data for _ in range(4)] == [1, 2, 3, 4]
        site.realtime.emit("log.added", "last")
        assert next(stream).data == "last"


def test_a_relay_that_wakes_up_late_changes_nothing(redis_site: Site) -> None:
    """Another one has published, and removed, what it had taken."""
    site = redis_site
    site.emit(1, 2)
    late = site.outbox.relay(process_of(site.app))
    rows = late.take()
    with stream_client(site.app, timeout=20.0) as stream:
        site.emit(3)
        site.outbox.drain(20.0)
        late.publish(rows)
        late.remove(rows)
        site.realtime.emit("log.added", "last")
        assert [next(stream).data for _ in range(4)] == [1, 2, 3, "last"]


def test_one_relay_is_active_at_a_time(redis_site: Site) -> None:
    """The next one takes over at once from one that ends, and soon from one that is killed."""
    first, second, third = (redis_site.relay() for _ in range(3))
    assert first.leads()
    assert not second.leads()
    first.close()
    assert second.leads()
    assert not third.leads()
    wait_until(third.leads, 20.0, "the lease of one that does not renew it lapses")


def test_several_who_relay_at_once_keep_the_order_and_repeat_nothing(redis_site: Site) -> None:
    """The lease is for efficiency only."""
    site = redis_site
    relays = [site.relay() for _ in range(3)]
    total = 300
    done = threading.Event()

    def deliver(relay: Relay) -> None:
        while not done.is_set():
            relay._held_at = time.monotonic()
            try:
                more = relay.deliver()
            except OperationalError as error:
                assert "locked" in str(error), error  # SQLite's way to make one wait.
                more = False
            if not more:
                # An idle greenlet that never gives way would stop all the others.
                done.wait(0.001)

    threads = [threading.Thread(target=deliver, args=[relay]) for relay in relays]
    with stream_client(site.app, timeout=30.0) as stream:
        for thread in threads:
            thread.start()
        site.emit(*range(total))
        seen = [next(stream).data for _ in range(total)]
        wait_until(lambda: not relays[0].waiting(), 30.0, "all is removed")
        done.set()
        for thread in threads:
            thread.join(30.0)
        site.realtime.emit("log.added", "last")
        assert next(stream).data == "last"
    assert seen == list(range(total))


def test_two_databases_have_two_leases(postgres: Engine, tmp_path: Path) -> None:
    """Apps that share a Redis would otherwise wait for each other for ever."""
    site = Site(postgres)
    other = create_engine(f"sqlite:///{tmp_path}/other.db")
    elsewhere = Relay(site.outbox.table, other, process_of(site.app), 0.1)
    first, second = site.relay(), site.relay()
    assert first.leads() and elsewhere.leads()
    assert not second.leads()
    elsewhere.close()
    other.dispose()
    site.close()


def test_a_lease_that_lapsed_is_not_used(redis_site: Site, monkeypatch: Any) -> None:
    """The relay looks at the clock between taking rows and publishing them."""
    site = redis_site
    site.emit(1)
    relay = site.relay()
    assert relay.leads()
    monkeypatch.setattr(relay, "_held_at", relay._held_at - 1.1)
    with capture() as events:
        assert relay.deliver()
        assert events.types == []
        assert relay.leads()
        assert relay.deliver()
    assert [event.data for event in events] == [1]


def test_an_outage_of_the_broker_loses_nothing(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once, and so is its end."""
    relay = site.relay()
    with stream_client(site.app, timeout=20.0) as stream:
        site.emit(0)
        relay.start()
        assert next(stream).data == 0
        with cut(site.app):
            site.emit(1, 2, 3)
            wait_until(lambda: "nothing is lost" in caplog.text, 20.0, "the relay complains")
        assert [next(stream).data for _ in range(3)] == [1, 2, 3]
        wait_until(lambda: "goes on" in caplog.text, 20.0, "the relay says so")
    assert caplog.text.count("nothing is lost") == 1


def test_an_outage_of_the_database_ends_with_it(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """The relay tries again until the table is there."""
    site.metadata.drop_all(site.engine)
    relay = site.relay()
    relay.start()
    with stream_client(site.app, timeout=20.0) as stream:
        wait_until(lambda: "nothing is lost" in caplog.text, 20.0, "the relay complains")
        site.metadata.create_all(site.engine)
        site.emit(1)
        assert next(stream).data == 1


def test_a_row_that_is_no_event_holds_nothing_up(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """It is dropped, and logged."""
    site.emit(1)
    with site.engine.begin() as connection:
        connection.execute(insert(site.outbox.table).values(key="odd", record=b"odd"))
    site.emit(2)
    assert site.published() == [1, 2]
    assert "Dropped row 2 of the outbox: Not an event record: b'odd'" in caplog.text


def test_rows_that_another_relay_took_are_left_to_it(site: Site) -> None:
    """On a database that locks no rows it shows when they are marked."""
    site.emit(1, 2)
    relay = site.relay()
    with site.engine.begin() as connection:
        connection.execute(update(site.outbox.table).values(attempted=1))
    assert [row.attempted for row in relay.take()] == [1, 1]


def test_a_drain_says_what_is_left(site: Site) -> None:
    """When another relay holds the lease and does not get on."""
    other = site.relay()
    assert other.leads()
    site.outbox.drain(0.0)
    site.emit(1, 2)
    with pytest.raises(TimeoutError, match=r"2 events are still in noc_realtime_outbox after 0.0"):
        site.outbox.drain(0.0)


def test_workers_relay_from_their_first_request_on(site: Site) -> None:
    """Until the process ends; the tests of an app drain instead."""
    process = process_of(site.app)
    client = site.app.test_client()
    client.get("/")
    assert process.relays == []
    site.app.testing = False
    site.emit(1)
    with stream_client(site.app, timeout=20.0) as stream:
        client.get("/")
        client.get("/")
        assert len(process.relays) == 1
        site.emit(2)
        wait_until(lambda: next(stream).data == 2, 20.0, "it is relayed")
    process.close()
    assert "noc-realtime-relay" not in {thread.name for thread in threading.enumerate()}


def test_a_database_that_is_not_there_breaks_no_request(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, once."""

    def engine() -> Engine:
        raise RuntimeError("no database yet")

    app = Flask("app")
    NocRealtime(app).outbox(MetaData(), engine)
    app.add_url_rule("/", "index", lambda: "")
    assert [app.test_client().get("/").status_code for _ in range(3)] == [200] * 3
    assert caplog.text.count("This worker does not relay noc_realtime_outbox.") == 1
    process_of(app).close()


def test_the_command_empties_the_outbox(site: Site) -> None:
    """Of the app it is run for; one without an outbox says so."""
    site.emit(1, 2)
    with capture() as events:
        result = site.app.test_cli_runner().invoke(relay_command, ["--once"])
    assert (result.exit_code, result.output) == (0, "")
    assert [event.data for event in events] == [1, 2]
    other = Flask("other")
    NocRealtime(other)
    result = other.test_cli_runner().invoke(relay_command, ["--once"])
    assert isinstance(result.exception, ConfigError)


def test_flask_sqlalchemy_needs_no_engine(engine: Engine) -> None:
    """Its session, its metadata and its engine are the outbox's, whichever app is the current."""
    from flask_sqlalchemy import SQLAlchemy

    db = SQLAlchemy()
    realtime = NocRealtime()
    outbox = realtime.outbox(db, name="events_to_send")
    assert "events_to_send" in db.metadata.tables
    app = Flask("app")
    app.testing = True
    app.config["SQLALCHEMY_DATABASE_URI"] = engine.url
    db.init_app(app)
    realtime.init_app(app)
    with app.app_context(), capture() as events:
        db.drop_all()
        db.create_all()
        outbox.emit(db.session, "log.added", 1)
        db.session.commit()
        outbox.drain(20.0)
        assert [event.data for event in events] == [1]
        db.drop_all()
        db.engine.dispose()


def test_what_an_outbox_needs_is_asked_for_when_it_is_made() -> None:
    """Not when the first event is lost."""
    with pytest.raises(ConfigError, match="pass the MetaData"):
        NocRealtime().outbox("sqlite://")
    with pytest.raises(ConfigError, match="pass your Engine"):
        NocRealtime().outbox(MetaData())


def test_the_package_does_not_import_sqlalchemy() -> None:
    """Which apps without an outbox need not have; with one they are told what to install."""
    code = """
import sys
sys.modules["sqlalchemy"] = None
import flask_noc_realtime
try:
    flask_noc_realtime.NocRealtime().outbox(object())
except flask_noc_realtime.ConfigError as error:
    assert "pip install 'flask-noc-realtime[sqlalchemy]'" in str(error), error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
