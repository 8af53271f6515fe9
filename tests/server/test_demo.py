"""The demo: a legacy app, and the same app live."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from demo_app.compare import create_app as create_compared_app
from demo_app.faults import Switch
from demo_app.legacy import create_legacy_app
from demo_app.legacy import services as legacy
from demo_app.legacy.models import open_database
from demo_app.legacy.services import Services
from demo_app.legacy.users import ACCOUNTS, SHIFT
from demo_app.realtime import create_app
from demo_app.simulator import DEVICES, Call, Network, devices, fill, play, take_over
from flask_noc_realtime.testing import Events, stream_client
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
        request = urllib.request.Request(demo.url, headers={"Cookie": demo.login()})
        with urllib.request.urlopen(request, timeout=10) as page:
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
        rows = demo.ask("/api/incidents")
        incidents = [row["id"] for row in rows if not row["acknowledged_by"]][:8]
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
            sent = f'{{type="incident.updated"}} {float(len(streams) * len(incidents))}'
            wait_until(lambda: sent in metrics(demo), 10, "all of them are counted")


def metrics(demo: Demo) -> str:
    """Return the page for Prometheus."""
    with urllib.request.urlopen(f"{demo.url}/metrics", timeout=10) as answer:
        page: bytes = answer.read()
    return page.decode()


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


@pytest.fixture
def database(tmp_path: Path) -> str:
    """Return the path of a database with the network in it."""
    path = str(tmp_path / "noc.sqlite")
    fill(Services.of(open_database(path)), 7)
    return path


@pytest.fixture
def app(database: str, monkeypatch: pytest.MonkeyPatch) -> Flask:
    """Return the live app."""
    monkeypatch.setenv("DEMO_DATABASE", database)
    monkeypatch.setenv("DEMO_SECRET", "a secret")
    monkeypatch.setenv("DEMO_COOKIE", "noc")
    return create_app()


def logged_in(app: Flask, name: str) -> FlaskClient:
    """Return a client that has used the login page."""
    client = app.test_client()
    form = {"name": name, "password": ACCOUNTS[name][1]}
    assert client.post("/login", data=form).status_code == 302
    return client


def test_the_legacy_app_works_without_the_extension(database: str) -> None:
    """It has pages and JSON, no streams, and answers a wrong acknowledgement with what is wrong."""
    app = create_legacy_app(database)
    client = logged_in(app, "kim")
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
    row = client.post(acknowledge, json={"comment": "on my way"}).json
    assert (row["acknowledged_by"], row["comment"]) == ("kim", "on my way")
    assert row["acknowledged_at"]
    assert client.post(acknowledge, data="comment=x").status_code == 400
    assert client.post(acknowledge, json=["kim"]).status_code == 400
    assert client.post(acknowledge, json={"comment": "c" * 1001}).status_code == 400
    assert client.post("/api/incidents/4711/acknowledge", json={}).status_code == 404


WITHOUT = """
import hashlib, pathlib, sys
sys.modules["flask_noc_realtime"] = None
from demo_app.legacy import create_legacy_app, services
app = create_legacy_app(sys.argv[1])
app.extensions["services"].incidents.create("core-fra-1", "CPU at 99%", "critical")
print(hashlib.sha256(pathlib.Path(services.__file__).read_bytes()).hexdigest())
"""


def test_the_service_file_is_the_same_with_and_without_the_extension(
    app: Flask, database: str, realtime_events: Events
) -> None:
    """Byte for byte, also where the extension cannot be imported; its events flow all the same."""
    run = [sys.executable, "-c", WITHOUT, database]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == hashlib.sha256(Path(legacy.__file__).read_bytes()).hexdigest()
    client = logged_in(app, "kim")
    incident = client.get("/api/incidents").json[0]
    assert incident["title"] == "CPU at 99%"
    client.post(f"/api/incidents/{incident['id']}/acknowledge", json={})
    assert realtime_events.one("incident.updated").data["acknowledged_by"] == "kim"


def test_what_a_role_may_not_see_is_neither_answered_nor_streamed(app: Flask) -> None:
    """A viewer has incidents and the network; what runs say for debugging is for engineers."""
    services = app.extensions["services"]
    seen = {}
    for name in ACCOUNTS:
        client = logged_in(app, name)
        with app.app_context(), stream_client(client) as stream:
            services.logs.add("core-fra-1", "error", "line card failed")
            services.logs.add("reset-uplink", "debug", "credentials checked")
            services.automations.start("reset-uplink", "edge-fra-1")
            services.servers.set_status("edge-fra-1", "up")
            streamed = [event.data.get("level", event.type) for event in stream.read()]
        answers = [client.get(f"/api/{name}").status_code for name in ("logs", "automations")]
        levels = {line["level"] for line in client.get("/api/logs").json if "level" in line}
        seen[name] = (streamed, answers, "debug" in levels)
    run, up = "automation.started", "server.status.changed"
    assert seen["kim"] == (["error", run, up], [200, 200], False)
    assert seen["alex"] == (["error", "debug", run, up], [200, 200], True)
    assert seen["robin"] == ([up], [403, 403], False)


def test_of_two_who_acknowledge_the_second_is_told_of_the_first(app: Flask) -> None:
    """Nobody is overwritten unseen; an engineer takes over from whom they saw."""
    kim, alex, robin = (logged_in(app, name) for name in ACCOUNTS)
    incident = next(i for i in kim.get("/api/incidents").json if not i["acknowledged_by"])
    path = f"/api/incidents/{incident['id']}/acknowledge"
    assert robin.post(path, json={}).status_code == 403
    assert kim.post(path, json={"comment": "mine"}).json["version"] == incident["version"] + 1
    late = alex.post(path, json={"comment": "no, mine"})
    assert (late.status_code, late.json["incident"]["comment"]) == (409, "mine")
    assert kim.post(path, json={"instead_of": "alex"}).status_code == 403
    assert alex.post(path, json={"instead_of": "maria"}).status_code == 409
    assert alex.post(path, json={"instead_of": "kim"}).json["acknowledged_by"] == "alex"


def test_the_log_of_a_run_is_what_it_said(app: Flask) -> None:
    """And nothing of other runs, nor of the devices."""
    services = app.extensions["services"]
    with app.app_context():
        run = services.automations.start("restart-host", "srv-fra-1")["id"]
        services.logs.add("srv-fra-1", "info", "no answer")
        services.logs.add("restart-host", "info", "started", run_on="srv-fra-1")
    client = logged_in(app, "kim")
    lines = client.get("/api/logs", query_string={"run": run}).json
    assert [line["text"] for line in lines] == ["started"]


def test_nobody_gets_in_without_a_login(app: Flask) -> None:
    """A page asks for it, JSON and streams say so, and no link leads out of the app."""
    client = app.test_client()
    assert client.get("/").headers["Location"] == "/login?next=/"
    assert client.get("/api/incidents").status_code == 401
    assert client.get("/api/v1/events/stream").status_code == 401
    assert client.post("/login", data={"name": "kim", "password": "guess"}).status_code == 403
    form = {"name": "kim", "password": "kim-demo"}
    for target in ("//evil.example", "https://evil.example", "/\\evil.example", "x"):
        answer = client.post("/login", query_string={"next": target}, data=form)
        assert answer.headers["Location"] == "/"
    answer = client.post("/login", query_string={"next": "/?wallboard=1"}, data=form)
    assert answer.headers["Location"] == "/?wallboard=1"


def test_a_login_ends_with_the_shift_or_by_hand_and_so_do_its_streams(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody goes on reading on a screen that was logged out."""
    client = logged_in(app, "kim")
    with stream_client(client) as stream:
        client.post("/logout")
        assert [event.type for event in stream] == ["stream.close"]
    assert client.get("/api/incidents").status_code == 401
    client = logged_in(app, "kim")
    assert client.get("/api/incidents").status_code == 200
    monkeypatch.setattr("demo_app.legacy.users.time.time", lambda: time.time_ns() / 1e9 + SHIFT)
    assert client.get("/api/incidents").status_code == 401


