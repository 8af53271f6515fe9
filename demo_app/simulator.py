"""A network of 200 devices that fail, are repaired, and talk about it."""

from __future__ import annotations

import fcntl
import logging
import os
import random
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

from flask import Flask
from sqlalchemy import select
from sqlalchemy.orm import Session

from demo_app.legacy.models import AutomationRun, Incident, LogLine, Server
from demo_app.legacy.services import Services

DEVICES = 200
SITES = ("fra", "ams", "lon", "par", "mad", "mil", "waw", "sto", "vie", "zrh")

_KINDS = (("core", 1), ("edge", 3), ("sw", 6), ("srv", 10))
_FAULTS = {
    "core": ("BGP session lost", "line card failed", "CPU at 99%"),
    "edge": ("uplink flapping", "BGP session lost", "packet loss above 5%"),
    "sw": ("port channel down", "spanning tree recalculating", "fan tray failed"),
    "srv": ("does not answer", "disk almost full", "out of memory"),
}
_SEVERITY = {"core": "critical", "edge": "major", "sw": "minor", "srv": "warning"}
_RUNBOOKS = {
    "core": "restart-bgp-session",
    "edge": "reset-uplink",
    "sw": "cycle-port-channel",
    "srv": "restart-host",
}
_STEPS = (
    ("debug", "credentials checked"),
    ("info", "configuration saved"),
    ("info", "action sent"),
    ("debug", "waiting for an answer"),
)
# Failures begin more often than they end: without a bound a quarter of the network is down.
_FEW, _MANY = 4, 9

_logger = logging.getLogger(__name__)


class Call(NamedTuple):
    """One call of a service."""

    service: str
    method: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Device:
    """A device, and the one of its site it hangs on."""

    name: str
    kind: str
    site: str
    parent: str | None


def devices() -> list[Device]:
    """Return the network: in each site one core, its edges, their switches and servers."""
    found = []
    for site in SITES:
        above: list[str] = []
        for kind, count in _KINDS:
            names = [f"{kind}-{site}-{number}" for number in range(1, count + 1)]
            for index, name in enumerate(names):
                parent = above[index % len(above)] if above else None
                found.append(Device(name, kind, site, parent))
            above = names
    return found


class Network:
    """The same seed tells the same story. Pure: it calls nothing and has no clock.

    A device that failed has an open incident; one is degraded while the one above it is down.

    :param broken: devices an earlier network left with an open incident; they are repaired.
    :param degraded: devices it left degraded.
    :param running: devices it left with an automation under way.
    """

    def __init__(
        self,
        seed: int,
        broken: Collection[str] = (),
        degraded: Collection[str] = (),
        running: Collection[str] = (),
    ) -> None:
        self._random = random.Random(seed)
        self._devices = devices()
        self._broken = set(broken)
        self._stories: dict[str, Iterator[list[Call]]] = {}
        for device in self._devices:
            if device.name in broken:
                self._stories[device.name] = self._repair(device, device.name in running)
            elif device.name in degraded and device.parent not in broken:
                self._stories[device.name] = iter([[_status(device.name, "up")]])

    def step(self) -> list[Call]:
        """Return what happens next."""
        many = len(self._stories)
        if many < _FEW or (many < _MANY and self._random.random() < 0.1):
            device = self._random.choice(self._devices)
            if device.name not in self._stories:
                self._stories[device.name] = self._fail(device)
        name = self._random.choice(list(self._stories))
        calls = next(self._stories[name], None)
        if calls is None:
            del self._stories[name]
            return []
        return calls

    def _fail(self, device: Device) -> Iterator[list[Call]]:
        name = device.name
        fault = self._random.choice(_FAULTS[device.kind])
        self._broken.add(name)
        yield [
            _log(name, "error", fault),
            _incident(name, fault, _SEVERITY[device.kind]),
            _status(name, "down"),
        ]
        for other in self._below(device):
            if other not in self._broken:
                yield [_status(other, "degraded"), _log(other, "warning", f"lost {name}")]
        for attempt in range(1, self._random.randint(2, 5)):
            yield [_log(name, "info", f"no answer to probe {attempt}")]
        yield from self._repair(device)

    def _repair(self, device: Device, running: bool = False) -> Iterator[list[Call]]:
        name, runbook = device.name, _RUNBOOKS[device.kind]
        if not running:
            yield [
                Call("automations", "start", {"name": runbook, "server": name}),
                _log(runbook, "info", f"started on {name}", run_on=name),
            ]
        for level, text in _STEPS:
            yield [_log(runbook, level, f"{name}: {text}", run_on=name)]
        works = self._random.random() < 0.8
        status = "succeeded" if works else "failed"
        yield [Call("automations", "complete", {"server": name, "status": status})]
        if not works:
            gave_up = _log(runbook, "error", f"{name}: gave up", run_on=name)
            yield [_progress(name, "escalated"), gave_up]
            yield [_log(name, "warning", "technician on site")]
        self._broken.remove(name)
        yield [
            _status(name, "degraded" if device.parent in self._broken else "up"),
            _log(name, "info", "answers again"),
            _progress(name, "resolved"),
            *(_status(other, "up") for other in self._below(device) if other not in self._broken),
        ]

    def _below(self, device: Device) -> list[str]:
        return [other.name for other in self._devices if other.parent == device.name]


