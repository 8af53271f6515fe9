"""The app as it was before: synchronous services, Jinja pages, a browser that polls."""

from __future__ import annotations

import os
import secrets

from flask import Flask

from .models import open_database
from .services import Services
from .views import blueprint


def create_legacy_app(database: str) -> Flask:
    """Return the app on an SQLite file."""
    app = Flask(__name__)
    app.secret_key = secrets.token_hex()
    app.config["SESSION_COOKIE_SAMESITE"] = "Lax"
    app.extensions["services"] = Services.of(open_database(database))
    app.register_blueprint(blueprint)
    return app


def create_app() -> Flask:
    """Return the app on the demo's database."""
    app = create_legacy_app(os.environ["DEMO_DATABASE"])
    # All workers must know a login, and two demos on one host must not share it.
    app.secret_key = os.environ["DEMO_SECRET"]
    app.config["SESSION_COOKIE_NAME"] = os.environ["DEMO_COOKIE"]
    return app
