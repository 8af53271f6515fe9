"""The routes under the prefix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response, current_app, jsonify, request

from .audience import TypeFilter
from .auth import ANONYMOUS, Identity
from .errors import ParameterError
from .transport import StreamRequest

if TYPE_CHECKING:
    from .extension import State

EXTENSION = "noc_realtime"
MAX_POSITION_LENGTH = 128

_STREAM_HEADERS = {
    # Proxies that transform or collect a stream hold its events back.
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",
}


def create_blueprint(state: State) -> Blueprint:
    """Return the blueprint of one app."""
    blueprint = Blueprint(EXTENSION, __name__, url_prefix=state.config.prefix)
    blueprint.add_url_rule("/stream", view_func=stream, methods=["GET"])
    blueprint.register_error_handler(ParameterError, _bad_parameter)
    return blueprint


def stream() -> Response:
    """Answer with the stream of events the client may see, from its last position on."""
    state: State = current_app.extensions[EXTENSION]
    identity = _identity(state)
    if identity is None:
        return problem(401, "unauthorized", "No identity was found in the request.")
    types = TypeFilter.parse(request.args.get("types", ""))
    wanted = StreamRequest(identity.audience(types), identity.user_id, _last_position())
    return Response(
        state.process().stream(request.environ, wanted),
        mimetype="text/event-stream",
        headers=_STREAM_HEADERS,
        # Code that reads the body of every response would never come back from a stream.
        direct_passthrough=True,
    )


def problem(status: int, title: str, detail: str) -> Response:
    """Return an RFC 9457 problem body."""
    response = jsonify(type="about:blank", title=title, status=status, detail=detail)
    response.status_code = status
    response.mimetype = "application/problem+json"
    response.headers["Cache-Control"] = "no-store"
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _identity(state: State) -> Identity | None:
    identity = state.identity_loader(request) if state.identity_loader is not None else None
    if identity is None and state.config.allow_anonymous:
        return ANONYMOUS
    return identity


def _last_position() -> str | None:
    """Return where to resume: a rebuilt EventSource can only say it in the URL.

    The header is the newer of the two, since the browser sends it after what it has seen.
    """
    position = request.headers.get("Last-Event-ID") or request.args.get("last_event_id")
    return position[:MAX_POSITION_LENGTH] if position else None


def _bad_parameter(error: Exception) -> Any:
    return problem(400, "bad parameter", str(error))
