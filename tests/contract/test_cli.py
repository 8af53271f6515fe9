"""What an operator can do from a terminal, with a real Redis."""

from __future__ import annotations

import configparser
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flask import Flask

from flask_noc_realtime import Identity, NocRealtime
from flask_noc_realtime.cli import group
from flask_noc_realtime.testing import stream_client
from tests.conftest import RedisFactory
from tests.processes import free_port, wait_until
from tests.redis_server import RedisServer

ROOT = Path(__file__).resolve().parent.parent.parent

Run = Callable[..., Result]


@pytest.fixture
def server(redis_server: RedisFactory) -> RedisServer:
    """Return a Redis."""
    return redis_server(appendonly=True)


@pytest.fixture
def make_app() -> Iterator[Callable[..., Flask]]:
    """Return a factory of apps, which are closed when the test is over."""
    apps: list[Flask] = []

    def make(url: str, **config: Any) -> Flask:
        app = Flask("cli")
        app.config.update(NOC_REALTIME_URL=url, **config)
        realtime = NocRealtime(app)
        realtime.register_type("link.flapped")
        realtime.identity_loader(lambda request: Identity(request.headers["User"]))
        apps.append(app)
        return app

    yield make
    for app in apps:
        app.extensions["noc_realtime"].process().close()


@pytest.fixture
def run(server: RedisServer, make_app: Callable[..., Flask]) -> Run:
    """Return what runs a command of an app on that Redis."""
    return runner(make_app(server.url))


def runner(app: Flask) -> Run:
    """Return what runs a command of *app*."""

    def run(*args: str, **options: Any) -> Result:
        return app.test_cli_runner().invoke(group, args, **options)

    return run


def rows(server: RedisServer) -> list[tuple[list[Any], Any]]:
    """Return the rule and the envelope of each event in the log, oldest first."""
    records = [row[b"r"] for _, row in server.client().xrange("{noc}:log") if row[b"r"]]
    return [tuple(map(json.loads, record.split(b"\n"))) for record in records]


