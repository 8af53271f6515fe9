"""Show that the wheel alone is enough: `python tests/installed.py`, in an environment with it.

Run by `make installed`. The tests' own environment has more than the package asks for, so that a
dependency nobody named would not be missed there.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

APP = """
from flask import Flask
from flask_noc_realtime import NocRealtime

app = Flask(__name__)
app.config["NOC_REALTIME_ALLOW_ANONYMOUS"] = True
realtime = NocRealtime(app)


@app.post("/emit")
def emit():
    return {"position": realtime.emit("log.added", "hello")}
"""
TIMEOUT = 30.0


def main() -> int:
    """Serve an app by the README's command, and see an event."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "app.py").write_text(APP)
        command = [str(Path(sys.executable).parent / "gunicorn"), "-k", "gevent"]
        command += ["--bind", f"127.0.0.1:{port}", "app:app"]
        server = subprocess.Popen(command, cwd=directory, start_new_session=True)
        try:
            see_an_event(server, port)
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(TIMEOUT)
    print("The wheel serves streams.")
    return 0


def see_an_event(server: subprocess.Popen[bytes], port: int) -> None:
    """Open a stream, emit, and read."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        stream = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
        try:
            stream.request("GET", "/api/v1/events/stream")
            break
        except ConnectionRefusedError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("gunicorn does not serve; see above.") from None
            time.sleep(0.05)
    response = stream.getresponse()
    until(response, b"event: stream.open")
    emitting = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    emitting.request("POST", "/emit")
    assert emitting.getresponse().status == 200
    until(response, b"event: log.added")


def until(response: http.client.HTTPResponse, wanted: bytes) -> None:
    """Read lines until one is *wanted*."""
    while True:
        line = response.readline()
        if not line:
            raise SystemExit(f"The stream ended before {wanted!r}.")
        if line.strip() == wanted:
            return


if __name__ == "__main__":
    sys.exit(main())
