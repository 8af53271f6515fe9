"""Take Redis away from under load: `python -m tests.load.failover [SCENARIO] [OPTIONS]`.

Streams must miss nothing, or be told so by a reset.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import redis

from tests.load.bench import Load
from tests.load.clients import Drained, Streams
from tests.load.command import run_scenarios
from tests.load.emission import ProcessEmitter
from tests.load.report import Report
from tests.load.server import STREAM, serve
from tests.processes import wait_until
from tests.redis_server import RedisServer
from tests.redis_topologies import AT_ONCE, Cluster, Sentinel, follows

_SMALL = 16 * 1024
_FILL = "for _ = 1, 32 do redis.call('SET', KEYS[1], string.rep('x', ARGV[1])) end"
_SOME = 0.2
_PATIENCE = 20


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    streams: int = 1000
    rate: float = 1000.0
    workers: int = 2
    seconds: float = 15.0
    behind: float = 0.5


@dataclass(frozen=True)
class Topology:
    """A Redis that has a second one to fall back on.

    :ivar url: what the app is told.
    :ivar owner: has the log, and is to be lost.
    :ivar replica: takes over.
    """

    url: str
    owner: RedisServer
    replica: RedisServer

    def strike(self, behind: float) -> None:
        """Kill the owner as a crash does.

        :param behind: seconds of events that the replica does not have by then.
        """
        if behind:
            self._detach()
            time.sleep(behind)
        self.owner.kill9()

    def recovered(self) -> bool:
        """Tell whether the replica has taken over."""
        try:
            with self.replica.client() as client:
                return bool(client.info("replication")["role"] == "master")
        except redis.ConnectionError:
            # Sentinel ends the connections of a Redis whose role it changes.
            return False

    def _detach(self) -> None:
        """End the replication: to go on it would need everything, which waits for an hour."""
        client = self.owner.client()
        client.config_set("repl-diskless-sync-delay", 3600)
        client.config_set("repl-backlog-size", _SMALL)
        # In one packet, so that it has missed more than it could catch up on before it is back.
        with client.pipeline(transaction=False) as both:
            both.client_kill_filter(_type="replica")
            both.eval(_FILL, 1, "{noc}:nothing", _SMALL)
            both.execute()


def sentinel(directory: Path, stack: ExitStack) -> Topology:
    """Start a master, its replica, and the sentinel that watches both."""
    start = _starter(directory, stack)
    owner = start(args=AT_ONCE)
    replica = start(args=["--replicaof", "127.0.0.1", str(owner.port)])
    wait_until(lambda: follows(replica), 20, "the replica follows")
    sentinel = Sentinel(directory / "sentinel", owner)
    stack.callback(sentinel.close)
    wait_until(sentinel.replicas, 30, "the sentinel knows the replica")
    return Topology(sentinel.url, owner, replica)


def cluster(directory: Path, stack: ExitStack) -> Topology:
    """Start three masters, and a replica of the one that has the log."""
    cluster = Cluster(_starter(directory, stack))
    for _ in range(3):
        cluster.add()
    cluster.share_slots()
    cluster.meet()
    (owner,) = cluster.owners()
    replica = cluster.add_replica(owner)
    seeds = ",".join(f"127.0.0.1:{node.port}" for node in cluster.nodes if node is not owner)
    return Topology(f"redis+cluster://{seeds}", owner, replica)


def _starter(directory: Path, stack: ExitStack) -> Callable[..., RedisServer]:
    started: list[RedisServer] = []

    def start(**options: object) -> RedisServer:
        server = RedisServer(directory / f"redis-{len(started)}", **options)  # type: ignore[arg-type]
        started.append(server)
        stack.callback(server.close)
        return server.start()

    return start


SCENARIOS = {each.__name__: each for each in (sentinel, cluster)}


def run(scenario: str, options: Options) -> Report:
    """Lose a Redis while events are emitted, and return what became of the streams."""
    report = Report(f"{scenario}: {options.streams:,} streams, {options.rate:,.0f} events/s")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="noc-load-")))
        topology = SCENARIOS[scenario](directory, stack)
        server = stack.enter_context(
            serve(
                directory / "server",
                url=topology.url,
                transport="auto",
                workers=options.workers,
                settings={},
            )
        )
        streams = stack.enter_context(Streams(server.port, options.streams, STREAM))
        emitter = stack.enter_context(ProcessEmitter("noc", topology.url))
        load = Load(streams, emitter, options.streams, 200)
        report.add("streams", streams.connect().connected, target=f"{options.streams:,}")
        # The first event waits until the emitter has imported what it needs.
        load.start(options.rate, _SOME)
        load.wait()
        load.start(options.rate, options.seconds)
        calm = streams.count(options.seconds / 3)
        begun = time.monotonic()
        topology.strike(options.behind)
        wait_until(topology.recovered, 60, "the replica takes over")
        away = time.monotonic() - begun - options.behind
        storm = streams.count(options.seconds / 3)
        emitted = load.wait()
        drained = settle(load, options.rate)
        report.add("emitted", load.total)
        report.add("emitted/s", emitted.events / emitted.seconds)
        report.add("p99 before", calm.p99_ms, "ms")
        report.add("the replica took over after", away, "s")
        report.add("the longest wait of an event", storm.max_ms / 1000, "s")
        whole = drained.parsed - drained.reset_streams - drained.holed_streams
        report.add("streams that missed nothing", whole)
        report.add("streams that were reset", drained.reset_streams)
        report.add("resets before", calm.resets, target="0, or the machine is too slow for this")
        report.add("resets as Redis lost events", drained.history_lost)
        other = drained.resets - drained.history_lost - calm.resets
        report.add("resets for other reasons", other)
        report.add("events they missed each", drained.skipped / max(1, drained.reset_streams))
        report.add("streams with a hole nobody told of", drained.holed_streams, target="0")
        report.add("streams left silent", drained.parsed - drained.complete, target="0")
        report.add("events that came twice", drained.repeated, target="0")
        report.add("closed by the server", drained.closed, target="0")
    return report


def settle(load: Load, rate: float) -> Drained:
    """Emit until every stream has the last event: a reset passes over those there are."""
    for _ in range(_PATIENCE):
        load.start(rate, _SOME)
        load.wait()
        drained = load.drain(2.0)
        if drained.complete == drained.parsed:
            break
    return drained


_HELP = {
    "streams": "how many",
    "rate": "events a second",
    "workers": "gunicorn workers",
    "seconds": "how long events are emitted",
    "behind": "seconds of events the replica does not have when it takes over",
}


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for and print the table of each scenario."""
    parser = argparse.ArgumentParser("python -m tests.load.failover", description=__doc__)
    return run_scenarios(parser, run, SCENARIOS, Options, _HELP, arguments)


if __name__ == "__main__":
    sys.exit(main())