class Driver(threading.Thread):
    """Plays the network on the services, in one process of all that try.

    :param lock: a file; whoever holds it drives, and the system frees it when they die.
    :param rate: calls a second at most.
    """

    def __init__(self, app: Flask, lock: Path, rate: float, seed: int) -> None:
        super().__init__(name="simulator", daemon=True)
        self._app = app
        self._lock = lock
        self._rate = rate
        self._seed = seed

    def run(self) -> None:
        """Wait for the turn, then play for ever."""
        with self._lock.open("a+") as file:
            while not _locked(file.fileno()):
                time.sleep(0.5)
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            services: Services = self._app.extensions["services"]
            network = take_over(services, self._seed)
            with self._app.app_context():
                while True:
                    for call in network.step():
                        play(services, call)
                        time.sleep(1 / self._rate)


def play(services: Services, call: Call) -> None:
    """Make *call*; a failing one is logged, and the show goes on."""
    try:
        getattr(getattr(services, call.service), call.method)(**call.arguments)
    except Exception:
        _logger.exception("The simulated %s.%s failed.", call.service, call.method)


def take_over(services: Services, seed: int) -> Network:
    """Return a network that goes on from what the database says."""
    return Network(
        seed,
        broken={i["server"] for i in services.incidents.list(200) if i["status"] != "resolved"},
        degraded={s["name"] for s in services.servers.list() if s["status"] == "degraded"},
        running={r["server"] for r in services.automations.list(200) if r["status"] == "running"},
    )


def fill(services: Services, seed: int) -> None:
    """Fill a new database: the devices, and an hour that did not go well."""
    begun = datetime.now(timezone.utc)
    services.servers.add_all([{"name": d.name, "kind": d.kind, "site": d.site} for d in devices()])
    services.logs.add("noc", "info", f"monitoring {DEVICES} devices")
    network = Network(seed)
    for _ in range(160):
        for call in network.step():
            play(services, call)
    oldest = [row for row in services.incidents.list() if row["status"] != "resolved"][-1]
    services.incidents.acknowledge(oldest["id"], "maria", "on the phone with the carrier")
    with services.sessions.begin() as session:
        _stretch(session, begun)


_TIMES = {
    Server: ("since",),
    Incident: ("opened_at", "acknowledged_at"),
    AutomationRun: ("started_at", "finished_at"),
    LogLine: ("at",),
}


def _stretch(session: Session, begun: datetime) -> None:
    """Let what was filled in since *begun* have taken an hour."""
    ended = datetime.now(timezone.utc)
    slower = timedelta(hours=1) / (ended - begun)
    for model, columns in _TIMES.items():
        for row in session.scalars(select(model)):
            for column in columns:
                text = getattr(row, column)
                if text is not None:
                    at = ended - (ended - datetime.fromisoformat(text)) * slower
                    setattr(row, column, at.isoformat(timespec="milliseconds"))


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _log(source: str, level: str, text: str, run_on: str | None = None) -> Call:
    said = {"source": source, "level": level, "text": text, "run_on": run_on}
    return Call("logs", "add", said)


def _status(name: str, status: str) -> Call:
    return Call("servers", "set_status", {"name": name, "status": status})


def _incident(name: str, title: str, severity: str) -> Call:
    return Call("incidents", "create", {"server": name, "title": title, "severity": severity})


def _progress(name: str, status: str) -> Call:
    return Call("incidents", "change_status", {"server": name, "status": status})
