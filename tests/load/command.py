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
    for field in fields(options):
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            type=type(field.default),
            default=field.default,
            help=f"{meanings[field.name]} ({field.default})",
        )
    parser.add_argument("--json", action="store_true", help="print JSON, a line a scenario")
    given = vars(parser.parse_args(arguments))
    as_json, chosen = given.pop("json"), given.pop("scenario")
    for name in ("gcc", "redis-server"):
        if find(name) is None:
            parser.error(f"{name} is not installed")
    for scenario in scenarios if chosen == "all" else [chosen]:
        report = run(scenario, options(**given))
        if as_json:
            print(json.dumps({"scenario": report.title, **report.values()}))
        else:
            print("\n".join(report.lines()), flush=True)
    return 0
