"""Simulate a dashboard before and after: `python -m tests.load.dashboard [OPTIONS]`.

Time is not compressed. Each user has a login and a page of their own, on real connections to
``gunicorn -k gevent`` with two workers; the database is an SQLite file, the broker a Redis.

Before, a page polls incidents, statistics and devices. After, it loads them once and applies the
events of its stream, which hold whole rows. The statistics cannot be told from one row, and a
page that fetched them on each event would ask more often than one that polls. So they are counted
once for all and sent as an event, a second after a change at the latest.

Bytes are what the pages send and receive, with the heads of requests and responses and without
those of TCP. Scripts and styles are left out, which are the same before and after, and cached.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import gevent

from demo_app.legacy.models import open_database
from demo_app.legacy.services import Services
from tests.gunicorn_server import ROOT, GunicornServer
from tests.load.bench import say
from tests.load.dashboard_app import Statistics, cookie, counted, fill, panels
from tests.load.dashboard_page import Meter, Polling, Streaming, User
from tests.load.emission import Emitted, Plan
from tests.load.report import Report
from tests.load.server import LoadServer
from tests.redis_server import RedisServer
from tests.requirements import find

WORKERS = 2

FEWER_REQUESTS = 92.0
FEWER_QUERIES = 95.0
FEWER_IN_SPIKE = 98.0

_PATIENCE = 60.0
_LOOK = 0.1


@dataclass(frozen=True)
class Model:
    """What the simulation assumes.

    :ivar users: operators with one page each.
    :ivar roles: roles among them, each of which shares its results with none of the others.
        What the legacy views return is the same for all, so that one would do; three cost more.
    :ivar poll_shortest: seconds between two polls of a page before; each time drawn anew.
    :ivar poll_longest: and at most. A page fetches three panels each 17.5 s, on average.
    :ivar seconds: how long each phase is: all phases together take two minutes. In an outage
        a longer one weighs the rush less: more requests are saved, and fewer queries.
    :ivar opened_every: seconds between two times that a user opens the page: wallboards stay,
        operators go to a ticket and come back. The same before and after.
    :ivar calm: events a second on a quiet day: one every five seconds.
    :ivar outage: events a second when a site fails.
    :ivar rush: seconds within which all users look when an outage begins: as long as it takes
        to read a text message. A page that polls is loaded for that, since what it shows may be
        half a minute old; its timer begins anew, which spares some polls.
    :ivar settle: seconds that pages have to show what the database has, once all is told.
    :ivar opening: seconds in which all open their pages in the morning; not measured.
    """

    users: int = 1000
    roles: int = 3
    poll_shortest: float = 5.0
    poll_longest: float = 30.0
    seconds: float = 15.0
    opened_every: float = 900.0
    calm: float = 0.2
    outage: float = 20.0
    rush: float = 2.0
    settle: float = 2.0
    opening: float = 4.0


@dataclass(frozen=True)
class Load:
    """What one phase cost.

    :ivar queries: of the pages: their views, and statistics that are counted for them.
    :ivar written: what monitoring asked and wrote itself, the same before and after.
    :ivar right: pages that showed what the database has, in the end.
    """

    seconds: float
    meter: Meter
    queries: int
    written: int
    events: int
    cpu: float
    right: int


class Monitoring:
    """The process that writes into the database; see `dashboard_app.Monitoring`."""

    def __init__(self, url: str, env: dict[str, str], database: Path, counts: Path) -> None:
        self._database = database
        self._counts = counts
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.load.dashboard_app", url],
            cwd=ROOT,
            env={**os.environ, **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._hear()

    def start(self, plan: Plan) -> None:
        """Begin, and return."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(plan)) + "\n")
        self._process.stdin.flush()

    def wait(self) -> Emitted:
        """Return once the plan is carried out; meanwhile the pages go on."""
        pool = gevent.get_hub().threadpool
        return Emitted(**pool.apply(self._hear))

    def queries(self) -> tuple[int, int]:
        """Return the statements for pages, and its own, so far."""
        return counted(self._counts, "pages"), counted(self._counts, "monitoring")

    def truth(self) -> dict[str, Any]:
        """Return the panels as the database has them."""
        sessions = open_database(str(self._database))
        try:
            return panels(Services.of(sessions), Statistics(sessions))
        finally:
            sessions.kw["bind"].dispose()

    def close(self) -> None:
        """End it."""
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(10.0)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("monitoring ended; see its traceback above")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Site:
    """A server, its database and its users."""

    def __init__(self, model: Model, server: LoadServer, monitoring: Monitoring) -> None:
        self.model = model
        self._server = server
        self._monitoring = monitoring
        self._meter = Meter()
        self._users: list[User] = []

    def open(self, kind: type[User]) -> None:
        """Let all users open their pages, and return when all have."""
        every = (self.model.poll_shortest, self.model.poll_longest)
        for number in range(self.model.users):
            login = cookie(number, self.model.roles)
            self._users.append(kind(login, self._server.port, self._meter, every))
        for user in self._users:
            gevent.spawn_later(random.uniform(0, self.model.opening), user.open, again=False)
        with gevent.Timeout(self.model.opening + _PATIENCE):
            while not all(user.ready for user in self._users):
                gevent.sleep(_LOOK)

    def close(self) -> None:
        """Let all users close their pages."""
        gevent.joinall([gevent.spawn(user.close) for user in self._users])

    def phase(self, rate: float, *, rush: bool = False, whole: bool = False) -> Load:
        """Measure for a while.

        :param rate: events a second.
        :param rush: whether all users open their pages at its beginning.
        :param whole: whether pages that are opened load a snapshot.
        """
        model, users = self.model, self._users
        for user in users:
            user.whole = whole
        meter, queries, written = self._meter.now(), *self._monitoring.queries()
        cpu, begun = self._server.cpu(), time.monotonic()
        self._monitoring.start(Plan(rate, model.seconds))
        others = [gevent.spawn(self._wander)]
        if rush:
            others += [
                gevent.spawn_later(random.uniform(0, model.rush), user.open) for user in users
            ]
        emitted = self._monitoring.wait()
        cpu, seconds = self._server.cpu() - cpu, time.monotonic() - begun
        meter = self._meter.since(meter)
        queries_now, written_now = self._monitoring.queries()
        gevent.killall(others)
        return Load(
            seconds,
            meter,
            queries_now - queries,
            written_now - written,
            emitted.events,
            cpu,
            self._right(self._monitoring.truth()),
        )

    def _wander(self) -> None:
        while True:
            gevent.sleep(self.model.opened_every / len(self._users))
            random.choice(self._users).open()

    def _right(self, truth: Mapping[str, Any]) -> int:
        """Return how many pages show the *truth*, once all do or time is up."""
        right = 0
        with gevent.Timeout(self.model.settle, False):
            while right < len(self._users):
                right = sum(user.page.shows(truth) for user in self._users)
                gevent.sleep(_LOOK)
        return right


