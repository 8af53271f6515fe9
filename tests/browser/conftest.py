"""Debian's Chromium, and a page of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests import npm
from tests.browser.chromium import launch, new_page
from tests.browser.network import ENV, TIMEOUT, Network
from tests.browser.react import ReactPage, vendor
from tests.conftest import missing, require
from tests.faults import FaultProxy
from tests.gunicorn_server import GunicornServer
from tests.processes import wait_until
from tests.server.client import Site


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """Return Debian's Chromium."""
    chromium = require("chromium")
    require("playwright")
    with launch(chromium) as browser:
        yield browser


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """Return a page without a past that collects what went wrong in `problems`."""
    with new_page(browser) as page:
        yield page


@pytest.fixture
def others(browser: Any) -> Iterator[Callable[[], Any]]:
    """Return a function that opens such pages in browsers of other people."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(new_page(browser))


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GunicornServer]:
    """Return a server of `tests.server.pages`."""
    server = GunicornServer("tests.server.pages:create()", tmp_path_factory.mktemp("pages"))
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Return a running app that emits on request; each test sees only what it emits itself."""
    server = GunicornServer(
        "tests.server.apps:create()", tmp_path_factory.mktemp("gunicorn"), env=ENV
    )
    try:
        server.start()
        yield Site(server.address)
    finally:
        server.close()


@pytest.fixture(scope="session")
def packages() -> Path:
    """Return the folder with the packages from npm."""
    program = require("npm")
    try:
        return npm.install(program)
    except RuntimeError as error:
        missing(f"packages of {npm.LIST}: {error}")


@pytest.fixture(scope="module", params=["18", "19"])
def module_react_page(
    request: pytest.FixtureRequest, browser: Any, pages: GunicornServer, packages: Path
) -> Iterator[ReactPage]:
    """Return a page with each React there is, which the tests of a module share."""
    with new_page(browser) as page:
        yield ReactPage(page, pages, vendor(packages, request.param))


@pytest.fixture
def react(module_react_page: ReactPage) -> Iterator[ReactPage]:
    """Return a page with React, on which nothing may go wrong or be left."""
    module_react_page.begin()
    yield module_react_page
    module_react_page.end()


@pytest.fixture
def network(page: Any, site: Site) -> Iterator[Network]:
    """Return a page over a proxy that passes everything on, so far."""
    assert isinstance(site.address, tuple)
    with FaultProxy(site.address) as proxy:
        page.goto(proxy.url + "/snapshot")
        network = Network(page, site, proxy)
        wait_until(lambda: network.streams == 0, TIMEOUT, "the streams of the last test are gone")
        yield network
