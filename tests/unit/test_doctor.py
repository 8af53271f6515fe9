"""What the doctor makes of facts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flask_noc_realtime import doctor
from flask_noc_realtime.config import Config
from flask_noc_realtime.doctor import Finding, judge_visit, silences
from flask_noc_realtime.errors import ConfigError, ParameterError
from flask_noc_realtime.surroundings import (
    COMPUTED,
    RedisFacts,
    Surroundings,
    Worker,
    Workers,
    gunicorn_settings,
    pubsub_buffer,
)
from flask_noc_realtime.target import Target
from flask_noc_realtime.visit import Visit
from tests.documentation import DOCS

SHARED = Config.from_mapping({"NOC_REALTIME_URL": "redis://localhost"})
HERE = Surroundings(
    config=SHARED,
    identifies=True,
    versions={"gunicorn": "23.0.0", "gevent": "25.5.1"},
    settings={"worker_class": "gevent", "workers": "4"},
    counts_together=False,
    open_files=65536,
    streams=1000,
)
REDIS = RedisFacts(
    version="7.2.4",
    seconds=0.0004,
    used=1_000_000,
    maximum=0,
    policy="noeviction",
    appends=True,
    refused="",
    save="3600 1",
    buffer=32 * 1024 * 1024,
    event_bytes=256 * 1024,
)
STREAM = {"content-type": "text/event-stream; charset=utf-8"}


def seen(**facts: Any) -> Visit:
    """Return a stream that is well, but for some facts."""
    well: dict[str, Any] = {
        "status": 200,
        "headers": STREAM,
        "version": "1.1",
        "opened": 0.02,
        "heartbeat": 15.0,
        "arrivals": [14.0],
        "watched": 14.0,
        "health": {"status": "ok"},
        "health_status": 200,
    }
    return Visit(**(well | facts))


def levels(findings: list[Finding]) -> set[str]:
    """Return the levels there are."""
    return {finding.level for finding in findings}


def test_where_all_is_well_there_is_nothing_to_do() -> None:
    """And each check says what it looked at."""
    findings = [*doctor.judge_surroundings(HERE), *doctor.judge_redis(REDIS), *judge_visit(seen())]
    findings += doctor.judge_workers(Workers(1, [WORKER], 1000))
    assert levels(findings) == {"ok"}
    assert not any(finding.what_to_do for finding in findings)
    assert len({finding.what for finding in findings}) == len(findings) == 24


def config(**values: Any) -> Config:
    """Return a configuration."""
    return Config.from_mapping({f"NOC_REALTIME_{name}": each for name, each in values.items()})


@pytest.mark.parametrize(
    ("facts", "level", "what"),
    [
        ({"versions": {"gunicorn": "20.1.0", "gevent": "25.5"}}, "fail", "gunicorn 20.1.0"),
        ({"versions": {"gunicorn": "23.0", "gevent": ""}}, "fail", "gevent (none)"),
        ({"settings": {}}, "warn", "names a worker class"),
        ({"settings": {"worker_class": "sync"}}, "fail", "is sync: one stream holds up"),
        ({"settings": {"worker_class": COMPUTED}}, "warn", "computes the worker class"),
        ({"settings": {"worker_class": "gevent", "certfile": "x"}}, "warn", "ends TLS itself"),
        ({"settings": {"worker_class": "eventlet"}}, "warn", "worker class is eventlet"),
        ({"settings": {"threads": "8"}}, "fail", "8 threads a worker"),
        ({"settings": {"worker_class": "gthread", "threads": 2000}}, "warn", "2000 threads"),
        ({"config": config()}, "fail", "memory: each reaches the streams of one worker"),
        ({"config": config(), "settings": {}}, "warn", "does not show here how many"),
        ({"config": config(HEARTBEAT=45), "identifies": True}, "warn", "more than 45 s"),
        ({"identifies": False}, "fail", "answers every stream with 401"),
        ({"counts_together": True}, "warn", "gunicorn.conf.py has no child_exit"),
        ({"open_files": 1024}, "fail", "may open 1024 files, and a worker with 1000 streams"),
    ],
)
def test_what_is_wrong_where_the_app_is(facts: dict[str, Any], level: str, what: str) -> None:
    """It is found, and it is said what to do."""
    assert_found(doctor.judge_surroundings(replace(HERE, **facts)), level, what)


@pytest.mark.parametrize(
    ("facts", "level", "what"),
    [
        ({"version": "6.0.16"}, "fail", "Redis 6.0.16"),
        ({"seconds": 0.05}, "warn", "answers in 50.0 ms"),
        ({"refused": "READONLY You can't write"}, "fail", "no write: READONLY"),
        ({"policy": "allkeys-lru", "maximum": 10**9}, "fail", "is allkeys-lru"),
        ({"policy": "allkeys-lru"}, "warn", "is allkeys-lru"),
        ({"policy": "volatile-ttl"}, "warn", "is volatile-ttl"),
        ({"used": 900, "maximum": 1000}, "warn", "90% of maxmemory"),
        ({"appends": False}, "warn", "snapshots alone"),
        ({"appends": False, "save": ""}, "warn", "nothing to disk"),
        ({"appends": False, "save": None}, "warn", "appendonly is no"),
        ({"buffer": None}, "warn", "does not say how far"),
        ({"buffer": 1_000_000}, "warn", "1000000 bytes behind is cut off"),
    ],
)
def test_what_is_wrong_with_redis(facts: dict[str, Any], level: str, what: str) -> None:
    """It is found, and it is said what to do."""
    assert_found(doctor.judge_redis(replace(REDIS, **facts)), level, what)


WORKER = Worker(detached=400, portable=0, queued=0, dropped=0, open_files=65536)


@pytest.mark.parametrize(
    ("facts", "level", "what"),
    [
        ({"portable": 20}, "warn", "800 streams are detached, and 20 hold a thread"),
        ({"open_files": 1024.0}, "fail", "may open 1024 files, and needs 1200 for 1000 streams"),
        ({"queued": 3, "dropped": 2}, "warn", "3 events wait for Redis, and 2 were given up"),
    ],
)
def test_what_is_wrong_with_the_workers(facts: dict[str, Any], level: str, what: str) -> None:
    """One of them is enough, and others may be on other machines."""
    others = [WORKER, replace(WORKER, detached=0, open_files=None)]
    found = Workers(3, [*others, replace(WORKER, **facts)], 1000)
    assert_found(doctor.judge_workers(found), level, what)


def test_workers_that_do_not_answer_are_counted() -> None:
    """Where nobody knows how many there are, those that answer are all; without any, none is."""
    silent = doctor.judge_workers(Workers(3, [WORKER], 1000))
    assert silent[0][:2] == ("fail", "2 of 3 workers do not answer.")
    assert levels(silent[1:]) == {"ok"}
    clustered = doctor.judge_workers(Workers(None, [WORKER], 1000))
    assert clustered[0][:2] == ("ok", "All 1 workers that have served a stream answer.")
    hanging = doctor.judge_workers(Workers(2, [], 1000))
    assert [found.level for found in hanging] == ["fail"]
    assert [found.level for found in doctor.judge_workers(Workers(0, [], 1000))] == ["ok"]


@pytest.mark.parametrize(
    ("facts", "level", "what"),
    [
        ({"health": {"status": "degraded"}}, "fail", "says it is degraded"),
        ({"health": None, "health_status": 302}, "warn", "health is answered with 302"),
        ({"status": 302, "headers": {"location": "/login?next=x"}}, "fail", "302, to /login."),
        ({"headers": {"content-type": "text/html"}}, "fail", "answered with text/html"),
        ({"status": 204}, "warn", "answered with 204"),
        ({"status": 401}, "fail", "answered with 401"),
        ({"status": 418}, "fail", "answered with 418"),
        ({"opened": None}, "fail", "Nothing came of the stream"),
        ({"opened": 3.0}, "warn", "came after 3000 ms"),
        ({"arrivals": [], "watched": 24.5}, "fail", "silent for 24.5 s, and sends"),
        ({"arrivals": [], "ended": True, "watched": 1}, "warn", "before a heartbeat was due"),
        ({"ended": True, "watched": 20}, "fail", "ended it after 20.0 s, 6.0 s after what"),
        ({"ended": True, "closing": "lifetime"}, "warn", "ended it after 14.0 s: lifetime"),
        ({"headers": STREAM | {"content-encoding": "br"}}, "warn", "compressed with br"),
        ({"version": "1.0"}, "warn", "HTTP/1.0"),
        ({"offers_h2": False}, "warn", "HTTP/1.1"),
        ({"headers": STREAM | {"set-cookie": "s=1, AWSALB=x"}}, "warn", "The cookie AWSALB"),
    ],
)
def test_what_is_wrong_on_the_way_to_a_stream(facts: dict[str, Any], level: str, what: str) -> None:
    """It is found, and it is said what to do."""
    assert_found(judge_visit(seen(**facts)), level, what)


def test_nothing_more_is_said_of_a_stream_that_is_none() -> None:
    """Where nobody listens, and where there is a page."""
    [refused] = judge_visit(Visit(error="Connection refused"))
    assert refused.what == "A stream could not be opened: Connection refused."
    assert len(judge_visit(seen(status=404))) == 2
    held = judge_visit(seen(status=0, opened=None, error="no answer within 1 s"))
    assert [finding.level for finding in held] == ["ok", "fail"]
    assert "buffering" in held[1].what_to_do


def assert_found(findings: list[Finding], level: str, what: str) -> None:
    """Expect one finding of a level that says something, with what to do."""
    [found] = [finding for finding in findings if what in finding.what]
    assert found.level == level
    assert found.what_to_do


def test_it_is_told_how_many_workers_were_reached() -> None:
    """By their names; what it does not say is not guessed."""
    several = doctor.check_stickiness(seen(workers=["a", "b", "a", "c"]))
    assert several.what.startswith("4 connections reached 3 of the workers.")


def test_silences_are_counted_from_the_opening_to_the_end() -> None:
    """The last of them is what an idle timeout saw."""
    assert silences(seen(arrivals=[2.0, 5.0], watched=9.0)) == [2.0, 3.0, 4.0]


Settings = Callable[..., dict[str, Any]]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Return what reads the settings of a directory with a configuration."""

    def read(source: str = "", arguments: str = "", **environ: str) -> dict[str, Any]:
        (tmp_path / "gunicorn.conf.py").write_text(source)
        return gunicorn_settings({"GUNICORN_CMD_ARGS": arguments, **environ}, tmp_path)

    return read


