"""The page about SQLAlchemy is run as it stands."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import create_engine, update
from sqlalchemy.orm import Mapped, Session, declarative_base, mapped_column

from flask_noc_realtime import NocRealtime
from tests.documentation import blocks
from tests.emitted import emitted, told

WATCH, DATA, BY_HAND, STATEMENT = blocks("sqlalchemy", "python")


class Page:
    """An app with a database that runs some of the page's blocks."""

    def __init__(self) -> None:
        base: Any = declarative_base()

        class Incident(base):  # type: ignore[misc]
            """As in the demo."""

            __tablename__ = "incident"
            id: Mapped[int] = mapped_column(primary_key=True)
            title: Mapped[str] = mapped_column(default="")
            site: Mapped[str] = mapped_column(default="north")
            status: Mapped[str] = mapped_column(default="open")
            severity: Mapped[str] = mapped_column(default="minor")

            def as_dict(self) -> dict[str, Any]:
                """Return the row."""
                return {"id": self.id, "title": self.title}

        self.app = Flask("docs")
        engine = create_engine("sqlite://")
        base.metadata.create_all(engine)
        self.session = Session(engine)
        self.names: dict[str, Any] = {
            "realtime": NocRealtime(self.app),
            "Incident": Incident,
            "db": SimpleNamespace(session=self.session),
            "session": self.session,
            "update": update,
        }
        self.incident = Incident(title="down")

    def run(self, *code: str) -> None:
        """Run blocks."""
        for block in code:
            exec(block, self.names)

    def close(self) -> None:
        """Close what is open."""
        self.session.close()
        self.session.get_bind().dispose()  # type: ignore[union-attr]
        self.app.extensions["noc_realtime"].process().close()


@pytest.fixture
def page() -> Iterator[Page]:
    """Return the page."""
    page = Page()
    yield page
    page.close()


def test_a_model_is_watched(page: Page) -> None:
    """And emits as the table says."""
    page.run(WATCH)
    page.session.add(page.incident)
    page.session.commit()
    page.incident.status = "closed"
    page.session.commit()
    page.session.delete(page.incident)
    page.session.commit()
    assert told(page.app) == [
        ("incident.created", {"id": 1}),
        ("incident.updated", {"id": 1}),
        ("incident.status.changed", {"id": 1, "status": "closed"}),
    ]


def test_the_data_is_named_or_made(page: Page) -> None:
    """And the audience too."""
    page.run(DATA)
    page.session.add(page.incident)
    page.session.commit()
    page.incident.status = "closed"
    page.session.commit()
    first, second = emitted(page.app)
    assert first[:2] == ("incident.created", {"id": 1, "title": "down"})
    assert first.rule.permissions == {"sites.north"}
    assert second[:2] == ("incident.updated", {"id": 1, "title": "down", "status": "closed"})


def test_events_by_hand_share_the_transaction(page: Page) -> None:
    """Of a service, and of a statement."""
    page.run(WATCH, BY_HAND)
    page.session.add(page.incident)
    page.session.flush()
    page.names["escalate"](page.incident)
    page.run(STATEMENT)
    page.session.rollback()
    page.run(STATEMENT)
    page.session.commit()
    assert told(page.app) == [
        ("incident.created", {"id": 1}),
        ("notification.sent", {"incident": 1}),
        ("incident.updated", {"id": 1}),
        ("incident.updated", {"site": "north"}),
    ]
