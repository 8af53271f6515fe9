"""The page that shows what a browser's stream does, of apps that enable it."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from string import Template

from flask import Blueprint, Response, current_app
from markupsafe import escape

from .blueprint import EXTENSION, add_route, admit
from .page import nonce_in

_FILE_HEADERS = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
_PAGE_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "worker-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    # The address of the page may hold a token.
    "Referrer-Policy": "no-referrer",
}


def add_debug(blueprint: Blueprint) -> None:
    """Add the page and its files."""
    for path, view in (
        ("/debug", debug),
        ("/debug.js", debug_script),
        ("/debug.css", debug_style),
    ):
        add_route(blueprint, path, "GET", view)


def debug() -> Response:
    """Answer with the page, to whoever may have a stream."""
    admit(current_app.extensions[EXTENSION])
    nonce = escape(nonce_in(current_app.jinja_env.globals))
    page = Template(_load("page.html")).substitute(nonce=nonce)
    return Response(page, mimetype="text/html", headers=_PAGE_HEADERS)


def debug_script() -> Response:
    """Answer with its script."""
    return Response(_load("page.js"), mimetype="text/javascript", headers=_FILE_HEADERS)


def debug_style() -> Response:
    """Answer with its style sheet."""
    return Response(_load("page.css"), mimetype="text/css", headers=_FILE_HEADERS)


@cache
def _load(name: str) -> str:
    return files(__package__).joinpath(f"static/debug/{name}").read_text()
