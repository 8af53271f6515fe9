"""The page about the outbox is run as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from flask import Flask
from sqlalchemy import MetaData, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from flask_noc_realtime import NocRealtime
from flask_noc_realtime.outbox import outbox_table
from flask_noc_realtime.testing import capture
from tests.documentation import DOCS, blocks

EMIT, WATCH, TEST = blocks("outbox", "python")


class Base(DeclarativeBase):
    """The page's models."""


class Incident(Base):
    """One that is closed."""

    __tablename__ = "incident"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str]


def test_the_examples_of_the_page_work(tmp_path: Path) -> None:
    """Its service, and the test of it."""
    app = Flask("incidents")
    app.testing = True
    engine = create_engine(f"sqlite:///{tmp_path}/app.db")
    names: dict[str, Any] = {
        "realtime": NocRealtime(app),
        "Base": Base,
        "engine": engine,
        "Incident": Incident,
    }
    exec(EMIT, names)
    Base.metadata.create_all(engine)
    exec(TEST, names)
    with Session(engine) as session, capture() as events:
        exec(WATCH, names)
        session.add(Incident(id=7, status="open"))
        session.commit()
        names["test_a_closed_incident_is_told"](app, session, events)
        assert events.one("incident.created").data == {"id": 7}
        assert session.get(Incident, 7).status == "closed"  # type: ignore[union-attr]
    engine.dispose()


def test_the_table_of_the_page_is_the_table() -> None:
    """Its name, and its columns in their order."""
    page = (DOCS / "outbox.rst").read_text()
    table = outbox_table("noc_realtime_outbox", MetaData())
    assert f"adds the table ``{table.name}``" in page
    assert re.findall(r"^``(\w+)`` {2,}[a-z]", page, re.M) == list(table.columns.keys())
