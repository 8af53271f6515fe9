"""The recipe for htmx, with what it takes for granted."""

from __future__ import annotations

import os
from typing import Any

from flask import Flask, Response, render_template, request
from jinja2 import DictLoader

from flask_noc_realtime import Identity, NocRealtime, coalesce
from tests.documentation import blocks
from tests.server.apps import ICON

ROWS = "{% for incident in incidents %}<tr><td>{{ incident }}</td></tr>{% endfor %}"
# htmx styles its indicator inline.
SETTINGS = """<meta name="htmx-config" content='{"includeIndicatorStyles": false}'>"""


def create() -> Flask:
    """Return an app with the recipe's page and view; ``HTMX`` is the folder of its script."""
    app = Flask(__name__, static_folder=os.environ["HTMX"])
    realtime = NocRealtime(app)
    realtime.identity_loader(lambda request: Identity("7", role="operator"))
    (page,) = blocks("browser", "html", "htmx")
    app.jinja_loader = DictLoader({"page.html": ICON + SETTINGS + page, "rows.html": ROWS})
    incidents: list[str] = []
    names = {
        "app": app,
        "coalesce": coalesce,
        "load_open_incidents": lambda: incidents,
        "render_template": render_template,
    }
    for block in blocks("browser", "python", "htmx"):
        exec(block, names)

    @app.get("/")
    def show() -> Any:
        return render_template("page.html", incidents=incidents)

    @app.post("/incidents")
    def create_incident() -> Any:
        incidents.append(request.get_json())
        realtime.emit("incident.created", {"id": len(incidents)})
        return "{}"

    @app.after_request
    def set_policy(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = "default-src 'self'; img-src data:"
        return response

    return app
