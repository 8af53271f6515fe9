"""A board in a real browser, all that is between it and its service, and what breaks there."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from flask_noc_realtime import Emitter
from tests.faults import FaultProxy
from tests.gunicorn_server import GunicornServer
from tests.nginx import Nginx
from tests.processes import wait_until
from tests.redis_server import RedisServer
from tests.server.board_app import commit

TIMEOUT = 30.0
NOTICE = 5.0
"""Seconds for which a screen may say that it is live when it is not."""

UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
LOGIN = b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n"
LOGGED_OUT = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"


class Settings(NamedTuple):
    """How the server is configured, in seconds.

    :ivar pause: between two events.
    :ivar history: how many events are kept.
    :ivar lifetime: of a connection, where a proxy ends each.
    """

    heartbeat: float = 1.0
    retry: float = 0.2
    poll_interval: float = 0.2
    pause: float = 0.05
    history: int = 300
    lifetime: float = 1.0


class Service:
    """Commits incidents and emits them, whatever becomes of the web server."""

    def __init__(self, url: str, database: str, settings: Settings) -> None:
        self.emitted: list[float] = []
        """When each was emitted, in seconds since 1970."""
        self._database = database
        self._pause = settings.pause
        self._emitter = Emitter(url, history_events=settings.history)
        self._lock = threading.Lock()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Emit one incident after the other."""
        self._thread.start()

    def emit(self, count: int = 1) -> None:
        """Emit so many at once."""
        with self._lock:
            for _ in range(count):
                n = len(self.emitted)
                commit(self._database, n)
                self.emitted.append(time.time())
                self._emitter.emit("incident.created", {"n": n})

    def close(self) -> None:
        """Emit no more."""
        self._ends.set()
        if self._thread.is_alive():
            self._thread.join(10)
        self._emitter.close()

    def _run(self) -> None:
        while not self._ends.wait(self._pause):
            self.emit()


class Told(NamedTuple):
    """What the page was told, in its order; moments are in seconds since 1970.

    :ivar seen: the events, and when each came.
    :ivar states: with reasons, and since when.
    :ivar gaps: the reasons.
    :ivar fetched: the first and the last of what it fetched after each gap.
    """

    seen: list[tuple[int, float]]
    states: list[tuple[str, str | None, float]]
    gaps: list[str]
    fetched: list[tuple[int, int]]

    def missing(self) -> list[int]:
        """Return what lies between what it had, and was neither told nor fetched."""
        if not self.seen:
            return []
        numbers = [n for n, _ in self.seen]
        had = {*numbers, *(n for first, last in self.fetched for n in range(first, last + 1))}
        return sorted({*range(numbers[0], numbers[-1] + 1)} - had)

    def doubled(self) -> list[int]:
        """Return what it was told more than once."""
        return [n for n, times in Counter(n for n, _ in self.seen).items() if times > 1]

    def said(self, begin: float, end: float) -> set[str]:
        """Return all that the screen said from one moment to another."""
        before = [name for name, _, at in self.states if at <= begin]
        return {*before[-1:], *(name for name, _, at in self.states if begin < at <= end)}

    def lies(self, emitted: Sequence[float], poll_interval: float) -> list[str]:
        """Return which events did not come, and the screen said all the while that they would.

        One that says it polls says that they come every so often.
        """
        found = []
        # A poll comes after 1.25 intervals at most.
        for state, notice in (("live", NOTICE), ("polling", NOTICE + 1.25 * poll_interval)):
            late = [n for n, at in self.seen if at > emitted[n] + notice]
            said = [(n, self.said(emitted[n], emitted[n] + notice)) for n in late]
            found += [f"{state} without {n}" for n, names in said if names == {state}]
        return found

    def seconds_of(self, state: str, until: float) -> float:
        """Return for how long the screen has said it."""
        ends = [at for _, _, at in self.states[1:]] + [until]
        rows = zip(self.states, ends, strict=True)
        return sum(end - at for (name, _, at), end in rows if name == state)


class Plant:
    """All that a page takes to be live: Redis, gunicorn, nginx, and a proxy that fails."""

    def __init__(self, directory: Path, settings: Settings) -> None:
        self.settings = settings
        self._directory = directory
        self._database = str(directory / "incidents")
        self._stack = ExitStack()

    def __enter__(self) -> Plant:
        with ExitStack() as stack:
            # What ends in an orderly way writes everything down.
            args = ["--appendfsync", "everysec"]
            self.redis = RedisServer(self._directory / "redis", appendonly=True, args=args)
            stack.callback(self.redis.close)
            self.redis.start()
            self.server = self._serve()
            stack.callback(lambda: self.server.close())
            plain, buffering = self._directory / "nginx", self._directory / "buffering"
            self.nginx = Nginx(self.server, plain, silence="60s")
            stack.callback(self.nginx.stop)
            ignoring = "proxy_ignore_headers X-Accel-Buffering;"
            self.buffering = Nginx(self.server, buffering, ignoring, silence="60s")
            stack.callback(self.buffering.stop)
            self.proxy = stack.enter_context(FaultProxy(self.nginx.address))
            self.service = Service(self.redis.url, self._database, self.settings)
            stack.callback(self.service.close)
            self.service.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def start_server(self) -> None:
        """Start gunicorn again, where it was."""
        self.server = self._serve(self.server.port)

    def _serve(self, port: int | None = None) -> GunicornServer:
        env = {
            "NOC_REALTIME_URL": self.redis.url,
            "NOC_REALTIME_HEARTBEAT": str(self.settings.heartbeat),
            "NOC_REALTIME_RETRY": str(self.settings.retry),
            "NOC_REALTIME_POLL_INTERVAL": str(self.settings.poll_interval),
            "NOC_REALTIME_HISTORY_EVENTS": str(self.settings.history),
            "BOARD_DATABASE": self._database,
        }
        app, directory = "tests.server.board_app:create()", self._directory / "gunicorn"
        return GunicornServer(app, directory, workers=2, env=env, port=port).start()


