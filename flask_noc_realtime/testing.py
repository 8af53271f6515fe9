"""What the tests of an app need: its events, its streams, and a broker that can be cut off.

Nothing here needs pytest; the fixtures in `flask_noc_realtime.fixtures` wrap it.
"""

from __future__ import annotations

import difflib
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, overload

from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from . import emit
from .audience import TypeFilter
from .blueprint import EXTENSION
from .broker.memory import MemoryBroker
from .errors import ConfigError
from .event import split_record
from .process import PATIENCE, Process

TIMEOUT = 5.0

_SHOWN = 20
_SHOWN_LENGTH = 160


class Emitted(NamedTuple):
    """An event as it was emitted.

    :ivar data: as the browser gets it, so that a date is a str.
    :ivar permissions: of which a stream must hold any, or None for all.
    :ivar user_id: the only user who sees it, or None for all.
    :ivar timestamp: as the browser gets it.
    :ivar position: or None when it was queued.
    """

    type: str
    data: Any
    permissions: frozenset[str] | None
    user_id: str | None
    timestamp: str
    position: str | None
    emitter: emit.Publisher

    def __repr__(self) -> str:
        return _show(self)


class Events(Sequence[Emitted]):
    """What was emitted, oldest first. Thread-safe."""

    def __init__(self, events: Sequence[Emitted] = ()) -> None:
        self._events = list(events)
        self._more = threading.Condition()

    @overload
    def __getitem__(self, index: int) -> Emitted: ...

    @overload
    def __getitem__(self, index: slice) -> list[Emitted]: ...

    def __getitem__(self, index: int | slice) -> Emitted | list[Emitted]:
        return self._events[index]

    def __len__(self) -> int:
        return len(self._events)

    def __repr__(self) -> str:
        return f"<{len(self)} events:{_listed(self._events)}>" if self._events else "<no events>"

    @property
    def types(self) -> list[str]:
        """The types, in order."""
        return [event.type for event in self._events]

    def of(self, pattern: str) -> Events:
        """Return those whose type matches, for example ``"incident.*"``."""
        wanted = TypeFilter.parse(pattern)
        return Events([event for event in list(self._events) if wanted.matches(event.type)])

    def from_app(self, app: Flask) -> Events:
        """Return those that one app emitted, where there are several."""
        emitter = process_of(app).emitter
        return Events([event for event in list(self._events) if event.emitter is emitter])

    def one(self, pattern: str) -> Emitted:
        """Return the only one whose type matches.

        :raises AssertionError: when there is none, or more; it says what was emitted instead.
        """
        __tracebackhide__ = True
        found = self.of(pattern)
        if len(found) == 1:
            return found[0]
        if found:
            raise AssertionError(
                f"One {pattern!r} was expected, and {len(found)} were emitted:{_listed(found)}\n"
                f"If that is right, assert on realtime_events.of({pattern!r}); to forget what "
                "came before, call realtime_events.clear()."
            )
        raise AssertionError(f"One {pattern!r} was expected, and {_instead(self, pattern)}")

    def wait(self, pattern: str = "", count: int = 1, timeout: float = TIMEOUT) -> Events:
        """Return those whose type matches, once another thread has emitted *count* of them.

        :raises AssertionError: after *timeout* seconds; it says what was emitted instead.
        """
        __tracebackhide__ = True
        with self._more:
            if not self._more.wait_for(lambda: len(self.of(pattern)) >= count, timeout):
                raise AssertionError(
                    f"{count} of {pattern or '*'!r} were expected within {timeout} s, and "
                    f"{_instead(self, pattern)}"
                )
        return self.of(pattern)

    def clear(self) -> None:
        """Forget what there is."""
        self._events.clear()

    def add(self, emitter: emit.Publisher, record: bytes, position: str | None) -> None:
        """Take what an emitter tells its observers."""
        rule, envelope = split_record(record)
        seen = json.loads(envelope)
        with self._more:
            self._events.append(
                Emitted(
                    rule.type,
                    seen["data"],
                    rule.permissions,
                    rule.user_id,
                    seen["timestamp"],
                    position,
                    emitter,
                )
            )
            self._more.notify_all()


@contextmanager
def capture() -> Iterator[Events]:
    """Collect everything that the apps of this process emit meanwhile."""
    events = Events()
    emit.observers.append(events.add)
    try:
        yield events
    finally:
        emit.observers.remove(events.add)


