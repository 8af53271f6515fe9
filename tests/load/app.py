"""The app under load: a stream whose audience class the client names, and an ordinary view."""

from __future__ import annotations

import os
import threading
from dataclasses import asdict
from typing import Any

from flask import Flask, Request, jsonify, request

from flask_noc_realtime import Identity, NocRealtime
from tests.load.emission import Emitted, Plan, emit_paced
from tests.load.server import VIEW

app = Flask(__name__)
app.config.update(
    {key: value for key, value in os.environ.items() if key.startswith("NOC_REALTIME_")}
)
realtime = NocRealtime(app)
if app.config.get("NOC_REALTIME_METRICS") == "auto":
    from prometheus_client import REGISTRY

    realtime.metrics(REGISTRY)


class Emission(threading.Thread):
    """A plan being carried out; a greenlet where the server patched threads."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(daemon=True)
        self.result = Emitted(0, 0.0)
        self._plan = plan

    def run(self) -> None:
        """Emit as a service of the app does."""
        with app.app_context():
            self.result = emit_paced(
                self._plan,
                lambda text, who: realtime.emit("incident.created", text, permissions=who),
            )


_emissions: list[Emission] = []


@realtime.identity_loader
def identity(request: Request) -> Identity:
    """Return an identity of the class the client names; it sees what is for all, too."""
    number = request.args.get("class") or request.headers.get("X-Class") or "0"
    return Identity(permissions=frozenset({"all", f"class.{number}"}))


@app.get(VIEW)
def view() -> str:
    """Answer as the cheapest ordinary view does."""
    return "ok"


@app.post("/load/emit")
def emit() -> str:
    """Begin to emit a plan within this worker."""
    _emissions[:] = [Emission(Plan(**request.get_json()))]
    _emissions[0].start()
    return "begun"


@app.get("/load/emit")
def emitted() -> Any:
    """Return what was emitted once that is over."""
    _emissions[0].join()
    return jsonify(asdict(_emissions[0].result))
