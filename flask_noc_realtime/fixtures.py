"""The pytest plugin: fixtures that wrap `flask_noc_realtime.testing`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from flask import Flask

    from .testing import Events, StreamClient, Switch

NO_APP = (
    "{name} is for the app of a fixture named `app`, and there is none. Write one that returns "
    "your Flask app, or use flask_noc_realtime.testing.{function} with the app you mean."
)


@pytest.fixture
def realtime_events() -> Iterator[Events]:
    """Collect every event that is emitted during the test."""
    from .testing import capture

    with capture() as events:
        yield events


@pytest.fixture
def realtime_stream(request: pytest.FixtureRequest) -> Iterator[Callable[..., StreamClient]]:
    """Return a function that opens streams of `app`; they are closed after the test."""
    from .testing import stream_client

    app = _app(request, "realtime_stream", "stream_client")
    streams: list[StreamClient] = []

    def open(*args: Any, **options: Any) -> StreamClient:
        streams.append(stream_client(app, *args, **options))
        return streams[-1]

    yield open
    for stream in streams:
        stream.close()


@pytest.fixture
def realtime_broker(request: pytest.FixtureRequest) -> Iterator[Switch]:
    """Return what cuts the broker of `app` off, and heals it; at the end it is healed."""
    from .testing import Switch

    switch = Switch(_app(request, "realtime_broker", "cut"))
    yield switch
    switch.heal()


def _app(request: pytest.FixtureRequest, name: str, function: str) -> Flask:
    try:
        app: Flask = request.getfixturevalue("app")
    except pytest.FixtureLookupError as error:
        if error.argname != "app":
            raise
        pytest.fail(NO_APP.format(name=name, function=function), pytrace=False)
    return app