class Received(NamedTuple):
    """An event as a browser has it from a stream.

    :ivar position: what the browser comes back with, or None for a control event without one.
    :ivar timestamp: or None for a control event.
    """

    type: str
    data: Any
    position: str | None
    timestamp: str | None = None

    def __repr__(self) -> str:
        return _show(self)


class StreamRefused(AssertionError):
    """The app did not give a stream.

    :ivar response: what it answered.
    """

    def __init__(self, response: TestResponse) -> None:
        problem = response.get_json(silent=True) or {}
        detail = problem.get("detail") or response.get_data(as_text=True)[:_SHOWN_LENGTH]
        hint = ""
        if response.status_code == 401:
            hint = (
                " Pass headers= that log in, or a test client that has; or set "
                "NOC_REALTIME_ALLOW_ANONYMOUS = True in the tests."
            )
        if response.status_code == 204:
            hint = "the rollout leaves this user to polling; see realtime.rollout()."
        super().__init__(f"The stream was refused with {response.status}: {detail}{hint}")
        self.response = response


class StreamClient(Iterator[Received]):
    """One stream of the app, read in the thread of the test.

    ``next(stream)`` is the next event, and iterating ends with the stream. Heartbeats are passed
    over. It is a context manager, and leaves the stream at the end.

    :ivar opened: the ``stream.open`` it began with.
    :ivar received: everything that came after, oldest first.
    :ivar position: where another stream would go on, with ``last_event_id=stream.position``.
    """

    def __init__(self, response: TestResponse, patience: _Patience, timeout: float) -> None:
        self.received: list[Received] = []
        self.position: str | None = None
        self._response = response
        self._chunks = response.iter_encoded()
        self._patience = patience
        self._timeout = timeout
        self._buffer = b""
        self._arrived: list[Received] = []
        self.opened = self.next()
        self.received.clear()

    def __enter__(self) -> StreamClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> Received:
        __tracebackhide__ = True
        event = self._take(time.monotonic() + self._timeout)
        if event is None:
            raise AssertionError(
                f"No event came within {self._timeout} s. The stream has received"
                f"{_listed(self.received) or ' nothing since it was opened.'}"
            )
        return event

    def next(self, pattern: str = "") -> Received:
        """Return the next event, whose type must match.

        :raises AssertionError: when another came, none in time, or the stream ended.
        """
        __tracebackhide__ = True
        wanted = TypeFilter.parse(pattern)
        try:
            event = next(self)
        except StopIteration:
            raise AssertionError(
                f"The stream has ended. It has received{_listed(self.received) or ' nothing.'}"
            ) from None
        if not wanted.matches(event.type):
            raise AssertionError(
                f"{pattern!r} was expected next, and {event.type!r} came. The stream has "
                f"received{_listed(self.received)}"
            )
        return event

    def read(self) -> list[Received]:
        """Return what there is, without waiting.

        What the app emitted before is all there, unless it was emitted through Redis.
        """
        events = []
        try:
            while (event := self._take(0.0)) is not None:
                events.append(event)
        except StopIteration:
            pass
        return events

    def close(self) -> None:
        """Leave, as a browser that closes the page."""
        self._response.close()

    def _take(self, deadline: float) -> Received | None:
        """Return the next event, or None when there was none by the *deadline*.

        :raises StopIteration: at the end of the stream.
        """
        self._patience.until = deadline
        while not self._arrived:
            chunk = next(self._chunks)
            if not chunk:
                return None
            frames, end, self._buffer = (self._buffer + chunk).rpartition(b"\n\n")
            self._arrived += map(_parse, (frames + end).split(b"\n\n")[:-1])
            for event in self._arrived:
                self.position = event.position or self.position
            self._arrived = [event for event in self._arrived if event.type != "heartbeat"]
        event = self._arrived.pop(0)
        self.received.append(event)
        return event


