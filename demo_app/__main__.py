"""`python -m demo_app`: a fresh network, served by gunicorn until Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from demo_app.legacy.models import open_database
from demo_app.legacy.services import Services
from demo_app.simulator import seed


def main() -> int:
    """Serve from memory with one worker, or through REDIS_URL with four."""
    # Ended any other way, gunicorn would be left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    port = os.environ.get("PORT") or "8000"
    redis = os.environ.get("REDIS_URL") or ""
    workers = "4" if redis else "1"
    with tempfile.TemporaryDirectory(prefix="noc-demo-") as directory:
        database = Path(directory) / "noc.sqlite"
        seed(Services.of(open_database(str(database))))
        environ = os.environ | {"DEMO_DATABASE": str(database)}
        if redis:
            environ["NOC_REALTIME_URL"] = redis
        through = f"{workers} workers on Redis" if redis else "one worker, in memory"
        print(f"The NOC is at http://127.0.0.1:{port}/ ({through}); Ctrl-C ends it.", flush=True)
        gunicorn = ("-m", "gunicorn", "-k", "gevent", "-w", workers, "-b", f"127.0.0.1:{port}")
        options = ("-c", "python:demo_app.gunicorn_conf", "--log-level", "warning")
        server = subprocess.Popen(
            [sys.executable, *gunicorn, *options, "demo_app.realtime:create_app()"], env=environ
        )
        try:
            return server.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            server.terminate()
            server.wait(timeout=30)


if __name__ == "__main__":
    sys.exit(main())
