"""A dashboard before and after, on the demo's legacy services, with its database queries counted.

``gunicorn tests.load.dashboard_app:before`` polls, ``...:after`` streams; run as a module, it is
the monitoring system that writes into the same database.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from flask import Flask, Request, Response, jsonify, render_template_string, session
from flask.sessions import SecureCookieSessionInterface
from sqlalchemy import Select, event, func, select
from sqlalchemy.orm import sessionmaker

from demo_app.legacy import create_legacy_app
from demo_app.legacy.models import Incident, Server, open_database
from demo_app.legacy.services import Service, Services
from demo_app.legacy.users import ROLES, SHIFT
from demo_app.simulator import devices
from flask_noc_realtime import Identity, NocRealtime, coalesce
from tests.load.emission import Emitted, Plan

Tell = Callable[[str, Any], object]

KEY = "a key of the dashboard simulation, 32 bytes or more"

PANELS = ("/api/incidents", "/api/stats", "/api/servers")
SNAPSHOT = "/api/snapshot"
STREAM = "/api/v1/events/stream?types=incident.*,server.status.changed,stats.changed"
STATS = "stats.changed"

STATS_DELAY = 1.0
"""Seconds from a change until the pages are sent the statistics; what follows shares them."""

SNAPSHOT_TTL = 1.0
"""A stream from its position tells what came since, so it may be old; replaying costs little."""

PAST_INCIDENTS = 5000
"""What a few weeks leave in the table the statistics count."""

OPEN_SHARE = 0.02
"""How many of those nobody has resolved."""

_TITLE = "BGP session lost, neighbour does not answer"
_SEVERITIES = ("critical", "major", "minor", "warning")
_STEP = 0.005
_COUNT = struct.Struct("Q")

# The position from which the page opens its stream: captured before it fetches its panels.
_PAGE = """
{% extends "dashboard.html" %}
{% block scripts %}{{ super() }}<script data-position="{{ noc_realtime_position() }}">
</script>{% endblock %}
"""


class Statistics(Service):
    """What the boxes at the top of the page show: four queries, as such boxes take."""

    def now(self) -> dict[str, Any]:
        """Count."""
        unresolved = Incident.status != "resolved"
        of_site = select(Server.site, func.count()).join(Incident, Incident.server == Server.name)
        with self._sessions() as session:
            return {
                name: dict(session.execute(query).all())
                for name, query in {
                    "open": _count(Incident.severity).where(unresolved),
                    "incidents": _count(Incident.status),
                    "servers": _count(Server.status),
                    "sites": of_site.where(unresolved).group_by(Server.site),
                }.items()
            }


def _count(column: Any) -> Select[tuple[str, int]]:
    return select(column, func.count()).group_by(column)


def count_queries(directory: Path, name: str, sessions: sessionmaker[Any]) -> None:
    """Count the statements of *sessions* in a file of this process; see `counted`."""
    with open(directory / f"{name}-{os.getpid()}", "w+b") as file:
        file.write(_COUNT.pack(0))
        file.flush()
        shared = mmap.mmap(file.fileno(), _COUNT.size)

    @event.listens_for(sessions.kw["bind"], "before_cursor_execute")
    def add_one(*_statement: Any) -> None:
        _COUNT.pack_into(shared, 0, _COUNT.unpack_from(shared)[0] + 1)


def counted(directory: Path, name: str) -> int:
    """Return the statements that all processes counted under *name* so far."""
    return sum(_COUNT.unpack(file.read_bytes())[0] for file in directory.glob(f"{name}-*"))


def fill(database: Path) -> None:
    """Put a network and its past into a new database."""
    chance = random.Random(1)
    sessions = open_database(str(database))
    with sessions.begin() as session:
        for device in devices():
            session.add(Server(name=device.name, kind=device.kind, site=device.site))
        session.flush()
        for _ in range(PAST_INCIDENTS):
            session.add(_past_incident(chance))
    sessions.kw["bind"].dispose()


def _past_incident(chance: random.Random) -> Incident:
    """Return an incident, resolved as nearly all are."""
    resolved = chance.random() >= OPEN_SHARE
    return Incident(
        server=chance.choice(network()),
        title=_TITLE,
        severity=chance.choice(_SEVERITIES),
        status="resolved" if resolved else "open",
        acknowledged_by="operator-17" if resolved else None,
        comment="Carrier was informed, see ticket." if resolved else None,
    )


@cache
def network() -> list[str]:
    """Return the names of the devices."""
    return [device.name for device in devices()]


# The web app.


def create_before() -> Flask:
    """Return the legacy app with statistics and a login, which costs no query."""
    app = create_legacy_app(os.environ["DASHBOARD_DATABASE"])
    app.secret_key = KEY
    services: Services = app.extensions["services"]
    statistics = app.extensions["statistics"] = Statistics(services.servers._sessions)
    count_queries(Path(os.environ["DASHBOARD_COUNTS"]), "pages", services.servers._sessions)

    @app.before_request
    def require_login() -> tuple[str, int] | None:
        return None if "user" in session else ("log in", 401)

    @app.get("/api/stats")
    def stats() -> Response:
        return jsonify(statistics.now())

    return app


def create_after() -> Flask:
    """Return the app before with what the extension adds: a stream and three decorators."""
    app = create_before()
    app.config.update({k: v for k, v in os.environ.items() if k.startswith("NOC_REALTIME_")})
    services, statistics = app.extensions["services"], app.extensions["statistics"]
    realtime = NocRealtime(app)
    realtime.register_type(STATS)

    @realtime.identity_loader
    def who(_request: Request) -> Identity | None:
        return Identity(session["user"], session["role"]) if "user" in session else None

    for endpoint, types in {
        "noc.incidents": ["incident.*"],
        "noc.servers": ["server.status.changed"],
        "stats": ["incident.*", "server.status.changed"],
    }.items():
        view: Any = app.view_functions[endpoint]
        app.view_functions[endpoint] = coalesce(scope="role", invalidate_on=types)(view)

    @app.get(SNAPSHOT)
    @coalesce(scope="role", ttl=SNAPSHOT_TTL)
    def snapshot() -> Response:
        return jsonify(panels(services, statistics))

    app.view_functions["noc.dashboard"] = lambda: render_template_string(_PAGE)
    return app


def panels(services: Services, statistics: Statistics) -> dict[str, Any]:
    """Return what all panels show."""
    shown = services.incidents.list(), statistics.now(), services.servers.list()
    return dict(zip(PANELS, shown, strict=True))


def cookie(number: int, roles: int) -> str:
    """Return what the browser of user *number* sends, with one of at most 3 roles."""
    app = Flask(__name__)
    app.secret_key = KEY
    signer = SecureCookieSessionInterface().get_signing_serializer(app)
    assert signer is not None
    role = sorted(ROLES)[number % roles]
    login = {"user": f"operator-{number}", "role": role, "until": time.time() + SHIFT}
    return f"session={signer.dumps(login)}"


# The monitoring system.


class Monitoring:
    """Calls the services while devices fail.

    :param tell: is given the type and the data of each event, after the commit; None polls.
    """

    def __init__(self, database: str, counts: Path, tell: Tell | None) -> None:
        own, for_pages = open_database(database), open_database(database)
        count_queries(counts, "monitoring", own)
        count_queries(counts, "pages", for_pages)
        self._services = Services.of(own)
        self._statistics = Statistics(for_pages)
        self._tell = tell or (lambda type, data: None)
        self._tells = tell is not None
        self._story = self._fail()
        self._due: float | None = None

    def carry_out(self, plan: Plan) -> Emitted:
        """Let as much happen as the plan says, evenly, and return when its time is over."""
        wanted, done, begun = round(plan.rate * plan.seconds), 0, time.monotonic()
        while (elapsed := time.monotonic() - begun) < plan.seconds:
            if done < wanted and elapsed * plan.rate >= done + 0.5:
                self._tell(*next(self._story))
                self._due = self._due or time.monotonic() + STATS_DELAY
                done += 1
            self._tell_statistics()
            time.sleep(_STEP)
        while self._due is not None:
            self._tell_statistics()
            time.sleep(_STEP)
        return Emitted(done, elapsed)

    def _tell_statistics(self) -> None:
        if self._due is not None and time.monotonic() >= self._due:
            self._due = None
            if self._tells:
                self._tell(STATS, self._statistics.now())

    def _fail(self) -> Iterator[tuple[str, Any]]:
        chance = random.Random(2)
        incidents, servers = self._services.incidents, self._services.servers
        while True:
            device = chance.choice(network())
            yield "server.status.changed", servers.set_status(device, "down")
            incident = incidents.create(device, _TITLE, chance.choice(_SEVERITIES))
            yield "incident.created", incident
            taken = incidents.acknowledge(incident["id"], "operator-17", "Looking into it.")
            yield "incident.updated", taken
            yield "incident.status.changed", incidents.change_status(device, "investigating")


def _main(url: str) -> None:
    database, counts = os.environ["DASHBOARD_DATABASE"], Path(os.environ["DASHBOARD_COUNTS"])
    tell: Tell | None = None
    if url:
        app = Flask("monitoring")
        app.config["NOC_REALTIME_URL"] = url
        realtime = NocRealtime(app)
        realtime.register_type(STATS)
        app.app_context().push()
        tell = realtime.emit
    monitoring = Monitoring(database, counts, tell)
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        print(json.dumps(asdict(monitoring.carry_out(Plan(**json.loads(line))))), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
