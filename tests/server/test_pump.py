"""The pump alone: it is fair, and whoever falls behind is served all the same, or told."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import require
from tests.gunicorn_server import ROOT

PREPARE = """
import os, socket, time
import gevent, gevent.monkey
from flask_noc_realtime.audience import Audience, TypeFilter
from flask_noc_realtime.auth import ANONYMOUS
from flask_noc_realtime.broker.memory import MemoryBroker
from flask_noc_realtime.emit import EmitOptions, Publisher
from flask_noc_realtime.event import Catalogue
from flask_noc_realtime.hub import Hub, HubOptions, Opening
from flask_noc_realtime.transport import StreamRequest, detached

detached.SLICE = detached.SLICE if SLICE is None else SLICE
broker = MemoryBroker(1000, 1 << 24)
hub = Hub(broker, HubOptions(**OPTIONS))
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


def types(body):
    return [line[7:] for line in body.split(b"\\n") if line.startswith(b"event: ")]


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


COUNTED = (
    """
from collections import Counter
from flask_noc_realtime.metrics import Metrics

class Recording(Metrics):
    sent, replayed, lasted = Counter(), 0, []

    def swept(self, sweep):
        self.replayed += sweep.replayed
        for rules, writes in sweep.writes:
            for rule in rules:
                self.sent[rule.type] += writes

    def ended(self, seconds):
        self.lasted.append(seconds)

rest()
counts = pump._metrics = Recording()
emit("log.added", "first")
emit("incident.created", "second")
until(lambda: pump._sweeping)
rest()
assert counts.sent == {"log.added": 100, "incident.created": 100}, counts.sent
replaying = join(start)
received(replaying, b"second")
rest()
assert counts.sent == {"log.added": 101, "incident.created": 101}, counts.sent
assert counts.replayed == 2, counts.replayed
counts.sent.clear()
"""
    + BLOCKED
    + """
body = bytearray()

def took():
    body.extend(slow.recv(1 << 20))
    return types(body[: body.rfind(b"\\n\\n") + 1]).count(b"log.added")

before = counts.sent["log.added"]
while blocked.rest is not None:
    assert counts.sent["log.added"] == before
    took()
    pump._on_ready()
rest()
until(lambda: took() == counts.sent["log.added"] == before + 1)
while blocked.rest is None:
    for n in range(40):
        emit("log.added", "x" * 3000, user_id="7")
    until(lambda: pump._sweeping)
    rest()
while len(blocked.rest) > len(blocked.rest.obj) - 10000:
    body.extend(slow.recv(10000))
    pump._on_ready()
before = counts.sent["log.added"]
emit("incident.updated", "last")
amid_sweep()
pump.close("shutdown")
assert blocked.closed and len(counts.lasted) == 102 and min(counts.lasted) > 0
slow.setblocking(True)
while (part := slow.recv(1 << 20)):
    body.extend(part)
whole = types(body[: body.rfind(b"\\n\\n") + 1])
assert counts.sent["log.added"] == whole.count(b"log.added") > before, counts.sent
others = bytearray()
for client in (*crowd, replaying):
    client.setblocking(True)
    while (part := client.recv(1 << 20)):
        others.extend(part)
assert 0 < counts.sent["incident.updated"] == types(others).count(b"incident.updated") < 100
"""
)


# The clock goes on by half a millisecond whenever it is looked at, as if sends took that.
GIVES_WAY = """
now = time.monotonic()

def clock():
    global now
    now += 0.0005
    return now

turns = 0

def others():
    global turns
    while True:
        turns += 1
        gevent.get_hub().wait(gevent.get_hub().loop.timer(0.0))

detached.time = type("Clock", (), {"monotonic": staticmethod(clock)})
crowd += [join(hub.end) for _ in range(1500)]
rest()
ticking = gevent.spawn(others)
emit("log.added", "first")
until(lambda: pump._sweeping)
turns, begun = 0, now
rest()
ticking.kill()
assert now - begun > 0.02, now - begun
assert turns >= (now - begun) / 0.003, (turns, now - begun)
"""

CAPPED = """
behind = hub.end
for n in range(40):
    emit("log.added", ["x" * 20000, n])
rest()

class Recording(socket.socket):
    sent = []

    def send(self, body):
        self.sent.append(len(body))
        return super().send(body)

ours, theirs = socket.socketpair()
taken = detached.Taken(Recording(fileno=theirs.detach()), False)
taken.client.setblocking(False)
pump.add(taken, StreamRequest(audience), Opening(b"", behind, hub.end))
received(ours, b",39]")
assert sum(Recording.sent) > 800_000, Recording.sent
assert max(Recording.sent) <= 128 * 1024, Recording.sent
"""

