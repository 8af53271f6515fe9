"""The routes under the prefix."""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response, current_app, jsonify, request, url_for
from werkzeug.exceptions import HTTPException

from . import poll as polling
from .asset import ASSETS, load
from .audience import TypeFilter
from .auth import Identity, decode_ticket, encode_ticket
from .errors import (
    BodyError,
    BodyTooLarge,
    BrokerUnavailable,
    IdentityError,
    LimitError,
    NocRealtimeError,
    OriginError,
    ParameterError,
    ReplayError,
)
from .metrics import OTHER
from .rollout import POLLING
from .transport import Caller, StreamRequest

if TYPE_CHECKING:
    from .extension import State

EXTENSION = "noc_realtime"
MAX_POSITION_LENGTH = 128
MAX_QUERY_BYTES = 8 * 1024
MAX_BODY_BYTES = 64 * 1024
MAX_WAIT = 25.0

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_STREAM_TYPE = "text/event-stream"
_TICKET_BYTES = 32
_FOREIGN_SITES = ("cross-site", "same-site")

_STREAM_HEADERS = {
    "Content-Type": f"{_STREAM_TYPE}; charset=utf-8",
    # Proxies that transform or collect a stream hold its events back.
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",
}
# An EventSource stops for good on 204 (WHATWG HTML, section 9.2.3), and so the page can poll.
_POLLING_HEADERS = {"Cache-Control": "no-store", "X-Noc-Rollout": POLLING}
_CORS_HEADERS = {
    "Access-Control-Allow-Credentials": "true",
    "Access-Control-Expose-Headers": "Retry-After, ETag, X-Noc-Rollout",
}
_PREFLIGHT_HEADERS = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": (
        "Authorization, Content-Type, If-None-Match, Last-Event-ID, X-CSRF-Token"
    ),
    "Access-Control-Max-Age": "600",
}

_STREAMS = ("stream", "stream_by_ticket")
_REJECTIONS = {
    204: "rollout",
    400: "invalid",
    401: "unauthorized",
    403: "forbidden",
    406: "invalid",
    429: "limit",
    503: "unavailable",
}

View = Callable[..., Response]


def create_blueprint(state: State) -> Blueprint:
    """Return the blueprint of one app."""
    blueprint = Blueprint(EXTENSION, __name__, url_prefix=state.config.prefix)
    for path, method, view in _ROUTES:
        add_route(blueprint, path, method, view)
    blueprint.before_app_request(_refuse_unmatched)
    blueprint.before_request(_refuse_early)
    blueprint.after_request(_share)
    blueprint.after_request(_measure)
    blueprint.register_error_handler(NocRealtimeError, _explain)
    blueprint.register_error_handler(HTTPException, _explain_http)
    return blueprint


def add_route(
    blueprint: Blueprint, path: str, method: str, view: View, max_body: int = MAX_BODY_BYTES
) -> None:
    """Have *view* answer *method* of a path, with a body of *max_body* bytes at most."""
    blueprint.add_url_rule(
        path,
        view.__name__,
        _only(method, view, max_body),
        # All, so that the answer to another is ours, and not the app's own page for a 405.
        methods=_METHODS,
        provide_automatic_options=False,
    )


# The routes.


def stream(ticket: str | None = None) -> Response:
    """Answer with the stream of events the client may see, from its last position on.

    Whom the rollout leaves to polling is answered with 204.
    """
    state = _state()
    process = state.process()
    process.hub.start()
    since = process.hub.end
    identity = _known(state) if ticket is None else _redeem(state, ticket)
    if not _accepts_stream():
        return problem(406, "Not Acceptable", "A stream is text/event-stream.")
    remaining = _remaining(identity)
    if not process.hub.rollout.includes(identity.user_id):
        return Response(status=204, headers=_POLLING_HEADERS)
    audience = identity.audience(_types())
    if request.method == "HEAD":
        return _stream_head()
    wanted = StreamRequest(
        audience,
        identity.user_id,
        _last_position(),
        since,
        None if remaining is None else time.monotonic() + remaining,
        process.leases.acquire(identity.user_id),
    )
    return Response(
        process.stream(request.environ, wanted),
        headers=_STREAM_HEADERS,
        # Code that reads the body of every response would never come back from a stream.
        direct_passthrough=True,
    )


