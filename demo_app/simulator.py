"""A network of 200 devices that fail, are repaired, and talk about it."""

from __future__ import annotations

import fcntl
import logging
import os
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from demo_app.legacy.services import Services

DEVICES = 200
SITES = ("fra", "ams", "lon", "par", "mad", "mil", "waw", "sto", "vie", "zrh")

_KINDS = (("core", 1), ("edge", 3), ("sw", 6), ("srv", 10))
_FAULTS = {
    "core": ("BGP session lost", "line card failed", "CPU at 99 %"),
    "edge": ("uplink flapping", "BGP session lost", "packet loss above 5 %"),
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
    """The same seed tells the same story. Pure: it calls nothing and has no clock."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._devices = devices()
        self._stories: dict[str, Iterator[list[Call]]] = {}

    def step(self) -> list[Call]:
        """Return what happens next."""
        if len(self._stories) < 4 or self._random.random() < 0.1:
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
        name, kind = device.name, device.kind
        fault = self._random.choice(_FAULTS[kind])
        below = [other.name for other in self._devices if other.parent == name][:4]
        yield [
            _log(name, "error", fault),
            Call("servers", "set_status", {"name": name, "status": "down"}),
            Call(
                "incidents",
                "create",
                {"server": name, "title": f"{name}: {fault}", "severity": _SEVERITY[kind]},
            ),
        ]
        for other in below:
            yield [
                Call("servers", "set_status", {"name": other, "status": "degraded"}),
                _log(other, "warning", f"lost {name}"),
            ]
        for attempt in range(1, self._random.randint(2, 5)):
            yield [_log(name, "info", f"no answer to probe {attempt}")]
        runbook = _RUNBOOKS[kind]
        yield [
            Call("automations", "start", {"name": runbook, "server": name}),
            _log(runbook, "info", f"started on {name}"),
        ]
        for text in ("credentials checked", "configuration saved", "action sent", "waiting"):
            yield [_log(runbook, "info", f"{name}: {text}")]
        works = self._random.random() < 0.8
        yield [
            Call(
                "automations",
                "complete",
                {"server": name, "status": "succeeded" if works else "failed"},
            )
        ]
        if not works:
            yield [Call("incidents", "change_status", {"server": name, "status": "escalated"})]
            yield [_log(name, "warning", "technician on site")]
        yield [
            Call("servers", "set_status", {"name": name, "status": "up"}),
            _log(name, "info", "answers again"),
            Call("incidents", "change_status", {"server": name, "status": "resolved"}),
        ]
        for other in below:
            yield [Call("servers", "set_status", {"name": other, "status": "up"})]


class Driver(threading.Thread):
    """Plays the network on the services, in one process of all that try.

    :param lock: a file; whoever holds it drives, and the system frees it when they die.
    :param rate: calls a second, about.
    """

    def __init__(self, services: Services, lock: Path, rate: float) -> None:
        super().__init__(name="simulator", daemon=True)
        self._services = services
        self._lock = lock
        self._rate = rate

    def run(self) -> None:
        """Wait for the turn, then play for ever."""
        with self._lock.open("a+") as file:
            while not _locked(file.fileno()):
                time.sleep(0.5)
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            network = Network(os.getpid())
            while True:
                self._play(network.step())

    def _play(self, calls: list[Call]) -> None:
        for call in calls:
            try:
                getattr(getattr(self._services, call.service), call.method)(**call.arguments)
            except Exception:
                _logger.exception("The simulated %s.%s failed.", call.service, call.method)
            time.sleep(1 / self._rate)


def seed(services: Services) -> None:
    """Fill a new database."""
    services.servers.add_all([{"name": d.name, "kind": d.kind, "site": d.site} for d in devices()])
    services.logs.add("noc", "info", f"monitoring {DEVICES} devices")


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _log(source: str, level: str, text: str) -> Call:
    return Call("logs", "add", {"source": source, "level": level, "text": text})
