"""What an app with the memory broker has emitted."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from flask import Flask

from flask_noc_realtime.event import Rule
from tests.contract.sinks import RecordingSink


class Emitted(NamedTuple):
    """One event as its log has it."""

    type: str
    data: Any
    rule: Rule


def emitted(app: Flask) -> list[Emitted]:
    """Return all events so far, in their order."""
    sink = RecordingSink()
    app.extensions["noc_realtime"].process().broker.start(sink)
    events = []
    for entry in sink.entries:
        (line,) = [line for line in entry.frame.split(b"\n") if line.startswith(b"data: ")]
        events.append(Emitted(entry.rule.type, json.loads(line[6:])["data"], entry.rule))
    return events


def told(app: Flask) -> list[tuple[str, Any]]:
    """Return the types and the data of all events so far."""
    return [(event.type, event.data) for event in emitted(app)]
