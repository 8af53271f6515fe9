"""The workers of one library, the Redis they share, and what a herd of callers is given there."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.gunicorn_server import GunicornServer
from tests.redis_server import RedisServer
from tests.requirements import find

_START = 0.2
_PATIENCE = 120.0


@dataclass(frozen=True)
class Library:
    """What coalesces.

    :ivar module: what must be installed.
    :ivar asynchronous: whether it needs an event loop.
    """

    name: str
    module: str
    asynchronous: bool = False

    @property
    def missing(self) -> bool:
        """Whether it is not installed."""
        return find(self.module) is None


OURS = Library("ours", "flask_noc_realtime")
DOGPILE = Library("dogpile.cache", "dogpile.cache")
CASHEWS = Library("cashews", "cashews", asynchronous=True)
AIOCACHE = Library("aiocache", "aiocache", asynchronous=True)
FLASK_CACHING = Library("Flask-Caching", "flask_caching")

LIBRARIES = (OURS, DOGPILE, CASHEWS, AIOCACHE, FLASK_CACHING)


@dataclass(frozen=True)
class Rush:
    """What a herd was given.

    :ivar moment: at which all were to call.
    :ivar seconds: from then until each had its page, or an error.
    :ivar failed: how many had none, or an error.
    :ivar executions: how often the work was begun.
    :ivar commands: what Redis executed, within scripts as well.
    """

    moment: float
    seconds: list[float]
    pages: list[str]
    failed: int
    executions: int
    commands: int

    @property
    def p99(self) -> float:
        """The time that one in a hundred exceeds, in milliseconds."""
        return self.seconds[min(len(self.seconds) - 1, int(len(self.seconds) * 0.99))] * 1e3

    @property
    def slowest(self) -> float:
        """The time of the last, in milliseconds."""
        return self.seconds[-1] * 1e3


@dataclass
class Site:
    """Workers of a library, each a server of its own, so that callers are spread evenly."""

    library: Library
    redis: RedisServer
    counts: Path
    urls: list[str]
    pids: list[int] = field(default_factory=list)
    _keys: Iterator[int] = field(default_factory=count)

    def key(self) -> str:
        """Return one that nobody has asked for."""
        return f"page-{next(self._keys)}"

    def executions(self, key: str) -> int:
        """Return how often the work for *key* was begun."""
        file = self.counts / key
        return file.stat().st_size if file.exists() else 0

    def rush(
        self, callers: int, *, workers: slice = slice(None), delay: float = _START, **query: Any
    ) -> Rush:
        """Let *callers* in each of *workers* ask for one page at the same moment.

        :param delay: seconds until then, in which they get ready.
        """
        key = query.setdefault("key", self.key())
        before = self._commands()
        moment = time.time() + delay + callers / 2000
        asked = urlencode({"callers": callers, "at": moment, **query})
        urls = self.urls[workers]
        with ThreadPoolExecutor(len(urls)) as pool:
            answers = list(pool.map(lambda url: _get(f"{url}/herd?{asked}"), urls))
        seconds = [each for answer in answers for each in answer["seconds"] if each is not None]
        pages = [each for answer in answers for each in answer["pages"] if each is not None]
        return Rush(
            moment,
            sorted(seconds),
            pages,
            callers * len(urls) - len(pages),
            self.executions(key),
            self._commands() - before,
        )

    def find_pids(self) -> None:
        """Note the process of each worker; its first request pays for imports as well."""
        for url in self.urls:
            asked = urlencode({"callers": 1, "at": 0, "key": self.key(), "work": 0})
            self.pids.append(_get(f"{url}/herd?{asked}")["pid"])

    def _commands(self) -> int:
        with self.redis.client() as client:
            stats: dict[str, Any] = client.info("commandstats")
        return sum(entry["calls"] for name, entry in stats.items() if name != "cmdstat_info")


@contextmanager
def site(library: Library, workers: int, directory: Path) -> Iterator[Site]:
    """Run a Redis, and *workers* with a page that *library* coalesces."""
    counts = directory / "counts"
    counts.mkdir(parents=True)
    with ExitStack() as stack:
        redis = RedisServer(directory / "redis").start()
        stack.callback(redis.close)
        env = {"REDIS": redis.url, "COALESCE_COUNTS": str(counts)}
        servers = [_server(library, directory / f"server-{n}", env) for n in range(workers)]
        # Each takes a second to begin, and one to end.
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        stack.callback(lambda: list(pool.map(GunicornServer.close, servers)))
        list(pool.map(GunicornServer.start, servers))
        found = Site(library, redis, counts, [server.url for server in servers])
        found.find_pids()
        yield found


def _server(library: Library, directory: Path, env: dict[str, str]) -> GunicornServer:
    module, worker = ("async", "asgi") if library.asynchronous else ("app", "gevent")
    app = f"tests.load.coalesce_{module}:create('{library.name}')"
    args = ["--worker-connections", "2000", "--graceful-timeout", "1"]
    return GunicornServer(app, directory, worker_class=worker, args=args, env=env)


def _get(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=_PATIENCE) as response:
        answer: dict[str, Any] = json.load(response)
    return answer