def test_pages_run_no_code_but_the_apps_own_files(app: Flask) -> None:
    """Neither scripts nor styles are in the HTML, so that a strict policy can forbid them."""
    pages = {"/login": app.test_client()}
    pages |= {"/": logged_in(app, "alex"), "/?wallboard=1": logged_in(app, "robin")}
    for path, client in pages.items():
        page = client.get(path)
        assert "default-src 'self';" in page.headers["Content-Security-Policy"]
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]* src=)", page.text)


@pytest.fixture
def compared(app: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flask:
    """Return the app with the page that compares, and faults."""
    monkeypatch.setenv("DEMO_FAULTS", str(tmp_path / "faults"))
    monkeypatch.setenv("DEMO_BREAK_SECONDS", "20")
    return create_compared_app()


def test_legacy_views_ask_the_database_each_time_and_coalesced_ones_once(compared: Flask) -> None:
    """Each response says how often it was asked for that, so that viewers can count."""
    client = logged_in(compared, "kim")

    def queries(path: str) -> list[str]:
        return [client.get(path).headers["X-Demo-Queries"] for _ in range(3)]

    for name in ("incidents", "servers", "logs", "automations"):
        assert queries(f"/before/api/{name}") == ["1", "1", "1"]
        assert queries(f"/api/{name}") == ["1", "0", "0"]
    with compared.app_context():
        compared.extensions["services"].logs.add("core-fra-1", "info", "answers again")
    assert queries("/api/logs") == ["1", "0", "0"]
    assert queries("/api/servers") == ["0", "0", "0"]


def test_a_role_is_not_given_what_another_was(compared: Flask) -> None:
    """Also where results are shared."""
    alex, kim, robin = (logged_in(compared, name) for name in ("alex", "kim", "robin"))
    assert "debug" in {line["level"] for line in alex.get("/api/logs").json}
    assert "debug" not in {line["level"] for line in kim.get("/api/logs").json}
    assert robin.get("/api/logs").status_code == 403
    assert robin.get("/compare").status_code == 403
    assert b"Compare" not in robin.get("/").data


def test_only_what_is_known_is_broken_and_only_where_faults_are_enabled(
    compared: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A demo that others can reach is not for breaking."""
    client = logged_in(compared, "kim")
    wrong: list[Any] = [
        {"line": "0123456789abcdef", "fault": "rm"},
        {"line": "../../etc", "fault": "cut"},
        {"fault": "cut"},
        ["cut"],
    ]
    for form in wrong:
        assert client.post("/compare/break", json=form).status_code == 400
    form = {"line": "0123456789abcdef", "fault": "503"}
    assert client.post("/compare/break", json=form).status_code == 200
    assert client.get("/line/0123456789abcdef/api/logs").status_code == 503
    assert client.get("/line/0123456789abcdee/api/logs").status_code == 200
    assert client.get("/api/logs").status_code == 200
    monkeypatch.delenv("DEMO_FAULTS")
    client = logged_in(create_compared_app(), "kim")
    assert client.post("/compare/break", json=form).status_code == 404
    assert client.get("/line/0123456789abcdef/api/logs").status_code == 404
    assert b"data-fault" not in client.get("/compare").data


def test_a_fault_ends_by_itself(tmp_path: Path) -> None:
    """Whether or not anybody looks meanwhile."""
    switch = Switch(tmp_path, 0.05)
    switch.turn("0123456789abcdef", "hang")
    assert switch.look("0123456789abcdef") == "hang"
    wait_until(lambda: switch.look("0123456789abcdef") is None, 5, "it ends")
    assert list(tmp_path.iterdir()) == []


def test_viewers_are_as_many_as_wanted_and_say_what_they_cost(tmp_path: Path) -> None:
    """Those who poll ask the database, and those who stream hold their streams."""
    with Demo(tmp_path, DEMO_RATE="10") as demo, demo.stream("?types=compare.*") as stream:

        def right(data: Any) -> bool:
            polling, streams = data["polling"], data["streams"]
            return polling["viewers"] == streams["viewers"] == 3 and (
                polling["queries"] > 0 and streams["requests"] >= 15 and streams["bytes"] > 0
            )

        deadline = time.monotonic() + 40
        wanted = {"compare.sample", "heartbeat", "stream.open"}
        while time.monotonic() < deadline:
            event = stream.next_event(20)
            if event.type == "compare.sample" and right(event.json["data"]):
                break
            # Whoever does not hear of it again forgets it, or was not there yet.
            if event.type in wanted:
                demo.ask("/compare/viewers", {"viewers": 3})
        assert event.type == "compare.sample"
        assert event.json["data"]["streams"]["failures"] == 0


def test_what_is_vendored_is_what_was_published() -> None:
    """And its licence is beside it."""
    folder = ROOT / "demo_app" / "static" / "vendor" / "uplot"
    sums = dict(line.split()[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert sums == {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.iterdir()
        if file.name != "SHA256SUMS"
    }
    assert "MIT License" in (folder / "LICENSE").read_text()


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
