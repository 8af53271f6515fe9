"""Middleware as legacy apps have it, around the tests' app: `wrapped("name")`."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from tests.server.transport_apps import create_app

Wsgi = Callable[[dict[str, Any], Any], Iterable[bytes]]


def lazily(app: Wsgi) -> Wsgi:
    """Pass each part on as it comes, by a generator that never closes what it wraps."""

    def wrapped(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        yield from iter(list_like(app(environ, start_response)))

    return wrapped


def list_like(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Hide everything but iteration."""
    return (part for part in parts)


def prefetching(app: Wsgi) -> Wsgi:
    """Ask for the second part before the first is sent."""

    def wrapped(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        parts = iter(app(environ, start_response))
        if not environ["PATH_INFO"].endswith("/stream"):
            return parts
        return chain([next(parts, b""), next(parts, b"")], parts)

    return wrapped


def compressing(app: Wsgi) -> Wsgi:
    """Compress every part, and say so in the head."""

    def wrapped(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            return start_response(status, [*headers, ("Content-Encoding", "gzip")], *rest)

        if not environ["PATH_INFO"].endswith("/stream"):
            return app(environ, start_response)
        return (gzip.compress(part) for part in app(environ, start))

    return wrapped


def joining(app: Wsgi) -> Wsgi:
    """Collect the whole body before any of it is sent."""

    def wrapped(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        return [b"".join(app(environ, start_response))]

    return wrapped


def measuring(app: Wsgi) -> Wsgi:
    """Announce a length, as middleware does that knows how much it will pass on."""

    def wrapped(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            return start_response(status, [*headers, ("Content-Length", "1000000")], *rest)

        if not environ["PATH_INFO"].endswith("/stream"):
            return app(environ, start_response)
        return app(environ, start)

    return wrapped


def wrapped(name: str) -> Any:
    """Return the tests' app behind the named middleware."""
    app: Any = create_app()
    app.wsgi_app = globals()[name](app.wsgi_app)
    return app
