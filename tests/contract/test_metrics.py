"""What an app counts of its streams, polls, emits and coalesced views."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, Request
from prometheus_client import CollectorRegistry
from werkzeug.test import EnvironBuilder

from flask_noc_realtime import Identity, NocRealtime, coalesce
from flask_noc_realtime.broker.pages import Look
from flask_noc_realtime.emit import EmitOptions, Publisher
from flask_noc_realtime.event import Catalogue
from flask_noc_realtime.flight import Landed
from flask_noc_realtime.generation import Generations
from flask_noc_realtime.metrics import metrics_in
from flask_noc_realtime.shelf import Codec, Shelf
from flask_noc_realtime.testing import cut, process_of, stream_client
from tests.conftest import RedisFactory, require
from tests.contract.conftest import BrokerFactory
from tests.gunicorn_server import ROOT
from tests.processes import wait_until

PREFIX = "/api/v1/events"
TIMEOUT = 20.0


class Site:
    """An app that counts in a registry of its own; clients name themselves by a header."""

    def __init__(self, **config: Any) -> None:
        self.registry = CollectorRegistry()
        self.app = Flask("site")
        self.app.secret_key = "test"
        self.app.config.update({f"NOC_REALTIME_{name}": value for name, value in config.items()})
        self.realtime = NocRealtime()
        self.realtime.metrics(self.registry)
        self.realtime.identity_loader(self.who)
        self.realtime.init_app(self.app)

    def who(self, request: Request) -> Identity | None:
        """Read the identity."""
        user = request.headers.get("X-User")
        return Identity(user) if user else None

    def get(self, path: str, **headers: str) -> int:
        """Return the status of a request."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.app.test_client().get(path, headers=named).status_code

    def value(self, name: str, **labels: str) -> float | None:
        """Return the value of a sample."""
        return self.registry.get_sample_value(name, labels)

    def nonzero(self, name: str) -> dict[str, float]:
        """Return the values of a metric, by its only label."""
        return {
            "".join(sample.labels.values()): sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == name and sample.value
        }

    def shared(self) -> tuple[float | None, ...]:
        """Return the hits, the misses, and the calls that were given another's result."""
        names = ("cache_hits", "cache_misses", "requests_deduplicated")
        return tuple(self.value(f"dedup_{name}_total") for name in names)


@pytest.fixture
def make_site() -> Iterator[Callable[..., Site]]:
    """Return a factory of sites, which are closed when the test is over."""
    sites: list[Site] = []

    def make(**config: Any) -> Site:
        sites.append(Site(**config))
        return sites[-1]

    yield make
    for site in sites:
        process_of(site.app).close()


ADA = {"X-User": "ada"}


def test_a_stream_is_counted_from_its_opening_to_its_end(make_site: Callable[..., Site]) -> None:
    """With what it is sent, what it missed, and whether it had to begin anew."""
    site = make_site()
    with stream_client(site.app, headers=ADA) as stream:
        assert site.value("sse_connections_active") == 1
        site.realtime.emit("log.added", 1)
        site.realtime.emit("log.added", 2, user_id="bob")
        site.realtime.emit("incident.created", 3, user_id="ada")
        assert [event.data for event in stream.read()] == [1, 3]
        assert site.nonzero("sse_events_sent_total") == {"log.added": 1, "incident.created": 1}
        position = stream.position
    assert site.value("sse_connections_active") == 0
    assert site.value("sse_connection_duration_count") == 1
    site.realtime.emit("log.added", 4)
    site.realtime.emit("log.added", 5)
    with stream_client(site.app, headers=ADA, last_event_id=position) as stream:
        site.realtime.emit("log.added", 6)
        assert [event.data for event in stream.read()] == [4, 5, 6]
    with stream_client(site.app, headers=ADA, last_event_id="gone-1") as stream:
        stream.read()
    assert site.nonzero("sse_events_sent_total") == {"log.added": 4, "incident.created": 1}
    assert site.nonzero("sse_resets_total") == {"unknown-position": 1}
    assert site.value("sse_connections_total") == 3
    assert site.value("sse_reconnections_total") == 2
    assert site.value("sse_connection_duration_count") == 3
    assert site.value("sse_replayed_events_total") == 3
    latencies = site.value("sse_delivery_latency_count")
    assert latencies is not None and latencies >= 1


