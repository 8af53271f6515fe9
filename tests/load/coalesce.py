"""Measure coalescing beside other libraries: `python -m tests.load.coalesce [OPTIONS]`.

Herds come over four gunicorn workers, each a server of its own. The callers are greenlets within
the workers, which call the app as the server does; they are timed from the moment at which all
were to call, until each has its whole page. With cashews and aiocache they are tasks that await
the page's function, without requests.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from tests.load import coalesce_overhead, coalesce_stale
from tests.load.bench import say
from tests.load.coalesce_app import LEASE
from tests.load.coalesce_site import LIBRARIES, Library, Rush, Site, site
from tests.load.report import Comparison
from tests.processes import wait_until
from tests.redis_server import RedisServer
from tests.requirements import find

WORK = 0.3
"""Seconds of a query, while which the worker does something else."""

MARGIN = 0.025
TAKEOVER = 0.25

WORKERS = 4

LONG = 1.0
"""Seconds of a query during which something happens to its leader."""

_FOLLOWS = 0.3


@dataclass(frozen=True)
class Options:
    """How much is measured.

    :ivar callers: in each worker.
    :ivar many: and when there are a thousand.
    :ivar rounds: herds of `callers`, each for a new key; one more goes before, uncounted.
    :ivar patience: seconds after which there is no further round.
    :ivar turns: how often the hits of all libraries are timed, in turn.
    :ivar hits: how many each time.
    :ivar failing: callers in one worker of a page that fails.
    :ivar frozen: seconds that a leader stands still.
    :ivar calls: of the harness that counts what is stale.
    """

    callers: int = 50
    many: int = 250
    rounds: int = 5
    patience: float = 8.0
    turns: int = 100
    hits: int = 25
    failing: int = 20
    frozen: float = 10.0
    calls: int = 3000
    libraries: tuple[Library, ...] = LIBRARIES


SHORT = Options(callers=10, many=20, rounds=1, turns=4, hits=10, frozen=LEASE + 1.5, calls=500)


class Benchmark:
    """Fills one table."""

    def __init__(self, options: Options, directory: Path) -> None:
        self.options = options
        self.directory = directory
        names = [library.name for library in options.libraries]
        self.table = Comparison("coalescing", names)
        self._stacks = [ExitStack() for _ in options.libraries]
        self._sites: list[Site] = []

    def sites(self) -> list[Site]:
        """Return the workers of all libraries, started with the first that asks."""
        if not self._sites:
            say("Starting the workers.")
            with ThreadPoolExecutor(2) as pool:
                self._sites = list(pool.map(self._start, self.options.libraries, self._stacks))
        return self._sites

    def _start(self, library: Library, stack: ExitStack) -> Site:
        return stack.enter_context(site(library, WORKERS, self.directory / library.module))

    def close(self) -> None:
        """End all workers."""
        with ThreadPoolExecutor(len(self._stacks)) as pool:
            list(pool.map(ExitStack.close, self._stacks))

    def herd(self) -> None:
        """Ask for a page nobody has asked for, from all workers at once."""
        options, add = self.options, self.table.add
        limit = f"<= {(WORK + MARGIN) * 1e3:.0f}"
        for each in self.sites():
            say(f"A herd at {each.library.name}.")
            rushes = list(self._rounds(each))
            many = each.rush(options.many, work=WORK)
            name, herd = each.library.name, f"{WORKERS * options.callers} callers"
            add(f"{herd}: executions", name, max(rush.executions for rush in rushes), "1")
            add("  p99, ms", name, median(rush.p99 for rush in rushes), limit)
            add("  p99 in the best round, ms", name, min(rush.p99 for rush in rushes))
            add("  of requests that only wait", name, self._waiting(each))
            add("  Redis commands", name, median(rush.commands for rush in rushes), "<= 250")
            herd = f"{WORKERS * options.many} callers"
            add(f"{herd}: executions", name, many.executions, "1")
            add("  p99 of the many, ms", name, many.p99)
            failed = sum(rush.failed for rush in (*rushes, many))
            add("  failed of both", name, failed, "0")

    def _rounds(self, each: Site) -> Iterator[Rush]:
        enough = time.monotonic() + self.options.patience
        each.rush(self.options.callers, work=WORK)
        for number in range(self.options.rounds):
            if number and time.monotonic() > enough:
                return
            yield each.rush(self.options.callers, work=WORK)

    def _waiting(self, each: Site) -> float | None:
        """Return the p99 of as many requests that share nothing and cost nothing: the floor."""
        if each.library.asynchronous:
            return None
        rushes = [
            each.rush(self.options.callers, work=WORK, path="/wait")
            for _ in range(self.options.rounds + 1)
        ]
        return median(rush.p99 for rush in rushes[1:])

    def overheads(self) -> None:
        """Time hits."""
        say("Hits of all libraries, in turn.")
        options = self.options
        server = RedisServer(self.directory / "redis").start()
        try:
            get, overheads = coalesce_overhead.measure(
                options.libraries, server, options.turns, options.hits
            )
        finally:
            server.close()
        add = self.table.add
        for name, each in overheads.items():
            add("hit in memory, of a function, us", name, each.function.p50, "<= 8")
            add("  in the best round, us", name, each.function.best)
            add("hit in memory, of a view, us", name, each.view and each.view.p50, "<= 16")
            add("  best round of the view, us", name, each.view and each.view.best)
            add("hit in Redis, 10 KiB, us", name, each.shared.p50)
            add(f"  to a bare GET ({get.p50:.0f} us)", name, each.shared.p50 / get.p50, "<= 1.35")
            add("  to it, best rounds", name, each.shared.best / get.best)

    def failing(self) -> None:
        """Ask for a page that fails, and for one whose leader is cancelled."""
        options, add = self.options, self.table.add
        limit = f"<= {(WORK + MARGIN) * 1e3:.0f}"
        one = slice(1)
        for each in self.sites():
            say(f"Failures at {each.library.name}.")
            name = each.library.name
            rush = each.rush(options.failing, workers=one, work=WORK, fail=1)
            add(
                f"{options.failing} callers of a failing page: executions",
                name,
                rush.executions,
                "1",
            )
            add("  the last has its error after, ms", name, rush.slowest, limit)
            rush = each.rush(options.failing, workers=one, work=WORK, cancel=WORK / 3)
            add("leader cancelled: others that failed", name, rush.failed - 1, "0")
            add("  the last has its page after, ms", name, rush.slowest)

    def killed(self) -> None:
        """Kill leaders, and freeze leaders, of all libraries at once: that is mostly waiting."""
        say("Leaders are killed, and frozen.")
        sites = self.sites()
        with ThreadPoolExecutor(2 * len(sites)) as pool:
            killed = [pool.submit(_kill, each) for each in sites]
            frozen = [pool.submit(_freeze, each, self.options.frozen) for each in sites]
            limit = f"<= {LEASE + TAKEOVER + LONG:.2f}"
            for each, after, served in zip(sites, killed, frozen, strict=True):
                name = each.library.name
                self.table.add("leader killed: a page after, s", name, after.result(), limit)
                self.table.add("  the zombie's page is kept", name, served.result(), "no")

    def stale(self) -> None:
        """Count what is given out after the event that ends it."""
        for library in self.options.libraries:
            say(f"Readers and writers at {library.name}.")
            herd = coalesce_stale.measure(library, self.options.calls)
            self.table.add("stale results", library.name, len(herd.stale), "0")
            self.table.add("  of so many calls", library.name, herd.calls)


SCENARIOS: dict[str, Callable[[Benchmark], None]] = {
    "herd": Benchmark.herd,
    "overheads": Benchmark.overheads,
    "failing": Benchmark.failing,
    "stale": Benchmark.stale,
    # Last: who is killed here is missing afterwards.
    "killed": Benchmark.killed,
}


def _lead(each: Site, pool: ThreadPoolExecutor, key: str, worker: int) -> Future[Rush]:
    """Return the rush of one caller in *worker*, once it has begun the work."""
    only = slice(worker, worker + 1)
    asked = pool.submit(each.rush, 1, workers=only, delay=0.0, key=key, work=LONG)
    wait_until(lambda: each.executions(key), 10.0, "the work is begun")
    return asked


def _kill(each: Site) -> float:
    """Return the seconds from a leader's death until one who waits elsewhere has the page."""
    key = each.key()
    with ThreadPoolExecutor(2) as pool:
        leader = _lead(each, pool, key, 0)
        asked = pool.submit(each.rush, 1, workers=slice(1, 2), delay=0.0, key=key, work=LONG)
        time.sleep(_FOLLOWS)
        os.kill(each.pids[0], signal.SIGKILL)
        killed = time.time()
        follower = asked.result()
        if leader.exception() is None:
            raise RuntimeError("the leader was done before it was killed")
    return follower.moment + follower.seconds[0] - killed


