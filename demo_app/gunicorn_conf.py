"""What the demo's gunicorn does beside serving: one worker drives the simulated network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from demo_app.simulator import Driver


def post_worker_init(worker: Any) -> None:
    """Start the driver after the fork, where threads survive."""
    lock = Path(os.environ["DEMO_DATABASE"]).with_name("simulator.lock")
    rate = float(os.environ.get("DEMO_RATE", "3"))
    Driver(worker.wsgi.extensions["services"], lock, rate).start()
