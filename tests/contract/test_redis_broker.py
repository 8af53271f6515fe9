"""What a broker on Redis survives."""

from __future__ import annotations

import logging
import threading
import time
from itertools import count, islice
from typing import Any

import pytest

from flask_noc_realtime.broker import redis as broker_module
from flask_noc_realtime.broker.census import Answers
from flask_noc_realtime.broker.redis import RedisBroker
from flask_noc_realtime.errors import BrokerUnavailable
from tests.certificate import Certificate
from tests.conftest import RedisFactory
from tests.contract.conftest import BrokerFactory
from tests.contract.sinks import RecordingSink, key, record
from tests.faults import FaultProxy
from tests.processes import free_port, wait_until
from tests.redis_server import RedisServer

LOG, CHANNEL = "{noc}:log", "{noc}:events"


class Publisher(threading.Thread):
    """Publishes numbered events until told to stop; tries each again until it is acknowledged."""

    def __init__(self, broker: RedisBroker, pause: float = 0.0005) -> None:
        super().__init__(daemon=True)
        self.count = 0
        self.failures = 0
        self._broker = broker
        self._pause = pause
        self._stop_asked = threading.Event()

    def run(self) -> None:
        """Publish, paced so that a test sees many events but not millions."""
        while not self._stop_asked.wait(self._pause):
            name, again = key(), False
            while True:
                try:
                    self._broker.publish_all([(record(self.count), name)], again=again)
                    break
                except BrokerUnavailable:
                    again, self.failures = True, self.failures + 1
                    time.sleep(0.01)
            self.count += 1

    def finish(self) -> int:
        """Stop; return how many were acknowledged."""
        self._stop_asked.set()
        self.join(30)
        return self.count


def test_both_versions_of_redis_take_the_script(redis: RedisServer, connect: BrokerFactory) -> None:
    """6.2, which machines without a Redis get, and the newest."""
    sink = RecordingSink()
    broker = connect(redis.url)
    broker.start(sink)
    name = key()
    first = broker.publish_all([(record(1), name)], again=False)
    again = broker.publish_all([(record(1), name), (record(2), key())], again=True)
    sink.wait_for_number(2)
    assert again[0] == first[0]
    assert sink.numbers == [1, 2]


def test_a_second_attempt_looks_no_further_back_than_its_first_can_be(
    redis: RedisServer, connect: BrokerFactory
) -> None:
    """All of a large history takes longer than any timeout, and the outage would never end."""
    broker = connect(redis.url, namespace="window")
    client, name = redis.client(), key()
    client.delete("{window}:log", "{window}:retried")
    client.xadd("{window}:log", {"r": record(1), "k": name}, id="1-1")
    assert broker.publish_all([(record(1), name)], again=True) == ["1-1"]
    assert broker.publish_all([(record(1), name)], again=True, age=60.0) != ["1-1"]
    recent = key()
    position = broker.publish_all([(record(2), recent)], again=False)
    assert broker.publish_all([(record(2), recent)], again=True, age=0.0) == position


def test_namespaces_do_not_see_each_other(
    redis_server: RedisFactory, connect: BrokerFactory
) -> None:
    """Two apps share a Redis."""
    server = redis_server()
    one, other = RecordingSink(), RecordingSink()
    first, second = connect(server.url, namespace="a"), connect(server.url, namespace="b")
    first.start(one)
    second.start(other)
    first.publish(record(1), key())
    second.publish(record(2), key())
    one.wait_for_number(1)
    other.wait_for_number(2)
    assert (one.numbers, other.numbers) == ([1], [2])


def test_cut_subscriptions_miss_and_double_nothing(
    redis_server: RedisFactory, connect: BrokerFactory
) -> None:
    """CLIENT KILL TYPE pubsub, again and again, under load."""
    server = redis_server()
    sink = RecordingSink()
    broker = connect(server.url, history_events=100_000)
    broker.start(sink)
    publisher = Publisher(connect(server.url, history_events=100_000))
    publisher.start()
    client = server.client()
    for _ in range(10):
        seen = len(sink.entries)
        client.client_kill_filter(_type="pubsub")
        sink.wait_for(lambda seen=seen: len(sink.entries) > seen + 50, "going on")
    last = publisher.finish() - 1
    sink.wait_for_number(last)
    assert sink.numbers == list(range(last + 1))
    assert len(sink.restarts) == 1


def calls(server: RedisServer, command: str) -> int:
    """Return how often *server* was given a command."""
    stats: Any = server.client().info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])


