"""What an old snapshot of a real database shows is given to nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import event, text

from flask_noc_realtime import NocRealtime, coalesce


class Site:
    """A page about a row, and who writes it on another connection."""

    def __init__(self, directory: Path) -> None:
        self.app = Flask(__name__, instance_path=str(directory))
        self.app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{directory / 'noc.db'}"
        self.database = SQLAlchemy(self.app)
        self.realtime = NocRealtime(self.app)
        self.runs = 0
        shared = coalesce(scope="public", ttl=60, invalidate_on=["incident.*"])
        self.app.add_url_rule("/status", view_func=shared(self.status))
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

    def get(self, early: str | None = None) -> str:
        """Return what the page says."""
        headers = {} if early is None else {"X-Early": early}
        return self.app.test_client().get("/status", headers=headers).text


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Return a site whose connections are closed in the end."""
    site = Site(tmp_path)
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
