"""What the demo's gunicorn does beside serving: one worker drives the simulated network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from demo_app.simulator import Driver
from flask_noc_realtime.gunicorn import child_exit as child_exit


def post_worker_init(worker: Any) -> None:
    """Start the driver after the fork, where threads survive."""
    lock = Path(os.environ["DEMO_DATABASE"]).with_name("simulator.lock")
    rate, seed = float(os.environ["DEMO_RATE"]), int(os.environ["DEMO_SEED"])
    Driver(worker.wsgi, lock, rate, seed).start()


def when_ready(server: Any) -> None:
    """Say where the demo is, now that its port answers."""
    print(os.environ["DEMO_WELCOME"], flush=True)
