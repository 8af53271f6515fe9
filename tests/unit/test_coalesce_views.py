"""`@coalesce` on views: one execution for all, and for each the response that is theirs."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, cast

import pytest
from flask import (
    Blueprint,
    Flask,
    Response,
    abort,
    after_this_request,
    copy_current_request_context,
    g,
    jsonify,
    make_response,
    redirect,
    request,
    session,
)
from flask.sessions import SessionInterface, SessionMixin
from flask.views import MethodView, View
from flask_httpauth import HTTPBasicAuth
from werkzeug.test import EnvironBuilder, TestResponse, run_wsgi_app

from flask_noc_realtime import ConfigError, Identity, NocRealtime, coalesce
from flask_noc_realtime.generation import Generations
from tests.processes import wait_until

TIMEOUT = 20.0


class Site:
    """An app with a coalesced page; the test says what the page does."""

    def __init__(self) -> None:
        self.app = Flask("site")
        self.app.secret_key = "test"
        self.app.testing = True
        self.realtime = NocRealtime(self.app)
        self.realtime.identity_loader(self.who)
        self.runs = 0

    def who(self, request: Any) -> Identity | None:
        """Read the identity a test names in the query."""
        user = request.headers.get("X-User")
        role = request.headers.get("X-Role")
        rights = frozenset(request.headers.get("X-Rights", "").split())
        return Identity(user, role, rights) if user else None

    def page(self, view: Callable[..., Any], path: str = "/page", **options: Any) -> None:
        """Serve *view*, counted and coalesced."""
        options = {"scope": "public", "ttl": 60, **options}

        @functools.wraps(view)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.runs += 1
            return view(*args, **kwargs)

        methods = ["GET", "POST"]
        self.app.add_url_rule(path, path, coalesce(**options)(counted), methods=methods)

    def get(self, path: str = "/page", method: str = "GET", **headers: str) -> TestResponse:
        """Request a page; underscores in names of headers are hyphens."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.app.test_client().open(path, method=method, headers=sent)

    def together(self, count: int, gate: threading.Event, **headers: str) -> list[TestResponse]:
        """Request a page *count* times at once; the gate opens when all wait for one."""
        flights = self.app.extensions["noc_realtime"].process().flights
        responses: list[TestResponse] = []
        threads = [
            threading.Thread(target=lambda: responses.append(self.get(**headers)))
            for _ in range(count)
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: flights.waiting == count - 1, TIMEOUT, "they wait")
        gate.set()
        for thread in threads:
            thread.join(TIMEOUT)
        assert len(responses) == count
        return responses


@pytest.fixture
def site() -> Iterator[Site]:
    """Return a site whose process is closed in the end."""
    site = Site()
    yield site
    site.app.extensions["noc_realtime"].process().close()


def numbered(site: Site) -> Callable[[], str]:
    """Return a view that says how often it ran."""
    return lambda: f"run {site.runs}"


def status(response: TestResponse) -> str:
    """Return what Cache-Status says after our name."""
    return response.headers["Cache-Status"].removeprefix("noc-realtime; ")


def test_a_page_is_worked_out_once_and_given_to_all(site: Site) -> None:
    """With what RFC 9211 calls a hit, and its age."""
    site.page(numbered(site))
    first, second = site.get(), site.get()
    assert first.text == second.text == "run 1"
    assert status(first) == "fwd=uri-miss; stored"
    assert "Age" not in first.headers
    assert status(second).startswith("hit; ttl=")
    assert second.headers["Age"] == "0"
    assert first.headers["X-Noc-Position"] == second.headers["X-Noc-Position"]