@contextmanager
def site(model: Model, directory: Path, app: str, url: str) -> Iterator[Site]:
    """Run the *app* with its database and monitoring.

    :param url: the broker, or nothing.
    """
    counts, database = directory / "counts", directory / "noc.sqlite"
    counts.mkdir(parents=True)
    fill(database)
    env = {
        "DASHBOARD_DATABASE": str(database),
        "DASHBOARD_COUNTS": str(counts),
        "NOC_REALTIME_URL": url,
    }
    args = ["--worker-connections", "20000", "--backlog", "4096"]
    gunicorn = GunicornServer(
        f"tests.load.dashboard_app:{app}()", directory, workers=WORKERS, args=args, env=env
    )
    with closing(Monitoring(url, env, database, counts)) as monitoring, closing(gunicorn.start()):
        with closing(Site(model, LoadServer(gunicorn), monitoring)) as site:
            yield site


def simulate(model: Model, directory: Path) -> list[Report]:
    """Run both, and return a table for each phase."""
    say("Before: pages that poll.")
    with site(model, directory / "before", "create_before", "") as before:
        before.open(Polling)
        calm, outage = before.phase(model.calm), before.phase(model.outage, rush=True)
    say("After: pages that stream.")
    with closing(RedisServer(directory / "redis").start()) as redis:
        with site(model, directory / "after", "create_after", redis.url) as after:
            after.open(Streaming)
            now = after.phase(model.calm)
            reports = [compare("calm", model, calm, now, FEWER_QUERIES)]
            for name, rush, whole in (
                ("outage, all look at their pages", False, False),
                ("outage, all load their pages", True, False),
                ("outage, all load a snapshot", True, True),
            ):
                now = after.phase(model.outage, rush=rush, whole=whole)
                reports.append(compare(name, model, outage, now, FEWER_IN_SPIKE))
            return reports


