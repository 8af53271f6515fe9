"""The load that an operator puts on an app of theirs: what comes of it is what there was."""

from __future__ import annotations

import json
import re
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flask import Flask

from flask_noc_realtime import Identity, NocRealtime
from flask_noc_realtime.cli import group
from flask_noc_realtime.load import Herd, Ramp, open_streams, send_herd
from flask_noc_realtime.target import Target
from tests.conftest import RedisFactory
from tests.documentation import DOCS, blocks
from tests.gunicorn_server import GunicornServer
from tests.processes import free_port
from tests.server.coalesce_app import Data
from tests.server.serve import served

PREFIX = "/api/v1/events"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Return what the site's views did."""
    return Data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def server(
    data: Data, module_redis_server: RedisFactory, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GunicornServer]:
    """Serve a site with a coalesced page from two workers."""
    env = {"NOC_REALTIME_URL": module_redis_server().url, "SITE_DATA": str(data._runs.parent)}
    app = "tests.server.coalesce_app:create()"
    server = GunicornServer(app, tmp_path_factory.mktemp("gunicorn"), workers=2, env=env)
    try:
        yield server.start()
    finally:
        server.close()


def run(*args: str) -> Result:
    """Run the command of an app that is somewhere else."""
    app = Flask("operator")
    NocRealtime(app)
    return app.test_cli_runner().invoke(group, ["load", *args])


def test_streams_open_receive_and_last(server: GunicornServer) -> None:
    """Fifty of them, while something is emitted; each event comes to each stream."""
    ended = threading.Event()

    def emit() -> None:
        while not ended.wait(0.05):
            urllib.request.urlopen(server.url + "/write", b"", timeout=10).close()

    emitting = threading.Thread(target=emit)
    emitting.start()
    try:
        plan = Ramp(streams=50, seconds=0.5, hold=1.0, timeout=20)
        found = open_streams([Target.parse(server.url)], PREFIX, plan)
    finally:
        ended.set()
        emitting.join()
    body = found.body()
    assert (found.connected, body["failed"], body["lost"], found.sound) == (50, {}, {}, True)
    assert found.events >= 50
    assert 0 < body["opening_ms"]["p50"] <= body["opening_ms"]["p99"] <= body["opening_ms"]["max"]
    assert 0 <= body["latency_ms"]["p50"] <= body["latency_ms"]["max"]


def test_a_herd_is_answered_by_one_execution(server: GunicornServer, data: Data) -> None:
    """Thirty callers on both workers: one works it out, the others join or are given it."""
    herd = Herd("/slow/herd?seconds=0.5", callers=30)
    found = send_herd([Target.parse(server.url)], herd)
    assert (found.statuses, found.failed, found.sound) == ({200: 30}, {}, True)
    assert len(data.runs("herd")) == 1
    assert found.shared["worked out"] == 1
    assert found.shared["joined"] + found.shared["kept"] == 29
    assert found.body()["answer_ms"]["max"] >= 500


def test_a_herd_that_fails_is_counted(server: GunicornServer) -> None:
    """By status; what does not go through coalesce is not said to."""
    found = send_herd([Target.parse(server.url)], Herd("/nowhere", callers=5))
    assert (found.statuses, found.sound) == ({404: 5}, False)
    assert found.shared == {"not coalesced": 5}


def test_a_header_takes_the_place_of_ours(server: GunicornServer) -> None:
    """However its name is written: a request with two hosts is refused."""
    target = Target.parse(server.url, ["host: noc.example"])
    found = send_herd([target], Herd("/nowhere", callers=1))
    assert found.statuses == {404: 1}


def test_the_command_shows_both_and_their_json(server: GunicornServer) -> None:
    """With exit code 0 where all went well, and 1 where it did not."""
    short = ["--url", server.url, "--streams", "5", "--ramp", "0", "--hold", "0.1"]
    result = run(*short, "--herd", "/timed/shown", "--callers", "3", "--json")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.output)
    assert shown["streams"]["connected"] == 5
    assert shown["herd"]["statuses"] == {"200": 3}
    result = run(*short, "--herd", "/nowhere", "--callers", "20")
    assert result.exit_code == 1
    lines = [" ".join(line.split()) for line in result.output.splitlines()]
    assert "statuses 404 20" in lines and "connected 5" in lines
    [page] = blocks("terminal", "console", "Putting load on it")
    assert names(page.partition("\n")[2]) == names(result.output)
    assert "20,000 streams and 5,000 callers" in (DOCS / "terminal.rst").read_text()
    assert run(*short[:2], "--streams", "20001").exit_code == 2
    assert run(*short[:2], "--callers", "5001").exit_code == 2
    assert run(*short[:2], "--streams", "0").exit_code == 2


def names(table: str) -> list[str]:
    """Return what each line of the tables is about."""
    return [re.split(r"\s{2,}", line.strip())[0] for line in table.strip().splitlines()]


def make_app(**config: Any) -> Flask:
    """Return an app with a loader that takes a bearer token for a user."""
    app = Flask("limited")
    app.config.update({f"NOC_REALTIME_{name}": value for name, value in config.items()})
    realtime = NocRealtime(app)
    realtime.identity_loader(lambda request: Identity(request.headers["Authorization"]))
    return app


def test_streams_that_are_refused_are_counted_by_their_status(tmp_path: Path) -> None:
    """One user has three at most; several take turns, a token each."""
    tokens = tmp_path / "tokens"
    tokens.write_text("ada\nbob\n\n")
    short = ["--streams", "5", "--ramp", "0", "--hold", "0", "--json"]
    with served(make_app()) as url:
        one = run("--url", url, *short, "--token", "cyd")
        two = run("--url", url, *short, "--tokens", str(tokens))
    assert (one.exit_code, two.exit_code) == (1, 0)
    alone, both = (json.loads(each.output)["streams"] for each in (one, two))
    assert (alone["connected"], alone["failed"]) == (3, {"HTTP 429": 2})
    assert (both["connected"], both["failed"]) == (5, {})


def test_streams_that_end_early_are_lost(tmp_path: Path) -> None:
    """And it is told who ended them."""
    with served(make_app(STREAM_LIFETIME=0.3)) as url:
        target = Target.parse(url, ["Authorization: ada"])
        found = open_streams([target], PREFIX, Ramp(2, seconds=0, hold=1.5))
    assert (found.connected, found.sound) == (2, False)
    assert found.lost == {"ended by the app: lifetime": 2}


def test_where_nobody_listens_every_stream_and_caller_fails() -> None:
    """And is said to; nothing is tried again."""
    target = Target.parse(f"http://127.0.0.1:{free_port()}")
    streams = open_streams([target], PREFIX, Ramp(3, seconds=0))
    assert (streams.connected, streams.failed) == (0, {"connection refused": 3})
    herd = send_herd([target], Herd("/", callers=3))
    assert (herd.statuses, herd.failed) == ({}, {"connection refused": 3})


def test_more_connections_than_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first of them: a part would look like a fault of the app."""
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 4096))
    result = run("--url", "http://noc.example", "--streams", "5000")
    assert result.exit_code == 1
    assert "5000 connections need 5064 open files, and a process here may have 4096" in (
        result.output
    )