def _freeze(each: Site, seconds: float) -> str:
    """Return whether a leader that stood still puts its page in place of a newer one."""
    key = each.key()
    with ThreadPoolExecutor(1) as pool:
        leader = _lead(each, pool, key, 2)
        os.kill(each.pids[2], signal.SIGSTOP)
        frozen = time.monotonic()
        try:
            [newer] = each.rush(1, workers=slice(3, 4), key=key, work=LONG).pages
            if each.executions(key) != 2:
                raise RuntimeError("the leader was done before it was frozen")
            time.sleep(max(0, frozen + seconds - time.monotonic()))
        finally:
            os.kill(each.pids[2], signal.SIGCONT)
        leader.result()
    [served] = each.rush(1, workers=slice(3, 4), key=key, work=LONG).pages
    return "no" if served == newer else "yes"


def run(options: Options, scenarios: Collection[str] = ()) -> Comparison:
    """Measure and return the table.

    :param scenarios: some of `SCENARIOS`; all by default.
    """
    with tempfile.TemporaryDirectory(prefix="noc-coalesce-") as directory:
        with closing(Benchmark(options, Path(directory))) as benchmark:
            for name, scenario in SCENARIOS.items():
                if not scenarios or name in scenarios:
                    scenario(benchmark)
            return benchmark.table


def main(arguments: list[str] | None = None) -> int:
    """Measure what the command line asks for and print the table."""
    parser = argparse.ArgumentParser("python -m tests.load.coalesce", description=__doc__)
    parser.add_argument("--short", action="store_true", help="little of everything")
    parser.add_argument("--only", default="", help=f"some of {','.join(SCENARIOS)}")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    scenarios = [name for name in given.only.split(",") if name]
    if not set(scenarios) <= set(SCENARIOS):
        parser.error(f"--only takes some of {','.join(SCENARIOS)}")
    if find("redis-server") is None:
        parser.error("redis-server is not installed")
    options = SHORT if given.short else Options()
    found = tuple([library for library in LIBRARIES if not library.missing])
    table = run(replace(options, libraries=found), scenarios)
    print(json.dumps(table.values()) if given.json else "\n".join(table.lines()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
