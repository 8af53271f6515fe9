"""The hub: where a stream starts, when it is reset, and what it is told while idle."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import pytest

from flask_noc_realtime import hub as hub_module
from flask_noc_realtime.audience import Audience
from flask_noc_realtime.broker import Sink
from flask_noc_realtime.broker.memory import MemoryBroker
from flask_noc_realtime.eventlog import Entry
from flask_noc_realtime.hub import Hub, HubOptions
from tests.conftest import require
from tests.contract.sinks import key, record
from tests.processes import wait_until

STILL = HubOptions(retry=0.0)


def started(options: HubOptions = STILL) -> tuple[MemoryBroker, Hub]:
    """Return a broker in memory and the hub that follows it."""
    broker = MemoryBroker(10_000, 10**7)
    hub = Hub(broker, options)
    hub.start()
    return broker, hub


def publish(broker: MemoryBroker, first: int, last: int) -> list[str]:
    """Publish numbered events and return their positions."""
    return [broker.publish(record(n), key()) for n in range(first, last)]


class SilentBroker:
    """A broker that is never reached, and counts who asked."""

    shared = True

    def __init__(self) -> None:
        self.starts = 0

    def publish(self, record: bytes, key: str) -> str:
        """Not asked for here."""
        raise NotImplementedError

    def publish_all(self, events: Sequence[tuple[bytes, str]], *, again: bool) -> list[str]:
        """Not asked for here."""
        raise NotImplementedError

    def follows(self, position: str, other: str) -> bool:
        """Know no order."""
        return False

    def away(self) -> float:
        """Have only just begun to look."""
        return 0.0

    def ping(self) -> None:
        """Not asked for here."""

    def start(self, sink: Sink) -> None:
        """Never deliver."""
        self.starts += 1

    def close(self) -> None:
        """Hold nothing."""


def test_a_new_stream_starts_at_the_newest_position() -> None:
    """With these bytes, which give the browser a position from the start."""
    broker, hub = started()
    position = publish(broker, 0, 3)[-1]
    assert hub.open(None) == (
        f"retry: 0\nid: {position}\nevent: stream.open\n"
        f'data: {{"position":"{position}","retry":0,"heartbeat":15000}}\n\n'.encode(),
        hub.end,
        hub.end,
        None,
    )


def test_a_stream_that_comes_back_starts_where_it_was() -> None:
    """Its own position is confirmed, and what follows is replayed."""
    broker, hub = started()
    positions = publish(broker, 0, 5)
    opening = hub.open(positions[1])
    assert f"id: {positions[1]}\n".encode() in opening.preamble
    batch = hub.read(Audience(), None, opening.ordinal)
    assert (len(batch.rules), batch.end) == (3, opening.live_from)


def test_a_position_that_is_not_found_is_told_in_these_bytes() -> None:
    """The client has to fetch anew, and goes on from the newest."""
    broker, hub = started()
    position = publish(broker, 0, 1)[0]
    opening = hub.open("1-1")
    assert opening.preamble.endswith(
        f"id: {position}\nevent: stream.reset\n"
        f'data: {{"reason":"unknown-position","position":"{position}"}}\n\n'.encode()
    )
    assert opening.ordinal == hub.end


def test_every_cursor_is_reset_when_the_history_is_replaced() -> None:
    """Also one that had everything."""
    broker, hub = started()
    publish(broker, 0, 3)
    caught_up = hub.end
    hub.restart("new-0", [])
    assert hub.read(Audience(), None, caught_up).gap == "history-lost"
    assert hub.open(None).ordinal == hub.reset("history-lost")[1]


def test_a_heartbeat_carries_the_newest_position() -> None:
    """For the streams that have everything before it."""
    broker, hub = started()
    position = publish(broker, 0, 1)[0]
    assert hub.heartbeat() == (
        f'id: {position}\nevent: heartbeat\ndata: {{"position":"{position}"}}\n\n'.encode(),
        hub.end,
    )


def test_a_stream_is_told_that_the_broker_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """When it opens and with each heartbeat: a screen that is told nothing looks alive."""
    monkeypatch.setattr(hub_module, "_BLINK", 0.0)
    broker, hub = started()
    assert b"away" not in hub.open(None).preamble + hub.heartbeat()[0]
    broker.cut()
    wait_until(lambda: hub.away, 10, "it is away")
    for said in (hub.open(None).preamble, hub.heartbeat()[0]):
        assert b',"broker":"away"}\n\n' in said
    broker.heal()
    assert b"away" not in hub.open(None).preamble + hub.heartbeat()[0]


def test_the_horizon_is_what_arrived_longer_ago_than_the_lag_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A live stream behind it is reset; one event long ago puts nobody behind."""
    now = 1000.0
    monkeypatch.setattr(hub_module.time, "monotonic", lambda: now)
    broker, hub = started(HubOptions(max_lag=2.0))
    begin = hub.end
    publish(broker, 0, 10)
    assert hub.horizon(1001.0) <= begin
    now = 1001.5
    publish(broker, 10, 20)
    assert hub.horizon(1002.5) <= begin
    assert hub.horizon(1003.6) == begin + 10
    now = 5000.0
    publish(broker, 20, 30)
    assert hub.horizon(5000.0) <= begin + 20


