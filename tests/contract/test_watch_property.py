"""Whatever a session does, what it emits is what it has committed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from flask import Flask
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, event, insert
from sqlalchemy.pool import StaticPool

from flask_noc_realtime import NocRealtime
from tests.emitted import told
from tests.transactions import TAKEN, WATCHED, Base, Item, Run, Script, replay, scripts


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """Return a SQLite that has savepoints, and a commit of two phases.

    It knows no prepared transactions: the first phase does nothing there.
    """
    engine = create_engine("sqlite://", poolclass=StaticPool)

    @event.listens_for(engine, "connect")
    def leave_transactions_alone(connection: Any, record: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")

    dialect: Any = engine.dialect
    dialect.do_begin_twophase = lambda connection, xid: begin(connection)
    dialect.do_prepare_twophase = lambda connection, xid: None
    dialect.do_commit_twophase = lambda connection, xid, *args, **options: dialect.do_commit(
        connection.connection
    )
    dialect.do_rollback_twophase = lambda connection, xid, *args, **options: dialect.do_rollback(
        connection.connection
    )
    yield engine
    engine.dispose()


@settings(max_examples=300, deadline=None)
@given(scripts=scripts, twophase=st.booleans())
def test_the_events_are_the_committed_changes_in_their_order(
    engine: Engine, scripts: Sequence[Script], twophase: bool
) -> None:
    """Nothing before the commit, nothing of what was rolled back, nothing twice."""
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert(Item).values(id=0, name=TAKEN, value=0))
    app = Flask("transactions")
    app.config["NOC_REALTIME_STRICT_TYPES"] = False
    realtime = NocRealtime(app)
    watch = realtime.watch(Item, **WATCHED)
    run = Run(engine, realtime, twophase=twophase)
    try:
        for script in scripts:
            run.run(script)
            assert told(app) == run.rows.committed
        assert replay(told(app)) == run.rows.stored == run.stored()
    finally:
        run.close()
        watch.stop()
        app.extensions["noc_realtime"].process().close()
