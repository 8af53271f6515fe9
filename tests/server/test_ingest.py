"""Ingest under gunicorn, with Redis; the page about it is run as it stands."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from flask_noc_realtime import NocRealtime
from tests.conftest import GunicornFactory, RedisFactory, require
from tests.contract.test_ingest import ALERTMANAGER, BEARER, SECRET, TOKEN, alert, notification
from tests.documentation import blocks
from tests.emitted import emitted
from tests.gunicorn_server import GunicornServer
from tests.server.client import Site

CONFIG, MAPPER, SENDER = blocks("ingest", "python")
(ALERTMANAGER_CONFIG,) = blocks("ingest", "yaml")
DATA, EVENT = map(json.loads, blocks("ingest", "json"))
(SCRIPT,) = blocks("ingest", "sh")


@pytest.fixture
def server(redis_server: RedisFactory, gunicorn: GunicornFactory) -> GunicornServer:
    """Return a site that ingests, of one worker."""
    env = {
        "NOC_REALTIME_URL": redis_server().url,
        "NOC_REALTIME_INGEST_ALERTMANAGER_TOKEN": TOKEN,
        "NOC_REALTIME_INGEST_SECRET": SECRET,
        "NOC_REALTIME_INGEST_MAX_BYTES": "10000000",
    }
    return gunicorn("tests.server.apps:create()", env=env)


def test_a_burst_becomes_events_while_others_are_served(
    server: GunicornServer, tmp_path: Path
) -> None:
    """Each once, in order; a body in chunks of a length nobody knows is taken, and is bounded."""
    site = Site(server.address)
    content = tmp_path / "notification.json"
    content.write_text(json.dumps(notification(*map(alert, range(5000)))))
    with site.stream() as stream:
        stream.next_event()
        answers: list[Any] = []
        sender = threading.Thread(target=lambda: answers.append(post_in_chunks(server, content)))
        sender.start()
        served = 0
        while sender.is_alive():
            served += site.ask("GET", "/pid").status == 200
        sender.join()
        assert answers == [("202", {"accepted": 5000, "published": 5000, "failed": 0})]
        assert served > 2
        told = [stream.next_event() for _ in range(5000)]
    assert [int(event.json["data"]["fingerprint"], 16) for event in told] == list(range(5000))
    content.write_text(" " * 10_000_001)
    status, problem = post_in_chunks(server, content)
    assert (status, problem["status"]) == ("413", 413)


def post_in_chunks(server: GunicornServer, content: Path) -> tuple[str, Any]:
    """Post a notification without saying how long it is; return the status and the answer."""
    command = [require("curl"), "--silent", "--write-out", "\n%{http_code}"]
    for header in ("Transfer-Encoding: chunked", f"Authorization: {BEARER['Authorization']}"):
        command += ["-H", header]
    command += ["--data-binary", f"@{content}", server.url + ALERTMANAGER]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    answer, _, status = done.stdout.rpartition("\n")
    return status, json.loads(answer)


def test_the_examples_send_what_the_page_says(
    server: GunicornServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With openssl and curl, and with Python; a request that is repeated is refused."""
    for tool in ("curl", "openssl"):
        require(tool)
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    names: dict[str, Any] = {}
    exec(SENDER.replace("http://localhost:8000", server.url), names)
    script = SCRIPT.replace("http://localhost:8000", server.url)
    # What the last command of the page sent is sent a second time.
    script += "\n" + script[script.index("curl ") :]
    with Site(server.address).stream() as stream:
        stream.next_event()
        done = subprocess.run(["sh", "-euc", script], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        first, second = map(json.loads, done.stdout.replace("}\n{", "}\0{").split("\0"))
        assert first == {"accepted": 1, "published": 1, "failed": 0}
        assert second["status"] == 409
        assert names["send"]([EVENT, {**EVENT, "data": 2}])["published"] == 2
        told = [stream.next_event() for _ in range(3)]
    assert [event.json["data"] for event in told] == [EVENT["data"], EVENT["data"], 2]


def test_the_app_of_the_page_shows_what_the_page_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """To whom the configuration says, or its mapper."""
    monkeypatch.setenv("ALERTMANAGER_TOKEN", TOKEN)
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    app = Flask("docs")
    exec(CONFIG, {"app": app, "os": os})
    realtime = NocRealtime(app)
    assert ALERTMANAGER in ALERTMANAGER_CONFIG
    sent = {**DATA, "endsAt": "0001-01-01T00:00:00Z"}

    def notify(**changes: Any) -> None:
        body = notification({**sent, **changes})
        assert app.test_client().post(ALERTMANAGER, json=body, headers=BEARER).status_code == 202

    notify()
    exec(MAPPER, {"realtime": realtime})
    notify(fingerprint="2", labels={"severity": "info"})
    notify(fingerprint="3", labels={"team": "web"}, annotations={"runbook_url": "http://x"})
    created, mapped = emitted(app)
    assert (created.type, created.data) == ("incident.created", DATA)
    assert created.rule.permissions == {"incidents.read"}
    assert (mapped.data["runbook"], mapped.rule.permissions) == ("http://x", {"web.read"})