def test_gunicorn_is_told_by_its_environment_and_its_file(settings: Settings) -> None:
    """The former counts for more; options that matter to nobody here are passed over."""
    assert settings("worker_class = 'gevent'\nworkers = 2\n", "--workers=4 --log-level debug") == {
        "worker_class": "gevent",
        "workers": "4",
    }
    assert settings(arguments="-k gthread --threads 9") == {
        "worker_class": "gthread",
        "threads": "9",
    }
    assert settings(WEB_CONCURRENCY="3") == {"workers": "3"}


def test_no_code_of_the_file_is_run(settings: Settings) -> None:
    """It may patch, or start what it likes; what it computes is called so."""
    assert settings("raise SystemExit\nworkers = 2 * 4 + 1\n") == {"workers": COMPUTED}


@pytest.mark.parametrize(
    "source",
    [
        "from flask_noc_realtime.gunicorn import child_exit",
        "def child_exit(server, worker):\n    pass",
        "from hooks import gone as child_exit",
        "child_exit = lambda server, worker: None",
    ],
)
def test_a_hook_is_seen_however_it_comes_there(source: str, settings: Settings) -> None:
    """It forgets the metrics of a worker that has ended."""
    assert settings(source) == {"child_exit": COMPUTED}
    found = doctor.check_gauges(replace(HERE, counts_together=True, settings=settings(source)))
    assert found.level == "ok"


