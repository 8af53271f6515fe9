"""The demo, started as `make demo` starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from http.client import HTTPConnection
from pathlib import Path
from types import TracebackType
from typing import Any

from demo_app.legacy.users import ACCOUNTS
from flask_noc_realtime.ingest import sign
from tests.processes import children, free_port, wait_until
from tests.sse_client import SSEClient

ROOT = Path(__file__).parent.parent
SECRET = "a-secret-of-the-tests"


class Demo:
    """One `python -m demo_app`, serving once it is entered."""

    def __init__(self, directory: Path, *arguments: str, **environ: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.output = directory / "demo.log"
        self._arguments = arguments
        own = {
            "PORT": str(self.port),
            "TMPDIR": str(directory),
            "DEMO_SECRET": SECRET,
            "NOC_REALTIME_INGEST_SECRET": SECRET,
        }
        self.environ = os.environ | own | environ
        self._logins: dict[str, str] = {}

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
        lines = {pid: Path(f"/proc/{pid}/cmdline") for pid in children(self._process.pid)}
        (master,) = (pid for pid, line in lines.items() if b"gunicorn" in line.read_bytes())
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

    def login(self, name: str = "kim") -> str:
        """Return the cookie of somebody who logged in with the page's form."""
        if name not in self._logins:
            form = {"name": name, "password": ACCOUNTS[name][1]}
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
            connection.request("POST", "/login", urllib.parse.urlencode(form), headers)
            cookie = connection.getresponse().headers["Set-Cookie"]
            connection.close()
            self._logins[name] = cookie.partition(";")[0]
        return self._logins[name]

    def ask(self, path: str, body: Any = None, *, user: str = "kim") -> Any:
        """Return the decoded JSON at *path*, or what it answers to a POST of *body*."""
        request = urllib.request.Request(
            self.url + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Cookie": self.login(user)},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def acknowledge(self, incident: int, who: str = "kim", **form: Any) -> None:
        """Acknowledge an incident as the page does."""
        self.ask(f"/api/incidents/{incident}/acknowledge", form, user=who)

    def emit(self, type: str, data: Any) -> None:
        """Emit an event, of which the database knows nothing, through the signed webhook."""
        body = json.dumps({"type": type, "data": data}).encode()
        now = str(int(time.time()))
        request = urllib.request.Request(
            f"{self.url}/api/v1/events/ingest/webhook",
            data=body,
            headers={
                "Content-Type": "application/json",
                "X-Noc-Timestamp": now,
                "X-Noc-Signature": f"sha256={sign(SECRET.encode(), now, body)}",
            },
        )
        urllib.request.urlopen(request, timeout=10).close()

    def stream(self, query: str = "", user: str = "kim") -> SSEClient:
        """Open a stream."""
        address = ("127.0.0.1", self.port)
        headers = {"Cookie": self.login(user)}
        return SSEClient(address, f"/api/v1/events/stream{query}", headers=headers)

    def incident(self) -> dict[str, Any]:
        """Return an open incident nobody is on, once the simulation made one."""

        def unacknowledged() -> dict[str, Any] | None:
            rows: list[dict[str, Any]] = self.ask("/api/incidents")
            waiting = (row for row in rows if not row["acknowledged_by"])
            return next((row for row in waiting if row["status"] != "resolved"), None)

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
