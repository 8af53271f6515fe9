"""The demo: a legacy app, and the same app live."""

from __future__ import annotations

import ast
import os
import signal
import urllib.request
from pathlib import Path

import pytest

from demo_app.legacy.models import open_database
from demo_app.legacy.services import Services
from demo_app.simulator import DEVICES, Call, Network, devices, fill
from tests.conftest import RedisFactory
from tests.demo import ROOT, Demo
from tests.processes import wait_until

PARENTS = {device.name: device.parent for device in devices()}


class Ledger:
    """The state the played calls lead to."""

    def __init__(self) -> None:
        self.status: dict[str, str] = {}
        self.open: set[str] = set()
        self.running: set[str] = set()
        self.resolved = 0

    @property
    def down(self) -> set[str]:
        """The devices that are down."""
        return {name for name, status in self.status.items() if status == "down"}

    @property
    def degraded(self) -> set[str]:
        """The devices that are degraded."""
        return {name for name, status in self.status.items() if status == "degraded"}

    def note(self, calls: list[Call]) -> None:
        """Keep what *calls* change."""
        for call in calls:
            match call:
                case ("servers", "set_status", {"name": name, "status": status}):
                    self.status[name] = status
                case ("incidents", "create", {"server": server}):
                    assert server not in self.open
                    self.open.add(server)
                case ("incidents", "change_status", {"server": server, "status": "resolved"}):
                    self.open.remove(server)
                    self.resolved += 1
                case ("automations", "start", {"server": server}):
                    assert server not in self.running
                    self.running.add(server)
                case ("automations", "complete", {"server": server}):
                    self.running.remove(server)


def test_the_legacy_files_know_nothing_of_real_time() -> None:
    """The services are not touched; only the wiring is."""
    for path in (ROOT / "demo_app" / "legacy").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            assert not any("realtime" in name for name in [module, *names]), path


def test_the_network_has_two_hundred_devices_and_tells_the_same_story_for_a_seed() -> None:
    """A demo that is different every time cannot be shown twice."""
    assert len({device.name for device in devices()}) == DEVICES
    first, second, other = Network(7), Network(7), Network(8)
    story = [first.step() for _ in range(300)]
    assert story == [second.step() for _ in range(300)]
    assert story != [other.step() for _ in range(300)]


def test_the_story_has_every_kind_of_event() -> None:
    """Incidents, logs, server status changes and automation runs."""
    network = Network(7)
    seen = {(call.service, call.method) for _ in range(500) for call in network.step()}
    assert seen == {
        ("incidents", "create"),
        ("incidents", "change_status"),
        ("servers", "set_status"),
        ("logs", "add"),
        ("automations", "start"),
        ("automations", "complete"),
    }


@pytest.mark.parametrize("seed", range(5))
def test_failures_spread_downwards_and_every_one_is_repaired(seed: int) -> None:
    """A wallboard with a device that is red for no reason, or for ever, is not believed."""
    ledger = Ledger()
    network = Network(seed)
    for _ in range(5000):
        ledger.note(network.step())
        assert ledger.down == ledger.open
        assert all(PARENTS[name] in ledger.down for name in ledger.degraded)
        assert len(ledger.open) <= 12
    assert ledger.resolved > 100


@pytest.mark.parametrize("calls", [1, 2, 3, 10, 57, 111, 400])
def test_a_driver_that_takes_over_repairs_what_the_last_one_left(calls: int) -> None:
    """Wherever that one was killed, in the middle of a step as well."""
    ledger = Ledger()
    first = Network(7)
    ledger.note([call for _ in range(calls) for call in first.step()][:calls])
    left = set(ledger.open)
    second = Network(8, ledger.open, ledger.degraded, ledger.running)
    for _ in range(2000):
        played = second.step()
        ledger.note(played)
        left -= {c.arguments["server"] for c in played if c.arguments.get("status") == "resolved"}
    assert not left
    assert ledger.down == ledger.open
    assert all(PARENTS[name] in ledger.down for name in ledger.degraded)


def test_a_new_database_has_the_network_and_open_incidents(tmp_path: Path) -> None:
    """The first look shows a NOC at work, somebody being on the oldest incident."""
    services = Services.of(open_database(str(tmp_path / "noc.sqlite")))
    fill(services, 7)
    assert len(services.servers.list()) == DEVICES
    down = {row["name"] for row in services.servers.list() if row["status"] == "down"}
    unsolved = [row for row in services.incidents.list() if row["status"] != "resolved"]
    assert {row["server"] for row in unsolved} == down
    assert len(unsolved) >= 3
    assert unsolved[-1]["acknowledged_by"]


def test_an_acknowledgement_through_the_old_endpoint_reaches_a_stream(tmp_path: Path) -> None:
    """From memory, with one worker, as `make demo` serves it; Ctrl-C ends it without a trace."""
    with Demo(tmp_path, DEMO_RATE="50") as demo:
        with urllib.request.urlopen(demo.url, timeout=10) as page:
            assert b"data-position" in page.read()
        incident = demo.incident()
        with demo.stream("?types=incident.updated") as stream:
            assert stream.next_event().type == "stream.open"
            demo.acknowledge(incident["id"], "kim")
            event = stream.events_until(lambda e: e.type == "incident.updated")[-1]
            assert event.json["data"]["acknowledged_by"] == "kim"
            assert demo.stop(signal.SIGINT) == 0
            assert stream.until_end()[-1].type == "stream.close"
        assert "Traceback" not in demo.output.read_text()


def test_four_workers_on_redis_share_one_simulation(
    tmp_path: Path, redis_server: RedisFactory
) -> None:
    """One worker drives, every worker's streams see it, and another takes over when it dies."""
    redis = redis_server()
    with Demo(tmp_path, DEMO_RATE="50", REDIS_URL=redis.url) as demo:
        lock = wait_until(lambda: next(tmp_path.glob("*/simulator.lock"), None), 20, "a driver")
        assert lock is not None
        driver = int(wait_until(lock.read_text, 20, "the driver's number"))
        with demo.stream("?types=log.added") as stream:
            stream.events_until(lambda e: e.type == "log.added", 20)
            os.kill(driver, signal.SIGKILL)
            wait_until(lambda: lock.read_text() not in ("", str(driver)), 20, "another driver")
        # Whichever worker it was on, another knows its position.
        with demo.stream(f"?types=log.added&last_event_id={stream.last_event_id}") as again:
            events = again.events_until(lambda e: e.type == "log.added", 20)
            assert "stream.reset" not in {event.type for event in events}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_demo_leaves_nothing_behind(tmp_path: Path, number: int) -> None:
    """Its database goes with it, and the port is free again."""
    with Demo(tmp_path) as demo:
        assert list(tmp_path.glob("noc-demo-*"))
        demo.stop(number)
    assert not list(tmp_path.glob("noc-demo-*"))
    with pytest.raises(OSError):
        urllib.request.urlopen(demo.url, timeout=5)
