"""Emitting from where there is no Flask app: Celery tasks, cron jobs, scripts."""

from __future__ import annotations

import atexit
import os
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from .broker import Broker
from .config import Config, key_of
from .emit import Publisher
from .errors import ConfigError
from .event import Catalogue
from .process import create_broker

_PATIENCE = 2.0


class _Line(NamedTuple):
    """What one process emits with."""

    broker: Broker
    publisher: Publisher

    def close(self, timeout: float) -> None:
        self.publisher.close(timeout)
        self.broker.close()


class Emitter:
    """Emits to the streams of an app from outside of it, through the app's Redis.

    Make one where the module is loaded, and use it from any thread. Nothing is connected until
    the first emit, and a forked process connects for itself. As a context manager it is closed
    at the end of the block; otherwise when the interpreter exits.

    :param url: the app's ``NOC_REALTIME_URL``.
    :param namespace: the app's ``NOC_REALTIME_NAMESPACE``.
    :param history_events: the app's ``NOC_REALTIME_HISTORY_EVENTS``: whoever emits also trims.
    :param history_bytes: the app's ``NOC_REALTIME_HISTORY_BYTES``.
    :param emit_errors: ``log`` queues what Redis does not take; ``raise`` raises.
    :param strict_types: refuse event types nobody registered.
    :raises ConfigError: when one of these is wrong, and for ``memory://``.
    """

    def __init__(
        self,
        url: str,
        *,
        namespace: str = "noc",
        history_events: int = 10_000,
        history_bytes: int = 64 * 1024 * 1024,
        emit_errors: str = "log",
        strict_types: bool = True,
    ) -> None:
        given = {
            "url": url,
            "namespace": namespace,
            "history_events": history_events,
            "history_bytes": history_bytes,
            "emit_errors": emit_errors,
            "strict_types": strict_types,
        }
        self._set_up(Config.from_mapping({key_of(name): each for name, each in given.items()}))

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Emitter:
        """Return an emitter with an app's settings: its ``app.config``, or ``os.environ``.

        :raises ConfigError: when a ``NOC_REALTIME_*`` value is wrong, or none names a Redis.
        """
        emitter = cls.__new__(cls)
        emitter._set_up(Config.from_mapping(mapping))
        return emitter

    def _set_up(self, config: Config) -> None:
        if config.url == "memory://":
            raise ConfigError(
                "NOC_REALTIME_URL is memory://: its events stay in the process that emits them, "
                "so that an Emitter would reach nobody. Give the app and the Emitter the URL of "
                "the same Redis."
            )
        self._config = config
        self._catalogue = Catalogue(strict=config.strict_types)
        self._lines: dict[int, _Line] = {}
        create_broker(config)  # A URL that is not understood shows now, not in the first task.

    def emit(
        self,
        type: str,
        data: Any = None,
        *,
        permissions: Collection[str] | None = None,
        user_id: str | None = None,
    ) -> str | None:
        """Send an event to every stream that may see it, as `NocRealtime.emit` does.

        :raises EventError: when the event itself is wrong; nothing is published.
        :raises BrokerUnavailable: only with ``emit_errors="raise"``.
        """
        publisher = self._line().publisher
        return publisher.emit(type, data, permissions=permissions, user_id=user_id)

    def register_type(self, type: str) -> None:
        """Add an event type of your own, as the app does.

        :raises EventError: when it is malformed or reserved.
        """
        self._catalogue.register(type)

    def types(self) -> tuple[str, ...]:
        """Return the known event types in alphabetical order."""
        return self._catalogue.types()

    def flush(self, timeout: float) -> bool:
        """Wait up to *timeout* seconds until nothing is queued; return whether that is so."""
        line = self._lines.get(os.getpid())
        return line is None or line.publisher.flush(timeout)

    def close(self, timeout: float = _PATIENCE) -> None:
        """Give what is queued *timeout* seconds, log how much is lost, and disconnect.

        An emit after that connects anew.
        """
        atexit.unregister(self.close)
        line = self._lines.pop(os.getpid(), None)
        if line is not None:
            line.close(timeout)

    def __enter__(self) -> Emitter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _line(self) -> _Line:
        """Return this process's line; the one of a parent is left to the parent."""
        pid = os.getpid()
        line = self._lines.get(pid)
        if line is None:
            # No lock: a fork could copy it locked. Of two lines made at once only one is used.
            line = self._lines.setdefault(pid, self._connect())
            atexit.unregister(self.close)
            atexit.register(self.close)
        return line

    def _connect(self) -> _Line:
        broker = create_broker(self._config)
        return _Line(broker, Publisher(broker, self._catalogue, self._config.emit_options))
