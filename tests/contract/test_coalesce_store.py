"""The app's own Flask-Caching as the place where pages are kept."""

from __future__ import annotations

import logging
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask_caching import Cache

from flask_noc_realtime import coalesce
from tests.coalesced import Worker, cache_status, workers
from tests.conftest import RedisFactory
from tests.redis_server import RedisServer

PREFIX = "noc-realtime:"
TIMEOUT = 20.0


def prepare(worker: Worker) -> None:
    """Serve a page that events end and one that time ends, with a cache if one is configured."""
    if "CACHE_TYPE" in worker.app.config:
        worker.functions["cache"] = Cache(worker.app)

    @worker.app.get("/strict")
    @coalesce(scope="public", ttl=60, invalidate_on=["incident.*"])
    def strict() -> str:
        return worker.ran("strict")

    @worker.app.get("/timed")
    @coalesce(scope="public", ttl=60)
    def timed() -> str:
        return worker.ran("timed")


def emit(worker: Worker) -> None:
    """Emit what ends the strict page."""
    with worker.app.app_context():
        assert worker.realtime.emit("incident.created", {"id": 1}) is not None


class Kept:
    """What a backend holds of ours."""

    def __init__(self, worker: Worker) -> None:
        self.backend = worker.functions["cache"].cache

    def values(self) -> list[Any]:
        """Return all values."""
        if hasattr(self.backend, "_read_client"):
            client = self.backend._read_client
            return [client.get(key) for key in client.keys(f"*{PREFIX}*")]
        if hasattr(self.backend, "_path"):
            files = [path for path in Path(self.backend._path).iterdir() if path.is_file()]
            return [data for data in map(Path.read_bytes, files) if b"noc-answer" in data]
        return [value for key, (_, value) in self.backend._cache.items() if PREFIX in str(key)]

    def throw_away(self) -> None:
        """Remove all values, as an app does that clears its cache."""
        if hasattr(self.backend, "_write_client"):
            client = self.backend._write_client
            client.delete(*client.keys(f"*{PREFIX}*"))
        else:
            self.backend.clear()


@pytest.fixture(scope="module")
def server(module_redis_server: RedisFactory) -> RedisServer:
    """Return a Redis for brokers and caches."""
    return module_redis_server()


@pytest.fixture(params=["SimpleCache", "FileSystemCache", "RedisCache"])
def cached(request: pytest.FixtureRequest, server: RedisServer, tmp_path: Path) -> dict[str, Any]:
    """Return the configuration of each kind of cache."""
    server.client().flushall()
    return {
        "CACHE_TYPE": request.param,
        "CACHE_DIR": str(tmp_path),
        "CACHE_REDIS_URL": server.url,
        "CACHE_KEY_PREFIX": "app:",
    }


@pytest.fixture(params=["memory", "redis"])
def site(
    request: pytest.FixtureRequest, server: RedisServer, cached: dict[str, Any]
) -> Iterator[list[Worker]]:
    """Return two workers with Redis, or one alone with none; each with each kind of cache."""
    if request.param == "memory":
        with workers(1, prepare, **cached) as made:
            yield made * 2
    else:
        with workers(2, prepare, NOC_REALTIME_URL=server.url, **cached) as made:
            yield made


@pytest.mark.parametrize("path", ["/strict", "/timed"])
def test_a_page_is_worked_out_once_for_all_workers(site: list[Worker], path: str) -> None:
    """Whatever keeps it."""
    one, other = site
    first, second, third = one.get(path), other.get(path), one.get(path)
    assert first.text == second.text == third.text
    assert cache_status(first) == "fwd=uri-miss; stored"
    assert cache_status(third).startswith("hit; ttl=")
    assert len(one.runs) == 1


