"""The app the transport tests serve."""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from typing import Any

from flask import Flask, Request, Response, current_app, jsonify, request

from flask_noc_realtime import Identity, NocRealtime

realtime = NocRealtime()


@realtime.identity_loader
def identity(request: Request) -> Identity | None:
    """Return who the test says it is, by headers; nobody without X-User."""
    user = request.headers.get("X-User")
    if user is None:
        return None
    permissions = request.headers.get("X-Permissions", "")
    seconds = request.headers.get("X-Expires-In")
    return Identity(
        user_id=user,
        permissions=frozenset(permissions.split(",")) - {""},
        expires_at=None
        if seconds is None
        else datetime.now(timezone.utc) + timedelta(seconds=float(seconds)),
    )


def create_app() -> Flask:
    """Return an app that emits what it is asked to, configured by the environment."""
    app = Flask(__name__)
    app.config["NOC_REALTIME_MAX_STREAMS_PER_USER"] = 0
    app.config.update(
        {
            key: value
            for key, value in os.environ.items()
            if key.startswith("NOC_REALTIME_") and not key.startswith("NOC_REALTIME_TEST_")
        }
    )
    realtime.init_app(app)
    app.after_request(name_worker)
    app.add_url_rule("/emit", view_func=emit, methods=["POST"])
    app.add_url_rule("/emit-all", view_func=emit_all, methods=["POST"])
    app.add_url_rule("/burst", view_func=burst, methods=["POST"])
    app.add_url_rule("/disconnect", view_func=disconnect, methods=["POST"])
    app.add_url_rule("/refresh", view_func=refresh, methods=["POST"])
    app.add_url_rule("/state", view_func=state)
    return app


def name_worker(response: Response) -> Response:
    """Say in a header which worker answers."""
    response.headers["X-Worker"] = str(os.getpid())
    return response


def emit() -> Any:
    """Emit one event and return its position."""
    return jsonify(position=realtime.emit(**request.get_json()))


def emit_all() -> Any:
    """Emit events one after the other and return their positions."""
    return jsonify(positions=[realtime.emit(**event) for event in request.get_json()])


def burst() -> Any:
    """Emit numbered events of one type and return their positions."""
    wanted = request.get_json()
    padding = "x" * wanted.get("size", 0)
    positions = [
        realtime.emit(wanted["type"], {"n": number, "padding": padding})
        for number in range(wanted["first"], wanted["first"] + wanted["count"])
    ]
    return jsonify(positions=positions)


def disconnect() -> Any:
    """End a user's streams, and emit what they must not see; return the positions."""
    wanted = request.get_json()
    positions = [realtime.disconnect(wanted["user_id"])]
    return jsonify(positions=positions + [realtime.emit(**event) for event in wanted["then"]])


def refresh() -> Any:
    """Have a user's streams look up their rights, and emit what the old ones must not see."""
    wanted = request.get_json()
    positions = [realtime.refresh(wanted["user_id"])]
    return jsonify(positions=positions + [realtime.emit(**event) for event in wanted["then"]])


def state() -> Any:
    """Return what this worker holds."""
    process = current_app.extensions["noc_realtime"].process()
    pump = process._pump
    return jsonify(
        pid=os.getpid(),
        detached=pump.streams if pump is not None else 0,
        portable=process.portable.streams,
        waiting=process.portable.waiting,
        files=len(os.listdir("/proc/self/fd")),
    )