def test_a_stream_that_nobody_closes_is_counted_out(make_site: Callable[..., Site]) -> None:
    """Middleware that passes its body on in a generator of its own does not."""
    site = make_site()
    environ = EnvironBuilder(f"{PREFIX}/stream", headers=ADA).get_environ()
    body = iter(site.app.wsgi_app(environ, lambda status, headers, error=None: lambda _: None))
    assert b"stream.open" in next(body)
    assert site.value("sse_connections_active") == 1
    del body, environ
    gc.collect()
    assert site.value("sse_connections_active") == 0
    with stream_client(site.app, headers=ADA):
        assert site.value("sse_connections_active") == 1
    assert site.value("sse_connections_active") == 0
    assert site.value("sse_connection_duration_count") == 2


REFUSALS = {
    "unauthorized": (401, {}, {}, "/stream"),
    "a ticket": (401, ADA, {}, "/stream/0123"),
    "forbidden": (403, {**ADA, "Origin": "https://elsewhere.example"}, {}, "/stream"),
    "types": (400, ADA, {}, "/stream?types=*x"),
    "format": (406, {**ADA, "Accept": "image/png"}, {}, "/stream"),
    "rollout": (204, ADA, {"ROLLOUT": 0}, "/stream"),
    "user": (429, ADA, {"MAX_STREAMS_PER_USER": 1}, "/stream"),
    "worker": (503, {"X-User": "bob"}, {"MAX_STREAMS": 1}, "/stream"),
}
REASONS = {
    204: "rollout",
    400: "invalid",
    401: "unauthorized",
    403: "forbidden",
    406: "invalid",
    429: "limit",
    503: "unavailable",
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_stream_that_is_refused_is_counted_by_why(
    refusal: str, make_site: Callable[..., Site]
) -> None:
    """And not as one that was opened; nor are a HEAD and a preflight."""
    status, headers, config, path = REFUSALS[refusal]
    site = make_site(**config)
    opened = 1 if status in (429, 503) else 0
    streams = [stream_client(site.app, headers=ADA) for _ in range(opened)]
    answer = site.app.test_client().get(PREFIX + path, headers=headers)
    assert answer.status_code == status
    assert site.nonzero("sse_stream_rejections_total") == {REASONS[status]: 1}
    site.app.test_client().options(PREFIX + path, headers=headers)
    site.app.test_client().get(f"{PREFIX}/poll", headers={"X-User": ""})
    assert site.nonzero("sse_stream_rejections_total") == {REASONS[status]: 1}
    assert site.value("sse_connections_total") == opened
    for stream in streams:
        stream.close()


def test_polls_are_counted_by_cohort(make_site: Callable[..., Site]) -> None:
    """Those whom the rollout gives streams fell back to it; the others were left to it."""
    site = make_site(ROLLOUT=0)
    site.realtime.metrics(site.registry)
    with site.app.app_context():
        site.realtime.rollout(allow=["ada"])
    for user in ("ada", "bob", "bob"):
        assert site.get(f"{PREFIX}/poll", X_User=user) == 200
    assert site.get(f"{PREFIX}/poll") == 401
    assert site.nonzero("sse_poll_fallbacks_total") == {"stream": 1, "polling": 2}
    assert site.value("sse_rollout_percent") == 0


def test_what_polls_carry_and_how_late_is_counted_by_cohort(
    make_site: Callable[..., Site],
) -> None:
    """So that those who stream and those who poll can be compared; an empty answer says nothing."""
    site = make_site(ROLLOUT=0)
    with site.app.app_context():
        site.realtime.rollout(allow=["ada"])
        position = site.realtime.position()
        for number in range(3):
            site.realtime.emit("log.added", number, user_id="bob" if number else None)
        newest = site.realtime.position()
    for user, after in (("ada", position), ("bob", position), ("bob", newest)):
        assert site.get(f"{PREFIX}/poll?after={after}", X_User=user) == 200
    assert site.nonzero("sse_poll_events_total") == {"stream": 1, "polling": 3}
    for cohort in ("stream", "polling"):
        assert site.value("sse_poll_latency_count", cohort=cohort) == 1
        latency = site.value("sse_poll_latency_sum", cohort=cohort)
        assert latency is not None
        assert 0 <= latency < TIMEOUT


def test_what_the_broker_does_not_take_is_counted(make_site: Callable[..., Site]) -> None:
    """What waits, and what is given up for want of room."""
    site = make_site(QUEUE_EVENTS=2)
    site.realtime.emit("log.added", 1)
    assert site.value("sse_broker_up") == 1
    with cut(site.app):
        for number in range(5):
            site.realtime.emit("log.added", number)
        wait_until(lambda: site.value("sse_emit_queued") == 2, TIMEOUT, "two wait")
        assert site.value("sse_broker_up") == 0
        assert site.value("sse_emit_failures_total") == 5
        assert site.value("sse_emit_dropped_total") == 3
    assert site.value("sse_emit_queued") == 0
    assert site.value("sse_broker_up") == 1


def test_a_coalesced_view_counts_who_worked_and_who_was_given_what(
    make_site: Callable[..., Site],
) -> None:
    """Each call is one of three: it did the work, waited for another's, or found it done."""
    site = make_site()
    begun, go = threading.Event(), threading.Event()

    def page() -> str:
        begun.set()
        assert go.wait(TIMEOUT)
        return "page"

    site.app.add_url_rule("/page", view_func=coalesce(scope="public", ttl=60)(page))
    calls = [threading.Thread(target=site.get, args=("/page",)) for _ in range(4)]
    for call in calls:
        call.start()
    flights = process_of(site.app).flights
    wait_until(lambda: flights.waiting == 3, TIMEOUT, "three wait")
    go.set()
    for call in calls:
        call.join(TIMEOUT)
    assert site.shared() == (0, 1, 3)
    assert site.get("/page") == site.get("/page") == 200
    assert site.shared() == (2, 1, 3)
    assert site.value("dedup_cache_size") == 1
    assert site.value("dedup_flight_duration_count") == 1


def test_a_coalesced_function_counts_alike(make_site: Callable[..., Site]) -> None:
    """A failure is work too, and what is given out in its place is kept."""
    site = make_site()
    results = [1, LookupError("no"), 2]

    @coalesce(scope="public", ttl=0.05, stale_while_revalidate=60)
    def figure() -> int:
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    def figures() -> str:
        return str(figure())

    site.app.add_url_rule("/figures", view_func=figures)
    assert site.get("/figures") == 200
    assert site.shared() == (0, 1, 0)
    stale = time.monotonic() + 0.1
    wait_until(lambda: time.monotonic() > stale, TIMEOUT, "it is stale")
    assert site.get("/figures") == 200
    assert site.shared() == (1, 2, 0)
    assert site.get("/figures") == 200
    assert site.shared() == (1, 3, 0)
    assert site.value("dedup_flight_duration_count") == 3


CODEC: Codec[str] = Codec(
    lambda value, key, seconds: value.encode(), lambda data, key: data.decode()
)
KEY = bytes(16)


def test_what_another_worker_does_is_counted_where_it_is_given_out(
    redis_server: RedisFactory, connect: BrokerFactory
) -> None:
    """Found in Redis, waited for, or done in place of a worker whose lease has lapsed."""
    registry = CollectorRegistry()
    broker = connect(redis_server().url)
    generations = Generations(broker, Publisher(broker, Catalogue(), EmitOptions()))
    shelf = Shelf(broker.pages, generations, 0.3, metrics_in(registry, ()))

    def value(name: str) -> float | None:
        return registry.get_sample_value(f"dedup_{name}_total")

    def obtain(key: bytes) -> str:
        landed = shelf.obtain(key, (), CODEC, lambda _: Landed("mine", 60.0), strict=False)[1]
        assert landed is not None
        return landed.value

    look = broker.pages.look_up(KEY.hex(), (), "other", 60.0)
    assert look.state == "lead"
    waits = threading.Event()
    look_up = broker.pages.look_up

    def noted(*args: Any) -> Look:
        found = look_up(*args)
        if found.state == "wait":
            waits.set()
        return found

    def land() -> None:
        assert waits.wait(TIMEOUT)
        broker.pages.commit(KEY.hex(), "other", "landed", look, (), b"theirs", 60.0)

    broker.pages.look_up = noted  # type: ignore[method-assign]
    other = threading.Thread(target=land)
    other.start()
    assert obtain(KEY) == "theirs"
    other.join(TIMEOUT)
    assert (value("requests_deduplicated"), value("cache_hits")) == (1, 0)
    assert obtain(KEY) == "theirs"
    assert (value("requests_deduplicated"), value("cache_hits")) == (1, 1)
    assert value("lease_takeovers") == 0

    gone = bytes(15) + b"1"
    assert broker.pages.look_up(gone.hex(), (), "dead", 0.2).state == "lead"
    assert obtain(gone) == "mine"
    assert value("lease_takeovers") == 1
    assert obtain(gone) == "mine"
    assert value("lease_takeovers") == 1
    shelf.close()


def test_tickets_do_not_become_time_series_of_the_exporter() -> None:
    """Each would be one, and readable by whoever may see metrics."""
    require("prometheus_flask_exporter")
    from prometheus_flask_exporter import PrometheusMetrics

    app = Flask("exported")
    app.config["NOC_REALTIME_ALLOW_ANONYMOUS"] = True
    exporter = PrometheusMetrics(app, registry=CollectorRegistry())
    realtime = NocRealtime(app)
    realtime.metrics(exporter)
    client = app.test_client()
    for path in ("poll", "stream/secret-ticket", "stream/secret-ticket?x=1", "no/such-address"):
        client.get(f"{PREFIX}/{path}")
    shown = client.get("/metrics").text
    assert f'path="{PREFIX}/poll"' in shown
    assert "secret-ticket" not in shown and "such-address" not in shown
    assert 'sse_stream_rejections_total{reason="unauthorized"} 2.0' in shown
    process_of(app).close()


TOGETHER = """
import os, shutil, sys
from flask import Flask
from prometheus_client import CollectorRegistry
from flask_noc_realtime import NocRealtime, coalesce
from flask_noc_realtime.metrics import OFF
from flask_noc_realtime.testing import cut, process_of, stream_client

DIRECTORY = os.environ["PROMETHEUS_MULTIPROC_DIR"]
app = Flask("site")
app.config["NOC_REALTIME_ALLOW_ANONYMOUS"] = True
realtime = NocRealtime(app)
realtime.metrics(CollectorRegistry())
app.add_url_rule("/page", view_func=coalesce(scope="public")(lambda: "page"))


def in_a_child(serve):
    sys.stderr.flush()
    if not os.fork():
        serve()
        os._exit(0)
    assert os.wait()[1] == 0


def serve():
    assert realtime.emit("log.added", 1) is not None
    client = app.test_client()
    assert client.get("/page").text == client.get("/page").text == "page"
    assert client.get("/api/v1/events/poll").status_code == 200
    assert client.get("/api/v1/events/stream?types=*x").status_code == 400
    for position in (None, "gone-1"):
        with stream_client(app, last_event_id=position) as stream:
            realtime.emit("log.added", 2)
            assert stream.read()[-1].data == 2
    with cut(app):
        assert realtime.emit("log.added", 3) is None
    process_of(app).close()
"""
BROKEN = """
def serve_with_a_broken_file():
    with open(f"{DIRECTORY}/counter_{os.getpid()}.db", "wb") as file:
        file.write(b"\\x7f" * 64)
    serve()
    assert process_of(app).metrics is OFF


in_a_child(serve_with_a_broken_file)
"""
DELETED = """
process_of(app)
shutil.rmtree(DIRECTORY)
in_a_child(serve)
"""
PATCHED_LATE = """
import gevent, gevent.monkey

gevent.monkey.patch_all()
requests = [gevent.spawn(process_of, app) for _ in range(2)]
assert len(gevent.joinall(requests, timeout=10)) == 2
assert len(set(request.get() for request in requests)) == 1
"""


def together(script: str, directory: Path) -> tuple[int, str]:
    """Run *script* in a process that counts in *directory*; return how it ended."""
    command = [sys.executable, "-W", "ignore", "-c", TOGETHER + script]
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(directory)}
    result = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=TIMEOUT
    )
    return result.returncode, result.stderr


@pytest.mark.parametrize(
    ("script", "said"),
    [(BROKEN, "There are no metrics of streams"), (DELETED, "Metrics are not counted any more")],
    ids=["broken", "deleted"],
)
def test_metrics_that_cannot_be_written_cost_nothing_else(
    script: str, said: str, tmp_path: Path
) -> None:
    """No emit, no stream and no page; it is said once."""
    code, errors = together(script, tmp_path)
    assert code == 0, errors
    assert errors.count(said) == 1


def test_a_worker_that_is_patched_after_the_app_was_loaded_serves(tmp_path: Path) -> None:
    """As with --preload: the thread that refreshes the gauges begins under no lock from before."""
    require("gevent")
    assert together(PATCHED_LATE, tmp_path) == (0, "")
