"""Measure streams under load: `python -m tests.load.streams [SCENARIO] [OPTIONS]`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from tests.documentation import recipe
from tests.load.access import measure, tickets, tokens, views
from tests.load.bench import Bench, Options, Step, bench, measure_floor, measure_peer, say
from tests.load.clients import Connected, Drained, Prober
from tests.load.peers import FLASK_SSE, SSE_STARLETTE
from tests.load.report import Report
from tests.load.server import VIEW
from tests.requirements import find

_GROWTH = 1.5
_STEP_SECONDS = 4.0
_NEVER = "86400"
_LOOK = 2.0
_SMALL_BUFFER = 16 * 1024
_SHORT_HISTORY = 1000
_RECOVERY = 5.0
_TURNS = 3

Scenario = Callable[[Options, Path, Report], None]


def steady(options: Options, directory: Path, report: Report) -> None:
    """Send every event to every stream, at one rate."""
    with bench(options, directory) as load:
        report_connected(report, load.connect())
        memory = load.memory_per_stream()
        with Prober(load.server.port, VIEW) as prober:
            step = load.step(options.rate, options.seconds, load.measure)
            report_step(report, options, step)
            report.add("worker CPU", load.cpu_share * 100, "% of a core")
            report.add("memory per stream", memory / 1024, "KB", "<= 2 KB")
            report_view(report, prober, "<= 50 ms at 10,000 x 100")
        report_drained(report, load.drain())
        best = step
        if options.find_max:
            best = find_max(load, report) or step
    report_ratios(options, directory, report, best)


def tenth(options: Options, directory: Path, report: Report) -> None:
    """Send each event to a tenth of the streams."""
    with bench(options, directory, spread=options.classes) as load:
        report_connected(report, load.connect())
        with Prober(load.server.port, VIEW) as prober:
            step = load.step(options.rate, options.seconds, load.measure)
            report_step(report, options, step, "<= 150 ms at 10,000 x 1000, Redis")
            report.add("worker CPU", load.cpu_share * 100, "% of a core")
            report_view(report, prober)
        report_drained(report, load.drain())


def overload(options: Options, directory: Path, report: Report) -> None:
    """Offer twice what can be sustained, and look how it recovers."""
    with bench(options, directory) as load:
        report_connected(report, load.connect())
        best: Step | None = None
        if options.max_rate:
            best = load.step(options.max_rate, min(options.seconds, _STEP_SECONDS))
        best = best or find_max(load, report)
        if best is None:
            report.add("highest sustained rate", None)
            return
        resident = load.server.resident()
        peak, events, elapsed, resets = resident, 0, 0.0, 0
        with Prober(load.server.port, VIEW) as prober:
            load.start(best.rate * 2, options.seconds)
            while elapsed < options.seconds:
                count = load.streams.count(min(1.0, options.seconds))
                peak = max(peak, load.server.resident())
                events, elapsed = events + count.events, elapsed + count.seconds
                resets += count.resets
            view = prober.quantile_ms(0.99)
            emitted = load.wait()
        delivered = events / elapsed
        share = delivered / best.count.rate if best.count.rate else 0.0
        report.add("max deliveries/s", best.count.rate)
        report.add("emitted/s in overload", emitted.events / emitted.seconds)
        report.add("delivered/s in overload", delivered)
        report.add("share of the max", share * 100, "%", ">= 80 %")
        report.add("view p99 in overload", view, "ms", "<= 250 ms")
        report.add("resets in overload", resets)
        report.add("memory before", resident / 2**20, "MB")
        report.add("memory at most", peak / 2**20, "MB", "bounded")
        load.streams.count(min(options.seconds, _RECOVERY))
        after = load.step(best.rate / 2, min(options.seconds, _LOOK))
        report.add("p99 5 s after", after.count.p99_ms, "ms", "normal")
        report_drained(report, load.drain())


def idle(options: Options, directory: Path, report: Report) -> None:
    """Hold streams on which nothing happens."""
    with bench(options, directory, settings={"HEARTBEAT": _NEVER}) as load:
        report_connected(report, load.connect())
        load.streams.count(min(_LOOK, options.seconds))
        load.measure(options.seconds)
        report.add("memory per stream", load.memory_per_stream() / 1024, "KB", "<= 2 KB")
        report.add("worker CPU", load.cpu_share * 100, "% of a core", "< 1 %")
        report_drained(report, load.drain())


def connect(options: Options, directory: Path, report: Report) -> None:
    """Open streams as fast as they are accepted."""
    with bench(options, directory) as load:
        with Prober(load.server.port, VIEW) as prober:
            connected = load.connect()
            report_connected(report, connected, "< 5 s for 10,000")
            report.add("streams accepted/s", connected.connected / connected.seconds)
            report_view(report, prober)
        report.add("memory per stream", load.memory_per_stream() / 1024, "KB")
        load.step(options.rate, min(options.seconds, 1.0))
        report_drained(report, load.drain())


def access(options: Options, directory: Path, report: Report) -> None:
    """Open streams that need a token or a ticket, with the limits on.

    Once as gunicorn comes, and once with what the recipe says of garbage.
    """
    lines = recipe("gunicorn.conf.py", {}).splitlines()
    advised = "\n".join(["import gc", *(line for line in lines if line.startswith("gc."))])
    for how, config in (("", ""), (", as advised", advised)):
        rates = {}
        for paths in (views, tokens, tickets):
            name = paths.__name__
            place = directory / f"{name}{len(config)}"
            connected = measure(options.streams, place, paths, config)
            rates[name] = connected.connected / connected.seconds
            report.add(f"{name} failed{how}", connected.failed, target="0")
            target = ">= 2,500" if paths is not views else ""
            report.add(f"{name}/s{how}", rates[name], target=target)
        for name in ("tokens", "tickets"):
            report.add(f"{name} to ordinary views{how}", rates[name] / rates["views"], "x")


def storm(options: Options, directory: Path, report: Report) -> None:
    """Drop all streams, let them miss events, and bring them back to where they were."""
    with bench(options, directory, sample=1) as load:
        report_connected(report, load.connect())
        load.start(20, 1.0)
        load.wait()
        load.drain()
        load.streams.drop()
        load.start(options.missed, 1.0)
        missed = load.wait().events
        calls = load.redis_calls()
        load.start(10, max(1.0, options.streams / 2000))
        back = load.connect()
        emitted = load.wait().events
        drained = load.drain(60.0)
        report.add("missed by each stream", missed)
        report.add("back in", back.seconds, "s")
        report.add("failed to come back", back.failed, target="0")
        report_drained(report, drained)
        if load.redis is not None:
            now = load.redis_calls()
            made = {name: now[name] - calls.get(name, 0) for name in now}
            # The script that publishes an event reads the newest entry with one XREVRANGE.
            reads = made.get("xrange", 0) + made.get("xrevrange", 0) - emitted
            report.add("Redis reads in the storm", reads, target="not growing with streams")
            report.add("Redis calls in the storm", ", ".join(calls_of(made)))
            report.add("emitted in the storm", emitted)


def stalled(options: Options, directory: Path, report: Report) -> None:
    """Let some clients stop reading, and then go on."""
    slow = max(1, min(100, options.streams // 10))
    # A log that is full early does not grow while memory is compared.
    settings = {"HISTORY_EVENTS": str(_SHORT_HISTORY)}
    with bench(options, directory, sample=1, rcvbuf=_SMALL_BUFFER, settings=settings) as load:
        report_connected(report, load.connect())
        load.start(options.rate, options.stall_seconds + _LOOK)
        load.streams.stall(slow)
        first = load.streams.count(options.stall_seconds / 2)
        half = load.server.resident()
        second = load.streams.count(options.stall_seconds / 2)
        whole = load.server.resident()
        load.streams.resume()
        load.wait()
        # A stream that was reset shows with the next event that it is live again.
        load.start(20, 0.5)
        load.wait()
        drained = load.drain()
        report.add("stalled streams", slow)
        report.add("p99 of the others, first half", first.p99_ms, "ms")
        report.add("p99 of the others, second half", second.p99_ms, "ms", "no worse")
        report.add("memory growth in the second half", (whole - half) / 1024, "KB", "none")
        report_drained(report, drained)


def metrics(options: Options, directory: Path, report: Report) -> None:
    """Send every event to every stream, with metrics and without, in turns.

    So slowly that each is a write of its own; more in a write would cost less. The best turns are
    compared: whatever else the machine does makes them only worse.
    """
    found: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(2 * _TURNS):
        counts = turn % 2 == 1
        with bench(replace(options, metrics=counts), directory / f"turn-{turn}") as load:
            load.connect()
            count = load.step(options.rate, options.seconds, load.measure).count
            found[counts].append(load.cpu_share * count.seconds / count.writes * 1e9)
            say(f"  metrics={counts}: {count.rate:,.0f} deliveries/s, {found[counts][-1]:,.0f} ns")
    for counts, how in ((False, "without"), (True, "with")):
        report.add(f"worker CPU of a write {how}", min(found[counts]), "ns")
        report.add(f"spread {how}", (max(found[counts]) / min(found[counts]) - 1) * 100, "%")
    report.add("with to without", min(found[True]) / min(found[False]), "x", "<= 1.03")


SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (steady, tenth, overload, idle, connect, access, storm, stalled, metrics)
}

_DEFAULTS: dict[str, dict[str, Any]] = {
    "tenth": {"rate": 1000.0},
    "overload": {"seconds": 30.0},
    "idle": {"seconds": 20.0},
    "metrics": {"streams": 5000, "rate": 20.0, "seconds": 5.0},
}


# Rows that several scenarios have.


def report_connected(report: Report, connected: Connected, target: str = "") -> None:
    """Add how opening the streams went."""
    report.add("streams", connected.connected)
    report.add("failed", connected.failed, target="0")
    report.add("connected in", connected.seconds, "s", target)


def report_step(report: Report, options: Options, step: Step, p99: str = "") -> None:
    """Add deliveries and latency."""
    deliveries, latency = step_targets(options)
    count = step.count
    report.add("emitted/s", step.emitted.events / step.emitted.seconds)
    report.add("delivered/s", count.rate, target="" if p99 else deliveries)
    report.add("delivered of offered", step.share * 100, "%")
    report.add("latency p50", count.p50_ms, "ms")
    report.add("latency p99", count.p99_ms, "ms", p99 or latency)
    report.add("latency max", count.max_ms, "ms")
    report.add("writes/s", count.writes / count.seconds)
    report.add("bytes per write", count.bytes / max(1, count.writes))
    report.add("client CPU", count.client_cpu / count.seconds * 100, "% of a core")


def step_targets(options: Options) -> tuple[str, str]:
    """Return what is asked of deliveries and of the p99 at this rate."""
    if options.broker == "memory":
        return ">= 8,000,000 at 10,000 x 1000", ""
    if options.rate > 100:
        return ">= 3,000,000 at 10,000 x 300", "<= 200 ms at 10,000 x 300"
    return "", "<= 130 ms at 10,000 x 100"


def report_view(report: Report, prober: Prober, target: str = "") -> None:
    """Add what the users of ordinary views felt meanwhile."""
    report.add("view p50", prober.quantile_ms(0.5), "ms")
    report.add("view p99", prober.quantile_ms(0.99), "ms", target)
    report.add("view failures", prober.failures, target="0")


def report_drained(report: Report, drained: Drained) -> None:
    """Add whether the streams have what they should have."""
    report.add("streams checked", drained.parsed)
    report.add("complete", drained.complete, target="all")
    report.add("events missing", drained.missing, target="0")
    report.add("events repeated", drained.repeated, target="0")
    report.add("events skipped by a reset", drained.skipped)
    report.add("resets of those checked", drained.resets)
    report.add("closed by the server", drained.closed, target="0")


def find_max(load: Bench, report: Report) -> Step | None:
    """Add the highest rate that is sustained."""
    say("Looking for the highest sustained rate:")
    options = load.options
    seconds = min(options.seconds, _STEP_SECONDS)
    best = load.highest(options.rate, seconds, _GROWTH, options.max_steps)
    report.add("highest sustained rate", best.rate if best else None, "events/s")
    report.add("sustained deliveries/s", best.count.rate if best else None)
    return best


def report_ratios(options: Options, directory: Path, report: Report, best: Step) -> None:
    """Add the ratios to the machine's floor and to the peers."""
    if options.floor and best.count.writes:
        floor = measure_floor(options, directory, best.count)
        writes = best.count.writes / best.count.seconds
        report.add("floor sends/s", floor.sends)
        report.add("floor sends/s that blocked", floor.sent.blocked / floor.sent.seconds)
        report.add("floor deliveries/s", floor.deliveries)
        report.add("writes/s to floor", writes / floor.sends, "x")
        ratio = best.count.rate / floor.deliveries
        report.add("deliveries/s to floor", ratio, "x", ">= 0.75 at the highest rate")
    if not options.peers:
        return
    for peer, target in ((FLASK_SSE, ">= 200 x"), (SSE_STARLETTE, ">= 100 x")):
        if peer.missing:
            say(f"Skipped {peer.name}: {', '.join(peer.missing)} not installed (extra `load`).")
            continue
        say(f"{peer.name} with {options.peer_streams} streams:")
        found = measure_peer(options, directory / peer.modules[0], peer)
        rate = found.count.rate if found else None
        report.add(f"{peer.name} deliveries/s", rate)
        report.add(f"ratio to {peer.name}", best.count.rate / rate if rate else None, "x", target)


