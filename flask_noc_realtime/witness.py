"""A witness: sees what is read of a request that others with the same key need not have.

What is run for one request and answers many must depend on nothing but its key.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import lru_cache
from types import TracebackType
from typing import Any

from flask import Request, g, request
from flask.globals import request_ctx
from werkzeug.datastructures import EnvironHeaders

_CONDITIONS = (
    "HTTP_IF_MATCH",
    "HTTP_IF_MODIFIED_SINCE",
    "HTTP_IF_NONE_MATCH",
    "HTTP_IF_RANGE",
    "HTTP_IF_UNMODIFIED_SINCE",
    "HTTP_RANGE",
)
_KEPT_BY_REQUEST = (
    "accept_charsets",
    "accept_encodings",
    "accept_languages",
    "accept_mimetypes",
    "access_route",
    "authorization",
    "cache_control",
    "cookies",
    "if_match",
    "if_modified_since",
    "if_none_match",
    "if_range",
    "if_unmodified_since",
    "pragma",
    "range",
    "user_agent",
)
_OF_REQUEST = {
    **dict.fromkeys(
        ("data", "files", "form", "get_data", "get_json", "input_stream", "json", "stream"), "body"
    ),
    **dict.fromkeys(("args", "full_path", "path", "query_string", "url", "values"), "url"),
    **dict.fromkeys(("base_url", "root_path", "root_url", "script_root", "url_root"), "url"),
    **dict.fromkeys(("host", "host_url", "is_secure", "scheme", "server", "view_args"), "url"),
    "remote_addr": "remote_addr",
    "remote_user": "remote_user",
}
_OF_ENVIRON = {
    **dict.fromkeys(("PATH_INFO", "QUERY_STRING", "RAW_URI", "REQUEST_URI", "SCRIPT_NAME"), "url"),
    **dict.fromkeys(("SERVER_NAME", "SERVER_PORT", "wsgi.url_scheme"), "url"),
    **dict.fromkeys(("REMOTE_ADDR", "REMOTE_HOST", "REMOTE_PORT"), "remote_addr"),
    "CONTENT_LENGTH": "content-length",
    "CONTENT_TYPE": "content-type",
    "HTTP_TRANSFER_ENCODING": "body",
    "REMOTE_USER": "remote_user",
    "wsgi.input": "body",
}
# The headers are those by which werkzeug tells a websocket, for each copy of a context.
_HARMLESS = {"HTTP_CONNECTION", "HTTP_UPGRADE", "REQUEST_METHOD"}
_OF_SERVERS = ("SERVER_", "flask.", "gunicorn.", "uwsgi.", "werkzeug.", "wsgi.")

_WHO = re.compile("account|auth|csrf|customer|identity|jwt|login|oidc|principal|tenant|user")
"""Names under which apps and extensions keep who asks."""

PAGE = frozenset(
    {
        "content-length",
        "content-type",
        "host",
        "url",
        *(name[5:].replace("_", "-").lower() for name in _CONDITIONS),
    }
)
"""What the key of a page has of each request, or the witness takes away."""

_ALL = "all headers"
_NO_HEADERS = frozenset({"body", "remote_addr", "remote_user", "session", "url"})
_EVERYTHING = (_ALL, "body", "remote_addr", "remote_user", "url")
_SESSION_FLAGS = frozenset({"accessed", "modified", "__class__", "__dict__"})
_SESSION_METHODS = ("__contains__", "__eq__", "__getitem__", "__iter__", "__len__", "__repr__")

_SLOT = "_noc_realtime_watch"

_lock = threading.Lock()
_current: ContextVar[Witness | None] = ContextVar("flask_noc_realtime.witness", default=None)


class Witness:
    """Sees what is read of the current request for as long as it is entered.

    One that is entered within another's time hands on to it what it cannot account for.

    :param held: what the key holds of the request: names of headers in lower case, ``session``,
        ``cookies``, ``authorization``, ``g.user`` for all that tells the user, and others under
        which something is noted.
    """

    def __init__(self, held: Collection[str]) -> None:
        self.seen: set[str] = set()
        self.changed = False
        self._held = held

    @property
    def uncovered(self) -> list[str]:
        """What was read that is outside the key."""
        seen = self.seen
        if _ALL in seen:
            seen = {name for name in seen if name in _NO_HEADERS or "." in name} | {_ALL}
        return sorted(name for name in seen if not self._covers(name))

    def __enter__(self) -> Witness:
        real = request._get_current_object()  # type: ignore[attr-defined]
        self._later = len(request_ctx._after_request_functions)
        self._session = _session()
        with _lock:
            self._watch: _Watch = real.__dict__.get(_SLOT) or _Watch(real)
            self._watch.cover(g._get_current_object(), _watching_g)
            if self._session is not None:
                self._watch.cover(self._session, _watching_session)
                self._modified = self._session.modified
                self._session.modified = False
            self._watch.witnesses.append(self)
        self._token = _current.set(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _current.reset(self._token)
        self.changed = len(request_ctx._after_request_functions) != self._later
        with _lock:
            if self._session is not None:
                self.changed = self.changed or self._session.modified
                self._session.modified = self._session.modified or self._modified
            self._watch.leave(self)
        self._watch.note(self.uncovered)

    def _covers(self, name: str) -> bool:
        return name in self._held or ("g.user" in self._held and _tells_user(name))


def watched() -> bool:
    """Tell whether a witness is at work here."""
    return _current.get() is not None


@contextmanager
def aside(name: str) -> Iterator[None]:
    """Have the witness note *name* in place of all that is read meanwhile."""
    witness = _current.get()
    before = None if witness is None else set(witness.seen)
    yield
    if witness is not None and before is not None:
        witness.seen.intersection_update(before)
        witness.seen.add(name)


@contextmanager
def unconditional() -> Iterator[None]:
    """Let the request look as one for the whole page, whatever the client has of it."""
    real = request._get_current_object()  # type: ignore[attr-defined]
    environ, method = real.environ, real.method
    removed = {name: environ.pop(name) for name in _CONDITIONS if name in environ}
    real.method = environ["REQUEST_METHOD"] = "GET"
    _forget(real)
    try:
        yield
    finally:
        environ.update(removed)
        real.method = environ["REQUEST_METHOD"] = method
        _forget(real)


class _Watch:
    """Watches a request, for all who are at it at the same time: a view may start threads.

    :param real: the request, which looks as always.
    """

    def __init__(self, real: Any) -> None:
        self.witnesses: list[Witness] = []
        self._undo = ExitStack()
        environ, headers = real.environ, real.headers
        sent, watched = dict(environ), _WatchedEnviron(environ)
        watched.__dict__[_SLOT] = self
        real.environ, real.headers = watched, _WatchedHeaders(watched)
        _forget(real)

        def undo() -> None:
            environ.update([(k, v) for k, v in dict.items(watched) if sent.get(k) is not v])
            real.environ, real.headers = environ, headers
            _forget(real)

        self._undo.callback(undo)
        self.cover(real, _watching_request)

    def cover(self, thing: Any, watching: Callable[[type], type]) -> None:
        """Watch *thing* as well, until the last witness has left."""
        if _SLOT in thing.__dict__:
            return
        kind = type(thing)
        thing.__dict__[_SLOT] = self
        # Its own __setattr__ would take the class for one of the app's variables.
        object.__setattr__(thing, "__class__", watching(kind))

        def undo() -> None:
            object.__setattr__(thing, "__class__", kind)
            del thing.__dict__[_SLOT]

        self._undo.callback(undo)

    def leave(self, witness: Witness) -> None:
        """End with the last witness."""
        self.witnesses.remove(witness)
        if not self.witnesses:
            self._undo.close()

    def note(self, names: Iterable[str]) -> None:
        """Tell the witness at work here, or all where none is: threads begin without."""
        here = _current.get()
        for witness in list(self.witnesses) if here is None else [here]:
            witness.seen.update(names)


def _forget(real: Any) -> None:
    """Drop what the request worked out from headers that were, or will be, others."""
    for name in _KEPT_BY_REQUEST:
        real.__dict__.pop(name, None)


def _session() -> Any:
    """Return the session without touching it: the proxy would count as an access."""
    context: Any = request_ctx._get_current_object()  # type: ignore[attr-defined]
    held = vars(context)
    return held.get("_session", held.get("session"))


# The names under which something is noted.

Names = tuple[str, ...]


@lru_cache(256)
def _of_environ(key: str) -> Names:
    if key in _OF_ENVIRON:
        return (_OF_ENVIRON[key],)
    if key in _HARMLESS or key.startswith(_OF_SERVERS):
        return ()
    if key.startswith("HTTP_"):
        name = key[5:].replace("_", "-").lower()
        return ("cookies" if name == "cookie" else name,)
    return (f"environ.{key.lower()}",)


@lru_cache(256)
def _of_request(name: str) -> Names:
    if name in _OF_REQUEST:
        return (_OF_REQUEST[name],)
    own = not name.startswith("__") and not hasattr(Request, name)
    return (f"request.{name.lower()}",) if own and _WHO.search(name.lower()) else ()


@lru_cache(256)
def _of_g(name: str) -> Names:
    return (f"g.{name.lower()}",) if _WHO.search(name.lower()) else ()


def _of_session(name: str) -> Names:
    return () if name in _SESSION_FLAGS else ("session",)


def _tells_user(name: str) -> bool:
    own = name.startswith(("g.", "request.", "environ.")) and _WHO.search(name)
    return bool(own) or name == "remote_user"


# What takes the place of something for as long as it is watched.

NamesOf = Callable[[str], Names]


def _note(thing: Any, names: Names) -> None:
    if names:
        watch: _Watch | None = object.__getattribute__(thing, "__dict__").get(_SLOT)
        if watch is not None:
            watch.note(names)


def _noting(kind: type, method: str, names_of: NamesOf) -> Callable[..., Any]:
    """Return a method that notes its first argument, and does what that of *kind* does."""
    inner = getattr(kind, method)

    def noted(self: Any, *args: Any) -> Any:
        _note(self, names_of(str(args[0]) if args else ""))
        return inner(self, *args)

    return noted


def _watching(
    kind: type, of_attribute: NamesOf, methods: Collection[str] = (), of_argument: NamesOf = _of_g
) -> type:
    """Return a subclass that notes which attributes are read, and what *methods* are asked."""

    class Watched(kind):  # type: ignore[misc]  # made for a class known only now
        __slots__ = ()

        def __getattribute__(self, name: str) -> Any:
            _note(self, of_attribute(name))
            return super().__getattribute__(name)

    for method in methods:
        setattr(Watched, method, _noting(kind, method, of_argument))
    return Watched


@lru_cache(None)
def _watching_g(kind: type) -> type:
    return _watching(kind, _of_g, ("__contains__", "get", "pop", "setdefault"))


@lru_cache(None)
def _watching_request(kind: type) -> type:
    return _watching(kind, _of_request)


@lru_cache(None)
def _watching_session(kind: type) -> type:
    # Flask 3.0 leaves it to the class to notice that it is read, and not all do.
    return _watching(kind, _of_session, _SESSION_METHODS, lambda _: ("session",))


class _WatchedEnviron(dict[str, Any]):
    """Notes what is read of a WSGI environment."""


for _method in ("__contains__", "__getitem__", "get", "pop", "setdefault"):
    setattr(_WatchedEnviron, _method, _noting(dict, _method, _of_environ))
for _method in ("__iter__", "__or__", "copy", "items", "keys", "values"):
    setattr(_WatchedEnviron, _method, _noting(dict, _method, lambda _: _EVERYTHING))


class _WatchedHeaders(EnvironHeaders):
    """Looks into a watched environment for no more than is asked."""

    def getlist(self, key: str, *args: Any, **kwargs: Any) -> Any:
        # The base class looks through all of them, which is none of the view's doing.
        return [self[key]] if key in self else []

    def __iter__(self) -> Iterator[tuple[str, str]]:
        _note(self.environ, (_ALL,))
        return iter(EnvironHeaders(dict(dict.items(self.environ))))
