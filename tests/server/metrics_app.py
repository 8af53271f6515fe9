"""The app of the transport tests, with its metrics shown at /metrics."""

from __future__ import annotations

from flask import Flask
from prometheus_flask_exporter.multiprocess import GunicornInternalPrometheusMetrics

from tests.server.transport_apps import create_app


def create() -> Flask:
    """Return the app; whichever worker is asked shows what all of them counted."""
    app = create_app()
    GunicornInternalPrometheusMetrics(app, group_by="url_rule")
    return app
