"""The same app in real time. The legacy files know nothing of it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from flask import Blueprint, Flask, render_template

from demo_app.legacy import create_app as create_app_before
from flask_noc_realtime import NocRealtime

realtime = NocRealtime()

# After these calls of the services, which commit before they return, their result is an event.
EVENTS = {
    ("incidents", "create"): "incident.created",
    ("incidents", "acknowledge"): "incident.updated",
    ("incidents", "change_status"): "incident.status.changed",
    ("servers", "set_status"): "server.status.changed",
    ("logs", "add"): "log.added",
    ("automations", "start"): "automation.started",
    ("automations", "complete"): "automation.completed",
}


# The dashboard's page with one script more.
live = Blueprint(
    "live", __name__, template_folder="templates", static_folder="static", static_url_path="/live"
)


def create_app() -> Flask:
    """Return the legacy app with streams instead of polling."""
    app = create_app_before()
    app.config["NOC_REALTIME_ALLOW_ANONYMOUS"] = True
    app.config.update({k: v for k, v in os.environ.items() if k.startswith("NOC_REALTIME_")})
    realtime.init_app(app)
    for (service, method), type in EVENTS.items():
        owner = getattr(app.extensions["services"], service)
        setattr(owner, method, emitting(type, getattr(owner, method)))
    app.register_blueprint(live)
    app.view_functions["noc.dashboard"] = lambda: render_template("live.html")
    return app


def emitting(type: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """Return *method*, its result being emitted once it returned."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        realtime.emit(type, result)
        return result

    return call
