"""An app whose pages are live by what templates are given, under a strict policy."""

from __future__ import annotations

import os
from typing import Any

from flask import Flask, Response, current_app, g, jsonify, render_template_string, request

from flask_noc_realtime import NocRealtime
from tests.server.apps import ICON

NONCE = "bm9uY2U"
REACT = (
    ICON
    + """<main data-position="{{ noc_realtime_position() }}"></main>
<script type="importmap" nonce="{{ csp_nonce }}">
{{ {"imports": dict(noc_realtime_imports(), react="/vendor.js")} | tojson }}
</script>
"""
)
SCRIPT = (
    ICON
    + """<body>
<script nonce="{{ csp_nonce }}">
  window.told = [];
  for (const name of ["log.added", "server.status.changed", "state", "gap"])
    document.addEventListener(`noc:${name}`, ({ detail }) => told.push([name, detail]));
</script>
{{ noc_realtime_script(types=["log.*", "incident.*"], classic=classic) }}
"""
)

realtime = NocRealtime()


def create(**config: Any) -> Flask:
    """Return an app that emits what it is asked to."""
    app = Flask(__name__)
    app.config.update(
        NOC_REALTIME_ALLOW_ANONYMOUS=True,
        NOC_REALTIME_HEARTBEAT=0.5,
        NOC_REALTIME_RETRY=0.2,
        **config,
    )
    realtime.init_app(app)
    app.before_request(choose_nonce)
    app.after_request(set_policy)
    app.add_url_rule("/react", view_func=react)
    app.add_url_rule("/script", view_func=script)
    app.add_url_rule("/emit", view_func=emit, methods=["POST"])
    app.add_url_rule("/emit-all", view_func=emit_all, methods=["POST"])
    app.add_url_rule("/state", view_func=state)
    return app


def choose_nonce() -> None:
    """Keep the nonce where templates and the helpers find it; a real one is random."""
    g.csp_nonce = NONCE


def set_policy(response: Response) -> Response:
    """Allow no inline code, and on the page that needs no more no script without the nonce."""
    own = "" if request.path == "/script" else "'self'"
    response.headers["Content-Security-Policy"] = (
        f"default-src 'none'; script-src {own} 'nonce-{NONCE}'; connect-src 'self'; "
        "worker-src 'self'; img-src data:"
    )
    return response


def react() -> str:
    """Show a page that maps the modules, and leaves the rest to the test."""
    return render_template_string(REACT, csp_nonce=NONCE)


def script() -> str:
    """Show a page that is live without a script of its own, but for one that listens."""
    return render_template_string(SCRIPT, csp_nonce=NONCE, classic="classic" in request.args)


def emit() -> Any:
    """Emit one event and return its position."""
    return jsonify(position=realtime.emit(**request.get_json()))


def emit_all() -> Any:
    """Emit events one after the other and return their positions."""
    return jsonify(positions=[realtime.emit(**event) for event in request.get_json()])


def state() -> Any:
    """Return what this worker holds."""
    pump = current_app.extensions["noc_realtime"].process()._pump
    return jsonify(pid=os.getpid(), detached=pump.streams if pump is not None else 0)
