"""Run a benchmark: `python -m tests.load [NAME] [OPTIONS]`; that of streams unless one is named."""

from __future__ import annotations

import sys
from importlib import import_module

BENCHMARKS = (
    "coalesce",
    "dashboard",
    "emitting",
    "failover",
    "faults",
    "rolling",
    "screen",
    "soak",
    "streams",
)


def main(arguments: list[str]) -> int:
    """Run what the first argument names with the others."""
    name, options = "streams", arguments
    if arguments and arguments[0] in BENCHMARKS:
        name, *options = arguments
    status: int = import_module(f"tests.load.{name}").main(options)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
