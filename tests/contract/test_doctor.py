"""The doctor beside a real Redis, and what it says in a terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from click.testing import Result
from flask import Flask
from redis.sentinel import MasterNotFoundError

from flask_noc_realtime import NocRealtime, doctor
from flask_noc_realtime.cli import group
from flask_noc_realtime.config import Config
from flask_noc_realtime.errors import BrokerUnavailable
from flask_noc_realtime.surroundings import ask_redis
from tests.conftest import RedisFactory
from tests.processes import free_port
from tests.redis_server import RedisServer

Run = Callable[..., Result]
GEVENT = "-k gevent -w 4"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Return what examines an app, in a directory without a gunicorn.conf.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GUNICORN_CMD_ARGS", GEVENT)
    monkeypatch.setattr(doctor, "_SLOW_REDIS", 10.0)  # A machine that is busy is no fault of it.
    apps = []

    def run(url: str, *args: str, **config: Any) -> Result:
        app = Flask("patient")
        app.config.update(NOC_REALTIME_URL=url, **config)
        NocRealtime(app)
        apps.append(app)
        return app.test_cli_runner().invoke(group, ["doctor", "--streams", "50", *args])

    yield run
    for app in apps:
        app.extensions["noc_realtime"].process().close()


def found(result: Result, of: str) -> list[tuple[str, str]]:
    """Return the levels and what was found, of what was not well."""
    findings = json.loads(result.output)[of]
    return [(each["level"], each["what"]) for each in findings if each["level"] != "ok"]


def test_an_app_that_is_well_and_its_redis_are_said_to_be(
    run: Run, redis_server: RedisFactory
) -> None:
    """With exit code 0."""
    result = run(redis_server(appendonly=True).url, NOC_REALTIME_ALLOW_ANONYMOUS=True)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == "here" and "redis" in lines
    assert lines[-1] == "13 ok, 0 warn, 0 fail."


def test_a_redis_that_evicts_the_log_and_cuts_workers_off_is_found(
    run: Run, redis_server: RedisFactory
) -> None:
    """With exit code 1, and what to do under each."""
    args = ["--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru", "--save", ""]
    args += ["--client-output-buffer-limit", "pubsub 100kb 0 0"]
    url = redis_server(args=args).url
    result = run(url, "--json", NOC_REALTIME_ALLOW_ANONYMOUS=True)
    assert result.exit_code == 1
    assert found(result, "here") == []
    assert [(level, what.partition(":")[0]) for level, what in found(result, "redis")] == [
        ("fail", "maxmemory-policy is allkeys-lru"),
        ("warn", "It writes nothing to disk"),
        (
            "warn",
            "A worker that is 102400 bytes behind is cut off, which is fewer than 32 of the "
            "largest events.",
        ),
    ]
    shown = run(url, NOC_REALTIME_ALLOW_ANONYMOUS=True)
    assert "        -> Set appendonly to yes.\n" in shown.output


def test_a_redis_that_is_full_is_found(redis_server: RedisFactory) -> None:
    """What it answers to a write is shown."""
    facts = ask_redis(config(redis_server(args=["--maxmemory", "1kb"])))
    assert facts.refused.lower().startswith("oom") or "maxmemory" in facts.refused


def test_a_replica_is_found_to_take_no_writes(redis_server: RedisFactory) -> None:
    """After a failover that the app was not told of."""
    primary = redis_server()
    replica = redis_server(args=["--replicaof", f"127.0.0.1 {primary.port}"])
    assert "read only" in ask_redis(config(replica)).refused


def test_a_redis_that_keeps_its_settings_to_itself_is_no_error(redis_server: RedisFactory) -> None:
    """As services that are managed do; what was written is soon gone."""
    server = redis_server(args=["--rename-command", "CONFIG", ""])
    facts = ask_redis(config(server))
    assert (facts.save, facts.buffer, facts.refused) == (None, None, "")
    assert 0 < server.client().pttl("{noc}:doctor") <= 1000


def test_a_redis_that_says_nothing_of_itself_is_found(run: Run, redis_server: RedisFactory) -> None:
    """It answers, and not to what the doctor asks."""
    server = redis_server(args=["--rename-command", "INFO", ""])
    result = run(server.url, "--json", NOC_REALTIME_ALLOW_ANONYMOUS=True)
    [(level, what)] = found(result, "redis")
    assert level == "fail" and "does not say how it is" in what


def test_what_a_sentinel_is_asked_with_is_not_shown(
    redis_server: RedisFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some versions of redis-py show it, when the master goes just then."""

    def ask(*_: object) -> NoReturn:
        raise MasterNotFoundError("No master found for 'noc' : Redis<password=secret> - refused")

    monkeypatch.setattr("flask_noc_realtime.surroundings._ask", ask)
    with pytest.raises(BrokerUnavailable) as caught:
        ask_redis(config(redis_server()))
    assert "No master found for 'noc'" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_redis_away_and_what_is_wrong_beside_it_are_told_together(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One fault hides no other."""
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "-k sync")
    result = run(f"redis://:secret@127.0.0.1:{free_port()}", "--json")
    assert result.exit_code == 1
    assert [what.partition(":")[0] for _, what in found(result, "here")] == [
        "The worker class is sync",
        "The app cannot tell who asks",
    ]
    [(level, what)] = found(result, "redis")
    assert level == "fail" and "does not answer" in what
    assert "secret" not in result.output


def test_what_is_found_of_redis_is_told_where_no_worker_can_be_asked(
    run: Run, redis_server: RedisFactory
) -> None:
    """As of a replica: it takes no writes, which is why."""
    server = redis_server(args=["--rename-command", "BLPOP", "", "--min-replicas-to-write", "1"])
    with server.client().pubsub() as worker:
        worker.subscribe("{noc}:census")
        assert worker.get_message(timeout=10) is not None
        result = run(server.url, "--json", NOC_REALTIME_ALLOW_ANONYMOUS=True)
    assert "It takes no write: NOREPLICAS" in " ".join(what for _, what in found(result, "redis"))
    [(level, what)] = found(result, "workers")
    assert level == "fail" and "BLPOP" in what


def test_memory_with_several_workers_is_found(run: Run) -> None:
    """There is no Redis to ask."""
    result = run("memory://", "--json", NOC_REALTIME_ALLOW_ANONYMOUS=True)
    assert result.exit_code == 1
    [(level, what)] = found(result, "here")
    assert level == "fail" and "gunicorn runs 4" in what
    assert set(json.loads(result.output)) == {"here"}


@pytest.mark.parametrize(
    "args", [["--url", "noc.example"], ["--url", "http://a", "--header", "secret"]]
)
def test_a_url_or_header_that_is_none_is_asked_wrongly(args: list[str], run: Run) -> None:
    """With exit code 2."""
    result = run("memory://", *args)
    assert (result.exit_code, type(result.exception)) == (2, SystemExit)
    assert "secret" not in result.output


def config(server: RedisServer) -> Config:
    """Return the configuration of an app with that Redis."""
    return Config.from_mapping({"NOC_REALTIME_URL": server.url})
