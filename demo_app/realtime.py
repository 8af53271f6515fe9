"""The same app in real time. The legacy files know nothing of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from flask import Blueprint, Flask, Request, render_template

from demo_app.legacy import create_app as create_app_before
from demo_app.legacy.users import current_user
from demo_app.metrics import show_metrics
from flask_noc_realtime import Identity, NocRealtime, coalesce, emits

realtime = NocRealtime()


def log_readers(result: dict[str, Any]) -> list[str]:
    """Return which permission it takes to see a line of the log."""
    return ["logs.debug" if result["level"] == "debug" else "logs.read"]


# After these calls of the services, which commit before they return, their result is an event,
# for those who hold the permission.
EVENTS: dict[tuple[str, str], tuple[str, Any]] = {
    ("incidents", "create"): ("incident.created", ["incidents.read"]),
    ("incidents", "acknowledge"): ("incident.updated", ["incidents.read"]),
    ("incidents", "change_status"): ("incident.status.changed", ["incidents.read"]),
    ("servers", "set_status"): ("server.status.changed", ["servers.read"]),
    ("logs", "add"): ("log.added", log_readers),
    ("automations", "start"): ("automation.started", ["automations.read"]),
    ("automations", "complete"): ("automation.completed", ["automations.read"]),
}

# Who may see the same share what these views read, until an event says that it is old.
COALESCED = {
    "noc.incidents": ["incident.*"],
    "noc.servers": ["server.*"],
    "noc.logs": ["log.*"],
    "noc.automations": ["automation.*"],
}

# The dashboard's page with one script more.
live = Blueprint(
    "live", __name__, template_folder="templates", static_folder="static", static_url_path="/live"
)


@realtime.identity_loader
def identify(request: Request) -> Identity | None:
    """Return who has logged in to the legacy app."""
    user = current_user()
    if user is None:
        return None
    until = datetime.fromtimestamp(user.until, timezone.utc)
    return Identity(user.name, user.role, user.permissions, until)


def create_app() -> Flask:
    """Return the legacy app with streams instead of polling."""
    app = create_app_before()
    app.config["NOC_REALTIME_MAX_STREAMS_PER_USER"] = 0  # Everybody has one of three logins.
    app.config.update({k: v for k, v in os.environ.items() if k.startswith("NOC_REALTIME_")})
    realtime.init_app(app)
    show_metrics(app)
    for (service, method), (type, permissions) in EVENTS.items():
        owner = getattr(app.extensions["services"], service)
        setattr(owner, method, emits(type, permissions=permissions)(getattr(owner, method)))
    for endpoint, types in COALESCED.items():
        share = coalesce(scope="permissions", reads=["session"], invalidate_on=types)
        app.view_functions[endpoint] = share(app.view_functions[endpoint])
    app.register_blueprint(live)
    app.view_functions["noc.dashboard"] = lambda: render_template("live.html")
    app.view_functions["noc.logout"] = disconnecting(app.view_functions["noc.logout"])
    return app


def disconnecting(logout: Callable[[], Any]) -> Callable[[], Any]:
    """Return the view *logout*, after which the user's streams end as well."""

    def view() -> Any:
        user = current_user()
        answer = logout()
        if user is not None:
            realtime.disconnect(user.name)
        return answer

    return view
