"""Following the log from a terminal: everything that is emitted, whoever may see it."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

import click

from .audience import TypeFilter
from .broker import Broker
from .errors import BrokerUnavailable, ParameterError
from .event import NOTICES
from .eventlog import Entry, EventLog
from .frame import unframe

_PAGE = 500
_LOADING = 10.0

_DURATION = re.compile(r"(?:\d+(?:\.\d+)?[dhms])+", re.ASCII)
_UNITS = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
_COLOURS = {
    "automation": "blue",
    "incident": "red",
    "log": "yellow",
    "notification": "green",
    "server": "magenta",
}
# A terminal obeys the first two ranges, and is fooled by the others.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


class Page(NamedTuple):
    """What came, oldest first.

    :ivar gap: whether something before it was missed.
    """

    events: list[Happened]
    gap: bool


class Happened(NamedTuple):
    """An event as an operator sees it."""

    position: str
    type: str
    data: Any
    timestamp: str
    permissions: list[str] | None
    user_id: str | None

    @classmethod
    def of(cls, entry: Entry) -> Happened:
        """Read it back from its entry in a log."""
        ((position, data),) = unframe(entry.frame)
        body = json.loads(data)
        rule = entry.rule
        permissions = None if rule.permissions is None else sorted(rule.permissions)
        return cls(
            position, body["type"], body["data"], body["timestamp"], permissions, rule.user_id
        )

    def as_json(self) -> str:
        """Return it as one line of JSON."""
        return _shown(self._asdict())

    def as_text(self) -> str:
        """Return it as one line for the eye, with colours."""
        colour = _COLOURS.get(self.type.partition(".")[0], "cyan")
        rule = []
        if self.permissions is not None:
            rule.append("any of " + ", ".join(self.permissions))
        if self.user_id is not None:
            rule.append(f"user {self.user_id}")
        line = [
            click.style(self.timestamp, dim=True),
            click.style(self.type, fg=colour, bold=True),
            _shown(self.data),
        ]
        if rule:
            line.append(click.style(_escaped(f"({'; '.join(rule)})"), dim=True))
        return " ".join(line)


class Tail:
    """Follows a broker with one subscription; it is the sink."""

    def __init__(self, types: TypeFilter, max_events: int, max_bytes: int) -> None:
        self._types = types
        self._log = EventLog(max_events, max_bytes)
        self._changed = threading.Condition()
        self._live_from: int | None = None
        self._ordinal = 0

    def start(self, broker: Broker, since: str | None) -> str:
        """Follow from *since*, or from now on; return the position that is.

        :param since: a position, or a duration such as ``1h30m``.
        :raises ParameterError: when the position is not in the log.
        :raises BrokerUnavailable: when the broker does not answer.
        """
        broker.ping()
        broker.start(self)
        with self._changed:
            if not self._changed.wait_for(lambda: self._live_from is not None, _LOADING):
                raise BrokerUnavailable(f"The broker gave no history within {_LOADING:.0f} s.")
            self._ordinal = self._find(since)
            return self._log.position_at(self._ordinal)

    def read(self, timeout: float) -> Page:
        """Return what came since the last call, waiting for more if need be.

        The page is empty when nothing came in time, or nothing that the filter lets through.
        """
        log = self._log
        with self._changed:
            self._changed.wait_for(lambda: self._ordinal < log.end, timeout)
            gap = log.gap(self._ordinal) is not None
            if gap:
                self._ordinal = log.start
            entries = log.after(self._ordinal, _PAGE)
            self._ordinal += len(entries)
        wanted = [
            entry
            for entry in entries
            if entry.rule.type not in NOTICES and self._types.matches(entry.rule.type)
        ]
        return Page([Happened.of(entry) for entry in wanted], gap)

    # What the broker calls.

    def deliver(self, entries: Sequence[Entry]) -> None:
        """Append entries that follow the log without a hole."""
        with self._changed:
            for entry in entries:
                self._log.append(entry)
            self._changed.notify_all()

    def restart(self, base: str, entries: Sequence[Entry]) -> None:
        """Replace the log."""
        with self._changed:
            self._log.restart(base)
            for entry in entries:
                self._log.append(entry)
            if self._live_from is None:
                self._live_from = self._log.end
            self._changed.notify_all()

    def _find(self, since: str | None) -> int:
        log = self._log
        if since is None:
            assert self._live_from is not None
            return self._live_from
        if _DURATION.fullmatch(since):
            return self._find_time(datetime.now(timezone.utc) - _duration(since))
        found = log.find(since)
        if found is None:
            raise ParameterError(
                f"--since {since!r:.80} is neither a duration such as 10m or 1h30m, nor a position "
                f"in the log, which holds {log.end - log.start} events after "
                f"{log.position_at(log.start)}."
            )
        return found

    def _find_time(self, time: datetime) -> int:
        """Return the ordinal of the first event that happened at *time* or later."""
        log = self._log
        # Envelopes carry UTC with as many digits, so that their texts are in the order of time.
        text = time.isoformat(timespec="microseconds").replace("+00:00", "Z")
        for ordinal, entry in enumerate(log.after(log.start, log.end - log.start), log.start):
            if entry.rule.type not in NOTICES and Happened.of(entry).timestamp >= text:
                return ordinal
        return log.end


def _duration(text: str) -> timedelta:
    parts = re.findall(r"([\d.]+)([dhms])", text)
    try:
        return sum((timedelta(**{_UNITS[u]: float(n)}) for n, u in parts), timedelta())
    except OverflowError as error:
        raise ParameterError(f"--since {text!r:.80} is too long ago.") from error


def _shown(value: Any) -> str:
    return _escaped(json.dumps(value, ensure_ascii=False))


def _escaped(text: str) -> str:
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
