"""Results that are ended by hand: by the events they name, by function, by arguments."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from enum import Enum
from typing import Any

import pytest
from flask import Blueprint
from flask.views import MethodView

from flask_noc_realtime import ConfigError, coalesce
from flask_noc_realtime.audience import TypeFilter
from flask_noc_realtime.auth import ANONYMOUS
from tests.coalesced import Worker, workers
from tests.conftest import RedisFactory

STRICT: dict[str, Any] = {"scope": "public", "ttl": 60, "invalidate_on": ["incident.*"]}
TIMED: dict[str, Any] = {"scope": "public", "ttl": 60}


class Kind(str, Enum):
    """Types as an app may name them."""

    CHANGED = "server.status.changed"


def prepare(worker: Worker) -> None:
    """Serve pages and call functions of each kind."""
    app, ran = worker.app, worker.ran

    @app.get("/strict")
    @coalesce(**STRICT)
    def strict() -> str:
        return ran("strict")

    @app.get("/servers")
    @coalesce(scope="public", ttl=60, invalidate_on=[Kind.CHANGED])
    def servers() -> str:
        return ran("servers")

    @app.get("/timed")
    @coalesce(**TIMED)
    def timed() -> str:
        return ran("timed")

    @app.get("/site/<name>")
    @coalesce(**TIMED)
    def site(name: str) -> str:
        return ran(name)

    @coalesce(**STRICT)
    def count(site: str, state: str = "open") -> str:
        return ran(site)

    @coalesce(**TIMED)
    def names(*sites: str) -> str:
        return ran("names")

    @app.get("/function/<path:arguments>")
    def function(arguments: str) -> str:
        name, *rest = arguments.split("/")
        return {"count": count, "names": names}[name](*rest)

    worker.functions = {
        "strict": strict,
        "timed": timed,
        "site": site,
        "count": count,
        "names": names,
    }


@pytest.fixture(params=["memory", "redis"])
def pair(request: pytest.FixtureRequest) -> Iterator[list[Worker]]:
    """Return two workers of a site with Redis, and one alone with none."""
    if request.param == "memory":
        with workers(1, prepare) as made:
            yield made * 2
        return
    make: RedisFactory = request.getfixturevalue("redis_server")
    with workers(2, prepare, NOC_REALTIME_URL=make().url) as made:
        yield made


def invalidate(pair: list[Worker], what: str, *args: Any, **kwargs: Any) -> None:
    """Invalidate in the first worker, and return when the second has been told."""
    one, other = pair
    subject = one.functions.get(what, what)
    other.process.position()
    with one.app.app_context():
        position = one.realtime.coalesce.invalidate(subject, *args, **kwargs)
    assert position is not None
    other.knows(position)
    one.knows(position)


def changed(pair: list[Worker], path: str) -> list[bool]:
    """Return, for each worker, a function's answer to whether a page is another than before."""
    return [worker.text(path) != worker.before[path] for worker in pair]


def remember(pair: list[Worker], *paths: str) -> None:
    """Ask for pages, and remember them."""
    for worker in pair:
        worker.before = {path: worker.text(path) for path in paths}
    for path in paths:
        assert changed(pair, path) == [False, False]


def test_a_pattern_ends_what_its_events_end_and_nothing_else(pair: list[Worker]) -> None:
    """As an event of each type it matches would."""
    remember(pair, "/strict", "/servers", "/timed", "/function/count/oslo")
    invalidate(pair, "incident.*")
    assert changed(pair, "/strict") == changed(pair, "/function/count/oslo") == [True, True]
    assert changed(pair, "/servers") == changed(pair, "/timed") == [False, False]


def test_a_type_ends_what_names_a_pattern_it_matches(pair: list[Worker]) -> None:
    """And so does the pattern of everything."""
    remember(pair, "/strict", "/servers")
    invalidate(pair, "incident.created")
    assert changed(pair, "/strict") == [True, True]
    assert changed(pair, "/servers") == [False, False]
    remember(pair, "/strict", "/servers")
    invalidate(pair, "*")
    assert changed(pair, "/strict") == changed(pair, "/servers") == [True, True]


def test_a_type_may_be_of_an_enum(pair: list[Worker]) -> None:
    """Its value is what events have."""
    remember(pair, "/servers")
    invalidate(pair, "server.status.changed")
    assert changed(pair, "/servers") == [True, True]


@pytest.mark.parametrize("what", ["strict", "timed"])
def test_a_view_ends_by_its_function(pair: list[Worker], what: str) -> None:
    """Whether events end it or only time does, and no other."""
    remember(pair, "/strict", "/timed", "/site/oslo")
    invalidate(pair, what)
    assert changed(pair, f"/{what}") == [True, True]
    rest = "/timed" if what == "strict" else "/strict"
    assert changed(pair, rest) == changed(pair, "/site/oslo") == [False, False]


