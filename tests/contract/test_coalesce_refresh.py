"""Results that are worked out anew before anybody has to wait for them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from flask_noc_realtime import ConfigError, coalesce
from tests.coalesced import Worker, cache_status, workers
from tests.conftest import RedisFactory
from tests.processes import wait_until
from tests.redis_server import RedisServer

TIMEOUT = 10.0
STALE = 60.0


class Page:
    """A view or a function whose executions a test holds up."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.begun = 0

    def work(self, worker: Worker) -> str:
        """Count, wait until the gate is open, and fail if told to."""
        self.begun += 1
        text = worker.ran("run")
        assert self.gate.wait(TIMEOUT)
        if self.error is not None:
            raise self.error
        return text


@pytest.fixture
def page() -> Page:
    """Return what the test's site serves."""
    return Page()


def preparing(page: Page, **policy: Any) -> Callable[[Worker], None]:
    """Return what has a worker serve *page* under a policy, as a view and as a function."""

    def prepare(worker: Worker) -> None:
        shared = coalesce(scope="public", **policy)

        @worker.app.get("/page")
        @shared
        def view() -> str:
            return page.work(worker)

        @shared
        def function() -> str:
            return page.work(worker)

        worker.app.add_url_rule("/function", "call", lambda: function())

    return prepare


@pytest.fixture(scope="module")
def server(module_redis_server: RedisFactory) -> RedisServer:
    """Return a Redis for all workers."""
    return module_redis_server()


Make = Callable[..., Any]


@pytest.fixture(params=["memory", "redis"])
def site(request: pytest.FixtureRequest, page: Page) -> Iterator[Make]:
    """Return a function that makes a worker with the page under a policy."""
    config = {}
    if request.param == "redis":
        server = request.getfixturevalue("server")
        server.client().flushall()
        config = {"NOC_REALTIME_URL": server.url}
    yield lambda count=1, **policy: workers(count, preparing(page, **policy), **config)


# With a time of nothing, what is kept is stale at once.
STALE_AT_ONCE: dict[str, Any] = {"ttl": 0, "stale_while_revalidate": STALE}
EVENTS: dict[str, Any] = {"invalidate_on": ["incident.*"]}
PATHS = ("/page", "/function")
EACH = pytest.mark.parametrize("path", PATHS)
EITHER = pytest.mark.parametrize("policy", [{}, EVENTS], ids=["timed", "strict"])


@contextmanager
def working(page: Page, worker: Worker, path: str) -> Iterator[list[str]]:
    """Have a caller work the page out anew meanwhile; then it has what was worked out."""
    page.gate.clear()
    begun, brought = page.begun, []
    thread = threading.Thread(target=lambda: brought.append(worker.text(path)))
    thread.start()
    wait_until(lambda: page.begun == begun + 1, TIMEOUT, "it is worked out anew")
    try:
        yield brought
    finally:
        page.gate.set()
        thread.join(TIMEOUT)


@EITHER
@EACH
def test_one_works_it_out_anew_and_nobody_else_waits(
    site: Make, page: Page, path: str, policy: dict[str, Any]
) -> None:
    """They are given what is stale (RFC 5861)."""
    with site(**STALE_AT_ONCE, **policy) as (worker,):
        assert worker.text(path) == "run 1"
        with working(page, worker, path) as brought:
            assert [worker.text(path) for _ in range(5)] == ["run 1"] * 5
            assert brought == []
        assert brought == ["run 2"]
        with working(page, worker, path):
            assert worker.text(path) == "run 2"


@EITHER
def test_nobody_waits_in_other_workers_either(
    redis_server: RedisFactory, page: Page, policy: dict[str, Any]
) -> None:
    """The lease of one is enough for all."""
    prepare = preparing(page, **STALE_AT_ONCE, **policy)
    with workers(2, prepare, NOC_REALTIME_URL=redis_server().url) as (one, other):
        assert one.text("/page") == other.text("/page")
        begun = page.begun
        with working(page, one, "/page"):
            assert len({other.text("/page") for _ in range(5)}) == 1
            assert page.begun == begun + 1
        assert len(one.runs) + len(other.runs) == begun + 1


def test_a_stale_page_says_so(site: Make, page: Page) -> None:
    """In Cache-Status time counts below zero (RFC 9211)."""
    with site(ttl=0, stale_while_revalidate=STALE) as (worker,):
        worker.get("/page")
        with working(page, worker, "/page"):
            response = worker.get("/page")
        status = cache_status(response)
        assert status.startswith("hit; ttl=") and int(status.removeprefix("hit; ttl=")) <= 0
        assert response.headers["Age"] == "0"


@EACH
def test_an_event_ends_what_is_stale_all_the_same(site: Make, page: Page, path: str) -> None:
    """Nobody who asks after it is given a result from before it."""
    with site(**STALE_AT_ONCE, **EVENTS) as (worker,):
        assert worker.text(path) == "run 1"
        with working(page, worker, path):
            with worker.app.app_context():
                worker.realtime.emit("incident.created", {"id": 1})
            answers: list[str] = []
            asking = threading.Thread(target=lambda: answers.append(worker.text(path)))
            asking.start()
            flights = worker.process.flights
            wait_until(lambda: flights.waiting == 1 or page.begun == 3, TIMEOUT, "it waits")
            assert answers == []
        asking.join(TIMEOUT)
        assert answers == ["run 3"]


@EITHER
@EACH
def test_an_error_on_the_way_is_logged_and_shown_to_nobody(
    site: Make, page: Page, path: str, policy: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """What is kept is still good enough."""
    with site(**STALE_AT_ONCE, **policy) as (worker,):
        assert worker.text(path) == "run 1"
        page.error = RuntimeError("the database is away")
        with caplog.at_level(logging.ERROR, "flask_noc_realtime"):
            assert [worker.text(path) for _ in range(2)] == ["run 1"] * 2
        assert "what is kept is given out" in caplog.text
        assert "the database is away" in caplog.text
        page.error = None
        assert worker.text(path) == "run 4"


@EITHER
@EACH
def test_a_page_is_refreshed_early_in_the_last_fifth_of_its_time_only(
    request: pytest.FixtureRequest, site: Make, page: Page, path: str, policy: dict[str, Any]
) -> None:
    """So that it never comes to its end while somebody asks for it."""
    with site(ttl=100, refresh_early=True, **policy) as (worker,):
        assert worker.text(path) == "run 1"
        _age(request, worker, 79)
        assert worker.text(path) == "run 1"
        _age(request, worker, 2)
        with working(page, worker, path) as brought:
            assert worker.text(path) == "run 1"
        assert brought == ["run 2"]
        assert worker.text(path) == "run 2"
        assert page.begun == 2


def _age(request: pytest.FixtureRequest, worker: Worker, seconds: float) -> None:
    """Have what is kept grow older."""
    flights = worker.process.flights
    clock = flights.clock
    flights.clock = lambda: clock() + seconds
    if worker.process.broker.shared:
        client = request.getfixturevalue("server").client()
        for key in client.keys("*:page:*"):
            client.pexpire(key, client.pttl(key) - round(seconds * 1000))


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_stale_time_is_seconds(seconds: float) -> None:
    """Anything else is a slip."""
    with pytest.raises(ConfigError, match="stale_while_revalidate is"):
        coalesce(scope="public", stale_while_revalidate=seconds)