def test_a_broker_that_is_away_is_waited_for_once_and_not_long() -> None:
    """By all first requests together; the app serves on."""
    broker = SilentBroker()
    hub = Hub(broker, HubOptions(start_timeout=0.3))
    begun = time.monotonic()
    threads = [threading.Thread(target=hub.start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0.25 <= time.monotonic() - begun < 3
    begun = time.monotonic()
    hub.start()
    assert time.monotonic() - begun < 0.1
    assert broker.starts == 1
    assert b"stream.open" in hub.open(hub.position).preamble


def test_many_threads_emit_and_read_and_each_reader_sees_every_event_once() -> None:
    """The lock guards the log; the order is the same for all."""
    broker, hub = started()
    begin = hub.end
    seen: list[list[bytes]] = [[] for _ in range(4)]
    more = threading.Event()
    hub.listen(more.set)

    def read(into: list[bytes]) -> None:
        ordinal = begin
        while ordinal < begin + 1000:
            batch = hub.read(Audience(), None, ordinal)
            assert batch.gap is None
            into.append(batch.body)
            if batch.end == ordinal:
                more.wait(1)
                more.clear()
            ordinal = batch.end

    threads = [threading.Thread(target=read, args=(into,)) for into in seen]
    threads += [
        threading.Thread(target=publish, args=(broker, n, n + 250)) for n in range(0, 1000, 250)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bodies = {b"".join(parts) for parts in seen}
    assert len(bodies) == 1
    assert bodies.pop().count(b"data: ") == 1000


def test_a_listener_is_told_of_every_delivery() -> None:
    """Transports sleep until then."""
    broker, hub = started()
    told: list[int] = []
    hub.listen(lambda: told.append(hub.end))
    publish(broker, 0, 3)
    assert told == [hub.end - 2, hub.end - 1, hub.end]
    hub.close()
    assert hub.closing.is_set()
    assert len(told) == 4


class LateBroker(SilentBroker):
    """A broker on which another worker is a moment ahead."""

    def follows(self, position: str, other: str) -> bool:
        """Order positions by their number."""
        return position > other


def test_a_position_another_worker_has_shown_is_waited_for() -> None:
    """A page of one worker, its stream on another that has not been told yet."""
    entry = Entry.from_record("p-2", record(2))
    hub = Hub(LateBroker(), HubOptions())
    hub.restart("p-1", [])
    opened: list[bytes] = []
    opening = threading.Thread(target=lambda: opened.append(hub.open("p-2").preamble))
    opening.start()
    hub.deliver([entry])
    opening.join()
    assert b"stream.reset" not in opened[0]


def test_a_position_that_comes_with_the_history_is_waited_for_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first history of a worker, or one that another Redis has."""
    monkeypatch.setattr(hub_module, "_ARRIVAL_WAIT", 60.0)
    entry = Entry.from_record("p-2", record(2))
    hub = Hub(LateBroker(), HubOptions())
    opened: list[bytes] = []
    opening = threading.Thread(target=lambda: opened.append(hub.open("p-2").preamble), daemon=True)
    opening.start()
    wait_until(lambda: hub._appended._waiters, 20, "it waits")
    hub.restart("p-1", [entry])
    opening.join(20)
    assert b"stream.reset" not in opened[0]


def test_a_server_that_starts_without_its_history_tells_one_gap() -> None:
    """The coming of the history is one; that the position is unknown until then is none."""
    hub = Hub(SilentBroker(), HubOptions())
    opening = hub.open("p-2")
    assert (opening.reset, b"stream.reset" in opening.preamble) == (None, False)
    assert hub.read(Audience(), None, opening.ordinal).gap is None
    hub.restart("p-3", [])
    assert hub.read(Audience(), None, opening.ordinal).gap == "history-lost"
    assert hub.open("p-2").reset == "unknown-position"


def test_a_position_that_never_arrives_is_not_waited_for_long() -> None:
    """It may be forged, or of a Redis that lost it."""
    hub = Hub(LateBroker(), HubOptions())
    hub.restart("p-1", [])
    begun = time.monotonic()
    assert b"stream.reset" in hub.open("p-9").preamble
    assert time.monotonic() - begun < 3


BEATS = """
import gevent.monkey
gevent.monkey.patch_all()
import gevent
from flask_noc_realtime.broker.memory import MemoryBroker
from flask_noc_realtime.hub import Hub, HubOptions
from tests.contract.sinks import key, record

broker = MemoryBroker(1000, 10**7)
hub = Hub(broker, HubOptions())
hub.start()
beats = []


def beat():
    try:
        hub.heartbeat()
        beats.append(True)
    except BaseException:
        beats.append(False)


timer = gevent.get_hub().loop.timer(0.0005, 0.0005)
timer.start(beat)
number = 0
while len(beats) < 200:
    number += 1
    broker.publish(record(number), key())
    if number % 20 == 0:
        gevent.sleep(0)
assert all(beats), f"{beats.count(False)} of {len(beats)} failed"
"""


def test_the_event_loop_may_call_the_hub_amid_a_flow_of_events() -> None:
    """Its callbacks may wait for nothing: no greenlet gives way while it holds the hub's lock."""
    require("gevent")
    done = subprocess.run([sys.executable, "-c", BEATS], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
