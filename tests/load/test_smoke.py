"""The load benchmark, with little load: it must work and be right; how fast is not asked here."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from typing import Any

import pytest

from tests.conftest import missing, require
from tests.gunicorn_server import ROOT
from tests.load import __main__ as load
from tests.load import (
    coalesce,
    dashboard,
    emitting,
    failover,
    faults,
    rolling,
    screen,
    soak,
    streams,
)
from tests.load.bench import Options, floor_body
from tests.load.clients import Drained, Streams
from tests.load.coalesce_site import CASHEWS, LIBRARIES, OURS
from tests.load.peers import FLASK_SSE, SSE_STARLETTE
from tests.load.report import Report

SMALL = Options(
    streams=200,
    rate=50.0,
    seconds=0.5,
    every=1,
    peers=False,
    floor=False,
    max_rate=50.0,
    max_steps=2,
    stall_seconds=1.0,
    peer_streams=10,
)
EVERYTHING = {
    "failed": 0,
    "streams": 200,
    "streams checked": 200,
    "complete": 200,
    "events missing": 0,
    "events repeated": 0,
    "closed by the server": 0,
}
FIGURES = {
    "steady": ("delivered/s", "latency p99", "worker CPU", "memory per stream", "view p99"),
    "tenth": ("delivered/s", "latency p99", "worker CPU", "view p99"),
    "overload": ("delivered/s in overload", "memory at most", "view p99 in overload"),
    "idle": ("memory per stream", "worker CPU"),
    "connect": ("connected in", "streams accepted/s"),
    "storm": ("missed by each stream", "back in"),
    "stalled": ("p99 of the others, second half", "memory growth in the second half"),
}


@pytest.fixture(autouse=True)
def programs() -> None:
    """Require what every scenario needs."""
    require("gcc")
    require("redis-server")


@pytest.mark.parametrize("name", ["", *load.BENCHMARKS])
def test_make_load_reaches_every_benchmark(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By its name; without one it is that of streams, whose scenarios need none."""
    with pytest.raises(SystemExit, match="0"):
        load.main([*filter(None, [name]), "--help"])
    assert f"tests.load.{name or 'streams'}" in capsys.readouterr().out


def smoke(scenario: str, **options: Any) -> Report:
    """Run *scenario* small, and check that each stream got each event once and in order."""
    report = streams.run(scenario, replace(SMALL, **options))
    values = report.values()
    assert {name: values[name] for name in EVERYTHING} == EVERYTHING
    assert [name for name in FIGURES[scenario] if values[name] is None] == []
    return report


@pytest.mark.parametrize("broker", ["memory", "redis"])
@pytest.mark.parametrize("scenario", FIGURES)
def test_every_stream_gets_every_event_once_and_in_order(scenario: str, broker: str) -> None:
    """Every scenario ends with the streams where they should be, and with its figures."""
    report = smoke(scenario, broker=broker)
    assert report["events skipped by a reset"] == 0
    assert any(figure.target for figure in report.figures)


def test_every_stream_with_a_token_or_a_ticket_is_let_in() -> None:
    """And no other scenario is without its test."""
    require("flask_jwt_extended")
    assert set(streams.SCENARIOS) == {*FIGURES, "access", "metrics"}
    values = streams.run("access", replace(SMALL, streams=60)).values()
    for how in ("", ", as advised"):
        failed = [values[f"{name} failed{how}"] for name in ("views", "tokens", "tickets")]
        assert failed == [0, 0, 0]
        assert values[f"tickets to ordinary views{how}"] is not None