def test_the_commands_are_those_of_flask() -> None:
    """By the entry point that Flask looks for."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    entry = setup["options.entry_points"]["flask.commands"]
    assert entry.split() == ["noc-realtime", "=", "flask_noc_realtime.cli:group"]
    assert group.name == "noc-realtime"


def test_emit_publishes_and_prints_the_position(run: Run, server: RedisServer) -> None:
    """The rule and the data as `realtime.emit` has them."""
    options = ["--permission", "b", "--permission", "a", "--user", "9"]
    result = run("emit", "incident.created", '{"id": 7}', *options)
    assert result.exit_code == 0, result.output
    [(_, _), (position, _)] = server.client().xrange("{noc}:log")
    assert result.output == position.decode() + "\n"
    [(rule, envelope)] = rows(server)
    assert rule == ["incident.created", ["a", "b"], "9"]
    assert envelope["data"] == {"id": 7}


def test_emit_needs_no_data_and_reads_the_standard_input(run: Run, server: RedisServer) -> None:
    """With a dash, so that other programs may write it."""
    assert run("emit", "link.flapped").exit_code == 0
    assert run("emit", "link.flapped", "-", input='["Zürich"]\n').exit_code == 0
    assert [(rule[1:], envelope["data"]) for rule, envelope in rows(server)] == [
        ([None, None], None),
        ([None, None], ["Zürich"]),
    ]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["no.such.type", "{}"], "Unknown event type 'no.such.type'. Known types: automation"),
        (["Incident", "{}"], "is not an event type"),
        (["log.added", "{id: 7}"], "Invalid value for JSON: not JSON: Expecting property name"),
        (["log.added", "[" * 100_000], "Invalid value for JSON: not JSON"),
        (["log.added", "NaN"], "which JSON does not have"),
        (["log.added", "1", "--permission", ""], "permissions is"),
        (["log.added", "1", "--user", ""], "user_id is"),
        (["log.added", json.dumps("x" * 300_000)], "the limit is 262144"),
    ],
    ids=["unknown", "malformed", "no json", "deep", "nan", "permission", "user", "large"],
)
def test_what_is_asked_wrongly_is_said_in_a_line(
    args: list[str], message: str, run: Run, server: RedisServer
) -> None:
    """With exit code 2, and nothing is published."""
    result = run("emit", *args)
    assert (result.exit_code, type(result.exception)) == (2, SystemExit)
    assert message in result.output
    assert not rows(server)


COMMANDS = [["emit", "log.added", "1"], ["disconnect", "7"], ["tail"], ["stats"]]
COMMANDS += [["rollout"], ["rollout", "5"]]


@pytest.mark.parametrize("args", COMMANDS)
def test_redis_away_is_said_in_a_line(args: list[str], make_app: Callable[..., Flask]) -> None:
    """With exit code 1: nothing waits in a process that ends."""
    result = runner(make_app(f"redis://127.0.0.1:{free_port()}"))(*args)
    assert (result.exit_code, type(result.exception)) == (1, SystemExit)
    assert result.output.startswith("Error: Redis at redis://127.0.0.1")
    assert result.output.count("\n") == 1


@pytest.mark.parametrize("args", COMMANDS)
def test_memory_is_said_to_stay_in_its_process(
    args: list[str], make_app: Callable[..., Flask]
) -> None:
    """A success would be a lie."""
    result = runner(make_app("memory://"))(*args)
    assert result.exit_code == 1
    assert "memory://: events stay in the process that emits them" in result.output


def test_an_app_without_the_extension_is_told_so() -> None:
    """And what to do."""
    result = runner(Flask("bare"))("types")
    assert result.exit_code == 1
    assert result.output == "Error: 'bare' has no NocRealtime; call NocRealtime(app).\n"


def test_types_lists_the_app_s_types(make_app: Callable[..., Flask]) -> None:
    """Its own among those of the catalogue; also without a Redis."""
    result = runner(make_app("memory://"))("types")
    assert result.exit_code == 0
    listed = result.output.splitlines()
    assert listed == sorted(listed)
    assert {"incident.created", "link.flapped"} <= set(listed)


def test_disconnect_ends_the_user_s_streams(
    server: RedisServer, make_app: Callable[..., Flask]
) -> None:
    """Those of other processes; another user's go on."""
    app = make_app(server.url)
    mine = stream_client(app, headers={"User": "7"}, timeout=10)
    other = stream_client(app, headers={"User": "8"}, timeout=10)
    with mine, other:
        result = runner(make_app(server.url))("disconnect", "7")
        assert (result.exit_code, result.output) == (0, "The streams of 7 end.\n")
        assert [event.type for event in mine] == ["stream.close"]
        assert runner(app)("emit", "link.flapped").exit_code == 0
        assert next(other).type == "link.flapped"


def test_stats_names_each_worker_and_its_streams(
    server: RedisServer, make_app: Callable[..., Flask], run: Run
) -> None:
    """Those that serve any, and nobody else who is on that Redis."""
    app = make_app(server.url)
    with stream_client(app, headers={"User": "7"}, timeout=10):
        position = run("emit", "link.flapped").output.strip()
        wait_until(lambda: app_position(app) == position, 10.0, "it arrives")
        result = run("stats", "--json", "--wait", "10")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.output)
    assert (answer["position"], answer["silent"]) == (position, 0)
    assert answer["workers"] == [
        {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "position": position,
            "detached": 0,
            "portable": 1,
            "behind": 0,
            "queued": 0,
            "dropped": 0,
            "delay": 0.0,
        }
    ]


def test_stats_without_a_worker_are_empty(run: Run) -> None:
    """And no error."""
    result = run("stats", "--wait", "0")
    assert result.exit_code == 0
    head, foot = result.output.splitlines()
    assert head.split()[:3] == ["worker", "detached", "portable"]
    assert foot == "0 workers, 0 streams, newest position none."