@pytest.mark.parametrize(
    "source",
    [
        "if patched:\n    worker_class = 'gevent'\nelse:\n    worker_class = 'sync'",
        "try:\n    from site import worker_class\nexcept ImportError:\n    pass",
        "worker_class: str = chosen()",
        "from base import *",
    ],
)
def test_a_worker_class_is_not_missed_where_it_shows_only_in_a_run(
    source: str, settings: Settings
) -> None:
    """It would be said that there is none."""
    assert settings(source)["worker_class"] == COMPUTED
    assert settings(f"{source}\nworker_class: str = 'gevent'") == {
        **settings(source),
        "worker_class": "gevent",
    }


def test_threads_that_are_computed_matter_to_nobody_with_gevent() -> None:
    """It would be said that the worker class is."""
    found = {"worker_class": "gevent", "threads": COMPUTED}
    assert doctor.check_worker_class(replace(HERE, settings=found)).level == "ok"
    found = {"worker_class": "gthread", "threads": COMPUTED}
    assert doctor.check_worker_class(replace(HERE, settings=found)).level == "warn"


def test_nothing_is_wrong_with_the_gunicorn_conf_of_the_recipes() -> None:
    """It is what the page about deployment has people copy."""
    told = gunicorn_settings({}, DOCS / "recipes")
    here = replace(HERE, settings=told, counts_together=True)
    assert levels(doctor.judge_surroundings(here)) == {"ok"}


