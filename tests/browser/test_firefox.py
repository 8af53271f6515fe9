"""The core in Firefox: live, and live again, in one tab and in several."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser.firefox import Firefox
from tests.browser.network import NAME, TIMEOUT, Network, Tab
from tests.conftest import require
from tests.faults import FaultProxy
from tests.processes import wait_until
from tests.server.client import Site

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def firefox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firefox]:
    """Return a running Firefox."""
    with Firefox(require("firefox-esr"), tmp_path_factory.mktemp("firefox")) as firefox:
        yield firefox


@pytest.fixture
def proxy(site: Site) -> Iterator[FaultProxy]:
    """Return the way to the server."""
    assert isinstance(site.address, tuple)
    with FaultProxy(site.address) as proxy:
        yield proxy


def test_firefox_is_live_again_whatever_breaks(
    firefox: Firefox, site: Site, proxy: FaultProxy
) -> None:
    """And shows what it is meanwhile."""
    network = Network(firefox.open(proxy.url + "/snapshot"), site, proxy)
    network.connect()
    network.wait_for_state("live")
    network.emit()
    network.wait_for_all()
    network.proxy.cut()
    network.emit()
    network.wait_for_all()
    network.wait_for_state("live")
    network.proxy.behave("freeze")
    network.wait_for_state("reconnecting")
    network.emit()
    network.proxy.behave()
    network.wait_for_state("live")
    network.wait_for_all()
    assert network.lost == []
    network.page.close()


@pytest.mark.parametrize(
    ("host", "before", "way"),
    [
        (NAME, "", "worker"),
        ("127.0.0.1", "delete window.SharedWorker", "locks"),
    ],
)
def test_firefox_tabs_share_a_stream(
    firefox: Firefox, site: Site, proxy: FaultProxy, host: str, before: str, way: str
) -> None:
    """And miss nothing when the first is closed."""
    url = f"http://{host}:{proxy.address[1]}/snapshot"
    tabs = [Tab(firefox.open(url)) for _ in range(3)]
    network = Network(tabs[0].page, site, proxy)
    wait_until(lambda: network.streams == 0, TIMEOUT, "the streams of the last test are gone")
    for tab in tabs:
        tab.page.evaluate(f"() => {{ {before} }}")
        tab.connect("auto")
        tab.wait_for_state("live")
        assert tab.snapshot["way"] == way
    assert network.streams == 1
    network.emit()
    tabs.pop(0).page.close()
    network.emit()
    for tab in tabs:
        tab.wait_for(list(range(10)))
        assert tab.lost == []
    wait_until(lambda: network.streams == 1, TIMEOUT, "one stream is left")
    for tab in tabs:
        tab.page.close()