def compare(name: str, model: Model, before: Load, after: Load, fewer_queries: float) -> Report:
    """Return a table of what both cost."""
    report = Report(f"{name}: {model.users:,} users, {after.events / after.seconds:.1f} events/s")

    both = (("before", before), ("after", after))

    def fewer(what: str, unit: str, of: Callable[[Load], float], target: float | None) -> None:
        rates = [of(load) / load.seconds for _, load in both]
        for (when, _), rate in zip(both, rates, strict=True):
            report.add(f"{what}/s {when}", rate, unit)
        saved = 100 * (1 - rates[1] / rates[0])
        report.add(f"fewer {what}", saved, "%", f">= {target:g} %" if target else "")

    fewer("requests", "", lambda load: load.meter.requests, FEWER_REQUESTS)
    fewer("queries", "", lambda load: load.queries, fewer_queries)
    fewer("bytes", "kB", lambda load: load.meter.bytes / 1e3, None)
    for name, values in {
        "a request takes": lambda load: load.meter.waits,
        "a new incident is shown after": lambda load: load.meter.ages,
    }.items():
        for when, load in both:
            for share in (0.5, 0.99):
                value = quantile(values(load), share)
                milliseconds = None if value is None else value * 1e3
                report.add(f"{name} p{share * 100:.0f} {when}", milliseconds, "ms")
    for when, load in both:
        report.add(f"pages right in the end {when}", load.right)
    for when, load in both:
        report.add(f"worker CPU {when}", 100 * load.cpu / load.seconds, "% of a core")
    for when, load in both:
        report.add(f"statements/s of monitoring {when}", load.written / load.seconds)
    for when, load in both:
        report.add(f"failed {when}", load.meter.failures, target="0")
    report.add("resets", after.meter.resets, target="0")
    return report


def quantile(values: Collection[float], share: float) -> float | None:
    """Return a quantile, or None of nothing."""
    if not values:
        return None
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def run(model: Model) -> list[Report]:
    """Simulate *model* and return its tables."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with tempfile.TemporaryDirectory(prefix="noc-dashboard-") as directory:
            return simulate(model, Path(directory))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def main(arguments: list[str] | None = None) -> int:
    """Simulate what the command line asks for and print a table of each phase."""
    parser = argparse.ArgumentParser("python -m tests.load.dashboard", description=__doc__)
    for field in fields(Model):
        flag = "--" + field.name.replace("_", "-")
        kind = type(field.default)
        parser.add_argument(flag, type=kind, default=field.default, help=f"({field.default})")
    parser.add_argument("--json", action="store_true", help="print JSON, a line a phase")
    given = vars(parser.parse_args(arguments))
    as_json = given.pop("json")
    if find("redis-server") is None:
        parser.error("redis-server is not installed")
    for report in run(Model(**given)):
        if as_json:
            print(json.dumps({"phase": report.title, **report.values()}))
        else:
            print("\n".join([*report.lines(), ""]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
