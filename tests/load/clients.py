"""The clients: streams in a C process, a prober of the ordinary view, and the floor."""

from __future__ import annotations

import atexit
import http.client
import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

_HERE = Path(__file__).parent
_PROBE_STEP = 0.02
_HEADROOM = 60.0


@cache
def _programs() -> Path:
    directory = tempfile.TemporaryDirectory(prefix="noc-load-")
    atexit.register(directory.cleanup)
    return Path(directory.name)


@cache
def compiled(name: str) -> str:
    """Compile ``<name>.c`` and return the program; it goes away with this process."""
    program = str(_programs() / name)
    subprocess.run(["gcc", "-O2", "-o", program, str(_HERE / f"{name}.c")], check=True)
    return program


class _Program:
    """A child that answers each line on its stdin with a line of JSON."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def tell(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended with {self._process.wait(10.0)}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(10.0)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Connected:
    """How opening the streams went."""

    connected: int
    failed: int
    seconds: float


@dataclass(frozen=True)
class Count:
    """What came within a time; latencies are from emit to read."""

    seconds: float
    bytes: int
    events: int
    writes: int
    resets: int
    closed: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    client_cpu: float

    @property
    def rate(self) -> float:
        """Deliveries a second."""
        return self.events / self.seconds


@dataclass(frozen=True)
class Drained:
    """What the streams that are parsed have in the end.

    :ivar complete: streams that came to the last event.
    :ivar missing: events passed over without a reset.
    :ivar repeated: events that came again.
    :ivar skipped: events passed over with a reset.
    :ivar history_lost: resets for the reason that Redis had lost events.
    :ivar reset_streams: streams that had a reset.
    :ivar holed_streams: streams of which an event is missing.
    """

    parsed: int
    complete: int
    missing: int
    repeated: int
    skipped: int
    resets: int
    history_lost: int
    closed: int
    reset_streams: int
    holed_streams: int
    seconds: float

    @property
    def flawless(self) -> bool:
        """Whether every stream got every event exactly once and in order."""
        return self.complete == self.parsed and not (self.missing or self.repeated or self.skipped)


@dataclass(frozen=True)
class Returns:
    """How streams that had ended came back.

    :ivar refused: attempts that failed.
    :ivar shortest: seconds one was away.
    :ivar longest: seconds one was away.
    :ivar span: seconds from the first return to the last.
    :ivar peak: returns a second, in the tenth of a second that had the most.
    """

    returns: int
    refused: int
    shortest: float
    longest: float
    span: float
    peak: int


class Streams(_Program):
    """N streams in one process; see ``sseload.c``.

    :param path: ``%d`` in it becomes the class.
    :param every: parse one stream in so many; with few cores the client is part of the load.
    :param rcvbuf: bytes of receive buffer, for clients that fall behind early.
    :param paths: a file with a path for each stream, instead of the one for all.
    """

    def __init__(
        self,
        port: int,
        streams: int,
        path: str,
        *,
        classes: int = 1,
        every: int = 1,
        rcvbuf: int = 0,
        paths: Path | None = None,
    ) -> None:
        command = [compiled("sseload"), "--port", str(port), "--streams", str(streams)]
        command += ["--path", path, "--classes", str(classes), "--every", str(every)]
        command += ["--rcvbuf", str(rcvbuf)]
        super().__init__(command if paths is None else [*command, "--paths", str(paths)])

    def __enter__(self) -> Streams:
        return self

    def connect(self, first: int = 0) -> Connected:
        """Open what is not open, from where it was; *first* is the first event, -1 any."""
        return Connected(**self._ask(f"connect {first}"))

    def count(self, seconds: float) -> Count:
        """Measure for *seconds*."""
        return Count(**self._ask(f"count {seconds}"))

    def drain(self, total: int, classes: int = 1, timeout: float = 20.0) -> Drained:
        """Wait until every stream has its events of *total*, or *timeout* is over."""
        return Drained(**self._ask(f"drain {total} {classes} {timeout}"))

    def quiet(self, timeout: float = _HEADROOM) -> bool:
        """Wait until nothing comes any more; return whether that is so."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.count(0.3).bytes == 0:
                return True
        return False

    def drop(self) -> None:
        """Close every stream."""
        self._ask("drop")

    def stall(self, streams: int) -> None:
        """Stop reading so many streams."""
        self._ask(f"stall {streams}")

    def resume(self) -> None:
        """Read all streams again."""
        self._ask("resume")

    def shed(self, streams: int) -> int:
        """Close so many that are open, in turn; return how many there were."""
        closed: int = self._ask(f"shed {streams}")["shed"]
        return closed

    def follow(self) -> None:
        """Let streams that end come back by themselves from now on, when they were told to."""
        self._ask("follow")

    def returns(self) -> Returns:
        """Return how those came back."""
        return Returns(**self._ask("returns"))

    def _ask(self, command: str) -> dict[str, Any]:
        self.tell(command)
        return self.hear()


@dataclass(frozen=True)
class Sent:
    """What the floor sent.

    :ivar blocked: sends that a full socket refused.
    """

    sends: int
    blocked: int
    seconds: float


class Floor(_Program):
    """A bare send() loop to as many sockets; see ``floor.c``."""

    def __init__(self, port: int, streams: int, body: Path) -> None:
        super().__init__([compiled("floor"), str(port), str(streams), str(body)])
        self.hear()

    def __enter__(self) -> Floor:
        return self

    def start(self, seconds: float) -> None:
        """Send for *seconds*."""
        self.tell(str(seconds))

    def wait(self) -> Sent:
        """Return what was sent."""
        return Sent(**self.hear())


class Prober:
    """Gets the ordinary view every 20 ms, each time on a new connection; a context manager.

    :ivar failures: requests without the answer there should be.
    :ivar unanswered: those of them that got none, since nobody listened any more.
    """

    def __init__(self, port: int, path: str) -> None:
        self.failures = 0
        self.unanswered = 0
        self._latencies: list[float] = []
        self._address = ("127.0.0.1", port, path)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Prober:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join(60.0)

    def quantile_ms(self, share: float) -> float | None:
        """Return a quantile of the latencies so far; None before the first."""
        latencies = sorted(self._latencies)
        if not latencies:
            return None
        return latencies[min(len(latencies) - 1, int(len(latencies) * share))] * 1e3

    def forget(self) -> None:
        """Begin anew."""
        self._latencies.clear()

    def _run(self) -> None:
        host, port, path = self._address
        while not self._ended.wait(_PROBE_STEP):
            begun = time.monotonic()
            connection = http.client.HTTPConnection(host, port, timeout=30)
            try:
                connection.request("GET", path, headers={"Connection": "close"})
                if connection.getresponse().read() != b"ok":
                    self.failures += 1
            except (OSError, http.client.HTTPException):
                self.failures += 1
                self.unanswered += 1
            finally:
                connection.close()
            self._latencies.append(time.monotonic() - begun)
