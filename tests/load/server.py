"""The server under load, and what /proc says about its workers."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.gunicorn_server import GunicornServer

STREAM = "/api/v1/events/stream?class=%d"
VIEW = "/view"

_TICKS = os.sysconf("SC_CLK_TCK")


class LoadServer:
    """gunicorn with the app under load; see `serve`."""

    def __init__(self, gunicorn: GunicornServer) -> None:
        self.url = gunicorn.url
        self.port = gunicorn.port
        self.pids = gunicorn.worker_pids()
        self.view_url = gunicorn.url + VIEW
        self._gunicorn = gunicorn

    def cpu(self) -> float:
        """Return the seconds of CPU its workers took so far."""
        return sum(_cpu(pid) for pid in self.pids)

    def resident(self) -> int:
        """Return the bytes of memory its workers hold."""
        return sum(map(resident, self.pids))

    def workers(self) -> list[int]:
        """Return its workers as they are now; `pids` are those it began with."""
        return self._gunicorn.worker_pids()

    def view(self) -> None:
        """Get the ordinary view once."""
        with urllib.request.urlopen(self.view_url, timeout=30) as response:
            response.read()

    def log(self) -> str:
        """Return what the server logged."""
        return self._gunicorn.log()


@contextmanager
def serve(
    directory: Path,
    *,
    url: str,
    transport: str,
    workers: int,
    settings: Mapping[str, str],
    app: str = "tests.load.app:app",
    config: str = "",
) -> Iterator[LoadServer]:
    """Run the app under load with plain ``gunicorn -k gevent``.

    :param url: the broker.
    :param settings: further ``NOC_REALTIME_*`` keys, without the prefix.
    :param config: lines for ``gunicorn.conf.py``.
    """
    keys = {"URL": url, "TRANSPORT": transport, **settings}
    gunicorn = GunicornServer(
        app,
        directory,
        workers=workers,
        args=["--worker-connections", "20000", "--backlog", "4096"],
        env={f"NOC_REALTIME_{key}": value for key, value in keys.items()},
        config=config,
    ).start()
    try:
        server = LoadServer(gunicorn)
        # The first request pays for imports and for the subscription.
        server.view()
        yield server
    finally:
        gunicorn.close()


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def resident(pid: int) -> int:
    """Return the bytes of memory a process holds."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} has no VmRSS")
