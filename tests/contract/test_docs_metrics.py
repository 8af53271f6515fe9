"""The page about metrics: its apps show what it says they show."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from flask_noc_realtime import NocRealtime
from flask_noc_realtime.metrics import METRICS
from flask_noc_realtime.testing import process_of
from tests.conftest import require
from tests.documentation import blocks
from tests.gunicorn_server import ROOT

PLAIN, FACTORY, WORKERS, HOOK = blocks("metrics", "python")

SHOWN = """
client = app.test_client()
client.get("/api/v1/events/poll")
print(client.get("/metrics").text)
"""


@pytest.fixture(autouse=True)
def exporter() -> Iterator[None]:
    """Require the exporter, and leave its default registry as it was."""
    require("prometheus_flask_exporter")
    before = set(REGISTRY._collector_to_names)
    yield
    for collector in set(REGISTRY._collector_to_names) - before:
        REGISTRY.unregister(collector)


def assert_all_there(page: str) -> None:
    """Expect every metric of ours, and those of the exporter."""
    for metric in METRICS:
        assert f"# TYPE {metric.name}" in page, metric.name
    assert "flask_http_request_total" in page


def test_an_app_with_the_exporter_shows_our_metrics() -> None:
    """Nothing is to be added; in a process of its own, whose default registry is new."""
    done = run(PLAIN + SHOWN)
    assert_all_there(done)


def test_an_app_of_several_workers_shows_our_metrics(tmp_path: Path) -> None:
    """From the directory."""
    assert_all_there(run(WORKERS + SHOWN, PROMETHEUS_MULTIPROC_DIR=str(tmp_path)))


def test_an_exporter_with_a_registry_of_its_own_is_named() -> None:
    """In an app factory."""
    from flask import Flask

    names: dict[str, Any] = {}
    exec(FACTORY, names)
    app = Flask("factory")
    realtime: NocRealtime = names["realtime"]
    realtime.init_app(app)
    names["exporter"].init_app(app)
    assert_all_there(app.test_client().get("/metrics").text)
    process_of(app).close()


def test_the_hook_forgets_a_worker_and_is_harmless_without_a_directory(tmp_path: Path) -> None:
    """So that one configuration serves with metrics and without."""
    hook = HOOK + "\nclass Worker: pid = 7\n\nchild_exit(None, Worker())\n"
    gone, kept = tmp_path / "gauge_livesum_7.db", tmp_path / "counter_7.db"
    for path in (gone, kept):
        path.touch()
    assert run(hook + 'import sys\nassert "prometheus_client" not in sys.modules\n') == ""
    assert run(hook, PROMETHEUS_MULTIPROC_DIR=str(tmp_path)) == ""
    assert not gone.exists() and kept.exists()


def run(code: str, **environ: str) -> str:
    """Return what some code prints in a process of its own."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environ, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
