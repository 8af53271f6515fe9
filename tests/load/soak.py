"""Run for long under churn and faults: `python -m tests.load.soak [OPTIONS]`.

Memory and file descriptors must stay what they were, and no event may be missed.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from tests.load.bench import Load, say
from tests.load.clients import Streams
from tests.load.command import parse, show
from tests.load.emission import ProcessEmitter
from tests.load.report import Report
from tests.load.server import STREAM, LoadServer, resident, serve
from tests.processes import wait_until
from tests.redis_server import RedisServer

_STALLED = 50
_HISTORY = "2000"


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    minutes: float = 30.0
    warm_up: float = 6.0
    streams: int = 2000
    churn: int = 10
    rate: float = 20.0
    between: float = 60.0
    held_up: float = 3.0


class Soak:
    """The first worker is never killed: it is the one that is watched."""

    def __init__(
        self, server: LoadServer, redis: RedisServer, streams: Streams, held_up: float
    ) -> None:
        self.server = server
        self.redis = redis
        self.streams = streams
        self.watched = server.pids[0]
        self._held_up = held_up

    def kill_worker(self) -> None:
        """Kill the worker that is not watched, with no word of farewell."""
        others = [pid for pid in self.server.workers() if pid != self.watched]
        for pid in others:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(self._new(others)) == len(others), 60, "another worker serves")

    def kill_redis(self) -> None:
        """Kill Redis, which has written everything down, and start it again."""
        self.redis.kill9()
        self.redis.start()

    def cut_subscription(self) -> None:
        """End the connections that events come by."""
        with self.redis.client() as client:
            client.client_kill_filter(_type="pubsub")

    def freeze_redis(self) -> None:
        """Let Redis answer nobody for a while."""
        self.redis.pause()
        self.streams.count(self._held_up)
        self.redis.resume()

    def stall_clients(self) -> None:
        """Let some clients read nothing for a while."""
        self.streams.stall(_STALLED)
        self.streams.count(self._held_up)
        self.streams.resume()

    def descriptors(self) -> int:
        """Return the file descriptors of all workers, with every stream there."""
        self.streams.connect(-1)
        pids = self.server.workers()
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)

    def _new(self, others: Sequence[int]) -> set[int]:
        return set(self.server.workers()) - {self.watched, *others}


FAULTS: tuple[Callable[[Soak], None], ...] = (
    Soak.kill_worker,
    Soak.cut_subscription,
    Soak.kill_redis,
    Soak.stall_clients,
    Soak.freeze_redis,
)


def run(options: Options) -> Report:
    """Return what became of memory, descriptors and events."""
    report = Report(f"soak: {options.streams:,} streams, {options.minutes:g} minutes")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="noc-load-")))
        redis = RedisServer(directory / "redis", appendonly=True).start()
        stack.callback(redis.close)
        server = stack.enter_context(
            serve(
                directory / "server",
                url=redis.url,
                transport="auto",
                workers=2,
                settings={"HISTORY_EVENTS": _HISTORY},
            )
        )
        streams = stack.enter_context(Streams(server.port, options.streams, STREAM))
        emitter = stack.enter_context(ProcessEmitter("noc", redis.url))
        load = Load(streams, emitter, options.streams, 200)
        soak = Soak(server, redis, streams, options.held_up)
        connected = streams.connect(0)
        report.add("failed to connect", connected.failed, target="0")
        streams.follow()
        load.start(options.rate, options.minutes * 60)
        suffer(soak, options, report)
        load.wait()
        streams.connect(-1)
        load.start(options.rate, 0.5)
        load.wait()
        drained = load.drain(60.0)
        report.add("emitted", load.total)
        report.add("streams", drained.parsed)
        report.add("that have everything", drained.complete, target="all")
        report.add("events missed", drained.missing, target="0")
        report.add("events repeated", drained.repeated, target="0")
        report.add("events skipped by a reset", drained.skipped, target="0")
    return report


def suffer(soak: Soak, options: Options, report: Report) -> None:
    """Go through churn and faults, and look at the worker meanwhile."""
    begun = time.monotonic()
    warm = begun + options.warm_up * 60
    end = begun + options.minutes * 60
    faults, next_fault = cycle(FAULTS), begun + options.between
    suffered, samples, descriptors, shed = 0, [], 0, 0
    while (now := time.monotonic()) < end or suffered < len(FAULTS):
        soak.streams.count(min(1.0, max(0.05, end - now)))
        shed += soak.streams.shed(int((now - begun) * options.churn) - shed)
        # The last is over, and everything there again, before it ends.
        quiet = end - now < options.between / 2 and suffered >= len(FAULTS)
        if now >= next_fault and not quiet:
            fault = next(faults)
            say(f"  {(now - begun) / 60:5.1f} min: {fault.__name__}")
            fault(soak)
            suffered, next_fault = suffered + 1, now + options.between
        if now >= warm:
            descriptors = descriptors or soak.descriptors()
            samples.append(((now - begun) / 60, resident(soak.watched) / 2**20))
    report.add("faults", suffered)
    report.add("disconnects", shed)
    report.add("disconnects/s", shed / (time.monotonic() - begun))
    report.add("memory after the warm-up", samples[0][1], "MB")
    report.add("memory in the end", samples[-1][1], "MB")
    report.add("memory at most", max(size for _, size in samples), "MB")
    report.add("slope", slope(samples) * 10, "MB in 10 minutes", "< 1")
    report.add("file descriptors after the warm-up", descriptors)
    report.add("file descriptors in the end", soak.descriptors(), target="the same")


def slope(samples: Sequence[tuple[float, float]]) -> float:
    """Return by how much the second value of each goes up with the first (least squares)."""
    count = len(samples)
    middle = sum(x for x, _ in samples) / count
    spread = sum((x - middle) ** 2 for x, _ in samples)
    return sum((x - middle) * y for x, y in samples) / spread if spread else 0.0


_HELP = {
    "minutes": "how long",
    "warm_up": "minutes after which memory is looked at",
    "streams": "how many",
    "churn": "streams a second that leave and come back",
    "rate": "events a second",
    "between": "seconds between two faults",
    "held_up": "seconds for which Redis stands still, and clients read nothing",
}


def main(arguments: list[str] | None = None) -> int:
    """Run, and print the table."""
    parser = argparse.ArgumentParser("python -m tests.load.soak", description=__doc__)
    given, as_json = parse(parser, Options, _HELP, arguments)
    show(run(Options(**given)), as_json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