@pytest.mark.parametrize("path", ["/strict", "/timed"])
def test_a_page_is_as_old_in_every_worker(
    site: list[Worker], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is where it was worked out, also on its way from one to the other."""
    now = [1_800_000_000.0]
    monkeypatch.setattr("flask_noc_realtime.view.now", lambda: now[0])
    one, other = site
    one.text(path)
    now[0] += 7.5
    assert [worker.get(path).headers["Age"] for worker in (other, other, one)] == ["7"] * 3


def test_an_event_ends_it_for_all(site: list[Worker]) -> None:
    """What a cache holds of it is found no more."""
    one, other = site
    before = one.text("/strict")
    emit(other)
    assert one.text("/strict") == other.text("/strict")
    assert before != one.text("/strict")
    assert sum(len(worker.runs) for worker in {one, other}) == 2


def test_the_cache_holds_the_page_where_others_find_it(site: list[Worker]) -> None:
    """Not where each worker has a cache of its own: pages are shared through Redis then."""
    one, _ = site
    shared = one.process.broker.shared
    one.text("/strict")
    values = Kept(one).values()
    if shared and one.app.config["CACHE_TYPE"] == "SimpleCache":
        assert values == []
    else:
        assert [b"strict 1" in value for value in values] == [True]


def test_the_cache_holds_each_page_once_however_many_events_come(site: list[Worker]) -> None:
    """What the app itself keeps there would have to make room for pages nobody is given."""
    one, other = site
    one.text("/strict")
    kept = len(Kept(one).values())
    for number in range(1, 8):
        emit(one)
        expected = (one, other)[number % 2].text("/strict")
        assert one.text("/strict") == other.text("/strict") == expected
    assert len(Kept(one).values()) == kept


@pytest.mark.parametrize("kind", ["FileSystemCache", "RedisCache"])
def test_what_an_overtaken_leader_puts_in_a_pages_place_is_given_to_nobody(
    kind: str, server: RedisServer, tmp_path: Path
) -> None:
    """It is signed, for the same key, and from before the event that ended it."""
    begun, go = threading.Event(), threading.Event()

    def slow(worker: Worker) -> None:
        Cache(worker.app)

        @worker.app.get("/slow")
        @coalesce(scope="public", ttl=60, invalidate_on=["incident.*"])
        def view() -> str:
            text = "new" if begun.is_set() else "old"
            if text == "old":
                begun.set()
                assert go.wait(TIMEOUT)
            return text

    server.client().flushall()
    config = {"CACHE_TYPE": kind, "CACHE_DIR": str(tmp_path), "CACHE_REDIS_URL": server.url}
    with workers(3, slow, NOC_REALTIME_URL=server.url, **config) as (one, other, third):
        late = threading.Thread(target=one.text, args=["/slow"])
        late.start()
        assert begun.wait(TIMEOUT)
        emit(other)
        assert other.text("/slow") == "new"
        go.set()
        late.join(TIMEOUT)
        assert [worker.text("/slow") for worker in (third, other, one)] == ["new"] * 3


def test_what_the_app_throws_away_is_worked_out_anew(site: list[Worker]) -> None:
    """By a worker that has no copy, after `cache.clear()` or where the cache needs the room."""
    one, other = site
    one.text("/strict")
    if Kept(one).values():
        Kept(one).throw_away()
        other.text("/strict")
        assert len(one.runs) + len(other.runs) * (one is not other) == 2
    assert other.text("/strict").startswith("strict")


def test_what_a_worker_alone_keeps_of_what_time_ends_is_in_the_cache_too(
    cached: dict[str, Any],
) -> None:
    """The memory of the process has where it is."""
    with workers(1, prepare, **cached) as (one,):
        assert one.text("/timed") == one.text("/timed") == "timed 1"
        Kept(one).throw_away()
        assert one.text("/timed") == one.text("/timed") == "timed 2"


class Bomb:
    """Goes off when it is unpickled."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("unpickled what was found in Redis",)


@pytest.mark.parametrize(
    "planted",
    [b"", b"noc-answer-1\n" + bytes(40), b"!" + pickle.dumps(Bomb()), pickle.dumps(Bomb())],
)
def test_what_others_put_into_redis_is_a_miss(server: RedisServer, planted: bytes) -> None:
    """It is not signed by us, and never unpickled."""
    config = {"CACHE_TYPE": "RedisCache", "CACHE_REDIS_URL": server.url}
    server.client().flushall()
    with workers(2, prepare, NOC_REALTIME_URL=server.url, **config) as (one, other):
        one.text("/strict")
        client = one.functions["cache"].cache._write_client
        (key,) = client.keys(f"*{PREFIX}*")
        client.set(key, planted)
        assert other.text("/strict") == "strict 1"
        assert other.runs == ["strict"]


def test_a_page_that_is_put_in_anothers_place_is_a_miss(server: RedisServer) -> None:
    """It is signed, for another key."""
    config = {"CACHE_TYPE": "RedisCache", "CACHE_REDIS_URL": server.url}
    server.client().flushall()
    with workers(2, prepare, NOC_REALTIME_URL=server.url, **config) as (one, other):
        client = one.functions["cache"].cache._write_client
        one.text("/timed")
        (of_timed,) = client.keys(f"*{PREFIX}*")
        one.text("/strict")
        (of_strict,) = set(client.keys(f"*{PREFIX}*")) - {of_timed}
        client.set(of_strict, client.get(of_timed))
        assert other.text("/strict") == "strict 1"
        assert other.runs == ["strict"]


def test_a_cache_that_fails_costs_nobody_a_page(
    redis_server: RedisFactory, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Pages are kept in the broker's Redis instead, and it is said once."""
    own = redis_server()
    server.client().flushall()
    config = {"CACHE_TYPE": "RedisCache", "CACHE_REDIS_URL": own.url}
    with workers(2, prepare, NOC_REALTIME_URL=server.url, **config) as (one, other):
        one.text("/strict")
        own.kill9()
        with caplog.at_level(logging.ERROR, "flask_noc_realtime"):
            assert [other.text("/strict") for _ in range(3)] == ["strict 1"] * 3
            emit(one)
            assert [other.text("/strict") for _ in range(3)] == ["strict 2"] * 3
            assert one.text("/strict") == "strict 2"
    assert (one.runs, other.runs) == (["strict"], ["strict"] * 2)
    said = [record.message for record in caplog.records]
    assert len(said) == 1 and "Flask-Caching's RedisCache fails" in said[0]


@pytest.mark.parametrize(
    "config",
    [
        {"CACHE_TYPE": "SimpleCache", "NOC_REALTIME_COALESCE_STORE": "own"},
        {"CACHE_TYPE": "NullCache", "CACHE_NO_NULL_WARNING": True},
        {},
    ],
)
def test_without_a_cache_that_fits_the_process_keeps_pages_itself(config: dict[str, Any]) -> None:
    """As it does without Flask-Caching."""
    with workers(1, prepare, **config) as (one,):
        assert one.text("/strict") == one.text("/strict") == "strict 1"
        if config.get("CACHE_TYPE") == "SimpleCache":
            assert Kept(one).values() == []


def test_of_several_caches_none_is_chosen() -> None:
    """Which of them would be a guess."""

    def both(worker: Worker) -> None:
        prepare(worker)
        Cache(worker.app, config={"CACHE_TYPE": "SimpleCache"})

    with workers(1, both, CACHE_TYPE="SimpleCache") as (one,):
        assert one.text("/strict") == one.text("/strict") == "strict 1"
        assert Kept(one).values() == []