def connect() -> Response:
    """Answer with a ticket: a URL that opens one stream, once and soon, without a token."""
    state = _state()
    process = state.process()
    position = process.position()
    identity = admit(state)
    ticket = secrets.token_urlsafe(_TICKET_BYTES)
    lifetime = state.config.ticket_ttl
    process.broker.put(ticket_key(ticket), encode_ticket(identity, position), lifetime)
    url = url_for(".stream_by_ticket", ticket=ticket)
    response = jsonify(ticket=ticket, url=url, expires_in=lifetime)
    response.headers["Cache-Control"] = "no-store"
    return response


def stream_by_ticket(ticket: str) -> Response:
    """Answer as `stream` does, to whoever the ticket was issued for; HEAD does not use it up."""
    return _stream_head() if request.method == "HEAD" else stream(ticket)


def _stream_head() -> Response:
    # An iterator, so that no length is worked out.
    return Response(iter(()), headers=_STREAM_HEADERS)


def poll() -> Response:
    """Answer with the events after a position, for clients that cannot have a stream.

    With ``wait`` seconds it answers as soon as there is one the client may see.
    """
    state = _state()
    process = state.process()
    process.hub.start()
    since = process.hub.end
    identity = _known(state)
    remaining = _remaining(identity)
    wait = min(_wait(), MAX_WAIT, math.inf if remaining is None else remaining)
    wanted = StreamRequest(
        identity.audience(_types()), identity.user_id, _position_argument("after"), since
    )
    with process.long_polls.admit(identity.user_id, wait) as patience:
        answer = polling.poll(process.portable, wanted, patience, Caller(request.environ))
    cohort, away = process.hub.rollout.cohort(identity.user_id), process.hub.away
    streams = cohort != POLLING
    process.metrics.polled(cohort, answer.events)
    body = answer.body(state.config.poll_interval, streams, away)
    response = Response(body, mimetype="application/json")
    response.headers["Cache-Control"] = "private, no-cache"
    response.vary.update(("Authorization", "Cookie"))
    response.set_etag(_etag(identity, answer, streams, away))
    response.make_conditional(request)
    return response


def settings() -> Response:
    """Answer with what a client needs to know before it begins; times are in seconds."""
    state = _state()
    hub = state.process().hub
    hub.start()
    identity = admit(state)
    config = state.config
    response = jsonify(
        stream=hub.rollout.includes(identity.user_id),
        heartbeat=config.heartbeat,
        retry=config.retry,
        poll_interval=config.poll_interval,
        types=state.catalogue.types(),
    )
    response.headers["Cache-Control"] = "no-store"
    return response


def health() -> Response:
    """Answer how this worker is: with 503 when it is to be sent no more requests.

    With ``ready=1`` that is so without the broker as well, and ``deep=1`` also asks the broker now.
    """
    deep, ready = (request.args.get(name, "0") != "0" for name in ("deep", "ready"))
    found = _state().process().health(deep=deep)
    refused = ("draining", "degraded") if deep or ready else ("draining",)
    response = jsonify(found.body())
    response.status_code = 503 if found.status in refused else 200
    response.headers["Cache-Control"] = "no-store"
    return response


def asset(name: str) -> Response:
    """Answer with a file for browsers."""
    file = load(name)
    response = Response(file.source, mimetype="text/javascript")
    response.set_etag(file.tag)
    # An address that names its content never has another.
    named = request.args.get("v") == file.tag
    response.headers["Cache-Control"] = (
        "public, max-age=31536000, immutable" if named else "no-cache"
    )
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.make_conditional(request)
    return response


def nothing(rest: str = "") -> Response:
    """Answer what is no route of ours, so that it is not the app's own page for a 404."""
    return problem(404, "Not Found", "There is no such address here.")


_ROUTES: tuple[tuple[str, str, View], ...] = (
    ("/stream", "GET", stream),
    ("/stream/<ticket>", "GET", stream_by_ticket),
    ("/connect", "POST", connect),
    ("/poll", "GET", poll),
    ("/config", "GET", settings),
    ("/health", "GET", health),
    (f"/<any({', '.join(map(json.dumps, ASSETS))}):name>", "GET", asset),
    ("/<path:rest>", "", nothing),
)


# They take up a place, or answer with what one user may see.
_PERSONAL = frozenset(view.__name__ for view in (stream, stream_by_ticket, connect, poll))