def test_who_begins_asks_redis_without_giving_way_and_a_hit_does_not(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The herd that comes meanwhile would run first, and its work would begin that much later."""
    asked: list[bool] = []
    read = Generations.read

    def reading(self: Generations, patterns: Sequence[str], *, at_once: bool = False) -> Hashable:
        asked.append(at_once)
        return read(self, patterns, at_once=at_once)

    monkeypatch.setattr(Generations, "read", reading)
    site.page(numbered(site), invalidate_on=["incident.*"])
    assert [site.get().text, site.get().text] == ["run 1", "run 1"]
    assert asked == [True, False]


class Clock:
    """The system's clock, which a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_800_000_000.0
        monkeypatch.setattr("flask_noc_realtime.view.now", lambda: self.now)


def test_a_page_says_how_old_it_is(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """From when it was begun to be worked out (RFC 9111, section 5.1), in whole seconds."""
    clock = Clock(monkeypatch)

    def slow() -> str:
        clock.now += 2.0
        return "x"

    site.page(slow)
    assert "Age" not in site.get().headers
    ages = []
    for passed in (0.0, 0.9, 0.1, 40.0):
        clock.now += passed
        ages.append(site.get().headers["Age"])
    assert ages == ["2", "2", "3", "43"]
    assert site.get(method="HEAD").headers["Age"] == "43"


@pytest.mark.parametrize(("jump", "age"), [(-86_400.0, "0"), (86_400.0, "86400")])
def test_when_the_clock_jumps_a_page_keeps_its_time(
    site: Site, monkeypatch: pytest.MonkeyPatch, jump: float, age: str
) -> None:
    """It is counted by another clock; only its age is taken from what a clock on the wall says."""
    clock = Clock(monkeypatch)
    site.page(numbered(site), refresh_early=True, stale_while_revalidate=30)
    before = status(site.get()), status(site.get())
    clock.now += jump
    response = site.get()
    assert response.text == "run 1"
    assert response.headers["Age"] == age
    assert (status(response), before[0]) == (before[1], "fwd=uri-miss; stored")


def test_fifty_users_at_nine_cost_one_execution(site: Site) -> None:
    """They all wait for the first."""
    gate = threading.Event()
    site.page(lambda: str(gate.wait(TIMEOUT)))
    responses = site.together(20, gate)
    assert [response.text for response in responses] == ["True"] * 20
    assert site.runs == 1
    assert sorted(map(status, responses)) == ["fwd=uri-miss; collapsed"] * 19 + [
        "fwd=uri-miss; stored"
    ]


# The key.


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("/page?a=1", "/page?a=2"),
        ("/page?a=1&b=2", "/page?a=1%26b=2"),
        ("/page?a=1&a=2", "/page?a=2&a=1"),
        ("/page?a=1", "/page?a=1&a=1"),
        ("/page?a=%FF", "/page?a=%FE"),
        ("/page?a=%00", "/page?a="),
        ("http://one.example/page", "http://two.example/page"),
        ("http://one.example/page", "https://one.example/page"),
    ],
)
def test_other_requests_get_other_pages(site: Site, one: str, other: str) -> None:
    """No separator and no encoding makes two of them one."""
    site.page(numbered(site))
    assert site.get(one).text == "run 1"
    assert site.get(other).text == "run 2"
    assert site.get(one).text == "run 1"


def test_an_empty_host_is_another_than_none(site: Site) -> None:
    """Of its own page would be made the links on everybody's."""
    site.page(lambda: f"at {request.host}")
    environ = EnvironBuilder("/page").get_environ()
    del environ["HTTP_HOST"]
    for host, page in (({"HTTP_HOST": ""}, b"at "), ({}, b"at localhost")):
        body, _, _ = run_wsgi_app(site.app, {**environ, **host})
        assert b"".join(body) == page


def test_the_order_of_parameters_makes_no_other_page(site: Site) -> None:
    """Browsers and scripts write them in any order."""
    site.page(numbered(site))
    assert site.get("/page?b=2&a=1").text == site.get("/page?a=1&b=2").text


def test_pages_with_arguments_in_the_path_are_kept_apart(site: Site) -> None:
    """And two endpoints as well."""
    site.page(lambda name: f"{name} {site.runs}", "/sites/<name>")
    site.page(lambda name: f"other {site.runs}", "/others/<name>")
    assert site.get("/sites/a").text == site.get("/sites/a").text == "a 1"
    assert site.get("/sites/b").text == "b 2"
    assert site.get("/others/a").text == "other 3"


def test_declared_headers_are_in_the_key(site: Site) -> None:
    """And in Vary, for the caches on the way."""
    site.page(lambda: request.headers.get("Accept-Language", ""), vary=["Accept-Language"])
    german, english = site.get(Accept_Language="de"), site.get(Accept_Language="en")
    assert (german.text, english.text) == ("de", "en")
    assert site.get(Accept_Language="de").headers["Vary"] == "Accept-Language"
    assert site.runs == 2