def test_another_file_is_read_where_the_environment_names_it(
    settings: Settings, tmp_path: Path
) -> None:
    """In place of the usual one."""
    (tmp_path / "other.py").write_text("worker_class = 'sync'\n")
    assert settings("worker_class = 'gevent'", "-c other.py") == {"worker_class": "sync"}


@pytest.mark.parametrize(
    ("source", "arguments", "named"),
    [("workers =", "", "gunicorn.conf.py"), ("", "-k", "GUNICORN_CMD_ARGS"), ("", "'", "_ARGS")],
)
def test_what_gunicorn_could_not_read_is_named(
    source: str, arguments: str, named: str, settings: Settings
) -> None:
    """It would not start with it either."""
    with pytest.raises(ConfigError, match=named):
        settings(source, arguments)


def test_the_buffer_of_subscribers_is_among_those_of_others() -> None:
    """As CONFIG GET writes it."""
    limits = "normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60"
    assert pubsub_buffer(limits) == 33554432
    assert pubsub_buffer("") is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://noc.example/", "https://noc.example"),
        ("http://noc.example:8080/noc/", "http://noc.example:8080/noc"),
        ("https://[::1]:8443", "https://[::1]:8443"),
    ],
)
def test_a_target_is_a_base_url(url: str, shown: str) -> None:
    """Shown without the slash at its end."""
    assert Target.parse(url).shown == shown


@pytest.mark.parametrize(
    ("url", "headers"),
    [
        ("noc.example", []),
        ("ftp://noc.example", []),
        ("http://ada:secret@noc.example:port", []),
        ("http://ada:secret@noc.example", []),
        ("http://noc.example/?token=secret", []),
        ("http://noc..example", []),
        ("http://noc.example/ä", []),
        ("http://noc.example/a b", []),
        ("http://noc.example", ["secret"]),
        ("http://noc.example", ["X: secret\r\nY: 1"]),
    ],
)
def test_a_target_that_is_none_is_refused(url: str, headers: list[str]) -> None:
    """Without showing what may be a secret."""
    with pytest.raises(ParameterError) as caught:
        Target.parse(url, headers)
    assert "secret" not in str(caught.value)


def test_headers_of_one_name_are_sent_as_one() -> None:
    """Two are refused by many servers, and one of them would be lost on the way."""
    headers = ["Cookie: a=1", "X-Site: 7", "cookie: b=2", "x-site: 8", "Host: a", "Host: b"]
    target = Target.parse("http://noc.example", headers)
    assert target.headers == (("Cookie", "a=1; b=2"), ("X-Site", "7, 8"), ("Host", "b"))


def test_a_token_replaces_what_said_who_asks() -> None:
    """A server takes one Authorization only."""
    target = Target.parse("http://noc.example", ["authorization: Basic x"]).carrying("a.b.c")
    assert target.headers == (("Authorization", "Bearer a.b.c"),)


def test_a_token_is_carried_as_a_header() -> None:
    """Beside others."""
    target = Target.parse("http://noc.example", ["X-Site: 7"]).carrying("a.b.c")
    assert target.headers == (("X-Site", "7"), ("Authorization", "Bearer a.b.c"))
