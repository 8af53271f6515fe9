"""What one worker process runs for one app: broker, hub, emitter and transports."""

from __future__ import annotations

import atexit
import json
import logging
import os
import secrets
import socket
import threading
import time
from typing import Any, Protocol

from .broker import Broker
from .broker.memory import MemoryBroker
from .combine import Combine
from .config import Config
from .emit import Publisher
from .event import Catalogue
from .flight import Flights
from .generation import Generations
from .health import Health, Probe
from .hub import Hub
from .lease import Leases
from .metrics import OFF, Metrics
from .poll import LongPolls
from .shelf import Shelf
from .transport import StreamRequest, gunicorn_worker
from .transport.portable import Portable, PortableStream

PATIENCE = "flask_noc_realtime.patience"
"""Names, in the WSGI environment, the patience of a stream that a test reads step by step."""

_GOODBYE = 1.0

_logger = logging.getLogger("flask_noc_realtime")


class Closable(Protocol):
    """What ends with its process."""

    def close(self) -> None: ...


class Process:
    """Belongs to the process that made it: a fork makes its own.

    Nothing is connected until the first emit, and nothing subscribed until the first stream
    or position.
    """

    def __init__(self, config: Config, catalogue: Catalogue, metrics: Metrics = OFF) -> None:
        self.pid = os.getpid()
        self.name = secrets.token_hex(4)
        self.metrics = metrics
        self.broker = create_broker(config)
        self.hub = Hub(self.broker, config.hub_options)
        self.emitter = Publisher(self.broker, catalogue, config.emit_options, metrics)
        self.flights: Flights[Any] = Flights(metrics=metrics)
        self.generations = Generations(self.broker, self.emitter)
        pages = getattr(self.broker, "pages", None)
        self.shelf = None if pages is None else Shelf(pages, self.generations, metrics=metrics)
        census = getattr(self.broker, "census", None)
        if census is not None:
            census.report = self._report
        self._config = config
        self._lock = threading.Lock()
        self.leases = Leases(
            self.broker,
            config.lease_options,
            lambda lease: self.emitter.give_notice("stream.evict", lease),
        )
        self.take: Combine[str, bytes | None] = Combine(self.broker.take)
        self.portable = Portable(self.hub, self.leases, metrics)
        self.long_polls = LongPolls(config.max_streams_per_user, config.max_long_polls)
        self.lease_seconds = config.lease
        self.probe = Probe(self.broker.ping)
        self.relays: list[Closable] = []
        self._pump: Any | None = None
        self._warned: set[str] = set()
        atexit.register(self.close)

    def position(self) -> str:
        """Return the newest position this process knows."""
        self.hub.start()
        return self.hub.position

    @property
    def streams(self) -> int:
        """How many streams are open, whatever carries them."""
        return self.portable.streams + (0 if self._pump is None else self._pump.streams)

    def report(self) -> dict[str, Any]:
        """Return how this worker is, as `flask noc-realtime stats` shows it.

        :return: ``behind`` counts the events that the slowest detached stream has yet to be sent.
        """
        pump = self._pump
        return {
            "host": socket.gethostname(),
            "pid": self.pid,
            "position": self.hub.position,
            "detached": 0 if pump is None else pump.streams,
            "portable": self.portable.streams,
            "behind": 0 if pump is None else pump.behind,
            "queued": self.emitter.queued,
            "dropped": self.emitter.dropped,
        }

    def readings(self) -> dict[str, float]:
        """Return the values of the gauges now."""
        pump = self._pump
        return {
            "sse_connections_active": self.streams,
            "sse_log_lag": 0.0 if pump is None else pump.lag(time.monotonic()),
            "sse_broker_up": float(not self.broker.away()),
            "sse_emit_queued": self.emitter.queued,
            "sse_rollout_percent": self.hub.rollout.percent,
            "dedup_cache_size": len(self.flights.results),
        }

    def health(self, *, deep: bool) -> Health:
        """Return how this worker is; call it where a request is answered.

        :param deep: ask the broker as well, which takes a moment.
        """
        self.hub.start()
        worker, pump = gunicorn_worker(), self._pump
        return Health(
            worker=self.name,
            draining=self.hub.closing.is_set() or not getattr(worker, "alive", True),
            loaded=self.hub.loaded,
            away=self.broker.away(),
            grace=self._config.health_grace,
            answers=self.probe() if deep else None,
            lag=None if pump is None else pump.lag(time.monotonic()),
            streams=self.streams,
            position=self.hub.position,
        )

    def stream(self, environ: dict[str, Any], request: StreamRequest) -> Any:
        """Return the body of a stream in the transport that fits the server."""
        self.check_workers(environ, "reaches only the streams of the worker that emitted it")
        self.hub.start()
        patience = environ.get(PATIENCE)
        if patience is not None:
            return PortableStream(self.portable, request, patience)
        if self._config.transport != "portable":
            from .transport import detached

            if detached.possible(environ):
                return detached.DetachedStream(
                    self.hub, self._detached_pump, self.portable, request
                )
            if self._config.transport == "detached":
                self._warn(
                    "NOC_REALTIME_TRANSPORT is 'detached' and this server cannot detach; the "
                    "stream is served portably. Run `gunicorn -k gevent` without TLS or HTTP/2 "
                    "on the worker itself."
                )
        return PortableStream(self.portable, request)

    def check_workers(self, environ: dict[str, Any], event: str) -> None:
        """Warn, once, when there are several workers and no broker between them.

        :param event: what becomes of an event then.
        """
        if environ.get("wsgi.multiprocess") and not self.broker.shared:
            self._warn(
                "NOC_REALTIME_URL is memory:// and the server runs several workers: an event "
                f"{event}. Set NOC_REALTIME_URL to a Redis URL, or run one worker."
            )

    def close(self) -> None:
        """End streams with a goodbye, and release everything; runs at exit."""
        if self.pid != os.getpid():
            return
        atexit.unregister(self.close)
        if self._pump is not None:
            self._pump.close("shutdown")
        for relay in self.relays:
            relay.close()
        served = self.portable.waiting
        self.leases.close()
        self.hub.close()
        if served:
            # At exit under gevent nothing else lets the streams' greenlets run once more.
            self.portable.drain(_GOODBYE)
        if self.shelf is not None:
            self.shelf.close()
        self.emitter.close()
        self.metrics.unwatch(self)

    def _report(self) -> bytes:
        return json.dumps(self.report()).encode()

    def _detached_pump(self) -> Any:
        with self._lock:
            if self._pump is None:
                from .transport.detached import Pump

                self._pump = Pump(self.hub, self.leases.release, self.metrics)
            return self._pump

    def _warn(self, message: str) -> None:
        with self._lock:
            if message in self._warned:
                return
            self._warned.add(message)
        _logger.warning(message)


def create_broker(config: Config) -> Broker:
    """Return the broker *config* names; Redis is imported only when it is meant.

    :raises ConfigError: when the URL is not understood.
    """
    if config.url == "memory://":
        return MemoryBroker(config.history_events, config.history_bytes)
    from .broker.redis import RedisBroker, RedisOptions

    return RedisBroker(
        config.url,
        RedisOptions(config.namespace, config.history_events, config.history_bytes),
    )
