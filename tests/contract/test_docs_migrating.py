"""The pages about migrating and security, as they stand."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from flask import Flask, session
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from flask_noc_realtime import Identity, NocRealtime, coalesce
from flask_noc_realtime.cli import group
from flask_noc_realtime.testing import process_of, stream_client
from tests.conftest import RedisFactory
from tests.documentation import blocks
from tests.emitted import emitted, told
from tests.processes import wait_until

NORTH = Identity("ada", permissions=frozenset({"sites.north"}))


class Base(DeclarativeBase):
    """The models of the app that moves."""


class Incident(Base):
    """A row."""

    __tablename__ = "incident"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str]


def test_an_app_that_polls_moves_as_the_page_says(redis_server: RedisFactory) -> None:
    """Its rows emit, what it polls is shared, and nobody has a stream until the operator says."""
    app = Flask("page")
    loads: list[int] = []
    names: dict[str, Any] = {
        "app": app,
        "NocRealtime": NocRealtime,
        "Incident": Incident,
        "coalesce": coalesce,
        "user_of_request": lambda request: NORTH,
        "load_open_incidents": lambda: loads.append(1) or len(loads),
    }
    url = redis_server().url
    exec(phase(1).replace("redis://localhost:6379/0", url), names)
    exec(phase(2), names)
    client = app.test_client()
    assert client.get("/api/v1/events/stream").status_code == 204
    assert [client.get("/incidents.json").json for _ in range(3)] == [{"incidents": 1}] * 3
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with app.app_context(), Session(engine) as rows:
        rows.add(Incident(id=7, status="open"))
        rows.commit()
    assert client.get("/incidents.json").json == {"incidents": 2}
    (page,) = blocks("migrating", "html", "3. Let the pages listen")
    assert "/api/v1/events/client.js" in page and client.get("/api/v1/events/client.js").data
    for line in blocks("migrating", "sh", "3. Let the pages listen")[0].strip().splitlines():
        assert app.test_cli_runner().invoke(group, line.split()[2:]).exit_code == 0
    wait_until(
        lambda: client.head("/api/v1/events/stream").status_code == 200, 10.0, "everybody is in"
    )
    process_of(app).close()


def phase(number: int) -> str:
    """Return the code of a phase."""
    title = ["1. Let the services emit", "2. Coalesce what is polled"][number - 1]
    return blocks("migrating", "python", title)[0]


def test_a_greeting_is_sent_as_the_page_says() -> None:
    """To one user, of a type that is registered."""
    app = Flask("page")
    realtime = NocRealtime(app)
    with app.app_context():
        exec(blocks("migrating", "python", "From Flask-SSE")[0], {"realtime": realtime})
    assert told(app) == [("greeting.sent", {"message": "hello"})]
    assert emitted(app)[-1].rule.user_id == "7"


def test_a_handler_becomes_a_view_as_the_page_says() -> None:
    """It does its work, tells everybody, and answers."""
    app = Flask("page")
    app.secret_key = "test"
    done: list[tuple[int, str]] = []
    names = {
        "app": app,
        "realtime": NocRealtime(app),
        "session": session,
        "acknowledge_in_database": lambda id, by: done.append((id, by)),
    }
    exec(blocks("migrating", "python", "From Flask-SocketIO")[0], names)
    client = app.test_client()
    with client.session_transaction() as stored:
        stored["user"] = "ada"
    assert client.post("/incidents/7/acknowledge").status_code == 204
    assert done == [(7, "ada")]
    assert told(app) == [("incident.updated", {"id": 7, "acknowledged_by": "ada"})]


def test_a_redis_with_the_rights_of_the_page_does_for_all(redis_server: RedisFactory) -> None:
    """Whatever the app asks of it, it may; and nothing of another namespace."""
    server = redis_server()
    admin = server.client()
    (rights,) = blocks("security", "text")
    admin.execute_command("ACL", "SETUSER", *rights.split()[1:])
    url = server.url.replace("redis://", "redis://noc:PASSWORD@")
    app = Flask("page")
    app.config.update(NOC_REALTIME_URL=url, SECRET_KEY="a secret")
    realtime = NocRealtime(app)
    realtime.identity_loader(lambda request: NORTH)

    @app.get("/page")
    @coalesce(scope="permissions", invalidate_on=["incident.*"])
    def page() -> str:
        return "page"

    client = app.test_client()
    ticket = client.post("/api/v1/events/connect").json["url"]
    assert client.get(ticket).status_code == 200
    with stream_client(app) as stream:
        with app.app_context():
            assert realtime.emit("incident.created", "x" * 100_000) is not None
            realtime.coalesce.invalidate(page)
            realtime.rollout(50, allow=["ada"])
        assert stream.next("incident.created").data == "x" * 100_000
    assert [client.get("/page").data for _ in range(2)] == [b"page"] * 2
    for command in ("stats", "rollout --reset", "disconnect ada"):
        result = app.test_cli_runner().invoke(group, command.split())
        assert result.exit_code == 0, result.output
    process_of(app).close()
    assert admin.execute_command("ACL", "LOG") == []
    with redis.Redis.from_url(url) as noc, pytest.raises(redis.exceptions.NoPermissionError):
        noc.get("another:key")
