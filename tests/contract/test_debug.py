"""The debug page is closed: to apps that do not enable it, and to whoever is nobody."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask, g

from flask_noc_realtime import Identity, NocRealtime

PATHS = ("/api/v1/events/debug", "/api/v1/events/debug.js", "/api/v1/events/debug.css")


def app_with(**config: Any) -> Flask:
    """Return an app whose only user is named in a header."""
    app = Flask(__name__)
    app.config.update(config)
    realtime = NocRealtime(app)
    realtime.identity_loader(
        lambda request: Identity("kim") if request.headers.get("X-User") == "kim" else None
    )
    return app


@pytest.mark.parametrize("path", PATHS)
def test_an_app_that_does_not_enable_it_has_no_debug_page(path: str) -> None:
    """It is no address at all, whoever asks."""
    answer = app_with().test_client().get(path, headers={"X-User": "kim"})
    assert answer.status_code == 404


def test_the_debug_page_is_for_whoever_has_an_identity() -> None:
    """Nobody else is told more than that."""
    client = app_with(NOC_REALTIME_DEBUG_PAGE="yes").test_client()
    refused = client.get(PATHS[0])
    assert (refused.status_code, refused.mimetype) == (401, "application/problem+json")
    answer = client.get(PATHS[0], headers={"X-User": "kim"})
    assert (answer.status_code, answer.mimetype) == (200, "text/html")


def test_the_debug_page_holds_no_code_and_nothing_it_was_asked_with() -> None:
    """Its own policy allows neither, nor to be framed."""
    client = app_with(NOC_REALTIME_DEBUG_PAGE=True).test_client()
    answer = client.get(PATHS[0] + "?token=secret&types=x", headers={"X-User": "kim"})
    policy = answer.headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert "secret" not in answer.text + str(answer.headers)
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cache-Control"] == "no-store"


def test_the_debug_page_bears_the_nonce_of_the_app() -> None:
    """The policy of an app may allow nothing else."""
    app = app_with(NOC_REALTIME_DEBUG_PAGE=True)
    app.before_request(lambda: setattr(g, "csp_nonce", "bm9uY2U"))
    answer = app.test_client().get(PATHS[0], headers={"X-User": "kim"})
    assert answer.text.count('nonce="bm9uY2U"') == 2
