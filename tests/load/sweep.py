"""Measure what counting costs a sweep: `python -m tests.load.sweep`.

Each send takes as long as one to the loopback does, without its noise. Sweeps with and without
metrics alternate in one process.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
import time

SEND_NS = 5000
"""What a send() to the loopback costs; see the floor of `tests.load.streams`."""

TYPES = ("incident.created", "incident.updated", "log.added", "server.status.changed")
SHAPES = ((1, 1), (1, 20), (10, 1), (10, 20), (1000, 1), (1000, 20))


class Sink(socket.socket):
    """A socket that takes everything, in `SEND_NS`."""

    def send(self, body: bytes, flags: int = 0) -> int:  # type: ignore[override]
        """Take it."""
        until = time.perf_counter_ns() + SEND_NS
        while time.perf_counter_ns() < until:
            pass
        return len(body)


def measure(lanes: int, each: int, events: int, rounds: int) -> tuple[float, float, float]:
    """Return the nanoseconds of a write in the best sweep without metrics and with them.

    And the median of the differences, since others may use the machine.

    :param lanes: audience classes, of *each* streams.
    :param events: events in a write.
    """
    import gevent
    import gevent.monkey
    from prometheus_client import CollectorRegistry

    from flask_noc_realtime.audience import Audience
    from flask_noc_realtime.broker.memory import MemoryBroker
    from flask_noc_realtime.emit import EmitOptions, Publisher
    from flask_noc_realtime.event import Catalogue
    from flask_noc_realtime.hub import Hub, HubOptions, Opening
    from flask_noc_realtime.metrics import OFF, metrics_in
    from flask_noc_realtime.transport import StreamRequest, detached

    broker = MemoryBroker(10_000, 1 << 26)
    hub = Hub(broker, HubOptions(heartbeat=3600.0))
    hub.start()
    pump = detached.Pump(hub, lambda leases: None)
    emitter = Publisher(broker, Catalogue(), EmitOptions())
    others = []
    for lane in range(lanes):
        audience = Audience(frozenset({"all", f"class.{lane}"}))
        for _ in range(each):
            ours, theirs = socket.socketpair()
            others.append(theirs)
            taken = detached.Taken(Sink(fileno=ours.detach()), True)  # type: ignore[arg-type]
            pump.add(taken, StreamRequest(audience), Opening(b"", hub.end, hub.end))

    def sweep() -> float:
        for number in range(events):
            emitter.emit(TYPES[number % len(TYPES)], "x" * 200, permissions=["all"])
        begun = time.process_time_ns()
        pump._on_woken()
        while pump._sweeping:
            gevent.get_hub().wait(gevent.get_hub().loop.timer(0.0))
        return (time.process_time_ns() - begun) / (lanes * each)

    counting = metrics_in(CollectorRegistry(), Catalogue())
    plain, counted = [], []
    for number in range(rounds + 1):
        found = {}
        # Whoever is second finds warmer caches.
        for metrics in (OFF, counting) if number % 2 else (counting, OFF):
            pump._metrics = metrics
            found[metrics is OFF] = sweep()
        if number:
            plain.append(found[True])
            counted.append(found[False])
    pump.close("shutdown")
    for other in others:
        other.close()
    differences = [two - one for one, two in zip(plain, counted, strict=True)]
    return min(plain), min(counted), statistics.median(differences)


def main(arguments: list[str] | None = None) -> int:
    """Print a row for each shape of the streams."""
    parser = argparse.ArgumentParser("python -m tests.load.sweep", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="of each shape (200)")
    parser.add_argument("--streams", type=int, default=5000, help="about how many (5000)")
    parser.add_argument(
        "--directory", action="store_true", help="count as several workers do, in a directory"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, a line a shape")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="noc-counts-") as directory:
        if given.directory:
            # Before prometheus_client is imported, which decides then.
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
        for lanes, events in SHAPES:
            each = max(1, given.streams // lanes)
            plain, counted, median = measure(lanes, each, events, given.rounds)
            row = {"lanes": lanes, "each": each, "events": events, "plain_ns": plain}
            row |= {"counted_ns": counted, "median_ns": median, "ratio": counted / plain}
            if given.json:
                print(json.dumps(row), flush=True)
                continue
            print(
                f"{lanes:5} x {each:5} streams, {events:2} events a write: {plain:7,.0f} ns, "
                f"counted {counted:7,.0f} ns: {counted / plain - 1:+.2%} "
                f"(median {median:+,.0f} ns, {median / plain:+.2%})",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
