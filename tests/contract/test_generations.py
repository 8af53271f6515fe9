"""Generations: what tells that something happened since a result was read."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence

from hypothesis import given
from hypothesis import strategies as st

from flask_noc_realtime.audience import TypeFilter
from flask_noc_realtime.broker import Broker
from flask_noc_realtime.broker.memory import MemoryBroker
from flask_noc_realtime.emit import EmitOptions, Publisher
from flask_noc_realtime.event import Catalogue, notice, patterns_of
from flask_noc_realtime.generation import Generations
from tests.contract.conftest import BrokerFactory
from tests.contract.sinks import RecordingSink, key, record
from tests.processes import wait_until
from tests.redis_server import RedisServer

PATTERNS = ("incident.*", "log.*", "log.added", "*")

words = st.from_regex(r"[a-z][a-z0-9_]{0,3}(\.[a-z0-9_]{1,3}){1,3}", fullmatch=True)


@given(words, words)
def test_an_event_bumps_exactly_the_patterns_that_streams_would_match_it_by(
    type: str, other: str
) -> None:
    """One rule for what a stream shows and for what a page forgets."""
    for pattern in (*patterns_of(other), other):
        assert (pattern in patterns_of(type)) == TypeFilter.parse(pattern).matches(type)


def test_publishing_changes_the_generations_that_match_and_no_others(broker: Broker) -> None:
    """Before it returns."""
    before = broker.generations(PATTERNS)
    assert broker.generations(PATTERNS) == before
    broker.publish(record(1), key())
    after = broker.generations(PATTERNS)
    changed = [pattern for pattern, a, b in zip(PATTERNS, before, after, strict=True) if a != b]
    assert changed == ["log.*", "log.added", "*"]
    broker.publish_all([(record(2), key()), (record(3), key())], again=False)
    assert broker.generations(["log.*"]) != after[1:2]


def test_a_second_attempt_changes_the_generation_or_the_first_one_did(broker: Broker) -> None:
    """It is not known which of them was the one."""
    events = [(record(1), key())]
    before = broker.generations(["log.*"])
    broker.publish_all(events, again=False)
    between = broker.generations(["log.*"])
    broker.publish_all(events, again=True)
    assert before != between
    assert broker.generations(["log.*"]) == between


def test_a_notice_is_nothing_a_page_shows(broker: Broker) -> None:
    """The end of a user's streams changes no data."""
    before = broker.generations(["*"])
    broker.publish(notice("stream.disconnect", "7"), key())
    assert broker.generations(["*"]) == before


def test_the_generation_has_changed_when_a_stream_is_sent_the_event(broker: Broker) -> None:
    """A browser refetches at once, and must not be given the page from before."""
    names: list[tuple[str, ...]] = []

    class Sink(RecordingSink):
        """Looks at the generation as the event comes."""

        def deliver(self, entries: object) -> None:
            names.append(broker.generations(["log.*"]))
            super().deliver(entries)  # type: ignore[arg-type]

    sink = Sink()
    broker.start(sink)
    sink.wait_for(lambda: bool(sink.restarts), "the history")
    before = broker.generations(["log.*"])
    broker.publish(record(1), key())
    sink.wait_for_number(1)
    assert names[0] != before


def test_a_generation_that_redis_lost_gets_a_name_it_never_had(
    redis: RedisServer, connect: BrokerFactory
) -> None:
    """An evicted or flushed generation must not make an old page valid again."""
    broker = connect(redis.url, namespace="lost")
    client = redis.client()
    seen = {broker.generations(["log.*"])}
    for number in range(3):
        client.delete("{lost}:generations")
        seen.add(broker.generations(["log.*"]))
        broker.publish(record(number), key())
        seen.add(broker.generations(["log.*"]))
    assert len(seen) == 7


def test_all_workers_see_the_same_generations(redis: RedisServer, connect: BrokerFactory) -> None:
    """Whoever asked first."""
    one, other = connect(redis.url, namespace="all"), connect(redis.url, namespace="all")
    assert one.generations(PATTERNS) == other.generations(PATTERNS)
    one.publish(record(1), key())
    assert one.generations(PATTERNS) == other.generations(PATTERNS)


def test_generations_of_types_without_end_are_bounded(broker: Broker) -> None:
    """Where types are free, one for each sensor, say; results end once, and none comes back."""
    seen = [broker.generations(["quiet.*"])]
    for first in range(0, 8000, 1000):
        types = [f"sensor{number}.changed" for number in range(first, first + 1000)]
        broker.publish_all([(record(1, type=type), key()) for type in types], again=False)
        seen.append(broker.generations(["quiet.*"]))
    assert size(broker) < 12_500
    assert len(set(seen)) == 2
    before = broker.generations(["quiet.*", "sensor1.*"])
    broker.publish(record(1, type="quiet.changed"), key())
    after = broker.generations(["quiet.*", "sensor1.*"])
    assert after[:1] not in seen
    assert before[1] == after[1]


def size(broker: Broker) -> int:
    """Return how many generations are kept."""
    if isinstance(broker, MemoryBroker):
        return len(broker._generations)
    client = broker._client  # type: ignore[attr-defined]
    return int(client.hlen(broker._generations_key))  # type: ignore[attr-defined]


class Slow(MemoryBroker):
    """Takes as long to tell generations as the test wants, and others ask it, too."""

    shared = True

    def __init__(self) -> None:
        super().__init__(10, 10**6)
        self.gate = threading.Event()
        self.asked: list[bool] = []

    def generations(self, patterns: Sequence[str], *, at_once: bool = False) -> tuple[str, ...]:
        """Note whether it was to be at once."""
        self.asked.append(at_once)
        assert self.gate.wait(20)
        return super().generations(patterns)


def test_a_herd_in_a_hurry_shares_a_round_trip_as_well() -> None:
    """Each on a connection of its own, they would use up the pool."""
    broker = Slow()
    generations = Generations(broker, Publisher(broker, Catalogue(), EmitOptions()))
    found: list[Hashable] = []

    def read() -> None:
        found.append(generations.read(PATTERNS, at_once=True))

    first = threading.Thread(target=read)
    first.start()
    wait_until(lambda: broker.asked == [True], 20, "the first asks")
    others = [threading.Thread(target=read) for _ in range(50)]
    for each in others:
        each.start()
    waiting = generations._combined._waiting
    wait_until(lambda: len(waiting) == 50, 20, "the others wait")
    broker.gate.set()
    for each in (first, *others):
        each.join(20)
    assert len(found) == 51
    assert broker.asked == [True, True]
