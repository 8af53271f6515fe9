"""`@coalesce` on functions: equal arguments, one execution, and clear words for the rest."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import (
    Flask,
    Request,
    Response,
    abort,
    copy_current_request_context,
    g,
    request,
    session,
)

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


# What a function reads of the request it is called in.

READERS: list[tuple[Callable[[], Any], str]] = [
    (lambda: request.headers["X-User"], "x-user"),
    (lambda: request.cookies.get("user"), "cookies"),
    (lambda: request.authorization, "authorization"),
    (lambda: session.get("user"), "session"),
    (lambda: g.user, "g.user"),
    (lambda: request.args["user"], "url"),
    (lambda: request.view_args, "url"),
    (lambda: request.get_data(), "body"),
]
FUNCTION: dict[str, Any] = {"ttl": 60, "view": False}


def look_first() -> None:
    """Look at everything, as apps do before a view."""
    g.user = request.headers["X-User"]
    assert request.args["user"] == session.setdefault("user", g.user) == g.user
    assert request.cookies is not None
    assert request.authorization is None


def serve(app: Flask, load: Callable[[], Any]) -> Callable[[str], str]:
    """Return what calls *load* in a view that is not coalesced, for a user."""
    app.secret_key = "test"
    app.before_request(look_first)
    app.add_url_rule("/", "view", lambda: str(load()))

    def get(user: str) -> str:
        return app.test_client().get(f"/?user={user}", headers={"X-User": user}).text

    return get


@pytest.mark.parametrize(("read", "name"), READERS)
def test_in_tests_a_function_that_reads_the_request_is_an_error(
    app: Flask, read: Callable[[], Any], name: str
) -> None:
    """What it reads is none of its arguments."""
    get = serve(app, coalesce(scope="public", **FUNCTION)(read))
    with pytest.raises(
        ConfigError, match=rf"read {name}.*arguments.*scope='user'.*reads=\['{name}'"
    ):
        get("ada")


@pytest.mark.parametrize(("read", "name"), READERS)
def test_in_production_it_is_not_shared(
    app: Flask, read: Callable[[], Any], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody is given what was worked out for another user, whatever it comes from."""
    app.testing = False
    counter = Counter()

    @coalesce(scope="public", ttl=60)
    def load() -> Any:
        return counter(), read()

    get = serve(app, load)
    texts = [get(user) for user in ("ada", "bob", "bob")]
    assert len(set(texts)) == 3
    if name in ("x-user", "session", "g.user"):
        assert "bob" in texts[1]
    assert caplog.text.count("given to its caller only") == 1


@pytest.mark.parametrize(("read", "name"), READERS)
def test_what_a_function_declares_it_may_read(
    app: Flask, read: Callable[[], Any], name: str
) -> None:
    """The app's author knows better."""
    counter = Counter()

    @coalesce(scope="public", ttl=60, reads=[name, "content-length"])
    def load() -> int:
        read()
        return counter()

    get = serve(app, load)
    assert get("ada") == get("bob") == "1"


def test_a_function_that_reads_no_request_is_shared_in_requests(app: Flask) -> None:
    """Whatever the view around it reads."""
    counter = Counter()
    load = coalesce(scope="public", **FUNCTION)(counter)
    get = serve(app, lambda: f"{load('north')} {request.headers['X-User']} {session['user']}")
    assert [get("ada"), get("bob")] == ["1 ada ada", "1 bob bob"]


def test_an_error_that_comes_of_what_it_read_belongs_to_its_caller(app: Flask) -> None:
    """Those who wait for it may be let in."""
    app.testing = False
    begun, go = threading.Event(), threading.Event()

    @coalesce(scope="public", ttl=60)
    def load() -> str:
        begun.set()
        assert go.wait(TIMEOUT)
        if request.headers["X-User"] != "ada":
            abort(403)
        return "for ada"

    get = serve(app, load)
    flights = app.extensions["noc_realtime"].process().flights
    found: dict[str, str] = {}
    threads = []
    for user in ("bob", "ada"):
        thread = threading.Thread(target=lambda user=user: found.update({user: get(user)}))
        thread.start()
        threads.append(thread)
        assert begun.wait(TIMEOUT)
    wait_until(lambda: flights.waiting == 1, TIMEOUT, "ada waits for bob")
    go.set()
    for thread in threads:
        thread.join(TIMEOUT)
    assert found["ada"] == "for ada"
    assert "Forbidden" in found["bob"]


def identified(app: Flask) -> None:
    """Tell users by a header; all are operators."""
    realtime = app.extensions["noc_realtime"]._extension
    realtime.identity_loader(lambda request: Identity(request.headers["X-User"], "operator"))


def test_a_page_may_call_a_function_that_the_same_people_share(app: Flask) -> None:
    """That the identity is looked up again, from a header, is not what the page depends on."""
    identified(app)
    counter = Counter()
    load = coalesce(scope="role", **FUNCTION)(lambda: counter())
    get = serve(app, lambda: "")
    app.view_functions["view"] = coalesce(scope="role", ttl=60, view=True)(lambda: str(load()))
    assert get("ada") == "1"
    app.view_functions["view"] = coalesce(scope="user", ttl=60, view=True)(lambda: str(load()))
    assert get("ada") == "1"


@pytest.mark.parametrize("times", [1, 2])
def test_a_page_depends_on_whose_result_its_functions_return(app: Flask, times: int) -> None:
    """Whether they work it out, or it is kept."""
    identified(app)
    load = coalesce(scope="user", **FUNCTION)(lambda: request.authorization)
    get = serve(app, lambda: [load() for _ in range(times - 1)])
    get("ada")
    app.view_functions["view"] = coalesce(scope="public", ttl=60, view=True)(lambda: str(load()))
    with pytest.raises(ConfigError, match=r"read identity\.user,"):
        get("ada")


def test_greenlets_of_a_view_that_call_functions_are_each_watched(app: Flask) -> None:
    """They share the request, and end in any order."""
    app.testing = False
    begun = {name: threading.Event() for name in ("first", "second")}
    go = {name: threading.Event() for name in begun}

    @coalesce(scope="public", ttl=60)
    def load(name: str) -> str:
        begun[name].set()
        assert go[name].wait(TIMEOUT)
        return f"{name} of {request.headers['X-User']}"

    def view() -> str:
        found: list[str] = []
        threads = {}
        for name in begun:
            call = copy_current_request_context(lambda name=name: found.append(load(name)))
            threads[name] = threading.Thread(target=call)
            threads[name].start()
            assert begun[name].wait(TIMEOUT)
        for name in begun:
            go[name].set()
            threads[name].join(TIMEOUT)
        kinds = type(request.environ), type(request._get_current_object())  # type: ignore[attr-defined]
        assert kinds == (dict, Request)
        return ", ".join(found)

    get = serve(app, view)
    assert get("ada") == "first of ada, second of ada"
    assert get("bob") == "first of bob, second of bob"


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


def test_what_functions_returned_is_bounded_by_what_it_takes() -> None:
    """A thousand large results are no less than a thousand large pages."""
    counter = Counter()

    @coalesce(scope="public", ttl=60)
    def load(number: int) -> list[bytes]:
        counter(number)
        return [bytes(8 * 1024 * 1024)]

    for number in range(9):
        load(number)
    assert len(load(8)) == 1
    assert len(counter.calls) == 9
    load(0)
    assert len(counter.calls) == 10


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