LATE = """
rest()
pump._sweeping = True
for text in ("first", "second"):
    emit("log.added", text)
    begun = time.monotonic()
    until(lambda: time.monotonic() - begun > 0.2)
pump._sweeping = False
emit("log.added", "third")
body = received(crowd[0], b'"reason":"overload"')
assert types(body) == [b"stream.reset"], body
"""

OVERRUN = """
rest()
pump._sweeping = True
for n in range(50):
    emit("log.added", n)
pump._sweeping = False
emit("log.added", "last")
body = received(crowd[0], b'"reason":"overrun"')
assert types(body) == [b"stream.reset"], body
"""

FORKED = """
client = crowd.pop()
pid = os.fork()
if not pid:
    time.sleep(60)
    os._exit(0)
try:
    client.shutdown(socket.SHUT_RDWR)
    client.close()
    until(lambda: pump.streams == 99)
    assert pump._epoll.poll(0.05, 256) == []
finally:
    os.kill(pid, 9)
    os.waitpid(pid, 0)
"""

BEATS = """
rest()
heartbeat, failures = hub.heartbeat, []

def fail():
    if len(failures) < 3:
        failures.append(1)
        raise RuntimeError("a test")
    return heartbeat()

hub.heartbeat = fail
received(crowd[0], b"event: heartbeat")
received(crowd[-1], b"event: heartbeat")
assert len(failures) == 3
"""


def run(script: str, slice: float | None = 0.0, **options: float) -> tuple[int, str]:
    """Run a script with a pump of its own, unpatched; return how it ended.

    :param slice: seconds after which the pump gives way; by default it does after each run.
    :param options: of the hub.
    """
    require("gevent")
    given = f"SLICE, OPTIONS = {slice!r}, { ({'heartbeat': 600.0} | options)!r}\n"
    command = [sys.executable, "-c", given + PREPARE + script]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    return result.returncode, result.stderr


@pytest.mark.parametrize("script", [JOINS, UNBLOCKS, OWN], ids=["joins", "unblocks", "own"])
def test_a_stream_behind_amid_a_sweep_is_served_before_it_ends(script: str) -> None:
    """A wake during a sweep starts no other; without one more round it waits for a heartbeat."""
    assert run(script) == (0, "")


def test_a_sweep_gives_way_every_few_milliseconds() -> None:
    """So that ordinary views stay quick beside thousands of streams."""
    assert run(GIVES_WAY, slice=None) == (0, "")


def test_a_write_is_capped() -> None:
    """A stream far behind catches up in several, and holds up no other."""
    assert run(CAPPED) == (0, "")


def test_a_stream_that_the_worker_cannot_keep_live_is_reset() -> None:
    """Overload ends in resets, not in seconds of latency for all."""
    assert run(LATE, max_lag=0.1) == (0, "")


def test_a_stream_that_fell_off_the_log_is_reset() -> None:
    """It is told so, once, and never skipped in silence."""
    assert run(OVERRUN, history_events=10) == (0, "")


def test_a_client_that_left_a_worker_which_forked_is_forgotten() -> None:
    """The child has the connection as well, so that closing it here ends nothing there."""
    assert run(FORKED) == (0, "")


def test_a_heartbeat_that_fails_is_made_up_for() -> None:
    """Otherwise the streams it was for would be cut by the next proxy."""
    code, errors = run(BEATS, heartbeat=0.4)
    assert code == 0, errors
    assert errors.count("The pump stumbled over a heartbeat; it goes on.") == 3


def test_an_event_is_counted_when_a_connection_has_taken_all_of_it() -> None:
    """Once for each stream: written at once, in parts, as a replay, or just before the end.

    The end may come amid a sweep.
    """
    assert run(COUNTED) == (0, "")


def test_the_lag_is_that_of_the_slowest_live_stream() -> None:
    """One that replays, or whose client does not read, is behind by itself."""
    assert run(LAG) == (0, "")


def test_a_rollout_ends_the_streams_of_who_is_moved_out() -> None:
    """The blocked ones too, at once; others go on."""
    assert run(MOVED) == (0, "")
