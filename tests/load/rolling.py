"""Replace the workers under their streams: `python -m tests.load.rolling [SCENARIO] [OPTIONS]`.

Streams that end come back when they were told to, with the last id they saw, as browsers do.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.gunicorn_server import GunicornServer
from tests.load.bench import Load
from tests.load.clients import Prober, Streams
from tests.load.command import run_scenarios
from tests.load.emission import ProcessEmitter
from tests.load.report import Report
from tests.load.server import STREAM, VIEW
from tests.processes import wait_until
from tests.redis_server import RedisServer

_SOME = 0.2
_BEFORE = 0.5
_PATIENCE = 60.0


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    streams: int = 10_000
    rate: float = 20.0
    workers: int = 4
    seconds: float = 15.0
    retry: float = 3.0


def reload(server: GunicornServer, restart: Callable[[], GunicornServer]) -> None:
    """Replace all workers with SIGHUP, as `systemctl reload` does."""
    old = set(server.worker_pids())
    server.send_signal(signal.SIGHUP)

    def replaced() -> bool:
        now = set(server.worker_pids())
        return len(now) == server.workers and now.isdisjoint(old)

    wait_until(replaced, _PATIENCE, "all workers are new")


def stop(server: GunicornServer, restart: Callable[[], GunicornServer]) -> None:
    """Stop everything with SIGTERM, and start it anew."""
    assert server.stop() == 0
    restart()


SCENARIOS = {each.__name__: each for each in (reload, stop)}


def run(scenario: str, options: Options) -> Report:
    """Replace the workers while events are emitted, and return what became of the streams."""
    report = Report(f"{scenario}: {options.streams:,} streams, {options.workers} workers")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="noc-load-")))
        redis = RedisServer(directory / "redis").start()
        stack.callback(redis.stop)
        server = _serve(directory / "server", redis.url, options, stack)
        streams = stack.enter_context(Streams(server.port, options.streams, STREAM))
        emitter = stack.enter_context(ProcessEmitter("noc", redis.url))
        prober = stack.enter_context(Prober(server.port, VIEW))
        load = Load(streams, emitter, options.streams, 200)
        report.add("streams", streams.connect().connected, target=f"{options.streams:,}")
        # The first event waits until the emitter has imported what it needs.
        load.start(options.rate, _SOME)
        load.wait()
        load.drain()
        streams.follow()
        prober.forget()
        load.start(options.rate, options.seconds)
        streams.count(_BEFORE)
        begun = time.monotonic()
        SCENARIOS[scenario](
            server,
            lambda: _serve(directory / "again", redis.url, options, stack, server.port),
        )
        replaced = time.monotonic() - begun
        load.wait()
        drained = load.drain(_PATIENCE)
        back = streams.returns()
        report.add("events", load.total)
        report.add("all workers replaced after", replaced, "s")
        report.add("ended by the server", drained.closed, target="all")
        report.add("back", back.returns, target="as many")
        report.add("first back after", back.shortest, "s", f">= {options.retry / 2} s")
        report.add("last back after", back.longest, "s")
        report.add("came back within", back.span, "s", f"{options.retry} s")
        report.add("came back at most", back.peak, "a second")
        report.add("attempts that failed", back.refused)
        report.add("streams that have everything", drained.complete, target="all")
        report.add("events missing", drained.missing, target="0")
        report.add("events skipped by a reset", drained.skipped, target="0")
        report.add("events repeated", drained.repeated, target="0")
        report.add("views answered wrongly", prober.failures - prober.unanswered, target="0")
        report.add("views not answered", prober.unanswered, target="0 when reloaded")
        report.add("view p99", prober.quantile_ms(0.99), "ms")
        report.add("view max", prober.quantile_ms(1.0), "ms")
    return report


def _serve(
    directory: Path, url: str, options: Options, stack: ExitStack, port: int | None = None
) -> GunicornServer:
    server = GunicornServer(
        "tests.load.app:app",
        directory,
        workers=options.workers,
        args=["--worker-connections", "20000", "--backlog", "4096"],
        env={"NOC_REALTIME_URL": url, "NOC_REALTIME_RETRY": str(options.retry)},
        port=port,
    ).start()
    stack.callback(server.close)
    return server


_HELP = {
    "streams": "how many",
    "rate": "events a second",
    "workers": "gunicorn workers",
    "seconds": "how long events are emitted",
    "retry": "NOC_REALTIME_RETRY",
}


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for and print the table of each scenario."""
    parser = argparse.ArgumentParser("python -m tests.load.rolling", description=__doc__)
    return run_scenarios(parser, run, SCENARIOS, Options, _HELP, arguments)


if __name__ == "__main__":
    sys.exit(main())
