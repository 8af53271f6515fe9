"""The apps the server tests serve; `NOC_REALTIME_*` in the environment configures them."""

from __future__ import annotations

import os
from typing import Any

from flask import Blueprint, Flask, jsonify, render_template_string, request

from flask_noc_realtime import NocRealtime

# Browsers ask for an icon otherwise, and tell that there is none.
ICON = '<link rel="icon" href="data:,">'
PAGE = ICON + '<main data-position="{{ noc_realtime_position() }}">{{ seen }}</main>'


def create(**config: Any) -> Flask:
    """Return an app that emits on request and shows what its process holds."""
    here = os.path.dirname(__file__)
    app = Flask(__name__, static_folder=here, static_url_path="/static")
    app.register_blueprint(
        Blueprint(
            "part", __name__, static_folder=here, static_url_path="/static", url_prefix="/part"
        )
    )
    app.config["NOC_REALTIME_ALLOW_ANONYMOUS"] = True
    for key, value in os.environ.items():
        if key.startswith("NOC_REALTIME_") and not key.startswith("NOC_REALTIME_TEST_"):
            app.config[key] = value
    app.config.update(config)
    realtime = NocRealtime(app)
    incidents: list[int] = []

    @app.get("/pid")
    def pid() -> Any:
        return str(os.getpid())

    @app.get("/emit")
    def emit() -> Any:
        """Emit `count` events numbered from `first` on."""
        first, count = request.args.get("first", 0, int), request.args.get("count", 1, int)
        return jsonify([realtime.emit("log.added", {"n": n}) for n in range(first, first + count)])

    @app.get("/streams")
    def streams() -> Any:
        """Show how many streams this process serves, and how."""
        process = app.extensions["noc_realtime"].process()
        detached = process._pump.streams if process._pump is not None else 0
        return jsonify(pid=os.getpid(), detached=detached, portable=process.portable.streams)

    @app.get("/rollout/<float:percent>")
    def rollout(percent: float) -> Any:
        realtime.rollout(percent)
        return "", 204

    @app.get("/report")
    def report() -> Any:
        """Change data, emit, and render the page after the change."""
        realtime.emit("incident.created", {"inside": True})
        return render_template_string(PAGE, seen="")

    @app.get("/incident/<int:n>")
    def incident(n: int) -> Any:
        incidents.append(n)
        realtime.emit("incident.created", {"n": n})
        return "", 204

    @app.get("/snapshot")
    def snapshot() -> Any:
        return render_template_string(PAGE, seen=len(incidents))

    @app.get("/snapshot.json")
    def snapshot_json() -> Any:
        return jsonify(list(incidents))

    return app


def preloaded() -> Flask:
    """Return an app that has emitted before the server forks its workers."""
    app = create()
    app.extensions["noc_realtime"].process().emitter.emit("log.added", {"n": -1})
    return app
