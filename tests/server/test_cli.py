"""The commands beside real workers: what an operator sees, and how a command ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.conftest import GunicornFactory, RedisFactory
from tests.gunicorn_server import ROOT
from tests.processes import wait_until
from tests.server.client import Site

APP = "tests.server.transport_apps:create_app"

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def url(redis_server: RedisFactory) -> str:
    """Return the URL of a Redis."""
    return redis_server().url


@pytest.fixture
def start(url: str) -> Iterator[Start]:
    """Return what starts a command as a process of its own."""
    started: list[subprocess.Popen[str]] = []

    def start(*args: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "flask", "--app", APP, "noc-realtime", *args]
        pipe = subprocess.PIPE
        env = {**os.environ, "NOC_REALTIME_URL": url}
        process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, env=env)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=20)


def lines(process: subprocess.Popen[str]) -> Iterator[str]:
    """Yield what a command writes, as it does."""
    assert process.stdout is not None
    return iter(process.stdout.readline, "")


def follow(start: Start, *args: str) -> subprocess.Popen[str]:
    """Return a tail that follows."""
    tail = start("tail", *args)
    assert tail.stderr is not None
    assert tail.stderr.readline().startswith("Following what comes after ")
    return tail


def emit(start: Start, data: str) -> None:
    """Emit an event by the command."""
    process = start("emit", "log.added", data)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors


def test_tail_writes_each_event_as_it_comes(start: Start) -> None:
    """Without colours where nobody looks, and Ctrl-C is how it ends."""
    tail = follow(start)
    emit(start, '"one"')
    assert next(lines(tail)).endswith('Z log.added "one"\n')
    tail.send_signal(signal.SIGINT)
    assert tail.communicate(timeout=20) == ("", "")
    assert tail.returncode == 0


def test_tail_ends_with_whoever_reads_it(start: Start) -> None:
    """Also when nothing is emitted after that."""
    emit(start, "1")
    tail = follow(start, "--since", "1h", "--json")
    assert json.loads(next(lines(tail)))["data"] == 1
    assert tail.stdout is not None and tail.stderr is not None
    tail.stdout.close()
    assert tail.wait(20) == 0
    assert tail.stderr.read() == ""


@pytest.mark.parametrize("transport", ["detached", "portable"])
def test_stats_counts_the_streams_of_every_worker(
    start: Start, url: str, gunicorn: GunicornFactory, transport: str
) -> None:
    """By the way they are served."""
    env = {"NOC_REALTIME_URL": url, "NOC_REALTIME_TRANSPORT": transport}
    server = gunicorn(f"{APP}()", workers=2, env=env)
    site = Site(server.address)
    with ExitStack() as stack:
        served: dict[int, int] = {}
        while len(served) < 2 or sum(served.values()) < 5:
            client = site.stream()
            stack.callback(client.close)
            assert client.next_event().type == "stream.open"
            worker = int(client.headers["x-worker"])
            served[worker] = served.get(worker, 0) + 1
        position = site.emit("log.added")

        def counted() -> Any:
            process = start("stats", "--json", "--wait", "10")
            output, errors = process.communicate(timeout=30)
            assert process.returncode == 0, errors
            answer = json.loads(output)
            arrived = all(each["delay"] == 0 for each in answer["workers"])
            return answer if arrived and answer["position"] == position else None

        answer = wait_until(counted, 20.0, "the event is everywhere")
    found = {each["pid"]: each[transport] for each in answer["workers"]}
    assert found == served
