"""Log records reach the streams, and whatever happens the app that logs does not notice."""

from __future__ import annotations

import logging
import logging.config
import logging.handlers
import queue
import statistics
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask

from flask_noc_realtime import ConfigError, Emitter, NocRealtime, RealtimeHandler
from flask_noc_realtime.testing import Events, capture
from tests.conftest import RedisFactory
from tests.processes import free_port, wait_until


@pytest.fixture
def realtime() -> Iterator[NocRealtime]:
    """Return the extension of an app with events in memory."""
    app = Flask("logging")
    realtime = NocRealtime(app)
    with app.app_context():
        yield realtime


@pytest.fixture
def events() -> Iterator[Events]:
    """Return what is emitted during the test."""
    with capture() as events:
        yield events


class Logger(logging.Logger):
    """A logger of the test's own, with one handler and no parent."""

    def __init__(self, handler: logging.Handler, name: str = "noc.bgp") -> None:
        super().__init__(name)
        self.addHandler(handler)


def test_a_record_becomes_an_event(realtime: NocRealtime, events: Events) -> None:
    """Its level, logger, message and time; the event is for all."""
    before = time.time()
    Logger(RealtimeHandler(realtime)).warning("peer %s is down", "10.0.0.1")
    (event,) = events
    assert (event.type, event.permissions, event.user_id) == ("log.added", None, None)
    stamp = event.data.pop("time")
    assert stamp[-5:-4] == "." and stamp.endswith("Z")
    assert stamp >= time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(before))
    assert event.data == {
        "level": "WARNING",
        "logger": "noc.bgp",
        "message": "peer 10.0.0.1 is down",
    }


def test_an_exception_is_told_with_its_traceback(realtime: NocRealtime, events: Events) -> None:
    """Apart from the message, also when it came through a queue."""
    logger = Logger(RealtimeHandler(realtime))
    try:
        raise ValueError("no such peer")
    except ValueError:
        logger.exception("poll failed")
    (event,) = events
    assert event.data["message"] == "poll failed"
    assert event.data["exception"].startswith("Traceback (most recent call last):")
    assert event.data["exception"].endswith("ValueError: no such peer")


def test_a_formatter_decides_on_the_message(realtime: NocRealtime, events: Events) -> None:
    """As for any handler; the exception is part of what it makes."""
    handler = RealtimeHandler(realtime)
    handler.setFormatter(logging.Formatter("%(levelname)s! %(message)s"))
    try:
        raise ValueError("no such peer")
    except ValueError:
        Logger(handler).exception("poll failed")
    (event,) = events
    assert event.data["message"].startswith("ERROR! poll failed\nTraceback")
    assert "exception" not in event.data


def test_who_sees_a_record_may_depend_on_it(realtime: NocRealtime, events: Events) -> None:
    """Functions of the record, or values."""
    handler = RealtimeHandler(
        realtime,
        type="notification.sent",
        permissions=["logs.read"],
        user_id=lambda record: getattr(record, "user", None),
    )
    logger = Logger(handler)
    logger.error("mine", extra={"user": "7"})
    logger.error("all's")
    assert [event.user_id for event in events] == ["7", None]
    assert {event.permissions for event in events} == {frozenset({"logs.read"})}
    assert set(events.types) == {"notification.sent"}


def test_only_the_levels_asked_for_are_emitted(realtime: NocRealtime, events: Events) -> None:
    """As a name or a number."""
    logger = Logger(RealtimeHandler(realtime, level="ERROR"))
    logger.warning("no")
    logger.error("yes")
    assert [event.data["message"] for event in events] == ["yes"]


@pytest.mark.parametrize("name", ["flask_noc_realtime", "redis", "redis.connection"])
def test_our_own_records_and_those_of_redis_are_passed_over(
    name: str, realtime: NocRealtime, events: Events
) -> None:
    """They tell of the very way they would take; an unlucky namesake is not concerned."""
    Logger(RealtimeHandler(realtime), name).error("Redis is away")
    assert not events
    Logger(RealtimeHandler(realtime), "redis_cleanup").error("done")
    assert len(events) == 1


def test_what_emitting_logs_does_not_come_back(realtime: NocRealtime, events: Events) -> None:
    """A traced client, or an argument that logs when it is shown, would go on for ever."""

    class Chatty:
        def __str__(self) -> str:
            logger.info("I was shown")
            return "chatty"

    logger = Logger(RealtimeHandler(realtime))
    logger.error("%s", Chatty())
    assert [event.data["message"] for event in events] == ["chatty"]
    logger.error("on with it")
    assert len(events) == 2