@pytest.mark.parametrize(
    ("scope", "shared"),
    [("public", True), ("role", True), ("permissions", False), ("user", False)],
)
def test_a_scope_says_who_shares(site: Site, scope: str, shared: bool) -> None:
    """Two users of one role, with other rights."""
    site.page(numbered(site), scope=scope)
    one = site.get(X_User="1", X_Role="operator", X_Rights="a b")
    other = site.get(X_User="2", X_Role="operator", X_Rights="b")
    assert (one.text == other.text) is shared
    assert site.get(X_User="1", X_Role="operator", X_Rights="b a").text == "run 1"
    assert one.headers.get("Cache-Control") == (None if scope == "public" else "private")


def test_who_has_no_identity_shares_with_nobody(site: Site) -> None:
    """The view itself says that they must log in, and to them only."""

    def view() -> Any:
        return (f"run {site.runs}", 200) if request.headers.get("X-User") else abort(401)

    site.page(view, scope="role", reads=["x-user"])
    assert site.get().status_code == 401
    assert site.get(X_User="1", X_Role="a").text == "run 2"
    assert site.get().status_code == 401


def test_a_scope_of_ones_own(site: Site) -> None:
    """None is nobody."""
    site.page(numbered(site), scope=lambda: request.headers.get("X-Tenant"))
    assert site.get(X_Tenant="a").text == site.get(X_Tenant="a").text
    assert site.get(X_Tenant="b").text == "run 2"
    assert site.get().text != site.get().text


# Events.


def test_an_event_ends_what_is_kept(site: Site) -> None:
    """Whoever asks after emit returned gets a page from after it."""
    site.page(numbered(site), invalidate_on=["incident.*"])
    assert site.get().text == site.get().text == "run 1"
    with site.app.app_context():
        site.realtime.emit("log.added")
        assert site.get().text == "run 1"
        position = site.realtime.emit("incident.created")
    second = site.get()
    assert second.text == "run 2"
    assert second.headers["X-Noc-Position"] == position


