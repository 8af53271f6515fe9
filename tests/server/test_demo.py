"""The demo: a legacy app, and the same app live."""

from __future__ import annotations

import ast
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path

import pytest

from demo_app.legacy import create_legacy_app
from demo_app.legacy.models import open_database
from demo_app.legacy.services import Services
from demo_app.simulator import DEVICES, Call, Network, devices, fill, play, take_over
from tests.conftest import RedisFactory
from tests.demo import ROOT, Demo
from tests.processes import children, group_members, wait_until
from tests.sse_client import SSEClient

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


def test_what_the_database_says_is_taken_over(tmp_path: Path) -> None:
    """The incidents of the first look are resolved, and so are those of a killed driver."""
    services = Services.of(open_database(str(tmp_path / "noc.sqlite")))
    fill(services, 7)
    left = {row["id"] for row in services.incidents.list() if row["status"] != "resolved"}
    network = take_over(services, 8)
    for _ in range(400):
        for call in network.step():
            play(services, call)
    now = {row["id"]: row["status"] for row in services.incidents.list(500)}
    assert {now[id] for id in left} == {"resolved"}
    runs = [row for row in services.automations.list(500) if row["status"] == "running"]
    assert len(runs) == len({row["server"] for row in runs})


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


def test_four_workers_on_redis_serve_each_others_events(
    tmp_path: Path, redis_server: RedisFactory
) -> None:
    """Whichever worker takes the acknowledgement, the streams of all workers see it."""
    with Demo(tmp_path, DEMO_RATE="0.01", REDIS_URL=redis_server().url) as demo:
        workers = wait_until(lambda: four(children(demo.gunicorn)), 20, "four workers")
        incidents = [row["id"] for row in demo.get("/api/incidents")][:8]
        with ExitStack() as stack:
            streams: list[SSEClient] = []

            def all_hold_a_stream() -> bool:
                streams.append(stack.enter_context(demo.stream("?types=incident.updated")))
                assert streams[-1].next_event().type == "stream.open"
                return workers_with_connections(demo.port, workers) == set(workers)

            wait_until(all_hold_a_stream, 30, "a stream on each worker")
            for incident in incidents:
                demo.acknowledge(incident, "kim")
            for stream in streams:
                seen = [stream.next_event().json["data"]["id"] for _ in incidents]
                assert seen == incidents


def test_one_worker_of_four_drives_the_network(tmp_path: Path, redis_server: RedisFactory) -> None:
    """Four drivers would be four times as fast as one is at most."""
    rate, count = 10, 30
    with Demo(tmp_path, DEMO_RATE=str(rate), REDIS_URL=redis_server().url) as demo:
        wait_until(lambda: four(children(demo.gunicorn)), 20, "four workers")
        with demo.stream() as stream:
            times: list[float] = []
            while len(times) < count:
                event = stream.next_event()
                if not event.type.startswith("stream."):
                    times.append(datetime.fromisoformat(event.json["timestamp"][:-1]).timestamp())
        # A clock that is set, or a commit that waits, may shorten a pause a little.
        assert times[-1] - times[0] > 0.8 * (count - 1) / rate


def test_another_worker_drives_when_the_driver_dies(
    tmp_path: Path, redis_server: RedisFactory
) -> None:
    """And a stream goes on from the position where it was, on whichever worker."""
    with Demo(tmp_path, DEMO_RATE="50", REDIS_URL=redis_server().url) as demo:
        lock = wait_until(lambda: next(tmp_path.glob("*/simulator.lock"), None), 20, "a driver")
        assert lock is not None
        driver = int(wait_until(lock.read_text, 20, "the driver's number"))
        assert driver in children(demo.gunicorn)
        with demo.stream("?types=log.added") as stream:
            stream.events_until(lambda e: e.type == "log.added", 20)
            os.kill(driver, signal.SIGKILL)
            wait_until(lambda: lock.read_text() not in ("", str(driver)), 20, "another driver")
        with demo.stream(f"?types=log.added&last_event_id={stream.last_event_id}") as again:
            events = again.events_until(lambda e: e.type == "log.added", 20)
            assert "stream.reset" not in {event.type for event in events}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_demo_leaves_nothing_behind(tmp_path: Path, number: int) -> None:
    """No process, no database, no traceback, and the port is free again."""
    with Demo(tmp_path) as demo:
        assert list(tmp_path.glob("noc-demo-*"))
        master = demo.gunicorn
        assert demo.stop(number) == 0
    assert not group_members(master)
    assert not list(tmp_path.glob("noc-demo-*"))
    assert "Traceback" not in demo.output.read_text()
    with pytest.raises(OSError):
        urllib.request.urlopen(demo.url, timeout=5)


