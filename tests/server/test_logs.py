"""Tokens and tickets stay out of the logs of those who follow the documentation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.conftest import GunicornFactory, require
from tests.documentation import blocks
from tests.nginx import Nginx
from tests.processes import wait_until
from tests.server.client import Site
from tests.sse_client import SSEClient

SECTION = "Tokens and tickets in logs"
TOKEN = "a-token-nobody-may-read"


def test_neither_a_token_nor_a_ticket_is_logged(tmp_path: Path, gunicorn: GunicornFactory) -> None:
    """With the settings of the page, which still show every request."""
    require("nginx")
    (config,) = blocks("deployment", "python", SECTION)
    (logging,) = blocks("deployment", "nginx", SECTION)
    server = gunicorn("tests.server.apps:create()", config=config, args=["--access-logfile", "-"])
    nginx = Nginx(server, tmp_path / "nginx", logging=logging)
    access_log = tmp_path / "nginx" / "access.log"
    site = Site(nginx.address)
    try:
        answer: Any = site.ask("POST", f"/api/v1/events/connect?token={TOKEN}")
        ticket = json.loads(answer.text)["ticket"]
        for path in (f"/{ticket}?types=log.added", f"?token={TOKEN}&types=log.added"):
            with SSEClient(nginx.address, f"/api/v1/events/stream{path}") as client:
                assert client.next_event().type == "stream.open"
        answer = site.ask("GET", f"/api/v1/events/stream/{ticket}")
        assert answer.status == 401
        for log in (server.log, access_log.read_text):
            wait_until(lambda log=log: log().count("GET /api/v1/events/stream") == 3, 10, "lines")  # type: ignore[misc]
    finally:
        nginx.stop()
    for text in (server.log(), access_log.read_text()):
        assert '"POST /api/v1/events/connect HTTP/1.' in text
        assert text.count('"GET /api/v1/events/stream/- HTTP/1.') == 2
        assert text.count('"GET /api/v1/events/stream HTTP/1.') == 1
        assert ticket not in text
        assert TOKEN not in text