def test_what_our_threads_log_is_passed_over(realtime: NocRealtime, events: Events) -> None:
    """The courier's every attempt would queue one more event."""
    logger = Logger(RealtimeHandler(realtime))
    for name in ("noc-realtime-courier", "poller"):
        thread = threading.Thread(target=logger.error, args=("from %s", name), name=name)
        thread.start()
        thread.join()
    assert [event.data["message"] for event in events] == ["from poller"]


@pytest.mark.parametrize(
    "options",
    [
        {"type": "no.such.type"},
        {"permissions": []},
        {"user_id": lambda record: record.nobody},
    ],
    ids=lambda options: next(iter(options)),
)
def test_no_mistake_is_raised_into_the_app(
    options: dict[str, Any],
    realtime: NocRealtime,
    events: Events,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is told as logging tells of every handler's mistakes."""
    Logger(RealtimeHandler(realtime, **options)).error("careful")
    assert not events
    assert "--- Logging error ---" in capsys.readouterr().err
    Logger(RealtimeHandler(realtime)).error("%d", "not a number")
    assert not events
    assert "--- Logging error ---" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["\udce9t\udce9", "x" * 10**6, "\x00\x1b[2J" * 10**5])
def test_any_text_can_be_told(text: str, realtime: NocRealtime, events: Events) -> None:
    """Half surrogates of a file's name, and what is larger than an event may be."""
    try:
        raise ValueError(text)
    except ValueError:
        Logger(RealtimeHandler(realtime)).exception(text)
    (event,) = events
    assert len(event.data["message"]) <= 17_000
    assert event.data["exception"][-10:] == text.encode(errors="backslashreplace").decode()[-10:]


def test_a_queue_listener_may_stand_between(realtime: NocRealtime, events: Events) -> None:
    """For an app that wants its records emitted by another thread."""
    records: queue.Queue[logging.LogRecord] = queue.Queue()
    emitting = RealtimeHandler(realtime)
    try:
        raise ValueError("no such peer")
    except ValueError:
        Logger(logging.handlers.QueueHandler(records)).exception("poll %s", "failed")
    emitting.handle(records.get(timeout=10))
    (event,) = events
    assert "poll failed" in event.data["message"]
    assert "no such peer" in event.data["message"]


def test_dict_config_makes_one_from_a_url(redis_server: RedisFactory) -> None:
    """It has an emitter of its own, which is closed with it."""
    server = redis_server()
    handler = {
        "class": "flask_noc_realtime.RealtimeHandler",
        "emitter": server.url,
        "level": "WARNING",
        "permissions": ["logs.read"],
    }
    loggers = {"noc.dict": {"handlers": ["stream"], "level": "DEBUG", "propagate": False}}
    settings = {"version": 1, "handlers": {"stream": handler}, "loggers": loggers}
    logging.config.dictConfig({**settings, "disable_existing_loggers": False})
    logger = logging.getLogger("noc.dict")
    logger.warning("one")
    logger.info("none")
    (_, (_, row)) = server.client().xrange("{noc}:log")
    assert row[b"r"].startswith(b'["log.added",["logs.read"],null]\n')
    (made,) = logger.handlers
    logger.removeHandler(made)
    made.close()
    asking = server.client(client_name="asking")
    others = lambda: [each for each in asking.client_list() if each["name"] != "asking"]  # noqa: E731
    wait_until(lambda: len(others()) == 1, 10, "only the reading client is left")


def test_a_url_that_is_wrong_is_refused_at_once() -> None:
    """While logging is set up, where it is seen."""
    with pytest.raises(ConfigError, match="NOC_REALTIME_URL"):
        RealtimeHandler("http://redis")


def test_an_emitter_is_shared_with_others() -> None:
    """And left to whoever made it."""
    with Emitter(f"redis://127.0.0.1:{free_port()}") as emitter:
        handler = RealtimeHandler(emitter)
        Logger(handler).error("one")
        handler.close()
        assert not emitter.flush(0.0)
        emitter.close(0.0)


def test_an_outage_costs_a_logger_next_to_nothing() -> None:
    """After the first record, and whoever else logs."""
    with Emitter(f"redis://127.0.0.1:{free_port()}") as emitter:
        logger = Logger(RealtimeHandler(emitter))

        def timed() -> float:
            begun = time.perf_counter()
            logger.error("peer is down")
            return time.perf_counter() - begun

        timed()
        assert statistics.median(timed() for _ in range(500)) < 0.005
        emitter.close(0.0)