def stream_client(
    app: Flask | FlaskClient,
    types: str | Sequence[str] = (),
    headers: Mapping[str, str] | None = None,
    *,
    last_event_id: str | None = None,
    timeout: float = TIMEOUT,
) -> StreamClient:
    """Open a stream by the app's own route, and return it as a browser has it.

    Nothing sleeps, and no thread or server is started: an event that was emitted is there.

    :param app: the app, or a test client of it that has logged in.
    :param types: such as ``"incident.*"``.
    :param last_event_id: where to go on.
    :param timeout: seconds that an event may take to come.
    :raises StreamRefused: when the app does not give a stream.
    """
    client = app.test_client() if isinstance(app, Flask) else app
    state = client.application.extensions.get(EXTENSION)
    if state is None:
        raise _not_initialised(client.application)
    patience = _Patience(time.monotonic() + timeout)
    query = {"types": types if isinstance(types, str) else ",".join(types)}
    if last_event_id is not None:
        query["last_event_id"] = last_event_id
    response = client.get(
        f"{state.config.prefix}/stream",
        query_string={name: value for name, value in query.items() if value},
        headers={"Accept": "text/event-stream", **(headers or {})},
        environ_overrides={PATIENCE: patience},
        buffered=False,
    )
    if response.mimetype != "text/event-stream":
        with response:
            raise StreamRefused(response)
    return StreamClient(response, patience, timeout)


class Switch:
    """Cuts the broker of an app off, and heals it."""

    def __init__(self, app: Flask) -> None:
        self._process = process_of(app)
        broker = self._process.broker
        if not isinstance(broker, MemoryBroker):
            raise ConfigError(
                f"The broker of {app.name!r} is a real Redis, which a test stops by stopping it. "
                "Set NOC_REALTIME_URL = 'memory://' in the tests to cut it off."
            )
        self._broker = broker

    def cut(self) -> None:
        """Let the app's broker answer nothing from now on, as a Redis that is away."""
        self._broker.cut()

    def heal(self, *, lost: bool = False, timeout: float = TIMEOUT) -> None:
        """Bring the broker back, and return when what was queued meanwhile is published.

        :param lost: let it come back without its history; every stream is reset.
        """
        self._broker.heal(lost=lost)
        self._process.generations.retry()
        if not self._process.emitter.flush(timeout):
            raise AssertionError(
                f"{self._process.emitter.queued} events are still queued {timeout} s after the "
                "broker is back."
            )


@contextmanager
def cut(app: Flask, *, lost: bool = False) -> Iterator[Switch]:
    """Cut the app's broker off meanwhile.

    :param lost: let it come back without its history.
    """
    switch = Switch(app)
    switch.cut()
    try:
        yield switch
    finally:
        switch.heal(lost=lost)


def process_of(app: Flask) -> Process:
    """Return what the extension runs for *app* in this process."""
    state = app.extensions.get(EXTENSION)
    if state is None:
        raise _not_initialised(app)
    process: Process = state.process()
    return process


class _Patience:
    """Tells a stream how long its reader waits."""

    def __init__(self, until: float) -> None:
        self.until = until

    def __call__(self) -> float:
        return self.until


def _parse(frame: bytes) -> Received:
    """Read one event (WHATWG HTML, section 9.2.6)."""
    fields: dict[str, str] = {}
    for line in frame.decode().split("\n"):
        name, _, value = line.partition(": ")
        fields[name] = f"{fields[name]}\n{value}" if name == "data" and name in fields else value
    body = json.loads(fields["data"])
    type, position = fields["event"], fields.get("id")
    if isinstance(body, dict) and body.keys() == {"type", "data", "timestamp"}:
        return Received(type, body["data"], position, body["timestamp"])
    return Received(type, body, position)


def _show(event: Emitted | Received) -> str:
    text = f"{event.type} {json.dumps(event.data, ensure_ascii=False)}"
    if isinstance(event, Emitted):
        if event.permissions is not None:
            text += f" permissions={sorted(event.permissions)}"
        if event.user_id is not None:
            text += f" user_id={event.user_id!r}"
    return text if len(text) <= _SHOWN_LENGTH else f"{text[:_SHOWN_LENGTH]}..."


def _listed(events: Sequence[Emitted] | Sequence[Received]) -> str:
    lines = [f"\n  {event!r}" for event in events[-_SHOWN:]]
    if len(events) > _SHOWN:
        lines.insert(0, f"\n  ({len(events) - _SHOWN} before)")
    return "".join(lines)


def _instead(events: Events, pattern: str) -> str:
    if not events:
        return (
            "nothing was emitted. Does the code come to realtime.emit()? What is bound to a "
            "transaction is emitted when it commits."
        )
    near = difflib.get_close_matches(pattern, set(events.types), 1)
    guess = f"\nDid you mean {near[0]!r}?" if near and near[0] != pattern else ""
    return f"this was emitted:{_listed(events)}{guess}"


def _not_initialised(app: Flask) -> ConfigError:
    return ConfigError(
        f"NocRealtime is not initialised for {app.name!r}; call realtime.init_app(app)."
    )
