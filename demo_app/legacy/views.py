"""The page and the JSON it polls."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, current_app, jsonify, render_template, request

from .services import NotFound, Services

blueprint = Blueprint("noc", __name__)


def services() -> Services:
    """Return the service layer of the app."""
    found: Services = current_app.extensions["services"]
    return found


@blueprint.get("/")
def dashboard() -> str:
    """Show the wallboard."""
    return render_template("dashboard.html")


@blueprint.get("/api/servers")
def servers() -> Any:
    """Return the devices."""
    return jsonify(services().servers.list())


@blueprint.get("/api/incidents")
def incidents() -> Any:
    """Return the newest incidents."""
    return jsonify(services().incidents.list())


@blueprint.get("/api/logs")
def logs() -> Any:
    """Return the newest lines of the log."""
    return jsonify(services().logs.list())


@blueprint.get("/api/automations")
def automations() -> Any:
    """Return the newest runs."""
    return jsonify(services().automations.list())


@blueprint.post("/api/incidents/<int:incident_id>/acknowledge")
def acknowledge(incident_id: int) -> Any:
    """Say who is on an incident."""
    form = request.get_json(silent=True)
    if not isinstance(form, dict):
        return jsonify(error="the body is not a JSON object"), 400
    who, comment = str(form.get("who") or "operator"), str(form.get("comment") or "")
    if len(who) > 40 or len(comment) > 1000:
        return jsonify(error="who or comment is too long"), 400
    return jsonify(services().incidents.acknowledge(incident_id, who, comment))


@blueprint.errorhandler(NotFound)
def not_found(error: NotFound) -> Any:
    """Answer what is not there."""
    return jsonify(error=str(error)), 404