def test_the_demo_says_why_it_ended(tmp_path: Path) -> None:
    """Nobody is left guessing when gunicorn is killed, and the exit code is not 0."""
    with Demo(tmp_path) as demo:
        os.kill(demo.gunicorn, signal.SIGKILL)
        assert demo.wait() != 0
    assert "gunicorn ended by itself, with code -9." in demo.output.read_text()


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("PORT", "http", "PORT is 'http'; use a number."),
        ("PORT", "70000", "PORT is '70000', which is out of range."),
        ("DEMO_RATE", "0", "DEMO_RATE is '0', which is out of range."),
        ("DEMO_RATE", "nan", "DEMO_RATE is 'nan', which is out of range."),
        ("DEMO_SEED", "x", "DEMO_SEED is 'x'; use a number."),
    ],
)
def test_a_wrong_setting_is_one_line(name: str, value: str, complaint: str) -> None:
    """Not a traceback from inside gunicorn."""
    assert refusal(**{name: value}) == complaint


def test_a_taken_port_is_one_line() -> None:
    """The line says what to set; nothing is started."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert refusal(PORT=str(port)).startswith(f"Port {port} is not free (")


def test_the_legacy_app_works_without_the_extension(tmp_path: Path) -> None:
    """It has pages and JSON, no streams, and answers a wrong acknowledgement with what is wrong."""
    path = str(tmp_path / "noc.sqlite")
    fill(Services.of(open_database(path)), 7)
    client = create_legacy_app(path).test_client()
    page = client.get("/")
    assert b"dashboard.js" in page.data
    assert b"data-position" not in page.data
    assert "X-Noc-Position" not in page.headers
    assert client.get("/api/v1/events/stream").status_code == 404
    assert len(client.get("/api/servers").json) == DEVICES
    for name in ("incidents", "logs", "automations"):
        assert client.get(f"/api/{name}").json
    incident = client.get("/api/incidents").json[0]["id"]
    acknowledge = f"/api/incidents/{incident}/acknowledge"
    assert client.post(acknowledge, json={"who": "kim"}).json["acknowledged_by"] == "kim"
    assert client.post(acknowledge, data="who=kim").status_code == 400
    assert client.post(acknowledge, json=["kim"]).status_code == 400
    assert client.post(acknowledge, json={"who": "k" * 41}).status_code == 400
    assert client.post(acknowledge, json={"comment": "c" * 1001}).status_code == 400
    assert client.post("/api/incidents/4711/acknowledge", json={}).status_code == 404


def four(workers: list[int]) -> list[int]:
    """Return *workers* when they are four."""
    return workers if len(workers) == 4 else []


def workers_with_connections(port: int, workers: list[int]) -> set[int]:
    """Return which *workers* hold a client's connection to *port* (Linux)."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = {f"socket:[{f[9]}]" for f in lines if f[1].endswith(f":{port:04X}") and f[3] == "01"}
    return {worker for worker in workers if ours & open_files(worker)}


def open_files(process: int) -> set[str]:
    """Return what the descriptors of *process* refer to (Linux)."""
    found = set()
    for fd in Path(f"/proc/{process}/fd").iterdir():
        # It may have been closed since it was listed.
        with suppress(FileNotFoundError):
            found.add(os.readlink(fd))
    return found


def refusal(**environ: str) -> str:
    """Return the line with which the demo refuses to start."""
    ended = subprocess.run(
        [sys.executable, "-m", "demo_app"],
        cwd=ROOT,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stdout == ""
    return ended.stderr.rstrip("\n")
