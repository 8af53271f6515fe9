"""`@emits` and `emitting`: events of functions and blocks that know nothing else of them."""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask

from flask_noc_realtime import (
    ConfigError,
    EventError,
    NocRealtime,
    UnknownTypeError,
    emits,
    emitting,
)
from tests.emitted import emitted, told

REFUSED = {"permissions": ["incidents.read"], "user_id": "7"}


def make_app(**config: Any) -> Flask:
    """Return an app with the extension."""
    app = Flask("emits")
    app.config.update({f"NOC_REALTIME_{key}": value for key, value in config.items()})
    NocRealtime(app)
    return app


@pytest.fixture
def app() -> Iterator[Flask]:
    """Return an app whose context is the current one."""
    app = make_app()
    with app.app_context():
        yield app
    app.extensions["noc_realtime"].process().close()


def test_the_result_of_a_function_is_its_event(app: Flask) -> None:
    """Unless told otherwise; and the function remains what it was."""

    @emits("incident.created")
    def create(title: str, *, severity: str = "minor") -> dict[str, str]:
        """Open an incident."""
        return {"title": title, "severity": severity}

    assert create("down") == {"title": "down", "severity": "minor"}
    assert told(app) == [("incident.created", {"title": "down", "severity": "minor"})]
    assert (create.__name__, create.__doc__) == ("create", "Open an incident.")
    assert list(inspect.signature(create).parameters) == ["title", "severity"]


@pytest.mark.parametrize(
    "data",
    [
        {"id": "incident.id", "status": "status", "by": "kind", "site": "result.site"},
        lambda incident, status, result, kind: {
            "id": incident.id,
            "status": status,
            "by": kind,
            "site": result["site"],
        },
        lambda result, **others: {
            "id": others["incident"].id,
            "status": others["status"],
            "by": others["kind"],
            "site": result["site"],
        },
    ],
    ids=["paths", "function", "function of all"],
)
@pytest.mark.parametrize(
    "call",
    [
        lambda change, incident: change(incident, "closed", "hand"),
        lambda change, incident: change(status="closed", incident=incident, kind="hand"),
        lambda change, incident: change(incident, kind="hand"),
    ],
    ids=["by position", "by name", "by default"],
)
def test_an_event_is_made_of_arguments_and_result(
    app: Flask, data: Any, call: Callable[..., Any]
) -> None:
    """However they were passed: attributes of objects, keys of mappings."""

    @emits("incident.updated", data=data)
    def change(incident: Any, status: str = "closed", kind: str = "rule") -> dict[str, str]:
        return {"site": "north", "items": "never a method"}

    call(change, SimpleNamespace(id=7))
    wanted = {"id": 7, "status": "closed", "by": "hand", "site": "north"}
    assert told(app) == [("incident.updated", wanted)]


def test_a_path_may_be_all_of_the_data(app: Flask) -> None:
    """A key of a mapping comes before its method of that name."""

    @emits("log.added", data="result.items")
    def work() -> dict[str, list[int]]:
        return {"items": [1, 2]}

    work()
    assert told(app) == [("log.added", [1, 2])]


def test_collected_arguments_have_the_name_of_their_parameter(app: Flask) -> None:
    """As in the function itself."""

    @emits("log.added", data={"first": "first", "rest": "rest", "options": "options"})
    def work(first: int, *rest: int, key: int = 0, **options: int) -> None: ...

    work(1, 2, 3, key=4, more=5)
    assert told(app) == [("log.added", {"first": 1, "rest": [2, 3], "options": {"more": 5}})]


def test_the_audience_is_a_value_or_a_function(app: Flask) -> None:
    """Of the same names."""

    @emits("log.added", data="site", permissions=["logs.read"], user_id=lambda result: str(result))
    def work(site: str) -> int:
        return 7

    @emits("log.added", data="site", permissions=lambda site: [f"logs.{site}"])
    def other(site: str) -> None: ...

    work("north")
    other("south")
    rules = [(event.rule.permissions, event.rule.user_id) for event in emitted(app)]
    assert rules == [({"logs.read"}, "7"), ({"logs.south"}, None)]


def test_a_default_of_a_function_is_left_alone(app: Flask) -> None:
    """It is how a lambda keeps a value of the loop it is made in."""

    @emits("log.added", data=lambda result, kind="loop": [result, kind])
    def work(kind: str) -> int:
        return 1

    work("argument")
    assert told(app) == [("log.added", [1, "loop"])]


def test_methods_of_every_kind_emit(app: Flask) -> None:
    """Wherever the decorator stands."""

    class Service:
        site = "north"

        @emits("log.added", data={"site": "self.site", "text": "text"})
        def method(self, text: str) -> int:
            return 1

        @classmethod
        @emits("log.added", data={"site": "cls.site", "text": "text"})
        def inside(cls, text: str) -> int:
            return 2

        @emits("log.added", data={"site": "cls.site", "text": "text"})
        @classmethod
        def outside(cls, text: str) -> int:
            return 3

        @emits("log.added", data={"text": "text"})
        @staticmethod
        def static(text: str) -> int:
            return 4

    assert Service().method("a") == 1
    assert Service.inside("b") == Service().inside("b") == 2
    assert Service.outside("c") == Service().outside("c") == 3
    assert Service.static("d") == Service().static("d") == 4
    assert [data["text"] for _, data in told(app)] == list("abbccdd")
    assert [data.get("site") for _, data in told(app)] == ["north"] * 5 + [None] * 2


