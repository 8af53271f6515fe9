"""Break the way to a screen at random: `python -m tests.load.faults [--minutes 10] [--seed N]`."""

from __future__ import annotations

import argparse
import json
import logging
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from tests.browser.board import FAULTS, Board, Plant, Settings
from tests.browser.chromium import launch, new_page
from tests.load.report import Report
from tests.requirements import find


class Options(NamedTuple):
    """What is done, and with what.

    :ivar minutes: for how long.
    :ivar seed: of the faults and their lengths.
    :ivar calm: seconds between two faults, at least and at most.
    :ivar broken: seconds a fault lasts.
    :ivar settings: of the server; beside those named it has the defaults.
    :ivar client: of `connect`; none, so that the page has the defaults.
    """

    minutes: float = 10.0
    seed: int = 1
    calm: tuple[float, float] = (2.0, 8.0)
    broken: tuple[float, float] = (0.5, 15.0)
    settings: Settings = Settings(
        heartbeat=2.0, retry=3.0, poll_interval=5.0, pause=0.1, history=1000, lifetime=6.0
    )
    client: Mapping[str, Any] = {}


SHORT = Options(
    minutes=0.05,
    calm=(0.0, 0.2),
    broken=(0.1, 1.0),
    settings=Settings(),
    client={"openTimeout": 1000, "maxDelay": 400},
)


class Recovery(NamedTuple):
    """How it went with one fault.

    :ivar fault: its name.
    :ivar broken: seconds it lasted.
    :ivar back: seconds from its end until the screen said live.
    :ivar gaps: how often the page was told to fetch everything.
    :ivar shown: what the screen said meanwhile.
    """

    fault: str
    broken: float
    back: float
    gaps: int
    shown: str


def run(options: Options, say: Callable[[str], object] = lambda line: None) -> Report:
    """Break and mend until the time is over.

    :param say: is told how it goes.
    """
    report = Report(f"faults at random: {options.minutes:g} min, seed {options.seed}")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="noc-faults-")))
        plant = stack.enter_context(Plant(directory, options.settings))
        chromium = find("chromium")
        assert chromium is not None
        page = stack.enter_context(new_page(stack.enter_context(launch(chromium))))
        board = Board(plant, page, **options.client)
        begun = time.time()
        recoveries = []
        for recovery in break_and_mend(board, options):
            recoveries.append(recovery)
            say(
                f"{time.time() - begun:5.0f} s  {recovery.fault:14} for {recovery.broken:4.1f} s, "
                f"live after {recovery.back:4.1f} s  {recovery.shown}"
            )
        board.wait_for_all()
        wrongs = board.wrongs()
        for wrong in wrongs:
            say(wrong)
        add_recoveries(report, recoveries)
        add_screen(report, board, begun, time.time())
        report.add("wrong in all", len(wrongs), "", "0")
    return report


def break_and_mend(board: Board, options: Options) -> Iterator[Recovery]:
    """Yield how each fault went; one that is not mended raises TimeoutError."""
    chance = random.Random(options.seed)
    ends = time.time() + options.minutes * 60
    for name in endless(chance, list(FAULTS)):
        time.sleep(chance.uniform(*options.calm))
        if time.time() >= ends:
            return
        fault = FAULTS[name]
        before, begun = board.told, time.time()
        fault.begin(board)
        if fault.lasts:
            time.sleep(chance.uniform(*options.broken))
        fault.end(board)
        mended = time.time()
        board.wait_for_all()
        board.wait_for("live")
        after = board.told
        live = max(after.states[-1][2], mended)
        shown = " ".join(f"{name}({why})" for name, why, _ in after.states[len(before.states) :])
        gaps = len(after.gaps) - len(before.gaps)
        yield Recovery(name, mended - begun, live - mended, gaps, shown)


def endless(chance: random.Random, names: list[str]) -> Iterator[str]:
    """Yield the names in random order, each once before any comes again."""
    while True:
        yield from chance.sample(names, len(names))


def add_recoveries(report: Report, recoveries: Sequence[Recovery]) -> None:
    """Add what was broken, and how soon it was live again."""
    backs = [recovery.back for recovery in recoveries]
    count = Counter(recovery.fault for recovery in recoveries)
    unwanted = [recovery for recovery in recoveries if recovery.gaps != FAULTS[recovery.fault].gap]
    report.add("faults", len(recoveries))
    report.add("kinds of them", len(count), "", str(len(FAULTS)))
    report.add("broken in all", sum(recovery.broken for recovery in recoveries), "s")
    report.add("live again", len(recoveries), "", "all, without a reload")
    report.add("live again after, p50", statistics.median(backs), "s")
    report.add("live again after, longest", max(backs), "s")
    report.add("gaps that were none, or not told", len(unwanted), "", "0")


def add_screen(report: Report, board: Board, begun: float, ended: float) -> None:
    """Add what the page was told, and what it said."""
    told = board.told
    lies = told.lies(board.plant.service.emitted, board.plant.settings.poll_interval)
    report.add("events", len(told.seen))
    report.add("missing", len(told.missing()), "", "0")
    report.add("doubled", len(told.doubled()), "", "0")
    report.add("said live 5 s after it was not", len(lies), "", "0")
    for state, target in (("live", ""), ("polling", "< 1 %")):
        share = told.seconds_of(state, ended) / (ended - begun)
        report.add(f"{state}, of the time", share * 100, "%", target)


def main(arguments: Sequence[str] | None = None) -> int:
    """Break and mend, and print the table."""
    parser = argparse.ArgumentParser("python -m tests.load.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (10)")
    parser.add_argument("--seed", type=int, default=1, help="another order of other faults (1)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    for name in ("chromium", "nginx", "playwright", "redis-server"):
        if find(name) is None:
            parser.error(f"{name} is not installed")
    # That Redis is away is no news here.
    logging.disable(logging.ERROR)
    options = Options(minutes=given.minutes, seed=given.seed)
    report = run(options, lambda line: print(line, file=sys.stderr, flush=True))
    print(json.dumps(report.values()) if given.json else "\n".join(report.lines()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
