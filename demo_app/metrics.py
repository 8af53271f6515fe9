"""What the demo's workers count, at /metrics."""

from __future__ import annotations

import os

from flask import Flask


def show_metrics(app: Flask) -> None:
    """Show them where prometheus-flask-exporter is installed and the workers share a directory."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return
    try:
        from prometheus_flask_exporter.multiprocess import GunicornInternalPrometheusMetrics
    except ModuleNotFoundError:
        return
    GunicornInternalPrometheusMetrics(app, group_by="url_rule")