def _only(method: str, view: View, max_body: int) -> View:
    """Return a view that answers *method* with *view*, and explains itself to others."""
    allowed = {"GET": "GET, HEAD, OPTIONS", "POST": "POST, OPTIONS"}.get(method, "")

    def dispatch(**arguments: str) -> Response:
        if request.method != "GET" and (request.content_length or 0) > max_body:
            raise BodyTooLarge(f"The body exceeds {max_body} bytes.")
        if not method or request.method == method:
            return view(**arguments)
        if request.method == "HEAD" and method == "GET":
            return view(**arguments)
        if request.method == "OPTIONS":
            return Response(status=204, headers={"Allow": allowed})
        answer = problem(405, "Method Not Allowed", f"Use {method} here.")
        answer.headers["Allow"] = allowed
        return answer

    return dispatch


# Who asks.


def _state() -> State:
    state: State = current_app.extensions[EXTENSION]
    return state


def admit(state: State) -> Identity:
    """Return who asks.

    :raises IdentityError: when it is nobody, or no longer anybody.
    """
    identity = _known(state)
    _remaining(identity)
    return identity


def _known(state: State) -> Identity:
    identity = state.identity(request)
    if identity is None:
        raise IdentityError("No identity was found in the request.")
    return identity


def _redeem(state: State, ticket: str) -> Identity:
    """Use a ticket up and return whom it was issued for."""
    process = state.process()
    # Only its digest is stored and looked up: timing tells nothing of the tickets there are.
    value = process.take(ticket_key(ticket))
    if value is None:
        raise IdentityError("The ticket is unknown, used or too old; get a new one from connect.")
    identity, position = decode_ticket(value)
    if process.hub.ended_after(position, identity.user_id) is not None:
        raise IdentityError("The ticket was withdrawn; get a new one from connect.")
    bearer = _bearer(state)
    if bearer is not None and bearer.user_id != identity.user_id:
        raise OriginError("The ticket was issued to somebody else.")
    return identity


def _bearer(state: State) -> Identity | None:
    """Return whom the request shows beside a ticket, which is enough by itself."""
    try:
        return state.loaded_identity(request)
    except IdentityError:
        return None


def ticket_key(ticket: str) -> str:
    """Return the key a ticket is kept under."""
    return "ticket:" + hashlib.sha256(ticket.encode()).hexdigest()


def _remaining(identity: Identity) -> float | None:
    remaining = identity.remaining(datetime.now(timezone.utc))
    if remaining is not None and remaining <= 0:
        raise IdentityError("The identity has expired; log in again.")
    return remaining


def _etag(identity: Identity, answer: polling.Answer, *told: bool) -> str:
    """Name an answer; another user of the same browser must not be shown this one's."""
    who = [identity.user_id, *sorted(identity.permissions)]
    fields = [*who, answer.position, answer.reset, *told]
    return hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:32]


# What is asked.


def _types() -> TypeFilter:
    return TypeFilter.parse(request.args.get("types", ""))


def _accepts_stream() -> bool:
    accept = request.headers.get("Accept")
    # What browsers, curl and our own client send, without parsing it.
    if accept in (None, "", "*/*", _STREAM_TYPE):
        return True
    return request.accept_mimetypes.best_match([_STREAM_TYPE]) is not None


def _last_position() -> str | None:
    """Return where to resume: a rebuilt EventSource can only say it in the URL.

    The header is the newer of the two, since the browser sends it after what it has seen.
    """
    position = request.headers.get("Last-Event-ID")
    return position[:MAX_POSITION_LENGTH] if position else _position_argument("last_event_id")


def _position_argument(name: str) -> str | None:
    position = request.args.get(name)
    return position[:MAX_POSITION_LENGTH] if position else None


def _wait() -> float:
    text = request.args.get("wait", "0")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ParameterError(f"wait is {text!r:.40}; use seconds from 0 to {MAX_WAIT:.0f}")
    return seconds


# What every route has in common.


def _refuse_unmatched() -> Response | None:
    """Answer what Flask found no route for under the prefix: it would redirect a doubled slash."""
    error = request.routing_exception
    if error is None or not request.path.startswith(f"{_state().config.prefix}/"):
        return None
    if error.code != 405:
        return nothing()
    if request.method in _METHODS:
        return None  # Ours take all of them: this is an address of the app's own.
    return problem(501, "Not Implemented", f"No address here takes {request.method}.")


