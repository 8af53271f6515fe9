"""The portable transport: an iterator that waits on its cursor, for any WSGI server."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from ..cursor import Batch
from ..hub import Hub, Opening
from ..lease import Leases
from ..metrics import OFF, Metrics, Sweep
from . import StreamRequest, gunicorn_response, gunicorn_worker

_WORKER_CHECK = 1.0
_LOOK = 0.01


class Portable:
    """Wakes the streams that wait in the server's threads or greenlets."""

    def __init__(self, hub: Hub, leases: Leases, metrics: Metrics = OFF) -> None:
        self.hub = hub
        self.leases = leases
        self.metrics = metrics
        self.looked = 0.0
        self.waiting = 0
        self._joined = 0
        self._abandoned: deque[float] = deque()
        self._more = threading.Condition()
        self._watched: Any | None = None
        hub.listen(self._wake)

    @property
    def streams(self) -> int:
        """How many streams there are."""
        return self._joined - len(self._abandoned)

    def join(self, worker: Any | None) -> None:
        """Count a stream in; the first under gunicorn starts the watch for the worker's end."""
        self._leave_abandoned()
        with self._more:
            self._joined += 1
            if worker is None or self._watched is not None:
                return
            watch = threading.Thread(
                target=self._watch, name="noc-realtime-worker-watch", daemon=True
            )
            with suppress(RuntimeError):  # No more threads: the next stream tries again.
                watch.start()
                self._watched = worker

    def leave(self, seconds: float) -> None:
        """Count a stream out, after so many *seconds*."""
        with self._more:
            self._joined -= 1
            self._more.notify_all()
        self.metrics.ended(seconds)

    def abandon(self, seconds: float) -> None:
        """Count one out later; from anywhere, a garbage collection included."""
        self._abandoned.append(seconds)

    def drain(self, timeout: float) -> None:
        """Wait up to *timeout* seconds until every stream has ended, once the hub is closed."""
        with self._more:
            self._more.wait_for(lambda: self.streams <= 0, timeout)

    def wait(self, ordinal: int, deadline: float) -> None:
        """Wait until the log passes *ordinal*, the hub closes, or *deadline* comes."""
        with self._more:
            self.waiting += 1
            try:
                while self.hub.end == ordinal and not self.hub.closing.is_set():
                    left = deadline - time.monotonic()
                    if left <= 0 or not self._more.wait(left):
                        return
            finally:
                self.waiting -= 1

    def _leave_abandoned(self) -> None:
        with suppress(IndexError):  # Others may be at it as well.
            while self._abandoned:
                self.leave(self._abandoned.popleft())

    def _wake(self) -> None:
        with self._more:
            self._more.notify_all()

    def _watch(self) -> None:
        """End the streams when the worker begins to leave.

        Gunicorn waits for running requests on SIGTERM and after max_requests, so that streams
        that never end would keep it until it is killed. It looks at its own flag once a
        second, and so does this, only while there are streams.
        """
        while True:
            with self._more:
                worker = self._watched
                if not self.streams or worker is None:
                    self._watched = None
                    return
            if not worker.alive:
                self.hub.close()
                return
            self.hub.closing.wait(_WORKER_CHECK)


class PortableStream(Iterator[bytes]):
    """The body of one stream. Its server calls `__next__` and `close` from one thread.

    :param patience: tells until when, on the monotonic clock, `__next__` may wait for an event
        before it returns no bytes; by default it waits for the heartbeat.
    """

    def __init__(
        self,
        portable: Portable,
        request: StreamRequest,
        patience: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self._portable = portable
        self._hub = portable.hub
        self._request = request
        self._patience = patience
        self._bodies: Iterator[bytes] | None = None
        self._joined = False
        self._opened = 0.0
        self._lease = request.lease

    def __iter__(self) -> PortableStream:
        return self

    def __next__(self) -> bytes:
        if self._bodies is None:
            self._join()
            opening = self._hub.open(self._request.last_position)
            resumes = self._request.last_position is not None
            self._portable.metrics.opened(resumes, opening.reset)
            self._bodies = self._run(opening)
        return next(self._bodies)

    def close(self) -> None:
        """Leave; servers call this when the client is gone or the body has ended."""
        self._bodies = iter(())
        if self._joined:
            self._joined = False
            self._portable.leave(time.monotonic() - self._opened)
        lease, self._lease = self._lease, None
        if lease is not None:
            self._portable.leases.release([lease])

    def __del__(self) -> None:
        # A response that a hook of the app threw away is never closed, nor one that middleware
        # passes on in a generator of its own.
        if self._joined:
            self._portable.abandon(time.monotonic() - self._opened)
        if self._lease is not None:
            self._portable.leases.abandon(self._lease)

    def hand_over(self) -> None:
        """Leave the lease to somebody else, who gives it back."""
        self._lease = None

    def _join(self) -> None:
        self._joined = True
        self._opened = time.monotonic()
        self._portable.join(gunicorn_worker())

    def _run(self, opening: Opening) -> Iterator[bytes]:
        yield opening.preamble
        yield from self._follow(opening.ordinal, opening.live_from)

    def _follow(self, ordinal: int, live_from: int) -> Iterator[bytes]:
        hub, request = self._hub, self._request
        now = time.monotonic()
        due = now + hub.silence()
        end, reason = request.end(hub.lifetime(), now)
        while not hub.closing.is_set() and now < end:
            batch = hub.read(request.audience, request.user_id, ordinal)
            told = hub.ended(request.since, request.user_id, request.lease)
            if told is not None:
                end, reason = now, told
                break
            body, replay = batch.body, ordinal < live_from
            if batch.gap is not None:
                body, ordinal = hub.reset(batch.gap)
                self._portable.metrics.reset(batch.gap)
            elif body or batch.end > ordinal:
                ordinal = batch.end
            elif now >= due:
                body, seen = hub.heartbeat()
                if seen != ordinal:
                    continue
            elif now >= (until := self._patience()):
                yield b""
            else:
                self._portable.wait(ordinal, min(due, end, until))
            if body:
                yield body
                self._tell(batch, replay)
                due = time.monotonic() + hub.silence()
            now = time.monotonic()
        if hub.closing.is_set():
            response = gunicorn_response()
            if response is not None:
                # The gevent worker counts a connection it keeps alive as one it must wait for.
                response.force_close()
        yield hub.goodbye(reason if now >= end else "shutdown")

    def _tell(self, batch: Batch, replay: bool) -> None:
        """Have a batch counted that the server took, and now asks for more."""
        if not batch.body:
            return
        portable, now, sweep = self._portable, time.monotonic(), Sweep()
        sweep.add(batch.rules, 1, replay=replay)
        if not replay and now >= portable.looked + _LOOK:
            portable.looked = now
            sweep.look(0, batch.body, now)
        portable.metrics.swept(sweep)
