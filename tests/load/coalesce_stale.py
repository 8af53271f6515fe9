"""How many stale results each library gives out, by the harness of the contract tests.

The peers do what their manuals say: results are deleted after the commit that ends them. Readers
that had read before it put the old ones back.
"""

from __future__ import annotations

import asyncio
import random
import threading
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from werkzeug.exceptions import ServiceUnavailable

from tests.load.coalesce_site import AIOCACHE, CASHEWS, DOGPILE, FLASK_CACHING, OURS, Library
from tests.stale import (
    PAGES,
    Cancelled,
    Disturb,
    Herd,
    Naive,
    Reader,
    Site,
    Store,
    disturbance,
)

TTL = 600

Versions = tuple[int, ...]


class Peer:
    """One process that deletes results after each commit.

    :param get: returns the result for a page, or works it out.
    :param delete: deletes it.
    """

    def __init__(
        self, store: Store, get: Callable[[str], Versions], delete: Callable[[str], object]
    ) -> None:
        self._store = store
        self._get = get
        self._delete = delete

    def view(self, page: str) -> Versions | None:
        try:
            return self._get(page)
        except (Cancelled, ServiceUnavailable):
            return None

    call = view

    def write(self, index: int) -> bool:
        version = self._store.commit(index)
        for page, indexes in PAGES.items():
            if index in indexes:
                self._delete(page)
        self._store.announce(index, version)
        return True


@contextmanager
def ours(store: Store, disturb: Disturb) -> Iterator[Reader]:
    """Read views and functions that events end."""
    with closing(Site(store, disturb)) as site:
        yield site


@contextmanager
def flask_caching(store: Store, disturb: Disturb) -> Iterator[Reader]:
    """Read through a SimpleCache."""
    yield Naive(store, disturb)


@contextmanager
def dogpile(store: Store, disturb: Disturb) -> Iterator[Reader]:
    """Read through a region, which has a lock for each key."""
    from dogpile.cache import make_region

    region = make_region().configure("dogpile.cache.memory", expiration_time=TTL)

    def get(page: str) -> Versions:
        def read() -> Versions:
            versions = store.read(page)
            disturb()
            return versions

        kept: Versions = region.get_or_create(page, read)
        return kept

    yield Peer(store, get, region.delete)


@contextmanager
def cashews(store: Store, disturb: Disturb) -> Iterator[Reader]:
    """Read in an event loop, protected against herds."""
    from cashews import Cache

    cache = Cache()
    cache.setup("mem://")
    get = cache(ttl=TTL, key="{page}", lock=True, protected=True)(_reading(store, disturb))
    with _looping() as run:
        yield Peer(store, lambda page: run(get(page)), lambda page: run(cache.delete(page)))
        run(cache.close())


@contextmanager
def aiocache(store: Store, disturb: Disturb) -> Iterator[Reader]:
    """Read in an event loop, with a lock for each key."""
    from aiocache import Cache, cached_stampede

    get = cached_stampede(
        lease=3, ttl=TTL, key_builder=lambda _function, page: page, cache=Cache.MEMORY
    )(_reading(store, disturb))
    cache = get.cache
    with _looping() as run:
        run(cache.clear())
        yield Peer(store, lambda page: run(get(page)), lambda page: run(cache.delete(page)))


READERS: dict[Library, Any] = {
    OURS: ours,
    DOGPILE: dogpile,
    CASHEWS: cashews,
    AIOCACHE: aiocache,
    FLASK_CACHING: flask_caching,
}


def measure(library: Library, calls: int, seed: int = 1) -> Herd:
    """Return a herd that has made at least so many calls, and seen at least 60 events."""
    store = Store()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with READERS[library](store, disturbance(random.Random(seed))) as reader:
            return Herd(store, [reader], seed, calls).run()


def _reading(store: Store, disturb: Disturb) -> Callable[[str], Awaitable[Versions]]:
    async def read(page: str) -> Versions:
        versions = store.read(page)
        # Others go on meanwhile, as they do while a query is awaited.
        await asyncio.get_running_loop().run_in_executor(None, disturb)
        return versions

    return read


@contextmanager
def _looping() -> Iterator[Callable[[Any], Any]]:
    """Run an event loop in a thread; yield what awaits there, from any thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield lambda awaitable: asyncio.run_coroutine_threadsafe(awaitable, loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
