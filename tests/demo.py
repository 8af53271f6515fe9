"""The demo, started as `make demo` starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.processes import children, free_port, wait_until
from tests.sse_client import SSEClient

ROOT = Path(__file__).parent.parent


class Demo:
    """One `python -m demo_app`, serving once it is entered."""

    def __init__(self, directory: Path, *arguments: str, **environ: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.output = directory / "demo.log"
        self._arguments = arguments
        self.environ = os.environ | environ | {"PORT": str(self.port), "TMPDIR": str(directory)}

    def __enter__(self) -> Demo:
        with self.output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "demo_app", *self._arguments],
                cwd=ROOT,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        wait_until(self._serves, 30, "the demo serves")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def gunicorn(self) -> int:
        """The process number of gunicorn's master."""
        (master,) = children(self._process.pid)
        return master

    def stop(self, number: int = signal.SIGINT) -> int:
        """End it, on Ctrl-C and hangup as a terminal does: the whole group hears of it."""
        if self._process.poll() is None:
            if number == signal.SIGTERM:
                self._process.send_signal(number)
            else:
                os.killpg(self._process.pid, number)
        return self.wait()

    def wait(self) -> int:
        """Return the exit code, once it ended."""
        return self._process.wait(30)

    def get(self, path: str) -> Any:
        """Return the decoded JSON at *path*."""
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return json.load(answer)

    def acknowledge(self, incident: int, who: str) -> None:
        """Acknowledge an incident as the page does."""
        request = urllib.request.Request(
            f"{self.url}/api/incidents/{incident}/acknowledge",
            data=json.dumps({"who": who}).encode(),
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=10).close()

    def stream(self, query: str = "") -> SSEClient:
        """Open a stream."""
        return SSEClient(("127.0.0.1", self.port), f"/api/v1/events/stream{query}")

    def incident(self) -> dict[str, Any]:
        """Return an incident nobody is on, once the simulation made one."""

        def unacknowledged() -> dict[str, Any] | None:
            rows: list[dict[str, Any]] = self.get("/api/incidents")
            return next((row for row in rows if not row["acknowledged_by"]), None)

        found = wait_until(unacknowledged, 20, "an incident")
        assert found is not None
        return found

    def _serves(self) -> bool:
        assert self._process.poll() is None, self.output.read_text()
        try:
            urllib.request.urlopen(self.url, timeout=5).close()
        except OSError:
            return False
        return True