def _refuse_early() -> Response | None:
    """Refuse what no client of ours sends, before anything is looked up for it."""
    environ = request.environ
    if len(environ.get("QUERY_STRING", "")) > MAX_QUERY_BYTES:
        return problem(400, "Bad Request", f"The query is longer than {MAX_QUERY_BYTES} bytes.")
    if request.method != "OPTIONS":
        _check_origin(environ.get("HTTP_ORIGIN"), environ.get("HTTP_SEC_FETCH_SITE"))
    return None


def _check_origin(origin: str | None, site: str | None) -> None:
    """Refuse what a page has a browser send that may not connect with its user's cookies.

    Without this, any page could take up a user's streams, although it cannot read them.

    :param site: how the page's site relates to ours, on https and localhost (W3C Fetch Metadata).
    :raises OriginError: when the page is not ours, and of none of the listed origins.
    """
    if origin is None:
        # Pictures, frames and links come without; so do the requests of our own pages.
        if site in _FOREIGN_SITES and (request.endpoint or "").rpartition(".")[2] in _PERSONAL:
            raise OriginError(
                "Pages of other sites may connect only with fetch or EventSource, and if their "
                "origin is in NOC_REALTIME_CORS_ORIGINS."
            )
        return
    if origin.lower() in _state().config.cors_origins:
        return
    # A browser sets it itself; pages cannot.
    if not (site == "same-origin" if site else origin.endswith(f"://{request.host}")):
        raise OriginError(
            f"Pages of {origin!r:.200} may not connect. If they are yours, add their origin to "
            "NOC_REALTIME_CORS_ORIGINS; behind a proxy, forward the Host header."
        )


def _share(response: Response) -> Response:
    """Let pages of the listed origins read the response (CORS, WHATWG Fetch)."""
    origins = _state().config.cors_origins
    if not origins:
        return response
    response.vary.add("Origin")
    origin = request.headers.get("Origin")
    if origin is None or origin.lower() not in origins:
        return response
    response.headers["Access-Control-Allow-Origin"] = origin
    response.headers.update(_CORS_HEADERS)
    if request.method == "OPTIONS":
        response.headers.update(_PREFLIGHT_HEADERS)
    return response


def _measure(response: Response) -> Response:
    """Count a stream that was refused."""
    view, status = (request.endpoint or "").rpartition(".")[2], response.status_code
    if view in _STREAMS and request.method == "GET" and status != 200:
        _state().process().metrics.rejected(_REJECTIONS.get(status, OTHER))
    if request.view_args:
        # prometheus-flask-exporter would have a time series for every ticket, and show it.
        request.prom_do_not_track = True  # type: ignore[attr-defined]
    return response


def problem(status: int, title: str, detail: str) -> Response:
    """Return an RFC 9457 problem body."""
    response = jsonify(type="about:blank", title=title, status=status, detail=detail)
    response.status_code = status
    response.mimetype = "application/problem+json"
    response.headers["Cache-Control"] = "no-store"
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if status in (429, 503):
        # Who came at once with others would come at once with them again.
        response.headers["Retry-After"] = str(max(1, round(_state().process().hub.retry())))
    return response


_PROBLEMS: tuple[tuple[type[NocRealtimeError], int, str], ...] = (
    (BodyTooLarge, 413, "Content Too Large"),
    (BodyError, 422, "Unprocessable Content"),
    (ParameterError, 400, "Bad Request"),
    (IdentityError, 401, "Unauthorized"),
    (OriginError, 403, "Forbidden"),
    (ReplayError, 409, "Conflict"),
    (BrokerUnavailable, 503, "Service Unavailable"),
)


def _explain(error: NocRealtimeError) -> Response:
    if isinstance(error, LimitError):
        if error.everybody:
            return problem(503, "Service Unavailable", str(error))
        return problem(429, "Too Many Requests", str(error))
    for kind, status, title in _PROBLEMS:
        if isinstance(error, kind):
            return problem(status, title, str(error))
    # The app's own mistake, for its own log and page.
    raise error


def _explain_http(error: HTTPException) -> Any:
    return problem(error.code or 500, error.name, error.description or "")
