"""A witness: sees what a view reads of the request that other requests need not have.

A view that is run for one request and answers many must depend on nothing but its key. While
the witness watches, the request also looks as one for the whole, unconditional page.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from types import TracebackType
from typing import Any

from flask import g, request
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
_HARMLESS = frozenset(
    {
        "host",
        "content-type",
        "content-length",
        *(c[5:].replace("_", "-").lower() for c in _CONDITIONS),
    }
)
_WHO = frozenset(
    {
        "user",
        "current_user",
        "identity",
        "_login_user",
        "_jwt_extended_jwt",
        "_jwt_extended_jwt_user",
        "_flask_httpauth_user",
    }
)
_ALL = "all headers"
_NO_HEADERS = frozenset({"g.user", "session"})
_SLOT = "_noc_realtime_witness"
_watched: dict[type, type] = {}


class Witness:
    """Watches the current request for as long as it is entered.

    :param covered: what the key holds already: names of headers in lower case, ``session``,
        ``cookies``, ``authorization``, ``g.user``.
    """

    def __init__(self, covered: Collection[str]) -> None:
        self.seen: set[str] = set()
        self.changed = False
        self._covered = covered

    @property
    def uncovered(self) -> list[str]:
        """What the view read that is outside the key."""
        seen = self.seen
        if _ALL in seen:
            seen = (seen & _NO_HEADERS) | {_ALL}
        return sorted(seen - set(self._covered))

    def __enter__(self) -> Witness:
        real = request._get_current_object()  # type: ignore[attr-defined]
        self._request, environ = real, real.environ
        self._headers, self._method = real.headers, real.method
        self._removed = {n: environ.pop(n) for n in _CONDITIONS if n in environ}
        real.headers = _WatchedHeaders(environ, self.seen)
        real.method = environ["REQUEST_METHOD"] = "GET"
        self._forget()
        self._session = _session()
        if self._session is not None:
            self._flags = self._session.accessed, self._session.modified
            self._session.accessed = self._session.modified = False
        self._globals = g._get_current_object()
        self._globals_class = type(self._globals)
        self._globals.__dict__[_SLOT] = self.seen
        # Its own __setattr__ would take the class for one of the app's variables.
        object.__setattr__(self._globals, "__class__", _watching(self._globals_class))
        self._later = len(request_ctx._after_request_functions)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        object.__setattr__(self._globals, "__class__", self._globals_class)
        self._globals.__dict__.pop(_SLOT, None)
        if self._session is not None:
            accessed, modified = self._flags
            if self._session.accessed:
                self.seen.add("session")
            if self._session.modified:
                self.changed = True
            self._session.accessed = accessed or self._session.accessed
            self._session.modified = modified or self._session.modified
        if len(request_ctx._after_request_functions) != self._later:
            self.changed = True
        self._request.headers = self._headers
        self._request.environ.update(self._removed)
        self._request.method = self._request.environ["REQUEST_METHOD"] = self._method
        self._forget()

    def _forget(self) -> None:
        """Drop what the request worked out from headers that were, or will be, others."""
        for name in _KEPT_BY_REQUEST:
            self._request.__dict__.pop(name, None)


class _WatchedHeaders(EnvironHeaders):
    """Notes which headers are read."""

    def __init__(self, environ: dict[str, Any], seen: set[str]) -> None:
        super().__init__(environ)
        self._seen = seen

    def __getitem__(self, key: str) -> str:  # type: ignore[override]
        self._note(key)
        return super().__getitem__(key)

    def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
        self._note(key)
        return super().get(key, *args, **kwargs)

    def getlist(self, key: str, *args: Any, **kwargs: Any) -> Any:
        self._note(key)
        name = f"HTTP_{key.upper().replace('-', '_')}"
        # The base class looks through all of them, which is none of the view's doing.
        return [self.environ[name]] if name in self.environ else []

    def __contains__(self, key: str) -> bool:
        self._note(key)
        return super().__contains__(key)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        self._seen.add(_ALL)
        return super().__iter__()

    def _note(self, key: str) -> None:
        name = str(key).lower().replace("_", "-")
        if name == "cookie":
            self._seen.add("cookies")
        elif name not in _HARMLESS:
            self._seen.add(name)


def _session() -> Any:
    """Return the session without touching it: the proxy would count as an access."""
    context: Any = request_ctx._get_current_object()  # type: ignore[attr-defined]
    held = vars(context)
    return held.get("_session", held.get("session"))


def _watching(kind: type) -> type:
    """Return a subclass of the app's class of `g` that notes who asks for the user."""
    known = _watched.get(kind)
    if known is not None:
        return known

    def note(self: Any, name: str) -> None:
        if name in _WHO:
            held = object.__getattribute__(self, "__dict__")
            held.get(_SLOT, set()).add("g.user")

    class Watched(kind):  # type: ignore[misc]  # made for a class known only now
        def __getattribute__(self, name: str) -> Any:
            note(self, name)
            return super().__getattribute__(name)

        def get(self, name: str, default: Any = None) -> Any:
            note(self, name)
            return super().get(name, default)

    return _watched.setdefault(kind, Watched)
