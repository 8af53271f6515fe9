"""One run: a server, its streams and its emitter, and the steps of load they are put through."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.load.clients import Connected, Count, Drained, Floor, Sent, Streams
from tests.load.emission import Emitted, Emitter, Plan, ProcessEmitter, WorkerEmitter
from tests.load.peers import Peer
from tests.load.server import STREAM, LoadServer, serve
from tests.processes import free_port
from tests.redis_server import RedisServer

# A new connection acknowledges its first sixteen segments one by one (TCP_MAX_QUICKACKS in
# Linux), for which a write takes a third longer, in C as well.
_WARM_UP = 3.0
_TAIL = 0.5
_SUSTAINED_SHARE = 0.98
_SUSTAINED_P99_MS = 1000.0
_REFINEMENTS = 2
_PEER_START = 2.0
_FLOOR_OVERHEAD = 16


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    broker: str = "redis"
    transport: str = "auto"
    streams: int = 10_000
    rate: float = 100.0
    workers: int = 1
    seconds: float = 10.0
    classes: int = 10
    size: int = 200
    every: int = 0
    peers: bool = True
    peer_streams: int = 1000
    floor: bool = True
    find_max: bool = False
    max_rate: float = 0.0
    max_steps: int = 12
    stall_seconds: float = 60.0
    missed: int = 100
    metrics: bool = False

    @property
    def sample(self) -> int:
        """One stream in so many is parsed."""
        return self.every or max(1, self.streams // 1000)


@dataclass(frozen=True)
class Step:
    """One rate, held for a while.

    :ivar reached: how many streams an event is for.
    """

    rate: float
    reached: float
    count: Count
    emitted: Emitted

    @property
    def share(self) -> float:
        """Which part of what was offered came."""
        return self.count.rate / (self.rate * self.reached)

    @property
    def sustained(self) -> bool:
        """Whether the rate could be held for ever."""
        # Where a window of few events begins and ends makes a difference of one.
        share = self.share + 1 / (self.rate * self.count.seconds)
        return (
            share >= _SUSTAINED_SHARE
            and 0 <= self.count.p99_ms < _SUSTAINED_P99_MS
            and self.count.resets == 0
        )


class Load:
    """Streams and an emitter, on whatever server.

    :param spread: each event is for one class of so many; 1 sends each to all.
    """

    def __init__(
        self, streams: Streams, emitter: Emitter, count: int, size: int, spread: int = 1
    ) -> None:
        self.streams = streams
        self.emitter = emitter
        self.total = 0
        self._count = count
        self._size = size
        self._spread = spread

    def start(self, rate: float, seconds: float) -> None:
        """Begin to emit."""
        self.emitter.start(Plan(rate, seconds, self._size, self.total, self._spread))

    def wait(self) -> Emitted:
        """Return once everything is emitted."""
        emitted = self.emitter.wait()
        self.total += emitted.events
        return emitted

    def drain(self, timeout: float = 20.0) -> Drained:
        """Wait until every stream has everything, or *timeout* is over."""
        return self.streams.drain(self.total, self._spread, timeout)

    def step(
        self, rate: float, seconds: float, measure: Callable[[float], Count] | None = None
    ) -> Step:
        """Hold *rate* for *seconds*, after a warm-up."""
        warm_up = min(_WARM_UP, seconds)
        self.start(rate, warm_up + seconds + _TAIL)
        self.streams.count(warm_up)
        count = (measure or self.streams.count)(seconds)
        return Step(rate, self._count / self._spread, count, self.wait())

    def highest(self, start: float, seconds: float, growth: float, max_steps: int) -> Step | None:
        """Step the rate and return the highest that is sustained."""
        best: Step | None = None
        broken = 0.0
        rate, refinements = start, 0
        for _ in range(max_steps):
            step = self.step(rate, seconds)
            say(
                f"  {rate:8,.0f} events/s: {step.count.rate:12,.0f} deliveries/s, "
                f"p99 {step.count.p99_ms:,.0f} ms" + ("" if step.sustained else ", not sustained")
            )
            if step.sustained:
                best = step
            else:
                broken = rate
                self.streams.quiet()
            if broken and best:
                if refinements == _REFINEMENTS:
                    break
                refinements += 1
                rate = (best.rate + broken) / 2
            else:
                rate = rate * growth if best else rate / 2
        return best


class Bench(Load):
    """The app under load with its streams and its emitter; see `bench`."""

    def __init__(
        self,
        options: Options,
        server: LoadServer,
        redis: RedisServer | None,
        streams: Streams,
        emitter: Emitter,
        spread: int,
    ) -> None:
        super().__init__(streams, emitter, options.streams, options.size, spread)
        self.options = options
        self.server = server
        self.redis = redis
        self.cpu_share = 0.0
        self._resident = server.resident()

    def connect(self) -> Connected:
        """Open every stream."""
        return self.streams.connect()

    def memory_per_stream(self) -> float:
        """Return the bytes that the workers grew by, for each stream."""
        return (self.server.resident() - self._resident) / self.options.streams

    def measure(self, seconds: float) -> Count:
        """Count for *seconds*, and note the CPU the workers take."""
        before = self.server.cpu()
        count = self.streams.count(seconds)
        self.cpu_share = (self.server.cpu() - before) / count.seconds
        return count

    def redis_calls(self) -> dict[str, int]:
        """Return how often each Redis command was called so far."""
        if self.redis is None:
            return {}
        with self.redis.client() as client:
            stats: dict[str, Any] = client.info("commandstats")
        return {name.partition("_")[2]: entry["calls"] for name, entry in stats.items()}


@contextmanager
def bench(
    options: Options,
    directory: Path,
    *,
    spread: int = 1,
    sample: int | None = None,
    rcvbuf: int = 0,
    settings: Mapping[str, str] | None = None,
) -> Iterator[Bench]:
    """Start broker, server, clients and emitter; nothing is connected yet."""
    with ExitStack() as stack:
        redis, url = None, "memory://"
        if options.broker == "redis":
            redis = RedisServer(directory / "redis").start()
            stack.callback(redis.stop)
            url = redis.url
        server = stack.enter_context(
            serve(
                directory / "server",
                url=url,
                transport=options.transport,
                workers=options.workers,
                settings={"METRICS": "auto" if options.metrics else "off", **(settings or {})},
            )
        )
        streams = stack.enter_context(
            Streams(
                server.port,
                options.streams,
                STREAM,
                classes=options.classes,
                every=sample or options.sample,
                rcvbuf=rcvbuf,
            )
        )
        emitter: Emitter
        if redis is None:
            emitter = WorkerEmitter(server.url)
        else:
            emitter = stack.enter_context(ProcessEmitter("noc", url))
        yield Bench(options, server, redis, streams, emitter, spread)


@dataclass(frozen=True)
class FloorResult:
    """What a bare send() loop does with the same bytes in each write."""

    sends: float
    deliveries: float
    sent: Sent


def measure_floor(options: Options, directory: Path, like: Count) -> FloorResult:
    """Measure the floor with writes as large as those of *like*."""
    body = directory / "floor.body"
    body.write_bytes(floor_body(like.bytes / max(1, like.writes), like.bytes / like.events))
    port = free_port()
    with (
        Floor(port, options.streams, body) as floor,
        Streams(port, options.streams, "/", every=options.sample) as streams,
    ):
        connected = streams.connect(-1)
        if connected.failed:
            raise RuntimeError(f"{connected.failed} streams could not connect to the floor")
        floor.start(options.seconds + _WARM_UP + _TAIL)
        streams.count(_WARM_UP)
        count = streams.count(options.seconds)
        sent = floor.wait()
    frames = count.bytes / (like.bytes / like.events)
    return FloorResult(sent.sends / sent.seconds, frames / count.seconds, sent)


def floor_body(write: float, frame: float) -> bytes:
    """Return one chunk of about *write* bytes, in frames of about *frame* bytes."""
    room = max(64, round(write) - _FLOOR_OVERHEAD)
    frames = max(1, round(room / frame))
    lead = b"id: 0-0\nevent: incident.created\ndata: "
    lengths = [room // frames] * (frames - 1)
    lengths.append(room - sum(lengths))
    text = b"".join(lead.ljust(length - 2, b"x") + b"\n\n" for length in lengths)
    return b"%x\r\n%b\r\n" % (len(text), text)


def measure_peer(options: Options, directory: Path, peer: Peer) -> Step | None:
    """Return the highest rate a peer sustains, on as many streams as it is meant for."""
    with ExitStack() as stack:
        redis = RedisServer(directory / "redis").start()
        stack.callback(redis.stop)
        port = stack.enter_context(peer.serve(directory / "server", redis.url))
        streams = stack.enter_context(Streams(port, options.peer_streams, "/stream"))
        emitter = stack.enter_context(ProcessEmitter(peer.emitter, redis.url))
        load = Load(streams, emitter, options.peer_streams, options.size)
        if peer.silent:
            load.start(_PEER_START, options.peer_streams / 200 + 3)
        connected = streams.connect(-1)
        if peer.silent:
            load.wait()
        if connected.failed:
            raise RuntimeError(f"{connected.failed} streams could not connect to {peer.name}")
        return load.highest(_PEER_START, min(options.seconds, 4.0), 2.0, options.max_steps)


def say(text: str) -> None:
    """Tell the person who waits what goes on."""
    print(text, file=sys.stderr, flush=True)
