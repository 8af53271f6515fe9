"""An app that emits from a native thread under gevent."""

from __future__ import annotations

from typing import Any

from flask import Flask, current_app, jsonify, request

from tests.server import transport_apps


def create_app() -> Flask:
    """Return the tests' app with `/native`, which emits in gevent's thread pool."""
    app = transport_apps.create_app()
    app.add_url_rule("/native", view_func=native, methods=["POST"])
    return app


def native() -> Any:
    """Emit one event from a native thread and return its position."""
    from gevent import get_hub

    app, wanted = current_app._get_current_object(), request.get_json()

    def emit() -> str | None:
        with app.app_context():
            return transport_apps.realtime.emit(**wanted)

    return jsonify(position=get_hub().threadpool.apply(emit))
