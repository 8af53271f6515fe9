"""What an old snapshot of a real database shows is given to nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import event, text

from flask_noc_realtime import Identity, NocRealtime, coalesce
from tests.conftest import RedisFactory
from tests.redis_server import RedisServer


class Site:
    """A page about a row, and who writes it on another connection."""

    def __init__(self, directory: Path, url: str = "memory://") -> None:
        self.app = Flask(__name__, instance_path=str(directory))
        self.app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{directory / 'noc.db'}"
        self.app.config.update(NOC_REALTIME_URL=url, SECRET_KEY="test")
        self.database = SQLAlchemy(self.app)
        self.realtime = NocRealtime(self.app)
        self.realtime.identity_loader(self.who)
        self.while_looked_up = ""
        self.runs = 0
        strict = {"ttl": 60, "invalidate_on": ["incident.*"]}
        shared = coalesce(scope="public", **strict)
        self.app.add_url_rule("/status", view_func=shared(self.status))
        of_role = coalesce(scope="role", **strict)
        self.app.add_url_rule("/page", "page", of_role(self.status))
        function = coalesce(scope="role", view=False, **strict)(self.status)
        self.app.add_url_rule("/function", "function", lambda: function())
        self.app.before_request(self.read_user)
        with self.app.app_context():
            engine = self.database.engine
            # The driver begins no transaction for reading, unless it is left to SQLAlchemy.
            event.listen(engine, "connect", self._leave_to_sqlalchemy)
            event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
            self.write("open", first=True)

    @staticmethod
    def _leave_to_sqlalchemy(connection: Any, record: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")

    def write(self, status: str, first: bool = False) -> None:
        """Commit a status, and emit."""
        with self.app.app_context(), self.database.engine.begin() as connection:
            if first:
                connection.execute(text("CREATE TABLE incident (status TEXT)"))
                connection.execute(text("INSERT INTO incident VALUES ('')"))
            connection.execute(text("UPDATE incident SET status = :status"), {"status": status})
        with self.app.app_context():
            self.realtime.emit("incident.status.changed", {"status": status})

    def who(self, request: Any) -> Identity:
        """Look the user up in the request's session; meanwhile somebody may write."""
        self.read()
        if self.while_looked_up:
            self.write(self.while_looked_up)
            self.while_looked_up = ""
        return Identity("7", "operator")

    def read(self) -> str:
        """Read the status in the request's session."""
        return str(self.database.session.execute(text("SELECT status FROM incident")).scalar())

    def read_user(self) -> None:
        """Read before the view, as a login does; meanwhile somebody may write."""
        if "X-Early" in request.headers:
            self.read()
            if request.headers["X-Early"]:
                self.write(request.headers["X-Early"])

    def status(self) -> str:
        """Show the status."""
        self.runs += 1
        return self.read()

    def get(self, early: str | None = None, path: str = "/status") -> str:
        """Return what the page says."""
        headers = {} if early is None else {"X-Early": early}
        return self.app.test_client().get(path, headers=headers).text


@pytest.fixture(scope="module")
def server(module_redis_server: RedisFactory) -> RedisServer:
    """Return a Redis."""
    return module_redis_server()


@pytest.fixture(params=["memory", "redis"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """Return a site whose connections are closed in the end."""
    url = "memory://"
    if request.param == "redis":
        server = request.getfixturevalue("server")
        server.client().flushall()
        url = server.url
    site = Site(tmp_path, url)
    yield site
    site.app.extensions["noc_realtime"].process().close()
    with site.app.app_context():
        site.database.engine.dispose()


def test_a_page_of_an_old_snapshot_is_shown_to_its_caller_only(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """It was read after the event, and shows what was before; the next caller sees what is."""
    assert site.get(early="closed") == "open"
    assert site.get() == "closed"
    assert site.get() == "closed"
    assert site.runs == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "db.session.rollback()" in caplog.text


def test_a_page_of_a_new_snapshot_is_shared(site: Site) -> None:
    """Whoever has no transaction open begins one that sees the newest."""
    assert [site.get() for _ in range(3)] == ["open"] * 3
    assert site.runs == 1


def test_an_app_may_know_better(site: Site) -> None:
    """Where every statement sees the newest data, an open transaction is no reason."""
    site.realtime.transaction_probe(lambda: False)
    assert [site.get(early="") for _ in range(3)] == ["open"] * 3
    assert site.runs == 1


@pytest.mark.parametrize("path", ["/page", "/function"])
def test_looking_up_who_shares_in_the_database_is_no_reason_not_to(
    site: Site, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As the loader of Flask-Login does: what held before its transaction began is known."""
    assert [site.get(path=path) for _ in range(3)] == ["open"] * 3
    assert site.runs == 1
    site.write("closed")
    assert [site.get(path=path) for _ in range(3)] == ["closed"] * 3
    assert site.runs == 2
    assert not caplog.records


@pytest.mark.parametrize("path", ["/page", "/function"])
def test_what_was_written_after_the_user_was_looked_up_is_missed_by_one_only(
    site: Site, path: str
) -> None:
    """Its transaction began before the event, and after its request."""
    site.while_looked_up = "closed"
    assert site.get(path=path) == "open"
    assert [site.get(path=path) for _ in range(3)] == ["closed"] * 3
    assert site.runs == 2


@pytest.mark.parametrize("path", ["/page", "/function"])
def test_what_was_read_before_the_user_was_looked_up_is_shown_to_one_only(
    site: Site, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether or not the loader reads as well."""
    assert site.get(early="closed", path=path) == "open"
    assert [site.get(path=path) for _ in range(2)] == ["closed"] * 2
    assert caplog.text.count("A database transaction is open") == 1


class Incidents:
    """An app that keeps incidents in models, and a page about them."""

    def __init__(self) -> None:
        self.app = Flask(__name__)
        self.app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
        self.database = SQLAlchemy(self.app)
        self.realtime = NocRealtime(self.app)
        database = self.database

        class Incident(database.Model):  # type: ignore[name-defined,misc]  # made at run time
            id = database.Column(database.Integer, primary_key=True)
            status = database.Column(database.String)

        self.incident = Incident
        count = coalesce(scope="public", invalidate_on=["incident.*"])(lambda: "some")
        self.app.add_url_rule("/count", view_func=count)


@pytest.fixture
def incidents() -> Iterator[Incidents]:
    """Return an app whose page somebody has asked for."""
    made = Incidents()
    assert made.app.test_client().get("/count").text == "some"
    with made.app.app_context():
        made.database.create_all()
        yield made
        made.database.session.remove()
        made.database.engine.dispose()
    made.app.extensions["noc_realtime"].process().close()


def test_an_event_before_its_commit_is_warned_of_once(
    incidents: Incidents, caplog: pytest.LogCaptureFixture
) -> None:
    """A reader in between would keep the old rows, as from after the event."""
    session, emit = incidents.database.session, incidents.realtime.emit
    incident = incidents.incident(status="open")
    session.add(incident)
    for _ in range(2):
        emit("incident.created", {})
    assert caplog.text.count("'incident.created' is emitted while db.session holds changes") == 1


def test_events_after_their_commit_or_bound_to_it_are_not(
    incidents: Incidents, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor those that end no results."""
    session, emit = incidents.database.session, incidents.realtime.emit
    incident = incidents.incident(status="open")
    session.add(incident)
    emit("log.added", {})
    emit("incident.created", {}, on_commit=session)
    session.commit()
    emit("incident.created", {"id": incident.id})
    assert not caplog.records
