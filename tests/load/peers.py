"""Other ways to send events from Python, for comparison; installed with the extra `load`."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.gunicorn_server import ROOT, GunicornServer
from tests.processes import free_port, wait_until
from tests.requirements import find


@dataclass(frozen=True)
class Peer:
    """A library to compare with.

    :ivar modules: what must be installed.
    :ivar emitter: how events are published to it; see `ProcessEmitter`.
    :ivar silent: it sends no response head before the first event.
    """

    name: str
    modules: tuple[str, ...]
    emitter: str
    silent: bool = False

    @property
    def missing(self) -> list[str]:
        """The modules that are not installed."""
        return [module for module in self.modules if find(module) is None]

    @contextmanager
    def serve(self, directory: Path, redis_url: str) -> Iterator[int]:
        """Run its server and yield the port."""
        if self is FLASK_SSE:
            server = GunicornServer(
                "tests.load.peers:flask_sse_app()",
                directory,
                args=["--worker-connections", "20000", "--backlog", "4096"],
                env={"REDIS_URL": redis_url},
            ).start()
            try:
                yield server.port
            finally:
                # Its streams never end by themselves.
                server.stop(signal.SIGQUIT)
        else:
            yield from _uvicorn(directory, redis_url)


FLASK_SSE = Peer("flask-sse", ("flask_sse",), "flask-sse", silent=True)
SSE_STARLETTE = Peer(
    "sse-starlette + uvicorn", ("sse_starlette", "starlette", "uvicorn"), "channel"
)


def flask_sse_app() -> Any:
    """Return the app its documentation shows; the stream is at ``/stream``."""
    from flask import Flask
    from flask_sse import sse

    app = Flask("flask-sse")
    app.config["REDIS_URL"] = os.environ["REDIS_URL"]
    app.register_blueprint(sse, url_prefix="/stream")
    return app


def starlette_app() -> Any:
    """Return an app with one Redis subscription and a queue for each client."""
    import redis.asyncio
    from sse_starlette import EventSourceResponse
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.routing import Route

    queues: set[asyncio.Queue[str]] = set()

    async def follow() -> None:
        pubsub = redis.asyncio.Redis.from_url(os.environ["REDIS_URL"]).pubsub()
        await pubsub.subscribe("events")
        async for message in pubsub.listen():
            if message["type"] == "message":
                for queue in queues:
                    queue.put_nowait(message["data"].decode())

    async def events() -> AsyncIterator[dict[str, str]]:
        queue: asyncio.Queue[str] = asyncio.Queue()
        queues.add(queue)
        try:
            while True:
                yield {"event": "incident.created", "data": await queue.get()}
        finally:
            queues.discard(queue)

    async def stream(request: Request) -> EventSourceResponse:
        return EventSourceResponse(events(), sep="\n")

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(follow())
        yield
        task.cancel()

    return Starlette(routes=[Route("/stream", stream)], lifespan=lifespan)


def _uvicorn(directory: Path, redis_url: str) -> Iterator[int]:
    port = free_port()
    directory.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "uvicorn", "--factory", "tests.load.peers:starlette_app"]
    command += ["--port", str(port), "--log-level", "warning", "--backlog", "4096"]
    with (
        open(directory / "uvicorn.log", "wb") as log,
        subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "REDIS_URL": redis_url}, stdout=log, stderr=log
        ) as process,
    ):
        try:
            wait_until(lambda: _listens(process, port), 20.0, "uvicorn listens")
            yield port
        finally:
            process.kill()


def _listens(process: subprocess.Popen[bytes], port: int) -> bool:
    import socket

    if process.poll() is not None:
        raise RuntimeError(f"uvicorn ended with {process.returncode}; see its log")
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True
