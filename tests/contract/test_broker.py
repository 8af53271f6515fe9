"""What every broker does."""

from __future__ import annotations

import threading

from flask_noc_realtime.audience import Audience
from flask_noc_realtime.broker import Broker
from flask_noc_realtime.broker.memory import MemoryBroker
from flask_noc_realtime.hub import Hub, HubOptions
from tests.contract.conftest import BYTES, HISTORY
from tests.contract.sinks import RecordingSink, key, record


def publish(broker: Broker, first: int, last: int) -> list[str]:
    """Publish numbered events and return their positions."""
    return [broker.publish(record(n), key()) for n in range(first, last)]


def test_every_event_has_a_position_of_its_own_in_the_order_of_publishing(broker: Broker) -> None:
    """And what is delivered carries the position that publish returned."""
    sink = RecordingSink()
    broker.start(sink)
    positions = publish(broker, 0, 20)
    sink.wait_for_number(19)
    assert [entry.position for entry in sink.entries] == positions
    assert len(set(positions)) == 20
    assert sink.numbers == list(range(20))


def test_a_late_sink_gets_the_history_then_live_without_gap_or_duplicate(broker: Broker) -> None:
    """While another thread publishes all along."""
    publish(broker, 0, 100)
    publisher = threading.Thread(target=publish, args=(broker, 100, 400))
    publisher.start()
    sink = RecordingSink()
    broker.start(sink)
    publisher.join()
    sink.wait_for_number(399)
    assert sink.numbers == list(range(400))
    assert len(sink.restarts) == 1


def test_several_publishers_share_one_order(broker: Broker) -> None:
    """Each one's events stay in its order, and none is lost between them."""
    sink = RecordingSink()
    broker.start(sink)
    threads = [threading.Thread(target=publish, args=(broker, n, n + 100)) for n in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sink.wait_for(lambda: len(sink.entries) == 300, "all of them")
    for first in (0, 100, 200):
        own = [n for n in sink.numbers if first <= n < first + 100]
        assert own == list(range(first, first + 100))


def test_the_history_is_bounded_by_events(broker: Broker) -> None:
    """The newest are kept, and the sink is given no more than the bound."""
    publish(broker, 0, HISTORY + 200)
    sink = RecordingSink()
    broker.start(sink)
    sink.wait_for(lambda: bool(sink.restarts), "the history")
    assert sink.numbers == list(range(200, HISTORY + 200))


def test_the_history_is_bounded_by_bytes(broker: Broker) -> None:
    """Large events count for what they are; the newest are kept."""
    size = 12_000
    for first in range(0, 950, 50):
        events = [(record(n, size), key()) for n in range(first, first + 50)]
        broker.publish_all(events, again=False)
    sink = RecordingSink()
    broker.start(sink)
    sink.wait_for(lambda: bool(sink.restarts), "the history")
    kept = len(sink.entries)
    assert sink.numbers == list(range(950 - kept, 950))
    assert BYTES * 0.9 < kept * size <= BYTES


def test_a_large_event_passes(broker: Broker) -> None:
    """256 KiB, the default limit."""
    sink = RecordingSink()
    broker.start(sink)
    broker.publish(record(7, 256 * 1024), key())
    sink.wait_for_number(7)


def test_publish_all_keeps_the_order(broker: Broker) -> None:
    """A batch is as good as one by one."""
    sink = RecordingSink()
    broker.start(sink)
    positions = broker.publish_all([(record(n), key()) for n in range(50)], again=False)
    sink.wait_for_number(49)
    assert [entry.position for entry in sink.entries] == positions


def test_a_second_attempt_publishes_only_what_the_first_did_not(broker: Broker) -> None:
    """Events keep their positions, and the new ones follow in order."""
    sink = RecordingSink()
    broker.start(sink)
    events = [(record(n), key()) for n in range(5)]
    first = broker.publish_all(events[:3], again=False)
    second = broker.publish_all(events, again=True)
    assert second[:3] == first
    broker.publish(record(5), key())
    sink.wait_for_number(5)
    assert sink.numbers == list(range(6))
    assert [entry.position for entry in sink.entries[:5]] == second


def test_a_position_of_another_broker_is_not_found(broker: Broker) -> None:
    """It gets a reset, and not a replay of something else."""
    other = MemoryBroker(10, 10**6)
    foreign = other.publish(record(0), key())
    own = publish(broker, 0, 3)
    hub = Hub(broker, HubOptions(start_timeout=10))
    hub.start()
    assert b"stream.reset" in hub.open(foreign).preamble
    opening = hub.open(own[0])
    assert b"stream.reset" not in opening.preamble
    assert len(hub.read(Audience(), None, opening.ordinal).rules) == 2


def test_a_closed_broker_delivers_no_more(broker: Broker) -> None:
    """A worker that leaves keeps nothing running."""
    sink = RecordingSink()
    broker.start(sink)
    publish(broker, 0, 1)
    sink.wait_for_number(0)
    broker.close()
    for thread in threading.enumerate():
        if thread.name == "noc-realtime-subscription":
            thread.join(20)
            assert not thread.is_alive()
    publish(broker, 1, 2)
    assert sink.numbers == [0]
