"""The services: synchronous, each call a transaction of its own, ten years old."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session, sessionmaker

from .models import AutomationRun, Base, Incident, LogLine, Server, utc_now

Row = dict[str, Any]

LOG_LINES_KEPT = 1000


class NotFound(LookupError):
    """There is no such row."""


class Conflict(Exception):
    """Somebody was quicker; *row* is what is so now."""

    def __init__(self, message: str, row: Row) -> None:
        super().__init__(message)
        self.row = row


class Service:
    """What the services share: sessions, and rows that are returned as dicts."""

    def __init__(self, sessions: sessionmaker[Session]) -> None:
        self._sessions = sessions

    def _add(self, row: Base) -> Row:
        with self._sessions.begin() as session:
            session.add(row)
            session.flush()
            return row.as_dict()

    def _newest(self, model: type[Base], limit: int) -> list[Row]:
        with self._sessions() as session:
            rows = session.scalars(select(model).order_by(model.id.desc()).limit(limit))
            return [row.as_dict() for row in rows]


class ServerService(Service):
    """The devices and how they are."""

    def add_all(self, servers: list[Row]) -> None:
        """Add the devices of a new network."""
        with self._sessions.begin() as session:
            session.add_all(Server(**server) for server in servers)

    def list(self) -> list[Row]:
        """Return all devices."""
        with self._sessions() as session:
            return [row.as_dict() for row in session.scalars(select(Server).order_by(Server.id))]

    def set_status(self, name: str, status: str) -> Row:
        """Note that a device is up, degraded or down."""
        with self._sessions.begin() as session:
            server = session.scalar(select(Server).where(Server.name == name))
            if server is None:
                raise NotFound(f"no server {name!r}")
            server.status, server.since = status, utc_now()
            return server.as_dict()


class IncidentService(Service):
    """The incidents the operators work on."""

    def create(self, server: str, title: str, severity: str) -> Row:
        """Open an incident."""
        return self._add(Incident(server=server, title=title, severity=severity))

    def list(self, limit: int = 60) -> list[Row]:
        """Return the newest incidents."""
        return self._newest(Incident, limit)

    def acknowledge(
        self, incident_id: int, who: str, comment: str, instead_of: str | None = None
    ) -> Row:
        """Say that *who* is on it, *instead_of* whom they saw there, if anybody.

        :raises Conflict: when somebody else is on it by now.
        """
        wanted = Incident.id == incident_id, Incident.acknowledged_by == instead_of
        changes = {
            "acknowledged_by": who,
            "acknowledged_at": utc_now(),
            "comment": comment or None,
            "version": Incident.version + 1,
        }
        with self._sessions.begin() as session:
            # Of two who do it at the same moment the database lets one through.
            changed: Any = session.execute(update(Incident).where(*wanted).values(changes))
            incident = session.get(Incident, incident_id)
            if incident is None:
                raise NotFound(f"no incident {incident_id}")
            if not changed.rowcount:
                by = incident.acknowledged_by or "nobody"
                raise Conflict(f"{by} is on it by now", incident.as_dict())
            return incident.as_dict()

    def change_status(self, server: str, status: str) -> Row:
        """Move the newest incident of a device on, for example to resolved."""
        with self._sessions.begin() as session:
            newest = select(Incident).where(Incident.server == server)
            incident = session.scalar(newest.order_by(Incident.id.desc()).limit(1))
            if incident is None:
                raise NotFound(f"no incident of {server!r}")
            changes = {"status": status, "version": Incident.version + 1}
            session.execute(update(Incident).where(Incident.id == incident.id).values(changes))
            session.refresh(incident)
            return incident.as_dict()


class LogService(Service):
    """The log of the network, of which the newest lines are kept."""

    def add(self, source: str, level: str, text: str, run_on: str | None = None) -> Row:
        """Write a line, which the newest automation run on the device *run_on* says, if any."""
        run_id = None if run_on is None else self._newest_run(run_on)
        line = self._add(LogLine(source=source, level=level, text=text, run_id=run_id))
        if line["id"] % 100 == 0:
            with self._sessions.begin() as session:
                session.execute(delete(LogLine).where(LogLine.id <= line["id"] - LOG_LINES_KEPT))
        return line

    def list(self, limit: int = 60, run_id: int | None = None, debug: bool = True) -> list[Row]:
        """Return the newest lines, perhaps of one run only, perhaps without those for debugging."""
        found = select(LogLine).order_by(LogLine.id.desc()).limit(limit)
        if run_id is not None:
            found = found.where(LogLine.run_id == run_id)
        if not debug:
            found = found.where(LogLine.level != "debug")
        with self._sessions() as session:
            return [line.as_dict() for line in session.scalars(found)]

    def _newest_run(self, server: str) -> int | None:
        runs = select(AutomationRun.id).where(AutomationRun.server == server)
        with self._sessions() as session:
            return session.scalar(runs.order_by(AutomationRun.id.desc()).limit(1))


class AutomationService(Service):
    """Runbooks that were started by themselves."""

    def start(self, name: str, server: str) -> Row:
        """Note that a run began."""
        return self._add(AutomationRun(name=name, server=server))

    def complete(self, server: str, status: str) -> Row:
        """Note how the newest run on a device ended."""
        with self._sessions.begin() as session:
            newest = select(AutomationRun).where(AutomationRun.server == server)
            run = session.scalar(newest.order_by(AutomationRun.id.desc()).limit(1))
            if run is None:
                raise NotFound(f"no automation run on {server!r}")
            run.status, run.finished_at = status, utc_now()
            return run.as_dict()

    def list(self, limit: int = 12) -> list[Row]:
        """Return the newest runs."""
        return self._newest(AutomationRun, limit)


@dataclass
class Services:
    """The service layer."""

    sessions: sessionmaker[Session]
    servers: ServerService
    incidents: IncidentService
    logs: LogService
    automations: AutomationService

    @classmethod
    def of(cls, sessions: sessionmaker[Session]) -> Services:
        """Return the services on one database."""
        return cls(
            sessions,
            ServerService(sessions),
            IncidentService(sessions),
            LogService(sessions),
            AutomationService(sessions),
        )
