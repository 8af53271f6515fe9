"""The app whose streams need a token or a ticket: Flask-JWT-Extended, and limits on."""

from __future__ import annotations

import os

from flask import Flask
from flask_jwt_extended import JWTManager

from flask_noc_realtime import NocRealtime
from tests.load.server import VIEW

KEY = "a key of the load benchmark, 32 bytes or more"

app = Flask(__name__)
app.config["JWT_SECRET_KEY"] = KEY
app.config.update(
    {key: value for key, value in os.environ.items() if key.startswith("NOC_REALTIME_")}
)
JWTManager(app)
realtime = NocRealtime(app)


@app.get(VIEW)
def view() -> str:
    """Answer as the cheapest ordinary view does."""
    return "ok"