def test_one_page_of_a_view_ends_by_the_values_in_its_url(pair: list[Worker]) -> None:
    """The others stay."""
    remember(pair, "/site/oslo", "/site/rome")
    invalidate(pair, "site", name="oslo")
    assert changed(pair, "/site/oslo") == [True, True]
    assert changed(pair, "/site/rome") == [False, False]
    invalidate(pair, "site")
    assert changed(pair, "/site/rome") == [True, True]


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("oslo",), {}),
        ((), {"site": "oslo"}),
        (("oslo", "open"), {}),
        ((), {"state": "open", "site": "oslo"}),
    ],
)
def test_a_function_ends_by_its_arguments_however_they_are_passed(
    pair: list[Worker], args: tuple[str, ...], kwargs: dict[str, str]
) -> None:
    """Defaults count as if they were written."""
    remember(pair, "/function/count/oslo", "/function/count/rome")
    invalidate(pair, "count", *args, **kwargs)
    assert changed(pair, "/function/count/oslo") == [True, True]
    assert changed(pair, "/function/count/rome") == [False, False]


def test_a_function_that_only_time_ends_is_ended_too(pair: list[Worker]) -> None:
    """In this worker at once, in others as soon as they are told."""
    remember(pair, "/function/names/oslo/rome", "/function/names/rome/oslo")
    invalidate(pair, "names", "oslo", "rome")
    assert changed(pair, "/function/names/oslo/rome") == [True, True]
    assert changed(pair, "/function/names/rome/oslo") == [False, False]


def test_what_is_under_way_is_given_to_nobody_who_asks_afterwards(pair: list[Worker]) -> None:
    """It began before."""
    one, _ = pair
    begun: list[str] = []

    @coalesce(scope="public", ttl=60)
    def slow() -> str:
        begun.append("")
        if len(begun) == 1:
            with one.app.app_context():
                one.realtime.coalesce.invalidate(slow)
        return f"run {len(begun)}"

    with one.app.app_context():
        assert slow() == "run 1"
        assert slow() == slow() != "run 1"


def test_no_stream_shows_an_invalidation(pair: list[Worker]) -> None:
    """It travels in the log, and is no event; not even for a user with the name of a page."""
    one, _ = pair
    hub = one.process.hub
    before = hub.locate(one.process.position())
    assert before is not None
    invalidate(pair, "server.status.changed")
    assert hub.end == before + 1
    names = "server.status.changed server.status.* server.* *"
    batch = hub.read(ANONYMOUS.audience(TypeFilter.parse("")), names, before)
    assert (batch.body, batch.end) == (b"", before + 1)


def test_it_is_found_beneath_other_decorators_and_on_classes(pair: list[Worker]) -> None:
    """As long as they use functools.wraps; a bound method is its function."""
    one, _ = pair

    def login_required(view: Any) -> Any:
        @functools.wraps(view)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            return view(*args, **kwargs)

        return guarded

    class Page(MethodView):
        @coalesce(scope="public", ttl=60)
        def get(self, name: str) -> str:
            return one.ran(name)

    @login_required
    @coalesce(scope="public", ttl=60)
    def guarded() -> str:
        return one.ran("guarded")

    pages = Blueprint("pages", __name__)
    pages.add_url_rule("/class/<name>", view_func=Page.as_view("page"))
    pages.add_url_rule("/guarded", view_func=guarded)
    one.app.register_blueprint(pages)
    first = one.text("/class/oslo"), one.text("/guarded")
    with one.app.app_context():
        one.realtime.coalesce.invalidate(Page.get, name="oslo")
        assert one.text("/class/oslo") != first[0]
        one.realtime.coalesce.invalidate(guarded)
        assert one.text("/guarded") != first[1]


@pytest.mark.parametrize(
    ("what", "arguments", "message"),
    [
        (len, (), "is not coalesced"),
        (7, (), "is not coalesced"),
        ("Incident!", (), "invalidate has 'Incident!'"),
        ("incident.*", (7,), "takes no arguments"),
        ("count", ("a", "b", "c"), "cannot have these arguments"),
    ],
)
def test_what_cannot_be_invalidated_is_an_error(
    pair: list[Worker], what: Any, arguments: tuple[Any, ...], message: str
) -> None:
    """A slip there would leave old pages, and nobody would know."""
    one, _ = pair
    subject = one.functions.get(what, what)
    with one.app.app_context(), pytest.raises(ConfigError, match=message):
        one.realtime.coalesce.invalidate(subject, *arguments)


def test_outside_of_an_app_context_nothing_of_the_function_is_kept_either() -> None:
    """What such calls share belongs to the process, not to an app."""
    made: list[int] = []

    @coalesce(scope="public", ttl=60)
    def work() -> int:
        made.append(1)
        return len(made)

    with workers(1, lambda worker: None) as (worker,):
        assert work() == work() == 1
        worker.realtime.coalesce.invalidate(work)
        assert work() == 2


def test_the_decorator_is_found_on_the_extension_as_well() -> None:
    """One import less."""
    with workers(1, lambda worker: None) as (worker,):

        @worker.realtime.coalesce(scope="public")
        def work() -> object:
            return object()

        with worker.app.app_context():
            assert work() is work()
