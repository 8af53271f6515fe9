"""The quickstart, the front page, and the examples about access, as they stand."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

from flask import Flask, render_template_string

from flask_noc_realtime import Identity, NocRealtime
from flask_noc_realtime.testing import process_of, stream_client
from tests.documentation import blocks

SERVER, IDENTITY, EMIT = blocks("quickstart", "python")


def test_what_the_quickstart_serves_and_emits_arrives() -> None:
    """Without an identity, since it says so."""
    names: dict[str, Any] = {"__name__": "tests"}
    exec(SERVER, names)
    with stream_client(names["app"]) as stream:
        with names["app"].app_context():
            exec(EMIT, names)
        assert stream.next("incident.created").data == {"id": 7, "title": "core switch down"}
    process_of(names["app"]).close()


def test_the_page_of_the_quickstart_begins_where_it_was_computed() -> None:
    """And what it imports is served."""
    app = Flask("page")
    NocRealtime(app)
    (page,) = blocks("quickstart", "html")
    app.add_url_rule("/", view_func=lambda: render_template_string(page), endpoint="page")
    response = app.test_client().get("/")
    assert f'since: "{response.headers["X-Noc-Position"]}"' in response.text
    assert 'from "/api/v1/events/client.js"' in response.text
    assert app.test_client().get("/api/v1/events/client.js").status_code == 200
    process_of(app).close()


def test_the_front_page_is_closed_by_default() -> None:
    """It opens nothing to anybody."""
    names: dict[str, Any] = {"__name__": "tests"}
    exec(blocks("index", "python")[0], names)
    assert names["app"].test_client().get("/api/v1/events/stream").status_code == 401


def test_the_loaders_of_the_pages_tell_who_asks() -> None:
    """From a session of the app's own."""
    ends = datetime.now(timezone.utc) + timedelta(hours=1)
    ada = SimpleNamespace(id=7, role="noc", permissions={"logs.read"}, session_ends=ends)
    for block, expected in (
        (IDENTITY, Identity("7", permissions=frozenset({"logs.read"}))),
        (
            blocks("access", "python", "Who is asking")[0],
            Identity("7", "noc", frozenset({"logs.read"}), ends),
        ),
    ):
        names: dict[str, Any] = {"realtime": NocRealtime(Flask("page"))}
        names["load_user"] = names["find_user"] = {"a": ada}.get
        exec(block, names)
        assert names["who"](SimpleNamespace(cookies={"session": "a", "sid": "a"})) == expected
        assert names["who"](SimpleNamespace(cookies={})) is None


def test_a_listed_origin_reads_what_the_page_lets_it() -> None:
    """And another does not."""
    app = Flask("page")
    app.config["NOC_REALTIME_ALLOW_ANONYMOUS"] = True
    exec(blocks("access", "python", "Other origins")[0], {"app": app})
    NocRealtime(app)
    client = app.test_client()
    poll = "/api/v1/events/poll"
    listed = client.get(poll, headers={"Origin": "https://wallboard.example"})
    assert listed.headers["Access-Control-Allow-Origin"] == "https://wallboard.example"
    assert client.get(poll, headers={"Origin": "https://another.example"}).status_code == 403
    process_of(app).close()
