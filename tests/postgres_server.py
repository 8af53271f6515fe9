"""A real PostgreSQL for a test, on a port of its own, with its data in a directory of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.processes import free_port, wait_until

_UNPRIVILEGED = "nobody"


class PostgresServer:
    """One PostgreSQL server, whose superuser and database are `postgres`.

    :param executable: the path of ``postgres``; ``initdb`` is beside what it is a link to.
    """

    def __init__(self, executable: str) -> None:
        self.port = free_port()
        self.url = f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/postgres"
        self._bin = Path(executable).resolve().parent
        # A test's own directory is closed to the user that the server runs as.
        self._directory = Path(tempfile.mkdtemp(prefix="noc-postgres-"))
        # It refuses to run as root.
        self._options: dict[str, Any] = {"cwd": self._directory, "stdin": subprocess.DEVNULL}
        if os.geteuid() == 0:
            self._options |= {"user": _UNPRIVILEGED, "extra_groups": []}
            shutil.chown(self._directory, _UNPRIVILEGED)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, timeout: float = 60.0) -> PostgresServer:
        """Make the database, start the server and return once it takes connections.

        :raises RuntimeError: with its log, when it ends instead.
        """
        command = [self._bin / "initdb", "-D", "data", "-U", "postgres", "-A", "trust", "-N"]
        subprocess.run(
            [*command, "-E", "UTF8", "--locale=C"], check=True, capture_output=True, **self._options
        )
        with open(self._directory / "log", "wb") as log:
            # No test takes the power away; the server itself is as it always is.
            settings = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"]
            settings.append("max_prepared_transactions=10")
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", "data", "-p", str(self.port)]
                + [part for setting in settings for part in ("-c", setting)],
                stdout=log,
                stderr=log,
                **self._options,
            )
        wait_until(self._answers, timeout, "PostgreSQL takes connections")
        return self

    def close(self) -> None:
        """End it, whoever is connected, and remove its data."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(20.0)
            finally:
                self._process.kill()
                self._process.wait(10.0)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            log = (self._directory / "log").read_text(errors="replace")
            raise RuntimeError(f"PostgreSQL ended at once:\n{log}")
        ready = [self._bin / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(ready, check=False).returncode == 0
