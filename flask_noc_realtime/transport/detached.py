"""The detached transport: streams that leave gunicorn's gevent worker and keep only their fd.

The response is an ordinary one until the server has sent its head. Then the connection is
taken over: the server is left with one end of a socketpair in place of the client, finishes
the response into it, closes it, and frees its greenlet.
"""

from __future__ import annotations

import _socket
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

from ..audience import Audience
from ..cursor import Batch
from ..descriptor import unpatched
from ..event import Rule
from ..frame import LAST_CHUNK, chunk, count_frames
from ..hub import SPREAD, Hub, Opening
from ..metrics import OFF, Metrics, Sweep
from ..wheel import Wheel
from . import StreamRequest, gunicorn_response
from .portable import Portable, PortableStream

SLICE = 0.001
"""Seconds of sends after which the pump lets the event loop run."""

_RUN = 32
_TELL = 0.01
_TICK = 0.25
_UNSENT_LIMIT = 128 * 1024
_TCP_NOTSENT_LOWAT = 25
_SILENT_LIMIT = 120_000
"""Milliseconds in which a client acknowledges what it was sent, or its connection is dropped."""

# <sys/epoll.h>; gevent's patching removes the names from `select`.
_EPOLLOUT = 0x004
_GONE = 0x008 | 0x010 | 0x2000

_logger = logging.getLogger("flask_noc_realtime")


Owed = tuple[Sequence[Rule], bool]
"""The rules of events that were written, and whether they are a replay."""


class Stream:
    """One detached connection. The pump owns it, and nobody else writes to it.

    `beat` and `end` are its slots in the pump's wheels; it ends for `reason`. It joined when
    the log's end was `joined`: what is older is a replay. Once `rest` is written, it has been sent
    what is `owed`.

    A send to one that was closed meanwhile fails by itself, whoever has its old number now.
    """

    __slots__ = (
        "beat",
        "client",
        "cursor",
        "end",
        "joined",
        "lane",
        "lease",
        "live_from",
        "opened",
        "owed",
        "reason",
        "rest",
        "since",
        "touched",
        "user_id",
    )

    def __init__(
        self,
        client: _socket.socket,
        lane: Lane,
        request: StreamRequest,
        opening: Opening,
    ) -> None:
        self.client = client
        self.lane = lane
        self.user_id = request.user_id
        self.since = request.since
        self.lease = request.lease
        self.cursor = opening.ordinal
        self.joined = self.live_from = opening.live_from
        self.rest: memoryview | None = None
        self.owed = _NO_DEBT
        self.touched = self.opened = time.monotonic()
        self.beat = self.end = -1
        self.reason = ""

    @property
    def closed(self) -> bool:
        """Whether the connection is gone."""
        return self.client.fileno() < 0


class Lane:
    """The streams that are sent the same bytes: one audience class in one framing.

    `streams` are those that can be written to, `members` counts the blocked ones as well. None of
    them has joined after `joined`.
    """

    __slots__ = ("audience", "chunked", "joined", "members", "streams")

    def __init__(self, audience: Audience, chunked: bool) -> None:
        self.audience = audience
        self.chunked = chunked
        self.joined = 0
        self.members = 0
        self.streams: dict[Stream, None] = {}

    def wrap(self, body: bytes) -> bytes:
        """Frame *body* as the response head announced."""
        return chunk(body) if self.chunked else body


class Taken(NamedTuple):
    """A connection that was taken over.

    :ivar client: the connection, not blocking; sends cost a tenth less than writes to its fd.
    :ivar chunked: whether the head announced chunks.
    """

    client: _socket.socket
    chunked: bool


_NOTHING = Batch(b"", (), 0)
_NO_DEBT: Owed = ((), False)


