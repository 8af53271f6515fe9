"""`@coalesce` on functions: equal arguments, one execution, and clear words for the rest."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask, Response

from flask_noc_realtime import ConfigError, Identity, NocRealtime, coalesce
from flask_noc_realtime.flight import ReentrantCall
from tests.processes import wait_until

TIMEOUT = 20.0


@pytest.fixture
def app() -> Iterator[Flask]:
    """Return an app with the extension."""
    app = Flask("functions")
    app.testing = True
    NocRealtime(app)
    yield app
    app.extensions["noc_realtime"].process().close()


class Counter:
    """Counts how often it was called with what."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __call__(self, *args: Any) -> int:
        self.calls.append(args)
        return len(self.calls)


def test_equal_arguments_share_a_result() -> None:
    """However they are passed."""
    counter = Counter()

    @coalesce(scope="public", ttl=60)
    def load(site: str, limit: int = 10) -> int:
        """Load a site."""
        return counter(site, limit)

    assert load("a", 5) == load("a", limit=5) == load(limit=5, site="a") == 1
    assert load("b", 5) == 2
    assert load("a", True) == 3
    assert load.__name__ == "load"
    assert load.__doc__ == "Load a site."


def test_two_functions_never_share_although_their_names_are_the_same() -> None:
    """Made in a loop, for example."""

    def make(number: int) -> Any:
        @coalesce(scope="public", ttl=60)
        def load() -> int:
            return number

        return load

    assert [make(n)() for n in range(3)] == [0, 1, 2]


def test_twenty_threads_cost_one_execution(app: Flask) -> None:
    """Nothing is kept, and still they share."""
    counter = Counter()
    go = threading.Event()
    flights = app.extensions["noc_realtime"].process().flights

    @coalesce(scope="public", ttl=0)
    def load() -> int:
        assert go.wait(TIMEOUT)
        return counter()

    def call() -> None:
        with app.app_context():
            results.append(load())

    results: list[int] = []
    threads = [threading.Thread(target=call) for _ in range(20)]
    for thread in threads:
        thread.start()
    wait_until(lambda: flights.waiting == 19, TIMEOUT, "they wait")
    go.set()
    for thread in threads:
        thread.join(TIMEOUT)
    assert results == [1] * 20


def test_a_result_is_shared_within_its_scope(app: Flask) -> None:
    """One user's result is never another's, and nobody's is shared with nobody."""
    counter = Counter()
    who: list[Identity | None] = [None]
    app.extensions["noc_realtime"]._extension.identity_loader(lambda request: who[0])

    @coalesce(scope="user", ttl=60)
    def own() -> int:
        return counter()

    @coalesce(scope=lambda: who[0] and who[0].role, ttl=60)
    def by_role() -> int:
        return counter()

    def call(function: Any, identity: Identity | None) -> Any:
        who[0] = identity
        with app.test_request_context():
            return function()

    first, second = Identity("1", "operator"), Identity("2", "operator")
    assert call(own, first) == call(own, first) == 1
    assert call(own, second) == 2
    assert call(own, None) == 3
    assert call(own, None) == 4
    assert call(by_role, first) == call(by_role, second) == 5
    assert call(by_role, None) != call(by_role, None)
    with pytest.raises(ConfigError, match="no request"):
        own()


def test_an_event_ends_what_is_kept(app: Flask) -> None:
    """Before emit returns; other events do not."""
    counter = Counter()
    realtime = app.extensions["noc_realtime"]._extension

    @coalesce(scope="public", ttl=60, invalidate_on=["incident.*"])
    def load() -> int:
        return counter()

    with pytest.raises(ConfigError, match="app_context"):
        load()
    with app.app_context():
        assert load() == load() == 1
        realtime.emit("log.added")
        assert load() == 1
        realtime.emit("incident.created")
        assert load() == load() == 2


def test_a_pattern_no_event_matches_is_refused_on_the_first_call(app: Flask) -> None:
    """A slip of the pen would keep results for ever stale."""

    @coalesce(scope="public", invalidate_on=["incidents.*"])
    def load() -> int:
        return 1

    with app.app_context(), pytest.raises(ConfigError, match=r"incidents.*Known types: automation"):
        load()


def test_errors_are_not_kept() -> None:
    """The next caller tries again."""
    counter = Counter()

    @coalesce(scope="public", ttl=60)
    def load() -> int:
        raise LookupError(counter())

    for number in (1, 2):
        with pytest.raises(LookupError, match=str(number)):
            load()


def test_a_recursive_function_raises_instead_of_hanging() -> None:
    """It asks for what it is about to return."""

    @coalesce(scope="public")
    def load() -> int:
        return load()

    with pytest.raises(ReentrantCall):
        load()


def test_recursion_with_other_arguments_is_fine() -> None:
    """Each has a flight of its own."""

    @coalesce(scope="public", ttl=60)
    def fibonacci(n: int) -> int:
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

    assert fibonacci(50) == 12586269025


@pytest.mark.parametrize("make", [lambda: iter([1]), lambda: Response("x")], ids=["iterator", "r"])
def test_what_can_be_used_once_is_given_to_one(make: Any) -> None:
    """An iterator shared by two is half an iterator for each."""

    @coalesce(scope="public", ttl=60)
    def load() -> Any:
        return make()

    assert load() is not load()


class Incident:
    """What an ORM returns."""

    def __init__(self, id: int) -> None:
        self.id = id


def test_arguments_without_a_canonical_form_need_a_key() -> None:
    """Two objects that are the same row are not equal to a cache."""
    counter = Counter()

    @coalesce(scope="public", ttl=60)
    def plain(incident: Incident) -> int:
        return counter()

    @coalesce(scope="public", ttl=60, key=lambda incident: incident.id)
    def keyed(incident: Incident) -> int:
        return counter(incident.id)

    with pytest.raises(ConfigError, match="Incident has no canonical form"):
        plain(Incident(1))
    assert keyed(Incident(1)) == keyed(Incident(1)) == 1
    assert keyed(Incident(2)) == 2


async def asynchronous() -> None:
    """Do nothing."""


def generator() -> Iterator[int]:
    """Yield a number."""
    yield 1


@pytest.mark.parametrize("options", [{}, {"scope": None}, {"scope": "users"}, {"ttl": 5}], ids=str)
def test_without_a_scope_nothing_is_decorated(options: dict[str, Any]) -> None:
    """That is how one user's page leaks to another."""
    with pytest.raises(ConfigError, match="who may share"):
        coalesce(**options)


def test_the_bare_decorator_is_refused() -> None:
    """It names no scope either."""
    with pytest.raises(ConfigError, match="who may share"):
        coalesce(generator)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (asynchronous, "asynchronous"),
        (generator, "return a list"),
        (Incident, "class"),
        (staticmethod(generator), "below @staticmethod"),
        (7, "no function"),
    ],
    ids=str,
)
def test_what_cannot_be_shared_is_refused_at_once(function: Any, reason: str) -> None:
    """At import, not in the first request."""
    with pytest.raises(ConfigError, match=reason):
        coalesce(scope="public")(function)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ttl": -1}, "ttl"),
        ({"ttl": float("nan")}, "ttl"),
        ({"invalidate_on": "incident.*"}, "list of str"),
        ({"invalidate_on": ["Incident"]}, "patterns such as"),
        ({"invalidate_on": ["incident.*,log.*"]}, "names several"),
        ({"vary": "Accept"}, "list of str"),
        ({"reads": [""]}, "list of str"),
    ],
    ids=str,
)
def test_wrong_options_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    """With the name of the option."""
    with pytest.raises(ConfigError, match=message):
        coalesce(scope="public", **options)
