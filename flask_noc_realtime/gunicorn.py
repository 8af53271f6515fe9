"""Hooks for gunicorn.conf.py."""

from __future__ import annotations

import os
from typing import Any

from .metrics import MULTIPROCESS


def child_exit(server: Any, worker: Any) -> None:
    """Forget the gauges of a worker that has ended, however it did.

    Without it the streams of one that was killed would be counted for ever. It does nothing
    where there is no ``PROMETHEUS_MULTIPROC_DIR``.

    :param server: gunicorn's arbiter.
    :param worker: the worker.
    """
    if MULTIPROCESS in os.environ:
        try:
            from prometheus_client.multiprocess import mark_process_dead

            mark_process_dead(worker.pid)
        except Exception:
            # Gunicorn takes it for its own, and ends with all workers.
            server.log.exception("The gauges of worker %s are left behind.", worker.pid)
