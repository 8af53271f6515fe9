"""A service with a database, and a page that shows its events as text and counts them."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing
from datetime import datetime, timezone
from typing import Any

from flask import Flask, Request, jsonify, request

from flask_noc_realtime import Identity, NocRealtime
from tests.server.apps import ICON

PAGE = (
    ICON
    + """<title>Board</title>
<p id="state">connecting</p>
<ol id="rows"></ol>
<script type="module">
  import { connect } from "/api/v1/events/client.js";

  const options = JSON.parse(new URLSearchParams(location.search).get("options") ?? "{}");
  const clock = () => performance.timeOrigin + performance.now();
  const board = { seen: [], painted: [], states: [], gaps: [], fetched: [], clock };
  const painted = new MessageChannel();
  const find = (id) => document.getElementById(id);

  // A message that a frame posts before it is painted is read after that.
  painted.port2.onmessage = ({ data }) => board.painted.push([data, clock()]);

  if (options.lifetime) {
    const renew = () => String(Date.now() / 1000 + options.lifetime);
    let token = renew();
    options.token = ({ refresh }) => (refresh ? (token = renew()) : token);
  }
  board.stream = connect({
    ...options,
    onState: ({ name, reason }) => {
      find("state").textContent = name;
      board.states.push([name, reason, clock()]);
    },
    onGap: async ({ reason }) => {
      board.gaps.push(reason);
      const last = board.seen.at(-1)?.[0] ?? -1;
      const { newest } = await (await fetch("/newest")).json();
      board.fetched.push([last + 1, newest]);
    },
  });
  board.stream.on("incident.created", ({ n }) => {
    board.seen.push([n, clock()]);
    const row = document.createElement("li");
    row.textContent = `Incident ${n}`;
    find("rows").prepend(row);
    if (find("rows").childElementCount > 20) find("rows").lastChild.remove();
    requestAnimationFrame(() => painted.port1.postMessage(n));
  });
  window.board = board;
</script>
"""
)


def create() -> Flask:
    """Return the app; ``BOARD_DATABASE`` names its SQLite file."""
    app = Flask(__name__)
    for key, value in os.environ.items():
        if key.startswith("NOC_REALTIME_") and not key.startswith("NOC_REALTIME_TEST_"):
            app.config[key] = value
    app.config["NOC_REALTIME_ALLOW_ANONYMOUS"] = True
    realtime = NocRealtime(app)
    database = os.environ["BOARD_DATABASE"]

    @realtime.identity_loader
    def identity(request: Request) -> Identity | None:
        """Take a bearer token for the time of its end."""
        _, _, expires = request.headers.get("Authorization", "").partition(" ")
        if not expires:
            return None
        return Identity("kim", expires_at=datetime.fromtimestamp(float(expires), timezone.utc))

    @app.get("/pid")
    def pid() -> str:
        return str(os.getpid())

    @app.get("/board")
    def board() -> str:
        return PAGE

    @app.post("/incidents")
    def create_incident() -> Any:
        """Commit an incident, and emit it then; answer when it was committed."""
        n = request.get_json()["n"]
        commit(database, n)
        at = time.time()
        realtime.emit("incident.created", {"n": n})
        return jsonify(at=at)

    @app.get("/newest")
    def newest() -> Any:
        with closing(connected(database)) as connection:
            (found,) = connection.execute("SELECT max(n) FROM incident").fetchone()
        return jsonify(newest=-1 if found is None else found)

    return app


def connected(database: str) -> sqlite3.Connection:
    """Connect to the database, which is made when it is not there."""
    connection = sqlite3.connect(database, timeout=10)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("CREATE TABLE IF NOT EXISTS incident (n INTEGER PRIMARY KEY)")
    return connection


def commit(database: str, n: int) -> None:
    """Write an incident down."""
    with closing(connected(database)) as connection, connection:
        connection.execute("INSERT INTO incident VALUES (?)", (n,))
