"""Emitting at a rate: in a process of its own, or within the worker at an HTTP request."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Protocol

from tests.gunicorn_server import ROOT

Publish = Callable[[str, "list[str]"], object]

_STEP = 0.002
_CATCH_UP = 5
_FLUSH = 30.0


@dataclass(frozen=True)
class Plan:
    """What to emit.

    :ivar rate: events a second.
    :ivar seconds: for how long.
    :ivar size: bytes of data in each event.
    :ivar first: the number of the first event.
    :ivar classes: send each event to one class of so many, in turn; 1 sends each to all.
    """

    rate: float
    seconds: float
    size: int = 200
    first: int = 0
    classes: int = 1


@dataclass(frozen=True)
class Emitted:
    """What was emitted: a broker or an emitter that is too slow shows here."""

    events: int
    seconds: float


def emit_paced(plan: Plan, publish: Publish) -> Emitted:
    """Publish at the plan's rate in small steps, and stop at its end, behind or not."""
    wanted = round(plan.rate * plan.seconds)
    at_once = int(plan.rate * _STEP * _CATCH_UP) + 1
    done, begun = 0, time.monotonic()
    while done < wanted and time.monotonic() - begun < plan.seconds:
        due = int((time.monotonic() - begun) * plan.rate) + 1
        for number in range(plan.first + done, plan.first + min(due, wanted, done + at_once)):
            sequence, audience = divmod(number, plan.classes)
            text = f"ts={time.time_ns()} seq={sequence} "
            publish(text.ljust(plan.size, "x"), _permissions(plan, audience))
            done += 1
        time.sleep(_STEP if done >= due else 0)
    return Emitted(done, time.monotonic() - begun)


def _permissions(plan: Plan, audience: int) -> list[str]:
    return ["all"] if plan.classes == 1 else [f"class.{audience}"]


class Emitter(Protocol):
    """Something that carries a plan out elsewhere while the caller goes on."""

    def start(self, plan: Plan) -> None:
        """Begin, and return."""

    def wait(self) -> Emitted:
        """Return once the plan is carried out."""


class ProcessEmitter:
    """Emits from another process; a context manager.

    :param target: ``noc``, ``flask-sse`` or ``channel``: whose way to publish.
    :param url: the Redis URL.
    """

    def __init__(self, target: str, url: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.load.emission", target, url],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, plan: Plan) -> None:
        """Begin, and return."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(plan)) + "\n")
        self._process.stdin.flush()

    def wait(self) -> Emitted:
        """Return once the plan is carried out."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the emitter ended; see its traceback above")
        return Emitted(**json.loads(line))

    def __enter__(self) -> ProcessEmitter:
        return self

    def __exit__(self, *error: object) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(10.0)
            except subprocess.TimeoutExpired:
                self._process.kill()


class WorkerEmitter:
    """Emits within the worker, as a view of the app does; see `app.emit`."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/load/emit"
        self._plan = Plan(0, 0)

    def start(self, plan: Plan) -> None:
        """Begin, and return."""
        self._plan = plan
        request = urllib.request.Request(
            self._url, json.dumps(asdict(plan)).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30):
            pass

    def wait(self) -> Emitted:
        """Return once the plan is carried out."""
        timeout = self._plan.seconds + 30.0
        with urllib.request.urlopen(self._url, timeout=timeout) as response:
            return Emitted(**json.load(response))


@contextmanager
def _publisher(target: str, url: str) -> Iterator[tuple[Publish, Callable[[], object]]]:
    """Return how to publish, and how to wait until what waits for Redis is there."""
    if target == "noc":
        from flask_noc_realtime import Emitter

        with Emitter(url) as emitter:
            yield (
                lambda text, who: emitter.emit("incident.created", text, permissions=who),
                lambda: emitter.flush(_FLUSH),
            )
    elif target == "flask-sse":
        from flask import Flask
        from flask_sse import sse

        app = Flask("emitter")
        app.config["REDIS_URL"] = url
        with app.app_context():
            yield lambda text, who: sse.publish(text, type="incident.created"), lambda: None
    else:
        import redis

        with redis.Redis.from_url(url) as client:
            yield lambda text, who: client.publish("events", text), lambda: None


def _main(target: str, url: str) -> None:
    with _publisher(target, url) as (publish, settle):
        for line in sys.stdin:
            emitted = emit_paced(Plan(**json.loads(line)), publish)
            settle()
            print(json.dumps(asdict(emitted)), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