def test_a_subscription_that_died_without_a_word_is_replaced(
    redis_server: RedisFactory, connect: BrokerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A balancer that forgot its connections tells neither side, and passes on no event."""
    monkeypatch.setattr(broker_module, "_QUIET", 0.2)
    server = redis_server()
    sink = RecordingSink()
    with FaultProxy(("127.0.0.1", server.port)) as proxy:
        broker = connect(f"redis://127.0.0.1:{proxy.address[1]}/0", timeout=0.5)
        broker.start(sink)
        sink.wait_for(lambda: bool(sink.restarts), "the history")
        proxy.mute()
        wait_until(lambda: calls(server, "subscribe") == 2, 20, "a new subscription")
        publisher = connect(server.url)
        for number in range(3):
            publisher.publish(record(number), key())
            sink.wait_for_number(number)
        broker.close()
    assert sink.numbers == [0, 1, 2]
    assert len(sink.restarts) == 1


def test_a_subscription_that_leaves_events_out_is_replaced(
    redis_server: RedisFactory,
    connect: BrokerFactory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log has an event that did not come, and the connection is alive: so it is no use."""
    monkeypatch.setattr(broker_module, "_QUIET", 0.05)
    monkeypatch.setattr(broker_module, "_IDLE_CHECK", 0.1)
    server = redis_server()
    sink = RecordingSink()
    broker = connect(server.url)
    broker.start(sink)
    broker.publish(record(0), key())
    sink.wait_for_number(0)
    server.client().xadd(LOG, {"r": record(1), "k": key()})
    sink.wait_for_number(1)
    wait_until(lambda: "answers again" in caplog.text, 20, "the recovery is logged")
    assert calls(server, "subscribe") == 2
    assert "the subscription leaves events out" in caplog.text


def test_a_subscription_with_nothing_to_bring_is_kept(
    redis_server: RedisFactory, connect: BrokerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked whether it is alive, and says so."""
    monkeypatch.setattr(broker_module, "_QUIET", 0.02)
    monkeypatch.setattr(broker_module, "_IDLE_CHECK", 0.1)
    server = redis_server()
    sink = RecordingSink()
    broker = connect(server.url)
    broker.start(sink)
    for number in range(2):
        asked = calls(server, "ping")
        wait_until(lambda asked=asked: calls(server, "ping") > asked + 10, 20, "ten questions")
        broker.publish(record(number), key())
        sink.wait_for_number(number)
    assert calls(server, "subscribe") == 1
    assert len(sink.restarts) == 1


def test_others_run_while_messages_keep_coming(
    redis_server: RedisFactory, connect: BrokerFactory
) -> None:
    """Under gevent no read waits then, and streams and views would."""
    server = redis_server()
    sink = RecordingSink()
    broker = connect(server.url)
    turns = 0
    done = threading.Event()

    def take_turns() -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1
            time.sleep(0)

    seen: list[int] = []

    def take(message: bytes) -> None:
        seen.append(turns)
        for _ in range(300):
            pass

    broker.pages.take = take  # type: ignore[method-assign]
    broker.start(sink)
    sink.wait_for(lambda: bool(sink.restarts), "the history")
    other = threading.Thread(target=take_turns)
    other.start()
    # All at once, so that they keep coming.
    script = "for i = 1, 20000 do redis.call('PUBLISH', KEYS[1], 'x') end"
    server.client().eval(script, 1, broker.pages.channel)
    try:
        wait_until(lambda: len(seen) == 20_000, 20, "all came")
    finally:
        done.set()
        other.join(20)
    assert len(set(seen)) > 20


def test_a_redis_killed_and_restarted_loses_nothing_it_acknowledged(
    redis_server: RedisFactory, connect: BrokerFactory
) -> None:
    """Kill -9 under load, with an AOF synced on every write; nothing is doubled either."""
    server = redis_server(appendonly=True)
    sink = RecordingSink()
    broker = connect(server.url, history_events=100_000)
    broker.start(sink)
    publisher = Publisher(connect(server.url, history_events=100_000))
    publisher.start()
    for _ in range(3):
        seen = len(sink.entries)
        sink.wait_for(lambda seen=seen: len(sink.entries) > seen + 50, "going on")
        server.kill9()
        failures = publisher.failures
        wait_until(lambda f=failures: publisher.failures > f, 20, "the outage is noticed")
        server.start()
    last = publisher.finish() - 1
    sink.wait_for_number(last)
    assert sink.numbers == list(range(last + 1))
    assert len(sink.restarts) == 1


def test_a_redis_restarted_empty_is_a_new_history(
    redis_server: RedisFactory, connect: BrokerFactory
) -> None:
    """Nobody can say what was lost, so every stream is reset."""
    server = redis_server()
    sink = RecordingSink()
    broker = connect(server.url)
    broker.start(sink)
    broker.publish(record(1), key())
    sink.wait_for_number(1)
    server.kill9()
    server.start()
    sink.wait_for(lambda: len(sink.restarts) == 2, "a restart")
    assert sink.entries == []


def test_a_flushed_redis_is_a_new_history_with_the_next_event(
    redis_server: RedisFactory, connect: BrokerFactory
) -> None:
    """The connection stays, so the hole shows by the event's predecessor."""
    server = redis_server()
    sink = RecordingSink()
    broker = connect(server.url)
    broker.start(sink)
    broker.publish(record(1), key())
    sink.wait_for_number(1)
    server.client().flushall()
    broker.publish(record(2), key())
    sink.wait_for(lambda: len(sink.restarts) == 2, "a restart")
    sink.wait_for_number(2)
    assert sink.numbers == [2]


def test_a_paused_redis_is_waited_for(redis_server: RedisFactory, connect: BrokerFactory) -> None:
    """SIGSTOP for longer than the timeout: the publisher is told, and nothing is lost."""
    server = redis_server()
    sink = RecordingSink()
    broker = connect(server.url, timeout=0.2)
    broker.start(sink)
    broker.publish(record(0), key())
    sink.wait_for_number(0)
    server.pause()
    name = key()
    begun = time.monotonic()
    with pytest.raises(BrokerUnavailable, match="TimeoutError"):
        broker.publish(record(1), name)
    assert time.monotonic() - begun < 2
    server.resume()
    broker.publish_all([(record(1), name)], again=True)
    sink.wait_for_number(1)
    broker.publish(record(2), key())
    sink.wait_for_number(2)
    assert sink.numbers == [0, 1, 2]


def test_the_log_in_redis_is_bounded_by_bytes_too(
    redis: RedisServer, connect: BrokerFactory
) -> None:
    """By events alone, as many of the largest would take forty times the memory it may have."""
    bound = 500_000
    broker = connect(redis.url, namespace="bytes", history_bytes=bound)
    sink = RecordingSink()
    broker.start(sink)
    client, log = redis.client(), "{bytes}:log"
    numbers = count()

    def bounded() -> bool:
        for number in islice(numbers, 20):
            broker.publish(record(number, 10_000), key())
        return number > 100 and client.memory_usage(log, 0) < 1.2 * bound

    wait_until(bounded, 20, "the log is trimmed")
    assert client.xlen(log) * 10_000 > bound / 2
    last = next(numbers)
    broker.publish(record(last), key())
    sink.wait_for_number(last)
    assert sink.numbers == list(range(last + 1))
    assert len(sink.restarts) == 1
    late = RecordingSink()
    connect(redis.url, namespace="bytes", history_bytes=bound).start(late)
    late.wait_for_number(last)


def test_no_event_waits_while_a_worker_is_asked_how_it_is(
    redis_server: RedisFactory, connect: BrokerFactory
) -> None:
    """Its report takes a moment, and so does Redis."""
    server = redis_server()
    broker, asking = connect(server.url), connect(server.url)
    asked, told = threading.Event(), threading.Event()

    def report() -> bytes:
        asked.set()
        assert told.wait(20)
        return b"well"

    broker.census.report = report
    sink = RecordingSink()
    broker.start(sink)
    sink.wait_for(lambda: bool(sink.restarts), "the subscription")
    answers: list[Answers] = []
    survey = threading.Thread(target=lambda: answers.append(asking.survey(20.0)), daemon=True)
    survey.start()
    assert asked.wait(20)
    broker.publish(record(0), key())
    sink.wait_for_number(0)
    told.set()
    survey.join(20)
    assert answers == [Answers(1, [b"well"])]


def test_a_hole_in_pubsub_is_filled_before_going_on(
    redis_server: RedisFactory, connect: BrokerFactory
) -> None:
    """An event that was never published on the channel comes before the next that was."""
    server = redis_server()
    sink = RecordingSink()
    broker = connect(server.url)
    broker.start(sink)
    broker.publish(record(0), key())
    sink.wait_for_number(0)
    client = server.client()
    for number in (1, 2):
        client.xadd(LOG, {"r": record(number), "k": key()})
    broker.publish(record(3), key())
    sink.wait_for_number(3)
    assert sink.numbers == [0, 1, 2, 3]
    assert len(sink.restarts) == 1


def test_a_hole_of_many_pages_is_filled(redis_server: RedisFactory, connect: BrokerFactory) -> None:
    """No entry is lost or doubled where one page of reading meets the next."""
    server = redis_server()
    sink = RecordingSink()
    broker = connect(server.url, history_events=10_000)
    broker.start(sink)
    broker.publish(record(0), key())
    sink.wait_for_number(0)
    with server.client().pipeline() as pipeline:
        for number in range(1, 1501):
            pipeline.xadd(LOG, {"r": record(number), "k": key()})
        pipeline.execute()
    broker.publish(record(1501), key())
    sink.wait_for_number(1501)
    assert sink.numbers == list(range(1502))
    assert len(sink.restarts) == 1


def test_a_hole_that_redis_no_longer_has_is_a_new_history(
    redis_server: RedisFactory, connect: BrokerFactory
) -> None:
    """What was trimmed meanwhile cannot be filled, and nobody is told that it was."""
    server = redis_server()
    sink = RecordingSink()
    broker = connect(server.url)
    broker.start(sink)
    broker.publish(record(0), key())
    sink.wait_for_number(0)
    client = server.client()
    for number in (1, 2):
        client.xadd(LOG, {"r": record(number), "k": key()})
    client.xtrim(LOG, maxlen=1, approximate=False)
    broker.publish(record(3), key())
    sink.wait_for_number(3)
    assert len(sink.restarts) == 2
    assert sink.numbers == [3]


def test_rubbish_in_redis_is_passed_over(
    redis_server: RedisFactory, connect: BrokerFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """On the channel and in the log, by another program or an attacker."""
    server = redis_server()
    sink = RecordingSink()
    broker = connect(server.url)
    broker.start(sink)
    broker.publish(record(0), key())
    sink.wait_for_number(0)
    client = server.client()
    newest = sink.entries[-1].position.encode()
    wrong_predecessor = b"1-0 99999999999999-0\n" + record(7)
    for rubbish in (b"", b"x", b"1-0 2-0\n", b"\xff\xfe \n{}", b"a b c\n[]", newest + b" x\n{}"):
        client.publish(CHANNEL, rubbish)
    client.publish(CHANNEL, wrong_predecessor)
    client.xadd(LOG, {"other": "program"})
    client.xadd(LOG, {"r": b"no record", "k": "x"})
    broker.publish(record(1), key())
    sink.wait_for_number(1)
    assert sink.numbers == [0, 1]
    assert len(sink.restarts) == 1
    assert any("Passed over" in message for message in caplog.messages)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged as an error."""
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]


@pytest.mark.parametrize("why", ["unreachable", "password"])
def test_a_redis_that_does_not_answer_is_one_clear_error_without_the_secret(
    why: str,
    redis_server: RedisFactory,
    connect: BrokerFactory,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And when it answers, the history arrives by itself."""
    port = free_port()
    args = ["--requirepass", "right"] if why == "password" else []
    server = redis_server(port=port, args=args) if why == "password" else None
    sink = RecordingSink()
    broker = connect(f"redis://:s3cret@127.0.0.1:{port}/0", timeout=0.5)
    broker.start(sink)
    with pytest.raises(BrokerUnavailable, match=r"NOC_REALTIME_URL is right"):
        broker.publish(record(0), key())
    wait_until(lambda: errors(caplog), 20, "an error")
    if server is None:
        redis_server(port=port, args=["--requirepass", "s3cret"])
    else:
        import redis

        with redis.Redis(port=port, password="right") as client:
            client.config_set("requirepass", "s3cret")
    sink.wait_for(lambda: bool(sink.restarts), "the history")
    wait_until(lambda: "answers again" in caplog.text, 20, "the recovery is logged")
    assert len(errors(caplog)) == 1
    assert f"127.0.0.1:{port}" in errors(caplog)[0]
    assert "s3cret" not in caplog.text


def test_a_key_of_another_type_is_said(redis_server: RedisFactory, connect: BrokerFactory) -> None:
    """Two programs with one namespace."""
    server = redis_server()
    server.client().set(LOG, "mine")
    with pytest.raises(BrokerUnavailable, match="WRONGTYPE"):
        connect(server.url).publish(record(0), key())


def test_a_subscription_to_a_key_of_another_type_is_one_error_and_recovers(
    redis_server: RedisFactory, connect: BrokerFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """Once the other program's key is gone the history arrives by itself."""
    server = redis_server()
    client = server.client()
    client.set(LOG, "mine")
    sink = RecordingSink()
    broker = connect(server.url)
    broker.start(sink)
    wait_until(lambda: errors(caplog), 20, "an error")
    client.delete(LOG)
    sink.wait_for(lambda: bool(sink.restarts), "the history")
    broker.publish(record(1), key())
    sink.wait_for_number(1)
    (error,) = errors(caplog)
    assert "WRONGTYPE" in error


@pytest.mark.parametrize("kind", ["unix", "tls"])
def test_other_ways_to_a_redis(
    kind: str, redis_server: RedisFactory, connect: BrokerFactory, request: pytest.FixtureRequest
) -> None:
    """A Unix socket, and TLS with a CA of one's own."""
    options: dict[str, Any] = {"unix": True}
    if kind == "tls":
        certificate: Certificate = request.getfixturevalue("certificate")
        options = {"tls": certificate}
    server = redis_server(**options)
    sink = RecordingSink()
    broker = connect(server.url)
    broker.start(sink)
    broker.publish(record(1), key())
    sink.wait_for_number(1)
