"""A site with coalesced pages, as one worker or several serve it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from flask import Flask
from werkzeug.test import TestResponse

from flask_noc_realtime import NocRealtime
from flask_noc_realtime.process import Process
from tests.processes import wait_until

PROMPT = 5.0


class Worker:
    """An app as one worker process has it: what it keeps in memory is its own.

    :param prepare: adds what a test is about to the app.
    """

    def __init__(self, prepare: Callable[[Worker], None], **config: Any) -> None:
        self.app = Flask("site")
        self.app.secret_key = "the same in all workers"
        self.app.config.update(config)
        self.realtime = NocRealtime(self.app)
        self.runs: list[str] = []
        self.functions: dict[Any, Any] = {}
        self.before: dict[str, str] = {}
        prepare(self)

    @property
    def process(self) -> Process:
        """What runs for the app."""
        process: Process = self.app.extensions["noc_realtime"].process()
        return process

    def ran(self, what: str) -> str:
        """Count an execution of *what*, and return its number as text."""
        self.runs.append(what)
        return f"{what} {len(self.runs)}"

    def get(self, path: str, **headers: str) -> TestResponse:
        """Request a page."""
        return self.app.test_client().get(path, headers=headers)

    def text(self, path: str) -> str:
        """Return what a page says."""
        response = self.get(path)
        assert response.status_code == 200, response.text
        return response.text

    def knows(self, position: str) -> None:
        """Return when the worker has been told of everything up to *position*."""
        wait_until(lambda: self.process.position() == position, PROMPT, f"{position} arrives")


@contextmanager
def workers(count: int, prepare: Callable[[Worker], None], **config: Any) -> Iterator[list[Worker]]:
    """Return workers of one site, closed in the end."""
    with ExitStack() as stack:
        made = []
        for _ in range(count):
            made.append(Worker(prepare, **config))
            stack.callback(made[-1].process.close)
        yield made


def cache_status(response: TestResponse) -> str:
    """Return what Cache-Status says after our name."""
    return response.headers["Cache-Status"].removeprefix("noc-realtime; ")
