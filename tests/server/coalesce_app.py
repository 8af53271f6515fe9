"""A site whose data is in files, so that all its workers, and the test, see the same."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Any

from flask import Flask, abort, request

from flask_noc_realtime import NocRealtime, coalesce


class Data:
    """A version and a record of executions, in a directory."""

    def __init__(self, directory: Path) -> None:
        self._version = directory / "version"
        self._runs = directory / "runs"

    def version(self) -> int:
        """Return the committed version."""
        try:
            return int(self._version.read_text())
        except FileNotFoundError:
            return 0

    def commit(self) -> int:
        """Raise the version by one, whoever else does so meanwhile."""
        with open(self._version.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            version = self.version() + 1
            new = self._version.with_suffix(f".{os.getpid()}")
            new.write_text(str(version))
            new.replace(self._version)
            return version

    def ran(self, name: str) -> None:
        """Record an execution by this process."""
        with open(self._runs, "a") as runs:
            runs.write(f"{name} {os.getpid()}\n")

    def runs(self, name: str) -> list[int]:
        """Return the processes that executed *name*, in order."""
        try:
            lines = self._runs.read_text().splitlines()
        except FileNotFoundError:
            return []
        return [
            int(pid) for each, _, pid in (line.partition(" ") for line in lines) if each == name
        ]


def create() -> Flask:
    """Return the site; the environment names its data and its Redis."""
    app = Flask(__name__)
    app.secret_key = "test"
    app.config["NOC_REALTIME_URL"] = os.environ["NOC_REALTIME_URL"]
    app.config["NOC_REALTIME_ALLOW_ANONYMOUS"] = True
    realtime = NocRealtime(app)
    data = Data(Path(os.environ["SITE_DATA"]))

    @app.get("/slow/<name>")
    @coalesce(scope="public", ttl=30, invalidate_on=["incident.*"])
    def slow(name: str) -> Any:
        """Work for as long as is asked."""
        data.ran(name)
        version = data.version()
        time.sleep(request.args.get("seconds", 0.3, float))
        if request.args.get("fail"):
            abort(503)
        return f"{version} {os.getpid()}"

    @app.get("/spin/<name>")
    @coalesce(scope="public", ttl=30, invalidate_on=["incident.*"])
    def spin(name: str) -> Any:
        """Let nobody in this worker run for as long as is asked, the first time."""
        data.ran(name)
        until = time.monotonic() + request.args.get("seconds", 1.0, float)
        while len(data.runs(name)) == 1 and time.monotonic() < until:
            pass
        return f"{data.version()} {os.getpid()}"

    @app.get("/timed/<name>")
    @coalesce(scope="public", ttl=30)
    def timed(name: str) -> Any:
        """Answer what only time ends."""
        data.ran(name)
        return f"{data.version()} {os.getpid()}"

    @app.get("/version/<name>")
    @coalesce(scope="public", ttl=30, invalidate_on=["incident.*"])
    def version(name: str) -> Any:
        """Read the version, and give way before and after."""
        data.ran(name)
        time.sleep(0)
        read = data.version()
        time.sleep(0.002)
        return str(read)

    @app.post("/write")
    def write() -> Any:
        """Commit, then emit; say whether it was published."""
        version = data.commit()
        position = realtime.emit("incident.updated", {"version": version})
        return {"version": version, "published": position is not None}

    @app.get("/pid")
    def pid() -> Any:
        return str(os.getpid())

    return app
