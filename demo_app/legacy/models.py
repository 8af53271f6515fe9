"""The tables."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from sqlalchemy import ForeignKey, create_engine, event
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker


def utc_now() -> str:
    """Return the time as it is stored and shown."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


class Base(DeclarativeBase):
    """What every row has."""

    id: Mapped[int] = mapped_column(primary_key=True)

    def as_dict(self) -> dict[str, Any]:
        """Return the columns."""
        return {column.key: getattr(self, column.key) for column in self.__table__.columns}


class Server(Base):
    """A device of the network."""

    __tablename__ = "servers"

    name: Mapped[str] = mapped_column(unique=True)
    kind: Mapped[str]
    site: Mapped[str]
    status: Mapped[str] = mapped_column(default="up")
    since: Mapped[str] = mapped_column(default=utc_now)


class Incident(Base):
    """Something that is, or was, wrong with a device."""

    __tablename__ = "incidents"

    server: Mapped[str] = mapped_column(ForeignKey("servers.name"), index=True)
    title: Mapped[str]
    severity: Mapped[str]
    status: Mapped[str] = mapped_column(default="open")
    opened_at: Mapped[str] = mapped_column(default=utc_now)
    acknowledged_by: Mapped[str | None]
    acknowledged_at: Mapped[str | None]
    comment: Mapped[str | None]
    version: Mapped[int] = mapped_column(default=1)


class AutomationRun(Base):
    """A runbook that was started by itself."""

    __tablename__ = "automation_runs"

    name: Mapped[str]
    server: Mapped[str]
    status: Mapped[str] = mapped_column(default="running")
    started_at: Mapped[str] = mapped_column(default=utc_now)
    finished_at: Mapped[str | None]


class LogLine(Base):
    """What a device or an automation run said."""

    __tablename__ = "log_lines"

    at: Mapped[str] = mapped_column(default=utc_now)
    source: Mapped[str]
    level: Mapped[str]
    text: Mapped[str]
    run_id: Mapped[int | None] = mapped_column(ForeignKey("automation_runs.id"), index=True)


def open_database(path: str) -> sessionmaker[Session]:
    """Return sessions on the SQLite file at *path*, making its tables when they are missing."""
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 10})

    @event.listens_for(engine, "connect")
    def set_pragmas(connection: Any, _record: Any) -> None:
        # Readers of other workers would fail while one writes.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    Base.metadata.create_all(engine)
    return sessionmaker(engine)
