"""The same app in real time. The legacy files know nothing of it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Flask, render_template
from jinja2 import ChoiceLoader, FileSystemLoader

from demo_app.legacy import create_legacy_app
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


def create_app() -> Flask:
    """Return the legacy app with streams instead of polling."""
    app = create_legacy_app(os.environ["DEMO_DATABASE"])
    app.config.from_mapping(
        {"NOC_REALTIME_ALLOW_ANONYMOUS": True}
        | {key: value for key, value in os.environ.items() if key.startswith("NOC_REALTIME_")}
    )
    realtime.init_app(app)
    for (service, method), type in EVENTS.items():
        owner = getattr(app.extensions["services"], service)
        setattr(owner, method, emitting(type, getattr(owner, method)))
    show_live_page(app)
    return app


def emitting(type: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """Return *method*, its result being emitted once it returned."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        realtime.emit(type, result)
        return result

    return call


def show_live_page(app: Flask) -> None:
    """Serve the dashboard with the script that opens the stream."""
    here = Path(__file__).parent
    own = FileSystemLoader(here / "templates")
    app.jinja_loader = ChoiceLoader([own, app.jinja_loader] if app.jinja_loader else [own])
    app.view_functions["noc.dashboard"] = lambda: render_template("live.html")
    script = (here / "static" / "live.js").read_text()
    app.add_url_rule(
        "/live.js", "live", lambda: app.response_class(script, mimetype="text/javascript")
    )