class Pump:
    """Sweeps the detached streams of one process, in slices between turns of the event loop.

    The sweep rolls: each slice reads the log anew, so that an event is on every stream within
    one round of the streams, not two. A write is capped in bytes, which bounds the round, and
    what a slow client does not take waits for it while the others go on. Everything runs in
    the thread of the event loop; only `wake` may be called from elsewhere.
    """

    def __init__(
        self, hub: Hub, release: Callable[[list[str]], None], metrics: Metrics = OFF
    ) -> None:
        import gevent

        self._gevent = gevent
        self._hub = hub
        self._release = release
        self._metrics = metrics
        self._swept = Sweep()
        self._told = 0.0
        self._released: list[str] = []
        self._noticed = hub.noticed
        self._loop = cast(Any, gevent.get_hub().loop)
        self._lanes: dict[tuple[Audience, bool], Lane] = {}
        self._by_fd: dict[int, Stream] = {}
        self._sweeping = False
        self._behind = False
        self._deadline = 0.0
        self._epoll = unpatched("select", "epoll")()
        # An epoll object closes its fd when it goes, and must not take the loop's with it.
        self.loop_epoll = unpatched("select", "epoll").fromfd(os.dup(self._loop.fileno()))
        self.sink = _closed_socket()
        self._ready = self._loop.io(self._epoll.fileno(), 1, ref=False)
        self._ready.start(self._on_ready)
        self._woken = self._loop.async_(ref=False)
        self._woken.start(self._on_woken)
        self._beats: Wheel[Stream] = Wheel(_TICK)
        self._ends: Wheel[Stream] = Wheel(_TICK)
        self._timer: Any | None = None
        self._armed = 0.0
        hub.listen(self.wake)

    @property
    def streams(self) -> int:
        """How many streams there are."""
        return len(self._by_fd)

    @property
    def behind(self) -> int:
        """How many events the slowest stream has yet to be sent."""
        end = self._hub.end
        return max((end - stream.cursor for stream in self._by_fd.values()), default=0)

    def lag(self, now: float) -> float:
        """Return the seconds by which the slowest live stream is behind.

        Those whose clients do not take what they are sent are behind by themselves.
        """
        cursors = [
            stream.cursor
            for lane in self._lanes.values()
            for stream in lane.streams
            if stream.cursor >= stream.live_from
        ]
        return self._hub.lag(min(cursors), now) if cursors else 0.0

    def add(self, taken: Taken, request: StreamRequest, opening: Opening) -> None:
        """Own a connection whose client has been sent the head of the response."""
        key = (request.audience, taken.chunked)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(*key)
        stream = Stream(taken.client, lane, request, opening)
        fd = taken.client.fileno()
        self._epoll.register(fd, _GONE)
        self._by_fd[fd] = stream
        lane.members += 1
        lane.streams[stream] = None
        lane.joined = max(lane.joined, stream.joined)
        self._metrics.opened(request.last_position is not None, opening.reset)
        self._schedule_beat(stream)
        end, stream.reason = request.end(self._hub.lifetime(), stream.touched)
        if stream.reason:
            stream.end = self._ends.add(end, stream)
        self._arm()
        if self._leave(stream):
            return
        self._write(stream, opening.preamble, stream.touched)
        if stream.cursor != self._hub.end:
            self._go_round()

    def wake(self) -> None:
        """Sweep soon; from any thread."""
        self._woken.send()

    def close(self, reason: str) -> None:
        """End every stream cleanly, each with a reconnection delay of its own."""
        for stream in list(self._by_fd.values()):
            self._end(stream, reason)
        # A sweep that was under way goes on no more.
        self._tell(time.monotonic())

    # The sweep.

    def _go_round(self) -> None:
        """Sweep for a stream that fell behind, also when a sweep is just past it."""
        self._behind = True
        self.wake()

    def _on_woken(self) -> None:
        if not self._sweeping and self._by_fd:
            self._sweeping = True
            self._gevent.spawn(self._sweep)

    def _sweep(self) -> None:
        """Go round until no stream is behind."""
        try:
            begun = -1
            while begun != self._hub.end or self._behind:
                begun, self._behind = self._hub.end, False
                self._heed_notices()
                for lane in list(self._lanes.values()):
                    self._sweep_lane(lane)
            self._tell(time.monotonic())
        except Exception:
            _logger.exception("The pump stumbled; it goes on with the next event.")
        finally:
            self._sweeping = False

    def _sweep_lane(self, lane: Lane) -> None:
        turn = self._gevent.get_hub().wait
        streams = list(lane.streams)
        at = 0
        while at < len(streams):
            at = self._slice(lane, streams, at)
            now = time.monotonic()
            if now >= self._deadline:
                if now >= self._told + _TELL:
                    self._tell(now)
                # Not sleep(0): fifty such turns pass before the loop looks at its sockets.
                turn(self._loop.timer(0.0))
                self._deadline = time.monotonic() + SLICE

    def _slice(self, lane: Lane, streams: list[Stream], at: int) -> int:
        """Serve *streams* from *at* on until the deadline; return where to go on."""
        now = time.monotonic()
        bodies: dict[int, tuple[Batch, bytes]] = {}
        horizon = self._hub.horizon(now)
        newest = self._hub.end
        cursor, batch, body, special, alike = -1, _NOTHING, b"", False, True
        swept, writes = self._swept, 0
        while at < len(streams):
            for stream in streams[at : at + _RUN]:
                if stream.rest is not None:
                    continue
                if stream.cursor != cursor:
                    if writes:
                        swept.add(batch.rules, writes)
                        writes = 0
                    cursor = stream.cursor
                    found = bodies.get(cursor)
                    if found is None:
                        batch = self._hub.read(lane.audience, None, cursor)
                        body = lane.wrap(batch.body)
                        bodies[cursor] = batch, body
                    else:
                        batch, body = found
                    late = cursor < horizon
                    special = late or batch.gap is not None or bool(batch.private)
                    alike = not special and cursor >= lane.joined
                    self._behind = self._behind or batch.end < newest
                    if cursor < swept.oldest and body and stream.live_from <= cursor and not late:
                        swept.look(cursor, batch.body, now)
                if not alike and (special or cursor < stream.joined):
                    if self._serve_apart(stream, batch, horizon, now):
                        continue
                if not body:
                    stream.cursor = batch.end
                    continue
                try:
                    sent = stream.client.send(body)
                except BlockingIOError:
                    sent = 0
                except OSError:
                    self._drop(stream)
                    continue
                stream.cursor = batch.end
                stream.touched = now
                if sent == len(body):
                    writes += 1
                else:
                    self._block(stream, body, sent, (batch.rules, False))
            at += _RUN
            if time.monotonic() >= self._deadline:
                break
        swept.add(batch.rules, writes)
        return at

    def _serve_apart(self, stream: Stream, batch: Batch, horizon: int, now: float) -> bool:
        """Serve a stream that is not sent the shared batch, or as a replay; False for others."""
        if self._leave(stream):
            return True
        if batch.gap is not None:
            self._reset(stream, batch.gap, now)
            return True
        if stream.live_from <= stream.cursor < horizon:
            self._reset(stream, "overload", now)
            return True
        replay = stream.cursor < stream.joined
        if stream.user_id is not None and stream.user_id in batch.private:
            own = self._hub.read(stream.lane.audience, stream.user_id, stream.cursor)
        elif replay:
            own = batch
        else:
            return False
        stream.cursor = own.end
        # Its own events fill a batch sooner than the shared one.
        self._behind = self._behind or own.end < self._hub.end
        self._write(stream, own.body, now, (own.rules, replay))
        return True

    def _reset(self, stream: Stream, reason: str, now: float) -> None:
        body, stream.cursor = self._hub.reset(reason)
        stream.live_from = stream.cursor
        self._metrics.reset(reason)
        self._write(stream, body, now)

    def _write(self, stream: Stream, body: bytes, now: float, owed: Owed = _NO_DEBT) -> None:
        """Write one body to one stream; *owed* says what events are in it."""
        wire = stream.lane.wrap(body)
        if not wire:
            return
        try:
            sent = stream.client.send(wire)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(stream)
            return
        stream.touched = now
        if sent != len(wire):
            self._block(stream, wire, sent, owed)
        else:
            self._swept.add(owed[0], 1, replay=owed[1])

    # Slow and gone clients.

    def _block(self, stream: Stream, body: bytes, sent: int, owed: Owed) -> None:
        """Keep what the client did not take; a view, so that blocked streams share it."""
        stream.rest = memoryview(body)[sent:]
        stream.owed = owed
        stream.lane.streams.pop(stream, None)
        self._epoll.modify(stream.client.fileno(), _GONE | _EPOLLOUT)

    def _on_ready(self) -> None:
        for fd, events in self._epoll.poll(0, 256):
            stream = self._by_fd.get(fd)
            if stream is None:
                continue
            if events & _GONE:
                self._drop(stream)
            elif stream.rest is not None:
                self._unblock(stream, stream.rest)

    def _unblock(self, stream: Stream, rest: memoryview) -> None:
        try:
            sent = stream.client.send(rest)
        except BlockingIOError:
            return
        except OSError:
            self._drop(stream)
            return
        stream.touched = time.monotonic()
        if sent < len(rest):
            stream.rest = rest[sent:]
            return
        stream.rest = None
        self._settle(*stream.owed)
        stream.live_from = self._hub.end
        self._epoll.modify(stream.client.fileno(), _GONE)
        stream.lane.streams[stream] = None
        self._go_round()

    def _drop(self, stream: Stream) -> None:
        if stream.closed:
            return
        if stream.lease is not None:
            self._give_back(stream.lease)
        if stream.rest is not None and stream.owed[0]:
            self._settle(_taken_of(stream.rest, stream.owed[0]), stream.owed[1])
        self._metrics.ended(time.monotonic() - stream.opened)
        stream.rest = None
        # A wheel would keep what has left until its identity expires, for hours perhaps.
        self._beats.discard(stream.beat, stream)
        self._ends.discard(stream.end, stream)
        fd = stream.client.fileno()
        del self._by_fd[fd]
        # Closing does that too, but not while a forked child has the connection open as well.
        self._epoll.unregister(fd)
        stream.client.close()
        lane = stream.lane
        lane.streams.pop(stream, None)
        lane.members -= 1
        if not lane.members:
            del self._lanes[lane.audience, lane.chunked]

    def _settle(self, rules: Sequence[Rule], replay: bool) -> None:
        """Count what a stream was sent after all."""
        sweep = Sweep()
        sweep.add(rules, 1, replay=replay)
        self._metrics.swept(sweep)

    def _tell(self, now: float) -> None:
        """Have what was swept counted, which takes too long for each slice."""
        self._told = now
        if self._swept:
            swept, self._swept = self._swept, Sweep()
            self._metrics.swept(swept)

    def _give_back(self, lease: str) -> None:
        """Release a lease, and with it all that end meanwhile; the event loop may not wait."""
        self._released.append(lease)
        if len(self._released) == 1:
            self._gevent.spawn(self._give_all_back)

    def _give_all_back(self) -> None:
        released, self._released = self._released, []
        self._release(released)

    # Notices.

    def _heed_notices(self) -> None:
        """End at once every stream a new notice is about, the blocked ones as well."""
        newest = self._hub.noticed
        if newest != self._noticed:
            self._noticed = newest
            for stream in list(self._by_fd.values()):
                self._leave(stream)

    def _leave(self, stream: Stream) -> bool:
        """End *stream* if a notice says so."""
        reason = self._hub.ended(stream.since, stream.user_id, stream.lease)
        if reason is None:
            return False
        self._end(stream, reason)
        return True

    # Heartbeats and lifetimes.

    def _schedule_beat(self, stream: Stream) -> None:
        """Put a stream where its silence would become too long, at random a little earlier."""
        stream.beat = self._beats.add(stream.touched + self._hub.silence(), stream)

    def _arm(self) -> None:
        """Have the event loop call when the next slot is due."""
        due = min((at for at in (self._beats.next, self._ends.next) if at is not None), default=0.0)
        if not due or (self._timer is not None and self._armed <= due):
            return
        if self._timer is not None:
            self._timer.stop()
        self._armed = due
        self._timer = self._loop.timer(max(0.001, due - time.monotonic()), ref=False)
        # The loop's own callbacks may not wait for the hub's lock, which another thread may hold.
        self._timer.start(self._gevent.spawn, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        try:
            for stream in self._ends.take(time.monotonic()):
                self._end(stream, stream.reason)
            self._beat()
        except Exception:
            _logger.exception("The pump stumbled over a heartbeat; it goes on.")
        finally:
            # One failure must not silence every stream for good.
            self._arm()

    def _beat(self) -> None:
        quiet = self._hub.options.heartbeat * SPREAD - _TICK
        body, end = self._hub.heartbeat()
        now = time.monotonic()
        streams = self._beats.take(now)
        try:
            for stream in streams:
                if stream.rest is None and now - stream.touched >= quiet:
                    self._beat_one(stream, body, end, now)
        finally:
            for stream in streams:
                if not stream.closed:
                    self._schedule_beat(stream)

    def _end(self, stream: Stream, reason: str) -> None:
        """Say goodbye and close; amid a write that is still owed, only close."""
        if stream.closed:
            return
        if stream.rest is None:
            body = stream.lane.wrap(self._hub.goodbye(reason))
            try:
                stream.client.send(body + LAST_CHUNK if stream.lane.chunked else body)
            except OSError:
                pass
        self._drop(stream)

    def _beat_one(self, stream: Stream, body: bytes, end: int, now: float) -> None:
        if stream.closed or self._leave(stream):
            return
        if stream.cursor != end:
            batch = self._hub.read(stream.lane.audience, stream.user_id, stream.cursor)
            if batch.gap is not None or batch.body or batch.end != end:
                self._go_round()
                return
            stream.cursor = end
        self._write(stream, body, now)


class DetachedStream(Iterator[bytes]):
    """The body of a response that takes its connection over once the head is sent."""

    def __init__(
        self, hub: Hub, pump: Callable[[], Pump], portable: Portable, request: StreamRequest
    ) -> None:
        self._hub = hub
        self._pump = pump
        self._request = request
        self._portable = PortableStream(portable, request)
        self._next: Callable[[], bytes] = self._open

    def __iter__(self) -> DetachedStream:
        return self

    def __next__(self) -> bytes:
        return self._next()

    def close(self) -> None:
        """Leave, unless the connection was taken over; the server's response is finished."""
        self._portable.close()

    def _open(self) -> bytes:
        """Have the server send the head alone: gunicorn does, whatever the first bytes are."""
        self._next = self._detach
        return b""

    def _detach(self) -> bytes:
        response = gunicorn_response()
        if response is None or not _can_take(response):
            return self._go_portable()
        pump = self._pump()
        try:
            taken = take_over(response, pump)
        except OSError:
            # Out of file descriptors: this stream can still use the one it has.
            return self._go_portable()
        self._next = _stop
        self._portable.hand_over()
        pump.add(taken, self._request, self._hub.open(self._request.last_position))
        raise StopIteration

    def _go_portable(self) -> bytes:
        self._next = self._portable.__next__
        return self._next()


def possible(environ: dict[str, Any]) -> bool:
    """Tell whether the server is gunicorn's gevent worker on a plain HTTP/1 connection.

    Never TLS, HTTP/2 (its streams share one socket), another protocol or another server.
    """
    gevent_socket = sys.modules.get("gevent.socket")
    sock = environ.get("gunicorn.socket")
    if gevent_socket is None or type(sock) is not gevent_socket.socket:
        return False
    if environ.get("SERVER_PROTOCOL") not in ("HTTP/1.0", "HTTP/1.1"):
        return False
    loop = sys.modules["gevent"].get_hub().loop
    return getattr(loop, "backend", None) == "epoll" and sys.platform == "linux"


def take_over(response: Any, pump: Pump) -> Taken:
    """Take the client's connection from gunicorn, and leave it one that has ended."""
    sock = response.sock
    fd = sock.fileno()
    client = _socket.socket(sock.family, sock.type, sock.proto, os.dup(fd))
    client.setblocking(False)
    _tune(client)
    # The duplicate keeps the connection open, so the kernel would keep reporting it under the
    # server's number, and after dup2 nobody could name that registration any more.
    try:
        pump.loop_epoll.unregister(fd)
    except FileNotFoundError:
        pass
    os.dup2(pump.sink.fileno(), fd, inheritable=False)
    taken = Taken(client, response.chunked)
    # There is no last chunk to send, and no next request to wait for.
    response.chunked = False
    response.force_close()
    return taken


def _can_take(response: Any) -> bool:
    """Tell whether what the server sent is exactly our head.

    Middleware that buffers, compresses or rewrites the body shows here; a connection taken
    over from it would carry bytes its client cannot read.
    """
    headers = {name.lower(): value for name, value in response.headers}
    return (
        response.headers_sent
        and response.sent == 0
        and response.status_code == 200
        and response.response_length is None
        and headers.get("content-encoding", "identity") == "identity"
        and headers.get("content-type", "").startswith("text/event-stream")
    )


def _taken_of(rest: memoryview, rules: Sequence[Rule]) -> Sequence[Rule]:
    """Return the rules of the events of which a client took every byte, before it left *rest*."""
    taken = rest.obj[: -len(rest)]  # type: ignore[index]  # it is a view of bytes
    return rules[: count_frames(taken)]


def _tune(sock: _socket.socket) -> None:
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A client that stops reading would otherwise let the kernel queue megabytes for it.
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _UNSENT_LIMIT)
        # A laptop that vanished would otherwise hold its user's place for a quarter of an hour.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENT_LIMIT)


def _closed_socket() -> _socket.socket:
    """Return a socket whose other end is closed: reading from it is at the end at once."""
    ours, theirs = _socket.socketpair()
    theirs.close()
    ours.setblocking(False)
    return ours


def _stop() -> bytes:
    raise StopIteration