def test_what_counting_costs_is_measured_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the whole worker, and of the pump alone."""
    require("prometheus_client")
    monkeypatch.setattr(streams, "_TURNS", 1)
    values = streams.run("metrics", replace(SMALL, broker="memory", streams=60)).values()
    assert values["with to without"] is not None
    command = [sys.executable, "-m", "tests.load.sweep", "--rounds=1", "--streams=20", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line)["ratio"] > 0 for line in done.stdout.splitlines()] == [True] * 6


def test_portable_streams_and_several_workers_are_measured_too() -> None:
    """The options reach the server."""
    smoke("steady", transport="portable", workers=2)


def test_a_storm_reads_redis_once_for_all_streams() -> None:
    """What 200 streams missed is in the worker already, or is read once, not 200 times."""
    report = smoke("storm")
    assert report["missed by each stream"] == 100
    reads = report["Redis reads in the storm"]
    assert isinstance(reads, int)
    assert 0 <= reads < 20


def test_the_floor_and_the_highest_rate_are_in_the_table() -> None:
    """The same run measures what to compare with."""
    report = smoke("steady", floor=True, find_max=True)
    for name in ("floor sends/s", "floor deliveries/s", "deliveries/s to floor"):
        assert isinstance(report[name], float)
    assert "highest sustained rate" in report.values()
    assert any("deliveries/s to floor" in line and "0.75" in line for line in report.lines())


def test_peers_are_measured_where_they_are_installed() -> None:
    """They come with the extra `load`, which nothing else needs."""
    for module in FLASK_SSE.missing + SSE_STARLETTE.missing:
        missing(module)
    report = smoke("steady", peers=True)
    assert isinstance(report["flask-sse deliveries/s"], float)
    assert isinstance(report["sse-starlette + uvicorn deliveries/s"], float)


def test_the_command_prints_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    """`--json` is for those who keep figures over time."""
    arguments = ["idle", "--json", "--broker", "memory", "--streams", "5", "--seconds", "0.5"]
    assert streams.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["streams"] == 5


def test_memory_broker_with_several_workers_is_refused() -> None:
    """The events of one worker would not reach the streams of the others."""
    with pytest.raises(SystemExit):
        streams.main(["--broker", "memory", "--workers", "2"])


@pytest.mark.slow
def test_a_dashboard_that_streams_asks_less_and_shows_the_same() -> None:
    """However a page was loaded, it shows in the end what the database has."""
    model = dashboard.Model(
        users=60,
        poll_shortest=0.3,
        poll_longest=0.6,
        seconds=1.5,
        opened_every=60.0,
        calm=4.0,
        rush=0.5,
        settle=20.0,
        opening=0.5,
    )
    reports = dashboard.run(model)
    assert len(reports) == 4
    for report in reports:
        assert report["pages right in the end before"] == 60
        assert report["pages right in the end after"] == 60
        assert (report["failed before"], report["failed after"], report["resets"]) == (0, 0, 0)
        assert isinstance(report["queries/s after"], float)
        assert report["queries/s after"] > 0
    for report in reports[:2]:
        for name in ("fewer requests", "fewer queries"):
            share = report[name]
            assert isinstance(share, float)
            assert share > 80


def test_a_herd_at_ours_is_one_execution_whatever_befalls_its_leader() -> None:
    """Workers of ours and of a library with an event loop go through the same."""
    missing_libraries()
    options = replace(coalesce.SHORT, libraries=(OURS, CASHEWS))
    table = coalesce.run(options, ["herd", "failing", "killed"])
    ours = {row: values["ours"] for row, values in table.values().items()}
    executions = [ours[row] for row in ours if row.endswith("executions")]
    assert executions == [1, 1, 1]
    assert ours["  failed of both"] == 0
    assert ours["leader cancelled: others that failed"] == 0
    assert ours["  the zombie's page is kept"] == "no"
    assert not [row for row, values in table.values().items() if len(values) != 2]


def test_hits_and_stale_results_are_measured_with_every_library() -> None:
    """Each is in each row, and what it does not do is a dash."""
    missing_libraries()
    table = coalesce.run(coalesce.SHORT, ["overheads", "stale"])
    assert table["stale results"]["ours"] == 0
    assert table["stale results"]["Flask-Caching"] != 0
    for row, values in table.values().items():
        assert set(values) == {library.name for library in LIBRARIES}
        assert values["ours"] is not None
        assert row in "\n".join(table.lines())
    assert table["hit in memory, of a view, us"]["cashews"] is None


def test_what_an_emit_costs_is_measured_beside_a_set() -> None:
    """And everything that was emitted is in the log, in order."""
    report = emitting.run(emitting.SHORT)
    assert report["in order in the log"] == "all"
    for name in ("that is times a SET", "emit in memory, p50", "emitted from one process"):
        assert isinstance(report[name], float)


def test_the_way_of_an_event_to_the_screen_is_measured() -> None:
    """In a real browser, behind nginx; each event is there, once."""
    for name in ("chromium", "nginx", "playwright"):
        require(name)
    report = screen.run(screen.SHORT)
    for name in ("events missing", "events doubled", "messages of the page"):
        assert report[name] == 0
    heard = report["committed to the page's handler, p50"]
    shown = report["committed to text on screen, p50"]
    assert isinstance(heard, float)
    assert isinstance(shown, float)
    assert 0 < heard < shown


@pytest.mark.parametrize(("scenario", "behind"), [("sentinel", 0.0), ("cluster", 0.3)])
def test_a_failover_resets_every_stream_that_misses_something(scenario: str, behind: float) -> None:
    """Those whose Redis was replaced by one that has everything miss nothing."""
    options = failover.Options(streams=50, rate=200.0, workers=2, seconds=1.5, behind=behind)
    values = failover.run(scenario, options).values()
    assert values["streams with a hole nobody told of"] == 0
    assert values["streams left silent"] == 0
    assert values["events that came twice"] == 0
    assert values["closed by the server"] == 0
    whole, reset = values["streams that missed nothing"], values["streams that were reset"]
    assert (whole, reset) == (0, 50) if behind else whole + reset == 50  # type: ignore[operator]


def test_churn_and_faults_cost_no_event_and_no_descriptor() -> None:
    """Whatever ends is given back, and whoever was away comes back to where they were."""
    options = soak.Options(0.1, warm_up=0.02, streams=50, between=1.0, held_up=0.5)
    values = soak.run(options).values()
    assert values["faults"] >= 5  # type: ignore[operator]
    assert values["disconnects"] > 0  # type: ignore[operator]
    assert values["that have everything"] == values["streams"] == 50
    for name in ("missed", "repeated", "skipped by a reset"):
        assert values[f"events {name}"] == 0
    begin, end = [values[f"file descriptors {at}"] for at in ("after the warm-up", "in the end")]
    # A pool of connections to Redis has more after a herd, and fewer after an outage.
    assert end <= begin + 10  # type: ignore[operator]


@pytest.mark.parametrize("scenario", rolling.SCENARIOS)
def test_streams_of_workers_that_are_replaced_come_back_and_have_everything(scenario: str) -> None:
    """No page is answered with an error meanwhile."""
    options = rolling.Options(streams=100, workers=2, seconds=2.0, retry=1.0)
    values = rolling.run(scenario, options).values()
    assert values["streams that have everything"] == 100
    # One that is back before gunicorn's second is over may find a worker that leaves as well.
    assert values["back"] == values["ended by the server"] >= 100  # type: ignore[operator]
    for name in ("events missing", "events skipped by a reset", "events repeated"):
        assert values[name] == 0
    assert values["views answered wrongly"] == 0
    # Without workers there is nobody to answer.
    assert values["views not answered"] == 0 or scenario == "stop"
    assert values["first back after"] >= 0.5  # type: ignore[operator]


def test_faults_at_random_leave_nothing_missing_nothing_doubled_and_no_lie_on_the_screen() -> None:
    """For some seconds, of faults that are short."""
    for name in ("chromium", "nginx", "playwright"):
        require(name)
    report = faults.run(faults.SHORT)
    assert isinstance(report["faults"], int)
    assert report["faults"] > 2
    for name in ("gaps that were none, or not told", "missing", "doubled", "wrong in all"):
        assert report[name] == 0, "\n".join(report.lines())


def missing_libraries() -> None:
    """Skip for want of a library to compare with."""
    for library in LIBRARIES:
        if library.missing:
            missing(library.module)


@pytest.mark.parametrize(
    ("write", "frame"), [(338.0, 338.0), (4715.2, 334.1), (40000.0, 331.0), (50.0, 50.0)]
)
def test_the_floor_writes_as_many_bytes_as_the_server(write: float, frame: float) -> None:
    """A send() costs by its size, so the floor is only one at the same size."""
    body = floor_body(write, frame)
    size, _, rest = body.partition(b"\r\n")
    assert len(rest) == int(size, 16) + 2
    assert abs(len(body) - max(write, 70)) <= 16
    assert rest.count(b"\n\n") == max(1, round((write - 16) / frame))


# The client: one that is wrong makes every figure wrong.

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def frame(number: int) -> bytes:
    """Return event *number* as one chunk."""
    text = b'id: 9-%d\nevent: a.b\ndata: {"data":"ts=1 seq=%d xxx"}\n\n' % (number, number)
    return b"%x\r\n%b\r\n" % (len(text), text)


RESET = b'2f\r\nid: 9-9\nevent: stream.reset\ndata: {"reason":1}\n\n\r\n'


def receive(
    *connections: bytes, total: int, cut: int = 1 << 20, timeout: float = 20.0
) -> tuple[Drained, list[bytes]]:
    """Serve each of *connections* in turn to one stream, in parts of *cut* bytes."""
    requests: list[bytes] = []

    def serve() -> None:
        for wire in connections:
            with listener.accept()[0] as sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                requests.append(sock.recv(4096))
                sock.sendall(HEAD)
                for start in range(0, len(wire), cut):
                    sock.sendall(wire[start : start + cut])
                sock.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve)
        server.start()
        with Streams(listener.getsockname()[1], 1, "/%d") as client:
            for number, _ in enumerate(connections, 1):
                client.connect()
                last = number == len(connections)
                drained = client.drain(total if last else number, timeout=timeout)
                client.drop()
        server.join(10.0)
    return drained, requests


@pytest.mark.parametrize("cut", [1, 7, 64, 1 << 20])
def test_the_client_counts_events_wherever_they_are_cut(cut: int) -> None:
    """Packets end anywhere."""
    drained, requests = receive(b"".join(map(frame, range(20))), total=20, cut=cut)
    assert drained.flawless
    assert requests[0].startswith(b"GET /0 HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("numbers", "missing", "repeated"),
    [((0, 2, 3), 1, 0), ((1, 2, 3), 1, 0), ((0, 1, 1, 2, 3), 0, 1), ((0, 2, 1, 3), 1, 1)],
)
def test_the_client_notices_holes_repeats_and_disorder(
    numbers: tuple[int, ...], missing: int, repeated: int
) -> None:
    """Each event comes exactly once and in order, or it is counted."""
    drained, _ = receive(b"".join(map(frame, numbers)), total=4)
    assert (drained.complete, drained.missing, drained.repeated) == (1, missing, repeated)
    assert not drained.flawless


def test_the_client_takes_a_hole_after_a_reset_as_announced() -> None:
    """Skipped with a reset is not the same as missing."""
    drained, _ = receive(frame(0) + RESET + frame(3), total=4)
    assert (drained.missing, drained.skipped, drained.resets) == (0, 2, 1)


def test_the_client_notices_a_stream_that_falls_short() -> None:
    """The end of the events must come, too."""
    assert receive(frame(0), total=1)[0].complete == 1
    assert receive(frame(0), total=2, timeout=0.2)[0].complete == 0


def test_the_client_comes_back_with_its_last_id() -> None:
    """A position is what a reconnect starts from."""
    drained, requests = receive(frame(0), frame(1), total=2)
    assert drained.flawless
    assert b"Last-Event-ID" not in requests[0]
    assert b"Last-Event-ID: 9-0\r\n" in requests[1]