class Board:
    """A page over a plant; the options are those of `connect`, and `lifetime` of its tokens."""

    def __init__(self, plant: Plant, page: Any, **options: Any) -> None:
        self.plant = plant
        self.page = page
        query = urllib.parse.urlencode({"options": json.dumps(options)})
        page.goto(f"{plant.proxy.url}/board?{query}")
        self.wait_for("live")

    def wait_for(self, *states: str) -> None:
        """Wait until the screen says one of these."""
        self.page.wait_for_function(
            "(states) => states.includes(document.getElementById('state').textContent)",
            arg=list(states),
            timeout=TIMEOUT * 1000,
        )

    @property
    def told(self) -> Told:
        """What the page was told so far."""
        seen, states, gaps, fetched = self.page.evaluate(
            "[board.seen, board.states, board.gaps, board.fetched]"
        )
        return Told(
            [(n, at / 1000) for n, at in seen],
            [(name, reason, at / 1000) for name, reason, at in states],
            gaps,
            [(first, last) for first, last in fetched],
        )

    def wait_for_all(self) -> None:
        """Wait until everything that was emitted so far has come."""
        newest = len(self.plant.service.emitted) - 1
        self.page.wait_for_function(
            "(n) => Math.max(...board.fetched.flat(), board.seen.at(-1)?.[0] ?? -1) >= n",
            arg=newest,
            timeout=TIMEOUT * 1000,
        )

    def wrongs(self) -> list[str]:
        """Return what was wrong on the screen so far: events missing or doubled, and lies."""
        told = self.told
        numbers = [n for n, _ in told.seen]
        found = [f"{n} came twice" for n in told.doubled()]
        found += [f"{n} is missing" for n in told.missing()]
        if numbers != sorted(numbers):
            found.append("events came in disorder")
        return found + told.lies(self.plant.service.emitted, self.plant.settings.poll_interval)


class Fault(NamedTuple):
    """Something that breaks.

    :ivar begin: breaks it.
    :ivar end: mends it.
    :ivar shown: what the screen says meanwhile.
    :ivar lasts: whether it goes on until it is mended.
    :ivar gap: whether the page is told to fetch everything again.
    """

    begin: Callable[[Board], object]
    end: Callable[[Board], object] = lambda board: None
    shown: str = "reconnecting"
    lasts: bool = True
    gap: bool = False


def behaving(how: str, answer: bytes = b"", shown: str = "reconnecting") -> Fault:
    """Return what a proxy does."""
    return Fault(
        lambda board: board.plant.proxy.behave(how, answer),
        lambda board: board.plant.proxy.behave(),
        shown,
    )


def kill_workers(board: Board) -> None:
    """Kill the workers as the kernel does; gunicorn starts others."""
    killed = board.plant.server.worker_pids()
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    wait_until(
        lambda: len({*board.plant.server.worker_pids()} - {*killed}) == 2, TIMEOUT, "new workers"
    )


def stop_server(board: Board) -> None:
    """Stop gunicorn, gracefully as a deployment does."""
    board.plant.server.stop()


def sleep(board: Board) -> None:
    """Have what runs the page stand still, as under a closed lid, and lose its connections.

    It lasts longer than the page waits for a heartbeat.
    """
    cdp = board.page.context.browser.new_browser_cdp_session()
    processes = cdp.send("SystemInfo.getProcessInfo")["processInfo"]
    cdp.detach()
    pids = [process["id"] for process in processes if process["type"] == "renderer"]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        board.plant.proxy.behave("freeze")
        time.sleep(1.5 * board.plant.settings.heartbeat + 1.2)
        board.plant.proxy.behave()
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def overflow(board: Board) -> None:
    """Emit more than the history holds while nothing comes through."""
    board.plant.proxy.behave("freeze")
    board.plant.service.emit(board.plant.settings.history + 100)


def buffer(board: Board) -> None:
    """Have the proxy collect a stream instead of passing it on."""
    board.plant.proxy.lead(board.plant.buffering.address)


def expire(board: Board) -> None:
    """Have the proxy end every connection when it is so old."""
    board.plant.proxy.lifetime = board.plant.settings.lifetime


def last(board: Board) -> None:
    """Have it end none."""
    board.plant.proxy.lifetime = None


FAULTS = {
    "503": behaving("answer", UNAVAILABLE),
    "refused": behaving("refuse"),
    "hanging": behaving("hang"),
    "half-open": behaving("freeze"),
    "login": behaving("answer", LOGIN, "unauthorized"),
    "logged out": behaving("answer", LOGGED_OUT, "unauthorized"),
    "cut": Fault(lambda board: board.plant.proxy.cut(), lasts=False),
    "workers killed": Fault(kill_workers, lasts=False),
    "server restart": Fault(stop_server, lambda board: board.plant.start_server()),
    "Redis restart": Fault(lambda board: board.plant.redis.restart(), shown="", lasts=False),
    "Redis away": Fault(
        lambda board: board.plant.redis.stop(), lambda board: board.plant.redis.start()
    ),
    "offline": Fault(
        lambda board: board.page.context.set_offline(True),
        lambda board: board.page.context.set_offline(False),
        "offline",
    ),
    "asleep": Fault(sleep, lasts=False),
    "buffering": Fault(buffer, lambda board: board.plant.proxy.lead(board.plant.nginx.address)),
    "expiring": Fault(expire, last),
    "overflow": Fault(overflow, lambda board: board.plant.proxy.behave(), gap=True),
}