def test_what_the_function_raises_passes_through_and_nothing_is_emitted(app: Flask) -> None:
    """The very same exception; its traceback gains no more than the decorator's frame."""
    error = LookupError("no incident 7")

    @emits("incident.created")
    def create() -> None:
        raise error

    with pytest.raises(LookupError) as caught:
        create()
    assert caught.value is error
    assert error.__cause__ is error.__context__ is None
    assert [entry.name for entry in caught.traceback][1:] == ["call", "create"]
    assert told(app) == []


def generator() -> Iterator[int]:
    """Return before anything is done."""
    yield 1


async def coroutine() -> None:
    """Return before anything is done."""


async def both() -> AsyncIterator[int]:
    """Return before anything is done."""
    yield 1


@pytest.mark.parametrize("function", [generator, coroutine, both])
def test_functions_that_return_before_they_work_are_refused(function: Any) -> None:
    """Their event would tell what has not happened yet."""
    with pytest.raises(ConfigError, match=r"returns before it has done anything.*with emitting"):
        emits("log.added")(function)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": {"id": "incidnet.id"}}, "'incidnet', which is none of: incident, result"),
        ({"data": lambda row: row}, "'row', which is none of"),
        ({"user_id": lambda user: user}, "'user', which is none of"),
        ({"data": 7}, "pass a path such as"),
        ({"data": {"id": 7}}, "7 is no path"),
        ({"data": "result."}, "'result.' is no path"),
        ({"data": lambda result, /: result}, "does not name what it takes"),
        ({"data": vars}, "does not name what it takes"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_at_once(options: Any, message: str) -> None:
    """When the module is imported, not when the first incident happens."""
    with pytest.raises(ConfigError, match=message):

        @emits("incident.created", **options)
        def create(incident: Any) -> None: ...


@pytest.mark.parametrize("make", [emits, emitting])
def test_a_malformed_type_is_refused_at_once(make: Any) -> None:
    """As by `register_type`."""
    with pytest.raises(EventError, match="is not an event type"):
        make("Incident created")


FAILURES = [
    ("incident.created", "result", {}, EventError),
    ("link.flapped", "name", {}, UnknownTypeError),
    ("log.added", "name.missing", {}, AttributeError),
    ("log.added", lambda name: 1 / 0, {}, ZeroDivisionError),
    ("log.added", "name", {"permissions": []}, EventError),
]


@pytest.mark.parametrize(("type", "data", "options", "error"), FAILURES)
def test_what_fails_about_the_event_is_logged_and_the_result_returned(
    app: Flask, caplog: pytest.LogCaptureFixture, type: str, data: Any, options: Any, error: Any
) -> None:
    """An event never breaks the service it tells of."""
    result = object()

    @emits(type, data=data, **options)
    def create(name: str) -> object:
        return result

    assert create("a") is result
    assert told(app) == []
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("flask_noc_realtime", logging.ERROR)
    assert record.getMessage() == f"No {type!r} was emitted."
    assert record.exc_info is not None
    assert record.exc_info[0] is error


@pytest.mark.parametrize(("type", "data", "options", "error"), FAILURES)
def test_what_fails_about_the_event_is_raised_where_the_app_wants_it(
    type: str, data: Any, options: Any, error: Any
) -> None:
    """With NOC_REALTIME_EMIT_ERRORS = "raise"."""

    @emits(type, data=data, **options)
    def create(name: str) -> object:
        return object()

    with make_app(EMIT_ERRORS="raise").app_context(), pytest.raises(error):
        create("a")


@pytest.mark.parametrize("app_context", [True, False])
def test_without_an_app_that_emits_the_function_works_and_the_log_says_what_to_do(
    app_context: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """In a script or in a test of the service alone."""

    @emits("log.added")
    def work() -> int:
        with emitting("log.added"):
            return 7

    if app_context:
        with Flask("plain").app_context():
            assert work() == 7
        advice = "NocRealtime is not initialised for 'plain'; call realtime.init_app(app)."
    else:
        assert work() == 7
        advice = "Wrap the call in `with app.app_context():`."
    assert [record.getMessage().endswith(advice) for record in caplog.records] == [True, True]


def test_a_block_emits_when_it_has_succeeded(app: Flask) -> None:
    """With what was added inside."""
    with emitting("incident.created", {"title": "down"}, **REFUSED) as event:
        event.data["id"] = 7
        assert told(app) == []
    with emitting("log.added") as event:
        event.data["text"] = "x"
        event.permissions = ["logs.read"]
    first, second = emitted(app)
    assert first[:2] == ("incident.created", {"title": "down", "id": 7})
    assert (first.rule.permissions, first.rule.user_id) == ({"incidents.read"}, "7")
    assert second[:2] == ("log.added", {"text": "x"})
    assert second.rule.permissions == {"logs.read"}


def test_a_block_that_fails_emits_nothing(app: Flask) -> None:
    """And its exception passes through."""
    error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt) as caught, emitting("log.added"):
        raise error
    assert caught.value is error
    assert told(app) == []


def test_a_block_survives_what_fails_about_its_event(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    """Or raises it, where the app wants that."""
    with emitting("log.added", {"a": object()}):
        pass
    assert "No 'log.added' was emitted." in caplog.text
    with make_app(EMIT_ERRORS="raise").app_context():
        with (
            pytest.raises(EventError, match="a is a object"),
            emitting("log.added", {"a": object()}),
        ):
            pass


def test_nothing_is_emitted_while_the_extension_is_muted(app: Flask) -> None:
    """By whomever; blocks may lie within each other."""
    realtime = app.extensions["noc_realtime"]._extension

    @emits("log.added")
    def work(text: str) -> str:
        with emitting("log.added", [text]):
            return text

    with realtime.muted():
        with realtime.muted():
            work("seed")
        assert work("seed") == "seed"
        assert realtime.emit("log.added", "seed") is None
    work("then")
    assert [data for _, data in told(app)] == [["then"], "then"]
