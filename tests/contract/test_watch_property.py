"""Whatever a session does, what it emits is what it has committed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from flask import Flask
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, delete, event, insert
from sqlalchemy.pool import StaticPool

from flask_noc_realtime import NocRealtime
from tests.emitted import told
from tests.postgres_server import PostgresServer
from tests.transactions import TAKEN, WATCHED, Base, Item, Run, Script, replay, scripts


@pytest.fixture(scope="module")
def postgres(postgres_server: PostgresServer) -> Iterator[Engine]:
    """Return a PostgreSQL, which prepares the transactions that commit in two phases."""
    engine = create_engine(postgres_server.url)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    yield engine
    Base.metadata.drop_all(engine)
    engine.dispose()


@pytest.fixture(scope="module")
def sqlite() -> Iterator[Engine]:
    """Return a SQLite that has savepoints, and a commit whose first phase does nothing."""
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
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@settings(max_examples=150, deadline=None)
@given(scripts=scripts, twophase=st.booleans())
def test_the_events_are_the_committed_changes_in_their_order(
    sqlite: Engine, scripts: Sequence[Script], twophase: bool
) -> None:
    """Nothing before the commit, nothing of what was rolled back, nothing twice."""
    compare(sqlite, scripts, twophase)


@settings(max_examples=60, deadline=None)
@given(scripts=scripts, twophase=st.booleans())
def test_they_are_also_on_a_database_of_its_own(
    postgres: Engine, scripts: Sequence[Script], twophase: bool
) -> None:
    """Whose savepoints, failed statements and prepared transactions are its own."""
    compare(postgres, scripts, twophase)


def compare(engine: Engine, scripts: Sequence[Script], twophase: bool) -> None:
    """Run scripts on a database and on the model; the events are the same."""
    with engine.begin() as connection:
        connection.execute(delete(Item))
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
