"""Log records as events: a handler for the standard library's logging."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from datetime import datetime, timezone
from typing import Any, Protocol

from .outside import Emitter

PermissionsOf = Collection[str] | Callable[[logging.LogRecord], Collection[str] | None]
UserOf = str | Callable[[logging.LogRecord], str | None]

_TEXT = 16 * 1024
_OURS = ("flask_noc_realtime", "redis")
_OUR_THREADS = "noc-realtime-"


class Emitting(Protocol):
    """What events are emitted with: an `Emitter`, or the app's `NocRealtime`."""

    def emit(
        self,
        type: str,
        data: Any = None,
        *,
        permissions: Collection[str] | None = None,
        user_id: str | None = None,
    ) -> str | None: ...


class RealtimeHandler(logging.Handler):
    """Sends log records to the streams of an app, as ``log.added`` events.

    The data of an event holds ``level``, ``logger``, ``message`` (by the handler's formatter when
    it has one), ``time``, and ``exception`` when there is one. Long texts are cut. What this
    package and redis-py log themselves is passed over: an outage would feed itself. A record
    costs as much as an emit, and next to nothing while Redis is away.

    :param emitter: the app's ``NocRealtime``, an `Emitter`, or the URL of the app's Redis. An
        emitter made for a URL is closed with the handler.
    :param type: the type of the events.
    :param permissions: who sees them, as in `NocRealtime.emit`, or a function of the record.
    :param user_id: the only user who sees them, or a function of the record.
    :param level: the least level.
    :raises ConfigError: when the URL is wrong.
    """

    def __init__(
        self,
        emitter: Emitting | str,
        *,
        type: str = "log.added",
        permissions: PermissionsOf | None = None,
        user_id: UserOf | None = None,
        level: int | str = logging.NOTSET,
    ) -> None:
        self._own = Emitter(emitter) if isinstance(emitter, str) else None
        self._emitter: Any = self._own or emitter
        self._type = type
        self._permissions = permissions
        self._user_id = user_id
        self._busy = threading.local()
        super().__init__(level)

    def filter(self, record: logging.LogRecord) -> Any:
        """Pass over what emitting itself logs; it need not wait for the handler's lock either."""
        if _is_ours(record) or getattr(self._busy, "is_emitting", False):
            return False
        return super().filter(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Emit *record* as an event; what goes wrong is left to `logging.Handler.handleError`."""
        # What the arguments of a record log, or a Redis client that is traced, must not come back.
        self._busy.is_emitting = True
        try:
            self._send(record)
        except Exception:
            self.handleError(record)
        finally:
            self._busy.is_emitting = False

    def close(self) -> None:
        """Close the emitter if the handler made it."""
        if self._own is not None:
            self._own.close()
        super().close()

    def _send(self, record: logging.LogRecord) -> None:
        permissions, user_id = self._permissions, self._user_id
        self._emitter.emit(
            self._type,
            self._data(record),
            permissions=permissions(record) if callable(permissions) else permissions,
            user_id=user_id(record) if callable(user_id) else user_id,
        )

    def _data(self, record: logging.LogRecord) -> dict[str, str]:
        time = datetime.fromtimestamp(record.created, timezone.utc)
        data = {"level": record.levelname, "logger": record.name}
        if self.formatter is not None:
            data["message"] = _fit(self.format(record))
        else:
            data["message"] = _fit(record.getMessage())
            exception = _exception(record)
            if exception:
                data["exception"] = _fit(exception, end=True)
        data["time"] = time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return data


_formatter = logging.Formatter()


def _exception(record: logging.LogRecord) -> str | None:
    # Another handler's formatter may have left its text here; a queue leaves nothing else.
    if record.exc_text or not record.exc_info:
        return record.exc_text
    return _formatter.formatException(record.exc_info)


def _is_ours(record: logging.LogRecord) -> bool:
    # A record made of a mapping that a network brought may lack both.
    if str(record.threadName).startswith(_OUR_THREADS):
        return True
    return str(record.name).partition(".")[0] in _OURS


def _fit(text: str, *, end: bool = False) -> str:
    """Return *text* as an event can carry it: no half surrogates, and not too long."""
    if len(text) > _TEXT:
        text = "…" + text[-_TEXT:] if end else text[:_TEXT] + "…"
    return text.encode(errors="backslashreplace").decode()
