"""What a balancer and a monitor are told, with and without the broker."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask

from flask_noc_realtime import NocRealtime
from flask_noc_realtime import hub as hub_module
from flask_noc_realtime.audience import Audience
from flask_noc_realtime.broker.memory import MemoryBroker
from flask_noc_realtime.hub import Hub, HubOptions
from flask_noc_realtime.testing import cut, process_of, stream_client
from tests.conftest import RedisFactory
from tests.contract.sinks import key, record
from tests.processes import free_port, wait_until
from tests.redis_server import RedisServer

HEALTH = "/api/v1/events/health"
TIMEOUT = 20.0


@pytest.fixture
def make_app() -> Iterator[Callable[..., Flask]]:
    """Return a factory of apps, which are closed when the test is over."""
    apps: list[Flask] = []

    def make(url: str = "memory://", **config: Any) -> Flask:
        app = Flask("health")
        app.config.update(NOC_REALTIME_URL=url)
        app.config.update({f"NOC_REALTIME_{name}": value for name, value in config.items()})
        app.extensions["test_realtime"] = NocRealtime(app)
        apps.append(app)
        return app

    yield make
    for app in apps:
        process_of(app).close()


@pytest.fixture
def redis(redis_server: RedisFactory) -> RedisServer:
    """Return a Redis."""
    return redis_server()


def asked(app: Flask, query: str = "") -> tuple[int, str, str]:
    """Return the status code, and how the worker and the broker are."""
    answer = app.test_client().get(HEALTH + query)
    return answer.status_code, answer.json["status"], answer.json["broker"]["state"]


@pytest.mark.parametrize("url", ["memory", "redis"])
def test_a_worker_tells_how_it_is(
    url: str, make_app: Callable[..., Flask], redis: RedisServer
) -> None:
    """To anybody, since nothing in it is a secret; no proxy keeps it."""
    app = make_app(redis.url if url == "redis" else "memory://")
    app.extensions["test_realtime"].emit("log.added", {"secret": 1}, user_id="ada")
    answer = app.test_client().get(HEALTH)
    assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-store")
    assert answer.json == {
        "status": "ok",
        "broker": {"state": "up", "away": 0.0},
        "lag": None,
        "streams": 0,
        "position": process_of(app).position(),
        "worker": process_of(app).name,
    }


def test_the_streams_are_counted(make_app: Callable[..., Flask]) -> None:
    """While they last."""
    app = make_app(ALLOW_ANONYMOUS=True)
    with stream_client(app), stream_client(app):
        assert app.test_client().get(HEALTH).json["streams"] == 2
    assert app.test_client().get(HEALTH).json["streams"] == 0


def test_head_is_answered_with_the_same_status(make_app: Callable[..., Flask]) -> None:
    """Balancers spare themselves the body."""
    app = make_app()
    assert app.test_client().head(HEALTH).status_code == 200
    with cut(app):
        assert app.test_client().head(HEALTH + "?deep=1").status_code == 503


def test_an_outage_of_redis_takes_no_worker_out_unless_it_is_asked_for(
    redis: RedisServer, make_app: Callable[..., Flask]
) -> None:
    """Every worker would go at once; who asks for readiness is told after the grace."""
    app, patient = make_app(redis.url, HEALTH_GRACE=0), make_app(redis.url)
    assert asked(app) == asked(app, "?ready=1") == asked(patient, "?deep=1") == (200, "ok", "up")
    redis.stop()
    wait_until(lambda: asked(app)[2] == "away", TIMEOUT, "the outage is noticed")
    wait_until(lambda: asked(patient)[2] == "away", TIMEOUT, "the outage is noticed")
    assert asked(app) == (200, "degraded", "away")
    assert asked(app, "?ready=1") == (503, "degraded", "away")
    assert asked(app, "?ready=0") == (200, "degraded", "away")
    assert asked(patient) == asked(patient, "?ready=1") == (200, "ok", "away")
    assert asked(patient, "?deep=1") == (503, "degraded", "away")
    redis.start()
    wait_until(lambda: asked(app) == (200, "ok", "up"), TIMEOUT, "it is back")
    wait_until(lambda: asked(patient, "?deep=1")[0] == 200, TIMEOUT, "it is back")


def test_a_redis_that_hangs_is_found_out_by_asking(
    redis: RedisServer, make_app: Callable[..., Flask]
) -> None:
    """Within the time a check may take; without asking, it is noticed later."""
    app = make_app(redis.url)
    assert asked(app, "?deep=1") == (200, "ok", "up")
    redis.pause()
    answer = app.test_client().get(HEALTH + "?deep=1")
    assert (answer.status_code, answer.json["broker"]["answers"]) == (503, False)
    assert asked(app)[0] == 200
    redis.resume()
    wait_until(lambda: asked(app, "?deep=1")[0] == 200, TIMEOUT, "it answers again")


def test_a_worker_that_never_had_the_broker_is_not_ready(make_app: Callable[..., Flask]) -> None:
    """A new release with a wrong URL stops there, whatever the grace."""
    app = make_app(f"redis://127.0.0.1:{free_port()}", HEALTH_GRACE=3600)
    assert asked(app) == (200, "degraded", "starting")
    assert asked(app, "?ready=1") == (503, "degraded", "starting")


def test_a_worker_that_ends_is_to_be_sent_nothing(make_app: Callable[..., Flask]) -> None:
    """Whatever else it is asked."""
    app = make_app()
    assert asked(app) == (200, "ok", "up")
    process_of(app).close()
    assert asked(app) == asked(app, "?ready=1") == (503, "draining", "up")


def test_no_request_but_a_deep_one_asks_the_broker(make_app: Callable[..., Flask]) -> None:
    """Balancers ask each worker every second."""
    app = make_app()
    with cut(app):
        assert asked(app) == asked(app, "?ready=1") == (200, "ok", "away")
        assert asked(app, "?deep=1") == (503, "degraded", "away")


def test_what_waits_longest_is_the_lag(monkeypatch: pytest.MonkeyPatch) -> None:
    """To a twentieth of a second; who has everything has none."""
    now = 1000.0
    monkeypatch.setattr(hub_module.time, "monotonic", lambda: now)
    broker = MemoryBroker(1000, 10**6)
    hub = Hub(broker, HubOptions(max_lag=2.0))
    hub.start()
    begin = hub.end
    assert hub.lag(begin, 1001.0) == 0.0
    broker.publish(record(0), key())
    now = 1000.5
    broker.publish(record(1), key())
    assert hub.lag(begin, 1001.0) == 1.0
    assert hub.lag(begin + 1, 1001.0) == 0.5
    assert hub.lag(begin + 2, 1001.0) == 0.0
    assert hub.read(Audience(), None, begin).end == begin + 2


def test_many_who_ask_at_once_are_all_answered(
    redis: RedisServer, make_app: Callable[..., Flask]
) -> None:
    """And get the same answer."""
    app = make_app(redis.url)
    assert asked(app, "?deep=1")[0] == 200
    codes: list[int] = []

    def ask() -> None:
        codes.append(asked(app, "?deep=1")[0])

    threads = [threading.Thread(target=ask) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert codes == [200] * 10
