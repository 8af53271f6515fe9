"""The app as it was before: synchronous services, Jinja pages, a browser that polls."""

from __future__ import annotations

import os

from flask import Flask

from .models import open_database
from .services import Services
from .views import blueprint


def create_legacy_app(database: str) -> Flask:
    """Return the app on an SQLite file."""
    app = Flask(__name__)
    app.extensions["services"] = Services.of(open_database(database))
    app.register_blueprint(blueprint)
    return app


def create_app() -> Flask:
    """Return the app on the demo's database."""
    return create_legacy_app(os.environ["DEMO_DATABASE"])
