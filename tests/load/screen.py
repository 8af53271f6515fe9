"""Measure the way of an event to the screen: `python -m tests.load.screen [--short] [--json]`."""

from __future__ import annotations

import argparse
import http.client
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from tests.browser.chromium import launch, new_page
from tests.gunicorn_server import GunicornServer
from tests.load.report import Report
from tests.nginx import Nginx
from tests.processes import wait_until
from tests.redis_server import RedisServer
from tests.requirements import find

_TIMEOUT = 30.0


class Options(NamedTuple):
    """How much is measured.

    :ivar events: how many, after as many as a tenth to warm up.
    :ivar rate: how many a second, at random moments.
    :ivar workers: of gunicorn; an event seldom comes to the worker that has the stream.
    """

    events: int = 500
    rate: float = 20.0
    workers: int = 2


SHORT = Options(events=20, rate=50.0)


class Way(NamedTuple):
    """The moments of one event, in seconds since 1970.

    :ivar committed: the service has written it down, and emits it.
    :ivar heard: the page's handler is called.
    :ivar shown: the frame that shows its text is painted.
    """

    committed: float
    heard: float
    shown: float


def run(options: Options) -> Report:
    """Measure it in Chromium, through nginx, from gunicorn and Redis."""
    report = Report(f"on the screen: {options.events} events, {options.rate:g} a second")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="noc-screen-")))
        redis = RedisServer(directory / "redis")
        stack.callback(redis.close)
        redis.start()
        server = GunicornServer(
            "tests.server.board_app:create()",
            directory / "gunicorn",
            workers=options.workers,
            env={"NOC_REALTIME_URL": redis.url, "BOARD_DATABASE": str(directory / "incidents")},
        )
        stack.callback(server.close)
        server.start()
        nginx = Nginx(server, directory / "nginx", silence="60s")
        stack.callback(nginx.stop)
        chromium = find("chromium")
        assert chromium is not None
        page = stack.enter_context(new_page(stack.enter_context(launch(chromium))))
        page.goto("http://{}:{}/board".format(*nginx.address))
        page.wait_for_function("window.board?.stream.snapshot().name === 'live'")
        numbers, ways = observe(page, server.port, options)
        add_figures(report, ways)
        wanted = list(range(options.events + options.events // 10))
        report.add("events missing", len(set(wanted) - set(numbers)), "", "0")
        report.add("events doubled", len(numbers) - len(set(numbers)), "", "0")
        report.add("messages of the page", len(page.problems), "", "0")
        report.add("browser", page.context.browser.version)
    return report


def observe(page: Any, port: int, options: Options) -> tuple[list[int], list[Way]]:
    """Have the service make incidents; return what the page was told, and the ways of those."""
    warm_up = options.events // 10
    total = warm_up + options.events
    committed = list(make_incidents(port, total, options.rate))
    wait_until(lambda: page.evaluate("board.painted.length") >= total, _TIMEOUT, "all are painted")
    heard, shown = page.evaluate("[board.seen, board.painted]")
    moments = [{n: at / 1000 for n, at in pairs} for pairs in (heard, shown)]
    ways = [Way(committed[n], *(moment[n] for moment in moments)) for n in range(warm_up, total)]
    return [n for n, _ in heard], ways


def make_incidents(port: int, count: int, rate: float) -> Iterator[float]:
    """Yield when the service has committed each incident."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT)
    for n in range(count):
        # At random: a beat would meet the screen's always at the same moment.
        time.sleep(random.expovariate(rate))
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/incidents", json.dumps({"n": n}), headers)
        yield json.load(connection.getresponse())["at"]
    connection.close()


def add_figures(report: Report, ways: Sequence[Way]) -> None:
    """Add what it takes, in all and in parts."""
    in_all = [(shown - committed) * 1000 for committed, _, shown in ways]
    to_page = [(heard - committed) * 1000 for committed, heard, _ in ways]
    for name, values, targets in (
        ("committed to text on screen", in_all, ("< 50 ms", "< 100 ms")),
        ("committed to the page's handler", to_page, ("", "")),
    ):
        cuts = statistics.quantiles(values, n=100, method="inclusive")
        report.add(f"{name}, p50", cuts[49], "ms", targets[0])
        report.add(f"{name}, p99", cuts[98], "ms", targets[1])
        report.add(f"{name}, longest", max(values), "ms")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser("python -m tests.load.screen", description=__doc__)
    parser.add_argument("--short", action="store_true", help="few events")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    for name in ("chromium", "nginx", "playwright", "redis-server"):
        if find(name) is None:
            parser.error(f"{name} is not installed")
    report = run(SHORT if given.short else Options())
    print(json.dumps(report.values()) if given.json else "\n".join(report.lines()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
