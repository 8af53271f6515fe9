"""The command line of a benchmark that has scenarios, and whose options are a dataclass."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from typing import Any

from tests.load.report import Report
from tests.requirements import find


def run_scenarios(
    parser: argparse.ArgumentParser,
    run: Callable[[str, Any], Report],
    scenarios: Collection[str],
    options: type[Any],
    meanings: Mapping[str, str],
    arguments: list[str] | None,
) -> int:
    """Run what *arguments* ask for and print the table of each scenario.

    :param options: has a default for each field.
    :param meanings: what each field is.
    """
    parser.add_argument("scenario", nargs="?", default="all", choices=[*scenarios, "all"])
    given, as_json = parse(parser, options, meanings, arguments)
    chosen = given.pop("scenario")
    for scenario in scenarios if chosen == "all" else [chosen]:
        show(run(scenario, options(**given)), as_json)
    return 0


def parse(
    parser: argparse.ArgumentParser,
    options: type[Any],
    meanings: Mapping[str, str],
    arguments: list[str] | None,
) -> tuple[dict[str, Any], bool]:
    """Return what *arguments* say, and whether JSON is asked for; see `run_scenarios`."""
    for field in fields(options):
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            type=type(field.default),
            default=field.default,
            help=f"{meanings[field.name]} ({field.default})",
        )
    parser.add_argument("--json", action="store_true", help="print JSON, a line a scenario")
    given = vars(parser.parse_args(arguments))
    for name in ("gcc", "redis-server"):
        if find(name) is None:
            parser.error(f"{name} is not installed")
    return given, given.pop("json")


def show(report: Report, as_json: bool) -> None:
    """Print the table of a scenario."""
    if as_json:
        print(json.dumps({"scenario": report.title, **report.values()}))
    else:
        print("\n".join(report.lines()), flush=True)
