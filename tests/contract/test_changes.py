"""Hold both brokers to one contract for events that are published only if they are news."""

from __future__ import annotations

import threading

from flask_noc_realtime.broker import Broker, Change
from tests.conftest import RedisFactory
from tests.contract.conftest import BrokerFactory
from tests.contract.sinks import RecordingSink, record
from tests.processes import wait_until

TIMEOUT = 10.0


def change(number: int, before: bytes | None, after: bytes, subject: str = "") -> Change:
    """Return the change of a subject, by default of one no other number has."""
    return Change(subject or f"subject-{number}", before, after, record(number))


def test_a_change_is_published_if_what_it_knows_is_what_was_said(broker: Broker) -> None:
    """Of one subject after another, in order, as any event."""
    sink = RecordingSink()
    broker.start(sink)
    changes = [
        change(0, None, b"down", "web-1"),
        change(1, None, b"down", "web-1"),
        change(2, b"up", b"down", "web-2"),
        change(3, b"down", b"up", "web-1"),
        change(4, None, b"\x00\xff", "web-2"),
    ]
    positions = broker.publish_changes(changes, 30.0)
    sink.wait_for_number(4)
    assert sink.numbers == [0, 3, 4]
    assert [entry.position for entry in sink.entries] == [each for each in positions if each]
    assert [each is None for each in positions] == [False, True, True, False, False]
    assert broker.recall(["web-2", "none", "web-1"]) == [b"\x00\xff", None, b"up"]


def test_what_is_sent_again_publishes_what_is_missing(broker: Broker) -> None:
    """In order, and more subjects than one page has."""
    sink = RecordingSink()
    broker.start(sink)
    changes = [change(number, None, b"down") for number in range(700)]
    first = broker.publish_changes(changes[:300], 30.0)
    again = broker.publish_changes(changes, 30.0)
    assert again[:300] == [None] * 300
    assert len({*first, *again[300:]}) == 700
    sink.wait_for_number(699)
    assert sink.numbers == list(range(700))
    assert broker.recall([each.key for each in changes]) == [b"down"] * 700
    assert broker.publish_changes([], 30.0) == []
    assert broker.recall([]) == []


def test_of_several_workers_one_publishes_a_change(broker: Broker) -> None:
    """Though all of them know the same."""
    positions: list[str | None] = []
    changes = [change(number, None, b"down") for number in range(20)]
    threads = [
        threading.Thread(target=lambda: positions.extend(broker.publish_changes(changes, 30.0)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert len(positions) == 160
    assert len([position for position in positions if position is not None]) == 20


def test_what_was_said_is_known_for_its_time(broker: Broker) -> None:
    """Then the subject is as one of which nothing was ever said."""
    broker.publish_changes([change(0, None, b"down", "short")], 0.2)
    broker.publish_changes([change(1, None, b"down", "long")], 60.0)
    said = [None, b"down"]
    wait_until(lambda: broker.recall(["short", "long"]) == said, TIMEOUT, "its time is over")
    assert broker.publish_changes([change(2, None, b"down", "short")], 60.0) != [None]


def test_a_change_moves_the_generations_on(broker: Broker) -> None:
    """What was read before it is stale; one that is not published changes nothing."""
    before = broker.generations(["log.*"])
    broker.publish_changes([change(0, b"other", b"down")], 30.0)
    assert broker.generations(["log.*"]) == before
    broker.publish_changes([change(0, None, b"down")], 30.0)
    assert broker.generations(["log.*"]) != before


def test_apps_that_share_a_redis_do_not_share_what_was_said(
    redis_server: RedisFactory, connect: BrokerFactory
) -> None:
    """Each has its namespace; workers of one app do share."""
    server = redis_server()
    one, twin = connect(server.url, namespace="one"), connect(server.url, namespace="one")
    other = connect(server.url, namespace="other")
    one.publish_changes([change(0, None, b"down", "web-1")], 30.0)
    assert twin.recall(["web-1"]) == [b"down"]
    assert other.recall(["web-1"]) == [None]
