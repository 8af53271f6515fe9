"""How a worker says it is, and how the broker is asked."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest

from flask_noc_realtime.errors import BrokerUnavailable
from flask_noc_realtime.health import Health, Probe
from tests.processes import wait_until

TIMEOUT = 10.0
WELL = Health(
    worker="a1b2",
    draining=False,
    loaded=True,
    away=0.0,
    grace=30.0,
    answers=None,
    lag=0.0,
    streams=3,
    position="5-0",
)


@pytest.mark.parametrize(
    ("changes", "status", "broker"),
    [
        ({}, "ok", {"state": "up", "away": 0.0}),
        ({"away": 30.0}, "ok", {"state": "away", "away": 30.0}),
        ({"away": 30.04}, "degraded", {"state": "away", "away": 30.0}),
        ({"away": 0.5, "grace": 0.0}, "degraded", {"state": "away", "away": 0.5}),
        ({"loaded": False, "away": 0.5}, "degraded", {"state": "starting", "away": 0.5}),
        ({"answers": True}, "ok", {"state": "up", "away": 0.0, "answers": True}),
        ({"answers": False}, "degraded", {"state": "up", "away": 0.0, "answers": False}),
        ({"draining": True}, "draining", {"state": "up", "away": 0.0}),
        ({"draining": True, "loaded": False}, "draining", {"state": "starting", "away": 0.0}),
    ],
)
def test_a_worker_is_what_is_worst_about_it(
    changes: dict[str, Any], status: str, broker: dict[str, Any]
) -> None:
    """To leave is worse than to be without the broker; a short outage is nothing."""
    assert WELL._replace(**changes).body() == {
        "status": status,
        "broker": broker,
        "lag": 0.0,
        "streams": 3,
        "position": "5-0",
        "worker": "a1b2",
    }


def test_a_lag_is_told_in_milliseconds_where_it_is_known() -> None:
    """Where the server's threads send, nobody knows it."""
    assert WELL._replace(lag=0.12345).body()["lag"] == 0.123
    assert WELL._replace(lag=None).body()["lag"] is None


def away() -> None:
    """Be a broker that does not answer."""
    raise BrokerUnavailable("no answer")


def test_a_broker_is_asked_each_time() -> None:
    """What it said before is history."""
    answers = iter([None, BrokerUnavailable("away"), None])

    def ping() -> None:
        answer = next(answers)
        if answer is not None:
            raise answer

    probe = Probe(ping)
    assert [probe(), probe(), probe()] == [True, False, True]


def test_what_goes_wrong_is_no_answer_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The next one is asked all the same."""

    def stumble() -> None:
        raise ZeroDivisionError

    probe = Probe(stumble)
    with caplog.at_level(logging.ERROR, "flask_noc_realtime"):
        assert [probe(), probe()] == [False, False]
    assert caplog.text.count("The probe stumbled.") == 2
    caplog.clear()
    assert not Probe(away)()
    assert not caplog.records


def test_silence_is_an_answer_and_all_wait_for_the_same() -> None:
    """Whoever asks while it is silent starts no second question."""
    asked: list[bool] = []
    answers: list[bool] = []
    released = threading.Event()

    def hang() -> None:
        asked.append(True)
        released.wait(TIMEOUT)

    probe = Probe(hang, timeout=0.05)
    threads = [threading.Thread(target=lambda: answers.append(probe())) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert answers == [False] * 5
    assert len(asked) == 1
    released.set()
    wait_until(probe, TIMEOUT, "it answers")
