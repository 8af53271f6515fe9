"""Fixtures every test may use: real servers, and what to do when one is missing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, Protocol

import pytest

from tests.certificate import Certificate
from tests.gunicorn_server import GunicornServer
from tests.postgres_server import PostgresServer
from tests.redis_server import RedisServer
from tests.requirements import find

STRICT = os.environ.get("NOC_REALTIME_TEST_STRICT") == "1"


class RedisFactory(Protocol):
    """Makes and starts a `RedisServer`; takes its keyword arguments."""

    def __call__(self, **options: Any) -> RedisServer: ...


class GunicornFactory(Protocol):
    """Makes and starts a `GunicornServer`; takes its arguments but the directory."""

    def __call__(self, app: str, **options: Any) -> GunicornServer: ...


def pytest_configure() -> None:
    """Refuse a gevent run that is none: it would repeat the plain one and prove nothing."""
    if os.environ.get("NOC_REALTIME_TEST_GEVENT") == "1":
        from gevent import monkey

        if not monkey.is_module_patched("threading"):
            pytest.exit("run `python -m gevent.monkey --module pytest`, as `make test` does", 4)


def require(name: str) -> str:
    """Return the path of the executable or module *name*; skip the test when it is missing.

    With ``NOC_REALTIME_TEST_STRICT=1`` the test fails instead, so that CI cannot skip in silence.
    """
    path = find(name)
    if path is None:
        missing(name)
    return path


def missing(name: str) -> NoReturn:
    """Skip, or fail in strict mode, for want of *name*."""
    if STRICT:
        pytest.fail(f"missing {name}", pytrace=False)
    pytest.skip(f"missing {name}")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Return a certificate for 127.0.0.1 and localhost."""
    require("trustme")
    return Certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisFactory]:
    """Return a factory of running Redis servers that live as long as the test."""
    yield from _redis_factory(tmp_path)


@pytest.fixture(scope="module")
def module_redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisFactory]:
    """Return a factory of running Redis servers that live as long as the module's tests."""
    yield from _redis_factory(tmp_path_factory.mktemp("redis"))


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """Return a running PostgreSQL, which the tests of a run share."""
    require("psycopg")
    server = PostgresServer(require("postgres"))
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture
def gunicorn(tmp_path: Path) -> Iterator[GunicornFactory]:
    """Return a factory of running gunicorns that live as long as the test.

    Each must end in an orderly way and leave no process behind, whatever the test did.
    """
    servers: list[GunicornServer] = []

    def start(app: str, **options: Any) -> GunicornServer:
        directory = tmp_path / f"gunicorn-{len(servers)}"
        server = GunicornServer(app, directory, **options)
        servers.append(server)
        return server.start()

    yield start
    for server in servers:
        server.close()


def _redis_factory(directory: Path) -> Iterator[RedisFactory]:
    servers: list[RedisServer] = []

    def start(**options: Any) -> RedisServer:
        options.setdefault("executable", require("redis-server"))
        server = RedisServer(directory / f"redis-{len(servers)}", **options)
        servers.append(server)
        try:
            return server.start()
        except RuntimeError:
            if options.get("tls") is not None and "Bad directive" in server.log():
                missing("redis-server with TLS")
            raise

    yield start
    for server in servers:
        server.close()
