"""What a template may ask for: the position of its page, and the scripts that keep it live."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from typing import Any

from flask import Flask, Response, current_app, g, request, url_for
from jinja2 import pass_context
from jinja2.runtime import Context
from markupsafe import Markup

from .asset import load
from .blueprint import EXTENSION

_MODULES = {
    "flask-noc-realtime": "client.js",
    "flask-noc-realtime/react": "client-react.js",
}


def register(app: Flask) -> None:
    """Give the app's templates the functions, and its pages their position."""
    app.before_request(_remember_position)
    app.after_request(_show_position)
    app.jinja_env.globals.update(
        noc_realtime_imports=imports,
        noc_realtime_position=position,
        noc_realtime_script=script,
    )


def position() -> str:
    """Return the position a stream for this page starts from."""
    if not hasattr(g, "_noc_realtime_position"):
        g._noc_realtime_position = current_app.extensions[EXTENSION].process().position()
    position: str = g._noc_realtime_position
    return position


@pass_context
def script(
    context: Context,
    *,
    types: str | Iterable[str] = (),
    nonce: str = "",
    classic: bool = False,
) -> Markup:
    """Return the tag of the script that keeps a page live.

    It holds no code, so that it needs no ``'unsafe-inline'`` in a Content-Security-Policy.

    :param types: event types and patterns such as ``"incident.*"``; all unless given.
    :param nonce: of the policy; ``csp_nonce`` of the template or of `flask.g` unless given.
    :param classic: for pages without modules; it also sets ``NocRealtime``.
    """
    attributes = {
        **(_classic() if classic else _module()),
        "nonce": nonce or nonce_in(context),
        "data-url": url_for(f"{EXTENSION}.stream").removesuffix("/stream"),
        "data-since": position(),
        "data-types": types if isinstance(types, str) else ",".join(types),
    }
    pairs = [Markup(' {}="{}"').format(*pair) for pair in attributes.items() if pair[1]]
    return Markup("<script{}></script>").format(Markup().join(pairs))


def imports() -> dict[str, str]:
    """Return the ``imports`` of an import map: the modules' names, and where they are."""
    return {module: _address(name) for module, name in _MODULES.items()}


def _module() -> dict[str, str]:
    return {
        "type": "module",
        "src": _address("client-page.js"),
        "data-noc-realtime": _address("client.js"),
    }


def _classic() -> dict[str, str]:
    return {"src": _address("client.classic.js")}


def _address(name: str) -> str:
    return url_for(f"{EXTENSION}.asset", name=name, v=load(name).tag)


def nonce_in(names: Context | MutableMapping[str, Any]) -> str:
    """Return what Flask-Talisman and its like offer templates, or what the app put in `flask.g`."""
    nonce = names.get("csp_nonce") or g.get("csp_nonce", "")
    return str(nonce() if callable(nonce) else nonce)


def _remember_position() -> None:
    """Take the position before the view reads any data: later, an event could fall between."""
    view = (request.endpoint or "").rpartition(".")[2]
    if request.blueprint != EXTENSION and view != "static":
        g._noc_realtime_position = current_app.extensions[EXTENSION].process().position()


def _show_position(response: Response) -> Response:
    position = g.get("_noc_realtime_position")
    if position is not None:
        response.headers["X-Noc-Position"] = position
    return response
