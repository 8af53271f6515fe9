"""The pages and the JSON they poll."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from flask import (
    Blueprint,
    Response,
    current_app,
    jsonify,
    redirect,
    render_template,
    request,
    url_for,
)

from .services import Conflict, NotFound, Services
from .users import ACCOUNTS, current_user, log_in, log_out

MAX_COMMENT = 1000
OPEN_TO_ALL = ("login", "logout")

blueprint = Blueprint("noc", __name__)


def services() -> Services:
    """Return the service layer of the app."""
    found: Services = current_app.extensions["services"]
    return found


def allowed(permission: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Refuse the view to roles without *permission*."""

    def decorate(view: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(view)
        def check(**arguments: Any) -> Any:
            user = current_user()
            if user is None or permission not in user.permissions:
                return jsonify(error=f"your role lacks {permission}"), 403
            return view(**arguments)

        return check

    return decorate


@blueprint.before_request
def require_login() -> Any:
    """Send people to the login page, and tell scripts."""
    if str(request.endpoint).rpartition(".")[2] in OPEN_TO_ALL or current_user() is not None:
        return None
    if "/api/" in request.path:
        return jsonify(error="log in first"), 401
    return redirect(url_for("noc.login", next=request.full_path.rstrip("?")))


@blueprint.app_context_processor
def show_user() -> dict[str, Any]:
    """Let every template know who looks at it."""
    return {"user": current_user(), "wallboard": request.args.get("wallboard") == "1"}


@blueprint.after_app_request
def set_policy(response: Response) -> Response:
    """Allow no code or style that is not the app's own file."""
    response.headers.setdefault(
        "Content-Security-Policy",
        "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'",
    )
    return response


@blueprint.route("/login", methods=["GET", "POST"])
def login() -> Any:
    """Ask who it is."""
    form = request.form
    if request.method == "GET":
        return render_template("login.html", accounts=ACCOUNTS)
    if not log_in(form.get("name", ""), form.get("password", "")):
        return render_template("login.html", accounts=ACCOUNTS, wrong=True), 403
    return redirect(_inside(request.args.get("next", "")))


@blueprint.post("/logout")
def logout() -> Any:
    """End the shift."""
    log_out()
    return redirect(url_for("noc.login"))


@blueprint.get("/")
def dashboard() -> str:
    """Show the desk of an operator, or with ``wallboard=1`` what all look at."""
    return render_template("dashboard.html")


@blueprint.get("/api/servers")
@allowed("servers.read")
def servers() -> Any:
    """Return the devices."""
    return jsonify(services().servers.list())


@blueprint.get("/api/incidents")
@allowed("incidents.read")
def incidents() -> Any:
    """Return the newest incidents."""
    return jsonify(services().incidents.list())


@blueprint.get("/api/logs")
@allowed("logs.read")
def logs() -> Any:
    """Return the newest lines of the log, or with ``run`` those of one automation run."""
    user = current_user()
    debug = user is not None and "logs.debug" in user.permissions
    return jsonify(services().logs.list(run_id=request.args.get("run", type=int), debug=debug))


@blueprint.get("/api/automations")
@allowed("automations.read")
def automations() -> Any:
    """Return the newest runs."""
    return jsonify(services().automations.list())


@blueprint.post("/api/incidents/<int:incident_id>/acknowledge")
@allowed("incidents.acknowledge")
def acknowledge(incident_id: int) -> Any:
    """Say that the user is on an incident, perhaps instead of whom the page shows."""
    user = current_user()
    assert user is not None
    form = request.get_json(silent=True)
    if not isinstance(form, dict):
        return jsonify(error="the body is not a JSON object"), 400
    comment, instead_of = str(form.get("comment") or ""), form.get("instead_of")
    if len(comment) > MAX_COMMENT:
        return jsonify(error=f"the comment is longer than {MAX_COMMENT} characters"), 400
    if instead_of is not None and "incidents.take_over" not in user.permissions:
        return jsonify(error="your role lacks incidents.take_over"), 403
    return jsonify(services().incidents.acknowledge(incident_id, user.name, comment, instead_of))


@blueprint.errorhandler(NotFound)
def not_found(error: NotFound) -> Any:
    """Answer what is not there."""
    return jsonify(error=str(error)), 404


@blueprint.errorhandler(Conflict)
def conflict(error: Conflict) -> Any:
    """Answer who was quicker with what is so now."""
    return jsonify(error=str(error), incident=error.row), 409


def _inside(target: str) -> str:
    """Return *target* if it is an address of this app, so that nobody is sent elsewhere."""
    parts = urlsplit(target.replace("\\", "/"))
    inside = parts.path.startswith("/") and not parts.path.startswith("//")
    return target if inside and not (parts.scheme or parts.netloc) else url_for("noc.dashboard")
