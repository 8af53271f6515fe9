"""`python -m demo_app`: a fresh network, served by gunicorn until Ctrl-C."""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar

from demo_app.legacy.models import open_database
from demo_app.legacy.services import Services
from demo_app.simulator import fill

T = TypeVar("T")

HOST = "127.0.0.1"

# For a demo that breaks its connections: soon to notice, soon to return, soon to overflow.
DEFAULTS = {
    "NOC_REALTIME_HEARTBEAT": "3",
    "NOC_REALTIME_RETRY": "1",
    "NOC_REALTIME_HISTORY_EVENTS": "1000",
}


def main() -> int:
    """Serve from memory with one worker, or through REDIS_URL with four."""
    parser = argparse.ArgumentParser(
        prog="python -m demo_app",
        description="A simulated NOC. From the environment: PORT, REDIS_URL, DEMO_RATE (events a "
        "second), DEMO_SEED, DEMO_BREAK (0 for no faults at will), DEMO_BREAK_SECONDS, and every "
        "NOC_REALTIME_* key.",
    )
    parser.add_argument("--legacy", action="store_true", help="the app as it was before: polling")
    legacy = parser.parse_args().legacy
    port = setting("PORT", "8000", int, lambda number: 0 < number < 65536)
    rate = setting("DEMO_RATE", "3", float, lambda number: 0.01 <= number <= 1000)
    seed = setting("DEMO_SEED", "7", int, lambda number: True)
    breaks = setting("DEMO_BREAK", "1", int, lambda number: number in (0, 1))
    seconds = setting("DEMO_BREAK_SECONDS", "20", float, lambda number: 1 <= number <= 60)
    url = os.environ.get("REDIS_URL") or os.environ.get("NOC_REALTIME_URL") or "memory://"
    redis = not url.startswith("memory:")
    refuse_taken(port)
    # Ended any other way, gunicorn would be left behind.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    # A shell that starts this in the background has it ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    workers = "4" if redis else "1"
    if legacy:
        app, how = "demo_app.legacy:create_app()", "polling"
    else:
        app, how = "demo_app.compare:create_app()", "through Redis" if redis else "in memory"
    try:
        with tempfile.TemporaryDirectory(prefix="noc-demo-") as directory:
            database, counts = Path(directory) / "noc.sqlite", Path(directory) / "metrics"
            counts.mkdir()
            fill(Services.of(open_database(str(database))), seed)
            crew = f"{workers} workers" if redis else "one worker"
            environ = (
                DEFAULTS
                | os.environ
                | {
                    "NOC_REALTIME_URL": url,
                    "DEMO_DATABASE": str(database),
                    "DEMO_RATE": str(rate),
                    "DEMO_SEED": str(seed + 1),
                    "PROMETHEUS_MULTIPROC_DIR": str(counts),
                    "DEMO_SECRET": os.environ.get("DEMO_SECRET") or secrets.token_hex(),
                    "DEMO_COOKIE": f"noc-{port}",
                    "DEMO_BREAK_SECONDS": str(seconds),
                    "NOC_REALTIME_INGEST_SECRET": os.environ.get("NOC_REALTIME_INGEST_SECRET")
                    or secrets.token_hex(),
                    "DEMO_WELCOME": f"The NOC is at http://{HOST}:{port}/ ({crew}, {how}); "
                    "Ctrl-C ends it.",
                }
            )
            if breaks:
                environ["DEMO_FAULTS"] = str(Path(directory) / "faults")
            with crowd(port, environ) if not legacy else nullcontext():
                return serve(app, port, workers, environ)
    except KeyboardInterrupt:
        return 0


def end(number: int, _frame: object) -> None:
    """End with a word on why: a demo that is suddenly gone leaves one guessing."""
    print(f"Ended by {signal.Signals(number).name}.", file=sys.stderr, flush=True)
    sys.exit(0)


def setting(name: str, default: str, kind: Callable[[str], T], right: Callable[[T], bool]) -> T:
    """Return the number in the environment variable *name*, or end with what is wrong."""
    text = os.environ.get(name) or default
    try:
        number = kind(text)
    except ValueError:
        sys.exit(f"{name} is {text!r}; use a number.")
    if not right(number):
        sys.exit(f"{name} is {text!r}, which is out of range.")
    return number


def refuse_taken(port: int) -> None:
    """End when somebody else serves on *port*."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            sys.exit(f"Port {port} is not free ({error.strerror}); set PORT to another one.")


@contextmanager
def crowd(port: int, environ: dict[str, str]) -> Iterator[None]:
    """Have the virtual viewers of the page that compares, while the block runs."""
    command = [sys.executable, "-m", "demo_app.crowd", str(port)]
    process = subprocess.Popen(command, env=environ, start_new_session=True)
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


def serve(app: str, port: int, workers: str, environ: dict[str, str]) -> int:
    """Run gunicorn until it ends or this process is told to."""
    gunicorn = ("-m", "gunicorn", "-k", "gevent", "-w", workers, "-b", f"{HOST}:{port}")
    options = ("-c", "python:demo_app.gunicorn_conf", "--log-level", "warning")
    # A worker that is just being forked does not hear that it is to end.
    patience = ("--graceful-timeout", "5")
    server = subprocess.Popen(
        [sys.executable, *gunicorn, *options, *patience, app],
        env=environ,
        # The terminal's Ctrl-C would reach the workers beside the master's own word to them.
        start_new_session=True,
    )
    try:
        code = server.wait()
        print(f"gunicorn ended by itself, with code {code}.", file=sys.stderr, flush=True)
        return code or 1
    finally:
        server.terminate()
        server.wait(timeout=30)


if __name__ == "__main__":
    sys.exit(main())
