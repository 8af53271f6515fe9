"""The recipe for Flask-Login in the documentation, as it stands there."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from flask_login import LoginManager, UserMixin, login_required, login_user

from flask_noc_realtime import NocRealtime
from tests.documentation import blocks

STREAM = "/api/v1/events/stream"
CONNECT = "/api/v1/events/connect"
POLL = "/api/v1/events/poll"
TIMEOUT = 10.0


class User(UserMixin):
    """A user of the legacy app."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.permissions = {"incidents.read"} if id == "7" else set()


@pytest.fixture
def app() -> Flask:
    """Return an app with a login page, and the recipe."""
    app = Flask(__name__)
    app.config.update(SECRET_KEY="a secret of the tests", NOC_REALTIME_MAX_STREAMS_PER_USER=1)
    manager = LoginManager(app)
    manager.login_view = "login_page"
    manager.user_loader(User)
    realtime = NocRealtime(app)
    app.extensions["test_realtime"] = realtime

    @app.get("/login")
    def login_page() -> str:
        return "who are you?"

    @app.post("/login/<user>")
    def login(user: str) -> Any:
        login_user(User(user))
        return "", 204

    @app.get("/private")
    @login_required
    def private() -> str:
        return "for some"

    recipe = blocks("access", "python", "Flask-Login")
    assert len(recipe) == 2
    for block in recipe:
        exec(block, {"app": app, "realtime": realtime})
    return app


def logged_in(app: Flask, user: str) -> FlaskClient:
    """Return the client of a user."""
    client = app.test_client()
    assert client.post(f"/login/{user}").status_code == 204
    return client


@pytest.mark.parametrize(("method", "path"), [("GET", STREAM), ("POST", CONNECT), ("GET", POLL)])
def test_who_is_not_logged_in_is_answered_and_not_sent_to_the_login_page(
    app: Flask, method: str, path: str
) -> None:
    """A script cannot log in; the app's own pages redirect as they did."""
    client = app.test_client()
    answer = client.open(path, method=method)
    assert (answer.status_code, answer.mimetype) == (401, "application/problem+json")
    assert client.get("/private").status_code == 302


def test_who_is_logged_in_sees_what_is_theirs(app: Flask) -> None:
    """By the permissions and the id of the session's user."""
    realtime: NocRealtime = app.extensions["test_realtime"]
    one, other = logged_in(app, "7"), logged_in(app, "8")
    start = one.get(POLL).json["position"]  # type: ignore[index]
    with app.app_context():
        realtime.emit("incident.created", {"n": 1}, permissions=["incidents.read"])
        realtime.emit("notification.sent", {"n": 2}, user_id="8")
        realtime.emit("log.added", {"n": 3})

    def seen(client: FlaskClient) -> list[int]:
        answer: Any = client.get(POLL, query_string={"after": start}).json
        return [event["data"]["n"] for event in answer["events"]]

    assert seen(one) == [1, 3]
    assert seen(other) == [2, 3]


def test_logging_out_ends_the_streams(app: Flask) -> None:
    """And nobody opens another one with the session."""
    client = logged_in(app, "7")
    answer = client.get(STREAM)
    assert answer.status_code == 200
    frames = iter(answer.response)
    assert b"event: stream.open" in next(frames)  # type: ignore[operator]
    rest: list[Any] = []
    reader = threading.Thread(target=lambda: rest.extend(frames))
    reader.start()
    assert client.post("/logout").status_code == 204
    reader.join(TIMEOUT)
    assert not reader.is_alive()
    answer.close()
    assert b'"reason":"disconnected"' in rest[-1]
    assert client.get(STREAM).status_code == 401
