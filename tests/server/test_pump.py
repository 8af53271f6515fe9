"""The pump alone: a stream may fall behind at any moment of a sweep, and is served all the same."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import require
from tests.gunicorn_server import ROOT

PREPARE = """
import socket, time
import gevent, gevent.monkey
from flask_noc_realtime.audience import Audience, TypeFilter
from flask_noc_realtime.auth import ANONYMOUS
from flask_noc_realtime.broker.memory import MemoryBroker
from flask_noc_realtime.emit import EmitOptions, Publisher
from flask_noc_realtime.event import Catalogue
from flask_noc_realtime.hub import Hub, HubOptions, Opening
from flask_noc_realtime.transport import StreamRequest, detached

detached.SLICE = 0.0
broker = MemoryBroker(1000, 1 << 20)
hub = Hub(broker, HubOptions(heartbeat=600.0))
hub.start()
pump = detached.Pump(hub, lambda leases: None)
emit = Publisher(broker, Catalogue(), EmitOptions(max_event_bytes=1 << 20)).emit
audience = ANONYMOUS.audience(TypeFilter.parse(""))


def join(cursor, user_id=None):
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    taken = detached.Taken(theirs, False)
    pump.add(taken, StreamRequest(audience, user_id), Opening(b"", cursor, hub.end))
    ours.settimeout(5)
    return ours


def until(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        gevent.get_hub().wait(gevent.get_hub().loop.timer(0.0))


def rest():
    until(lambda: not pump._sweeping)


def received(client, mark):
    client.setblocking(False)
    body = bytearray()

    def took():
        try:
            body.extend(client.recv(1 << 20))
        except BlockingIOError:
            pass
        return mark in body

    until(took)
    return bytes(body)


start = hub.end
crowd = [join(start) for _ in range(100)]
streams = list(pump._by_fd.values())


def amid_sweep():
    until(lambda: streams[0].cursor == hub.end)
    assert pump._sweeping and streams[-1].cursor != hub.end
"""

JOINS = """
emit("log.added", "first")
amid_sweep()
late = join(start)
received(late, b"first")
"""

BLOCKED = """
slow = join(hub.end, "7")
blocked = list(pump._by_fd.values())[-1]
while blocked.rest is None:
    emit("log.added", "x" * 60000, user_id="7")
    until(lambda: pump._sweeping)
    rest()
"""

UNBLOCKS = (
    BLOCKED
    + """
emit("log.added", "last")
amid_sweep()
while blocked.rest is not None:
    slow.recv(1 << 20)
    pump._on_ready()
assert pump._sweeping and blocked.cursor != hub.end
received(slow, b'"last"')
"""
)

OWN = """
user = join(hub.end, "7")
for n in range(3):
    emit("log.added", "x" * 60000, user_id="7")
emit("log.added", "last")
received(user, b'"last"')
"""

LAG = (
    """
begun = time.monotonic()
assert pump.lag(begun) == 0
emit("log.added", "first")
amid_sweep()
assert 0 < pump.lag(begun + 60) <= 60
rest()
assert pump.lag(begun + 60) == 0
replaying = join(start)
assert list(pump._by_fd.values())[-1].cursor == start
assert pump.lag(begun + 60) == 0
rest()
"""
    + BLOCKED
    + """
emit("log.added", "last")
until(lambda: pump._sweeping)
rest()
assert blocked.cursor != hub.end
assert pump.lag(begun + 60) == 0
"""
)

MOVED = (
    BLOCKED
    + """
from flask_noc_realtime.rollout import Rollout, record_of

broker.stand(record_of(Rollout(0, allow={"8"})), "key")
allowed = join(hub.end, "8")
until(lambda: pump.streams == 1)
for client in crowd:
    received(client, b'{"reason":"rollout"')
emit("log.added", "last")
received(allowed, b'"last"')
assert blocked.closed
"""
)


@pytest.mark.parametrize("script", [JOINS, UNBLOCKS, OWN], ids=["joins", "unblocks", "own"])
def test_a_stream_behind_amid_a_sweep_is_served_before_it_ends(script: str) -> None:
    """A wake during a sweep starts no other; without one more round it waits for a heartbeat."""
    run(script)


def test_the_lag_is_that_of_the_slowest_live_stream() -> None:
    """One that replays, or whose client does not read, is behind by itself."""
    run(LAG)


def test_a_rollout_ends_the_streams_of_who_is_moved_out() -> None:
    """The blocked ones too, at once; others go on."""
    run(MOVED)


def run(script: str) -> None:
    """Run *script* with a pump and a crowd of streams."""
    require("gevent")
    command = [sys.executable, "-c", PREPARE + script]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