def test_a_worker_that_hangs_is_told_of(
    server: RedisServer, make_app: Callable[..., Flask], run: Run
) -> None:
    """It is subscribed, and does not answer."""
    app = make_app(server.url)
    process = app.extensions["noc_realtime"].process()
    hanging, go_on = threading.Event(), threading.Event()

    def hang() -> bytes:
        hanging.set()
        go_on.wait(20.0)
        return b"{}"

    process.broker.census.report = hang
    process.position()
    result = run("stats", "--wait", "0.3")
    assert hanging.wait(20.0)
    go_on.set()
    assert result.exit_code == 1
    assert "0 workers, 0 streams" in result.output
    assert "1 of 1 workers did not answer within 0.3 s." in result.output


def test_an_answer_that_came_too_late_does_not_stay(
    server: RedisServer, make_app: Callable[..., Flask], run: Run
) -> None:
    """Nobody will ever read it."""
    process = make_app(server.url).extensions["noc_realtime"].process()
    process.broker.census.answer(b"forgotten")
    client = server.client()
    wait_until(lambda: client.exists("{noc}:census:forgotten"), 20, "it is answered")
    assert 0 < client.pttl("{noc}:census:forgotten") <= 10_000


def app_position(app: Flask) -> str:
    """Return the newest position an app's process knows."""
    position: str = app.extensions["noc_realtime"].process().position()
    return position


def test_rollout_shows_what_is_configured_until_another_is_stored(
    server: RedisServer, make_app: Callable[..., Flask]
) -> None:
    """And says which it is; what is stored is there for the next command, and for workers."""
    run = runner(make_app(server.url, NOC_REALTIME_ROLLOUT=33.33))
    configured = "percent: 33.33 (NOC_REALTIME_ROLLOUT)\nallow: -\ndeny: -\n"
    assert run("rollout").output == configured
    stored = "percent: 5 (stored)\nallow: ada, bob\ndeny: cyd\n"
    options = ["--allow", "bob", "--allow", "ada", "--deny", "cyd"]
    assert run("rollout", "5", *options).output == stored
    assert runner(make_app(server.url))("rollout").output == stored
    assert run("rollout", "--reset").output == configured
    assert run("rollout").output == configured


def test_rollout_adds_to_the_lists_and_forgets(run: Run) -> None:
    """A user is on one list at most, and moves from one to the other."""
    run("rollout", "5", "--allow", "ada", "--allow", "bob", "--deny", "cyd")
    moved = run("rollout", "--allow", "cyd", "--deny", "ada", "--forget", "bob")
    assert moved.output == "percent: 5 (stored)\nallow: cyd\ndeny: ada\n"
    assert run("rollout", "--reset", "--deny", "bob").output == (
        "percent: 100 (stored)\nallow: -\ndeny: bob\n"
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["101"], "percent is 101.0; use a number from 0 to 100"),
        (["0.005"], "in steps of 0.01"),
        (["half"], "'half' is not a valid float"),
        (["--allow", ""], "allow is"),
        (["--allow", "ada", "--deny", "ada"], "'ada' is on both lists"),
    ],
)
def test_a_rollout_that_makes_no_sense_is_refused(
    args: list[str], message: str, run: Run, server: RedisServer
) -> None:
    """With exit code 2, and nothing is stored."""
    result = run("rollout", *args)
    assert (result.exit_code, type(result.exception)) == (2, SystemExit)
    assert message in result.output
    assert not server.client().exists("{noc}:standing")


def test_rollout_reset_heals_what_nobody_can_read(run: Run, server: RedisServer) -> None:
    """Whatever wrote it: the command says so, and the way out works."""
    server.client().set("{noc}:standing", '["stream.rollout",null,"?"]\n{}')
    result = run("rollout")
    assert (result.exit_code, result.output) == (1, "Error: Not a rollout: '?'\n")
    assert run("rollout", "--reset").exit_code == 0
    assert run("rollout").output.startswith("percent: 100 (")


def test_rollout_moves_users_on_other_processes(
    server: RedisServer, make_app: Callable[..., Flask]
) -> None:
    """Whoever is left to polling is told so."""
    app = make_app(server.url)
    with stream_client(app, headers={"User": "7"}, timeout=10) as stream:
        assert runner(make_app(server.url))("rollout", "--deny", "7").exit_code == 0
        assert [event.data["reason"] for event in stream] == ["rollout"]
    assert app.test_client().get("/api/v1/events/stream", headers={"User": "7"}).status_code == 204