@pytest.mark.parametrize("several", [True, False])
def test_several_workers_without_a_broker_between_them_are_warned_of(
    site: Site, several: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """An event in one of them would leave the pages of the others stale, in silence."""
    strict = coalesce(scope="public", invalidate_on=["incident.*"], view=False)
    load = strict(lambda number: number)
    site.page(lambda: str(load(site.runs)), invalidate_on=["incident.*"])
    site.page(lambda: "timed", "/timed")
    environ = {"wsgi.multiprocess": several}
    for path in ("/timed", "/page", "/page"):
        assert site.app.test_client().get(path, environ_overrides=environ).status_code == 200
    assert caplog.text.count("not in the others. Set NOC_REALTIME_URL") == several


def test_a_page_from_the_store_carries_the_position_it_was_computed_at(site: Site) -> None:
    """A stream opened from it brings what the page does not show yet."""
    site.page(lambda: "x")
    before = site.get().headers["X-Noc-Position"]
    with site.app.app_context():
        after = site.realtime.emit("incident.created")
    kept = site.get()
    assert status(kept).startswith("hit")
    assert kept.headers["X-Noc-Position"] == before != after


# What each caller gets.


def test_a_post_passes(site: Site) -> None:
    """It changes something each time."""
    site.page(numbered(site))
    assert site.get(method="POST").text == "run 1"
    assert site.get(method="POST").text == "run 2"
    assert "Cache-Status" not in site.get(method="POST").headers


def test_conditions_are_each_callers_own(site: Site) -> None:
    """The view runs as for the whole page, whoever comes first."""
    site.page(lambda: jsonify(condition=request.headers.get("If-None-Match", "none")))
    first = site.get(If_None_Match='"x"', Range="bytes=0-1")
    assert first.status_code == 200
    assert first.json == {"condition": "none"}
    etag = first.headers["ETag"]
    second = site.get(If_None_Match=etag)
    assert second.status_code == 304
    assert second.data == b""
    assert second.headers["ETag"] == etag
    assert site.get().data == first.data


def test_the_first_caller_may_get_a_304_as_well(site: Site) -> None:
    """Its browser has the page from before a restart."""
    site.page(lambda: ("x", {"ETag": '"v1"'}))
    assert site.get(If_None_Match='"v1"').status_code == 304
    assert site.get().text == "x"


def test_a_head_request_shares_with_get_in_both_directions(site: Site) -> None:
    """It is the same page without its body."""
    site.page(lambda: f"{request.method} {site.runs}")
    head = site.get(method="HEAD")
    assert head.data == b""
    assert head.headers["Content-Length"] == "5"
    assert site.get().text == "GET 1"
    assert status(site.get(method="HEAD")).startswith("hit")


def test_headers_of_the_list_and_those_named_are_given_to_all(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """Others are given to nobody, which is said once."""
    sent = {"X-Total": "7", "X-Node": "a", "Content-Language": "de", "Link": "</a>"}
    site.page(lambda: ("x", sent), headers=["X-Total"])
    for response in (site.get(), site.get()):
        given = {name for name in sent if name in response.headers}
        assert given == {"X-Total", "Content-Language", "Link"}
    assert caplog.text.count("without its headers x-node") == 1


def test_a_response_without_a_type_gets_none(site: Site) -> None:
    """What the view did not say, nobody is told."""

    def view() -> Response:
        response = make_response("x")
        del response.headers["Content-Type"]
        return response

    site.page(view)
    assert "Content-Type" not in site.get().headers


def set_cookie() -> Response:
    """Answer with a cookie."""
    response = make_response("x")
    response.set_cookie("a", "b")
    return response


def later() -> str:
    """Have a cookie set when the request ends."""

    @after_this_request
    def add(response: Response) -> Response:
        response.set_cookie("a", "b")
        return response

    return "x"


def private() -> Any:
    """Answer privately."""
    return "x", {"Cache-Control": "private, max-age=5"}


def no_store() -> Any:
    """Answer with what nobody may store."""
    return "x", {"Cache-Control": "no-store"}


def varying() -> Any:
    """Answer as an undeclared header has it."""
    return "x", {"Vary": "Accept-Language"}


def streamed() -> Response:
    """Answer piece by piece."""
    return Response(iter(["a", "b"]))


def large() -> str:
    """Answer at length."""
    return "x" * 1001


@pytest.mark.parametrize(
    "view",
    [set_cookie, later, private, no_store, varying, streamed, large],
    ids=lambda view: view.__name__,
)
def test_what_belongs_to_one_is_given_to_one(site: Site, view: Callable[[], Any]) -> None:
    """Each caller gets their own, whole and unchanged."""
    site.page(view, max_bytes=1000)
    first, second = site.get(), site.get()
    assert site.runs == 2
    assert first.data == second.data
    assert "Cache-Status" not in first.headers
    for name in ("Set-Cookie", "Cache-Control", "Vary"):
        assert first.headers.getlist(name) == second.headers.getlist(name)


def test_callers_of_what_belongs_to_one_are_released_together(site: Site) -> None:
    """One after the other, the last would wait for all."""
    gate = threading.Event()

    def view() -> Response:
        assert gate.wait(TIMEOUT)
        return set_cookie()

    site.page(view)
    responses = site.together(10, gate)
    assert site.runs == 10
    assert all("Set-Cookie" in response.headers for response in responses)


@pytest.mark.parametrize("code", [302, 404, 500])
def test_other_statuses_are_shared_by_those_who_wait_and_not_kept(site: Site, code: int) -> None:
    """The next caller may be luckier."""
    gate = threading.Event()

    def view() -> Any:
        assert gate.wait(TIMEOUT)
        return redirect("/x") if code == 302 else ("no", code)

    site.page(view)
    responses = site.together(10, gate)
    assert [response.status_code for response in responses] == [code] * 10
    assert site.runs == 1
    assert responses[0].headers.get("Location") == responses[9].headers.get("Location")
    assert status(site.get()) == "fwd=uri-miss"
    assert site.runs == 2


def test_a_failing_view_fails_once_for_all_who_wait(site: Site) -> None:
    """And each request has an error page of its own."""
    gate = threading.Event()
    seen: list[BaseException] = []

    @site.app.errorhandler(LookupError)
    def explain(error: LookupError) -> Any:
        seen.append(error)
        return f"lost: {error}", 503

    def view() -> str:
        assert gate.wait(TIMEOUT)
        raise LookupError("it")

    site.page(view)
    responses = site.together(20, gate)
    assert [(response.status_code, response.text) for response in responses] == [
        (503, "lost: it")
    ] * 20
    assert site.runs == 1
    assert len(set(map(id, seen))) == 20


@pytest.mark.parametrize("argument", [404, Response("gone", 410)], ids=["code", "response"])
def test_an_aborted_view_is_aborted_for_all_who_wait(site: Site, argument: Any) -> None:
    """Also with a response, which no two requests may send at once."""
    gate = threading.Event()

    def view() -> Any:
        assert gate.wait(TIMEOUT)
        abort(argument)

    sent: list[Response] = []
    site.app.after_request(lambda response: (sent.append(response), response)[1])
    site.page(view)
    responses = site.together(5, gate)
    code = argument if isinstance(argument, int) else argument.status_code
    assert [response.status_code for response in responses] == [code] * 5
    assert len(set(map(id, sent))) == 5
    assert site.runs == 1


# Where a view can be.


def test_views_of_blueprints_and_classes(site: Site) -> None:
    """With decorators of one's own above, if they use functools.wraps."""

    def logged(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapper

    blueprint = Blueprint("b", __name__, url_prefix="/b")

    @blueprint.get("/function")
    @logged
    @coalesce(scope="public", ttl=60)
    def function() -> str:
        site.runs += 1
        return f"run {site.runs} {request.args.get('q')}"

    class Method(MethodView):
        @logged
        @coalesce(scope="public", ttl=60)
        def get(self) -> str:
            return function.__wrapped__.__wrapped__()  # type: ignore[attr-defined,no-any-return]

        def post(self) -> str:
            return self.get()

    class Decorated(View):
        decorators = (logged, coalesce(scope="public", ttl=60))

        def dispatch_request(self) -> str:
            return function.__wrapped__.__wrapped__()  # type: ignore[attr-defined,no-any-return]

    blueprint.add_url_rule("/method", view_func=Method.as_view("method"))
    blueprint.add_url_rule("/decorated", view_func=Decorated.as_view("decorated"))
    site.app.register_blueprint(blueprint)
    runs = 0
    for path in ("/b/function", "/b/method", "/b/decorated"):
        assert site.get(f"{path}?q=1").text == site.get(f"{path}?q=1").text == f"run {runs + 1} 1"
        assert site.get(f"{path}?q=2").text == f"run {runs + 2} 2"
        runs += 2
    assert site.get("/b/method", method="POST").text == f"run {runs + 1} None"
    assert site.get("/b/method", method="POST").text == f"run {runs + 2} None"


def test_a_function_that_a_view_calls_is_no_view(site: Site) -> None:
    """Its key is its arguments, and not the request."""
    runs: list[int] = []

    @coalesce(scope="public", ttl=60, view=False)
    def load(number: int) -> int:
        runs.append(number)
        return number * 2

    site.app.add_url_rule("/a", "a", lambda: str(load(1)))
    site.app.add_url_rule("/b", "b", lambda: str(triple(request.args.get("x", 0, int))))
    assert site.get("/a?x=1").text == site.get("/a?x=2").text == "2"
    assert runs == [1]
    assert [site.get(f"/b?x={x}&y={y}").text for x, y in ((1, 1), (1, 2), (2, 1))] == list("336")


@coalesce(scope="public", ttl=60)
def triple(number: int) -> int:
    """Multiply by three."""
    return number * 3


def test_a_view_that_another_view_calls_is_not_taken_for_that_page(site: Site) -> None:
    """There it is a function, and has no query in its key; its own page stays shared."""
    site.app.testing = False
    site.page(lambda: f"{request.args.get('q')} {site.runs}")
    site.app.add_url_rule("/alias", "alias", lambda: site.app.view_functions["/page"]())
    assert [site.get(f"/alias?q={q}").text for q in (1, 2)] == ["1 1", "2 2"]
    assert site.get("/page?q=1").text == site.get("/page?q=1").text == "1 3"
    site.app.testing = True
    with pytest.raises(ConfigError, match="read url, which other calls with the same arguments"):
        site.get("/alias?q=3")


def test_a_decorator_that_hides_the_view_is_found_out(site: Site) -> None:
    """Taken for a function, the page would be the same whatever the query."""

    def hiding(function: Callable[[], Any]) -> Callable[[], Any]:
        def wrapper() -> Any:
            return function()

        return wrapper

    def view() -> str:
        return request.args["q"]

    site.app.add_url_rule("/a", "a", hiding(coalesce(scope="public")(view)))
    site.app.add_url_rule("/b", "b", hiding(coalesce(scope="public", view=True)(view)))
    with pytest.raises(ConfigError, match=r"functools\.wraps"):
        site.get("/a?q=1")
    assert site.get("/b?q=1").text == "1"
    assert site.get("/b?q=2").text == "2"


def test_a_view_may_call_a_coalesced_neighbour_of_its_app_factory(site: Site) -> None:
    """It encloses it as a decorator does, by its name."""
    runs = itertools.count(1)

    @coalesce(scope="public", ttl=60)
    def open_incidents() -> list[int]:
        return [next(runs)]

    @site.app.get("/count")
    def count() -> str:
        return str(open_incidents()[0])

    assert site.get("/count?a=1").text == site.get("/count").text == "1"


def test_without_the_extension_it_says_what_to_do() -> None:
    """Instead of a KeyError."""
    app = Flask("bare")
    app.testing = True
    app.add_url_rule("/", "index", coalesce(scope="public")(lambda: "x"))
    with pytest.raises(ConfigError, match="init_app"):
        app.test_client().get("/")


# What a view reads.


def reads_session() -> str:
    """Read the session."""
    return str(session.get("theme"))


def reads_cookie() -> str:
    """Read a cookie."""
    return request.cookies.get("theme", "")


def reads_authorization() -> str:
    """Read who asks from the header."""
    return str(request.authorization)


def reads_header() -> str:
    """Read a header of the client's own."""
    return request.headers.get("X-Theme", "")


def reads_all_headers() -> str:
    """Read whatever is sent."""
    return str(len(dict(request.headers)))


def reads_accept() -> str:
    """Read which kind of page is wanted."""
    return str(request.accept_mimetypes.best)


def reads_user() -> str:
    """Read the user that a before_request function found."""
    return str(g.get("user"))


def reads_user_attribute() -> str:
    """Read the user as an attribute."""
    return str(g.user)


def reads_whether_there_is_a_user() -> str:
    """Look whether somebody is logged in."""
    return str("user" in g)


def reads_user_by_another_name() -> str:
    """Read what an extension of the app's own keeps."""
    return str(g.setdefault("account_id", None))


def reads_user_of_request() -> str:
    """Read the user where apps that came from Django keep it."""
    return str(request.user)  # type: ignore[attr-defined]


def reads_remote_user() -> str:
    """Read whom the server in front has let in."""
    return str(request.remote_user)


def reads_address() -> str:
    """Read where the client is."""
    return str(request.remote_addr)


def reads_environ() -> str:
    """Read a header past the request."""
    return str(request.environ.get("HTTP_X_THEME"))


def reads_certificate() -> str:
    """Read what only some servers set."""
    return str(request.environ["SSL_CLIENT_S_DN"])


def reads_body() -> str:
    """Read the body of a GET, which was read before."""
    return str(request.get_json(silent=True))


def reads_kept_session() -> str:
    """Read the session past the proxy."""
    return str(g.kept.get("theme"))


READERS = [
    (reads_session, "session"),
    (reads_cookie, "cookies"),
    (reads_authorization, "authorization"),
    (reads_header, "x-theme"),
    (reads_all_headers, "all headers"),
    (reads_accept, "accept"),
    (reads_user, "g.user"),
    (reads_user_attribute, "g.user"),
    (reads_whether_there_is_a_user, "g.user"),
    (reads_user_by_another_name, "g.account_id"),
    (reads_user_of_request, "request.user"),
    (reads_remote_user, "remote_user"),
    (reads_address, "remote_addr"),
    (reads_environ, "x-theme"),
    (reads_certificate, "environ.ssl_client_s_dn"),
    (reads_body, "body"),
    (reads_kept_session, "session"),
]


def remember_user() -> None:
    """Find the user, and look at everything else as well, as apps do before a view."""
    g.user = g.account_id = request.user = request.headers.get("X-User")  # type: ignore[attr-defined]
    g.kept = session._get_current_object()  # type: ignore[attr-defined]
    session.get("theme")
    request.environ["REMOTE_USER"] = request.environ["SSL_CLIENT_S_DN"] = str(g.user)
    request.get_json(silent=True)
    assert request.access_route is not None
    assert request.cookies is not None
    assert request.accept_mimetypes is not None
    assert request.authorization is None


@pytest.mark.parametrize(("view", "name"), READERS, ids=lambda case: getattr(case, "__name__", ""))
def test_in_tests_a_view_that_reads_outside_its_key_is_an_error(
    site: Site, view: Callable[[], str], name: str
) -> None:
    """It says what was read, and three ways to mend it."""
    site.app.before_request(remember_user)
    site.page(view)
    with pytest.raises(ConfigError, match=rf"read {name}.*scope='user'.*vary=.*reads=\['{name}'\]"):
        site.get()


@pytest.mark.parametrize(("view", "name"), READERS, ids=lambda case: getattr(case, "__name__", ""))
def test_in_production_it_is_not_shared_and_warns_once(
    site: Site, view: Callable[[], str], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Better slow than another user's page."""
    site.app.testing = False
    site.app.before_request(remember_user)
    site.page(view)
    for _ in range(3):
        assert site.get(X_User="7").status_code == 200
    assert site.runs == 3
    assert caplog.text.count("given to its caller only") == 1


@pytest.mark.parametrize(("view", "name"), READERS, ids=lambda case: getattr(case, "__name__", ""))
def test_what_is_declared_may_be_read(site: Site, view: Callable[[], str], name: str) -> None:
    """The app's author knows better."""
    site.app.before_request(remember_user)
    site.page(view, reads=[name, "x-theme"] if name != "x-theme" else [name])
    assert site.get(X_User="7").status_code == 200
    site.get(X_User="7")
    assert site.runs == 1


@pytest.mark.parametrize(
    "view",
    [
        reads_session,
        reads_authorization,
        reads_user,
        reads_user_by_another_name,
        reads_user_of_request,
        reads_remote_user,
    ],
)
def test_a_page_of_one_user_may_read_who_it_is(site: Site, view: Callable[[], str]) -> None:
    """The user is in the key."""
    site.app.before_request(remember_user)
    site.page(view, scope="user")
    assert site.get(X_User="7").status_code == 200


class Remembering(dict[str, Any], SessionMixin):
    """A session that does not notice that it is read, which Flask does not ask of it."""


class Sessions(SessionInterface):
    """Opens them."""

    def open_session(self, app: Flask, request: Any) -> Any:
        return Remembering(theme=request.headers.get("X-Theme"))

    def save_session(self, app: Flask, session: Any, response: Response) -> None:
        pass


@pytest.mark.parametrize("view", [reads_session, lambda: session["theme"], reads_kept_session])
def test_a_session_of_any_class_is_watched(site: Site, view: Callable[[], str]) -> None:
    """Whether or not it notices itself that it is read, and past the proxy as well."""
    site.app.testing = False
    site.app.session_interface = Sessions()
    site.app.before_request(remember_user)
    site.page(view)
    assert [site.get(X_Theme=theme).text for theme in ("day", "night")] == ["day", "night"]


def test_who_flask_httpauth_lets_in_is_seen(site: Site) -> None:
    """It keeps its user under a name of its own."""
    site.app.testing = False
    auth = HTTPBasicAuth()
    auth.verify_password(lambda name, password: name)
    page = coalesce(scope="public", ttl=60)(lambda: str(auth.current_user()))
    site.app.add_url_rule("/mine", view_func=auth.login_required(page))
    client = site.app.test_client()
    assert [client.get("/mine", auth=(name, "x")).text for name in ("ada", "bob")] == ["ada", "bob"]


def test_the_way_of_a_request_is_seen_though_it_was_worked_out_before(site: Site) -> None:
    """By a function that runs before the view, say to log it."""
    site.app.before_request(remember_user)
    site.page(lambda: str(request.access_route))
    with pytest.raises(ConfigError, match="read x-forwarded-for,"):
        site.get(X_Forwarded_For="192.0.2.1")


@pytest.mark.parametrize(
    "take", [dict, dict.copy, lambda environ: {**environ}, lambda environ: environ | {}]
)
def test_who_takes_the_whole_environment_has_read_everything(site: Site, take: Any) -> None:
    """What becomes of it is not seen."""
    site.page(lambda: str(len(take(request.environ))))
    with pytest.raises(ConfigError, match="all headers, body, remote_addr, remote_user"):
        site.get()


def test_what_threads_of_a_view_read_is_seen(site: Site) -> None:
    """They have a copy of its context."""

    def view() -> str:
        found: list[str] = []
        thread = threading.Thread(
            target=copy_current_request_context(lambda: found.append(reads_cookie()))
        )
        thread.start()
        thread.join(TIMEOUT)
        return found[0]

    site.page(view)
    with pytest.raises(ConfigError, match="read cookies"):
        site.get()


def test_one_odd_request_leaves_the_others_shared(site: Site) -> None:
    """What it read is outside its own key, and says nothing of theirs."""
    site.app.testing = False
    site.page(lambda: f"{site.runs}" + (reads_cookie() if request.args else ""))
    assert site.get().text == "1"
    assert [site.get("/page?theme=1").text for _ in range(2)] == ["2", "3"]
    assert site.get().text == "1"


def test_a_refusal_that_comes_of_the_session_is_not_shared(site: Site) -> None:
    """In production, where nobody reads what a test would say."""
    site.app.testing = False
    gate = threading.Event()

    def view() -> str:
        assert gate.wait(TIMEOUT)
        if session.get("theme") is None and request.args.get("q") != "1":
            abort(403)
        return "x"

    site.page(view)
    responses = site.together(5, gate)
    assert site.runs == 5
    assert {response.status_code for response in responses} == {403}


def test_the_request_is_as_it_was_when_the_view_is_over(site: Site) -> None:
    """What runs after the view sees what the client sent."""
    seen: list[Any] = []

    @site.app.after_request
    def look(response: Response) -> Response:
        seen.append(
            (
                request.method,
                request.headers.get("If-None-Match"),
                request.if_none_match.contains("x"),
                type(g._get_current_object()).__name__,  # type: ignore[attr-defined]
                type(session._get_current_object()).__name__,  # type: ignore[attr-defined]
                type(request._get_current_object()).__name__,  # type: ignore[attr-defined]
                type(request.environ),
                request.environ["set.by.the.view"],
            )
        )
        return response

    def view() -> str:
        request.environ["set.by.the.view"] = "7"
        return "x"

    site.page(view)
    site.get(method="HEAD", If_None_Match='"x"')
    kinds = ("_AppCtxGlobals", "SecureCookieSession", "Request", dict)
    assert seen == [("HEAD", '"x"', True, *kinds, "7")]


def test_a_session_that_the_view_changes_reaches_its_owner_only(site: Site) -> None:
    """And is saved."""

    def view() -> str:
        session["seen"] = True
        return "x"

    site.page(view, scope="user")
    for _ in range(2):
        assert "Set-Cookie" in site.get(X_User="7").headers
    assert site.runs == 2


@pytest.mark.parametrize("notes", [list, dict])
def test_each_response_has_its_own_of_what_its_class_keeps(notes: type, site: Site) -> None:
    """What one request does to its response is never seen on another's."""
    left: list[Any] = []

    class Noted(Response):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.notes = notes()

    def note(response: Response) -> Response:
        assert isinstance(response, Noted)
        left.append(len(response.notes))
        response.notes.append(1) if notes is list else response.notes.update(a=1)
        response.headers["X-Mine"] = str(len(left))
        response.call_on_close(lambda: left.append("closed"))
        return response

    site.app.response_class = Noted
    site.app.after_request(note)
    site.page(lambda: "page")
    for number in (1, 3, 5, 7):
        response = site.app.test_client().get("/page")
        assert response.data == b"page" and response.headers["X-Mine"] == str(number)
        response.close()
    assert left == [0, "closed"] * 4


def test_each_response_is_made_as_its_class_makes_it(site: Site) -> None:
    """A header that an app gives all of its responses is on those that are kept too."""
    made = itertools.count(1)

    class Guarded(Response):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.headers["X-Content-Type-Options"] = "nosniff"
            self.number = next(made)

    site.app.response_class = Guarded
    site.app.after_request(numbered_by_its_class)
    site.page(lambda: "page")
    responses = [site.get() for _ in range(4)]
    assert {each.headers["X-Content-Type-Options"] for each in responses} == {"nosniff"}
    assert len({each.headers["X-Number"] for each in responses}) == 4


def numbered_by_its_class(response: Any) -> Response:
    """Show a number that its class gave it."""
    response.headers["X-Number"] = str(response.number)
    return cast(Response, response)