def calls_of(made: dict[str, int]) -> list[str]:
    """Return the commands that were called, most often first."""
    called = sorted(((calls, name) for name, calls in made.items() if calls), reverse=True)
    return [f"{calls} {name}" for calls, name in called]


# The command line.


def run(scenario: str, options: Options) -> Report:
    """Run one scenario and return its figures."""
    load = f"{options.streams:,} streams, {options.broker}, {options.workers} worker"
    report = Report(f"{scenario}: {load}")
    with tempfile.TemporaryDirectory(prefix="noc-load-") as directory:
        SCENARIOS[scenario](options, Path(directory), report)
    return report


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for and print the table of each scenario."""
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    as_json, chosen = given.pop("json"), given.pop("scenario")
    for name in ("gcc", *(["redis-server"] if given.get("broker") != "memory" else [])):
        if find(name) is None:
            parser.error(f"{name} is not installed")
    if given.get("broker") == "memory" and given.get("workers", 1) > 1:
        parser.error("events of the memory broker do not reach other workers; use --broker redis")
    for scenario in SCENARIOS if chosen == "all" else [chosen]:
        report = run(scenario, replace(Options(), **{**_DEFAULTS.get(scenario, {}), **given}))
        if as_json:
            print(json.dumps({"scenario": report.title, **report.values()}))
        else:
            print("\n".join(report.lines()), flush=True)
    return 0


_HELP = {
    "broker": "memory emits within the worker, redis in another process",
    "transport": "NOC_REALTIME_TRANSPORT",
    "streams": "how many",
    "rate": "events a second; of 1000 in `tenth`",
    "workers": "gunicorn workers",
    "seconds": "how long a measurement takes",
    "classes": "audience classes",
    "size": "bytes of data of an event",
    "every": "parse one stream in so many; 0 takes a thousand of them",
    "peers": "compare with flask-sse and sse-starlette",
    "peer_streams": "how many streams the peers get",
    "floor": "compare with a bare send() loop",
    "find_max": "look for the highest sustained rate",
    "max_rate": "the highest sustained rate, when known (overload)",
    "max_steps": "rates to try at most",
    "stall_seconds": "how long clients stop reading (stalled)",
    "missed": "events each stream misses (storm)",
    "metrics": "count in a Prometheus registry",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.load.streams", description=__doc__)
    parser.add_argument(
        "scenario", nargs="?", default="steady", choices=[*SCENARIOS, "all"], help="what to do"
    )
    for field in fields(Options):
        flag = "--" + field.name.replace("_", "-")
        text = _HELP[field.name]
        if isinstance(field.default, bool):
            action = argparse.BooleanOptionalAction
            parser.add_argument(flag, action=action, default=argparse.SUPPRESS, help=text)
            continue
        choices = {
            "broker": ["memory", "redis"],
            "transport": ["auto", "detached", "portable"],
        }.get(field.name)
        parser.add_argument(
            flag,
            type=type(field.default),
            default=argparse.SUPPRESS,
            choices=choices,
            help=f"{text} ({field.default})",
        )
    parser.add_argument("--json", action="store_true", help="print JSON, a line a scenario")
    return parser


if __name__ == "__main__":
    sys.exit(main())
