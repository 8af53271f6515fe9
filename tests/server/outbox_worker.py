"""A worker that counts, tells of each count through an outbox, and relays, until it is killed."""

from __future__ import annotations

import itertools
import os
import random
import sys
import time

from flask import Flask
from sqlalchemy import Column, Engine, Integer, MetaData, Table, create_engine, update

from flask_noc_realtime import NocRealtime
from flask_noc_realtime.outbox import Outbox

COUNTERS = 4
_PACE = 0.002


class Site:
    """An app whose data is some counters."""

    def __init__(self, database: str, url: str) -> None:
        self.metadata = MetaData()
        self.counter = Table(
            "counter",
            self.metadata,
            Column("id", Integer, primary_key=True),
            Column("n", Integer, nullable=False),
        )
        self.engine: Engine = create_engine(database)
        self.app = Flask("counters")
        self.app.config.update(
            NOC_REALTIME_URL=url, NOC_REALTIME_LEASE=1.0, NOC_REALTIME_ALLOW_ANONYMOUS=True
        )
        realtime = NocRealtime(self.app)
        self.outbox: Outbox = realtime.outbox(self.metadata, self.engine, interval=0.001)
        self.app.add_url_rule("/", "index", lambda: "")

    def count(self, counter: int, times: int) -> None:
        """Count, tell of it, and commit; every seventh time, roll back instead."""
        row = update(self.counter).where(self.counter.c.id == counter)
        row = row.values(n=self.counter.c.n + 1).returning(self.counter.c.n)
        with self.engine.connect() as connection:
            number = connection.execute(row).scalar_one()
            self.outbox.emit(connection, "log.added", [counter, number])
            connection.rollback() if times % 7 == 0 else connection.commit()


def work() -> None:
    """Serve a request, so that the relay starts, and count for ever."""
    site = Site(*sys.argv[1:])
    site.app.test_client().get("/")
    chosen = random.Random(os.getpid())
    for times in itertools.count():
        site.count(chosen.randrange(COUNTERS), times)
        time.sleep(_PACE)


if __name__ == "__main__":
    work()
