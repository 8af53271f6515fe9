"""The page that compares polling with streams, on the same network and the same server."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from flask import (
    Blueprint,
    Flask,
    Response,
    current_app,
    g,
    has_request_context,
    jsonify,
    render_template,
    request,
)
from sqlalchemy import event

from demo_app.crowd import MOST, SAMPLE, VIEWERS
from demo_app.faults import FAULTS, LINE, Flood, Lines, Switch
from demo_app.legacy.users import ACCOUNTS, current_user
from demo_app.legacy.views import allowed, require_login
from demo_app.legacy.views import blueprint as legacy
from demo_app.realtime import create_app as create_live_app
from demo_app.realtime import realtime

NOBODY = "nobody"

compare = Blueprint("compare", __name__)
compare.before_request(require_login)


def create_app() -> Flask:
    """Return the live app, the legacy views beside it for who still polls, and the page."""
    app = create_live_app()
    for type in (SAMPLE, VIEWERS):
        realtime.register_type(type)
    # What is registered again is not coalesced.
    app.register_blueprint(legacy, name="before", url_prefix="/before")
    app.register_blueprint(compare)
    app.view_functions["noc.dashboard"] = lambda: render_template("desk.html")
    count_queries(app)
    if "DEMO_FAULTS" in os.environ:
        seconds = float(os.environ["DEMO_BREAK_SECONDS"])
        switch = app.extensions["switch"] = Switch(Path(os.environ["DEMO_FAULTS"]), seconds)
        app.wsgi_app = Lines(app.wsgi_app, switch, flood_of(app))  # type: ignore[method-assign]
    return app


def count_queries(app: Flask) -> None:
    """Have each response say how many statements the database was asked for it."""
    engine = app.extensions["services"].sessions.kw["bind"]

    @event.listens_for(engine, "before_cursor_execute")
    def count(*_statement: Any) -> None:
        if has_request_context():
            g.queries = g.get("queries", 0) + 1

    @app.after_request
    def show(response: Response) -> Response:
        response.headers["X-Demo-Queries"] = str(g.get("queries", 0))
        return response


def flood_of(app: Flask) -> Flood:
    """Return what overflows a stream of *app*."""
    history = int(app.config.get("NOC_REALTIME_HISTORY_EVENTS", 10_000))

    def drop() -> None:
        with app.app_context():
            realtime.emit(VIEWERS, {})

    def pour() -> None:
        with app.app_context():
            for number in range(history + 1):
                last = realtime.emit(VIEWERS, {"number": number}, user_id=NOBODY)
            # Through Redis they take a moment to come back.
            for _ in range(200):
                if realtime.position() == last:
                    return
                time.sleep(0.01)

    return Flood(drop, pour)


@compare.get("/compare")
@allowed("logs.read")
def page() -> Any:
    """Show polling and streams side by side."""
    user = current_user()
    assert user is not None
    switch = current_app.extensions.get("switch")
    return render_template(
        "compare.html",
        most=MOST,
        password=ACCOUNTS[user.name][1],
        seconds=switch.seconds if switch else 0,
    )


@compare.post("/compare/viewers")
def viewers() -> Any:
    """Say how many virtual viewers of each kind there are to be, for the next few seconds."""
    form = request.get_json(silent=True)
    count = form.get("viewers") if isinstance(form, dict) else None
    if type(count) is not int or not 0 <= count <= MOST:
        return jsonify(error=f"viewers is a number from 0 to {MOST}"), 400
    realtime.emit(VIEWERS, {"viewers": count})
    return jsonify(viewers=count)


@compare.post("/compare/break")
def break_line() -> Any:
    """Break the line of a page."""
    switch: Switch | None = current_app.extensions.get("switch")
    if switch is None:
        return jsonify(error="nothing is broken here: DEMO_BREAK is 0"), 404
    form = request.get_json(silent=True)
    form = form if isinstance(form, dict) else {}
    line, fault = str(form.get("line")), form.get("fault")
    if fault not in FAULTS or not LINE.fullmatch(f"/line/{line}/"):
        return jsonify(error=f"fault is one of {', '.join(FAULTS)}, and line 8 digits or more"), 400
    switch.turn(line, fault)
    return jsonify(seconds=switch.seconds)
