"""The position of a page: the header and the template's function, and streams opened from it."""

from __future__ import annotations

import re
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import GunicornFactory, RedisFactory
from tests.gunicorn_server import GunicornServer
from tests.sse_client import SSEClient

APP = "tests.server.apps:create()"


@pytest.fixture(params=["memory", "redis"])
def server(
    request: pytest.FixtureRequest, gunicorn: GunicornFactory, redis_server: RedisFactory
) -> Iterator[GunicornServer]:
    """Serve from memory with one worker, and from Redis with two."""
    if request.param == "memory":
        yield gunicorn(APP)
    else:
        yield gunicorn(APP, workers=2, env={"NOC_REALTIME_URL": redis_server().url})


def fetch(server: GunicornServer, path: str) -> tuple[Any, str]:
    """Return the headers and the body of a response."""
    with urllib.request.urlopen(server.url + path, timeout=10) as response:
        return response.headers, response.read().decode()


def test_what_a_view_emits_is_replayed_to_the_stream_of_its_page(server: GunicornServer) -> None:
    """The position is taken before the view runs: afterwards, an event could fall between."""
    headers, page = fetch(server, "/report")
    position = headers["X-Noc-Position"]
    shown = re.search('data-position="([^"]+)"', page)
    assert shown is not None and shown[1] == position
    for where in ({"last_event_id": position}, {"path": stream_path(position)}):
        with SSEClient(server.address, **where) as client:
            opened, event = client.events_until(lambda e: e.type == "incident.created")
            assert (opened.type, opened.id) == ("stream.open", position)
            assert event.json["data"] == {"inside": True}


def stream_path(position: str) -> str:
    """Return the path a page's EventSource opens."""
    return f"/api/v1/events/stream?last_event_id={position}"


def test_a_snapshot_and_its_stream_have_no_hole_amid_emits(gunicorn: GunicornFactory) -> None:
    """Every incident is in the snapshot or on the stream, whenever the page was fetched."""
    server = gunicorn(APP)
    count, writers = 150, 4

    def write(first: int) -> None:
        for n in range(first, first + count):
            fetch(server, f"/incident/{n}")

    threads = [threading.Thread(target=write, args=(i * count,)) for i in range(writers)]
    for thread in threads:
        thread.start()
    pages: list[tuple[SSEClient, set[int]]] = []
    try:
        while any(thread.is_alive() for thread in threads) and len(pages) < 60:
            headers, body = fetch(server, "/snapshot.json")
            seen = {int(n) for n in re.findall("[0-9]+", body)}
            pages.append((SSEClient(server.address, stream_path(headers["X-Noc-Position"])), seen))
        for thread in threads:
            thread.join(30)
        fetch(server, "/incident/999999")
        amid = 0
        for client, seen in pages:
            streamed = [
                event.json["data"]["n"]
                for event in client.events_until(lambda e: "999999" in e.data, 10)
                if event.type == "incident.created"
            ]
            assert len(streamed) == len(set(streamed))
            assert seen | set(streamed) == {*range(count * writers), 999999}
            amid += 0 < len(seen) < count * writers
        assert amid > 5
    finally:
        for client, _ in pages:
            client.close()


def test_only_pages_of_the_app_carry_a_position(gunicorn: GunicornFactory) -> None:
    """Static files may be cached, and a stream says its position itself."""
    server = gunicorn(APP)
    assert fetch(server, "/pid")[0]["X-Noc-Position"]
    for path in ("/static/apps.py", "/part/static/apps.py"):
        assert fetch(server, path)[0]["X-Noc-Position"] is None
    with SSEClient(server.address) as client:
        assert client.status == 200
        assert "x-noc-position" not in client.headers
    with SSEClient(server.address, "/api/v1/events/stream?types=%20%20..") as client:
        assert client.status == 400
        assert "x-noc-position" not in client.headers


def test_an_error_page_carries_a_position(gunicorn: GunicornFactory) -> None:
    """It is a page like any other, and its scripts may open a stream."""
    server = gunicorn(APP)
    with SSEClient(server.address, "/no-such-page") as client:
        assert client.status == 404
        assert client.headers["x-noc-position"]
