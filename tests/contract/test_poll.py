"""Polls that wait for an event: until when, and how many."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from flask import Flask, Request

from flask_noc_realtime import Identity, NocRealtime
from flask_noc_realtime import hub as hub_module
from flask_noc_realtime.transport import Caller
from tests.processes import free_port, wait_until

POLL = "/api/v1/events/poll"
TIMEOUT = 20.0
PROMPT = 5.0


class Site:
    """An app that believes who one says one is, and threads that poll it."""

    def __init__(self, pool: ThreadPoolExecutor, **config: Any) -> None:
        self.app = Flask(__name__)
        self.app.config.update({f"NOC_REALTIME_{key}": value for key, value in config.items()})
        self.realtime = NocRealtime(self.app)
        self.realtime.identity_loader(self.load)
        self.process = self.app.extensions["noc_realtime"].process()
        self._pool = pool

    def load(self, request: Request) -> Identity:
        """Return whom the headers name."""
        seconds = float(request.headers.get("X-Expires-In", "3600"))
        expires_at = datetime.now(timezone.utc) + timedelta(seconds=seconds)
        return Identity(request.headers.get("X-User"), expires_at=expires_at)

    def ask(self, user: str | None = "7", wait: float = TIMEOUT, **headers: str) -> Any:
        """Return the answer to a poll from now on, and how long it took."""
        sent = headers if user is None else {"X-User": user, **headers}
        query = f"?after={self.process.position()}&wait={wait}"
        begun = time.monotonic()
        answer = self.app.test_client().get(POLL + query, headers=sent)
        assert answer.status_code == 200, answer.text
        return answer.json, time.monotonic() - begun

    def wait(self, user: str | None = "7", **headers: str) -> Future[Any]:
        """Have a thread poll; return once it waits."""
        before = self.waiting
        asked = self._pool.submit(self.ask, user, **headers)
        wait_until(lambda: self.waiting > before, TIMEOUT, "the poll waits")
        return asked

    @property
    def waiting(self) -> int:
        """How many polls wait."""
        return self.process.portable.waiting


@pytest.fixture
def make() -> Iterator[Callable[..., Site]]:
    """Return a factory of sites, whose polls end with the test."""
    sites: list[Site] = []
    with ThreadPoolExecutor(20) as pool:

        def site(**config: Any) -> Site:
            sites.append(Site(pool, **config))
            return sites[-1]

        try:
            yield site
        finally:
            for each in sites:
                each.process.close()


def answered(asked: Future[Any]) -> Any:
    """Return the answer to a poll, which must come long before it would end by itself."""
    answer, seconds = asked.result(TIMEOUT)
    assert seconds < PROMPT
    return answer


@pytest.mark.parametrize("how", ["disconnect", "refresh"])
def test_a_poll_ends_when_its_user_is_to_leave(make: Callable[..., Site], how: str) -> None:
    """And comes again at once, with the rights there are then; others wait on."""
    site = make()
    position = site.process.position()
    asked, other = site.wait("7"), site.wait("8")
    getattr(site.realtime, how)("7")
    site.realtime.emit("incident.created", 1, user_id="7")
    answer = answered(asked)
    assert (answer["events"], answer["position"]) == ([], position)
    assert (answer["reset"], answer["retry_after"]) == (None, 0)
    assert not other.done()


def test_a_poll_ends_with_its_identity(make: Callable[..., Site]) -> None:
    """Whose time is over is told nothing more."""
    site = make()
    assert answered(site.wait(**{"X-Expires-In": "0.5"}))["events"] == []


def test_a_poll_ends_with_its_worker(make: Callable[..., Site]) -> None:
    """Which would otherwise wait for it."""
    site = make()
    asked = site.wait()
    site.process.close()
    assert answered(asked)["retry_after"] == 5.0


def test_a_poll_is_told_that_the_broker_is_away(
    make: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a stream is: an answer without events would look as if nothing happened."""
    monkeypatch.setattr(hub_module, "_BLINK", 0.0)
    site = make()
    assert "broker" not in site.ask(wait=0)[0]
    site.process.broker.cut()
    wait_until(lambda: site.process.hub.away, TIMEOUT, "it is away")
    assert site.ask(wait=0)[0]["broker"] == "away"


def test_a_poll_of_a_server_without_its_history_is_to_come_again() -> None:
    """Otherwise it would be told of a gap now, and of another when the history has come."""
    app = Flask(__name__)
    app.config.update(
        NOC_REALTIME_URL=f"redis://127.0.0.1:{free_port()}/0", NOC_REALTIME_ALLOW_ANONYMOUS=True
    )
    NocRealtime(app)
    process = app.extensions["noc_realtime"].process()
    try:
        refused = app.test_client().get(POLL + "?after=1-1")
        assert (refused.status_code, "Retry-After" in refused.headers) == (503, True)
        assert app.test_client().get(POLL).status_code == 200
    finally:
        process.close()


def test_a_poll_too_many_of_a_user_is_answered_at_once(make: Callable[..., Site]) -> None:
    """Each holds a thread or a greenlet that others need; it comes again as other polls do."""
    site = make(MAX_STREAMS_PER_USER=2)
    waiting = [site.wait("7"), site.wait("7")]
    answer, seconds = site.ask("7")
    assert (answer["events"], answer["retry_after"]) == ([], 5.0)
    assert seconds < PROMPT
    others = [site.wait("8"), site.wait(None), site.wait(None), site.wait(None)]
    site.realtime.emit("incident.created", 1)
    for asked in (*waiting, *others):
        assert [event["data"] for event in answered(asked)["events"]] == [1]
    assert not site.wait("7").done()


def test_a_poll_too_many_of_a_worker_is_answered_at_once(make: Callable[..., Site]) -> None:
    """Whoever asks."""
    site = make(MAX_LONG_POLLS=3)
    waiting = [site.wait("7"), site.wait("8"), site.wait(None)]
    for user in ("7", "9", None):
        _, seconds = site.ask(user)
        assert seconds < PROMPT
    site.realtime.emit("incident.created", 1, user_id="8")
    answered(waiting[1])
    assert not site.wait("9").done()


def test_without_limits_any_number_of_polls_waits(make: Callable[..., Site]) -> None:
    """As an operator may decide who knows the server."""
    site = make(MAX_LONG_POLLS=0, MAX_STREAMS_PER_USER=0)
    waiting = [site.wait("7") for _ in range(10)]
    assert not any(asked.done() for asked in waiting)


@pytest.mark.parametrize("server", ["gunicorn.socket", "werkzeug.socket"])
def test_a_client_waits_until_it_has_closed(server: str) -> None:
    """Whatever it has sent meanwhile; where the server shows no socket, it is taken to wait."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        caller = Caller({server: ours})
        theirs.sendall(b"GET / HTTP/1.1")
        assert caller.waits()
        theirs.close()
        assert not caller.waits()
        assert ours.recv(100) == b"GET / HTTP/1.1"
    assert Caller({}).waits()
