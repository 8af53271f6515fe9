"""The pytest plugin, in pytest runs of its own; the page about testing is run as it stands."""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

import pytest
from _pytest.pytester import Pytester, RunResult

from tests.documentation import blocks

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parent.parent.parent
PLUGIN = "flask_noc_realtime.fixtures"

CONFTEST, *TESTS, WITHOUT = blocks("testing", "python")

# The app that the page tests.
INCIDENTS = """
from itertools import count
from flask import Flask, request, session
from flask_noc_realtime import Identity, NocRealtime

def create_app(**config):
    app = Flask("incidents")
    app.secret_key = "test"
    app.config.update(config)
    realtime = NocRealtime(app)
    numbers = count(1)

    @realtime.identity_loader
    def who(request):
        user = session.get("user")
        if user is None and app.config["LOGIN_REQUIRED"]:
            return None
        return Identity(user or "guest", "operator", frozenset({"incidents.read"}))

    @app.post("/login")
    def login():
        session["user"] = request.json["user"]
        return "", 204

    @app.post("/incidents")
    def create():
        title = request.json["title"]
        if not title:
            return "", 422
        incident = {"id": next(numbers), "title": title}
        realtime.emit("incident.created", incident, permissions=["incidents.read"])
        return "", 201

    return app
"""


@pytest.fixture
def inner(pytester: Pytester, monkeypatch: pytest.MonkeyPatch) -> Pytester:
    """Return a directory for a run with our plugin alone, whether or not it is installed."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    pytester.makepyfile(incidents=INCIDENTS)
    return pytester


def run(inner: Pytester, *args: str) -> RunResult:
    """Run the tests of the directory."""
    return inner.runpytest_subprocess("-p", PLUGIN, "-p", "no:cacheprovider", *args)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs in other directories find the package."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.mark.parametrize("test", TESTS)
def test_the_examples_of_the_page_pass(inner: Pytester, test: str) -> None:
    """With the conftest of the page, and an app that knows nothing of the tests."""
    inner.makeconftest(CONFTEST)
    inner.makepyfile(test)
    run(inner).assert_outcomes(passed=test.count("def test_"))


def test_the_example_without_pytest_works(inner: Pytester) -> None:
    """Nothing of it imports pytest."""
    run_it = "import sys, incidents\ncheck(incidents.create_app(LOGIN_REQUIRED=False))\n"
    inner.makepyfile(check=WITHOUT + run_it + "assert 'pytest' not in sys.modules\n")
    done = subprocess.run([sys.executable, "check.py"], timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_message_of_the_page_is_the_one_that_is_given(inner: Pytester) -> None:
    """So that whoever searches for it finds the page."""
    inner.makeconftest(CONFTEST)
    inner.makepyfile(
        """
        def test_update(app, realtime_events):
            with app.app_context():
                realtime = app.extensions["noc_realtime"]
                realtime.process().emitter.emit(
                    "incident.updated", {"id": 7}, permissions=["incidents.read"]
                )
            realtime_events.one("incident.created")
        """
    )
    result = run(inner)
    result.assert_outcomes(failed=1)
    (text,) = blocks("testing", "text")
    shown = [line.removeprefix("E").strip() for line in result.stdout.lines]
    assert "AssertionError: " + text.splitlines()[0] in shown
    assert {line.strip() for line in text.strip().splitlines()[1:]} <= set(shown)
    assert "in one" not in result.stdout.str(), "the traceback ends in the test"


def test_each_test_begins_anew(inner: Pytester) -> None:
    """Nothing is left of the events, the outage or the streams of the one before."""
    inner.makeconftest(CONFTEST.replace("@pytest.fixture", '@pytest.fixture(scope="session")'))
    inner.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("time", range(5))
        def test_it(time, app, realtime_events, realtime_stream, realtime_broker):
            assert realtime_events.types == []
            stream = realtime_stream()
            app.test_client().post("/incidents", json={"title": "first"})
            assert next(stream).data["title"] == "first"
            assert app.extensions["noc_realtime"].process().portable.streams == 1
            realtime_broker.cut()
        """
    )
    run(inner).assert_outcomes(passed=5)


@pytest.mark.parametrize("fixture", ["realtime_stream", "realtime_broker"])
def test_a_fixture_that_finds_no_app_says_what_to_do(inner: Pytester, fixture: str) -> None:
    """Instead of a fixture of ours that is not found; an error in the app's own is its own."""
    inner.makepyfile(f"def test_it({fixture}): pass")
    result = run(inner)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"*{fixture} is for the app of a fixture named `app`*"])
    inner.makeconftest("import pytest\n@pytest.fixture\ndef app(database): pass")
    run(inner).stdout.fnmatch_lines(["*fixture 'database' not found*"])


def test_events_need_no_app_fixture(inner: Pytester) -> None:
    """Any app of the process is captured."""
    inner.makepyfile(
        """
        from flask import Flask
        from flask_noc_realtime import NocRealtime

        def test_it(realtime_events):
            for name in ("one", "two"):
                realtime = NocRealtime(Flask(name))
                realtime.emit("log.added", name)
            assert [event.data for event in realtime_events] == ["one", "two"]
        """
    )
    run(inner).assert_outcomes(passed=1)


def test_the_package_brings_the_plugin(pytester: Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its entry point, so that there is nothing to configure."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    entry = setup["options.entry_points"]["pytest11"].strip()
    assert entry.split(" = ")[1] == PLUGIN
    installed = pytester.mkdir("plugin-1.dist-info")
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1\n")
    (installed / "entry_points.txt").write_text(f"[pytest11]\n{entry}\n")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{pytester.path}")
    pytester.makepyfile("def test_it(realtime_events): assert not realtime_events")
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_the_package_does_not_import_pytest() -> None:
    """Which production does not have."""
    code = f"""
import sys, flask_noc_realtime
assert not {{"pytest", "flask_noc_realtime.testing", "{PLUGIN}"}} & set(sys.modules)
import flask_noc_realtime.testing
assert "pytest" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
